/*
 * points.h
 *		A user's account: its lock and its ledger.
 */
#ifndef SHOP_POINTS_H
#define SHOP_POINTS_H

#include "shop.h"

#include "storage/itemptr.h"

typedef struct ShopAccount
{
	int64 user_id;
	int64 balance; /* 0 without an account */
	bool exists;
	bool waited;		   /* did the lock have to be waited for? */
	ItemPointerData place; /* of the row, where it was locked without waiting */
} ShopAccount;

extern ShopAccount shop_account_lock(int64 user_id);
extern int64 shop_account_post(ShopAccount *account, int64 amount, const char *kind, const char *reason,
	const int64 *order_id, const char *key, TimestampTz now);

#endif /* SHOP_POINTS_H */
