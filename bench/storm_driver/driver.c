/*
 * driver.c
 *		The clients of bench/storm: sessions that call every verb of the shop,
 *		and follow every call to its end, whatever becomes of the server.
 *
 *		driver DIRECTORY SESSIONS SEED CONNINFO
 *
 * A work (calls.c) is one call, or a transaction of some.  It ends in one of
 * these ways:
 *
 *	- it is answered, and committed: the model (model.c) takes the answer;
 *	- it is refused, or rolled back: nothing must be left of it;
 *	- it meets a serialization failure or a deadlock: begun again, and given up
 *	  after many times, as nothing has happened;
 *	- no answer comes.  A single call is repeated by its key, and the answer says
 *	  what there is to know.  A transaction without a COMMIT is begun again.  If
 *	  the answer to COMMIT is missing, the transaction is begun again too, and
 *	  its first call tells by its key: if it is replayed, all was committed,
 *	  with the answers that came before; else nothing was.
 *
 * A call is answered when the server is ready for the next one: before that the
 * commit may still fail.
 *
 * SIGTERM ends the storm: works under way are followed to their ends; the end of
 * its parent ends it at once.  It
 * writes to DIRECTORY what history.c says, and
 *
 *		rates	for each second: time, calls verified, works without an answer,
 *				serialization failures, deadlocks
 *		totals	the same, in all
 *
 * and exits with 0 if no answer contradicted another one.
 */
#define _GNU_SOURCE

#include "storm.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define MAX_SESSIONS 256
#define N_VERBS 64
#define CONNECT_MS 20000
#define PAUSE_MS 200
#define HANG_MS 180000
#define MAX_ATTEMPTS 100

typedef enum State
{
	DISCONNECTED,
	CONNECTING,
	READY,
	PREPARING,
	RUNNING,
	FINISHED
} State;

typedef struct Session
{
	State state;
	Caller caller;
	const char *isolation;
	PGconn *conn;
	PostgresPollingStatusType waits_for;
	int64_t since; /* in this state */
	bool prepared[N_VERBS];
	bool has_work;
	Work work;
	PGresult *result; /* of the step under way, as far as it has come */
} Session;

typedef struct Counts
{
	int64_t verified;
	int64_t lost;
	int64_t serialization;
	int64_t deadlocks;
} Counts;

static Session sessions[MAX_SESSIONS];
static int n_sessions;
static const char *conninfo;
static Counts counts, total;
static volatile sig_atomic_t ending;

/* The conditions of shop.error_codes(), to name refusals by. */
static char (*conditions)[2][40];
static int n_conditions;

static int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
become(Session *session, State state)
{
	session->state = state;
	session->since = now_ms();
}

/*
 * Connections
 */

static void
disconnect(Session *session)
{
	PQclear(session->result);
	session->result = NULL;
	PQfinish(session->conn);
	session->conn = NULL;
	memset(session->prepared, 0, sizeof(session->prepared));
	become(session, DISCONNECTED);
}

static void
connect_session(Session *session)
{
	char info[2048];

	snprintf(info, sizeof(info), "%s application_name='storm %s' options='-c default_transaction_isolation=%s'",
		conninfo, session->isolation,
		strcmp(session->isolation, "serializable") == 0 ? "serializable"
		: strcmp(session->isolation, "committed") == 0	? "read\\\\ committed"
														: "repeatable\\\\ read");
	session->conn = PQconnectStart(info);
	if (session->conn == NULL || PQstatus(session->conn) == CONNECTION_BAD)
	{
		disconnect(session);
		return;
	}
	session->waits_for = PGRES_POLLING_WRITING;
	become(session, CONNECTING);
}

static void
go_on_connecting(Session *session)
{
	session->waits_for = PQconnectPoll(session->conn);
	if (session->waits_for == PGRES_POLLING_OK)
		become(session, READY);
	else if (session->waits_for == PGRES_POLLING_FAILED)
		disconnect(session);
}

/*
 * Answers
 */

static const char *const field_names[] = {
	"order_id", "user_id", "total", "balance", "amount", "entry_id", "coupon_id", "campaign_id", "refund_id"};

static const char *
condition_of(const char *sqlstate)
{
	for (int i = 0; i < n_conditions; i++)
	{
		if (strcmp(conditions[i][0], sqlstate) == 0)
			return conditions[i][1];
	}
	return sqlstate;
}

