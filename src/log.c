/*
 * log.c
 *		What of the shop goes to the server's log.
 *
 * Refusals do not, for in a sale they are most of the answers.  Neither do the
 * secrets of an endpoint and the headers it is sent.  PostgreSQL writes them
 * in three places: the statement that failed, the context of an error (the
 * statements of a function, a line of JSON), and, if log_statement or
 * log_min_duration_statement wants it so, statements that did not fail.  A
 * statement is known by the name of the function it calls, by a secret's
 * prefix, or by its having come to keep_statement(), whatever its text says.
 *
 * What remains: EXECUTE of a prepared statement with JSON that is malformed,
 * which fails before any function of ours is called.
 *
 * Takes no locks.
 */
#include "log.h"

#include "access/xact.h"
#include "error.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"

static emit_log_hook_type previous_emit_log_hook;

/* When the last statement that had a secret for an argument began. */
static TimestampTz secret_statement = DT_NOBEGIN;

/* After these, a statement has its secrets. */
static const char *const markers[] = {"create_endpoint", "set_endpoint_secret", "whsec_"};

/* Where the text goes on with what may be secret; NULL: nowhere.  SQL folds names to lower case. */
static char *
find_secret(char *text)
{
	for (char *at = text; at && *at; at++)
		for (size_t i = 0; i < lengthof(markers); i++)
			if ((*at | 0x20) == *markers[i] && pg_strncasecmp(at, markers[i], strlen(markers[i])) == 0)
				return at + strlen(markers[i]);
	return NULL;
}

static void
cut(char *text)
{
	char *secret = find_secret(text);

	if (secret)
		*secret = '\0';
}

/* A statement that is known to have secrets, and whose text does not say where. */
static void
cut_arguments(char *text)
{
	if (text)
		text[strcspn(text, "('$")] = '\0';
}

/* The statement that runs has secrets for arguments. */
void
shop_log_hide_statement(void)
{
	secret_statement = GetCurrentStatementStartTimestamp();
	/* pg_stat_activity would go on showing it until the next one. */
	pgstat_report_activity(STATE_RUNNING, "a statement with the secrets of an endpoint");
}

static bool
is_secret_statement(void)
{
	return find_secret(unconstify(char *, debug_query_string)) ||
		   secret_statement == GetCurrentStatementStartTimestamp();
}

/* A statement that is logged for its own sake; of one that was prepared, the detail has the text. */
static void
hide_in_statement(ErrorData *edata)
{
	if (find_secret(edata->message))
		cut(edata->message);
	else if (is_secret_statement() || find_secret(edata->detail))
		cut_arguments(edata->message);
	cut(edata->detail);
}

static void
hide_secrets(ErrorData *edata)
{
	if (edata->elevel == LOG)
		hide_in_statement(edata);
	if (is_secret_statement())
	{
		edata->hide_stmt = true;
		edata->hide_ctx = true;
		/* Whoever has sent the statement is told; this replaces the detail in the log only. */
		if (edata->detail && edata->detail_log == NULL && !SHOP_IS_REFUSAL(edata->sqlerrcode))
			edata->detail_log = pstrdup("Not shown, because the statement has secrets in it.");
	}
	cut(edata->context);
	cut(edata->internalquery);
}

static void
filter_log(ErrorData *edata)
{
	if (edata->elevel == ERROR && SHOP_IS_REFUSAL(edata->sqlerrcode) && !shop_log_refusals)
		edata->output_to_server = false;
	hide_secrets(edata);
	if (previous_emit_log_hook)
		previous_emit_log_hook(edata);
}

void
shop_log_init(void)
{
	previous_emit_log_hook = emit_log_hook;
	emit_log_hook = filter_log;
}
