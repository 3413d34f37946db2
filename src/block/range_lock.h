// SPDX-License-Identifier: BSD-3-Clause
/*
 * The range lock: the one place where requests to overlapping ranges of a node
 * wait for each other (read-modify-write, allocation, fill, forward, sink).
 *
 * Shared holders are plain writes: a guest that writes the same range twice at
 * once has no order to expect.  An exclusive holder is alone on its range.
 * Waiters are served in the order in which they came, so nobody starves: a new
 * request waits behind an earlier waiter whose range it overlaps.
 */
#ifndef SLUICE_BLOCK_RANGE_LOCK_H
#define SLUICE_BLOCK_RANGE_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct coro;

enum range_mode { RANGE_SHARED, RANGE_EXCLUSIVE };

struct range_lock {
    struct list holds; /* held and waiting ones, in order of arrival */
};

/* One request's hold; lives on its stack. */
struct range_hold {
    struct list link;
    struct coro *co;
    uint64_t start, end;
    enum range_mode mode;
    bool held;
};

void range_lock_init(struct range_lock *lock);

/* Takes [start, end); yields while somebody stands against it. */
void range_lock_take(struct range_lock *lock, struct range_hold *hold,
                     uint64_t start, uint64_t end, enum range_mode mode);
/*
 * Both halves of it, for who needs several ranges at once: first all are
 * queued, without a yield between them, then each is waited for.  Who takes one
 * after the other can wait for ever, for someone between them in the order.
 */
void range_lock_queue(struct range_lock *lock, struct range_hold *hold,
                      uint64_t start, uint64_t end, enum range_mode mode);
void range_lock_wait(struct range_hold *hold);
/* As range_lock_take(), but false, with nothing taken, where it would wait. */
bool range_lock_try(struct range_lock *lock, struct range_hold *hold,
                    uint64_t start, uint64_t end, enum range_mode mode);
void range_lock_release(struct range_lock *lock, struct range_hold *hold);
/*
 * Makes the hold cover at least [start, end), exclusively.  True where that
 * was so already; false where it was let go and taken anew, so that others may
 * have changed anything meanwhile.  Yields.
 */
bool range_lock_widen(struct range_lock *lock, struct range_hold *hold,
                      uint64_t start, uint64_t end);

#endif
