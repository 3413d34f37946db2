// SPDX-License-Identifier: BSD-3-Clause
/*
 * The metadata cache: see meta.h for the order on disk.
 *
 * Slices hang in a hash table by offset, which grows with their number, and in
 * one list in order of use.  A layer keeps few, as long as the chain index
 * answers for it.  A slice is evicted only clean and unpinned; when all are
 * dirty, whoever wants room commits first.
 *
 * Commits are group commits: one runs at a time, numbered.  A caller needs one
 * that starts after its call, so callers that come while one runs share the
 * next.  The snapshot is taken at the start and without a yield; changes made
 * during the commit belong to the next one.  Only the granules that changed
 * are copied and written.
 *
 * A commit that fails leaves its slices dirty, to be tried again (a full
 * disk); what cannot be repaired (a failed fsync) makes the file node fail for
 * good, and with it every later commit.
 */
#include "drivers/meta.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/meta_log.h"

enum {
    GRANULE = 512, /* what a disk writes whole or not at all */
    BUCKETS_MIN = 8,
    BUCKETS_MAX = 1024,
    MIN_SLICES = 32,
    MIN_LAYER_SLICES = 8,
    WRITE_IOVS = 64,
    SPARE_SLOTS = 256, /* of the log, for slices over the budget */
};

struct slice {
    struct list hash, use;
    uint64_t off;
    unsigned pins;
    bool loading;
    int error; /* of the load */
    uint8_t dirty; /* by granule */
    enum meta_phase phase;
    struct log_place place;
    unsigned char data[];
};

struct freed {
    struct list link;
    uint64_t off, len;
};

struct meta {
    struct meta_options o;
    struct node *file;
    struct list *buckets;
    uint64_t n_buckets; /* a power of two */
    struct list use; /* the least recently used first */
    uint64_t n_slices, n_dirty;
    struct waitq loaded;
    struct meta_log *log; /* NULL: none */

    uint64_t started, finished; /* numbers of commits */
    bool running;
    int result; /* of the last one that finished */
    struct waitq done;
    struct list to_free;    /* named no more in memory; not yet committed */
    unsigned releasing;     /* coroutines that wait to give clusters back */
    struct timer stale;     /* since the first change that is not committed */
    bool background;        /* its coroutine runs */
    bool discard;
    bool renaming; /* the log: its coroutine runs */
    uint64_t renamed_ns;
};

/* What a commit writes: a copy of one slice's dirty granules. */
struct image {
    uint64_t off; /* of the first granule */
    uint32_t len;
    struct slice *slice;
    uint8_t dirty;
    enum meta_phase phase;
    unsigned char *data;
};

struct snapshot {
    struct image *v;
    size_t n;
    unsigned char *data;
    struct list to_free;
    bool newer; /* than what a log that is full holds */
};

static void
make_buckets(struct meta *m, uint64_t n)
{
    m->n_buckets = n;
    m->buckets = xmalloc(n * sizeof(*m->buckets));
    for (uint64_t i = 0; i < n; i++) {
        list_init(&m->buckets[i]);
    }
}

struct meta *
meta_new(const struct meta_options *options)
{
    struct meta *m = xzalloc(sizeof(*m));

    assert(is_pow2(options->slice_size) && options->slice_size >= GRANULE &&
           options->slice_size <= 8 * GRANULE);
    m->o = *options;
    m->file = options->node->file->child;
    make_buckets(m, BUCKETS_MIN);
    list_init(&m->use);
    list_init(&m->to_free);
    waitq_init(&m->loaded);
    waitq_init(&m->done);
    return m;
}

static struct list *
bucket(struct meta *m, uint64_t off)
{
    uint64_t number = off / m->o.slice_size;

    return &m->buckets[(number * 0x9e3779b97f4a7c15 >> 54) &
                       (m->n_buckets - 1)];
}

static void
add_bucketed(struct meta *m, struct slice *s)
{
    if (m->n_slices > m->n_buckets && m->n_buckets < BUCKETS_MAX) {
        free(m->buckets);
        make_buckets(m, m->n_buckets * 2);
        list_for_each(it, &m->use)
        {
            struct slice *old = container_of(it, struct slice, use);

            if (!old->error) {
                list_push(bucket(m, old->off), &old->hash);
            }
        }
    }
    list_push(bucket(m, s->off), &s->hash);
}

static struct slice *
find(struct meta *m, uint64_t off)
{
    list_for_each(it, bucket(m, off))
    {
        struct slice *s = container_of(it, struct slice, hash);

        if (s->off == off) {
            return s;
        }
    }
    return NULL;
}

static void
drop(struct meta *m, struct slice *s)
{
    assert(!s->pins);
    if (s->dirty) {
        m->n_dirty--;
    }
    meta_log_keep(m->log, &s->place, 0);
    list_remove(&s->hash);
    list_remove(&s->use);
    m->n_slices--;
    free(s);
}

