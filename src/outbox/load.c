/*
 * load.c
 *		Finds the events that are next for an endpoint.
 *
 * New work is what is visible and not in acked, nor in the batch already:
 * the oldest first, which is one walk along the primary key, for as long as
 * nothing urgent waits.  Where something does, the numbers are chosen by
 * urgency, key by key, but no more than MAX_RANGES overtake a backlog.
 * Retries are the first event of each key that waits.
 *
 * Takes no locks.
 */
#include "outbox/batch.h"

#include "catalog/pg_type.h"
#include "query.h"
#include "utils/builtins.h"
#include "utils/multirangetypes.h"

/* Retries of one transaction that calls a function for them. */
#define MAX_DUE 32

/*
 * The ranges of acked above which no urgent event overtakes: each one that does
 * leaves a range, and every batch reads and writes all of them.
 */
#define MAX_RANGES 500

/* What read_event() reads; the attempts and whether it is suspect follow. */
#define EVENT "o.event_no, o.id, o.aggregateid, o.type, o.aggregatetype, o.created_at, o.payload, o.traceparent"

/* The ranges of numbers that are not in acked ($1), nor in the batch ($2); they come in their order. */
#define LEFT "('{(,)}'::int8multirange - $1 - $2::int8multirange)"
#define GAPS \
	"(SELECT coalesce(lower(g), 0) AS first, coalesce(upper(g), 9223372036854775807) AS next FROM unnest(" LEFT ") g)"

/*
 * The oldest events, $3 of them.  Nothing is sorted: the ranges are gone
 * through one after the other, each along the primary key, until there are
 * enough.  A sort would read all that waits, each time.
 */
#define OLDEST(columns) \
	" FROM " GAPS " gap CROSS JOIN LATERAL" \
	" (SELECT " columns " FROM shop.outbox o WHERE event_no >= gap.first AND event_no < gap.next" \
	"   ORDER BY event_no LIMIT $3) o LIMIT $3"
#define OLDEST_NUMBERS "SELECT o.event_no" OLDEST("event_no")

/* What is not in them, told by looking it up; that is for few events of many ranges. */
#define IS_LEFT "event_no >= coalesce(lower(" LEFT "), 0) AND NOT event_no <@ (SELECT $1 + $2::int8multirange)"
#define URGENT " FROM shop.outbox WHERE priority > 0 AND " IS_LEFT

static ShopQuery find_urgent = SHOP_QUERY("SELECT" URGENT " LIMIT 1", INT8MULTIRANGEOID, TEXTOID);

static ShopQuery load_oldest = SHOP_QUERY("SELECT o.*, 0, false" OLDEST(EVENT), INT8MULTIRANGEOID, TEXTOID, INT4OID);

/*
 * The numbers of the oldest events ($3 of them), and where there are more than
 * that, also the urgent ones behind them with what is ahead of those in their
 * keys.  A key goes by its most urgent event, so that its events stay in
 * order.  The second column is the last number up to which all that is visible
 * is chosen, null if that is all there is.
 */
static ShopQuery choose_by_urgency = SHOP_QUERY(
	"WITH plain AS MATERIALIZED (" OLDEST_NUMBERS "),"
	" upto AS MATERIALIZED"
	"  (SELECT CASE WHEN count(*) = $3 THEN max(event_no) END AS last FROM plain),"
	" urgent AS MATERIALIZED"
	"  (SELECT event_no, aggregateid"
	"     FROM (SELECT event_no, aggregateid, priority" URGENT " AND event_no > (SELECT last FROM upto)"
	"            ORDER BY event_no LIMIT 10000) o"
	"    ORDER BY o.priority DESC, o.event_no LIMIT $3),"
	" ahead AS MATERIALIZED"
	"  (SELECT event_no FROM shop.outbox"
	"    WHERE event_no > (SELECT last FROM upto) AND event_no < (SELECT max(event_no) FROM urgent)"
	"      AND (aggregateid IN (SELECT aggregateid FROM urgent)) IS TRUE AND " IS_LEFT "),"
	" batch AS"
	"  (SELECT event_no FROM plain UNION SELECT event_no FROM urgent UNION SELECT event_no FROM ahead),"
	" ranked AS MATERIALIZED"
	"  (SELECT event_no, row_number() OVER (ORDER BY urgency DESC, event_no) AS n"
	"     FROM (SELECT o.event_no, max(o.priority) OVER (PARTITION BY o.aggregateid) AS urgency"
	"             FROM batch JOIN shop.outbox o USING (event_no)) u)"
	" SELECT r.event_no, least(upto.last, (SELECT min(event_no) - 1 FROM ranked WHERE n > $3))"
	"   FROM upto, ranked r WHERE r.n <= $3 ORDER BY r.n",
	INT8MULTIRANGEOID, TEXTOID, INT4OID);

