/*
 * slots.h
 *		Units spread over rows, so that a hot counter is not a hot row.
 *
 * Stock is kept so, and what is left of a coupon campaign.
 */
#ifndef SHOP_SLOTS_H
#define SHOP_SLOTS_H

#include "shop.h"

#include "catalog/pg_type.h"
#include "query.h"
#include "update.h"

/* One table of slots: how its rows are found, and the statements over it; $1 is the owner of the units. */
typedef struct ShopSlots
{
	ShopTable rows;
	int32 location; /* of a key that has one between owner and slot, else 0 */
	ShopQuery lock_all;
	ShopQuery insert;
	ShopQuery subtract;
	ShopQuery merge;
} ShopSlots;

/* The columns of rows. */
enum
{
	SHOP_SLOT,
	SHOP_SLOT_UNITS
};

/*
 * table: its name; id: the column of the owner; key: the condition that finds
 * the owner's slots by $1; units: the column that is counted in; at: the
 * location, or 0; after them, the columns of the key.
 */
#define SHOP_SLOTS(table, id, key, units, at, ...) \
	{ \
		.rows = {.name = table, .columns = {"slot", units}, .keys = {__VA_ARGS__}}, .location = (at), \
		.lock_all = SHOP_QUERY("SELECT slot::bigint, " units " FROM shop." table " WHERE " key \
							   " ORDER BY slot FOR NO KEY UPDATE", \
			INT8OID), \
		.insert = SHOP_QUERY("INSERT INTO shop." table " (" id ", slot, " units ") VALUES ($1, $2, $3)" \
							 " ON CONFLICT DO NOTHING", \
			INT8OID, INT4OID, INT8OID), \
		.subtract = SHOP_QUERY("UPDATE shop." table " s SET " units " = s." units " - t.quantity" \
							   "  FROM unnest($2::integer[], $3::bigint[]) AS t(number, quantity)" \
							   " WHERE " key " AND s.slot = t.number AND s." units " >= t.quantity", \
			INT8OID, INT4ARRAYOID, INT8ARRAYOID), \
		.merge = SHOP_QUERY("WITH empty AS MATERIALIZED" \
							"  (SELECT " id ", slot FROM shop." table " WHERE slot > 0 AND " units " = 0" \
							"    ORDER BY " id ", slot" \
							"    LIMIT $1 FOR UPDATE SKIP LOCKED)" \
							" DELETE FROM shop." table " s USING empty e" \
							"  WHERE s." id " = e." id " AND s.slot = e.slot AND s." units " = 0", \
			INT4OID), \
	}

extern int32 shop_slots_own(void);
extern void shop_slots_open(ShopSlots *slots, int64 id, int64 units, int spread);

extern void shop_slots_look(ShopSlots *slots, ShopLookup *lookup);
extern bool shop_slots_near(ShopSlots *slots, ShopLookup *lookup, int64 id, int64 quantity, ItemPointer seen);
extern bool shop_slots_any(ShopSlots *slots, ShopLookup *lookup, int64 id, int64 quantity, ItemPointer seen);

extern void shop_slots_begin(ShopSlots *slots, ShopUpdate *update);
extern bool shop_slots_take(
	ShopSlots *slots, ShopUpdate *update, int64 id, int64 quantity, const ItemPointerData *seen);
extern void shop_slots_end(ShopUpdate *update);
extern int64 shop_slots_take_waiting(ShopSlots *slots, int64 id, int64 quantity);

extern int64 shop_slots_merge(ShopSlots *slots, int limit);

#endif /* SHOP_SLOTS_H */
