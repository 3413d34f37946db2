// SPDX-License-Identifier: BSD-3-Clause
/*
 * See chain_index.h.
 *
 * An entry is one word: kind, number of the layer, and the host offset in
 * sectors.  A granule is the smallest cluster among the layers, at least
 * 4 KiB; one that its layer holds only in part is MIXED and is read layer by
 * layer.
 */
#include "block/chain_index.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/graph_internal.h"
#include "block/limits.h"

enum entry_kind {
    E_UNRESOLVED, /* in none of the layers that were asked */
    E_ZERO,
    E_DATA,
    E_OPAQUE, /* through the layer's driver */
    E_MIXED,
};

enum {
    WINDOW_BITS = 9,
    WINDOW = 1 << WINDOW_BITS, /* granules */
    GRANULE_BITS_MIN = 12,
    KIND_BITS = 3,
    LAYER_BITS = 12,
    HOST_SHIFT = KIND_BITS + LAYER_BITS,
    SECTOR_BITS = 9,
    NO_LAYER = (1 << LAYER_BITS) - 1,
    BUCKETS_MIN = 64,
};

struct window {
    struct list hash, use;
    uint64_t number;
    unsigned asked; /* layers that were composed into it */
    bool filling, for_guest; /* the fill under way */
    uint64_t entries[WINDOW];
};

struct chain_index {
    struct node **layers; /* the node itself first */
    unsigned n_layers;
    unsigned granule_bits;
    uint64_t size; /* of the node */
    struct list *buckets;
    unsigned n_buckets;
    struct list use; /* the least recently used first */
    uint64_t n_windows, max_windows;
    uint64_t forgets;     /* counts what was forgotten: void fills know it */
    uint64_t let_go;      /* counts fills that were let go of */
    struct waitq filled;
    unsigned users;       /* coroutines inside; it outlives a drop for them */
    bool dropped;
};

/* Birth and death. */

bool
chain_index_usable(const struct node *node)
{
    return node->drv->map && (node->n_overlays || node->read_only) &&
           (node->backing || node->cluster_size > 1);
}

static void
free_window(struct chain_index *x, struct window *w)
{
    list_remove(&w->hash);
    list_remove(&w->use);
    x->n_windows--;
    free(w);
}

static void
index_free(struct chain_index *x)
{
    while (!list_empty(&x->use)) {
        free_window(x, list_first(&x->use, struct window, use));
    }
    free(x->buckets);
    free(x->layers);
    free(x);
}

static void
leave(struct chain_index *x)
{
    if (--x->users == 0 && x->dropped) {
        index_free(x);
    }
}

static struct chain_index *
index_new(struct node *node)
{
    struct chain_index *x = xzalloc(sizeof(*x));
    uint32_t granule = 1U << 31;
    unsigned n = 0;

    for (struct node *l = node; l; l = l->backing ? l->backing->child : NULL) {
        if (l->cluster_size > 1) {
            granule = (uint32_t)min_u64(granule, l->cluster_size);
        }
        n++;
    }
    x->granule_bits = (unsigned)__builtin_ctz(granule);
    if (x->granule_bits < GRANULE_BITS_MIN) {
        x->granule_bits = GRANULE_BITS_MIN;
    }
    if (n > NO_LAYER) {
        free(x);
        return NULL; /* more layers than an entry can name */
    }
    x->layers = xmalloc(n * sizeof(struct node *));
    for (struct node *l = node; l; l = l->backing ? l->backing->child : NULL) {
        x->layers[x->n_layers++] = l;
    }
    x->size = node->size;
    x->max_windows = max_u64(node->graph->chain_index_bytes /
                                 sizeof(struct window), 2);
    x->n_buckets = BUCKETS_MIN;
    while (x->n_buckets < x->max_windows &&
           (uint64_t)x->n_buckets << (WINDOW_BITS + x->granule_bits) < x->size) {
        x->n_buckets *= 2;
    }
    x->buckets = xmalloc(x->n_buckets * sizeof(*x->buckets));
    for (unsigned i = 0; i < x->n_buckets; i++) {
        list_init(&x->buckets[i]);
    }
    list_init(&x->use);
    waitq_init(&x->filled);
    return x;
}

