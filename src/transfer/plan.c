// SPDX-License-Identifier: BSD-3-Clause
/*
 * What a transfer will move and need, from the images' own maps.
 *
 * The space is an upper bound: what lies in clusters that the target already
 * holds is written in place, everything else is counted as whole clusters,
 * with the metadata that names them.
 *
 * With release, the layers shrink while the target grows.  What they give back
 * is counted by release's own rule, and late: only once as much more was handed
 * out as release_extra() says can be on its way.  Handed out in small steps,
 * each of which remembers what becomes free by it, that is a ring of a few
 * sums, whatever the size of the disk.
 */
#include <errno.h>

#include "block/limits.h"
#include "journal/journal.h"
#include "transfer/engine.h"

/* Bytes of metadata for a new cluster, besides its table: a count, twice that. */
enum { META_PER_CLUSTER = 16 };

/* Steps in which what can be on its way is handed out. */
enum { STEPS = 32 };

/* A node's map, looked at in order, an extent at a time. */
struct look {
    struct node *node;
    uint64_t start, end; /* of the extent that was found last */
    enum extent_kind kind;
};

/* Clusters that are counted, so that none is counted twice. */
struct counter {
    uint64_t end; /* of the last one that was looked at */
    uint64_t bytes;
};

/* A layer that gives back: what lies before @upto was counted. */
struct giver {
    struct look look;
    uint64_t upto;
};

/* By how much the target may grow before the layers shrink. */
struct growth {
    struct look target;
    struct counter new;
    struct counter tables; /* by what they name */
    uint64_t begun;        /* clusters before it have a place by now */
    /* What of the target is, or will be, held without a gap, as of now. */
    uint64_t held_start, held_end;
    struct giver *givers; /* as release.layers */
    uint64_t step, in_step; /* bytes handed out; 0: nothing is given back */
    uint64_t later[STEPS + 1]; /* given back, by steps; */
    unsigned at;               /* the one under way */
    uint64_t given_back, most;
};

/* *ret_len: how far what was found at @off goes, at most @len. */
static int
look_at(struct look *l, uint64_t off, uint64_t len, uint64_t *ret_len)
{
    if (off < l->start || off >= l->end) {
        struct extent ext;
        int r = node_status(l->node, off, min_u64(l->node->size - off, GIB),
                            true, &ext);

        if (r) {
            return r;
        }
        l->start = off;
        l->end = off + ext.len;
        l->kind = ext.kind;
    }
    *ret_len = min_u64(len, l->end - off);
    return 0;
}

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

/* What one table names; 0: there are none. */
static uint64_t
table_reach(const struct node *node)
{
    return node->table_size / 8 * node->cluster_size;
}

/* Has @target a place for anything in [off, end)? */
static int
has_any(struct node *target, uint64_t off, uint64_t end, bool *ret)
{
    *ret = false;
    end = min_u64(end, target->size);
    while (off < end && !*ret) {
        struct extent ext;
        int r = node_status(target, off, end - off, false, &ext);

        if (r) {
            return r;
        }
        *ret = ext.kind != EXTENT_UNALLOCATED;
        off += ext.len;
    }
    return 0;
}

/* New clusters up to @end need tables: one that names nothing is not there yet. */
static int
count_tables(struct growth *g, uint64_t off, uint64_t end)
{
    struct node *target = g->target.node;
    uint64_t reach = table_reach(target);

    off = reach ? max_u64(align_down(off, reach), g->tables.end) : end;
    for (; off < end; off += reach) {
        bool is_there;
        int r = has_any(target, off, off + reach, &is_there);

        if (r) {
            return r;
        }
        g->tables.bytes += is_there ? 0 : target->table_size;
        g->tables.end = off + reach;
        coro_relax();
    }
    return 0;
}

