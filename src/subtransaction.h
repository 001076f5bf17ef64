/*
 * subtransaction.h
 *		Work that can be undone by itself.
 */
#ifndef SHOP_SUBTRANSACTION_H
#define SHOP_SUBTRANSACTION_H

#include "shop.h"

extern ErrorData *shop_subtransaction(bool (*work)(void *arg), void *arg);

#endif /* SHOP_SUBTRANSACTION_H */