/* Windows. */

static struct list *
bucket(struct chain_index *x, uint64_t number)
{
    return &x->buckets[number & (x->n_buckets - 1)];
}

static struct window *
find_window(struct chain_index *x, uint64_t number)
{
    list_for_each(it, bucket(x, number))
    {
        struct window *w = container_of(it, struct window, hash);

        if (w->number == number) {
            return w;
        }
    }
    return NULL;
}

static void
evict(struct chain_index *x)
{
    list_for_each_safe(it, &x->use)
    {
        struct window *w = container_of(it, struct window, use);

        if (x->n_windows < x->max_windows) {
            break;
        }
        if (!w->filling) {
            free_window(x, w);
        }
    }
}

static struct window *
get_window(struct chain_index *x, uint64_t number)
{
    struct window *w = find_window(x, number);

    if (!w) {
        evict(x);
        w = xzalloc(sizeof(*w));
        w->number = number;
        list_push(bucket(x, number), &w->hash);
        list_push(&x->use, &w->use);
        x->n_windows++;
    } else if (x->use.prev != &w->use) {
        list_remove(&w->use);
        list_push(&x->use, &w->use);
    }
    return w;
}

static void
clear_window(struct window *w)
{
    w->asked = 0;
    memset(w->entries, 0, sizeof(w->entries));
}

/* Entries. */

static uint64_t
entry_make(enum entry_kind kind, unsigned layer, uint64_t host)
{
    return (uint64_t)kind | (uint64_t)layer << KIND_BITS |
           host >> SECTOR_BITS << HOST_SHIFT;
}

static enum entry_kind
entry_kind(uint64_t entry)
{
    return (enum entry_kind)(entry & ((1 << KIND_BITS) - 1));
}

static unsigned
entry_layer(uint64_t entry)
{
    return (unsigned)(entry >> KIND_BITS) & NO_LAYER;
}

static uint64_t
entry_host(uint64_t entry)
{
    return entry >> HOST_SHIFT << SECTOR_BITS;
}

static uint64_t
entry_for(const struct extent *ext, unsigned layer, uint64_t skipped)
{
    uint64_t host = ext->host_off + skipped;

    switch (ext->kind) {
    case EXTENT_ZERO:
        return entry_make(E_ZERO, layer, 0);
    case EXTENT_DATA:
        if (is_aligned(host, 1 << SECTOR_BITS) &&
            host >> SECTOR_BITS < 1ULL << (64 - HOST_SHIFT)) {
            return entry_make(E_DATA, layer, host);
        }
        break;
    case EXTENT_ENCODED:
    case EXTENT_UNALLOCATED:
        break;
    }
    return entry_make(E_OPAQUE, layer, 0);
}

/* Puts what a layer said of [off, off + ext->len) into unresolved entries. */
static void
put_extent(struct chain_index *x, struct window *w, unsigned layer,
           uint64_t off, const struct extent *ext)
{
    uint64_t granule = 1ULL << x->granule_bits;
    uint64_t base = w->number << (WINDOW_BITS + x->granule_bits);
    uint64_t end = off + ext->len;

    if (ext->kind == EXTENT_UNALLOCATED) {
        return;
    }
    for (uint64_t at = align_down(off, granule); at < end; at += granule) {
        uint64_t *entry = &w->entries[(at - base) >> x->granule_bits];
        bool whole = at >= off && min_u64(at + granule, x->size) <= end;

        if (entry_kind(*entry) != E_UNRESOLVED) {
            continue;
        }
        *entry = whole ? entry_for(ext, layer, at - off)
                       : entry_make(E_MIXED, layer, 0);
    }
}

