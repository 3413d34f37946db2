// SPDX-License-Identifier: BSD-3-Clause
/*
 * The event loop: ready coroutines, timers, and the seam to the outside.
 *
 * Everything below the seam (files, folders, streams, clock, random numbers,
 * work off the loop) has two implementations behind one table: the real one
 * (run/real.h) and the simulator's (run/sim/sim.h).  Nothing above it knows
 * which one it runs on.
 */
#ifndef SLUICE_RUN_LOOP_H
#define SLUICE_RUN_LOOP_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "run/coro.h"
#include "run/wait.h"

struct file;
struct file_location;
struct stream;
struct listener;
struct err;
struct address;
struct shm;

#define NS_PER_MS 1000000ULL
#define NS_PER_S 1000000000ULL
#define NEVER UINT64_MAX

/* The seam.  Functions that say "yields" are called in a coroutine. */
struct loop_ops {
    /* Monotonic time in ns. */
    uint64_t (*now)(struct loop *loop);
    /* Wall-clock time in ns since 1970, for people and events. */
    uint64_t (*wall_now)(struct loop *loop);
    uint64_t (*random)(struct loop *loop);
    /*
     * Takes what has happened outside and wakes its coroutines; waits until
     * @deadline_ns (NEVER: without end) where nothing has.  False where nothing
     * can ever happen any more, which only the simulator knows.
     */
    bool (*wait)(struct loop *loop, uint64_t deadline_ns);
    /* Takes one of the ready coroutines off the queue (never empty). */
    struct list *(*pick)(struct loop *loop, struct list *ready, unsigned n);
    /* Called at the end of a turn: submit what was queued, send replies. */
    void (*flush)(struct loop *loop);
    void (*destroy)(struct loop *loop);

    /* Runs @fn(@arg) outside the loop; yields until it has returned. */
    void (*offload)(struct loop *loop, void (*fn)(void *), void *arg);

    int (*file_open)(struct loop *loop, const char *path, unsigned flags,
                     struct file **ret);                /* yields */
    int (*rename)(struct loop *loop, const char *from, /* yields */
                  const char *to);
    int (*unlink)(struct loop *loop, const char *path);      /* yields */
    int (*locate)(struct loop *loop, const char *path, /* yields */
                  struct file_location *ret);
    int (*sync_folder)(struct loop *loop, const char *path); /* yields */
    int (*list_folder)(struct loop *loop, const char *path, /* yields */
                       char ***ret, size_t *ret_n);

    int (*shm_open)(struct loop *loop, const char *name, uint64_t size,
                    struct shm **ret); /* see run/shm.h */

    /* Yields until @fd is ready for one of poll(2)'s @events or @deadline. */
    short (*fd_wait)(struct loop *loop, int fd, short events,
                     uint64_t deadline_ns);
    void (*fd_wake)(struct loop *loop, int fd);
    int (*listen)(struct loop *loop, const struct address *address,
                  struct listener **ret, struct err *err);
    int (*connect)(struct loop *loop, const struct address *address,
                   struct stream **ret, struct err *err); /* yields */
    /* NULL where libraries connect by themselves; see fd_connect(). */
    int (*connect_fd)(struct loop *loop, const struct address *address,
                      int *ret, struct err *err); /* yields */
};

struct timer {
    uint64_t deadline_ns;
    void (*fn)(struct timer *timer); /* in the loop's context; must not yield */
    struct loop *loop;
    unsigned heap_index; /* 0: not set */
};

/* For run/ only: what both implementations embed. */
struct loop {
    const struct loop_ops *ops;
    struct coro_pool *pool;
    struct list ready; /* of struct coro.link */
    unsigned n_ready;
    struct timer **heap; /* 1-based binary heap by deadline */
    unsigned heap_n, heap_cap;
    unsigned n_coros; /* alive */
    uint64_t n_switches;
    bool stop;
};

void loop_init(struct loop *loop, const struct loop_ops *ops);
void loop_fini(struct loop *loop);

/* Frees the loop and its implementation; no coroutine may be left alive. */
void loop_free(struct loop *loop);
/* Runs turns until loop_stop(), or until no coroutine is alive. */
void loop_run(struct loop *loop);
/* Makes loop_run() return at the end of this turn. */
void loop_stop(struct loop *loop);
/*
 * Starts a coroutine and runs the loop until it has ended: the entry of tests
 * and of the command.  False where it can never end (the simulator noticed
 * that nothing is left to happen): its coroutines are then lost.
 */
bool loop_run_main(struct loop *loop, void (*fn)(void *), void *arg);
/* The loop of the running coroutine. */
struct loop *loop_current(void);

static inline uint64_t
loop_now(struct loop *loop)
{
    return loop->ops->now(loop);
}

static inline uint64_t
loop_wall_now(struct loop *loop)
{
    return loop->ops->wall_now(loop);
}

static inline uint64_t
loop_random(struct loop *loop)
{
    return loop->ops->random(loop);
}

/* Sets (or moves) a timer; the struct stays with the caller. */
void timer_set(struct loop *loop, struct timer *timer, uint64_t deadline_ns,
               void (*fn)(struct timer *timer));
void timer_cancel(struct timer *timer); /* harmless where it is not set */
/* Yields for at least @ns. */
void coro_sleep(uint64_t ns);

/*
 * For libraries that own a descriptor (libnbd): yields until it is ready for
 * one of poll(2)'s @events; returns what it is ready for, 0 where @deadline_ns
 * came first or somebody else's fd_wake() ended the wait.  One waiter a
 * descriptor.
 */
static inline short
fd_wait(struct loop *loop, int fd, short events, uint64_t deadline_ns)
{
    return loop->ops->fd_wait(loop, fd, events, deadline_ns);
}

/* Ends the wait for @fd, if there is one; does not yield. */
static inline void
fd_wake(struct loop *loop, int fd)
{
    loop->ops->fd_wake(loop, fd);
}

/*
 * A connected descriptor for such a library, which takes it over; -ENOTSUP,
 * with nothing set, where it is to connect by itself.  Yields.
 */
static inline int
fd_connect(struct loop *loop, const struct address *address, int *ret,
           struct err *err)
{
    return loop->ops->connect_fd
               ? loop->ops->connect_fd(loop, address, ret, err)
               : -ENOTSUP;
}

/*
 * Runs blocking or heavy work in a worker thread; yields until it is done.
 * @group bounds how many workers one backend can hold, so that one hung file
 * cannot take all of them.
 */
struct offload_group {
    unsigned running, max;
    struct waitq waiting; /* private to loop.c */
};
void offload_group_init(struct offload_group *group, unsigned max);
/* For run/ only: around work in the group's name; enter may yield. */
void offload_group_enter(struct offload_group *group);
void offload_group_leave(struct offload_group *group);
void offload(struct loop *loop, struct offload_group *group, void (*fn)(void *),
             void *arg);

#endif
