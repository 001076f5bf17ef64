/*
 * coupon.h
 *		What an order asks of a coupon.
 */
#ifndef SHOP_COUPON_H
#define SHOP_COUPON_H

#include "error.h"

extern ShopRefusal shop_coupon_discount(
	int64 coupon_id, int64 user_id, int64 subtotal, TimestampTz now, int64 *discount);
extern void shop_coupon_use(int64 coupon_id, int64 order_id);
extern void shop_coupon_give_back(int64 coupon_id, int64 order_id, TimestampTz now);
extern int64 shop_coupon_merge(int limit);

#endif /* SHOP_COUPON_H */
