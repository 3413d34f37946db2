// SPDX-License-Identifier: BSD-3-Clause
/* See struct write_queue. */
#include <errno.h>
#include <sys/uio.h>

#include "base/bytes.h"
#include "run/real_internal.h"

enum {
    WRITE_BATCH = 1 << 20, /* bytes of one job: then other files have a turn */
    PIECE_MIN = 16 << 10,  /* bytes that are worth a bell */
    PIECE_MAX = 64 << 10,
};

/*
 * Moves what comes next to @piece: half of what waits, so that the loop answers
 * one half, and brings new ones, while the other is written.  Under the lock.
 */
static void
take_piece(struct write_queue *q, struct list *piece)
{
    uint64_t max =
        max_u64(min_u64(q->waiting_bytes / 2, PIECE_MAX), PIECE_MIN);
    uint64_t bytes = 0;

    while (bytes < max && !list_empty(&q->waiting)) {
        struct queued_write *w =
            list_first(&q->waiting, struct queued_write, link);

        list_remove(&w->link);
        list_push(piece, &w->link);
        bytes += w->bytes;
    }
    q->waiting_bytes -= bytes;
    q->taken_bytes += bytes;
}

static void
write_piece(struct list *piece)
{
    list_for_each(it, piece)
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

/* In the worker: each piece is answered while the next one is written. */
static void
write_all(void *arg)
{
    struct write_queue *q = arg;
    pthread_mutex_t *lock = &q->rl->lock;
    struct list piece;
    bool more = true;

    list_init(&piece);
    q->taken_bytes = 0;
    while (more) {
        pthread_mutex_lock(lock);
        take_piece(q, &piece);
        pthread_mutex_unlock(lock);
        write_piece(&piece);
        pthread_mutex_lock(lock);
        more = !list_empty(&q->waiting) && q->taken_bytes < WRITE_BATCH;
        /* Once the last one is answered, nothing keeps the queue alive. */
        list_splice(more ? &q->written : &q->last, &piece);
        pthread_mutex_unlock(lock);
        if (more) {
            job_report(q->rl, &q->part);
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
wake_all(struct list *written)
{
    list_for_each_safe(it, written)
    {
        struct queued_write *w = container_of(it, struct queued_write, link);

        list_remove(it);
        w->done = true;
        coro_wake(w->co);
    }
}

static void
piece_over(void *arg)
{
    struct write_queue *q = container_of(arg, struct write_queue, part);
    struct list written;

    list_init(&written);
    pthread_mutex_lock(&q->rl->lock);
    list_splice(&written, &q->written);
    pthread_mutex_unlock(&q->rl->lock);
    wake_all(&written);
}

static void
batch_over(void *arg)
{
    struct write_queue *q = container_of(arg, struct write_queue, job);

    q->busy = false;
    q->backend->write_slots++;
    wake_all(&q->last);
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
    q->part = (struct job){.over = piece_over};
    list_init(&q->link);
    list_init(&q->waiting);
    list_init(&q->written);
    list_init(&q->last);
}

/* Where the device's share of the workers is in use, a later turn does it. */
static void
start(struct write_queue *q)
{
    if (q->backend->write_slots) {
        q->backend->write_slots--;
        list_remove(&q->link);
        q->busy = true;
        pool_start_job(&q->rl->pool, &q->job);
    }
}

ssize_t
write_queue_run(struct write_queue *q, struct queued_write *w)
{
    w->co = coro_self();
    w->done = false;
    pthread_mutex_lock(&q->rl->lock);
    list_push(&q->waiting, &w->link);
    q->waiting_bytes += w->bytes;
    bool enough = q->waiting_bytes >= PIECE_MIN;

    pthread_mutex_unlock(&q->rl->lock);
    to_be_started(q);
    if (enough && q->rl->queues.next == &q->link) {
        start(q); /* no other file has waited longer */
    }
    while (!w->done) {
        coro_yield();
    }
    return w->result;
}

void
write_queues_start(struct real_loop *rl)
{
    list_for_each_safe(it, &rl->queues)
    {
        start(container_of(it, struct write_queue, link));
    }
}
