/*
 * order.h
 *		An order's items, its row, its payment, its changes of state.
 */
#ifndef SHOP_ORDER_H
#define SHOP_ORDER_H

#include "shop.h"

#include "catalog.h"
#include "error.h"
#include "json.h"
#include "points.h"
#include "query.h"
#include "stock/stock.h"
#include "utils/jsonb.h"

#define SHOP_MAX_ITEMS 1000

/* One distinct product of an order. */
typedef struct ShopItem
{
	int64 product_id;
	int32 quantity; /* summed over its mentions */
	int32 line_no;	/* from 1, in order of first mention */
	int64 unit_price;
	int64 discount;
	ItemPointerData stock_seen; /* where its units were when it was priced */
} ShopItem;

/* Sorted by product_id. */
typedef struct ShopItems
{
	ShopItem *items;
	int n;
	int64 subtotal;
} ShopItems;

/* In the order of names[] in state.c. */
typedef enum ShopOrderStatus
{
	SHOP_ORDER_RESERVED,
	SHOP_ORDER_PAID,
	SHOP_ORDER_RELEASED,
	SHOP_ORDER_EXPIRED,
	SHOP_ORDER_CANCELLED,
	SHOP_ORDER_REFUNDED
} ShopOrderStatus;

/* A row of shop.orders. */
typedef struct ShopOrder
{
	int64 order_id;
	int64 user_id;
	ShopOrderStatus status;
	int64 subtotal;
	int64 discount;
	int64 total;
	int64 balance; /* the user's points after the call that is answered */
	bool has_coupon;
	int64 coupon_id;
	TimestampTz created_at;
	TimestampTz expires_at; /* DT_NOEND: was never reserved */
	TimestampTz paid_at;	/* DT_NOEND: not paid */
} ShopOrder;

/* What the caller of a verb that pays gives besides the order. */
typedef struct ShopPayment
{
	bool has_coupon;
	int64 coupon_id;
	bool has_expected_total;
	int64 expected_total;
} ShopPayment;

/* The arguments of a call with a key, as text, in their order. */
#define SHOP_MAX_ARGUMENTS 4
typedef struct ShopArguments
{
	int n;
	const char *names[SHOP_MAX_ARGUMENTS];
	char *values[SHOP_MAX_ARGUMENTS]; /* NULL: SQL NULL */
} ShopArguments;

/* A change of an order's state, as its journal keeps it. */
typedef struct ShopChange
{
	int64 change_id;
	int64 order_id;
	ShopOrderStatus status; /* the order's after it */
	int64 amount;			/* points that came back to the user, negative: were paid */
	int64 balance;			/* after it */
} ShopChange;

/* items.c */
extern ShopItems shop_items_parse(Jsonb *json);
extern ShopRefusal shop_items_price(ShopItems *items);
extern ShopRefusal shop_items_price_and_lock(
	ShopItems *items, bool priced, int64 user_id, bool has_key, ShopAccount *account);
extern void shop_items_discount(ShopItems *items, int64 discount);
extern ShopExpired shop_items_take_stock(const ShopItems *items);
extern ShopDemand *shop_items_demands(const ShopItems *items);
extern void shop_items_insert(const ShopItems *items, int64 order_id);
extern bool shop_items_same(const ShopItems *items, int64 order_id);
extern void shop_items_json(const ShopItems *items, ShopJson *json);
extern char *shop_items_text(const ShopItems *items);

/* lines.c */
typedef struct ShopLine
{
	ShopItem item;
	int32 refunded_units;
	int64 refunded_points;
} ShopLine;

extern int shop_lines_read(int64 order_id, ShopLine **lines);
extern ShopItems shop_lines_items(const ShopLine *lines, int n);
extern ShopItems shop_lines_left(const ShopLine *lines, int n);
extern int64 shop_line_paid(const ShopLine *line);
extern ShopItem shop_line_part(const ShopLine *line, int32 quantity, int64 points);
extern void shop_lines_discount(int64 order_id, const ShopItems *items);

/* order.c */
extern void shop_order_insert(ShopOrder *order, const ShopPayment *payment, const char *key);
extern ShopOrder shop_order_read(int64 order_id);
extern ShopAccount shop_order_lock(ShopOrder *order);
extern void shop_order_check_owner(const ShopOrder *order, int64 user_id);
extern void shop_order_save(const ShopOrder *order);
extern void shop_order_emit(
	const ShopOrder *order, const char *kind, ShopJson *more, const ShopItems *lines, TimestampTz now);
extern Datum shop_order_result(FunctionCallInfo fcinfo, const ShopOrder *order, bool replayed);

/* state.c */
extern const char *shop_order_status_name(ShopOrderStatus status);
extern ShopOrderStatus shop_order_status_parse(const char *name);
extern ShopOrderStatus shop_order_status_at(const ShopOrder *order, TimestampTz now);
extern void shop_order_check_transition(const ShopOrder *order, ShopOrderStatus to, TimestampTz now);

/* change.c */
extern void shop_argument_add(ShopArguments *arguments, const char *name, char *value);
extern void shop_argument_add_int8(ShopArguments *arguments, const char *name, int64 value, bool isnull);
extern bool shop_change_replay(
	const char *kind, int64 user_id, const char *key, const ShopArguments *arguments, ShopChange *change);
extern bool shop_change_repeats(ShopOrder *order, ShopOrderStatus status);
extern int64 shop_change_record(const char *kind, const ShopOrder *order, int64 amount, const ShopAccount *account,
	const char *reason, const char *key, const ShopArguments *arguments, TimestampTz now);

/* payment.c */
extern ShopPayment shop_payment_arguments(FunctionCallInfo fcinfo, int first);
extern ShopRefusal shop_payment_check(
	const ShopPayment *payment, ShopOrder *order, ShopItems *items, const ShopAccount *account, TimestampTz now);
extern void shop_payment_settle(const ShopOrder *order, ShopAccount *account, TimestampTz now);

/* expire.c */
typedef struct ShopSweep
{
	TimestampTz expires_at; /* the last reservation looked at */
	int64 order_id;
} ShopSweep;

extern void shop_orders_expire(ShopExpired expired);
extern bool shop_reservations_sweep(ShopSweep *sweep, int limit, int64 *expired);
extern TimestampTz shop_reservations_next(void);

#endif /* SHOP_ORDER_H */
