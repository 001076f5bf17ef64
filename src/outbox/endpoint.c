/*
 * endpoint.c
 *		Who gets the events: create, pause, resume, drop, change the secret.
 *
 * An endpoint carries the system identifier and the database it was made in.
 * In a copy of the database these do not match, and nothing is delivered
 * until resume_endpoint() is called there.  The built-in subscriber is
 * made, or brought home, by whoever writes the first event: workers leave a
 * database alone in which it is not, as that may be one being restored.
 *
 * Locks: the endpoint row; SHOP_LOCK_RETENTION, shared, while one is made.
 */
#include "outbox/outbox.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "caller.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "error.h"
#include "log.h"
#include "miscadmin.h"
#include "query.h"
#include "sink/sink.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "worker/worker.h"

/*
 * From now on: all that is visible now is done, what is still running is not.
 * Numbers below the built-in endpoint's first gap are settled, so only those
 * from there on have to be looked at one by one.
 */
static ShopQuery insert_endpoint = SHOP_QUERY(
	"WITH settled AS"
	"  (SELECT coalesce(min(lower(g)), 0) AS before"
	"     FROM shop.endpoint e, unnest('{(,)}'::int8multirange - e.acked) g WHERE e.builtin),"
	" seen AS"
	"  (SELECT range_agg(int8range(o.event_no, o.event_no, '[]')) AS numbers"
	"     FROM shop.outbox o, settled s WHERE o.event_no >= s.before)"
	" INSERT INTO shop.endpoint (name, url, types, secret, options, run_as, run_as_oid, acked,"
	"                            system_identifier, database_oid, created_at)"
	" SELECT $1, $2, $3, $4, $5, $6, $11,"
	"        CASE WHEN $7 THEN '{}'::int8multirange"
	"             ELSE int8multirange(int8range(NULL, s.before)) + coalesce(n.numbers, '{}') END,"
	"        $8, $9, $10"
	"   FROM settled s, seen n"
	" ON CONFLICT (name) DO NOTHING RETURNING endpoint_id",
	TEXTOID, TEXTOID, TEXTARRAYOID, TEXTOID, JSONBOID, TEXTOID, BOOLOID, INT8OID, OIDOID, TIMESTAMPTZOID, OIDOID);

static ShopQuery find_builtin = SHOP_QUERY(
	"SELECT FROM shop.endpoint WHERE builtin AND shop.is_home(system_identifier, database_oid)");

static ShopQuery insert_builtin = SHOP_QUERY(
	"INSERT INTO shop.endpoint AS e (name, url, types, options, run_as, run_as_oid, builtin, acked,"
	"                                system_identifier, database_oid, created_at)"
	" VALUES ('shop.fold_sales', 'function:shop.fold_sales', '{order.paid,order.cancelled,order.refunded}',"
	"         '{}', $1, $5, true, '{}', $2, $3, $4)"
	" ON CONFLICT (name) DO UPDATE"
	"   SET run_as = $1, run_as_oid = $5, system_identifier = $2, database_oid = $3, horizon_no = NULL, horizon_xid = "
	"NULL",
	TEXTOID, INT8OID, OIDOID, TIMESTAMPTZOID, OIDOID);

static ShopQuery read_endpoint = SHOP_QUERY("SELECT name, url, types, options, signed, run_as, state, pause_reason,"
											"       delivered_total, last_delivered_at, last_error, created_at"
											"  FROM shop.endpoints WHERE name = $1",
	TEXTOID);

static ShopQuery pause_endpoint = SHOP_QUERY("UPDATE shop.endpoint SET paused = true, pause_reason = 'paused by ' || $2"
											 " WHERE name = $1 AND NOT builtin",
	TEXTOID, TEXTOID);

static ShopQuery find_url = SHOP_QUERY("SELECT url FROM shop.endpoint WHERE name = $1 AND NOT builtin", TEXTOID);

