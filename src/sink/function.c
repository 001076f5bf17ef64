/*
 * function.c
 *		Delivers to function:schema.name, a function in this database.
 *
 * The function takes an event (jsonb), or all events of a batch (jsonb[]).
 * It runs in the transaction that acknowledges the events, so its effects
 * happen exactly once, and as the role that created the endpoint, so it can
 * do no more than that role could by itself.
 *
 * A call is a subtransaction: what fails is undone alone.
 */
#include "sink/sink.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "error.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "postmaster/bgworker.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/varlena.h"

static const char scheme[] = "function:";

/* A function to call: its quoted name and what it takes. */
typedef struct Target
{
	Oid			oid;
	char	   *name;
	bool		takes_batch;
} Target;

static Target
find_target(const char *url)
{
	const char *text = url + strlen(scheme);
	List	   *names = stringToQualifiedNameList(text);
	Oid			jsonb = JSONBOID;
	Oid			jsonb_array = JSONBARRAYOID;
	Target		target = {0};

	if (list_length(names) != 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("url must name its function with a schema"),
				 errdetail("{\"argument\": \"url\"}"),
				 errhint("Write function:schema.name.")));
	target.oid = LookupFuncName(names, 1, &jsonb, true);
	if (!OidIsValid(target.oid))
	{
		target.oid = LookupFuncName(names, 1, &jsonb_array, true);
		target.takes_batch = true;
	}
	if (!OidIsValid(target.oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(jsonb) does not exist", text),
				 errdetail("{\"argument\": \"url\"}"),
				 errhint("Create a function that takes one jsonb, an event, or jsonb[], a batch of them.")));
	target.name = quote_qualified_identifier(strVal(linitial(names)), strVal(lsecond(names)));
	return target;
}

static void
check_function(const char *url, Oid role)
{
	Target		target = find_target(url);

	if (!SHOP_MAY_EXECUTE(target.oid, role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", target.name),
				 errdetail("{\"argument\": \"url\"}"),
				 errhint("Grant EXECUTE on the function to the role that creates the endpoint.")));
}

static void
call_target(const ShopEndpoint *endpoint, Datum *events, int n)
{
	Target		target = find_target(endpoint->url);
	Datum		batch = PointerGetDatum(construct_array(events, n, JSONBOID, -1, false, TYPALIGN_INT));
	Oid			type = JSONBARRAYOID;
	Oid			role = get_role_oid(endpoint->run_as, false);
	char	   *sql;
	int			rc;

	sql = target.takes_batch ? psprintf("SELECT %s($1)", target.name) :
		psprintf("SELECT %s(e) FROM pg_catalog.unnest($1) AS e", target.name);

	/* The end of the subtransaction, good or bad, restores the role. */
	SetUserIdAndSecContext(role, SECURITY_LOCAL_USERID_CHANGE);
	rc = SPI_execute_with_args(sql, 1, &type, &batch, NULL, false, 0);
	if (rc < 0)
		elog(ERROR, "could not call %s: %s", target.name, SPI_result_code_string(rc));
}

/* In a client's session, a cancellation is the client's; so are retries of its snapshot. */
static bool
is_for_the_caller(int sqlstate)
{
	if (IsBackgroundWorker)
		return false;
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_OPERATOR_INTERVENTION ||
		(IsolationUsesXactSnapshot() && ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE));
}

static char *
deliver_to_function(const ShopEndpoint *endpoint, Datum *events, int n)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Oid			user;
	int			security;
	char	   *volatile failure = NULL;

	GetUserIdAndSecContext(&user, &security);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		/* Nobody else limits a worker's statement. */
		if (IsBackgroundWorker)
			enable_timeout_after(STATEMENT_TIMEOUT, endpoint->timeout_ms);
		SPI_connect();
		call_target(endpoint, events, n);
		SPI_finish();
		if (IsBackgroundWorker)
			disable_timeout(STATEMENT_TIMEOUT, false);
		SetUserIdAndSecContext(user, security);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (IsBackgroundWorker)
			disable_timeout(STATEMENT_TIMEOUT, false);
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (is_for_the_caller(error->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		failure = psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return failure;
}

const ShopSink shop_sink_function = {
	.scheme = scheme,
	.check = check_function,
	.deliver = deliver_to_function,
};