/* A part that is to be written: what of it is not there yet. */
static int
count_new(struct growth *g, uint64_t off, uint64_t len)
{
    struct node *target = g->target.node;

    while (len) {
        bool is_there = off < target->size; /* else it will have grown */
        uint64_t n = len;
        int r = is_there ? look_at(&g->target, off,
                                   min_u64(len, target->size - off), &n)
                         : 0;

        if (r) {
            return r;
        }
        if (!is_there || g->target.kind != EXTENT_DATA) {
            /* compressed ones are written anew */
            count_clusters(&g->new, target, off, n);
            r = count_tables(g, off, off + n);
            if (r) {
                return r;
            }
        }
        off += n;
        len -= n;
    }
    return 0;
}

/* With what counts the new clusters and tables, and its last, begun ones. */
static uint64_t
metadata_for(const struct node *target, uint64_t bytes, uint64_t tables)
{
    uint64_t unit = target->cluster_size;

    return (!bytes && !tables) || target->drv->is_protocol || unit < 512
               ? 0
               : tables + (bytes + tables) / unit * META_PER_CLUSTER + 4 * unit;
}

/* The rest of a cluster; behind the target's end, which will move, all of it. */
static int
count_rest(struct node *target, uint64_t at, uint64_t off, uint64_t len,
           uint64_t *sum)
{
    uint64_t behind = off + len <= target->size ? 0
                      : off >= target->size     ? len
                                            : off + len - target->size;

    *sum += target->backing ? behind : 0;
    return at < target->size
               ? copy_count_rest(target, at, off, len - behind, sum)
               : 0;
}

/*
 * What a missing part takes besides itself: the rest of the clusters that it
 * begins.  Where the target is filled, what lies in one that is there by then is
 * left out.
 */
static int
count_moved(struct transfer *t, struct growth *g, const struct missing *m,
            struct transfer_plan *plan)
{
    struct node *target = t->copy.target;
    uint64_t unit = max_u64(target->cluster_size, 1), end = m->off + m->len;
    uint64_t off = t->copy.fill ? max_u64(m->off, min_u64(g->begun, end))
                                : m->off;
    uint64_t first = align_down(off, unit), last = align_down(end - 1, unit);
    int r = 0;

    if (off < end && first >= g->begun) {
        r = count_rest(target, off, first, off - first, &plan->bytes_to_copy);
    }
    if (!r && off < end && last >= g->begun) {
        r = count_rest(target, end - 1, end, last + unit - end,
                       &plan->bytes_to_copy);
    }
    g->begun = max_u64(g->begun, align_up(end, unit));
    *(m->zero ? &plan->bytes_to_zero : &plan->bytes_to_copy) += end - off;
    return r;
}

/*
 * Of clusters that are smaller than the file system's blocks, those beside a
 * table free none; twice that, as they need not lie in order.
 */
static uint64_t
freed_of(const struct node *layer, uint64_t bytes)
{
    uint64_t reach = table_reach(layer);

    return reach && layer->cluster_size < HOST_BLOCK
               ? bytes - 2 * (bytes / (reach / HOST_BLOCK))
               : bytes;
}

/*
 * What a layer has in [off, end) that it has not given back yet: what holds
 * data; compressed clusters, whose size is not known, count as nothing.
 */
static int
count_given(struct giver *giver, uint64_t off, uint64_t end, uint64_t *sum)
{
    off = max_u64(off, giver->upto);
    while (off < end) {
        uint64_t n;
        int r = look_at(&giver->look, off, end - off, &n);

        if (r) {
            return r;
        }
        *sum += giver->look.kind == EXTENT_DATA
                    ? freed_of(giver->look.node, n)
                    : 0;
        off += n;
        giver->upto = off;
    }
    return 0;
}

/* What is held goes as far as that: what do the layers give back by it? */
static int
give_back(struct transfer *t, struct growth *g)
{
    int r = 0;

    for (unsigned i = 0; g->step && i < t->release.n_layers && !r; i++) {
        uint64_t off = g->held_start, end = g->held_end;

        release_whole(t->release.layers[i], &off, &end);
        r = count_given(&g->givers[i], off, end, &g->later[g->at]);
    }
    return r;
}

