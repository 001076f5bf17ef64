/*
 * process.c
 *		What relay and keeper have in common: start, one transaction, wait.
 *
 * A worker connects to its database, becomes the extension's owner, and runs
 * cycles until it is told to end.  On an error it notes the message in shared
 * memory and dies; the launcher starts a clean process after a while.  A
 * worker that somebody ended is started again after a second.
 *
 * Every transaction first looks for the extension and locks it against DROP
 * EXTENSION; a worker that does not find it ends by itself.
 */
#include "worker/worker.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "commands/vacuum.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parse_node.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

/* Freed memory that a worker keeps for itself, in bytes. */
#define KEPT_MEMORY (16 * 1024 * 1024)

/* What a vacuum of a small table may take, in ms. */
#define VACUUM_MS 1000

/* This process's entry in shared memory, and what it allocates per cycle. */
static ShopWorker *myself;
static MemoryContext cycle_context;

static void
forget_myself(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	if (myself->pid == MyProcPid)
	{
		pg_atomic_write_u32(&myself->proc, 0);
		myself->pid = 0;
	}
	LWLockRelease(shop_shared->lock);
}

/*
 * Enters this process in shared memory; false if somebody wants no worker in
 * the database, or has one there already.
 */
static bool
register_myself(ShopDatabase *database, ShopWorkerKind kind)
{
	bool ok;

	myself = &database->workers[kind];
	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	ok = database->stopped_by == 0 && myself->pid == 0;
	if (ok)
	{
		myself->pid = MyProcPid;
		myself->started_at = GetCurrentTimestamp();
		myself->idle = false;
		myself->failed = true;
		pg_atomic_write_u32(&myself->proc, SHOP_MY_PROC_NUMBER() + 1);
	}
	myself->starting = false;
	LWLockRelease(shop_shared->lock);
	return ok;
}

/*
 * A worker's transactions take and return the same memory over and over; if
 * the system got it back each time, it would be faulted in anew.
 */
static void
keep_memory(void)
{
#ifdef __GLIBC__
	(void) mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY);
	(void) mallopt(M_MMAP_THRESHOLD, KEPT_MEMORY);
#endif
}

/* A database's or a role's settings are for clients. */
static void
override_settings(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"row_security", "off"},
		/* REFRESH ... CONCURRENTLY of some versions cannot do with it. */
		{"quote_all_identifiers", "off"},
		/* What a crash takes back is delivered again, with all its effects. */
		{"synchronous_commit", "off"},
	};

	for (size_t i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

static Oid
extension_owner(Oid extension)
{
	Relation relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	Oid owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(relation, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return owner;
}

/* Finds the extension and keeps it from being dropped until commit. */
static Oid
lock_extension(void)
{
	Oid extension = get_extension_oid("shop", true);

	if (!OidIsValid(extension))
		return InvalidOid;
	LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
	return get_extension_oid("shop", true);
}

/* From bootstrap superuser, which a worker starts as, to the extension's owner. */
static void
become_owner(void)
{
	Oid owner;

	shop_process_begin("starting");
	owner = extension_owner(get_extension_oid("shop", false));
	SetUserIdAndSecContext(GetUserId(), 0);
	SetSessionAuthorization(owner, superuser_arg(owner));
	shop_process_commit();
}

/*
 * Starts this process as a worker of a database; does not return if it is not
 * to be one.
 */
ShopDatabase *
shop_process_start(Oid database_oid, ShopWorkerKind kind)
{
	ShopDatabase *database;

	/* die() breaks a wait for a lock too, which DROP DATABASE may count on. */
	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();

	LWLockAcquire(shop_shared->lock, LW_SHARED);
	database = shop_database_find(database_oid);
	LWLockRelease(shop_shared->lock);
	if (database == NULL || !register_myself(database, kind))
		proc_exit(0);
	before_shmem_exit(forget_myself, (Datum) 0);

	BackgroundWorkerInitializeConnectionByOid(database_oid, InvalidOid, 0);
	override_settings();
	keep_memory();
	cycle_context = AllocSetContextCreate(TopMemoryContext, "shop worker cycle", ALLOCSET_DEFAULT_SIZES);
	become_owner();
	return database;
}

/*
 * Begins a transaction with SPI; without the extension this process ends.
 *
 * Nobody may change the role: a worker has logged in as bootstrap superuser,
 * and the owner's triggers and defaults could return to it.
 */
void
shop_process_begin(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SetUserIdAndSecContext(GetUserId(), SECURITY_LOCAL_USERID_CHANGE);
	if (!OidIsValid(lock_extension()))
	{
		AbortCurrentTransaction();
		myself->failed = true;
		proc_exit(0);
	}
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
end_transaction(void)
{
	CommitTransactionCommand();
	SetUserIdAndSecContext(GetUserId(), 0);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);

	/* A commit leaves us in TopMemoryContext before PostgreSQL 18. */
	MemoryContextSwitchTo(cycle_context);
	MemoryContextReset(cycle_context);
}

void
shop_process_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	end_transaction();
}

static void
vacuum_table(Oid table)
{
	RawStmt *raw = linitial_node(RawStmt, raw_parser("VACUUM (SKIP_LOCKED, TRUNCATE off)", RAW_PARSE_DEFAULT));
	VacuumStmt *statement = castNode(VacuumStmt, raw->stmt);

	statement->rels = list_make1(makeVacuumRelation(NULL, table, NIL));
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "vacuuming a small table");
	ExecVacuum(make_parsestate(NULL), statement, true);
	end_transaction();
}

