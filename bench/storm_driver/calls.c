/*
 * calls.c
 *		What to call: works of one call, or of a transaction of some, chosen by
 *		a seeded generator from what the model knows.
 *
 * Some users and products are everywhere, most are nearly nobody's.  Every
 * write that can carry a key carries one, so that it can be repeated when its
 * answer is lost.  In a transaction the first call does, and tells what became
 * of all of it; the others may come without.
 */
#define _GNU_SOURCE

#include "storm.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum
{
	PLACE_ORDER,
	TRY_PLACE_ORDER,
	RESERVE_ORDER,
	PAY_ORDER,
	RELEASE_ORDER,
	CANCEL_ORDER,
	REFUND_ORDER,
	CREATE_COUPON_CAMPAIGN,
	ISSUE_COUPON,
	TRY_ISSUE_COUPON,
	CHARGE_POINTS,
	USE_POINTS,
	RESTOCK,
	CREATE_PRODUCT,
	SET_PRICE,
	SET_PRODUCT_STATUS,
	EMIT_EVENT,
	RECEIVE_EVENT,
	CREATE_ENDPOINT,
	DROP_ENDPOINT,
	PAUSE_ENDPOINT,
	RESUME_ENDPOINT,
	SET_ENDPOINT_SECRET,
	REDRIVE,
	REDRIVE_ALL,
	DELIVER_EVENTS,
	RUN_MAINTENANCE,
	REFRESH_POPULAR_PRODUCTS,
	GRANT_ACCESS,
	POINT_BALANCE,
	POINT_HISTORY,
	USER_COUPONS,
	ORDER_HISTORY,
	GET_ORDER,
	ORDER_LINES,
	ORDER_CHANGES,
	GET_PRODUCT,
	TOP_PRODUCTS,
	OUTBOX_METRICS
};

const Verb verbs[] = {
	[PLACE_ORDER] = {"place_order", "user_id items coupon_id expected_total idempotency_key", false},
	[TRY_PLACE_ORDER] = {"try_place_order", "user_id items coupon_id expected_total idempotency_key", false},
	[RESERVE_ORDER] = {"reserve_order", "user_id items expires_in idempotency_key", false},
	[PAY_ORDER] = {"pay_order", "order_id user_id coupon_id expected_total idempotency_key", false},
	[RELEASE_ORDER] = {"release_order", "order_id user_id", false},
	[CANCEL_ORDER] = {"cancel_order", "order_id user_id reason", false},
	[REFUND_ORDER] = {"refund_order", "order_id items reason restock idempotency_key", false},
	[CREATE_COUPON_CAMPAIGN] = {"create_coupon_campaign",
		"name discount_type discount_value usage_limit starts_at ends_at valid_for min_subtotal max_discount "
		"idempotency_key",
		false},
	[ISSUE_COUPON] = {"issue_coupon", "campaign_id user_id idempotency_key", false},
	[TRY_ISSUE_COUPON] = {"try_issue_coupon", "campaign_id user_id idempotency_key", false},
	[CHARGE_POINTS] = {"charge_points", "user_id amount idempotency_key", false},
	[USE_POINTS] = {"use_points", "user_id amount reason idempotency_key", false},
	[RESTOCK] = {"restock", "product_id quantity idempotency_key", false},
	[CREATE_PRODUCT] = {"create_product", "name price stock idempotency_key", false},
	[SET_PRICE] = {"set_price", "product_id price", false},
	[SET_PRODUCT_STATUS] = {"set_product_status", "product_id status", false},
	[EMIT_EVENT] = {"emit_event", "type aggregatetype aggregateid payload priority", false},
	[RECEIVE_EVENT] = {"receive_event", "event", false},
	[CREATE_ENDPOINT] = {"create_endpoint", "name url types", false},
	[DROP_ENDPOINT] = {"drop_endpoint", "name", false},
	[PAUSE_ENDPOINT] = {"pause_endpoint", "name", false},
	[RESUME_ENDPOINT] = {"resume_endpoint", "name", false},
	[SET_ENDPOINT_SECRET] = {"set_endpoint_secret", "name secret", false},
	[REDRIVE] = {"redrive", "endpoint event_id", false},
	[REDRIVE_ALL] = {"redrive_all", "endpoint", false},
	[DELIVER_EVENTS] = {"deliver_events", "endpoint max_events", false},
	[RUN_MAINTENANCE] = {"run_maintenance", "", false},
	[REFRESH_POPULAR_PRODUCTS] = {"refresh_popular_products", "", false},
	[GRANT_ACCESS] = {"grant_access", "role access", false},
	[POINT_BALANCE] = {"point_balance", "user_id", true},
	[POINT_HISTORY] = {"point_history", "user_id limit", true},
	[USER_COUPONS] = {"user_coupons", "user_id", true},
	[ORDER_HISTORY] = {"order_history", "user_id limit", true},
	[GET_ORDER] = {"get_order", "order_id", true},
	[ORDER_LINES] = {"order_lines", "order_id", true},
	[ORDER_CHANGES] = {"order_changes", "order_id", true},
	[GET_PRODUCT] = {"get_product", "product_id", true},
	[TOP_PRODUCTS] = {"top_products", "n", true},
	[OUTBOX_METRICS] = {"outbox_metrics", "", true},
};

