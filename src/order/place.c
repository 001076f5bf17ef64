/*
 * place.c
 *		place_order and its twin try_place_order.
 *
 * One commit: stock, points, order, lines, ledger entry, event.  What is
 * contended is locked last, and what can be refused without a lock is.
 *
 * Refusals, in their declared order: idempotency_key_reused,
 * product_not_found, product_not_on_sale, insufficient_stock,
 * coupon_not_found, price_changed, insufficient_points.
 *
 * Locks, in this order: the user's account, then stock slots by product.
 *
 * A duplicate call waits for the first at the account lock.  Whatever the
 * first used up (the last unit, the user's points), a call with a key looks
 * for the key again before it gives a refusal: a refusal is decided on a
 * snapshot, and if that already shows the first call's effect, so does the
 * later one that the key is looked up in.
 */
#include "order/order.h"

#include "catalog/pg_type.h"
#include "idempotency.h"
#include "outbox/outbox.h"
#include "points.h"
#include "query.h"
#include "subtransaction.h"
#include "utils/builtins.h"

static ShopQuery find_order = SHOP_QUERY(
	"SELECT order_id, coupon_id, expected_total, subtotal, discount, total, balance"
	"  FROM shop.orders WHERE user_id = $1 AND idempotency_key = $2",
	INT8OID, TEXTOID);

static ShopQuery insert_order = SHOP_QUERY(
	"INSERT INTO shop.orders (user_id, status, subtotal, discount, total, balance, coupon_id, expected_total,"
	"                         created_at, paid_at, idempotency_key)"
	" VALUES ($1, 'paid', $2, $3, $4, $5, $6, $7, $8, $8, $9)"
	" ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING order_id",
	INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, TEXTOID);

/* A call of place_order and its answer. */
typedef struct PlaceCall
{
	int64 user_id;
	ShopItems items;
	bool has_coupon;
	int64 coupon_id;
	bool has_expected_total;
	int64 expected_total;
	char *key;

	int64 order_id;
	int64 subtotal;
	int64 discount;
	int64 total;
	int64 balance;
	bool replayed;
} PlaceCall;

SHOP_FUNCTION(shop_place_order);
SHOP_FUNCTION(shop_try_place_order);

/* Has this key placed an order?  With the same arguments, then, or it is refused. */
static bool
find_replay(PlaceCall *call)
{
	if (call->key == NULL || shop_query(&find_order, SHOP_VALUES(shop_int8(call->user_id), shop_text(call->key))) == 0)
		return false;

	call->order_id = shop_fetch_int8(0, 1);
	call->subtotal = shop_fetch_int8(0, 4);
	call->discount = shop_fetch_int8(0, 5);
	call->total = shop_fetch_int8(0, 6);
	call->balance = shop_fetch_int8(0, 7);
	call->replayed = true;
	{
		bool no_coupon = shop_fetch_isnull(0, 2);
		bool no_expected_total = shop_fetch_isnull(0, 3);
		int64 coupon_id = no_coupon ? 0 : shop_fetch_int8(0, 2);
		int64 expected_total = no_expected_total ? 0 : shop_fetch_int8(0, 3);

		if (!shop_items_same(&call->items, call->order_id))
			shop_key_reused(call->key, "items");
		shop_same_int64_or_null(call->key, "coupon_id", coupon_id, no_coupon, call->coupon_id, !call->has_coupon);
		shop_same_int64_or_null(call->key, "expected_total", expected_total, no_expected_total, call->expected_total,
			!call->has_expected_total);
	}
	return true;
}

