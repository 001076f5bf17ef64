/*
 * producer.c
 *		Messages, from acceptance to the delivery report.
 *
 * A message waits, until librdkafka has room for it; is outstanding, until
 * librdkafka reports on it; and is answered.  All of it happens in the main
 * thread: librdkafka's own threads put their reports, errors and log messages
 * into a queue, and write to a pipe that the main loop watches.
 *
 * Brokers judge batches.  If one of a thousand messages is too large for the
 * topic, the report says so of all of them.  As that answer is final for a
 * message, it has to be true: they become suspects, who are tried again, in
 * groups that halve until it is clear who it was.  Nothing else is sent
 * meanwhile, so that no message overtakes an earlier one of its key.
 */
#include "shop_kafka.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A message; its parts point into the body of its request. */
typedef struct Message
{
	struct Message *previous;
	struct Message *next;
	uint64_t tag;
	Bytes key;
	Bytes value;
	uint32_t n_headers;
	Reader headers;
	size_t size;
	char body[];
} Message;

typedef struct List
{
	Message *first;
	Message *last;
	size_t length;
} List;

typedef struct Verdict
{
	rd_kafka_resp_err_t error;
	FailureClass class;
	bool of_batch; /* said of all messages of a batch */
} Verdict;

/*
 * What is not here may succeed later: time-outs and lost connections, queues
 * that are full, leaders that move, replicas that are missing, disks, quotas,
 * sequence numbers and producers that a broker has forgotten, checksums,
 * and whatever a later version of Kafka comes up with.  Trying once more is
 * harmless, as whoever sends the message counts the attempts; to give up, or
 * to stop an endpoint, because of an error that passes is not.  Errors that
 * are reported of consumers, groups and transactions do not occur.
 */
static const Verdict verdicts[] = {
	/* Larger than the producer, the topic or a segment may take. */
	{RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, FAILS_ALWAYS, true},
	{RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE, FAILS_ALWAYS, true},
	{RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE, FAILS_ALWAYS, true},
	/* A compacted topic without a key, a broker's own check of the contents. */
	{RD_KAFKA_RESP_ERR_INVALID_RECORD, FAILS_ALWAYS, true},
	/* librdkafka itself will not take it. */
	{RD_KAFKA_RESP_ERR__INVALID_ARG, FAILS_ALWAYS, false},

	/* The topic: librdkafka has asked for it some time before it says so. */
	{RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, FAILS_ENDPOINT, false},
	/* Its messages have a format without headers and sequence numbers. */
	{RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT, FAILS_ENDPOINT, false},
	/* Rights, which somebody has to grant. */
	{RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_DELEGATION_TOKEN_AUTHORIZATION_FAILED, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_SECURITY_DISABLED, FAILS_ENDPOINT, false},
	/* User, password, mechanism. */
	{RD_KAFKA_RESP_ERR__AUTHENTICATION, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE, FAILS_ENDPOINT, false},
	/* Settings that these brokers do not take. */
	{RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_INVALID_CONFIG, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_POLICY_VIOLATION, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE, FAILS_ENDPOINT, false},
	/* Brokers too old for what is asked of them. */
	{RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION, FAILS_ENDPOINT, false},
	{RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE, FAILS_ENDPOINT, false},
};

static rd_kafka_t *kafka;
static rd_kafka_topic_t *topic;
static int wakes[2] = {-1, -1};

static List waiting;
static List outstanding;
static List suspects; /* of what is outstanding now */
static size_t held_bytes;

static Message *sole;	  /* outstanding, and nothing else was since it is */
static size_t n_suspects; /* so many, from the front, of those waiting */
static size_t group = 1;  /* so many of these are tried at once */

static rd_kafka_resp_err_t fatal; /* the producer's last error */
static char fatal_text[MAX_TEXT];
static char last_error[MAX_TEXT]; /* since anything was delivered */
static bool unauthenticated;	  /* that was it */

/*
 * Lists
 */

static void
append(List *list, Message *message)
{
	message->previous = list->last;
	message->next = NULL;
	if (list->last)
		list->last->next = message;
	else
		list->first = message;
	list->last = message;
	list->length++;
}

