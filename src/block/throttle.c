// SPDX-License-Identifier: BSD-3-Clause
/*
 * A group has a bucket for each kind of limit.  A request fills them, time
 * empties them at the rate of the limit, and while one of those that concern
 * a request is too full, it waits.  A request that goes fills them whatever
 * its size, so a large one is paid off by those after it.
 *
 *   no burst given   the bucket holds a tenth of a second
 *   max, length      it holds `length` seconds at `max`; where that is more
 *                    than one, a second bucket keeps the burst itself at `max`
 *
 * Turns: each member has two queues, for reads and writes, and the group has
 * its members in the order of their turns.  Whoever is at the head of a queue
 * of the first member that may go, goes, and its member becomes the last one.
 * So members share evenly, within a member the first comes first, and a read
 * that has to wait does not hold up writes with a limit of their own.  One
 * timer per group is set to when the first head may go.
 */
#include "block/throttle.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/graph_internal.h"

enum {
    LOOK_MS = 50,       /* a waiter in place looks for drains so often */
    SHORT_BURST = 10,   /* the fraction of a second that is always allowed */
};
#define VALUE_MAX 1000000000000000LL /* as in QEMU */

struct bucket {
    double level, burst_level;
};

struct throttle_group {
    struct list link; /* graph->throttle_groups */
    struct graph *graph;
    char *name;
    struct throttle_limits limits;
    struct bucket buckets[THROTTLE_KINDS];
    uint64_t leaked_ns; /* when they were last emptied */
    struct list members; /* in the order of their turns */
    unsigned waiting[2]; /* tickets: reads, writes */
    uint64_t next_seq;
    struct timer timer;
};

/* A node of the driver. */
struct throttle_member {
    struct list link; /* group->members */
    struct throttle_group *group;
    struct list queue[2]; /* of struct ticket.link: reads, writes */
    struct list passes;   /* of struct throttle_stamp.link */
    bool open;            /* the daemon ends: nobody waits any more */
};

/* A request that waits; on its stack. */
struct ticket {
    struct list link;
    struct list root_link; /* root->throttled, where it waits outside */
    struct throttle_member *member;
    struct waitq q;
    bool is_write, granted, gone;
    uint64_t bytes, seq;
};

/* Limits. */

void
throttle_limits_init(struct throttle_limits *limits)
{
    *limits = (struct throttle_limits){0};
    for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
        limits->kind[i].length = 1;
    }
}

static bool
total_and_other(const struct throttle_limit *total)
{
    return (total[0].avg && (total[1].avg || total[2].avg)) ||
           (total[0].max && (total[1].max || total[2].max));
}

static int
check_limit(const struct throttle_limit *l, struct err *err)
{
    if (l->avg < 0 || l->max < 0 || l->avg > VALUE_MAX ||
        l->max > VALUE_MAX) {
        return err_set(err, -EINVAL,
                       "bps/iops/max values must be within [0, %lld]",
                       VALUE_MAX);
    }
    if (!l->length) {
        return err_set(err, -EINVAL, "the burst length cannot be 0");
    }
    if (l->length > 1 && !l->max) {
        return err_set(err, -EINVAL, "burst length set without burst rate");
    }
    if (l->max && l->length > VALUE_MAX / l->max) {
        return err_set(err, -EINVAL, "burst length too high for this burst "
                                     "rate");
    }
    if (l->max && !l->avg) {
        return err_set(err, -EINVAL,
                       "bps_max/iops_max require corresponding bps/iops "
                       "values");
    }
    if (l->max && l->max < l->avg) {
        return err_set(err, -EINVAL,
                       "bps_max/iops_max cannot be lower than bps/iops");
    }
    return 0;
}

/* The checks and texts are QEMU's. */
static int
check_limits(const struct throttle_limits *l, struct err *err)
{
    const struct throttle_limit *iops = &l->kind[THROTTLE_IOPS_TOTAL];
    int r = 0;

    if (total_and_other(&l->kind[THROTTLE_BPS_TOTAL]) ||
        total_and_other(iops)) {
        return err_set(err, -EINVAL,
                       "bps/iops/max total values and read/write values "
                       "cannot be used at the same time");
    }
    if (l->iops_size && !iops[0].avg && !iops[1].avg && !iops[2].avg) {
        return err_set(err, -EINVAL,
                       "iops size requires an iops value to be set");
    }
    for (unsigned i = 0; i < THROTTLE_KINDS && !r; i++) {
        r = check_limit(&l->kind[i], err);
    }
    return r;
}

