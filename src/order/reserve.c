/*
 * reserve.c
 *		reserve_order and release_order: units held for a while, unpaid.
 *
 * Refusals of reserve_order, in their declared order: idempotency_key_reused,
 * product_not_found, product_not_on_sale, insufficient_stock; of
 * release_order: order_not_found, not_your_order, invalid_transition.
 *
 * Locks, in this order: the user's account, stock by product (releasing: slot
 * 0 of each, then the holds), orders whose expired reservations had to give
 * units back or the order's own row.
 */
#include "order/order.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

/* A call of reserve_order and its answer. */
typedef struct ReserveCall
{
	ShopItems items;
	Interval *expires_in;
	char *key;
	ShopArguments arguments;
	ShopOrder order;
	bool replayed;
} ReserveCall;

SHOP_FUNCTION(shop_reserve_order);
SHOP_FUNCTION(shop_release_order);

/* The first answer again, whatever has become of the order since. */
static bool
find_replay(ReserveCall *call)
{
	ShopChange change;

	if (!shop_change_replay("reserved", call->order.user_id, call->key, &call->arguments, &change))
		return false;
	call->order = shop_order_read(change.order_id);
	call->order.status = change.status;
	call->order.discount = 0;
	call->order.total = call->order.subtotal;
	call->order.balance = change.balance;
	call->replayed = true;
	return true;
}

static TimestampTz
time_after(TimestampTz time, const Interval *duration)
{
	return DatumGetTimestampTz(
		DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(time), IntervalPGetDatum(duration)));
}

static void
reserve(ReserveCall *call)
{
	ShopOrder *order = &call->order;
	ShopAccount account;
	ShopRefusal refusal;
	ShopExpired expired;
	TimestampTz now;

	if (find_replay(call))
		return;
	refusal = shop_items_price_and_lock(&call->items, false, order->user_id, call->key != NULL, &account);
	if (find_replay(call))
		return;
	if (refusal.condition != SHOP_NO_REFUSAL)
		shop_raise(refusal);

	now = shop_now();
	order->subtotal = order->total = call->items.subtotal;
	order->balance = account.balance;
	order->created_at = now;
	order->expires_at = time_after(now, call->expires_in);
	shop_order_insert(order, &(ShopPayment){0}, NULL);
	shop_change_record("reserved", order, 0, &account, NULL, call->key, &call->arguments, now);
	shop_items_insert(&call->items, order->order_id);
	shop_order_emit(order, "reserved", NULL, &call->items, now);
	expired = shop_items_take_stock(&call->items);
	shop_holds_insert(order->order_id, order->expires_at, shop_items_demands(&call->items), call->items.n);
	shop_orders_expire(expired);
}

/* The parts as they are; IntervalStyle has no say in it. */
static char *
duration_text(const Interval *duration)
{
	return psprintf("%d %d " INT64_FORMAT, duration->month, duration->day, duration->time);
}

Datum
shop_reserve_order(PG_FUNCTION_ARGS)
{
	ReserveCall call = {
		.order = {.user_id = shop_arg_int64(fcinfo, 0, "user_id"), .status = SHOP_ORDER_RESERVED, .paid_at = DT_NOEND}};

	shop_arg_required(fcinfo, 1, "items");
	call.items = shop_items_parse(PG_GETARG_JSONB_P(1));
	call.expires_in = shop_arg_duration(fcinfo, 2, "expires_in");
	call.key = shop_arg_key(fcinfo, 3);
	if (call.key)
	{
		shop_argument_add(&call.arguments, "items", shop_items_text(&call.items));
		shop_argument_add(&call.arguments, "expires_in", duration_text(call.expires_in));
	}
	shop_write_verb("reserve_order()");

	SPI_connect();
	reserve(&call);
	SPI_finish();
	return shop_order_result(fcinfo, &call.order, call.replayed);
}

/*
 * Moves the holds back into stock.  A buyer may have ended the reservation
 * while we waited for him, in which case a hold is missing.
 */
static void
give_back_holds(ShopOrder *order, TimestampTz now, const ShopItems *items)
{
	shop_stock_give_back(shop_items_demands(items), items->n);
	if (shop_holds_delete(order->order_id, order->expires_at) != items->n)
	{
		order->status = SHOP_ORDER_EXPIRED;
		shop_order_check_transition(order, SHOP_ORDER_RELEASED, now);
	}
}

/* Returns true if the order had been released before. */
static bool
release(ShopOrder *order, int64 user_id)
{
	ShopAccount account;
	ShopItems items;
	ShopLine *lines;
	ShopJson json = {0};
	TimestampTz now;
	int n;

	*order = shop_order_read(order->order_id);
	shop_order_check_owner(order, user_id);
	if (shop_change_repeats(order, SHOP_ORDER_RELEASED))
		return true;
	account = shop_order_lock(order);
	if (shop_change_repeats(order, SHOP_ORDER_RELEASED))
		return true;
	now = shop_now();
	shop_order_check_transition(order, SHOP_ORDER_RELEASED, now);

	n = shop_lines_read(order->order_id, &lines);
	items = shop_lines_items(lines, n);
	give_back_holds(order, now, &items);
	order->status = SHOP_ORDER_RELEASED;
	shop_order_save(order);
	order->balance = account.balance;
	shop_change_record("released", order, 0, &account, NULL, NULL, NULL, now);
	shop_json_begin(&json);
	shop_json_moment(&json, "released_at", now);
	shop_order_emit(order, "released", &json, &items, now);
	return false;
}

Datum
shop_release_order(PG_FUNCTION_ARGS)
{
	ShopOrder order = {.order_id = shop_arg_int64(fcinfo, 0, "order_id")};
	int64 user_id = shop_arg_int64(fcinfo, 1, "user_id");
	bool before;

	shop_write_verb("release_order()");
	SPI_connect();
	before = release(&order, user_id);
	SPI_finish();
	return shop_order_result(fcinfo, &order, before);
}
