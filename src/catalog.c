/*
 * catalog.c
 *		Products: what is sold, at what price, and whether it is on sale.
 *
 * Orders read prices without a lock and keep the price they read, so a price
 * change never waits for a sale and a sale never for a price change.
 *
 * Locks: the product row (set_price, set_product_status).  Two calls of
 * create_product with one key meet at the unique index of the key.
 */
#include "catalog.h"

#include "catalog/pg_type.h"
#include "error.h"
#include "idempotency.h"
#include "lookup.h"
#include "query.h"
#include "stock/stock.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

static ShopTable product_table = {.name = "product", .columns = {"price", "status", "name"}, .keys = {"product_id"}};
enum
{
	PRICE,
	STATUS,
	NAME
};

static ShopQuery find_created = SHOP_QUERY(
	"SELECT p.product_id, p.name, p.initial_price, m.quantity"
	"  FROM shop.product p"
	"  JOIN shop.stock_movement m ON m.product_id = p.product_id AND m.kind = 'initial'"
	" WHERE p.idempotency_key = $1",
	TEXTOID);

static ShopQuery insert_product = SHOP_QUERY(
	"INSERT INTO shop.product (name, price, initial_price, created_at, idempotency_key)"
	" VALUES ($1, $2, $2, $3, $4)"
	" ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
	" RETURNING product_id",
	TEXTOID, INT8OID, TIMESTAMPTZOID, TEXTOID);

static ShopQuery update_price = SHOP_QUERY(
	"UPDATE shop.product SET price = $2 WHERE product_id = $1", INT8OID, INT8OID);

static ShopQuery update_status = SHOP_QUERY(
	"UPDATE shop.product SET status = $2 WHERE product_id = $1", INT8OID, TEXTOID);

SHOP_FUNCTION(shop_create_product);
SHOP_FUNCTION(shop_set_price);
SHOP_FUNCTION(shop_set_product_status);
SHOP_FUNCTION(shop_get_product);

static void
check_price(int64 price)
{
	if (price < 0 || price > SHOP_MAX_AMOUNT)
		shop_reject("price", "must be between 0 and " INT64_FORMAT, SHOP_MAX_AMOUNT);
}

/* Has this key created a product?  The same arguments, then, or it is refused. */
static bool
find_replay(const char *key, const char *name, int64 price, int64 stock, int64 *product_id)
{
	if (key == NULL || shop_query(&find_created, SHOP_VALUES(shop_text(key))) == 0)
		return false;
	shop_same_text(key, "name", shop_fetch_text(0, 2), name);
	shop_same_int64(key, "price", shop_fetch_int8(0, 3), price);
	shop_same_int64(key, "stock", shop_fetch_int8(0, 4), stock);
	*product_id = shop_fetch_int8(0, 1);
	shop_await_standbys();
	return true;
}

static int64
create_product(const char *key, const char *name, int64 price, int64 stock)
{
	TimestampTz now = shop_now();
	int64 product_id;

	if (find_replay(key, name, price, stock, &product_id))
		return product_id;
	if (shop_query(&insert_product, SHOP_VALUES(shop_text(name), shop_int8(price), shop_time(now), shop_text(key))) ==
		0)
	{
		/* Another call with the key committed while we waited for it. */
		if (!find_replay(key, name, price, stock, &product_id))
			elog(ERROR, "product of idempotency key is not visible");
		return product_id;
	}
	product_id = shop_fetch_int8(0, 1);
	shop_stock_open(product_id, stock);
	shop_movement_initial(product_id, stock, now);
	return product_id;
}

Datum
shop_create_product(PG_FUNCTION_ARGS)
{
	char *name = shop_arg_text(fcinfo, 0, "name");
	int64 price = shop_arg_int64(fcinfo, 1, "price");
	int64 stock = shop_arg_int64(fcinfo, 2, "stock");
	char *key = shop_arg_key(fcinfo, 3);
	int64 product_id;

	if (*name == '\0' || strlen(name) > 1000)
		shop_reject("name", "must have 1 to 1000 bytes");
	check_price(price);
	if (stock < 0 || stock > SHOP_MAX_AMOUNT)
		shop_reject("stock", "must be between 0 and " INT64_FORMAT, SHOP_MAX_AMOUNT);
	shop_write_verb("create_product()");

	SPI_connect();
	product_id = create_product(key, name, price, stock);
	SPI_finish();
	PG_RETURN_INT64(product_id);
}

