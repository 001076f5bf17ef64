/*
 * receive.c
 *		The embedded data platform: keeps each event once, by its id.
 *
 * Locks: the event's row in received_events.
 */
#include "outbox/outbox.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "query.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

static ShopQuery keep_event = SHOP_QUERY(
	"INSERT INTO shop.received_events (event_id, type, aggregatetype, aggregateid, occurred_at, received_at, data)"
	" SELECT ($1->>'id')::uuid, $1->>'type', $1->>'aggregatetype', $1->>'subject', ($1->>'time')::timestamptz, $2,"
	"        $1->'data'"
	" ON CONFLICT (event_id) DO NOTHING",
	JSONBOID, TIMESTAMPTZOID);

SHOP_FUNCTION(shop_receive_event);

static JsonbValue *
find_string(Jsonb *event, const char *key)
{
	JsonbValue *value = NULL;

	if (JB_ROOT_IS_OBJECT(event))
		value = getKeyJsonValueFromContainer(&event->root, key, strlen(key), NULL);
	return value && value->type == jbvString ? value : NULL;
}

/* CloudEvents wants id and type; our ids are uuids. */
static void
check_event(Jsonb *event)
{
	JsonbValue *id = find_string(event, "id");
	JsonbValue *type = find_string(event, "type");

	if (id == NULL || type == NULL)
		shop_reject("event", "must be a JSON object with an id and a type");
	(void) DirectFunctionCall1(uuid_in, CStringGetDatum(pnstrdup(id->val.string.val, id->val.string.len)));
}

Datum
shop_receive_event(PG_FUNCTION_ARGS)
{
	bool is_new;

	shop_arg_required(fcinfo, 0, "event");
	check_event(PG_GETARG_JSONB_P(0));
	shop_write_verb("receive_event()");

	SPI_connect();
	is_new = shop_query(&keep_event, SHOP_VALUES(shop_datum(PG_GETARG_DATUM(0)), shop_time(shop_now()))) > 0;
	SPI_finish();
	PG_RETURN_BOOL(is_new);
}
