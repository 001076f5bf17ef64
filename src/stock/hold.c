/*
 * hold.c
 *		Units held by reservations: not in stock, not sold.
 *
 * A hold is one product of one reserved order.  Paying deletes an order's
 * holds, releasing and expiring move their units back into stock.  A hold that
 * has expired is free for anybody who finds too few units in stock; he deletes
 * it, and with it the reservation has come to its end.
 *
 * Locks: a hold is locked by its owner, holding his account, or by whoever
 * holds slot 0 of its product; of one product by (expires_at, order_id), of
 * one order by product.
 *
 * Invariant: a reserved order has a hold for each line (verify()).
 */
#include "stock/stock.h"

#include "catalog/pg_type.h"
#include "query.h"

static ShopQuery insert_holds = SHOP_QUERY("INSERT INTO shop.stock_hold (order_id, expires_at, product_id, quantity)"
										   " SELECT $1, $2, t.* FROM unnest($3::bigint[], $4::bigint[]) t",
	INT8OID, TIMESTAMPTZOID, INT8ARRAYOID, INT8ARRAYOID);

static ShopQuery lock_holds = SHOP_QUERY("SELECT FROM shop.stock_hold WHERE expires_at = $2 AND order_id = $1"
										 " ORDER BY product_id FOR UPDATE",
	INT8OID, TIMESTAMPTZOID);

static ShopQuery delete_holds = SHOP_QUERY(
	"DELETE FROM shop.stock_hold WHERE expires_at = $2 AND order_id = $1", INT8OID, TIMESTAMPTZOID);

static ShopQuery read_holds = SHOP_QUERY(
	"SELECT product_id, quantity FROM shop.stock_hold WHERE expires_at = $2 AND order_id = $1 ORDER BY product_id",
	INT8OID, TIMESTAMPTZOID);

static ShopQuery lock_free_holds = SHOP_QUERY("SELECT FROM shop.stock_hold h"
											  "  JOIN shop.stock s ON s.product_id = h.product_id"
											  "   AND s.location_id = 1 AND s.slot = 0"
											  " WHERE h.expires_at = $2 AND h.order_id = $1"
											  " ORDER BY h.product_id"
											  "   FOR NO KEY UPDATE OF s SKIP LOCKED FOR UPDATE OF h SKIP LOCKED",
	INT8OID, TIMESTAMPTZOID);

static ShopQuery lock_expired = SHOP_QUERY("SELECT order_id, quantity FROM shop.stock_hold"
										   " WHERE product_id = $1 AND expires_at <= $2"
										   " ORDER BY expires_at, order_id FOR UPDATE",
	INT8OID, TIMESTAMPTZOID);

static ShopQuery delete_expired = SHOP_QUERY(
	"DELETE FROM shop.stock_hold WHERE product_id = $1 AND expires_at <= $2 AND order_id = ANY($3)", INT8OID,
	TIMESTAMPTZOID, INT8ARRAYOID);

/* Expired holds, locked until they have enough between them. */
typedef struct TakenBack
{
	int64 missing;
	int64 units;
	ShopExpired *expired;
} TakenBack;

void
shop_holds_insert(int64 order_id, TimestampTz expires_at, const ShopDemand *demands, int n)
{
	int64 *products = palloc(sizeof(int64) * n);
	int64 *quantities = palloc(sizeof(int64) * n);

	for (int i = 0; i < n; i++)
	{
		products[i] = demands[i].product_id;
		quantities[i] = demands[i].quantity;
	}
	shop_query(&insert_holds, SHOP_VALUES(shop_int8(order_id), shop_time(expires_at), shop_int8_array(products, n),
								  shop_int8_array(quantities, n)));
}

/* Deletes the holds of an order; returns how many there still were. */
int
shop_holds_delete(int64 order_id, TimestampTz expires_at)
{
	ShopValue order[] = {shop_int8(order_id), shop_time(expires_at)};

	shop_query(&lock_holds, order);
	return (int) shop_query(&delete_holds, order);
}

/* What an order still holds, by product; returns how many holds. */
int
shop_holds_read(int64 order_id, TimestampTz expires_at, ShopDemand **demands)
{
	int n = (int) shop_query(&read_holds, SHOP_VALUES(shop_int8(order_id), shop_time(expires_at)));

	*demands = palloc(sizeof(ShopDemand) * Max(n, 1));
	for (int i = 0; i < n; i++)
		(*demands)[i] = (ShopDemand){shop_fetch_int8(i, 1), shop_fetch_int8(i, 2), -1};
	return n;
}

/*
 * Locks the holds of an order and slot 0 of their products if that takes no
 * waiting; false if it would, and then some may be locked.
 */
bool
shop_holds_lock_free(int64 order_id, TimestampTz expires_at)
{
	ShopValue order[] = {shop_int8(order_id), shop_time(expires_at)};
	uint64 locked = shop_query(&lock_free_holds, order);

	return locked == shop_query(&read_holds, order);
}

static bool
note_expired(TupleTableSlot *row, void *arg)
{
	TakenBack *taken = arg;
	ShopExpired *expired = taken->expired;
	int64 quantity = shop_row_int8(row, 2);

	if (expired->n == expired->allocated)
	{
		expired->allocated *= 2;
		expired->order_ids = repalloc(expired->order_ids, sizeof(int64) * expired->allocated);
	}
	expired->order_ids[expired->n++] = shop_row_int8(row, 1);
	taken->units += quantity;
	taken->missing -= quantity;
	return taken->missing > 0;
}

/*
 * Deletes expired holds of a product, oldest first, until they have enough
 * between them, waiting for owners who are just paying; returns their units,
 * which the caller puts into slot 0, and adds the orders to `expired`.  All
 * slots of the product are locked.
 */
int64
shop_holds_take_back(int64 product_id, int64 missing, TimestampTz now, ShopExpired *expired)
{
	TakenBack taken = {.missing = missing, .expired = expired};
	int before = expired->n;

	if (expired->allocated == 0)
	{
		/* Here, for rows come to us in a memory context of the executor's. */
		expired->allocated = 8;
		expired->order_ids = palloc(sizeof(int64) * expired->allocated);
	}
	shop_query_each(&lock_expired, SHOP_VALUES(shop_int8(product_id), shop_time(now)), note_expired, &taken);
	if (expired->n > before)
		shop_query(&delete_expired, SHOP_VALUES(shop_int8(product_id), shop_time(now),
										shop_int8_array(expired->order_ids + before, expired->n - before)));
	return taken.units;
}
