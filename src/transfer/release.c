// SPDX-License-Identifier: BSD-3-Clause
/* See release.h, and docs/design/merge.md for why in this order. */
#include "transfer/release.h"

#include <errno.h>
#include <stdlib.h>

#include "block/edit.h"
#include "journal/journal.h"
#include "transfer/engine.h"

#define DEFAULT_MAX_EXTRA (4 * MIB)

/* Parts of the window that a layer above the target holds, and their locks. */
struct runs {
    struct run {
        uint64_t off, len;
        struct range_hold hold;
    } *run;
    size_t n, room;
};

void
release_init(struct transfer *t, enum release_side side, struct node *top,
             struct node *bottom)
{
    struct release *rel = &t->release;
    unsigned n = 0;

    rel->side = side;
    rel->max_extra = rel->max_extra ? rel->max_extra : DEFAULT_MAX_EXTRA;
    rel->unit = t->granularity; /* a block is clean as a whole */
    for (struct node *l = top; l && l != bottom;
         l = l->backing ? l->backing->child : NULL) {
        n++;
    }
    rel->layers = xzalloc((n + 1) * sizeof(*rel->layers));
    rel->n_layers = n;
    for (struct node *l = top; n; l = l->backing ? l->backing->child : NULL) {
        rel->layers[--n] = node_ref(l);
        rel->unit = max_u64(rel->unit, l->cluster_size);
    }
    t->piece = max_u64(min_u64(t->piece, rel->max_extra / 8), 4096);
}

static uint64_t
bytes_taken(struct transfer *t)
{
    uint64_t sum = 0, bytes;

    if (!node_allocated(t->copy.target, &bytes)) {
        sum += bytes;
    }
    for (unsigned i = 0; i < t->release.n_layers; i++) {
        if (!node_allocated(t->release.layers[i], &bytes)) {
            sum += bytes;
        }
    }
    return sum;
}

uint64_t
release_journal_bytes(const struct transfer *t)
{
    return ((t->journal ? 1ULL : 0) + t->n_of_layers) * JOURNAL_SIZE;
}

/* Most is taken right before something is given back. */
static void
see_peak(struct transfer *t)
{
    t->release.seen_at = t->report.bytes_moved; /* what follows is not in it */
    uint64_t now = bytes_taken(t) + release_journal_bytes(t);
    uint64_t start = t->release.at_start;

    t->report.peak_extra =
        max_u64(t->report.peak_extra, now > start ? now - start : 0);
}

void
release_grown(struct transfer *t)
{
    const struct release *rel = &t->release;

    if (rel->side &&
        t->report.bytes_moved - rel->seen_at >= rel->max_extra / 8) {
        see_peak(t);
    }
}

void
release_begin(struct transfer *t)
{
    struct release *rel = &t->release;

    if (!rel->were_unmap) {
        rel->at_start = rel->side ? bytes_taken(t) : 0;
        rel->were_unmap = xzalloc((2 * rel->n_layers + 1) * sizeof(bool));
        for (unsigned i = 0; i < rel->n_layers; i++) {
            struct node *layer = rel->layers[i];

            rel->were_unmap[2 * i] = layer->unmap;
            rel->were_unmap[2 * i + 1] =
                layer->file && layer->file->child->unmap;
            layer->unmap = true;
            if (layer->file) {
                layer->file->child->unmap = true;
            }
        }
    }
}

uint64_t
release_extra(const struct transfer *t)
{
    const struct release *rel = &t->release;
    const struct node *target = node_local_file(t->copy.target);

    for (unsigned i = 0; i < rel->n_layers; i++) {
        const struct node *file = node_local_file(rel->layers[i]);

        if (!target || !file || file->file_id.dev != target->file_id.dev) {
            return UINT64_MAX;
        }
    }
    return max_u64(rel->max_extra, 2 * rel->unit) +
           2 * max_u64(rel->unit, t->copy.target->cluster_size);
}

