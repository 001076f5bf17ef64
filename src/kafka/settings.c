/*
 * settings.c
 *		Settings of librdkafka, and what must not be shown of them.
 *
 * Who may create an endpoint may set nearly everything, but must not come to
 * run code on the server by it, or to write its files.
 */
#include "shop_kafka.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A shorter value hides nothing, and would tear messages to pieces. */
#define MIN_SECRET 3
#define MAX_NAME 100

typedef struct Setting
{
	const char *name;
	const char *value;
} Setting;

static const Setting defaults[] = {
	{"enable.idempotence", "true"},
	{"acks", "all"},
	{"allow.auto.create.topics", "false"},
	{"message.timeout.ms", "30000"},
	/* Well before that, or an unknown topic looks like brokers out of reach. */
	{"topic.metadata.propagation.max.ms", "10000"},
	{"linger.ms", "1"},
	{"compression.codec", "none"},
	/* Log messages come to the main thread. */
	{"log.queue", "true"},
};

/* Settings that begin so are refused; the values say why. */
static const Setting refused[] = {
	{"plugin.", "it loads code"},
	{"interceptors", "it loads code"},
	{"ssl.engine.", "it loads code"},
	{"ssl_engine", "it loads code"},
	{"ssl.providers", "it loads code"},
	{"sasl.kerberos.kinit.cmd", "it runs a command"},
	/* They are put into that command, and are for nothing else. */
	{"sasl.kerberos.keytab", "it runs a command"},
	{"sasl.kerberos.principal", "it runs a command"},
	{"sasl.kerberos.min.time.before.relogin", "it runs a command"},
	/* Tokens are fetched from a URL, which is not one of the brokers. */
	{"sasl.oauthbearer.", "it calls other hosts"},
	{"enable.sasl.oauthbearer", "it is for tests only"},
	{"offset.store.", "it writes files"},
	/* Logs settings, and several lines for each message. */
	{"debug", "it shows secrets"},
	{"log.queue", "this program depends on it"},
	{"enabled_events", "this program depends on it"},
	{"delivery.report.only.error", "this program depends on it"},
	{"queuing.strategy", "this program depends on it"},
	{"transactional.id", "this program has no transactions"},
	{"internal.", "it is not for use"},
	/* One replaces the brokers, another is called, whatever it points to. */
	{"test.", "it is for tests only"},
	{"ut_", "it is for tests only"},
};

/* Values that must not be seen. */
static char **secrets;
static size_t n_secrets;

/*
 * What may be shown
 */

static void
hide(char *text, const char *secret)
{
	size_t length = strlen(secret);

	while ((text = strstr(text, secret)) != NULL)
	{
		memcpy(text, "***", 3);
		memmove(text + 3, text + length, strlen(text + length) + 1);
		text += 3;
	}
}

/*
 * Makes a text that came from elsewhere fit to be shown: in one line, in
 * ASCII, which is part of any encoding, and without the values of settings.
 */
void
clean_text(char *text)
{
	for (size_t i = 0; i < n_secrets; i++)
		hide(text, secrets[i]);
	for (; *text != '\0'; text++)
	{
		if (*text < ' ')
			*text = (unsigned char) *text < ' ' ? ' ' : '?';
		else if (*text == '\x7f')
			*text = '?';
	}
}

/*
 * A setting that takes any text may hold a password, a key or a path; the
 * others take numbers and words of librdkafka's.  The brokers are no secret,
 * and messages would say little without their names.
 */
static bool
is_secret(rd_kafka_conf_t *scratch, const char *name)
{
	if (strcmp(name, "bootstrap.servers") == 0 || strcmp(name, "metadata.broker.list") == 0)
		return false;
	return rd_kafka_conf_set(scratch, name, "anything", NULL, 0) == RD_KAFKA_CONF_OK;
}

static void
remember_secret(const char *value)
{
	if (strlen(value) < MIN_SECRET)
		return;
	secrets = realloc(secrets, (n_secrets + 1) * sizeof(*secrets));
	if (secrets == NULL)
		die(EXIT_SYSTEM, "out of memory");
	secrets[n_secrets] = allocate(strlen(value) + 1);
	strcpy(secrets[n_secrets++], value);
}

/* A longer one first: another may be part of it. */
static int
compare_secrets(const void *a, const void *b)
{
	size_t x = strlen(*(char *const *) a);
	size_t y = strlen(*(char *const *) b);

	return (x < y) - (x > y);
}

