/*
 * delivery.c
 *		Brings events to endpoints: at least once, in order per key, nothing
 *		skipped.
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
#include "outbox/outbox.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "error.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "query.h"
#include "sink/sink.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/xid8.h"

/* What an endpoint's options say if they say nothing. */
#define DEFAULT_MAX_ATTEMPTS 12
#define DEFAULT_BACKOFF_MS 1000
#define DEFAULT_MAX_BACKOFF_MS (10 * 60 * 1000)
#define DEFAULT_TIMEOUT_MS (5 * 1000)

/* So many failures in a row, and the endpoint backs off as a whole. */
#define BREAKER_FAILURES 20

/* Subtransactions of one transaction; above 64, every snapshot gets slower. */
#define MAX_CALLS 32

/* A worker calls an endpoint no more for a while once this is used up: others wait. */
#define BUDGET_MS 1000

#define ENDPOINT_COLUMNS \
	"endpoint_id, name, url, run_as, failures," \
	" coalesce((options->'max_attempts')::integer, 0), coalesce((options->'backoff')::integer, 0)," \
	" coalesce((options->'max_backoff')::integer, 0), coalesce((options->'timeout')::integer, 0)," \
	" coalesce(horizon_xid <= pg_snapshot_xmin(pg_current_snapshot()), false), retry_at, types, acked, horizon_no, " \
	"run_as_oid"

#define ENDPOINT_READY \
	" FROM shop.endpoint WHERE endpoint_id = $1 AND NOT paused" \
	" AND shop.is_home(system_identifier, database_oid) FOR NO KEY UPDATE"

static ShopQuery lock_endpoint = SHOP_QUERY("SELECT " ENDPOINT_COLUMNS ENDPOINT_READY, INT8OID);
static ShopQuery lock_free_endpoint = SHOP_QUERY("SELECT " ENDPOINT_COLUMNS ENDPOINT_READY " SKIP LOCKED", INT8OID);

#define EVENT \
	"jsonb_build_object('specversion', '1.0', 'id', o.id, 'source', '/shop/' || current_database()," \
	" 'type', o.type, 'subject', o.aggregateid," \
	" 'time', to_char(o.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')," \
	" 'datacontenttype', 'application/json', 'aggregatetype', o.aggregatetype, 'data', o.payload)"

/*
 * The next events in the gaps of acked ($2): the oldest ($3 of them), and
 * where there are more than that, also the urgent ones behind them with what
 * is ahead of those in their keys.  A key goes by its most urgent event, so
 * that its events stay in order.  `last` is the last number up to which all
 * that is visible is in this batch, null if that is all there is.
 */
static ShopQuery load_new = SHOP_QUERY(
	"WITH gap AS MATERIALIZED"
	"  (SELECT coalesce(lower(g), 0) AS first, coalesce(upper(g), 9223372036854775807) AS next"
	"     FROM unnest('{(,)}'::int8multirange - $2) g),"
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
	"        CASE WHEN w.wanted THEN " EVENT " END, 0,"
	"        least(upto.last, (SELECT min(event_no) - 1 FROM ranked WHERE n > $3))"
	"   FROM upto, ranked r JOIN shop.outbox o USING (event_no)"
	"  CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM unnest($4) t WHERE t = '*' OR t = o.type"
	"                             OR (t LIKE '%.*' AND starts_with(o.type, left(t, -1))))) w(wanted)"
	"  WHERE r.n <= $3 ORDER BY r.n",
	INT8OID, INT8MULTIRANGEOID, INT4OID, TEXTARRAYOID);

/* Retries of the keys whose first event is due, in order. */
static ShopQuery load_due = SHOP_QUERY(
	"SELECT o.event_no, o.id, o.aggregateid, true, false, " EVENT ", d.attempts, NULL::bigint"
	"  FROM shop.delivery h"
	"  JOIN shop.delivery d ON d.endpoint_id = h.endpoint_id AND d.aggregateid = h.aggregateid AND d.dead_at IS NULL"
	"  JOIN shop.outbox o ON o.event_no = d.event_no"
	" WHERE h.endpoint_id = $1 AND h.dead_at IS NULL AND h.next_attempt_at <= $2"
	"   AND NOT EXISTS (SELECT FROM shop.delivery b WHERE b.endpoint_id = h.endpoint_id"
	"                   AND b.aggregateid = h.aggregateid AND b.dead_at IS NULL AND b.event_no < h.event_no)"
	" ORDER BY o.event_no LIMIT $3",
	INT8OID, TIMESTAMPTZOID, INT4OID);