/* Buckets. */

static void
leak(struct throttle_group *g)
{
    uint64_t now = loop_now(g->graph->loop);
    double s = (double)(now - g->leaked_ns) / (double)NS_PER_S;

    g->leaked_ns = now;
    for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
        struct bucket *b = &g->buckets[i];
        const struct throttle_limit *l = &g->limits.kind[i];
        double level = b->level - s * (double)l->avg;
        double burst = b->burst_level - s * (double)l->max;

        b->level = level > 0 ? level : 0;
        b->burst_level = burst > 0 ? burst : 0;
    }
}

static void
fill(struct throttle_group *g, bool is_write, uint64_t bytes)
{
    uint64_t size = (uint64_t)g->limits.iops_size;
    double ops = size && bytes > size ? (double)bytes / (double)size : 1;

    for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
        bool is_total = i == THROTTLE_BPS_TOTAL || i == THROTTLE_IOPS_TOTAL;
        bool of_writes = i == THROTTLE_BPS_WRITE || i == THROTTLE_IOPS_WRITE;
        double units = i < THROTTLE_IOPS_TOTAL ? (double)bytes : ops;

        if (is_total || of_writes == is_write) {
            g->buckets[i].level += units;
            g->buckets[i].burst_level += units;
        }
    }
}

/* Nanoseconds until a bucket at @level has only @holds in it. */
static uint64_t
time_to_leak(double level, double holds, int64_t rate)
{
    double ns = (level - holds) * (double)NS_PER_S / (double)rate;

    /* One more, so that rounding does not wake in vain; a day at most. */
    return ns > 0 ? 1 + (uint64_t)(ns < 86400e9 ? ns : 86400e9) : 0;
}

static uint64_t
bucket_wait(const struct bucket *b, const struct throttle_limit *l)
{
    double avg = (double)l->avg, max = (double)l->max;

    if (!l->avg) {
        return 0;
    }
    uint64_t wait = time_to_leak(
        b->level, l->max ? max * (double)l->length : avg / SHORT_BURST,
        l->avg);

    if (!wait && l->length > 1) {
        wait = time_to_leak(b->burst_level, max / SHORT_BURST, l->max);
    }
    return wait;
}

/* How long a read or a write has to wait from now on; 0: it may go. */
static uint64_t
time_to_wait(const struct throttle_group *g, bool is_write)
{
    const unsigned of[] = {
        THROTTLE_BPS_TOTAL, THROTTLE_IOPS_TOTAL,
        is_write ? THROTTLE_BPS_WRITE : THROTTLE_BPS_READ,
        is_write ? THROTTLE_IOPS_WRITE : THROTTLE_IOPS_READ};
    uint64_t wait = 0;

    for (unsigned i = 0; i < ARRAY_LEN(of); i++) {
        wait = max_u64(wait, bucket_wait(&g->buckets[of[i]],
                                         &g->limits.kind[of[i]]));
    }
    return wait;
}

/* Turns. */

static struct ticket *
head(const struct throttle_member *m, bool is_write)
{
    const struct list *q = &m->queue[is_write];

    return list_empty(q) ? NULL : list_first(q, struct ticket, link);
}

/* Out of its queue: it goes, or it gives up. */
static void
withdraw(struct ticket *t)
{
    list_remove(&t->link);
    t->member->group->waiting[t->is_write]--;
}

static void
grant(struct ticket *t)
{
    struct throttle_member *m = t->member;

    withdraw(t);
    fill(m->group, t->is_write, t->bytes);
    list_remove(&m->link);
    list_push(&m->group->members, &m->link);
    t->granted = true;
    waitq_wake_all(&t->q);
}

/* The next one whose turn it is and that may go; NULL where none may. */
static struct ticket *
next_turn(struct throttle_group *g, const uint64_t wait[2])
{
    list_for_each(it, &g->members)
    {
        struct throttle_member *m =
            container_of(it, struct throttle_member, link);
        struct ticket *r = wait[0] ? NULL : head(m, false);
        struct ticket *w = wait[1] ? NULL : head(m, true);

        if (r || w) {
            return !w || (r && r->seq < w->seq) ? r : w;
        }
    }
    return NULL;
}

