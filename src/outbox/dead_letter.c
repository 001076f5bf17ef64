/*
 * dead_letter.c
 *		Puts dead letters back in the queue, under the id they had.
 *
 * Locks: the endpoint row, as for a delivery, so that nothing of a key leaves
 * meanwhile, and what dies just now is seen; then the delivery rows.
 */
#include "outbox/batch.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "query.h"
#include "utils/builtins.h"
#include "utils/uuid.h"
#include "worker/worker.h"

static ShopQuery lock_endpoint = SHOP_QUERY(
	"SELECT endpoint_id FROM shop.endpoint WHERE name = $1 AND NOT builtin FOR NO KEY UPDATE", TEXTOID);

static ShopQuery revive = SHOP_QUERY(
	"WITH revived AS"
	" (UPDATE shop.delivery SET dead_at = NULL, attempts = 0, next_attempt_at = 'infinity'"
	"   WHERE endpoint_id = $1 AND dead_at IS NOT NULL"
	"     AND ($2 IS NULL OR event_id = $2) AND ($3 IS NULL OR dead_at >= $3) RETURNING event_no)"
	" SELECT array_agg(event_no), count(*) FROM revived HAVING count(*) > 0",
	INT8OID, UUIDOID, TIMESTAMPTZOID);

SHOP_FUNCTION(shop_redrive);
SHOP_FUNCTION(shop_redrive_all);

/* Revives one dead letter, or those since a time, or all; returns how many. */
static int64
redrive(const char *endpoint, ShopValue event_id, ShopValue since)
{
	int64 endpoint_id;
	int64 revived;
	bool isnull;

	if (shop_query(&lock_endpoint, SHOP_VALUES(shop_text(endpoint))) == 0)
		shop_refuse(SHOP_ENDPOINT_NOT_FOUND, "{\"endpoint\": %s}", shop_json_string(endpoint));
	endpoint_id = shop_fetch_int8(0, 1);
	if (shop_query(&revive, SHOP_VALUES(shop_int8(endpoint_id), event_id, since)) == 0)
		return 0;
	revived = shop_fetch_int8(0, 2);
	shop_batch_move_up(endpoint_id, shop_datum(shop_fetch(0, 1, &isnull)), shop_now());
	shop_worker_wake_at_commit(SHOP_WAKE_EVENTS);
	return revived;
}

Datum
shop_redrive(PG_FUNCTION_ARGS)
{
	char *endpoint = shop_arg_text(fcinfo, 0, "endpoint");
	int64 revived;

	shop_arg_required(fcinfo, 1, "event_id");
	shop_write_verb("redrive()");
	SPI_connect();
	revived = redrive(endpoint, shop_datum(PG_GETARG_DATUM(1)), shop_null());
	if (revived == 0)
		shop_refuse(SHOP_DEAD_LETTER_NOT_FOUND, "{\"endpoint\": %s, \"event_id\": \"%s\"}", shop_json_string(endpoint),
			DatumGetCString(DirectFunctionCall1(uuid_out, PG_GETARG_DATUM(1))));
	SPI_finish();
	PG_RETURN_INT64(revived);
}

Datum
shop_redrive_all(PG_FUNCTION_ARGS)
{
	char *endpoint = shop_arg_text(fcinfo, 0, "endpoint");
	ShopValue since = PG_ARGISNULL(1) ? shop_null() : shop_time(PG_GETARG_TIMESTAMPTZ(1));
	int64 revived;

	shop_write_verb("redrive_all()");
	SPI_connect();
	revived = redrive(endpoint, shop_null(), since);
	SPI_finish();
	PG_RETURN_INT64(revived);
}
