/*
 * shop.c
 *		What is loaded first: settings, the clock, the guard against dropping a
 *		shop by mistake.
 *
 * _PG_init works preloaded or not.  Without preload all SQL works and nothing
 * is registered; the workers, which need shared memory, are then missing and
 * their jobs are done by call.
 *
 * Takes no locks but those asked for through shop_lock_*().
 */
#include "shop.h"

#include <float.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "common/hashfn.h"
#include "error.h"
#include "executor/spi.h"
#include "log.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "popular.h"
#include "query.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/varlena.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

SHOP_FUNCTION(shop_clock);
SHOP_FUNCTION(shop_guard_drop);

/* Code of the shop's one currency, ISO 4217; shown in events. */
char *shop_currency;

/* The least that can be charged at once. */
int shop_min_charge;

/* The most an account can hold; a double so that it can pass 2^31. */
double shop_max_balance;

/* How many rows the units of one hot product may be spread over. */
int shop_max_stock_slots;

/* Write refusals to the server log too? */
bool shop_log_refusals;

/* Allow DROP EXTENSION shop although there are orders? */
bool shop_allow_drop;

/* Hosts that events may be sent to; empty: see sink/hosts.c. */
char *shop_allowed_hosts;

/* The trace that events belong to, as W3C Trace Context has it; empty: none. */
char *shop_traceparent;

/* Seconds between refreshes of popular_products. */
int shop_popular_interval;

/* Minutes a delivered event is kept. */
int shop_outbox_retention;

/* Read from pg_db_role_setting by the launcher, never from here. */
static bool worker_setting;

/* Replaces the real time where it is set. */
static char *test_clock_setting;
static TimestampTz test_clock;
static bool test_clock_is_set;

