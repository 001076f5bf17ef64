/*
 * history.c
 *		What was called and what was answered, a line each, as COPY reads it.
 *
 * history:		time, session, isolation, verb, outcome, lost, arguments, answer, detail
 * violations:	what an answer contradicts, with the call
 *
 * An outcome is ok, a refusal, `no answer` (the call is repeated), or `rolled
 * back`.  Reads are not kept: they are checked when they come.
 */
#include "storm.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t n_violations;

static FILE *history;
static FILE *violations;

void
quit(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "driver: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
	va_end(arguments);
	exit(1);
}

static void
buffer_room(Buffer *buffer, size_t more)
{
	if (buffer->length + more + 1 <= buffer->size)
		return;
	buffer->size = (buffer->length + more + 1) * 2;
	buffer->data = realloc(buffer->data, buffer->size);
	if (buffer->data == NULL)
		quit("out of memory");
}

void
buffer_add(Buffer *buffer, const char *format, ...)
{
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(NULL, 0, format, arguments);
	va_end(arguments);
	buffer_room(buffer, length);
	va_start(arguments, format);
	vsnprintf(buffer->data + buffer->length, length + 1, format, arguments);
	va_end(arguments);
	buffer->length += length;
}

void
buffer_add_json(Buffer *buffer, const char *text)
{
	buffer_add(buffer, "\"");
	for (; *text; text++)
	{
		if (*text == '"' || *text == '\\')
			buffer_add(buffer, "\\%c", *text);
		else if ((unsigned char) *text < ' ')
			buffer_add(buffer, "\\u%04x", *text);
		else
			buffer_add(buffer, "%c", *text);
	}
	buffer_add(buffer, "\"");
}

FILE *
open_file(const char *directory, const char *name)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "w");
	if (file == NULL)
		quit("cannot write %s", path);
	return file;
}

void
history_open(const char *directory)
{
	history = open_file(directory, "history");
	violations = open_file(directory, "violations");
}

void
history_close(void)
{
	if (fclose(history) != 0 || fclose(violations) != 0)
		quit("cannot write the history");
}

static bool
is_number(const char *text)
{
	text += *text == '-';
	return *text && text[strspn(text, "0123456789")] == '\0';
}

/* Numbers, arrays and objects as they are, anything else in quotes. */
static void
add_value(Buffer *buffer, const char *value)
{
	if (value == NULL)
		buffer_add(buffer, "null");
	else if (*value == '[' || strncmp(value, "{\"", 2) == 0 || strcmp(value, "true") == 0 ||
			 strcmp(value, "false") == 0 || is_number(value))
		buffer_add(buffer, "%s", value);
	else
		buffer_add_json(buffer, value);
}

static void
add_arguments(Buffer *buffer, const Call *call)
{
	char names[256];
	int n = 0;

	snprintf(names, sizeof(names), "%s", call->verb->arguments);
	buffer_add(buffer, "{");
	for (char *name = strtok(names, " "); name; name = strtok(NULL, " "))
	{
		buffer_add(buffer, "%s\"%s\": ", n > 0 ? ", " : "", name);
		add_value(buffer, call->value[n++]);
	}
	buffer_add(buffer, "}");
}

static void
write_escaped(const char *text)
{
	for (; *text; text++)
	{
		if (*text == '\\')
			fputs("\\\\", history);
		else if (*text == '\n')
			fputs("\\n", history);
		else if (*text == '\t')
			fputs("\\t", history);
		else
			putc(*text, history);
	}
}

void
history_call(int session, const char *isolation, const Call *call, const char *outcome)
{
	static Buffer arguments;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	arguments.length = 0;
	add_arguments(&arguments, call);
	fprintf(history, "%lld.%06ld\t%d\t%s\t%s\t%s\t%c\t", (long long) now.tv_sec, now.tv_nsec / 1000, session, isolation,
		call->verb->name, outcome, call->lost ? 't' : 'f');
	write_escaped(arguments.data);
	putc('\t', history);
	if (call->answer)
		write_escaped(call->answer);
	else
		fputs("\\N", history);
	putc('\t', history);
	write_escaped(call->detail ? call->detail : "");
	putc('\n', history);
}

/* The answer contradicts what was answered before. */
void
violation(const Call *call, const char *format, ...)
{
	static Buffer text;
	va_list arguments;
	char why[512];

	va_start(arguments, format);
	vsnprintf(why, sizeof(why), format, arguments);
	va_end(arguments);
	text.length = 0;
	add_arguments(&text, call);
	fprintf(violations, "%s %s: %s; answer: %s %s; detail: %s\n", call->verb->name, text.data, why, call->outcome,
		call->answer ? call->answer : "", call->detail ? call->detail : "");
	fflush(violations);
	n_violations++;
}
