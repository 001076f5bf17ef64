/*
 * http.c
 *		Sends events to http:// and https:// endpoints with libcurl.
 *
 * One multi handle carries the requests of all endpoints.  A message is a
 * CloudEvents 1.0 JSON body with Standard Webhooks headers.
 *
 * libcurl is given no chance to hurt the server: signals are blocked while it
 * runs (it starts threads to resolve names, which would take them), callbacks
 * raise no error and touch none of PostgreSQL's memory, redirects, proxies and
 * the environment are ignored, answers are read up to 64 KiB, and the process
 * ends without its exit handlers (resolver threads may be running).
 *
 * Takes no locks; runs with no transaction open.
 */
#include "sink/sink.h"

#ifndef SHOP_WITHOUT_CURL

#include <curl/curl.h>
#include <signal.h>

#include "error.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "sink/hosts.h"
#include "sink/poll.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define MAX_ANSWER (64 * 1024)
#define MAX_CONNECT_MS 3000
#define DEFAULT_REQUESTS 16
#define MAX_REQUESTS 256
#define MAX_RETRY_AFTER_S (24 * 60 * 60)

/*
 * Before 8.1.0, an answer whose headers begin with a folded line makes libcurl
 * read the last header of the answer before, which it has freed, if the handle is the same:
 * https://github.com/curl/curl/pull/11103.  There a handle serves one request.
 * Connections stay: they are the multi handle's.
 */
#define GOOD_VERSION 0x080100

/* An endpoint that is being sent to. */
typedef struct Connection
{
	char *url;
	char *secret;
	char *ca_file;
	long timeout_ms;
	int max_requests;
	int max_messages;
	struct curl_slist *headers; /* of options.headers */
	ShopAnswered answered;
	struct Transfer *transfers; /* max_requests of them, each with a handle of its own */
	struct Connection *next;
} Connection;

/* A request on its way; its memory is malloc's, for libcurl's callbacks use it. */
typedef struct Transfer
{
	Connection *connection;
	CURL *handle;
	bool busy;
	TimestampTz overdue_at;
	void *request;
	char *body;
	struct curl_slist *headers;
	size_t answer_size;
	char error[CURL_ERROR_SIZE];
} Transfer;

static CURLM *multi;
static TimestampTz timer_at = DT_NOEND;
static Connection *connections;
static TimestampTz overdue_at = DT_NOEND; /* before that no transfer is */
static bool handles_wear_out;

static void
out_of_memory(void)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

/*
 * Signals
 */

static sigset_t saved_mask;

static void
block_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved_mask);
}

static void
unblock_signals(void)
{
	pthread_sigmask(SIG_SETMASK, &saved_mask, NULL);
}

/*
 * The multi handle
 */

static void
act_on_socket(int fd, bool in, bool out, bool error, void *arg)
{
	int running;

	(void) arg;
	block_signals();
	curl_multi_socket_action(multi, fd,
		(in ? CURL_CSELECT_IN : 0) | (out ? CURL_CSELECT_OUT : 0) | (error ? CURL_CSELECT_ERR : 0), &running);
	unblock_signals();
}

static int
watch_socket(CURL *handle, curl_socket_t fd, int what, void *arg, void *known)
{
	(void) handle;
	(void) arg;
	(void) known;
	if (what == CURL_POLL_REMOVE)
		shop_poll_forget(fd);
	else
		(void) shop_poll_watch(fd, what & CURL_POLL_IN, what & CURL_POLL_OUT, act_on_socket, NULL);
	return 0;
}

static int
set_timer(CURLM *handle, long timeout_ms, void *arg)
{
	(void) handle;
	(void) arg;
	timer_at = timeout_ms < 0 ? DT_NOEND : TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	return 0;
}

/* Made in the relay at its first http endpoint, never in the postmaster. */
static void
start_curl(void)
{
	if (multi != NULL)
		return;
	shop_poll_start();
	block_signals();
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
		multi = curl_multi_init();
	unblock_signals();
	if (multi == NULL)
		ereport(ERROR, (errcode(ERRCODE_SYSTEM_ERROR), errmsg("could not start libcurl")));
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, set_timer);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, 256L);
	handles_wear_out = curl_version_info(CURLVERSION_NOW)->version_num < GOOD_VERSION;
}

/* ms until libcurl wants to be called, or a request is overdue, or -1. */
long
shop_http_timeout(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = Min(timer_at, overdue_at);

	if (next == DT_NOEND)
		return -1;
	return next <= now ? 0 : (long) ((next - now) / 1000 + 1);
}

/*
 * Answers
 */

