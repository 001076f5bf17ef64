/*
 * catalog.h
 *		What an order asks the catalogue: price, status and units, at once.
 */
#ifndef SHOP_CATALOG_H
#define SHOP_CATALOG_H

#include "shop.h"

typedef struct ShopProduct
{
	int64		product_id;
	bool		found;
	bool		on_sale;
	int64		price;
	int64		available;
	char	   *status;
} ShopProduct;

extern void shop_catalog_read(ShopProduct *products, int n);

#endif							/* SHOP_CATALOG_H */