static ShopQuery set_secret = SHOP_QUERY(
	"UPDATE shop.endpoint SET secret = $2 WHERE name = $1 AND NOT builtin", TEXTOID, TEXTOID);

/* The horizon and the role's oid are in the numbers of the server they are from. */
static ShopQuery resume_endpoint = SHOP_QUERY(
	"UPDATE shop.endpoint"
	"   SET paused = false, pause_reason = NULL, failures = 0, retry_at = NULL,"
	"       horizon_no = CASE WHEN shop.is_home(system_identifier, database_oid) THEN horizon_no END,"
	"       horizon_xid = CASE WHEN shop.is_home(system_identifier, database_oid) THEN horizon_xid END,"
	"       run_as_oid = CASE WHEN shop.is_home(system_identifier, database_oid) THEN run_as_oid"
	"                         ELSE coalesce((SELECT oid FROM pg_roles WHERE rolname = run_as), run_as_oid) END,"
	"       system_identifier = $2, database_oid = $3"
	" WHERE name = $1 AND NOT builtin",
	TEXTOID, INT8OID, OIDOID);

static ShopQuery lock_endpoint = SHOP_QUERY(
	"SELECT FROM shop.endpoint WHERE name = $1 AND NOT builtin FOR UPDATE", TEXTOID);

static ShopQuery delete_endpoint = SHOP_QUERY(
	"WITH gone AS (DELETE FROM shop.endpoint WHERE name = $1 AND NOT builtin RETURNING endpoint_id)"
	" DELETE FROM shop.delivery d USING gone WHERE d.endpoint_id = gone.endpoint_id",
	TEXTOID);

SHOP_FUNCTION(shop_is_home);
SHOP_FUNCTION(shop_create_endpoint);
SHOP_FUNCTION(shop_pause_endpoint);
SHOP_FUNCTION(shop_resume_endpoint);
SHOP_FUNCTION(shop_set_endpoint_secret);
SHOP_FUNCTION(shop_drop_endpoint);

Datum
shop_is_home(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL((uint64) PG_GETARG_INT64(0) == GetSystemIdentifier() && PG_GETARG_OID(1) == MyDatabaseId);
}

/* Is the built-in subscriber known to be there, or which transaction of ours has made it? */
static bool builtin_seen;
static FullTransactionId builtin_made_in;

static ShopValue
here(void)
{
	return shop_int8((int64) GetSystemIdentifier());
}

static ShopValue
this_database(void)
{
	return shop_oid(MyDatabaseId);
}

/* Is the built-in subscriber there, and at home? */
bool
shop_endpoint_builtin_is_home(void)
{
	return shop_query(&find_builtin, NULL) > 0;
}

static void
make_builtin(void)
{
	shop_query(&insert_builtin, SHOP_VALUES(shop_text(GetUserNameFromId(GetUserId(), false)), here(), this_database(),
									shop_time(shop_now()), shop_oid(GetUserId())));
}

/*
 * Called with every event: until a backend has seen the built-in subscriber,
 * it looks for it and makes it if need be.  What this transaction made itself
 * may still be rolled back, so that does not count as seen; and while another
 * transaction is making it nobody waits for that, but looks again at the next
 * event.  (If the extension is dropped and created again, the plan of the
 * query goes stale.)
 */
void
shop_endpoint_expect_builtin(void)
{
	if (builtin_seen && shop_query_is_planned(&find_builtin))
		return;
	if (shop_endpoint_builtin_is_home())
		builtin_seen = !FullTransactionIdEquals(builtin_made_in, GetTopFullTransactionId());
	else if (shop_try_lock_xact(SHOP_LOCK_BUILTIN, 0))
	{
		builtin_seen = false;
		builtin_made_in = GetTopFullTransactionId();
		make_builtin();
	}
}

/* Sees to it that the built-in subscriber is there and at home. */
void
shop_endpoint_ensure_builtin(void)
{
	if (shop_endpoint_builtin_is_home())
		return;
	shop_lock_xact(SHOP_LOCK_BUILTIN, 0);
	if (!shop_endpoint_builtin_is_home())
		make_builtin();
}

