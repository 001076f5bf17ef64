/*
 * outbox.h
 *		Events: writing one in the caller's transaction, delivering batches.
 */
#ifndef SHOP_OUTBOX_H
#define SHOP_OUTBOX_H

#include "shop.h"

#include "storage/itemptr.h"
#include "utils/jsonb.h"

/* emit.c */
extern void shop_emit(
	const char *type, const char *aggregatetype, const char *aggregateid, Jsonb *payload, TimestampTz now);

/* endpoint.c */
extern bool shop_endpoint_builtin_is_home(void);
extern void shop_endpoint_ensure_builtin(void);
extern void shop_endpoint_expect_builtin(void);

/* delivery.c */
typedef struct ShopDelivered
{
	int64 delivered;
	bool more;			 /* is more due already? */
	TimestampTz next_at; /* when the next retry is due, or DT_NOEND */
} ShopDelivered;

extern ShopDelivered shop_deliver_batch(int64 endpoint_id, int limit, int most, bool wait, ItemPointer place);
extern void shop_deliver_builtin(void);

/* retention.c */
extern int64 shop_outbox_clear(int limit);

#endif /* SHOP_OUTBOX_H */