/* Keeps nothing of an answer, and reads no more than so much of it. */
static size_t
count_answer(char *data, size_t size, size_t n, void *arg)
{
	Transfer *transfer = arg;

	(void) data;
	transfer->answer_size += size * n;
	return transfer->answer_size > MAX_ANSWER ? 0 : size * n;
}

static ShopVerdict
verdict_of_status(long status)
{
	if (status >= 200 && status < 300)
		return SHOP_TAKEN;
	if (status == 408 || status == 425 || status == 429 || status >= 500 || status < 200)
		return SHOP_TRY_AGAIN;
	if (status < 400 || status == 401 || status == 403 || status == 404 || status == 410)
		return SHOP_MISCONFIGURED;
	return SHOP_REJECTED;
}

/* An answer that was cut short is none, whatever its status said, but for one that we cut ourselves. */
static ShopAnswer
judge(Transfer *transfer, CURLcode result)
{
	ShopAnswer answer = {.verdict = SHOP_TRY_AGAIN};
	curl_off_t retry_after = 0;
	long status = 0;

	curl_easy_getinfo(transfer->handle, CURLINFO_RESPONSE_CODE, &status);
	if (result == CURLE_OK || (result == CURLE_WRITE_ERROR && transfer->answer_size > MAX_ANSWER))
	{
		answer.verdict = verdict_of_status(status);
		snprintf(answer.error, sizeof(answer.error), "HTTP status %ld", status);
		if (curl_easy_getinfo(transfer->handle, CURLINFO_RETRY_AFTER, &retry_after) == CURLE_OK && retry_after > 0)
			answer.retry_after_ms = (int) Min(retry_after, MAX_RETRY_AFTER_S) * 1000;
	}
	else
		snprintf(answer.error, sizeof(answer.error), "%s",
			transfer->error[0] ? transfer->error : curl_easy_strerror(result));
	return answer;
}

static void
prepare_handle(Connection *connection, Transfer *transfer)
{
	CURL *handle = curl_easy_init();

	if (handle == NULL)
		out_of_memory();
	transfer->connection = connection;
	transfer->handle = handle;
	curl_easy_setopt(handle, CURLOPT_URL, connection->url);
	curl_easy_setopt(handle, CURLOPT_PRIVATE, transfer);
	curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, transfer->error);
	curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700
	/* Or the end of a request would wait for a name server that does not answer. */
	curl_easy_setopt(handle, CURLOPT_QUICK_EXIT, 1L);
#endif
	curl_easy_setopt(handle, CURLOPT_POST, 1L);
	curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(handle, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(handle, CURLOPT_PROXY, "");
	curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT_MS, Min(connection->timeout_ms, (long) MAX_CONNECT_MS));
	curl_easy_setopt(handle, CURLOPT_TCP_NODELAY, 1L);
	curl_easy_setopt(handle, CURLOPT_USERAGENT, "shop/" SHOP_VERSION);
	curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, count_answer);
	curl_easy_setopt(handle, CURLOPT_WRITEDATA, transfer);
	/* One file of authorities, ours or the system's: libcurl keeps it parsed, and trusts no directory beside it. */
	curl_easy_setopt(handle, CURLOPT_CAPATH, NULL);
	if (connection->ca_file)
		curl_easy_setopt(handle, CURLOPT_CAINFO, connection->ca_file);
}

static void
clear(Transfer *transfer)
{
	transfer->busy = false;
	transfer->request = NULL;
	free(transfer->body);
	transfer->body = NULL;
	curl_slist_free_all(transfer->headers);
	transfer->headers = NULL;
}

static void
finish(Transfer *transfer, CURLcode result)
{
	ShopAnswer answer = judge(transfer, result);
	void *request = transfer->request;

	block_signals();
	curl_multi_remove_handle(multi, transfer->handle);
	if (handles_wear_out)
		curl_easy_cleanup(transfer->handle);
	unblock_signals();
	if (handles_wear_out)
		prepare_handle(transfer->connection, transfer);
	clear(transfer);
	transfer->connection->answered(request, &answer);
}

/*
 * Nobody has listened for so long, in µs: that does not count.  libcurl's own
 * limit would; it looks at its clock before it looks at the socket, and so
 * takes an answer that came in meanwhile for none.
 */
void
shop_http_add_time(int64 us)
{
	for (Connection *connection = connections; connection; connection = connection->next)
		for (int i = 0; i < connection->max_requests; i++)
			connection->transfers[i].overdue_at += us;
}

