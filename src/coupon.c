/*
 * coupon.c
 *		Coupon campaigns: first come, first served, one a user; and what a
 *		coupon takes off an order.
 *
 * What is left of a campaign is kept in slots, as stock is.  Nothing is ever
 * put back, so a look without a lock that finds nothing left, or a coupon that
 * the user has, is right for good: such a call writes nothing and locks
 * nothing.
 *
 * Refusals, in their declared order: idempotency_key_reused,
 * campaign_not_found, campaign_not_started, campaign_ended,
 * coupon_already_issued, coupon_sold_out.  Of an order's coupon:
 * coupon_not_found, coupon_already_used, coupon_expired,
 * coupon_not_applicable.
 *
 * Locks: issuing, SHOP_LOCK_COUPON of the user, where a second call of his
 * waits, then the campaign's slots.  Using a coupon and giving it back need the
 * lock of its user.
 *
 * Invariants: coupons issued + remaining = usage_limit; a coupon that is used
 * names its order, and the order names it (verify()).
 */
#include "coupon.h"

#include "access/xact.h"
#include "append.h"
#include "idempotency.h"
#include "json.h"
#include "lookup.h"
#include "outbox/outbox.h"
#include "query.h"
#include "stock/slots.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

static ShopSlots slots = SHOP_SLOTS(
	"coupon_stock", "campaign_id", "campaign_id = $1", "remaining", 0, "campaign_id", "slot");

static ShopQuery insert_campaign = SHOP_QUERY(
	"INSERT INTO shop.coupon_campaign (name, discount_type, discount_value, usage_limit, starts_at, ends_at,"
	"                                  valid_for, min_subtotal, max_discount, created_at, idempotency_key)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
	" ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING campaign_id",
	TEXTOID, TEXTOID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INTERVALOID, INT8OID, INT8OID, TIMESTAMPTZOID,
	TEXTOID);

/* The campaign of a key, and the first of the arguments that is not the same. */
static ShopQuery find_campaign = SHOP_QUERY(
	"SELECT campaign_id,"
	"       CASE WHEN name <> $2 THEN 'name'"
	"            WHEN discount_type <> $3 THEN 'discount_type'"
	"            WHEN discount_value <> $4 THEN 'discount_value'"
	"            WHEN usage_limit <> $5 THEN 'usage_limit'"
	"            WHEN starts_at <> $6 THEN 'starts_at'"
	"            WHEN ends_at <> $7 THEN 'ends_at'"
	"            WHEN valid_for::text IS DISTINCT FROM $8::text THEN 'valid_for'"
	"            WHEN min_subtotal <> $9 THEN 'min_subtotal'"
	"            WHEN max_discount IS DISTINCT FROM $10 THEN 'max_discount' END"
	"  FROM shop.coupon_campaign WHERE idempotency_key = $1",
	TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INTERVALOID, INT8OID, INT8OID);

static ShopTable campaign_table = {.name = "coupon_campaign",
	.columns = {"starts_at", "ends_at", "usage_limit", "valid_for"},
	.keys = {"campaign_id"}};
enum
{
	STARTS_AT,
	ENDS_AT,
	USAGE_LIMIT,
	VALID_FOR
};

static ShopTable coupon_of_user = {
	.name = "coupon", .columns = {"coupon_id"}, .keys = {"user_id", "campaign_id"}, .index = "coupon_user"};
static ShopTable coupon_of_key = {.name = "coupon",
	.columns = {"coupon_id", "campaign_id", "expires_at"},
	.keys = {"user_id", "idempotency_key"},
	.index = "coupon_idempotency_key"};
enum
{
	COUPON_ID,
	CAMPAIGN_ID,
	EXPIRES_AT
};

static ShopTable new_coupon = {
	.name = "coupon", .columns = {"coupon_id", "campaign_id", "user_id", "issued_at", "expires_at", "idempotency_key"}};

static ShopQuery read_coupon = SHOP_QUERY(
	"SELECT c.order_id, c.expires_at, k.discount_type = 'percent', k.discount_value, k.min_subtotal, k.max_discount"
	"  FROM shop.coupon c JOIN shop.coupon_campaign k USING (campaign_id)"
	" WHERE c.coupon_id = $1 AND c.user_id = $2",
	INT8OID, INT8OID);

