/*
 * emit.c
 *		Writes an event into the outbox, in the transaction that it tells of.
 *
 * This is the only place that draws event numbers, and it does so after the
 * transaction has its xid: whoever later misses a number can tell from a
 * snapshot whether its transaction may still commit (see delivery.c).
 *
 * Takes no locks, but for the first event of a database, which makes the
 * built-in endpoint.  The relay is woken when the transaction has committed.
 */
#include "outbox/outbox.h"

#include "access/xact.h"
#include "append.h"
#include "catalog/pg_type.h"
#include "error.h"
#include "query.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"
#include "worker/worker.h"

static ShopTable outbox = {.name = "outbox",
	.columns = {
		"event_no", "id", "type", "aggregatetype", "aggregateid", "payload", "priority", "created_at", "traceparent"}};

SHOP_FUNCTION(shop_emit_event);

/* The types that the shop's own state changes are told by. */
static const char *const own_types[] = {
	"order.paid",
	"order.reserved",
	"order.released",
	"order.expired",
	"order.cancelled",
	"order.refunded",
	"points.charged",
	"points.used",
	"coupon.issued",
};

/* Returns the event's id. */
static Datum
insert(const char *type, const char *aggregatetype, const char *aggregateid, Datum payload, int32 priority,
	TimestampTz now)
{
	Datum id = DirectFunctionCall1(gen_random_uuid, (Datum) 0);

	shop_endpoint_expect_builtin();
	(void) GetTopTransactionId();
	shop_append(
		&outbox, SHOP_VALUES(shop_int8(shop_append_number("outbox_event_no_seq")), shop_datum(id), shop_text(type),
					 shop_text(aggregatetype), shop_text(aggregateid), shop_datum(payload), shop_int2((int16) priority),
					 shop_time(now), *shop_traceparent ? shop_text(shop_traceparent) : shop_null()));
	shop_worker_wake_at_commit(SHOP_WAKE_EVENTS);
	return id;
}

/* Emits an event of the shop's own. */
void
shop_emit(const char *type, const char *aggregatetype, const char *aggregateid, Jsonb *payload, TimestampTz now)
{
	(void) insert(type, aggregatetype, aggregateid, JsonbPGetDatum(payload), 0, now);
}

static char *
arg_name(FunctionCallInfo fcinfo, int n, const char *name)
{
	char *value = shop_arg_text(fcinfo, n, name);

	if (*value == '\0' || strlen(value) > 255)
		shop_reject(name, "must have 1 to 255 bytes");
	return value;
}

Datum
shop_emit_event(PG_FUNCTION_ARGS)
{
	char *type = arg_name(fcinfo, 0, "type");
	char *aggregatetype = arg_name(fcinfo, 1, "aggregatetype");
	char *aggregateid = arg_name(fcinfo, 2, "aggregateid");
	int32 priority = shop_arg_int32(fcinfo, 4, "priority");
	pg_uuid_t *id = palloc(sizeof(pg_uuid_t));

	shop_arg_required(fcinfo, 3, "payload");
	for (size_t i = 0; i < lengthof(own_types); i++)
		if (strcmp(type, own_types[i]) == 0)
			shop_reject("type", "is reserved to the shop's own events");
	if (priority < 0 || priority > 9)
		shop_reject("priority", "must be between 0 and 9");
	shop_write_verb("emit_event()");

	SPI_connect();
	*id = *DatumGetUUIDP(insert(type, aggregatetype, aggregateid, PG_GETARG_DATUM(3), priority, shop_now()));
	SPI_finish();
	PG_RETURN_UUID_P(id);
}
