/*
 * change.c
 *		The journal of what became of orders: a row each change of state or
 *		refund, with the answer its caller got and the key it can be repeated by.
 *
 * An order that place_order() places has its first row in shop.orders itself.
 * The kind of a change is the event's: order.<kind>.
 *
 * Locks: the unique index of the keys, under the lock of the user.
 */
#include "order/order.h"

#include "catalog/pg_type.h"
#include "idempotency.h"
#include "utils/array.h"
#include "utils/builtins.h"

static ShopQuery insert_change = SHOP_QUERY(
	"INSERT INTO shop.order_change (order_id, user_id, kind, status, amount, balance, reason, created_at,"
	"                               idempotency_key, arguments)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
	" ON CONFLICT (user_id, kind, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING change_id",
	INT8OID, INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID, TEXTOID, TIMESTAMPTZOID, TEXTOID, TEXTARRAYOID);

static ShopQuery find_by_key = SHOP_QUERY(
	"SELECT change_id, order_id, status, amount, balance,"
	"       (SELECT a.n::integer FROM unnest(arguments, $4) WITH ORDINALITY a(first, now, n)"
	"         WHERE a.first IS DISTINCT FROM a.now ORDER BY a.n LIMIT 1)"
	"  FROM shop.order_change WHERE user_id = $1 AND kind = $2 AND idempotency_key = $3",
	INT8OID, TEXTOID, TEXTOID, TEXTARRAYOID);

static ShopQuery find_by_status = SHOP_QUERY(
	"SELECT balance FROM shop.order_change WHERE order_id = $1 AND kind = $2", INT8OID, TEXTOID);

void
shop_argument_add(ShopArguments *arguments, const char *name, char *value)
{
	Assert(arguments->n < SHOP_MAX_ARGUMENTS);
	arguments->names[arguments->n] = name;
	arguments->values[arguments->n++] = value;
}

void
shop_argument_add_int8(ShopArguments *arguments, const char *name, int64 value, bool isnull)
{
	shop_argument_add(arguments, name, isnull ? NULL : psprintf(INT64_FORMAT, value));
}

static ShopValue
argument_array(const ShopArguments *arguments)
{
	Datum values[SHOP_MAX_ARGUMENTS];
	bool nulls[SHOP_MAX_ARGUMENTS];
	int dims[] = {arguments->n};
	int lower[] = {1};

	for (int i = 0; i < arguments->n; i++)
	{
		nulls[i] = arguments->values[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(arguments->values[i]);
	}
	return shop_datum(
		PointerGetDatum(construct_md_array(values, nulls, 1, dims, lower, TEXTOID, -1, false, TYPALIGN_INT)));
}

/* Has this key made such a change?  With the same arguments, then, or it is refused. */
bool
shop_change_replay(const char *kind, int64 user_id, const char *key, const ShopArguments *arguments, ShopChange *change)
{
	if (key == NULL || shop_query(&find_by_key, SHOP_VALUES(shop_int8(user_id), shop_text(kind), shop_text(key),
													argument_array(arguments))) == 0)
		return false;
	if (!shop_fetch_isnull(0, 6))
		shop_key_reused(key, arguments->names[shop_fetch_int4(0, 6) - 1]);
	*change = (ShopChange){.change_id = shop_fetch_int8(0, 1),
		.order_id = shop_fetch_int8(0, 2),
		.status = shop_order_status_parse(shop_fetch_text(0, 3)),
		.amount = shop_fetch_int8(0, 4),
		.balance = shop_fetch_int8(0, 5)};
	shop_await_standbys();
	return true;
}

/* Has the order been brought into this state before?  The answer is then the one that call got. */
bool
shop_change_repeats(ShopOrder *order, ShopOrderStatus status)
{
	if (order->status != status || shop_query(&find_by_status, SHOP_VALUES(shop_int8(order->order_id),
																   shop_text(shop_order_status_name(status)))) == 0)
		return false;
	order->balance = shop_fetch_int8(0, 1);
	shop_await_standbys();
	return true;
}

/*
 * Notes a change that left the order as it is given here; returns change_id.
 * `amount` is what came back to the user, or negative, what was paid; without
 * an account, his points were not looked at.
 */
int64
shop_change_record(const char *kind, const ShopOrder *order, int64 amount, const ShopAccount *account,
	const char *reason, const char *key, const ShopArguments *arguments, TimestampTz now)
{
	if (shop_query(
			&insert_change, SHOP_VALUES(shop_int8(order->order_id), shop_int8(order->user_id), shop_text(kind),
								shop_text(shop_order_status_name(order->status)), shop_int8(amount),
								shop_int8_or_null(account ? account->balance : 0, account == NULL), shop_text(reason),
								shop_time(now), shop_text(key), key ? argument_array(arguments) : shop_null())) == 0)
		elog(ERROR, "idempotency key of a locked user is there already");
	return shop_fetch_int8(0, 1);
}