static ShopQuery use_coupon = SHOP_QUERY(
	"UPDATE shop.coupon SET order_id = $2 WHERE coupon_id = $1 AND order_id IS NULL", INT8OID, INT8OID);

static ShopQuery give_back_coupon = SHOP_QUERY(
	"UPDATE shop.coupon SET order_id = NULL WHERE coupon_id = $1 AND order_id = $2 AND expires_at > $3", INT8OID,
	INT8OID, TIMESTAMPTZOID);

static ShopQuery read_user_coupons = SHOP_QUERY(
	"SELECT c.coupon_id, c.campaign_id, k.name,"
	"       CASE WHEN c.order_id IS NOT NULL THEN 'used' WHEN c.expires_at <= $2 THEN 'expired' ELSE 'usable' END,"
	"       k.discount_type, k.discount_value, k.min_subtotal, k.max_discount, c.issued_at, c.expires_at, c.order_id"
	"  FROM shop.coupon c JOIN shop.coupon_campaign k USING (campaign_id)"
	" WHERE c.user_id = $1 ORDER BY c.coupon_id DESC",
	INT8OID, TIMESTAMPTZOID);

/* A call of issue_coupon and its answer. */
typedef struct IssueCall
{
	int64 campaign_id;
	int64 user_id;
	char *key;
	int64 coupon_id;
	int64 usage_limit;	  /* of the campaign */
	ItemPointerData seen; /* a slot with something left */
	TimestampTz issued_at;
	TimestampTz expires_at;
	bool replayed;
} IssueCall;

SHOP_FUNCTION(shop_create_coupon_campaign);
SHOP_FUNCTION(shop_issue_coupon);
SHOP_FUNCTION(shop_try_issue_coupon);
SHOP_FUNCTION(shop_user_coupons);

/*
 * Campaigns
 */

static int64
arg_int64_between(FunctionCallInfo fcinfo, int n, const char *name, int64 least, int64 most)
{
	int64 value = shop_arg_int64(fcinfo, n, name);

	if (value < least || value > most)
		shop_reject(name, "must be between " INT64_FORMAT " and " INT64_FORMAT, least, most);
	return value;
}

/* Checks all arguments; they are bound to the statements as they are. */
static void
check_campaign(FunctionCallInfo fcinfo)
{
	char *name = shop_arg_text(fcinfo, 0, "name");
	char *type = shop_arg_text(fcinfo, 1, "discount_type");
	bool percent = strcmp(type, "percent") == 0;
	TimestampTz starts_at;
	TimestampTz ends_at;

	if (*name == '\0' || strlen(name) > 1000)
		shop_reject("name", "must have 1 to 1000 bytes");
	if (!percent && strcmp(type, "fixed") != 0)
		shop_reject("discount_type", "must be fixed or percent");
	(void) arg_int64_between(fcinfo, 2, "discount_value", 1, percent ? 100 : SHOP_MAX_AMOUNT);
	(void) arg_int64_between(fcinfo, 3, "usage_limit", 1, SHOP_MAX_AMOUNT);
	starts_at = shop_arg_time(fcinfo, 4, "starts_at");
	ends_at = shop_arg_time(fcinfo, 5, "ends_at");
	if (ends_at <= starts_at)
		shop_reject("ends_at", "must be after starts_at");
	if (!PG_ARGISNULL(6))
		(void) shop_arg_duration(fcinfo, 6, "valid_for");
	(void) arg_int64_between(fcinfo, 7, "min_subtotal", 0, SHOP_MAX_AMOUNT);
	if (!PG_ARGISNULL(8))
		(void) arg_int64_between(fcinfo, 8, "max_discount", 1, SHOP_MAX_AMOUNT);
}

static ShopValue
argument(FunctionCallInfo fcinfo, int n)
{
	return (ShopValue){fcinfo->args[n].value, fcinfo->args[n].isnull};
}

