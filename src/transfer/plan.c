// SPDX-License-Identifier: BSD-3-Clause
/*
 * What a transfer will move and need, from the images' own maps.
 *
 * The space is an upper bound: what lies in clusters that the target already
 * holds is written in place, everything else is counted as whole clusters,
 * with the metadata that names them.
 */
#include <errno.h>

#include "journal/journal.h"
#include "transfer/engine.h"

/* Bytes of metadata for a new cluster: a mapping and a count, twice that. */
enum { META_PER_CLUSTER = 32 };

/* Clusters that are counted, so that none is counted twice. */
struct counter {
    uint64_t end; /* of the last one that was looked at */
    uint64_t bytes;
};

static void
count_clusters(struct counter *c, const struct node *target, uint64_t off,
               uint64_t len)
{
    uint64_t unit = max_u64(target->cluster_size, 512);
    uint64_t start = max_u64(align_down(off, unit), c->end);
    uint64_t end = align_up(off + len, unit);

    if (end > start) {
        c->bytes += end - start;
        c->end = end;
    }
}

/* A part that is to be written: what of it is not there yet. */
static int
count_new(struct counter *c, struct node *target, uint64_t off, uint64_t len)
{
    while (len) {
        struct extent ext = {.kind = EXTENT_UNALLOCATED, .len = len};
        int r = off < target->size
                    ? node_status(target, off,
                                  min_u64(len, target->size - off), true, &ext)
                    : 0; /* it will have grown */

        if (r) {
            return r;
        }
        if (ext.kind != EXTENT_DATA) { /* compressed ones are written anew */
            count_clusters(c, target, off, ext.len);
        }
        off += ext.len;
        len -= ext.len;
    }
    return 0;
}

/* With the tables that the new clusters may need, and their last, begun ones. */
static uint64_t
metadata_for(const struct node *target, uint64_t bytes)
{
    uint64_t unit = target->cluster_size;

    return !bytes || target->drv->is_protocol || unit < 512
               ? 0
               : bytes / unit * META_PER_CLUSTER + 4 * unit;
}

/*
 * What the layers give back once a part has landed, at least: whole clusters
 * that hold data; compressed ones, whose size is not known, count as nothing.
 */
static int
count_given_back(struct transfer *t, uint64_t off, uint64_t len,
                 uint64_t *sum)
{
    for (unsigned i = 0; i < t->release.n_layers; i++) {
        struct node *layer = t->release.layers[i];
        uint64_t unit = max_u64(layer->cluster_size, 512);
        uint64_t at = align_up(off, unit), end = align_down(off + len, unit);

        for (end = min_u64(end, layer->size); at < end;) {
            struct extent ext;
            int r = node_status(layer, at, end - at, true, &ext);

            if (r) {
                return r;
            }
            *sum += ext.kind == EXTENT_DATA ? ext.len : 0;
            at += ext.len;
        }
    }
    return 0;
}

/* With release, by how much the target may grow before the layers shrink. */
struct growth {
    struct counter new;
    uint64_t given_back, most;
};

/*
 * What goes over compressed takes as much as it gives back, which is as unknown:
 * neither is counted.
 */
static int
count_written(struct transfer *t, struct growth *g, uint64_t off, uint64_t len)
{
    int r = 0;

    while (len && !r) {
        struct node *layer;
        struct extent ext;

        r = chain_status(t->copy.source, NULL, off, len, true, &ext, &layer);
        if (!r && !copy_keeps_encoded(&t->copy, off, &ext, layer)) {
            r = count_new(&g->new, t->copy.target, off, ext.len);
        }
        off += r ? 0 : ext.len;
        len -= r ? 0 : ext.len;
    }
    return r;
}

static int
count_part(struct transfer *t, struct growth *g, const struct missing *m)
{
    uint64_t readable = m->off < t->copy.source->size
                            ? min_u64(m->len, t->copy.source->size - m->off)
                            : 0;
    uint64_t counted = t->release.side ? readable : 0;
    int r = count_written(t, g, m->off, counted);

    r = r ? r
          : count_new(&g->new, t->copy.target, m->off + counted,
                      m->len - counted);

    if (!r && t->release.side) {
        r = count_given_back(t, m->off, m->len, &g->given_back);
        if (g->new.bytes > g->given_back) {
            g->most = max_u64(g->most, g->new.bytes - g->given_back);
        }
    }
    return r;
}

/* The journal, and what lies beside other images. */
static uint64_t
side_files(const struct transfer *t)
{
    return node_local_file(t->copy.target)
               ? (t->release.n_layers + 2ULL) * JOURNAL_SIZE
               : 0;
}

int
transfer_measure(struct transfer *t, transfer_next *next,
                 struct transfer_plan *ret, struct err *err)
{
    struct transfer_plan plan = {0};
    struct node *target = t->copy.target;
    struct growth growth = {0};
    struct missing m;
    uint64_t size = t->shadowed ? max_u64(target->size, t->copy.source->size)
                                : target->size;

    for (uint64_t off = 0; off < size; off = m.off + m.len) {
        int r = transfer_look(t, next, off, size - off, &m);

        if (!r && m.len && !m.zero) {
            r = count_part(t, &growth, &m);
        }
        if (r) {
            return err_set_errno(err, r, "Reading the map of '%s' failed",
                                 target->name);
        }
        plan.bytes_to_copy += m.zero ? 0 : m.len;
        plan.bytes_to_zero += m.zero ? m.len : 0;
        coro_relax();
    }
    plan.space_needed = growth.new.bytes;
    if (t->release.side && release_extra(t) != UINT64_MAX) {
        plan.space_needed = min_u64(plan.space_needed,
                                    growth.most + release_extra(t));
    }
    plan.space_needed += metadata_for(target, growth.new.bytes) + side_files(t);
    if (node_free_space(target, &plan.space_free)) {
        plan.space_free = UINT64_MAX;
    }
    *ret = plan;
    return 0;
}

int
transfer_check_space(struct transfer *t, struct err *err)
{
    struct node *target = t->copy.target;
    struct transfer_plan plan;
    uint64_t most = target->size + metadata_for(target, target->size);
    uint64_t have;

    if (node_free_space(target, &have) || have >= most) {
        return 0; /* there is always room, or it is not known */
    }
    int r = transfer_measure(t, t->recipe->next, &plan, err);

    if (!r && plan.space_needed > plan.space_free) {
        r = err_set(err, -ENOSPC,
                    "Not enough space: node '%s' needs %llu bytes more than "
                    "it has, and its file system has %llu left",
                    target->name, (unsigned long long)plan.space_needed,
                    (unsigned long long)plan.space_free);
        err_hint(err, "nothing was copied; make room, or take another target");
    }
    return r;
}
