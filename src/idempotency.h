/*
 * idempotency.h
 *		Comparing the arguments of a repeated call with the first one's.
 *
 * A key is kept in a column of the row that is the call's effect, under a
 * unique index: it exists if and only if the effect does.  Each verb looks
 * its own keys up, and compares its arguments here in their order.
 */
#ifndef SHOP_IDEMPOTENCY_H
#define SHOP_IDEMPOTENCY_H

#include "error.h"
#include "shop.h"

extern void shop_await_standbys(void);
extern void shop_same_int64(const char *key, const char *argument, int64 first, int64 now);
extern void shop_same_int64_or_null(
	const char *key, const char *argument, int64 first, bool first_isnull, int64 now, bool now_isnull);
extern void shop_same_text(const char *key, const char *argument, const char *first, const char *now);
extern ShopRefusal shop_key_refusal(const char *key, const char *argument);
SHOP_NORETURN extern void shop_key_reused(const char *key, const char *argument);

#endif /* SHOP_IDEMPOTENCY_H */
