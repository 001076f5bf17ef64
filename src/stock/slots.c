/*
 * slots.c
 *		Taking units that are spread over rows.
 *
 * The units of all slots of an owner (a product, a coupon campaign) are what
 * it has.  There is slot 0 and, once callers had to wait for each other, more;
 * a backend's own slot is its backend number modulo shop.max_stock_slots.
 *
 * Units are taken from one free slot if one has enough: the one where a look
 * has seen them, then the own one, the next lower ones, the next higher ones.  That neither waits nor, if
 * somebody is faster, leaves a lock behind (update.c).  Only if there is none
 * are slots locked and waited for.
 *
 * Lock order: slots that are waited for, from 0 upwards.  Whoever waits for a
 * slot holds, of its owner, only lower ones.
 *
 * Invariant: no slot is below 0 (its domain, and a condition in each change).
 */
#include "stock/slots.h"

/* An eighth: of what many take one after the other, half would leave the tenth a thousandth. */
#define PART_TAKEN_HOME 8

/* Slots locked from 0 upwards, and what is to be taken from each. */
typedef struct Picks
{
	int64 missing; /* units still missing */
	int64 left;	   /* units left in the last slot */
	int n;
	int allocated;
	int32 *numbers;
	int64 *quantities;
} Picks;

/* This backend's own slot of anything. */
int32
shop_slots_own(void)
{
	return SHOP_BACKEND_NUMBER() % shop_max_stock_slots;
}

/* Opens the slots of a new owner, with the units spread evenly over so many. */
void
shop_slots_open(ShopSlots *slots, int64 id, int64 units, int spread)
{
	for (int slot = 0; slot < spread; slot++)
		shop_query(&slots->insert,
			SHOP_VALUES(shop_int8(id), shop_int4(slot), shop_int8(units / spread + (slot < units % spread))));
}

/*
 * Looking
 */

/* The parts of the key: owner, location where there is one, slot. */
static int
key_parts(ShopSlots *slots)
{
	return slots->location ? 3 : 2;
}

/* Begins with our own slot and goes down, or with the one above it and goes up. */
static void
start(ShopSlots *slots, ShopLookup *lookup, int64 id, ScanDirection direction)
{
	bool down = direction == BackwardScanDirection;
	ShopKey side = {down ? BTLessEqualStrategyNumber : BTGreaterStrategyNumber, down ? F_INT4LE : F_INT4GT,
		Int32GetDatum(shop_slots_own())};

	lookup->direction = direction;
	if (slots->location)
		shop_lookup_start(lookup, SHOP_KEYS(SHOP_KEY_INT8(id), SHOP_KEY_INT4(slots->location), side), 3);
	else
		shop_lookup_start(lookup, SHOP_KEYS(SHOP_KEY_INT8(id), side), 2);
}

static bool
has(ShopLookup *lookup, int64 quantity)
{
	return shop_lookup_int8(lookup, SHOP_SLOT_UNITS) >= quantity;
}

/* The next slot with enough. */
static bool
next_with(ShopLookup *lookup, int64 quantity)
{
	while (shop_lookup_next(lookup))
		if (has(lookup, quantity))
			return true;
	return false;
}

/* The place of an earlier look is forgotten where there is none now. */
static bool
see(ShopLookup *lookup, int64 quantity, ItemPointer seen)
{
	bool found = next_with(lookup, quantity);

	ItemPointerSetInvalid(seen);
	if (found)
		*seen = lookup->row->tts_tid;
	return found;
}

/* Makes ready to look at slots, in the active snapshot and without a lock. */
void
shop_slots_look(ShopSlots *slots, ShopLookup *lookup)
{
	shop_lookup_open(lookup, &slots->rows, key_parts(slots), BackwardScanDirection);
}

/* Has our own slot, or one below it, enough?  Says where. */
bool
shop_slots_near(ShopSlots *slots, ShopLookup *lookup, int64 id, int64 quantity, ItemPointer seen)
{
	start(slots, lookup, id, BackwardScanDirection);
	return see(lookup, quantity, seen);
}

/* Has any slot enough?  Says where. */
bool
shop_slots_any(ShopSlots *slots, ShopLookup *lookup, int64 id, int64 quantity, ItemPointer seen)
{
	if (shop_slots_near(slots, lookup, id, quantity, seen))
		return true;
	start(slots, lookup, id, ForwardScanDirection);
	return see(lookup, quantity, seen);
}

/*
 * Taking
 */

/* Makes ready to take units from free slots, as a snapshot taken now shows them. */
void
shop_slots_begin(ShopSlots *slots, ShopUpdate *update)
{
	shop_update_open(update, &slots->rows, key_parts(slots));
}

void
shop_slots_end(ShopUpdate *update)
{
	shop_update_close(update);
}

/* Takes from the row last found. */
static bool
take_found(ShopUpdate *update, int64 quantity)
{
	return shop_update_try(
		update, SHOP_SLOT_UNITS, Int64GetDatum(shop_lookup_int8(&update->lookup, SHOP_SLOT_UNITS) - quantity));
}