static ShopQuery next_retry = SHOP_QUERY(
	"SELECT min(next_attempt_at) FROM shop.delivery h WHERE endpoint_id = $1 AND dead_at IS NULL"
	"   AND NOT EXISTS (SELECT FROM shop.delivery b WHERE b.endpoint_id = h.endpoint_id"
	"                   AND b.aggregateid = h.aggregateid AND b.dead_at IS NULL AND b.event_no < h.event_no)",
	INT8OID);

static ShopQuery put_delivery = SHOP_QUERY(
	"INSERT INTO shop.delivery AS d (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at,"
	"                                last_error, dead_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
	" ON CONFLICT (endpoint_id, event_no) DO UPDATE"
	"   SET attempts = $5, next_attempt_at = $6, last_error = $7, dead_at = $8",
	INT8OID, INT8OID, UUIDOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID);

static ShopQuery delete_deliveries = SHOP_QUERY(
	"DELETE FROM shop.delivery WHERE endpoint_id = $1 AND event_no = ANY ($2)", INT8OID, INT8ARRAYOID);

/*
 * $2 are the numbers done; all up to $3 is done with.  A gap that is left
 * gets a horizon, with $9, an xid not given out when the last number was seen.
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
	"       failures = $6, retry_at = $7, last_error = coalesce($8, last_error)"
	"  FROM (SELECT a.acked, int8multirange(range_merge(a.acked)) <> a.acked AS has_gap"
	"          FROM (SELECT c.acked + int8multirange(int8range(NULL, coalesce($3, 0), '[]'))"
	"                       + coalesce((SELECT range_agg(int8range(k, k, '[]')) FROM unnest($2) k), '{}') AS acked"
	"                  FROM shop.endpoint c WHERE c.endpoint_id = $1) a) n"
	" WHERE e.endpoint_id = $1",
	INT8OID, INT8ARRAYOID, INT8OID, INT8OID, TIMESTAMPTZOID, INT4OID, TIMESTAMPTZOID, TEXTOID, XID8OID);

static ShopQuery list_endpoints = SHOP_QUERY(
	"SELECT endpoint_id, builtin FROM shop.endpoint"
	" WHERE url LIKE 'function:%' AND ($1 IS NULL OR name = $1 AND NOT builtin) ORDER BY endpoint_id",
	TEXTOID);

static ShopQuery find_builtin = SHOP_QUERY("SELECT endpoint_id FROM shop.endpoint WHERE builtin");

SHOP_FUNCTION(shop_deliver_events);

/* An endpoint while we hold its lock. */
typedef struct Endpoint
{
	ShopEndpoint pub;
	const ShopSink *sink;
	int failures;
	int max_attempts;
	int backoff_ms;
	int max_backoff_ms;
	bool closable; /* may the holes up to horizon_no be closed? */
	int64 horizon_no;
	TimestampTz retry_at; /* DT_NOBEGIN: at once */
	Datum types;
	Datum acked;
} Endpoint;

typedef enum EventState
{
	EVENT_UNTRIED,
	EVENT_UNWANTED,
	EVENT_DELIVERED,
	EVENT_FAILED,
	EVENT_QUEUED /* behind an earlier one of its key */
} EventState;

typedef struct Event
{
	int64 event_no;
	Datum id;
	char *key;
	Datum event;
	int attempts;
	bool retry; /* does it have a row in shop.delivery? */
	EventState state;
	char *error;
} Event;

typedef struct Batch
{
	Event *events;
	int n;
	bool has_new; /* was new work looked for at all? */
	bool has_last;
	int64 last; /* all that is visible up to here is in the batch */
	int calls;
	char *last_error;
} Batch;

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