void
release_fini(struct release *rel)
{
    while (rel->n_layers) {
        unsigned i = --rel->n_layers;
        struct node *layer = rel->layers[i];

        if (rel->were_unmap) {
            layer->unmap = rel->were_unmap[2 * i];
        }
        if (rel->were_unmap && layer->file) {
            layer->file->child->unmap = rel->were_unmap[2 * i + 1];
        }
        node_unref(layer);
    }
    free(take_ptr(rel->layers));
    free(take_ptr(rel->were_unmap));
}

static uint64_t
epoch_bytes(const struct transfer *t)
{
    /* Two are under way at most, and the last piece of each may go beyond. */
    uint64_t half = max_u64(t->release.max_extra / 2, t->piece);

    return max_u64(half - t->piece, t->release.unit);
}

bool
release_has_room(const struct transfer *t)
{
    return !t->flushing || t->release.handed_out < epoch_bytes(t);
}

bool
release_is_due(const struct transfer *t, uint64_t passed)
{
    const struct release *rel = &t->release;

    return rel->handed_out >= epoch_bytes(t) &&
           align_down(passed, rel->unit) > rel->upto;
}

static bool
is_over(const struct transfer *t)
{
    return t->error || job_cancelled(&t->job);
}

/* The runs. */

static void
add_run(struct runs *runs, uint64_t off, uint64_t len)
{
    struct run *last = runs->n ? &runs->run[runs->n - 1] : NULL;

    if (last && last->off + last->len == off) {
        last->len += len;
        return;
    }
    if (runs->n == runs->room) {
        runs->room = runs->room * 2 + 16;
        runs->run = xrealloc(runs->run, runs->room * sizeof(*runs->run));
    }
    runs->run[runs->n++] = (struct run){.off = off, .len = len};
}

/*
 * What layers above the target hold of [off, end), in units: a cluster that a
 * guest's write makes in them meanwhile lies within a run, or outside all.
 */
static int
find_held(struct transfer *t, uint64_t off, uint64_t end, uint64_t most,
          struct runs *ret)
{
    uint64_t found = 0;

    while (off < end && found < most) {
        struct extent ext;
        struct node *layer;
        int r = chain_status(t->copy.source, t->copy.target, off,
                             min_u64(end - off, GIB), false, &ext, &layer);

        if (r) {
            return r;
        }
        off += ext.len;
        if (layer) {
            uint64_t start = align_down(off - ext.len, t->release.unit);

            off = align_up(off, t->release.unit);
            add_run(ret, start, off - start);
            found += off - start;
        }
        coro_relax();
    }
    return 0;
}

static void
lock_runs(struct transfer *t, struct runs *runs)
{
    for (size_t i = 0; i < runs->n; i++) {
        struct run *run = &runs->run[i];

        range_lock_queue(&t->copy.source->ranges, &run->hold, run->off,
                         run->off + run->len, RANGE_EXCLUSIVE);
    }
    for (size_t i = 0; i < runs->n; i++) {
        range_lock_wait(&runs->run[i].hold);
    }
}

static void
unlock_runs(struct transfer *t, struct runs *runs)
{
    for (size_t i = 0; i < runs->n; i++) {
        range_lock_release(&t->copy.source->ranges, &runs->run[i].hold);
    }
}

/*
 * Takes what @layer holds of the run away from it.  *ret_changed: it held
 * something.
 */
static int
unallocate(struct transfer *t, struct node *layer, struct run *run,
           bool *ret_changed)
{
    uint64_t off = run->off, end = min_u64(run->off + run->len, layer->size);

    while (off < end) {
        struct extent ext;
        int r = node_status(layer, off, end - off, false, &ext);

        if (!r && ext.kind != EXTENT_UNALLOCATED) {
            r = node_unallocate(layer, off, ext.len,
                                layer == t->copy.source ? &run->hold : NULL);
            t->report.bytes_released += r ? 0 : ext.len;
            *ret_changed = true;
        }
        if (r) {
            return r;
        }
        off += ext.len;
    }
    return 0;
}