int
verb_index(const Verb *verb)
{
	return (int) (verb - verbs);
}

/*
 * Chance
 */

static uint64_t
next_random(Random *random)
{
	uint64_t z = (random->state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static int64_t
between(Random *random, int64_t low, int64_t high)
{
	return low + (int64_t) (next_random(random) % (uint64_t) (high - low + 1));
}

static bool
one_in(Random *random, int n)
{
	return next_random(random) % n == 0;
}

/* Five users are everywhere. */
static int64_t
some_user(Random *random)
{
	int64_t crowd = between(random, 1, 10);

	return between(random, 1, crowd <= 1 ? 5 : crowd <= 4 ? 40 : N_USERS);
}

/* Products 1 to 3 are scarce, and sought after. */
static int64_t
some_product(Random *random)
{
	int64_t crowd = between(random, 1, 20);

	return crowd == 1 ? between(random, 1, 3) : crowd <= 12 ? between(random, 4, 20) : between(random, 21, N_PRODUCTS);
}

/* One of his latest orders: in that state, if he has such. */
static int64_t
some_order(Random *random, int64_t user_id, const char *status)
{
	const User *user = &users[user_id];
	int n = user->n_orders < N_RECENT ? (int) user->n_orders : N_RECENT;
	int start = n > 0 ? (int) between(random, 0, n - 1) : 0;

	if (n == 0)
		return 0;
	for (int i = 0; i < n; i++)
	{
		int64_t order_id = user->order[(start + i) % n];

		if (strcmp(model_status(order_id), status) == 0)
			return order_id;
	}
	return user->order[start];
}

/* One of the user's coupons; now and then somebody else's. */
static int64_t
some_coupon(Random *random, int64_t user_id)
{
	const User *user = &users[one_in(random, 20) ? some_user(random) : user_id];
	int n = user->n_coupons < N_RECENT ? (int) user->n_coupons : N_RECENT;

	return n > 0 ? user->coupon[between(random, 0, n - 1)] : 0;
}

/*
 * Calls
 */

static int
argument_index(const Call *call, const char *name)
{
	const char *at = call->verb->arguments;
	size_t length = strlen(name);

	for (int i = 0; *at; i++)
	{
		size_t n = strcspn(at, " ");

		if (n == length && strncmp(at, name, n) == 0)
			return i;
		at += n;
		at += *at == ' ';
	}
	return -1;
}

const char *
argument_of(const Call *call, const char *name)
{
	int i = argument_index(call, name);

	return i < 0 ? NULL : call->value[i];
}

static void __attribute__((format(printf, 3, 4))) set(Call *call, const char *name, const char *format, ...)
{
	int i = argument_index(call, name);
	va_list arguments;

	if (i < 0)
		quit("%s has no argument %s", call->verb->name, name);
	free(call->value[i]);
	va_start(arguments, format);
	if (vasprintf(&call->value[i], format, arguments) < 0)
		quit("out of memory");
	va_end(arguments);
}

static void
set_number(Call *call, const char *name, int64_t number)
{
	set(call, name, "%lld", (long long) number);
}

void
call_clear(Call *call)
{
	for (int i = 0; i < MAX_ARGUMENTS; i++)
		free(call->value[i]);
	free(call->answer);
	free(call->detail);
	memset(call, 0, sizeof(*call));
}

static Call *
add_call(Work *work, int verb)
{
	Call *call = &work->call[work->n_calls++];

	call->verb = &verbs[verb];
	work->step[work->n_steps++] = (Step){.call = call};
	return call;
}

static void
add_statement(Work *work, const char *statement)
{
	work->step[work->n_steps++] = (Step){.statement = statement};
}

static void
set_key(Caller *caller, const Work *work, Call *call)
{
	set(call, "idempotency_key", "s%d-%lld-%d", caller->number, (long long) caller->n_works, work->n_calls);
}

/* One to four products, in any order; one of them may come twice. */
static void
set_basket(Random *random, Call *call)
{
	Buffer items = {0};
	int64_t n = between(random, 1, 4);

	for (int64_t i = 0; i < n; i++)
		buffer_add(&items, "%s{\"product_id\": %lld, \"quantity\": %lld}", i > 0 ? ", " : "[",
			(long long) (one_in(random, 500) ? 999999 : some_product(random)), (long long) between(random, 1, 3));
	set(call, "items", "%s]", items.data);
	free(items.data);
}

static void
add_place(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, one_in(random, 2) ? PLACE_ORDER : TRY_PLACE_ORDER);
	int64_t coupon_id = one_in(random, 3) ? some_coupon(random, work->user) : 0;

	set_number(call, "user_id", work->user);
	set_basket(random, call);
	if (coupon_id)
		set_number(call, "coupon_id", coupon_id);
	if (one_in(random, 50))
		set(call, "expected_total", "500");
	set_key(caller, work, call);
}

/* From 0.2 s to 10 s, more often short; a few for longer than any storm. */
static void
add_reserve(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, RESERVE_ORDER);
	double part = (double) between(random, 0, 1000) / 1000;

	set_number(call, "user_id", work->user);
	set_basket(random, call);
	if (one_in(random, 60))
		set(call, "expires_in", "1 day");
	else
		set(call, "expires_in", "%.3f s", 0.2 + 9.8 * part * part);
	set_key(caller, work, call);
}

