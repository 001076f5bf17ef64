/*
 * receive.c
 *		The embedded data platform: keeps each event once, by its id.
 *
 * Locks: the event's row in received_events; of several, in their order.
 */
#include "outbox/outbox.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "query.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

static ShopQuery keep_event = SHOP_QUERY(
	"INSERT INTO shop.received_events (event_id, type, aggregatetype, aggregateid, occurred_at, received_at, data)"
	" SELECT ($1->>'id')::uuid, $1->>'type', $1->>'aggregatetype', $1->>'subject', $3, $2,"
	"        $1->'data'"
	" ON CONFLICT (event_id) DO NOTHING",
	JSONBOID, TIMESTAMPTZOID, TIMESTAMPTZOID);

/* check_event() has seen them: what is cast here can be. */
static ShopQuery keep_events = SHOP_QUERY(
	"INSERT INTO shop.received_events (event_id, type, aggregatetype, aggregateid, occurred_at, received_at, data)"
	" SELECT (e->>'id')::uuid, e->>'type', e->>'aggregatetype', e->>'subject', (e->>'time')::timestamptz, $2, e->'data'"
	"   FROM unnest($1) e"
	" ON CONFLICT (event_id) DO NOTHING",
	JSONBARRAYOID, TIMESTAMPTZOID);

SHOP_FUNCTION(shop_receive_event);
SHOP_FUNCTION(shop_receive_events);

static JsonbValue *
find_string(Jsonb *event, const char *key)
{
	JsonbValue *value = NULL;

	if (JB_ROOT_IS_OBJECT(event))
		value = getKeyJsonValueFromContainer(&event->root, key, strlen(key), NULL);
	return value && value->type == jbvString ? value : NULL;
}

static char *
get_string(Jsonb *event, const char *key)
{
	JsonbValue *value = find_string(event, key);

	return value ? pnstrdup(value->val.string.val, value->val.string.len) : NULL;
}

/* What uuid_in takes: 32 hexadecimal digits, a hyphen after any four of them, braces around all. */
static bool
is_uuid(const char *text)
{
	bool braces = *text == '{';
	int digits = 0;

	for (text += braces; *text && *text != '}'; text++)
	{
		if (isxdigit((unsigned char) *text))
			digits++;
		else if (*text != '-' || digits == 0 || digits % 4 != 0 || digits == 32 || text[-1] == '-')
			return false;
	}
	return digits == 32 && strcmp(text, braces ? "}" : "") == 0;
}

/* CloudEvents wants id and type; our ids are uuids.  `position` is that in a batch, or empty. */
static void
check_event(Jsonb *event, const char *argument, const char *position)
{
	char *id = get_string(event, "id");

	if (id == NULL || find_string(event, "type") == NULL)
		shop_reject(argument, "%smust be a JSON object with an id and a type", position);
	if (!is_uuid(id))
		shop_reject(argument, "%smust have a uuid as its id", position);
}

static ShopValue
event_time(Jsonb *event, const char *argument, const char *position)
{
	char *text = get_string(event, "time");
	TimestampTz time;

	if (text == NULL)
		return shop_null();
	if (!shop_parse_time(text, &time))
		shop_reject(argument, "%smust have a timestamp as its time", position);
	return shop_time(time);
}

Datum
shop_receive_event(PG_FUNCTION_ARGS)
{
	bool is_new;
	ShopValue time;

	shop_arg_required(fcinfo, 0, "event");
	check_event(PG_GETARG_JSONB_P(0), "event", "");
	time = event_time(PG_GETARG_JSONB_P(0), "event", "");
	shop_write_verb("receive_event()");

	SPI_connect();
	is_new = shop_query(&keep_event, SHOP_VALUES(shop_datum(PG_GETARG_DATUM(0)), shop_time(shop_now()), time)) > 0;
	SPI_finish();
	PG_RETURN_BOOL(is_new);
}

Datum
shop_receive_events(PG_FUNCTION_ARGS)
{
	Datum *events;
	bool *nulls;
	int n;
	int64 added;

	shop_arg_required(fcinfo, 0, "events");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), JSONBOID, -1, false, TYPALIGN_INT, &events, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		char *position = psprintf("element %d ", i + 1);

		if (nulls[i])
			shop_reject("events", "%smust not be null", position);
		check_event(DatumGetJsonbP(events[i]), "events", position);
		(void) event_time(DatumGetJsonbP(events[i]), "events", position);
	}
	shop_write_verb("receive_events()");

	SPI_connect();
	added = shop_query(&keep_events, SHOP_VALUES(shop_datum(PG_GETARG_DATUM(0)), shop_time(shop_now())));
	SPI_finish();
	PG_RETURN_INT64(added);
}
