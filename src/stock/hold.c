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

#define OF_RESERVATIONS \
	" FROM unnest($1::bigint[], $2::timestamptz[]) WITH ORDINALITY r(order_id, expires_at, n)" \
	" JOIN shop.stock_hold h ON h.expires_at = r.expires_at AND h.order_id = r.order_id"

/* Slot 0 of the products, ascending, as far as it is free. */
static ShopQuery lock_free_slots = SHOP_QUERY(
	"SELECT product_id FROM shop.stock"
	" WHERE product_id = ANY (ARRAY(SELECT DISTINCT h.product_id" OF_RESERVATIONS ")) AND location_id = 1 AND slot = 0"
	" ORDER BY product_id FOR NO KEY UPDATE SKIP LOCKED",
	INT8ARRAYOID, TIMESTAMPTZARRAYOID);

static ShopQuery lock_free_holds = SHOP_QUERY(
	"SELECT r.n::integer, h.product_id" OF_RESERVATIONS
	" ORDER BY h.product_id, h.expires_at, h.order_id FOR UPDATE OF h SKIP LOCKED",
	INT8ARRAYOID, TIMESTAMPTZARRAYOID);

static ShopQuery count_holds = SHOP_QUERY(
	"SELECT r.n::integer, count(*)::integer" OF_RESERVATIONS " GROUP BY r.n", INT8ARRAYOID, TIMESTAMPTZARRAYOID);

static ShopQuery sum_holds = SHOP_QUERY("SELECT h.product_id, sum(h.quantity)::bigint" OF_RESERVATIONS
										" GROUP BY h.product_id ORDER BY h.product_id",
	INT8ARRAYOID, TIMESTAMPTZARRAYOID);

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

/* The reservations as two arrays; of those that are not free only if `all`. */
static void
bind_reservations(const ShopReservation *reservations, int n, bool all, ShopValue *values)
{
	int64 *orders = palloc(sizeof(int64) * Max(n, 1));
	TimestampTz *times = palloc(sizeof(TimestampTz) * Max(n, 1));
	int bound = 0;

	for (int i = 0; i < n; i++)
		if (all || reservations[i].free)
		{
			orders[bound] = reservations[i].order_id;
			times[bound++] = reservations[i].expires_at;
		}
	values[0] = shop_int8_array(orders, bound);
	values[1] = shop_time_array(times, bound);
}

static int
compare_int64(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/*
 * Locks what the reservations hold, and slot 0 of the products, as far as that
 * takes no waiting; says of which it got everything.  Still all of it goes in
 * the order of locks, as SKIP LOCKED now and then waits (see slots.c).
 */
void
shop_holds_lock_free(ShopReservation *reservations, int n)
{
	ShopValue all[2];
	int *locked = palloc0(sizeof(int) * Max(n, 1));
	int *held = palloc0(sizeof(int) * Max(n, 1));
	int64 *products;
	uint64 nproducts;
	uint64 rows;

	bind_reservations(reservations, n, true, all);
	nproducts = shop_query(&lock_free_slots, all);
	products = palloc(sizeof(int64) * Max(nproducts, 1));
	for (uint64 row = 0; row < nproducts; row++)
		products[row] = shop_fetch_int8(row, 1);

	rows = shop_query(&lock_free_holds, all);
	for (uint64 row = 0; row < rows; row++)
	{
		int64 product_id = shop_fetch_int8(row, 2);

		if (bsearch(&product_id, products, nproducts, sizeof(int64), compare_int64))
			locked[shop_fetch_int4(row, 1) - 1]++;
	}
	rows = shop_query(&count_holds, all);
	for (uint64 row = 0; row < rows; row++)
		held[shop_fetch_int4(row, 1) - 1] = shop_fetch_int4(row, 2);
	for (int i = 0; i < n; i++)
		reservations[i].free = held[i] > 0 && locked[i] == held[i];
}

/* What the free ones hold between them, by product; returns how many products. */
int
shop_holds_of_free(const ShopReservation *reservations, int n, ShopDemand **demands)
{
	ShopValue values[2];
	int products;

	bind_reservations(reservations, n, false, values);
	products = (int) shop_query(&sum_holds, values);
	*demands = palloc(sizeof(ShopDemand) * Max(products, 1));
	for (int i = 0; i < products; i++)
		(*demands)[i] = (ShopDemand){.product_id = shop_fetch_int8(i, 1), .quantity = shop_fetch_int8(i, 2)};
	return products;
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
