/*
 * kafka.c
 *		Sends events to kafka://broker[,broker]/topic endpoints.
 *
 * librdkafka runs threads of its own, and a crash in one would restart the
 * whole server.  So it runs in a program of its own, shop_kafka, one for each
 * endpoint, that we start and speak to over pipes (src/kafka/ has the
 * protocol).  Killed, hung or unable to start, it is started again, after a
 * while; what it had not answered is sent again.
 *
 * A message is a CloudEvent in binary mode: the data is the value, the
 * attributes are headers (ce_*), the key is the event's aggregateid.
 *
 * Takes no locks; runs with no transaction open.
 */
#include "sink/sink.h"

#ifndef SHOP_WITHOUT_KAFKA

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "sink/hosts.h"
#include "sink/poll.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define PROGRAM "shop_kafka"
#define DEFAULT_REQUESTS 1000
#define MAX_FRAME (16 * 1024 * 1024)
#define PING_MS 2000
#define HUNG_MS 10000
#define MAX_RESTART_MS 60000

extern char **environ;

static const char scheme[] = "kafka://";

/* A message the program has not answered. */
typedef struct Pending
{
	uint64 tag; /* 0: free */
	void *request;
} Pending;

/* An endpoint's program. */
typedef struct Kafka
{
	struct Kafka *next; /* all there are */
	MemoryContext context;
	ShopAnswered answered;
	StringInfoData configuration; /* the frame that comes first */
	int max_requests;
	Pending *pending;
	uint64 next_tag;
	pid_t pid; /* 0: not running */
	int to;	   /* its standard input */
	int from;  /* its standard output */
	StringInfoData out;
	int written;  /* of out */
	bool blocked; /* does the pipe take no more for now? */
	StringInfoData in;
	TimestampTz heard_at;
	TimestampTz ping_at;
	TimestampTz start_at; /* not before */
	int failures;		  /* starts without a message delivered */
	char error[200];	  /* what it last said was wrong */
} Kafka;

static Kafka *programs;

/*
 * Frames: uint32 length, uint8 kind, body; a string is uint32 length and bytes
 */

static int
begin_frame(StringInfo buf, char kind)
{
	int start = buf->len;
	uint32 length = 0;

	appendBinaryStringInfo(buf, (char *) &length, sizeof(length));
	appendStringInfoCharMacro(buf, kind);
	return start;
}

static void
end_frame(StringInfo buf, int start)
{
	uint32 length = buf->len - start - sizeof(uint32);

	memcpy(buf->data + start, &length, sizeof(length));
}

static void
put_uint32(StringInfo buf, uint32 value)
{
	appendBinaryStringInfo(buf, (char *) &value, sizeof(value));
}

static void
put_bytes(StringInfo buf, const char *bytes, int length)
{
	put_uint32(buf, length);
	appendBinaryStringInfo(buf, bytes, length);
}

static void
put_string(StringInfo buf, const char *text)
{
	put_bytes(buf, text, strlen(text));
}

/*
 * The endpoint
 */

static JsonbValue *
find_option(Jsonb *options, const char *name)
{
	JsonbValue key = {.type = jbvString, .val = {.string = {strlen(name), unconstify(char *, name)}}};

	return findJsonbValueFromContainer(&options->root, JB_FOBJECT, &key);
}

static char *
brokers_of(const char *url)
{
	const char *start = url + strlen(scheme);

	return pnstrdup(start, strcspn(start, "/"));
}

static const char *
topic_of(const char *url)
{
	const char *slash = strchr(url + strlen(scheme), '/');

	return slash ? slash + 1 : "";
}

/* options.kafka, settings of librdkafka; a number or a boolean is written as it is in JSON. */
static int
put_settings(StringInfo buf, Jsonb *options)
{
	JsonbValue *object = find_option(options, "kafka");
	JsonbIterator *it;
	JsonbValue value;
	int n = 0;

	if (object == NULL)
		return 0;
	it = JsonbIteratorInit(object->val.binary.data);
	(void) JsonbIteratorNext(&it, &value, false);
	while (JsonbIteratorNext(&it, &value, true) == WJB_KEY)
	{
		put_bytes(buf, value.val.string.val, value.val.string.len);
		(void) JsonbIteratorNext(&it, &value, true);
		if (value.type == jbvString)
			put_bytes(buf, value.val.string.val, value.val.string.len);
		else if (value.type == jbvBool)
			put_string(buf, value.val.boolean ? "true" : "false");
		else
			put_string(buf, DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric))));
		n++;
	}
	return n;
}

