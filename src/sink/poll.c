/*
 * poll.c
 *		The descriptors that remote sinks wait for, in one epoll set, which the
 *		relay waits for beside its latch.
 *
 * Takes no locks; runs with no transaction open.
 */
#include "sink/poll.h"

#ifndef SHOP_WITHOUT_REMOTE

#include <sys/epoll.h>
#include <unistd.h>

#include "storage/ipc.h"

#define MAX_EVENTS 64

static int epoll_fd = -1;

/* What is called for a descriptor; by number, as libcurl's come and go. */
typedef struct Watch
{
	ShopReady ready;
	void *arg;
} Watch;

static Watch *watches;
static int n_watches;

/*
 * The last thing a relay does: exit handlers must not run beside the threads
 * of a library.
 */
static void
leave(int code, Datum arg)
{
	(void) arg;
	_exit(code);
}

/* Made in the relay at its first remote endpoint, never in the postmaster. */
void
shop_poll_start(void)
{
	if (epoll_fd >= 0)
		return;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not create an epoll set: %m")));
	on_proc_exit(leave, (Datum) 0);
}

/* Watches a descriptor, or changes what for; false if that is not possible.  Raises no error. */
bool
shop_poll_watch(int fd, bool in, bool out, ShopReady ready, void *arg)
{
	struct epoll_event event = {.events = (in ? EPOLLIN : 0) | (out ? EPOLLOUT : 0), .data = {.fd = fd}};

	if (fd >= n_watches)
	{
		Watch *longer = realloc(watches, sizeof(Watch) * (fd + 64));

		if (longer == NULL)
			return false;
		watches = longer;
		n_watches = fd + 64;
	}
	watches[fd] = (Watch){ready, arg};
	return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

void
shop_poll_forget(int fd)
{
	(void) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* Readable when something is to be done; -1: nothing ever. */
int
shop_poll_fd(void)
{
	return epoll_fd;
}

/* Calls for whatever is ready now, without waiting. */
void
shop_poll_run(void)
{
	struct epoll_event events[MAX_EVENTS];
	int n;

	if (epoll_fd < 0)
		return;
	n = epoll_wait(epoll_fd, events, MAX_EVENTS, 0);
	for (int i = 0; i < n; i++)
	{
		Watch *watch = &watches[events[i].data.fd];

		watch->ready(events[i].data.fd, (events[i].events & EPOLLIN) != 0, (events[i].events & EPOLLOUT) != 0,
			(events[i].events & (EPOLLERR | EPOLLHUP)) != 0, watch->arg);
	}
}

#endif /* SHOP_WITHOUT_REMOTE */
