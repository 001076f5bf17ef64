/*
 * stock.h
 *		Units of products: taking, giving back, and what reservations hold.
 */
#ifndef SHOP_STOCK_H
#define SHOP_STOCK_H

#include "shop.h"

#include "stock/slots.h"

/* Units of one product, wanted or given back. */
typedef struct ShopDemand
{
	int64 product_id;
	int64 quantity;
	int64 available;	  /* all units that could be had when last looked at, or as many as are wanted */
	ItemPointerData seen; /* where that look found as many in one slot; not valid: nowhere */
} ShopDemand;

/*
 * Orders whose expired reservations had to give units back to someone else.
 * Whoever takes units hands them to shop_orders_expire(), last of all.
 */
typedef struct ShopExpired
{
	int64 *order_ids;
	int n;
	int allocated;
} ShopExpired;

/* take.c: demands are sorted by product and distinct */
extern void shop_stock_look(ShopDemand *demands, int n, TimestampTz now);
extern ShopExpired shop_stock_take(const ShopDemand *demands, int n);
extern void shop_stock_give_back(const ShopDemand *demands, int n);
extern int64 shop_stock_units(int64 product_id, bool everywhere, TimestampTz now);
extern int64 shop_stock_available(int64 product_id, TimestampTz now);
extern void shop_stock_open(int64 product_id, int64 quantity);
extern int64 shop_stock_merge(int limit);

/* hold.c */
typedef struct ShopReservation
{
	int64 order_id;
	TimestampTz expires_at;
	bool free; /* could all that it holds be locked without waiting? */
} ShopReservation;

extern void shop_holds_insert(int64 order_id, TimestampTz expires_at, const ShopDemand *demands, int n);
extern int shop_holds_delete(int64 order_id, TimestampTz expires_at);
extern void shop_holds_lock_free(ShopReservation *reservations, int n);
extern int shop_holds_of_free(const ShopReservation *reservations, int n, ShopDemand **demands);
extern int64 shop_holds_take_back(int64 product_id, int64 missing, TimestampTz now, ShopExpired *expired);

/* movement.c */
extern void shop_movement_initial(int64 product_id, int64 quantity, TimestampTz now);

#endif /* SHOP_STOCK_H */
