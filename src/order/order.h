/*
 * order.h
 *		The items of an order, from JSON to priced lines.
 */
#ifndef SHOP_ORDER_H
#define SHOP_ORDER_H

#include "shop.h"

#include "catalog.h"
#include "error.h"
#include "utils/jsonb.h"

#define SHOP_MAX_ITEMS 1000

/* One distinct product of an order. */
typedef struct ShopItem
{
	int64 product_id;
	int32 quantity; /* summed over its mentions */
	int32 line_no;	/* from 1, in order of first mention */
	int64 unit_price;
	int64 discount;
	int32 slot; /* nearest stock slot with enough units, or -1 */
} ShopItem;

/* Sorted by product_id. */
typedef struct ShopItems
{
	ShopItem *items;
	int n;
	int64 subtotal;
} ShopItems;

extern ShopItems shop_items_parse(Jsonb *json);
extern ShopRefusal shop_items_price(ShopItems *items);
extern void shop_items_take_stock(const ShopItems *items);
extern void shop_items_insert(const ShopItems *items, int64 order_id);
extern bool shop_items_same(const ShopItems *items, int64 order_id);
extern char *shop_items_json(const ShopItems *items);

#endif /* SHOP_ORDER_H */
