/*
 * lines.c
 *		The lines of an order that is there, and what of them was refunded.
 *
 * Takes no locks: the user's lock is held by whoever changes them.
 */
#include "order/order.h"

#include "catalog/pg_type.h"

static ShopQuery read_lines = SHOP_QUERY(
	"SELECT l.product_id, l.line_no, l.quantity, l.unit_price, l.discount,"
	"       coalesce(r.quantity, 0)::integer, coalesce(r.amount, 0)::bigint"
	"  FROM shop.order_line l"
	"  LEFT JOIN LATERAL (SELECT sum(quantity) AS quantity, sum(amount) AS amount FROM shop.refund_line"
	"                      WHERE order_id = l.order_id AND product_id = l.product_id) r ON true"
	" WHERE l.order_id = $1 ORDER BY l.product_id",
	INT8OID);

static ShopQuery update_discounts = SHOP_QUERY("UPDATE shop.order_line l SET discount = t.discount"
											   "  FROM unnest($2::integer[], $3::bigint[]) AS t(line_no, discount)"
											   " WHERE l.order_id = $1 AND l.line_no = t.line_no",
	INT8OID, INT4ARRAYOID, INT8ARRAYOID);

/* The lines of an order by product; returns how many. */
int
shop_lines_read(int64 order_id, ShopLine **lines)
{
	int n = (int) shop_query(&read_lines, SHOP_VALUES(shop_int8(order_id)));

	*lines = palloc(sizeof(ShopLine) * Max(n, 1));
	for (int i = 0; i < n; i++)
		(*lines)[i] = (ShopLine){.item = {.product_id = shop_fetch_int8(i, 1),
									 .line_no = shop_fetch_int4(i, 2),
									 .quantity = shop_fetch_int4(i, 3),
									 .unit_price = shop_fetch_int8(i, 4),
									 .discount = shop_fetch_int8(i, 5)},
			.refunded_units = shop_fetch_int4(i, 6),
			.refunded_points = shop_fetch_int8(i, 7)};
	return n;
}

/* What was paid for a line. */
int64
shop_line_paid(const ShopLine *line)
{
	return line->item.unit_price * line->item.quantity - line->item.discount;
}

/* Some units of a line, that so many points were paid for. */
ShopItem
shop_line_part(const ShopLine *line, int32 quantity, int64 points)
{
	ShopItem part = line->item;

	part.quantity = quantity;
	part.discount = part.unit_price * quantity - points;
	return part;
}

/* The lines whole. */
ShopItems
shop_lines_items(const ShopLine *lines, int n)
{
	ShopItems items = {.items = palloc(sizeof(ShopItem) * Max(n, 1)), .n = n};

	for (int i = 0; i < n; i++)
	{
		items.items[i] = lines[i].item;
		items.subtotal += lines[i].item.unit_price * lines[i].item.quantity;
	}
	return items;
}

/* What has not been refunded of the lines; those of which nothing is left are left out. */
ShopItems
shop_lines_left(const ShopLine *lines, int n)
{
	ShopItems left = {.items = palloc(sizeof(ShopItem) * Max(n, 1))};

	for (int i = 0; i < n; i++)
	{
		int32 quantity = lines[i].item.quantity - lines[i].refunded_units;

		if (quantity > 0)
			left.items[left.n++] = shop_line_part(
				&lines[i], quantity, shop_line_paid(&lines[i]) - lines[i].refunded_points);
	}
	return left;
}

/* Stores the discounts of lines that were reserved without. */
void
shop_lines_discount(int64 order_id, const ShopItems *items)
{
	int32 *numbers = palloc(sizeof(int32) * items->n);
	int64 *discounts = palloc(sizeof(int64) * items->n);

	for (int i = 0; i < items->n; i++)
	{
		numbers[i] = items->items[i].line_no;
		discounts[i] = items->items[i].discount;
	}
	shop_query(&update_discounts,
		SHOP_VALUES(shop_int8(order_id), shop_int4_array(numbers, items->n), shop_int8_array(discounts, items->n)));
}
