/*
 * poll.h
 *		Waiting for the descriptors of remote sinks.
 */
#ifndef SHOP_POLL_H
#define SHOP_POLL_H

#include "shop.h"

#if defined(SHOP_WITHOUT_CURL) && defined(SHOP_WITHOUT_KAFKA)
#define SHOP_WITHOUT_REMOTE
#endif

/* The descriptor can be read, written, or is broken. */
typedef void (*ShopReady)(int fd, bool in, bool out, bool error, void *arg);

extern void shop_poll_start(void);
extern bool shop_poll_watch(int fd, bool in, bool out, ShopReady ready, void *arg);
extern void shop_poll_forget(int fd);
extern int shop_poll_fd(void);
extern void shop_poll_run(void);

#endif /* SHOP_POLL_H */
