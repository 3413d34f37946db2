// SPDX-License-Identifier: BSD-3-Clause
/* See struct write_queue. */
#include <errno.h>
#include <sys/uio.h>

#include "run/real_internal.h"

enum { WRITE_BATCH = 1 << 20 };

/* In the worker. */
static void
write_all(void *arg)
{
    struct write_queue *q = arg;

    list_for_each(it, &q->running)
    {
        struct queued_write *w = container_of(it, struct queued_write, link);

        do {
            w->result = pwritev(w->fd, w->iov, w->n, (off_t)w->off);
        } while (w->result < 0 && errno == EINTR);
        if (w->result < 0) {
            w->result = -errno;
        }
    }
}

static void
to_be_started(struct write_queue *q)
{
    if (!q->busy && list_empty(&q->link)) {
        list_push(&q->rl->queues, &q->link);
    }
}

static void
batch_over(void *arg)
{
    struct write_queue *q = container_of(arg, struct write_queue, job);

    q->busy = false;
    q->backend->write_slots++;
    list_for_each_safe(it, &q->running)
    {
        struct queued_write *w = container_of(it, struct queued_write, link);

        list_remove(it);
        w->done = true;
        coro_wake(w->co);
    }
    if (!list_empty(&q->waiting)) {
        to_be_started(q);
    }
}

void
write_queue_init(struct write_queue *q, struct real_loop *rl,
                 struct backend *backend)
{
    *q = (struct write_queue){.rl = rl, .backend = backend};
    q->job = (struct job){.fn = write_all, .over = batch_over, .arg = q};
    list_init(&q->link);
    list_init(&q->waiting);
    list_init(&q->running);
}

ssize_t
write_queue_run(struct write_queue *q, struct queued_write *w)
{
    w->co = coro_self();
    w->done = false;
    list_push(&q->waiting, &w->link);
    to_be_started(q);
    while (!w->done) {
        coro_yield();
    }
    return w->result;
}

/* Moves what is next to do to `running`. */
static void
take_batch(struct write_queue *q)
{
    uint64_t bytes = 0;

    while (bytes < WRITE_BATCH && !list_empty(&q->waiting)) {
        struct queued_write *w =
            list_first(&q->waiting, struct queued_write, link);

        list_remove(&w->link);
        list_push(&q->running, &w->link);
        bytes += w->bytes;
    }
}

void
write_queues_start(struct real_loop *rl)
{
    list_for_each_safe(it, &rl->queues)
    {
        struct write_queue *q = container_of(it, struct write_queue, link);

        if (!q->backend->write_slots) {
            continue; /* at the end of the turn in which one is over */
        }
        q->backend->write_slots--;
        list_remove(&q->link);
        take_batch(q);
        q->busy = true;
        pool_start_job(&rl->pool, &q->job);
    }
}
