/*
 * model.c
 *		What the clients know together, and whether an answer fits it.
 *
 * Every committed answer changes the model.  An answer is checked as soon as
 * it comes, as far as it can be: what was acknowledged must still be there,
 * whatever has crashed since; and where nobody else was at work for a user
 * (the work was `alone`), balance, orders and coupons must be the model's to
 * the last point.  What hangs on how the calls of many met, such as stock, is
 * for the books (../storm.sql).
 *
 * An effect may be told several times: by its first answer, and by replays.
 * The ids of entries, refunds, coupons and orders tell which of them is new.
 */
#include "storm.h"

#include <stdio.h>
#include <string.h>

typedef enum Status
{
	STATUS_UNKNOWN,
	STATUS_RESERVED,
	STATUS_PAID,
	STATUS_RELEASED,
	STATUS_REFUNDED,
	STATUS_CANCELLED,
	N_STATUSES
} Status;

static const char *const status_names[] = {"", "reserved", "paid", "released", "refunded", "cancelled"};

typedef struct Order
{
	int64_t user;
	int64_t total;	  /* paid for it */
	int64_t refunded; /* of that */
	Status status;
} Order;

/* The ids that have been told, a bit each. */
typedef struct IdSet
{
	uint64_t *bits;
	int64_t size;
} IdSet;

User users[N_USERS + 2];
int64_t newest_campaign;
int64_t newest_product;

static Order *orders;
static int64_t n_orders;
static IdSet entries;
static IdSet refunds;
static IdSet coupons;

/* Room for one more element at that index; what is new is zero. */
static void *
grow(void *array, int64_t *size, int64_t at, size_t width)
{
	int64_t wanted = *size;

	if (at < *size)
		return array;
	while (wanted <= at)
		wanted = wanted ? wanted * 2 : 4096;
	array = realloc(array, wanted * width);
	if (array == NULL)
		quit("out of memory");
	memset((char *) array + *size * width, 0, (wanted - *size) * width);
	*size = wanted;
	return array;
}

/* Adds an id; returns whether it is new. */
static bool
is_new(IdSet *set, int64_t id)
{
	uint64_t bit = (uint64_t) 1 << (id % 64);

	if (id < 0)
		quit("an id below 0");
	set->bits = grow(set->bits, &set->size, id / 64, sizeof(uint64_t));
	if (set->bits[id / 64] & bit)
		return false;
	set->bits[id / 64] |= bit;
	return true;
}

static Order *
order_of(int64_t order_id)
{
	if (order_id < 0)
		quit("an order_id below 0");
	orders = grow(orders, &n_orders, order_id, sizeof(Order));
	return &orders[order_id];
}

static Order *
known_order(int64_t order_id)
{
	return order_id > 0 && order_id < n_orders && orders[order_id].status ? &orders[order_id] : NULL;
}

/* Of an order: "" if it is not known. */
const char *
model_status(int64_t order_id)
{
	const Order *order = known_order(order_id);

	return order ? status_names[order->status] : "";
}

/* What an order has done to its user's balance. */
static int64_t
net(const Order *order)
{
	return order->status == STATUS_PAID || order->status == STATUS_REFUNDED ? order->refunded - order->total : 0;
}

static User *
user_of(int64_t user_id)
{
	return user_id > 0 && user_id <= N_USERS ? &users[user_id] : NULL;
}

static bool
is_verb(const Call *call, const char *name)
{
	const char *verb = call->verb->name;

	return strcmp(strncmp(verb, "try_", 4) == 0 ? verb + 4 : verb, name) == 0;
}

static int64_t
number_of(const Call *call, const char *argument)
{
	const char *value = argument_of(call, argument);

	return value ? strtoll(value, NULL, 10) : 0;
}

/*
 * The beginning
 */

static PGresult *
ask(PGconn *conn, const char *query)
{
	PGresult *result = PQexec(conn, query);

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		quit("%s: %s", query, PQerrorMessage(conn));
	return result;
}

static int64_t
ask_number(PGconn *conn, const char *query)
{
	PGresult *result = ask(conn, query);
	int64_t number = strtoll(PQgetvalue(result, 0, 0), NULL, 10);

	PQclear(result);
	return number;
}

