/*
 * utility.c
 *		Takes the workers out of the way of statements that need a database to
 *		themselves.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, ALTER DATABASE ... RENAME and
 * SET TABLESPACE fail while anybody is connected to the database.  Before
 * they run, its workers are told to end and waited for; the launcher starts
 * none there until the statement is over, successful or not.
 *
 * Locks: ShopShared.lock.
 */
#include "worker/worker.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/syscache.h"

/* How long to wait for workers to end before the statement is tried anyway. */
#define STOP_TRIES 500
#define STOP_TRY_MS 10

static ProcessUtility_hook_type previous_utility_hook;

/* The database a statement needs for itself, or NULL. */
static const char *
database_needed(Node *statement)
{
	ListCell *cell;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) statement)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			foreach (cell, ((AlterDatabaseStmt *) statement)->options)
				if (strcmp(((DefElem *) lfirst(cell))->defname, "tablespace") == 0)
					return ((AlterDatabaseStmt *) statement)->dbname;
			return NULL;
		case T_CreatedbStmt:
			foreach (cell, ((CreatedbStmt *) statement)->options)
			{
				DefElem *option = lfirst(cell);

				if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
					return defGetString(option);
			}
			return "template1";
		default:
			return NULL;
	}
}

static bool
may_create_database(void)
{
	HeapTuple role = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool may = superuser();

	if (HeapTupleIsValid(role))
	{
		may |= ((Form_pg_authid) GETSTRUCT(role))->rolcreatedb;
		ReleaseSysCache(role);
	}
	return may;
}

/* A database that is a template may be copied by all who may create one. */
static bool
may_copy(Oid database)
{
	HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	bool is_template = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return is_template || SHOP_OWNS_DATABASE(database, GetUserId());
}

/*
 * May this role run this statement here?  Who may not must not be able to end
 * the workers by trying.
 */
static bool
may_run(Node *statement, Oid database, bool in_block)
{
	if (IsA(statement, CreatedbStmt))
		return !in_block && may_create_database() && may_copy(database);
	if (IsA(statement, RenameStmt))
		return SHOP_OWNS_DATABASE(database, GetUserId());
	return !in_block && SHOP_OWNS_DATABASE(database, GetUserId());
}

static bool
may_change_wanted(Node *statement)
{
	return IsA(statement, AlterDatabaseSetStmt) || IsA(statement, DropdbStmt) || IsA(statement, CreateExtensionStmt) ||
		   IsA(statement, AlterDatabaseStmt);
}

/* Tells the workers of a database to end; false once there are none. */
static bool
end_workers(Oid database_oid)
{
	ShopDatabase *database;
	bool running = false;

	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	database = shop_database_find(database_oid);
	if (database != NULL)
	{
		database->stopped_by = MyProcPid;
		for (int kind = 0; kind < SHOP_WORKER_KINDS; kind++)
		{
			ShopWorker *worker = &database->workers[kind];

			if (worker->pid != 0)
				kill(worker->pid, SIGTERM);
			running |= worker->pid != 0 || worker->starting;
		}
	}
	LWLockRelease(shop_shared->lock);
	return running;
}

static void
stop_workers(Oid database_oid)
{
	for (int i = 0; i < STOP_TRIES && end_workers(database_oid); i++)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STOP_TRY_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
allow_workers(Oid database_oid)
{
	ShopDatabase *database;

	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	database = shop_database_find(database_oid);
	if (database != NULL && database->stopped_by == MyProcPid)
		database->stopped_by = 0;
	LWLockRelease(shop_shared->lock);
	shop_launcher_rescan();
}

static void
run_statement(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, ProcessUtilityContext context,
	ParamListInfo params, QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (previous_utility_hook)
		previous_utility_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, ProcessUtilityContext context,
	ParamListInfo params, QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	const char *name;
	Oid database;

	if (shop_shared == NULL)
	{
		run_statement(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
		return;
	}
	name = database_needed(pstmt->utilityStmt);
	database = name ? get_database_oid(name, true) : InvalidOid;
	if (may_change_wanted(pstmt->utilityStmt))
		shop_launcher_rescan_at_commit();
	if (!OidIsValid(database) ||
		!may_run(pstmt->utilityStmt, database, IsInTransactionBlock(context == PROCESS_UTILITY_TOPLEVEL)))
	{
		run_statement(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
		return;
	}

	PG_TRY();
	{
		stop_workers(database);
		run_statement(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	PG_FINALLY();
	{
		allow_workers(database);
	}
	PG_END_TRY();
}

void
shop_utility_init(void)
{
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
