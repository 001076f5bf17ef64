/*
 * refund.c
 *		refund_order: units of a paid order are paid back.
 *
 * After k of the n units of a line are refunded, the line's refunds sum to
 * floor(paid * k / n), however they were divided; after the last unit of the
 * last line the order is refunded.  The coupon stays used.
 *
 * Refusals, in their declared order: order_not_found, idempotency_key_reused,
 * invalid_transition, refund_exceeds_paid.
 *
 * Locks, in this order: the account of the order's user, slot 0 of the
 * products, the order's row.
 */
#include "order/order.h"

#include "catalog/pg_type.h"

static ShopQuery insert_refund = SHOP_QUERY(
	"INSERT INTO shop.refund_line (order_id, product_id, change_id, quantity, amount, restocked)"
	" SELECT $1, t.product_id, $2, t.quantity, t.amount, $3"
	"  FROM unnest($4::bigint[], $5::integer[], $6::bigint[]) AS t(product_id, quantity, amount)",
	INT8OID, INT8OID, BOOLOID, INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID);

static ShopQuery sum_refunds = SHOP_QUERY("SELECT coalesce(sum(amount), 0)::bigint FROM shop.order_change"
										  " WHERE order_id = $1 AND kind = 'refunded' AND change_id <= $2",
	INT8OID, INT8OID);

/* A call of refund_order and its answer. */
typedef struct RefundCall
{
	ShopItems items; /* as asked for; later with what was paid for them */
	char *reason;
	bool restock;
	char *key;
	ShopArguments arguments;
	ShopOrder order;
	ShopChange change;
	bool replayed;
} RefundCall;

SHOP_FUNCTION(shop_refund_order);

/* The first answer again, whatever has become of the order since. */
static bool
find_replay(RefundCall *call)
{
	if (!shop_change_replay("refunded", call->order.user_id, call->key, &call->arguments, &call->change))
		return false;
	call->order.status = call->change.status;
	call->order.balance = call->change.balance;
	call->replayed = true;
	return true;
}

static ShopLine *
find_line(ShopLine *lines, int n, int64 product_id)
{
	for (int i = 0; i < n; i++)
		if (lines[i].item.product_id == product_id)
			return &lines[i];
	return NULL;
}

/* Refunds some more units of a line; returns the points for them. */
static int64
refund_line(ShopLine *line, int32 quantity)
{
	int64 before = line->refunded_points;

	line->refunded_units += quantity;
	line->refunded_points = (int64) ((int128) shop_line_paid(line) * line->refunded_units / line->item.quantity);
	return line->refunded_points - before;
}

/* Turns the items asked for into parts of the order's lines; returns the points for all of them. */
static int64
refund_items(ShopItems *items, ShopLine *lines, int n)
{
	int64 points = 0;

	for (int i = 0; i < items->n; i++)
	{
		ShopItem *item = &items->items[i];
		ShopLine *line = find_line(lines, n, item->product_id);
		int32 left = line ? line->item.quantity - line->refunded_units : 0;
		int64 amount;

		if (line == NULL || item->quantity > left)
			shop_refuse(SHOP_REFUND_EXCEEDS_PAID,
				"{\"product_id\": " INT64_FORMAT ", \"requested\": %d, \"refundable\": %d}", item->product_id,
				item->quantity, left);
		amount = refund_line(line, item->quantity);
		*item = shop_line_part(line, item->quantity, amount);
		points += amount;
	}
	return points;
}

static bool
is_all_refunded(const ShopLine *lines, int n)
{
	for (int i = 0; i < n; i++)
		if (lines[i].refunded_units < lines[i].item.quantity)
			return false;
	return true;
}

static void
insert_lines(const RefundCall *call)
{
	int n = call->items.n;
	int64 *products = palloc(sizeof(int64) * n);
	int32 *quantities = palloc(sizeof(int32) * n);
	int64 *amounts = palloc(sizeof(int64) * n);

	for (int i = 0; i < n; i++)
	{
		const ShopItem *item = &call->items.items[i];

		products[i] = item->product_id;
		quantities[i] = item->quantity;
		amounts[i] = item->unit_price * item->quantity - item->discount;
	}
	shop_query(&insert_refund,
		SHOP_VALUES(shop_int8(call->order.order_id), shop_int8(call->change.change_id), shop_bool(call->restock),
			shop_int8_array(products, n), shop_int4_array(quantities, n), shop_int8_array(amounts, n)));
}

