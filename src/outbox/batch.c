/*
 * batch.c
 *		What every kind of delivery does in its transactions: lock the endpoint,
 *		and write down what became of the events that load.c has found.
 *
 * An endpoint's progress is the set of event numbers it is done with, acked.
 * New work is what is visible outside of it.  A number outside of it that is
 * not visible is a hole: its transaction still runs, or was rolled back.  The
 * horizon (horizon_no, horizon_xid) tells the two apart: when it was noted,
 * every number up to horizon_no had been drawn, by a transaction that had its
 * xid before, so below horizon_xid, the next xid then.  Once no such xid runs,
 * what is not visible up to horizon_no never will be, and the holes close.
 * Until then later events flow past them.  (The xmax of a snapshot would not
 * do for horizon_xid: it is one past the last xid completed, and there may be
 * running ones above it that have drawn a number.)
 *
 * What an endpoint did not take becomes a row of shop.delivery: to be tried
 * again later, or dead.  Later events of its key (aggregateid) queue behind it
 * there, with no time of their own (infinity) until they are the first; other
 * keys pass.  An endpoint that takes nothing any more backs off
 * as a whole, and its events stay in the outbox.
 *
 * Locks: the endpoint row, for the length of the transaction: there is one
 * deliverer to an endpoint at a time.  Nothing else of the shop is locked, so
 * what an endpoint's function locks can not be part of a cycle with it.
 */
#include "outbox/batch.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "error.h"
#include "query.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/xid8.h"

/* What an endpoint's options say if they say nothing. */
#define DEFAULT_MAX_ATTEMPTS 12
#define DEFAULT_BACKOFF_MS 1000
#define DEFAULT_MAX_BACKOFF_MS (10 * 60 * 1000)
#define DEFAULT_TIMEOUT_MS (5 * 1000)

#define ENDPOINT_COLUMNS \
	"endpoint_id, name, url, run_as, failures," \
	" coalesce((options->'max_attempts')::integer, 0), coalesce((options->'backoff')::integer, 0)," \
	" coalesce((options->'max_backoff')::integer, 0), coalesce((options->'timeout')::integer, 0)," \
	" coalesce(horizon_xid <= pg_snapshot_xmin(pg_current_snapshot()), false), retry_at, types, acked, horizon_no," \
	" run_as_oid, shop.is_home(system_identifier, database_oid), paused, secret, options, '/shop/' || " \
	"current_database(), ctid"

/*
 * The row is updated with every batch.  Beside an old snapshot none of its
 * versions goes away, and the index leads through all of them; so whoever has
 * written it goes where he left it, and only if it is not there by its key.
 */
#define OF_ENDPOINT " FROM shop.endpoint WHERE endpoint_id = $1"
#define AT_PLACE " AND ctid = $2"
#define READY " AND NOT paused AND shop.is_home(system_identifier, database_oid)"

static ShopQuery lock_ready = SHOP_QUERY("SELECT " ENDPOINT_COLUMNS OF_ENDPOINT READY " FOR NO KEY UPDATE", INT8OID);
static ShopQuery lock_free_ready_at = SHOP_QUERY(
	"SELECT " ENDPOINT_COLUMNS OF_ENDPOINT AT_PLACE READY " FOR NO KEY UPDATE SKIP LOCKED", INT8OID, TIDOID);
static ShopQuery lock_free_at = SHOP_QUERY(
	"SELECT " ENDPOINT_COLUMNS OF_ENDPOINT AT_PLACE " FOR NO KEY UPDATE SKIP LOCKED", INT8OID, TIDOID);
static ShopQuery lock_free_ready = SHOP_QUERY(
	"SELECT " ENDPOINT_COLUMNS OF_ENDPOINT READY " FOR NO KEY UPDATE SKIP LOCKED", INT8OID);
static ShopQuery lock_free = SHOP_QUERY(
	"SELECT " ENDPOINT_COLUMNS OF_ENDPOINT " FOR NO KEY UPDATE SKIP LOCKED", INT8OID);

/*
 * To be asked when the row is locked: a statement that had to wait for it sees
 * the newest row, but all else as it was before the wait.
 */
static ShopQuery find_waiting = SHOP_QUERY(
	"SELECT FROM shop.delivery WHERE endpoint_id = $1 AND dead_at IS NULL LIMIT 1", INT8OID);

/* A try that was counted but not made. */
static ShopQuery return_lease = SHOP_QUERY("UPDATE shop.delivery SET attempts = attempts - 1, suspect = false"
										   " WHERE endpoint_id = $1 AND event_no = ANY ($2)",
	INT8OID, INT8ARRAYOID);

