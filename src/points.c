/*
 * points.c
 *		Accounts and their append-only ledger.
 *
 * The row lock on the account is what makes the calls of one user run one
 * after the other: every write verb for a user takes it first.  Where there
 * is no account yet, an advisory lock on the user stands in for it.
 *
 * Locks: the account row, FOR NO KEY UPDATE, or SHOP_LOCK_USER; nothing is
 * locked before it.
 *
 * Invariants: balance = sum of the ledger's amounts = balance of the last
 * entry; balance >= 0.  A charge does not take it above shop.max_balance; what
 * comes back from an order may.
 */
#include "points.h"

#include "access/xact.h"
#include "append.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "error.h"
#include "idempotency.h"
#include "json.h"
#include "outbox/outbox.h"
#include "query.h"
#include "subtransaction.h"
#include "update.h"

static ShopQuery lock_account = SHOP_QUERY(
	"SELECT balance FROM shop.account WHERE user_id = $1 FOR NO KEY UPDATE", INT8OID);

static ShopQuery open_account = SHOP_QUERY(
	"INSERT INTO shop.account (user_id, balance) VALUES ($1, 0) ON CONFLICT DO NOTHING", INT8OID);

static ShopQuery add_to_balance = SHOP_QUERY("UPDATE shop.account SET balance = balance + $2"
											 " WHERE user_id = $1 AND balance + $2 >= 0 RETURNING balance",
	INT8OID, INT8OID);

static ShopTable account_table = {.name = "account", .columns = {"balance"}, .keys = {"user_id"}};
enum
{
	BALANCE
};

static ShopTable point_entry = {.name = "point_entry",
	.columns = {
		"entry_id", "user_id", "amount", "balance", "kind", "reason", "order_id", "idempotency_key", "created_at"}};

static ShopQuery find_entry = SHOP_QUERY("SELECT entry_id, amount, balance, reason FROM shop.point_entry"
										 " WHERE user_id = $1 AND kind = $2 AND idempotency_key = $3",
	INT8OID, TEXTOID, TEXTOID);

static ShopQuery read_balance = SHOP_QUERY("SELECT balance FROM shop.account WHERE user_id = $1", INT8OID);

static ShopQuery read_history = SHOP_QUERY(
	"SELECT entry_id, amount, balance, kind, reason, order_id, created_at FROM shop.point_entry"
	" WHERE user_id = $1 AND entry_id < $2 ORDER BY entry_id DESC LIMIT $3",
	INT8OID, INT8OID, INT4OID);

SHOP_FUNCTION(shop_charge_points);
SHOP_FUNCTION(shop_use_points);
SHOP_FUNCTION(shop_point_balance);
SHOP_FUNCTION(shop_point_history);

/* A call of charge_points or use_points, and its answer. */
typedef struct PointCall
{
	const char *kind;
	const char *event_type;
	int64 user_id;
	int64 asked;  /* the amount as the caller gave it */
	int64 amount; /* the same, negative where points are used */
	const char *reason;
	const char *key;
	int64 entry_id;
	int64 balance;
	bool replayed;
} PointCall;

static bool
open_account_within(void *arg)
{
	shop_query(&open_account, arg);
	return false;
}

/*
 * A REPEATABLE READ caller does not see an account opened since his snapshot;
 * he would go on under the advisory lock beside others who lock the row.
 * Trying to open it tells: PostgreSQL raises 40001 for a row he cannot see.
 */
static void
check_no_account(ShopValue *user)
{
	ErrorData *error = shop_subtransaction(open_account_within, user);

	if (error)
		ReThrowError(error);
}

/* Locks the account if it is there and nobody is at it. */
static bool
lock_free(ShopAccount *account)
{
	ShopUpdate update;
	bool locked;

	shop_update_open(&update, &account_table, 1);
	shop_lookup_start(&update.lookup, SHOP_KEYS(SHOP_KEY_INT8(account->user_id)), 1);
	locked = shop_lookup_next(&update.lookup) && shop_update_lock(&update);
	if (locked)
	{
		account->balance = shop_lookup_int8(&update.lookup, BALANCE);
		account->place = update.lookup.row->tts_tid;
	}
	shop_update_close(&update);
	return locked;
}

