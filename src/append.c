/*
 * append.c
 *		New rows of the tables that only grow, without a plan.
 *
 * Orders, their lines, ledger entries and events are inserted by the executor's
 * own parts for a single row, which logical replication uses as well:
 * constraints, indexes and triggers are seen to as for a statement.  Building
 * a plan's executor for each would take most of the time (`SUITES=cost make
 * bench`).
 *
 * Numbers and ids come from the caller, and columns that are not the shop's
 * get their defaults.  A duplicate key is an error, so whoever calls has made sure that
 * there is none.
 *
 * Locks: RowExclusiveLock on the table, kept to the end of the transaction.
 */
#include "append.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "rewrite/rewriteHandler.h"
#include "utils/snapmgr.h"

/*
 * Triggers are somebody else's, and are fired like by any INSERT, but for
 * those that want all rows of a statement in a table.
 */
static void
begin_triggers(ShopAppend *append)
{
	TriggerDesc *triggers = append->table->trigdesc;

	if (triggers == NULL)
		return;
	if (triggers->trig_insert_new_table)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						   errmsg("table shop.%s cannot have a trigger with a transition table",
							   RelationGetRelationName(append->table)),
						   errdetail("{\"table\": \"%s\"}", RelationGetRelationName(append->table)),
						   errhint("Use a trigger for each row, or an endpoint that gets the events.")));
	AfterTriggerBeginQuery();
	ExecBSInsertTriggers(append->estate, append->result);
}

static void
end_triggers(ShopAppend *append)
{
	if (append->table->trigdesc == NULL)
		return;
	ExecASInsertTriggers(append->estate, append->result, NULL);
	AfterTriggerEndQuery(append->estate);
	ExecCloseResultRelations(append->estate);
}

/* Columns that we do not know are the database's own; their defaults are kept for each row. */
static void
prepare_defaults(ShopAppend *append)
{
	TupleDesc columns = RelationGetDescr(append->table);

	append->defaults = NULL;
	for (int i = 0; i < columns->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(columns, i);
		bool known = false;
		Node *value;

		for (int j = 0; j < append->n_columns; j++)
			known |= append->columns[j] == i + 1;
		if (known || column->attgenerated || column->attisdropped)
			continue;
		/* The column's own, its type's, or an identity's next number. */
		value = build_column_default(append->table, i + 1);
		if (value == NULL)
			continue;
		if (append->defaults == NULL)
			append->defaults = palloc0(sizeof(ExprState *) * columns->natts);
		append->defaults[i] = ExecPrepareExpr((Expr *) value, append->estate);
	}
}

static void
set_defaults(ShopAppend *append)
{
	TupleTableSlot *row = append->row;

	for (int i = 0; append->defaults && i < row->tts_tupleDescriptor->natts; i++)
		if (append->defaults[i])
			row->tts_values[i] = ExecEvalExpr(
				append->defaults[i], GetPerTupleExprContext(append->estate), &row->tts_isnull[i]);
}

/* Makes ready to append rows, with values for the table's columns as named. */
void
shop_append_open(ShopAppend *append, ShopTable *table)
{
	append->table = shop_table_open(table, RowExclusiveLock);
	append->n_columns = table->n_columns;
	append->columns = table->numbers;
	append->estate = CreateExecutorState();
	append->estate->es_output_cid = GetCurrentCommandId(true);
	append->result = makeNode(ResultRelInfo);
	InitResultRelInfo(append->result, append->table, 0, NULL, 0);
	ExecOpenIndices(append->result, false);
	append->row = MakeSingleTupleTableSlot(RelationGetDescr(append->table), &TTSOpsVirtual);
	/* Triggers and index expressions want one. */
	PushActiveSnapshot(GetTransactionSnapshot());
	prepare_defaults(append);
	begin_triggers(append);
}

void
shop_append_row(ShopAppend *append, const ShopValue *values)
{
	TupleTableSlot *row = append->row;

	ExecClearTuple(row);
	memset(row->tts_isnull, true, sizeof(bool) * row->tts_tupleDescriptor->natts);
	set_defaults(append);
	for (int i = 0; i < append->n_columns; i++)
	{
		row->tts_values[append->columns[i] - 1] = values[i].datum;
		row->tts_isnull[append->columns[i] - 1] = values[i].isnull;
	}
	ExecStoreVirtualTuple(row);
	ExecSimpleRelationInsert(append->result, append->estate, row);
	ResetPerTupleExprContext(append->estate);
}

/* What was appended can be seen from now on. */
void
shop_append_close(ShopAppend *append)
{
	end_triggers(append);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(append->row);
	ExecCloseIndices(append->result);
	ExecResetTupleTable(append->estate->es_tupleTable, false);
	FreeExecutorState(append->estate);
	table_close(append->table, NoLock);
	CommandCounterIncrement();
}

/* Appends one row. */
void
shop_append(ShopTable *table, const ShopValue *values)
{
	ShopAppend append;

	shop_append_open(&append, table);
	shop_append_row(&append, values);
	shop_append_close(&append);
}

/* The next number of a sequence of the shop's. */
int64
shop_append_number(const char *sequence)
{
	return nextval_internal(shop_table_oid(sequence), false);
}
