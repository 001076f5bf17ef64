/*
 * cloudevent.c
 *		The CloudEvent 1.0 that an event leaves as: as JSON text for http, as
 *		jsonb for a function, as attributes for Kafka's headers.
 *
 * https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
 *
 * Takes no locks; works with no transaction open.
 */
#include "sink/sink.h"

#include "error.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

/* The attributes of an event but its data, in the order they are written; returns how many. */
int
shop_cloudevent_attributes(const ShopMessage *message, ShopAttribute *attributes)
{
	int n = 0;

	attributes[n++] = (ShopAttribute){"specversion", "1.0"};
	attributes[n++] = (ShopAttribute){"id", message->id};
	attributes[n++] = (ShopAttribute){"source", message->source};
	attributes[n++] = (ShopAttribute){"type", message->type};
	attributes[n++] = (ShopAttribute){"subject", message->key};
	attributes[n++] = (ShopAttribute){"time", shop_json_time(message->time)};
	attributes[n++] = (ShopAttribute){"datacontenttype", "application/json"};
	attributes[n++] = (ShopAttribute){"aggregatetype", message->aggregatetype};
	if (message->traceparent)
		attributes[n++] = (ShopAttribute){"traceparent", message->traceparent};
	return n;
}

/* Appends the event as a JSON object, in the encoding of the database. */
void
shop_cloudevent_append(StringInfo buf, const ShopMessage *message)
{
	ShopAttribute attributes[SHOP_MAX_ATTRIBUTES];
	int n = shop_cloudevent_attributes(message, attributes);

	for (int i = 0; i < n; i++)
	{
		appendStringInfo(buf, "%s\"%s\": ", i == 0 ? "{" : ", ", attributes[i].name);
		escape_json(buf, attributes[i].value);
	}
	appendStringInfoString(buf, ", \"data\": ");
	(void) JsonbToCString(buf, &message->data->root, VARSIZE(message->data));
	appendStringInfoChar(buf, '}');
}

static void
push_string(JsonbParseState **state, JsonbIteratorToken token, const char *text)
{
	JsonbValue value = {.type = jbvString};

	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	(void) pushJsonbValue(state, token, &value);
}

static void
push_jsonb(JsonbParseState **state, Jsonb *json)
{
	JsonbValue value;

	if (JB_ROOT_IS_SCALAR(json))
		(void) JsonbExtractScalar(&json->root, &value);
	else
	{
		value.type = jbvBinary;
		value.val.binary.data = &json->root;
		value.val.binary.len = VARSIZE(json) - VARHDRSZ;
	}
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}

Jsonb *
shop_cloudevent_jsonb(const ShopMessage *message)
{
	ShopAttribute attributes[SHOP_MAX_ATTRIBUTES];
	int n = shop_cloudevent_attributes(message, attributes);
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < n; i++)
	{
		push_string(&state, WJB_KEY, attributes[i].name);
		push_string(&state, WJB_VALUE, attributes[i].value);
	}
	push_string(&state, WJB_KEY, "data");
	push_jsonb(&state, message->data);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}
