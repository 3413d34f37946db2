// SPDX-License-Identifier: BSD-3-Clause
/*
 * See track.h.  The request of a guest and the coroutine that writes to the
 * target share one struct twin; who leaves last frees it.
 */
#include "transfer/track.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "run/loop.h"

enum { FORWARD_PATIENCE_MS = 250, FLUSH_PATIENCE_MS = 5000 };

struct twin {
    struct list link; /* of track.twins */
    struct forward f;
    struct track *t;
    enum tap_op op;
    uint64_t off, len;
    unsigned char *data; /* of a write */
    struct iovec iov;
    struct waitq wake;
    uint64_t begun_ns;
    int result;       /* of the target's side */
    bool source_done, target_done;
    bool late;        /* the guest went on without it */
    bool one_is_gone; /* the guest's request or the coroutine */
};

static struct loop *
loop_of(const struct track *t)
{
    return graph_loop(t->source->graph);
}

/* Is any block of the range not missing? */
static bool
has_clean_block(const struct track *t, uint64_t off, uint64_t len)
{
    uint64_t end = min_u64(off + len, min_u64(t->frontier, t->missing.size));
    uint64_t at, n;

    return off < end && (!dirty_set_next(&t->missing, off, end, &at, &n) ||
                         at > off || at + n < end);
}

static void
mark(struct track *t, uint64_t off, uint64_t len)
{
    t->bytes_dirtied += len;
    t->went_stale |= has_clean_block(t, off, len);
    dirty_set_add(&t->missing, off, len);
    t->changed(t->arg);
}

/* Each side leaves once. */
static void
leave(struct twin *w)
{
    struct track *t = w->t;

    if (!w->one_is_gone) {
        w->one_is_gone = true;
        return;
    }
    list_remove(&w->link);
    free(w->data);
    free(w);
    t->in_flight--;
    waitq_wake_all(&t->idle);
}

static int
write_target(struct twin *w)
{
    struct node *target = w->t->target;
    struct range_hold hold;
    uint64_t unit = max_u64(target->cluster_size, target->limits.min_align);
    int r;

    if (w->op == TAP_OP_FLUSH) {
        return node_flush(target);
    }
    range_lock_take(&target->ranges, &hold, align_down(w->off, unit),
                    align_up(w->off + w->len, unit), RANGE_EXCLUSIVE);
    if (dirty_set_any(&w->t->missing, w->off, w->len)) {
        /*
         * It became missing meanwhile: it is copied, or all of it is read
         * through.  What is missing in part counts as missed.
         */
        r = w->t->reads_through && !has_clean_block(w->t, w->off, w->len)
                ? 0
                : -EAGAIN;
    } else if (w->op == TAP_OP_WRITE) {
        r = node_write(target, w->off, sg_one(&w->iov), REQ_QUIET, &hold);
    } else {
        r = node_zero(target, w->off, w->len, REQ_QUIET | REQ_MAY_UNMAP,
                      &hold);
    }
    /* A piece that comes next must not read the source half written. */
    w->result = r;
    w->target_done = true;
    waitq_wake_all(&w->wake);
    while (!w->source_done) {
        waitq_wait(&w->wake);
    }
    range_lock_release(&target->ranges, &hold);
    return r;
}

static void
twin_main(void *arg)
{
    struct twin *w = arg;
    struct track *t = w->t;

    w->result = write_target(w);
    w->target_done = true;
    waitq_wake_all(&w->wake);
    if (w->late) {
        t->late--;
        t->changed(t->arg);
    }
    leave(w);
}

/* Would the range fill a part of a cluster that a bare target does not hold? */
static bool
would_fill_a_part(const struct track *t, uint64_t off, uint64_t len)
{
    uint32_t unit = t->hollow.granularity;
    uint64_t end = off + len;

    return t->is_bare &&
           ((!is_aligned(off, unit) && dirty_set_any(&t->hollow, off, 1)) ||
            (!is_aligned(end, unit) && end < t->hollow.size &&
             dirty_set_any(&t->hollow, end - 1, 1)));
}

