/*
 * stock.c
 *		Units per product, location and slot.
 *
 * The units of all slots of a product are its stock.  A product has slot 0
 * and, once buyers had to wait for each other, more; a backend's own slot is
 * its backend number modulo shop.max_stock_slots, and its nearest slot is its
 * own or the next lower one there is, in the end slot 0.
 *
 * Lock order: products ascending, and of one product slots from 0 upwards.
 * Whoever waits for a slot holds, of its product, only lower slots, and of
 * others only lower products, so there is no cycle.  Taking a free slot out
 * of order (SKIP LOCKED) does not wait; but a slot that turns out too short
 * once it is locked stays locked, so this happens in a subtransaction, which
 * is undone before we wait.  Slot 0 does without: it comes first in any case.
 *
 * Invariants: on_hand >= 0 (a CHECK and a condition in the update);
 * sum(on_hand) = sum of movements - units of orders (verify()).
 */
#include "stock.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "error.h"
#include "executor/tuptable.h"
#include "idempotency.h"
#include "query.h"
#include "subtransaction.h"

/*
 * Locks slot 0 of each product, in the order of the demands; slot is NULL
 * where it is locked by others or short.
 */
static ShopQuery lock_first = SHOP_QUERY(
	"SELECT s.slot"
	"  FROM unnest($1::bigint[], $2::bigint[]) AS d(product_id, quantity)"
	"  LEFT JOIN LATERAL"
	"       (SELECT slot FROM shop.stock"
	"         WHERE product_id = d.product_id AND location_id = $3 AND slot = 0 AND on_hand >= d.quantity"
	"         LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) s ON true",
	INT8ARRAYOID, INT8ARRAYOID, INT4OID);

/*
 * Takes the units from a free slot: the nearest, or one above.  Locked and
 * updated by the same subtransaction, or every row would get a MultiXact.
 */
#define TAKE_FREE(which) \
	"WITH free AS MATERIALIZED" \
	"  (SELECT slot FROM shop.stock" \
	"    WHERE product_id = $1 AND location_id = $2 AND on_hand >= $4 AND " which \
	"    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)" \
	" UPDATE shop.stock s SET on_hand = s.on_hand - $4 FROM free" \
	"  WHERE s.product_id = $1 AND s.location_id = $2 AND s.slot = free.slot AND s.on_hand >= $4"

static ShopQuery take_nearest = SHOP_QUERY(
	TAKE_FREE("slot <= $3 ORDER BY slot DESC"), INT8OID, INT4OID, INT4OID, INT8OID);
static ShopQuery take_above = SHOP_QUERY(TAKE_FREE("slot > $3 ORDER BY slot"), INT8OID, INT4OID, INT4OID, INT8OID);

static ShopQuery lock_all = SHOP_QUERY("SELECT slot, on_hand FROM shop.stock WHERE product_id = $1 AND location_id = $2"
									   " ORDER BY slot FOR NO KEY UPDATE",
	INT8OID, INT4OID);

static ShopQuery sum_available = SHOP_QUERY(
	"SELECT coalesce(sum(on_hand), 0)::bigint FROM shop.stock WHERE product_id = $1 AND location_id = $2", INT8OID,
	INT4OID);

static ShopQuery insert_slot = SHOP_QUERY(
	"INSERT INTO shop.stock (product_id, location_id, slot, on_hand) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT DO NOTHING",
	INT8OID, INT4OID, INT4OID, INT8OID);

static ShopQuery fill_free_slot = SHOP_QUERY(
	"WITH own AS MATERIALIZED"
	"  (SELECT slot FROM shop.stock WHERE product_id = $1 AND location_id = $2 AND slot = $3"
	"      FOR NO KEY UPDATE SKIP LOCKED)"
	" UPDATE shop.stock s SET on_hand = s.on_hand + $4 FROM own"
	"  WHERE s.product_id = $1 AND s.location_id = $2 AND s.slot = own.slot",
	INT8OID, INT4OID, INT4OID, INT8OID);

static ShopQuery take_picks = SHOP_QUERY(
	"UPDATE shop.stock s SET on_hand = s.on_hand - t.quantity"
	"  FROM unnest($1::bigint[], $2::integer[], $3::bigint[]) AS t(product_id, slot, quantity)"
	" WHERE s.product_id = t.product_id AND s.location_id = $4 AND s.slot = t.slot"
	"   AND s.on_hand >= t.quantity",
	INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID, INT4OID);

static ShopQuery add_units = SHOP_QUERY(
	"UPDATE shop.stock SET on_hand = on_hand + $3 WHERE product_id = $1 AND location_id = $2 AND slot = 0", INT8OID,
	INT4OID, INT8OID);

