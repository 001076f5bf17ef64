/*
 * topic.c
 *		A Kafka broker with one topic, for benches: librdkafka's mock cluster, and
 *		a reader that notes what arrives, and when.
 *
 *		cc -O2 -Wall -Wextra -o topic bench/topic.c -lrdkafka -lpthread
 *		topic PARTITIONS WAIT_MS JOURNAL ADDRESS-FILE
 *
 * It writes "host:port/topic" to the address file once it can be used.  The
 * journal has a line for each message: when it was read, in microseconds since
 * 1970; its key; its header ce_id; separated by tabs.  A broker that has
 * nothing new answers after WAIT_MS, whatever comes meanwhile, so that is how
 * late a message may be read.
 *
 * The broker keeps the last 5 MB of a partition.  If the reader is further
 * behind than that it ends, and the journal is short.  SIGTERM ends it, and so
 * does the end of its parent.
 */
#define _GNU_SOURCE

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define TOPIC "events"
#define IDLE_MS 10

static void
quit(const char *why)
{
	fprintf(stderr, "topic: %s\n", why);
	exit(1);
}

static void
set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char why[512];

	if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)))
		quit(why);
}

static rd_kafka_t *
new_client(rd_kafka_type_t type, rd_kafka_conf_t *conf)
{
	char why[512];
	rd_kafka_t *client = rd_kafka_new(type, conf, why, sizeof(why));

	if (client == NULL)
		quit(why);
	return client;
}

static rd_kafka_t *
new_reader(const char *brokers, const char *wait_ms)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *reader;

	set(conf, "bootstrap.servers", brokers);
	set(conf, "group.id", "bench");
	set(conf, "auto.offset.reset", "error");
	set(conf, "fetch.wait.max.ms", wait_ms);
	set(conf, "check.crcs", "false");
	reader = new_client(RD_KAFKA_CONSUMER, conf);
	rd_kafka_poll_set_consumer(reader);
	return reader;
}

static void
read_all_partitions(rd_kafka_t *reader, int n)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);

	for (int i = 0; i < n; i++)
		rd_kafka_topic_partition_list_add(list, TOPIC, i)->offset = 0;
	rd_kafka_assign(reader, list);
	rd_kafka_topic_partition_list_destroy(list);
}

static void
note(FILE *journal, const rd_kafka_message_t *message)
{
	struct timespec now;
	rd_kafka_headers_t *headers;
	const void *id = "";
	size_t size = 0;

	clock_gettime(CLOCK_REALTIME, &now);
	if (!rd_kafka_message_headers(message, &headers))
		(void) rd_kafka_header_get_last(headers, "ce_id", &id, &size);
	fprintf(journal, "%lld\t%.*s\t%.*s\n", (long long) now.tv_sec * 1000000 + now.tv_nsec / 1000,
		(int) message->key_len, (const char *) message->key, (int) size, (const char *) id);
}

static void
write_address(const char *file, const char *brokers)
{
	char name[4096];
	FILE *out;

	snprintf(name, sizeof(name), "%s.new", file);
	out = fopen(name, "w");
	if (out == NULL || fprintf(out, "%s/%s\n", brokers, TOPIC) < 0 || fclose(out) != 0 || rename(name, file) != 0)
		quit("cannot write the address file");
}

int
main(int argc, char **argv)
{
	rd_kafka_mock_cluster_t *cluster;
	rd_kafka_t *reader;
	FILE *journal;
	int partitions;

	if (argc != 5)
		quit("PARTITIONS WAIT_MS JOURNAL ADDRESS-FILE");
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	partitions = atoi(argv[1]);
	journal = fopen(argv[3], "w");
	if (journal == NULL)
		quit("cannot write the journal");
	cluster = rd_kafka_mock_cluster_new(new_client(RD_KAFKA_PRODUCER, rd_kafka_conf_new()), 1);
	if (cluster == NULL || rd_kafka_mock_topic_create(cluster, TOPIC, partitions, 1))
		quit("no cluster");
	reader = new_reader(rd_kafka_mock_cluster_bootstraps(cluster), argv[2]);
	read_all_partitions(reader, partitions);
	write_address(argv[4], rd_kafka_mock_cluster_bootstraps(cluster));
	for (;;)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(reader, IDLE_MS);

		if (message == NULL)
			fflush(journal);
		else if (!message->err)
			note(journal, message);
		else
			quit(rd_kafka_message_errstr(message));
		if (message)
			rd_kafka_message_destroy(message);
	}
}
