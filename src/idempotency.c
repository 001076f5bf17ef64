/*
 * idempotency.c
 *		Refuses a key that comes back with other arguments, naming the first
 *		argument that differs.
 *
 * Takes no locks.  Here is also what a repeated call waits for.
 */
#include "idempotency.h"

#include "access/xlog.h"
#include "error.h"
#include "miscadmin.h"
#include "replication/syncrep.h"

/*
 * An answer that is told again acknowledges what it tells of, so it waits for
 * the synchronous standbys as the first one would have, had nobody cut its wait
 * short.  All that is visible, and was committed durably, is flushed here.
 */
void
shop_await_standbys(void)
{
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(GetFlushRecPtr(NULL), true);
	RESUME_INTERRUPTS();
}

ShopRefusal
shop_key_refusal(const char *key, const char *argument)
{
	return shop_refusal(SHOP_IDEMPOTENCY_KEY_REUSED, "{\"idempotency_key\": %s, \"argument\": \"%s\"}",
		shop_json_string(key), argument);
}

void
shop_key_reused(const char *key, const char *argument)
{
	shop_raise(shop_key_refusal(key, argument));
}

void
shop_same_int64(const char *key, const char *argument, int64 first, int64 now)
{
	if (first != now)
		shop_key_reused(key, argument);
}

void
shop_same_int64_or_null(
	const char *key, const char *argument, int64 first, bool first_isnull, int64 now, bool now_isnull)
{
	if (first_isnull != now_isnull || (!first_isnull && first != now))
		shop_key_reused(key, argument);
}

/* NULL pointers stand for SQL NULL. */
void
shop_same_text(const char *key, const char *argument, const char *first, const char *now)
{
	if ((first == NULL) != (now == NULL) || (first != NULL && strcmp(first, now) != 0))
		shop_key_reused(key, argument);
}
