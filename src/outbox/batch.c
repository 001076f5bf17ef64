/*
 * batch.c
 *		What every kind of delivery does in its transactions: find the events
 *		that are next for an endpoint, and write down what became of them.
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
 * there; other keys pass.  An endpoint that takes nothing any more backs off
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
#include "utils/builtins.h"
#include "utils/xid8.h"

/* What an endpoint's options say if they say nothing. */
#define DEFAULT_MAX_ATTEMPTS 12
#define DEFAULT_BACKOFF_MS 1000
#define DEFAULT_MAX_BACKOFF_MS (10 * 60 * 1000)
#define DEFAULT_TIMEOUT_MS (5 * 1000)

/* Retries of one transaction. */
#define MAX_DUE 32

#define ENDPOINT_COLUMNS \
	"endpoint_id, name, url, run_as, failures," \
	" coalesce((options->'max_attempts')::integer, 0), coalesce((options->'backoff')::integer, 0)," \
	" coalesce((options->'max_backoff')::integer, 0), coalesce((options->'timeout')::integer, 0)," \
	" coalesce(horizon_xid <= pg_snapshot_xmin(pg_current_snapshot()), false), retry_at, types, acked, horizon_no, " \
	"run_as_oid, shop.is_home(system_identifier, database_oid), paused, secret, options"

#define OF_ENDPOINT " FROM shop.endpoint WHERE endpoint_id = $1"
#define READY " AND NOT paused AND shop.is_home(system_identifier, database_oid)"

static ShopQuery lock_ready = SHOP_QUERY("SELECT " ENDPOINT_COLUMNS OF_ENDPOINT READY " FOR NO KEY UPDATE", INT8OID);
static ShopQuery lock_free_ready = SHOP_QUERY(
	"SELECT " ENDPOINT_COLUMNS OF_ENDPOINT READY " FOR NO KEY UPDATE SKIP LOCKED", INT8OID);
static ShopQuery lock_free = SHOP_QUERY(
	"SELECT " ENDPOINT_COLUMNS OF_ENDPOINT " FOR NO KEY UPDATE SKIP LOCKED", INT8OID);

#define EVENT \
	"jsonb_build_object('specversion', '1.0', 'id', o.id, 'source', '/shop/' || current_database()," \
	" 'type', o.type, 'subject', o.aggregateid," \
	" 'time', to_char(o.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')," \
	" 'datacontenttype', 'application/json', 'aggregatetype', o.aggregatetype, 'data', o.payload)" \
	" || CASE WHEN o.traceparent IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('traceparent', o.traceparent) END"

/*
 * The next events in the gaps of acked ($2), and not in $5: the oldest ($3 of them), and
 * where there are more than that, also the urgent ones behind them with what
 * is ahead of those in their keys.  A key goes by its most urgent event, so
 * that its events stay in order.  `last` is the last number up to which all
 * that is visible is in this batch, null if that is all there is.
 */
