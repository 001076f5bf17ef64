/*
 * error.h
 *		The refusals of the shop, class SH, and how bad input is reported.
 */
#ifndef SHOP_ERROR_H
#define SHOP_ERROR_H

#include "shop.h"

#include "utils/numeric.h"

/* In the order of the table in error.c. */
typedef enum ShopCondition
{
	SHOP_PRODUCT_NOT_FOUND,
	SHOP_PRODUCT_NOT_ON_SALE,
	SHOP_INSUFFICIENT_STOCK,
	SHOP_INSUFFICIENT_POINTS,
	SHOP_CHARGE_BELOW_MINIMUM,
	SHOP_BALANCE_LIMIT_EXCEEDED,
	SHOP_ORDER_NOT_FOUND,
	SHOP_PRICE_CHANGED,
	SHOP_IDEMPOTENCY_KEY_REUSED,
	SHOP_RESERVATION_EXPIRED,
	SHOP_INVALID_TRANSITION,
	SHOP_NOT_YOUR_ORDER,
	SHOP_REFUND_EXCEEDS_PAID,
	SHOP_COUPON_NOT_FOUND,
	SHOP_COUPON_ALREADY_USED,
	SHOP_COUPON_EXPIRED,
	SHOP_COUPON_NOT_APPLICABLE,
	SHOP_CAMPAIGN_NOT_FOUND,
	SHOP_CAMPAIGN_NOT_STARTED,
	SHOP_CAMPAIGN_ENDED,
	SHOP_COUPON_ALREADY_ISSUED,
	SHOP_COUPON_SOLD_OUT,
	SHOP_ENDPOINT_NOT_FOUND,
	SHOP_ENDPOINT_ALREADY_EXISTS,
	SHOP_DEAD_LETTER_NOT_FOUND,
	SHOP_NO_REFUSAL /* not a refusal: all is well */
} ShopCondition;

/* A refusal found but not raised yet; detail is a JSON object. */
typedef struct ShopRefusal
{
	ShopCondition condition;
	char *detail;
} ShopRefusal;

#define SHOP_IS_REFUSAL(sqlstate) (ERRCODE_TO_CATEGORY(sqlstate) == MAKE_SQLSTATE('S', 'H', '0', '0', '0'))

extern ShopRefusal shop_refusal(ShopCondition condition, const char *detail, ...) pg_attribute_printf(2, 3);
SHOP_NORETURN extern void shop_raise(ShopRefusal refusal);
#define shop_refuse(condition, ...) shop_raise(shop_refusal((condition), __VA_ARGS__))
extern ShopRefusal shop_refusal_of(ErrorData *error);
extern Datum shop_form_refused(FunctionCallInfo fcinfo, ShopRefusal refusal);

SHOP_NORETURN extern void shop_reject(const char *argument, const char *message, ...) pg_attribute_printf(2, 3);
SHOP_NORETURN extern void shop_reject_item(int position, const char *message, ...) pg_attribute_printf(2, 3);
extern char *shop_json_string(const char *text);
extern char *shop_json_time(TimestampTz time);

/* Arguments of SQL-callable functions: NULL is refused by name. */
extern void shop_arg_required(FunctionCallInfo fcinfo, int n, const char *name);
extern int64 shop_arg_int64(FunctionCallInfo fcinfo, int n, const char *name);
extern int32 shop_arg_int32(FunctionCallInfo fcinfo, int n, const char *name);
extern char *shop_arg_text(FunctionCallInfo fcinfo, int n, const char *name);
extern char *shop_arg_text_or_null(FunctionCallInfo fcinfo, int n);
extern char *shop_arg_key(FunctionCallInfo fcinfo, int n);
extern int32 shop_arg_limit(FunctionCallInfo fcinfo, int n);
extern TimestampTz shop_arg_time(FunctionCallInfo fcinfo, int n, const char *name);
extern Interval *shop_arg_duration(FunctionCallInfo fcinfo, int n, const char *name);
extern char *shop_arg_reason(FunctionCallInfo fcinfo, int n);
extern bool shop_parse_integer(Numeric number, int64 *result);

#endif /* SHOP_ERROR_H */