/* Of events of one key that left together, and failed, only the first has a time. */
#define ONE_IS_AHEAD SHOP_FIRST_WAITING("aggregateid = $4 AND event_no < $2", "$4")

static ShopQuery put_delivery = SHOP_QUERY(
	"INSERT INTO shop.delivery AS d (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at,"
	"                                last_error, dead_at, suspect)"
	" VALUES ($1, $2, $3, $4, $5, CASE WHEN " ONE_IS_AHEAD " THEN 'infinity' ELSE $6 END, $7, $8, $9)"
	" ON CONFLICT (endpoint_id, event_no) DO UPDATE"
	"   SET attempts = $5, next_attempt_at = excluded.next_attempt_at, last_error = $7, dead_at = $8, suspect = $9",
	INT8OID, INT8OID, UUIDOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID, BOOLOID);

static ShopQuery delete_deliveries = SHOP_QUERY(
	"DELETE FROM shop.delivery WHERE endpoint_id = $1 AND event_no = ANY ($2)", INT8OID, INT8ARRAYOID);

/* The first that waits of the key of each of these events is due, unless it has a time. */
#define FIRST_OF_KEY SHOP_FIRST_WAITING("aggregateid, event_no", "k.aggregateid")

static ShopQuery move_up = SHOP_QUERY(
	"UPDATE shop.delivery d SET next_attempt_at = $3"
	"  FROM (SELECT DISTINCT aggregateid FROM shop.outbox WHERE event_no = ANY ($2)) k"
	" CROSS JOIN LATERAL " FIRST_OF_KEY " n"
	" WHERE n.aggregateid = k.aggregateid"
	"   AND d.endpoint_id = $1 AND d.event_no = n.event_no AND d.next_attempt_at = 'infinity'",
	INT8OID, INT8ARRAYOID, TIMESTAMPTZOID);

/*
 * $2 are the numbers done; all up to $3 is done with.  A gap that is left
 * gets a horizon, with $9, an xid not given out when the last number was seen.
 * $10 are numbers whose events are on their way.
 */
#define ACKNOWLEDGE(condition) \
	"UPDATE shop.endpoint e" \
	"   SET acked = n.acked," \
	"       horizon_no = CASE WHEN NOT n.has_gap THEN NULL" \
	"                         WHEN $3 IS NULL AND e.horizon_no IS NOT NULL THEN e.horizon_no" \
	"                         ELSE upper(n.acked) - 1 END," \
	"       horizon_xid = CASE WHEN NOT n.has_gap THEN NULL" \
	"                           WHEN $3 IS NULL AND e.horizon_no IS NOT NULL THEN e.horizon_xid" \
	"                           ELSE $9 END," \
	"       delivered_total = delivered_total + $4," \
	"       last_delivered_at = CASE WHEN $4 > 0 THEN $5 ELSE last_delivered_at END," \
	"       failures = $6, retry_at = $7, last_error = coalesce($8, last_error)," \
	"       inflight = $10::int8multirange," \
	"       paused = paused OR $11 IS NOT NULL, pause_reason = coalesce($11, pause_reason)" \
	"  FROM (SELECT a.acked, int8multirange(range_merge(a.acked)) <> a.acked AS has_gap" \
	"          FROM (SELECT c.acked + int8multirange(int8range(NULL, coalesce($3, 0), '[]'))" \
	"                       + $2::int8multirange AS acked" \
	"                  FROM shop.endpoint c WHERE c.endpoint_id = $1" condition ") a) n" \
	" WHERE e.endpoint_id = $1" condition " RETURNING e.ctid"

static ShopQuery acknowledge_at = SHOP_QUERY(ACKNOWLEDGE(" AND ctid = $12"), INT8OID, TEXTOID, INT8OID, INT8OID,
	TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID, TEXTOID, XID8OID, TEXTOID, TEXTOID, TIDOID);

static ShopQuery acknowledge = SHOP_QUERY(ACKNOWLEDGE(""), INT8OID, TEXTOID, INT8OID, INT8OID, TIMESTAMPTZOID, INT4OID,
	TIMESTAMPTZOID, TEXTOID, XID8OID, TEXTOID, TEXTOID);

static int
option(uint64 row, int column, int default_value)
{
	int value = shop_fetch_int4(row, column);

	return value > 0 ? value : default_value;
}

static Datum
copy_varlena(uint64 row, int column)
{
	bool isnull;
	Datum value = shop_fetch(row, column, &isnull);

	return PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
}