static ShopQuery find_product = SHOP_QUERY("SELECT FROM shop.product WHERE product_id = $1", INT8OID);

static ShopQuery insert_movement = SHOP_QUERY(
	"INSERT INTO shop.stock_movement (product_id, location_id, quantity, available, kind, idempotency_key, created_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7)"
	" ON CONFLICT (kind, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING movement_id",
	INT8OID, INT4OID, INT8OID, INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID);

static ShopQuery complete_movement = SHOP_QUERY(
	"UPDATE shop.stock_movement SET available = $2 WHERE movement_id = $1", INT8OID, INT8OID);

static ShopQuery find_restock = SHOP_QUERY("SELECT product_id, quantity, available FROM shop.stock_movement"
										   " WHERE kind = 'restock' AND idempotency_key = $1",
	TEXTOID);

static ShopQuery delete_empty_slots = SHOP_QUERY(
	"WITH empty AS MATERIALIZED"
	"  (SELECT product_id, location_id, slot FROM shop.stock WHERE slot > 0 AND on_hand = 0"
	"    LIMIT $1 FOR UPDATE SKIP LOCKED)"
	" DELETE FROM shop.stock s USING empty e"
	"  WHERE s.product_id = e.product_id AND s.location_id = e.location_id AND s.slot = e.slot",
	INT4OID);

/* Units to be taken from one slot. */
typedef struct StockPick
{
	int64 product_id;
	int32 slot;
	int64 quantity;
} StockPick;

typedef struct StockPicks
{
	StockPick *picks;
	int n;
	int allocated;
} StockPicks;

/* An attempt to take the units of one product without waiting. */
typedef struct FreeTake
{
	const ShopDemand *demand;
	bool done;
} FreeTake;

/*
 * Receives slots as the executor locks them, and stops it as soon as no more
 * are wanted: a slot that is not needed is never locked, and nothing is
 * locked beyond a product that has to be waited for.
 */
typedef struct SlotReceiver
{
	DestReceiver pub;
	StockPicks *picks;
	const ShopDemand *demand; /* of the next row (lock_first) or of all (lock_all) */
	int satisfied;			  /* demands satisfied so far */
	int64 missing;			  /* lock_all: units still missing */
	int64 left;				  /* lock_all: units left in the last slot picked */
} SlotReceiver;

SHOP_FUNCTION(shop_restock);

static void
add_pick(StockPicks *picks, int64 product_id, int32 slot, int64 quantity)
{
	if (picks->n == picks->allocated)
	{
		picks->allocated *= 2;
		picks->picks = repalloc(picks->picks, sizeof(StockPick) * picks->allocated);
	}
	picks->picks[picks->n++] = (StockPick){product_id, slot, quantity};
}

static int64
slot_int64(TupleTableSlot *slot, int attribute)
{
	bool isnull;

	return DatumGetInt64(slot_getattr(slot, attribute, &isnull));
}

static int32
slot_int32(TupleTableSlot *slot, int attribute, bool *isnull)
{
	return DatumGetInt32(slot_getattr(slot, attribute, isnull));
}

/* One row per demand, in their order; the first without a slot ends it. */
static bool
receive_first(TupleTableSlot *slot, DestReceiver *self)
{
	SlotReceiver *receiver = (SlotReceiver *) self;
	bool isnull;
	int32 number = slot_int32(slot, 1, &isnull);

	if (isnull)
		return false;
	add_pick(receiver->picks, receiver->demand->product_id, number, receiver->demand->quantity);
	receiver->demand++;
	receiver->satisfied++;
	return true;
}

/* Slots of one product from 0 upwards, until they have enough between them. */
static bool
receive_all(TupleTableSlot *slot, DestReceiver *self)
{
	SlotReceiver *receiver = (SlotReceiver *) self;
	bool isnull;
	int32 number = slot_int32(slot, 1, &isnull);
	int64 on_hand = slot_int64(slot, 2);
	int64 quantity = Min(on_hand, receiver->missing);

	if (quantity > 0)
	{
		add_pick(receiver->picks, receiver->demand->product_id, number, quantity);
		receiver->missing -= quantity;
		receiver->left = on_hand - quantity;
	}
	return receiver->missing > 0;
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
	(void) self;
	(void) operation;
	(void) typeinfo;
}

static void
receiver_nothing(DestReceiver *self)
{
	(void) self;
}