/* What was taken away is gone durably, and its blocks are free. */
static int
give_back(struct transfer *t, struct node *layer)
{
    int r = node_flush(layer);

    see_peak(t);
    return !r && layer->drv->free_now ? layer->drv->free_now(layer) : r;
}

/* The lowest layer first; each is durable before the next. */
static int
unallocate_runs(struct transfer *t, struct runs *runs)
{
    int r = 0;

    for (unsigned i = 0; i < t->release.n_layers && !r; i++) {
        struct node *layer = t->release.layers[i];
        bool changed = false;

        for (size_t k = 0; k < runs->n && !r; k++) {
            r = unallocate(t, layer, &runs->run[k], &changed);
        }
        if (!r && changed) {
            r = give_back(t, layer);
        }
    }
    return r;
}

/* The workers of a range are done, and nothing in it is dirty. */
static int
settle(struct transfer *t, uint64_t off, uint64_t end)
{
    while (!is_over(t)) {
        uint64_t at, len;
        bool dirty = t->tracked && dirty_set_next(&t->track.missing, off, end,
                                                  &at, &len);

        if (transfer_is_active(t, off, end - off)) {
            transfer_wait_worker(t);
        } else if (!dirty) {
            return 0;
        } else if (t->track.late) {
            transfer_wait_worker(t);
        } else {
            transfer_copy_dirty(t, at, min_u64(len, t->piece));
        }
    }
    return t->error ? t->error : -ECANCELED;
}

/* The window is [off, end): nothing in it is missing from the target. */
static int
release_above(struct transfer *t, uint64_t off, uint64_t end)
{
    struct runs runs = {0};
    bool clean = false;
    int r = 0;

    while (!r && !clean) {
        r = settle(t, off, end);
        if (!r) {
            r = node_flush(t->copy.target);
        }
        runs.n = 0;
        if (!r) {
            r = find_held(t, off, end, UINT64_MAX, &runs);
        }
        if (r) {
            break;
        }
        lock_runs(t, &runs);
        clean = !dirty_set_any(&t->track.missing, off, end - off) &&
                !t->track.late;
        if (clean) {
            see_peak(t);
            r = unallocate_runs(t, &runs);
        }
        unlock_runs(t, &runs);
    }
    free(runs.run);
    return r;
}

/* What the target holds of [off, end). */
static int
find_hidden(struct transfer *t, uint64_t off, uint64_t end, struct runs *ret)
{
    while (off < end) {
        struct extent ext;
        int r = node_status(t->copy.target, off, end - off, false, &ext);

        if (r) {
            return r;
        }
        if (ext.kind != EXTENT_UNALLOCATED) {
            add_run(ret, off, ext.len);
        }
        off += ext.len;
        coro_relax();
    }
    return 0;
}

void
release_whole(const struct node *layer, uint64_t *off, uint64_t *end)
{
    uint64_t unit = max_u64(layer->cluster_size, layer->limits.min_align);

    *off = align_up(*off, unit);
    *end = *end >= layer->size ? layer->size : align_down(*end, unit);
}

/* Of a layer below: its clusters in a run that the target hides. */
static int
release_layer_below(struct transfer *t, struct node *layer,
                    const struct run *run, bool *ret_changed)
{
    uint64_t off = run->off, end = run->off + run->len;

    release_whole(layer, &off, &end);
    while (off < end) {
        struct extent ext;
        int r = node_status(layer, off, end - off, true, &ext);

        if (!r && ext.kind != EXTENT_UNALLOCATED) {
            r = layer->drv->unallocate
                    ? node_unallocate(layer, off, ext.len, NULL)
                    : node_discard(layer, off, ext.len);
            t->report.bytes_released += r ? 0 : ext.len;
            *ret_changed = true;
        }
        if (r) {
            return r;
        }
        off += ext.len;
    }
    return 0;
}

