/*
 * metrics.c
 *		How each endpoint is doing, from its gaps: cheap at any backlog.
 *
 * Takes no locks.
 */
#include "outbox/outbox.h"

#include "query.h"

static ShopQuery read_metrics = SHOP_QUERY(
	"SELECT e.name,"
	"       CASE WHEN e.paused OR NOT shop.is_home(e.system_identifier, e.database_oid) THEN 'paused'"
	"            WHEN e.failures > 0 THEN 'failing' ELSE 'active' END,"
	"       coalesce(g.pending, 0)::bigint, d.retrying, d.dead, shop.clock() - least(g.oldest, d.oldest),"
	"       e.delivered_total, e.last_delivered_at, e.last_error"
	"  FROM shop.endpoint e"
	" CROSS JOIN (SELECT min(event_no) AS first, max(event_no) AS last FROM shop.outbox) o"
	" CROSS JOIN LATERAL"
	"       (SELECT sum(least(coalesce(upper(r), o.last + 1), o.last + 1) - greatest(lower(r), o.first)) AS pending,"
	"               min(v.created_at) AS oldest"
	"          FROM unnest('{(,)}'::int8multirange - e.acked) r"
	"          LEFT JOIN LATERAL (SELECT created_at FROM shop.outbox"
	"                              WHERE event_no >= greatest(lower(r), o.first)"
	"                                AND event_no < coalesce(upper(r), o.last + 1)"
	"                              ORDER BY event_no LIMIT 1) v ON true"
	"         WHERE coalesce(lower(r), o.first) <= o.last AND coalesce(upper(r), o.last + 1) > o.first) g"
	" CROSS JOIN LATERAL"
	"       (SELECT count(*) FILTER (WHERE dead_at IS NULL) AS retrying, count(dead_at) AS dead,"
	"               min(x.created_at) FILTER (WHERE dead_at IS NULL) AS oldest"
	"          FROM shop.delivery y JOIN shop.outbox x USING (event_no)"
	"         WHERE y.endpoint_id = e.endpoint_id) d"
	" WHERE NOT e.builtin ORDER BY e.name");

SHOP_FUNCTION(shop_outbox_metrics);

Datum
shop_outbox_metrics(PG_FUNCTION_ARGS)
{
	(void) shop_return_set(fcinfo, &read_metrics, NULL);
	return (Datum) 0;
}
