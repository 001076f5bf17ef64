/*
 * take.c
 *		Takes the units of an order from stock, and gives units back.
 *
 * A product that nobody fights over has all its units in slot 0; those of an
 * order are locked in one statement and updated in another.  What is left is
 * taken product by product, the way slots.c has it.  Where the slots have too
 * few units between them, reservations that have expired give theirs back.
 *
 * Lock order: products ascending; of one product its slots from 0 upwards, and
 * then, with all slots locked, holds by the time they expire.  Giving back
 * locks slot 0 of each product, ascending.
 *
 * Invariants: on_hand >= 0; units on hand + held = put in - sold (verify()).
 */
#include "stock/stock.h"

#include "error.h"
#include "stock/slots.h"

/* There is one location; SHOP_DEFAULT_LOCATION is the column's default. */
static ShopSlots slots = SHOP_SLOTS("shop.stock", "product_id", "product_id = $1 AND location_id = 1", "on_hand");
StaticAssertDecl(SHOP_DEFAULT_LOCATION == 1, "the statements of stock name the location");

/*
 * Locks slot 0 of each product, in the order of the demands; slot is NULL
 * where it is locked by others or short.
 */
static ShopQuery lock_first = SHOP_QUERY(
	"SELECT s.slot"
	"  FROM unnest($1::bigint[], $2::bigint[]) AS d(product_id, quantity)"
	"  LEFT JOIN LATERAL"
	"       (SELECT slot FROM shop.stock"
	"         WHERE product_id = d.product_id AND location_id = 1 AND slot = 0 AND on_hand >= d.quantity"
	"         LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) s ON true",
	INT8ARRAYOID, INT8ARRAYOID);

static ShopQuery subtract_first = SHOP_QUERY(
	"UPDATE shop.stock s SET on_hand = s.on_hand - t.quantity"
	"  FROM unnest($1::bigint[], $2::bigint[]) AS t(product_id, quantity)"
	" WHERE s.product_id = t.product_id AND s.location_id = 1 AND s.slot = 0 AND s.on_hand >= t.quantity",
	INT8ARRAYOID, INT8ARRAYOID);

static ShopQuery wait_first = SHOP_QUERY("SELECT FROM shop.stock"
										 " WHERE product_id = ANY($1) AND location_id = 1 AND slot = 0"
										 " ORDER BY product_id FOR NO KEY UPDATE",
	INT8ARRAYOID);

static ShopQuery add_first = SHOP_QUERY("UPDATE shop.stock s SET on_hand = s.on_hand + t.quantity"
										"  FROM unnest($1::bigint[], $2::bigint[]) AS t(product_id, quantity)"
										" WHERE s.product_id = t.product_id AND s.location_id = 1 AND s.slot = 0",
	INT8ARRAYOID, INT8ARRAYOID);

static ShopQuery sum_available = SHOP_QUERY(
	"SELECT ((SELECT coalesce(sum(on_hand), 0) FROM shop.stock WHERE product_id = $1 AND location_id = 1)"
	"      + (SELECT coalesce(sum(quantity), 0) FROM shop.stock_hold WHERE product_id = $1 AND expires_at <= $2))"
	"       ::bigint",
	INT8OID, TIMESTAMPTZOID);

/* The units that an order can have: those in slots, and those of expired reservations. */
int64
shop_stock_available(int64 product_id, TimestampTz now)
{
	shop_query(&sum_available, SHOP_VALUES(shop_int8(product_id), shop_time(now)));
	return shop_fetch_int8(0, 1);
}

/* Opens the stock of a new product. */
void
shop_stock_open(int64 product_id, int64 quantity)
{
	shop_slots_open(&slots, product_id, quantity, 1);
}

/* Removes slots that a rush has left empty; returns how many. */
int64
shop_stock_merge(int limit)
{
	return shop_slots_merge(&slots, limit);
}

static ShopValue
product_ids(const ShopDemand *demands, int n)
{
	int64 *ids = palloc(sizeof(int64) * n);

	for (int i = 0; i < n; i++)
		ids[i] = demands[i].product_id;
	return shop_int8_array(ids, n);
}

