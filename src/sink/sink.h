/*
 * sink.h
 *		What delivers to a kind of endpoint: one table of functions a kind.
 */
#ifndef SHOP_SINK_H
#define SHOP_SINK_H

#include "shop.h"

#include "utils/jsonb.h"

/* An endpoint as a sink needs it. */
typedef struct ShopEndpoint
{
	int64 endpoint_id;
	char *name;
	char *url;
	char *run_as; /* role name */
	Oid run_as_oid;
	int timeout_ms;
	char *secret; /* NULL: not signed */
	Jsonb *options;
} ShopEndpoint;

typedef struct ShopSink
{
	const char *scheme; /* what the url starts with */

	/* Refuses a url that cannot be delivered to, for the role that asks. */
	void (*check)(const char *url, Oid role);

	/*
	 * Delivers CloudEvents (jsonb) in this transaction, all or none: NULL, or
	 * what went wrong, and whether that was a time-out.
	 */
	char *(*deliver)(const ShopEndpoint *endpoint, Datum *events, int n, bool *timed_out);
} ShopSink;

extern const ShopSink shop_sink_function;

extern const ShopSink *shop_sink_of(const char *url);

#endif /* SHOP_SINK_H */
