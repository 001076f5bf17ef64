/*
 * items.c
 *		The items of an order: parsed from JSON, summed, priced, discounted,
 *		stored.
 *
 * Items are kept sorted by product_id, which is the order stock is locked in;
 * line numbers follow the order in which the caller named the products.
 *
 * Locks: those of shop_stock_take().
 */
#include "order/order.h"

#include "append.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

/* Elements of the JSON array; those that name the same product are summed. */
#define MAX_MENTIONS 100000

static ShopTable order_line = {
	.name = "order_line", .columns = {"order_id", "line_no", "product_id", "quantity", "unit_price", "discount"}};

static ShopQuery read_lines = SHOP_QUERY(
	"SELECT product_id, quantity FROM shop.order_line WHERE order_id = $1 ORDER BY product_id", INT8OID);

static int64
require_integer(int position, const char *key, const JsonbValue *value)
{
	int64 result;

	if (value->type != jbvNumeric)
		shop_reject_item(position, "must have a number as its %s", key);
	if (!shop_parse_integer(value->val.numeric, &result))
		shop_reject_item(position, "must have an integer as its %s", key);
	return result;
}

/* Reads one object; `it` stands behind its WJB_BEGIN_OBJECT. */
static ShopItem
parse_item(JsonbIterator **it, int position)
{
	ShopItem item = {.line_no = position};
	bool has_product = false;
	bool has_quantity = false;
	JsonbValue value;

	while (JsonbIteratorNext(it, &value, true) == WJB_KEY)
	{
		char *key = pnstrdup(value.val.string.val, value.val.string.len);

		(void) JsonbIteratorNext(it, &value, true);
		if (strcmp(key, "product_id") == 0)
		{
			item.product_id = require_integer(position, key, &value);
			has_product = true;
		}
		else if (strcmp(key, "quantity") == 0)
		{
			int64 quantity = require_integer(position, key, &value);

			if (quantity <= 0 || quantity > PG_INT32_MAX)
				shop_reject_item(position, "must have a quantity between 1 and %d", PG_INT32_MAX);
			item.quantity = (int32) quantity;
			has_quantity = true;
		}
		else
			shop_reject_item(position, "has the unknown key %s", shop_json_string(key));
	}
	if (!has_product)
		shop_reject_item(position, "has no product_id");
	if (!has_quantity)
		shop_reject_item(position, "has no quantity");
	return item;
}

static int
compare_product(const void *a, const void *b)
{
	const ShopItem *x = a;
	const ShopItem *y = b;

	if (x->product_id != y->product_id)
		return x->product_id < y->product_id ? -1 : 1;
	return x->line_no - y->line_no;
}

static int
compare_line(const void *a, const void *b)
{
	return ((const ShopItem *) a)->line_no - ((const ShopItem *) b)->line_no;
}

/* Sums mentions of the same product; `items` are sorted by product. */
static int
merge_mentions(ShopItem *items, int n)
{
	int kept = 0;

	for (int i = 1; i < n; i++)
	{
		if (items[i].product_id != items[kept].product_id)
			items[++kept] = items[i];
		else if (pg_add_s32_overflow(items[kept].quantity, items[i].quantity, &items[kept].quantity))
			shop_reject("items", "must not name more than %d units of a product", PG_INT32_MAX);
	}
	return kept + 1;
}

static void
number_lines(ShopItem *items, int n)
{
	pg_qsort(items, n, sizeof(ShopItem), compare_line);
	for (int i = 0; i < n; i++)
		items[i].line_no = i + 1;
	pg_qsort(items, n, sizeof(ShopItem), compare_product);
}

ShopItems
shop_items_parse(Jsonb *json)
{
	ShopItems result = {0};
	JsonbIterator *it;
	JsonbValue value;
	JsonbIteratorToken token;
	int n = 0;

	if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json))
		shop_reject("items", "must be a JSON array");
	if (JB_ROOT_COUNT(json) == 0)
		shop_reject("items", "must not be empty");
	if (JB_ROOT_COUNT(json) > MAX_MENTIONS)
		shop_reject("items", "must not have more than %d elements", MAX_MENTIONS);

	result.items = palloc(sizeof(ShopItem) * JB_ROOT_COUNT(json));
	it = JsonbIteratorInit(&json->root);
	(void) JsonbIteratorNext(&it, &value, false);
	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_END_ARRAY)
	{
		if (token != WJB_BEGIN_OBJECT)
			shop_reject_item(n + 1, "must be an object");
		result.items[n] = parse_item(&it, n + 1);
		n++;
	}

	pg_qsort(result.items, n, sizeof(ShopItem), compare_product);
	result.n = merge_mentions(result.items, n);
	if (result.n > SHOP_MAX_ITEMS)
		shop_reject("items", "must not name more than %d products", SHOP_MAX_ITEMS);
	number_lines(result.items, result.n);
	return result;
}

