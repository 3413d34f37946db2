// SPDX-License-Identifier: BSD-3-Clause
/*
 * What coroutines of one loop wait on: a queue and a mutex.  None is thread
 * safe: everything stays in the loop's thread.
 */
#ifndef SLUICE_RUN_WAIT_H
#define SLUICE_RUN_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct waitq {
    struct list waiters;
};

void waitq_init(struct waitq *q);
/* Yields until woken through the queue. */
void waitq_wait(struct waitq *q);
/* As waitq_wait(), but not beyond @deadline_ns: false where time ran out. */
bool waitq_wait_until(struct waitq *q, uint64_t deadline_ns);
/* Wakes the waiter that came first; false where there is none. */
bool waitq_wake_one(struct waitq *q);
void waitq_wake_all(struct waitq *q);

static inline bool
waitq_idle(const struct waitq *q)
{
    return list_empty(&q->waiters);
}

/* A mutex that hands itself to the waiter that came first. */
struct comutex {
    bool locked;
    struct waitq waiters;
};

void comutex_init(struct comutex *m);
void comutex_lock(struct comutex *m); /* yields */
void comutex_unlock(struct comutex *m);

#endif