static bool
forwards(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len)
{
    const struct track *t = container_of(tap, struct track, tap);

    if (op == TAP_OP_FLUSH) {
        return t->pivoting;
    }
    return t->forwarding && !t->late && op != TAP_OP_DISCARD &&
           off >= t->released && off < t->missing.size && len <= t->frontier &&
           off <= t->frontier - len && !dirty_set_any(&t->missing, off, len) &&
           !would_fill_a_part(t, off, len);
}

/* The target misses something: it must be said before the guest hears of it. */
static void
fall_behind(struct track *t)
{
    t->broken++;
    if (t->pivoting && t->withdraw) {
        t->withdraw(t->arg);
    }
}

static int
before(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len)
{
    struct track *t = container_of(tap, struct track, tap);

    /*
     * A discard promises nothing: old data may stay.  Where all is missing, a
     * target that reads through to the source has it.
     */
    if (t->pivoting && op != TAP_OP_DISCARD && !forwards(tap, op, off, len) &&
        !(t->reads_through && !has_clean_block(t, off, len))) {
        fall_behind(t);
    }
    return 0;
}

static struct forward *
begin(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len,
      struct sg *sg)
{
    struct track *t = container_of(tap, struct track, tap);

    if (!forwards(tap, op, off, len)) {
        return NULL;
    }
    struct twin *w = xzalloc(sizeof(*w));

    *w = (struct twin){.t = t,
                       .op = op,
                       .off = off,
                       .len = len,
                       .begun_ns = loop_now(loop_of(t))};
    waitq_init(&w->wake);
    if (op == TAP_OP_WRITE) {
        w->data = try_alloc_aligned(4096, len);
        /* Without memory for it, it fails at once: its end puts the mark. */
        w->result = w->data ? 0 : -ENOMEM;
        w->target_done = w->one_is_gone = !w->data;
    }
    t->in_flight++;
    list_push(&t->twins, &w->link);
    if (w->data) {
        sg_copy_to(*sg, w->data);
        w->iov = (struct iovec){w->data, len};
        *sg = sg_one(&w->iov);
    }
    if (!w->target_done) {
        coro_start(loop_of(t), twin_main, w);
    }
    return &w->f;
}

/* The guest's side of it: false where the target is waited for no longer. */
static bool
wait_for_target(struct twin *w)
{
    uint64_t patience =
        w->op == TAP_OP_FLUSH ? FLUSH_PATIENCE_MS : FORWARD_PATIENCE_MS;

    w->source_done = true;
    waitq_wake_all(&w->wake);
    while (!w->target_done) {
        if (!waitq_wait_until(&w->wake,
                              w->begun_ns + patience * NS_PER_MS)) {
            return w->target_done;
        }
    }
    return true;
}

static void
end(struct forward *forward, int result)
{
    struct twin *w = container_of(forward, struct twin, f);
    struct track *t = w->t;
    bool in_time = wait_for_target(w);

    /* It may return while what follows yields. */
    w->late = !in_time;
    t->late += w->late;
    t->n_late += w->late;
    if (!in_time || w->result || result) {
        if (w->op != TAP_OP_FLUSH) {
            mark(t, w->off, w->len);
        }
        fall_behind(t);
    } else {
        t->bytes_forwarded += w->op == TAP_OP_WRITE ? w->len : 0;
        track_written(t, w->off, w->op == TAP_OP_FLUSH ? 0 : w->len);
    }
    leave(w);
}

static void
saw_change(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len,
           int result)
{
    mark(container_of(tap, struct track, tap), off, len);
}

/* What no layer above the target holds is the target's. */
static int
divert(struct tap *tap, uint64_t off, uint64_t len, struct node **ret,
       uint64_t *ret_len)
{
    struct track *t = container_of(tap, struct track, tap);
    struct extent ext;
    struct node *layer;
    int r = chain_status(t->source, t->target, off, len, false, &ext, &layer);

    if (r) {
        return r;
    }
    *ret_len = ext.len;
    if (!layer) {
        *ret = t->target;
        t->bytes_sunk += ext.len;
    }
    return 0;
}