/*
 * Vacuums a table in a transaction of its own.  By oid, one that is locked or
 * gone is left out without a word, and as none is shortened, nobody waits.  An
 * open cursor may keep a page of an index pinned, for as long as it likes, so
 * the vacuum is given up after a while.  The role cannot be changed here
 * either: VACUUM, whose transactions must begin without anything of the kind,
 * sees to it for each table.
 */
void
shop_process_vacuum(Oid table)
{
	PG_TRY();
	{
		enable_timeout_after(STATEMENT_TIMEOUT, VACUUM_MS);
		vacuum_table(table);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		MemoryContextSwitchTo(cycle_context);
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(cycle_context);
	}
	PG_END_TRY();
	disable_timeout(STATEMENT_TIMEOUT, false);
	/* The time may have been over just when the vacuum was. */
	QueryCancelPending = false;
}

/* Waits for the latch, or the socket if there is one, and for no longer than that. */
static void
wait(long timeout_ms, int socket)
{
	int events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;

	if (socket >= 0)
		(void) WaitLatchOrSocket(MyLatch, events | WL_SOCKET_READABLE, socket, timeout_ms, PG_WAIT_EXTENSION);
	else
		(void) WaitLatch(MyLatch, events, timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

static void
note_error(void)
{
	MemoryContext context = MemoryContextSwitchTo(cycle_context);
	ErrorData *error = CopyErrorData();

	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	strlcpy(myself->last_error, error->message, sizeof(myself->last_error));
	myself->failed = true;
	LWLockRelease(shop_shared->lock);
	MemoryContextSwitchTo(context);
}

static void
note_cycle(bool idle)
{
	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	myself->idle = idle;
	if (idle)
		myself->last_cycle_at = GetCurrentTimestamp();
	LWLockRelease(shop_shared->lock);
}

/*
 * Runs `start`, in a transaction, and then cycles for ever; each says how long
 * to wait for work, in ms.  `socket`, if there is one, is readable when there
 * is some before.
 */
void
shop_process_run(void (*start)(void), long (*cycle)(void), int (*socket)(void))
{
	long timeout_ms;

	MemoryContextSwitchTo(cycle_context);
	PG_TRY();
	{
		shop_process_begin("starting");
		start();
		shop_process_commit();
		myself->failed = false;
		for (;;)
		{
			note_cycle(false);
			timeout_ms = cycle();
			note_cycle(true);
			wait(timeout_ms, socket ? socket() : -1);
		}
	}
	PG_CATCH();
	{
		/* LWLocks of the failed transaction must go before we take ours. */
		LWLockReleaseAll();
		note_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
}
