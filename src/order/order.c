/*
 * order.c
 *		The row of an order: inserted, read, locked, saved, told of.
 *
 * An order belongs to its user: his account's lock is the order's lock, for
 * every verb.  Only the end of a reservation comes from others, who change the
 * row under the condition that it is still reserved (expire.c).
 *
 * Locks: the account of the order's user; the order's row, last.
 */
#include "order/order.h"

#include "append.h"
#include "catalog/pg_type.h"
#include "outbox/outbox.h"

static ShopTable orders = {.name = "orders",
	.columns = {"order_id", "user_id", "status", "subtotal", "discount", "total", "balance", "coupon_id",
		"expected_total", "created_at", "expires_at", "paid_at", "idempotency_key"}};

static ShopQuery read_order = SHOP_QUERY(
	"SELECT user_id, status, subtotal, discount, total, balance, coupon_id, created_at, expires_at, paid_at"
	"  FROM shop.orders WHERE order_id = $1",
	INT8OID);

static ShopQuery update_order = SHOP_QUERY(
	"UPDATE shop.orders SET status = $2, discount = $3, total = $4, balance = $5, coupon_id = $6, paid_at = $7"
	" WHERE order_id = $1",
	INT8OID, TEXTOID, INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID);

/* Inserts an order, whose key is known to be new, and sets its order_id. */
void
shop_order_insert(ShopOrder *order, const ShopPayment *payment, const char *key)
{
	order->order_id = shop_append_number("orders_order_id_seq");
	shop_append(&orders,
		SHOP_VALUES(shop_int8(order->order_id), shop_int8(order->user_id),
			shop_text(shop_order_status_name(order->status)), shop_int8(order->subtotal), shop_int8(order->discount),
			shop_int8(order->total), shop_int8(order->balance), shop_int8_or_null(order->coupon_id, !order->has_coupon),
			shop_int8_or_null(payment->expected_total, !payment->has_expected_total), shop_time(order->created_at),
			shop_time_or_null(order->expires_at), shop_time_or_null(order->paid_at), shop_text(key)));
}

/* The order as it stands, or order_not_found. */
ShopOrder
shop_order_read(int64 order_id)
{
	if (shop_query(&read_order, SHOP_VALUES(shop_int8(order_id))) == 0)
		shop_refuse(SHOP_ORDER_NOT_FOUND, "{\"order_id\": " INT64_FORMAT "}", order_id);
	return (ShopOrder){.order_id = order_id,
		.user_id = shop_fetch_int8(0, 1),
		.status = shop_order_status_parse(shop_fetch_text(0, 2)),
		.subtotal = shop_fetch_int8(0, 3),
		.discount = shop_fetch_int8(0, 4),
		.total = shop_fetch_int8(0, 5),
		.balance = shop_fetch_int8(0, 6),
		.has_coupon = !shop_fetch_isnull(0, 7),
		.coupon_id = shop_fetch_int8_or(0, 7, 0),
		.created_at = shop_fetch_time(0, 8),
		.expires_at = shop_fetch_time(0, 9),
		.paid_at = shop_fetch_time(0, 10)};
}

/* Locks the account of the order's user, and reads the order again. */
ShopAccount
shop_order_lock(ShopOrder *order)
{
	ShopAccount account = shop_account_lock(order->user_id);

	*order = shop_order_read(order->order_id);
	return account;
}

void
shop_order_check_owner(const ShopOrder *order, int64 user_id)
{
	if (order->user_id != user_id)
		shop_refuse(SHOP_NOT_YOUR_ORDER, "{\"order_id\": " INT64_FORMAT ", \"user_id\": " INT64_FORMAT "}",
			order->order_id, user_id);
}

/*
 * Writes the order's row.  A verb does so even where nothing in the row is
 * new: a REPEATABLE READ caller who waited for the user's lock then meets
 * 40001, and does not go on from what was true before.
 */
void
shop_order_save(const ShopOrder *order)
{
	if (shop_query(&update_order,
			SHOP_VALUES(shop_int8(order->order_id), shop_text(shop_order_status_name(order->status)),
				shop_int8(order->discount), shop_int8(order->total), shop_int8(order->balance),
				shop_int8_or_null(order->coupon_id, !order->has_coupon), shop_time_or_null(order->paid_at))) != 1)
		elog(ERROR, "order " INT64_FORMAT " is gone", order->order_id);
}

/* Leaves out a time that the order does not have. */
static void
add_time(ShopJson *json, const char *key, TimestampTz time)
{
	if (time != DT_NOEND)
		shop_json_moment(json, key, time);
}

static void
add_order(ShopJson *json, const ShopOrder *order)
{
	shop_json_int8(json, "total", order->total);
	shop_json_text(json, "status", shop_order_status_name(order->status));
	add_time(json, "paid_at", order->paid_at);
	shop_json_int8(json, "user_id", order->user_id);
	shop_json_text(json, "currency", shop_currency);
	shop_json_int8(json, "discount", order->discount);
	shop_json_int8(json, "order_id", order->order_id);
	shop_json_int8(json, "subtotal", order->subtotal);
	if (order->has_coupon)
		shop_json_int8(json, "coupon_id", order->coupon_id);
	else
		shop_json_text(json, "coupon_id", NULL);
	add_time(json, "created_at", order->created_at);
	add_time(json, "expires_at", order->expires_at);
}

/*
 * Emits order.<kind>: what the caller has to add (an object that was begun, or
 * NULL), the order as it is now, and the lines that it is about.
 */
void
shop_order_emit(const ShopOrder *order, const char *kind, ShopJson *more, const ShopItems *lines, TimestampTz now)
{
	ShopJson begun = {0};
	ShopJson *json = more ? more : &begun;
	char id[32];

	if (more == NULL)
		shop_json_begin(json);
	shop_items_json(lines, json);
	add_order(json, order);
	snprintf(id, sizeof(id), INT64_FORMAT, order->order_id);
	shop_emit(psprintf("order.%s", kind), "order", id, shop_json_end(json), now);
}

/* An order_result. */
Datum
shop_order_result(FunctionCallInfo fcinfo, const ShopOrder *order, bool replayed)
{
	return shop_form_row(
		fcinfo, SHOP_VALUES(shop_int8(order->order_id), shop_text(shop_order_status_name(order->status)),
					shop_int8(order->subtotal), shop_int8(order->discount), shop_int8(order->total),
					shop_int8(order->balance), shop_time_or_null(order->expires_at), shop_bool(replayed)));
}
