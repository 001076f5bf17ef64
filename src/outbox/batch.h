/*
 * batch.h
 *		Events on their way to one endpoint: loaded from the outbox, tried,
 *		recorded.
 *
 * A batch may live for one transaction (delivery.c) or for as long as a relay
 * sends to the endpoint (sender.c); what has been recorded leaves it.
 */
#ifndef SHOP_BATCH_H
#define SHOP_BATCH_H

#include "outbox/outbox.h"
#include "query.h"
#include "sink/sink.h"
#include "utils/uuid.h"

/* So many failures in a row, and the endpoint backs off as a whole. */
#define SHOP_BREAKER_FAILURES 20

/* An event that the other side calls wrong is tried so often. */
#define SHOP_REJECTED_ATTEMPTS 3

/*
 * Of what waits for an endpoint ($1), the first row from a key on.  There is
 * one way to plan that; the key alone could be looked for along the primary
 * key, or among all that waits.
 */
#define SHOP_FIRST_WAITING(columns, key) \
	"(SELECT " columns " FROM shop.delivery" \
	"  WHERE endpoint_id = $1 AND dead_at IS NULL AND aggregateid >= " key " ORDER BY aggregateid, event_no LIMIT 1)"

/* An endpoint while its row is locked, or as it was then. */
typedef struct ShopOutlet
{
	MemoryContext context; /* of what was read; NULL: the current one */
	ShopEndpoint pub;
	bool ready; /* neither paused nor a copy */
	bool is_home;
	int failures;
	bool tried; /* anything since it was recorded last? */
	int max_attempts;
	int backoff_ms;
	int max_backoff_ms;
	bool closable; /* may the holes up to horizon_no be closed? */
	int64 horizon_no;
	TimestampTz retry_at;  /* DT_NOBEGIN: at once */
	ItemPointerData place; /* of the row's newest version that we know; zeros: not known */
	bool has_waiting;	   /* are there deliveries that are not dead? */
	char **types;
	int n_types;
	Datum acked;
} ShopOutlet;

typedef enum ShopEventState
{
	SHOP_EVENT_UNTRIED,
	SHOP_EVENT_UNWANTED,
	SHOP_EVENT_SENT, /* no answer yet */
	SHOP_EVENT_DELIVERED,
	SHOP_EVENT_FAILED,
	SHOP_EVENT_QUEUED,	 /* behind an earlier one of its key */
	SHOP_EVENT_FORGOTTEN /* was loaded for nothing; stays in the outbox */
} ShopEventState;

typedef struct ShopEvent
{
	int64 event_no;
	pg_uuid_t id;
	ShopMessage message; /* without data where it is not wanted */
	int attempts;
	bool retry;	  /* does it have a row in shop.delivery? */
	bool suspect; /* did its sender end before it knew the answer? */
	bool single;  /* to be sent in a request of its own */
	ShopEventState state;
	char *error;
	bool settled;		/* is its row of shop.delivery as it should be? */
	int max_attempts;	/* 0: the endpoint's */
	int retry_after_ms; /* what the other side has asked for */
} ShopEvent;

typedef struct ShopBatch
{
	MemoryContext context; /* of the events; NULL: the current one */
	ShopEvent **events;
	int n;
	int allocated;
	bool has_new; /* was new work looked for, the last time? */
	bool has_last;
	int64 last; /* all that is visible up to here is in the batch, or done */
	bool full;	/* did the last load find as much as it asked for? */
	char *last_error;
	char *pause_reason; /* set: the endpoint is to be paused */
} ShopBatch;

extern bool shop_batch_lock(int64 endpoint_id, bool wait, ShopOutlet *outlet);
extern int shop_event_company(const ShopOutlet *outlet, const ShopEvent *event);
extern bool shop_batch_lock_any(int64 endpoint_id, ShopOutlet *outlet);
extern void shop_batch_load(const ShopOutlet *outlet, ShopBatch *batch, int limit, bool lease, TimestampTz now);
extern int64 shop_batch_record(ShopOutlet *outlet, ShopBatch *batch, bool keep, TimestampTz now);
extern void shop_batch_settle(ShopOutlet *outlet, ShopBatch *batch, TimestampTz now);
extern void shop_batch_move_up(int64 endpoint_id, ShopValue event_nos, TimestampTz now);
extern TimestampTz shop_batch_next_retry(const ShopOutlet *outlet, const ShopBatch *batch);
extern void shop_batch_failed(ShopOutlet *outlet, ShopBatch *batch, ShopEvent *event, char *error);
extern void shop_batch_delivered(ShopOutlet *outlet, ShopEvent *event);

extern void shop_event_free(ShopEvent *event);

/* Sorts event numbers, and writes them as an int8multirange. */
extern char *shop_multirange(int64 *numbers, int n);

#endif /* SHOP_BATCH_H */