/* Rule 4. */

static struct node *
protocol_of(struct node *node)
{
    while (node->file) {
        node = node->file->child;
    }
    return node;
}

void
track_written(struct track *t, uint64_t off, uint64_t len)
{
    if (t->can_lose && len) {
        dirty_set_add(&t->unflushed, off, len);
    }
}

static void
move_runs(struct dirty_set *from, struct dirty_set *to)
{
    uint64_t off, len;

    while (dirty_set_next(from, 0, from->size, &off, &len)) {
        dirty_set_remove(from, off, len);
        dirty_set_add(to, off, len);
    }
}

/* What was not flushed is missing again. */
static void
take_loss(struct track *t)
{
    t->losses = protocol_of(t->target)->losses;
    t->broken++;
    move_runs(&t->flushing, &t->missing);
    move_runs(&t->unflushed, &t->missing);
    t->changed(t->arg);
}

static int
flush_lossy(struct track *t)
{
    move_runs(&t->unflushed, &t->flushing);
    int r = node_flush(t->target);

    if (protocol_of(t->target)->losses != t->losses) {
        if (node_skip_filters(t->target)->drv->set_incomplete) {
            return -ESTALE; /* its tables may be lost, too: it is no image */
        }
        take_loss(t);
        return -EAGAIN;
    }
    if (!r) {
        dirty_set_remove(&t->flushing, 0, t->flushing.size);
    }
    return r == -ERESTART ? -EAGAIN : r;
}

int
track_flush_target(struct track *t)
{
    if (!t->can_lose) {
        return node_flush(t->target);
    }
    comutex_lock(&t->flush_lock);
    int r = flush_lossy(t);

    comutex_unlock(&t->flush_lock);
    return r;
}

void
track_start(struct track *t, struct node *source, struct node *target,
            uint32_t granularity, void (*changed)(void *arg), void *arg)
{
    *t = (struct track){.source = source,
                        .target = target,
                        .sinks = t->sinks,
                        .is_bare = t->is_bare,
                        .can_lose = !strcmp(protocol_of(target)->drv->name,
                                            "nbd"),
                        .losses = protocol_of(target)->losses,
                        .frontier = UINT64_MAX,
                        .changed = changed,
                        .arg = arg,
                        .tap = {.order = TAP_FORWARD,
                                .before = before,
                                .forwards = forwards,
                                .begin = begin,
                                .end = end,
                                .divert = t->sinks ? divert : NULL,
                                .after = saw_change}};
    dirty_set_init(&t->missing, source->size, granularity);
    dirty_set_init(&t->hollow, source->size, granularity);
    comutex_init(&t->flush_lock);
    if (t->can_lose) {
        dirty_set_init(&t->unflushed, source->size, granularity);
        dirty_set_init(&t->flushing, source->size, granularity);
    }
    if (t->is_bare) { /* what it holds by now can only be whole clusters */
        dirty_set_add(&t->hollow, 0, source->size);
    }
    waitq_init(&t->idle);
    list_init(&t->twins);
    tap_attach(source, &t->tap);
    t->attached = true;
}

bool
track_is_forwarding(const struct track *t, uint64_t off, uint64_t len)
{
    list_for_each(it, &t->twins)
    {
        const struct twin *w = container_of(it, struct twin, link);

        if (w->off < off + len && off < w->off + w->len) {
            return true;
        }
    }
    return false;
}

void
track_detach(struct track *t)
{
    if (t->attached) {
        tap_detach(&t->tap);
        t->attached = false;
    }
}

void
track_stop(struct track *t)
{
    track_detach(t);
    if (t->sinks) {
        grace_wait(&t->source->changes); /* which the target may take */
    }
    while (t->in_flight) {
        waitq_wait(&t->idle);
    }
    dirty_set_fini(&t->missing);
    dirty_set_fini(&t->hollow);
    dirty_set_fini(&t->unflushed);
    dirty_set_fini(&t->flushing);
}