static void
read_types(ShopOutlet *outlet, Datum array)
{
	Datum *types;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &types, NULL, &outlet->n_types);
	outlet->types = palloc(sizeof(char *) * Max(outlet->n_types, 1));
	for (int i = 0; i < outlet->n_types; i++)
		outlet->types[i] = TextDatumGetCString(types[i]);
}

static ShopValue
place_of(ShopOutlet *outlet)
{
	return shop_datum(PointerGetDatum(&outlet->place));
}

/* Locks the row where it was left (query_at, NULL: that is not tried), or by its key. */
static bool
lock(ShopQuery *query_at, ShopQuery *query, int64 endpoint_id, ShopOutlet *outlet)
{
	ShopValue id = shop_int8(endpoint_id);
	MemoryContext before;
	bool isnull;

	if ((query_at == NULL || !ItemPointerIsValid(&outlet->place) ||
			shop_query(query_at, SHOP_VALUES(id, place_of(outlet))) == 0) &&
		shop_query(query, SHOP_VALUES(id)) == 0)
		return false;
	before = MemoryContextSwitchTo(outlet->context ? outlet->context : CurrentMemoryContext);
	outlet->pub.endpoint_id = endpoint_id;
	outlet->pub.name = shop_fetch_text(0, 2);
	outlet->pub.url = shop_fetch_text(0, 3);
	outlet->pub.run_as = shop_fetch_text(0, 4);
	outlet->failures = shop_fetch_int4(0, 5);
	outlet->max_attempts = option(0, 6, DEFAULT_MAX_ATTEMPTS);
	outlet->backoff_ms = option(0, 7, DEFAULT_BACKOFF_MS);
	outlet->max_backoff_ms = option(0, 8, DEFAULT_MAX_BACKOFF_MS);
	outlet->pub.timeout_ms = option(0, 9, DEFAULT_TIMEOUT_MS);
	outlet->closable = shop_fetch_bool(0, 10);
	outlet->retry_at = DatumGetTimestampTz(shop_fetch(0, 11, &isnull));
	if (isnull)
		outlet->retry_at = DT_NOBEGIN;
	read_types(outlet, copy_varlena(0, 12));
	outlet->acked = copy_varlena(0, 13);
	outlet->horizon_no = shop_fetch_int8_or(0, 14, 0);
	outlet->pub.run_as_oid = DatumGetObjectId(shop_fetch(0, 15, &isnull));
	outlet->is_home = shop_fetch_bool(0, 16);
	outlet->ready = outlet->is_home && !shop_fetch_bool(0, 17);
	outlet->pub.secret = shop_fetch_text(0, 18);
	outlet->pub.options = DatumGetJsonbP(copy_varlena(0, 19));
	outlet->pub.source = shop_fetch_text(0, 20);
	outlet->place = *(ItemPointer) DatumGetPointer(shop_fetch(0, 21, &isnull));
	MemoryContextSwitchTo(before);
	outlet->has_waiting = shop_query(&find_waiting, SHOP_VALUES(id)) > 0;
	return true;
}

/* Locks an endpoint's row; false if it is not there, paused, a copy, or (without waiting) busy. */
bool
shop_batch_lock(int64 endpoint_id, bool wait, ShopOutlet *outlet)
{
	return wait ? lock(NULL, &lock_ready, endpoint_id, outlet)
				: lock(&lock_free_ready_at, &lock_free_ready, endpoint_id, outlet);
}

/* Locks it whatever state it is in, without waiting. */
bool
shop_batch_lock_any(int64 endpoint_id, ShopOutlet *outlet)
{
	return lock(&lock_free_at, &lock_free, endpoint_id, outlet);
}

static void
free_if_set(const void *pointer)
{
	if (pointer)
		pfree(unconstify(void *, pointer));
}

void
shop_event_free(ShopEvent *event)
{
	free_if_set(event->message.data);
	free_if_set(event->message.key);
	free_if_set(event->message.type);
	free_if_set(event->message.aggregatetype);
	free_if_set(event->message.traceparent);
	free_if_set(event->error);
	pfree(event);
}

