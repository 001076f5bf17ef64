/*
 * delivery.c
 *		Delivers to function: endpoints, in the transaction that acknowledges.
 *
 * Locks: those of batch.c.
 */
#include "outbox/batch.h"

#include "error.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "query.h"

/* Subtransactions of one transaction; above 64, every snapshot gets slower. */
#define MAX_CALLS 32

/* What is loaded at once by a session, however few are to be delivered: most may be of other types. */
#define BATCH_SIZE 1000

/* A worker calls an endpoint no more for a while once this is used up: others wait. */
#define BUDGET_MS 1000

static ShopQuery list_endpoints = SHOP_QUERY(
	"SELECT endpoint_id, builtin FROM shop.endpoint"
	" WHERE url LIKE 'function:%' AND ($1 IS NULL OR name = $1 AND NOT builtin) ORDER BY endpoint_id",
	TEXTOID);

static ShopQuery find_remote = SHOP_QUERY("SELECT FROM shop.endpoint WHERE name = $1 AND NOT builtin", TEXTOID);

static ShopQuery find_builtin = SHOP_QUERY("SELECT endpoint_id FROM shop.endpoint WHERE builtin");

SHOP_FUNCTION(shop_deliver_events);

/* Collects up to `size` untried events from `from` on; returns how many. */
static int
collect(const ShopBatch *batch, int from, int size, int *chosen, ShopMessage *messages)
{
	int n = 0;

	for (int i = from; i < batch->n && n < size; i++)
		if (batch->events[i]->state == SHOP_EVENT_UNTRIED)
		{
			chosen[n] = i;
			messages[n++] = batch->events[i]->message;
		}
	return n;
}

/* A worker has other endpoints to serve; a session has only this to do. */
static bool
may_go_on(const ShopOutlet *outlet, int calls, TimestampTz started_at)
{
	return calls < MAX_CALLS && outlet->failures < SHOP_BREAKER_FAILURES &&
		   !(SHOP_IS_BACKGROUND_WORKER() && TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(), BUDGET_MS));
}

/*
 * Delivers what is untried, but no more than `most`, all at once if it can be,
 * and where that fails in ever smaller parts until the events that fail stand
 * alone.  A call that timed out breaks the circuit at once: next comes a single
 * event.
 */
static void
deliver(ShopOutlet *outlet, ShopBatch *batch, int most)
{
	TimestampTz started_at = GetCurrentTimestamp();
	const ShopSink *sink = shop_sink_of(outlet->pub.url);
	int *chosen = palloc(sizeof(int) * Max(batch->n, 1));
	ShopMessage *messages = palloc(sizeof(ShopMessage) * Max(batch->n, 1));
	int size = batch->n;
	int from = 0;
	int calls = 0;

	do
	{
		int n = collect(batch, from, Min(size, most), chosen, messages);
		bool timed_out = false;
		char *error;

		if (n == 0)
			return;
		error = sink->deliver(&outlet->pub, messages, n, &timed_out);
		calls++;
		for (int i = 0; error == NULL && i < n; i++)
			shop_batch_delivered(outlet, batch->events[chosen[i]]);
		if (error != NULL && n == 1)
			shop_batch_failed(outlet, batch, batch->events[chosen[0]], error);
		if (error == NULL || n == 1)
		{
			from = chosen[n - 1] + 1;
			most -= n;
			size = error == NULL ? size : batch->n;
		}
		else
			size = n / 2;
		if (timed_out)
		{
			batch->last_error = error;
			outlet->failures = Max(outlet->failures, SHOP_BREAKER_FAILURES);
			outlet->tried = true;
		}
	} while (may_go_on(outlet, calls, started_at));
}

static bool
has_untried(const ShopBatch *batch)
{
	for (int i = 0; i < batch->n; i++)
		if (batch->events[i]->state == SHOP_EVENT_UNTRIED)
			return true;
	return false;
}

/*
 * Delivers one batch of `limit` events to one endpoint in this transaction, but
 * no more than `most` of them.  Without `wait`, an endpoint somebody else is
 * delivering to is left alone.  `place` is where the endpoint's row is, as far
 * as the caller knows.
 */
ShopDelivered
shop_deliver_batch(int64 endpoint_id, int limit, int most, bool wait, ItemPointer place)
{
	ShopDelivered result = {.next_at = DT_NOEND};
	TimestampTz now = shop_now();
	ShopOutlet outlet = {.place = *place};
	ShopBatch batch = {0};

	if (!shop_batch_lock(endpoint_id, wait, &outlet))
		return result;
	if (outlet.retry_at > now)
	{
		result.next_at = outlet.retry_at;
		return result;
	}

	shop_batch_load(&outlet, &batch, limit, false, now);
	deliver(&outlet, &batch, most);
	if (batch.n > 0 || outlet.closable)
		result.delivered = shop_batch_record(&outlet, &batch, false, now);
	*place = outlet.place;

	result.next_at = shop_batch_next_retry(&outlet, &(ShopBatch){0});
	result.more = outlet.failures < SHOP_BREAKER_FAILURES &&
				  (batch.n >= limit || has_untried(&batch) || (batch.n > 0 && result.next_at <= now));
	return result;
}

/* Delivers a batch in an SPI level of its own, which frees all that it used. */
static ShopDelivered
deliver_batch_here(int64 endpoint_id, int most)
{
	ShopDelivered result;

	CHECK_FOR_INTERRUPTS();
	SPI_connect();
	result = shop_deliver_batch(endpoint_id, BATCH_SIZE, most, true, &(ItemPointerData){0});
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
	if (n == 0 && name != NULL && shop_query(&find_remote, SHOP_VALUES(shop_text(name))) > 0)
		shop_reject("endpoint", "must be a function: endpoint; to all others the worker delivers");
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
			int64 most = builtin[i] ? BATCH_SIZE : max_events - delivered;

			if (most <= 0)
				break;
			batch = deliver_batch_here(ids[i], (int) most);
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
	while (deliver_batch_here(endpoint_id, BATCH_SIZE).more)
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
	/* The function of an endpoint would be called again, with what it is just being given. */
	if (InSecurityRestrictedOperation())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						   errmsg("cannot execute deliver_events() within security-restricted operation"),
						   errhint("Leave delivery to the worker, or to whoever has called the function.")));

	SPI_connect();
	delivered = deliver_all(name, max_events);
	SPI_finish();
	PG_RETURN_INT64(delivered);
}