/* Evicts one slice that is clean and not in use. */
static bool
evict(struct meta *m)
{
    list_for_each(it, &m->use)
    {
        struct slice *s = container_of(it, struct slice, use);

        if (!s->pins && !s->dirty) {
            drop(m, s);
            return true;
        }
    }
    return false;
}

/*
 * A layer can become the head of a disk, which no index answers for; and a
 * merge, or a commit, writes to it.
 */
static uint64_t
max_slices(const struct meta *m)
{
    const struct node *node = m->o.node;

    return node->is_layer && node->read_only
               ? MIN_LAYER_SLICES
               : max_u64(m->o.budget / m->o.slice_size, MIN_SLICES);
}

static int
make_room(struct meta *m)
{
    while (m->n_slices >= max_slices(m) && !evict(m)) {
        if (!m->n_dirty) {
            return 0; /* all are in use: go over the budget for a while */
        }
        int r = meta_commit(m);

        if (r) {
            return r;
        }
    }
    return 0;
}

/* Begins and does the load.  *ret stays NULL where none was begun. */
static int
load(struct meta *m, uint64_t off, unsigned flags, struct slice **ret)
{
    int r = make_room(m);

    if (r) {
        return r;
    }
    if (find(m, off)) {
        return -EAGAIN; /* somebody else began while we waited for room */
    }
    struct slice *s = xzalloc(sizeof(*s) + m->o.slice_size);
    struct iovec iov = {s->data, m->o.slice_size};

    s->off = off;
    s->loading = true;
    s->pins = 1;
    add_bucketed(m, s);
    list_push(&m->use, &s->use);
    m->n_slices++;
    *ret = s;
    s->error = node_read(m->file, off, sg_one(&iov), flags & REQ_LOOKUP);
    s->loading = false;
    if (s->error) {
        /* Only those who wait for it see it; the next one begins anew. */
        list_remove(&s->hash);
        list_init(&s->hash);
    }
    waitq_wake_all(&m->loaded);
    return s->error;
}

static int
wait_for_load(struct meta *m, struct slice *s)
{
    s->pins++;
    while (s->loading) {
        waitq_wait(&m->loaded);
    }
    return s->error;
}

/* A failed load stays only until the last one who waited for it has left. */
static void
unpin_failed(struct meta *m, struct slice *s)
{
    if (--s->pins == 0) {
        drop(m, s);
    }
}

int
meta_get(struct meta *m, uint64_t off, unsigned flags, struct slice **ret)
{
    off = align_down(off, m->o.slice_size);
    for (;;) {
        struct slice *s = find(m, off);
        bool shared = s;
        int r = s ? wait_for_load(m, s) : load(m, off, flags, &s);

        if (!r) {
            *ret = s;
            return 0;
        }
        if (s) {
            unpin_failed(m, s);
        }
        if (shared ? r != -ERESTART || (flags & REQ_LOOKUP)
                   : r != -EAGAIN || s) {
            return r;
        }
    }
}

struct slice *
meta_peek(struct meta *m, uint64_t off)
{
    struct slice *s = find(m, align_down(off, m->o.slice_size));

    if (!s || s->loading || s->error) {
        return NULL;
    }
    s->pins++;
    return s;
}

void
meta_put(struct meta *m, struct slice *s)
{
    assert(s->pins);
    s->pins--;
    if (m->use.prev != &s->use) {
        list_remove(&s->use);
        list_push(&m->use, &s->use);
    }
}

const unsigned char *
slice_at(const struct slice *s, uint64_t off)
{
    assert(off >= s->off);
    return s->data + (off - s->off);
}

/* A failure shows at the next flush: what was dirty stays dirty. */
static void
background_main(void *arg)
{
    struct meta *m = arg;

    meta_commit(m);
    m->background = false;
    waitq_wake_all(&m->done);
}

static void
became_stale(struct timer *timer)
{
    struct meta *m = container_of(timer, struct meta, stale);

    if (m->n_dirty && !m->background) {
        m->background = true;
        coro_start(timer->loop, background_main, m);
    }
}

/* A failure leaves it with both names. */
static void
rename_main(void *arg)
{
    struct meta *m = arg;

    if (!m->o.rename(m->o.node, meta_log_begin_renaming(m->log))) {
        meta_log_end_renaming(m->log);
    }
    m->renaming = false;
    waitq_wake_all(&m->done);
}

/*
 * The log begins to hold something: a copy of the image that was made before
 * must not be taken for the image.
 */
static void
rename_log(struct meta *m)
{
    struct loop *loop = graph_loop(m->o.node->graph);
    uint64_t now = loop_now(loop);

    if (m->log && !m->renaming && now - m->renamed_ns >= META_RENAME_NS) {
        m->renamed_ns = now;
        m->renaming = true;
        coro_start(loop, rename_main, m);
    }
}