/* Has this key created a campaign?  The same arguments, then, or it is refused. */
static bool
find_created(FunctionCallInfo fcinfo, const char *key, int64 *campaign_id)
{
	ShopValue values[10] = {shop_text(key)};

	if (key == NULL)
		return false;
	for (int i = 0; i < 9; i++)
		values[i + 1] = argument(fcinfo, i);
	if (shop_query(&find_campaign, values) == 0)
		return false;
	if (!shop_fetch_isnull(0, 2))
		shop_key_reused(key, shop_fetch_text(0, 2));
	*campaign_id = shop_fetch_int8(0, 1);
	shop_await_standbys();
	return true;
}

static int64
create_campaign(FunctionCallInfo fcinfo, const char *key)
{
	ShopValue values[11];
	int64 campaign_id;

	if (find_created(fcinfo, key, &campaign_id))
		return campaign_id;
	for (int i = 0; i < 9; i++)
		values[i] = argument(fcinfo, i);
	values[9] = shop_time(shop_now());
	values[10] = shop_text(key);
	if (shop_query(&insert_campaign, values) == 0)
	{
		/* Another call with the key committed while we waited for it. */
		if (!find_created(fcinfo, key, &campaign_id))
			elog(ERROR, "campaign of idempotency key is not visible");
		return campaign_id;
	}
	campaign_id = shop_fetch_int8(0, 1);
	/* A rush may last no longer than slots take to split, so they are there from the start. */
	shop_slots_open(
		&slots, campaign_id, PG_GETARG_INT64(3), (int) Min(PG_GETARG_INT64(3), (int64) shop_max_stock_slots));
	return campaign_id;
}

Datum
shop_create_coupon_campaign(PG_FUNCTION_ARGS)
{
	char *key;
	int64 campaign_id;

	check_campaign(fcinfo);
	key = shop_arg_key(fcinfo, 9);
	shop_write_verb("create_coupon_campaign()");

	SPI_connect();
	campaign_id = create_campaign(fcinfo, key);
	SPI_finish();
	PG_RETURN_INT64(campaign_id);
}

/*
 * Issuing
 */

/* Is there a coupon of this key in the active snapshot?  Then it is the answer; says whose campaign's it is. */
static bool
find_issued(IssueCall *call, int64 *campaign_id)
{
	ShopLookup lookup;
	bool found;

	shop_lookup_open(&lookup, &coupon_of_key, 2, ForwardScanDirection);
	shop_lookup_start(&lookup, SHOP_KEYS(SHOP_KEY_INT8(call->user_id), SHOP_KEY_TEXT(call->key)), 2);
	found = shop_lookup_next(&lookup);
	if (found)
	{
		call->coupon_id = shop_lookup_int8(&lookup, COUPON_ID);
		call->expires_at = shop_lookup_int8(&lookup, EXPIRES_AT);
		call->replayed = true;
		*campaign_id = shop_lookup_int8(&lookup, CAMPAIGN_ID);
	}
	shop_lookup_close(&lookup);
	if (found)
		shop_await_standbys();
	return found;
}

/* Has this key issued a coupon?  Of the same campaign, then, or it is refused. */
static bool
find_replay(IssueCall *call, ShopRefusal *refusal)
{
	int64 campaign_id;

	if (call->key == NULL || !find_issued(call, &campaign_id))
		return false;
	if (campaign_id != call->campaign_id)
		*refusal = shop_key_refusal(call->key, "campaign_id");
	return true;
}

static ShopRefusal
sold_out(const IssueCall *call)
{
	return shop_refusal(SHOP_COUPON_SOLD_OUT, "{\"campaign_id\": " INT64_FORMAT ", \"usage_limit\": " INT64_FORMAT "}",
		call->campaign_id, call->usage_limit);
}