/* The target holds that part, now or in the end, and so the clusters it is in. */
static int
hold(struct transfer *t, struct growth *g, uint64_t off, uint64_t len)
{
    const struct node *target = t->copy.target;
    uint64_t unit = max_u64(target->cluster_size, 512);

    off = align_down(off, unit);
    if (off > g->held_end) {
        g->held_start = off;
    }
    g->held_end = max_u64(g->held_end,
                          min_u64(align_up(off + len, unit), target->size));
    return give_back(t, g);
}

/* What lies before a missing part, and is not missing. */
static int
pass(struct transfer *t, struct growth *g, uint64_t off, uint64_t end)
{
    int r = 0;

    if (t->release.side == RELEASE_ABOVE) { /* all that was held goes */
        g->held_end = end;
        return give_back(t, g);
    }
    end = min_u64(end, t->copy.target->size);
    while (g->step && off < end && !r) {
        uint64_t n;

        r = look_at(&g->target, off, end - off, &n);
        if (!r && g->target.kind != EXTENT_UNALLOCATED) {
            r = hold(t, g, off, n);
        }
        off += r ? 0 : n;
    }
    return r;
}

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

        r = chain_status(t->copy.source, NULL, off, len, false, &ext, &layer);
        if (!r && !copy_keeps_encoded(&t->copy, off, &ext, layer)) {
            r = count_new(g, off, ext.len);
        }
        off += r ? 0 : ext.len;
        len -= r ? 0 : ext.len;
    }
    return r;
}

/* Of zeroes, the clusters that hold something else, too. */
static int
count_zeroed(struct growth *g, uint64_t off, uint64_t len)
{
    uint64_t unit = max_u64(g->target.node->cluster_size, 512);
    uint64_t start = align_up(off, unit), end = align_down(off + len, unit);
    int r = off < start ? count_new(g, off, min_u64(len, start - off)) : 0;

    if (!r && start < end) {
        r = count_tables(g, start, end); /* an entry says so */
    }
    return !r && end >= start && end < off + len
               ? count_new(g, end, off + len - end)
               : r;
}

static int
count_data(struct transfer *t, struct growth *g, uint64_t off, uint64_t len)
{
    uint64_t readable = off < t->copy.source->size
                            ? min_u64(len, t->copy.source->size - off)
                            : 0;
    uint64_t counted = t->release.side ? readable : 0;
    int r = count_written(t, g, off, counted);

    return r ? r : count_new(g, off + counted, len - counted);
}

/* A step is full: what became free by the one that is longest ago is so now. */
static void
next_step(struct growth *g)
{
    g->in_step = 0;
    g->at = (g->at + 1) % ARRAY_LEN(g->later);
    g->given_back += g->later[g->at];
    g->later[g->at] = 0;
}

/* A part of it was handed out: that much is on its way. */
static int
hand_out(struct transfer *t, struct growth *g, uint64_t off, uint64_t len)
{
    if (g->new.bytes > g->given_back) {
        g->most = max_u64(g->most, g->new.bytes - g->given_back);
    }
    if (!g->step) {
        return 0;
    }
    int r = t->release.side == RELEASE_ABOVE ? pass(t, g, off, off + len)
                                             : hold(t, g, off, len);

    g->in_step += len;
    if (g->in_step == g->step) {
        next_step(g);
    }
    coro_relax();
    return r;
}

static int
count_part(struct transfer *t, struct growth *g, const struct missing *m)
{
    uint64_t off = m->off, end = m->off + m->len;
    int r = m->zero ? count_zeroed(g, off, m->len) : 0;

    while (off < end && !r) {
        uint64_t len = end - off;

        if (g->step) {
            len = min_u64(len, g->step - g->in_step);
        }
        r = m->zero ? 0 : count_data(t, g, off, len);
        r = r ? r : hand_out(t, g, off, len);
        off += len;
    }
    return r;
}