static void serve_later(struct timer *timer);

/* Lets go whoever may, and sets the timer for the others. */
static void
serve(struct throttle_group *g)
{
    struct ticket *t;
    uint64_t wait[2], first = NEVER;

    leak(g);
    do {
        wait[0] = time_to_wait(g, false);
        wait[1] = time_to_wait(g, true);
        t = next_turn(g, wait);
        if (t) {
            grant(t);
        }
    } while (t);
    for (unsigned i = 0; i < 2; i++) {
        first = g->waiting[i] ? min_u64(first, wait[i]) : first;
    }
    timer_cancel(&g->timer);
    if (first != NEVER) {
        timer_set(g->graph->loop, &g->timer, g->leaked_ns + first,
                  serve_later);
    }
}

static void
serve_later(struct timer *timer)
{
    serve(container_of(timer, struct throttle_group, timer));
}

/* Puts a request in its queue; it may have its turn at once. */
static void
queue_up(struct ticket *t, struct throttle_member *m, bool is_write,
         uint64_t bytes)
{
    *t = (struct ticket){.member = m,
                         .is_write = is_write,
                         .bytes = bytes,
                         .seq = m->group->next_seq++};
    list_init(&t->root_link);
    waitq_init(&t->q);
    list_push(&m->queue[is_write], &t->link);
    m->group->waiting[is_write]++;
    if (m->open) {
        grant(t);
    } else if (m->group->waiting[is_write] == 1) {
        serve(m->group); /* else somebody came before, and must wait, too */
    }
}

/* Groups. */

int
throttle_group_new(struct graph *graph, const char *name,
                   const struct throttle_limits *limits, struct err *err)
{
    int r = check_limits(limits, err);

    if (r) {
        return r;
    }
    struct throttle_group *g = xzalloc(sizeof(*g));

    g->graph = graph;
    g->name = xstrdup(name);
    g->limits = *limits;
    g->leaked_ns = loop_now(graph->loop);
    list_init(&g->members);
    list_push(&graph->throttle_groups, &g->link);
    return 0;
}

struct throttle_group *
throttle_group_find(struct graph *graph, const char *name)
{
    list_for_each(it, &graph->throttle_groups)
    {
        struct throttle_group *g =
            container_of(it, struct throttle_group, link);

        if (!strcmp(g->name, name)) {
            return g;
        }
    }
    return NULL;
}

int
throttle_group_del(struct throttle_group *group, struct err *err)
{
    if (!list_empty(&group->members)) {
        return err_set(err, -EBUSY, "object '%s' is in use, can not be deleted",
                       group->name);
    }
    timer_cancel(&group->timer);
    list_remove(&group->link);
    free(group->name);
    free(group);
    return 0;
}

void
throttle_groups_free(struct graph *graph)
{
    list_for_each_safe(it, &graph->throttle_groups)
    {
        int r = throttle_group_del(
            container_of(it, struct throttle_group, link), NULL);

        assert(!r);
    }
}

int
throttle_group_set(struct throttle_group *group,
                   const struct throttle_limits *limits, struct err *err)
{
    int r = check_limits(limits, err);

    if (r) {
        return r;
    }
    group->limits = *limits;
    memset(group->buckets, 0, sizeof(group->buckets));
    serve(group);
    return 0;
}

void
throttle_group_get(const struct throttle_group *group,
                   struct throttle_limits *ret)
{
    *ret = group->limits;
}

/* Members. */

int
throttle_join(struct node *node, const char *name, struct err *err)
{
    struct throttle_group *g = throttle_group_find(node->graph, name);

    if (!g) {
        return err_set(err, -ENOENT, "Throttle group '%s' does not exist",
                       name);
    }
    struct throttle_member *m = xzalloc(sizeof(*m));

    m->group = g;
    list_init(&m->queue[0]);
    list_init(&m->queue[1]);
    list_init(&m->passes);
    list_push(&g->members, &m->link);
    node->throttle = m;
    return 0;
}

