/*
 * mock_cluster.c
 *		Brokers to test against: librdkafka's mock cluster, on TCP ports of
 *		this machine, with faults on demand.
 *
 * The argument is the number of brokers.  It prints "brokers host:port,…", and
 * then reads commands, one a line, each answered by a line "ok" or "error …":
 *
 *	topic NAME PARTITIONS			create a topic
 *	down BROKER						close its connections, take no new ones
 *	up BROKER
 *	rtt BROKER MS					answer only after that time
 *	leader TOPIC PARTITION BROKER	move a partition
 *	errors API CODE…				the next requests of that kind fail so
 *	clear API						no more of these
 *	topic_error TOPIC CODE			what is said of a topic
 *	read TOPIC						print its messages, a line each, before "ok":
 *									partition, offset, key, value, headers as
 *									name=value, separated by tabs
 *
 * BROKER is a number from 1, or -1 for all.  At the end of its input it exits.
 */
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_WORDS 1000

static rd_kafka_mock_cluster_t *cluster;
static rd_kafka_t *reader;

static void
check(rd_kafka_resp_err_t error)
{
	if (error)
		printf("error %s\n", rd_kafka_err2str(error));
	else
		printf("ok\n");
}

static void
quit(const char *why)
{
	fprintf(stderr, "mock_cluster: %s\n", why);
	_exit(1);
}

static rd_kafka_t *
new_client(rd_kafka_type_t type, const char *brokers)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char why[512] = "";
	rd_kafka_t *client;

	if (rd_kafka_conf_set(conf, "log_level", "0", why, sizeof(why)) ||
		(brokers && (rd_kafka_conf_set(conf, "bootstrap.servers", brokers, why, sizeof(why)) ||
						rd_kafka_conf_set(conf, "group.id", "test", why, sizeof(why)) ||
						rd_kafka_conf_set(conf, "reconnect.backoff.max.ms", "100", why, sizeof(why)) ||
						rd_kafka_conf_set(conf, "fetch.wait.max.ms", "10", why, sizeof(why)) ||
						rd_kafka_conf_set(conf, "enable.partition.eof", "true", why, sizeof(why)))))
		quit(why);
	client = rd_kafka_new(type, conf, why, sizeof(why));
	if (client == NULL)
		quit(why);
	return client;
}

/*
 * Reading a topic
 */

static void
print_message(const rd_kafka_message_t *message)
{
	rd_kafka_headers_t *headers;
	const char *name;
	const void *value;
	size_t size;

	printf("%d\t%lld\t%.*s\t%.*s", message->partition, (long long) message->offset, (int) message->key_len,
		(const char *) message->key, (int) message->len, (const char *) message->payload);
	if (!rd_kafka_message_headers(message, &headers))
	{
		for (size_t i = 0; !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++)
			printf("\t%s=%.*s", name, (int) size, (const char *) value);
	}
	printf("\n");
}

/* All partitions from their beginnings; their number, or -1. */
static int
assign(const char *topic)
{
	rd_kafka_topic_t *handle = rd_kafka_topic_new(reader, topic, NULL);
	const struct rd_kafka_metadata *metadata;
	rd_kafka_topic_partition_list_t *list;
	int n;

	if (rd_kafka_metadata(reader, 0, handle, &metadata, 10000))
		return -1;
	n = metadata->topics[0].partition_cnt;
	list = rd_kafka_topic_partition_list_new(n);
	for (int i = 0; i < n; i++)
		rd_kafka_topic_partition_list_add(list, topic, i)->offset = RD_KAFKA_OFFSET_BEGINNING;
	rd_kafka_assign(reader, list);
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_metadata_destroy(metadata);
	rd_kafka_topic_destroy(handle);
	return n;
}

static void
read_topic(const char *topic)
{
	int left = assign(topic);

	while (left > 0)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(reader, 10000);

		if (message == NULL)
			left = -1;
		else if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
			left--;
		else if (!message->err)
			print_message(message);
		if (message)
			rd_kafka_message_destroy(message);
	}
	rd_kafka_assign(reader, NULL);
	printf(left == 0 ? "ok\n" : "error could not read\n");
}

/*
 * Commands
 */

static void
push_errors(int api, char **codes, int n)
{
	rd_kafka_resp_err_t errors[MAX_WORDS];

	for (int i = 0; i < n; i++)
		errors[i] = atoi(codes[i]);
	rd_kafka_mock_push_request_errors_array(cluster, api, n, errors);
	check(RD_KAFKA_RESP_ERR_NO_ERROR);
}

static void
run(char **word, int n)
{
	const char *verb = n > 0 ? word[0] : "";

	if (strcmp(verb, "topic") == 0 && n == 3)
		check(rd_kafka_mock_topic_create(cluster, word[1], atoi(word[2]), 3));
	else if (strcmp(verb, "down") == 0 && n == 2)
		check(rd_kafka_mock_broker_set_down(cluster, atoi(word[1])));
	else if (strcmp(verb, "up") == 0 && n == 2)
		check(rd_kafka_mock_broker_set_up(cluster, atoi(word[1])));
	else if (strcmp(verb, "rtt") == 0 && n == 3)
		check(rd_kafka_mock_broker_set_rtt(cluster, atoi(word[1]), atoi(word[2])));
	else if (strcmp(verb, "leader") == 0 && n == 4)
		check(rd_kafka_mock_partition_set_leader(cluster, word[1], atoi(word[2]), atoi(word[3])));
	else if (strcmp(verb, "errors") == 0 && n >= 3)
		push_errors(atoi(word[1]), word + 2, n - 2);
	else if (strcmp(verb, "clear") == 0 && n == 2)
	{
		rd_kafka_mock_clear_request_errors(cluster, atoi(word[1]));
		check(RD_KAFKA_RESP_ERR_NO_ERROR);
	}
	else if (strcmp(verb, "topic_error") == 0 && n == 3)
	{
		rd_kafka_mock_topic_set_error(cluster, word[1], atoi(word[2]));
		check(RD_KAFKA_RESP_ERR_NO_ERROR);
	}
	else if (strcmp(verb, "read") == 0 && n == 2)
		read_topic(word[1]);
	else
		printf("error no such command\n");
}

int
main(int argc, char **argv)
{
	char *line = NULL;
	size_t size = 0;

	cluster = rd_kafka_mock_cluster_new(new_client(RD_KAFKA_PRODUCER, NULL), argc > 1 ? atoi(argv[1]) : 1);
	if (cluster == NULL)
		quit("no cluster");
	reader = new_client(RD_KAFKA_CONSUMER, rd_kafka_mock_cluster_bootstraps(cluster));
	rd_kafka_poll_set_consumer(reader);
	printf("brokers %s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	fflush(stdout);
	while (getline(&line, &size, stdin) > 0)
	{
		char *word[MAX_WORDS];
		int n = 0;

		for (char *next = strtok(line, " \n"); next && n < MAX_WORDS; next = strtok(NULL, " \n"))
			word[n++] = next;
		run(word, n);
		fflush(stdout);
	}
	_exit(0);
}
