/*
 * sink.c
 *		Which sink delivers to a url, and what the relay waits for.
 *
 * Takes no locks.
 */
#include "sink/sink.h"

#include "error.h"

static const ShopSink *const sinks[] = {
	&shop_sink_function,
#ifndef SHOP_WITHOUT_CURL
	&shop_sink_http,
	&shop_sink_https,
#endif
};

/* What a build may leave out. */
static const char *const known_schemes[] = {"http://", "https://", "kafka://"};

static bool
starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The sink for a url, or an error that says why there is none. */
const ShopSink *
shop_sink_of(const char *url)
{
	for (size_t i = 0; i < lengthof(sinks); i++)
		if (starts_with(url, sinks[i]->scheme))
			return sinks[i];
	for (size_t i = 0; i < lengthof(known_schemes); i++)
		if (starts_with(url, known_schemes[i]))
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							   errmsg("this build cannot deliver to %s endpoints", known_schemes[i]),
							   errdetail("{\"argument\": \"url\"}"),
							   errhint("Use an endpoint of another kind, or a build that has this one.")));
	shop_reject("url", "must start with function:, http://, https:// or kafka://");
}

#ifdef SHOP_WITHOUT_CURL
int
shop_sink_fd(void)
{
	return -1;
}

long
shop_sink_timeout(void)
{
	return -1;
}

void
shop_sink_poll(void)
{
}
#else
int
shop_sink_fd(void)
{
	return shop_http_fd();
}

long
shop_sink_timeout(void)
{
	return shop_http_timeout();
}

void
shop_sink_poll(void)
{
	shop_http_poll();
}
#endif