static ShopRefusal
no_refusal(void)
{
	return (ShopRefusal){.condition = SHOP_NO_REFUSAL};
}

/* The first refusal of the catalogue, in the declared order of refusals. */
static ShopRefusal
check_products(const ShopItems *items, const ShopProduct *products, const ShopDemand *demands)
{
	for (int i = 0; i < items->n; i++)
		if (!products[i].found)
			return shop_refusal(SHOP_PRODUCT_NOT_FOUND, "{\"product_id\": " INT64_FORMAT "}", products[i].product_id);
	for (int i = 0; i < items->n; i++)
		if (!products[i].on_sale)
			return shop_refusal(SHOP_PRODUCT_NOT_ON_SALE, "{\"product_id\": " INT64_FORMAT ", \"status\": \"%s\"}",
				products[i].product_id, products[i].status);
	for (int i = 0; i < items->n; i++)
		if (demands[i].available < demands[i].quantity)
			return shop_refusal(SHOP_INSUFFICIENT_STOCK,
				"{\"product_id\": " INT64_FORMAT ", \"requested\": " INT64_FORMAT ", \"available\": " INT64_FORMAT "}",
				demands[i].product_id, demands[i].quantity, demands[i].available);
	return no_refusal();
}

static void
sum_prices(ShopItems *items)
{
	items->subtotal = 0;
	for (int i = 0; i < items->n; i++)
	{
		int64 line;

		if (pg_mul_s64_overflow(items->items[i].unit_price, items->items[i].quantity, &line) ||
			pg_add_s64_overflow(items->subtotal, line, &items->subtotal) || items->subtotal > SHOP_MAX_AMOUNT)
			ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("order total is out of range"),
							   errdetail("{\"argument\": \"items\", \"maximum\": " INT64_FORMAT "}", SHOP_MAX_AMOUNT),
							   errhint("Split the order.")));
	}
}

static ShopItem *
by_line(const ShopItems *items)
{
	ShopItem *sorted = palloc(sizeof(ShopItem) * items->n);

	memcpy(sorted, items->items, sizeof(ShopItem) * items->n);
	pg_qsort(sorted, items->n, sizeof(ShopItem), compare_line);
	return sorted;
}

/* A line's part of the discount in whole units, and what is left over of it. */
typedef struct DiscountShare
{
	int64 remainder; /* of discount * line / subtotal; less than subtotal */
	ShopItem *item;
} DiscountShare;

/* Largest remainder first, of equal ones the earlier line. */
static int
compare_share(const void *a, const void *b)
{
	const DiscountShare *x = a;
	const DiscountShare *y = b;

	if (x->remainder != y->remainder)
		return x->remainder > y->remainder ? -1 : 1;
	return x->item->line_no - y->item->line_no;
}

/*
 * Spreads a discount of at most the subtotal over the lines, in proportion to
 * their subtotals, by largest remainder (Hamilton's method), so that it adds
 * up exactly.  A line that divides without remainder gets no more than its
 * part, and any other is worth more than its part rounded down, so no line is
 * discounted below zero.
 */
void
shop_items_discount(ShopItems *items, int64 discount)
{
	DiscountShare *shares = palloc(sizeof(DiscountShare) * items->n);
	int64 left = discount;

	Assert(discount >= 0 && discount <= items->subtotal);
	for (int i = 0; i < items->n; i++)
	{
		ShopItem *item = &items->items[i];
		int128 product = (int128) discount * (item->unit_price * item->quantity);

		item->discount = items->subtotal > 0 ? (int64) (product / items->subtotal) : 0;
		shares[i].remainder = items->subtotal > 0 ? (int64) (product % items->subtotal) : 0;
		shares[i].item = item;
		left -= item->discount;
	}
	pg_qsort(shares, items->n, sizeof(DiscountShare), compare_share);
	for (int i = 0; i < left; i++)
		shares[i].item->discount++;
}

