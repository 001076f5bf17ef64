/*
 * json.c
 *		JSON objects, member by member: the payloads of events.
 *
 * Made of values, not of a text that has to be parsed, so nothing has to be
 * escaped, and it takes half the time.  Members that come in jsonb's order,
 * shorter names first, need not be sorted.
 *
 * Takes no locks.
 */
#include "json.h"

#include "error.h"
#include "utils/numeric.h"

static void
push_string(ShopJson *json, JsonbIteratorToken token, const char *text)
{
	JsonbValue value = {.type = jbvString};

	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	(void) pushJsonbValue(&json->state, token, &value);
}

/* Begins an object: the whole, or an element of an array. */
void
shop_json_begin(ShopJson *json)
{
	(void) pushJsonbValue(&json->state, WJB_BEGIN_OBJECT, NULL);
}

/* Ends it; returns the whole, if that is what ends. */
Jsonb *
shop_json_end(ShopJson *json)
{
	bool is_whole = json->state->next == NULL;
	JsonbValue *value = pushJsonbValue(&json->state, WJB_END_OBJECT, NULL);

	return is_whole ? JsonbValueToJsonb(value) : NULL;
}

void
shop_json_int8(ShopJson *json, const char *key, int64 number)
{
	JsonbValue value = {.type = jbvNumeric};

	value.val.numeric = int64_to_numeric(number);
	push_string(json, WJB_KEY, key);
	(void) pushJsonbValue(&json->state, WJB_VALUE, &value);
}

void
shop_json_bool(ShopJson *json, const char *key, bool flag)
{
	JsonbValue value = {.type = jbvBool};

	value.val.boolean = flag;
	push_string(json, WJB_KEY, key);
	(void) pushJsonbValue(&json->state, WJB_VALUE, &value);
}

void
shop_json_text(ShopJson *json, const char *key, const char *text)
{
	JsonbValue null = {.type = jbvNull};

	push_string(json, WJB_KEY, key);
	if (text)
		push_string(json, WJB_VALUE, text);
	else
		(void) pushJsonbValue(&json->state, WJB_VALUE, &null);
}

void
shop_json_moment(ShopJson *json, const char *key, TimestampTz time)
{
	shop_json_text(json, key, shop_json_time(time));
}

void
shop_json_jsonb(ShopJson *json, const char *key, Jsonb *inner)
{
	JsonbValue value;

	if (JB_ROOT_IS_SCALAR(inner))
		(void) JsonbExtractScalar(&inner->root, &value);
	else
	{
		value.type = jbvBinary;
		value.val.binary.data = &inner->root;
		value.val.binary.len = VARSIZE(inner) - VARHDRSZ;
	}
	push_string(json, WJB_KEY, key);
	(void) pushJsonbValue(&json->state, WJB_VALUE, &value);
}

void
shop_json_begin_array(ShopJson *json, const char *key)
{
	push_string(json, WJB_KEY, key);
	(void) pushJsonbValue(&json->state, WJB_BEGIN_ARRAY, NULL);
}

void
shop_json_end_array(ShopJson *json)
{
	(void) pushJsonbValue(&json->state, WJB_END_ARRAY, NULL);
}
