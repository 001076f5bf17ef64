/*
 * error.c
 *		Every way the shop says no.
 *
 * A refusal is a business answer: the call was well formed, the shop's state
 * does not allow it.  It has an SQLSTATE of class SH, one message, one hint,
 * and its figures as a JSON object in the detail.  A rejection is bad input:
 * 22023 or 22004, raised before any lock is taken.
 *
 * Takes no locks.
 */
#include "error.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "query.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"

typedef struct ShopError
{
	const char *sqlstate;
	const char *condition;
	int http_status;
	bool retryable; /* may the same call succeed later? */
	const char *message;
	const char *hint;
	const char *meaning;
} ShopError;

/* Refusals, indexed by ShopCondition. */
static const ShopError refusals[] = {
	{"SH001", "product_not_found", 404, false, "product does not exist", "Look the product up in shop.products.",
		"a product_id is unknown"},
	{"SH002", "product_not_on_sale", 409, true, "product is not on sale",
		"Leave the product out, or put it on sale with shop.set_product_status().",
		"a product is suspended or discontinued"},
	{"SH003", "insufficient_stock", 409, true, "not enough units in stock",
		"Ask for fewer units, or try again after a restock.", "fewer units are available than asked for"},
	{"SH101", "insufficient_points", 402, true, "not enough points",
		"Charge points with shop.charge_points() and try again.", "the user's balance does not cover the amount"},
	{"SH102", "charge_below_minimum", 422, false, "charge is below the minimum",
		"Charge at least shop.min_charge points.", "a charge is smaller than shop.min_charge"},
	{"SH103", "balance_limit_exceeded", 409, true, "balance would exceed the limit",
		"Charge less, or raise shop.max_balance.", "a charge would take the balance above shop.max_balance"},
	{"SH201", "order_not_found", 404, false, "order does not exist", "Look the order up with shop.order_history().",
		"an order_id is unknown"},
	{"SH202", "price_changed", 409, false, "total differs from the expected total",
		"Show the customer the new total and place the order with it.", "the prices are not those the caller expected"},
	{"SH203", "idempotency_key_reused", 422, false, "idempotency key was used with other arguments",
		"Use a new key for a new request, and the same arguments to repeat one.",
		"the key belongs to a call with other arguments"},
	{"SH204", "reservation_expired", 410, false, "reservation has expired", "Reserve or place the order anew.",
		"a reserved order was not paid in time"},
	{"SH205", "invalid_transition", 409, false, "order cannot change to this state",
		"Look the order up with shop.get_order(), and the states in shop.order_transitions().",
		"the order's state does not allow the call"},
	{"SH206", "not_your_order", 403, false, "order belongs to another user",
		"Pass the user_id that the order was placed with.", "the order is another user's"},
	{"SH207", "refund_exceeds_paid", 409, false, "refund exceeds what was paid",
		"Refund at most the units that are left; shop.order_lines() shows them.",
		"more units are to be refunded than were paid and not refunded yet"},
	{"SH301", "coupon_not_found", 404, false, "coupon does not exist",
		"Look the user's coupons up with shop.user_coupons().",
		"a coupon_id is unknown, or the coupon is another user's"},
	{"SH302", "coupon_already_used", 409, false, "coupon has been used",
		"Use another coupon; shop.user_coupons() lists them.", "the coupon belongs to another order"},
	{"SH303", "coupon_expired", 410, false, "coupon has expired", "Use another coupon; shop.user_coupons() lists them.",
		"the coupon was not used in time"},
	{"SH304", "coupon_not_applicable", 422, false, "order is too small for the coupon",
		"Order for at least min_subtotal, or without the coupon.", "the subtotal is below the campaign's min_subtotal"},
	{"SH311", "campaign_not_found", 404, false, "campaign does not exist",
		"Look the campaign up in shop.coupon_campaigns.", "a campaign_id is unknown"},
	{"SH312", "campaign_not_started", 409, true, "campaign has not started", "Try again after starts_at.",
		"coupons are not issued yet"},
	{"SH313", "campaign_ended", 410, false, "campaign has ended", "Look for another campaign in shop.coupon_campaigns.",
		"coupons are not issued any more"},
	{"SH314", "coupon_already_issued", 409, false, "user has a coupon of this campaign",
		"Use the coupon that the user has; shop.user_coupons() lists it.", "a campaign gives one coupon to a user"},
	{"SH315", "coupon_sold_out", 409, false, "campaign has no coupon left",
		"Look for another campaign in shop.coupon_campaigns.", "all coupons of the campaign have been issued"},
	{"SH401", "endpoint_not_found", 404, false, "endpoint does not exist", "Look the endpoint up in shop.endpoints.",
		"no endpoint has this name"},
	{"SH402", "endpoint_already_exists", 409, false, "endpoint already exists",
		"Choose another name, or drop the endpoint first.", "an endpoint with this name is already there"},
	{"SH403", "dead_letter_not_found", 404, false, "dead letter does not exist",
		"Look the event up in shop.dead_letters.", "the endpoint has not given up on an event with this id"},
};
StaticAssertDecl(lengthof(refusals) == SHOP_NO_REFUSAL, "refusals[] must match ShopCondition");