static ShopQuery load_new = SHOP_QUERY(
	"WITH gap AS MATERIALIZED"
	"  (SELECT coalesce(lower(g), 0) AS first, coalesce(upper(g), 9223372036854775807) AS next"
	"     FROM unnest('{(,)}'::int8multirange - $2"
	"                 - coalesce((SELECT range_agg(int8range(k, k, '[]')) FROM unnest($5) k), '{}')) g),"
	" plain AS MATERIALIZED"
	"  (SELECT o.event_no FROM gap CROSS JOIN LATERAL"
	"          (SELECT event_no FROM shop.outbox WHERE event_no >= gap.first AND event_no < gap.next"
	"            ORDER BY event_no LIMIT $3) o"
	"    ORDER BY o.event_no LIMIT $3),"
	" upto AS MATERIALIZED"
	"  (SELECT CASE WHEN count(*) = $3 THEN max(event_no) END AS last FROM plain),"
	" urgent AS MATERIALIZED"
	"  (SELECT o.event_no, o.aggregateid FROM upto CROSS JOIN gap CROSS JOIN LATERAL"
	"          (SELECT event_no, aggregateid, priority FROM shop.outbox"
	"            WHERE priority > 0 AND event_no >= gap.first AND event_no < gap.next AND event_no > upto.last"
	"            ORDER BY event_no LIMIT 10000) o"
	"    ORDER BY o.priority DESC, o.event_no LIMIT $3),"
	" ahead AS MATERIALIZED"
	"  (SELECT o.event_no FROM upto CROSS JOIN gap CROSS JOIN LATERAL"
	"          (SELECT event_no FROM shop.outbox"
	"            WHERE event_no >= gap.first AND event_no < gap.next AND event_no > upto.last"
	"              AND event_no < (SELECT max(event_no) FROM urgent)"
	"              AND (aggregateid IN (SELECT aggregateid FROM urgent)) IS TRUE) o),"
	" batch AS"
	"  (SELECT event_no FROM plain UNION SELECT event_no FROM urgent UNION SELECT event_no FROM ahead),"
	" ranked AS MATERIALIZED"
	"  (SELECT event_no, row_number() OVER (ORDER BY urgency DESC, event_no) AS n"
	"     FROM (SELECT o.event_no, max(o.priority) OVER (PARTITION BY o.aggregateid) AS urgency"
	"             FROM batch JOIN shop.outbox o USING (event_no)) u)"
	" SELECT o.event_no, o.id, o.aggregateid, w.wanted,"
	"        w.wanted AND EXISTS (SELECT FROM shop.delivery d WHERE d.endpoint_id = $1"
	"                             AND d.aggregateid = o.aggregateid AND d.dead_at IS NULL),"
	"        CASE WHEN w.wanted THEN " EVENT " END, 0, false,"
	"        least(upto.last, (SELECT min(event_no) - 1 FROM ranked WHERE n > $3)), o.traceparent"
	"   FROM upto, ranked r JOIN shop.outbox o USING (event_no)"
	"  CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM unnest($4) t WHERE t = '*' OR t = o.type"
	"                             OR (t LIKE '%.*' AND starts_with(o.type, left(t, -1))))) w(wanted)"
	"  WHERE r.n <= $3 ORDER BY r.n",
	INT8OID, INT8MULTIRANGEOID, INT4OID, TEXTARRAYOID, INT8ARRAYOID);

/*
 * The first waiting event of each key, one step in the index a key: whatever
 * is queued behind them costs nothing, and there is no other way to plan it.
 */
#define HEADS \
	"WITH RECURSIVE head AS" \
	"  ((SELECT aggregateid, event_no, next_attempt_at FROM shop.delivery" \
	"     WHERE endpoint_id = $1 AND dead_at IS NULL ORDER BY aggregateid, event_no LIMIT 1)" \
	"   UNION ALL" \
	"   SELECT n.* FROM head CROSS JOIN LATERAL" \
	"          (SELECT aggregateid, event_no, next_attempt_at FROM shop.delivery" \
	"            WHERE endpoint_id = $1 AND dead_at IS NULL AND aggregateid > head.aggregateid" \
	"            ORDER BY aggregateid, event_no LIMIT 1) n)"

/* Those that are due; with $4, also what is queued behind them. */
static ShopQuery load_due = SHOP_QUERY(HEADS
	", due AS MATERIALIZED"
	"  (SELECT aggregateid, event_no FROM head WHERE next_attempt_at <= $2 AND event_no <> ALL ($5)"
	"    ORDER BY event_no LIMIT $3)"
	" SELECT o.event_no, o.id, o.aggregateid, true, false, " EVENT ", d.attempts, d.suspect, NULL::bigint,"
	"       o.traceparent"
	"  FROM due"
	"  JOIN shop.delivery d ON d.endpoint_id = $1 AND d.aggregateid = due.aggregateid AND d.dead_at IS NULL"
	"   AND ($4 OR d.event_no = due.event_no)"
	"  JOIN shop.outbox o ON o.event_no = d.event_no"
	" ORDER BY o.event_no LIMIT $3",
	INT8OID, TIMESTAMPTZOID, INT4OID, BOOLOID, INT8ARRAYOID);

static ShopQuery next_retry = SHOP_QUERY(
	HEADS " SELECT min(next_attempt_at) FROM head WHERE event_no <> ALL ($2)", INT8OID, INT8ARRAYOID);

/*
 * Counts a try before it is made, so that an event that ends its sender is
 * dead in the end too.
 */
static ShopQuery lease_due = SHOP_QUERY("UPDATE shop.delivery SET attempts = attempts + 1, suspect = true"
										" WHERE endpoint_id = $1 AND event_no = ANY ($2)",
	INT8OID, INT8ARRAYOID);

/* Nor is a try counted that was not made. */
static ShopQuery return_lease = SHOP_QUERY("UPDATE shop.delivery SET attempts = attempts - 1, suspect = false"
										   " WHERE endpoint_id = $1 AND event_no = ANY ($2)",
	INT8OID, INT8ARRAYOID);

