/*
 * query.c
 *		Runs the statements of the rooms through SPI with kept plans.
 *
 * A plan is prepared at its first use in a backend and kept; it is stored
 * only after it was kept, so that an error in between leaves nothing half
 * made.  Plans are generic and go by index: every statement looks a few rows
 * up by key, so neither the values nor the statistics could tell the planner
 * more, and a table that was empty when it was last analyzed must not make it
 * read the whole of it later.  PostgreSQL plans a kept plan anew by itself
 * when a table changes or the extension is dropped and created again.
 *
 * Takes no locks of its own.
 */
#include "query.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/dest.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "version.h"

ShopValue
shop_int8(int64 value)
{
	return (ShopValue){Int64GetDatum(value), false};
}

ShopValue
shop_int8_or_null(int64 value, bool isnull)
{
	return (ShopValue){Int64GetDatum(value), isnull};
}

ShopValue
shop_int2(int16 value)
{
	return (ShopValue){Int16GetDatum(value), false};
}

ShopValue
shop_int4(int32 value)
{
	return (ShopValue){Int32GetDatum(value), false};
}

ShopValue
shop_bool(bool value)
{
	return (ShopValue){BoolGetDatum(value), false};
}

ShopValue
shop_text(const char *value)
{
	return value ? (ShopValue){CStringGetTextDatum(value), false} : shop_null();
}

ShopValue
shop_time(TimestampTz value)
{
	return (ShopValue){TimestampTzGetDatum(value), false};
}

ShopValue
shop_time_or_null(TimestampTz value)
{
	return (ShopValue){TimestampTzGetDatum(value), value == DT_NOEND};
}

ShopValue
shop_datum(Datum value)
{
	return (ShopValue){value, false};
}

ShopValue
shop_oid(Oid value)
{
	return shop_datum(ObjectIdGetDatum(value));
}

ShopValue
shop_null(void)
{
	return (ShopValue){(Datum) 0, true};
}

ShopValue
shop_int8_array(const int64 *values, int n)
{
	Datum *elements = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elements[i] = Int64GetDatum(values[i]);
	return shop_datum(
		PointerGetDatum(construct_array(elements, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)));
}

ShopValue
shop_int4_array(const int32 *values, int n)
{
	Datum *elements = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elements[i] = Int32GetDatum(values[i]);
	return shop_datum(PointerGetDatum(construct_array(elements, n, INT4OID, sizeof(int32), true, TYPALIGN_INT)));
}

ShopValue
shop_time_array(const TimestampTz *values, int n)
{
	Datum *elements = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(values[i]);
	return shop_datum(PointerGetDatum(
		construct_array(elements, n, TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)));
}

static int
count_args(const ShopQuery *query)
{
	int n = 0;

	while (n < SHOP_QUERY_MAX_ARGS && OidIsValid(query->argtypes[n]))
		n++;
	return n;
}

static void
prepare(ShopQuery *query)
{
	SPIPlanPtr plan = SPI_prepare_cursor(query->sql, count_args(query), query->argtypes, CURSOR_OPT_GENERIC_PLAN);

	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", query->sql, SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of \"%s\"", query->sql);
	query->plan = plan;
}

/*
 * While a statement is planned, what reads whole tables is off; and so is JIT,
 * which the price of a statement that has to would switch on.
 */
