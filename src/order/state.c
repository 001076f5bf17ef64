/*
 * state.c
 *		The states of an order, and which may follow which.
 *
 * A reservation is expired from the moment it runs out, whether or not
 * somebody has noted it in its row yet: what a verb answers does not depend
 * on when the keeper comes by.
 *
 * Takes no locks.
 */
#include "order/order.h"

#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

static const char *const names[] = {"reserved", "paid", "released", "expired", "cancelled", "refunded"};
StaticAssertDecl(lengthof(names) == SHOP_ORDER_REFUNDED + 1, "names[] must match ShopOrderStatus");

/* All there are; what is not here is an invalid transition. */
static const struct
{
	ShopOrderStatus from;
	ShopOrderStatus to;
	const char *verb;
} transitions[] = {
	{SHOP_ORDER_RESERVED, SHOP_ORDER_PAID, "pay_order"},
	{SHOP_ORDER_RESERVED, SHOP_ORDER_RELEASED, "release_order"},
	{SHOP_ORDER_RESERVED, SHOP_ORDER_EXPIRED, NULL},
	{SHOP_ORDER_PAID, SHOP_ORDER_CANCELLED, "cancel_order"},
	{SHOP_ORDER_PAID, SHOP_ORDER_REFUNDED, "refund_order"},
};

SHOP_FUNCTION(shop_order_transitions);

const char *
shop_order_status_name(ShopOrderStatus status)
{
	return names[status];
}

ShopOrderStatus
shop_order_status_parse(const char *name)
{
	for (size_t i = 0; i < lengthof(names); i++)
		if (strcmp(names[i], name) == 0)
			return (ShopOrderStatus) i;
	elog(ERROR, "order has the unknown status \"%s\"", name);
}

/* The status that an order has at this time. */
ShopOrderStatus
shop_order_status_at(const ShopOrder *order, TimestampTz now)
{
	if (order->status == SHOP_ORDER_RESERVED && order->expires_at <= now)
		return SHOP_ORDER_EXPIRED;
	return order->status;
}

/* The states that may follow, as a JSON array. */
static char *
allowed_after(ShopOrderStatus from)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (size_t i = 0; i < lengthof(transitions); i++)
		if (transitions[i].from == from)
			appendStringInfo(&buf, "%s\"%s\"", buf.len > 0 ? ", " : "", names[transitions[i].to]);
	return buf.data;
}

/* Refuses with invalid_transition, or reservation_expired where that is why it cannot be paid. */
void
shop_order_check_transition(const ShopOrder *order, ShopOrderStatus to, TimestampTz now)
{
	ShopOrderStatus from = shop_order_status_at(order, now);

	for (size_t i = 0; i < lengthof(transitions); i++)
		if (transitions[i].from == from && transitions[i].to == to)
			return;
	if (from == SHOP_ORDER_EXPIRED && to == SHOP_ORDER_PAID)
		shop_refuse(SHOP_RESERVATION_EXPIRED, "{\"order_id\": " INT64_FORMAT ", \"expires_at\": \"%s\"}",
			order->order_id, shop_json_time(order->expires_at));
	shop_refuse(SHOP_INVALID_TRANSITION,
		"{\"order_id\": " INT64_FORMAT ", \"from\": \"%s\", \"to\": \"%s\", \"allowed\": [%s]}", order->order_id,
		names[from], names[to], allowed_after(from));
}

Datum
shop_order_transitions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (size_t i = 0; i < lengthof(transitions); i++)
	{
		const char *verb = transitions[i].verb;
		Datum values[4] = {CStringGetTextDatum(names[transitions[i].from]),
			CStringGetTextDatum(names[transitions[i].to]), verb ? CStringGetTextDatum(verb) : (Datum) 0,
			CStringGetTextDatum(psprintf("order.%s", names[transitions[i].to]))};
		bool nulls[4] = {false, false, verb == NULL, false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
