/*
 * lookup.h
 *		Tables of the shop by name, and rows by an index, without a plan.
 */
#ifndef SHOP_LOOKUP_H
#define SHOP_LOOKUP_H

#include "shop.h"

#include "access/genam.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#define SHOP_TABLE_MAX_COLUMNS 16
#define SHOP_TABLE_MAX_KEYS 4

/*
 * A table of the shop: the columns that are read or written, and those that
 * rows are found by.  Where they are is kept until any table has changed.
 */
typedef struct ShopTable
{
	const char *name;
	const char *columns[SHOP_TABLE_MAX_COLUMNS]; /* numbered from 0; ends with NULL */
	const char *keys[SHOP_TABLE_MAX_KEYS];		 /* the first ones of the index; ends with NULL */
	const char *index;							 /* NULL: that of the primary key */

	uint64 found_at; /* when the following were looked up; 0: never */
	Oid oid;
	Oid index_oid;
	int n_columns;
	AttrNumber numbers[SHOP_TABLE_MAX_COLUMNS];
} ShopTable;

/* What a column of the key is compared with. */
typedef struct ShopKey
{
	StrategyNumber strategy; /* BTEqualStrategyNumber, … */
	RegProcedure function;	 /* F_INT8EQ, … */
	Datum value;
} ShopKey;

#define SHOP_KEY_INT8(n) ((ShopKey){BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(n)})
#define SHOP_KEY_INT4(n) ((ShopKey){BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(n)})
#define SHOP_KEY_TEXT(t) ((ShopKey){BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(t)})
#define SHOP_KEYS(...) ((ShopKey[]){__VA_ARGS__})

typedef struct ShopLookup
{
	Relation table;
	Relation index;
	IndexScanDesc scan;
	ScanDirection direction;
	TupleTableSlot *row;
	const AttrNumber *columns;
} ShopLookup;

extern Oid shop_table_oid(const char *name);
extern Relation shop_table_open(ShopTable *table, LOCKMODE lock);

extern void shop_lookup_open(ShopLookup *lookup, ShopTable *table, int n_keys, ScanDirection direction);
extern void shop_lookup_start(ShopLookup *lookup, const ShopKey *keys, int n);
extern bool shop_lookup_next(ShopLookup *lookup);
extern bool shop_lookup_at(ShopLookup *lookup, const ItemPointerData *place);
extern void shop_lookup_close(ShopLookup *lookup);

extern bool shop_lookup_isnull(ShopLookup *lookup, int column);
extern Datum shop_lookup_datum(ShopLookup *lookup, int column);
extern int64 shop_lookup_int8(ShopLookup *lookup, int column);
extern int64 shop_lookup_int8_or(ShopLookup *lookup, int column, int64 null);
extern int32 shop_lookup_int4(ShopLookup *lookup, int column);
extern char *shop_lookup_text(ShopLookup *lookup, int column);

#endif /* SHOP_LOOKUP_H */
