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
	" SELECT ($1->>'id')::uuid, $1->>'type', $1->>'aggregatetype', $1->>'subject', $3, $2,"
	"        $1->'data'"
	" ON CONFLICT (event_id) DO NOTHING",
	JSONBOID, TIMESTAMPTZOID, TIMESTAMPTZOID);

SHOP_FUNCTION(shop_receive_event);

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

/* CloudEvents wants id and type; our ids are uuids. */
static void
check_event(Jsonb *event)
{
	char *id = get_string(event, "id");

	if (id == NULL || find_string(event, "type") == NULL)
		shop_reject("event", "must be a JSON object with an id and a type");
	if (!is_uuid(id))
		shop_reject("event", "must have a uuid as its id");
}

static ShopValue
event_time(Jsonb *event)
{
	char *text = get_string(event, "time");
	TimestampTz time;

	if (text == NULL)
		return shop_null();
	if (!shop_parse_time(text, &time))
		shop_reject("event", "must have a timestamp as its time");
	return shop_time(time);
}

Datum
shop_receive_event(PG_FUNCTION_ARGS)
{
	bool is_new;
	ShopValue time;

	shop_arg_required(fcinfo, 0, "event");
	check_event(PG_GETARG_JSONB_P(0));
	time = event_time(PG_GETARG_JSONB_P(0));
	shop_write_verb("receive_event()");

	SPI_connect();
	is_new = shop_query(&keep_event, SHOP_VALUES(shop_datum(PG_GETARG_DATUM(0)), shop_time(shop_now()), time)) > 0;
	SPI_finish();
	PG_RETURN_BOOL(is_new);
}
