/*
 * launcher.c
 *		Sees to it that every database that wants them has its workers.
 *
 * Level-triggered: it compares what is wanted with what runs, whenever it is
 * woken and every few seconds, and acts on any difference.  A worker that
 * ended is started again after a pause that grows with its failures.
 *
 * The launcher itself is connected to no database, so it stands in nobody's
 * way.  Which databases have shop.worker = on is in pg_db_role_setting, which
 * can only be read from within a database: a scanner, a worker that lives for
 * some milliseconds, reads it from any database and leaves the answer in
 * shared memory.
 *
 * Locks: ShopShared.lock.
 */
#include "worker/worker.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define LOOK_MS 1000		/* between looks at the workers */
#define SCAN_MS 60000		/* between scans for databases nobody told us of */
#define MAX_PAUSE_MS 60000	/* the longest pause before a restart */
#define SHORT_LIFE_MS 60000 /* who lives longer has not failed */
#define START_MS 10000		/* a worker that has not reported by then failed */

static const char *const kind_names[SHOP_WORKER_KINDS] = {"relay", "keeper"};
static const char *const kind_functions[SHOP_WORKER_KINDS] = {"shop_relay_main", "shop_keeper_main"};

static bool
start_process(const char *name, const char *function, Oid database)
{
	BackgroundWorker worker = {
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_main_arg = ObjectIdGetDatum(database),
		.bgw_notify_pid = MyProcPid,
	};

	snprintf(worker.bgw_name, BGW_MAXLEN, "shop %s", name);
	snprintf(worker.bgw_type, BGW_MAXLEN, "shop %s", name);
	strlcpy(worker.bgw_library_name, "shop", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/* The pause grows with every failure after a short life, from 1 s. */
static void
note_end(ShopWorker *worker, TimestampTz now)
{
	long pause_ms = 1000;

	if (!worker->failed || TimestampDifferenceExceeds(worker->started_at, now, SHORT_LIFE_MS))
		worker->failures = 0;
	for (int i = 0; i < worker->failures && pause_ms < MAX_PAUSE_MS; i++)
		pause_ms *= 2;
	worker->failures += worker->failed ? 1 : 0;
	worker->retry_at = TimestampTzPlusMilliseconds(now, Min(pause_ms, MAX_PAUSE_MS));
}

/* Is it on its way?  One that has not reported for long never will. */
static bool
is_starting(const ShopWorker *worker, TimestampTz now)
{
	return worker->starting && !TimestampDifferenceExceeds(worker->started_at, now, START_MS);
}

/* Should this worker be started now?  Notes the end of one that has ended. */
static bool
is_due(const ShopDatabase *database, ShopWorker *worker, TimestampTz now)
{
	if (worker->pid != 0 || !database->wanted || database->stopped_by != 0)
		return false;
	if (is_starting(worker, now))
		return false;
	if (worker->starting || worker->started_at > worker->retry_at)
	{
		worker->failed |= worker->starting;
		worker->starting = false;
		note_end(worker, now);
	}
	return worker->retry_at <= now;
}

static void
start_worker(ShopDatabase *database, ShopWorkerKind kind, TimestampTz now)
{
	ShopWorker *worker = &database->workers[kind];

	worker->starting = true;
	worker->started_at = now;
	if (!start_process(kind_names[kind], kind_functions[kind], database->database))
	{
		worker->starting = false;
		strlcpy(worker->last_error, "no free background worker slot: raise max_worker_processes",
			sizeof(worker->last_error));
	}
}

/* Has the backend gone that wanted no worker in a database? */
static void
forget_stopper(ShopDatabase *database)
{
	if (database->stopped_by != 0 && BackendPidGetProc(database->stopped_by) == NULL)
		database->stopped_by = 0;
}

/* A database that is not wanted any more has its workers ended, then its entry. */
static void
retire(ShopDatabase *database, TimestampTz now)
{
	bool running = false;

	for (int kind = 0; kind < SHOP_WORKER_KINDS; kind++)
	{
		if (database->workers[kind].pid != 0)
			kill(database->workers[kind].pid, SIGTERM);
		running |= database->workers[kind].pid != 0 || is_starting(&database->workers[kind], now);
	}
	if (!running && database->stopped_by == 0)
	{
		database->database = InvalidOid;
		pg_atomic_write_u32(&database->wake, 0);
		for (int kind = 0; kind < SHOP_WORKER_KINDS; kind++)
		{
			database->workers[kind].starting = false;
			database->workers[kind].failures = 0;
			database->workers[kind].started_at = database->workers[kind].retry_at = 0;
			database->workers[kind].last_cycle_at = 0;
			database->workers[kind].last_error[0] = '\0';
		}
	}
}

static void
reconcile(void)
{
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SHOP_MAX_DATABASES; i++)
	{
		ShopDatabase *database = &shop_shared->databases[i];

		if (!OidIsValid(database->database))
			continue;
		forget_stopper(database);
		for (int kind = 0; kind < SHOP_WORKER_KINDS; kind++)
			if (is_due(database, &database->workers[kind], now))
				start_worker(database, kind, now);
		if (!database->wanted)
			retire(database, now);
	}
	LWLockRelease(shop_shared->lock);
}

/* Any database that can be connected to; a plain one rather than a template. */
static Oid
any_database(void)
{
	Oid result = InvalidOid;
	Relation relation;
	TableScanDesc scan;
	HeapTuple tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database->datallowconn && database->datconnlimit >= -1 && (!OidIsValid(result) || !database->datistemplate))
			result = database->oid;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	return result;
}

