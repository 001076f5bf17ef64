/*
 * sink.h
 *		What delivers to a kind of endpoint: one table of functions a kind.
 *
 * A sink either delivers in this transaction (function:), or is remote: then
 * the relay sends with no transaction open, and hears of the answer later.
 */
#ifndef SHOP_SINK_H
#define SHOP_SINK_H

#include "shop.h"

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* An endpoint as a sink needs it. */
typedef struct ShopEndpoint
{
	int64 endpoint_id;
	char *name;
	char *url;
	char *source; /* of events: this database */
	char *run_as; /* role name */
	Oid run_as_oid;
	int timeout_ms;
	char *secret; /* NULL: not signed */
	Jsonb *options;
} ShopEndpoint;

/* An event as it leaves: a CloudEvent. */
typedef struct ShopMessage
{
	char id[37];		/* a uuid */
	const char *source; /* the database */
	const char *key;	/* the subject: aggregateid */
	const char *type;
	const char *aggregatetype;
	const char *traceparent; /* or NULL */
	TimestampTz time;
	Jsonb *data;
} ShopMessage;

/* What became of a request. */
typedef enum ShopVerdict
{
	SHOP_TAKEN,
	SHOP_TRY_AGAIN,
	SHOP_NOT_SENT,		/* and so not tried; ready_at() says when it can be */
	SHOP_REJECTED,		/* the message is at fault */
	SHOP_MISCONFIGURED, /* the endpoint is at fault, and will be for every message */
} ShopVerdict;

typedef struct ShopAnswer
{
	ShopVerdict verdict;
	int retry_after_ms; /* 0: not said */
	bool sender_died;	/* may the message be what did it? */
	char error[256];
} ShopAnswer;

/* Hears of the end of a request, outside of any transaction. */
typedef void (*ShopAnswered)(void *request, const ShopAnswer *answer);

typedef struct ShopSink
{
	const char *scheme; /* what the url starts with */

	/* Refuses a url that cannot be delivered to, for the role that asks. */
	void (*check)(const char *url, Oid role);

	/*
	 * Delivers messages in this transaction, all or none: NULL, or what went
	 * wrong, and whether that was a time-out.  NULL for a remote sink, which
	 * has these:
	 */
	char *(*deliver)(const ShopEndpoint *endpoint, const ShopMessage *messages, int n, bool *timed_out);

	/* Makes ready to send to an endpoint; in the current memory context. */
	void *(*open)(const ShopEndpoint *endpoint, ShopAnswered answered);

	/* How many requests at once, and how many messages a request, at most. */
	void (*limits)(void *connection, int *requests, int *messages);

	/* Before that, nothing must be sent; NULL: at any time. */
	TimestampTz (*ready_at)(void *connection);

	/* Sends; `answered` will be called with `request` once, in poll() or close(). */
	void (*send)(void *connection, const ShopMessage *messages, int n, void *request);

	/* Gives up what is on its way, without an answer. */
	void (*close)(void *connection);
} ShopSink;

extern const ShopSink shop_sink_function;
extern const ShopSink shop_sink_http;
extern const ShopSink shop_sink_https;
extern const ShopSink shop_sink_kafka;

extern const ShopSink *shop_sink_find(const char *url);
extern const ShopSink *shop_sink_of(const char *url);

/* cloudevent.c */
#define SHOP_MAX_ATTRIBUTES 9

typedef struct ShopAttribute
{
	const char *name;
	const char *value;
} ShopAttribute;

extern int shop_cloudevent_attributes(const ShopMessage *message, ShopAttribute *attributes);
extern void shop_cloudevent_append(StringInfo buf, const ShopMessage *message);
extern Jsonb *shop_cloudevent_jsonb(const ShopMessage *message);

/* What leaves is UTF-8, whatever the database's encoding. */
extern char *shop_utf8(char *text);
extern char *shop_utf8_json(Jsonb *json);

/* What the relay waits for and calls, for all remote sinks together. */
extern int shop_sink_fd(void);		 /* readable: there is something to do; -1: nothing ever */
extern long shop_sink_timeout(void); /* ms until poll() wants to be called */
extern void shop_sink_poll(void);

/* http.c */
extern long shop_http_timeout(void);
extern void shop_http_add_time(int64 us);
extern void shop_http_poll(void);

/* kafka.c */
extern long shop_kafka_timeout(void);
extern void shop_kafka_add_time(int64 us);
extern void shop_kafka_poll(void);

/* webhook.c */
extern void shop_webhook_check_secret(const char *secret);
extern char *shop_webhook_signature(const char *secret, const char *id, int64 timestamp, const char *body);

#endif /* SHOP_SINK_H */
