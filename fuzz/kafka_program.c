/*
 * kafka_program.c
 *		libFuzzer: the program shop_kafka, whole, with any bytes on its standard
 *		input and a librdkafka that does as it likes.
 *
 * The first byte of an input says where the requests come from: the bytes after
 * it, or well-formed ones made up by them.  The last bytes decide how much of
 * it the pipe brings at once, and what poll(2), write(2) and librdkafka say.  The
 * settings are librdkafka's own.  Beside crashes: a message must not be answered
 * twice, and when the producer has failed for good all must have been answered.
 */
#include "../src/kafka/shop_kafka.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static const uint8_t *data_next;
static const uint8_t *data_end;
static char requests[64 * 1024];
static const char *pipe_next;
static const char *pipe_end;
static jmp_buf leave;
static int exit_code;
static int64_t clock_ms;
static size_t n_accepted;
static size_t n_answered;

/* The next decision, below n; 0 when the input is used up. */
static unsigned
decide(unsigned n)
{
	return data_next < data_end ? *--data_end % n : 0;
}

/*
 * The system
 */

static ssize_t
fake_read(int fd, void *buffer, size_t size)
{
	size_t n = decide(8) ? 1 + decide(255) : size;

	if (fd != STDIN_FILENO)
	{
		errno = EAGAIN;
		return -1;
	}
	if (n > size)
		n = size;
	if (n > (size_t) (pipe_end - pipe_next))
		n = pipe_end - pipe_next;
	memcpy(buffer, pipe_next, n);
	pipe_next += n;
	return n;
}

/* Reads all of it, so that AddressSanitizer can say that it is not there. */
static void
look_at(const void *bytes, size_t size)
{
	static volatile uint8_t byte;

	for (size_t i = 0; i < size; i++)
		byte = ((const uint8_t *) bytes)[i];
	(void) byte;
}

static ssize_t
fake_write(int fd, const void *buffer, size_t size)
{
	look_at(buffer, size);
	if (fd != STDOUT_FILENO)
		return size;
	switch (decide(16))
	{
		case 1:
			errno = EAGAIN;
			return -1;
		case 2:
			return size > 1 ? size / 2 : size;
		case 3:
			errno = decide(4) ? EINTR : EPIPE;
			return -1;
		default:
			return size;
	}
}

static int
fake_poll(struct pollfd *fds, nfds_t n, int timeout)
{
	int ready = 0;

	clock_ms += timeout > 0 ? timeout : 1;
	for (nfds_t i = 0; i < n; i++)
	{
		fds[i].revents = fds[i].fd >= 0 && decide(4) != 1 ? fds[i].events : 0;
		ready += fds[i].revents != 0;
	}
	return ready;
}

static int
fake_clock_gettime(clockid_t clock, struct timespec *time)
{
	(void) clock;
	clock_ms++;
	*time = (struct timespec){clock_ms / 1000, clock_ms % 1000 * 1000000};
	return 0;
}

static void fake_exit(int code) __attribute__((noreturn));

static void
fake_exit(int code)
{
	exit_code = code;
	longjmp(leave, 1);
}

/*
 * librdkafka
 */

static const rd_kafka_resp_err_t errors[] = {RD_KAFKA_RESP_ERR_NO_ERROR, RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
	RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, RD_KAFKA_RESP_ERR_INVALID_RECORD, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
	RD_KAFKA_RESP_ERR__AUTHENTICATION, RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, RD_KAFKA_RESP_ERR__INVALID_ARG};

static void *on_its_way[MAX_HELD_MESSAGES];
static size_t n_on_its_way;
static bool has_failed;
static rd_kafka_msg_status_t status;

static rd_kafka_t *
fake_new(rd_kafka_type_t type, rd_kafka_conf_t *conf, char *text, size_t size)
{
	(void) type;
	if (decide(64) == 1)
	{
		snprintf(text, size, "no producer today");
		return NULL;
	}
	rd_kafka_conf_destroy(conf);
	return (rd_kafka_t *) &n_on_its_way;
}