/*
 * Setting
 */

/* NULL if it cannot be one. */
static char *
copy_string(Bytes string)
{
	char *copy;

	if (memchr(string.data, '\0', string.length) != NULL)
		return NULL;
	copy = allocate((size_t) string.length + 1);
	memcpy(copy, string.data, string.length);
	copy[string.length] = '\0';
	return copy;
}

/* Names are shown; whatever cannot be one may be a value that got there. */
static bool
is_name(const char *name)
{
	size_t length = strlen(name);

	return length > 0 && length <= MAX_NAME && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == length;
}

static const char *
why_refused(const char *name)
{
	for (size_t i = 0; i < LENGTH_OF(refused); i++)
	{
		if (strncmp(name, refused[i].name, strlen(refused[i].name)) == 0)
			return refused[i].value;
	}
	return NULL;
}

/* What librdkafka says of a bad value has the value in it. */
static bool
set(rd_kafka_conf_t *conf, const char *name, const char *value, char *refusal, size_t size)
{
	char said[MAX_TEXT];

	switch (rd_kafka_conf_set(conf, name, value, said, sizeof(said)))
	{
		case RD_KAFKA_CONF_OK:
			return true;
		case RD_KAFKA_CONF_UNKNOWN:
			snprintf(refusal, size, "there is no setting %s", name);
			return false;
		default:
			snprintf(refusal, size, "the value of setting %s is not valid, or it cannot be set", name);
			return false;
	}
}

static bool
set_defaults(rd_kafka_conf_t *conf, char *refusal, size_t size)
{
	/*
	 * Otherwise kinit is run, by a shell, as soon as the mechanism is GSSAPI.
	 * A librdkafka without Kerberos has nothing to be set.
	 */
	rd_kafka_conf_set(conf, "sasl.kerberos.min.time.before.relogin", "0", NULL, 0);

	for (size_t i = 0; i < LENGTH_OF(defaults); i++)
	{
		if (!set(conf, defaults[i].name, defaults[i].value, refusal, size))
			return false;
	}
	return true;
}

static bool
set_callers(
	rd_kafka_conf_t *conf, rd_kafka_conf_t *scratch, const char *name, const char *value, char *refusal, size_t size)
{
	const char *why;

	if (name == NULL || !is_name(name))
		snprintf(refusal, size, "the name of a setting is not valid");
	else if ((why = why_refused(name)) != NULL)
		snprintf(refusal, size, "setting %s is refused: %s", name, why);
	else if (value == NULL)
		snprintf(refusal, size, "the value of setting %s is not valid", name);
	else
	{
		if (is_secret(scratch, name))
			remember_secret(value);
		return set(conf, name, value, refusal, size);
	}
	return false;
}

static bool
read_callers(Reader *reader, rd_kafka_conf_t *conf, char *refusal, size_t size)
{
	rd_kafka_conf_t *scratch = rd_kafka_conf_new();
	uint32_t n = read_count(reader, 2 * sizeof(uint32_t));
	bool good = true;

	for (uint32_t i = 0; i < n && good; i++)
	{
		char *name = copy_string(read_string(reader));
		char *value = copy_string(read_string(reader));

		good = set_callers(conf, scratch, name, value, refusal, size);
		free(name);
		free(value);
	}
	if (good)
		read_end(reader);
	if (n_secrets > 1)
		qsort(secrets, n_secrets, sizeof(*secrets), compare_secrets);
	rd_kafka_conf_destroy(scratch);
	return good;
}

static bool
has_brokers(rd_kafka_conf_t *conf, char *refusal, size_t size)
{
	size_t length = 0;

	if (rd_kafka_conf_get(conf, "bootstrap.servers", NULL, &length) == RD_KAFKA_CONF_OK && length > 1)
		return true;
	snprintf(refusal, size, "setting bootstrap.servers is missing");
	return false;
}

/* Reads the settings of a request; if they are refused, NULL and a reason. */
rd_kafka_conf_t *
read_settings(Reader *reader, char *refusal, size_t size)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	if (set_defaults(conf, refusal, size) && read_callers(reader, conf, refusal, size) &&
		has_brokers(conf, refusal, size))
		return conf;
	rd_kafka_conf_destroy(conf);
	return NULL;
}
