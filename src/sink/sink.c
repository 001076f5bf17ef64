/*
 * sink.c
 *		Which sink delivers to a url.
 *
 * Takes no locks.
 */
#include "sink/sink.h"

#include "error.h"

static const ShopSink *const sinks[] = {
	&shop_sink_function,
};

static const char *const planned_schemes[] = {"http://", "https://", "kafka://"};

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
	for (size_t i = 0; i < lengthof(planned_schemes); i++)
		if (starts_with(url, planned_schemes[i]))
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							   errmsg("this build cannot deliver to %s endpoints", planned_schemes[i]),
							   errdetail("{\"argument\": \"url\"}"), errhint("Use a function: endpoint.")));
	shop_reject("url", "must start with function:, http://, https:// or kafka://");
}