/* What else a caller can meet; raised by PostgreSQL or by shop_reject(). */
static const ShopError others[] = {
	{"0A000", "feature_not_supported", 501, false, NULL, NULL, "this build cannot deliver to an endpoint of this kind"},
	{"22003", "numeric_value_out_of_range", 422, false, NULL, NULL, "a sum or a product of the arguments is too large"},
	{"22004", "null_value_not_allowed", 400, false, NULL, NULL, "an argument that is needed is NULL"},
	{"22023", "invalid_parameter_value", 400, false, NULL, NULL,
		"an argument is malformed or out of its range; the detail names it"},
	{"25006", "read_only_sql_transaction", 405, false, NULL, NULL,
		"a write verb was called in a read-only transaction or on a standby"},
	{"40001", "serialization_failure", 503, true, NULL, NULL,
		"REPEATABLE READ and SERIALIZABLE only: run the transaction again"},
	{"40P01", "deadlock_detected", 503, true, NULL, NULL,
		"locks of the caller's own transaction were taken in opposite orders: run it again"},
	{"42883", "undefined_function", 422, false, NULL, NULL, "the function that a url names does not exist"},
	{"42501", "insufficient_privilege", 403, false, NULL, NULL,
		"the role has not been granted access with shop.grant_access(), or may not name this host or file"},
	{"55000", "object_not_in_prerequisite_state", 409, false, NULL, NULL,
		"the extension cannot be dropped while there are orders"},
	{"55P03", "lock_not_available", 503, true, NULL, NULL, "lock_timeout ran out; nothing was done"},
	{"57014", "query_canceled", 503, true, NULL, NULL,
		"statement_timeout ran out or the call was cancelled; nothing was done"},
};

SHOP_FUNCTION(shop_error_codes);

static void
put_error(ReturnSetInfo *result, const ShopError *e)
{
	Datum values[5] = {CStringGetTextDatum(e->sqlstate), CStringGetTextDatum(e->condition),
		Int32GetDatum(e->http_status), BoolGetDatum(e->retryable), CStringGetTextDatum(e->meaning)};
	bool nulls[5] = {false, false, false, false, false};

	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

Datum
shop_error_codes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (size_t i = 0; i < lengthof(refusals); i++)
		put_error(result, &refusals[i]);
	for (size_t i = 0; i < lengthof(others); i++)
		put_error(result, &others[i]);
	return (Datum) 0;
}

static int
sqlstate_of(const ShopError *e)
{
	return MAKE_SQLSTATE(e->sqlstate[0], e->sqlstate[1], e->sqlstate[2], e->sqlstate[3], e->sqlstate[4]);
}

/*
 * The refusal that was raised; any other error is raised again, and so is what
 * somebody's trigger has raised with a code of ours but without figures.
 */
ShopRefusal
shop_refusal_of(ErrorData *error)
{
	bool has_figures = error->detail && error->detail[0] == '{';

	for (size_t i = 0; i < lengthof(refusals) && has_figures; i++)
		if (sqlstate_of(&refusals[i]) == error->sqlerrcode)
			return (ShopRefusal){.condition = (ShopCondition) i, .detail = error->detail};
	ReThrowError(error);
}

/* What a try_ verb returns for a refusal: its name first, its figures last. */
Datum
shop_form_refused(FunctionCallInfo fcinfo, ShopRefusal refusal)
{
	ShopValue values[16];
	int last = shop_result_columns(fcinfo) - 1;

	for (int i = 1; i < last; i++)
		values[i] = shop_null();
	values[0] = shop_text(refusals[refusal.condition].condition);
	values[last] = shop_datum(DirectFunctionCall1(jsonb_in, CStringGetDatum(refusal.detail)));
	return shop_form_row(fcinfo, values);
}

static char *format_detail(const char *format, va_list args) pg_attribute_printf(1, 0);

static char *
format_detail(const char *format, va_list args)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (;;)
	{
		va_list copy;
		int needed;

		va_copy(copy, args);
		needed = appendStringInfoVA(&buf, format, copy);
		va_end(copy);
		if (needed == 0)
			return buf.data;
		enlargeStringInfo(&buf, needed);
	}
}

/* A refusal to be raised by the caller, who may still find that it need not. */
ShopRefusal
shop_refusal(ShopCondition condition, const char *detail, ...)
{
	ShopRefusal refusal = {.condition = condition};
	va_list args;

	va_start(args, detail);
	refusal.detail = format_detail(detail, args);
	va_end(args);
	return refusal;
}

void
shop_raise(ShopRefusal refusal)
{
	const ShopError *e = &refusals[refusal.condition];

	if (refusal.condition >= SHOP_NO_REFUSAL)
		elog(ERROR, "there is nothing to refuse");
	ereport(ERROR,
		(errcode(sqlstate_of(e)), errmsg("%s", e->message), errdetail("%s", refusal.detail), errhint("%s", e->hint)));
}