static ShopValue
quantities(const ShopDemand *demands, int n)
{
	int64 *values = palloc(sizeof(int64) * n);

	for (int i = 0; i < n; i++)
		values[i] = demands[i].quantity;
	return shop_int8_array(values, n);
}

/* One row per demand, in their order; the first without a slot ends it. */
static bool
count_locked(TupleTableSlot *row, void *arg)
{
	int *locked = arg;
	bool isnull;

	(void) slot_getattr(row, 1, &isnull);
	if (!isnull)
		(*locked)++;
	return !isnull;
}

/*
 * Locks slot 0 for each of the demands; stops at the first where that fails,
 * so that nothing is locked beyond a product that has to be waited for.
 * Returns how many it locked.
 */
static int
lock_first_slots(const ShopDemand *demands, int n)
{
	int locked = 0;

	if (n > 0)
		shop_query_each(
			&lock_first, SHOP_VALUES(product_ids(demands, n), quantities(demands, n)), count_locked, &locked);
	return locked;
}

static void
take_locked(const ShopDemand *demands, int n)
{
	uint64 updated;

	if (n == 0)
		return;
	updated = shop_query(&subtract_first, SHOP_VALUES(product_ids(demands, n), quantities(demands, n)));
	if (updated != (uint64) n)
		elog(ERROR, "took units from " UINT64_FORMAT " of %d locked slots", updated, n);
}

/* How many demands from here on are best taken from slot 0? */
static int
count_first(const ShopDemand *demands, int n)
{
	int first = 0;

	while (first < n && demands[first].slot == 0)
		first++;
	return first;
}

/*
 * Takes the units of one product, waiting for those who hold them.  Refuses
 * only when a fresh look sees fewer units than are asked for: a unit that came
 * in meanwhile, in a slot that our statement could not see, means another
 * round, and so do units that were taken back into slot 0, which is ours.
 */
static void
take_waiting(const ShopDemand *demand, TimestampTz now, ShopExpired *expired)
{
	for (;;)
	{
		int64 units = shop_stock_available(demand->product_id, now);
		int64 missing;
		int64 taken_back;

		if (units < demand->quantity)
			shop_refuse(SHOP_INSUFFICIENT_STOCK,
				"{\"product_id\": " INT64_FORMAT ", \"requested\": " INT64_FORMAT ", \"available\": " INT64_FORMAT "}",
				demand->product_id, demand->quantity, units);
		missing = shop_slots_take_waiting(&slots, demand->product_id, demand->quantity);
		if (missing == 0)
			return;
		taken_back = shop_holds_take_back(demand->product_id, missing, now, expired);
		if (taken_back > 0)
			shop_query(
				&add_first, SHOP_VALUES(shop_int8_array(&demand->product_id, 1), shop_int8_array(&taken_back, 1)));
	}
}

/*
 * Takes the units of all demands, which are sorted by product and distinct, or
 * refuses with insufficient_stock.  Returns the orders whose expired
 * reservations gave units back for it.
 */
ShopExpired
shop_stock_take(const ShopDemand *demands, int n, TimestampTz now)
{
	ShopExpired expired = {0};

	for (int done = 0; done < n; done++)
	{
		int locked = lock_first_slots(demands + done, count_first(demands + done, n - done));
		const ShopDemand *next = &demands[done + locked];

		take_locked(demands + done, locked);
		done += locked;
		/* Slot 0 has just been tried. */
		if (done < n &&
			!shop_slots_take_free(&slots, next->product_id, next->quantity, next->slot > 0 ? next->slot : -1))
			take_waiting(next, now, &expired);
	}
	return expired;
}

/* Puts units, sorted by product and distinct, into slot 0 of each; waits for it. */
void
shop_stock_give_back(const ShopDemand *demands, int n)
{
	if (n == 0)
		return;
	shop_query(&wait_first, SHOP_VALUES(product_ids(demands, n)));
	shop_query(&add_first, SHOP_VALUES(product_ids(demands, n), quantities(demands, n)));
}
