/*
 * update.c
 *		Rows locked and changed where nobody else is, without a plan.
 *
 * An UPDATE does three things: it finds the row, waits for whoever is at it,
 * and puts a new version in its place.  Where nobody is at the row there is
 * nothing to wait for, and the table's access method does the rest by itself;
 * an executor that is built and taken down for one row costs three times as
 * much (`SUITES=cost make bench`).
 *
 * The row is changed if it still is the version that the snapshot shows and
 * nobody holds it: a conditional update, decided under the page's lock.
 * Otherwise nothing is changed, locked or waited for, and the caller goes on
 * with a statement: SELECT … FOR NO KEY UPDATE, then UPDATE, which wait, see
 * the newest version, and raise 40001 under REPEATABLE READ.
 *
 * What a table's owner may have added and a statement would see to (triggers,
 * rules, generated columns, forced row security) makes the table one that is
 * changed by statements only.  Constraints and indexes are seen to here.
 *
 * Locks: RowExclusiveLock on the table, to the end of the transaction; the row.
 */
#include "update.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"

static bool
has_update_triggers(const TriggerDesc *triggers)
{
	return triggers &&
		   (triggers->trig_update_before_row || triggers->trig_update_after_row || triggers->trig_update_instead_row ||
			   triggers->trig_update_before_statement || triggers->trig_update_after_statement);
}

static bool
is_plain(Relation table)
{
	TupleConstr *constraints = RelationGetDescr(table)->constr;

	return !has_update_triggers(table->trigdesc) && table->rd_rules == NULL && !table->rd_rel->relforcerowsecurity &&
		   !(constraints && constraints->has_generated_stored);
}

/* Can rows of this table be changed here? */
bool
shop_update_is_plain(ShopTable *table)
{
	Relation relation = shop_table_open(table, AccessShareLock);
	bool plain = is_plain(relation);

	table_close(relation, NoLock);
	return plain;
}

/*
 * Makes ready to look rows up, with update->lookup, in a snapshot taken now,
 * and to change what is found.
 */
void
shop_update_open(ShopUpdate *update, ShopTable *table, int n_keys)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	shop_lookup_open(&update->lookup, table, n_keys, ForwardScanDirection);
	LockRelationOid(RelationGetRelid(update->lookup.table), RowExclusiveLock);
	CheckCmdReplicaIdentity(update->lookup.table, CMD_UPDATE);
	update->plain = is_plain(update->lookup.table);
	update->changed = MakeSingleTupleTableSlot(RelationGetDescr(update->lookup.table), &TTSOpsVirtual);
	update->estate = NULL;
	update->result = NULL;
}

/* Locks the row last found; false if somebody else is at it or has changed it: then it is not locked. */
bool
shop_update_lock(ShopUpdate *update)
{
	ShopLookup *lookup = &update->lookup;
	ItemPointerData place = lookup->row->tts_tid;
	TM_FailureData failure;

	return table_tuple_lock(lookup->table, &place, GetActiveSnapshot(), lookup->row, GetCurrentCommandId(true),
			   LockTupleNoKeyExclusive, LockWaitSkip, 0, &failure) == TM_Ok;
}

/* What constraints and index entries need; most updates have neither. */
static void
need_executor(ShopUpdate *update)
{
	if (update->estate)
		return;
	update->estate = CreateExecutorState();
	update->result = makeNode(ResultRelInfo);
	InitResultRelInfo(update->result, update->lookup.table, 0, NULL, 0);
	ExecOpenIndices(update->result, false);
}

static void
check_constraints(ShopUpdate *update)
{
	need_executor(update);
	ExecConstraints(update->result, update->changed, update->estate);
	ResetPerTupleExprContext(update->estate);
}

static void
insert_index_entries(ShopUpdate *update, SHOP_UPDATED_INDEXES indexes)
{
	need_executor(update);
	SHOP_INSERT_INDEX_ENTRIES(update->result, update->changed, update->estate, indexes);
	ResetPerTupleExprContext(update->estate);
}

static void
form_changed(ShopUpdate *update, AttrNumber number, Datum value)
{
	TupleTableSlot *seen = update->lookup.row;
	TupleTableSlot *changed = update->changed;
	int n = changed->tts_tupleDescriptor->natts;

	slot_getallattrs(seen);
	ExecClearTuple(changed);
	memcpy(changed->tts_values, seen->tts_values, sizeof(Datum) * n);
	memcpy(changed->tts_isnull, seen->tts_isnull, sizeof(bool) * n);
	changed->tts_values[number - 1] = value;
	changed->tts_isnull[number - 1] = false;
	ExecStoreVirtualTuple(changed);
	changed->tts_tableOid = seen->tts_tableOid;
}

/*
 * Where the server checks its assertions, one in heap_update() is against an
 * update that does not wait, "because no caller uses that case"; the code after
 * it does what is asked for.  There a row is locked first, which costs a record
 * in the log.
 */
#ifdef USE_ASSERT_CHECKING
#define LOCKS_FIRST true
#else
#define LOCKS_FIRST false
#endif

/* With `wait`, a lock of our own on the row is no obstacle. */
static bool
replace(ShopUpdate *update, int column, Datum value, bool wait)
{
	ShopLookup *lookup = &update->lookup;
	Relation table = lookup->table;
	SHOP_UPDATED_INDEXES indexes;
	TM_FailureData failure;
	LockTupleMode mode;

	form_changed(update, lookup->columns[column], value);
	if (table->rd_rel->relchecks > 0)
		check_constraints(update);
	if (table_tuple_update(table, &lookup->row->tts_tid, update->changed, GetCurrentCommandId(true),
			GetActiveSnapshot(), InvalidSnapshot, wait, &failure, &mode, &indexes) != TM_Ok)
		return false;
	if (SHOP_ANY_INDEX_UPDATED(indexes))
		insert_index_entries(update, indexes);
	return true;
}

/*
 * Gives a column of the row last found, which this transaction has locked,
 * another value; false, and nothing has happened, if that is for a statement
 * to do.
 */
bool
shop_update_locked(ShopUpdate *update, int column, Datum value)
{
	return update->plain && replace(update, column, value, true);
}

/* The same for a row that is not locked; false also if somebody else is at it or has changed it. */
bool
shop_update_try(ShopUpdate *update, int column, Datum value)
{
	return update->plain && (!LOCKS_FIRST || shop_update_lock(update)) && replace(update, column, value, LOCKS_FIRST);
}

/* What was changed can be seen from now on. */
void
shop_update_close(ShopUpdate *update)
{
	if (update->estate)
	{
		ExecCloseIndices(update->result);
		ExecResetTupleTable(update->estate->es_tupleTable, false);
		FreeExecutorState(update->estate);
	}
	ExecDropSingleTupleTableSlot(update->changed);
	shop_lookup_close(&update->lookup);
	PopActiveSnapshot();
	CommandCounterIncrement();
}