static void
add_pay(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, PAY_ORDER);
	int64_t coupon_id = one_in(random, 3) ? some_coupon(random, work->user) : 0;

	set_number(call, "order_id", some_order(random, work->user, one_in(random, 10) ? "paid" : "reserved"));
	set_number(call, "user_id", one_in(random, 50) ? work->user + 1 : work->user);
	if (coupon_id)
		set_number(call, "coupon_id", coupon_id);
	if (one_in(random, 50))
		set(call, "expected_total", "1");
	set_key(caller, work, call);
}

static void
add_release(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, RELEASE_ORDER);

	set_number(call, "order_id", some_order(random, work->user, one_in(random, 4) ? "released" : "reserved"));
	set_number(call, "user_id", one_in(random, 50) ? work->user + 1 : work->user);
}

static void
add_cancel(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, CANCEL_ORDER);

	set_number(call, "order_id", some_order(random, work->user, one_in(random, 4) ? "cancelled" : "paid"));
	if (one_in(random, 2))
		set_number(call, "user_id", one_in(random, 30) ? work->user + 1 : work->user);
	if (one_in(random, 2))
		set(call, "reason", "storm");
}

/* What the order has is not known here: any of it, or more, or something else. */
static void
add_refund(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, REFUND_ORDER);
	int64_t order_id = some_order(random, work->user, "paid");
	int64_t product_id = some_product(random);

	for (int i = 0; i < caller->n_recent && i < N_RECENT; i++)
	{
		const Call *recent = &caller->recent[i];

		if (recent->has[FIELD_ORDER_ID] && argument_of(recent, "items") && argument_of(recent, "user_id") &&
			strcmp(model_status(recent->field[FIELD_ORDER_ID]), "paid") == 0)
		{
			order_id = recent->field[FIELD_ORDER_ID];
			work->user = strtoll(argument_of(recent, "user_id"), NULL, 10);
			sscanf(argument_of(recent, "items"), "[{\"product_id\": %ld", &product_id);
			if (one_in(random, 3))
				break;
		}
	}
	set_number(call, "order_id", order_id);
	set(call, "items", "[{\"product_id\": %lld, \"quantity\": %lld}]", (long long) product_id,
		(long long) (one_in(random, 4) ? between(random, 2, 4) : 1));
	set(call, "restock", one_in(random, 5) ? "false" : "true");
	set_key(caller, work, call);
}

/* The newest campaigns, those that sell out, and those that refuse. */
static void
add_issue(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, one_in(random, 2) ? ISSUE_COUPON : TRY_ISSUE_COUPON);
	int64_t dice = between(random, 1, 20);

	set_number(call, "campaign_id",
		dice <= 12	 ? newest_campaign - between(random, 0, 1)
		: dice == 20 ? 999999
					 : between(random, 1, 8));
	set_number(call, "user_id", work->user);
	set_key(caller, work, call);
}

