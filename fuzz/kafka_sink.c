/*
 * kafka_sink.c
 *		libFuzzer: the relay's side of shop_kafka's protocol, with any bytes as
 *		answers, and kafka:// URLs.
 *
 * Beside crashes: no message is answered twice.
 */
#include "server.h"

#include <assert.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/ipc.h"

#define N_PENDING 8

static const uint8_t *data_next;
static const uint8_t *data_end;
static int answers[N_PENDING];

/* A pipe that brings the input in pieces as long as their first byte says. */
static ssize_t
fake_read(int fd, void *buffer, size_t size)
{
	size_t n;

	(void) fd;
	errno = EAGAIN;
	if (data_next == data_end)
		return -1;
	n = *data_next++;
	n = Min(n, size);
	n = Min(n, (size_t) (data_end - data_next));
	memcpy(buffer, data_next, n);
	data_next += n;
	return n;
}

#define read fake_read
#define write(fd, bytes, n) ((ssize_t) (n))
#define close(fd) ((void) (fd))
#define kill(pid, signal) ((void) (pid))
#define waitpid(pid, status, options) (pid)

#include "../src/sink/kafka.c"

TimestampTz
GetCurrentTimestamp(void)
{
	return 0;
}

bool
shop_poll_watch(int fd, bool in, bool out, ShopReady ready, void *arg)
{
	(void) fd;
	(void) in;
	(void) out;
	(void) ready;
	(void) arg;
	return true;
}

void
shop_poll_forget(int fd)
{
	(void) fd;
}

void
shop_hosts_check(const char *host, Oid role)
{
	(void) role;
	assert(*host != '\0');
}

static void
count_answer(void *request, const ShopAnswer *answer)
{
	assert(++*(int *) request == 1);
	assert(strnlen(answer->error, sizeof(answer->error)) < sizeof(answer->error));
}

static void
hear_answers(void)
{
	Kafka program = {.answered = count_answer, .max_requests = N_PENDING, .pid = 1, .to = 1000, .from = 1001};
	Pending pending[N_PENDING];

	for (int i = 0; i < N_PENDING; i++)
		pending[i] = (Pending){.tag = N_PENDING + i, .request = &answers[i]};
	memset(answers, 0, sizeof(answers));
	program.pending = pending;
	initStringInfo(&program.in);
	initStringInfo(&program.out);
	while (data_next < data_end && program.pid != 0)
		act_on_pipe(program.from, true, false, false, &program);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	data_next = data + 1;
	data_end = data + size;
	if (setjmp(rejected) == 0)
	{
		if (data[0] % 2)
			hear_answers();
		else
			check_kafka(psprintf("kafka://%s", string_of(data + 1, size - 1)), InvalidOid);
	}
	free_chunks();
	return 0;
}
