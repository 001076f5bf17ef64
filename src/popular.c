/*
 * popular.c
 *		What sold best: sales folded by the hour, ranked in a materialized view.
 *
 * fold_sales() is the built-in subscriber: it runs in the transaction that
 * acknowledges the events, so each is folded exactly once.  A cancellation or
 * a refund is taken off the hour of the payment it belongs to.
 *
 * Locks: rows of product_sales, by hour and product; a refresh takes the
 * view's EXCLUSIVE lock, which readers do not mind.
 */
#include "popular.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "outbox/outbox.h"
#include "query.h"
#include "tcop/utility.h"

static ShopQuery fold = SHOP_QUERY(
	"INSERT INTO shop.product_sales AS s (hour, product_id, quantity, revenue)"
	" SELECT date_trunc('hour', (e->'data'->>'paid_at')::timestamptz, 'UTC'), (l->>'product_id')::bigint,"
	"        sum(x.sign * (l->>'quantity')::bigint)::bigint, sum(x.sign * (l->>'total')::bigint)::bigint"
	"   FROM unnest($1) e"
	"  CROSS JOIN LATERAL jsonb_array_elements(e->'data'->'lines') l"
	"  CROSS JOIN LATERAL (SELECT CASE e->>'type' WHEN 'order.paid' THEN 1 ELSE -1 END) x(sign)"
	"  GROUP BY 1, 2 ORDER BY 1, 2"
	" ON CONFLICT (hour, product_id) DO UPDATE"
	"   SET quantity = s.quantity + excluded.quantity, revenue = s.revenue + excluded.revenue",
	JSONBARRAYOID);

static ShopQuery is_populated = SHOP_QUERY(
	"SELECT relispopulated FROM pg_class WHERE oid = 'shop.popular_products'::regclass");

/* Changes with every sale that is folded, and every hour while there are any. */
static ShopQuery read_version = SHOP_QUERY(
	"SELECT e.delivered_total * 1000000 + extract(epoch FROM date_trunc('hour', shop.clock(), 'UTC'))::bigint / 3600"
	"  FROM shop.endpoint e WHERE e.builtin");

static ShopQuery read_top = SHOP_QUERY(
	"SELECT rank, product_id, name, quantity, revenue, refreshed_at FROM shop.popular_products"
	" ORDER BY rank LIMIT $1",
	INT4OID);

static ProcessUtility_hook_type previous_utility_hook;

SHOP_FUNCTION(shop_fold_sales);
SHOP_FUNCTION(shop_refresh_popular_products);
SHOP_FUNCTION(shop_top_products);

Datum
shop_fold_sales(PG_FUNCTION_ARGS)
{
	shop_arg_required(fcinfo, 0, "events");
	SPI_connect();
	shop_query(&fold, SHOP_VALUES(shop_datum(PG_GETARG_DATUM(0))));
	SPI_finish();
	PG_RETURN_VOID();
}

/* Refreshes the view from what has been folded; SPI is connected. */
void
shop_popular_refresh(void)
{
	const char *refresh;

	/* A restored view may never have been filled; CONCURRENTLY cannot do that. */
	shop_query(&is_populated, NULL);
	refresh = shop_fetch_bool(0, 1) ? "REFRESH MATERIALIZED VIEW CONCURRENTLY shop.popular_products"
									: "REFRESH MATERIALIZED VIEW shop.popular_products";
	if (SPI_execute(refresh, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not refresh popular_products");
}

/* While this number stays the same, so does the view. */
int64
shop_popular_version(void)
{
	return shop_query(&read_version, NULL) > 0 ? shop_fetch_int8(0, 1) : 0;
}

Datum
shop_refresh_popular_products(PG_FUNCTION_ARGS)
{
	TimestampTz now;

	(void) fcinfo;
	shop_write_verb("refresh_popular_products()");
	SPI_connect();
	shop_deliver_builtin();
	shop_popular_refresh();
	now = shop_now();
	SPI_finish();
	PG_RETURN_TIMESTAMPTZ(now);
}

Datum
shop_top_products(PG_FUNCTION_ARGS)
{
	int32 n = shop_arg_int32(fcinfo, 0, "n");

	if (n < 1 || n > 1000)
		shop_reject("n", "must be between 1 and 1000");
	(void) shop_return_set(fcinfo, &read_top, SHOP_VALUES(shop_int4(n)));
	return (Datum) 0;
}

static bool
refreshes_popular(Node *statement)
{
	RangeVar *view;

	if (!IsA(statement, RefreshMatViewStmt))
		return false;
	view = ((RefreshMatViewStmt *) statement)->relation;
	return view->schemaname && strcmp(view->schemaname, "shop") == 0 && strcmp(view->relname, "popular_products") == 0;
}

static void
leave_out_refresh(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, ProcessUtilityContext context,
	ParamListInfo params, QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (refreshes_popular(pstmt->utilityStmt))
		return;
	if (previous_utility_hook)
		previous_utility_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
}

/*
 * A restore ends with a refresh of the view, because it is registered to be
 * dumped.  pg_upgrade does so too, although it takes the view's rows along as
 * they are; there a refresh fails, for nothing new may be created.
 */
void
shop_popular_upgrade_init(void)
{
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = leave_out_refresh;
}
