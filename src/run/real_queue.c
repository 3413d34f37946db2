// SPDX-License-Identifier: BSD-3-Clause
/* See struct write_queue. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "base/bytes.h"
#include "run/real_internal.h"

enum {
    WRITE_BATCH = 1 << 20, /* bytes of one job: then other files have a turn */
    PIECE_MIN = 16 << 10,  /* bytes that are worth a bell */
    PIECE_MAX = 64 << 10,
};

#define LENT_MAX_NS (2 * NS_PER_MS) /* for one write that is lent */
#define LEND_AGAIN_NS NS_PER_S

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
write_one(struct queued_write *w)
{
    do {
        w->result = pwritev(w->fd, w->iov, w->n, (off_t)w->off);
    } while (w->result < 0 && errno == EINTR);
    if (w->result < 0) {
        w->result = -errno;
    }
}

static void
write_piece(struct list *piece)
{
    list_for_each(it, piece)
    {
        write_one(container_of(it, struct queued_write, link));
    }
}

/*
 * Who has dirtied too many pages is made to wait by the kernel.  That is the
 * background's to wait, not the guest's.
 */
static void
write_lent(struct write_queue *q, struct queued_write *w)
{
    uint64_t begin = real_now(&q->rl->loop), end;

    write_one(w);
    end = real_now(&q->rl->loop);
    pthread_mutex_lock(&q->rl->lock);
    if (end - begin > LENT_MAX_NS) {
        q->lend_after_ns = end + LEND_AGAIN_NS;
    }
    w->done = true;
    pthread_cond_signal(&q->lent_done);
    pthread_mutex_unlock(&q->rl->lock);
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
        q->takes_lent = q->taken_bytes < WRITE_BATCH;
        take_piece(q, &piece);
        pthread_mutex_unlock(lock);
        write_piece(&piece);
        pthread_mutex_lock(lock);
        struct queued_write *lent = q->lent;

        q->lent = NULL;
        more = lent ||
               (!list_empty(&q->waiting) && q->taken_bytes < WRITE_BATCH);
        q->takes_lent = more && q->taken_bytes < WRITE_BATCH;
        bool answers = more && !list_empty(&piece);

        /* Once the last one is answered, nothing keeps the queue alive. */
        list_splice(more ? &q->written : &q->last, &piece);
        pthread_mutex_unlock(lock);
        if (answers) {
            job_report(q->rl, &q->part);
        }
        if (lent) {
            write_lent(q, lent);
        }
    }
}

bool
write_queue_lend(struct write_queue *q, struct queued_write *w)
{
    bool lent;

    pthread_mutex_lock(&q->rl->lock);
    lent = q->takes_lent && real_now(&q->rl->loop) >= q->lend_after_ns;
    if (lent) {
        assert(!q->lent);
        w->done = false;
        q->lent = w;
        while (!w->done) {
            pthread_cond_wait(&q->lent_done, &q->rl->lock);
        }
    }
    pthread_mutex_unlock(&q->rl->lock);
    return lent;
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
destroy(struct write_queue *q)
{
    backend_put(q->backend);
    pthread_cond_destroy(&q->lent_done);
    free(q);
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
    } else if (q->abandoned) {
        destroy(q);
    }
}

struct write_queue *
write_queue_new(struct real_loop *rl, struct backend *backend)
{
    struct write_queue *q = xzalloc(sizeof(*q));

    *q = (struct write_queue){.rl = rl, .backend = backend};
    q->job = (struct job){.fn = write_all, .over = batch_over, .arg = q};
    q->part = (struct job){.over = piece_over};
    list_init(&q->link);
    list_init(&q->waiting);
    list_init(&q->written);
    list_init(&q->last);
    pthread_cond_init(&q->lent_done, NULL);
    return q;
}

void
write_queue_free(struct write_queue *q)
{
    if (q->busy) {
        q->abandoned = true; /* by whom it was lent the last write */
    } else {
        destroy(q);
    }
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