static void
scan_if_due(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool due;

	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	if (shop_shared->scanning && TimestampDifferenceExceeds(shop_shared->scanned_at, now, START_MS))
	{
		/* The scanner died, or never started. */
		shop_shared->scanning = false;
		shop_shared->rescan = true;
	}
	due = !shop_shared->scanning &&
		  (shop_shared->rescan || TimestampDifferenceExceeds(shop_shared->scanned_at, now, SCAN_MS));
	if (due)
	{
		shop_shared->rescan = false;
		shop_shared->scanning = true;
		shop_shared->scanned_at = now;
	}
	LWLockRelease(shop_shared->lock);
	if (due && !start_process("scanner", "shop_scanner_main", any_database()))
	{
		shop_shared->scanning = false;
		shop_shared->rescan = true;
	}
}

static void
forget_launcher(int code, Datum arg)
{
	(void) code;
	(void) arg;
	pg_atomic_write_u32(&shop_shared->launcher.proc, 0);
	shop_shared->launcher.pid = 0;
}

void
shop_launcher_main(Datum arg)
{
	ShopWorker *myself = &shop_shared->launcher;

	(void) arg;
	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	myself->pid = MyProcPid;
	myself->started_at = GetCurrentTimestamp();
	myself->idle = true;
	before_shmem_exit(forget_launcher, (Datum) 0);
	pg_atomic_write_u32(&myself->proc, SHOP_MY_PROC_NUMBER() + 1);
	shop_shared->rescan = true;

	for (;;)
	{
		scan_if_due();
		reconcile();
		myself->last_cycle_at = GetCurrentTimestamp();

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOOK_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
}

/* Gives a database an entry; a worker that backs off there is tried at once. */
static void
want(Oid database_oid)
{
	ShopDatabase *database = shop_database_find(database_oid);

	if (database == NULL)
		database = shop_database_find(InvalidOid);
	if (database == NULL)
	{
		ereport(LOG, (errmsg("no room for the workers of more than %d databases", SHOP_MAX_DATABASES)));
		return;
	}
	database->database = database_oid;
	database->wanted = true;
	for (int kind = 0; kind < SHOP_WORKER_KINDS; kind++)
	{
		ShopWorker *worker = &database->workers[kind];

		if (worker->pid == 0 && !worker->starting)
		{
			worker->failures = 0;
			worker->started_at = worker->retry_at = 0;
		}
	}
}

/* What ALTER DATABASE ... SET shop.worker has left behind. */
static const char wanted_databases
	[] = "SELECT d.oid FROM pg_catalog.pg_db_role_setting s"
		 " JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase"
		 " CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)"
		 " WHERE s.setrole = 0 AND d.datallowconn AND NOT d.datistemplate AND d.datconnlimit >= -1"
		 "   AND lower(c.setting) IN ('shop.worker=on', 'shop.worker=true', 'shop.worker=yes', 'shop.worker=1')";

/* Finds the databases that want workers, and ends. */
void
shop_scanner_main(Datum arg)
{
	uint64 n;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_OVERRIDE);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute(wanted_databases, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_db_role_setting");
	n = SPI_processed;

	LWLockAcquire(shop_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SHOP_MAX_DATABASES; i++)
		shop_shared->databases[i].wanted = false;
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		want(DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)));
	}
	shop_shared->scanning = false;
	LWLockRelease(shop_shared->lock);

	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	proc_exit(0);
}
