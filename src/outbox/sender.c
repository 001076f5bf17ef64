/*
 * sender.c
 *		Sends events to one remote endpoint: http, https, Kafka.
 *
 * A relay has one sender an endpoint, and each goes on by itself.  A sender
 * has a window of events.  Its transactions record what was answered and load
 * what is next; no transaction is open while anything is sent.
 *
 * Before an event leaves, its try is counted and durable: the numbers of new
 * events are in endpoint.inflight, and the attempts of retries are counted
 * when they are loaded.  The commit that says so is synchronous, and with it
 * are the commits of the events themselves, which came before it.  If the
 * relay ends before it has the answers, the next one finds the numbers, and
 * turns them into retries.  Such an event is suspect: it may be what ended the
 * relay.  It is sent alone.
 *
 * Order: an event leaves when no earlier one of its key is on its way.
 *
 * Locks: in a transaction, the endpoint row, without waiting.
 */
#include "outbox/sender.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "miscadmin.h"
#include "outbox/batch.h"
#include "query.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "worker/worker.h"

/*
 * Events loaded, of those that can be sent at once.  More means fewer
 * transactions; but all of them count as tried when a relay ends.
 */
#define WINDOW_FACTOR 2
#define MIN_WINDOW 256

/* Answers wait for so long to be recorded together. */
#define RECORD_MS 10

/* An endpoint that somebody has locked is looked at again after that. */
#define BUSY_MS 100

static ShopQuery turn_into_retries = SHOP_QUERY(
	"WITH retries AS"
	" (INSERT INTO shop.delivery (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at, last_error,"
	"                            suspect)"
	" SELECT $1, o.event_no, o.id, o.aggregateid, 1, 'infinity', 'the relay ended before the answer came', true"
	"   FROM shop.endpoint e CROSS JOIN LATERAL unnest(e.inflight) r"
	"   JOIN shop.outbox o ON o.event_no >= lower(r) AND o.event_no < upper(r)"
	"  WHERE e.endpoint_id = $1"
	" ON CONFLICT (endpoint_id, event_no) DO NOTHING RETURNING event_no)"
	" SELECT array_agg(event_no) FROM retries HAVING count(*) > 0",
	INT8OID);

static ShopQuery clear_inflight = SHOP_QUERY(
	"UPDATE shop.endpoint SET acked = acked + inflight, inflight = NULL WHERE endpoint_id = $1 AND inflight IS NOT NULL"
	" RETURNING acked",
	INT8OID);

static ShopQuery find_endpoint = SHOP_QUERY("SELECT FROM shop.endpoint WHERE endpoint_id = $1", INT8OID);

/* Events that left together. */
typedef struct Request
{
	ShopSender *sender;
	int n;
	ShopEvent *events[FLEXIBLE_ARRAY_MEMBER];
} Request;

struct ShopSender
{
	int64 endpoint_id;
	MemoryContext context; /* of the sender and its window */
	MemoryContext message_context;
	ShopOutlet outlet;
	ShopBatch window;
	HTAB *busy; /* keys of events on their way */
	const ShopSink *sink;
	void *connection;
	char *config;	/* what the connection was opened with */
	char note[256]; /* why nothing can be sent */
	int max_requests;
	int max_messages;
	int requests;			/* on their way */
	int answered;			/* events not recorded yet */
	bool alone;				/* is what is on its way to be so alone? */
	bool recovered;			/* has what the last relay left been seen to? */
	int failures;			/* in a row, as recorded last */
	TimestampTz run_at;		/* the next transaction is due then */
	TimestampTz busy_until; /* somebody has locked the endpoint */
	TimestampTz recorded_at;
};