/* Ends what has waited for too long. */
static void
end_overdue(TimestampTz now)
{
	if (overdue_at > now)
		return;
	overdue_at = DT_NOEND;
	for (Connection *connection = connections; connection; connection = connection->next)
		for (int i = 0; i < connection->max_requests; i++)
		{
			Transfer *transfer = &connection->transfers[i];

			if (transfer->busy && transfer->overdue_at <= now)
				finish(transfer, CURLE_OPERATION_TIMEDOUT);
			else if (transfer->busy)
				overdue_at = Min(overdue_at, transfer->overdue_at);
		}
}

/* Lets libcurl look at its clock, and hands out what has come to an end.  The sockets have been seen to before. */
void
shop_http_poll(void)
{
	TimestampTz now = GetCurrentTimestamp();
	CURLMsg *message;
	int running;
	int left;

	if (multi == NULL)
		return;
	if (timer_at <= now)
	{
		timer_at = DT_NOEND;
		block_signals();
		curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
		unblock_signals();
	}
	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		Transfer *transfer;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &transfer);
		finish(transfer, message->data.result);
	}
	end_overdue(now);
}

/*
 * Endpoints
 */

static int
int_option(Jsonb *options, const char *name, int default_value)
{
	JsonbValue key = {.type = jbvString, .val = {.string = {strlen(name), unconstify(char *, name)}}};
	JsonbValue *value = findJsonbValueFromContainer(&options->root, JB_FOBJECT, &key);

	return value ? DatumGetInt32(DirectFunctionCall1(numeric_int4, NumericGetDatum(value->val.numeric)))
				 : default_value;
}

static char *
text_option(Jsonb *options, const char *name)
{
	JsonbValue key = {.type = jbvString, .val = {.string = {strlen(name), unconstify(char *, name)}}};
	JsonbValue *value = findJsonbValueFromContainer(&options->root, JB_FOBJECT, &key);

	return value ? pnstrdup(value->val.string.val, value->val.string.len) : NULL;
}

static struct curl_slist *
add_header(struct curl_slist *headers, const char *line)
{
	struct curl_slist *longer = curl_slist_append(headers, line);

	if (longer == NULL)
		out_of_memory();
	return longer;
}