static void
take_out(List *list, Message *message)
{
	if (message->previous)
		message->previous->next = message->next;
	else
		list->first = message->next;
	if (message->next)
		message->next->previous = message->previous;
	else
		list->last = message->previous;
	list->length--;
}

/* Moves all messages of a list to the front of another one. */
static void
put_in_front(List *list, List *front)
{
	if (front->length == 0)
		return;
	front->last->next = list->first;
	if (list->first)
		list->first->previous = front->last;
	else
		list->last = front->last;
	list->first = front->first;
	list->length += front->length;
	*front = (List){NULL, NULL, 0};
}

/*
 * Answers
 */

static const Verdict *
find_verdict(rd_kafka_resp_err_t error)
{
	for (size_t i = 0; i < LENGTH_OF(verdicts); i++)
	{
		if (verdicts[i].error == error)
			return &verdicts[i];
	}
	return NULL;
}

static FailureClass
class_of(rd_kafka_resp_err_t error)
{
	const Verdict *verdict = find_verdict(error);

	return verdict ? verdict->class : FAILS_NOW;
}

static void
release(Message *message)
{
	held_bytes -= message->size;
	free(message);
}

/*
 * Answers for a message by the error that ended the producer.  That one is not
 * about a message, so it condemns none.  Nothing is released any more: threads
 * of librdkafka may still be reading.
 */
static void
fail_by_fatal(const Message *message)
{
	answer_failed(message->tag, class_of(fatal) == FAILS_ENDPOINT ? FAILS_ENDPOINT : FAILS_NOW, fatal_text);
}

/*
 * A time-out is what remains of whatever was wrong until then, so the reason
 * is added, and credentials that were turned away all the time make it the
 * endpoint's fault.
 */
static void
fail(Message *message, rd_kafka_resp_err_t error, bool maybe_written)
{
	bool timed_out = error == RD_KAFKA_RESP_ERR__MSG_TIMED_OUT;
	bool explain = timed_out && last_error[0] != '\0';
	char text[MAX_TEXT];

	snprintf(text, sizeof(text), "%s%s%s%.*s", rd_kafka_err2str(error), maybe_written ? " (possibly delivered)" : "",
		explain ? ": " : "", MAX_TEXT / 2, explain ? last_error : "");
	answer_failed(message->tag, timed_out && unauthenticated ? FAILS_ENDPOINT : class_of(error), text);
	release(message);
}

static void
fail_waiting(void)
{
	while (waiting.first)
	{
		Message *message = waiting.first;

		take_out(&waiting, message);
		fail_by_fatal(message);
	}
}

/* Answers for all that the producer will not report on any more. */
void
producer_fail_all(void)
{
	put_in_front(&waiting, &outstanding);
	put_in_front(&waiting, &suspects);
	fail_waiting();
}

/*
 * What librdkafka has to say
 */

static void
end_producer(rd_kafka_resp_err_t error, const char *reason)
{
	char text[MAX_TEXT];

	snprintf(text, sizeof(text), "%s", reason);
	clean_text(text);
	fatal = error;
	snprintf(fatal_text, sizeof(fatal_text), "%.*s: %.*s", MAX_TEXT / 4, rd_kafka_err2str(error), MAX_TEXT / 2, text);
	show_error(fatal_text, true);
}

/* True if the producer has ended, which makes every call fail. */
static bool
note_fatal(void)
{
	char text[MAX_TEXT];
	rd_kafka_resp_err_t error;

	if (fatal)
		return true;
	error = rd_kafka_fatal_error(kafka, text, sizeof(text));
	if (error)
		end_producer(error, text);
	return error != RD_KAFKA_RESP_ERR_NO_ERROR;
}

static void
on_report(rd_kafka_t *rk, const rd_kafka_message_t *report, void *opaque)
{
	Message *message = report->_private;
	rd_kafka_msg_status_t status = rd_kafka_message_status(report);
	const Verdict *verdict = find_verdict(report->err);
	bool alone = message == sole;

	(void) rk;
	(void) opaque;
	take_out(&outstanding, message);
	if (alone)
		sole = NULL;
	if (!report->err || status == RD_KAFKA_MSG_STATUS_PERSISTED)
	{
		last_error[0] = '\0';
		unauthenticated = false;
		answer_delivered(message->tag);
		release(message);
	}
	else if (fatal)
		fail_by_fatal(message);
	else if (verdict && verdict->of_batch && !alone)
		append(&suspects, message);
	else
		fail(message, report->err, status == RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED);
}

