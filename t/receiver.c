/*
 * receiver.c
 *		An HTTP server that takes events, for tests and benches: it checks their
 *		signatures, keeps a journal of them, and misbehaves on demand.
 *
 *		cc -O2 -Wall -Wextra -o receiver t/receiver.c -lssl -lcrypto
 *		receiver --port 0 --journal FILE --port-file FILE [--tls CERT KEY]
 *			[--secret whsec_BASE64]... [--record FILE] [--with-parent]
 *
 * It listens on 127.0.0.1, on a free port if that is 0, and writes the port to
 * the port file once it does.  PORT-FILE.control has a second port, where plain
 * HTTP reaches /count and /control whatever is wrong with the first one.
 * SIGTERM ends it, and so does the end of its parent with --with-parent.
 *
 * A POST is a CloudEvents 1.0 object, or a batch of them, with the headers of
 * Standard Webhooks.  What is wrong with it is answered with 401 (there are
 * secrets, and no signature of theirs), 415 (not a CloudEvents type) or 400
 * (not HTTP, not JSON, not an event); a fault goes before that.
 *
 * The journal has a line for each event, written before the answer leaves:
 *
 *		arrival, in microseconds since 1970
 *		target: the path and query as they were sent
 *		webhook-id
 *		type and subject of the event
 *		number of events in the request
 *		attempt: how often this target has seen this event, this time included
 *		signature: ok, bad, or none (none sent, or no secret to check it with)
 *		outcome: the status answered, or the fault's name
 *		id of the event
 *		number of the connection
 *
 * separated by tabs, and escaped as COPY does.  A request whose events are not
 * read has one line as well, and its attempts are those of its webhook-id: it is
 * refused for what it is, or broken off before its end.  --record keeps the
 * requests whole: arrival, target, head and body, a line each, escaped the same
 * way.  Attempts are counted in memory, some 300 bytes for each event.
 *
 * The path chooses the fault, so that an endpoint is faulty by its url:
 *
 *		/ok					200
 *		/status/NNN			that status; 1xx: an interim answer, then 200;
 *							retry-after=TEXT, or date, or date+SECONDS
 *		/hang				reads, never answers
 *		/hang-connect		reads no more than the head, never answers
 *		/slow				answers a byte a second, or every ms=N
 *		/delay				answers after ms=N
 *		/reset-accept		RST once there is a head
 *		/reset-headers		RST once there is a head, too
 *		/reset-body			RST after half of the body
 *		/reset-answer		RST in the middle of the answer
 *		/close				FIN instead of an answer
 *		/lost				the same, but the events count as taken
 *		/truncate			FIN in the middle of a body with Content-Length
 *		/chunked-truncate	FIN in the middle of a chunk
 *		/oversize			200 with a body of 1 MiB, or of bytes=N
 *		/oversize-headers	200 with 1 MiB of headers, or bytes=N
 *		/garbage			answers something that is not HTTP
 *		/redirect			302, or status=NNN, to to=URL
 *		/no-keepalive		200 with Connection: close
 *		/continue			100 Continue, then 200
 *		/empty				200 without a body, or status=204
 *		/http10				an answer of HTTP/1.0, which ends with the connection
 *		/folded				headers that begin with a folded line
 *
 * Each may be limited: times=N to the first N requests of each webhook-id,
 * every=N to every Nth request, key=K to requests with an event of that
 * subject (for which the body is read first).  A request that is not concerned
 * is answered as by /ok.
 *
 * GET /count answers a JSON object.  POST /control takes lines:
 *
 *		fault=TARGET		the fault of /ok from now on, or none.  As
 *							such, hang-connect and reset-accept act on
 *							connections before anything, TLS included, is read.
 *		stop-listening=SECONDS	closes the port and every connection to it
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/ssl.h>

#define MAX_HEAD (64 * 1024)
#define MAX_BODY (64 * 1024 * 1024)
#define MAX_DEPTH 500
#define MAX_SECRETS 8
#define READ_SIZE (16 * 1024)
#define EVENTS_PER_ROUND 256
#define TOLERANCE_S 300
#define OVERSIZE (1024 * 1024)

/* How long what was sent before a reset has to arrive, and a FIN to be answered. */
#define RESET_PAUSE_MS 20
#define LINGER_MS 2000

/* The table starts this big, so that growing does not show in a measurement. */
#define TABLE_SIZE (1 << 18)

#define NO_LIMIT INT64_MAX

/* A stretch of memory that belongs to something else. */
typedef struct Text
{
	const char *at;
	size_t length;
} Text;

typedef struct Buffer
{
	char *data;
	size_t start;
	size_t end;
	size_t size;
} Buffer;

/* A table from strings to a number or a pointer; nothing is ever removed. */
typedef struct Entry
{
	char *key;
	uint32_t length;
	uint32_t hash;
	uint64_t count;
	void *value;
} Entry;

typedef struct Table
{
	Entry *entries;
	size_t used;
	size_t size;
} Table;

typedef enum FaultKind
{
	FAULT_OK,
	FAULT_STATUS,
	FAULT_HANG,
	FAULT_HANG_CONNECT,
	FAULT_SLOW,
	FAULT_DELAY,
	FAULT_RESET_ACCEPT,
	FAULT_RESET_HEADERS,
	FAULT_RESET_BODY,
	FAULT_RESET_ANSWER,
	FAULT_CLOSE,
	FAULT_LOST,
	FAULT_TRUNCATE,
	FAULT_CHUNKED_TRUNCATE,
	FAULT_OVERSIZE,
	FAULT_OVERSIZE_HEADERS,
	FAULT_GARBAGE,
	FAULT_REDIRECT,
	FAULT_NO_KEEPALIVE,
	FAULT_CONTINUE,
	FAULT_EMPTY,
	FAULT_HTTP10,
	FAULT_FOLDED,
	FAULT_UNKNOWN
} FaultKind;

static const char *const fault_names[] = {"ok", "status", "hang", "hang-connect", "slow", "delay", "reset-accept",
	"reset-headers", "reset-body", "reset-answer", "close", "lost", "truncate", "chunked-truncate", "oversize",
	"oversize-headers", "garbage", "redirect", "no-keepalive", "continue", "empty", "http10", "folded"};

/* A path with its query, as a fault, and what it has met so far. */
typedef struct Target
{
	FaultKind kind;
	uint32_t scope;
	int status;
	int64_t times;
	int64_t every;
	int64_t ms;
	int64_t bytes;
	char *key;
	char *to;
	char *retry_after;
	int64_t requests;
} Target;

/* The attributes of an event; in this order in Event. */
typedef enum Attribute
{
	ATTRIBUTE_SPECVERSION,
	ATTRIBUTE_SOURCE,
	ATTRIBUTE_ID,
	ATTRIBUTE_TYPE,
	ATTRIBUTE_SUBJECT,
	ATTRIBUTES
} Attribute;

static const char *const attribute_names[] = {"specversion", "source", "id", "type", "subject"};

/* Where their values are in server.text. */
typedef struct Event
{
	size_t start[ATTRIBUTES];
	size_t length[ATTRIBUTES];
} Event;

/* A request; valid as long as the connection's input is not touched. */
typedef struct Request
{
	Text head;
	Text body;
	Text method;
	Text target;
	Text id;
	Text timestamp;
	Text signature;
	Text content_type;
	size_t length;
	int64_t content_length;
	int minor;
	bool chunked;
	bool close;
	bool keep;
	bool expect;
	bool host;
	const char *checked;
	const char *problem;
	Target *path;
} Request;

typedef enum ConnState
{
	CONN_OPEN,
	CONN_HOLDING,	/* has an answer, but not yet for the client */
	CONN_HANGING,	/* reads and forgets */
	CONN_STUCK,		/* does not even read */
	CONN_LINGERING, /* has sent its FIN, waits for the client's */
	CONN_RESETTING	/* waits a moment before the RST */
} ConnState;

/* What happens to a connection once its output has left. */
typedef enum After
{
	AFTER_KEEP,
	AFTER_FIN,
	AFTER_CUT, /* a FIN without the end that TLS has of its own */
	AFTER_RESET,
	AFTER_RESET_SOON
} After;

typedef struct Conn
{
	int fd;
	SSL *ssl;
	uint64_t number;
	bool control;
	ConnState state;
	After after;
	bool eof;
	bool dead;
	bool dirty;
	uint32_t interest;
	Buffer in;
	Buffer out;
	int64_t deadline;

	/* Of the output, the last `held` bytes wait; `step` more leave every `pace` ms. */
	size_t held;
	size_t step;
	int64_t pace;

	/* Of the request that is being read: what it needs to go on, what became of it. */
	size_t need;
	bool decided;
	bool continued;
	const Target *fault;

	struct Conn *previous;
	struct Conn *next;
	struct Conn *next_dirty;
} Conn;