static ShopQuery load_chosen = SHOP_QUERY("SELECT " EVENT ", 0, false"
										  " FROM unnest($1) WITH ORDINALITY chosen(event_no, n)"
										  " JOIN shop.outbox o USING (event_no) ORDER BY chosen.n",
	INT8ARRAYOID);

/* Of events just loaded, those that have to queue behind an earlier one of their key. */
#define WAITING_KEY SHOP_FIRST_WAITING("aggregateid", "o.aggregateid")

static ShopQuery find_queued = SHOP_QUERY(
	"SELECT o.event_no FROM shop.outbox o WHERE o.event_no = ANY ($2) AND o.aggregateid = " WAITING_KEY, INT8OID,
	INT8ARRAYOID);

/*
 * The first waiting event of each key, in the order they are due.  Few others
 * have a time: those that a dead letter, revived, was put ahead of.
 */
#define HEADS \
	" FROM shop.delivery d WHERE endpoint_id = $1 AND dead_at IS NULL AND next_attempt_at < 'infinity'" \
	"  AND event_no = " SHOP_FIRST_WAITING("event_no", "d.aggregateid")
#define BY_TIME " ORDER BY next_attempt_at, event_no"

/* Those that are due; with $4, also what is queued behind them. */
static ShopQuery load_due = SHOP_QUERY(
	"WITH due AS MATERIALIZED"
	"  (SELECT aggregateid" HEADS " AND next_attempt_at <= $2 AND event_no <> ALL ($5)" BY_TIME " LIMIT $3)"
	" SELECT " EVENT ", d.attempts, d.suspect"
	"  FROM due CROSS JOIN LATERAL"
	"       (SELECT event_no, attempts, suspect FROM shop.delivery"
	"         WHERE endpoint_id = $1 AND dead_at IS NULL"
	"           AND aggregateid >= due.aggregateid AND aggregateid <= due.aggregateid"
	"         ORDER BY aggregateid, event_no LIMIT CASE WHEN $4 THEN $3 ELSE 1 END) d"
	"  JOIN shop.outbox o ON o.event_no = d.event_no"
	" ORDER BY o.event_no LIMIT $3",
	INT8OID, TIMESTAMPTZOID, INT4OID, BOOLOID, INT8ARRAYOID);

static ShopQuery next_retry = SHOP_QUERY(
	"SELECT next_attempt_at" HEADS " AND event_no <> ALL ($2)" BY_TIME " LIMIT 1", INT8OID, INT8ARRAYOID);

/*
 * Counts a try before it is made, so that an event that ends its sender is
 * dead in the end too.
 */
static ShopQuery lease_due = SHOP_QUERY("UPDATE shop.delivery SET attempts = attempts + 1, suspect = true"
										" WHERE endpoint_id = $1 AND event_no = ANY ($2)",
	INT8OID, INT8ARRAYOID);

/*
 * Rows to events
 */

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