static ShopQuery put_delivery = SHOP_QUERY(
	"INSERT INTO shop.delivery AS d (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at,"
	"                                last_error, dead_at, suspect)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
	" ON CONFLICT (endpoint_id, event_no) DO UPDATE"
	"   SET attempts = $5, next_attempt_at = $6, last_error = $7, dead_at = $8, suspect = $9",
	INT8OID, INT8OID, UUIDOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID, BOOLOID);

static ShopQuery delete_deliveries = SHOP_QUERY(
	"DELETE FROM shop.delivery WHERE endpoint_id = $1 AND event_no = ANY ($2)", INT8OID, INT8ARRAYOID);

/*
 * $2 are the numbers done; all up to $3 is done with.  A gap that is left
 * gets a horizon, with $9, an xid not given out when the last number was seen.
 * $10 are numbers whose events are on their way.
 */
static ShopQuery acknowledge = SHOP_QUERY(
	"UPDATE shop.endpoint e"
	"   SET acked = n.acked,"
	"       horizon_no = CASE WHEN NOT n.has_gap THEN NULL"
	"                         WHEN $3 IS NULL AND e.horizon_no IS NOT NULL THEN e.horizon_no"
	"                         ELSE upper(n.acked) - 1 END,"
	"       horizon_xid = CASE WHEN NOT n.has_gap THEN NULL"
	"                           WHEN $3 IS NULL AND e.horizon_no IS NOT NULL THEN e.horizon_xid"
	"                           ELSE $9 END,"
	"       delivered_total = delivered_total + $4,"
	"       last_delivered_at = CASE WHEN $4 > 0 THEN $5 ELSE last_delivered_at END,"
	"       failures = $6, retry_at = $7, last_error = coalesce($8, last_error),"
	"       inflight = (SELECT range_agg(int8range(k, k, '[]')) FROM unnest($10) k),"
	"       paused = paused OR $11 IS NOT NULL, pause_reason = coalesce($11, pause_reason)"
	"  FROM (SELECT a.acked, int8multirange(range_merge(a.acked)) <> a.acked AS has_gap"
	"          FROM (SELECT c.acked + int8multirange(int8range(NULL, coalesce($3, 0), '[]'))"
	"                       + coalesce((SELECT range_agg(int8range(k, k, '[]')) FROM unnest($2) k), '{}') AS acked"
	"                  FROM shop.endpoint c WHERE c.endpoint_id = $1) a) n"
	" WHERE e.endpoint_id = $1",
	INT8OID, INT8ARRAYOID, INT8OID, INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID, TEXTOID, XID8OID, INT8ARRAYOID,
	TEXTOID);

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

static bool
lock(ShopQuery *query, int64 endpoint_id, ShopOutlet *outlet)
{
	MemoryContext before;
	bool isnull;

	if (shop_query(query, SHOP_VALUES(shop_int8(endpoint_id))) == 0)
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
	outlet->types = copy_varlena(0, 12);
	outlet->acked = copy_varlena(0, 13);
	outlet->horizon_no = shop_fetch_int8_or(0, 14, 0);
	outlet->pub.run_as_oid = DatumGetObjectId(shop_fetch(0, 15, &isnull));
	outlet->is_home = shop_fetch_bool(0, 16);
	outlet->ready = outlet->is_home && !shop_fetch_bool(0, 17);
	outlet->pub.secret = shop_fetch_text(0, 18);
	outlet->pub.options = DatumGetJsonbP(copy_varlena(0, 19));
	MemoryContextSwitchTo(before);
	return true;
}

/* Locks an endpoint's row; false if it is not there, paused, a copy, or (without waiting) busy. */
bool
shop_batch_lock(int64 endpoint_id, bool wait, ShopOutlet *outlet)
{
	return lock(wait ? &lock_ready : &lock_free_ready, endpoint_id, outlet);
}

/* Locks it whatever state it is in, without waiting. */
bool
shop_batch_lock_any(int64 endpoint_id, ShopOutlet *outlet)
{
	return lock(&lock_free, endpoint_id, outlet);
}

/* The events live as long as the batch; all else is gone with the transaction. */
static MemoryContext
enter_context(const ShopBatch *batch)
{
	return MemoryContextSwitchTo(batch->context ? batch->context : CurrentMemoryContext);
}

static void
append_event(ShopBatch *batch, ShopEvent *event)
{
	if (batch->n == batch->allocated)
	{
		batch->allocated = Max(batch->allocated * 2, 64);
		batch->events = batch->events ? repalloc(batch->events, sizeof(ShopEvent *) * batch->allocated)
									  : palloc(sizeof(ShopEvent *) * batch->allocated);
	}
	batch->events[batch->n++] = event;
}