/* A port; the socket `holder` keeps it ours while nobody listens. */
typedef struct Listener
{
	int fd;
	int holder;
	int port;
} Listener;

static struct
{
	int epoll;
	Listener port;
	Listener control;
	SSL_CTX *tls;
	EVP_MAC_CTX *secrets[MAX_SECRETS];
	int n_secrets;
	const char *port_file;
	int journal_fd;
	int record_fd;
	Buffer journal;
	Buffer record;

	Table table;
	uint32_t scopes;
	Target *fault; /* of /ok; none: NULL */
	uint64_t requests;
	uint64_t events;
	uint64_t ids;
	uint64_t connections;

	Event *batch;
	size_t n_batch;
	size_t max_batch;
	Buffer text;

	Conn *conns;
	Conn *dirty;
	int64_t next_deadline;
	int64_t listen_at;
	bool drop_conns;
} server = {.record_fd = -1, .journal_fd = -1, .next_deadline = NO_LIMIT, .listen_at = NO_LIMIT};

static volatile sig_atomic_t terminated;

__attribute__((noreturn)) static void
fail(const char *what)
{
	fprintf(stderr, "receiver: %s: %s\n", what, strerror(errno));
	exit(1);
}

__attribute__((noreturn)) static void
fail_tls(const char *what)
{
	fprintf(stderr, "receiver: %s\n", what);
	ERR_print_errors_fp(stderr);
	exit(1);
}

static void *
need_memory(void *memory)
{
	if (memory == NULL)
		fail("memory");
	return memory;
}

static int64_t
clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int64_t
now_ms(void)
{
	return clock_us(CLOCK_MONOTONIC) / 1000;
}

/* ---- text and buffers ---- */

static Text
text_of(const char *at, size_t length)
{
	return (Text){at, length};
}

static bool
text_is(Text text, const char *what)
{
	return text.length == strlen(what) && memcmp(text.at, what, text.length) == 0;
}

static bool
text_is_nocase(Text text, const char *what)
{
	return text.length == strlen(what) && strncasecmp(text.at, what, text.length) == 0;
}

static Text
text_trim(Text text)
{
	while (text.length > 0 && (*text.at == ' ' || *text.at == '\t'))
		text = text_of(text.at + 1, text.length - 1);
	while (text.length > 0 && (text.at[text.length - 1] == ' ' || text.at[text.length - 1] == '\t'))
		text.length--;
	return text;
}

/* Takes what is before the separator off the text; all of it if there is none. */
static Text
text_split(Text *text, char separator)
{
	const char *end = text->length > 0 ? memchr(text->at, separator, text->length) : NULL;
	Text first = *text;

	if (end == NULL)
	{
		*text = text_of(text->at + text->length, 0);
		return first;
	}
	first.length = end - first.at;
	*text = text_of(end + 1, text->length - first.length - 1);
	return first;
}

/* A number of digits only; anything else, or too many of them, is -1. */
static int64_t
text_number(Text text)
{
	int64_t number = 0;

	if (text.length == 0 || text.length > 15)
		return -1;
	for (size_t i = 0; i < text.length; i++)
	{
		if (text.at[i] < '0' || text.at[i] > '9')
			return -1;
		number = number * 10 + (text.at[i] - '0');
	}
	return number;
}

/* The value of a hexadecimal digit, or -1. */
static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* Makes room for more at the end. */
static void
buffer_room(Buffer *buffer, size_t more)
{
	size_t length = buffer->end - buffer->start;

	if (length == 0)
		buffer->start = buffer->end = 0;
	if (buffer->size - buffer->end >= more)
		return;
	if (buffer->start > 0)
	{
		memmove(buffer->data, buffer->data + buffer->start, length);
		buffer->start = 0;
		buffer->end = length;
	}
	if (buffer->size - buffer->end < more)
	{
		buffer->size = 2 * buffer->size + more;
		buffer->data = need_memory(realloc(buffer->data, buffer->size));
	}
}

static void
buffer_add(Buffer *buffer, const void *data, size_t length)
{
	buffer_room(buffer, length + 1);
	if (length > 0)
		memcpy(buffer->data + buffer->end, data, length);
	buffer->end += length;
}

static void
buffer_add_byte(Buffer *buffer, char byte)
{
	buffer_add(buffer, &byte, 1);
}

static void
buffer_fill(Buffer *buffer, char byte, size_t length)
{
	buffer_room(buffer, length);
	memset(buffer->data + buffer->end, byte, length);
	buffer->end += length;
}

__attribute__((format(printf, 2, 3))) static void
buffer_print(Buffer *buffer, const char *format, ...)
{
	va_list arguments;
	int length;

	buffer_room(buffer, 256);
	va_start(arguments, format);
	length = vsnprintf(buffer->data + buffer->end, buffer->size - buffer->end, format, arguments);
	va_end(arguments);
	if ((size_t) length >= buffer->size - buffer->end)
	{
		buffer_room(buffer, length + 1);
		va_start(arguments, format);
		vsnprintf(buffer->data + buffer->end, length + 1, format, arguments);
		va_end(arguments);
	}
	buffer->end += length;
}

/* As COPY has it, so that neither tab nor newline is part of a value. */
static void
buffer_add_escaped(Buffer *buffer, Text text)
{
	static const char special[] = "\\\t\n\r";
	static const char escape[] = "\\tnr";

	buffer_room(buffer, 2 * text.length);
	for (size_t i = 0; i < text.length; i++)
	{
		const char *found = memchr(special, text.at[i], sizeof(special) - 1);

		if (found != NULL)
			buffer->data[buffer->end++] = '\\';
		buffer->data[buffer->end++] = found ? escape[found - special] : text.at[i];
	}
}

/* ---- the table ---- */

static uint32_t
hash_of(const char *key, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (unsigned char) key[i]) * 0x100000001b3u;
	return (uint32_t) (hash ^ (hash >> 32));
}

static void
table_grow(Table *table)
{
	Table grown = {.used = table->used, .size = table->size ? 2 * table->size : TABLE_SIZE};

	grown.entries = need_memory(calloc(grown.size, sizeof(Entry)));
	for (size_t i = 0; i < table->size; i++)
	{
		size_t slot = table->entries[i].hash & (grown.size - 1);

		if (table->entries[i].key == NULL)
			continue;
		while (grown.entries[slot].key != NULL)
			slot = (slot + 1) & (grown.size - 1);
		grown.entries[slot] = table->entries[i];
	}
	free(table->entries);
	*table = grown;
}

/* Finds the entry of a key within a scope, or makes it. */
static Entry *
table_entry(uint32_t scope, Text name)
{
	static Buffer key;
	Table *table = &server.table;
	uint32_t hash;
	size_t slot;
	Entry *entry;

	key.start = key.end = 0;
	buffer_add(&key, &scope, sizeof(scope));
	buffer_add(&key, name.at, name.length);
	hash = hash_of(key.data, key.end);
	if (table->used * 4 >= table->size * 3)
		table_grow(table);
	for (slot = hash & (table->size - 1);; slot = (slot + 1) & (table->size - 1))
	{
		entry = &table->entries[slot];
		if (entry->key == NULL)
			break;
		if (entry->hash == hash && entry->length == key.end && memcmp(entry->key, key.data, key.end) == 0)
			return entry;
	}
	entry->key = need_memory(malloc(key.end));
	memcpy(entry->key, key.data, key.end);
	entry->length = key.end;
	entry->hash = hash;
	table->used++;
	return entry;
}

/* ---- JSON ---- */

/* What is left to read; `text` takes strings that are wanted. */
typedef struct Json
{
	const char *at;
	const char *end;
	Buffer *text;
} Json;

static bool json_value(Json *json, int depth);

static void
json_blanks(Json *json)
{
	while (json->at < json->end && (*json->at == ' ' || *json->at == '\t' || *json->at == '\n' || *json->at == '\r'))
		json->at++;
}

/* Blanks, then this character. */
static bool
json_is(Json *json, char what)
{
	json_blanks(json);
	if (json->at == json->end || *json->at != what)
		return false;
	json->at++;
	return true;
}

static int
json_hex4(Json *json)
{
	int code = 0;

	if (json->end - json->at < 4)
		return -1;
	for (int i = 0; i < 4; i++)
	{
		int digit = hex_digit(*json->at++);

		if (digit < 0)
			return -1;
		code = code * 16 + digit;
	}
	return code;
}

