// SPDX-License-Identifier: BSD-3-Clause
/*
 * A descriptor that a coroutine waits for and that another one can make it
 * stop waiting for; and standard input and output as a stream.
 */
#ifndef SLUICE_DAEMON_POLLABLE_H
#define SLUICE_DAEMON_POLLABLE_H

#include <stdbool.h>

struct loop;
struct stream;

/* An epoll descriptor over the one in question and an eventfd, the bell. */
struct pollable {
    struct loop *loop;
    int epoll_fd, bell_fd;
    bool always; /* a regular file, say: never to be waited for */
    bool rung;
};

/* @events: poll(2)'s.  @fd stays the caller's.  0 or -errno; no yield. */
int pollable_init(struct pollable *p, struct loop *loop, int fd, short events);
void pollable_fini(struct pollable *p);
/* Yields until the descriptor is ready (true) or the bell rang (false). */
bool pollable_wait(struct pollable *p);
/* Ends the wait, now and for good.  Does not yield. */
void pollable_ring(struct pollable *p);

/* Reads descriptor 0 and writes 1; both get O_NONBLOCK.  Does not yield. */
int stdio_stream_new(struct loop *loop, struct stream **ret);

#endif
