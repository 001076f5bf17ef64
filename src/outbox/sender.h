/*
 * sender.h
 *		A relay's work for one remote endpoint.
 */
#ifndef SHOP_SENDER_H
#define SHOP_SENDER_H

#include "shop.h"

typedef struct ShopSender ShopSender;

extern ShopSender *shop_sender_make(int64 endpoint_id);
extern void shop_sender_drop(ShopSender *sender);
extern bool shop_sender_is_quiet(const ShopSender *sender);
extern TimestampTz shop_sender_run(ShopSender *sender, bool look);

#endif /* SHOP_SENDER_H */