/* The shop as it was opened: accounts, products, campaigns. */
void
model_open(PGconn *conn)
{
	PGresult *result = ask(conn, "SELECT user_id, balance FROM shop.account");

	for (int i = 0; i < PQntuples(result); i++)
	{
		User *user = user_of(strtoll(PQgetvalue(result, i, 0), NULL, 10));

		if (user)
			user->balance = strtoll(PQgetvalue(result, i, 1), NULL, 10);
	}
	PQclear(result);
	newest_campaign = ask_number(conn, "SELECT max(campaign_id) FROM shop.coupon_campaign");
	newest_product = ask_number(conn, "SELECT max(product_id) FROM shop.product");
}

/*
 * Works
 */

void
model_begin(Work *work)
{
	User *user = user_of(work->user);

	work->alone = user && user->busy == 0;
	if (user == NULL)
		return;
	for (int i = 0; i < work->n_calls; i++)
	{
		if (!work->call[i].verb->is_read)
		{
			user->busy++;
			user->version++;
			break;
		}
	}
	work->version = user->version;
}

/* Nobody else has been at the user's since the work began. */
static bool
is_alone(const Work *work)
{
	return work->alone && user_of(work->user)->version == work->version;
}

void
model_end(Work *work)
{
	User *user = user_of(work->user);
	bool writes = false;

	for (int i = 0; i < work->n_calls; i++)
		writes |= !work->call[i].verb->is_read;
	if (user && writes)
		user->busy--;
}

/*
 * Answers
 */

static void
expect_number(const Call *call, const char *what, int64_t got, int64_t expected)
{
	if (got != expected)
		violation(call, "%s is %lld, the model says %lld", what, (long long) got, (long long) expected);
}

static void
expect_echo(const Call *call, Field field, const char *argument)
{
	if (call->has[field] && argument_of(call, argument))
		expect_number(call, argument, call->field[field], number_of(call, argument));
}

/*
 * An effect that is new must not be told as a replay, unless its first answer
 * was lost.  Where several sessions use a key, their answers come in any order.
 */
static void
check_first(const Call *call, bool is_first)
{
	if (call->is_shared)
		return;
	if (is_first && call->replayed && !call->lost)
		violation(call, "replays what nobody has been answered");
	if (!is_first && !call->replayed)
		violation(call, "tells as new what has been told before");
}

static void
remember(int64_t *ring, int64_t n, int64_t id)
{
	ring[n % N_RECENT] = id;
}

static void
apply_points(const Call *call)
{
	User *user = user_of(call->field[FIELD_USER_ID]);
	bool first = is_new(&entries, call->field[FIELD_ENTRY_ID]);

	check_first(call, first);
	expect_number(call, "amount", call->field[FIELD_AMOUNT],
		is_verb(call, "charge_points") ? number_of(call, "amount") : -number_of(call, "amount"));
	if (first && user)
		user->balance += call->field[FIELD_AMOUNT];
}

static void
apply_coupon(const Call *call)
{
	User *user = user_of(call->field[FIELD_USER_ID]);
	bool first = is_new(&coupons, call->field[FIELD_COUPON_ID]);

	check_first(call, first);
	if (first && user)
		remember(user->coupon, user->n_coupons++, call->field[FIELD_COUPON_ID]);
}

static Status
status_of(const Call *call)
{
	if (is_verb(call, "place_order") || is_verb(call, "pay_order"))
		return STATUS_PAID;
	if (is_verb(call, "reserve_order"))
		return STATUS_RESERVED;
	if (is_verb(call, "release_order"))
		return STATUS_RELEASED;
	if (is_verb(call, "cancel_order"))
		return STATUS_CANCELLED;
	return strcmp(call->status, "refunded") == 0 ? STATUS_REFUNDED : STATUS_PAID;
}

static void
begin_order(const Call *call, Order *order, int64_t order_id)
{
	User *user = user_of(number_of(call, "user_id"));

	order->user = number_of(call, "user_id");
	if (user == NULL)
		return;
	remember(user->order, user->n_orders++, order_id);
	if (order_id > user->newest_order)
		user->newest_order = order_id;
}