static void
add_utf8(Buffer *text, int code)
{
	if (code < 0x80)
		buffer_add_byte(text, code);
	else if (code < 0x800)
		buffer_add_byte(text, 0xc0 | code >> 6);
	else if (code < 0x10000)
		buffer_add_byte(text, 0xe0 | code >> 12);
	else
	{
		buffer_add_byte(text, 0xf0 | code >> 18);
		buffer_add_byte(text, 0x80 | (code >> 12 & 0x3f));
	}
	if (code >= 0x800)
		buffer_add_byte(text, 0x80 | (code >> 6 & 0x3f));
	if (code >= 0x80)
		buffer_add_byte(text, 0x80 | (code & 0x3f));
}

/* After \u: a character, or the two halves of one.  Half of one is refused. */
static bool
json_unicode(Json *json)
{
	int code = json_hex4(json);
	int low;

	if (code < 0 || (code >= 0xdc00 && code <= 0xdfff))
		return false;
	if (code >= 0xd800 && code <= 0xdbff)
	{
		if (json->end - json->at < 6 || json->at[0] != '\\' || json->at[1] != 'u')
			return false;
		json->at += 2;
		low = json_hex4(json);
		if (low < 0xdc00 || low > 0xdfff)
			return false;
		code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
	}
	add_utf8(json->text, code);
	return true;
}

static bool
json_escape(Json *json)
{
	static const char escapes[] = "\"\\/bfnrt";
	static const char values[] = "\"\\/\b\f\n\r\t";
	const char *found;

	if (json->at == json->end)
		return false;
	if (*json->at == 'u')
	{
		json->at++;
		return json_unicode(json);
	}
	found = memchr(escapes, *json->at++, sizeof(escapes) - 1);
	if (found == NULL)
		return false;
	buffer_add_byte(json->text, values[found - escapes]);
	return true;
}

/* A string, which is added to the text. */
static bool
json_string(Json *json)
{
	if (!json_is(json, '"'))
		return false;
	while (json->at < json->end)
	{
		const char *from = json->at;

		while (json->at < json->end && *json->at != '"' && *json->at != '\\' && (unsigned char) *json->at >= ' ')
			json->at++;
		buffer_add(json->text, from, json->at - from);
		if (json->at == json->end || (unsigned char) *json->at < ' ')
			return false;
		if (*json->at++ == '"')
			return true;
		if (!json_escape(json))
			return false;
	}
	return false;
}

/* A string that nobody wants. */
static bool
json_skip_string(Json *json)
{
	size_t mark = json->text->end;
	bool good = json_string(json);

	json->text->end = mark;
	return good;
}

static bool
json_digits(Json *json)
{
	const char *from = json->at;

	while (json->at < json->end && *json->at >= '0' && *json->at <= '9')
		json->at++;
	return json->at > from;
}

static bool
json_number(Json *json)
{
	if (json->at < json->end && *json->at == '-')
		json->at++;
	if (json->at < json->end && *json->at == '0')
		json->at++;
	else if (!json_digits(json))
		return false;
	if (json->at < json->end && *json->at == '.')
	{
		json->at++;
		if (!json_digits(json))
			return false;
	}
	if (json->at < json->end && (*json->at | 32) == 'e')
	{
		json->at++;
		if (json->at < json->end && (*json->at == '-' || *json->at == '+'))
			json->at++;
		return json_digits(json);
	}
	return true;
}

static bool
json_word(Json *json, const char *word)
{
	size_t length = strlen(word);

	json_blanks(json);
	if ((size_t) (json->end - json->at) < length || memcmp(json->at, word, length) != 0)
		return false;
	json->at += length;
	return true;
}

/* What is between the brackets of an object or an array, and the closing one. */
static bool
json_members(Json *json, bool object, int depth)
{
	char close = object ? '}' : ']';

	if (json_is(json, close))
		return true;
	do
	{
		if (object && !(json_skip_string(json) && json_is(json, ':')))
			return false;
		if (!json_value(json, depth))
			return false;
	} while (json_is(json, ','));
	return json_is(json, close);
}

/* Any value. */
static bool
json_value(Json *json, int depth)
{
	json_blanks(json);
	if (json->at == json->end || depth > MAX_DEPTH)
		return false;
	switch (*json->at)
	{
		case '{':
		case '[':
			return json_members(json, *json->at++ == '{', depth + 1);
		case '"':
			return json_skip_string(json);
		case 't':
			return json_word(json, "true");
		case 'f':
			return json_word(json, "false");
		case 'n':
			return json_word(json, "null");
		default:
			return json_number(json);
	}
}

static bool
is_utf8(Text text)
{
	const unsigned char *at = (const unsigned char *) text.at;
	const unsigned char *end = at + text.length;

	while (at < end)
	{
		int more = *at < 0x80 ? 0 : *at >= 0xc2 && *at < 0xe0 ? 1 : *at >= 0xe0 && *at < 0xf0 ? 2 : 3;

		if (*at >= 0x80 && (*at < 0xc2 || *at > 0xf4 || end - at <= more))
			return false;
		if ((*at == 0xe0 && at[1] < 0xa0) || (*at == 0xed && at[1] > 0x9f) || (*at == 0xf0 && at[1] < 0x90) ||
			(*at == 0xf4 && at[1] > 0x8f))
			return false;
		for (; more > 0; more--)
			if ((*++at & 0xc0) != 0x80)
				return false;
		at++;
	}
	return true;
}

/* ---- events ---- */

static Text
event_text(const Event *event, Attribute attribute)
{
	return text_of(server.text.data + event->start[attribute], event->length[attribute]);
}

/* The name of a member: an attribute, or ATTRIBUTES if it is none of ours. */
static bool
event_name(Json *json, Attribute *attribute)
{
	size_t mark = json->text->end;

	if (!json_string(json) || !json_is(json, ':'))
		return false;
	for (*attribute = 0; *attribute < ATTRIBUTES; (*attribute)++)
		if (text_is(text_of(json->text->data + mark, json->text->end - mark), attribute_names[*attribute]))
			break;
	json->text->end = mark;
	return true;
}

/* One event; null is as good as absent. */
static bool
event_parse(Json *json, Event *event)
{
	Attribute attribute;

	memset(event, 0, sizeof(*event));
	if (!json_is(json, '{'))
		return false;
	do
	{
		if (!event_name(json, &attribute))
			return false;
		if (attribute == ATTRIBUTES)
		{
			if (!json_value(json, 1))
				return false;
			continue;
		}
		event->start[attribute] = json->text->end;
		if (!json_word(json, "null") && !json_string(json))
			return false;
		event->length[attribute] = json->text->end - event->start[attribute];
	} while (json_is(json, ','));
	return json_is(json, '}') && text_is(event_text(event, ATTRIBUTE_SPECVERSION), "1.0") &&
		   event->length[ATTRIBUTE_SOURCE] > 0 && event->length[ATTRIBUTE_ID] > 0 && event->length[ATTRIBUTE_TYPE] > 0;
}

static Event *
event_new(void)
{
	if (server.n_batch == server.max_batch)
	{
		server.max_batch = 2 * server.max_batch + 16;
		server.batch = need_memory(realloc(server.batch, server.max_batch * sizeof(Event)));
	}
	return &server.batch[server.n_batch++];
}

static bool
events_parse(Text body, bool batch)
{
	Json json = {body.at, body.at + body.length, &server.text};

	if (!is_utf8(body))
		return false;
	if (!batch)
	{
		if (!event_parse(&json, event_new()))
			return false;
	}
	else if (!json_is(&json, '['))
		return false;
	else if (!json_is(&json, ']'))
	{
		do
		{
			if (!event_parse(&json, event_new()))
				return false;
		} while (json_is(&json, ','));
		if (!json_is(&json, ']'))
			return false;
	}
	json_blanks(&json);
	return json.at == json.end;
}

/* Reads the events of a request into server.batch; what is no event at all leaves none. */
static void
request_events(Request *request)
{
	Text rest = request->content_type;
	Text type = text_trim(text_split(&rest, ';'));
	bool batch = text_is_nocase(type, "application/cloudevents-batch+json");

	server.n_batch = 0;
	server.text.start = server.text.end = 0;
	buffer_room(&server.text, 1);
	if (!batch && !text_is_nocase(type, "application/cloudevents+json"))
		request->problem = "415 the content type is not that of events";
	else if (!events_parse(request->body, batch))
		request->problem = batch ? "400 not a batch of events" : "400 not an event";
	if (request->problem != NULL)
		server.n_batch = 0;
}

/* ---- signatures ---- */

