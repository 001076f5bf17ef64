/*
 * shop.h
 *		What every room may use: settings, the clock, limits.
 *
 * Amounts are whole units of shop.currency in int64; times are TimestampTz.
 */
#ifndef SHOP_H
#define SHOP_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/timestamp.h"

#include "compat.h"

/* The largest price, stock or balance; exact in a JSON number. */
#define SHOP_MAX_AMOUNT INT64CONST(1000000000000000)

/* Stock is kept per location; one until there are warehouses. */
#define SHOP_DEFAULT_LOCATION 1

/* Settings, defined in shop.c. */
extern char *shop_currency;
extern int shop_min_charge;
extern double shop_max_balance;
extern int shop_max_stock_slots;
extern bool shop_log_refusals;
extern bool shop_allow_drop;
extern char *shop_allowed_hosts;
extern char *shop_traceparent;
extern int shop_popular_interval; /* s */
extern int shop_outbox_retention; /* min */

/* Times are of the years 1 to 9999, as RFC 3339 has them. */
#define SHOP_IS_WRITABLE_TIME(t) \
	((t) >= (INT64CONST(1721426) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY && \
		(t) < (INT64CONST(5373485) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)

extern TimestampTz shop_now(void);
extern bool shop_parse_time(const char *text, TimestampTz *result);

/* Advisory locks, in the two-key space; the second key is a hash. */
#define SHOP_LOCK_USER 0x53480001	   /* a user without an account row */
#define SHOP_LOCK_RELAY 0x53480002	   /* the relay of a database (session level) */
#define SHOP_LOCK_KEEPER 0x53480003	   /* the keeper of a database (session level) */
#define SHOP_LOCK_RETENTION 0x53480004 /* shared: an endpoint is being made; exclusive: events are cleared */
#define SHOP_LOCK_BUILTIN 0x53480005   /* the built-in endpoint is being made */

#define SHOP_LOCK_COUPON 0x53480006 /* a user who is being issued a coupon */

extern int32 shop_lock_key(int64 id);
extern void shop_lock_xact(int32 lock_class, int32 key);
extern void shop_lock_xact_shared(int32 lock_class, int32 key);
extern bool shop_try_lock_xact(int32 lock_class, int32 key);
extern bool shop_try_lock_session(int32 lock_class, int32 key);

#endif /* SHOP_H */