static void
add_column(Buffer *json, const PGresult *result, int row, int column)
{
	const char *value = PQgetvalue(result, row, column);

	if (PQgetisnull(result, row, column))
		buffer_add(json, "null");
	else if (PQftype(result, column) == 16)
		buffer_add(json, *value == 't' ? "true" : "false");
	else if (PQftype(result, column) == 20 || PQftype(result, column) == 23 || PQftype(result, column) == 3802)
		buffer_add(json, "%s", value);
	else
		buffer_add_json(json, value);
}

/* The first row as JSON: `replayed` first, for the rest is the same every time. */
static char *
row_json(const PGresult *result)
{
	Buffer json = {0};
	int replayed = PQfnumber(result, "replayed");

	buffer_add(&json, "{");
	if (replayed >= 0)
		buffer_add(&json, "\"replayed\": %s", *PQgetvalue(result, 0, replayed) == 't' ? "true" : "false");
	for (int i = 0; i < PQnfields(result); i++)
	{
		if (i == replayed)
			continue;
		buffer_add(&json, "%s\"%s\": ", json.length > 1 ? ", " : "", PQfname(result, i));
		add_column(&json, result, 0, i);
	}
	buffer_add(&json, "}");
	return json.data;
}

static void
take_fields(Call *call, const PGresult *result)
{
	int column;

	for (int i = 0; i < N_FIELDS; i++)
	{
		column = PQfnumber(result, field_names[i]);
		call->has[i] = column >= 0 && !PQgetisnull(result, 0, column);
		call->field[i] = call->has[i] ? strtoll(PQgetvalue(result, 0, column), NULL, 10) : 0;
	}
	column = PQfnumber(result, "replayed");
	call->replayed = column >= 0 && *PQgetvalue(result, 0, column) == 't';
	column = PQfnumber(result, "status");
	snprintf(call->status, sizeof(call->status), "%s", PQgetvalue(result, 0, column >= 0 ? column : 0));
}

/* The twins that return their refusals have an outcome of their own. */
static void
take_answer(Call *call, const PGresult *result)
{
	int outcome = PQfnumber(result, "outcome");

	free(call->answer);
	free(call->detail);
	call->answer = call->detail = NULL;
	call->n_rows = PQntuples(result);
	snprintf(call->outcome, sizeof(call->outcome), "%s",
		outcome >= 0 && call->n_rows > 0 ? PQgetvalue(result, 0, outcome) : "ok");
	memset(call->has, 0, sizeof(call->has));
	if (call->n_rows == 0)
		return;
	take_fields(call, result);
	if (!call->verb->is_read)
		call->answer = row_json(result);
}

static void
take_refusal(Call *call, const PGresult *result)
{
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);

	free(call->answer);
	free(call->detail);
	call->answer = NULL;
	call->n_rows = 0;
	call->detail = strdup(detail ? detail : PQresultErrorMessage(result));
	snprintf(call->outcome, sizeof(call->outcome), "%s", condition_of(PQresultErrorField(result, PG_DIAG_SQLSTATE)));
}

/*
 * The end of a work
 */

static void
check_repeated(const Call *call)
{
	const char *first = call->repeated;
	const char *now = call->answer;

	if (first == NULL || now == NULL)
		return;
	if (call->has[FIELD_ORDER_ID] && !call->replayed)
		violation(call, "a key has a second effect");
	if (strncmp(first, "{\"replayed\"", 11) == 0)
	{
		first = strchr(first, ',');
		now = strchr(now, ',');
	}
	if (strcmp(first, now) != 0)
		violation(call, "was answered before: %s", call->repeated);
}

static bool
is_committed(const Work *work, int i)
{
	return !work->rolls_back && i != work->undone && strcmp(work->call[i].outcome, "ok") == 0;
}

static void
settle_call(Session *session, int i)
{
	Work *work = &session->work;
	Call *call = &work->call[i];
	bool ok = strcmp(call->outcome, "ok") == 0;

	counts.verified++;
	if (call->verb->is_read)
		model_read(work, call);
	else if (ok && !is_committed(work, i))
		history_call(session->caller.number, session->isolation, call, "rolled back");
	else
	{
		history_call(session->caller.number, session->isolation, call, call->outcome);
		check_repeated(call);
		if (ok)
			model_apply(work, call);
		else
			model_refused(work, call);
	}
	if (ok && is_committed(work, i) && !call->repeated && argument_of(call, "idempotency_key"))
		caller_remember(&session->caller, call);
}