/* A layer that ends within the window reads zero behind its end. */
static void
put_end(struct chain_index *x, struct window *w, unsigned layer, uint64_t size,
        uint64_t end)
{
    struct extent zero = {.kind = EXTENT_ZERO};
    uint64_t base = w->number << (WINDOW_BITS + x->granule_bits);
    uint64_t off = max_u64(size, base);

    zero.len = end - off;
    put_extent(x, w, layer, off, &zero);
}

static int
compose_layer(struct chain_index *x, struct window *w, unsigned layer)
{
    struct node *node = x->layers[layer];
    uint64_t span = 1ULL << (WINDOW_BITS + x->granule_bits);
    uint64_t off = w->number * span;
    uint64_t window_end = min_u64(off + span, x->size);
    uint64_t end = min_u64(window_end, node->size);
    uint64_t forgets = x->forgets;

    if (node->changing) {
        return -EAGAIN;
    }
    while (off < end) {
        struct extent ext = {.kind = EXTENT_ENCODED, .len = end - off};
        int r = node->drv->map ? node->drv->map(node, off, end - off, &ext) : 0;

        if (!r && x->forgets != forgets) {
            r = -EAGAIN;
        }
        if (r) {
            return r;
        }
        put_extent(x, w, layer, off, &ext);
        off += ext.len;
    }
    if (node->size < window_end) {
        put_end(x, w, layer, node->size, window_end);
    }
    return 0;
}

static bool
any_unresolved(const struct window *w, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        if (entry_kind(w->entries[i]) == E_UNRESOLVED) {
            return true;
        }
    }
    return false;
}

/*
 * Asks further layers until entry @first is resolved.  0; -EAGAIN where the
 * window was forgotten meanwhile or a layer is being changed.  Others wait for
 * no more layers than they need.
 */
static int
fill(struct chain_index *x, struct window *w, unsigned first, bool for_guest)
{
    int r = 0;

    w->filling = true;
    w->for_guest = for_guest;
    while (!r && w->asked < x->n_layers && any_unresolved(w, first, 1)) {
        r = compose_layer(x, w, w->asked);
        w->asked += !r;
        waitq_wake_all(&x->filled);
    }
    for (unsigned i = 0; !r && i < WINDOW && w->asked == x->n_layers; i++) {
        if (entry_kind(w->entries[i]) == E_UNRESOLVED) {
            w->entries[i] = entry_make(E_ZERO, NO_LAYER, 0);
        }
    }
    w->filling = false;
    x->let_go += r == -ERESTART;
    waitq_wake_all(&x->filled);
    return r;
}

/* How many bytes from @off on continue the entry, within the window. */
static uint64_t
run_length(const struct chain_index *x, const struct window *w, uint64_t off,
           uint64_t len)
{
    uint64_t granule = 1ULL << x->granule_bits;
    unsigned i = (unsigned)(off >> x->granule_bits) & (WINDOW - 1);
    uint64_t first = w->entries[i];
    uint64_t step = entry_kind(first) == E_DATA
                        ? granule >> SECTOR_BITS << HOST_SHIFT
                        : 0;
    uint64_t n = granule - (off & (granule - 1));

    while (n < len && ++i < WINDOW && w->entries[i] == (first += step)) {
        n += granule;
    }
    return min_u64(n, len);
}

static void
place_of(const struct chain_index *x, const struct window *w, uint64_t off,
         uint64_t len, struct chain_place *ret)
{
    uint64_t granule = 1ULL << x->granule_bits;
    uint64_t entry =
        w->entries[(off >> x->granule_bits) & (WINDOW - 1)];
    unsigned layer = entry_layer(entry);

    *ret = (struct chain_place){
        .len = run_length(x, w, off, len),
        .layer = layer == NO_LAYER ? NULL : x->layers[layer],
    };
    switch (entry_kind(entry)) {
    case E_DATA:
        ret->kind = EXTENT_DATA;
        ret->host_off = entry_host(entry) + (off & (granule - 1));
        break;
    case E_OPAQUE:
        ret->kind = EXTENT_ENCODED;
        break;
    case E_ZERO:
    case E_MIXED:
    case E_UNRESOLVED:
        ret->kind = ret->layer ? EXTENT_ZERO : EXTENT_UNALLOCATED;
        break;
    }
}