static void
refuse_unknown(int64 product_id)
{
	shop_refuse(SHOP_PRODUCT_NOT_FOUND, "{\"product_id\": " INT64_FORMAT "}", product_id);
}

/* A row of shop.products, by the active snapshot. */
static Datum
product_row(FunctionCallInfo fcinfo, int64 product_id)
{
	ShopLookup lookup;
	Datum result;

	shop_lookup_open(&lookup, &product_table, 1, ForwardScanDirection);
	shop_lookup_start(&lookup, SHOP_KEYS(SHOP_KEY_INT8(product_id)), 1);
	if (!shop_lookup_next(&lookup))
		refuse_unknown(product_id);
	result = shop_form_row(fcinfo,
		SHOP_VALUES(shop_int8(product_id), shop_text(shop_lookup_text(&lookup, NAME)),
			shop_int8(shop_lookup_int8(&lookup, PRICE)), shop_int8(shop_stock_units(product_id, true, shop_now())),
			shop_text(shop_lookup_text(&lookup, STATUS))));
	shop_lookup_close(&lookup);
	return result;
}

/* Runs an update of one product and returns the product as it is then. */
static Datum
change_product(FunctionCallInfo fcinfo, ShopQuery *update, int64 product_id, ShopValue value)
{
	Datum result;

	SPI_connect();
	if (shop_query(update, SHOP_VALUES(shop_int8(product_id), value)) == 0)
		refuse_unknown(product_id);
	SPI_finish();
	PushActiveSnapshot(GetTransactionSnapshot());
	result = product_row(fcinfo, product_id);
	PopActiveSnapshot();
	return result;
}

Datum
shop_set_price(PG_FUNCTION_ARGS)
{
	int64 product_id = shop_arg_int64(fcinfo, 0, "product_id");
	int64 price = shop_arg_int64(fcinfo, 1, "price");

	check_price(price);
	shop_write_verb("set_price()");
	return change_product(fcinfo, &update_price, product_id, shop_int8(price));
}

Datum
shop_set_product_status(PG_FUNCTION_ARGS)
{
	int64 product_id = shop_arg_int64(fcinfo, 0, "product_id");
	char *status = shop_arg_text(fcinfo, 1, "status");

	if (strcmp(status, "on_sale") != 0 && strcmp(status, "suspended") != 0 && strcmp(status, "discontinued") != 0)
		shop_reject("status", "must be on_sale, suspended or discontinued");
	shop_write_verb("set_product_status()");
	return change_product(fcinfo, &update_status, product_id, shop_text(status));
}

Datum
shop_get_product(PG_FUNCTION_ARGS)
{
	return product_row(fcinfo, shop_arg_int64(fcinfo, 0, "product_id"));
}

static void
read_product(ShopLookup *lookup, ShopProduct *product)
{
	shop_lookup_start(lookup, SHOP_KEYS(SHOP_KEY_INT8(product->product_id)), 1);
	product->found = shop_lookup_next(lookup);
	if (!product->found)
		return;
	product->price = shop_lookup_int8(lookup, PRICE);
	product->status = shop_lookup_text(lookup, STATUS);
	product->on_sale = strcmp(product->status, "on_sale") == 0;
}

/* Reads the products in the active snapshot, without a lock. */
void
shop_catalog_read(ShopProduct *products, int n)
{
	ShopLookup lookup;

	shop_lookup_open(&lookup, &product_table, 1, ForwardScanDirection);
	for (int i = 0; i < n; i++)
		read_product(&lookup, &products[i]);
	shop_lookup_close(&lookup);
}