static void
finish_work(Session *session)
{
	Work *work = &session->work;

	for (int i = 0; i < work->n_calls; i++)
	{
		if (work->call[i].outcome[0])
			settle_call(session, i);
	}
	model_end(work);
	work_free(work);
	session->has_work = false;
}

/* Nothing of it has happened, or a key will tell. */
static void
begin_again(Session *session)
{
	Work *work = &session->work;

	work->at = 0;
	work->committing = false;
	if (!work->unknown)
	{
		for (int i = 0; i < work->n_calls; i++)
			work->call[i].outcome[0] = '\0';
	}
}

/* The connection is gone, or of no use any more. */
static void
lose_connection(Session *session)
{
	Work *work = &session->work;

	if (session->has_work && session->state != READY)
	{
		Call *call = work->step[work->at].call;

		counts.lost++;
		if (call && work->n_steps == 1 && session->state == RUNNING)
		{
			call->lost = true;
			history_call(session->caller.number, session->isolation, call, "no answer");
		}
		if (work->committing)
			work->unknown = work->call[0].lost = true;
		begin_again(session);
	}
	disconnect(session);
}

/*
 * Steps
 */

/* Text for all arguments: the functions are never overloaded. */
static char *
statement_of(const Verb *verb)
{
	static Buffer statement;
	char names[256];
	int n = 0;

	snprintf(names, sizeof(names), "%s", verb->arguments);
	statement.length = 0;
	buffer_add(&statement, "SELECT r.* FROM shop.%s(", verb->name);
	for (char *name = strtok(names, " "); name; name = strtok(NULL, " "))
		buffer_add(&statement, "%s\"%s\" => $%d", n > 0 ? ", " : "", name, n + 1), n++;
	buffer_add(&statement, ") r");
	return statement.data;
}

static int
count_arguments(const Verb *verb)
{
	int n = *verb->arguments != '\0';

	for (const char *at = verb->arguments; *at; at++)
		n += *at == ' ';
	return n;
}

static bool
send_call(Session *session, Call *call)
{
	int verb = verb_index(call->verb);

	if (!session->prepared[verb])
	{
		become(session, PREPARING);
		return PQsendPrepare(session->conn, call->verb->name, statement_of(call->verb), 0, NULL);
	}
	become(session, RUNNING);
	return PQsendQueryPrepared(
		session->conn, call->verb->name, count_arguments(call->verb), (const char *const *) call->value, NULL, NULL, 0);
}

static void
send_step(Session *session)
{
	Work *work = &session->work;
	const Step *step = &work->step[work->at];
	bool sent;

	if (step->call)
	{
		if (work->pays && step->call == &work->call[work->n_calls - 1])
			work_pay(work);
		sent = send_call(session, step->call);
	}
	else
	{
		become(session, RUNNING);
		work->committing = strcmp(step->statement, "COMMIT") == 0;
		sent = PQsendQuery(session->conn, step->statement);
	}
	if (!sent)
		lose_connection(session);
}

/* A ready session goes on with its work, or takes a new one. */
static void
next_step(Session *session)
{
	if (!session->has_work)
	{
		if (ending)
		{
			disconnect(session);
			become(session, FINISHED);
			return;
		}
		work_new(&session->caller, &session->work);
		model_begin(&session->work);
		session->has_work = true;
	}
	send_step(session);
}

/* The rest of a transaction that cannot or must not go on. */
static void
roll_back(Session *session)
{
	Work *work = &session->work;

	work->at = work->n_steps - 1;
	work->step[work->at].statement = "ROLLBACK";
	become(session, RUNNING);
	if (!PQsendQuery(session->conn, "ROLLBACK"))
		lose_connection(session);
}

static bool
in_transaction(const Session *session)
{
	return PQtransactionStatus(session->conn) != PQTRANS_IDLE;
}

/* A serialization failure or a deadlock: nothing has happened. */
static void
try_again(Session *session)
{
	PGresult *result;

	if (in_transaction(session))
	{
		/* Short, so it may be waited for. */
		result = PQexec(session->conn, "ROLLBACK");
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			session->state = RUNNING;
		PQclear(result);
	}
	begin_again(session);
	if (PQstatus(session->conn) == CONNECTION_OK)
		become(session, READY);
	else
		disconnect(session);
	if (++session->work.attempts >= MAX_ATTEMPTS && !session->work.unknown && !session->work.call[0].lost)
		finish_work(session);
}