static int64
refunded_so_far(const RefundCall *call)
{
	shop_query(&sum_refunds, SHOP_VALUES(shop_int8(call->order.order_id), shop_int8(call->change.change_id)));
	return shop_fetch_int8(0, 1);
}

static void
emit(const RefundCall *call, TimestampTz now)
{
	ShopJson json = {0};

	shop_json_begin(&json);
	shop_json_int8(&json, "refund_id", call->change.change_id);
	shop_json_moment(&json, "refunded_at", now);
	shop_json_int8(&json, "amount", call->change.amount);
	shop_json_int8(&json, "refunded", refunded_so_far(call));
	shop_json_bool(&json, "restocked", call->restock);
	shop_json_text(&json, "reason", call->reason);
	shop_order_emit(&call->order, "refunded", &json, &call->items, now);
}

static void
refund_locked(RefundCall *call, ShopAccount *account)
{
	ShopOrder *order = &call->order;
	TimestampTz now = shop_now();
	ShopLine *lines;
	int64 points;
	int n;

	shop_order_check_transition(order, SHOP_ORDER_REFUNDED, now);
	n = shop_lines_read(order->order_id, &lines);
	points = refund_items(&call->items, lines, n);

	if (points > 0)
		shop_account_post(account, points, "refund", call->reason, &order->order_id, NULL, now);
	if (call->restock)
		shop_stock_give_back(shop_items_demands(&call->items), call->items.n);
	if (is_all_refunded(lines, n))
		order->status = SHOP_ORDER_REFUNDED;
	shop_order_save(order);
	order->balance = account->balance;
	call->change = (ShopChange){.amount = points};
	call->change.change_id = shop_change_record(
		"refunded", order, points, account, call->reason, call->key, &call->arguments, now);
	insert_lines(call);
	emit(call, now);
}

static void
refund(RefundCall *call)
{
	ShopAccount account;

	call->order = shop_order_read(call->order.order_id);
	if (find_replay(call))
		return;
	account = shop_order_lock(&call->order);
	if (!find_replay(call))
		refund_locked(call, &account);
}

/* An order_result and the refund. */
static Datum
refund_result(FunctionCallInfo fcinfo, const RefundCall *call, int64 refunded)
{
	const ShopOrder *order = &call->order;

	return shop_form_row(
		fcinfo, SHOP_VALUES(shop_int8(order->order_id), shop_text(shop_order_status_name(order->status)),
					shop_int8(order->subtotal), shop_int8(order->discount), shop_int8(order->total),
					shop_int8(order->balance), shop_time_or_null(order->expires_at), shop_bool(call->replayed),
					shop_int8(call->change.change_id), shop_int8(call->change.amount), shop_int8(refunded)));
}

Datum
shop_refund_order(PG_FUNCTION_ARGS)
{
	RefundCall call = {.order = {.order_id = shop_arg_int64(fcinfo, 0, "order_id")}};
	int64 refunded;

	shop_arg_required(fcinfo, 1, "items");
	call.items = shop_items_parse(PG_GETARG_JSONB_P(1));
	call.reason = shop_arg_reason(fcinfo, 2);
	shop_arg_required(fcinfo, 3, "restock");
	call.restock = PG_GETARG_BOOL(3);
	call.key = shop_arg_key(fcinfo, 4);
	if (call.key)
	{
		shop_argument_add_int8(&call.arguments, "order_id", call.order.order_id, false);
		shop_argument_add(&call.arguments, "items", shop_items_text(&call.items));
		shop_argument_add(&call.arguments, "reason", call.reason);
		shop_argument_add(&call.arguments, "restock", call.restock ? "true" : "false");
	}
	shop_write_verb("refund_order()");

	SPI_connect();
	refund(&call);
	refunded = refunded_so_far(&call);
	SPI_finish();
	return refund_result(fcinfo, &call, refunded);
}