static Datum
check_types(FunctionCallInfo fcinfo, int n)
{
	ArrayType *types;
	Datum *elements;
	bool *nulls;
	int count;

	shop_arg_required(fcinfo, n, "types");
	types = PG_GETARG_ARRAYTYPE_P(n);
	deconstruct_array(types, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	if (count < 1 || count > 100)
		shop_reject("types", "must have 1 to 100 elements");
	for (int i = 0; i < count; i++)
	{
		int length = nulls[i] ? 0 : VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i]));

		if (length < 1 || length > 255)
			shop_reject("types", "must have elements of 1 to 255 bytes");
	}
	/* Whatever bounds the caller's array had, ours starts at 1. */
	return PointerGetDatum(construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT));
}

/* An option with an integer value between 1 and `max`. */
static void
check_int_option(const char *name, const JsonbValue *value, int max)
{
	int64 number = 0;

	if (value->type != jbvNumeric || !shop_parse_integer(value->val.numeric, &number) || number < 1 || number > max)
		shop_reject("options", "must have an integer between 1 and %d as %s", max, name);
}

/* Headers that say what we send, and how. */
static const char *const own_headers[] = {"connection", "content-encoding", "content-length", "content-type", "expect",
	"host", "transfer-encoding", "traceparent", "upgrade", "webhook-id", "webhook-signature", "webhook-timestamp"};

/* A header that libcurl would send as more than that is one too many. */
static void
check_header(const char *name, const JsonbValue *value)
{
	bool valid = *name != '\0' && strlen(name) <= 100 && value->type == jbvString && value->val.string.len <= 4000;

	for (const char *c = name; *c; c++)
		valid &= isalnum((unsigned char) *c) || strchr("!#$%&'*+-.^_`|~", *c) != NULL;
	for (int i = 0; valid && i < value->val.string.len; i++)
		valid = (unsigned char) value->val.string.val[i] >= ' ' && value->val.string.val[i] != 0x7f;
	if (!valid)
		shop_reject("options", "must have header names and values as HTTP has them as headers");
	for (size_t i = 0; i < lengthof(own_headers); i++)
		if (pg_strcasecmp(name, own_headers[i]) == 0)
			shop_reject("options", "must not have %s among its headers", own_headers[i]);
}

/* An object of strings; `it` stands before it. */
static void
check_headers(const JsonbValue *object)
{
	JsonbIterator *it;
	JsonbValue value;

	if (object->type != jbvBinary || !JsonContainerIsObject(object->val.binary.data))
		shop_reject("options", "must have an object as headers");
	it = JsonbIteratorInit(object->val.binary.data);
	(void) JsonbIteratorNext(&it, &value, false);
	while (JsonbIteratorNext(&it, &value, true) == WJB_KEY)
	{
		char *name = pnstrdup(value.val.string.val, value.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		check_header(name, &value);
	}
}

/* A file that the server may read; only those who may do so anyway may name it. */
static void
check_may_name_files(const char *option, Oid role)
{
	if (!superuser_arg(role) && !has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("permission denied for %s", option),
						   errdetail("{\"argument\": \"options\"}"),
						   errhint("Only roles with the privileges of pg_read_server_files may name a file.")));
}

static void
check_ca_file(const JsonbValue *value, Oid role)
{
	if (value->type != jbvString || value->val.string.len == 0 || value->val.string.len > 1000)
		shop_reject("options", "must have a file name as ca_file");
	check_may_name_files("ca_file", role);
}

/* Where the brokers are is said by the url, which was checked. */
static const char *const own_settings[] = {"bootstrap.servers", "metadata.broker.list"};

