/*
 * server.h
 *		What a file of the extension needs of the server, for libFuzzer: memory
 *		that is freed after each input, and errors that end it.
 *
 * The rest comes from libpgcommon and libpgport; what is not called in a
 * harness stays unresolved.
 */
#ifndef FUZZ_SERVER_H
#define FUZZ_SERVER_H

#include "shop.h"

#include <setjmp.h>

#include "error.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* Where an error leads. */
static jmp_buf rejected;

MemoryContext CurrentMemoryContext;

/*
 * Memory: all chunks in a list, so that each is one of malloc's own, with
 * AddressSanitizer's red zones around it.
 */
typedef struct Chunk
{
	struct Chunk *previous;
	struct Chunk *next;
	char bytes[] pg_attribute_aligned(16);
} Chunk;

static Chunk *chunks;

void *
palloc(Size size)
{
	Chunk *chunk = malloc(sizeof(Chunk) + size);

	chunk->previous = NULL;
	chunk->next = chunks;
	if (chunks)
		chunks->previous = chunk;
	chunks = chunk;
	return chunk->bytes;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void
pfree(void *pointer)
{
	Chunk *chunk = (Chunk *) ((char *) pointer - offsetof(Chunk, bytes));

	if (chunk->previous)
		chunk->previous->next = chunk->next;
	else
		chunks = chunk->next;
	if (chunk->next)
		chunk->next->previous = chunk->previous;
	free(chunk);
}

void *
repalloc(void *pointer, Size size)
{
	Chunk *chunk = realloc((char *) pointer - offsetof(Chunk, bytes), sizeof(Chunk) + size);

	if (chunk->previous)
		chunk->previous->next = chunk;
	else
		chunks = chunk;
	if (chunk->next)
		chunk->next->previous = chunk;
	return chunk->bytes;
}

char *
pnstrdup(const char *text, Size length)
{
	Size n = strnlen(text, length);
	char *copy = palloc(n + 1);

	memcpy(copy, text, n);
	copy[n] = '\0';
	return copy;
}

char *
pstrdup(const char *text)
{
	return pnstrdup(text, strlen(text));
}

static void
free_chunks(void)
{
	while (chunks)
		pfree(chunks->bytes);
}

/* Bad input, which is fine; any other error of a harness is not. */
void
shop_reject(const char *argument, const char *message, ...)
{
	(void) argument;
	(void) message;
	longjmp(rejected, 1);
}

bool
errstart(int level, const char *domain)
{
	(void) level;
	(void) domain;
	abort();
}

bool
errstart_cold(int level, const char *domain)
{
	return errstart(level, domain);
}

/* The input as a string of its own. */
static char *
string_of(const uint8_t *data, size_t size)
{
	return pnstrdup((const char *) data, size);
}

#endif /* FUZZ_SERVER_H */