/* Reads the rows of load_new or load_due behind what the batch has already. */
static void
append_events(ShopBatch *batch, uint64 rows, bool retry)
{
	MemoryContext before = enter_context(batch);

	for (uint64 row = 0; row < rows; row++)
	{
		ShopEvent *event = palloc0(sizeof(ShopEvent));
		bool wanted = shop_fetch_bool(row, 4);
		bool isnull;

		event->event_no = shop_fetch_int8(row, 1);
		event->id = *DatumGetUUIDP(shop_fetch(row, 2, &isnull));
		event->key = shop_fetch_text(row, 3);
		event->retry = retry;
		event->attempts = shop_fetch_int4(row, 7);
		event->suspect = shop_fetch_bool(row, 8);
		event->traceparent = shop_fetch_text(row, 10);
		if (wanted)
			event->event = copy_varlena(row, 6);
		event->state = !wanted ? SHOP_EVENT_UNWANTED : shop_fetch_bool(row, 5) ? SHOP_EVENT_QUEUED : SHOP_EVENT_UNTRIED;
		append_event(batch, event);
	}
	MemoryContextSwitchTo(before);
}

/* The numbers of events in the batch from the given one on, of the given kind. */
static ShopValue
event_numbers(const ShopBatch *batch, int from, bool retry)
{
	int64 *numbers = palloc(sizeof(int64) * Max(batch->n, 1));
	int n = 0;

	for (int i = from; i < batch->n; i++)
		if (batch->events[i]->retry == retry)
			numbers[n++] = batch->events[i]->event_no;
	return shop_int8_array(numbers, n);
}

static void
free_event(ShopEvent *event)
{
	if (event->event)
		pfree(DatumGetPointer(event->event));
	if (event->error)
		pfree(event->error);
	if (event->traceparent)
		pfree(event->traceparent);
	pfree(event->key);
	pfree(event);
}

/*
 * How many events may be on their way together with this one.  Fewer with
 * every sender that ended with it, and on its last try it is alone, so that
 * the one at fault takes no other with it; but a thousand that a restart of
 * the server has made suspect do not go one by one.
 */
int
shop_event_company(const ShopOutlet *outlet, const ShopEvent *event)
{
	if (!event->suspect)
		return INT_MAX;
	if (event->attempts >= outlet->max_attempts - 1 || event->attempts >= 3)
		return 1;
	return event->attempts == 2 ? 8 : 64;
}

/* Of what was loaded from `from` on, keeps only an event that has to be alone, if there is one. */
static bool
isolate(const ShopOutlet *outlet, ShopBatch *batch, int from)
{
	for (int i = from; i < batch->n; i++)
		if (shop_event_company(outlet, batch->events[i]) == 1)
		{
			ShopEvent *kept = batch->events[i];

			for (int j = from; j < batch->n; j++)
				if (j != i)
					free_event(batch->events[j]);
			batch->events[from] = kept;
			batch->n = from + 1;
			return true;
		}
	return false;
}

/*
 * An event whose senders have ended as often as it may be tried is not tried
 * again.  Twice is the least, for what a relay that ended had loaded may never
 * have left.
 */
static void
give_up_suspects(const ShopOutlet *outlet, ShopBatch *batch, int from)
{
	for (int i = from; i < batch->n; i++)
	{
		ShopEvent *event = batch->events[i];

		if (!event->suspect || event->attempts < Max(outlet->max_attempts, 2))
			continue;
		event->state = SHOP_EVENT_FAILED;
		event->attempts--; /* the last of which is now the one that failed */
		event->error = MemoryContextStrdup(
			batch->context ? batch->context : CurrentMemoryContext, "its senders ended before the answer came");
	}
}

/*
 * Adds to the batch up to `limit` events: retries that are due first, then new
 * ones.  With `lease`, the tries of retries are counted now, and of each key
 * only the first event comes.
 */