static bool
take_on_side(ShopSlots *slots, ShopUpdate *update, int64 id, int64 quantity, ScanDirection direction)
{
	ShopLookup *lookup = &update->lookup;

	start(slots, lookup, id, direction);
	while (next_with(lookup, quantity))
		if (take_found(update, quantity))
			return true;
	return false;
}

static bool
take_at(ShopUpdate *update, int64 quantity, const ItemPointerData *seen)
{
	return shop_lookup_at(&update->lookup, seen) && has(&update->lookup, quantity) && take_found(update, quantity);
}

/*
 * Takes the units from one slot without waiting: from the one where a look has
 * seen enough, if there was a look, else from the first that is found; false,
 * and no lock, if none that is free has enough.
 */
bool
shop_slots_take(ShopSlots *slots, ShopUpdate *update, int64 id, int64 quantity, const ItemPointerData *seen)
{
	return take_at(update, quantity, seen) || take_on_side(slots, update, id, quantity, BackwardScanDirection) ||
		   take_on_side(slots, update, id, quantity, ForwardScanDirection);
}

static bool
pick_slot(TupleTableSlot *row, void *arg)
{
	Picks *picks = arg;
	int64 units = shop_row_int8(row, 2);
	int64 quantity = Min(units, picks->missing);

	if (quantity > 0)
	{
		if (picks->n == picks->allocated)
		{
			picks->allocated *= 2;
			picks->numbers = repalloc(picks->numbers, sizeof(int32) * picks->allocated);
			picks->quantities = repalloc(picks->quantities, sizeof(int64) * picks->allocated);
		}
		picks->numbers[picks->n] = (int32) shop_row_int8(row, 1);
		picks->quantities[picks->n++] = quantity;
		picks->missing -= quantity;
		picks->left = units - quantity;
	}
	return picks->missing > 0;
}

/* Adds units to our own slot, if it is there and nobody is at it. */
static bool
fill_own(ShopSlots *slots, int64 id, int64 units)
{
	ShopUpdate update;
	ShopLookup *lookup = &update.lookup;
	bool filled;

	shop_slots_begin(slots, &update);
	start(slots, lookup, id, BackwardScanDirection);
	filled = shop_lookup_next(lookup) && shop_lookup_int4(lookup, SHOP_SLOT) == shop_slots_own() &&
			 shop_update_try(
				 &update, SHOP_SLOT_UNITS, Int64GetDatum(shop_lookup_int8(lookup, SHOP_SLOT_UNITS) + units));
	shop_slots_end(&update);
	return filled;
}

/*
 * Who had to wait for a slot takes a part of what is left in it home to its own
 * slot, and need not wait there next time.  Runs while the slot is locked and
 * before anything further on in the order of locks is, so that a wait for a
 * slot being inserted is one for a transaction that will not wait for us.
 * Where units are taken by statements only, free slots would be of no use.
 */
static void
take_part_home(ShopSlots *slots, int64 id, Picks *picks)
{
	int32 own = shop_slots_own();
	int64 part = picks->left / PART_TAKEN_HOME;

	if (part == 0 || own == picks->numbers[0] || !shop_update_is_plain(&slots->rows))
		return;
	if (shop_query(&slots->insert, SHOP_VALUES(shop_int8(id), shop_int4(own), shop_int8(part))) > 0 ||
		fill_own(slots, id, part))
		picks->quantities[0] += part;
}

/*
 * Takes the units slot by slot, waiting for those who hold them; returns 0.
 * If the slots that this statement's snapshot shows have too few between
 * them, returns how many are missing: nothing is taken then, and all slots
 * are locked.
 */
int64
shop_slots_take_waiting(ShopSlots *slots, int64 id, int64 quantity)
{
	Picks picks = {.missing = quantity, .allocated = 8};
	uint64 updated;

	picks.numbers = palloc(sizeof(int32) * picks.allocated);
	picks.quantities = palloc(sizeof(int64) * picks.allocated);
	shop_query_each(&slots->lock_all, SHOP_VALUES(shop_int8(id)), pick_slot, &picks);
	if (picks.missing > 0)
		return picks.missing;

	if (picks.n == 1)
		take_part_home(slots, id, &picks);
	updated = shop_query(&slots->subtract, SHOP_VALUES(shop_int8(id), shop_int4_array(picks.numbers, picks.n),
											   shop_int8_array(picks.quantities, picks.n)));
	if (updated != (uint64) picks.n)
		elog(ERROR, "took units from " UINT64_FORMAT " of %d locked slots", updated, picks.n);
	return 0;
}

/* Removes slots that a rush has left empty; returns how many. */
int64
shop_slots_merge(ShopSlots *slots, int limit)
{
	return (int64) shop_query(&slots->merge, SHOP_VALUES(shop_int4(limit)));
}
