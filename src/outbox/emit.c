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
#include "catalog/pg_type.h"
#include "error.h"
#include "query.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"
#include "worker/worker.h"

static ShopQuery insert_event = SHOP_QUERY(
	"INSERT INTO shop.outbox (type, aggregatetype, aggregateid, payload, priority, created_at, traceparent)"
	" VALUES ($1, $2, $3, $4, $5::smallint, $6, $7) RETURNING id",
	TEXTOID, TEXTOID, TEXTOID, JSONBOID, INT4OID, TIMESTAMPTZOID, TEXTOID);

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

static void
insert(const char *type, const char *aggregatetype, const char *aggregateid, Datum payload, int32 priority,
	TimestampTz now)
{
	shop_endpoint_expect_builtin();
	(void) GetTopTransactionId();
	shop_query(&insert_event,
		SHOP_VALUES(shop_text(type), shop_text(aggregatetype), shop_text(aggregateid), shop_datum(payload),
			shop_int4(priority), shop_time(now), *shop_traceparent ? shop_text(shop_traceparent) : shop_null()));
	shop_worker_wake_at_commit();
}

/* Emits an event of the shop's own. */
void
shop_emit(const char *type, const char *aggregatetype, const char *aggregateid, Jsonb *payload, TimestampTz now)
{
	insert(type, aggregatetype, aggregateid, JsonbPGetDatum(payload), 0, now);
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
	bool isnull;

	shop_arg_required(fcinfo, 3, "payload");
	for (size_t i = 0; i < lengthof(own_types); i++)
		if (strcmp(type, own_types[i]) == 0)
			shop_reject("type", "is reserved to the shop's own events");
	if (priority < 0 || priority > 9)
		shop_reject("priority", "must be between 0 and 9");
	shop_write_verb("emit_event()");

	SPI_connect();
	insert(type, aggregatetype, aggregateid, PG_GETARG_DATUM(3), priority, shop_now());
	*id = *DatumGetUUIDP(shop_fetch(0, 1, &isnull));
	SPI_finish();
	PG_RETURN_UUID_P(id);
}