static int
compare_numbers(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

char *
shop_multirange(int64 *numbers, int n)
{
	StringInfoData buf;
	int end;

	qsort(numbers, n, sizeof(int64), compare_numbers);
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i = end)
	{
		for (end = i + 1; end < n && numbers[end] == numbers[end - 1] + 1;)
			end++;
		appendStringInfo(&buf, "%s[" INT64_FORMAT "," INT64_FORMAT "]", i > 0 ? "," : "", numbers[i], numbers[end - 1]);
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* An event was not taken; later ones of its key queue behind it. */
void
shop_batch_failed(ShopOutlet *outlet, ShopBatch *batch, ShopEvent *failed, char *error)
{
	bool behind = false;

	failed->state = SHOP_EVENT_FAILED;
	failed->error = error;
	batch->last_error = error;
	outlet->failures++;
	outlet->tried = true;
	for (int i = 0; i < batch->n; i++)
	{
		ShopEvent *event = batch->events[i];

		if (event == failed)
			behind = true;
		else if (behind && event->state == SHOP_EVENT_UNTRIED && strcmp(event->message.key, failed->message.key) == 0)
			event->state = SHOP_EVENT_QUEUED;
	}
}

void
shop_batch_delivered(ShopOutlet *outlet, ShopEvent *event)
{
	event->state = SHOP_EVENT_DELIVERED;
	outlet->failures = 0;
	outlet->tried = true;
}

/* The delay before try n + 1: doubled each time, up to a limit, give or take half. */
static TimestampTz
back_off(const ShopOutlet *outlet, int n, int at_least_ms, TimestampTz now)
{
	double ms = outlet->backoff_ms;

	for (int i = 1; i < n && ms < outlet->max_backoff_ms; i++)
		ms *= 2;
	ms = Min(ms, outlet->max_backoff_ms) * (0.5 + pg_prng_double(&pg_global_prng_state));
	return TimestampTzPlusMilliseconds(now, (int64) Max(ms, at_least_ms));
}

/* Writes the row of an event that was not taken, or is queued; true if it is dead. */
static bool
store_failure(ShopOutlet *outlet, const ShopEvent *event, TimestampTz now)
{
	bool queued = event->state == SHOP_EVENT_QUEUED;
	int attempts = event->attempts + (queued ? 0 : 1);
	int most = event->max_attempts ? Min(event->max_attempts, outlet->max_attempts) : outlet->max_attempts;
	bool dead = !queued && attempts >= most;

	/* What is queued already stays as it is. */
	if (queued && event->retry)
		return false;
	outlet->has_waiting = true;
	shop_query(
		&put_delivery, SHOP_VALUES(shop_int8(outlet->pub.endpoint_id), shop_int8(event->event_no),
						   shop_datum(UUIDPGetDatum(&event->id)), shop_text(event->message.key), shop_int4(attempts),
						   shop_time(queued ? DT_NOEND : back_off(outlet, attempts, event->retry_after_ms, now)),
						   shop_text(event->error), dead ? shop_time(now) : shop_null(), shop_bool(event->suspect)));
	return dead;
}

/* Has it got to an end that can be written down? */
static bool
is_done(const ShopEvent *event)
{
	return event->state != SHOP_EVENT_UNTRIED && event->state != SHOP_EVENT_SENT &&
		   event->state != SHOP_EVENT_FORGOTTEN;
}

/* What has been recorded leaves the batch. */
static void
remove_done(ShopBatch *batch)
{
	int kept = 0;

	for (int i = 0; i < batch->n; i++)
		if (is_done(batch->events[i]) || batch->events[i]->state == SHOP_EVENT_FORGOTTEN)
			shop_event_free(batch->events[i]);
		else
			batch->events[kept++] = batch->events[i];
	batch->n = kept;
}

/* Up to where the holes can be closed: not beyond what is not done. */
static int64
closed_upto(const ShopOutlet *outlet, const ShopBatch *batch)
{
	int64 closed = outlet->horizon_no;

	if (batch->has_last)
		closed = Min(closed, batch->last);
	for (int i = 0; i < batch->n; i++)
		if (!batch->events[i]->retry && !is_done(batch->events[i]))
			closed = Min(closed, batch->events[i]->event_no - 1);
	return closed;
}

/* A broken endpoint backs off, anew after every probe. */
static void
set_retry_at(ShopOutlet *outlet, TimestampTz now)
{
	if (outlet->failures < SHOP_BREAKER_FAILURES)
		outlet->retry_at = DT_NOBEGIN;
	else if (outlet->tried || outlet->retry_at == DT_NOBEGIN)
		outlet->retry_at = back_off(outlet, outlet->failures - SHOP_BREAKER_FAILURES + 1, 0, now);
	outlet->tried = false;
}

/*
 * To be called when events have left the queues of their keys, or have come
 * to them: those that are the first now are due.
 */
void
shop_batch_move_up(int64 endpoint_id, ShopValue event_nos, TimestampTz now)
{
	shop_query(&move_up, SHOP_VALUES(shop_int8(endpoint_id), event_nos, shop_time(now)));
}

/*
 * Writes the rows of shop.delivery for what has come to an end.  To be called
 * before new events are loaded: they look there for earlier ones of their key.
 */
void
shop_batch_settle(ShopOutlet *outlet, ShopBatch *batch, TimestampTz now)
{
	ShopValue id = shop_int8(outlet->pub.endpoint_id);
	ShopEvent **failed = palloc(sizeof(ShopEvent *) * Max(batch->n, 1));
	int64 *gone = palloc(sizeof(int64) * Max(batch->n, 1)); /* wait no more */
	int64 *unsent = palloc(sizeof(int64) * Max(batch->n, 1));
	int nfailed = 0;
	int ngone = 0;
	int nunsent = 0;

	for (int i = 0; i < batch->n; i++)
	{
		ShopEvent *event = batch->events[i];

		if (event->settled || (!is_done(event) && event->state != SHOP_EVENT_FORGOTTEN))
			continue;
		event->settled = true;
		if (event->state == SHOP_EVENT_FAILED || event->state == SHOP_EVENT_QUEUED)
			failed[nfailed++] = event;
		else if (event->retry && event->state == SHOP_EVENT_DELIVERED)
			gone[ngone++] = event->event_no;
		else if (event->retry && event->state == SHOP_EVENT_FORGOTTEN)
			unsent[nunsent++] = event->event_no;
	}
	if (nunsent > 0)
		shop_query(&return_lease, SHOP_VALUES(id, shop_int8_array(unsent, nunsent)));
	/* Before the failures are written, for it depends on what is ahead of one when it is due. */
	if (ngone > 0)
		shop_query(&delete_deliveries, SHOP_VALUES(id, shop_int8_array(gone, ngone)));
	for (int i = 0; i < nfailed; i++)
		if (store_failure(outlet, failed[i], now))
			gone[ngone++] = failed[i]->event_no;
	if (ngone > 0)
		shop_batch_move_up(outlet->pub.endpoint_id, shop_int8_array(gone, ngone), now);
}

/* Updates the endpoint's row where it is, unless it was moved in this transaction. */
static void
write_down(ShopOutlet *outlet, const ShopValue *values)
{
	bool isnull;

	if (shop_query(&acknowledge_at, values) > 0 || shop_query(&acknowledge, values) > 0)
		outlet->place = *(ItemPointer) DatumGetPointer(shop_fetch(0, 1, &isnull));
}

/*
 * Writes down what became of the batch; returns the events delivered.  With
 * `keep`, what is not done yet stays in the batch, and is noted as being on
 * its way.
 */
int64
shop_batch_record(ShopOutlet *outlet, ShopBatch *batch, bool keep, TimestampTz now)
{
	ShopValue id = shop_int8(outlet->pub.endpoint_id);
	int64 *done = palloc(sizeof(int64) * Max(batch->n, 1));
	int64 *sent = palloc(sizeof(int64) * Max(batch->n, 1));
	int ndone = 0;
	int nsent = 0;
	int64 delivered = 0;

	shop_batch_settle(outlet, batch, now);
	for (int i = 0; i < batch->n; i++)
	{
		const ShopEvent *event = batch->events[i];

		if (event->state == SHOP_EVENT_DELIVERED)
			delivered++;
		if (!event->retry && is_done(event))
			done[ndone++] = event->event_no;
		else if (!event->retry && event->state != SHOP_EVENT_FORGOTTEN)
			sent[nsent++] = event->event_no;
	}
	set_retry_at(outlet, now);

	/* Holes close only below what was all seen, just now, and done. */
	write_down(
		outlet, SHOP_VALUES(id, shop_text(shop_multirange(done, ndone)),
					shop_int8_or_null(closed_upto(outlet, batch), !outlet->closable || !batch->has_new),
					shop_int8(delivered), shop_time(now), shop_int4(outlet->failures),
					(ShopValue){TimestampTzGetDatum(outlet->retry_at), outlet->retry_at == DT_NOBEGIN},
					shop_text(batch->last_error), shop_datum(FullTransactionIdGetDatum(ReadNextFullTransactionId())),
					shop_text(keep && nsent > 0 ? shop_multirange(sent, nsent) : NULL), shop_text(batch->pause_reason),
					place_of(outlet)));
	if (keep)
		remove_done(batch);
	return delivered;
}