static SlotReceiver
make_receiver(bool (*receive)(TupleTableSlot *, DestReceiver *), StockPicks *picks, const ShopDemand *demand)
{
	SlotReceiver receiver = {.pub = {receive, receiver_startup, receiver_nothing, receiver_nothing, DestNone},
		.picks = picks,
		.demand = demand,
		.missing = demand->quantity};

	return receiver;
}

/* This backend's own slot of any product. */
int32
shop_stock_own_slot(void)
{
	return SHOP_BACKEND_NUMBER() % shop_max_stock_slots;
}

static int64
available(int64 product_id)
{
	shop_query(&sum_available, SHOP_VALUES(shop_int8(product_id), shop_int4(SHOP_DEFAULT_LOCATION)));
	return shop_fetch_int8(0, 1);
}

/*
 * Locks slot 0 for each of the demands; stops at the first where that fails.
 * Returns how many it satisfied.
 */
static int
take_first(const ShopDemand *demands, int n, StockPicks *picks)
{
	SlotReceiver receiver = make_receiver(receive_first, picks, demands);
	int64 *products = palloc(sizeof(int64) * n);
	int64 *quantities = palloc(sizeof(int64) * n);

	for (int i = 0; i < n; i++)
	{
		products[i] = demands[i].product_id;
		quantities[i] = demands[i].quantity;
	}
	shop_query_stream(&lock_first,
		SHOP_VALUES(shop_int8_array(products, n), shop_int8_array(quantities, n), shop_int4(SHOP_DEFAULT_LOCATION)),
		&receiver.pub, false);
	return receiver.satisfied;
}

static bool
take_within(void *arg)
{
	FreeTake *take = arg;
	ShopValue values[] = {shop_int8(take->demand->product_id), shop_int4(SHOP_DEFAULT_LOCATION),
		shop_int4(shop_stock_own_slot()), shop_int8(take->demand->quantity)};

	take->done = shop_query(&take_nearest, values) > 0 || shop_query(&take_above, values) > 0;
	return take->done;
}

/* Takes the units of one product from a free slot; false, and no lock, if there is none. */
static bool
take_free(const ShopDemand *demand)
{
	FreeTake take = {demand, false};
	ErrorData *error = shop_subtransaction(take_within, &take);

	if (error)
		ReThrowError(error);
	return take.done;
}

/*
 * Who had to wait for a slot takes half of what is left in it home to its own
 * slot, and need not wait there next time.  Runs while the slot is locked and
 * before any higher product is, so that a wait for a slot being inserted is
 * one for a transaction that will not wait for us.
 */
static void
take_half_home(StockPick *pick, int64 left)
{
	int32 own = shop_stock_own_slot();
	int64 half = left / 2;
	ShopValue values[] = {
		shop_int8(pick->product_id), shop_int4(SHOP_DEFAULT_LOCATION), shop_int4(own), shop_int8(half)};

	if (half == 0 || own == pick->slot)
		return;
	if (shop_query(&insert_slot, values) > 0 || shop_query(&fill_free_slot, values) > 0)
		pick->quantity += half;
}

/*
 * Takes the units of one product slot by slot, waiting for those who hold
 * them.  Refuses only when a fresh look sees fewer units than are asked for:
 * a unit that came in meanwhile, in a slot that our statement could not see,
 * means another round.
 */
