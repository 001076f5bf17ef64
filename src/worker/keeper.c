/*
 * keeper.c
 *		Keeps house: refreshes the popular products, ends expired reservations,
 *		clears the outbox, merges slots that are not needed any more, vacuums.
 *
 * Nothing depends on it: all of it can be done by run_maintenance(),
 * refresh_popular_products() and autovacuum.
 *
 * Locks: SHOP_LOCK_KEEPER; those of the jobs, a transaction each; VACUUM's, which waits for none.
 */
#include "worker/worker.h"

#include "coupon.h"
#include "miscadmin.h"
#include "order/order.h"
#include "outbox/outbox.h"
#include "popular.h"
#include "query.h"
#include "stock/stock.h"
#include "storage/ipc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#define CHUNK 5000
#define EXPIRE_CHUNK 20
#define EXPIRE_CHUNK_CALLED 1000
#define MAX_PAUSE_S 5
#define MIN_PAUSE_MS 500

/*
 * A rush turns a small table over many times between two visits of autovacuum,
 * which grows with each: pages that were pruned are not used again before a
 * vacuum has said where they are.  So the keeper vacuums a table of up to
 * SMALL_TABLE pages when it has turned over, as PgQ's daemon does, and looks
 * again soon.  Those that are larger are left to autovacuum.
 */
#define SMALL_TABLE "1000"
#define TURNOVER 100
#define RUSH_PAUSE_MS 500

static ShopQuery list_small = SHOP_QUERY(
	"SELECT c.oid::bigint, pg_stat_get_live_tuples(c.oid),"
	"       pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)"
	"  FROM pg_extension e"
	"  JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'"
	"  JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid"
	" WHERE e.extname = 'shop' AND c.relkind IN ('r', 'm') AND c.relpages <= " SMALL_TABLE);

/* How many rows of a table had been replaced or removed when it was last due here, vacuumed or left out. */
typedef struct Vacuumed
{
	Oid table;
	int64 changes;
} Vacuumed;

static HTAB *vacuumed;

/* What popular_products was last refreshed from; anything else at the start. */
static int64 refreshed_version = -1;
static TimestampTz refreshed_at;

SHOP_FUNCTION(shop_run_maintenance);

static void
refresh_popular(void)
{
	int64 version;

	shop_process_begin("refreshing popular products");
	shop_deliver_builtin();
	version = shop_popular_version();
	if (version != refreshed_version)
		shop_popular_refresh();
	shop_process_commit();
	refreshed_version = version;
}

static void
clear_outbox(void)
{
	int64 cleared;

	do
	{
		CHECK_FOR_INTERRUPTS();
		shop_process_begin("clearing the outbox");
		cleared = shop_outbox_clear(CHUNK);
		shop_process_commit();
	} while (cleared >= CHUNK);
}

static void
merge_slots(void)
{
	shop_process_begin("merging slots");
	(void) shop_stock_merge(CHUNK);
	(void) shop_coupon_merge(CHUNK);
	shop_process_commit();
}

/* A few a transaction, so that no buyer waits for more than those. */
static void
expire_reservations(void)
{
	ShopSweep sweep = {0};
	int64 expired = 0;
	bool more;

	do
	{
		CHECK_FOR_INTERRUPTS();
		shop_process_begin("expiring reservations");
		more = shop_reservations_sweep(&sweep, EXPIRE_CHUNK, &expired);
		shop_process_commit();
	} while (more);
}

static Vacuumed *
find_vacuumed(Oid table)
{
	HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(Vacuumed)};
	Vacuumed *found;
	bool known;

	if (vacuumed == NULL)
		vacuumed = hash_create("vacuumed tables", 32, &control, HASH_ELEM | HASH_BLOBS);
	found = hash_search(vacuumed, &table, HASH_ENTER, &known);
	if (!known)
		found->changes = 0;
	return found;
}

/* Have so many rows been changed since that nothing but a vacuum keeps the table small?  If so, one is due now. */
static bool
has_turned_over(Vacuumed *last, int64 rows, int64 changes)
{
	/* The statistics may have been reset. */
	if (changes - last->changes <= rows + TURNOVER && changes >= last->changes)
		return false;
	last->changes = changes;
	return true;
}

/* The tables that are due; the list outlives the transaction. */
static List *
list_turned_over(void)
{
	List *tables = NIL;
	uint64 n;

	shop_process_begin("looking for tables to vacuum");
	n = shop_query(&list_small, NULL);
	MemoryContextSwitchTo(TopMemoryContext);
	for (uint64 row = 0; row < n; row++)
	{
		Oid table = (Oid) shop_fetch_int8(row, 1);

		if (has_turned_over(find_vacuumed(table), shop_fetch_int8(row, 2), shop_fetch_int8(row, 3)))
			tables = lappend_oid(tables, table);
	}
	shop_process_commit();
	return tables;
}

static bool
vacuum_small_tables(void)
{
	List *tables = list_turned_over();
	bool found = tables != NIL;

	for (int i = 0; i < list_length(tables); i++)
		shop_process_vacuum(list_nth_oid(tables, i));
	list_free(tables);
	return found;
}

/* How long until the next reservation expires; in ms, at most MAX_PAUSE_S. */
static long
pause_ms(void)
{
	TimestampTz next;

	shop_process_begin("looking ahead");
	next = shop_reservations_next();
	shop_process_commit();
	return Max(MIN_PAUSE_MS,
		Min(TimestampDifferenceMilliseconds(shop_now(), next), Min(shop_popular_interval, MAX_PAUSE_S) * 1000L));
}

static bool
is_home(void)
{
	bool home;

	shop_process_begin("looking around");
	home = shop_endpoint_builtin_is_home();
	shop_process_commit();
	return home;
}

/* In a database that is being restored there is nothing to keep yet. */
static long
keeper_cycle(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_home())
	{
		if (TimestampDifferenceExceeds(refreshed_at, now, shop_popular_interval * 1000))
		{
			refresh_popular();
			refreshed_at = now;
		}
		expire_reservations();
		clear_outbox();
		merge_slots();
		return vacuum_small_tables() ? Min(pause_ms(), RUSH_PAUSE_MS) : pause_ms();
	}
	return MAX_PAUSE_S * 1000L;
}

static void
start_keeper(void)
{
	if (!shop_try_lock_session(SHOP_LOCK_KEEPER, 0))
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("another keeper is running in this database")));
}

void
shop_keeper_main(Datum arg)
{
	(void) shop_process_start(DatumGetObjectId(arg), SHOP_KEEPER);
	shop_process_run(start_keeper, keeper_cycle, NULL);
}

/* The keeper's jobs but for the refresh, in the caller's transaction. */
Datum
shop_run_maintenance(PG_FUNCTION_ARGS)
{
	ShopSweep sweep = {0};
	int64 cleared;
	int64 merged = 0;
	int64 expired = 0;

	shop_write_verb("run_maintenance()");
	SPI_connect();
	shop_endpoint_ensure_builtin();
	cleared = shop_outbox_clear(CHUNK);
	(void) shop_reservations_sweep(&sweep, EXPIRE_CHUNK_CALLED, &expired);
	/* Both lock slots in order, but not in one order; in one transaction only one of them can. */
	if (sweep.order_id == 0)
		merged = shop_stock_merge(CHUNK) + shop_coupon_merge(CHUNK);
	SPI_finish();
	return shop_form_row(fcinfo, SHOP_VALUES(shop_int8(cleared), shop_int8(merged), shop_int8(expired)));
}