/*
 * That all brokers are down says less than why the last of them is, and comes
 * right after it.
 */
static void
on_error(rd_kafka_t *rk, int error, const char *reason, void *opaque)
{
	char *text;

	(void) rk;
	(void) opaque;
	if (error == RD_KAFKA_RESP_ERR__FATAL)
	{
		note_fatal();
		return;
	}
	/* A thread that could not be started: librdkafka does without it, and does not try again. */
	if (error == RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE)
	{
		end_producer(error, reason);
		return;
	}
	if (error == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN && last_error[0] != '\0')
	{
		show_error(last_error, false);
		return;
	}
	/* It is whole yet: of a secret that is cut off, the rest would stay. */
	text = strdup(reason);
	if (text == NULL)
		die(EXIT_SYSTEM, "out of memory");
	clean_text(text);
	snprintf(last_error, sizeof(last_error), "%s", text);
	free(text);
	unauthenticated = error == RD_KAFKA_RESP_ERR__AUTHENTICATION;
	show_error(last_error, false);
}

static void
on_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
	(void) rk;
	log_line("%d %s: %s", level, facility, text);
}

/*
 * Producing
 */

/* NULL if there are none. */
static rd_kafka_headers_t *
make_headers(const Message *message)
{
	Reader reader = message->headers;
	rd_kafka_headers_t *headers;

	if (message->n_headers == 0)
		return NULL;
	headers = rd_kafka_headers_new(message->n_headers);
	for (uint32_t i = 0; i < message->n_headers; i++)
	{
		Bytes name = read_string(&reader);
		Bytes value = read_string(&reader);

		rd_kafka_header_add(headers, name.data, name.length, value.data, value.length);
	}
	return headers;
}

/* librdkafka reads the value where it is, until it reports on the message. */
static rd_kafka_resp_err_t
produce(Message *message)
{
	rd_kafka_headers_t *headers = make_headers(message);
	rd_kafka_resp_err_t error;

	error = rd_kafka_producev(kafka, RD_KAFKA_V_RKT(topic),
		RD_KAFKA_V_KEY((void *) message->key.data, (size_t) message->key.length),
		RD_KAFKA_V_VALUE((void *) message->value.data, (size_t) message->value.length), RD_KAFKA_V_HEADERS(headers),
		RD_KAFKA_V_OPAQUE(message), RD_KAFKA_V_END);
	if (error && headers)
		rd_kafka_headers_destroy(headers);
	return error;
}

/* Hands the first one that waits to librdkafka; false if it has to wait on. */
static bool
send_first(void)
{
	Message *message = waiting.first;
	rd_kafka_resp_err_t error = produce(message);

	if (error && note_fatal())
		return false;
	/* A queue that is empty will not become emptier. */
	if (error == RD_KAFKA_RESP_ERR__QUEUE_FULL && outstanding.length > 0)
		return false;
	take_out(&waiting, message);
	if (error == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		fail(message, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, false);
	else if (error)
		fail(message, error, false);
	else
	{
		sole = outstanding.length == 0 ? message : NULL;
		append(&outstanding, message);
	}
	return true;
}

/*
 * Nothing is outstanding: what was, if there are new suspects, was the last
 * group, or the batches that gave rise to the suspicion.
 */
static void
try_suspects(void)
{
	if (suspects.length > 0)
	{
		group = suspects.length > 1 ? suspects.length / 2 : 1;
		n_suspects += suspects.length;
		put_in_front(&waiting, &suspects);
	}
	else
		group *= 2;
	for (size_t i = 0; i < group && n_suspects > 0 && send_first(); i++)
		n_suspects--;
}

static void
send_waiting(void)
{
	while (suspects.length > 0 || n_suspects > 0)
	{
		if (outstanding.length > 0 || fatal)
			return;
		try_suspects();
	}
	while (waiting.first && !fatal && send_first())
		;
}

/*
 * From outside
 */

/* The names that Kafka takes. */
static bool
is_topic(Bytes name)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

	if (name.length == 0 || name.length > 249)
		return false;
	for (uint32_t i = 0; i < name.length; i++)
	{
		if (name.data[i] == '\0' || strchr(letters, name.data[i]) == NULL)
			return false;
	}
	return true;
}

