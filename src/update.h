/*
 * update.h
 *		Rows locked and changed where nobody else is, without a plan.
 */
#ifndef SHOP_UPDATE_H
#define SHOP_UPDATE_H

#include "shop.h"

#include "lookup.h"
#include "nodes/execnodes.h"

/* Rows that are looked up to be changed. */
typedef struct ShopUpdate
{
	ShopLookup lookup;
	TupleTableSlot *changed;
	bool plain; /* may rows be changed here? */
	EState *estate;
	ResultRelInfo *result;
} ShopUpdate;

extern bool shop_update_is_plain(ShopTable *table);
extern void shop_update_open(ShopUpdate *update, ShopTable *table, int n_keys);
extern bool shop_update_lock(ShopUpdate *update);
extern bool shop_update_try(ShopUpdate *update, int column, Datum value);
extern bool shop_update_locked(ShopUpdate *update, int column, Datum value);
extern void shop_update_close(ShopUpdate *update);

#endif /* SHOP_UPDATE_H */