/* options.headers, an object of strings. */
static struct curl_slist *
header_option(Jsonb *options)
{
	JsonbValue key = {.type = jbvString, .val = {.string = {strlen("headers"), "headers"}}};
	JsonbValue *object = findJsonbValueFromContainer(&options->root, JB_FOBJECT, &key);
	struct curl_slist *headers = NULL;
	JsonbIterator *it;
	JsonbValue value;

	if (object == NULL)
		return NULL;
	it = JsonbIteratorInit(object->val.binary.data);
	(void) JsonbIteratorNext(&it, &value, false);
	while (JsonbIteratorNext(&it, &value, true) == WJB_KEY)
	{
		char *name = pnstrdup(value.val.string.val, value.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		/* libcurl sends a header without a value only if it is written so. */
		headers = add_header(
			headers, shop_utf8(value.val.string.len == 0
								   ? psprintf("%s;", name)
								   : psprintf("%s: %.*s", name, value.val.string.len, value.val.string.val)));
	}
	return headers;
}

static void *
open_http(const ShopEndpoint *endpoint, ShopAnswered answered)
{
	Connection *connection = palloc0(sizeof(Connection));

	start_curl();
	connection->url = pstrdup(endpoint->url);
	connection->secret = endpoint->secret ? pstrdup(endpoint->secret) : NULL;
	connection->ca_file = text_option(endpoint->options, "ca_file");
	connection->timeout_ms = endpoint->timeout_ms;
	connection->max_requests = Min(int_option(endpoint->options, "in_flight", DEFAULT_REQUESTS), MAX_REQUESTS);
	connection->max_messages = int_option(endpoint->options, "batch", 1);
	connection->headers = header_option(endpoint->options);
	connection->answered = answered;
	connection->transfers = palloc0(sizeof(Transfer) * connection->max_requests);
	for (int i = 0; i < connection->max_requests; i++)
		prepare_handle(connection, &connection->transfers[i]);
	connection->next = connections;
	connections = connection;
	return connection;
}

static void
get_limits(void *arg, int *requests, int *messages)
{
	Connection *connection = arg;

	*requests = connection->max_requests;
	*messages = connection->max_messages;
}

/* One event, or with options.batch an array of them, even if it is one. */
static char *
make_body(const Connection *connection, const ShopMessage *messages, int n)
{
	bool batch = connection->max_messages > 1;
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
	{
		if (batch)
			appendStringInfoChar(&buf, i == 0 ? '[' : ',');
		shop_cloudevent_append(&buf, &messages[i]);
	}
	if (batch)
		appendStringInfoChar(&buf, ']');
	return shop_utf8(buf.data);
}

/* The id of what is sent: the event's, the same on every try; of a batch, its first one's and their number. */
static char *
make_id(const Connection *connection, const ShopMessage *messages, int n)
{
	return connection->max_messages == 1 ? pstrdup(messages[0].id) : psprintf("%s+%d", messages[0].id, n - 1);
}

static struct curl_slist *
make_headers(const Connection *connection, const ShopMessage *messages, int n, const char *body)
{
	int64 timestamp = (int64) time(NULL);
	char *id = make_id(connection, messages, n);
	struct curl_slist *headers = NULL;

	headers = add_header(headers, connection->max_messages == 1
									  ? "content-type: application/cloudevents+json; charset=UTF-8"
									  : "content-type: application/cloudevents-batch+json; charset=UTF-8");
	headers = add_header(headers, "expect:");
	headers = add_header(headers, psprintf("webhook-id: %s", id));
	headers = add_header(headers, psprintf("webhook-timestamp: " INT64_FORMAT, timestamp));
	if (connection->secret)
		headers = add_header(headers,
			psprintf("webhook-signature: %s", shop_webhook_signature(connection->secret, id, timestamp, body)));
	if (messages[0].traceparent && connection->max_messages == 1)
		headers = add_header(headers, psprintf("traceparent: %s", messages[0].traceparent));
	for (struct curl_slist *header = connection->headers; header; header = header->next)
		headers = add_header(headers, header->data);
	return headers;
}

static Transfer *
find_idle(Connection *connection)
{
	for (int i = 0; i < connection->max_requests; i++)
		if (!connection->transfers[i].busy)
			return &connection->transfers[i];
	elog(ERROR, "more requests than the endpoint allows");
}

static void
send_http(void *arg, const ShopMessage *messages, int n, void *request)
{
	Connection *connection = arg;
	Transfer *transfer = find_idle(connection);
	char *body = make_body(connection, messages, n);
	size_t length = strlen(body);

	transfer->headers = make_headers(connection, messages, n, body);
	transfer->body = malloc(length + 1);
	if (transfer->body == NULL)
		out_of_memory();
	memcpy(transfer->body, body, length + 1);
	transfer->busy = true;
	transfer->overdue_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), connection->timeout_ms);
	overdue_at = Min(overdue_at, transfer->overdue_at);
	transfer->request = request;
	transfer->answer_size = 0;
	transfer->error[0] = '\0';
	curl_easy_setopt(transfer->handle, CURLOPT_HTTPHEADER, transfer->headers);
	curl_easy_setopt(transfer->handle, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) length);
	curl_easy_setopt(transfer->handle, CURLOPT_POSTFIELDS, transfer->body);
	block_signals();
	curl_multi_add_handle(multi, transfer->handle);
	unblock_signals();
}

static void
close_http(void *arg)
{
	Connection *connection = arg;
	Connection **link = &connections;

	while (*link != connection)
		link = &(*link)->next;
	*link = connection->next;
	block_signals();
	for (int i = 0; i < connection->max_requests; i++)
	{
		Transfer *transfer = &connection->transfers[i];

		if (transfer->busy)
			curl_multi_remove_handle(multi, transfer->handle);
		clear(transfer);
		curl_easy_cleanup(transfer->handle);
	}
	unblock_signals();
	curl_slist_free_all(connection->headers);
	if (connection->secret)
		explicit_bzero(connection->secret, strlen(connection->secret));
}

/* A url that can be shown to everybody, of a host that the role may name. */
static void
check_http(const char *url, Oid role)
{
	CURLU *parsed = curl_url();
	char *host = NULL;
	char *user = NULL;
	bool valid;

	valid = parsed != NULL && curl_url_set(parsed, CURLUPART_URL, url, 0) == CURLUE_OK &&
			curl_url_get(parsed, CURLUPART_HOST, &host, 0) == CURLUE_OK;
	if (valid)
	{
		(void) curl_url_get(parsed, CURLUPART_USER, &user, 0);
		host = pstrdup(host);
	}
	curl_url_cleanup(parsed);
	if (!valid || strlen(url) > 2000)
		shop_reject("url", "must be a valid http:// or https:// URL of at most 2000 bytes");
	if (user)
		shop_reject("url", "must not have a user or a password; send them in options.headers");
	shop_hosts_check(host, role);
}

#define HTTP_SINK(prefix) \
	{ \
		.scheme = (prefix), .check = check_http, .open = open_http, .limits = get_limits, .send = send_http, \
		.close = close_http \
	}

const ShopSink shop_sink_http = HTTP_SINK("http://");
const ShopSink shop_sink_https = HTTP_SINK("https://");

#endif /* SHOP_WITHOUT_CURL */