static void
take_waiting(const ShopDemand *demand, StockPicks *picks)
{
	int before = picks->n;

	for (;;)
	{
		SlotReceiver receiver = make_receiver(receive_all, picks, demand);
		int64 units = available(demand->product_id);

		if (units < demand->quantity)
			shop_refuse(SHOP_INSUFFICIENT_STOCK,
				"{\"product_id\": " INT64_FORMAT ", \"requested\": " INT64_FORMAT ", \"available\": " INT64_FORMAT "}",
				demand->product_id, demand->quantity, units);

		shop_query_stream(&lock_all, SHOP_VALUES(shop_int8(demand->product_id), shop_int4(SHOP_DEFAULT_LOCATION)),
			&receiver.pub, false);
		if (receiver.missing == 0)
		{
			if (picks->n == before + 1)
				take_half_home(&picks->picks[before], receiver.left);
			return;
		}
		picks->n = before;
	}
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

static void
subtract(const StockPicks *picks)
{
	int64 *products = palloc(sizeof(int64) * picks->n);
	int32 *slots = palloc(sizeof(int32) * picks->n);
	int64 *quantities = palloc(sizeof(int64) * picks->n);
	uint64 updated;

	for (int i = 0; i < picks->n; i++)
	{
		products[i] = picks->picks[i].product_id;
		slots[i] = picks->picks[i].slot;
		quantities[i] = picks->picks[i].quantity;
	}
	updated = shop_query(&take_picks, SHOP_VALUES(shop_int8_array(products, picks->n), shop_int4_array(slots, picks->n),
										  shop_int8_array(quantities, picks->n), shop_int4(SHOP_DEFAULT_LOCATION)));
	if (updated != (uint64) picks->n)
		elog(ERROR, "took units from " UINT64_FORMAT " of %d locked slots", updated, picks->n);
}

/*
 * Takes the units of all demands, which are sorted by product and distinct,
 * or refuses with insufficient_stock.
 */
void
shop_stock_take(const ShopDemand *demands, int n)
{
	StockPicks picks = {.picks = palloc(sizeof(StockPick) * (n + 4)), .allocated = n + 4};

	for (int done = 0; done < n; done++)
	{
		int first = count_first(demands + done, n - done);

		if (first > 0)
			done += take_first(demands + done, first, &picks);
		if (done < n && !take_free(&demands[done]))
			take_waiting(&demands[done], &picks);
	}
	if (picks.n > 0)
		subtract(&picks);
}

/* Opens the stock of a new product. */
void
shop_stock_open(int64 product_id, int64 quantity, TimestampTz now)
{
	shop_query(&insert_slot,
		SHOP_VALUES(shop_int8(product_id), shop_int4(SHOP_DEFAULT_LOCATION), shop_int4(0), shop_int8(quantity)));
	shop_query(
		&insert_movement, SHOP_VALUES(shop_int8(product_id), shop_int4(SHOP_DEFAULT_LOCATION), shop_int8(quantity),
							  shop_int8(quantity), shop_text("initial"), shop_null(), shop_time(now)));
}

/* Removes slots that a rush has left empty; returns how many. */
int64
shop_stock_merge(int limit)
{
	return (int64) shop_query(&delete_empty_slots, SHOP_VALUES(shop_int4(limit)));
}

static bool
find_replay(const char *key, int64 product_id, int32 quantity, int64 *result)
{
	if (key == NULL || shop_query(&find_restock, SHOP_VALUES(shop_text(key))) == 0)
		return false;
	shop_same_int64(key, "product_id", shop_fetch_int8(0, 1), product_id);
	shop_same_int64(key, "quantity", shop_fetch_int8(0, 2), quantity);
	*result = shop_fetch_int8(0, 3);
	return true;
}

static int64
restock(int64 product_id, int32 quantity, const char *key)
{
	int64 result;
	int64 movement_id;

	if (find_replay(key, product_id, quantity, &result))
		return result;
	if (shop_query(&find_product, SHOP_VALUES(shop_int8(product_id))) == 0)
		shop_refuse(SHOP_PRODUCT_NOT_FOUND, "{\"product_id\": " INT64_FORMAT "}", product_id);

	/* The movement comes first: its key is where a second call waits. */
	if (shop_query(
			&insert_movement, SHOP_VALUES(shop_int8(product_id), shop_int4(SHOP_DEFAULT_LOCATION), shop_int8(quantity),
								  shop_int8(0), shop_text("restock"), shop_text(key), shop_time(shop_now()))) == 0)
	{
		if (!find_replay(key, product_id, quantity, &result))
			elog(ERROR, "restock of idempotency key is not visible");
		return result;
	}
	movement_id = shop_fetch_int8(0, 1);

	if (quantity > 0)
		shop_query(
			&add_units, SHOP_VALUES(shop_int8(product_id), shop_int4(SHOP_DEFAULT_LOCATION), shop_int8(quantity)));
	else
		shop_stock_take(&(ShopDemand){product_id, -(int64) quantity, -1}, 1);

	result = available(product_id);
	if (result > SHOP_MAX_AMOUNT)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("stock is out of range"),
						   errdetail("{\"argument\": \"quantity\", \"maximum\": " INT64_FORMAT "}", SHOP_MAX_AMOUNT),
						   errhint("Add fewer units.")));
	shop_query(&complete_movement, SHOP_VALUES(shop_int8(movement_id), shop_int8(result)));
	return result;
}

Datum
shop_restock(PG_FUNCTION_ARGS)
{
	int64 product_id = shop_arg_int64(fcinfo, 0, "product_id");
	int32 quantity = shop_arg_int32(fcinfo, 1, "quantity");
	char *key = shop_arg_key(fcinfo, 2);
	int64 result;

	if (quantity == 0)
		shop_reject("quantity", "must not be 0");
	shop_write_verb("restock()");

	SPI_connect();
	result = restock(product_id, quantity, key);
	SPI_finish();
	PG_RETURN_INT64(result);
}
