// SPDX-License-Identifier: BSD-3-Clause
/* Shared by real*.c only. */
#ifndef SLUICE_RUN_REAL_INTERNAL_H
#define SLUICE_RUN_REAL_INTERNAL_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>

#include "run/file.h"
#include "run/real.h"
#include "run/stream.h"

struct job; /* work off the loop */

struct real_loop {
    struct loop loop;
    int epoll_fd, event_fd;
    bool have_ring;
    struct io_uring ring;
    unsigned to_submit;
    struct list fd_waiters; /* in fd_wait() */

    pthread_mutex_t lock; /* covers everything below */
    pthread_cond_t work;
    struct list jobs, posts;
    unsigned n_threads, n_idle;
    bool ending;
    pthread_t *threads;

    atomic_bool posted; /* something is in `posts` */
    struct offload_group names; /* open, rename, unlink, folder sync */
};

/* What an epoll event calls, in the loop's context. */
struct watch {
    void (*fn)(struct watch *watch, unsigned events);
};

static inline struct real_loop *
real_of(struct loop *loop)
{
    return container_of(loop, struct real_loop, loop);
}

/*
 * A submission entry, to be filled and then given to ring_wait(), which yields
 * until it completes and returns its result.
 */
struct io_uring_sqe *ring_sqe(struct real_loop *rl);
int ring_wait(struct real_loop *rl, struct io_uring_sqe *sqe);

int real_file_open(struct loop *loop, const char *path, unsigned flags,
                   struct file **ret);
int real_rename(struct loop *loop, const char *from, const char *to);
int real_unlink(struct loop *loop, const char *path);
int real_sync_folder(struct loop *loop, const char *path);
int real_listen(struct loop *loop, const struct address *address,
                struct listener **ret, struct err *err);
int real_connect(struct loop *loop, const struct address *address,
                 struct stream **ret, struct err *err);

#endif