/* False if the endpoint is gone, paused, or (without waiting) busy. */
static bool
lock(int64 endpoint_id, bool wait, Endpoint *endpoint)
{
	bool isnull;

	if (shop_query(wait ? &lock_endpoint : &lock_free_endpoint, SHOP_VALUES(shop_int8(endpoint_id))) == 0)
		return false;
	endpoint->pub.endpoint_id = endpoint_id;
	endpoint->pub.name = shop_fetch_text(0, 2);
	endpoint->pub.url = shop_fetch_text(0, 3);
	endpoint->pub.run_as = shop_fetch_text(0, 4);
	endpoint->failures = shop_fetch_int4(0, 5);
	endpoint->max_attempts = option(0, 6, DEFAULT_MAX_ATTEMPTS);
	endpoint->backoff_ms = option(0, 7, DEFAULT_BACKOFF_MS);
	endpoint->max_backoff_ms = option(0, 8, DEFAULT_MAX_BACKOFF_MS);
	endpoint->pub.timeout_ms = option(0, 9, DEFAULT_TIMEOUT_MS);
	endpoint->closable = shop_fetch_bool(0, 10);
	endpoint->retry_at = DatumGetTimestampTz(shop_fetch(0, 11, &isnull));
	if (isnull)
		endpoint->retry_at = DT_NOBEGIN;
	endpoint->types = copy_varlena(0, 12);
	endpoint->acked = copy_varlena(0, 13);
	endpoint->horizon_no = DatumGetInt64(shop_fetch(0, 14, &isnull));
	endpoint->pub.run_as_oid = DatumGetObjectId(shop_fetch(0, 15, &isnull));
	endpoint->sink = shop_sink_of(endpoint->pub.url);
	return true;
}

/* Reads the rows of load_new or load_due behind what the batch has already. */
static void
append_events(Batch *batch, uint64 rows, bool retry)
{
	if (rows == 0)
		return;
	batch->events = batch->events ? repalloc(batch->events, sizeof(Event) * (batch->n + rows))
								  : palloc(sizeof(Event) * rows);
	for (uint64 row = 0; row < rows; row++)
	{
		Event *event = &batch->events[batch->n++];
		bool wanted = shop_fetch_bool(row, 4);
		bool isnull;
		Datum id = shop_fetch(row, 2, &isnull);

		memset(event, 0, sizeof(Event));
		event->event_no = shop_fetch_int8(row, 1);
		event->id = PointerGetDatum(memcpy(palloc(16), DatumGetPointer(id), 16));
		event->key = shop_fetch_text(row, 3);
		event->retry = retry;
		event->attempts = shop_fetch_int4(row, 7);
		if (wanted)
			event->event = copy_varlena(row, 6);
		event->state = !wanted ? EVENT_UNWANTED : shop_fetch_bool(row, 5) ? EVENT_QUEUED : EVENT_UNTRIED;
	}
	if (!retry && !shop_fetch_isnull(0, 8))
	{
		batch->has_last = true;
		batch->last = shop_fetch_int8(0, 8);
	}
}

static Batch
load(const Endpoint *endpoint, int limit, TimestampTz now)
{
	Batch batch = {0};
	ShopValue id = shop_int8(endpoint->pub.endpoint_id);

	/* A broken endpoint is probed with one event. */
	if (endpoint->failures >= BREAKER_FAILURES)
		limit = 1;

	append_events(
		&batch, shop_query(&load_due, SHOP_VALUES(id, shop_time(now), shop_int4(Min(limit, MAX_CALLS)))), true);
	batch.has_new = batch.n < limit;
	if (batch.has_new)
		append_events(&batch,
			shop_query(&load_new,
				SHOP_VALUES(id, shop_datum(endpoint->acked), shop_int4(limit - batch.n), shop_datum(endpoint->types))),
			false);
	return batch;
}

/* Queues the untried events behind `from` that have its key. */
static void
queue_key(Batch *batch, int from)
{
	for (int i = from + 1; i < batch->n; i++)
		if (batch->events[i].state == EVENT_UNTRIED && strcmp(batch->events[i].key, batch->events[from].key) == 0)
			batch->events[i].state = EVENT_QUEUED;
}

/* Collects up to `size` untried events from `from` on; returns how many. */
static int
collect(const Batch *batch, int from, int size, int *chosen, Datum *events)
{
	int n = 0;

	for (int i = from; i < batch->n && n < size; i++)
		if (batch->events[i].state == EVENT_UNTRIED)
		{
			chosen[n] = i;
			events[n++] = batch->events[i].event;
		}
	return n;
}

static void
mark_failed(Endpoint *endpoint, Batch *batch, int i, char *error)
{
	batch->events[i].state = EVENT_FAILED;
	batch->events[i].error = error;
	batch->last_error = error;
	endpoint->failures++;
	queue_key(batch, i);
}

static void
mark_delivered(Endpoint *endpoint, Batch *batch, const int *chosen, int n)
{
	for (int i = 0; i < n; i++)
		batch->events[chosen[i]].state = EVENT_DELIVERED;
	endpoint->failures = 0;
}