static void
make_configuration(Kafka *kafka, const ShopEndpoint *endpoint)
{
	StringInfo buf = &kafka->configuration;
	int start;
	int counted_at;
	uint32 n;

	initStringInfo(buf);
	start = begin_frame(buf, 'C');
	put_string(buf, topic_of(endpoint->url));
	counted_at = buf->len;
	put_uint32(buf, 0);
	put_string(buf, "bootstrap.servers");
	put_string(buf, brokers_of(endpoint->url));
	put_string(buf, "message.timeout.ms");
	put_string(buf, psprintf("%d", endpoint->timeout_ms));
	n = 2 + put_settings(buf, endpoint->options);
	memcpy(buf->data + counted_at, &n, sizeof(n));
	end_frame(buf, start);
}

/* A program that is stopped would stay when the relay goes. */
static void
kill_programs(int code, Datum arg)
{
	(void) code;
	(void) arg;
	for (Kafka *kafka = programs; kafka; kafka = kafka->next)
		if (kafka->pid != 0)
			kill(kafka->pid, SIGKILL);
}

static void *
open_kafka(const ShopEndpoint *endpoint, ShopAnswered answered)
{
	Kafka *kafka = palloc0(sizeof(Kafka));
	JsonbValue *in_flight = find_option(endpoint->options, "in_flight");
	static bool registered = false;

	shop_poll_start();
	if (!registered)
		on_proc_exit(kill_programs, (Datum) 0);
	registered = true;
	kafka->context = CurrentMemoryContext;
	kafka->answered = answered;
	kafka->max_requests = in_flight ? DatumGetInt32(
										  DirectFunctionCall1(numeric_int4, NumericGetDatum(in_flight->val.numeric)))
									: DEFAULT_REQUESTS;
	kafka->pending = palloc0(sizeof(Pending) * kafka->max_requests);
	kafka->next_tag = 1;
	kafka->start_at = DT_NOBEGIN;
	make_configuration(kafka, endpoint);
	initStringInfo(&kafka->out);
	initStringInfo(&kafka->in);
	kafka->next = programs;
	programs = kafka;
	return kafka;
}

/* A program that ended is started again after a while. */
static TimestampTz
get_ready_at(void *arg)
{
	Kafka *kafka = arg;

	return kafka->pid == 0 ? kafka->start_at : DT_NOBEGIN;
}

static void
get_limits(void *arg, int *requests, int *messages)
{
	*requests = ((Kafka *) arg)->max_requests;
	*messages = 1;
}

/*
 * The program
 */

/* Ends it at once; it has nothing that must be kept. */
static void
end_program(Kafka *kafka)
{
	if (kafka->pid == 0)
		return;
	shop_poll_forget(kafka->to);
	shop_poll_forget(kafka->from);
	close(kafka->to);
	close(kafka->from);
	kill(kafka->pid, SIGKILL);
	(void) waitpid(kafka->pid, NULL, 0);
	kafka->pid = 0;
	kafka->blocked = false;
	resetStringInfo(&kafka->out);
	resetStringInfo(&kafka->in);
	kafka->written = 0;
}

/* Gives the answer for a message, once. */
static void
answer_pending(Kafka *kafka, Pending *pending, ShopVerdict verdict, bool sender_died, const char *error)
{
	ShopAnswer answer = {.verdict = verdict, .sender_died = sender_died};
	void *request = pending->request;

	strlcpy(answer.error, error, sizeof(answer.error));
	pending->tag = 0;
	kafka->answered(request, &answer);
}

static void
answer_all(Kafka *kafka, ShopVerdict verdict, bool sender_died, const char *error)
{
	for (int i = 0; i < kafka->max_requests; i++)
		if (kafka->pending[i].tag != 0)
			answer_pending(kafka, &kafka->pending[i], verdict, sender_died, error);
}

/* The program is gone, or is of no use: all it has not answered is to be sent again. */
static void
give_up(Kafka *kafka, ShopVerdict verdict, const char *error)
{
	int ms = Min(1000 << Min(kafka->failures, 6), MAX_RESTART_MS);
	bool died = kafka->pid != 0 && verdict == SHOP_TRY_AGAIN;

	strlcpy(kafka->error, error, sizeof(kafka->error));
	end_program(kafka);
	resetStringInfo(&kafka->out);
	kafka->written = 0;
	kafka->failures++;
	kafka->start_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
	answer_all(kafka, verdict, died, kafka->error);
}

