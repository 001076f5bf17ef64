/*
 * retention.c
 *		Removes events that every endpoint is done with, from the old end, once
 *		shop.outbox_retention has passed.
 *
 * Events that wait for a retry or are dead letters stay.  What was removed is
 * noted in shop.outbox_cleared, so that verify() knows what to miss.
 *
 * Locks: SHOP_LOCK_RETENTION, without waiting, so that no endpoint is being
 * made that would still want what is removed; the rows it deletes, behind
 * where any endpoint reads.
 */
#include "outbox/outbox.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "query.h"

/*
 * $2 rows from the old end are looked at, and as many more as there are
 * deliveries, which may be all that is left there.
 */
static ShopQuery clear_events = SHOP_QUERY(
	"WITH oldest AS MATERIALIZED"
	"  (SELECT event_no, created_at FROM shop.outbox"
	"    WHERE event_no < (SELECT min(coalesce((SELECT min(lower(g)) FROM unnest('{(,)}'::int8multirange - e.acked) "
	"g), 0))"
	"                        FROM shop.endpoint e)"
	"    ORDER BY event_no LIMIT $2 + (SELECT count(*) FROM shop.delivery)),"
	" gone AS"
	"  (DELETE FROM shop.outbox o USING oldest"
	"    WHERE o.event_no = oldest.event_no AND oldest.created_at < $1"
	"      AND NOT EXISTS (SELECT FROM shop.delivery d WHERE d.event_no = o.event_no)"
	"   RETURNING o.created_at)"
	" INSERT INTO shop.outbox_cleared AS c (created_upto, events)"
	" SELECT max(created_at), count(*) FROM gone HAVING count(*) > 0"
	" ON CONFLICT (singleton) DO UPDATE"
	"   SET created_upto = greatest(c.created_upto, excluded.created_upto), events = c.events + excluded.events"
	" RETURNING events",
	TIMESTAMPTZOID, INT4OID);

static ShopQuery cleared_so_far = SHOP_QUERY("SELECT coalesce(max(events), 0) FROM shop.outbox_cleared");

/* Removes some `limit` events, at READ COMMITTED only; returns how many: fewer, and no more are due. */
int64
shop_outbox_clear(int limit)
{
	TimestampTz before = TimestampTzPlusMilliseconds(shop_now(), -(int64) shop_outbox_retention * 60 * 1000);
	int64 cleared;

	/* A snapshot from before the lock might not show the newest endpoint. */
	if (IsolationUsesXactSnapshot() || !shop_try_lock_xact(SHOP_LOCK_RETENTION, 0))
		return 0;
	shop_query(&cleared_so_far, NULL);
	cleared = shop_fetch_int8(0, 1);
	if (shop_query(&clear_events, SHOP_VALUES(shop_time(before), shop_int4(limit))) == 0)
		return 0;
	return shop_fetch_int8(0, 1) - cleared;
}