static bool
make_producer(rd_kafka_conf_t *conf, char *refusal, size_t size)
{
	rd_kafka_queue_t *queue;

	rd_kafka_conf_set_dr_msg_cb(conf, on_report);
	rd_kafka_conf_set_error_cb(conf, on_error);
	rd_kafka_conf_set_log_cb(conf, on_log);
	kafka = rd_kafka_new(RD_KAFKA_PRODUCER, conf, refusal, size);
	if (kafka == NULL && rd_kafka_last_error() == RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE)
		die(EXIT_SYSTEM, "could not start a producer: %s", refusal);
	if (kafka == NULL)
	{
		rd_kafka_conf_destroy(conf);
		return false;
	}
	if (pipe2(wakes, O_NONBLOCK | O_CLOEXEC) < 0)
		die(EXIT_SYSTEM, "could not make a pipe");
	rd_kafka_set_log_queue(kafka, NULL);
	queue = rd_kafka_queue_get_main(kafka);
	rd_kafka_queue_io_event_enable(queue, wakes[1], "", 1);
	rd_kafka_queue_destroy(queue);
	return true;
}

/* Reads and follows a request to configure; false, and a reason, if it is refused. */
bool
producer_start(Reader *reader, char *refusal, size_t size)
{
	Bytes name = read_string(reader);
	rd_kafka_conf_t *conf = read_settings(reader, refusal, size);
	char *topic_name;

	if (conf == NULL)
		return false;
	if (!is_topic(name))
	{
		snprintf(refusal, size, "the name of the topic is not valid");
		return false;
	}
	if (!make_producer(conf, refusal, size))
		return false;
	topic_name = allocate((size_t) name.length + 1);
	memcpy(topic_name, name.data, name.length);
	topic_name[name.length] = '\0';
	topic = rd_kafka_topic_new(kafka, topic_name, NULL);
	free(topic_name);
	if (topic == NULL)
		snprintf(refusal, size, "%s", rd_kafka_err2str(rd_kafka_last_error()));
	return topic != NULL;
}

bool
producer_runs(void)
{
	return topic != NULL;
}

/* Readable when there is something to serve; -1 if there is no producer. */
int
producer_wakes_fd(void)
{
	return wakes[0];
}

bool
producer_has_room(void)
{
	return waiting.length + outstanding.length + suspects.length < MAX_HELD_MESSAGES && held_bytes < MAX_HELD_BYTES;
}

/* Takes a message over; its request is checked to the end before. */
void
producer_accept(Reader *reader)
{
	size_t length = reader->end - reader->next;
	Message *message = allocate(sizeof(Message) + length);
	Reader body = {message->body, message->body + length};

	memcpy(message->body, reader->next, length);
	message->size = sizeof(Message) + length;
	message->tag = read_uint64(&body);
	message->key = read_string(&body);
	message->value = read_string(&body);
	message->n_headers = read_count(&body, 2 * sizeof(uint32_t));
	message->headers = body;
	for (uint32_t i = 0; i < 2 * message->n_headers; i++)
		read_string(&body);
	read_end(&body);
	held_bytes += message->size;
	append(&waiting, message);
	send_waiting();
}

/*
 * Lets librdkafka make its calls.  The pipe is emptied first: what is queued
 * from then on writes to it again.
 */
void
producer_serve(void)
{
	char bytes[64];

	if (kafka == NULL)
		return;
	while (read(wakes[0], bytes, sizeof(bytes)) > 0)
		;
	rd_kafka_poll(kafka, 0);
	send_waiting();
	if (fatal)
		fail_waiting();
}

/* Sends what lingers, and serves for that time. */
void
producer_flush(int timeout_ms)
{
	rd_kafka_flush(kafka, timeout_ms);
	send_waiting();
	if (fatal)
		fail_waiting();
}

bool
producer_is_busy(void)
{
	return waiting.length + outstanding.length + suspects.length > 0;
}

bool
producer_is_dead(void)
{
	return fatal != RD_KAFKA_RESP_ERR_NO_ERROR;
}
