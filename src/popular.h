/*
 * popular.h
 *		Refreshing the view of popular products.
 */
#ifndef SHOP_POPULAR_H
#define SHOP_POPULAR_H

#include "shop.h"

extern void shop_popular_refresh(void);
extern void shop_popular_upgrade_init(void);
extern int64 shop_popular_version(void);

#endif /* SHOP_POPULAR_H */