/* The units that the items ask of stock, or give back to it. */
ShopDemand *
shop_items_demands(const ShopItems *items)
{
	ShopDemand *demands = palloc(sizeof(ShopDemand) * Max(items->n, 1));

	for (int i = 0; i < items->n; i++)
		demands[i] = (ShopDemand){.product_id = items->items[i].product_id,
			.quantity = items->items[i].quantity,
			.seen = items->items[i].stock_seen};
	return demands;
}

/*
 * Reads prices, status and units in one snapshot and without a lock.  What it
 * finds missing is missing for good: units taken by others come back only if
 * they roll back, and until then they still count as available.
 */
ShopRefusal
shop_items_price(ShopItems *items)
{
	ShopProduct *products = palloc0(sizeof(ShopProduct) * items->n);
	ShopDemand *demands = shop_items_demands(items);
	ShopRefusal refusal;

	for (int i = 0; i < items->n; i++)
		products[i].product_id = items->items[i].product_id;
	PushActiveSnapshot(GetTransactionSnapshot());
	shop_catalog_read(products, items->n);
	shop_stock_look(demands, items->n, shop_now());
	PopActiveSnapshot();
	refusal = check_products(items, products, demands);
	if (refusal.condition != SHOP_NO_REFUSAL)
		return refusal;

	for (int i = 0; i < items->n; i++)
	{
		items->items[i].unit_price = products[i].price;
		items->items[i].stock_seen = demands[i].seen;
	}
	sum_prices(items);
	return refusal;
}

/*
 * Prices the items, unless they are, and locks the user's account.  What is
 * refused is refused without the lock, except where a call of the same key
 * that is under way may have been in time for what is not on sale any more:
 * that call is waited for.  (The units that it takes still count as there.)
 * After a wait, prices are read anew.
 */
ShopRefusal
shop_items_price_and_lock(ShopItems *items, bool priced, int64 user_id, bool has_key, ShopAccount *account)
{
	ShopRefusal refusal = {.condition = SHOP_NO_REFUSAL};

	if (!priced)
		refusal = shop_items_price(items);
	if (refusal.condition == SHOP_INSUFFICIENT_STOCK || (refusal.condition != SHOP_NO_REFUSAL && !has_key))
		return refusal;
	*account = shop_account_lock(user_id);
	return account->waited ? shop_items_price(items) : refusal;
}

ShopExpired
shop_items_take_stock(const ShopItems *items)
{
	return shop_stock_take(shop_items_demands(items), items->n);
}

void
shop_items_insert(const ShopItems *items, int64 order_id)
{
	ShopItem *lines = by_line(items);
	ShopAppend append;

	shop_append_open(&append, &order_line);
	for (ShopItem *line = lines; line < lines + items->n; line++)
		shop_append_row(
			&append, SHOP_VALUES(shop_int8(order_id), shop_int4(line->line_no), shop_int8(line->product_id),
						 shop_int4(line->quantity), shop_int8(line->unit_price), shop_int8(line->discount)));
	shop_append_close(&append);
}

/* Are these the items that the order was placed with? */
bool
shop_items_same(const ShopItems *items, int64 order_id)
{
	uint64 n = shop_query(&read_lines, SHOP_VALUES(shop_int8(order_id)));

	if (n != (uint64) items->n)
		return false;
	for (uint64 i = 0; i < n; i++)
		if (shop_fetch_int8(i, 1) != items->items[i].product_id || shop_fetch_int4(i, 2) != items->items[i].quantity)
			return false;
	return true;
}

/* Adds the lines, as events show them. */
void
shop_items_json(const ShopItems *items, ShopJson *json)
{
	ShopItem *lines = by_line(items);

	shop_json_begin_array(json, "lines");
	for (ShopItem *line = lines; line < lines + items->n; line++)
	{
		shop_json_begin(json);
		shop_json_int8(json, "total", line->unit_price * line->quantity - line->discount);
		shop_json_int8(json, "discount", line->discount);
		shop_json_int8(json, "quantity", line->quantity);
		shop_json_int8(json, "product_id", line->product_id);
		shop_json_int8(json, "unit_price", line->unit_price);
		(void) shop_json_end(json);
	}
	shop_json_end_array(json);
}

/* Products and quantities as a text that is the same for the same items. */
char *
shop_items_text(const ShopItems *items)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < items->n; i++)
		appendStringInfo(
			&buf, "%s" INT64_FORMAT ":%d", i == 0 ? "" : " ", items->items[i].product_id, items->items[i].quantity);
	return buf.data;
}
