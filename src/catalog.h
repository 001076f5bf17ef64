/*
 * catalog.h
 *		What an order asks the catalogue: price and status.
 */
#ifndef SHOP_CATALOG_H
#define SHOP_CATALOG_H

#include "shop.h"

typedef struct ShopProduct
{
	int64 product_id;
	bool found;
	bool on_sale;
	char *status;
	int64 price;
} ShopProduct;

extern void shop_catalog_read(ShopProduct *products, int n);

#endif /* SHOP_CATALOG_H */
