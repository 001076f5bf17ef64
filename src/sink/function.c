/*
 * function.c
 *		Delivers to function:schema.name, a function in this database.
 *
 * The function takes an event (jsonb), or all events of a batch (jsonb[]).
 * It runs in the transaction that acknowledges the events, so its effects
 * happen exactly once, and as the role that created the endpoint, in a
 * security-restricted operation, so it can do no more than that role could by
 * itself, and leaves nothing behind in the session: what it sets is taken
 * back, and what else would outlive the call is forbidden.
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
#include "subtransaction.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timeout.h"
#include "utils/varlena.h"

static const char scheme[] = "function:";

/* A function to call: its quoted name and what it takes. */
typedef struct Target
{
	Oid oid;
	char *name;
	bool takes_batch;
} Target;

/* One call of an endpoint's function. */
typedef struct Call
{
	const ShopEndpoint *endpoint;
	const ShopMessage *messages;
	int n;
} Call;

/* schema.name as a list of two names. */
static List *
parse_name(const char *text)
{
	List *parts;

	if (!SplitIdentifierString(pstrdup(text), '.', &parts) || list_length(parts) != 2)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("url must name its function with a schema"),
						   errdetail("{\"argument\": \"url\"}"), errhint("Write function:schema.name.")));
	return list_make2(makeString(linitial(parts)), makeString(lsecond(parts)));
}

static Target
find_target(const char *url)
{
	const char *text = url + strlen(scheme);
	List *names = parse_name(text);
	Oid jsonb = JSONBOID;
	Oid jsonb_array = JSONBARRAYOID;
	Oid batch;
	Target target = {0};

	target.oid = LookupFuncName(names, 1, &jsonb, true);
	batch = LookupFuncName(names, 1, &jsonb_array, true);
	/* Who may create functions in the schema must not be able to put his before the one that was meant. */
	if (OidIsValid(target.oid) && OidIsValid(batch))
		ereport(ERROR, (errcode(ERRCODE_AMBIGUOUS_FUNCTION), errmsg("function %s is not unique", text),
						   errdetail("{\"argument\": \"url\"}"),
						   errhint("Have it take an event, jsonb, or a batch of them, jsonb[], but not both.")));
	if (!OidIsValid(target.oid))
	{
		target.oid = batch;
		target.takes_batch = true;
	}
	if (!OidIsValid(target.oid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION), errmsg("function %s(jsonb) does not exist", text),
						   errdetail("{\"argument\": \"url\"}"),
						   errhint("Create a function that takes one jsonb, an event, or jsonb[], a batch of them.")));
	target.name = quote_qualified_identifier(strVal(linitial(names)), strVal(lsecond(names)));
	return target;
}

static void
check_function(const char *url, Oid role)
{
	Target target = find_target(url);

	if (!SHOP_MAY_EXECUTE(target.oid, role))
		ereport(
			ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("permission denied for function %s", target.name),
					   errdetail("{\"argument\": \"url\"}"),
					   errhint("Grant EXECUTE on the function to the role that creates the endpoint.")));
}

static Datum
make_batch(const ShopMessage *messages, int n)
{
	Datum *events = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		events[i] = JsonbPGetDatum(shop_cloudevent_jsonb(&messages[i]));
	return PointerGetDatum(construct_array(events, n, JSONBOID, -1, false, TYPALIGN_INT));
}

/*
 * Triggers that are deferred would run at commit, when the role is not the
 * function's any more, so those of the function run at once.  Those that a
 * client's transaction has put off before run now too, as they would at its
 * commit: as the session's role, and never as the shop's owner.
 */
static void
set_constraints_immediate(void)
{
	Oid user;
	int security;

	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(GetOuterUserId(), security | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not set constraints");
	SetUserIdAndSecContext(user, security);
}

static void
call_target(const ShopEndpoint *endpoint, const ShopMessage *messages, int n)
{
	Target target = find_target(endpoint->url);
	Datum batch = make_batch(messages, n);
	Oid type = JSONBARRAYOID;
	Oid role = get_role_oid(endpoint->run_as, false);
	char *sql;
	int rc;

	sql = target.takes_batch ? psprintf("SELECT %s($1)", target.name)
							 : psprintf("SELECT %s(e) FROM pg_catalog.unnest($1) AS e", target.name);

	if (role != endpoint->run_as_oid)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						   errmsg("role \"%s\" is not the one that created the endpoint", endpoint->run_as)));

	/* An error takes the role back with the subtransaction. */
	set_constraints_immediate();
	SetUserIdAndSecContext(role, SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	rc = SPI_execute_with_args(sql, 1, &type, &batch, NULL, false, 0);
	if (rc < 0)
		elog(ERROR, "could not call %s: %s", target.name, SPI_result_code_string(rc));
}

/* In a client's session, a cancellation is the client's; so are retries of its snapshot. */
static bool
is_for_the_caller(int sqlstate)
{
	if (SHOP_IS_BACKGROUND_WORKER())
		return false;
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_OPERATOR_INTERVENTION ||
		   (IsolationUsesXactSnapshot() &&
			   ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE));
}

/* Nobody else limits a worker's statement. */
static void
start_timeout(const ShopEndpoint *endpoint)
{
	if (SHOP_IS_BACKGROUND_WORKER())
		enable_timeout_after(STATEMENT_TIMEOUT, endpoint->timeout_ms);
}

static void
stop_timeout(void)
{
	if (SHOP_IS_BACKGROUND_WORKER())
		disable_timeout(STATEMENT_TIMEOUT, false);
}

static bool
call_within(void *arg)
{
	Call *call = arg;
	int nest_level = NewGUCNestLevel();
	Oid user;
	int security;

	GetUserIdAndSecContext(&user, &security);
	start_timeout(call->endpoint);
	SPI_connect();
	call_target(call->endpoint, call->messages, call->n);
	SPI_finish();
	stop_timeout();
	/* A search_path that it has left behind would be that of our own statements. */
	AtEOXact_GUC(false, nest_level);
	SetUserIdAndSecContext(user, security);
	return true;
}

static char *
deliver_to_function(const ShopEndpoint *endpoint, const ShopMessage *messages, int n, bool *timed_out)
{
	Call call = {endpoint, messages, n};
	ErrorData *error = shop_subtransaction(call_within, &call);

	stop_timeout();
	if (error == NULL)
		return NULL;
	if (is_for_the_caller(error->sqlerrcode))
		ReThrowError(error);
	*timed_out = error->sqlerrcode == ERRCODE_QUERY_CANCELED;
	return psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
}

const ShopSink shop_sink_function = {
	.scheme = scheme,
	.check = check_function,
	.deliver = deliver_to_function,
};
