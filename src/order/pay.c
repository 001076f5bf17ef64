/*
 * pay.c
 *		pay_order: a reserved order is paid, at the prices it was reserved at.
 *
 * Refusals, in their declared order: idempotency_key_reused, order_not_found,
 * not_your_order, reservation_expired or invalid_transition, then those of the
 * payment.
 *
 * Locks, in this order: the user's account, the user's coupon, the order's
 * holds, its row.  Stock is not touched: the units were taken when the order
 * was reserved.
 */
#include "order/order.h"

#include "catalog/pg_type.h"

/* A call of pay_order and its answer. */
typedef struct PayCall
{
	int64 user_id;
	ShopPayment payment;
	char *key;
	ShopArguments arguments;
	ShopOrder order;
	bool replayed;
} PayCall;

SHOP_FUNCTION(shop_pay_order);

/* The first answer again, whatever has become of the order since. */
static bool
find_replay(PayCall *call)
{
	ShopChange change;

	if (!shop_change_replay("paid", call->user_id, call->key, &call->arguments, &change))
		return false;
	call->order = shop_order_read(change.order_id);
	call->order.status = change.status;
	call->order.balance = change.balance;
	call->replayed = true;
	return true;
}

/*
 * The order's holds become the buyer's.  If one is missing, somebody else has
 * found the reservation expired by his clock, and what ours says is no matter.
 */
static void
take_holds(ShopOrder *order, const ShopItems *items, TimestampTz now)
{
	if (shop_holds_delete(order->order_id, order->expires_at) != items->n)
	{
		order->status = SHOP_ORDER_EXPIRED;
		shop_order_check_transition(order, SHOP_ORDER_PAID, now);
	}
}

static void
pay_locked(PayCall *call, ShopAccount *account)
{
	ShopOrder *order = &call->order;
	ShopLine *lines;
	ShopItems items;
	ShopRefusal refusal;
	TimestampTz now = shop_now();
	int n;

	shop_order_check_transition(order, SHOP_ORDER_PAID, now);
	n = shop_lines_read(order->order_id, &lines);
	items = shop_lines_items(lines, n);
	refusal = shop_payment_check(&call->payment, order, &items, account, now);
	if (refusal.condition != SHOP_NO_REFUSAL)
		shop_raise(refusal);

	shop_payment_settle(order, account, now);
	take_holds(order, &items, now);
	if (order->discount > 0)
		shop_lines_discount(order->order_id, &items);
	order->status = SHOP_ORDER_PAID;
	order->paid_at = now;
	shop_order_save(order);
	shop_change_record("paid", order, -order->total, account, NULL, call->key, &call->arguments, now);
	shop_order_emit(order, "paid", NULL, &items, now);
}

static void
pay(PayCall *call)
{
	ShopAccount account;

	if (find_replay(call))
		return;
	call->order = shop_order_read(call->order.order_id);
	shop_order_check_owner(&call->order, call->user_id);
	account = shop_order_lock(&call->order);
	if (!find_replay(call))
		pay_locked(call, &account);
}

Datum
shop_pay_order(PG_FUNCTION_ARGS)
{
	PayCall call = {
		.order = {.order_id = shop_arg_int64(fcinfo, 0, "order_id")}, .user_id = shop_arg_int64(fcinfo, 1, "user_id")};

	call.payment = shop_payment_arguments(fcinfo, 2);
	call.key = shop_arg_key(fcinfo, 4);
	if (call.key)
	{
		shop_argument_add_int8(&call.arguments, "order_id", call.order.order_id, false);
		shop_argument_add_int8(&call.arguments, "coupon_id", call.payment.coupon_id, !call.payment.has_coupon);
		shop_argument_add_int8(
			&call.arguments, "expected_total", call.payment.expected_total, !call.payment.has_expected_total);
	}
	shop_write_verb("pay_order()");

	SPI_connect();
	pay(&call);
	SPI_finish();
	return shop_order_result(fcinfo, &call.order, call.replayed);
}