void
throttle_leave(struct node *node)
{
    struct throttle_member *m = take_ptr(node->throttle);

    assert(list_empty(&m->queue[0]) && list_empty(&m->queue[1]));
    list_remove(&m->link);
    free(m);
}

static bool
has_pass(const struct throttle_member *m)
{
    const struct coro *self = coro_self();

    list_for_each(it, &m->passes)
    {
        if (container_of(it, struct throttle_stamp, link)->co == self) {
            return true;
        }
    }
    return false;
}

/* Is a root above being drained or freed?  Then nobody must wait here. */
static bool
is_drained(struct node *node)
{
    struct node **above = xmalloc(sizeof(struct node *));
    unsigned n = 1;
    bool drained = false;

    above[0] = node;
    for (unsigned i = 0; i < n && !drained; i++) {
        list_for_each(it, &above[i]->roots)
        {
            const struct root *root = container_of(it, struct root, link);

            drained |= root->gates || root->closing;
        }
        list_for_each(it, &above[i]->parents)
        {
            above = xrealloc(above, (n + 1) * sizeof(struct node *));
            above[n++] = container_of(it, struct edge, link)->parent;
        }
    }
    free(above);
    return drained;
}

void
throttle_take(struct node *node, bool is_write, uint64_t bytes)
{
    struct throttle_member *m = node->throttle;
    struct ticket t;

    if (has_pass(m)) {
        return;
    }
    queue_up(&t, m, is_write, bytes);
    while (!t.granted) {
        waitq_wait_until(&t.q, loop_now(node->graph->loop) +
                                   LOOK_MS * NS_PER_MS);
        if (!t.granted && (t.gone || is_drained(node))) {
            grant(&t); /* its debt is paid by those after it */
        }
    }
}

void
throttle_let_go(struct node *node, bool all)
{
    struct throttle_member *m = node->throttle;

    m->open |= all;
    for (unsigned i = 0; i < 2; i++) {
        list_for_each_safe(it, &m->queue[i])
        {
            struct ticket *t = container_of(it, struct ticket, link);

            /* Those outside hold up nobody; they leave with their root. */
            if (all || list_empty(&t->root_link)) {
                t->gone = true;
                waitq_wake_all(&t->q);
            }
        }
    }
}

/* Outside. */

/* False where the root is being freed. */
static bool
wait_for_turn(struct root *root, struct node *node, bool is_write,
              uint64_t bytes)
{
    struct ticket t;

    queue_up(&t, node->throttle, is_write, bytes);
    if (!t.granted && root->closing) {
        t.gone = true;
    }
    list_push(&root->throttled, &t.root_link);
    root->waiting++;
    while (!t.granted && !t.gone) {
        waitq_wait(&t.q);
    }
    list_remove(&t.root_link);
    if (!t.granted && node->throttle->open && !root->closing) {
        grant(&t);
    } else if (!t.granted) {
        withdraw(&t);
    }
    root->waiting--;
    if (root->closing) {
        waitq_wake_all(&root->idle);
    }
    return t.granted && !root->closing;
}

bool
throttle_enter(struct root *root, struct throttle_pass *pass, bool is_write,
               uint64_t bytes)
{
    struct node *n = root->node;

    pass->n = 0;
    while (n->drv->is_filter && n->file && pass->n < THROTTLES_OUTSIDE) {
        if (!n->throttle) {
            n = n->file->child;
            continue;
        }
        struct throttle_stamp *s = &pass->at[pass->n++];

        /* Meanwhile the graph may lose it. */
        *s = (struct throttle_stamp){.co = coro_self(), .node = node_ref(n)};
        list_push_front(&n->throttle->passes, &s->link);
        if (!wait_for_turn(root, n, is_write, bytes)) {
            throttle_exit(pass);
            return false;
        }
        n = n->file->child;
    }
    return true;
}

void
throttle_exit(struct throttle_pass *pass)
{
    while (pass->n) {
        struct throttle_stamp *s = &pass->at[--pass->n];

        list_remove(&s->link);
        node_unref(s->node);
    }
}

void
throttle_forget_root(struct root *root)
{
    list_for_each(it, &root->throttled)
    {
        struct ticket *t = container_of(it, struct ticket, root_link);

        t->gone = true;
        waitq_wake_all(&t->q);
    }
}