static void
growth_init(struct growth *g, struct transfer *t)
{
    uint64_t extra = t->release.side ? release_extra(t) : UINT64_MAX;

    *g = (struct growth){.target = {.node = t->copy.target}};
    /* On another file system it is of no use. */
    g->step = extra == UINT64_MAX ? 0 : div_up(extra, STEPS);
    g->givers = xzalloc((t->release.n_layers + 1) * sizeof(*g->givers));
    for (unsigned i = 0; i < t->release.n_layers; i++) {
        g->givers[i].look.node = t->release.layers[i];
    }
}

/* The journal, and what lies beside other images; but what is there by now. */
static uint64_t
side_files(const struct transfer *t)
{
    uint64_t all = (t->release.n_layers + 2ULL) * JOURNAL_SIZE;
    uint64_t have = release_journal_bytes(t);

    return node_local_file(t->copy.target) && all > have ? all - have : 0;
}

/* Where a longer target is cut in the end, and that is within a cluster. */
static uint64_t
cut_cluster(const struct transfer *t)
{
    const struct node *target = t->copy.target;

    return t->shadowed && target->size > t->copy.source->size &&
                   t->copy.source->size % target->cluster_size
               ? target->cluster_size
               : 0;
}

/*
 * Layers that are shorter than the disk: its top holds zeroes where they end
 * (recipes/merge_sizes.c), by entries of tables and, within clusters, as data;
 * then they are made as long.
 */
static uint64_t
for_short_layers(const struct transfer *t)
{
    const struct node *top = t->copy.source;
    uint64_t least = t->copy.target->size, units = t->copy.target->cluster_size;

    if (t->release.side != RELEASE_ABOVE) {
        return 0;
    }
    for (unsigned i = 0; i < t->release.n_layers; i++) {
        least = min_u64(least, t->release.layers[i]->size);
        units += t->release.layers[i]->cluster_size;
    }
    uint64_t reach = table_reach(top);
    uint64_t tail = top->size > least ? top->size - least : 0;

    return tail && reach
               ? (tail / reach + 2) * top->table_size + 2 * units
               : 0;
}

/* Over all that is missing, in order. */
static int
walk(struct transfer *t, transfer_next *next, struct growth *g,
     struct transfer_plan *plan)
{
    const struct node *target = t->copy.target;
    uint64_t size = t->shadowed ? max_u64(target->size, t->copy.source->size)
                                : target->size;
    struct missing m = {0};
    int r = 0;

    growth_init(g, t);
    for (uint64_t off = 0; off < size && !r; off = m.off + m.len) {
        r = transfer_look(t, next, off, size - off, &m);
        if (!r) {
            r = pass(t, g, off, m.off);
        }
        if (!r && m.len) {
            r = count_part(t, g, &m);
            r = r ? r : count_moved(t, g, &m, plan);
        }
        coro_relax();
    }
    free(take_ptr(g->givers));
    return r;
}

int
transfer_measure(struct transfer *t, transfer_next *next,
                 struct transfer_plan *ret, struct err *err)
{
    struct transfer_plan plan = {0};
    struct node *target = t->copy.target;
    struct growth growth;
    int r = walk(t, next, &growth, &plan);

    if (r) {
        return err_set_errno(err, r, "Reading the map of '%s' failed",
                             target->name);
    }
    growth.new.bytes += cut_cluster(t);
    plan.space_needed =
        growth.most + cut_cluster(t) + for_short_layers(t) + side_files(t) +
        metadata_for(target, growth.new.bytes, growth.tables.bytes);
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
    uint64_t reach = table_reach(target);
    uint64_t tables =
        reach ? div_up(target->size, reach) * target->table_size : 0;
    uint64_t most = target->size + metadata_for(target, target->size, tables);
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