/* A new campaign every two seconds, by whoever comes first. */
static void
add_campaign(Work *work)
{
	Call *call = add_call(work, CREATE_COUPON_CAMPAIGN);
	int64_t tick = time(NULL) / 2;
	Random random = {.state = tick};
	bool fixed = one_in(&random, 2);

	call->is_shared = true;
	work->user = 0;
	set(call, "name", "flash %lld", (long long) tick);
	set(call, "discount_type", fixed ? "fixed" : "percent");
	set_number(call, "discount_value", between(&random, 1, 100));
	set_number(call, "usage_limit", between(&random, 5, 45));
	set(call, "starts_at", "epoch");
	set(call, "ends_at", one_in(&random, 3) ? "2100-01-01" : "2099-01-01");
	if (one_in(&random, 5))
		set(call, "valid_for", "5 s");
	set_number(call, "min_subtotal", one_in(&random, 7) ? 500 : 0);
	if (!fixed)
		set(call, "max_discount", "800");
	set(call, "idempotency_key", "flash %lld", (long long) tick);
}

static void
add_points(Caller *caller, Work *work, int verb, int64_t amount)
{
	Call *call = add_call(work, verb);

	set_number(call, "user_id", work->user);
	set_number(call, "amount", amount);
	set_key(caller, work, call);
}

static void
add_restock(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, RESTOCK);
	int64_t product_id = one_in(random, 3) ? between(random, 1, 3) : some_product(random);
	int64_t quantity = between(random, 1, product_id <= 3 ? 30 : 1000);

	work->user = 0;
	set_number(call, "product_id", product_id);
	set_number(call, "quantity", one_in(random, 3) ? -quantity : quantity);
	set_key(caller, work, call);
}

/* Products above N_PRODUCTS are nobody's but the books'. */
static void
add_catalog(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	int64_t dice = between(random, 1, 10);
	Call *call = add_call(work, dice <= 6 ? SET_PRICE : dice <= 8 ? SET_PRODUCT_STATUS : CREATE_PRODUCT);

	work->user = 0;
	if (dice <= 8)
		set_number(call, "product_id", dice <= 6 ? between(random, 1, 18) : 19);
	if (dice <= 6)
		set_number(call, "price", between(random, 1, 200));
	else if (dice <= 8)
		set(call, "status", one_in(random, 8) ? "suspended" : "on_sale");
	else
	{
		set(call, "name", "new product of session %d", caller->number);
		set_number(call, "price", between(random, 0, 100));
		set_number(call, "stock", between(random, 0, 100));
		set_key(caller, work, call);
	}
}

/* An urgent event has a key to itself, as it takes along what is ahead of it in its key. */
static void
add_event(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	Call *call = add_call(work, EMIT_EVENT);
	bool urgent = one_in(random, 5);

	set(call, "type", "storm.told");
	set(call, "aggregatetype", "storm");
	if (urgent)
		set(call, "aggregateid", "urgent %d %lld", caller->number, (long long) caller->n_works);
	else
		set_number(call, "aggregateid", between(random, 1, 200));
	set(call, "payload", "{\"session\": %d, \"work\": %lld}", caller->number, (long long) caller->n_works);
	set_number(call, "priority", urgent ? 9 : 0);
}

/* An event that comes straight to the embedded platform. */
static void
add_received(Caller *caller, Work *work)
{
	Call *call = add_call(work, RECEIVE_EVENT);

	work->user = 0;
	set(call, "event",
		"{\"specversion\": \"1.0\", \"source\": \"/storm\", \"type\": \"storm.direct\", "
		"\"id\": \"%08x-0000-4000-8000-%012llx\", \"subject\": \"direct\"}",
		caller->number, (unsigned long long) caller->n_works);
}