ShopSender *
shop_sender_make(int64 endpoint_id)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "shop sender", ALLOCSET_DEFAULT_SIZES);
	ShopSender *sender = MemoryContextAllocZero(context, sizeof(ShopSender));
	HASHCTL control = {.keysize = 256, .entrysize = 256, .hcxt = context};

	sender->endpoint_id = endpoint_id;
	sender->context = context;
	sender->outlet.context = AllocSetContextCreate(context, "shop outlet", ALLOCSET_DEFAULT_SIZES);
	sender->message_context = AllocSetContextCreate(context, "shop messages", ALLOCSET_DEFAULT_SIZES);
	sender->window.context = context;
	sender->busy = hash_create("busy keys", 64, &control, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	sender->run_at = DT_NOBEGIN;
	return sender;
}

static void
close_connection(ShopSender *sender)
{
	if (sender->connection)
		sender->sink->close(sender->connection);
	sender->connection = NULL;
}

/* Nothing on its way, nothing to be recorded, and nothing counted as tried that has not left? */
bool
shop_sender_is_quiet(const ShopSender *sender)
{
	return sender->requests == 0 && sender->answered == 0 && (sender->window.n == 0 || !sender->outlet.ready);
}

void
shop_sender_drop(ShopSender *sender)
{
	close_connection(sender);
	MemoryContextDelete(sender->context);
}

/*
 * Answers
 */

/* A request of several events that was turned down says nothing about each of them. */
static void
try_single(ShopEvent *event)
{
	event->state = SHOP_EVENT_UNTRIED;
	event->single = true;
}

static void
take_answer(ShopSender *sender, ShopEvent *event, int n, const ShopAnswer *answer)
{
	char *error = MemoryContextStrdup(sender->context, answer->error);

	event->retry_after_ms = answer->retry_after_ms;
	event->suspect = answer->sender_died;
	if (answer->verdict == SHOP_TAKEN)
		shop_batch_delivered(&sender->outlet, event);
	else if (answer->verdict == SHOP_MISCONFIGURED || answer->verdict == SHOP_NOT_SENT)
		event->state = SHOP_EVENT_UNTRIED;
	else if (answer->verdict == SHOP_REJECTED && n > 1)
		try_single(event);
	else
	{
		event->max_attempts = answer->verdict == SHOP_REJECTED ? SHOP_REJECTED_ATTEMPTS : 0;
		shop_batch_failed(&sender->outlet, &sender->window, event, error);
		return;
	}
	pfree(error);
}

static void
answered(void *arg, const ShopAnswer *answer)
{
	Request *request = arg;
	ShopSender *sender = request->sender;

	for (int i = 0; i < request->n; i++)
	{
		(void) hash_search(sender->busy, request->events[i]->message.key, HASH_REMOVE, NULL);
		take_answer(sender, request->events[i], request->n, answer);
	}
	if (answer->verdict == SHOP_NOT_SENT)
	{
		strlcpy(sender->note, answer->error, sizeof(sender->note));
		sender->window.last_error = sender->note;
	}
	if (answer->verdict == SHOP_MISCONFIGURED && sender->window.pause_reason == NULL)
		sender->window.pause_reason = MemoryContextStrdup(sender->context, answer->error);
	sender->answered += request->n;
	sender->requests--;
	if (sender->requests == 0)
		sender->alone = false;
	pfree(request);
}

/*
 * Sending
 */

/* Before that, the connection takes nothing. */
static TimestampTz
ready_at(const ShopSender *sender)
{
	return sender->connection && sender->sink->ready_at ? sender->sink->ready_at(sender->connection) : DT_NOBEGIN;
}

static bool
may_send(const ShopSender *sender)
{
	return sender->connection && ready_at(sender) <= shop_now() && sender->outlet.ready &&
		   !sender->window.pause_reason && !sender->alone &&
		   sender->requests < (sender->outlet.failures >= SHOP_BREAKER_FAILURES ? 1 : sender->max_requests) &&
		   sender->outlet.retry_at <= shop_now();
}

