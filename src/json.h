/*
 * json.h
 *		JSON objects, member by member.
 */
#ifndef SHOP_JSON_H
#define SHOP_JSON_H

#include "shop.h"

#include "utils/jsonb.h"

typedef struct ShopJson
{
	JsonbParseState *state;
} ShopJson;

extern void shop_json_begin(ShopJson *json);
extern void shop_json_int8(ShopJson *json, const char *key, int64 value);
extern void shop_json_bool(ShopJson *json, const char *key, bool value);
extern void shop_json_text(ShopJson *json, const char *key, const char *value); /* NULL pointer: null */
extern void shop_json_moment(ShopJson *json, const char *key, TimestampTz time);
extern void shop_json_jsonb(ShopJson *json, const char *key, Jsonb *value);
extern void shop_json_begin_array(ShopJson *json, const char *key); /* of objects, begun and ended like the whole */
extern void shop_json_end_array(ShopJson *json);
extern Jsonb *shop_json_end(ShopJson *json);

#endif /* SHOP_JSON_H */
