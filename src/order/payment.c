/*
 * payment.c
 *		Paying an order with points and a coupon: what place_order and
 *		pay_order have in common.
 *
 * Refusals, in their declared order: those of the coupon (coupon.c),
 * price_changed, insufficient_points.
 *
 * Locks: none of its own; the user's account is locked, and with it his
 * coupons.
 */
#include "order/order.h"

#include "coupon.h"

/* Reads coupon_id and expected_total, the first of them being argument `first`. */
ShopPayment
shop_payment_arguments(FunctionCallInfo fcinfo, int first)
{
	ShopPayment payment = {.has_coupon = !PG_ARGISNULL(first), .has_expected_total = !PG_ARGISNULL(first + 1)};

	if (payment.has_coupon)
		payment.coupon_id = PG_GETARG_INT64(first);
	if (payment.has_expected_total)
		payment.expected_total = PG_GETARG_INT64(first + 1);
	if (payment.expected_total < 0)
		shop_reject("expected_total", "must not be negative");
	return payment;
}

/* Works out what the order costs, and finds what does not allow it. */
ShopRefusal
shop_payment_check(
	const ShopPayment *payment, ShopOrder *order, ShopItems *items, const ShopAccount *account, TimestampTz now)
{
	order->has_coupon = payment->has_coupon;
	order->coupon_id = payment->coupon_id;
	order->discount = 0;
	if (payment->has_coupon)
	{
		ShopRefusal refusal = shop_coupon_discount(
			payment->coupon_id, order->user_id, order->subtotal, now, &order->discount);

		if (refusal.condition != SHOP_NO_REFUSAL)
			return refusal;
		shop_items_discount(items, order->discount);
	}
	order->total = order->subtotal - order->discount;
	order->balance = account->balance - order->total;

	if (payment->has_expected_total && payment->expected_total != order->total)
		return shop_refusal(SHOP_PRICE_CHANGED, "{\"expected_total\": " INT64_FORMAT ", \"total\": " INT64_FORMAT "}",
			payment->expected_total, order->total);
	if (order->balance < 0)
		return shop_refusal(SHOP_INSUFFICIENT_POINTS,
			"{\"user_id\": " INT64_FORMAT ", \"required\": " INT64_FORMAT ", \"balance\": " INT64_FORMAT "}",
			order->user_id, order->total, account->balance);
	return (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

/* Books what the check has found. */
void
shop_payment_settle(const ShopOrder *order, ShopAccount *account, TimestampTz now)
{
	if (order->has_coupon)
		shop_coupon_use(order->coupon_id, order->order_id);
	if (order->total > 0)
		shop_account_post(account, -order->total, "order", NULL, &order->order_id, NULL, now);
}
