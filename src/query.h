/*
 * query.h
 *		Statements as data: a kept plan each, bound and fetched in one call.
 */
#ifndef SHOP_QUERY_H
#define SHOP_QUERY_H

#include "shop.h"

#include "executor/spi.h"
#include "executor/tuptable.h"

#define SHOP_QUERY_MAX_ARGS 14

/* A statement and its plan, kept for the life of the backend. */
typedef struct ShopQuery
{
	const char *sql;
	Oid argtypes[SHOP_QUERY_MAX_ARGS]; /* ends with 0 */
	SPIPlanPtr plan;
} ShopQuery;

#define SHOP_QUERY(text, ...) \
	{ \
		.sql = (text), .argtypes = { __VA_ARGS__ } \
	}

typedef struct ShopValue
{
	Datum datum;
	bool isnull;
} ShopValue;

/* Is given each row as the executor finds it; false stops the executor there. */
typedef bool (*ShopEach)(TupleTableSlot *row, void *arg);

#define SHOP_VALUES(...) ((ShopValue[]){__VA_ARGS__})

extern ShopValue shop_int8(int64 value);
extern ShopValue shop_int8_or_null(int64 value, bool isnull);
extern ShopValue shop_int2(int16 value);
extern ShopValue shop_int4(int32 value);
extern ShopValue shop_bool(bool value);
extern ShopValue shop_text(const char *value); /* NULL pointer: SQL NULL */
extern ShopValue shop_time(TimestampTz value);
extern ShopValue shop_datum(Datum value);
extern ShopValue shop_oid(Oid value);
extern ShopValue shop_null(void);
extern ShopValue shop_int8_array(const int64 *values, int n);
extern ShopValue shop_int4_array(const int32 *values, int n);
extern ShopValue shop_time_array(const TimestampTz *values, int n);
extern ShopValue shop_time_or_null(TimestampTz value); /* DT_NOEND: SQL NULL */

/* All of these need SPI to be connected. */
extern uint64 shop_query(ShopQuery *query, const ShopValue *values);
extern bool shop_query_is_planned(const ShopQuery *query);
extern uint64 shop_query_read(ShopQuery *query, const ShopValue *values);
extern void shop_query_each(ShopQuery *query, const ShopValue *values, ShopEach each, void *arg);

extern int64 shop_fetch_int8(uint64 row, int column);
extern int32 shop_fetch_int4(uint64 row, int column);
extern bool shop_fetch_bool(uint64 row, int column);
extern char *shop_fetch_text(uint64 row, int column); /* NULL for SQL NULL */
extern Datum shop_fetch(uint64 row, int column, bool *isnull);
extern bool shop_fetch_isnull(uint64 row, int column);
extern int64 shop_fetch_int8_or(uint64 row, int column, int64 null);
extern TimestampTz shop_fetch_time(uint64 row, int column); /* DT_NOEND for SQL NULL */

extern int64 shop_row_int8(TupleTableSlot *row, int column);

/* Whole results of SQL-callable functions; these connect to SPI themselves. */
extern uint64 shop_return_set(FunctionCallInfo fcinfo, ShopQuery *query, const ShopValue *values);
extern bool shop_return_row(FunctionCallInfo fcinfo, ShopQuery *query, const ShopValue *values, Datum *result);
extern Datum shop_current_row(FunctionCallInfo fcinfo);
extern Datum shop_form_row(FunctionCallInfo fcinfo, const ShopValue *values);
extern int shop_result_columns(FunctionCallInfo fcinfo);

extern void shop_write_verb(const char *name);

#endif /* SHOP_QUERY_H */