/* Endpoints are paused, and more often resumed; dead letters are sent again. */
static void
add_operation(Caller *caller, Work *work)
{
	static const char *const remote[] = {"web", "topic", "brittle", "ledger"};
	Random *random = &caller->random;
	const char *name = remote[between(random, 0, 3)];
	int64_t dice = between(random, 1, 20);
	Call *call;

	work->user = 0;
	/* By one session only: two at once meet in the catalogs. */
	if (caller->number == 0 && one_in(random, 2))
	{
		call = add_call(work, GRANT_ACCESS);
		set(call, "role", "storm_reader");
		set(call, "access", "read");
	}
	else if (dice <= 2)
		set(add_call(work, PAUSE_ENDPOINT), "name", "%s", name);
	else if (dice <= 8)
		set(add_call(work, RESUME_ENDPOINT), "name", "%s", name);
	else if (dice <= 9)
	{
		call = add_call(work, SET_ENDPOINT_SECRET);
		set(call, "name", "web");
		set(call, "secret",
			one_in(random, 2) ? "whsec_c3Rvcm1zdG9ybXN0b3Jtc3Rvcm1zdG9x" : "whsec_c3Rvcm1zdG9ybXN0b3Jtc3Rvcm1zdG9y");
	}
	else if (dice <= 12)
		set(add_call(work, REDRIVE_ALL), "endpoint", "brittle");
	else if (dice <= 13)
	{
		call = add_call(work, REDRIVE);
		set(call, "endpoint", "brittle");
		set(call, "event_id", "00000000-0000-4000-8000-000000000000");
	}
	else if (dice <= 15)
	{
		call = add_call(work, DELIVER_EVENTS);
		set(call, "endpoint", one_in(random, 2) ? "platform" : "ledger");
		set(call, "max_events", "100");
	}
	else if (dice <= 16)
		add_call(work, RUN_MAINTENANCE);
	else if (dice <= 17)
		add_call(work, REFRESH_POPULAR_PRODUCTS);
	else if (dice <= 18)
	{
		call = add_call(work, CREATE_ENDPOINT);
		set(call, "name", "passing %d", caller->number % 2);
		set(call, "url", "function:storm.ignore");
		set(call, "types", "{order.*}");
	}
	else
		set(add_call(work, DROP_ENDPOINT), "name", "passing %d", caller->number % 2);
}

static void
add_read(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	int verb = (int) between(random, POINT_BALANCE, OUTBOX_METRICS);
	Call *call;

	if (verb >= TOP_PRODUCTS && !one_in(random, 5))
		verb = GET_PRODUCT;
	call = add_call(work, verb);
	if (argument_index(call, "user_id") >= 0)
		set_number(call, "user_id", work->user);
	if (argument_index(call, "limit") >= 0)
		set(call, "limit", "3");
	if (argument_index(call, "order_id") >= 0)
		set_number(call, "order_id", some_order(random, work->user, "paid"));
	if (verb == GET_PRODUCT)
		set_number(call, "product_id", some_product(random));
	if (verb == TOP_PRODUCTS)
		set(call, "n", "5");
}

/* One call that changes orders of the user, and of no other. */
static void
add_order_call(Caller *caller, Work *work)
{
	static void (*const add[])(Caller *, Work *) = {
		add_place, add_place, add_reserve, add_pay, add_release, add_cancel};

	add[between(&caller->random, 0, 5)](caller, work);
}

/*
 * Works
 */

/* The call of some while ago again, by the same key: now and then with something else. */
static bool
add_repeat(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	int n = caller->n_recent < N_RECENT ? caller->n_recent : N_RECENT;
	const Call *recent;
	Call *call;

	if (n == 0)
		return false;
	recent = &caller->recent[between(random, 0, n - 1)];
	call = add_call(work, verb_index(recent->verb));
	for (int i = 0; i < MAX_ARGUMENTS; i++)
		call->value[i] = recent->value[i] ? strdup(recent->value[i]) : NULL;
	call->repeated = recent->answer;
	work->user = argument_of(call, "user_id") ? strtoll(argument_of(call, "user_id"), NULL, 10) : 0;
	if (one_in(random, 6) && argument_index(call, "amount") >= 0)
	{
		set(call, "amount", "4711");
		call->repeated = NULL;
	}
	else if (one_in(random, 6) && argument_index(call, "items") >= 0)
	{
		set(call, "items", "[{\"product_id\": 5, \"quantity\": 77}]");
		call->repeated = NULL;
	}
	return true;
}

/* Several sessions call this at the same moment, with one key. */
static void
add_shared(Caller *caller, Work *work)
{
	int64_t tick = time(NULL);
	Random random = {.state = tick};
	Call *call;

	(void) caller;
	work->user = between(&random, 1, N_USERS);
	switch (between(&random, 0, 2))
	{
		case 0:
			call = add_call(work, PLACE_ORDER);
			set_basket(&random, call);
			break;
		case 1:
			call = add_call(work, RESERVE_ORDER);
			set_basket(&random, call);
			set(call, "expires_in", "2 s");
			break;
		default:
			call = add_call(work, CHARGE_POINTS);
			set(call, "amount", "100");
	}
	set_number(call, "user_id", work->user);
	set(call, "idempotency_key", "same %lld", (long long) tick);
	call->is_shared = true;
}

