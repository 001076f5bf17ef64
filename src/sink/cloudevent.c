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
#include "json.h"
#include "utils/builtins.h"
#include "utils/json.h"

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

Jsonb *
shop_cloudevent_jsonb(const ShopMessage *message)
{
	ShopAttribute attributes[SHOP_MAX_ATTRIBUTES];
	int n = shop_cloudevent_attributes(message, attributes);
	ShopJson json = {0};

	shop_json_begin(&json);
	for (int i = 0; i < n; i++)
		shop_json_text(&json, attributes[i].name, attributes[i].value);
	shop_json_jsonb(&json, "data", message->data);
	return shop_json_end(&json);
}
