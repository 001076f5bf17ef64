/*
 * read.c
 *		What is known of orders: one, its lines, a user's.
 *
 * Takes no locks.
 */
#include "order/order.h"

#include "catalog/pg_type.h"

/* What state.c says of a reservation that has run out. */
#define STATUS_AT(now) "CASE WHEN status = 'reserved' AND expires_at <= " now " THEN 'expired' ELSE status END"

static ShopQuery get_order = SHOP_QUERY(
	"SELECT order_id, user_id, " STATUS_AT(
		"$2") ", subtotal, discount, total, coupon_id,"
			  "       created_at, expires_at, paid_at,"
			  "       (SELECT coalesce(sum(amount), 0) FROM shop.order_change c"
			  "         WHERE c.order_id = o.order_id AND c.kind IN ('cancelled', 'refunded'))::bigint"
			  "  FROM shop.orders o WHERE order_id = $1",
	INT8OID, TIMESTAMPTZOID);

static ShopQuery get_lines = SHOP_QUERY(
	"SELECT l.line_no, l.product_id, p.name, l.quantity, l.unit_price,"
	"       l.unit_price * l.quantity, l.discount, l.unit_price * l.quantity - l.discount,"
	"       coalesce(r.quantity, 0)::integer, coalesce(r.amount, 0)::bigint"
	"  FROM shop.order_line l JOIN shop.product p USING (product_id)"
	"  LEFT JOIN LATERAL (SELECT sum(quantity) AS quantity, sum(amount) AS amount FROM shop.refund_line"
	"                      WHERE order_id = l.order_id AND product_id = l.product_id) r ON true"
	" WHERE l.order_id = $1 ORDER BY l.line_no",
	INT8OID);

static ShopQuery get_history = SHOP_QUERY(
	"SELECT order_id, " STATUS_AT(
		"$4") ", subtotal, discount, total, coupon_id, created_at, expires_at, paid_at"
			  "  FROM shop.orders WHERE user_id = $1 AND order_id < $2 ORDER BY order_id DESC LIMIT $3",
	INT8OID, INT8OID, INT4OID, TIMESTAMPTZOID);

static ShopQuery get_changes = SHOP_QUERY("SELECT change_id, kind, status, amount, balance, reason, created_at"
										  "  FROM shop.order_change WHERE order_id = $1 ORDER BY change_id",
	INT8OID);

static ShopQuery find_order = SHOP_QUERY("SELECT FROM shop.orders WHERE order_id = $1", INT8OID);

SHOP_FUNCTION(shop_get_order);
SHOP_FUNCTION(shop_order_lines);
SHOP_FUNCTION(shop_order_history);
SHOP_FUNCTION(shop_order_changes);

static void
refuse_unknown(int64 order_id)
{
	shop_refuse(SHOP_ORDER_NOT_FOUND, "{\"order_id\": " INT64_FORMAT "}", order_id);
}

Datum
shop_get_order(PG_FUNCTION_ARGS)
{
	int64 order_id = shop_arg_int64(fcinfo, 0, "order_id");
	Datum result;

	if (!shop_return_row(fcinfo, &get_order, SHOP_VALUES(shop_int8(order_id), shop_time(shop_now())), &result))
		refuse_unknown(order_id);
	return result;
}

/* An order has at least one line, so no line means no order. */
Datum
shop_order_lines(PG_FUNCTION_ARGS)
{
	int64 order_id = shop_arg_int64(fcinfo, 0, "order_id");

	if (shop_return_set(fcinfo, &get_lines, SHOP_VALUES(shop_int8(order_id))) == 0)
		refuse_unknown(order_id);
	return (Datum) 0;
}

Datum
shop_order_history(PG_FUNCTION_ARGS)
{
	int64 user_id = shop_arg_int64(fcinfo, 0, "user_id");
	int64 before = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	int32 limit = shop_arg_limit(fcinfo, 2);

	(void) shop_return_set(fcinfo, &get_history,
		SHOP_VALUES(shop_int8(user_id), shop_int8(before), shop_int4(limit), shop_time(shop_now())));
	return (Datum) 0;
}

/* An order that was placed and paid in one go has no changes at first. */
Datum
shop_order_changes(PG_FUNCTION_ARGS)
{
	int64 order_id = shop_arg_int64(fcinfo, 0, "order_id");

	if (shop_return_set(fcinfo, &get_changes, SHOP_VALUES(shop_int8(order_id))) == 0)
	{
		SPI_connect();
		if (shop_query_read(&find_order, SHOP_VALUES(shop_int8(order_id))) == 0)
			refuse_unknown(order_id);
		SPI_finish();
	}
	return (Datum) 0;
}
