/*
 * movement.c
 *		Units put in or taken out other than by orders, and their journal.
 *
 * Locks: the key of the movement (a unique index), where a second call waits;
 * then those of shop_stock_take() or of slot 0.  A negative restock can take
 * back what expired reservations hold, so it ends with their orders.
 *
 * Invariant: a movement for everything but sales that changed a stock.
 */
#include "stock/stock.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "idempotency.h"
#include "order/order.h"
#include "query.h"

static ShopQuery find_product = SHOP_QUERY("SELECT FROM shop.product WHERE product_id = $1", INT8OID);

static ShopQuery insert_movement = SHOP_QUERY(
	"INSERT INTO shop.stock_movement (product_id, quantity, available, kind, idempotency_key, created_at)"
	" VALUES ($1, $2, $3, $4, $5, $6)"
	" ON CONFLICT (kind, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING movement_id",
	INT8OID, INT8OID, INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID);

static ShopQuery complete_movement = SHOP_QUERY(
	"UPDATE shop.stock_movement SET available = $2 WHERE movement_id = $1", INT8OID, INT8OID);

static ShopQuery find_restock = SHOP_QUERY("SELECT product_id, quantity, available FROM shop.stock_movement"
										   " WHERE kind = 'restock' AND idempotency_key = $1",
	TEXTOID);

SHOP_FUNCTION(shop_restock);

/* Notes the units that a new product starts with. */
void
shop_movement_initial(int64 product_id, int64 quantity, TimestampTz now)
{
	shop_query(&insert_movement, SHOP_VALUES(shop_int8(product_id), shop_int8(quantity), shop_int8(quantity),
									 shop_text("initial"), shop_null(), shop_time(now)));
}

static bool
find_replay(const char *key, int64 product_id, int32 quantity, int64 *result)
{
	if (key == NULL || shop_query(&find_restock, SHOP_VALUES(shop_text(key))) == 0)
		return false;
	shop_same_int64(key, "product_id", shop_fetch_int8(0, 1), product_id);
	shop_same_int64(key, "quantity", shop_fetch_int8(0, 2), quantity);
	*result = shop_fetch_int8(0, 3);
	shop_await_standbys();
	return true;
}

static void
move_units(int64 product_id, int32 quantity)
{
	ShopDemand demand = {.product_id = product_id, .quantity = quantity > 0 ? quantity : -(int64) quantity};

	if (quantity > 0)
		shop_stock_give_back(&demand, 1);
	else
		shop_orders_expire(shop_stock_take(&demand, 1));
}

static int64
restock(int64 product_id, int32 quantity, const char *key)
{
	TimestampTz now = shop_now();
	int64 result;
	int64 movement_id;

	if (find_replay(key, product_id, quantity, &result))
		return result;
	if (shop_query(&find_product, SHOP_VALUES(shop_int8(product_id))) == 0)
		shop_refuse(SHOP_PRODUCT_NOT_FOUND, "{\"product_id\": " INT64_FORMAT "}", product_id);

	/* The movement comes first: its key is where a second call waits. */
	if (shop_query(&insert_movement, SHOP_VALUES(shop_int8(product_id), shop_int8(quantity), shop_int8(0),
										 shop_text("restock"), shop_text(key), shop_time(now))) == 0)
	{
		if (!find_replay(key, product_id, quantity, &result))
			elog(ERROR, "restock of idempotency key is not visible");
		return result;
	}
	movement_id = shop_fetch_int8(0, 1);

	move_units(product_id, quantity);
	result = shop_stock_available(product_id, now);
	if (result > SHOP_MAX_AMOUNT)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("stock is out of range"),
						   errdetail("{\"argument\": \"quantity\", \"maximum\": " INT64_FORMAT "}", SHOP_MAX_AMOUNT),
						   errhint("Add fewer units.")));
	shop_query(&complete_movement, SHOP_VALUES(shop_int8(movement_id), shop_int8(result)));
	return result;
}

Datum
shop_restock(PG_FUNCTION_ARGS)
{
	int64 product_id = shop_arg_int64(fcinfo, 0, "product_id");
	int32 quantity = shop_arg_int32(fcinfo, 1, "quantity");
	char *key = shop_arg_key(fcinfo, 2);
	int64 result;

	if (quantity == 0)
		shop_reject("quantity", "must not be 0");
	shop_write_verb("restock()");

	SPI_connect();
	result = restock(product_id, quantity, key);
	SPI_finish();
	PG_RETURN_INT64(result);
}