/* A worker has other endpoints to serve; a session has only this to do. */
static bool
may_go_on(const Endpoint *endpoint, const Batch *batch, TimestampTz started_at)
{
	return batch->calls < MAX_CALLS && endpoint->failures < BREAKER_FAILURES &&
		   !(IsBackgroundWorker && TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(), BUDGET_MS));
}

/*
 * Delivers what is untried, all at once if it can be, and where that fails in
 * ever smaller parts until the events that fail stand alone.  A call that
 * timed out breaks the circuit at once: next comes a single event.
 */
static void
deliver(Endpoint *endpoint, Batch *batch)
{
	TimestampTz started_at = GetCurrentTimestamp();
	int *chosen = palloc(sizeof(int) * Max(batch->n, 1));
	Datum *events = palloc(sizeof(Datum) * Max(batch->n, 1));
	int size = batch->n;
	int from = 0;

	do
	{
		int n = collect(batch, from, size, chosen, events);
		bool timed_out = false;
		char *error;

		if (n == 0)
			return;
		error = endpoint->sink->deliver(&endpoint->pub, events, n, &timed_out);
		batch->calls++;
		if (error == NULL)
			mark_delivered(endpoint, batch, chosen, n);
		else if (n == 1)
			mark_failed(endpoint, batch, chosen[0], error);
		if (error == NULL || n == 1)
		{
			from = chosen[n - 1] + 1;
			size = error == NULL ? size : batch->n;
		}
		else
			size = n / 2;
		if (timed_out)
		{
			batch->last_error = error;
			endpoint->failures = Max(endpoint->failures, BREAKER_FAILURES);
		}
	} while (may_go_on(endpoint, batch, started_at));
}

/* The delay before try n + 1: doubled each time, up to a limit, give or take half. */
static TimestampTz
back_off(const Endpoint *endpoint, int n, TimestampTz now)
{
	double ms = endpoint->backoff_ms;

	for (int i = 1; i < n && ms < endpoint->max_backoff_ms; i++)
		ms *= 2;
	ms = Min(ms, endpoint->max_backoff_ms) * (0.5 + pg_prng_double(&pg_global_prng_state));
	return TimestampTzPlusMilliseconds(now, (int64) ms);
}

static void
store_failure(const Endpoint *endpoint, const Event *event, TimestampTz now)
{
	bool queued = event->state == EVENT_QUEUED;
	int attempts = event->attempts + (queued ? 0 : 1);
	bool dead = attempts >= endpoint->max_attempts;

	/* What is queued already stays as it is. */
	if (queued && event->retry)
		return;
	shop_query(&put_delivery,
		SHOP_VALUES(shop_int8(endpoint->pub.endpoint_id), shop_int8(event->event_no), shop_datum(event->id),
			shop_text(event->key), shop_int4(attempts), shop_time(queued ? now : back_off(endpoint, attempts, now)),
			shop_text(event->error), dead && !queued ? shop_time(now) : shop_null()));
}

/* Writes down what became of the batch; returns the events delivered. */
static int64
record(Endpoint *endpoint, const Batch *batch, TimestampTz now)
{
	int64 *done = palloc(sizeof(int64) * Max(batch->n, 1));
	int64 *retried = palloc(sizeof(int64) * Max(batch->n, 1));
	int ndone = 0;
	int nretried = 0;
	int64 delivered = 0;
	int64 closed = endpoint->horizon_no;
	ShopValue retry_at = shop_null();

	for (int i = 0; i < batch->n; i++)
	{
		const Event *event = &batch->events[i];

		if (event->state == EVENT_UNTRIED)
			continue;
		if (event->state == EVENT_FAILED || event->state == EVENT_QUEUED)
			store_failure(endpoint, event, now);
		if (event->state == EVENT_DELIVERED)
			delivered++;
		if (!event->retry)
			done[ndone++] = event->event_no;
		else if (event->state == EVENT_DELIVERED)
			retried[nretried++] = event->event_no;
	}
	if (nretried > 0)
		shop_query(
			&delete_deliveries, SHOP_VALUES(shop_int8(endpoint->pub.endpoint_id), shop_int8_array(retried, nretried)));

	/* Holes close only below what was all seen, just now, and done. */
	if (batch->has_last)
		closed = Min(closed, batch->last);
	for (int i = 0; i < batch->n; i++)
		if (!batch->events[i].retry && batch->events[i].state == EVENT_UNTRIED)
			closed = Min(closed, batch->events[i].event_no - 1);
	if (endpoint->failures >= BREAKER_FAILURES)
		retry_at = shop_time(back_off(endpoint, endpoint->failures - BREAKER_FAILURES + 1, now));