/* With signals as a program expects them, and with no descriptor of ours but those of the pipes. */
static bool
spawn(Kafka *kafka, int in, int out)
{
	char path[MAXPGPATH];
	char *argv[] = {path, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	sigset_t all;
	int rc;

	snprintf(path, sizeof(path), "%s/%s", pkglib_path, PROGRAM);
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	rc = posix_spawn(&kafka->pid, path, &actions, &attributes, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	if (rc == 0)
		return true;
	kafka->pid = 0;
	snprintf(kafka->error, sizeof(kafka->error), "could not start %s: %s", PROGRAM, strerror(rc));
	return false;
}

static bool
make_pipes(int *request, int *answer)
{
	if (pipe2(request, O_CLOEXEC) != 0)
		return false;
	if (pipe2(answer, O_CLOEXEC) == 0)
		return true;
	close(request[0]);
	close(request[1]);
	return false;
}

static void act_on_pipe(int fd, bool in, bool out, bool error, void *arg);

static void
watch(Kafka *kafka)
{
	(void) shop_poll_watch(kafka->from, true, false, act_on_pipe, kafka);
	(void) shop_poll_watch(kafka->to, false, kafka->written < kafka->out.len, act_on_pipe, kafka);
}

static bool
start_program(Kafka *kafka)
{
	int request[2];
	int answer[2];
	bool started;

	if (!make_pipes(request, answer))
	{
		snprintf(kafka->error, sizeof(kafka->error), "could not make pipes: %s", strerror(errno));
		return false;
	}
	started = spawn(kafka, request[0], answer[1]);
	close(request[0]);
	close(answer[1]);
	if (!started)
	{
		close(request[1]);
		close(answer[0]);
		return false;
	}
	kafka->to = request[1];
	kafka->from = answer[0];
	(void) fcntl(kafka->to, F_SETFL, O_NONBLOCK);
	(void) fcntl(kafka->from, F_SETFL, O_NONBLOCK);
	kafka->heard_at = GetCurrentTimestamp();
	kafka->ping_at = TimestampTzPlusMilliseconds(kafka->heard_at, PING_MS);
	kafka->error[0] = '\0';
	appendBinaryStringInfo(&kafka->out, kafka->configuration.data, kafka->configuration.len);
	return true;
}

static void
write_out(Kafka *kafka)
{
	kafka->blocked = false;
	while (kafka->written < kafka->out.len)
	{
		ssize_t n = write(kafka->to, kafka->out.data + kafka->written, kafka->out.len - kafka->written);

		if (n <= 0)
		{
			kafka->blocked = true; /* or gone: then reading tells */
			break;
		}
		kafka->written += n;
	}
	if (kafka->written == kafka->out.len)
	{
		resetStringInfo(&kafka->out);
		kafka->written = 0;
	}
	watch(kafka);
}

/*
 * Answers
 */

static Pending *
find_pending(Kafka *kafka, uint64 tag)
{
	Pending *pending = &kafka->pending[tag % kafka->max_requests];

	return tag != 0 && pending->tag == tag ? pending : NULL;
}

static ShopVerdict
verdict_of(uint8 class)
{
	return class == 1 ? SHOP_REJECTED : class == 2 ? SHOP_MISCONFIGURED : SHOP_TRY_AGAIN;
}

/* The string at `at` in a frame, as much of it as there is room for; empty where the frame is too short for it. */
static void
get_string(const char *frame, uint32 length, uint32 at, char *text, uint32 size)
{
	uint32 n = 0;

	if (length >= at + sizeof(n))
	{
		memcpy(&n, frame + at, sizeof(n));
		n = Min(n, length - at - (uint32) sizeof(n));
	}
	n = Min(n, size - 1);
	memcpy(text, frame + at + sizeof(uint32), n);
	text[n] = '\0';
}

/* Returns false if the program is of no use any more. */
static bool
take_frame(Kafka *kafka, const char *frame, uint32 length)
{
	char text[sizeof(kafka->error)];
	Pending *pending;
	uint64 tag = 0;

	if (length >= 1 + sizeof(tag))
		memcpy(&tag, frame + 1, sizeof(tag));
	pending = find_pending(kafka, tag);
	switch (frame[0])
	{
		case 'D':
			kafka->failures = 0;
			if (pending)
				answer_pending(kafka, pending, SHOP_TAKEN, false, "");
			return true;
		case 'F':
			if (!pending || length <= 1 + sizeof(tag))
				return true;
			get_string(frame, length, 2 + sizeof(tag), text, sizeof(text));
			answer_pending(kafka, pending, verdict_of((uint8) frame[1 + sizeof(tag)]), false, text);
			return true;
		case 'E':
			get_string(frame, length, 1, kafka->error, sizeof(kafka->error));
			return true;
		case 'X':
			get_string(frame, length, 1, text, sizeof(text));
			give_up(kafka, SHOP_MISCONFIGURED, text);
			return false;
		default:
			return true; /* ready, and the answer to a ping: that it was heard is enough */
	}
}

static void
take_frames(Kafka *kafka)
{
	int at = 0;
	uint32 length;

	while (kafka->in.len - at >= (int) sizeof(length))
	{
		memcpy(&length, kafka->in.data + at, sizeof(length));
		if (length < 1 || length > MAX_FRAME)
		{
			give_up(kafka, SHOP_TRY_AGAIN, PROGRAM " answered what is no frame");
			return;
		}
		if (kafka->in.len - at - sizeof(length) < length)
			break;
		if (!take_frame(kafka, kafka->in.data + at + sizeof(length), length))
			return;
		at += sizeof(length) + length;
	}
	kafka->in.len -= at;
	memmove(kafka->in.data, kafka->in.data + at, kafka->in.len + 1);
}

static void
read_in(Kafka *kafka)
{
	char chunk[65536];
	ssize_t n;

	while (kafka->pid != 0 && (n = read(kafka->from, chunk, sizeof(chunk))) > 0)
	{
		kafka->heard_at = GetCurrentTimestamp();
		appendBinaryStringInfo(&kafka->in, chunk, n);
		take_frames(kafka);
	}
	if (kafka->pid != 0 && (n == 0 || (errno != EAGAIN && errno != EINTR)))
		give_up(kafka, SHOP_TRY_AGAIN, kafka->error[0] ? kafka->error : PROGRAM " ended");
}

static void
act_on_pipe(int fd, bool in, bool out, bool error, void *arg)
{
	Kafka *kafka = arg;
	MemoryContext before = MemoryContextSwitchTo(kafka->context);

	if (kafka->pid != 0 && fd == kafka->from && (in || error))
		read_in(kafka);
	else if (kafka->pid != 0 && fd == kafka->to && (out || error))
		write_out(kafka);
	MemoryContextSwitchTo(before);
}

/*
 * Sending
 */

/* The attributes of a CloudEvent, as headers. */
static uint32
put_headers(StringInfo buf, const ShopMessage *message)
{
	ShopAttribute attributes[SHOP_MAX_ATTRIBUTES];
	int n = shop_cloudevent_attributes(message, attributes);

	for (int i = 0; i < n; i++)
	{
		const char *name = attributes[i].name;

		put_string(buf, strcmp(name, "datacontenttype") == 0 ? "content-type" : psprintf("ce_%s", name));
		put_string(buf, shop_utf8(pstrdup(attributes[i].value)));
	}
	return n;
}

static void
send_kafka(void *arg, const ShopMessage *messages, int n, void *request)
{
	Kafka *kafka = arg;
	uint64 tag = kafka->next_tag;
	int start;
	int counted_at;
	uint32 headers;

	if (n != 1)
		elog(ERROR, "a Kafka message is one event");
	while (kafka->pending[tag % kafka->max_requests].tag != 0)
		tag++;
	kafka->next_tag = tag + 1;
	kafka->pending[tag % kafka->max_requests] = (Pending){tag, request};

	start = begin_frame(&kafka->out, 'M');
	appendBinaryStringInfo(&kafka->out, (char *) &tag, sizeof(tag));
	put_string(&kafka->out, shop_utf8(pstrdup(messages[0].key)));
	put_string(&kafka->out, shop_utf8_json(messages[0].data));
	counted_at = kafka->out.len;
	put_uint32(&kafka->out, 0);
	headers = put_headers(&kafka->out, &messages[0]);
	memcpy(kafka->out.data + counted_at, &headers, sizeof(headers));
	end_frame(&kafka->out, start);
}

/* Starts the program where it is needed, pings it, and ends it if it does not answer. */
static void
look_after(Kafka *kafka, TimestampTz now)
{
	StringInfoData messages;

	if (kafka->pid == 0 && kafka->out.len > 0)
	{
		/* The configuration goes before what has been written meanwhile. */
		messages = kafka->out;
		initStringInfo(&kafka->out);
		if (!start_program(kafka))
		{
			/* It may be about to be installed anew. */
			pfree(messages.data);
			give_up(kafka, SHOP_NOT_SENT, kafka->error);
			return;
		}
		appendBinaryStringInfo(&kafka->out, messages.data, messages.len);
		pfree(messages.data);
	}
	if (kafka->pid == 0)
		return;
	if (TimestampDifferenceExceeds(kafka->heard_at, now, HUNG_MS))
	{
		give_up(kafka, SHOP_TRY_AGAIN, PROGRAM " does not answer");
		return;
	}
	if (kafka->ping_at <= now)
	{
		end_frame(&kafka->out, begin_frame(&kafka->out, 'P'));
		kafka->ping_at = TimestampTzPlusMilliseconds(now, PING_MS);
	}
	if (kafka->out.len > 0)
		write_out(kafka);
}

/* Nobody has listened for so long, in µs. */
void
shop_kafka_add_time(int64 us)
{
	for (Kafka *kafka = programs; kafka; kafka = kafka->next)
		kafka->heard_at += us;
}

void
shop_kafka_poll(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (Kafka *kafka = programs; kafka; kafka = kafka->next)
	{
		MemoryContext before = MemoryContextSwitchTo(kafka->context);

		look_after(kafka, now);
		MemoryContextSwitchTo(before);
	}
}

/* ms until a program is to be started, written to or pinged, or -1. */
long
shop_kafka_timeout(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;

	for (Kafka *kafka = programs; kafka; kafka = kafka->next)
	{
		if (kafka->out.len > 0 && !kafka->blocked)
			return 0;
		if (kafka->pid != 0)
			next = Min(next, kafka->ping_at);
	}
	if (next == DT_NOEND)
		return -1;
	return next <= now ? 0 : (long) ((next - now) / 1000 + 1);
}

static void
close_kafka(void *arg)
{
	Kafka *kafka = arg;

	end_program(kafka);
	for (Kafka **link = &programs; *link; link = &(*link)->next)
		if (*link == kafka)
		{
			*link = kafka->next;
			break;
		}
}

static bool
is_port(const char *text)
{
	return strspn(text, "0123456789") == strlen(text) && strlen(text) >= 1 && strlen(text) <= 5 && atoi(text) >= 1 &&
		   atoi(text) <= 65535;
}

/* Cuts a broker's port off; false if what is left is no host, or the port none. */
static bool
split_broker(char *broker)
{
	char *port = NULL;
	size_t length;

	if (*broker == '[')
	{
		length = strspn(broker + 1, "0123456789abcdefABCDEF:.");
		if (length == 0 || broker[length + 1] != ']')
			return false;
		port = broker + length + 2;
	}
	else
	{
		length = strspn(broker, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
		if (length == 0)
			return false;
		port = broker + length;
	}
	if (*port == '\0')
		return true;
	if (*port != ':' || !is_port(port + 1))
		return false;
	*port = '\0';
	return true;
}

static bool
is_topic(const char *topic)
{
	size_t length = strlen(topic);

	return length >= 1 && length <= 249 && strcmp(topic, ".") != 0 && strcmp(topic, "..") != 0 &&
		   strspn(topic, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == length;
}

/* Brokers that the role may name, and a topic as Kafka allows them. */
static void
check_kafka(const char *url, Oid role)
{
	char *broker = brokers_of(url);
	char *next;

	if (strlen(url) > 2000 || !is_topic(topic_of(url)))
		shop_reject("url", "must be kafka://broker[,broker]/topic");
	for (; broker; broker = next)
	{
		next = strchr(broker, ',');
		if (next)
			*next++ = '\0';
		if (!split_broker(broker))
			shop_reject("url", "must be kafka://broker[,broker]/topic");
		shop_hosts_check(broker, role);
	}
}

const ShopSink shop_sink_kafka = {
	.scheme = scheme,
	.check = check_kafka,
	.open = open_kafka,
	.limits = get_limits,
	.ready_at = get_ready_at,
	.send = send_kafka,
	.close = close_kafka,
};

#endif /* SHOP_WITHOUT_KAFKA */
