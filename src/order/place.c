/*
 * place.c
 *		place_order and its twin try_place_order.
 *
 * One commit: stock, points, coupon, order, lines, ledger entry, event.  What
 * is contended is locked last, and what can be refused without a lock is.
 *
 * Refusals, in their declared order: idempotency_key_reused,
 * product_not_found, product_not_on_sale, insufficient_stock, then those of
 * the payment.
 *
 * Locks, in this order: the user's account, the user's coupon, stock by
 * product, orders whose expired reservations had to give units back.
 *
 * A duplicate call waits for the first at the account lock.  Whatever the
 * first used up (the last unit, the coupon, the user's points), a call with a
 * key looks for the key again before it gives a refusal: a refusal is decided
 * on a snapshot, and if that already shows the first call's effect, so does
 * the later one that the key is looked up in.  What somebody else has taken off
 * sale, the first call may have been in time for: there, too, it is waited for.
 */
#include "order/order.h"

#include "access/xact.h"
#include "idempotency.h"
#include "lookup.h"
#include "subtransaction.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

static ShopTable orders = {.name = "orders",
	.columns = {"order_id", "coupon_id", "expected_total", "subtotal", "discount", "total", "balance"},
	.keys = {"user_id", "idempotency_key"},
	.index = "orders_idempotency_key"};
enum
{
	ORDER_ID,
	COUPON_ID,
	EXPECTED_TOTAL,
	SUBTOTAL,
	DISCOUNT,
	TOTAL,
	BALANCE
};

/* A call of place_order and its answer. */
typedef struct PlaceCall
{
	ShopItems items;
	ShopPayment payment;
	char *key;
	ShopOrder order;
	bool replayed;
	bool priced; /* have the items been priced just now? */
} PlaceCall;

SHOP_FUNCTION(shop_place_order);
SHOP_FUNCTION(shop_try_place_order);

/* The first answer again, whatever has become of the order since; and what it was asked with. */
static ShopPayment
fetch_answer(PlaceCall *call, ShopLookup *order)
{
	call->order.order_id = shop_lookup_int8(order, ORDER_ID);
	call->order.subtotal = shop_lookup_int8(order, SUBTOTAL);
	call->order.discount = shop_lookup_int8(order, DISCOUNT);
	call->order.total = shop_lookup_int8(order, TOTAL);
	call->order.balance = shop_lookup_int8(order, BALANCE);
	call->replayed = true;
	return (ShopPayment){.has_coupon = !shop_lookup_isnull(order, COUPON_ID),
		.coupon_id = shop_lookup_int8_or(order, COUPON_ID, 0),
		.has_expected_total = !shop_lookup_isnull(order, EXPECTED_TOTAL),
		.expected_total = shop_lookup_int8_or(order, EXPECTED_TOTAL, 0)};
}

/* Is there an order of this key in the snapshot?  Then it is the answer. */
static bool
find_order(PlaceCall *call, Snapshot snapshot, ShopPayment *first)
{
	ShopLookup lookup;
	bool found;

	PushActiveSnapshot(snapshot);
	shop_lookup_open(&lookup, &orders, 2, ForwardScanDirection);
	shop_lookup_start(&lookup, SHOP_KEYS(SHOP_KEY_INT8(call->order.user_id), SHOP_KEY_TEXT(call->key)), 2);
	found = shop_lookup_next(&lookup);
	if (found)
		*first = fetch_answer(call, &lookup);
	shop_lookup_close(&lookup);
	PopActiveSnapshot();
	if (found)
		shop_await_standbys();
	return found;
}

/* Has this key placed an order?  With the same arguments, then, or it is refused. */
static bool
find_replay(PlaceCall *call)
{
	ShopPayment first;

	if (call->key == NULL || !find_order(call, GetTransactionSnapshot(), &first))
		return false;
	if (!shop_items_same(&call->items, call->order.order_id))
		shop_key_reused(call->key, "items");
	shop_same_int64_or_null(
		call->key, "coupon_id", first.coupon_id, !first.has_coupon, call->payment.coupon_id, !call->payment.has_coupon);
	shop_same_int64_or_null(call->key, "expected_total", first.expected_total, !first.has_expected_total,
		call->payment.expected_total, !call->payment.has_expected_total);
	return true;
}