	shop_query(
		&acknowledge, SHOP_VALUES(shop_int8(endpoint->pub.endpoint_id), shop_int8_array(done, ndone),
						  shop_int8_or_null(closed, !endpoint->closable || !batch->has_new), shop_int8(delivered),
						  shop_time(now), shop_int4(endpoint->failures), retry_at, shop_text(batch->last_error),
						  shop_datum(FullTransactionIdGetDatum(ReadNextFullTransactionId()))));
	return delivered;
}

static bool
has_untried(const Batch *batch)
{
	for (int i = 0; i < batch->n; i++)
		if (batch->events[i].state == EVENT_UNTRIED)
			return true;
	return false;
}

/*
 * Delivers one batch to one endpoint in this transaction.  Without `wait`,
 * an endpoint somebody else is delivering to is left alone.
 */
ShopDelivered
shop_deliver_batch(int64 endpoint_id, int limit, bool wait)
{
	ShopDelivered result = {.next_at = DT_NOEND};
	TimestampTz now = shop_now();
	Endpoint endpoint = {0};
	Batch batch;
	bool isnull;

	if (!lock(endpoint_id, wait, &endpoint))
		return result;
	if (endpoint.retry_at > now)
	{
		result.next_at = endpoint.retry_at;
		return result;
	}

	batch = load(&endpoint, limit, now);
	deliver(&endpoint, &batch);
	if (batch.n > 0 || endpoint.closable)
		result.delivered = record(&endpoint, &batch, now);

	shop_query(&next_retry, SHOP_VALUES(shop_int8(endpoint_id)));
	result.next_at = DatumGetTimestampTz(shop_fetch(0, 1, &isnull));
	if (isnull)
		result.next_at = DT_NOEND;
	result.more = endpoint.failures < BREAKER_FAILURES &&
				  (batch.n >= limit || has_untried(&batch) || (batch.n > 0 && result.next_at <= now));
	return result;
}

/* Delivers a batch in an SPI level of its own, which frees all that it used. */
static ShopDelivered
deliver_batch_here(int64 endpoint_id, int limit)
{
	ShopDelivered result;

	CHECK_FOR_INTERRUPTS();
	SPI_connect();
	result = shop_deliver_batch(endpoint_id, limit, true);
	SPI_finish();
	return result;
}

/*
 * Delivers to one function: endpoint, or all of them, until nothing is due or
 * max_events have been delivered; returns how many.
 */
static int64
deliver_all(const char *name, int64 max_events)
{
	uint64 n;
	int64 *ids;
	bool *builtin;
	int64 delivered = 0;

	shop_endpoint_ensure_builtin();
	n = shop_query(&list_endpoints, SHOP_VALUES(shop_text(name)));
	if (n == 0 && name != NULL)
		shop_refuse(SHOP_ENDPOINT_NOT_FOUND, "{\"endpoint\": %s}", shop_json_string(name));

	ids = palloc(sizeof(int64) * Max(n, 1));
	builtin = palloc(sizeof(bool) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		ids[i] = shop_fetch_int8(i, 1);
		builtin[i] = shop_fetch_bool(i, 2);
	}
	for (uint64 i = 0; i < n; i++)
	{
		ShopDelivered batch;

		do
		{
			int64 limit = builtin[i] ? 1000 : Min(max_events - delivered, 1000);

			if (limit <= 0)
				break;
			batch = deliver_batch_here(ids[i], (int) limit);
			if (!builtin[i])
				delivered += batch.delivered;
		} while (batch.more);
	}
	return delivered;
}

/* Folds all sales that are visible now, whoever else is delivering. */
void
shop_deliver_builtin(void)
{
	int64 endpoint_id;

	shop_endpoint_ensure_builtin();
	shop_query(&find_builtin, NULL);
	endpoint_id = shop_fetch_int8(0, 1);
	while (deliver_batch_here(endpoint_id, 1000).more)
		;
}

Datum
shop_deliver_events(PG_FUNCTION_ARGS)
{
	char *name = shop_arg_text_or_null(fcinfo, 0);
	int32 max_events = shop_arg_int32(fcinfo, 1, "max_events");
	int64 delivered;

	if (max_events < 1)
		shop_reject("max_events", "must be greater than 0");
	shop_write_verb("deliver_events()");

	SPI_connect();
	delivered = deliver_all(name, max_events);
	SPI_finish();
	PG_RETURN_INT64(delivered);
}
