// SPDX-License-Identifier: BSD-3-Clause
/*
 * The turn of the loop, the same for both implementations of the seam:
 *
 *   timers that are due -> ready coroutines, until none is left -> flush ->
 *   wait (not at all where something is ready)
 *
 * A coroutine that is woken while a turn runs, runs in the same turn; to keep
 * the outside from starving, a turn ends after TURN_MAX switches.
 */
#include "run/loop.h"

#include <assert.h>

#include "run/wait.h"

enum { TURN_MAX = 512 };

void
loop_init(struct loop *loop, const struct loop_ops *ops)
{
    loop->ops = ops;
    loop->pool = coro_pool_new();
    list_init(&loop->ready);
}

void
loop_fini(struct loop *loop)
{
    coro_pool_free(loop->pool);
    free(loop->heap);
}

void
loop_free(struct loop *loop)
{
    loop->ops->destroy(loop);
}

struct loop *
loop_current(void)
{
    assert(coro_self());
    return coro_self()->loop;
}

/* Timers: a binary heap, ordered by deadline; index 0 is unused. */

static void
heap_place(struct loop *loop, unsigned i, struct timer *t)
{
    loop->heap[i] = t;
    t->heap_index = i;
}

static void
heap_up(struct loop *loop, unsigned i, struct timer *t)
{
    while (i > 1 && loop->heap[i / 2]->deadline_ns > t->deadline_ns) {
        heap_place(loop, i, loop->heap[i / 2]);
        i /= 2;
    }
    heap_place(loop, i, t);
}

static void
heap_down(struct loop *loop, unsigned i, struct timer *t)
{
    for (;;) {
        unsigned child = 2 * i;

        if (child > loop->heap_n) {
            break;
        }
        if (child < loop->heap_n && loop->heap[child + 1]->deadline_ns <
                                        loop->heap[child]->deadline_ns) {
            child++;
        }
        if (loop->heap[child]->deadline_ns >= t->deadline_ns) {
            break;
        }
        heap_place(loop, i, loop->heap[child]);
        i = child;
    }
    heap_place(loop, i, t);
}

void
timer_cancel(struct timer *timer)
{
    struct loop *loop = timer->loop;
    unsigned i = timer->heap_index;

    if (!i) {
        return;
    }
    timer->heap_index = 0;
    struct timer *last = loop->heap[loop->heap_n--];

    if (last == timer) {
        return;
    }
    if (i > 1 && loop->heap[i / 2]->deadline_ns > last->deadline_ns) {
        heap_up(loop, i, last);
    } else {
        heap_down(loop, i, last);
    }
}

void
timer_set(struct loop *loop, struct timer *timer, uint64_t deadline_ns,
          void (*fn)(struct timer *timer))
{
    if (timer->heap_index) {
        timer_cancel(timer);
    }
    timer->loop = loop;
    timer->deadline_ns = deadline_ns;
    timer->fn = fn;
    if (loop->heap_n + 1 >= loop->heap_cap) {
        loop->heap_cap = loop->heap_cap ? loop->heap_cap * 2 : 16;
        loop->heap = xrealloc(loop->heap, loop->heap_cap * sizeof(*loop->heap));
    }
    heap_up(loop, ++loop->heap_n, timer);
}

static uint64_t
next_deadline(struct loop *loop)
{
    return loop->heap_n ? loop->heap[1]->deadline_ns : NEVER;
}

static void
run_timers(struct loop *loop)
{
    if (!loop->heap_n) {
        return;
    }
    uint64_t now = loop_now(loop);

    while (loop->heap_n && loop->heap[1]->deadline_ns <= now) {
        struct timer *t = loop->heap[1];

        timer_cancel(t);
        t->fn(t);
    }
}

/* Coroutines. */

void
coro_wake(struct coro *co)
{
    if (!co->ready) {
        co->ready = true;
        list_push(&co->loop->ready, &co->link);
        co->loop->n_ready++;
    }
}

void
coro_start(struct loop *loop, void (*fn)(void *), void *arg)
{
    loop->n_coros++;
    coro_wake(coro_new(loop->pool, loop, fn, arg));
}

void
coro_relax(void)
{
    coro_wake(coro_self());
    coro_yield();
}

