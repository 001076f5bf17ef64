/*
 * cancel.c
 *		cancel_order: a paid order is taken back whole.
 *
 * Units go back into stock, points to the user, and the coupon is usable again
 * if it has not expired.  What was refunded before is not given back twice.
 *
 * Refusals, in their declared order: order_not_found, not_your_order,
 * invalid_transition.
 *
 * Locks, in this order: the account of the order's user, the coupon, slot 0 of
 * the products, the order's row.
 */
#include "order/order.h"

#include "catalog/pg_type.h"
#include "coupon.h"

SHOP_FUNCTION(shop_cancel_order);

/* What the user has paid for the items. */
static int64
points_paid(const ShopItems *items)
{
	int64 points = 0;

	for (int i = 0; i < items->n; i++)
		points += items->items[i].unit_price * items->items[i].quantity - items->items[i].discount;
	return points;
}

static void
emit(const ShopOrder *order, int64 points, const char *reason, const ShopItems *left, TimestampTz now)
{
	ShopJson json = {0};

	shop_json_begin(&json);
	shop_json_moment(&json, "cancelled_at", now);
	shop_json_int8(&json, "amount", points);
	shop_json_text(&json, "reason", reason);
	shop_order_emit(order, "cancelled", &json, left, now);
}

static void
cancel_locked(ShopOrder *order, ShopAccount *account, const char *reason)
{
	TimestampTz now = shop_now();
	ShopLine *lines;
	ShopItems left;
	int64 points;
	int n;

	shop_order_check_transition(order, SHOP_ORDER_CANCELLED, now);
	n = shop_lines_read(order->order_id, &lines);
	left = shop_lines_left(lines, n);
	points = points_paid(&left);

	if (points > 0)
		shop_account_post(account, points, "cancel", reason, &order->order_id, NULL, now);
	if (order->has_coupon)
		shop_coupon_give_back(order->coupon_id, order->order_id, now);
	shop_stock_give_back(shop_items_demands(&left), left.n);
	order->status = SHOP_ORDER_CANCELLED;
	shop_order_save(order);
	order->balance = account->balance;
	shop_change_record("cancelled", order, points, account, reason, NULL, NULL, now);
	emit(order, points, reason, &left, now);
}

/* Returns true if the order had been cancelled before. */
static bool
cancel(ShopOrder *order, const int64 *user_id, const char *reason)
{
	ShopAccount account;

	*order = shop_order_read(order->order_id);
	if (user_id)
		shop_order_check_owner(order, *user_id);
	if (shop_change_repeats(order, SHOP_ORDER_CANCELLED))
		return true;
	account = shop_order_lock(order);
	if (shop_change_repeats(order, SHOP_ORDER_CANCELLED))
		return true;
	cancel_locked(order, &account, reason);
	return false;
}

Datum
shop_cancel_order(PG_FUNCTION_ARGS)
{
	ShopOrder order = {.order_id = shop_arg_int64(fcinfo, 0, "order_id")};
	int64 user_id = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	char *reason = shop_arg_reason(fcinfo, 2);
	bool before;

	shop_write_verb("cancel_order()");
	SPI_connect();
	before = cancel(&order, PG_ARGISNULL(1) ? NULL : &user_id, reason);
	SPI_finish();
	return shop_order_result(fcinfo, &order, before);
}