/* The figures of the order, and what they do not allow. */
static ShopRefusal
check_payment(PlaceCall *call, const ShopAccount *account)
{
	if (call->has_coupon)
		return shop_refusal(SHOP_COUPON_NOT_FOUND, "{\"coupon_id\": " INT64_FORMAT "}", call->coupon_id);

	call->subtotal = call->items.subtotal;
	call->discount = 0;
	call->total = call->subtotal - call->discount;

	if (call->has_expected_total && call->expected_total != call->total)
		return shop_refusal(SHOP_PRICE_CHANGED, "{\"expected_total\": " INT64_FORMAT ", \"total\": " INT64_FORMAT "}",
			call->expected_total, call->total);
	if (account->balance < call->total)
		return shop_refusal(SHOP_INSUFFICIENT_POINTS,
			"{\"user_id\": " INT64_FORMAT ", \"required\": " INT64_FORMAT ", \"balance\": " INT64_FORMAT "}",
			call->user_id, call->total, account->balance);
	return (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

/* All that can be refused before the first write; ends with the account locked. */
static ShopRefusal
prepare(PlaceCall *call, ShopAccount *account)
{
	ShopRefusal refusal = shop_items_price(&call->items);

	if (refusal.condition != SHOP_NO_REFUSAL)
		return refusal;
	*account = shop_account_lock(call->user_id);
	if (account->waited)
	{
		/* Prices may have changed meanwhile. */
		refusal = shop_items_price(&call->items);
		if (refusal.condition != SHOP_NO_REFUSAL)
			return refusal;
	}
	return check_payment(call, account);
}

static bool
insert(PlaceCall *call, TimestampTz now)
{
	if (shop_query(&insert_order,
			SHOP_VALUES(shop_int8(call->user_id), shop_int8(call->subtotal), shop_int8(call->discount),
				shop_int8(call->total), shop_int8(call->balance), shop_int8_or_null(call->coupon_id, !call->has_coupon),
				shop_int8_or_null(call->expected_total, !call->has_expected_total), shop_time(now),
				shop_text(call->key))) == 0)
		return false;
	call->order_id = shop_fetch_int8(0, 1);
	return true;
}

static void
emit_paid(const PlaceCall *call, TimestampTz now)
{
	char id[32];
	char *time = shop_json_time(now);

	snprintf(id, sizeof(id), INT64_FORMAT, call->order_id);
	shop_emit("order.paid", "order", id,
		psprintf("{\"order_id\": %s, \"user_id\": " INT64_FORMAT ", \"status\": \"paid\", \"currency\": \"%s\""
				 ", \"subtotal\": " INT64_FORMAT ", \"discount\": " INT64_FORMAT ", \"total\": " INT64_FORMAT
				 ", \"coupon_id\": null, \"created_at\": \"%s\", \"paid_at\": \"%s\", \"lines\": %s}",
			id, call->user_id, shop_currency, call->subtotal, call->discount, call->total, time, time,
			shop_items_json(&call->items)),
		now);
}

static void
place(PlaceCall *call)
{
	ShopAccount account;
	ShopRefusal refusal;
	TimestampTz now;

	if (find_replay(call))
		return;
	refusal = prepare(call, &account);
	if (refusal.condition != SHOP_NO_REFUSAL)
	{
		if (find_replay(call))
			return;
		shop_raise(refusal);
	}

	now = shop_now();
	call->balance = account.balance - call->total;
	if (!insert(call, now))
	{
		/* The same call committed between our look for its key and our lock. */
		if (!find_replay(call))
			elog(ERROR, "order of idempotency key is not visible");
		return;
	}
	if (call->total > 0)
		shop_account_post(&account, -call->total, "order", NULL, &call->order_id, NULL, now);
	shop_items_insert(&call->items, call->order_id);
	emit_paid(call, now);
	shop_items_take_stock(&call->items);
}

/* Reads and checks the arguments; all that is malformed ends here. */
static PlaceCall
read_call(FunctionCallInfo fcinfo, const char *verb)
{
	PlaceCall call = {.user_id = shop_arg_int64(fcinfo, 0, "user_id")};

	shop_arg_required(fcinfo, 1, "items");
	call.items = shop_items_parse(PG_GETARG_JSONB_P(1));
	call.has_coupon = !PG_ARGISNULL(2);
	call.coupon_id = call.has_coupon ? PG_GETARG_INT64(2) : 0;
	call.has_expected_total = !PG_ARGISNULL(3);
	call.expected_total = call.has_expected_total ? PG_GETARG_INT64(3) : 0;
	if (call.expected_total < 0)
		shop_reject("expected_total", "must not be negative");
	call.key = shop_arg_key(fcinfo, 4);
	shop_write_verb(verb);
	return call;
}

Datum
shop_place_order(PG_FUNCTION_ARGS)
{
	PlaceCall call = read_call(fcinfo, "place_order()");

	SPI_connect();
	place(&call);
	SPI_finish();
	return shop_form_row(fcinfo,
		SHOP_VALUES(shop_int8(call.order_id), shop_text("paid"), shop_int8(call.subtotal), shop_int8(call.discount),
			shop_int8(call.total), shop_int8(call.balance), shop_null(), shop_bool(call.replayed)));
}

static bool
place_within(void *arg)
{
	SPI_connect();
	place(arg);
	SPI_finish();
	return true;
}

/*
 * A refusal is undone and returned; whatever else is raised (cancellation,
 * serialization failure, out of disk) goes on to the caller.
 */
static ErrorData *
try_place(PlaceCall *call)
{
	ErrorData *error = shop_subtransaction(place_within, call);

	if (error && !SHOP_IS_REFUSAL(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

Datum
shop_try_place_order(PG_FUNCTION_ARGS)
{
	PlaceCall call = read_call(fcinfo, "try_place_order()");
	ErrorData *refused = try_place(&call);
	ShopValue none = shop_null();

	if (refused)
		return shop_form_row(
			fcinfo, SHOP_VALUES(shop_text(shop_condition_name(refused->sqlerrcode)), none, none, none, none, none, none,
						none, none, shop_datum(DirectFunctionCall1(jsonb_in, CStringGetDatum(refused->detail)))));
	return shop_form_row(fcinfo, SHOP_VALUES(shop_text("ok"), shop_int8(call.order_id), shop_text("paid"),
									 shop_int8(call.subtotal), shop_int8(call.discount), shop_int8(call.total),
									 shop_int8(call.balance), none, shop_bool(call.replayed), none));
}