/* Is the event one that can leave with the request, as far as it has been filled? */
static bool
fits(ShopSender *sender, const Request *request, const ShopEvent *event)
{
	if (event->suspect && sender->requests >= shop_event_company(&sender->outlet, event))
		return false;
	if ((event->suspect || event->single) && request->n > 0)
		return false;
	if (hash_search(sender->busy, event->message.key, HASH_FIND, NULL) == NULL)
		return true;
	for (int i = 0; i < request->n; i++)
		if (strcmp(request->events[i]->message.key, event->message.key) == 0)
			return true;
	return false;
}

/* Fills a request with events from `from` on; returns where the next one may start. */
static int
fill_request(ShopSender *sender, Request *request, int from)
{
	ShopBatch *window = &sender->window;
	int limit = sender->outlet.failures >= SHOP_BREAKER_FAILURES ? 1 : sender->max_messages;
	int i;

	for (i = from; i < window->n && request->n < limit; i++)
	{
		ShopEvent *event = window->events[i];
		bool alone = shop_event_company(&sender->outlet, event) == 1;

		if (event->state != SHOP_EVENT_UNTRIED)
			continue;
		if (!fits(sender, request, event))
		{
			/* What comes later must not overtake what is to be sent alone. */
			if (alone)
				break;
			continue;
		}
		(void) hash_search(sender->busy, event->message.key, HASH_ENTER, NULL);
		request->events[request->n++] = event;
		sender->alone = alone;
		if (event->suspect || event->single)
			return i + 1;
	}
	return i;
}

static void
send_request(ShopSender *sender, Request *request)
{
	MemoryContext before = MemoryContextSwitchTo(sender->message_context);
	ShopMessage *messages = palloc(sizeof(ShopMessage) * request->n);

	for (int i = 0; i < request->n; i++)
	{
		ShopEvent *event = request->events[i];

		event->state = SHOP_EVENT_SENT;
		messages[i] = event->message;
		messages[i].source = sender->outlet.pub.source; /* it may have been read anew since */
	}
	sender->requests++;
	sender->sink->send(sender->connection, messages, request->n, request);
	MemoryContextSwitchTo(before);
	MemoryContextReset(sender->message_context);
}

static void
send_all(ShopSender *sender)
{
	int from = 0;

	while (may_send(sender))
	{
		Request *request = MemoryContextAlloc(
			sender->context, offsetof(Request, events) + sizeof(ShopEvent *) * sender->max_messages);

		request->sender = sender;
		request->n = 0;
		from = fill_request(sender, request, from);
		if (request->n == 0)
		{
			pfree(request);
			return;
		}
		send_request(sender, request);
	}
}

/*
 * The transaction
 */

/* What the connection depends on, in one text. */
static char *
config_of(const ShopEndpoint *endpoint)
{
	return psprintf("%s %s %s", endpoint->url, endpoint->secret ? endpoint->secret : "",
		JsonbToCString(NULL, &endpoint->options->root, 0));
}

static int
window_size(const ShopSender *sender)
{
	return Max(sender->max_requests * sender->max_messages * WINDOW_FACTOR, MIN_WINDOW);
}

/* Opens the connection anew if the endpoint is not what it was; true if there is one. */
static bool
connect(ShopSender *sender)
{
	MemoryContext before;
	char *config = config_of(&sender->outlet.pub);

	if (sender->connection && strcmp(config, sender->config) == 0)
		return true;
	if (sender->requests > 0)
		return false;
	close_connection(sender);
	before = MemoryContextSwitchTo(sender->context);
	if (sender->config)
		pfree(sender->config);
	sender->config = pstrdup(config);
	sender->sink = shop_sink_find(sender->outlet.pub.url);
	if (sender->sink == NULL)
	{
		sender->window.pause_reason = pstrdup("this build cannot deliver to such a url");
		MemoryContextSwitchTo(before);
		return false;
	}
	sender->connection = sender->sink->open(&sender->outlet.pub, answered);
	sender->sink->limits(sender->connection, &sender->max_requests, &sender->max_messages);
	MemoryContextSwitchTo(before);
	return true;
}