static void
add_secret(const char *secret)
{
	OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string("digest", "SHA256", 0), OSSL_PARAM_construct_end()};
	EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	EVP_MAC_CTX *context = EVP_MAC_CTX_new(hmac);
	unsigned char key[256];
	int length;

	if (strncmp(secret, "whsec_", 6) == 0)
		secret += 6;
	if (server.n_secrets == MAX_SECRETS || strlen(secret) > sizeof(key))
		length = -1;
	else
		length = EVP_DecodeBlock(key, (const unsigned char *) secret, strlen(secret));
	if (length <= 0)
	{
		fprintf(stderr, "receiver: a secret is whsec_ and base64, and there are at most %d\n", MAX_SECRETS);
		exit(2);
	}
	for (size_t i = strlen(secret); i > 0 && secret[i - 1] == '='; i--)
		length--;
	if (!EVP_MAC_init(context, key, length, parameters))
		fail_tls("HMAC-SHA256");
	EVP_MAC_free(hmac);
	server.secrets[server.n_secrets++] = context;
}

/* The signature that a secret gives the request, in base64. */
static void
request_sign(const Request *request, EVP_MAC_CTX *secret, char *signature)
{
	unsigned char mac[EVP_MAX_MD_SIZE];
	size_t length;

	if (!EVP_MAC_init(secret, NULL, 0, NULL) ||
		!EVP_MAC_update(secret, (const unsigned char *) request->id.at, request->id.length) ||
		!EVP_MAC_update(secret, (const unsigned char *) ".", 1) ||
		!EVP_MAC_update(secret, (const unsigned char *) request->timestamp.at, request->timestamp.length) ||
		!EVP_MAC_update(secret, (const unsigned char *) ".", 1) ||
		!EVP_MAC_update(secret, (const unsigned char *) request->body.at, request->body.length) ||
		!EVP_MAC_final(secret, mac, &length, sizeof(mac)))
		fail_tls("HMAC-SHA256");
	EVP_EncodeBlock((unsigned char *) signature, mac, length);
}

static bool
signature_matches(const Request *request, const char *signature)
{
	Text rest = request->signature;

	while (rest.length > 0)
	{
		Text one = text_split(&rest, ' ');

		if (one.length > 3 && memcmp(one.at, "v1,", 3) == 0 && text_is(text_of(one.at + 3, one.length - 3), signature))
			return true;
	}
	return false;
}

static const char *
request_signature(const Request *request)
{
	int64_t timestamp = text_number(request->timestamp);
	char signature[2 * EVP_MAX_MD_SIZE];

	if (server.n_secrets == 0 || request->signature.length == 0)
		return "none";
	if (request->id.length == 0 || timestamp < 0 || llabs(timestamp - (int64_t) time(NULL)) > TOLERANCE_S)
		return "bad";
	for (int i = 0; i < server.n_secrets; i++)
	{
		request_sign(request, server.secrets[i], signature);
		if (signature_matches(request, signature))
			return "ok";
	}
	return "bad";
}

/* ---- faults ---- */

/* A copy with what is percent-encoded decoded. */
static char *
decode(Text text)
{
	char *copy = need_memory(malloc(text.length + 1));
	char *to = copy;

	for (size_t i = 0; i < text.length; i++)
	{
		*to = text.at[i];
		if (*to == '%' && i + 2 < text.length && hex_digit(text.at[i + 1]) >= 0 && hex_digit(text.at[i + 2]) >= 0)
		{
			*to = hex_digit(text.at[i + 1]) * 16 + hex_digit(text.at[i + 2]);
			i += 2;
		}
		to++;
	}
	*to = '\0';
	return copy;
}

static void
target_option(Target *target, Text name, Text value)
{
	if (text_is(name, "times"))
		target->times = text_number(value);
	else if (text_is(name, "every"))
		target->every = text_number(value);
	else if (text_is(name, "ms"))
		target->ms = text_number(value);
	else if (text_is(name, "bytes"))
		target->bytes = text_number(value);
	else if (text_is(name, "status"))
		target->status = text_number(value);
	else if (text_is(name, "key"))
		target->key = decode(value);
	else if (text_is(name, "to"))
		target->to = decode(value);
	else if (text_is(name, "retry-after"))
		target->retry_after = decode(value);
}

/* Understands a path with its query; counts from zero. */
static Target *
target_new(Text text)
{
	Target *target = need_memory(calloc(1, sizeof(Target)));
	Text rest = text;
	Text path = text_split(&rest, '?');
	Text name;

	if (path.length > 0 && *path.at == '/')
		path = text_of(path.at + 1, path.length - 1);
	name = text_split(&path, '/');
	while (target->kind < FAULT_UNKNOWN && !text_is(name, fault_names[target->kind]))
		target->kind++;
	target->scope = ++server.scopes;
	target->times = target->every = target->ms = target->bytes = -1;
	target->status = target->kind == FAULT_REDIRECT ? 302 : target->kind == FAULT_STATUS ? 0 : 200;
	if (path.length > 0)
		target->status = text_number(path);
	while (rest.length > 0)
	{
		Text value = text_split(&rest, '&');

		name = text_split(&value, '=');
		target_option(target, name, value);
	}
	if ((target->status < 100 || target->status > 999) && target->kind != FAULT_OK)
		target->kind = FAULT_UNKNOWN;
	if (target->ms < 0)
		target->ms = target->kind == FAULT_SLOW ? 1000 : 100;
	if (target->bytes < 0 || target->bytes > MAX_BODY)
		target->bytes = OVERSIZE;
	return target;
}

static Target *
target_find(Text text)
{
	Entry *entry = table_entry(0, text);

	if (entry->value == NULL)
		entry->value = target_new(text);
	return entry->value;
}

/* Whether the fault is one for this request, or connection; called once for each. */
static bool
fault_strikes(Target *fault, Text id)
{
	if (fault->key != NULL)
	{
		size_t i = 0;

		while (i < server.n_batch && !text_is(event_text(&server.batch[i], ATTRIBUTE_SUBJECT), fault->key))
			i++;
		if (i == server.n_batch)
			return false;
	}
	if (++fault->requests % (fault->every > 0 ? fault->every : 1) != 0)
		return false;
	return fault->times < 0 || ++table_entry(fault->scope, id)->count <= (uint64_t) fault->times;
}

/* What a fault is in the journal: the status that the client can see, or its name. */
static void
fault_outcome(const Target *fault, char *outcome, size_t size)
{
	switch (fault->kind)
	{
		case FAULT_OK:
		case FAULT_DELAY:
		case FAULT_NO_KEEPALIVE:
		case FAULT_CONTINUE:
		case FAULT_HTTP10:
		case FAULT_FOLDED:
			snprintf(outcome, size, "200");
			break;
		case FAULT_STATUS:
		case FAULT_REDIRECT:
		case FAULT_EMPTY:
			snprintf(outcome, size, "%d", fault->status < 200 ? 200 : fault->status);
			break;
		case FAULT_UNKNOWN:
			snprintf(outcome, size, "404");
			break;
		default:
			snprintf(outcome, size, "%s", fault_names[fault->kind]);
			break;
	}
}

/* ---- the journal ---- */

static void
write_all(int fd, Buffer *buffer)
{
	while (buffer->start < buffer->end)
	{
		ssize_t written = write(fd, buffer->data + buffer->start, buffer->end - buffer->start);

		if (written < 0 && errno != EINTR)
			fail("journal");
		if (written > 0)
			buffer->start += written;
	}
	buffer->start = buffer->end = 0;
}

static void
journal_flush(void)
{
	/* Whoever finds a line in the journal is to find the request in the record. */
	if (server.record.end > 0)
		write_all(server.record_fd, &server.record);
	if (server.journal.end > 0)
		write_all(server.journal_fd, &server.journal);
}

/* One line; event is NULL if the request has none that could be read. */
static void
journal_line(const Conn *conn, const Request *request, const Event *event, int64_t arrival, const char *outcome)
{
	static const Event nothing;
	Buffer *journal = &server.journal;
	Text id = event ? event_text(event, ATTRIBUTE_ID) : request->id;
	uint64_t attempt = 0;

	if (request->path != NULL && id.length > 0)
		attempt = ++table_entry(request->path->scope + (UINT32_C(1) << 31), id)->count;
	if (event == NULL)
		event = &nothing;
	else if (++table_entry(UINT32_C(1) << 31, id)->count == 1)
		server.ids++;
	buffer_print(journal, "%lld\t", (long long) arrival);
	buffer_add_escaped(journal, request->target);
	buffer_add_byte(journal, '\t');
	buffer_add_escaped(journal, request->id);
	buffer_add_byte(journal, '\t');
	buffer_add_escaped(journal, event_text(event, ATTRIBUTE_TYPE));
	buffer_add_byte(journal, '\t');
	buffer_add_escaped(journal, event_text(event, ATTRIBUTE_SUBJECT));
	buffer_print(journal, "\t%zu\t%llu\t%s\t%s\t", event == &nothing ? 0 : server.n_batch, (unsigned long long) attempt,
		request->checked ? request->checked : "none", outcome);
	buffer_add_escaped(journal, event_text(event, ATTRIBUTE_ID));
	buffer_print(journal, "\t%llu\n", (unsigned long long) conn->number);
}