static void
mark_dirty(struct meta *m, struct slice *s, uint8_t granules)
{
    if (!s->dirty && granules && m->n_dirty++ == 0) {
        struct loop *loop = graph_loop(m->o.node->graph);

        rename_log(m);
        if (!m->stale.heap_index) {
            timer_set(loop, &m->stale, loop_now(loop) + META_STALE_NS,
                      became_stale);
        }
    }
    s->dirty |= granules;
}

void
meta_change(struct meta *m, struct slice *s, uint64_t off, const void *bytes,
            uint32_t len, enum meta_phase phase)
{
    uint64_t at = off - s->off;
    uint8_t granules = 0;

    assert(off >= s->off && at + len <= m->o.slice_size && s->pins);
    memcpy(s->data + at, bytes, len);
    s->phase = phase;
    for (uint64_t g = at / GRANULE; g <= (at + len - 1) / GRANULE; g++) {
        granules |= (uint8_t)(1u << g);
    }
    mark_dirty(m, s, granules);
    if (m->log) {
        meta_log_change(m->log, &s->place, s->off, phase, s->data,
                        (uint32_t)at, len, granules);
        m->o.node->is_unlogged = meta_log_is_partial(m->log);
    }
}

void
meta_forget(struct meta *m, uint64_t off, uint64_t len)
{
    for (uint64_t at = align_down(off, m->o.slice_size); at < off + len;
         at += m->o.slice_size) {
        struct slice *s = find(m, at);

        if (s) {
            drop(m, s);
        }
    }
}

/* Commits. */

static int
by_phase_and_offset(const void *a, const void *b)
{
    const struct image *x = a, *y = b;

    if (x->phase != y->phase) {
        return x->phase < y->phase ? -1 : 1;
    }
    return x->off < y->off ? -1 : x->off > y->off;
}

/* Pins and copies everything dirty; no yield, so it is one moment's state. */
static void
take_snapshot(struct meta *m, struct snapshot *snap)
{
    unsigned char *p;

    *snap = (struct snapshot){0};
    list_init(&snap->to_free);
    list_splice(&snap->to_free, &m->to_free);
    snap->newer = meta_log_is_partial(m->log);
    if (!m->n_dirty) {
        return;
    }
    snap->v = xzalloc(m->n_dirty * sizeof(*snap->v));
    snap->data = p = xmalloc(m->n_dirty * m->o.slice_size);
    list_for_each(it, &m->use)
    {
        struct slice *s = container_of(it, struct slice, use);

        if (!s->dirty) {
            continue;
        }
        unsigned first = (unsigned)__builtin_ctz(s->dirty);
        unsigned last = 31u - (unsigned)__builtin_clz((unsigned)s->dirty);
        struct image *im = &snap->v[snap->n++];

        *im = (struct image){.off = s->off + first * GRANULE,
                             .len = (last - first + 1) * GRANULE,
                             .slice = s,
                             .dirty = s->dirty,
                             .phase = s->phase,
                             .data = p};
        memcpy(p, s->data + first * GRANULE, im->len);
        p += im->len;
        s->pins++;
        s->dirty = 0;
        m->n_dirty--;
    }
    qsort(snap->v, snap->n, sizeof(*snap->v), by_phase_and_offset);
}

/* Writes images [i, ...) that lie behind one another with one request. */
static int
write_run(struct meta *m, const struct snapshot *snap, size_t *i)
{
    struct iovec iov[WRITE_IOVS];
    const struct image *first = &snap->v[*i];
    struct sg sg = {.iov = iov};
    int n = 0, r;

    while (*i < snap->n && n < WRITE_IOVS &&
           snap->v[*i].phase == first->phase &&
           snap->v[*i].off == first->off + sg.len) {
        iov[n++] = (struct iovec){snap->v[*i].data, snap->v[*i].len};
        sg.len += snap->v[*i].len;
        ++*i;
    }
    r = node_write(m->file, first->off, sg, 0, NULL);
    for (const struct image *im = first; !r && snap->newer && n--; im++) {
        meta_log_keep(m->log, &im->slice->place, 0);
    }
    return r;
}

static int
write_snapshot(struct meta *m, const struct snapshot *snap)
{
    int phase = -1;

    for (size_t i = 0; i < snap->n;) {
        int r = 0;

        if ((int)snap->v[i].phase != phase) {
            phase = snap->v[i].phase;
            /*
             * What this phase names must be durable first: the phases before,
             * and for maps the data.  Without a write since the last flush
             * this costs nothing.
             */
            r = phase == META_COUNTS ? 0 : node_flush(m->file);
        }
        if (!r) {
            r = write_run(m, snap, &i);
        }
        if (r) {
            return r;
        }
    }
    return node_flush(m->file);
}