/* What the campaign says of this call; reads it where there is one. */
static ShopRefusal
read_campaign(IssueCall *call, ShopLookup *campaign)
{
	TimestampTz starts_at;
	TimestampTz ends_at;

	if (!shop_lookup_next(campaign))
		return shop_refusal(SHOP_CAMPAIGN_NOT_FOUND, "{\"campaign_id\": " INT64_FORMAT "}", call->campaign_id);
	starts_at = shop_lookup_int8(campaign, STARTS_AT);
	ends_at = shop_lookup_int8(campaign, ENDS_AT);
	if (call->issued_at < starts_at)
		return shop_refusal(SHOP_CAMPAIGN_NOT_STARTED, "{\"campaign_id\": " INT64_FORMAT ", \"starts_at\": \"%s\"}",
			call->campaign_id, shop_json_time(starts_at));
	if (call->issued_at >= ends_at)
		return shop_refusal(SHOP_CAMPAIGN_ENDED, "{\"campaign_id\": " INT64_FORMAT ", \"ends_at\": \"%s\"}",
			call->campaign_id, shop_json_time(ends_at));
	call->usage_limit = shop_lookup_int8(campaign, USAGE_LIMIT);
	call->expires_at = ends_at;
	if (!shop_lookup_isnull(campaign, VALID_FOR))
		call->expires_at = DatumGetTimestampTz(DirectFunctionCall2(
			timestamptz_pl_interval, TimestampTzGetDatum(call->issued_at), shop_lookup_datum(campaign, VALID_FOR)));
	return (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

/* The coupon that the user has of this campaign, by the active snapshot; false if there is none. */
static bool
has_coupon(const IssueCall *call, int64 *coupon_id)
{
	ShopLookup lookup;
	bool found;

	shop_lookup_open(&lookup, &coupon_of_user, 2, ForwardScanDirection);
	shop_lookup_start(&lookup, SHOP_KEYS(SHOP_KEY_INT8(call->user_id), SHOP_KEY_INT8(call->campaign_id)), 2);
	found = shop_lookup_next(&lookup);
	if (found)
		*coupon_id = shop_lookup_int8(&lookup, COUPON_ID);
	shop_lookup_close(&lookup);
	return found;
}

/* Is anything left, by the active snapshot?  Says where. */
static bool
is_left(IssueCall *call)
{
	ShopLookup lookup;
	bool left;

	shop_slots_look(&slots, &lookup);
	left = shop_slots_any(&slots, &lookup, call->campaign_id, 1, &call->seen);
	shop_lookup_close(&lookup);
	return left;
}

/* A user gets one. */
static ShopRefusal
check_user(IssueCall *call)
{
	int64 coupon_id;

	if (has_coupon(call, &coupon_id))
		return shop_refusal(SHOP_COUPON_ALREADY_ISSUED,
			"{\"campaign_id\": " INT64_FORMAT ", \"user_id\": " INT64_FORMAT ", \"coupon_id\": " INT64_FORMAT "}",
			call->campaign_id, call->user_id, coupon_id);
	return (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

/* What can be refused from the active snapshot, without a lock. */
static ShopRefusal
check_issue(IssueCall *call)
{
	ShopLookup campaign;
	ShopRefusal refusal;

	call->issued_at = shop_now();
	shop_lookup_open(&campaign, &campaign_table, 1, ForwardScanDirection);
	shop_lookup_start(&campaign, SHOP_KEYS(SHOP_KEY_INT8(call->campaign_id)), 1);
	refusal = read_campaign(call, &campaign);
	shop_lookup_close(&campaign);
	if (refusal.condition == SHOP_NO_REFUSAL)
		refusal = check_user(call);
	if (refusal.condition == SHOP_NO_REFUSAL && !is_left(call))
		refusal = sold_out(call);
	return refusal;
}

static bool
take_free(const IssueCall *call)
{
	ShopUpdate update;
	bool taken;

	shop_slots_begin(&slots, &update);
	taken = shop_slots_take(&slots, &update, call->campaign_id, 1, &call->seen);
	shop_slots_end(&update);
	return taken;
}

/*
 * Takes one of what is left; false if a fresh look sees that nothing is.  As
 * long as it sees some, they may come free by a rollback: another round.
 */
static bool
take_one(IssueCall *call)
{
	bool left = true;

	while (left && !take_free(call) && shop_slots_take_waiting(&slots, call->campaign_id, 1) > 0)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		left = is_left(call);
		PopActiveSnapshot();
	}
	return left;
}

static void
emit_issued(const IssueCall *call)
{
	ShopJson json = {0};
	char id[32];

	shop_json_begin(&json);
	shop_json_int8(&json, "coupon_id", call->coupon_id);
	shop_json_int8(&json, "campaign_id", call->campaign_id);
	shop_json_int8(&json, "user_id", call->user_id);
	shop_json_text(&json, "status", "usable");
	shop_json_moment(&json, "issued_at", call->issued_at);
	shop_json_moment(&json, "expires_at", call->expires_at);
	snprintf(id, sizeof(id), INT64_FORMAT, call->coupon_id);
	shop_emit("coupon.issued", "coupon", id, shop_json_end(&json), call->issued_at);
}

/* Looks for the answer in a snapshot, without writing or locking; false if there is none yet. */
static bool
find_answer(IssueCall *call, ShopRefusal (*check)(IssueCall *), ShopRefusal *refusal)
{
	bool answered;

	*refusal = (ShopRefusal){.condition = SHOP_NO_REFUSAL};
	PushActiveSnapshot(GetTransactionSnapshot());
	answered = find_replay(call, refusal);
	if (!answered)
		*refusal = check(call);
	PopActiveSnapshot();
	return answered || refusal->condition != SHOP_NO_REFUSAL;
}

/*
 * A REPEATABLE READ caller does not see a coupon that was issued since his
 * snapshot; his own would be a second one.
 */
static void
check_serializable(IssueCall *call)
{
	int64 id;

	if (!IsolationUsesXactSnapshot())
		return;
	PushActiveSnapshot(GetLatestSnapshot());
	if (has_coupon(call, &id) || (call->key && find_issued(call, &id)))
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						   errmsg("could not serialize access due to concurrent update")));
	PopActiveSnapshot();
}

static void
insert_coupon(IssueCall *call)
{
	call->coupon_id = shop_append_number("coupon_coupon_id_seq");
	shop_append(
		&new_coupon, SHOP_VALUES(shop_int8(call->coupon_id), shop_int8(call->campaign_id), shop_int8(call->user_id),
						 shop_time(call->issued_at), shop_time(call->expires_at), shop_text(call->key)));
}

/*
 * Issues a coupon that a look has found no reason to refuse: looks again once
 * other calls of the user have ended, takes one, and only then writes, so that
 * a refusal has nothing to take back.  After a wait it may be too late for the
 * campaign; without one, only a call of the same user can have come between,
 * and whether anything is left shows when one is taken.
 */
static ShopRefusal
issue(IssueCall *call)
{
	int32 key = shop_lock_key(call->user_id);
	bool waited = !shop_try_lock_xact(SHOP_LOCK_COUPON, key);
	ShopRefusal refusal;

	if (waited)
		shop_lock_xact(SHOP_LOCK_COUPON, key);
	if (find_answer(call, waited ? check_issue : check_user, &refusal))
		return refusal;
	check_serializable(call);
	if (!take_one(call))
		return sold_out(call);
	insert_coupon(call);
	emit_issued(call);
	return refusal;
}

static IssueCall
read_call(FunctionCallInfo fcinfo, const char *verb)
{
	IssueCall call = {
		.campaign_id = shop_arg_int64(fcinfo, 0, "campaign_id"), .user_id = shop_arg_int64(fcinfo, 1, "user_id")};

	call.key = shop_arg_key(fcinfo, 2);
	shop_write_verb(verb);
	return call;
}

/* A call of the same key that is under way may have been in time for a campaign that has ended: it is waited for. */
static ShopRefusal
find_or_issue(IssueCall *call)
{
	ShopRefusal refusal;
	bool answered = find_answer(call, check_issue, &refusal);

	if (refusal.condition == SHOP_CAMPAIGN_ENDED && call->key)
	{
		shop_lock_xact(SHOP_LOCK_COUPON, shop_lock_key(call->user_id));
		answered = find_answer(call, check_issue, &refusal);
		if (refusal.condition != SHOP_NO_REFUSAL)
			check_serializable(call);
	}
	return answered ? refusal : issue(call);
}

Datum
shop_issue_coupon(PG_FUNCTION_ARGS)
{
	IssueCall call = read_call(fcinfo, "issue_coupon()");
	ShopRefusal refusal;

	SPI_connect();
	refusal = find_or_issue(&call);
	if (refusal.condition != SHOP_NO_REFUSAL)
		shop_raise(refusal);
	SPI_finish();
	return shop_form_row(
		fcinfo, SHOP_VALUES(shop_int8(call.coupon_id), shop_int8(call.campaign_id), shop_int8(call.user_id),
					shop_text("usable"), shop_time(call.expires_at), shop_bool(call.replayed)));
}

Datum
shop_try_issue_coupon(PG_FUNCTION_ARGS)
{
	IssueCall call = read_call(fcinfo, "try_issue_coupon()");
	MemoryContext context = CurrentMemoryContext;
	ShopRefusal refusal;

	SPI_connect();
	refusal = find_or_issue(&call);
	if (refusal.condition != SHOP_NO_REFUSAL)
		refusal.detail = MemoryContextStrdup(context, refusal.detail);
	SPI_finish();
	if (refusal.condition != SHOP_NO_REFUSAL)
		return shop_form_refused(fcinfo, refusal);
	return shop_form_row(fcinfo,
		SHOP_VALUES(shop_text("ok"), shop_int8(call.coupon_id), shop_int8(call.campaign_id), shop_int8(call.user_id),
			shop_text("usable"), shop_time(call.expires_at), shop_bool(call.replayed), shop_null()));
}

Datum
shop_user_coupons(PG_FUNCTION_ARGS)
{
	int64 user_id = shop_arg_int64(fcinfo, 0, "user_id");

	(void) shop_return_set(fcinfo, &read_user_coupons, SHOP_VALUES(shop_int8(user_id), shop_time(shop_now())));
	return (Datum) 0;
}

/* Removes slots that a rush has left empty; returns how many. */
int64
shop_coupon_merge(int limit)
{
	return shop_slots_merge(&slots, limit);
}

/*
 * An order's coupon; the user is locked
 */

/* What the coupon takes off, which is at most the subtotal, or why it does not. */
ShopRefusal
shop_coupon_discount(int64 coupon_id, int64 user_id, int64 subtotal, TimestampTz now, int64 *discount)
{
	TimestampTz expires_at;
	int64 value;
	int64 min_subtotal;

	if (shop_query(&read_coupon, SHOP_VALUES(shop_int8(coupon_id), shop_int8(user_id))) == 0)
		return shop_refusal(SHOP_COUPON_NOT_FOUND, "{\"coupon_id\": " INT64_FORMAT "}", coupon_id);
	if (!shop_fetch_isnull(0, 1))
		return shop_refusal(SHOP_COUPON_ALREADY_USED,
			"{\"coupon_id\": " INT64_FORMAT ", \"order_id\": " INT64_FORMAT "}", coupon_id, shop_fetch_int8(0, 1));
	expires_at = shop_fetch_time(0, 2);
	if (expires_at <= now)
		return shop_refusal(SHOP_COUPON_EXPIRED, "{\"coupon_id\": " INT64_FORMAT ", \"expires_at\": \"%s\"}", coupon_id,
			shop_json_time(expires_at));
	min_subtotal = shop_fetch_int8(0, 5);
	if (subtotal < min_subtotal)
		return shop_refusal(SHOP_COUPON_NOT_APPLICABLE,
			"{\"coupon_id\": " INT64_FORMAT ", \"min_subtotal\": " INT64_FORMAT ", \"subtotal\": " INT64_FORMAT "}",
			coupon_id, min_subtotal, subtotal);

	value = shop_fetch_int8(0, 4);
	if (shop_fetch_bool(0, 3))
		value = (int64) ((int128) subtotal * value / 100);
	*discount = Min(Min(value, shop_fetch_int8_or(0, 6, PG_INT64_MAX)), subtotal);
	return (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

void
shop_coupon_use(int64 coupon_id, int64 order_id)
{
	if (shop_query(&use_coupon, SHOP_VALUES(shop_int8(coupon_id), shop_int8(order_id))) != 1)
		elog(ERROR, "coupon of a locked user is used already");
}

/* Makes the coupon of an order usable again, if it has not expired. */
void
shop_coupon_give_back(int64 coupon_id, int64 order_id, TimestampTz now)
{
	(void) shop_query(&give_back_coupon, SHOP_VALUES(shop_int8(coupon_id), shop_int8(order_id), shop_time(now)));
}