/* What a relay that ended had sent without hearing the answers becomes retries. */
static void
recover(ShopSender *sender, TimestampTz now)
{
	ShopValue id = shop_int8(sender->endpoint_id);
	bool isnull;

	if (sender->recovered)
		return;
	if (shop_query(&turn_into_retries, SHOP_VALUES(id)) > 0)
	{
		sender->outlet.has_waiting = true;
		shop_batch_move_up(sender->endpoint_id, shop_datum(shop_fetch(0, 1, &isnull)), now);
	}
	if (shop_query(&clear_inflight, SHOP_VALUES(id)) > 0)
		sender->outlet.acked = PointerGetDatum(
			PG_DETOAST_DATUM_COPY(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)));
	sender->recovered = true;
}

static bool
lock_outlet(ShopSender *sender)
{
	int failures = sender->outlet.failures;

	MemoryContextReset(sender->outlet.context);
	if (!shop_batch_lock_any(sender->endpoint_id, &sender->outlet))
		return false;
	/* Unless somebody has resumed the endpoint, our count is newer. */
	if (sender->outlet.failures == sender->failures)
		sender->outlet.failures = failures;
	return true;
}

/* Forgets what has not left, for the endpoint does not want it now. */
static void
forget_untried(ShopBatch *window)
{
	for (int i = 0; i < window->n; i++)
		if (window->events[i]->state == SHOP_EVENT_UNTRIED)
			window->events[i]->state = SHOP_EVENT_FORGOTTEN;
}

static int
unfinished(const ShopBatch *window)
{
	int n = 0;

	for (int i = 0; i < window->n; i++)
		if (window->events[i]->state == SHOP_EVENT_UNTRIED || window->events[i]->state == SHOP_EVENT_SENT)
			n++;
	return n;
}

/* Is there one in the window that is to be sent alone?  Then nothing else is to be counted as tried. */
static bool
has_loner(const ShopSender *sender)
{
	for (int i = 0; i < sender->window.n; i++)
		if (sender->window.events[i]->state <= SHOP_EVENT_SENT &&
			shop_event_company(&sender->outlet, sender->window.events[i]) == 1)
			return true;
	return false;
}

static bool
has_untried(const ShopBatch *window, int from)
{
	for (int i = from; i < window->n; i++)
		if (window->events[i]->state == SHOP_EVENT_UNTRIED)
			return true;
	return false;
}

/* Loads what there is room for; true if there is something to send among it. */
static bool
load(ShopSender *sender, TimestampTz now)
{
	int room = window_size(sender) - unfinished(&sender->window);
	int before = sender->window.n;

	if (room <= 0 || sender->outlet.retry_at > now || has_loner(sender) ||
		(sender->outlet.failures >= SHOP_BREAKER_FAILURES && unfinished(&sender->window) > 0))
		return false;
	shop_batch_load(&sender->outlet, &sender->window, room, true, now);
	return has_untried(&sender->window, before);
}

/* When the next transaction is due, if nothing happens before: where only an answer can make room, never. */
static TimestampTz
next_run(ShopSender *sender, TimestampTz now)
{
	int left = unfinished(&sender->window);
	bool broken = sender->outlet.failures >= SHOP_BREAKER_FAILURES;

	if (broken && left > 0)
		return sender->outlet.retry_at > now ? sender->outlet.retry_at : DT_NOEND;
	if (left >= window_size(sender) || has_loner(sender))
		return DT_NOEND;
	if (sender->window.full && left < window_size(sender) / 2)
		return broken ? sender->outlet.retry_at : now;
	return Max(shop_batch_next_retry(&sender->outlet, &sender->window), broken ? sender->outlet.retry_at : DT_NOBEGIN);
}

