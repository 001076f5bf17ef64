/*
 * stock.h
 *		Taking units for an order, and the first units of a product.
 */
#ifndef SHOP_STOCK_H
#define SHOP_STOCK_H

#include "shop.h"

/* Units wanted of one product. */
typedef struct ShopDemand
{
	int64 product_id;
	int64 quantity;
	int32 slot; /* the nearest slot with that many when last looked at, or -1 */
} ShopDemand;

extern int32 shop_stock_own_slot(void);
extern void shop_stock_take(const ShopDemand *demands, int n);
extern int64 shop_stock_merge(int limit);
extern void shop_stock_open(int64 product_id, int64 quantity, TimestampTz now);

#endif /* SHOP_STOCK_H */