static void
prefer_indexes(void)
{
	static const char *const off[] = {"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"};

	for (size_t i = 0; i < lengthof(off); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/* Does the statement have a plan, and are its tables what they were then? */
bool
shop_query_is_planned(const ShopQuery *query)
{
	return query->plan != NULL && SPI_plan_is_valid(query->plan);
}

static uint64
run(ShopQuery *query, const ShopValue *values, DestReceiver *dest, bool read_only)
{
	int nargs = count_args(query);
	SPIExecuteOptions options = {.read_only = read_only, .dest = dest};
	bool planned = shop_query_is_planned(query);
	int nest_level = 0;
	int rc;

	shop_check_version(!planned);
	if (query->plan == NULL)
		prepare(query);
	if (!planned)
	{
		/* An error ends the nest level with the transaction. */
		nest_level = NewGUCNestLevel();
		prefer_indexes();
	}

	options.params = makeParamList(nargs);
	for (int i = 0; i < nargs; i++)
		options.params->params[i] = (ParamExternData){.value = values[i].datum,
			.isnull = values[i].isnull,
			.pflags = PARAM_FLAG_CONST,
			.ptype = query->argtypes[i]};

	rc = SPI_execute_plan_extended(query->plan, &options);
	if (rc < 0)
		elog(ERROR, "could not run \"%s\": %s", query->sql, SPI_result_code_string(rc));
	if (!planned)
		AtEOXact_GUC(true, nest_level);
	return SPI_processed;
}

/* Runs a statement of a write verb; returns the rows it processed. */
uint64
shop_query(ShopQuery *query, const ShopValue *values)
{
	return run(query, values, NULL, false);
}

/* Runs a statement of a read in the caller's snapshot. */
uint64
shop_query_read(ShopQuery *query, const ShopValue *values)
{
	return run(query, values, NULL, true);
}

/* Hands each row to a function of ours; a part of DestReceiver's contract. */
typedef struct EachReceiver
{
	DestReceiver pub;
	ShopEach each;
	void *arg;
} EachReceiver;

static bool
receive_row(TupleTableSlot *row, DestReceiver *self)
{
	EachReceiver *receiver = (EachReceiver *) self;

	return receiver->each(row, receiver->arg);
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
	(void) self;
	(void) operation;
	(void) typeinfo;
}

static void
receiver_nothing(DestReceiver *self)
{
	(void) self;
}

/*
 * Calls each(row, arg) as the executor finds, and locks, the rows.  Rows after
 * the one that it stops at are not locked.
 */
void
shop_query_each(ShopQuery *query, const ShopValue *values, ShopEach each, void *arg)
{
	EachReceiver receiver = {
		.pub = {receive_row, receiver_startup, receiver_nothing, receiver_nothing, DestNone}, .each = each, .arg = arg};

	run(query, values, &receiver.pub, false);
}

Datum
shop_fetch(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

bool
shop_fetch_isnull(uint64 row, int column)
{
	bool isnull;

	(void) shop_fetch(row, column, &isnull);
	return isnull;
}

static Datum
fetch_not_null(uint64 row, int column)
{
	bool isnull;
	Datum value = shop_fetch(row, column, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d", column);
	return value;
}

int64
shop_fetch_int8(uint64 row, int column)
{
	return DatumGetInt64(fetch_not_null(row, column));
}

int64
shop_fetch_int8_or(uint64 row, int column, int64 null)
{
	bool isnull;
	Datum value = shop_fetch(row, column, &isnull);

	return isnull ? null : DatumGetInt64(value);
}

TimestampTz
shop_fetch_time(uint64 row, int column)
{
	bool isnull;
	Datum value = shop_fetch(row, column, &isnull);

	return isnull ? DT_NOEND : DatumGetTimestampTz(value);
}

int32
shop_fetch_int4(uint64 row, int column)
{
	return DatumGetInt32(fetch_not_null(row, column));
}

bool
shop_fetch_bool(uint64 row, int column)
{
	return DatumGetBool(fetch_not_null(row, column));
}

char *
shop_fetch_text(uint64 row, int column)
{
	bool isnull;
	Datum value = shop_fetch(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* A column that is not null of a row handed to a ShopEach. */
int64
shop_row_int8(TupleTableSlot *row, int column)
{
	bool isnull;
	Datum value = slot_getattr(row, column, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d", column);
	return DatumGetInt64(value);
}

/* Returns all rows of a read, in materialize mode; says how many. */
uint64
shop_return_set(FunctionCallInfo fcinfo, ShopQuery *query, const ShopValue *values)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	uint64 n;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	n = shop_query_read(query, values);
	for (uint64 i = 0; i < n; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
	return n;
}

static TupleDesc
result_type(FunctionCallInfo fcinfo)
{
	TupleDesc tupdesc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return BlessTupleDesc(tupdesc);
}

int
shop_result_columns(FunctionCallInfo fcinfo)
{
	return result_type(fcinfo)->natts;
}

/* The first row of the current SPI result as this function's result. */
Datum
shop_current_row(FunctionCallInfo fcinfo)
{
	return PointerGetDatum(SPI_returntuple(SPI_tuptable->vals[0], result_type(fcinfo)));
}

/* Runs a read for its one row; false if there is none. */
bool
shop_return_row(FunctionCallInfo fcinfo, ShopQuery *query, const ShopValue *values, Datum *result)
{
	bool found;

	SPI_connect();
	found = shop_query_read(query, values) > 0;
	if (found)
		*result = shop_current_row(fcinfo);
	SPI_finish();
	return found;
}

/* A composite result from its columns. */
Datum
shop_form_row(FunctionCallInfo fcinfo, const ShopValue *values)
{
	TupleDesc tupdesc = result_type(fcinfo);
	Datum *datums = palloc(sizeof(Datum) * tupdesc->natts);
	bool *nulls = palloc(sizeof(bool) * tupdesc->natts);

	for (int i = 0; i < tupdesc->natts; i++)
	{
		datums[i] = values[i].datum;
		nulls[i] = values[i].isnull;
	}
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, datums, nulls));
}

/* Every write verb starts here: 25006 before any other work. */
void
shop_write_verb(const char *name)
{
	PreventCommandIfReadOnly(name);
}
