/*
 * expire.c
 *		The end of reservations that nobody paid.
 *
 * Two come by: a buyer who found too few units in stock and took back what an
 * expired reservation held (stock/), who ends its order here, and the keeper,
 * who gives back what is left.  The keeper leaves what another transaction has
 * locked for its next round.
 *
 * An order that ended may keep holds of products that no buyer has asked for
 * yet; they count as free for everyone and are the keeper's to give back.
 *
 * Locks: a buyer, the orders' rows, ascending, after everything else; the
 * keeper, with SKIP LOCKED, but in the same order as everybody: slot 0 of all
 * products, all holds, the orders' rows.
 */
#include "order/order.h"

#include "catalog/pg_type.h"

static ShopQuery end_order = SHOP_QUERY(
	"UPDATE shop.orders SET status = 'expired' WHERE order_id = $1 AND status = 'reserved'", INT8OID);

static ShopQuery lock_free_orders = SHOP_QUERY(
	"SELECT order_id FROM shop.orders WHERE order_id = ANY ($1) ORDER BY order_id FOR NO KEY UPDATE SKIP LOCKED",
	INT8ARRAYOID);

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
	shop_order_emit(&order, "expired", NULL, &items, now);
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
shop_orders_expire(ShopExpired expired)
{
	TimestampTz now = shop_now();

	if (expired.n > 1)
		pg_qsort(expired.order_ids, expired.n, sizeof(int64), compare_id);
	for (int i = 0; i < expired.n; i++)
		end_reservation(expired.order_ids[i], now);
}

static int
compare_reservation(const void *a, const void *b)
{
	return compare_id(&((const ShopReservation *) a)->order_id, &((const ShopReservation *) b)->order_id);
}

/* Locks the rows of the free ones, which are sorted; those whose row is locked by others are not free after all. */
static void
lock_order_rows(ShopReservation *due, int n)
{
	int64 *order_ids = palloc(sizeof(int64) * Max(n, 1));
	uint64 rows;

	for (int i = 0; i < n; i++)
		order_ids[i] = due[i].order_id;
	rows = shop_query(&lock_free_orders, SHOP_VALUES(shop_int8_array(order_ids, n)));
	for (int i = 0, row = 0; i < n; i++)
		if ((uint64) row < rows && shop_fetch_int8(row, 1) == due[i].order_id)
			row++;
		else
			due[i].free = false;
}

/*
 * Gives back what the reservations hold, but for those of which something is
 * locked; that stays locked until the end of the transaction, which is near.
 * Returns how many.
 */
static int64
expire_free(ShopReservation *due, int n)
{
	TimestampTz now = shop_now();
	ShopDemand *demands;
	int products;
	int64 expired = 0;

	pg_qsort(due, n, sizeof(ShopReservation), compare_reservation);
	shop_holds_lock_free(due, n);
	lock_order_rows(due, n);
	products = shop_holds_of_free(due, n, &demands);
	shop_stock_give_back(demands, products);
	for (int i = 0; i < n; i++)
		if (due[i].free)
		{
			shop_holds_delete(due[i].order_id, due[i].expires_at);
			end_reservation(due[i].order_id, now);
			expired++;
		}
	return expired;
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
	ShopReservation *due = palloc(sizeof(ShopReservation) * Max(n, 1));

	for (int i = 0; i < n; i++)
		due[i] = (ShopReservation){.expires_at = shop_fetch_time(i, 1), .order_id = shop_fetch_int8(i, 2)};
	if (n > 0)
	{
		*sweep = (ShopSweep){due[n - 1].expires_at, due[n - 1].order_id};
		*expired += expire_free(due, n);
	}
	return n == limit;
}

/* When the next reservation runs out, or DT_NOEND. */
TimestampTz
shop_reservations_next(void)
{
	shop_query(&find_next, NULL);
	return shop_fetch_time(0, 1);
}
