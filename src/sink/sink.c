/*
 * sink.c
 *		Which sink delivers to a url, and what the relay waits for.
 *
 * Takes no locks.
 */
#include "sink/sink.h"

#include "error.h"
#include "mb/pg_wchar.h"
#include "sink/poll.h"

/* The relay is not always here; shorter absences do not matter. */
#define AWAY_MS 50

/* Since when the relay is elsewhere; 0: it listens. */
static TimestampTz left_at;

static const ShopSink *const sinks[] = {
	&shop_sink_function,
#ifndef SHOP_WITHOUT_CURL
	&shop_sink_http,
	&shop_sink_https,
#endif
#ifndef SHOP_WITHOUT_KAFKA
	&shop_sink_kafka,
#endif
};

/* What a build may leave out. */
static const char *const known_schemes[] = {"http://", "https://", "kafka://"};

static bool
starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The sink for a url, or NULL. */
const ShopSink *
shop_sink_find(const char *url)
{
	for (size_t i = 0; i < lengthof(sinks); i++)
		if (starts_with(url, sinks[i]->scheme))
			return sinks[i];
	return NULL;
}

/* The sink for a url, or an error that says why there is none. */
const ShopSink *
shop_sink_of(const char *url)
{
	const ShopSink *sink = shop_sink_find(url);

	if (sink)
		return sink;
	for (size_t i = 0; i < lengthof(known_schemes); i++)
		if (starts_with(url, known_schemes[i]))
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							   errmsg("this build cannot deliver to %s endpoints", known_schemes[i]),
							   errdetail("{\"argument\": \"url\"}"),
							   errhint("Use an endpoint of another kind, or a build that has this one.")));
	shop_reject("url", "must start with function:, http://, https:// or kafka://");
}

/* The text with U+FFFD for each byte that is not part of a character. */
static char *
replace_invalid(const char *text)
{
	const unsigned char *at = (const unsigned char *) text;
	const unsigned char *end = at + strlen(text);
	StringInfoData buf;

	initStringInfo(&buf);
	while (at < end)
	{
		int length = pg_utf_mblen(at);

		if (at + length <= end && pg_utf8_islegal(at, length))
			appendBinaryStringInfo(&buf, (const char *) at, length);
		else
		{
			appendStringInfoString(&buf, "\xEF\xBF\xBD");
			length = 1;
		}
		at += length;
	}
	return buf.data;
}

/*
 * A text of the database as UTF-8.  Where it cannot be converted (SQL_ASCII
 * takes any bytes, and some encodings have characters that Unicode has not) it
 * leaves with U+FFFD in it: an error would end the relay, again and again.
 * A conversion holds nothing that would have to be given back.
 */
char *
shop_utf8(char *text)
{
	MemoryContext context = CurrentMemoryContext;
	char *converted;

	PG_TRY();
	{
		converted = pg_server_to_any(text, strlen(text), PG_UTF8);
	}
	PG_CATCH();
	{
		int code = geterrcode();

		if (code != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE && code != ERRCODE_UNTRANSLATABLE_CHARACTER)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		converted = replace_invalid(text);
	}
	PG_END_TRY();
	return converted;
}

char *
shop_utf8_json(Jsonb *json)
{
	return shop_utf8(JsonbToCString(NULL, &json->root, 0));
}

int
shop_sink_fd(void)
{
#ifdef SHOP_WITHOUT_REMOTE
	return -1;
#else
	return shop_poll_fd();
#endif
}

/* The sooner of two, where -1 is never. */
static pg_attribute_unused() long sooner(long a, long b)
{
	return a < 0 ? b : b < 0 ? a : Min(a, b);
}

static void
add_time(int64 us)
{
#ifndef SHOP_WITHOUT_CURL
	shop_http_add_time(us);
#endif
#ifndef SHOP_WITHOUT_KAFKA
	shop_kafka_add_time(us);
#endif
	(void) us;
}

/* Time that the relay has spent elsewhere, in somebody's slow function for example, counts against nobody. */
static void
come_back(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (left_at != 0 && TimestampDifferenceExceeds(left_at, now, AWAY_MS))
		add_time(now - left_at);
	left_at = 0;
}

/* ms until it is to be polled, or -1.  Whoever asks is about to wait, and so listens. */
long
shop_sink_timeout(void)
{
	long timeout = -1;

	come_back();
#ifndef SHOP_WITHOUT_CURL
	timeout = sooner(timeout, shop_http_timeout());
#endif
#ifndef SHOP_WITHOUT_KAFKA
	timeout = sooner(timeout, shop_kafka_timeout());
#endif
	return timeout;
}

void
shop_sink_poll(void)
{
	come_back();
#ifndef SHOP_WITHOUT_REMOTE
	shop_poll_run();
#endif
#ifndef SHOP_WITHOUT_CURL
	shop_http_poll();
#endif
#ifndef SHOP_WITHOUT_KAFKA
	shop_kafka_poll();
#endif
	left_at = GetCurrentTimestamp();
}