static bool
lock_waiting(ShopAccount *account)
{
	if (shop_query(&lock_account, SHOP_VALUES(shop_int8(account->user_id))) == 0)
		return false;
	account->balance = shop_fetch_int8(0, 1);
	return true;
}

/*
 * Locks the account of a user, or the user where there is none, and waits if
 * another call of the user is running.
 */
ShopAccount
shop_account_lock(int64 user_id)
{
	ShopAccount account = {.user_id = user_id};

	account.exists = lock_free(&account);
	if (account.exists)
		return account;
	/* Locked by another call, or not there. */
	account.waited = true;
	account.exists = lock_waiting(&account);
	if (!account.exists)
	{
		/* The account may have been opened by the one we wait for here. */
		shop_lock_xact(SHOP_LOCK_USER, shop_lock_key(user_id));
		account.exists = lock_waiting(&account);
		if (!account.exists && IsolationUsesXactSnapshot())
			check_no_account(SHOP_VALUES(shop_int8(user_id)));
	}
	return account;
}

/* The same as add_to_balance, where that needs no statement. */
static bool
try_add(const ShopAccount *account, int64 amount, int64 *balance)
{
	ShopUpdate update;
	bool added = false;

	shop_update_open(&update, &account_table, 1);
	if (shop_lookup_at(&update.lookup, &account->place) &&
		!pg_add_s64_overflow(shop_lookup_int8(&update.lookup, BALANCE), amount, balance) && *balance >= 0)
		added = shop_update_locked(&update, BALANCE, Int64GetDatum(*balance));
	shop_update_close(&update);
	return added;
}

static void
add(ShopAccount *account, int64 amount)
{
	if (try_add(account, amount, &account->balance))
		return;
	if (shop_query(&add_to_balance, SHOP_VALUES(shop_int8(account->user_id), shop_int8(amount))) != 1)
		elog(ERROR, "balance of a locked account does not cover its debit");
	account->balance = shop_fetch_int8(0, 1);
}

/*
 * Books an amount, which the balance must cover, with its ledger entry;
 * returns entry_id.  The account is locked; it is opened if need be.
 */
int64
shop_account_post(ShopAccount *account, int64 amount, const char *kind, const char *reason, const int64 *order_id,
	const char *key, TimestampTz now)
{
	int64 entry_id;

	if (!account->exists)
	{
		/* Opened since the snapshot of a REPEATABLE READ caller: PostgreSQL raises 40001. */
		if (shop_query(&open_account, SHOP_VALUES(shop_int8(account->user_id))) == 0)
			elog(ERROR, "account of a locked user is there already");
		account->exists = true;
	}
	add(account, amount);
	entry_id = shop_append_number("point_entry_entry_id_seq");
	shop_append(&point_entry, SHOP_VALUES(shop_int8(entry_id), shop_int8(account->user_id), shop_int8(amount),
								  shop_int8(account->balance), shop_text(kind), shop_text(reason),
								  order_id ? shop_int8(*order_id) : shop_null(), shop_text(key), shop_time(now)));
	return entry_id;
}

/* Has this key been used?  With the same arguments, then, or it is refused. */
static bool
find_replay(PointCall *call)
{
	if (call->key == NULL || shop_query(&find_entry, SHOP_VALUES(shop_int8(call->user_id), shop_text(call->kind),
														 shop_text(call->key))) == 0)
		return false;
	shop_same_int64(call->key, "amount", shop_fetch_int8(0, 2), call->amount);
	shop_same_text(call->key, "reason", shop_fetch_text(0, 4), call->reason);
	call->entry_id = shop_fetch_int8(0, 1);
	call->balance = shop_fetch_int8(0, 3);
	call->replayed = true;
	shop_await_standbys();
	return true;
}

static void
check_charge(const PointCall *call, const ShopAccount *account)
{
	int64 limit = (int64) shop_max_balance;
	int64 balance;

	if (call->amount < shop_min_charge)
		shop_refuse(SHOP_CHARGE_BELOW_MINIMUM, "{\"amount\": " INT64_FORMAT ", \"minimum\": %d}", call->amount,
			shop_min_charge);
	if (pg_add_s64_overflow(account->balance, call->amount, &balance) || balance > limit)
		shop_refuse(SHOP_BALANCE_LIMIT_EXCEEDED,
			"{\"user_id\": " INT64_FORMAT ", \"balance\": " INT64_FORMAT ", \"amount\": " INT64_FORMAT
			", \"limit\": " INT64_FORMAT "}",
			call->user_id, account->balance, call->amount, limit);
}