/*
 * A guest does not wait for background work, and background work that waits
 * for a fill that is let go of is let go of with it.
 */
static int
wait_for_fill(struct chain_index *x, const struct window *w, bool guest)
{
    uint64_t let_go = x->let_go;

    if (guest && !w->for_guest) {
        return -EAGAIN;
    }
    waitq_wait(&x->filled);
    return !guest && x->let_go != let_go ? -ERESTART : 0;
}

static int
find_in(struct chain_index *x, uint64_t off, uint64_t len, bool guest,
        struct chain_place *ret)
{
    unsigned i = (unsigned)(off >> x->granule_bits) & (WINDOW - 1);
    uint64_t number = off >> (WINDOW_BITS + x->granule_bits);

    for (;;) {
        struct window *w = get_window(x, number);
        enum entry_kind kind = entry_kind(w->entries[i]);

        if (kind == E_MIXED) {
            return -EAGAIN;
        }
        if (kind != E_UNRESOLVED) {
            place_of(x, w, off, len, ret);
            return 0;
        }
        int r = w->filling ? wait_for_fill(x, w, guest) : fill(x, w, i, guest);

        if (r) {
            return r;
        }
        if (x->dropped) {
            return -EAGAIN;
        }
    }
}

bool
chain_index_find(struct node *node, uint64_t off, uint64_t len,
                 unsigned flags, struct chain_place *ret, int *ret_error)
{
    if (!node->index) {
        node->index = index_new(node);
    }
    struct chain_index *x = node->index;

    if (!x) {
        return false;
    }

    x->users++;
    int r = find_in(x, off, len, !(flags & REQ_BACKGROUND), ret);

    leave(x);
    *ret_error = r == -EAGAIN ? 0 : r;
    return r != -EAGAIN;
}

/* Changes below. */

static void
forget_range(struct chain_index *x, uint64_t off, uint64_t len)
{
    unsigned shift = WINDOW_BITS + x->granule_bits;
    uint64_t first = off >> shift, last = (off + len) >> shift;

    x->forgets++;
    list_for_each(it, &x->use)
    {
        struct window *w = container_of(it, struct window, use);

        if (w->number >= first && w->number <= last) {
            clear_window(w);
        }
    }
}

/*
 * Calls @fn for @node and every node that reads through it.  A chain can be
 * deep, so the last overlay is the next turn of a loop.
 */
static void
for_each_above(struct node *node,
               void (*fn)(struct node *node, const uint64_t *range),
               const uint64_t *range)
{
    while (node) {
        struct node *next = NULL;

        fn(node, range);
        list_for_each(it, &node->parents)
        {
            struct edge *edge = container_of(it, struct edge, link);

            if (edge->role != EDGE_BACKING) {
                continue;
            }
            if (next) {
                for_each_above(next, fn, range);
            }
            next = edge->parent;
        }
        node = next;
    }
}

static void
forget_in_node(struct node *node, const uint64_t *range)
{
    if (node->index) {
        forget_range(node->index, range[0], range[1]);
    }
}

void
chain_index_change_begin(struct node *node, uint64_t off, uint64_t len)
{
    const uint64_t range[2] = {off, len};

    node->changing++;
    for_each_above(node, forget_in_node, range);
}

void
chain_index_change_end(struct node *node)
{
    node->changing--;
}

static void
drop_one(struct node *node, const uint64_t *range)
{
    struct chain_index *x = take_ptr(node->index);

    if (x) {
        x->dropped = true;
        x->forgets++;
        x->users++;
        leave(x);
    }
}

void
chain_index_drop(struct node *node)
{
    for_each_above(node, drop_one, NULL);
}