/* A type is wanted by its name, by the beginning of it before a star (order.*), or like all others (*). */
static bool
is_wanted(const ShopOutlet *outlet, const char *type)
{
	for (int i = 0; i < outlet->n_types; i++)
	{
		const char *wanted = outlet->types[i];
		size_t length = strlen(wanted);

		if (strcmp(wanted, "*") == 0 || strcmp(wanted, type) == 0)
			return true;
		if (length >= 2 && strcmp(wanted + length - 2, ".*") == 0 && strncmp(type, wanted, length - 1) == 0)
			return true;
	}
	return false;
}

/* What is tried again was wanted when it was tried first. */
static ShopEvent *
read_event(const ShopOutlet *outlet, uint64 row, bool retry)
{
	ShopEvent *event = palloc0(sizeof(ShopEvent));
	ShopMessage *message = &event->message;
	char *id;
	bool isnull;

	event->event_no = shop_fetch_int8(row, 1);
	event->id = *DatumGetUUIDP(shop_fetch(row, 2, &isnull));
	id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&event->id)));
	strlcpy(message->id, id, sizeof(message->id));
	pfree(id);
	event->attempts = shop_fetch_int4(row, 9);
	event->suspect = shop_fetch_bool(row, 10);
	message->key = shop_fetch_text(row, 3);
	message->type = shop_fetch_text(row, 4);
	message->aggregatetype = shop_fetch_text(row, 5);
	message->time = DatumGetTimestampTz(shop_fetch(row, 6, &isnull));
	message->traceparent = shop_fetch_text(row, 8);
	message->source = outlet->pub.source;
	event->retry = retry;
	if (retry || is_wanted(outlet, message->type))
		message->data = (Jsonb *) PG_DETOAST_DATUM_COPY(shop_fetch(row, 7, &isnull));
	else
		event->state = SHOP_EVENT_UNWANTED;
	return event;
}

/* Puts the rows of a query behind what the batch has already. */
static void
append_rows(const ShopOutlet *outlet, ShopBatch *batch, uint64 rows, bool retry)
{
	MemoryContext before = enter_context(batch);

	for (uint64 row = 0; row < rows; row++)
		append_event(batch, read_event(outlet, row, retry));
	MemoryContextSwitchTo(before);
}

/* The numbers of events in the batch from the given one on, of the given kind. */
static int64 *
numbers_of(const ShopBatch *batch, int from, bool retry, int *n)
{
	int64 *numbers = palloc(sizeof(int64) * Max(batch->n, 1));

	*n = 0;
	for (int i = from; i < batch->n; i++)
		if (batch->events[i]->retry == retry)
			numbers[(*n)++] = batch->events[i]->event_no;
	return numbers;
}

static ShopValue
number_array(const ShopBatch *batch, int from, bool retry)
{
	int n;
	int64 *numbers = numbers_of(batch, from, retry, &n);

	return shop_int8_array(numbers, n);
}

/*
 * Retries
 */

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
					shop_event_free(batch->events[j]);
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

/* Loads what is due; true if it is an event that has to be alone. */
static bool
load_retries(const ShopOutlet *outlet, ShopBatch *batch, int limit, bool lease, TimestampTz now)
{
	ShopValue id = shop_int8(outlet->pub.endpoint_id);
	int before = batch->n;
	bool isolated;
	uint64 rows;

	if (!outlet->has_waiting)
		return false;
	rows = shop_query(&load_due, SHOP_VALUES(id, shop_time(now), shop_int4(lease ? limit : Min(limit, MAX_DUE)),
									 shop_bool(!lease), number_array(batch, 0, true)));
	append_rows(outlet, batch, rows, true);
	isolated = lease && isolate(outlet, batch, before);
	if (lease && rows > 0)
	{
		shop_query(&lease_due, SHOP_VALUES(id, number_array(batch, before, true)));
		give_up_suspects(outlet, batch, before);
	}
	return isolated;
}

/*
 * New events
 */

static void
note_last(ShopBatch *batch, bool has_last, int64 last)
{
	batch->has_last = has_last;
	batch->last = has_last ? last : 0;
}

