/*
 * expire.c
 *		The end of reservations that nobody paid.
 *
 * Two come by: a buyer who found too few units in stock and took back what an
 * expired reservation held (stock/), who ends its order here, and the keeper,
 * who gives back what is left.  The keeper waits for nobody: what another
 * transaction has locked it leaves for its next round.
 *
 * An order that ended may keep holds of products that no buyer has asked for
 * yet; they count as free for everyone and are the keeper's to give back.
 *
 * Locks: a buyer, the orders' rows, ascending, after everything else; the
 * keeper, without waiting, slot 0 of the products, the holds, the order's row.
 */
#include "order/order.h"

#include "catalog/pg_type.h"

static ShopQuery end_order = SHOP_QUERY(
	"UPDATE shop.orders SET status = 'expired' WHERE order_id = $1 AND status = 'reserved'", INT8OID);

static ShopQuery lock_free_order = SHOP_QUERY(
	"SELECT FROM shop.orders WHERE order_id = $1 FOR NO KEY UPDATE SKIP LOCKED", INT8OID);

static ShopQuery find_due = SHOP_QUERY("SELECT expires_at, order_id FROM shop.stock_hold"
									   " WHERE expires_at <= $1 AND (expires_at, order_id) > ($2, $3)"
									   " GROUP BY expires_at, order_id ORDER BY expires_at, order_id LIMIT $4",
	TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT4OID);

static ShopQuery find_next = SHOP_QUERY("SELECT min(expires_at) FROM shop.stock_hold");

/* Ends an order that is still reserved, and tells of it. */
static void
end_reservation(int64 order_id, TimestampTz now)
{
	ShopOrder order;
	ShopLine *lines;
	ShopItems items;
	int n;

	if (shop_query(&end_order, SHOP_VALUES(shop_int8(order_id))) == 0)
		return;
	order = shop_order_read(order_id);
	n = shop_lines_read(order_id, &lines);
	items = shop_lines_items(lines, n);
	shop_change_record("expired", &order, 0, NULL, NULL, NULL, NULL, now);
	shop_order_emit(&order, "expired", "", &items, now);
}

static int
compare_id(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/* Ends the orders that gave units back to somebody else. */
void
shop_orders_expire(ShopExpired expired, TimestampTz now)
{
	if (expired.n > 1)
		pg_qsort(expired.order_ids, expired.n, sizeof(int64), compare_id);
	for (int i = 0; i < expired.n; i++)
		end_reservation(expired.order_ids[i], now);
}

/*
 * Gives back what a reservation holds; false if that takes waiting for
 * somebody.  What was locked then stays locked until the end of the
 * transaction, which is near, and waits for nobody.
 */
static bool
expire_if_free(int64 order_id, TimestampTz expires_at)
{
	ShopDemand *demands;
	int n;

	if (!shop_holds_lock_free(order_id, expires_at) ||
		shop_query(&lock_free_order, SHOP_VALUES(shop_int8(order_id))) == 0)
		return false;
	n = shop_holds_read(order_id, expires_at, &demands);
	shop_stock_give_back(demands, n);
	shop_holds_delete(order_id, expires_at);
	end_reservation(order_id, shop_now());
	return true;
}

/*
 * Looks at the next reservations that are due, at most `limit`, and gives back
 * what they hold; counts those that were free to be.  True if there may be
 * more.  Start with an empty sweep.
 */
bool
shop_reservations_sweep(ShopSweep *sweep, int limit, int64 *expired)
{
	TimestampTz after = sweep->order_id == 0 ? DT_NOBEGIN : sweep->expires_at;
	int n = (int) shop_query(
		&find_due, SHOP_VALUES(shop_time(shop_now()), shop_time(after), shop_int8(sweep->order_id), shop_int4(limit)));
	ShopSweep *due = palloc(sizeof(ShopSweep) * Max(n, 1));

	for (int i = 0; i < n; i++)
		due[i] = (ShopSweep){shop_fetch_time(i, 1), shop_fetch_int8(i, 2)};
	for (int i = 0; i < n; i++)
		if (expire_if_free(due[i].order_id, due[i].expires_at))
			(*expired)++;
	if (n > 0)
		*sweep = due[n - 1];
	return n == limit;
}

/* When the next reservation runs out, or DT_NOEND. */
TimestampTz
shop_reservations_next(void)
{
	shop_query(&find_next, NULL);
	return shop_fetch_time(0, 1);
}
