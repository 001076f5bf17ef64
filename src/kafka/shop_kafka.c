/*
 * shop_kafka.c
 *		Produces messages to Kafka for the process that started it.
 *
 * The relay starts one of these for each endpoint, with a pipe on file
 * descriptors 0 and 1.  Whatever librdkafka or a library below it does (hang,
 * crash, eat the memory) then happens to this program, which holds nothing
 * that cannot be sent again, and not to a process of the server.
 *
 * The protocol.  Both ends run on one machine, so numbers are in its byte
 * order.  A frame is
 *
 *		uint32 length of what follows, 1 .. MAX_FRAME
 *		uint8  kind
 *		body
 *
 * and a string in it is its uint32 length, then its bytes.
 *
 * Requests, read from 0:
 *
 *	'C'	configure; the first request, and the only one of its kind
 *			string topic
 *			uint32 n, then n settings of librdkafka: string name, string value
 *	'M'	a message to deliver
 *			uint64 tag, which its answer repeats
 *			string key
 *			string value
 *			uint32 n, then n headers: string name, string value
 *	'P'	ping
 *	end of file: what is outstanding gets a second, then the program exits.
 *
 * Answers, written to 1:
 *
 *	'R'	the settings are accepted; it says nothing about the brokers
 *	'X'	string why the settings are refused; exits with 1
 *	'D'	uint64 tag: the brokers have acknowledged the message
 *	'F'	uint64 tag, uint8 class, string error: the message was not delivered,
 *		or nobody knows whether it was.  Classes: 0 may succeed later, 1 this
 *		message never will, 2 none will until somebody mends the endpoint; what
 *		has been mended since, librdkafka may take minutes to notice, and a new
 *		process notices at once
 *	'P'	to a ping, at once
 *	'E'	string: what is wrong with the endpoint, whatever becomes of single
 *		messages; one a second at most, and the one that ends the producer
 *
 * Every message is answered once, by 'D' or 'F', unless the program exits;
 * the ones without an answer then may or may not have been delivered.  They
 * are produced in the order they come, those of a key to one partition.  One
 * that fails does not hold back later ones of its key; who needs that has one
 * message of a key outstanding at a time.
 *
 * Requests are not read while MAX_HELD_MESSAGES messages or MAX_HELD_BYTES of
 * them wait for their answers, or MAX_UNSENT_BYTES of answers wait for being
 * read.  Who keeps below that, and reads, gets every ping answered.
 *
 * It exits with
 *
 *	0	at the end of its input, or when nobody reads its answers
 *	1	settings refused
 *	2	malformed request; no answer, the reason is on standard error
 *	3	the producer has failed for good: a new one, thus a new process, may
 *		succeed.  Outstanding messages are answered before
 *	4	the system failed it: no memory, no file descriptor
 *	143	SIGTERM or SIGQUIT, at once
 *
 * and always by _exit(): rd_kafka_destroy() can hang for ever in joining its
 * threads, and exit() would run OpenSSL's clean-up beside them.
 *
 * Standard error gets a line for each log message of librdkafka.  No value of
 * a setting is in any message or line: there are passwords among them.
 */
#include "shop_kafka.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* How much is read in one go; a buffer that had to be larger is given back. */
#define READ_SIZE (256 * 1024)
#define KEEP_SIZE (1024 * 1024)

#define FINISH_MS 1000
#define ERROR_INTERVAL_MS 1000

/* Bytes start .. end of data are in use. */
typedef struct Buffer
{
	char *data;
	size_t start;
	size_t end;
	size_t size;
} Buffer;

static Buffer input;
static Buffer output;
static bool input_ended; /* nobody writes any more */
static bool deaf;		 /* nobody reads our answers */

static char error_text[MAX_TEXT]; /* the next 'E'; empty if there is none */
static int64_t error_due;		  /* not before this */

