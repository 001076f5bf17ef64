/*
 * worker.h
 *		The background workers: what they share, how they are woken, stopped
 *		and reported.
 */
#ifndef SHOP_WORKER_H
#define SHOP_WORKER_H

#include "shop.h"

#include "port/atomics.h"
#include "storage/lwlock.h"

#define SHOP_MAX_DATABASES 64

/* The workers of a database. */
typedef enum ShopWorkerKind
{
	SHOP_RELAY,
	SHOP_KEEPER,
	SHOP_WORKER_KINDS
} ShopWorkerKind;

/*
 * A worker in shared memory: plain data, which a crashed worker can leave
 * behind without harm.  Guarded by ShopShared.lock but for proc.
 */
typedef struct ShopWorker
{
	pid_t pid;	   /* 0: not running */
	bool starting; /* registered, has not reported yet */
	bool idle;
	int failures; /* ends in a row, each after a short life */
	bool failed;  /* would an end now be a failure, rather than somebody's wish? */
	TimestampTz started_at;
	TimestampTz retry_at;	   /* not to be started before */
	TimestampTz last_cycle_at; /* 0: none yet */
	pg_atomic_uint32 proc;	   /* whose latch wakes it: proc number + 1 */
	char last_error[256];
} ShopWorker;

typedef struct ShopDatabase
{
	Oid database; /* InvalidOid: free */
	bool wanted;
	pid_t stopped_by;	   /* the backend that wants no worker here */
	pg_atomic_uint32 wake; /* what the relay has to look for, of the following */
	ShopWorker workers[SHOP_WORKER_KINDS];
} ShopDatabase;

typedef struct ShopShared
{
	LWLock *lock;
	ShopWorker launcher;
	bool rescan;   /* may the wanted databases have changed? */
	bool scanning; /* is a scanner under way? */
	TimestampTz scanned_at;
	ShopDatabase databases[SHOP_MAX_DATABASES];
} ShopShared;

/* NULL where the library is not preloaded. */
extern ShopShared *shop_shared;

extern void shop_worker_init(void);
#define SHOP_WAKE_EVENTS 1
#define SHOP_WAKE_ENDPOINTS 2
extern void shop_worker_wake_at_commit(uint32 what);
extern void shop_launcher_rescan_at_commit(void);
extern void shop_launcher_rescan(void);
extern ShopDatabase *shop_database_find(Oid database);

/* For the worker processes themselves (process.c). */
extern ShopDatabase *shop_process_start(Oid database, ShopWorkerKind kind);
extern void shop_process_begin(const char *activity);
extern void shop_process_commit(void);
extern void shop_process_vacuum(Oid table);
extern void shop_process_run(void (*start)(void), long (*cycle)(void), int (*socket)(void));

/* Utility statements that no worker may be in the way of (utility.c). */
extern void shop_utility_init(void);

/* Where the postmaster starts them. */
extern PGDLLEXPORT void shop_launcher_main(Datum arg);
extern PGDLLEXPORT void shop_scanner_main(Datum arg);
extern PGDLLEXPORT void shop_relay_main(Datum arg);
extern PGDLLEXPORT void shop_keeper_main(Datum arg);

#endif /* SHOP_WORKER_H */
