/*
 * append.h
 *		New rows of the tables that only grow, without a plan.
 */
#ifndef SHOP_APPEND_H
#define SHOP_APPEND_H

#include "shop.h"

#include "lookup.h"
#include "nodes/execnodes.h"
#include "query.h"

typedef struct ShopAppend
{
	Relation table;
	EState *estate;
	ResultRelInfo *result;
	TupleTableSlot *row;
	const AttrNumber *columns;
	int n_columns;
	ExprState **defaults; /* by column, for those of others; NULL: there are none */
} ShopAppend;

extern void shop_append_open(ShopAppend *append, ShopTable *table);
extern void shop_append_row(ShopAppend *append, const ShopValue *values);
extern void shop_append_close(ShopAppend *append);
extern void shop_append(ShopTable *table, const ShopValue *values);
extern int64 shop_append_number(const char *sequence);

#endif /* SHOP_APPEND_H */
