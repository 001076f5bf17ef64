/*
 * relay.c
 *		Delivers the events of a database to its endpoints.
 *
 * One a database, which a session advisory lock sees to.  Woken at the commit
 * of every transaction that wrote an event; it looks by itself now and then
 * for what no commit tells of: a prepared transaction that was committed, a
 * hole that can be closed.
 *
 * A relay that starts in the middle of a restore finds no endpoint at home and
 * leaves everything alone.
 *
 * Locks: SHOP_LOCK_RELAY; in a batch, the endpoint row.
 */
#include "worker/worker.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "outbox/outbox.h"
#include "query.h"
#include "storage/ipc.h"

#define POLL_MS 5000
#define BATCH 1000

static ShopQuery list_endpoints = SHOP_QUERY(
	"SELECT endpoint_id FROM shop.endpoint"
	" WHERE NOT paused AND shop.is_home(system_identifier, database_oid) ORDER BY endpoint_id");

static ShopDatabase *my_database;

/* The endpoints there are, in memory that outlives the transaction. */
static int64 *
find_endpoints(int *n)
{
	static int64 *ids = NULL;

	shop_process_begin("looking for endpoints");
	*n = (int) shop_query(&list_endpoints, NULL);
	ids = ids ? realloc(ids, sizeof(int64) * (*n + 1)) : malloc(sizeof(int64) * (*n + 1));
	if (ids == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	for (int i = 0; i < *n; i++)
		ids[i] = shop_fetch_int8(i, 1);
	shop_process_commit();
	return ids;
}

static long
ms_until(TimestampTz time)
{
	long ms = POLL_MS;

	if (time < DT_NOEND)
		ms = (long) Max(0, (time - shop_now()) / 1000 + 1);
	return Min(ms, POLL_MS);
}

/*
 * A batch to each endpoint in turn.  With more to do this returns at once,
 * so that a backlog hides neither a new endpoint nor a changed setting.
 */
static long
relay_cycle(void)
{
	TimestampTz next_at = DT_NOEND;
	bool more = false;
	int n;
	int64 *ids;

	pg_atomic_write_u32(&my_database->wake, 0);
	pg_memory_barrier();
	ids = find_endpoints(&n);
	for (int i = 0; i < n; i++)
	{
		ShopDelivered batch;

		CHECK_FOR_INTERRUPTS();
		shop_process_begin("delivering events");
		batch = shop_deliver_batch(ids[i], BATCH, false);
		shop_process_commit();
		more |= batch.more;
		next_at = Min(next_at, batch.next_at);
	}

	/* A wait for a lock during the cycle may have eaten the latch that went with it. */
	more |= pg_atomic_read_u32(&my_database->wake) != 0;
	return more ? 0 : ms_until(next_at);
}

void
shop_relay_main(Datum arg)
{
	my_database = shop_process_start(DatumGetObjectId(arg), SHOP_RELAY);
	shop_process_begin("starting");
	if (!shop_try_lock_session(SHOP_LOCK_RELAY, 0))
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("another relay is running in this database")));
	shop_process_commit();
	shop_process_run(relay_cycle);
}