/*
 * With the user locked, his key is new for good if it is not there now.  A
 * REPEATABLE READ caller does not see the order of a call that has committed
 * since his snapshot; his own would be a second one.
 */
static bool
find_replay_locked(PlaceCall *call)
{
	ShopPayment first;

	if (find_replay(call))
		return true;
	if (call->key && IsolationUsesXactSnapshot() && find_order(call, GetLatestSnapshot(), &first))
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						   errmsg("could not serialize access due to concurrent update")));
	return false;
}

/* All that can be refused before the first write; ends with the account locked. */
static ShopRefusal
prepare(PlaceCall *call, ShopAccount *account, TimestampTz *now)
{
	ShopRefusal refusal = shop_items_price_and_lock(
		&call->items, call->priced, call->order.user_id, call->key != NULL, account);

	if (refusal.condition != SHOP_NO_REFUSAL)
		return refusal;
	*now = shop_now();
	call->order.subtotal = call->items.subtotal;
	return shop_payment_check(&call->payment, &call->order, &call->items, account, *now);
}

static void
place(PlaceCall *call)
{
	ShopAccount account;
	ShopRefusal refusal;
	TimestampTz now = DT_NOBEGIN;

	if (find_replay(call))
		return;
	refusal = prepare(call, &account, &now);
	if (find_replay_locked(call))
		return;
	if (refusal.condition != SHOP_NO_REFUSAL)
		shop_raise(refusal);

	call->order.created_at = call->order.paid_at = now;
	shop_order_insert(&call->order, &call->payment, call->key);
	shop_payment_settle(&call->order, &account, now);
	shop_items_insert(&call->items, call->order.order_id);
	shop_order_emit(&call->order, "paid", NULL, &call->items, now);
	shop_orders_expire(shop_items_take_stock(&call->items));
}

/* Reads and checks the arguments; all that is malformed ends here. */
static PlaceCall
read_call(FunctionCallInfo fcinfo, const char *verb)
{
	PlaceCall call = {
		.order = {.user_id = shop_arg_int64(fcinfo, 0, "user_id"), .status = SHOP_ORDER_PAID, .expires_at = DT_NOEND}};

	shop_arg_required(fcinfo, 1, "items");
	call.items = shop_items_parse(PG_GETARG_JSONB_P(1));
	call.payment = shop_payment_arguments(fcinfo, 2);
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
	return shop_order_result(fcinfo, &call.order, call.replayed);
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
 * Without a key, what the catalogue refuses needs no subtransaction: in a rush
 * that is almost every call.
 */
static ShopRefusal
try_place(PlaceCall *call)
{
	ErrorData *error;

	if (call->key == NULL)
	{
		ShopRefusal refusal = shop_items_price(&call->items);

		if (refusal.condition != SHOP_NO_REFUSAL)
			return refusal;
		call->priced = true;
	}
	error = shop_subtransaction(place_within, call);
	return error ? shop_refusal_of(error) : (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

/*
 * A refusal is undone and returned; whatever else is raised (cancellation,
 * serialization failure, out of disk) goes on to the caller.
 */
Datum
shop_try_place_order(PG_FUNCTION_ARGS)
{
	PlaceCall call = read_call(fcinfo, "try_place_order()");
	ShopRefusal refusal = try_place(&call);

	if (refusal.condition != SHOP_NO_REFUSAL)
		return shop_form_refused(fcinfo, refusal);
	return shop_form_row(
		fcinfo, SHOP_VALUES(shop_text("ok"), shop_int8(call.order.order_id), shop_text("paid"),
					shop_int8(call.order.subtotal), shop_int8(call.order.discount), shop_int8(call.order.total),
					shop_int8(call.order.balance), shop_null(), shop_bool(call.replayed), shop_null()));
}