static void
check_use(const PointCall *call, const ShopAccount *account)
{
	if (account->balance < call->asked)
		shop_refuse(SHOP_INSUFFICIENT_POINTS,
			"{\"user_id\": " INT64_FORMAT ", \"required\": " INT64_FORMAT ", \"balance\": " INT64_FORMAT "}",
			call->user_id, call->asked, account->balance);
}

static void
emit_points(const PointCall *call, TimestampTz now)
{
	ShopJson json = {0};
	char user[32];

	shop_json_begin(&json);
	shop_json_int8(&json, "entry_id", call->entry_id);
	shop_json_int8(&json, "user_id", call->user_id);
	shop_json_int8(&json, "amount", call->amount);
	shop_json_int8(&json, "balance", call->balance);
	shop_json_text(&json, "reason", call->reason);
	shop_json_text(&json, "currency", shop_currency);
	shop_json_moment(&json, "created_at", now);
	snprintf(user, sizeof(user), INT64_FORMAT, call->user_id);
	shop_emit(call->event_type, "account", user, shop_json_end(&json), now);
}

static void
book(PointCall *call)
{
	ShopAccount account;
	TimestampTz now;

	if (find_replay(call))
		return;
	account = shop_account_lock(call->user_id);
	if (find_replay(call))
		return;
	if (call->amount > 0)
		check_charge(call, &account);
	else
		check_use(call, &account);

	now = shop_now();
	call->entry_id = shop_account_post(&account, call->amount, call->kind, call->reason, NULL, call->key, now);
	call->balance = account.balance;
	emit_points(call, now);
}

static void
check_amount(int64 amount)
{
	if (amount <= 0)
		shop_reject("amount", "must be greater than 0");
}

static Datum
run_call(FunctionCallInfo fcinfo, PointCall *call)
{
	SPI_connect();
	book(call);
	SPI_finish();
	return shop_form_row(fcinfo, SHOP_VALUES(shop_int8(call->entry_id), shop_int8(call->user_id),
									 shop_int8(call->amount), shop_int8(call->balance), shop_bool(call->replayed)));
}

Datum
shop_charge_points(PG_FUNCTION_ARGS)
{
	PointCall call = {.kind = "charge", .event_type = "points.charged"};

	call.user_id = shop_arg_int64(fcinfo, 0, "user_id");
	call.asked = shop_arg_int64(fcinfo, 1, "amount");
	call.amount = call.asked;
	call.key = shop_arg_key(fcinfo, 2);
	check_amount(call.asked);
	shop_write_verb("charge_points()");
	return run_call(fcinfo, &call);
}

Datum
shop_use_points(PG_FUNCTION_ARGS)
{
	PointCall call = {.kind = "use", .event_type = "points.used"};

	call.user_id = shop_arg_int64(fcinfo, 0, "user_id");
	call.asked = shop_arg_int64(fcinfo, 1, "amount");
	call.reason = shop_arg_reason(fcinfo, 2);
	call.key = shop_arg_key(fcinfo, 3);
	check_amount(call.asked);
	call.amount = -call.asked;
	shop_write_verb("use_points()");
	return run_call(fcinfo, &call);
}

Datum
shop_point_balance(PG_FUNCTION_ARGS)
{
	int64 user_id = shop_arg_int64(fcinfo, 0, "user_id");
	int64 balance;

	SPI_connect();
	balance = shop_query_read(&read_balance, SHOP_VALUES(shop_int8(user_id))) > 0 ? shop_fetch_int8(0, 1) : 0;
	SPI_finish();
	PG_RETURN_INT64(balance);
}

Datum
shop_point_history(PG_FUNCTION_ARGS)
{
	int64 user_id = shop_arg_int64(fcinfo, 0, "user_id");
	int64 before = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	int32 limit = shop_arg_limit(fcinfo, 2);

	(void) shop_return_set(fcinfo, &read_history, SHOP_VALUES(shop_int8(user_id), shop_int8(before), shop_int4(limit)));
	return (Datum) 0;
}