static void write_line(const char *format, va_list args) __attribute__((format(printf, 1, 0)));
static void finish(ExitCode code) __attribute__((noreturn));

/*
 * Helpers
 */

int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * A line that standard error has no room for is lost: it may be a pipe, and
 * whoever should read it must not be able to stop us.
 */
static void
write_line(const char *format, va_list args)
{
	struct pollfd fd = {STDERR_FILENO, POLLOUT, 0};
	char line[MAX_TEXT + 32];
	char *text;
	int length;

	if (vasprintf(&text, format, args) < 0)
		return;
	clean_text(text);
	length = snprintf(line, sizeof(line), "shop_kafka[%d]: %.*s\n", (int) getpid(), MAX_TEXT, text);
	free(text);
	if (poll(&fd, 1, 0) == 1 && (fd.revents & POLLOUT))
		(void) !write(STDERR_FILENO, line, length);
}

void
log_line(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	write_line(format, args);
	va_end(args);
}

void
die(ExitCode code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	write_line(format, args);
	va_end(args);
	_exit(code);
}

void *
allocate(size_t size)
{
	void *memory = malloc(size);

	if (memory == NULL)
		die(EXIT_SYSTEM, "out of memory");
	return memory;
}

/*
 * Buffers
 */

/* Makes room at the end. */
static void
reserve(Buffer *buffer, size_t room)
{
	size_t used = buffer->end - buffer->start;

	if (buffer->size - buffer->end >= room)
		return;
	/* Moving more than what becomes free would make a slow reader costly. */
	if (buffer->start >= used && buffer->size - used >= room)
	{
		memcpy(buffer->data, buffer->data + buffer->start, used);
		buffer->start = 0;
		buffer->end = used;
		return;
	}
	buffer->size = (buffer->size + room) * 2;
	buffer->data = realloc(buffer->data, buffer->size);
	if (buffer->data == NULL)
		die(EXIT_SYSTEM, "out of memory");
}

/* Takes bytes away from the start. */
static void
consume(Buffer *buffer, size_t n)
{
	buffer->start += n;
	if (buffer->start < buffer->end)
		return;
	buffer->start = 0;
	buffer->end = 0;
	if (buffer->size > KEEP_SIZE)
	{
		free(buffer->data);
		buffer->data = NULL;
		buffer->size = 0;
	}
}

/*
 * Reading requests
 */

static void
need(Reader *reader, size_t n)
{
	if ((size_t) (reader->end - reader->next) < n)
		die(EXIT_MALFORMED, "malformed request: it ends too early");
}

uint8_t
read_byte(Reader *reader)
{
	need(reader, 1);
	return (uint8_t) *reader->next++;
}

uint32_t
read_uint32(Reader *reader)
{
	uint32_t value;

	need(reader, sizeof(value));
	memcpy(&value, reader->next, sizeof(value));
	reader->next += sizeof(value);
	return value;
}

uint64_t
read_uint64(Reader *reader)
{
	uint64_t value;

	need(reader, sizeof(value));
	memcpy(&value, reader->next, sizeof(value));
	reader->next += sizeof(value);
	return value;
}

Bytes
read_string(Reader *reader)
{
	Bytes string;

	string.length = read_uint32(reader);
	need(reader, string.length);
	string.data = reader->next;
	reader->next += string.length;
	return string;
}

/* The number of the things that follow, of which each takes size at least. */
uint32_t
read_count(Reader *reader, size_t size)
{
	uint32_t count = read_uint32(reader);

	need(reader, count * size);
	return count;
}

void
read_end(Reader *reader)
{
	if (reader->next < reader->end)
		die(EXIT_MALFORMED, "malformed request: bytes are left over");
}

/*
 * Writing answers
 */

static size_t
unsent(void)
{
	return output.end - output.start;
}

static void
put(const void *bytes, size_t n)
{
	if (n > 0)
		memcpy(output.data + output.end, bytes, n);
	output.end += n;
}