static void
refused(Session *session, Call *call)
{
	Work *work = &session->work;
	bool single = work->n_steps == 1;
	const Step *next = &work->step[work->at + 1];

	if (single)
	{
		become(session, READY);
		finish_work(session);
	}
	else if (call == &work->call[work->undone < 0 ? MAX_CALLS - 1 : work->undone] && next->statement)
	{
		work->at++;
		become(session, READY);
	}
	else
	{
		work->rolls_back = true;
		roll_back(session);
	}
}

static void
failed(Session *session)
{
	Work *work = &session->work;
	Call *call = work->step[work->at].call;
	const char *sqlstate = PQresultErrorField(session->result, PG_DIAG_SQLSTATE);

	if (sqlstate == NULL || PQstatus(session->conn) == CONNECTION_BAD || strncmp(sqlstate, "57P", 3) == 0 ||
		strncmp(sqlstate, "08", 2) == 0)
	{
		lose_connection(session);
		return;
	}
	if (strcmp(sqlstate, "40001") == 0 || strcmp(sqlstate, "40P01") == 0)
	{
		bool deadlock = sqlstate[2] == 'P';

		counts.serialization += !deadlock;
		counts.deadlocks += deadlock;
		if (!deadlock && strcmp(session->isolation, "committed") == 0 && call)
			violation(call, "a serialization failure at READ COMMITTED: %s", PQresultErrorMessage(session->result));
		try_again(session);
		return;
	}
	if (call == NULL)
		quit("%s: %s", work->step[work->at].statement, PQresultErrorMessage(session->result));
	take_refusal(call, session->result);
	if (strlen(call->outcome) == 5 && !(work->unknown && call == work->call))
		violation(call, "an error that is no refusal: %s", PQresultErrorMessage(session->result));
	refused(session, call);
}

static void
answered(Session *session, Call *call)
{
	Work *work = &session->work;

	/* The repeated first call of a transaction whose COMMIT got no answer. */
	if (work->unknown && call == work->call)
	{
		bool replayed = *PQgetvalue(session->result, 0, PQfnumber(session->result, "replayed")) == 't';

		if (replayed)
		{
			roll_back(session);
			return;
		}
		if (strcmp(work->step[work->n_steps - 1].statement, "COMMIT") != 0)
			violation(call, "was committed, and is gone");
		work->unknown = false;
		work->call[0].lost = false;
		for (int i = 0; i < work->n_calls; i++)
			work->call[i].outcome[0] = '\0';
	}
	take_answer(call, session->result);
	work->at++;
	become(session, READY);
	if (work->at == work->n_steps)
		finish_work(session);
}

/* The server is ready for the next step. */
static void
finish_step(Session *session)
{
	Work *work = &session->work;
	const Step *step = &work->step[work->at];
	ExecStatusType status = PQresultStatus(session->result);
	State state = session->state;

	if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
		failed(session);
	else if (state == PREPARING)
	{
		session->prepared[verb_index(step->call->verb)] = true;
		become(session, READY);
	}
	else if (step->call)
		answered(session, step->call);
	else
	{
		work->at++;
		become(session, READY);
		if (work->at == work->n_steps)
			finish_work(session);
	}
	PQclear(session->result);
	session->result = NULL;
}

/* An error that follows a result is what became of it. */
static void
read_results(Session *session)
{
	if (!PQconsumeInput(session->conn))
	{
		lose_connection(session);
		return;
	}
	while (!PQisBusy(session->conn))
	{
		PGresult *result = PQgetResult(session->conn);

		if (result == NULL)
		{
			if (session->result == NULL)
				lose_connection(session);
			else
				finish_step(session);
			return;
		}
		if (session->result && PQresultStatus(session->result) == PGRES_FATAL_ERROR)
			PQclear(result);
		else
		{
			PQclear(session->result);
			session->result = result;
		}
	}
}

/*
 * The loop
 */

static void
check_time(Session *session)
{
	int64_t elapsed = now_ms() - session->since;

	if (session->state == DISCONNECTED && elapsed >= PAUSE_MS)
		connect_session(session);
	else if (session->state == CONNECTING && elapsed > CONNECT_MS)
		disconnect(session);
	else if ((session->state == RUNNING || session->state == PREPARING) && elapsed > HANG_MS)
	{
		Call *call = session->work.step[session->work.at].call;

		violation(call ? call : session->work.call, "no answer within %d s", HANG_MS / 1000);
		lose_connection(session);
	}
}

