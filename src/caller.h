/*
 * caller.h
 *		Who has called a function, and becoming its owner.
 */
#ifndef SHOP_CALLER_H
#define SHOP_CALLER_H

#include "shop.h"

typedef struct ShopCaller
{
	Oid role;
	int security;
} ShopCaller;

extern ShopCaller shop_become_owner(FunctionCallInfo fcinfo);
extern void shop_become_caller(ShopCaller caller);

#endif /* SHOP_CALLER_H */