static bool
check_currency(char **value, void **extra, GucSource source)
{
	(void) extra;
	(void) source;
	if (strlen(*value) != 3 || strspn(*value, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 3)
	{
		GUC_check_errdetail("A currency is an ISO 4217 code of three capital letters, such as KRW.");
		return false;
	}
	return true;
}

/* What timestamptz_in does, but without errors, which a setting must not raise. */
bool
shop_parse_time(const char *text, TimestampTz *result)
{
	char work[MAXDATELEN + MAXDATEFIELDS];
	char *field[MAXDATEFIELDS];
	int ftype[MAXDATEFIELDS];
	int nf;
	int dtype;
	int tz;
	fsec_t fsec;
	struct pg_tm tm;

	return ParseDateTime(text, work, sizeof(work), field, ftype, MAXDATEFIELDS, &nf) == 0 &&
		   SHOP_DECODE_DATETIME(field, ftype, nf, &dtype, &tm, &fsec, &tz) == 0 && dtype == DTK_DATE &&
		   tm2timestamp(&tm, fsec, &tz, result) == 0;
}

static bool
check_test_clock(char **value, void **extra, GucSource source)
{
	TimestampTz *parsed;
	TimestampTz clock;

	(void) source;
	if (**value == '\0')
		return true;
	if (!shop_parse_time(*value, &clock) || !SHOP_IS_WRITABLE_TIME(clock))
	{
		GUC_check_errdetail("shop.test_clock is a timestamp of the years 1 to 9999, or empty for the real time.");
		return false;
	}
	parsed = SHOP_SETTING_ALLOC(sizeof(TimestampTz));
	if (parsed == NULL)
		return false;
	*parsed = clock;
	*extra = parsed;
	return true;
}

static void
assign_test_clock(const char *value, void *extra)
{
	(void) value;
	test_clock_is_set = extra != NULL;
	if (test_clock_is_set)
		test_clock = *(TimestampTz *) extra;
}

static bool
check_allowed_hosts(char **value, void **extra, GucSource source)
{
	char *copy = pstrdup(*value);
	List *hosts;
	bool valid = SplitGUCList(copy, ',', &hosts);

	(void) extra;
	(void) source;
	if (!valid)
		GUC_check_errdetail("shop.allowed_hosts is a list of host names, separated by commas.");
	return valid;
}

/* https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags, all in small hex. */
static bool
check_traceparent(char **value, void **extra, GucSource source)
{
	static const char form[] = "00-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
	const char *text = *value;
	bool valid = strlen(text) == strlen(form);

	(void) extra;
	(void) source;
	if (*text == '\0')
		return true;
	for (size_t i = 0; valid && form[i]; i++)
		valid = form[i] == 'x' ? strchr("0123456789abcdef", text[i]) != NULL : form[i] == text[i];
	/* Ids of nothing but zeros are no ids. */
	valid = valid && strspn(text + 3, "0") < 32 && strspn(text + 36, "0") < 16;
	if (!valid)
		GUC_check_errdetail("shop.traceparent is a W3C traceparent of version 00, or empty.");
	return valid;
}

static void
define_settings(void)
{
	DefineCustomStringVariable("shop.allowed_hosts", "Hosts that events may be sent to.",
		"While it is empty, superusers and the owner of the extension may name any host, others none.",
		&shop_allowed_hosts, "", PGC_SUSET, GUC_LIST_INPUT, check_allowed_hosts, NULL, NULL);
	DefineCustomBoolVariable("shop.allow_drop", "Allows DROP EXTENSION shop although there are orders.", NULL,
		&shop_allow_drop, false, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("shop.currency", "The shop's currency, an ISO 4217 code, as shown in events.", NULL,
		&shop_currency, "KRW", PGC_SUSET, 0, check_currency, NULL, NULL);
	DefineCustomBoolVariable("shop.log_refusals", "Writes refusals (SQLSTATE class SH) to the server log too.", NULL,
		&shop_log_refusals, false, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomRealVariable("shop.max_balance", "The most points an account can hold.", NULL, &shop_max_balance,
		(double) SHOP_MAX_AMOUNT, 0, (double) SHOP_MAX_AMOUNT, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("shop.max_stock_slots", "How many rows the units of one hot product may be spread over.",
		NULL, &shop_max_stock_slots, 64, 1, 1024, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("shop.min_charge", "The least points that can be charged at once.", NULL, &shop_min_charge,
		1, 1, INT_MAX, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("shop.outbox_retention", "How long delivered events are kept.", NULL,
		&shop_outbox_retention, 7 * 24 * 60, 0, INT_MAX, PGC_SUSET, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("shop.popular_interval", "Time between refreshes of shop.popular_products.", NULL,
		&shop_popular_interval, 60, 1, 24 * 60 * 60, PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomStringVariable("shop.test_clock", "A timestamp that replaces the real time in every rule of the shop.",
		NULL, &test_clock_setting, "", PGC_SUSET, 0, check_test_clock, assign_test_clock, NULL);
	DefineCustomStringVariable("shop.traceparent", "The trace that events belong to, a W3C traceparent.", NULL,
		&shop_traceparent, "", PGC_USERSET, 0, check_traceparent, NULL, NULL);
	DefineCustomBoolVariable("shop.worker",
		"Runs the shop's workers for a database; takes effect with ALTER DATABASE ... SET.", NULL, &worker_setting,
		false, PGC_SUSET, 0, NULL, NULL, NULL);
}

void
_PG_init(void)
{
	define_settings();
	MarkGUCPrefixReserved("shop");

	shop_log_init();

	/* pg_upgrade starts servers in which nothing may write. */
	if (IsBinaryUpgrade)
		shop_popular_upgrade_init();
	else if (process_shared_preload_libraries_in_progress)
		shop_worker_init();
}

/* The time every rule of the shop goes by. */
TimestampTz
shop_now(void)
{
	return test_clock_is_set ? test_clock : GetCurrentTimestamp();
}

/* For SQL: the same all through a statement. */
Datum
shop_clock(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_TIMESTAMPTZ(test_clock_is_set ? test_clock : GetCurrentStatementStartTimestamp());
}

/* The key of an advisory lock: a hash, so others may have the same. */
int32
shop_lock_key(int64 id)
{
	return (int32) murmurhash32((uint32) id ^ (uint32) (id >> 32));
}

/* Waits for an advisory lock that ends with the transaction. */
void
shop_lock_xact(int32 lock_class, int32 key)
{
	DirectFunctionCall2(pg_advisory_xact_lock_int4, Int32GetDatum(lock_class), Int32GetDatum(key));
}

/* Waits for an advisory lock that others may share. */
void
shop_lock_xact_shared(int32 lock_class, int32 key)
{
	DirectFunctionCall2(pg_advisory_xact_lock_shared_int4, Int32GetDatum(lock_class), Int32GetDatum(key));
}

/* Takes an advisory lock that ends with the transaction, if it is free. */
bool
shop_try_lock_xact(int32 lock_class, int32 key)
{
	return DatumGetBool(
		DirectFunctionCall2(pg_try_advisory_xact_lock_int4, Int32GetDatum(lock_class), Int32GetDatum(key)));
}

/* Takes an advisory lock that ends with the process, if it is free. */
bool
shop_try_lock_session(int32 lock_class, int32 key)
{
	return DatumGetBool(DirectFunctionCall2(pg_try_advisory_lock_int4, Int32GetDatum(lock_class), Int32GetDatum(key)));
}

static ShopQuery any_order = SHOP_QUERY("SELECT FROM shop.orders LIMIT 1");

static ShopQuery owned_by = SHOP_QUERY("SELECT FROM pg_extension WHERE extname = 'shop' AND extowner = $1", OIDOID);

/* DROP EXTENSION shop, or DROP OWNED BY its owner? */
static bool
drops_shop(Node *statement)
{
	ListCell *cell;

	if (IsA(statement, DropOwnedStmt))
	{
		foreach (cell, ((DropOwnedStmt *) statement)->roles)
		{
			Oid role = get_rolespec_oid(lfirst(cell), true);

			if (shop_query_read(&owned_by, SHOP_VALUES(shop_oid(role))) > 0)
				return true;
		}
		return false;
	}
	if (!IsA(statement, DropStmt) || ((DropStmt *) statement)->removeType != OBJECT_EXTENSION)
		return false;
	foreach (cell, ((DropStmt *) statement)->objects)
		if (strcmp(strVal(lfirst(cell)), "shop") == 0)
			return true;
	return false;
}

/* An event trigger, so that it works where the library is not preloaded. */
Datum
shop_guard_drop(PG_FUNCTION_ARGS)
{
	EventTriggerData *trigger;
	bool has_orders;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
						   errmsg("guard_drop() must be called as an event trigger")));
	trigger = (EventTriggerData *) fcinfo->context;
	if (shop_allow_drop)
		PG_RETURN_NULL();

	SPI_connect();
	has_orders = drops_shop(trigger->parsetree) && shop_query_read(&any_order, NULL) > 0;
	SPI_finish();
	if (has_orders)
		ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot drop extension shop because it holds orders"), errdetail("{\"extension\": \"shop\"}"),
				errhint("Set shop.allow_drop to on to drop the shop with all its orders.")));
	PG_RETURN_NULL();
}
