/*
 * hosts.h
 *		Which hosts a role may have events sent to.
 */
#ifndef SHOP_HOSTS_H
#define SHOP_HOSTS_H

#include "shop.h"

extern void shop_hosts_check(const char *host, Oid role);

#endif /* SHOP_HOSTS_H */