static short
wanted_events(const Session *session)
{
	if (session->state == CONNECTING)
		return session->waits_for == PGRES_POLLING_READING ? POLLIN : POLLOUT;
	return session->state == RUNNING || session->state == PREPARING ? POLLIN : 0;
}

static void
wait_for_sockets(void)
{
	struct pollfd polls[MAX_SESSIONS];

	for (int i = 0; i < n_sessions; i++)
	{
		polls[i].events = wanted_events(&sessions[i]);
		polls[i].fd = polls[i].events ? PQsocket(sessions[i].conn) : -1;
		polls[i].revents = 0;
	}
	if (poll(polls, n_sessions, 20) < 0 && errno != EINTR)
		quit("poll: %s", strerror(errno));
	for (int i = 0; i < n_sessions; i++)
	{
		if (!polls[i].revents)
			continue;
		if (sessions[i].state == CONNECTING)
			go_on_connecting(&sessions[i]);
		else
			read_results(&sessions[i]);
	}
}

static void
write_rates(FILE *rates)
{
	static time_t last;
	time_t now = time(NULL);

	if (now == last)
		return;
	last = now;
	fprintf(rates, "%lld %lld %lld %lld %lld\n", (long long) now, (long long) counts.verified, (long long) counts.lost,
		(long long) counts.serialization, (long long) counts.deadlocks);
	fflush(rates);
	total.verified += counts.verified;
	total.lost += counts.lost;
	total.serialization += counts.serialization;
	total.deadlocks += counts.deadlocks;
	memset(&counts, 0, sizeof(counts));
}

static bool
all_finished(void)
{
	for (int i = 0; i < n_sessions; i++)
	{
		if (sessions[i].state != FINISHED)
			return false;
	}
	return true;
}

static void
run(FILE *rates)
{
	while (!all_finished())
	{
		for (int i = 0; i < n_sessions; i++)
		{
			check_time(&sessions[i]);
			while (sessions[i].state == READY)
				next_step(&sessions[i]);
		}
		wait_for_sockets();
		write_rates(rates);
	}
}

static void
end_storm(int signal)
{
	(void) signal;
	ending = 1;
}

/* Three of four sessions are at READ COMMITTED, as those at the other levels mostly fail where many meet. */
static void
open_sessions(uint64_t seed)
{
	static const char *const isolations[] = {
		"committed", "committed", "repeatable", "committed", "committed", "committed", "serializable", "committed"};

	for (int i = 0; i < n_sessions; i++)
	{
		sessions[i].isolation = isolations[i % 8];
		sessions[i].caller.number = i;
		sessions[i].caller.random.state = seed * 1000003 + i;
	}
}

static void
open_model(void)
{
	PGconn *conn = PQconnectdb(conninfo);
	PGresult *result = PQexec(conn, "SELECT sqlstate, condition FROM shop.error_codes() WHERE sqlstate LIKE 'SH%'");

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		quit("%s", PQerrorMessage(conn));
	n_conditions = PQntuples(result);
	conditions = calloc(n_conditions, sizeof(*conditions));
	for (int i = 0; i < n_conditions; i++)
	{
		for (int j = 0; j < 2; j++)
			snprintf(conditions[i][j], sizeof(conditions[i][j]), "%s", PQgetvalue(result, i, j));
	}
	PQclear(result);
	model_open(conn);
	PQfinish(conn);
}

int
main(int argc, char **argv)
{
	FILE *rates;
	FILE *totals;

	if (argc != 5)
		quit("DIRECTORY SESSIONS SEED CONNINFO");
	n_sessions = atoi(argv[2]);
	if (n_sessions < 1 || n_sessions > MAX_SESSIONS)
		quit("1 to %d sessions", MAX_SESSIONS);
	conninfo = argv[4];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGTERM, end_storm);
	signal(SIGPIPE, SIG_IGN);
	history_open(argv[1]);
	rates = open_file(argv[1], "rates");
	totals = open_file(argv[1], "totals");
	open_model();
	open_sessions(strtoull(argv[3], NULL, 10));
	run(rates);
	history_close();
	sleep(1);
	write_rates(rates);
	fprintf(totals, "%lld %lld %lld %lld %lld\n", (long long) total.verified, (long long) total.lost,
		(long long) total.serialization, (long long) total.deadlocks, (long long) n_violations);
	fclose(totals);
	return n_violations > 0;
}
