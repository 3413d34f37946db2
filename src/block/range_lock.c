// SPDX-License-Identifier: BSD-3-Clause
/*
 * A list in order of arrival.  A hold stands against a later one when their
 * ranges overlap and one of them is exclusive; a hold is granted when nobody
 * before it stands against it.  The list is as long as the requests in flight
 * on one node, so it is walked, not searched.
 */
#include "block/range_lock.h"

#include <assert.h>

#include "run/coro.h"

static bool
against(const struct range_hold *a, const struct range_hold *b)
{
    return a->start < b->end && b->start < a->end &&
           (a->mode == RANGE_EXCLUSIVE || b->mode == RANGE_EXCLUSIVE);
}

/* May @hold go, given those that came before it? */
static bool
is_free(struct range_lock *lock, struct range_hold *hold)
{
    list_for_each(it, &lock->holds)
    {
        struct range_hold *other = container_of(it, struct range_hold, link);

        if (other == hold) {
            break;
        }
        if (against(other, hold)) {
            return false;
        }
    }
    return true;
}

void
range_lock_init(struct range_lock *lock)
{
    list_init(&lock->holds);
}

void
range_lock_queue(struct range_lock *lock, struct range_hold *hold,
                 uint64_t start, uint64_t end, enum range_mode mode)
{
    *hold = (struct range_hold){
        .co = coro_self(), .start = start, .end = end, .mode = mode};
    list_push(&lock->holds, &hold->link);
    hold->held = is_free(lock, hold);
}

void
range_lock_wait(struct range_hold *hold)
{
    while (!hold->held) {
        coro_yield();
    }
}

void
range_lock_take(struct range_lock *lock, struct range_hold *hold,
                uint64_t start, uint64_t end, enum range_mode mode)
{
    range_lock_queue(lock, hold, start, end, mode);
    range_lock_wait(hold);
}

bool
range_lock_try(struct range_lock *lock, struct range_hold *hold, uint64_t start,
               uint64_t end, enum range_mode mode)
{
    range_lock_queue(lock, hold, start, end, mode);
    if (!hold->held) {
        list_remove(&hold->link);
    }
    return hold->held;
}

void
range_lock_release(struct range_lock *lock, struct range_hold *hold)
{
    assert(hold->held);
    struct list *after = hold->link.next;

    list_remove(&hold->link);
    hold->held = false;
    /* Only those that came later can have waited for it. */
    for (struct list *it = after; it != &lock->holds; it = it->next) {
        struct range_hold *other = container_of(it, struct range_hold, link);

        if (!other->held && against(hold, other) && is_free(lock, other)) {
            other->held = true;
            coro_wake(other->co);
        }
    }
}

bool
range_lock_widen(struct range_lock *lock, struct range_hold *hold,
                 uint64_t start, uint64_t end)
{
    if (hold->mode == RANGE_EXCLUSIVE && hold->start <= start &&
        hold->end >= end) {
        return true;
    }
    start = start < hold->start ? start : hold->start;
    end = end > hold->end ? end : hold->end;
    range_lock_release(lock, hold);
    range_lock_take(lock, hold, start, end, RANGE_EXCLUSIVE);
    return false;
}