/* A client that reserves and pays in one go. */
static void
add_check_out(Caller *caller, Work *work)
{
	Call *call;

	add_reserve(caller, work);
	call = add_call(work, PAY_ORDER);
	set_number(call, "user_id", work->user);
	work->pays = true;
}

/* The order that was just reserved. */
void
work_pay(Work *work)
{
	set_number(&work->call[work->n_calls - 1], "order_id", work->call[work->n_calls - 2].field[FIELD_ORDER_ID]);
}

/* All but the first, which tells of the others. */
static void
drop_keys(Random *random, Work *work)
{
	for (int i = 1; i < work->n_calls; i++)
	{
		int key = argument_index(&work->call[i], "idempotency_key");

		if (key >= 0 && one_in(random, 2))
		{
			free(work->call[i].value[key]);
			work->call[i].value[key] = NULL;
		}
	}
}

/* Several calls, the first of them with a key; some change their mind, in whole or in part. */
static void
add_transaction(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	int64_t dice = between(random, 1, 10);

	add_statement(work, "BEGIN");
	add_points(caller, work, CHARGE_POINTS, between(random, 1, 2000));
	if (dice <= 3)
		add_event(caller, work);
	else if (dice <= 5)
		add_check_out(caller, work);
	else if (dice <= 7)
	{
		add_issue(caller, work);
		add_place(caller, work);
	}
	else
	{
		add_statement(work, "SAVEPOINT before_order");
		add_order_call(caller, work);
		if (one_in(random, 2))
		{
			work->undone = 1;
			add_statement(work, "ROLLBACK TO before_order");
			add_points(caller, work, USE_POINTS, 1);
		}
	}
	drop_keys(random, work);
	work->rolls_back = one_in(random, 3);
	add_statement(work, work->rolls_back ? "ROLLBACK" : "COMMIT");
}

static void
add_write(Caller *caller, Work *work)
{
	Random *random = &caller->random;
	int64_t dice = between(random, 1, 100);

	if (dice <= 27)
		add_place(caller, work);
	else if (dice <= 40)
		add_reserve(caller, work);
	else if (dice <= 53)
		add_pay(caller, work);
	else if (dice <= 56)
		add_release(caller, work);
	else if (dice <= 61)
		add_cancel(caller, work);
	else if (dice <= 67)
		add_refund(caller, work);
	else if (dice <= 74)
		add_issue(caller, work);
	else if (dice <= 84)
		add_points(caller, work, CHARGE_POINTS, between(random, 1, 30000));
	else if (dice <= 88)
		add_points(caller, work, USE_POINTS, between(random, 1, 12000));
	else if (dice <= 92)
		add_restock(caller, work);
	else if (dice <= 95)
		add_catalog(caller, work);
	else if (dice <= 96)
		add_campaign(work);
	else if (dice <= 97)
		add_received(caller, work);
	else
		add_shared(caller, work);
}

void
work_new(Caller *caller, Work *work)
{
	int64_t dice = between(&caller->random, 1, 1000);

	memset(work, 0, sizeof(*work));
	caller->n_works++;
	work->user = some_user(&caller->random);
	work->undone = -1;
	if (dice <= 330)
		add_read(caller, work);
	else if (dice <= 390)
		add_transaction(caller, work);
	else if (dice <= 395)
		add_operation(caller, work);
	else if (dice > 420 || !add_repeat(caller, work))
		add_write(caller, work);
}

void
work_free(Work *work)
{
	for (int i = 0; i < work->n_calls; i++)
		call_clear(&work->call[i]);
}

/* Of an answered call with a key, to be called again. */
void
caller_remember(Caller *caller, const Call *call)
{
	Call *recent = &caller->recent[caller->n_recent++ % N_RECENT];

	call_clear(recent);
	*recent = *call;
	for (int i = 0; i < MAX_ARGUMENTS; i++)
		recent->value[i] = call->value[i] ? strdup(call->value[i]) : NULL;
	recent->answer = strdup(call->answer);
	recent->detail = NULL;
	recent->repeated = NULL;
}
