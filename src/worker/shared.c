/*
 * shared.c
 *		What the workers share: who runs where, who is to be woken.
 *
 * Waking the relay happens in the commit callback, after the transaction has
 * become visible.  An error there would be a PANIC, so it does nothing but
 * atomics and SetLatch.
 *
 * Locks: ShopShared.lock, an LWLock held for a few instructions.
 */
#include "worker/worker.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "error.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/builtins.h"

ShopShared *shop_shared = NULL;

static shmem_request_hook_type previous_shmem_request_hook;
static shmem_startup_hook_type previous_shmem_startup_hook;

/* What the transaction under way has to wake at its commit. */
static uint32 wake_relay;
static bool wake_launcher;

SHOP_FUNCTION(shop_worker_status);

static void
request_shared(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(ShopShared)));
	RequestNamedLWLockTranche("shop", 1);
}

static void
init_worker(ShopWorker *worker)
{
	memset(worker, 0, sizeof(ShopWorker));
	pg_atomic_init_u32(&worker->proc, 0);
}

static void
startup_shared(void)
{
	bool found;

	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shop_shared = ShmemInitStruct("shop", sizeof(ShopShared), &found);
	if (!found)
	{
		memset(shop_shared, 0, sizeof(ShopShared));
		shop_shared->lock = &GetNamedLWLockTranche("shop")->lock;
		shop_shared->rescan = true;
		init_worker(&shop_shared->launcher);
		for (int i = 0; i < SHOP_MAX_DATABASES; i++)
		{
			pg_atomic_init_u32(&shop_shared->databases[i].wake, 0);
			for (int kind = 0; kind < SHOP_WORKER_KINDS; kind++)
				init_worker(&shop_shared->databases[i].workers[kind]);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

static void
register_launcher(void)
{
	BackgroundWorker worker = {
		.bgw_name = "shop launcher",
		.bgw_type = "shop launcher",
		.bgw_library_name = "shop",
		.bgw_function_name = "shop_launcher_main",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = 1,
	};

	RegisterBackgroundWorker(&worker);
}

/* At preload: asks for shared memory and registers the launcher. */
void
shop_worker_init(void)
{
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared;
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shared;
	shop_utility_init();
	register_launcher();
}

/* The entry of a database, or NULL. */
ShopDatabase *
shop_database_find(Oid database)
{
	for (int i = 0; i < SHOP_MAX_DATABASES; i++)
		if (shop_shared->databases[i].database == database)
			return &shop_shared->databases[i];
	return NULL;
}

static void
set_latch_of(ShopWorker *worker)
{
	uint32 proc = pg_atomic_read_u32(&worker->proc);

	/* The process may be gone: then somebody is woken for nothing. */
	if (proc > 0)
		SetLatch(&SHOP_PROC_BY_NUMBER(proc - 1)->procLatch);
}

/* Makes the launcher look for wanted databases; may be called at any time. */
void
shop_launcher_rescan(void)
{
	if (shop_shared == NULL)
		return;
	shop_shared->rescan = true;
	pg_memory_barrier();
	set_latch_of(&shop_shared->launcher);
}

/* Wakes the relay of this database; a thousand commits set one latch. */
static void
wake_relay_now(uint32 what)
{
	ShopDatabase *database = shop_database_find(MyDatabaseId);

	if (database && (pg_atomic_fetch_or_u32(&database->wake, what) & what) != what)
		set_latch_of(&database->workers[SHOP_RELAY]);
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	(void) arg;
	if (event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PARALLEL_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE)
		return;
	if (event == XACT_EVENT_COMMIT && shop_shared != NULL)
	{
		if (wake_relay)
			wake_relay_now(wake_relay);
		if (wake_launcher)
			shop_launcher_rescan();
	}
	wake_relay = 0;
	wake_launcher = false;
}

static void
register_callback_once(void)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(at_transaction_end, NULL);
	registered = true;
}

/* There will be something to deliver when this transaction has committed. */
void
shop_worker_wake_at_commit(uint32 what)
{
	register_callback_once();
	wake_relay |= what;
}

/* The launcher should look for wanted databases when this transaction has committed. */
void
shop_launcher_rescan_at_commit(void)
{
	register_callback_once();
	wake_launcher = true;
}

static const char *
state_of(const ShopWorker *worker)
{
	if (worker->pid != 0)
		return worker->idle ? "idle" : "running";
	if (worker->starting)
		return "starting";
	return worker->retry_at > GetCurrentTimestamp() ? "backing off" : "stopped";
}

static void
put_worker(ReturnSetInfo *result, const char *kind, const ShopWorker *worker)
{
	Datum values[5] = {CStringGetTextDatum(kind)};
	bool nulls[5] = {false, true, false, true, true};

	values[2] = CStringGetTextDatum(worker ? state_of(worker) : "not running");
	if (worker && worker->pid != 0)
	{
		values[1] = Int32GetDatum(worker->pid);
		nulls[1] = false;
	}
	if (worker && worker->last_cycle_at != 0)
	{
		values[3] = TimestampTzGetDatum(worker->last_cycle_at);
		nulls[3] = false;
	}
	if (worker && worker->last_error[0] != '\0')
	{
		values[4] = CStringGetTextDatum(worker->last_error);
		nulls[4] = false;
	}
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* The rows of the view workers: the launcher, and this database's workers. */
Datum
shop_worker_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ShopWorker launcher = {0};
	ShopDatabase database = {0};
	bool found = false;

	InitMaterializedSRF(fcinfo, 0);
	if (shop_shared != NULL)
	{
		ShopDatabase *mine;

		LWLockAcquire(shop_shared->lock, LW_SHARED);
		launcher = shop_shared->launcher;
		mine = shop_database_find(MyDatabaseId);
		found = mine != NULL;
		if (found)
			database = *mine;
		LWLockRelease(shop_shared->lock);
	}
	put_worker(result, "launcher", shop_shared ? &launcher : NULL);
	put_worker(result, "relay", found ? &database.workers[SHOP_RELAY] : NULL);
	put_worker(result, "keeper", found ? &database.workers[SHOP_KEEPER] : NULL);
	return (Datum) 0;
}