static void
run_ready(struct loop *loop)
{
    for (int i = 0; i < TURN_MAX && loop->n_ready && !loop->stop; i++) {
        struct list *link =
            loop->ops->pick(loop, &loop->ready, loop->n_ready);
        struct coro *co = container_of(link, struct coro, link);

        list_remove(link);
        loop->n_ready--;
        loop->n_switches++;
        co->ready = false;
        if (coro_resume(loop->pool, co)) {
            loop->n_coros--;
        }
    }
}

/* One turn; false where nothing can ever happen any more. */
static bool
turn(struct loop *loop)
{
    run_timers(loop);
    run_ready(loop);
    loop->ops->flush(loop);
    if (loop->stop || !loop->n_coros) {
        return true;
    }
    return loop->ops->wait(loop, loop->n_ready ? 0 : next_deadline(loop));
}

void
loop_stop(struct loop *loop)
{
    loop->stop = true;
}

void
loop_run(struct loop *loop)
{
    loop->stop = false;
    while (!loop->stop && loop->n_coros && turn(loop)) {
    }
}

struct main_call {
    void (*fn)(void *);
    void *arg;
    bool done;
};

static void
main_entry(void *arg)
{
    struct main_call *call = arg;

    call->fn(call->arg);
    call->done = true;
    loop_stop(loop_current());
}

bool
loop_run_main(struct loop *loop, void (*fn)(void *), void *arg)
{
    struct main_call call = {fn, arg, false};

    coro_start(loop, main_entry, &call);
    loop_run(loop);
    return call.done;
}

/* Waiting. */

struct waiter {
    struct list link; /* in the queue; alone once woken */
    struct coro *co;
    struct timer timer;
};

void
waitq_init(struct waitq *q)
{
    list_init(&q->waiters);
}

void
waitq_wait(struct waitq *q)
{
    struct waiter w = {.co = coro_self()};

    list_push(&q->waiters, &w.link);
    while (!list_empty(&w.link)) {
        coro_yield();
    }
}

static void
wait_expired(struct timer *timer)
{
    coro_wake(container_of(timer, struct waiter, timer)->co);
}

bool
waitq_wait_until(struct waitq *q, uint64_t deadline_ns)
{
    struct waiter w = {.co = coro_self()};

    if (deadline_ns == NEVER) {
        waitq_wait(q);
        return true;
    }
    list_push(&q->waiters, &w.link);
    timer_set(w.co->loop, &w.timer, deadline_ns, wait_expired);
    while (!list_empty(&w.link) && w.timer.heap_index) {
        coro_yield();
    }
    timer_cancel(&w.timer);
    bool woken = list_empty(&w.link);

    list_remove(&w.link);
    return woken;
}

bool
waitq_wake_one(struct waitq *q)
{
    if (list_empty(&q->waiters)) {
        return false;
    }
    struct waiter *w = list_first(&q->waiters, struct waiter, link);

    list_remove(&w->link);
    coro_wake(w->co);
    return true;
}

void
waitq_wake_all(struct waitq *q)
{
    while (waitq_wake_one(q)) {
    }
}

void
coro_sleep(uint64_t ns)
{
    struct waiter w = {.co = coro_self()};

    timer_set(w.co->loop, &w.timer, loop_now(w.co->loop) + ns, wait_expired);
    while (w.timer.heap_index) {
        coro_yield();
    }
}

void
comutex_init(struct comutex *m)
{
    m->locked = false;
    waitq_init(&m->waiters);
}

void
comutex_lock(struct comutex *m)
{
    if (m->locked) {
        waitq_wait(&m->waiters); /* the lock is ours when we are woken */
    } else {
        m->locked = true;
    }
}

void
comutex_unlock(struct comutex *m)
{
    assert(m->locked);
    if (!waitq_wake_one(&m->waiters)) {
        m->locked = false;
    }
}

/* Work off the loop. */

void
offload_group_init(struct offload_group *group, unsigned max)
{
    group->running = 0;
    group->max = max;
    waitq_init(&group->waiting);
}

void
offload_group_enter(struct offload_group *group)
{
    if (group->running == group->max) {
        waitq_wait(&group->waiting); /* the slot is ours when we are woken */
    } else {
        group->running++;
    }
}

void
offload_group_leave(struct offload_group *group)
{
    if (!waitq_wake_one(&group->waiting)) {
        group->running--;
    }
}

void
offload(struct loop *loop, struct offload_group *group, void (*fn)(void *),
        void *arg)
{
    offload_group_enter(group);
    loop->ops->offload(loop, fn, arg);
    offload_group_leave(group);
}