static rd_kafka_resp_err_t
fake_producev(rd_kafka_t *rk, ...)
{
	static const rd_kafka_resp_err_t refusals[] = {
		RD_KAFKA_RESP_ERR__QUEUE_FULL, RD_KAFKA_RESP_ERR__INVALID_ARG, RD_KAFKA_RESP_ERR__FATAL};
	rd_kafka_headers_t *headers = NULL;
	void *opaque = NULL;
	va_list args;
	int part;

	va_start(args, rk);
	while ((part = va_arg(args, int)) != RD_KAFKA_VTYPE_END)
	{
		void *pointer = va_arg(args, void *);

		if (part == RD_KAFKA_VTYPE_OPAQUE)
			opaque = pointer;
		else if (part == RD_KAFKA_VTYPE_HEADERS)
			headers = pointer;
		else if (part == RD_KAFKA_VTYPE_KEY || part == RD_KAFKA_VTYPE_VALUE)
			look_at(pointer, va_arg(args, size_t));
	}
	va_end(args);
	if (has_failed || decide(16) == 1)
		return has_failed ? RD_KAFKA_RESP_ERR__FATAL : refusals[decide(3)];
	if (headers)
		rd_kafka_headers_destroy(headers);
	on_its_way[n_on_its_way++] = opaque;
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_resp_err_t
fake_fatal_error(rd_kafka_t *rk, char *text, size_t size)
{
	(void) rk;
	snprintf(text, size, "it has failed");
	return has_failed ? RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED : RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_msg_status_t
fake_message_status(const rd_kafka_message_t *message)
{
	(void) message;
	return status;
}

static int fake_serve(rd_kafka_t *rk, int timeout);

#define main program_main
#define read fake_read
#define write fake_write
#define poll fake_poll
#define clock_gettime fake_clock_gettime
#define _exit fake_exit
#define pipe2(fds, flags) ((fds)[0] = 1000, (fds)[1] = 1001, (flags) ? 0 : 0)
#define rd_kafka_new fake_new
#define rd_kafka_producev fake_producev
#define rd_kafka_poll fake_serve
#define rd_kafka_flush(rk, timeout) ((void) fake_serve(rk, timeout))
#define rd_kafka_fatal_error fake_fatal_error
#define rd_kafka_message_status fake_message_status
#define rd_kafka_last_error() RD_KAFKA_RESP_ERR_NO_ERROR
#define rd_kafka_set_log_queue(rk, queue) ((void) (rk))
#define rd_kafka_queue_get_main(rk) ((rd_kafka_queue_t *) (rk))
#define rd_kafka_queue_io_event_enable(queue, fd, bytes, size) ((void) (queue))
#define rd_kafka_queue_destroy(queue) ((void) (queue))
#define rd_kafka_topic_new(rk, name, conf) (decide(64) == 1 ? NULL : (rd_kafka_topic_t *) (rk))

#include "../src/kafka/settings.c"

#define answer_delivered(tag) (n_answered++, answer_delivered(tag))
#define answer_failed(tag, class, text) (n_answered++, answer_failed(tag, class, text))

#include "../src/kafka/producer.c"

#undef answer_delivered
#undef answer_failed
#define producer_accept(reader) (n_accepted++, producer_accept(reader))

#include "../src/kafka/shop_kafka.c"

static int
fake_serve(rd_kafka_t *rk, int timeout)
{
	unsigned n = decide(4);

	clock_ms += timeout;
	if (decide(32) == 1)
		on_log(rk, 3, "FAIL", "some line");
	if (decide(32) == 1)
	{
		has_failed = true;
		on_error(rk, RD_KAFKA_RESP_ERR__FATAL, "it has failed", NULL);
	}
	if (decide(32) == 1)
		on_error(rk, RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, "no threads", NULL);
	if (decide(16) == 1)
		on_error(rk, errors[1 + decide(LENGTH_OF(errors) - 1)], "password=secret at broker \xff\x01", NULL);
	while (n_on_its_way > 0 && n-- > 0)
	{
		rd_kafka_message_t report = {.err = errors[decide(LENGTH_OF(errors))]};
		unsigned i = decide(4) ? 0 : decide(255) % n_on_its_way;

		report._private = on_its_way[i];
		n_on_its_way--;
		memmove(&on_its_way[i], &on_its_way[i + 1], (n_on_its_way - i) * sizeof(void *));
		status = decide(3);
		on_report(rk, &report, NULL);
	}
	return 0;
}

/*
 * One input
 */

static void
free_list(List *list)
{
	while (list->first)
	{
		Message *message = list->first;

		take_out(list, message);
		free(message);
	}
	*list = (List){0};
}

static void
start_anew(void)
{
	free(input.data);
	free(output.data);
	input = output = (Buffer){0};
	input_ended = deaf = false;
	error_text[0] = '\0';
	error_due = 0;
	kafka = NULL;
	topic = NULL;
	wakes[0] = wakes[1] = -1;
	free_list(&waiting);
	free_list(&outstanding);
	free_list(&suspects);
	held_bytes = n_suspects = 0;
	sole = NULL;
	group = 1;
	fatal = RD_KAFKA_RESP_ERR_NO_ERROR;
	fatal_text[0] = last_error[0] = '\0';
	unauthenticated = has_failed = false;
	while (n_secrets > 0)
		free(secrets[--n_secrets]);
	free(secrets);
	secrets = NULL;
	n_on_its_way = n_accepted = n_answered = 0;
	clock_ms = 0;
}

/* A producer, as a request to configure makes it, but at once. */
static void
configure_well(void)
{
	kafka = (rd_kafka_t *) &n_on_its_way;
	topic = (rd_kafka_topic_t *) kafka;
	wakes[0] = 1000;
}

/* A string that now and then is not as long as it says. */
static char *
put_some(char *at, uint32_t n)
{
	uint32_t said = decide(64) == 1 ? decide(255) * 0x101 : n;

	memcpy(at, &said, sizeof(said));
	memset(at + sizeof(n), 'x', n);
	return at + sizeof(n) + n;
}

/* Messages and pings, as the relay sends them. */
static void
make_requests(void)
{
	char *at = requests;

	for (uint64_t tag = decide(200); tag > 0; tag--)
	{
		char *start = at;
		uint32_t n_headers = decide(3);
		uint32_t length;

		at += sizeof(length);
		*at++ = decide(16) == 1 ? 'P' : 'M';
		if (at[-1] == 'M')
		{
			memcpy(at, &tag, sizeof(tag));
			at = put_some(at + sizeof(tag), decide(8));
			at = put_some(at, decide(64));
			memcpy(at, &n_headers, sizeof(n_headers));
			at += sizeof(n_headers);
			for (uint32_t i = 0; i < 2 * n_headers; i++)
				at = put_some(at, decide(8));
		}
		length = at - start - sizeof(length);
		memcpy(start, &length, sizeof(length));
	}
	pipe_next = requests;
	pipe_end = at;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	start_anew();
	data_next = data + 1;
	data_end = data + size;
	pipe_next = (const char *) data_next;
	pipe_end = (const char *) data_end;
	if (setjmp(leave) == 0)
	{
		if (data[0] % 16)
			configure_well();
		if (data[0] % 2)
			make_requests();
		for (;;)
			run_once();
	}
	assert(n_answered <= n_accepted);
	assert(exit_code != EXIT_FATAL_ERROR || n_answered == n_accepted);
	return 0;
}