/* Answers may come in another order than they were made in: an end stays. */
static void
apply_order(const Call *call)
{
	int64_t order_id = call->field[FIELD_ORDER_ID];
	Order *order = order_of(order_id);
	Status status = status_of(call);
	int64_t before = net(order);
	User *user;

	if (is_verb(call, "place_order") || is_verb(call, "reserve_order"))
	{
		check_first(call, order->user == 0);
		if (order->user == 0)
			begin_order(call, order, order_id);
	}
	if (is_verb(call, "refund_order") && is_new(&refunds, call->field[FIELD_REFUND_ID]))
		order->refunded += call->field[FIELD_AMOUNT];
	if (status >= STATUS_PAID && status != STATUS_RELEASED)
		order->total = call->field[FIELD_TOTAL];
	if (status > order->status)
		order->status = status;
	user = user_of(order->user);
	if (user)
		user->balance += net(order) - before;
}

/* An answer that is committed.  Its first one and its replays are the same. */
void
model_apply(const Work *work, const Call *call)
{
	const User *user = user_of(work->user);

	expect_echo(call, FIELD_USER_ID, "user_id");
	expect_echo(call, FIELD_ORDER_ID, "order_id");
	expect_echo(call, FIELD_CAMPAIGN_ID, "campaign_id");
	if (call->has[FIELD_ENTRY_ID])
		apply_points(call);
	else if (call->has[FIELD_COUPON_ID])
		apply_coupon(call);
	else if (call->has[FIELD_ORDER_ID])
		apply_order(call);
	else if (is_verb(call, "create_coupon_campaign") && call->field[FIELD_CAMPAIGN_ID] > newest_campaign)
		newest_campaign = call->field[FIELD_CAMPAIGN_ID];
	if (call->has[FIELD_BALANCE] && !call->replayed && user && is_alone(work))
		expect_number(call, "balance", call->field[FIELD_BALANCE], user->balance);
}

/* What was acknowledged cannot be unknown, or in another state with nobody near. */
void
model_refused(const Work *work, const Call *call)
{
	const Order *order = known_order(number_of(call, "order_id"));
	bool alone = is_alone(work);

	if (order && strcmp(call->outcome, "order_not_found") == 0)
		violation(call, "an order that was acknowledged is not there");
	if (order && alone && is_verb(call, "cancel_order") && order->status == STATUS_PAID && order->user == work->user &&
		strcmp(call->outcome, "invalid_transition") == 0)
		violation(call, "an order that is paid cannot be cancelled");
	if (call->repeated)
		violation(call, "a key that was answered is refused");
}

static bool
expires(const Order *order)
{
	return order->status == STATUS_RESERVED;
}

/* Of one user's, with nobody near. */
void
model_read(const Work *work, const Call *call)
{
	const User *user = user_of(work->user);
	const Order *order = known_order(number_of(call, "order_id"));

	expect_echo(call, FIELD_ORDER_ID, "order_id");
	if (order && call->n_rows == 0 && strcmp(call->verb->name, "order_changes") != 0)
		violation(call, "an order that was acknowledged is not there");
	if (user == NULL || !is_alone(work))
		return;
	if (strcmp(call->verb->name, "point_balance") == 0)
		expect_number(call, "balance", strtoll(call->status, NULL, 10), user->balance);
	else if (strcmp(call->verb->name, "user_coupons") == 0)
		expect_number(call, "the number of coupons", call->n_rows, user->n_coupons);
	else if (strcmp(call->verb->name, "point_history") == 0 && call->n_rows > 0)
		expect_number(call, "the latest balance", call->field[FIELD_BALANCE], user->balance);
	else if (strcmp(call->verb->name, "order_history") == 0)
		expect_number(call, "the latest order", call->field[FIELD_ORDER_ID], user->newest_order);
	else if (strcmp(call->verb->name, "get_order") == 0 && order && order->user == work->user && !expires(order) &&
			 strcmp(call->status, status_names[order->status]) != 0)
		violation(call, "the model says %s", status_names[order->status]);
}