/* Begins a frame; size is that of its body, which the caller puts. */
static void
put_frame(char kind, size_t size)
{
	uint32_t length = sizeof(kind) + size;

	reserve(&output, sizeof(length) + length);
	put(&length, sizeof(length));
	put(&kind, sizeof(kind));
}

static void
put_string(const char *text)
{
	uint32_t length = strlen(text);

	put(&length, sizeof(length));
	put(text, length);
}

static void
answer(char kind)
{
	put_frame(kind, 0);
}

static void
answer_text(char kind, const char *text)
{
	put_frame(kind, sizeof(uint32_t) + strlen(text));
	put_string(text);
}

void
answer_delivered(uint64_t tag)
{
	put_frame('D', sizeof(tag));
	put(&tag, sizeof(tag));
}

void
answer_failed(uint64_t tag, FailureClass class, const char *text)
{
	uint8_t number = class;

	put_frame('F', sizeof(tag) + sizeof(number) + sizeof(uint32_t) + strlen(text));
	put(&tag, sizeof(tag));
	put(&number, sizeof(number));
	put_string(text);
}

/* What is shown next, unless something newer comes before its time does. */
void
show_error(const char *text, bool at_once)
{
	snprintf(error_text, sizeof(error_text), "%s", text);
	if (at_once)
		error_due = 0;
}

static void
answer_error(void)
{
	int64_t now = now_ms();

	if (error_text[0] == '\0' || now < error_due || unsent() > MAX_UNSENT_BYTES)
		return;
	answer_text('E', error_text);
	error_text[0] = '\0';
	error_due = now + ERROR_INTERVAL_MS;
}

static void
write_answers(void)
{
	while (unsent() > 0 && !deaf)
	{
		ssize_t n = write(STDOUT_FILENO, output.data + output.start, unsent());

		if (n >= 0)
			consume(&output, n);
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			deaf = true;
	}
}

/*
 * Requests
 */

static void
configure(Reader *reader)
{
	char refusal[4 * MAX_TEXT]; /* room for more than what is hidden in it */

	if (producer_start(reader, refusal, sizeof(refusal)))
	{
		answer('R');
		return;
	}
	clean_text(refusal);
	answer_text('X', refusal);
	finish(EXIT_REFUSED);
}

static void
handle_request(Reader *reader)
{
	uint8_t kind = read_byte(reader);

	if ((kind == 'C') == producer_runs())
		die(EXIT_MALFORMED, "malformed request: the first one, and no other, configures");
	switch (kind)
	{
		case 'C':
			configure(reader);
			break;
		case 'M':
			producer_accept(reader);
			break;
		case 'P':
			read_end(reader);
			answer('P');
			break;
		default:
			die(EXIT_MALFORMED, "malformed request: there is no kind %u", kind);
	}
}

static bool
may_take_requests(void)
{
	return producer_has_room() && unsent() < MAX_UNSENT_BYTES;
}

/*
 * The length of the first frame in the input, with the four bytes that say so;
 * those alone if not even they are there yet.
 */
static size_t
frame_size(void)
{
	uint32_t length;

	if (input.end - input.start < sizeof(length))
		return sizeof(length);
	memcpy(&length, input.data + input.start, sizeof(length));
	if (length == 0 || length > MAX_FRAME)
		die(EXIT_MALFORMED, "malformed request: it has %u bytes", length);
	return sizeof(length) + length;
}

static bool
frame_is_complete(void)
{
	size_t size = frame_size();

	return size > sizeof(uint32_t) && input.end - input.start >= size;
}

/* Handles what has been read, as far as there is room for what comes of it. */
static void
take_requests(void)
{
	while (may_take_requests() && frame_is_complete())
	{
		size_t size = frame_size();
		Reader reader = {input.data + input.start + sizeof(uint32_t), input.data + input.start + size};

		handle_request(&reader);
		consume(&input, size);
	}
}