struct release {
    struct meta *m;
    struct list freed;
};

static void
release_main(void *arg)
{
    struct release *rel = arg;
    struct meta *m = rel->m;

    grace_wait(&m->o.node->lookups);
    while (!list_empty(&rel->freed)) {
        struct freed *f = list_first(&rel->freed, struct freed, link);

        list_remove(&f->link);
        if (!m->discard) {
            m->o.freed(m->o.node, f->off, f->len);
        }
        free(f);
    }
    free(rel);
    m->releasing--;
    waitq_wake_all(&m->done);
}

/* Gives clusters back, in a coroutine: a commit must not wait for readers. */
static void
release(struct meta *m, struct list *freed)
{
    if (list_empty(freed)) {
        return;
    }
    struct release *rel = xzalloc(sizeof(*rel));

    rel->m = m;
    list_init(&rel->freed);
    list_splice(&rel->freed, freed);
    m->releasing++;
    coro_start(graph_loop(m->o.node->graph), release_main, rel);
}

static void
end_snapshot(struct meta *m, struct snapshot *snap, int r)
{
    for (size_t i = 0; i < snap->n; i++) {
        struct slice *s = snap->v[i].slice;

        s->pins--;
        if (r) {
            mark_dirty(m, s, snap->v[i].dirty);
        } else {
            meta_log_keep(m->log, &s->place, s->dirty);
        }
    }
    if (m->file->failed) {
        meta_log_give_up(m->log);
    } else if (!m->n_dirty) {
        meta_log_all_clean(m->log);
        m->o.node->is_unlogged = false;
    }
    if (r) {
        list_splice(&m->to_free, &snap->to_free);
    } else {
        release(m, &snap->to_free);
    }
    free(snap->v);
    free(snap->data);
}

static void
run_commit(struct meta *m)
{
    struct snapshot snap;

    m->running = true;
    m->started++;
    take_snapshot(m, &snap);
    int r = write_snapshot(m, &snap);

    end_snapshot(m, &snap, r);
    m->result = r;
    m->finished = m->started;
    m->running = false;
    waitq_wake_all(&m->done);
}

int
meta_commit(struct meta *m)
{
    uint64_t want = m->started + 1;

    while (m->finished < want) {
        if (m->running) {
            waitq_wait(&m->done);
        } else {
            run_commit(m);
        }
    }
    return m->result;
}

void
meta_free_later(struct meta *m, uint64_t off, uint64_t len)
{
    struct freed *f = xzalloc(sizeof(*f));

    f->off = off;
    f->len = len;
    list_push(&m->to_free, &f->link);
}

int
meta_free_now(struct meta *m)
{
    int r = meta_commit(m);

    while (m->renaming || (!r && m->releasing)) {
        waitq_wait(&m->done);
    }
    return r;
}

bool
meta_is_committing(const struct meta *m)
{
    return m->running;
}

static void
log_what_is_dirty(struct meta *m)
{
    list_for_each(it, &m->use)
    {
        struct slice *s = container_of(it, struct slice, use);

        if (s->dirty) {
            meta_log_change(m->log, &s->place, s->off, s->phase, s->data, 0, 0,
                            s->dirty);
        }
    }
    m->o.node->is_unlogged = meta_log_is_partial(m->log);
}

uint64_t
meta_start_log(struct meta *m)
{
    assert(!m->running && !m->log);
    m->log = meta_log_new(
        m->o.node, m->o.slice_size,
        (uint32_t)(max_u64(m->o.budget / m->o.slice_size, MIN_SLICES) +
                   SPARE_SLOTS));
    if (m->log) {
        m->renamed_ns = loop_now(graph_loop(m->o.node->graph));
        log_what_is_dirty(m);
    }
    return meta_log_autoclear(m->log);
}

void
meta_stop_log(struct meta *m)
{
    meta_log_free(take_ptr(m->log), false);
}

int
meta_close(struct meta *m, bool discard)
{
    int r = 0;

    timer_cancel(&m->stale);
    while (m->background) {
        waitq_wait(&m->done);
    }
    m->discard = discard;
    if (!discard) {
        r = meta_free_now(m);
        if (!r) {
            r = meta_commit(m); /* what giving back clusters changed */
        }
    }
    while (m->releasing || m->running || m->renaming) {
        waitq_wait(&m->done);
    }
    timer_cancel(&m->stale);
    while (!list_empty(&m->to_free)) {
        struct freed *f = list_first(&m->to_free, struct freed, link);

        list_remove(&f->link);
        free(f);
    }
    meta_log_free(take_ptr(m->log), r && !m->file->failed);
    while (!list_empty(&m->use)) {
        drop(m, list_first(&m->use, struct slice, use));
    }
    free(m->buckets);
    free(m);
    return r;
}
