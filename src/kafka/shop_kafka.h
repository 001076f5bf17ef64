/*
 * shop_kafka.h
 *		What the files of the program shop_kafka share.
 *
 * shop_kafka.c	the protocol, pipes, the main loop
 * settings.c	settings of librdkafka, and what must not be shown of them
 * producer.c	messages, from acceptance to the delivery report
 */
#ifndef SHOP_KAFKA_H
#define SHOP_KAFKA_H

/* Before any header; a makefile may have it already. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <librdkafka/rdkafka.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * No request is read while this much is held: messages without an answer, and
 * answers that nobody has read.
 */
#define MAX_FRAME (16 * 1024 * 1024)
#define MAX_HELD_MESSAGES 20000
#define MAX_HELD_BYTES (64 * 1024 * 1024)
#define MAX_UNSENT_BYTES (256 * 1024)

#define MAX_TEXT 512

#define LENGTH_OF(array) (sizeof(array) / sizeof((array)[0]))

typedef enum ExitCode
{
	EXIT_DONE = 0,
	EXIT_REFUSED = 1,
	EXIT_MALFORMED = 2,
	EXIT_FATAL_ERROR = 3,
	EXIT_SYSTEM = 4,
	EXIT_SIGNAL = 143
} ExitCode;

/* The numbers are those of the protocol. */
typedef enum FailureClass
{
	FAILS_NOW = 0,		/* may succeed later */
	FAILS_ALWAYS = 1,	/* this message never will */
	FAILS_ENDPOINT = 2, /* none will, until somebody mends the endpoint */
} FailureClass;

/* A string of the protocol: not terminated, and may hold any byte. */
typedef struct Bytes
{
	const char *data;
	uint32_t length;
} Bytes;

/* What is still to be read of a frame's body. */
typedef struct Reader
{
	const char *next;
	const char *end;
} Reader;

/* shop_kafka.c */
extern uint8_t read_byte(Reader *reader);
extern uint32_t read_uint32(Reader *reader);
extern uint64_t read_uint64(Reader *reader);
extern Bytes read_string(Reader *reader);
extern uint32_t read_count(Reader *reader, size_t size);
extern void read_end(Reader *reader);
extern void answer_delivered(uint64_t tag);
extern void answer_failed(uint64_t tag, FailureClass class, const char *text);
extern void show_error(const char *text, bool at_once);
extern void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern void die(ExitCode code, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
extern void *allocate(size_t size);
extern int64_t now_ms(void);

/* settings.c */
extern rd_kafka_conf_t *read_settings(Reader *reader, char *refusal, size_t size);
extern void clean_text(char *text);

/* producer.c */
extern bool producer_start(Reader *reader, char *refusal, size_t size);
extern bool producer_runs(void);
extern int producer_wakes_fd(void);
extern bool producer_has_room(void);
extern void producer_accept(Reader *reader);
extern void producer_serve(void);
extern void producer_flush(int timeout_ms);
extern bool producer_is_busy(void);
extern bool producer_is_dead(void);
extern void producer_fail_all(void);

#endif
