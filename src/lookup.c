/*
 * lookup.c
 *		Rows by an index, without a plan.
 *
 * The rows that every order reads (prices, units on hand) are found by the
 * index itself: an executor that is built and taken down for three of them
 * costs more than reading them (`SUITES=cost make bench`).  What is seen is
 * what a SELECT would see in the active snapshot, and a SERIALIZABLE
 * transaction's reads are noted alike, because that is done below the
 * executor.
 *
 * Tables, keys and columns are known by name, and looked up when a table has
 * changed: an extension that was dropped and created again, or upgraded, has
 * others.
 *
 * Locks: AccessShareLock on the table and its index, kept to the end of the
 * transaction like a statement's.
 */
#include "lookup.h"

#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "version.h"

static AttrNumber
find_column(Relation table, const char *name)
{
	TupleDesc columns = RelationGetDescr(table);

	for (int i = 0; i < columns->natts; i++)
		if (!TupleDescAttr(columns, i)->attisdropped && strcmp(NameStr(TupleDescAttr(columns, i)->attname), name) == 0)
			return i + 1;
	elog(ERROR, "table %s has no column %s", RelationGetRelationName(table), name);
}

Oid
shop_table_oid(const char *name)
{
	Oid oid = get_relname_relid(name, get_namespace_oid("shop", false));

	if (!OidIsValid(oid))
		elog(ERROR, "relation shop.%s does not exist", name);
	return oid;
}

/* Counts up whenever a table has changed. */
static uint64 changes = 1;

static void
note_change(Datum arg, Oid relation)
{
	(void) arg;
	(void) relation;
	changes++;
}

static void
watch_changes(void)
{
	static bool watching = false;

	if (!watching)
		CacheRegisterRelcacheCallback(note_change, (Datum) 0);
	watching = true;
}

/* The index must begin with the columns that rows are looked up by. */
static void
check_index(Relation relation, const ShopTable *table)
{
	Relation index = index_open(table->index_oid, AccessShareLock);

	for (int i = 0; i < SHOP_TABLE_MAX_KEYS && table->keys[i]; i++)
		if (index->rd_index->indkey.values[i] != find_column(relation, table->keys[i]))
			elog(ERROR, "the index of table %s does not begin with %s", table->name, table->keys[i]);
	index_close(index, NoLock);
}

static void
find_parts(Relation relation, ShopTable *table)
{
	uint64 now = changes;
	int n = 0;

	if (table->keys[0])
	{
		table->index_oid = table->index ? shop_table_oid(table->index) : SHOP_PRIMARY_KEY_INDEX(relation);
		check_index(relation, table);
	}
	for (; n < SHOP_TABLE_MAX_COLUMNS && table->columns[n]; n++)
		table->numbers[n] = find_column(relation, table->columns[n]);
	table->n_columns = n;
	table->oid = RelationGetRelid(relation);
	table->found_at = now;
}

/* Opens a table; where its columns and its index are is known then. */
Relation
shop_table_open(ShopTable *table, LOCKMODE lock)
{
	Relation relation;

	watch_changes();
	shop_check_version(table->found_at != changes);
	relation = table_open(table->found_at == changes ? table->oid : shop_table_oid(table->name), lock);
	/* Taking the lock may have brought news. */
	if (table->found_at != changes)
		find_parts(relation, table);
	return relation;
}

/* Makes ready to look rows up by the first columns of the key, in the active snapshot. */
void
shop_lookup_open(ShopLookup *lookup, ShopTable *table, int n_keys, ScanDirection direction)
{
	lookup->table = shop_table_open(table, AccessShareLock);
	lookup->index = index_open(table->index_oid, AccessShareLock);
	lookup->direction = direction;
	lookup->columns = table->numbers;
	lookup->row = table_slot_create(lookup->table, NULL);
	lookup->scan = SHOP_INDEX_BEGINSCAN(lookup->table, lookup->index, GetActiveSnapshot(), n_keys);
}

/* Begins with the rows of a key; there are as many parts of it as were announced. */
void
shop_lookup_start(ShopLookup *lookup, const ShopKey *keys, int n)
{
	ScanKeyData scan_keys[SHOP_TABLE_MAX_KEYS];

	for (int i = 0; i < n; i++)
		ScanKeyEntryInitialize(&scan_keys[i], 0, i + 1, keys[i].strategy, InvalidOid, lookup->index->rd_indcollation[i],
			keys[i].function, keys[i].value);
	index_rescan(lookup->scan, scan_keys, n, NULL, 0);
}

bool
shop_lookup_next(ShopLookup *lookup)
{
	return index_getnext_slot(lookup->scan, lookup->direction, lookup->row);
}

/*
 * Goes back to a row that an earlier look of this transaction saw; false if
 * the active snapshot no longer shows that version of it.  The place cannot
 * have become another row's: what a snapshot of ours saw is not cleared away
 * while the calling statement has its own, nor is the table rewritten while
 * we hold our lock on it.
 */
bool
shop_lookup_at(ShopLookup *lookup, const ItemPointerData *place)
{
	ItemPointerData tid = *place;

	return ItemPointerIsValid(place) &&
		   table_tuple_fetch_row_version(lookup->table, &tid, GetActiveSnapshot(), lookup->row);
}

void
shop_lookup_close(ShopLookup *lookup)
{
	index_endscan(lookup->scan);
	ExecDropSingleTupleTableSlot(lookup->row);
	index_close(lookup->index, NoLock);
	table_close(lookup->table, NoLock);
}

Datum
shop_lookup_datum(ShopLookup *lookup, int column)
{
	bool isnull;
	Datum value = slot_getattr(lookup->row, lookup->columns[column], &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in table %s", RelationGetRelationName(lookup->table));
	return value;
}

bool
shop_lookup_isnull(ShopLookup *lookup, int column)
{
	return slot_attisnull(lookup->row, lookup->columns[column]);
}

int64
shop_lookup_int8_or(ShopLookup *lookup, int column, int64 null)
{
	return shop_lookup_isnull(lookup, column) ? null : shop_lookup_int8(lookup, column);
}

int64
shop_lookup_int8(ShopLookup *lookup, int column)
{
	return DatumGetInt64(shop_lookup_datum(lookup, column));
}

int32
shop_lookup_int4(ShopLookup *lookup, int column)
{
	return DatumGetInt32(shop_lookup_datum(lookup, column));
}

char *
shop_lookup_text(ShopLookup *lookup, int column)
{
	return TextDatumGetCString(shop_lookup_datum(lookup, column));
}