/* The lines of a request; whole says whether all of it has been read. */
static void
journal(const Conn *conn, const Request *request, bool whole, const char *outcome)
{
	int64_t arrival = clock_us(CLOCK_REALTIME);
	size_t n = whole ? server.n_batch : 0;

	server.requests++;
	server.events += n;
	if (n == 0)
		journal_line(conn, request, NULL, arrival, outcome);
	for (size_t i = 0; i < n; i++)
		journal_line(conn, request, &server.batch[i], arrival, outcome);
	if (server.record_fd >= 0 && whole)
	{
		buffer_print(&server.record, "%lld\t", (long long) arrival);
		buffer_add_escaped(&server.record, request->target);
		buffer_add_byte(&server.record, '\t');
		buffer_add_escaped(&server.record, request->head);
		buffer_add_byte(&server.record, '\t');
		buffer_add_escaped(&server.record, request->body);
		buffer_add_byte(&server.record, '\n');
	}
}

/* ---- connections: the state of one ---- */

/* To be seen to at the end of the round. */
static void
conn_touch(Conn *conn)
{
	if (conn->dirty)
		return;
	conn->dirty = true;
	conn->next_dirty = server.dirty;
	server.dirty = conn;
}

static void
conn_wait(Conn *conn, int64_t ms)
{
	conn->deadline = now_ms() + ms;
	if (conn->deadline < server.next_deadline)
		server.next_deadline = conn->deadline;
}

/* Holds back the output from here on: step bytes of it leave every pace ms. */
static void
conn_hold(Conn *conn, size_t from, size_t step, int64_t pace)
{
	conn->state = CONN_HOLDING;
	conn->held = conn->out.end - conn->out.start - from;
	conn->step = step;
	conn->pace = pace;
	conn_wait(conn, pace);
}

/* ---- answers ---- */

static const char *
reason(int status)
{
	return status < 300 ? "OK" : status < 400 ? "Elsewhere" : "No";
}