/* The whole of a large frame is waited for at its place. */
static void
read_requests(void)
{
	size_t used = input.end - input.start;
	size_t missing = frame_size() > used ? frame_size() - used : 0;
	ssize_t n;

	reserve(&input, missing > READ_SIZE ? missing : READ_SIZE);
	n = read(STDIN_FILENO, input.data + input.end, input.size - input.end);
	if (n > 0)
		input.end += n;
	else if (n == 0)
		input_ended = true;
	else if (errno != EAGAIN && errno != EINTR)
		die(EXIT_SYSTEM, "could not read requests: %s", strerror(errno));
}

/*
 * The main loop
 */

static void
wait_for_output(void)
{
	struct pollfd fd = {STDOUT_FILENO, POLLOUT, 0};

	poll(&fd, 1, 20);
}

/* Ends the program, with a second for what is not delivered or not written. */
static void
finish(ExitCode code)
{
	int64_t end = now_ms() + FINISH_MS;

	while (producer_is_busy() && now_ms() < end)
	{
		producer_flush(20);
		write_answers();
	}
	/* Who starts the next producer has to know what this one leaves. */
	if (code == EXIT_FATAL_ERROR)
	{
		producer_fail_all();
		end = now_ms() + FINISH_MS;
	}
	answer_error();
	for (write_answers(); unsent() > 0 && !deaf && now_ms() < end; write_answers())
		wait_for_output();
	_exit(code);
}

/* A second at most, so that a wake-up that got lost is no more than late. */
static int
wait_ms(void)
{
	int64_t wait = error_due - now_ms();

	if (may_take_requests() && frame_is_complete())
		return 0;
	if (error_text[0] == '\0' || wait > 1000 || unsent() > MAX_UNSENT_BYTES)
		return 1000;
	return wait > 0 ? (int) wait : 0;
}

static void
run_once(void)
{
	/*
	 * What has been read comes first, or the input would grow.  poll(2) passes
	 * over -1, the third before there is a producer.
	 */
	bool may_read = may_take_requests() && !frame_is_complete();
	struct pollfd fds[] = {
		{STDIN_FILENO, may_read ? POLLIN : 0, 0},
		{STDOUT_FILENO, unsent() > 0 ? POLLOUT : 0, 0},
		{producer_wakes_fd(), POLLIN, 0},
	};
	int ready = poll(fds, LENGTH_OF(fds), wait_ms());

	if (ready < 0 && errno == EINTR)
		return;
	if (ready < 0)
		die(EXIT_SYSTEM, "could not wait: %s", strerror(errno));
	if (fds[2].revents || ready == 0)
		producer_serve();
	if (fds[0].revents & POLLIN)
		read_requests();
	else if (fds[0].revents)
		input_ended = true;
	if (fds[1].revents & ~POLLOUT)
		deaf = true;
	take_requests();
	answer_error();
	write_answers();
	if (producer_is_dead())
		finish(EXIT_FATAL_ERROR);
	if (input_ended || deaf)
		finish(EXIT_DONE);
}

static void
exit_at_once(int signal)
{
	(void) signal;
	_exit(EXIT_SIGNAL);
}

/*
 * We are born of a process with habits of its own: signals it blocks, files it
 * has open.  Cancelling a statement and reading a configuration again are
 * signals to its whole group, which we are in, but nothing to us.
 */
static void
set_up_process(void)
{
	sigset_t none;

	/* The end of our input says the same, unless we are stopped. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, exit_at_once);
	signal(SIGQUIT, exit_at_once);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	for (int fd = STDIN_FILENO; fd <= STDOUT_FILENO; fd++)
	{
		int flags = fcntl(fd, F_GETFL);

		if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
			die(EXIT_SYSTEM, "could not use file descriptor %d: %s", fd, strerror(errno));
	}
}

int
main(void)
{
	set_up_process();
	for (;;)
		run_once();
}