/* Settings of librdkafka; what else there is to check is for the program that has it. */
static void
check_kafka_settings(const JsonbValue *object, Oid role)
{
	JsonbIterator *it;
	JsonbValue value;

	if (object->type != jbvBinary || !JsonContainerIsObject(object->val.binary.data))
		shop_reject("options", "must have an object as kafka");
	it = JsonbIteratorInit(object->val.binary.data);
	(void) JsonbIteratorNext(&it, &value, false);
	while (JsonbIteratorNext(&it, &value, true) == WJB_KEY)
	{
		char *name = pnstrdup(value.val.string.val, value.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		if (value.type != jbvString && value.type != jbvNumeric && value.type != jbvBool)
			shop_reject("options", "must have strings, numbers and booleans as settings of kafka");
		for (size_t i = 0; i < lengthof(own_settings); i++)
			if (pg_strcasecmp(name, own_settings[i]) == 0)
				shop_reject("options", "must not have %s among the settings of kafka; the url names the brokers", name);
		if (strstr(name, ".location") || strstr(name, "keytab"))
			check_may_name_files(name, role);
	}
}

static void
check_secret(const char *url, const char *secret)
{
	if (secret && strncmp(url, "http", 4) == 0)
		shop_webhook_check_secret(secret);
}

/* Options are an object with known keys, as the role may set them; says whether from_start is set. */
static bool
check_options(Jsonb *options, Oid role)
{
	JsonbIterator *it;
	JsonbValue value;
	bool from_start = false;

	if (!JB_ROOT_IS_OBJECT(options))
		shop_reject("options", "must be a JSON object");
	it = JsonbIteratorInit(&options->root);
	(void) JsonbIteratorNext(&it, &value, false);
	while (JsonbIteratorNext(&it, &value, true) == WJB_KEY)
	{
		char *key = pnstrdup(value.val.string.val, value.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		if (strcmp(key, "from_start") == 0)
		{
			if (value.type != jbvBool)
				shop_reject("options", "must have true or false as from_start");
			from_start = value.val.boolean;
		}
		else if (strcmp(key, "max_attempts") == 0 || strcmp(key, "batch") == 0)
			check_int_option(key, &value, 1000);
		else if (strcmp(key, "backoff") == 0 || strcmp(key, "max_backoff") == 0)
			check_int_option(key, &value, 24 * 60 * 60 * 1000);
		else if (strcmp(key, "timeout") == 0)
			check_int_option(key, &value, 60 * 60 * 1000);
		else if (strcmp(key, "in_flight") == 0)
			check_int_option(key, &value, 10000);
		else if (strcmp(key, "headers") == 0)
			check_headers(&value);
		else if (strcmp(key, "kafka") == 0)
			check_kafka_settings(&value, role);
		else if (strcmp(key, "ca_file") == 0)
			check_ca_file(&value, role);
		else
			shop_reject("options", "must not have the unknown key %s", shop_json_string(key));
	}
	return from_start;
}

static char *
check_name(FunctionCallInfo fcinfo)
{
	char *name = shop_arg_text(fcinfo, 0, "name");

	if (*name == '\0' || strlen(name) > 255)
		shop_reject("name", "must have 1 to 255 bytes");
	if (strncmp(name, "shop.", 5) == 0)
		shop_reject("name", "must not start with shop.");
	return name;
}

Datum
shop_create_endpoint(PG_FUNCTION_ARGS)
{
	char *name;
	char *url;
	Datum types;
	char *secret;
	bool from_start;
	ShopCaller caller = shop_become_owner(fcinfo);
	Oid role = caller.role;
	Datum result;

	shop_log_hide_statement();
	name = check_name(fcinfo);
	url = shop_arg_text(fcinfo, 1, "url");
	types = check_types(fcinfo, 2);
	secret = shop_arg_text_or_null(fcinfo, 3);
	shop_arg_required(fcinfo, 4, "options");
	from_start = check_options(PG_GETARG_JSONB_P(4), role);
	shop_sink_of(url)->check(url, role);
	check_secret(url, secret);
	shop_write_verb("create_endpoint()");

	SPI_connect();
	shop_lock_xact_shared(SHOP_LOCK_RETENTION, 0);
	shop_endpoint_ensure_builtin();
	if (shop_query(&insert_endpoint,
			SHOP_VALUES(shop_text(name), shop_text(url), shop_datum(types), shop_text(secret),
				shop_datum(PG_GETARG_DATUM(4)), shop_text(GetUserNameFromId(role, false)), shop_bool(from_start),
				here(), this_database(), shop_time(shop_now()), shop_oid(role))) == 0)
		shop_refuse(SHOP_ENDPOINT_ALREADY_EXISTS, "{\"endpoint\": %s}", shop_json_string(name));
	shop_query(&read_endpoint, SHOP_VALUES(shop_text(name)));
	result = shop_current_row(fcinfo);
	shop_worker_wake_at_commit(SHOP_WAKE_ENDPOINTS);
	SPI_finish();
	shop_become_caller(caller);
	return result;
}

static void
refuse_unknown(const char *name)
{
	shop_refuse(SHOP_ENDPOINT_NOT_FOUND, "{\"endpoint\": %s}", shop_json_string(name));
}

/* Runs an update of one endpoint and returns the endpoint as it is then. */
static Datum
change_endpoint(FunctionCallInfo fcinfo, ShopQuery *update, const ShopValue *values, const char *name)
{
	Datum result;

	SPI_connect();
	if (shop_query(update, values) == 0)
		refuse_unknown(name);
	shop_query(&read_endpoint, SHOP_VALUES(shop_text(name)));
	result = shop_current_row(fcinfo);
	shop_worker_wake_at_commit(SHOP_WAKE_ENDPOINTS);
	SPI_finish();
	return result;
}

Datum
shop_pause_endpoint(PG_FUNCTION_ARGS)
{
	char *name = shop_arg_text(fcinfo, 0, "name");
	ShopCaller caller = shop_become_owner(fcinfo);
	Datum result;

	shop_write_verb("pause_endpoint()");
	result = change_endpoint(
		fcinfo, &pause_endpoint, SHOP_VALUES(shop_text(name), shop_text(GetUserNameFromId(caller.role, false))), name);
	shop_become_caller(caller);
	return result;
}

Datum
shop_resume_endpoint(PG_FUNCTION_ARGS)
{
	char *name = shop_arg_text(fcinfo, 0, "name");

	shop_write_verb("resume_endpoint()");
	return change_endpoint(fcinfo, &resume_endpoint, SHOP_VALUES(shop_text(name), here(), this_database()), name);
}

/* The next request is signed with it; to rotate a secret without a gap, give the new and the old one for a while. */
Datum
shop_set_endpoint_secret(PG_FUNCTION_ARGS)
{
	char *name;
	char *secret;

	shop_log_hide_statement();
	name = shop_arg_text(fcinfo, 0, "name");
	secret = shop_arg_text_or_null(fcinfo, 1);
	shop_write_verb("set_endpoint_secret()");
	SPI_connect();
	if (shop_query(&find_url, SHOP_VALUES(shop_text(name))) == 0)
		refuse_unknown(name);
	check_secret(shop_fetch_text(0, 1), secret);
	SPI_finish();
	return change_endpoint(fcinfo, &set_secret, SHOP_VALUES(shop_text(name), shop_text(secret)), name);
}

Datum
shop_drop_endpoint(PG_FUNCTION_ARGS)
{
	char *name = shop_arg_text(fcinfo, 0, "name");
	Datum result;

	shop_write_verb("drop_endpoint()");
	SPI_connect();
	if (shop_query(&lock_endpoint, SHOP_VALUES(shop_text(name))) == 0)
		refuse_unknown(name);
	shop_query(&read_endpoint, SHOP_VALUES(shop_text(name)));
	result = shop_current_row(fcinfo);
	shop_query(&delete_endpoint, SHOP_VALUES(shop_text(name)));
	shop_worker_wake_at_commit(SHOP_WAKE_ENDPOINTS);
	SPI_finish();
	return result;
}