static void
answer(Conn *conn, const Request *request, int status, const char *headers, const char *body)
{
	if (request->close)
		conn->after = AFTER_FIN;
	buffer_print(&conn->out, "HTTP/1.1 %d %s\r\n%s", status, reason(status), headers);
	if (conn->after == AFTER_FIN)
		buffer_print(&conn->out, "Connection: close\r\n");
	else if (request->keep)
		buffer_print(&conn->out, "Connection: keep-alive\r\n");
	if (status == 204 || status == 304)
		buffer_print(&conn->out, "\r\n");
	else
		buffer_print(&conn->out, "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
}

static void
answer_continue(Conn *conn)
{
	if (!conn->continued)
		buffer_print(&conn->out, "HTTP/1.1 100 Continue\r\n\r\n");
	conn->continued = true;
}

static void
answer_status(Conn *conn, const Request *request, const Target *fault)
{
	char headers[512] = "";
	time_t when = time(NULL);
	char date[64];

	if (fault->status == 100)
		answer_continue(conn);
	else if (fault->status < 200)
		buffer_print(&conn->out, "HTTP/1.1 %d Wait\r\n\r\n", fault->status);
	if (fault->retry_after != NULL && strncmp(fault->retry_after, "date", 4) == 0)
	{
		when += fault->retry_after[4] == '+' ? atoi(fault->retry_after + 5) : 2;
		strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", gmtime(&when));
		snprintf(headers, sizeof(headers), "Retry-After: %s\r\n", date);
	}
	else if (fault->retry_after != NULL)
		snprintf(headers, sizeof(headers), "Retry-After: %.400s\r\n", fault->retry_after);
	answer(conn, request, fault->status < 200 ? 200 : fault->status, headers, fault->status < 300 ? "ok" : "no");
}

static void
answer_oversize(Conn *conn, const Request *request, const Target *fault)
{
	if (request->close)
		conn->after = AFTER_FIN;
	if (fault->kind == FAULT_OVERSIZE)
	{
		buffer_print(&conn->out, "HTTP/1.1 200 OK\r\nContent-Length: %lld\r\n\r\n", (long long) fault->bytes);
		buffer_fill(&conn->out, 'x', fault->bytes);
		return;
	}
	buffer_print(&conn->out, "HTTP/1.1 200 OK\r\n");
	for (int64_t left = fault->bytes; left > 0; left -= 1024)
		buffer_print(&conn->out, "X-Filler-%lld: %0*d\r\n", (long long) left, 1010, 0);
	buffer_print(&conn->out, "Content-Length: 2\r\n\r\nok");
}

/* An answer that is cut off: by FIN at the end of this, or by RST. */
static void
answer_cut(Conn *conn, const Request *request, const Target *fault)
{
	size_t from = conn->out.end - conn->out.start;

	conn->after = fault->kind == FAULT_RESET_ANSWER ? AFTER_RESET_SOON : AFTER_CUT;
	if (fault->kind == FAULT_TRUNCATE)
		buffer_print(&conn->out, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe rest is miss");
	else if (fault->kind == FAULT_CHUNKED_TRUNCATE)
		buffer_print(&conn->out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n40\r\nmiss");
	else
	{
		answer(conn, request, 200, "", "ok");
		from += conn->out.start;
		conn->out.end = from + (conn->out.end - from) / 2;
	}
}

/* Answers as the fault has it. */
static void
answer_fault(Conn *conn, const Request *request, const Target *fault)
{
	size_t from = conn->out.end - conn->out.start;
	char headers[4096];

	switch (fault->kind)
	{
		case FAULT_STATUS:
			answer_status(conn, request, fault);
			break;
		case FAULT_HANG:
			conn->state = CONN_HANGING;
			break;
		case FAULT_SLOW:
			answer(conn, request, 200, "", "ok");
			conn_hold(conn, from, 1, fault->ms);
			break;
		case FAULT_DELAY:
			answer(conn, request, 200, "", "ok");
			conn_hold(conn, from, SIZE_MAX, fault->ms);
			break;
		case FAULT_RESET_ANSWER:
		case FAULT_TRUNCATE:
		case FAULT_CHUNKED_TRUNCATE:
			answer_cut(conn, request, fault);
			break;
		case FAULT_CLOSE:
		case FAULT_LOST:
			conn->after = AFTER_FIN;
			break;
		case FAULT_OVERSIZE:
		case FAULT_OVERSIZE_HEADERS:
			answer_oversize(conn, request, fault);
			break;
		case FAULT_GARBAGE:
			buffer_print(&conn->out, "\x7f\x01\x02 this is not HTTP\n\n");
			conn->after = AFTER_FIN;
			break;
		case FAULT_REDIRECT:
			snprintf(headers, sizeof(headers), "Location: %.4000s\r\n", fault->to ? fault->to : "/ok");
			answer(conn, request, fault->status, headers, "");
			break;
		case FAULT_NO_KEEPALIVE:
			conn->after = AFTER_FIN;
			answer(conn, request, 200, "", "ok");
			break;
		case FAULT_CONTINUE:
			answer_continue(conn);
			answer(conn, request, 200, "", "ok");
			break;
		case FAULT_EMPTY:
			answer(conn, request, fault->status, "", "");
			break;
		case FAULT_HTTP10:
			buffer_print(&conn->out, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nok");
			conn->after = AFTER_FIN;
			break;
		case FAULT_FOLDED:
			buffer_print(&conn->out, "HTTP/1.1 200 OK\r\n\tfolded: line\r\nX-Last: of the headers\r\nContent-Length: 2\r\n\r\nok");
			break;
		default:
			break;
	}
}

static void
answer_count(Conn *conn, const Request *request)
{
	char body[256];

	snprintf(body, sizeof(body), "{\"requests\": %llu, \"events\": %llu, \"ids\": %llu, \"connections\": %llu}\n",
		(unsigned long long) server.requests, (unsigned long long) server.events, (unsigned long long) server.ids,
		(unsigned long long) server.connections);
	answer(conn, request, 200, "Content-Type: application/json\r\n", body);
}

/* ---- control ---- */

static bool
control_line(Text line)
{
	Text name = text_split(&line, '=');

	if (text_is(name, "fault"))
	{
		Target *fault = line.length > 0 ? target_new(line) : NULL;

		/* The one before may still be somebody's, so it is not freed. */
		if (fault != NULL && fault->kind == FAULT_UNKNOWN)
			return false;
		server.fault = fault;
		return true;
	}
	if (text_is(name, "stop-listening"))
	{
		char *seconds = decode(line);
		char *end;
		double pause = strtod(seconds, &end);
		bool good = end > seconds && *end == '\0' && pause >= 0;

		if (good)
		{
			server.listen_at = now_ms() + (int64_t) (pause * 1000);
			server.drop_conns = true;
		}
		free(seconds);
		return good;
	}
	return name.length == 0;
}

static void
answer_control(Conn *conn, const Request *request)
{
	Text rest = request->body;

	while (rest.length > 0)
	{
		Text line = text_split(&rest, '\n');

		if (line.length > 0 && line.at[line.length - 1] == '\r')
			line.length--;
		if (!control_line(line))
		{
			answer(conn, request, 400, "", "fault=TARGET or stop-listening=SECONDS\n");
			return;
		}
	}
	answer(conn, request, 200, "", "ok\n");
}

/* ---- requests ---- */

static bool
has_token(Text list, const char *token)
{
	while (list.length > 0)
		if (text_is_nocase(text_trim(text_split(&list, ',')), token))
			return true;
	return false;
}

/* Takes what matters from a header; what is wrong with it, or NULL. */
static const char *
request_header(Request *request, Text name, Text value)
{
	if (text_is_nocase(name, "webhook-id"))
		request->id = value;
	else if (text_is_nocase(name, "webhook-timestamp"))
		request->timestamp = value;
	else if (text_is_nocase(name, "webhook-signature"))
		request->signature = value;
	else if (text_is_nocase(name, "content-type"))
		request->content_type = value;
	else if (text_is_nocase(name, "host"))
		request->host = true;
	else if (text_is_nocase(name, "connection"))
	{
		request->close |= has_token(value, "close");
		request->keep |= has_token(value, "keep-alive");
	}
	else if (text_is_nocase(name, "expect"))
		request->expect = text_is_nocase(value, "100-continue");
	else if (text_is_nocase(name, "transfer-encoding"))
	{
		if (request->chunked || !text_is_nocase(value, "chunked"))
			return "501 unknown transfer encoding";
		request->chunked = true;
	}
	else if (text_is_nocase(name, "content-length"))
	{
		int64_t length = text_number(value);

		if (length < 0 || (request->content_length >= 0 && request->content_length != length))
			return "400 bad content length";
		if (length > MAX_BODY)
			return "413 the body is too long";
		request->content_length = length;
	}
	return NULL;
}

static const char *
request_line(Request *request, Text line)
{
	request->method = text_split(&line, ' ');
	request->target = text_split(&line, ' ');
	if (request->method.length == 0 || request->target.length == 0 || *request->target.at != '/')
		return "400 bad request line";
	if (!text_is(line, "HTTP/1.1") && !text_is(line, "HTTP/1.0"))
		return "505 bad version";
	request->minor = line.at[7] - '0';
	return NULL;
}

/* Reads the head; false if it is not there yet.  What is wrong is the problem. */
static bool
request_head(Request *request, Text input)
{
	const char *end = memmem(input.at, input.length, "\r\n\r\n", 4);
	Text rest;

	memset(request, 0, sizeof(*request));
	request->content_length = -1;
	if (end == NULL)
	{
		if (input.length > MAX_HEAD)
			request->problem = "431 the head is too long";
		return request->problem != NULL;
	}
	request->head = rest = text_of(input.at, end + 2 - input.at);
	for (bool first = true; rest.length > 0 && request->problem == NULL; first = false)
	{
		Text line = text_split(&rest, '\n');
		Text name;

		if (line.length == 0 || line.at[line.length - 1] != '\r' || memchr(line.at, '\0', line.length))
		{
			request->problem = "400 bad line";
			break;
		}
		line.length--;
		if (first)
		{
			request->problem = request_line(request, line);
			continue;
		}
		name = text_split(&line, ':');
		if (name.length == 0 || text_trim(name).length != name.length || line.at == name.at + name.length)
			request->problem = "400 bad header";
		else
			request->problem = request_header(request, name, text_trim(line));
	}
	if (request->problem == NULL && request->minor == 1 && !request->host)
		request->problem = "400 no host";
	if (request->problem == NULL && request->chunked && request->content_length >= 0)
		request->problem = "400 two lengths";
	if (request->minor == 0)
		request->close |= !request->keep;
	else
		request->keep = false;
	return true;
}

/*
 * Takes a chunked body apart, in its place if that is wanted.  Returns the
 * number of bytes it came in, 0 if it is not whole, -1 if it is bad.
 */
static ssize_t
chunks_decode(char *data, size_t length, bool change, size_t *body_length)
{
	char *at = data;
	char *end = data + length;

	*body_length = 0;
	for (;;)
	{
		char *line_end = memmem(at, end - at, "\r\n", 2);
		char *digits_end;
		unsigned long size;

		if (line_end == NULL)
			return end - at > 1024 ? -1 : 0;
		if (hex_digit(*at) < 0 || line_end - at > 1024)
			return -1;
		size = strtoul(at, &digits_end, 16);
		if (size > MAX_BODY || *body_length + size > MAX_BODY || (digits_end != line_end && *digits_end != ';'))
			return -1;
		at = line_end + 2;
		if (size == 0)
			break;
		if ((size_t) (end - at) < size + 2)
			return 0;
		if (change)
			memmove(data + *body_length, at, size);
		*body_length += size;
		at += size;
		if (memcmp(at, "\r\n", 2) != 0)
			return -1;
		at += 2;
	}

	/* The trailer: lines up to an empty one. */
	for (;;)
	{
		char *line_end = memmem(at, end - at, "\r\n", 2);

		if (line_end == NULL)
			return end - at > MAX_HEAD ? -1 : 0;
		if (line_end == at)
			return at + 2 - data;
		at = line_end + 2;
	}
}

/* Finds the body; false if it is not whole yet. */
static bool
request_body(Conn *conn, Request *request)
{
	char *data = conn->in.data + conn->in.start + request->head.length + 2;
	size_t there = conn->in.data + conn->in.end - data;
	size_t length = request->content_length > 0 ? request->content_length : 0;

	request->length = request->head.length + 2 + length;
	if (request->chunked)
	{
		ssize_t raw = chunks_decode(data, there, false, &length);

		if (raw < 0)
			request->problem = "400 bad chunk";
		if (raw == 0)
			return false;
		if (raw > 0)
			(void) chunks_decode(data, there, true, &length);
		request->length = request->head.length + 2 + (raw > 0 ? raw : 0);
	}
	else if (there < length)
	{
		conn->need = request->length;
		return false;
	}
	request->body = text_of(data, length);
	return true;
}

/* What was not even a request: says why, and hangs up. */
static void
request_refuse(Conn *conn, Request *request)
{
	char outcome[4];

	snprintf(outcome, sizeof(outcome), "%.3s", request->problem);
	request->close = true;
	request->keep = false;
	answer(conn, request, atoi(request->problem), "", request->problem + 4);
	if (!conn->control)
		journal(conn, request, false, outcome);
}

/* Chooses whether the fault is one for the request, once. */
static void
request_decide(Conn *conn, const Request *request, Target *fault)
{
	conn->decided = true;
	if (fault->kind == FAULT_UNKNOWN || (fault->kind != FAULT_OK && fault_strikes(fault, request->id)))
		conn->fault = fault;
}

/* Faults that do not wait for all of the request; true if it ends here. */
static bool
request_break(Conn *conn, Request *request)
{
	size_t there = conn->in.end - conn->in.start - request->head.length - 2;
	size_t half = request->chunked ? 1 : request->content_length > 0 ? (request->content_length + 1) / 2 : 0;

	if (conn->fault == NULL)
		return false;
	switch (conn->fault->kind)
	{
		case FAULT_RESET_BODY:
			if (there < half)
			{
				conn->need = request->head.length + 2 + half;
				return false;
			}
			conn->after = AFTER_RESET;
			break;
		case FAULT_RESET_ACCEPT:
		case FAULT_RESET_HEADERS:
			conn->after = AFTER_RESET;
			break;
		case FAULT_HANG_CONNECT:
			conn->state = CONN_STUCK;
			break;
		default:
			return false;
	}

	/* Whether the body has come along must not matter, unless it had to be read. */
	if (conn->fault->key == NULL)
		request->checked = NULL;
	journal(conn, request, conn->fault->key != NULL, fault_names[conn->fault->kind]);
	return true;
}

/* Answers a request that is there as a whole. */
static void
request_answer(Conn *conn, Request *request)
{
	char outcome[32] = "200";

	if (conn->fault != NULL && conn->fault->kind != FAULT_UNKNOWN)
	{
		fault_outcome(conn->fault, outcome, sizeof(outcome));
		journal(conn, request, true, outcome);
		answer_fault(conn, request, conn->fault);
		return;
	}
	if (conn->fault != NULL)
		request->problem = "404 no such path";
	else if (server.n_secrets > 0 && strcmp(request->checked, "ok") != 0)
		request->problem = "401 no valid signature";
	if (request->problem != NULL)
		snprintf(outcome, sizeof(outcome), "%.3s", request->problem);
	journal(conn, request, true, outcome);
	if (request->problem != NULL)
		answer(conn, request, atoi(request->problem), "", request->problem + 4);
	else
		answer(conn, request, 200, "", "ok");
}

/* A POST of events.  True once it is answered, and the next one may follow. */
static bool
request_events_answer(Conn *conn, Request *request, bool whole)
{
	Target *fault = request->path = target_find(request->target);

	if (fault->kind == FAULT_OK && server.fault != NULL)
		fault = server.fault;
	if (whole)
	{
		request->checked = request_signature(request);
		request_events(request);
	}
	if (!conn->decided && (whole || fault->key == NULL))
		request_decide(conn, request, fault);
	if (request_break(conn, request) || !whole)
		return false;
	request_answer(conn, request);
	return true;
}

/* Answers a request if that is possible yet. */
static bool
request_dispatch(Conn *conn, Request *request, bool whole)
{
	Text rest = request->target;
	Text path = text_split(&rest, '?');
	bool post = text_is(request->method, "POST");
	bool control = text_is(path, "/control");

	if (post && !control && !conn->control)
		return request_events_answer(conn, request, whole);
	if (!whole)
		return false;
	if (post && control)
		answer_control(conn, request);
	else if (text_is(path, "/count") && text_is(request->method, "GET"))
		answer_count(conn, request);
	else
		answer(conn, request, 405, "Allow: POST\r\n", "POST events, POST /control or GET /count\n");
	return true;
}

/* Deals with the next request of the input; false if that is not possible now. */
static bool
request_next(Conn *conn)
{
	Request request;
	bool whole;

	/* Some clients send an empty line between requests. */
	while (conn->in.end - conn->in.start >= 2 && memcmp(conn->in.data + conn->in.start, "\r\n", 2) == 0)
		conn->in.start += 2;
	if (conn->state != CONN_OPEN || conn->after != AFTER_KEEP || conn->in.start == conn->in.end ||
		conn->in.end - conn->in.start < conn->need)
		return false;
	if (!request_head(&request, text_of(conn->in.data + conn->in.start, conn->in.end - conn->in.start)))
		return false;
	whole = request.problem == NULL && request_body(conn, &request);
	if (request.problem != NULL)
	{
		request_refuse(conn, &request);
		return false;
	}
	if (!request_dispatch(conn, &request, whole))
	{
		if (request.expect && conn->state == CONN_OPEN && conn->after == AFTER_KEEP)
			answer_continue(conn);
		return false;
	}
	conn->in.start += request.length;
	conn->need = 0;
	conn->decided = conn->continued = false;
	conn->fault = NULL;
	return true;
}

/* ---- connections: reading and writing ---- */

static void
conn_interest(Conn *conn)
{
	struct epoll_event event = {0};

	/* While an answer is held back, reading shows that the client is gone. */
	if (!conn->eof && (conn->state == CONN_HANGING || conn->state == CONN_LINGERING ||
						  (conn->after == AFTER_KEEP && (conn->state == CONN_OPEN || conn->state == CONN_HOLDING))))
		event.events |= EPOLLIN;
	if (conn->state == CONN_STUCK)
		event.events |= EPOLLRDHUP;
	if (conn->out.end - conn->out.start > conn->held)
		event.events |= EPOLLOUT;
	if (event.events == conn->interest)
		return;
	conn->interest = event.events;
	event.data.ptr = conn;
	if (epoll_ctl(server.epoll, EPOLL_CTL_MOD, conn->fd, &event) < 0)
		fail("epoll_ctl");
}

static void
conn_free(Conn *conn, bool reset)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};

	if (reset)
		setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(conn->fd);
	SSL_free(conn->ssl);
	free(conn->in.data);
	free(conn->out.data);
	if (conn->previous)
		conn->previous->next = conn->next;
	else
		server.conns = conn->next;
	if (conn->next)
		conn->next->previous = conn->previous;
	free(conn);
}

/*
 * The result of a TLS call as conn_recv() has it.  That it wants to write while
 * it reads is not looked at: a handshake is smaller than a socket's buffer.
 */
static ssize_t
tls_result(Conn *conn, int result)
{
	int error;

	if (result > 0)
		return result;
	error = SSL_get_error(conn->ssl, result);
	if (error == SSL_ERROR_ZERO_RETURN)
		return 0;
	return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? -1 : -2;
}

/* Bytes read, 0 at the end, -1 if there are none now, -2 on an error. */
static ssize_t
conn_recv(Conn *conn, char *data, size_t size)
{
	ssize_t n;

	if (conn->ssl != NULL)
	{
		ERR_clear_error();
		return tls_result(conn, SSL_read(conn->ssl, data, size));
	}
	n = recv(conn->fd, data, size, 0);
	return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? -1 : -2;
}

static ssize_t
conn_send(Conn *conn, const char *data, size_t size)
{
	ssize_t n;

	if (conn->ssl != NULL)
	{
		ERR_clear_error();
		n = tls_result(conn, SSL_write(conn->ssl, data, size));
		return n == 0 ? -2 : n;
	}
	n = send(conn->fd, data, size, MSG_NOSIGNAL);
	return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? -1 : -2;
}

static void
conn_requests(Conn *conn)
{
	while (request_next(conn))
		;
	conn_touch(conn);
}

static void
conn_read(Conn *conn)
{
	bool wanted = conn->state == CONN_OPEN || conn->state == CONN_HOLDING;
	ssize_t n;

	do
	{
		size_t room;

		buffer_room(&conn->in, READ_SIZE);
		room = conn->in.size - conn->in.end;
		n = conn_recv(conn, conn->in.data + conn->in.end, room);
		if (n > 0 && wanted)
			conn->in.end += n;
		if (n == 0)
			conn->eof = true;
		if (n == -2)
			conn->dead = true;

		/* What TLS has read already does not make the socket readable again. */
		if (conn->ssl == NULL)
			break;
	} while (n > 0);
	if (wanted)
		conn_requests(conn);
	else
		conn_touch(conn);
}

/* Sends what may leave; false if the connection is broken. */
static bool
conn_write(Conn *conn)
{
	while (conn->out.end - conn->out.start > conn->held)
	{
		ssize_t n = conn_send(conn, conn->out.data + conn->out.start, conn->out.end - conn->out.start - conn->held);

		if (n < 0)
			return n == -1;
		conn->out.start += n;
	}
	return true;
}

static void
conn_finish(Conn *conn)
{
	if (conn->ssl != NULL && conn->after == AFTER_FIN)
		(void) SSL_shutdown(conn->ssl);
	(void) shutdown(conn->fd, SHUT_WR);
	conn->state = CONN_LINGERING;
	conn->in.start = conn->in.end = 0;
	conn_wait(conn, LINGER_MS);
}

/* All of the output has left: does what comes after it. */
static void
conn_sent(Conn *conn)
{
	bool held = conn->state == CONN_HOLDING;

	if (held)
		conn->state = CONN_OPEN;
	if (conn->state != CONN_OPEN)
		return;
	if (conn->after == AFTER_RESET_SOON)
	{
		conn->state = CONN_RESETTING;
		conn_wait(conn, RESET_PAUSE_MS);
	}
	else if (conn->after != AFTER_KEEP)
		conn_finish(conn);
	else if (held)
		conn_requests(conn);
}

/* At the end of the round, with the journal written: output, and what follows. */
static void
conn_settle(Conn *conn)
{
	bool sent;

	if (!conn->dead && !conn_write(conn))
		conn->dead = true;
	sent = conn->out.start == conn->out.end;
	if (conn->eof && conn->state == CONN_HANGING)
		conn->dead = true;
	if (conn->dead || conn->after == AFTER_RESET)
	{
		conn_free(conn, conn->after == AFTER_RESET);
		return;
	}
	if (sent)
		conn_sent(conn);

	/* The client will not say more, and all is said to it. */
	if (sent && conn->eof && !conn->dirty && (conn->state == CONN_OPEN || conn->state == CONN_LINGERING))
	{
		conn_free(conn, false);
		return;
	}
	conn_interest(conn);
}

/* The wait is over. */
static void
conn_expire(Conn *conn)
{
	conn->deadline = 0;
	if (conn->state == CONN_HOLDING)
	{
		conn->held -= conn->step < conn->held ? conn->step : conn->held;
		if (conn->held > 0)
			conn_wait(conn, conn->pace);
	}
	else if (conn->state == CONN_RESETTING)
		conn->after = AFTER_RESET;
	else
		conn->dead = true;
	conn_touch(conn);
}

/* ---- listening ---- */

static int
new_socket(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int yes = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
		bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
		fail("socket");
	return fd;
}

static void
listener_open(Listener *listener)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = listener};

	listener->fd = new_socket(listener->port);
	if (listen(listener->fd, SOMAXCONN) < 0 || epoll_ctl(server.epoll, EPOLL_CTL_ADD, listener->fd, &event) < 0)
		fail("listen");
}

