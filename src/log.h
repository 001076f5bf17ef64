/*
 * log.h
 *		What of the shop goes to the server's log.
 */
#ifndef SHOP_LOG_H
#define SHOP_LOG_H

#include "shop.h"

extern void shop_log_init(void);
extern void shop_log_hide_statement(void);

#endif /* SHOP_LOG_H */
