/*
 * relay.c
 *		Delivers the events of a database to its endpoints.
 *
 * One a database, which a session advisory lock sees to.  Woken at the commit
 * of every transaction that wrote an event, and by the sockets of what it
 * sends; it looks by itself now and then for what no commit tells of: a
 * prepared transaction that was committed, a hole that can be closed.
 *
 * A cycle gives every endpoint its turn: a batch to each function, which is
 * called there and then, and to each remote endpoint what its sender has to do
 * next.  Nobody is waited for.
 *
 * A relay that starts in the middle of a restore finds no endpoint at home and
 * leaves everything alone.
 *
 * Locks: SHOP_LOCK_RELAY; in a batch, the endpoint row.
 */
#include "worker/worker.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "outbox/outbox.h"
#include "outbox/sender.h"
#include "query.h"
#include "sink/sink.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/memutils.h"

#define POLL_MS 5000
#define BATCH 1000

/*
 * A function that has been called rests the longer the more it was given, so
 * that in a rush a batch, which costs a version of the endpoint's row, is one
 * for many: at 1,000 events a second this is a millisecond, above some 3,000
 * the most.  Sales are folded for the view, whose refresh folds what is left.
 */
#define REST_US_PER_EVENT 300
#define MAX_REST_US 100000
#define FOLD_REST_US 1000000

static ShopQuery list_endpoints = SHOP_QUERY(
	"SELECT endpoint_id, url LIKE 'function:%', builtin FROM shop.endpoint"
	" WHERE NOT paused AND shop.is_home(system_identifier, database_oid) ORDER BY endpoint_id");

/* An endpoint that is delivered to; a remote one has a sender. */
typedef struct Outgoing
{
	int64 endpoint_id;
	bool listed; /* was it there, and not paused, when we last looked? */
	bool builtin;
	TimestampTz rests_until;
	ItemPointerData place; /* of a function's row, see batch.c */
	ShopSender *sender;
} Outgoing;

static ShopDatabase *my_database;

/* All of them, in memory that outlives the transactions. */
static Outgoing *outgoing;
static int n_outgoing;

static Outgoing *
find_outgoing(int64 endpoint_id)
{
	for (int i = 0; i < n_outgoing; i++)
		if (outgoing[i].endpoint_id == endpoint_id)
			return &outgoing[i];

	outgoing = outgoing ? repalloc(outgoing, sizeof(Outgoing) * (n_outgoing + 1))
						: MemoryContextAlloc(TopMemoryContext, sizeof(Outgoing));
	outgoing[n_outgoing] = (Outgoing){.endpoint_id = endpoint_id};
	return &outgoing[n_outgoing++];
}

/* An endpoint that is gone or paused stays until its last answer is recorded. */
static void
forget_unlisted(void)
{
	int kept = 0;

	for (int i = 0; i < n_outgoing; i++)
	{
		Outgoing *out = &outgoing[i];

		if (out->listed || (out->sender && !shop_sender_is_quiet(out->sender)))
			outgoing[kept++] = *out;
		else if (out->sender)
			shop_sender_drop(out->sender);
	}
	n_outgoing = kept;
}

static void
look_for_endpoints(void)
{
	int n;

	for (int i = 0; i < n_outgoing; i++)
		outgoing[i].listed = false;
	shop_process_begin("looking for endpoints");
	n = (int) shop_query(&list_endpoints, NULL);
	for (int i = 0; i < n; i++)
	{
		Outgoing *out = find_outgoing(shop_fetch_int8(i, 1));

		out->listed = true;
		out->builtin = shop_fetch_bool(i, 3);
		if (out->sender == NULL && !shop_fetch_bool(i, 2))
			out->sender = shop_sender_make(out->endpoint_id);
	}
	shop_process_commit();
	forget_unlisted();
}

static long
ms_until(TimestampTz time, TimestampTz now)
{
	if (time <= now)
		return 0;
	return time - now >= POLL_MS * INT64CONST(1000) ? POLL_MS : (long) ((time - now) / 1000 + 1);
}