static void
record(ShopSender *sender, TimestampTz now)
{
	ShopBatch *window = &sender->window;

	if (sender->window.pause_reason)
		sender->outlet.ready = false;
	if (!sender->outlet.ready)
		forget_untried(window);
	/* What was on its way together failed together: that counts as one probe. */
	sender->outlet.failures = Min(sender->outlet.failures, Max(SHOP_BREAKER_FAILURES, sender->failures + 1));
	(void) shop_batch_record(&sender->outlet, window, true, now);
	if (window->pause_reason)
	{
		/* The relay lets go of this sender: whoever resumes the endpoint may have mended what it has wrong. */
		shop_worker_wake_at_commit(SHOP_WAKE_ENDPOINTS);
		pfree(window->pause_reason);
	}
	window->pause_reason = NULL;
	window->last_error = NULL;
	sender->failures = sender->outlet.failures;
	sender->answered = 0;
	sender->recorded_at = now;
}

/* Somebody has locked the endpoint, or dropped it. */
static void
wait_or_give_up(ShopSender *sender, TimestampTz now)
{
	sender->busy_until = TimestampTzPlusMilliseconds(now, BUSY_MS);
	sender->run_at = sender->busy_until;
	if (shop_query(&find_endpoint, SHOP_VALUES(shop_int8(sender->endpoint_id))) > 0)
		return;
	sender->outlet.ready = false;
	sender->answered = 0;
	sender->run_at = DT_NOEND;
}

/*
 * Commits, and waits until the standbys that are synchronous have it too.
 * pg_cancel_backend() would end that wait, as if they had.
 */
static void
commit_durably(void)
{
	SetConfigOption("synchronous_commit", "on", PGC_SUSET, PGC_S_OVERRIDE);
	pqsignal(SIGINT, SIG_IGN);
	QueryCancelPending = false;
	shop_process_commit();
	pqsignal(SIGINT, StatementCancelHandler);
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
}

/* Records and loads.  The commit is synchronous where something is about to leave. */
static void
run_transaction(ShopSender *sender)
{
	TimestampTz now = shop_now();
	bool connected = false;
	bool loaded = false;

	shop_process_begin("delivering events");
	sender->window.has_new = false;
	if (!lock_outlet(sender))
		wait_or_give_up(sender, now);
	else
	{
		recover(sender, now);
		shop_batch_settle(&sender->outlet, &sender->window, now);
		connected = sender->outlet.ready && connect(sender);
		if (connected)
			loaded = load(sender, now);
		record(sender, now);
		sender->run_at = connected && sender->outlet.ready ? next_run(sender, now) : DT_NOEND;
	}
	if (loaded)
		commit_durably();
	else
		shop_process_commit();
}

/* Is there enough to be recorded, or has it waited for long enough? */
static bool
is_due(const ShopSender *sender, TimestampTz now)
{
	return sender->run_at <= now || sender->window.pause_reason ||
		   (sender->answered > 0 && (sender->requests == 0 || sender->answered >= window_size(sender) / 2 ||
										TimestampDifferenceExceeds(sender->recorded_at, now, RECORD_MS)));
}

/*
 * Does what there is to do now; returns when it wants to be called again at
 * the latest.  `look`: there may be new events.
 */
TimestampTz
shop_sender_run(ShopSender *sender, bool look)
{
	TimestampTz now = shop_now();

	if (sender->busy_until <= now && (look || is_due(sender, now)))
		run_transaction(sender);
	/* What was known of the endpoint is gone, and what it has become is not known yet. */
	if (sender->busy_until > now)
		return sender->busy_until;
	send_all(sender);
	if (ready_at(sender) > now && sender->answered == 0)
		return Min(sender->run_at, ready_at(sender));
	if (sender->answered > 0)
		return Min(sender->run_at, TimestampTzPlusMilliseconds(sender->recorded_at, RECORD_MS));
	return sender->run_at;
}