/* Bad input: 22023, naming the argument. */
void
shop_reject(const char *argument, const char *message, ...)
{
	va_list args;
	char *text;

	va_start(args, message);
	text = format_detail(message, args);
	va_end(args);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s %s", argument, text),
					   errdetail("{\"argument\": \"%s\"}", argument),
					   errhint("See the comment on the function for what the argument takes.")));
}

/* Bad input in element `position` of items, from 1. */
void
shop_reject_item(int position, const char *message, ...)
{
	va_list args;
	char *text;

	va_start(args, message);
	text = format_detail(message, args);
	va_end(args);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("items element %d %s", position, text),
					   errdetail("{\"argument\": \"items\", \"position\": %d}", position),
					   errhint("An element is an object such as {\"product_id\": 1, \"quantity\": 2}.")));
}

/* Quoted and escaped, ready to stand in a JSON text. */
char *
shop_json_string(const char *text)
{
	StringInfoData buf;

	initStringInfo(&buf);
	escape_json(&buf, text);
	return buf.data;
}

/* RFC 3339, UTC, microseconds: 2026-11-20T19:40:00.123456Z. */
char *
shop_json_time(TimestampTz time)
{
	struct pg_tm tm;
	fsec_t fsec;

	if (TIMESTAMP_NOT_FINITE(time) || timestamp2tm(time, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
	return psprintf("%04d-%02d-%02dT%02d:%02d:%02d.%06dZ", tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min,
		tm.tm_sec, (int) fsec);
}

void
shop_arg_required(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", name),
						   errdetail("{\"argument\": \"%s\"}", name), errhint("Pass a value for the argument.")));
}

int64
shop_arg_int64(FunctionCallInfo fcinfo, int n, const char *name)
{
	shop_arg_required(fcinfo, n, name);
	return PG_GETARG_INT64(n);
}

int32
shop_arg_int32(FunctionCallInfo fcinfo, int n, const char *name)
{
	shop_arg_required(fcinfo, n, name);
	return PG_GETARG_INT32(n);
}

char *
shop_arg_text(FunctionCallInfo fcinfo, int n, const char *name)
{
	shop_arg_required(fcinfo, n, name);
	return text_to_cstring(PG_GETARG_TEXT_PP(n));
}

char *
shop_arg_text_or_null(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* An idempotency key: NULL, or 1 to 255 printable ASCII characters. */
char *
shop_arg_key(FunctionCallInfo fcinfo, int n)
{
	char *key = shop_arg_text_or_null(fcinfo, n);
	size_t length;

	if (key == NULL)
		return NULL;
	length = strlen(key);
	if (length < 1 || length > 255)
		shop_reject("idempotency_key", "must have 1 to 255 characters");
	for (const char *c = key; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			shop_reject("idempotency_key", "must be printable ASCII");
	return key;
}

/*
 * An integer in JSON: digits, with nothing but zeros after a decimal point.
 * Returns false for fractions and for what int64 cannot hold.
 */
bool
shop_parse_integer(Numeric number, int64 *result)
{
	char *text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
	char *end;
	bool valid;

	errno = 0;
	*result = strtoi64(text, &end, 10);
	valid = errno == 0 && end > text;
	if (*end == '.')
		end += 1 + strspn(end + 1, "0");
	valid &= *end == '\0';
	pfree(text);
	return valid;
}

/* The page size of a history: NULL is the default of 50. */
int32
shop_arg_limit(FunctionCallInfo fcinfo, int n)
{
	int32 limit = PG_ARGISNULL(n) ? 50 : PG_GETARG_INT32(n);

	if (limit < 1 || limit > 1000)
		shop_reject("limit", "must be between 1 and 1000");
	return limit;
}

/* A point in time that can be written in JSON. */
TimestampTz
shop_arg_time(FunctionCallInfo fcinfo, int n, const char *name)
{
	shop_arg_required(fcinfo, n, name);
	if (!SHOP_IS_WRITABLE_TIME(PG_GETARG_TIMESTAMPTZ(n)))
		shop_reject(name, "must be in the years 1 to 9999");
	return PG_GETARG_TIMESTAMPTZ(n);
}

/* A length of time: longer than nothing, no part of it negative, at most 100 years. */
Interval *
shop_arg_duration(FunctionCallInfo fcinfo, int n, const char *name)
{
	Interval *duration;
	int128 length;

	shop_arg_required(fcinfo, n, name);
	duration = PG_GETARG_INTERVAL_P(n);
	length = ((int128) duration->month * DAYS_PER_MONTH + duration->day) * USECS_PER_DAY + duration->time;
	if (duration->month < 0 || duration->day < 0 || duration->time < 0 || length == 0)
		shop_reject(name, "must be longer than 0");
	if (length > (int128) 100 * DAYS_PER_YEAR * USECS_PER_DAY)
		shop_reject(name, "must be at most 100 years");
	return duration;
}

/* Why somebody does something, in his words: NULL, or at most 1000 bytes. */
char *
shop_arg_reason(FunctionCallInfo fcinfo, int n)
{
	char *reason = shop_arg_text_or_null(fcinfo, n);

	if (reason && strlen(reason) > 1000)
		shop_reject("reason", "must have at most 1000 bytes");
	return reason;
}