void
shop_batch_load(const ShopOutlet *outlet, ShopBatch *batch, int limit, bool lease, TimestampTz now)
{
	ShopValue id = shop_int8(outlet->pub.endpoint_id);
	int before = batch->n;
	bool isolated;
	uint64 rows;

	/* A broken endpoint is probed with one event. */
	if (outlet->failures >= SHOP_BREAKER_FAILURES)
		limit = Min(limit, 1);

	rows = shop_query(&load_due, SHOP_VALUES(id, shop_time(now), shop_int4(Min(limit, MAX_DUE)), shop_bool(!lease),
									 event_numbers(batch, 0, true)));
	append_events(batch, rows, true);
	isolated = lease && isolate(outlet, batch, before);
	if (lease && rows > 0)
	{
		shop_query(&lease_due, SHOP_VALUES(id, event_numbers(batch, before, true)));
		give_up_suspects(outlet, batch, before);
	}

	batch->has_last = false;
	batch->has_new = batch->n - before < limit && !isolated;
	if (batch->has_new)
	{
		rows = shop_query(&load_new, SHOP_VALUES(id, shop_datum(outlet->acked), shop_int4(limit - (batch->n - before)),
										 shop_datum(outlet->types), event_numbers(batch, 0, false)));
		append_events(batch, rows, false);
		if (rows > 0 && !shop_fetch_isnull(0, 9))
		{
			batch->has_last = true;
			batch->last = shop_fetch_int8(0, 9);
		}
	}
	batch->full = batch->n - before >= limit || isolated;
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
		else if (behind && event->state == SHOP_EVENT_UNTRIED && strcmp(event->key, failed->key) == 0)
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

static void
store_failure(const ShopOutlet *outlet, const ShopEvent *event, TimestampTz now)
{
	bool queued = event->state == SHOP_EVENT_QUEUED;
	int attempts = event->attempts + (queued ? 0 : 1);
	int most = event->max_attempts ? Min(event->max_attempts, outlet->max_attempts) : outlet->max_attempts;
	bool dead = !queued && attempts >= most;

	/* What is queued already stays as it is. */
	if (queued && event->retry)
		return;
	shop_query(
		&put_delivery, SHOP_VALUES(shop_int8(outlet->pub.endpoint_id), shop_int8(event->event_no),
						   shop_datum(UUIDPGetDatum(&event->id)), shop_text(event->key), shop_int4(attempts),
						   shop_time(queued ? now : back_off(outlet, attempts, event->retry_after_ms, now)),
						   shop_text(event->error), dead ? shop_time(now) : shop_null(), shop_bool(event->suspect)));
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
			free_event(batch->events[i]);
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
 * Writes the rows of shop.delivery for what has come to an end.  To be called
 * before new events are loaded: they look there for earlier ones of their key.
 */
void
shop_batch_settle(const ShopOutlet *outlet, ShopBatch *batch, TimestampTz now)
{
	ShopValue id = shop_int8(outlet->pub.endpoint_id);
	int64 *retried = palloc(sizeof(int64) * Max(batch->n, 1));
	int64 *unsent = palloc(sizeof(int64) * Max(batch->n, 1));
	int nretried = 0;
	int nunsent = 0;

	for (int i = 0; i < batch->n; i++)
	{
		ShopEvent *event = batch->events[i];

		if (event->settled || (!is_done(event) && event->state != SHOP_EVENT_FORGOTTEN))
			continue;
		event->settled = true;
		if (event->state == SHOP_EVENT_FAILED || event->state == SHOP_EVENT_QUEUED)
			store_failure(outlet, event, now);
		else if (event->retry && event->state == SHOP_EVENT_DELIVERED)
			retried[nretried++] = event->event_no;
		else if (event->retry && event->state == SHOP_EVENT_FORGOTTEN)
			unsent[nunsent++] = event->event_no;
	}
	if (nunsent > 0)
		shop_query(&return_lease, SHOP_VALUES(id, shop_int8_array(unsent, nunsent)));
	if (nretried > 0)
		shop_query(&delete_deliveries, SHOP_VALUES(id, shop_int8_array(retried, nretried)));
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
	shop_query(&acknowledge,
		SHOP_VALUES(id, shop_int8_array(done, ndone),
			shop_int8_or_null(closed_upto(outlet, batch), !outlet->closable || !batch->has_new), shop_int8(delivered),
			shop_time(now), shop_int4(outlet->failures),
			(ShopValue){TimestampTzGetDatum(outlet->retry_at), outlet->retry_at == DT_NOBEGIN},
			shop_text(batch->last_error), shop_datum(FullTransactionIdGetDatum(ReadNextFullTransactionId())),
			shop_int8_array(sent, keep ? nsent : 0), shop_text(batch->pause_reason)));
	if (keep)
		remove_done(batch);
	return delivered;
}

/* When the next retry is due that is not in the batch, or DT_NOEND. */
TimestampTz
shop_batch_next_retry(const ShopOutlet *outlet, const ShopBatch *batch)
{
	shop_query(&next_retry, SHOP_VALUES(shop_int8(outlet->pub.endpoint_id), event_numbers(batch, 0, true)));
	return shop_fetch_time(0, 1);
}
