/*
 * catalog.h
 *		What an order asks the catalogue: price, status and units, at once.
 */
#ifndef SHOP_CATALOG_H
#define SHOP_CATALOG_H

#include "shop.h"

typedef struct ShopProduct
{
	int64 product_id;
	int64 quantity; /* asked for */
	bool found;
	bool on_sale;
	char *status;
	int64 price;
	int32 slot;		 /* the nearest slot with that many units, or -1 */
	int64 available; /* where there is none: all units that can be had */
} ShopProduct;

extern void shop_catalog_read(ShopProduct *products, int n);

#endif /* SHOP_CATALOG_H */
