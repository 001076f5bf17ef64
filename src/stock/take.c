/*
 * take.c
 *		Takes the units of an order from stock, and gives units back.
 *
 * A product that nobody fights over has all its units in slot 0, and one
 * conditional update takes them; else it goes the way slots.c has it.  Where
 * the slots have too few units between them, reservations that have expired
 * give theirs back.
 *
 * Lock order: products ascending; of one product its slots from 0 upwards, and
 * then, with all slots locked, holds by the time they expire.  Giving back
 * locks slot 0 of each product, ascending.
 *
 * Invariants: on_hand >= 0; units on hand + held = put in - sold (verify()).
 */
#include "stock/stock.h"

#include "error.h"
#include "lookup.h"
#include "stock/slots.h"
#include "utils/fmgroids.h"

/* There is one location; SHOP_DEFAULT_LOCATION is the column's default. */
static ShopSlots slots = SHOP_SLOTS("stock", "product_id", "product_id = $1 AND location_id = 1", "on_hand",
	SHOP_DEFAULT_LOCATION, "product_id", "location_id", "slot");
StaticAssertDecl(SHOP_DEFAULT_LOCATION == 1, "the statements of stock name the location");

static ShopQuery wait_first = SHOP_QUERY("SELECT FROM shop.stock"
										 " WHERE product_id = ANY($1) AND location_id = 1 AND slot = 0"
										 " ORDER BY product_id FOR NO KEY UPDATE",
	INT8ARRAYOID);

static ShopQuery add_first = SHOP_QUERY("UPDATE shop.stock s SET on_hand = s.on_hand + t.quantity"
										"  FROM unnest($1::bigint[], $2::bigint[]) AS t(product_id, quantity)"
										" WHERE s.product_id = t.product_id AND s.location_id = 1 AND s.slot = 0",
	INT8ARRAYOID, INT8ARRAYOID);

static ShopTable hold_table = {.name = "stock_hold", .columns = {"quantity"}, .keys = {"product_id", "expires_at"}};
enum
{
	HELD
};

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

/*
 * Looking
 */

/*
 * All units of a product in the active snapshot, those of expired reservations
 * included: at the location that orders take from, or everywhere.
 */
int64
shop_stock_units(int64 product_id, bool everywhere, TimestampTz now)
{
	ShopLookup lookup;
	int64 units = 0;
	int n_keys = everywhere ? 1 : 2;

	shop_lookup_open(&lookup, &slots.rows, n_keys, ForwardScanDirection);
	shop_lookup_start(&lookup, SHOP_KEYS(SHOP_KEY_INT8(product_id), SHOP_KEY_INT4(SHOP_DEFAULT_LOCATION)), n_keys);
	while (shop_lookup_next(&lookup))
		units += shop_lookup_int8(&lookup, SHOP_SLOT_UNITS);
	shop_lookup_close(&lookup);

	shop_lookup_open(&lookup, &hold_table, 2, ForwardScanDirection);
	shop_lookup_start(&lookup,
		SHOP_KEYS(SHOP_KEY_INT8(product_id), {BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE, TimestampTzGetDatum(now)}),
		2);
	while (shop_lookup_next(&lookup))
		units += shop_lookup_int8(&lookup, HELD);
	shop_lookup_close(&lookup);
	return units;
}

/*
 * Looks in the active snapshot, without a lock, whether the units can be had.
 * All units are summed only where no nearby slot has enough.
 */
void
shop_stock_look(ShopDemand *demands, int n, TimestampTz now)
{
	ShopLookup lookup;

	shop_slots_look(&slots, &lookup);
	for (int i = 0; i < n; i++)
		demands[i].available = shop_slots_near(
								   &slots, &lookup, demands[i].product_id, demands[i].quantity, &demands[i].seen)
								   ? demands[i].quantity
								   : -1;
	shop_lookup_close(&lookup);
	for (int i = 0; i < n; i++)
		if (demands[i].available < 0)
			demands[i].available = shop_stock_units(demands[i].product_id, false, now);
}

/*
 * Taking
 */

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

/*
 * Takes the units of one product, waiting for those who hold them.  Refuses
 * only when a fresh look sees fewer units than are asked for: a unit that came
 * in meanwhile, in a slot that our statement could not see, means another
 * round, and so do units that were taken back into slot 0, which is ours.
 */
static void
take_waiting(const ShopDemand *demand, ShopExpired *expired)
{
	for (;;)
	{
		/* A reservation may have expired while we waited. */
		TimestampTz now = shop_now();
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
shop_stock_take(const ShopDemand *demands, int n)
{
	ShopExpired expired = {0};
	ShopUpdate update;

	shop_slots_begin(&slots, &update);
	for (const ShopDemand *demand = demands; demand < demands + n; demand++)
		if (!shop_slots_take(&slots, &update, demand->product_id, demand->quantity, &demand->seen))
		{
			/* After a wait what comes next is to be seen as it is then. */
			shop_slots_end(&update);
			take_waiting(demand, &expired);
			shop_slots_begin(&slots, &update);
		}
	shop_slots_end(&update);
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