static void
listener_close(Listener *listener)
{
	if (listener->fd >= 0)
		close(listener->fd);
	listener->fd = -1;
}

static void
listener_start(Listener *listener, int port)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);

	listener->holder = new_socket(port);
	if (getsockname(listener->holder, (struct sockaddr *) &address, &length) < 0)
		fail("getsockname");
	listener->port = ntohs(address.sin_port);
	listener_open(listener);
}

/* A fault of connections acts before anything is read. */
static void
conn_break(Conn *conn)
{
	Request request = {0};

	if (server.fault == NULL || (server.fault->kind != FAULT_HANG_CONNECT && server.fault->kind != FAULT_RESET_ACCEPT))
		return;
	server.n_batch = 0;
	if (!fault_strikes(server.fault, request.id))
		return;
	if (server.fault->kind == FAULT_HANG_CONNECT)
		conn->state = CONN_STUCK;
	else
		conn->after = AFTER_RESET;
	journal(conn, &request, false, fault_names[server.fault->kind]);
	conn_touch(conn);
}

static void
conn_new(int fd, bool control)
{
	Conn *conn = need_memory(calloc(1, sizeof(Conn)));
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
	int yes = 1;

	conn->fd = fd;
	conn->control = control;
	conn->interest = EPOLLIN;
	conn->next = server.conns;
	if (conn->next)
		conn->next->previous = conn;
	server.conns = conn;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
	if (epoll_ctl(server.epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		fail("epoll_ctl");
	if (control)
		return;
	conn->number = ++server.connections;
	if (server.tls != NULL)
	{
		conn->ssl = SSL_new(server.tls);
		if (conn->ssl == NULL || !SSL_set_fd(conn->ssl, fd))
			fail_tls("SSL_new");
		SSL_set_accept_state(conn->ssl);
	}
	conn_break(conn);
}

static void
listener_accept(Listener *listener)
{
	for (int i = 0; i < 64; i++)
	{
		int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0)
			return;
		conn_new(fd, listener == &server.control);
	}
}

/* Closes the port, and what came through it, until listen_at. */
static void
stop_listening(void)
{
	Conn *next;

	listener_close(&server.port);
	for (Conn *conn = server.conns; conn != NULL; conn = next)
	{
		next = conn->next;
		if (!conn->control)
			conn_free(conn, false);
	}
	server.drop_conns = false;
}

/* ---- the main loop ---- */

static void
handle_term(int signal)
{
	(void) signal;
	terminated = 1;
}

static void
handle_timers(void)
{
	int64_t now = now_ms();

	if (now >= server.listen_at && !server.drop_conns)
	{
		server.listen_at = NO_LIMIT;
		listener_open(&server.port);
	}
	if (now < server.next_deadline)
		return;
	server.next_deadline = NO_LIMIT;
	for (Conn *conn = server.conns; conn != NULL; conn = conn->next)
	{
		if (conn->deadline > 0 && conn->deadline <= now)
			conn_expire(conn);
		if (conn->deadline > 0 && conn->deadline < server.next_deadline)
			server.next_deadline = conn->deadline;
	}
}

static void
handle_event(const struct epoll_event *event)
{
	Conn *conn = event->data.ptr;

	if (event->data.ptr == &server.port || event->data.ptr == &server.control)
	{
		listener_accept(event->data.ptr);
		return;
	}
	if (event->events & EPOLLIN)
		conn_read(conn);
	else if (event->events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
		conn->dead = true;
	conn_touch(conn);
}

/* Nothing is answered before it is in the journal. */
static void
settle(void)
{
	while (server.dirty != NULL)
	{
		Conn *conn = server.dirty;
		Conn *next;

		server.dirty = NULL;
		journal_flush();
		for (; conn != NULL; conn = next)
		{
			next = conn->next_dirty;
			conn->dirty = false;
			conn_settle(conn);
		}
	}
	if (server.drop_conns)
		stop_listening();
}

static void
run(void)
{
	struct epoll_event events[EVENTS_PER_ROUND];
	sigset_t none;

	sigemptyset(&none);
	while (!terminated)
	{
		int64_t until = server.next_deadline < server.listen_at ? server.next_deadline : server.listen_at;
		int64_t pause = until == NO_LIMIT ? -1 : until - now_ms();
		int n = epoll_pwait(server.epoll, events, EVENTS_PER_ROUND,
			until == NO_LIMIT ? -1
			: pause < 0		  ? 0
			: pause > 60000	  ? 60000
							  : (int) pause,
			&none);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++)
			handle_event(&events[i]);
		if (until != NO_LIMIT)
			handle_timers();
		settle();
	}
}

/* ---- start ---- */

static int
choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_length, const unsigned char *in,
	unsigned int in_length, void *argument)
{
	static const unsigned char ours[] = "\x08http/1.1";

	(void) ssl;
	(void) argument;
	if (SSL_select_next_proto((unsigned char **) out, out_length, ours, sizeof(ours) - 1, in, in_length) !=
		OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_NOACK;
	return SSL_TLSEXT_ERR_OK;
}

static void
start_tls(const char *certificate, const char *key)
{
	server.tls = SSL_CTX_new(TLS_server_method());
	if (server.tls == NULL || SSL_CTX_use_certificate_chain_file(server.tls, certificate) != 1 ||
		SSL_CTX_use_PrivateKey_file(server.tls, key, SSL_FILETYPE_PEM) != 1)
		fail_tls("certificate");
	SSL_CTX_set_mode(server.tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
									 SSL_MODE_RELEASE_BUFFERS | SSL_MODE_AUTO_RETRY);
	SSL_CTX_set_alpn_select_cb(server.tls, choose_protocol, NULL);
}

static int
open_journal(const char *name)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(name);
	return fd;
}