/* A read that began while the target did not hold it goes on downwards. */
static int
wait_for_readers(struct transfer *t)
{
    struct node *target = t->copy.target;
    const struct edit edit = {EDIT_NOTHING, target, NULL};
    const struct edit_options options = {.alike = true};

    return graph_edit(target->graph, &edit, 1, &options, NULL, NULL);
}

/*
 * What is hidden is looked up before it is flushed: what a guest writes later
 * is not durable, so it hides nothing yet.
 */
static int
release_below(struct transfer *t, uint64_t off, uint64_t end)
{
    struct runs hidden = {0};
    int r = settle(t, off, end);

    if (!r) {
        r = find_hidden(t, off, end, &hidden);
    }
    if (!r) {
        r = node_flush(t->copy.target);
    }
    if (!r) {
        r = wait_for_readers(t);
    }
    see_peak(t);
    for (unsigned i = 0; i < t->release.n_layers && !r; i++) {
        struct node *layer = t->release.layers[i];
        bool changed = false;

        for (size_t k = 0; k < hidden.n && !r; k++) {
            r = release_layer_below(t, layer, &hidden.run[k], &changed);
        }
        if (!r && changed) {
            r = give_back(t, layer);
        }
    }
    free(hidden.run);
    return r;
}

/* True where it is over, well or not; false where it is to be tried again. */
static bool
is_settled(struct transfer *t, int r)
{
    return !r || is_over(t) || transfer_error_ends(t, r, false);
}

void
release_epoch(struct transfer *t, uint64_t passed)
{
    struct release *rel = &t->release;
    uint64_t size = t->copy.target->size;
    uint64_t end = passed >= size ? size : align_down(passed, rel->unit);
    int r;

    do {
        r = rel->side == RELEASE_ABOVE ? release_above(t, rel->upto, end)
                                       : release_below(t, rel->upto, end);
    } while (!is_settled(t, r));
    if (!r) {
        rel->upto = end;
        t->track.released = end;
    }
}

/*
 * Behind the window something can be held again, or still: a write that was
 * under way when the window passed.  Such a part is a window of its own.
 */
static int
release_left_over(struct transfer *t, struct run *run)
{
    uint64_t end = run->off + run->len;

    t->track.released = run->off;
    t->track.frontier = end;
    int r = release_above(t, run->off, end);

    t->track.released = t->track.frontier = UINT64_MAX;
    return r;
}

/* *ret: nothing is held, and nothing can be that was not seen. */
static int
look_for_held(struct transfer *t, bool *ret)
{
    struct runs runs = {0};

    /* The window is shut; who wrote through it, or earlier, is waited for. */
    grace_wait(&t->copy.source->changes);
    uint64_t own = t->track.tap.own_begun;
    int r = find_held(t, 0, t->copy.source->size, epoch_bytes(t),
                      &runs);

    *ret = !r && !runs.n && own == t->track.tap.own_begun &&
           !t->track.tap.own_busy;
    t->release.own_seen = own;
    for (size_t i = 0; i < runs.n && !r; i++) {
        r = release_left_over(t, &runs.run[i]);
    }
    free(runs.run);
    return r;
}

int
release_rest(struct transfer *t)
{
    bool none = t->release.side != RELEASE_ABOVE;
    int r = 0;

    while (t->flushing && !is_over(t)) {
        transfer_wait_worker(t);
    }
    if (!is_over(t) && t->release.upto < t->copy.target->size) {
        release_epoch(t, t->copy.target->size);
    }
    while (!is_over(t) && !none) {
        r = look_for_held(t, &none);
        if (is_settled(t, r) && r) {
            break;
        }
    }
    return t->error ? t->error : job_cancelled(&t->job) ? -ECANCELED : 0;
}

bool
release_is_complete(const struct transfer *t)
{
    return t->track.tap.own_begun == t->release.own_seen &&
           !t->track.tap.own_busy;
}
