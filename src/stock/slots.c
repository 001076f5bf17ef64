/*
 * slots.c
 *		Taking units that are spread over rows.
 *
 * The units of all slots of an owner (a product, a coupon campaign) are what
 * it has.  There is slot 0 and, once callers had to wait for each other, more;
 * a backend's own slot is its backend number modulo shop.max_stock_slots, and
 * its nearest slot is its own or the next lower one there is, in the end
 * slot 0.
 *
 * Lock order: slots from 0 upwards.  Whoever waits for a slot holds, of its
 * owner, only lower ones.  A free slot is taken out of order (SKIP LOCKED), one
 * at a time, in a subtransaction: if it turns out too short once it is locked,
 * the lock is given back before another slot is tried, or waited for.  That is
 * needed even between tries, for SKIP LOCKED waits now and then: when a row
 * was updated by a transaction that has just ended, and is locked by the next
 * one (heap_lock_updated_tuple() knows no SKIP LOCKED).
 *
 * Most takes need none of this: one update of the own slot does (take_nearest).
 *
 * Invariant: no slot is below 0 (its domain, and a condition in each update).
 */
#include "stock/slots.h"

#include "error.h"
#include "subtransaction.h"

/* So many times what is asked for is plenty. */
#define PLENTY 8

/* An attempt to take units without waiting. */
typedef struct FreeTake
{
	ShopSlots *slots;
	int64 id;
	int32 slot;
	int64 quantity;
	bool done;
} FreeTake;

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

static bool
take_within(void *arg)
{
	FreeTake *take = arg;

	take->done = shop_query(&take->slots->take_free,
					 SHOP_VALUES(shop_int8(take->id), shop_int4(take->slot), shop_int8(take->quantity))) > 0;
	return take->done;
}

/* Takes the units from this slot; false, and no lock, if it is not free or has too few. */
static bool
take_slot(ShopSlots *slots, int64 id, int32 slot, int64 quantity)
{
	FreeTake take = {slots, id, slot, quantity, false};
	ErrorData *error = shop_subtransaction(take_within, &take);

	if (error)
		ReThrowError(error);
	return take.done;
}

/* Takes the units from one free slot; false, and no lock, if there is none with enough. */
static bool
take_free(ShopSlots *slots, int64 id, int64 quantity, int32 nearest)
{
	int32 *found;
	int n;

	if (nearest >= 0 && take_slot(slots, id, nearest, quantity))
		return true;
	n = (int) shop_query(
		&slots->find_free, SHOP_VALUES(shop_int8(id), shop_int4(shop_slots_own()), shop_int8(quantity)));
	found = palloc(sizeof(int32) * Max(n, 1));
	for (int i = 0; i < n; i++)
		found[i] = shop_fetch_int4(i, 1);
	for (int i = 0; i < n; i++)
		if (found[i] != nearest && take_slot(slots, id, found[i], quantity))
			return true;
	return false;
}

/*
 * Takes the units from the slot that was nearest by one update, where nobody
 * was at it.  It waits if somebody has come in between.  If it then finds too
 * few units, it may have locked the slot, and only the lowest one may be held
 * while others are waited for.  So it is done with that one, or with our own
 * when that has plenty: others come to it only when theirs are empty.
 */
static bool
take_nearest(ShopSlots *slots, int64 id, int64 quantity, const ShopNearest *nearest, bool *out_of_order)
{
	bool plenty = nearest->slot == shop_slots_own() && nearest->units / PLENTY >= quantity;

	if (nearest->busy || (nearest->slot != 0 && !plenty))
		return false;
	if (shop_query(&slots->take, SHOP_VALUES(shop_int8(id), shop_int4(nearest->slot), shop_int8(quantity))) > 0)
		return true;
	*out_of_order = nearest->slot != 0;
	return false;
}

/*
 * Takes the units from one slot, if that can be had without much waiting;
 * false if not.  Whoever may hold a slot out of order must not wait for others.
 */
bool
shop_slots_take(ShopSlots *slots, int64 id, int64 quantity, const ShopNearest *nearest)
{
	bool out_of_order = false;

	if (nearest->slot >= 0 && take_nearest(slots, id, quantity, nearest, &out_of_order))
		return true;
	if (take_free(slots, id, quantity, nearest->slot > 0 ? nearest->slot : -1))
		return true;
	if (out_of_order)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						   errmsg("could not serialize access due to concurrent update"),
						   errdetail("Others have taken the units that were there a moment ago."),
						   errhint("Repeat the call.")));
	return false;
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

/*
 * Who had to wait for a slot takes half of what is left in it home to its own
 * slot, and need not wait there next time.  Runs while the slot is locked and
 * before anything further on in the order of locks is, so that a wait for a
 * slot being inserted is one for a transaction that will not wait for us.
 */
static void
take_half_home(ShopSlots *slots, int64 id, Picks *picks)
{
	int32 own = shop_slots_own();
	int64 half = picks->left / 2;
	ShopValue values[] = {shop_int8(id), shop_int4(own), shop_int8(half)};

	if (half == 0 || own == picks->numbers[0])
		return;
	if (shop_query(&slots->insert, values) > 0 || shop_query(&slots->fill_free, values) > 0)
		picks->quantities[0] += half;
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
		take_half_home(slots, id, &picks);
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