/* Under another name first, so that whoever sees it sees all of it. */
static void
write_port(const char *name, const char *suffix, int port)
{
	char *path;
	char *temporary;
	FILE *file;

	if (asprintf(&path, "%s%s", name, suffix) < 0 || asprintf(&temporary, "%s.new", path) < 0)
		fail("memory");
	file = fopen(temporary, "w");
	if (file == NULL || fprintf(file, "%d\n", port) < 0 || fclose(file) != 0 || rename(temporary, path) < 0)
		fail(path);
	free(path);
	free(temporary);
}

__attribute__((noreturn)) static void
usage(void)
{
	fprintf(stderr, "usage: receiver --port PORT --journal FILE --port-file FILE [--tls CERT KEY]\n"
					"                [--secret whsec_BASE64]... [--record FILE] [--with-parent]\n");
	exit(2);
}

static int
read_options(int argc, char **argv)
{
	static const struct option options[] = {{"port", required_argument, NULL, 'p'},
		{"port-file", required_argument, NULL, 'f'}, {"journal", required_argument, NULL, 'j'},
		{"record", required_argument, NULL, 'r'}, {"secret", required_argument, NULL, 's'},
		{"tls", required_argument, NULL, 't'}, {"with-parent", no_argument, NULL, 'w'}, {NULL, 0, NULL, 0}};
	int64_t port = -1;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		if (option == 'p')
			port = text_number(text_of(optarg, strlen(optarg)));
		else if (option == 'f')
			server.port_file = optarg;
		else if (option == 'j')
			server.journal_fd = open_journal(optarg);
		else if (option == 'r')
			server.record_fd = open_journal(optarg);
		else if (option == 's')
			add_secret(optarg);
		else if (option == 't' && optind < argc)
			start_tls(optarg, argv[optind++]);
		else if (option == 'w')
			prctl(PR_SET_PDEATHSIG, SIGTERM);
		else
			usage();
	}
	if (optind < argc || port < 0 || port > 65535 || server.journal_fd < 0 || server.port_file == NULL)
		usage();
	return (int) port;
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = handle_term};
	struct rlimit files;
	sigset_t ends;
	int port;

	/* The signals come in while it waits for events, and only then. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		(void) setrlimit(RLIMIT_NOFILE, &files);
	}
	table_grow(&server.table);
	buffer_room(&server.text, READ_SIZE);
	port = read_options(argc, argv);
	server.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (server.epoll < 0)
		fail("epoll_create1");
	listener_start(&server.port, port);
	listener_start(&server.control, 0);
	write_port(server.port_file, ".control", server.control.port);
	write_port(server.port_file, "", server.port.port);
	run();
	journal_flush();
	return 0;
}
