// SPDX-License-Identifier: BSD-3-Clause
/*
 * Stackful coroutines, pinned for life to one event loop.
 *
 * A coroutine runs until it yields; it yields only inside functions whose
 * contract says so.  Waiting is yielding: whoever yields has arranged to be
 * woken, and checks its condition again when it comes back, since a wake may
 * be spurious.  Waking puts a coroutine on its loop's ready queue; it never
 * runs at once, so a wake is safe anywhere in the loop's thread.
 */
#ifndef SLUICE_RUN_CORO_H
#define SLUICE_RUN_CORO_H

#include <stdbool.h>
#include "base/list.h"

struct coro;
struct loop;

/* Creates a coroutine that calls @fn(@arg) and makes it ready. */
void coro_start(struct loop *loop, void (*fn)(void *), void *arg);
/* The running coroutine, NULL in the loop's own context. */
struct coro *coro_self(void);
/* Suspends the running coroutine until coro_wake(). */
void coro_yield(void);
/* Makes a suspended coroutine ready; a ready one stays as it is. */
void coro_wake(struct coro *co);
/* Lets every other ready coroutine run once. */
void coro_relax(void);

/* For run/ only from here: storage and switching. */
struct coro {
    struct list link; /* in the loop's ready queue while `ready` */
    struct loop *loop;
    bool ready;
};

struct coro_pool;
struct coro_pool *coro_pool_new(void);
void coro_pool_free(struct coro_pool *pool);
/* The stacks that nobody runs on go from one pool to another. */
void coro_pool_move(struct coro_pool *to, struct coro_pool *from);
struct coro *coro_new(struct coro_pool *pool, struct loop *loop,
                      void (*fn)(void *), void *arg);
/* Runs @co until it yields or ends; true where it ended (and is freed). */
bool coro_resume(struct coro_pool *pool, struct coro *co);

#endif
