/*
 * version.h
 *		Whether library and SQL belong together.
 */
#ifndef SHOP_VERSION_H
#define SHOP_VERSION_H

#include "shop.h"

extern void shop_check_version(bool changed);

#endif /* SHOP_VERSION_H */
