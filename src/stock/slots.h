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

/* The statements over one table of slots; $1 is the owner of the units. */
typedef struct ShopSlots
{
	ShopQuery take;
	ShopQuery find_free;
	ShopQuery take_free;
	ShopQuery lock_all;
	ShopQuery insert;
	ShopQuery fill_free;
	ShopQuery subtract;
	ShopQuery merge;
} ShopSlots;

/* Slots that are tried before one waits. */
#define SHOP_SLOTS_TRIES "8"

/*
 * table: its name; id: the column of the owner; key: the condition that finds
 * the owner's slots by $1; units: the column that is counted in.
 */
#define SHOP_SLOTS(table, id, key, units) \
	{ \
		.take = SHOP_QUERY("UPDATE " table " SET " units " = " units " - $3" \
						   " WHERE " key " AND slot = $2 AND " units " >= $3", \
			INT8OID, INT4OID, INT8OID), \
		/* Own slot first, then the next lower ones, then the next higher ones. */ \
		.find_free = SHOP_QUERY("SELECT slot FROM " table " WHERE " key " AND " units " >= $3" \
								" ORDER BY slot > $2, abs(slot - $2) LIMIT " SHOP_SLOTS_TRIES, \
			INT8OID, INT4OID, \
			INT8OID), /* Locked and updated by one statement of one subtransaction, or the row would get a MultiXact. */ \
			.take_free = SHOP_QUERY("WITH free AS MATERIALIZED" \
									"  (SELECT slot FROM " table " WHERE " key " AND slot = $2 AND " units " >= $3" \
									"      FOR NO KEY UPDATE SKIP LOCKED)" \
									" UPDATE " table " s SET " units " = s." units " - $3 FROM free" \
									"  WHERE " key " AND s.slot = free.slot AND s." units " >= $3", \
				INT8OID, INT4OID, INT8OID), \
		.lock_all = SHOP_QUERY( \
			"SELECT slot::bigint, " units " FROM " table " WHERE " key " ORDER BY slot FOR NO KEY UPDATE", INT8OID), \
		.insert = SHOP_QUERY("INSERT INTO " table " (" id ", slot, " units ") VALUES ($1, $2, $3)" \
							 " ON CONFLICT DO NOTHING", \
			INT8OID, INT4OID, INT8OID), \
		.fill_free = SHOP_QUERY("WITH own AS MATERIALIZED" \
								"  (SELECT slot FROM " table " WHERE " key \
								" AND slot = $2 FOR NO KEY UPDATE SKIP LOCKED)" \
								" UPDATE " table " s SET " units " = s." units " + $3 FROM own" \
								"  WHERE " key " AND s.slot = own.slot", \
			INT8OID, INT4OID, INT8OID), \
		.subtract = SHOP_QUERY("UPDATE " table " s SET " units " = s." units " - t.quantity" \
							   "  FROM unnest($2::integer[], $3::bigint[]) AS t(number, quantity)" \
							   " WHERE " key " AND s.slot = t.number AND s." units " >= t.quantity", \
			INT8OID, INT4ARRAYOID, INT8ARRAYOID), \
		.merge = SHOP_QUERY("WITH empty AS MATERIALIZED" \
							"  (SELECT " id ", slot FROM " table " WHERE slot > 0 AND " units " = 0" \
							"    ORDER BY " id ", slot" \
							"    LIMIT $1 FOR UPDATE SKIP LOCKED)" \
							" DELETE FROM " table " s USING empty e" \
							"  WHERE s." id " = e." id " AND s.slot = e.slot AND s." units " = 0", \
			INT4OID), \
	}

/* The nearest slot that has enough, as it was when it was looked at. */
typedef struct ShopNearest
{
	int32 slot; /* -1: there is none */
	int64 units;
	bool busy; /* was somebody else at it? */
} ShopNearest;

extern int32 shop_slots_own(void);
extern bool shop_slots_take(ShopSlots *slots, int64 id, int64 quantity, const ShopNearest *nearest);
extern void shop_slots_open(ShopSlots *slots, int64 id, int64 units, int spread);
extern int64 shop_slots_take_waiting(ShopSlots *slots, int64 id, int64 quantity);
extern int64 shop_slots_merge(ShopSlots *slots, int limit);

#endif /* SHOP_SLOTS_H */