static void
lock_relay(void)
{
	if (!shop_try_lock_session(SHOP_LOCK_RELAY, 0))
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("another relay is running in this database")));
}

/* Unless the clock was set back. */
static bool
is_resting(const Outgoing *out, TimestampTz now)
{
	return out->rests_until > now && out->rests_until <= now + FOLD_REST_US;
}

/* Until then nobody has anything to do with new events, which pile up meanwhile, and wake nobody. */
static TimestampTz
all_rest_until(TimestampTz now)
{
	TimestampTz until = DT_NOEND;

	for (int i = 0; i < n_outgoing; i++)
		if (!is_resting(&outgoing[i], now))
			return DT_NOBEGIN;
		else
			until = Min(until, outgoing[i].rests_until);
	return n_outgoing > 0 ? until : DT_NOBEGIN;
}

/* Returns when it is to be called again. */
static TimestampTz
call_function(Outgoing *out, TimestampTz now)
{
	ShopDelivered batch;

	if (is_resting(out, now))
		return out->rests_until;
	shop_process_begin("delivering events");
	batch = shop_deliver_batch(out->endpoint_id, BATCH, BATCH, false, &out->place);
	/* A function may leave session locks behind, or have given up ours. */
	LockReleaseSession(USER_LOCKMETHOD);
	lock_relay();
	shop_process_commit();
	if (batch.more)
		return DT_NOBEGIN;
	out->rests_until = GetCurrentTimestamp() +
					   (out->builtin ? FOLD_REST_US : Min(batch.delivered * REST_US_PER_EVENT, MAX_REST_US));
	return batch.next_at;
}

/*
 * A round looks for new events; one is due when a commit has woken us, when a
 * function has more to do, and every POLL_MS.  Endpoints are looked for when
 * one was changed, and every POLL_MS: beside an old snapshot their table is
 * full of dead rows.  In between there are only answers to be heard.  A round
 * is one batch an endpoint, so that a backlog hides neither a new endpoint nor
 * a changed setting.
 */
static long
relay_cycle(void)
{
	static TimestampTz round_at = DT_NOBEGIN;
	static TimestampTz list_at = DT_NOBEGIN;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next_at = all_rest_until(now);
	uint32 woken;
	bool round;
	long timeout;
	long socket_timeout;

	if (next_at > now && !(pg_atomic_read_u32(&my_database->wake) & SHOP_WAKE_ENDPOINTS))
		return ms_until(next_at, now);
	woken = pg_atomic_exchange_u32(&my_database->wake, 0);
	round = woken != 0 || round_at <= now;
	next_at = DT_NOEND;
	if ((woken & SHOP_WAKE_ENDPOINTS) || list_at <= now)
	{
		look_for_endpoints();
		list_at = TimestampTzPlusMilliseconds(now, POLL_MS);
	}
	if (round)
		round_at = TimestampTzPlusMilliseconds(now, POLL_MS);
	shop_sink_poll();
	for (int i = 0; i < n_outgoing; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (outgoing[i].sender)
			next_at = Min(next_at, shop_sender_run(outgoing[i].sender, round));
		else if (round)
			round_at = Min(round_at, call_function(&outgoing[i], now));
	}
	if (!round)
		forget_unlisted();

	/* A wait for a lock during the cycle may have eaten the latch that went with it. */
	if (pg_atomic_read_u32(&my_database->wake) != 0)
		return 0;
	now = GetCurrentTimestamp();
	timeout = ms_until(Min(next_at, round_at), now);
	socket_timeout = shop_sink_timeout();
	return socket_timeout >= 0 ? Min(timeout, socket_timeout) : timeout;
}

static void
start_relay(void)
{
	lock_relay();
	/* What leaves is UTF-8; outside of transactions only a conversion looked up before works. */
	if (PrepareClientEncoding(PG_UTF8) >= 0)
		(void) SetClientEncoding(PG_UTF8);
}

void
shop_relay_main(Datum arg)
{
	my_database = shop_process_start(DatumGetObjectId(arg), SHOP_RELAY);
	shop_process_run(start_relay, relay_cycle, shop_sink_fd);
}