static void
load_by_number(const ShopOutlet *outlet, ShopBatch *batch, int limit, ShopValue in_batch)
{
	uint64 rows = shop_query(&load_oldest, SHOP_VALUES(shop_datum(outlet->acked), in_batch, shop_int4(limit)));

	append_rows(outlet, batch, rows, false);
	note_last(batch, rows == (uint64) limit, rows > 0 ? batch->events[batch->n - 1]->event_no : 0);
}

static void
load_by_urgency(const ShopOutlet *outlet, ShopBatch *batch, int limit, ShopValue in_batch)
{
	uint64 rows = shop_query(&choose_by_urgency, SHOP_VALUES(shop_datum(outlet->acked), in_batch, shop_int4(limit)));
	int64 *chosen = palloc(sizeof(int64) * Max(rows, 1));

	for (uint64 row = 0; row < rows; row++)
		chosen[row] = shop_fetch_int8(row, 1);
	note_last(batch, rows > 0 && !shop_fetch_isnull(0, 2), rows > 0 ? shop_fetch_int8_or(0, 2, 0) : 0);
	append_rows(outlet, batch, shop_query(&load_chosen, SHOP_VALUES(shop_int8_array(chosen, (int) rows))), false);
}

static void
queue_behind_waiting(const ShopOutlet *outlet, ShopBatch *batch, int from)
{
	uint64 rows;

	if (!outlet->has_waiting || from == batch->n)
		return;
	rows = shop_query(&find_queued, SHOP_VALUES(shop_int8(outlet->pub.endpoint_id), number_array(batch, from, false)));
	for (uint64 row = 0; row < rows; row++)
		for (int i = from; i < batch->n; i++)
			if (batch->events[i]->event_no == shop_fetch_int8(row, 1) && batch->events[i]->state == SHOP_EVENT_UNTRIED)
				batch->events[i]->state = SHOP_EVENT_QUEUED;
}

static bool
may_overtake(const ShopOutlet *outlet)
{
	return DatumGetMultirangeTypeP(outlet->acked)->rangeCount <= MAX_RANGES;
}

static void
load_new(const ShopOutlet *outlet, ShopBatch *batch, int limit)
{
	int before = batch->n;
	int n;
	int64 *numbers = numbers_of(batch, 0, false, &n);
	ShopValue in_batch = shop_text(shop_multirange(numbers, n));

	if (may_overtake(outlet) && shop_query(&find_urgent, SHOP_VALUES(shop_datum(outlet->acked), in_batch)) > 0)
		load_by_urgency(outlet, batch, limit, in_batch);
	else
		load_by_number(outlet, batch, limit, in_batch);
	queue_behind_waiting(outlet, batch, before);
}

/*
 * Adds to the batch up to `limit` events: retries that are due first, then new
 * ones.  With `lease`, the tries of retries are counted now, and of each key
 * only the first event comes.
 */
void
shop_batch_load(const ShopOutlet *outlet, ShopBatch *batch, int limit, bool lease, TimestampTz now)
{
	int before = batch->n;
	bool isolated;

	/* A broken endpoint is probed with one event. */
	if (outlet->failures >= SHOP_BREAKER_FAILURES)
		limit = Min(limit, 1);
	isolated = load_retries(outlet, batch, limit, lease, now);
	batch->has_last = false;
	batch->has_new = batch->n - before < limit && !isolated;
	if (batch->has_new)
		load_new(outlet, batch, limit - (batch->n - before));
	batch->full = batch->n - before >= limit || isolated;
}

/* When the next retry is due that is not in the batch, or DT_NOEND. */
TimestampTz
shop_batch_next_retry(const ShopOutlet *outlet, const ShopBatch *batch)
{
	if (!outlet->has_waiting ||
		shop_query(&next_retry, SHOP_VALUES(shop_int8(outlet->pub.endpoint_id), number_array(batch, 0, true))) == 0)
		return DT_NOEND;
	return shop_fetch_time(0, 1);
}
