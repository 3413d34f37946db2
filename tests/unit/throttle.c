// SPDX-License-Identifier: BSD-3-Clause
/*
 * Throttle groups, on the simulator's clock: the rate that is reached, bursts,
 * limits that change while requests wait, whose turn it is, and that nobody
 * who ends or changes anything waits for a throttled request.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/edit.h"
#include "block/throttle.h"
#include "drivers/drivers.h"
#include "run/sim/sim.h"
#include "tap.h"

static const struct driver *const drivers[] = {
    &driver_file, &driver_raw, &driver_mem, &driver_qcow2, &driver_throttle,
    NULL};

struct world {
    struct graph *graph;
    void (*fn)(struct graph *graph);
    struct loop *loop;
};

static void
world_main(void *arg)
{
    struct world *w = arg;
    struct graph_options o = {.drivers = drivers};

    w->graph = graph_new(w->loop, &o);
    w->fn(w->graph);
    graph_free(w->graph);
}

static void
in_world(void (*fn)(struct graph *graph))
{
    struct sim_disk *disk = sim_disk_new();
    struct sim *sim = sim_new(disk, &(struct sim_options){.seed = 5});
    struct world w = {.fn = fn, .loop = sim_loop(sim)};

    CHECK(loop_run_main(w.loop, world_main, &w));
    sim_free(sim);
    sim_disk_free(disk);
}

/* Limits. */

static struct throttle_limits
limit(enum throttle_kind kind, int64_t avg)
{
    struct throttle_limits l;

    throttle_limits_init(&l);
    l.kind[kind].avg = avg;
    return l;
}

static struct throttle_group *
group(struct graph *graph, const struct throttle_limits *l)
{
    CHECK_INT(throttle_group_new(graph, "g", l, NULL), 0);
    return throttle_group_find(graph, "g");
}

static struct node *
add(struct graph *graph, const char *name, json_t *file)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:o}", "driver", "throttle",
                          "node-name", name, "throttle-group", "g", "file",
                          file);
    struct node *node = NULL;
    auto_err err = ERR_INIT;

    CHECK_INT(node_add(graph, o, &node, &err), 0);
    json_decref(o);
    return node;
}

static struct node *
add_mem(struct graph *graph, const char *name)
{
    return add(graph, name,
               json_pack("{s:s, s:i}", "driver", "mem", "size", 1 << 20));
}

/* A guest: so many coroutines that repeat one request. */
struct guest {
    struct loop *loop;
    struct root *root;
    bool is_write;
    uint64_t bytes;
    unsigned left, running, done, max_order_gap;
    int result;
    uint64_t ended_ns;
};

static void
guest_main(void *arg)
{
    struct guest *g = arg;
    auto_free unsigned char *buf = calloc(1, g->bytes);
    struct iovec iov = {buf, g->bytes};

    while (g->left && !g->result) {
        g->left--;
        g->result = g->is_write ? root_write(g->root, 0, sg_one(&iov), 0)
                                : root_read(g->root, 0, sg_one(&iov), 0);
        g->done += !g->result;
    }
    g->ended_ns = loop_now(g->loop);
    g->running--;
}

static void
start(struct guest *g, struct node *node, unsigned requests, unsigned depth)
{
    g->loop = graph_loop(node->graph);
    g->left = requests;
    g->bytes = g->bytes ? g->bytes : 4096;
    CHECK_INT(root_new(node, CLAIM_WRITE, "guest", &g->root, NULL), 0);
    for (g->running = depth; depth; depth--) {
        coro_start(g->loop, guest_main, g);
    }
}

static void
finish(struct guest *g)
{
    while (g->running) {
        coro_sleep(NS_PER_MS);
    }
    root_free(g->root);
}

/* Milliseconds that @requests take. */
static uint64_t
time_of(struct node *node, struct guest *g, unsigned requests, unsigned depth)
{
    uint64_t begin = loop_now(graph_loop(node->graph));

    start(g, node, requests, depth);
    finish(g);
    CHECK_INT(g->result, 0);
    CHECK_INT(g->done, requests);
    return (g->ended_ns - begin) / NS_PER_MS;
}

#define CHECK_ABOUT(got, want)                                                 \
    do {                                                                       \
        uint64_t about = (got);                                                \
        if (about * 100 < (want) * 95ULL || about * 100 > (want) * 105ULL) {   \
            CHECK_INT(about, want);                                            \
        }                                                                      \
    } while (0)

static void
rate(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_TOTAL, 100);

    group(graph, &l);
    struct node *node = add_mem(graph, "t");

    /* A tenth of a second's are free: 990 of 1000 are paid for. */
    CHECK_ABOUT(time_of(node, &(struct guest){0}, 1000, 16), 10000);
    coro_sleep(NS_PER_S);
    CHECK_ABOUT(time_of(node, &(struct guest){.is_write = true}, 500, 1),
                4890);
}

static void
thousand_requests_at_100_a_second_take_10_seconds(void)
{
    in_world(rate);
}

static void
bytes(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_BPS_WRITE, 1 << 20);
    struct guest w = {.is_write = true, .bytes = 1 << 16};
    struct guest r = {.bytes = 1 << 16};

    group(graph, &l);
    struct node *node = add_mem(graph, "t");

    /* Reads have no limit here, even while writes wait. */
    start(&w, node, 160, 4);
    CHECK(time_of(node, &r, 1000, 4) < 100);
    CHECK(w.running);
    finish(&w);
    CHECK_ABOUT(w.ended_ns / NS_PER_MS, 9840);
}

static void
a_limit_of_writes_in_bytes_leaves_reads_alone(void)
{
    in_world(bytes);
}

static void
sizes(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_TOTAL, 100);

    l.iops_size = 4096;
    group(graph, &l);
    struct node *node = add_mem(graph, "t");

    /* 16 KiB count as four, 100 bytes as one. */
    CHECK_ABOUT(time_of(node, &(struct guest){.bytes = 16384}, 100, 4), 3860);
    coro_sleep(NS_PER_S);
    CHECK_ABOUT(time_of(node, &(struct guest){.bytes = 100}, 100, 4), 890);
}

static void
a_large_request_counts_as_several(void)
{
    in_world(sizes);
}

static void
bursts(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_TOTAL, 100);
    struct guest g = {0};

    /* 2000 a second for 6 seconds, then 100. */
    l.kind[THROTTLE_IOPS_TOTAL].max = 2000;
    l.kind[THROTTLE_IOPS_TOTAL].length = 6;
    group(graph, &l);
    struct node *node = add_mem(graph, "t");
    uint64_t begin = loop_now(graph_loop(graph));

    start(&g, node, 100000, 8);
    coro_sleep(5 * NS_PER_S);
    CHECK_ABOUT(g.done, 10000 + 200);
    /* The bucket of 12000 leaks 100 a second meanwhile: 6.3 s of burst. */
    coro_sleep(5 * NS_PER_S);
    CHECK_ABOUT(g.done, 12000 + 1000);
    unsigned before = g.done;

    coro_sleep(10 * NS_PER_S);
    CHECK_ABOUT(g.done - before, 1000);
    CHECK(loop_now(graph_loop(graph)) - begin == 20 * NS_PER_S);
    g.left = 0;
    finish(&g);
}

static void
a_burst_lasts_as_long_as_documented(void)
{
    in_world(bursts);
}

static void
changes(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_TOTAL, 1);
    struct throttle_group *g = group(graph, &l);
    struct node *node = add_mem(graph, "t");
    struct guest guest = {0};

    start(&guest, node, 1000, 10);
    coro_sleep(10 * NS_PER_S);
    CHECK_INT(guest.done, 11);
    l = limit(THROTTLE_IOPS_TOTAL, 100);
    CHECK_INT(throttle_group_set(g, &l, NULL), 0);
    coro_sleep(NS_PER_S);
    CHECK_ABOUT(guest.done, 11 + 110);
    throttle_limits_init(&l);
    CHECK_INT(throttle_group_set(g, &l, NULL), 0);
    coro_sleep(NS_PER_MS);
    CHECK_INT(guest.done, 1000);
    finish(&guest);
}

static void
new_limits_hold_at_once(void)
{
    in_world(changes);
}

static void
turns(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_TOTAL, 100);
    struct guest greedy = {0}, modest = {.is_write = true}, third = {0};

    group(graph, &l);
    start(&greedy, add_mem(graph, "a"), 100000, 32);
    start(&modest, add_mem(graph, "b"), 100000, 1);
    coro_sleep(10 * NS_PER_S);
    CHECK_ABOUT(modest.done, 500);
    CHECK_ABOUT(greedy.done, 510);
    start(&third, add_mem(graph, "c"), 100000, 2);
    modest.done = greedy.done = 0;
    coro_sleep(30 * NS_PER_S);
    CHECK_ABOUT(modest.done, 1000);
    CHECK_ABOUT(greedy.done, 1000);
    CHECK_ABOUT(third.done, 1000);
    greedy.left = modest.left = third.left = 0;
    finish(&greedy);
    finish(&modest);
    finish(&third);
}

static void
members_of_a_group_share_evenly(void)
{
    in_world(turns);
}

/* First come, first served, also when nothing was parked before. */
struct numbered {
    struct guest *g;
    unsigned i;
    unsigned *order, *n;
};

static void
numbered_main(void *arg)
{
    struct numbered *o = arg;
    unsigned char buf[512];
    struct iovec iov = {buf, sizeof(buf)};

    CHECK_INT(root_read(o->g->root, 0, sg_one(&iov), 0), 0);
    o->order[(*o->n)++] = o->i;
}

static void
fifo(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_READ, 10);
    struct guest g = {0};
    struct numbered v[50];
    unsigned order[50], n = 0;

    group(graph, &l);
    start(&g, add_mem(graph, "a"), 0, 0);
    for (unsigned i = 0; i < 50; i++) {
        v[i] = (struct numbered){&g, i, order, &n};
        coro_start(graph_loop(graph), numbered_main, &v[i]);
        coro_sleep(NS_PER_MS);
    }
    coro_sleep(10 * NS_PER_S);
    CHECK_INT(n, 50);
    for (unsigned i = 0; i < n; i++) {
        CHECK_INT(order[i], i);
    }
    root_free(g.root);
}

static void
the_first_comes_first(void)
{
    in_world(fifo);
}

static void
ends(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_BPS_TOTAL, 1);
    struct loop *loop = graph_loop(graph);
    struct guest lost = {0}, kept = {0};
    struct root_stats stats;

    group(graph, &l);
    struct node *node = add_mem(graph, "t");
    struct node *other = add_mem(graph, "u");

    start(&lost, node, 100, 8); /* each takes more than an hour */
    start(&kept, node, 100, 8);
    coro_sleep(NS_PER_S);
    CHECK_INT(lost.done + kept.done, 1);
    root_get_stats(kept.root, &stats);
    CHECK_INT(stats.in_flight, 0);
    /* An edit of the graph does not wait, and those outside follow it. */
    struct edit edit = {.kind = EDIT_REPLACE, .node = node->file->child,
                        .to = other->file->child};
    struct edit_options eo = {.deadline_ns = loop_now(loop) + NS_PER_S};
    uint64_t begin = loop_now(loop);

    CHECK_INT(graph_edit(graph, &edit, 1, &eo, NULL, NULL), 0);
    root_free(lost.root);
    CHECK_INT(loop_now(loop) - begin, 0);
    coro_sleep(NS_PER_MS);
    CHECK_INT(lost.result, -ESHUTDOWN);
    CHECK_INT(lost.running, 0);
    CHECK_INT(throttle_group_del(throttle_group_find(graph, "g"), NULL),
              -EBUSY);
    /* At the daemon's end they are let go. */
    graph_end(graph, true);
    begin = loop_now(loop);
    finish(&kept);
    CHECK_INT(kept.done, 100);
    CHECK(loop_now(loop) - begin < NS_PER_S);
}

static void
nobody_waits_for_a_throttled_request(void)
{
    in_world(ends);
}

/* Below a format it waits in place, but not in the way of a drain. */
static void
deep(struct graph *graph)
{
    struct throttle_limits l = limit(THROTTLE_IOPS_WRITE, 10);
    json_t *file = json_pack("{s:s, s:i}", "filename", "f", "size", 0);
    json_t *o = json_pack("{s:{s:s, s:s}, s:i}", "file", "driver", "file",
                          "filename", "f", "size", 1 << 20);
    struct guest g = {.is_write = true};
    struct loop *loop = graph_loop(graph);
    struct node *node = NULL;

    CHECK_INT(driver_file.create(graph, file, NULL), 0);
    CHECK_INT(driver_qcow2.create(graph, o, NULL), 0);
    json_decref(file);
    json_decref(o);
    struct throttle_group *tg = group(graph, &l);

    add(graph, "t", json_pack("{s:s, s:s}", "driver", "file", "filename",
                              "f"));
    o = json_pack("{s:s, s:s, s:s}", "driver", "qcow2", "node-name", "q",
                  "file", "t");
    CHECK_INT(node_add(graph, o, &node, NULL), 0);
    json_decref(o);
    CHECK_ABOUT(time_of(node, &(struct guest){.is_write = true}, 200, 1),
                19900);
    l = limit(THROTTLE_IOPS_WRITE, 1);
    l.iops_size = 1; /* each takes an hour */
    CHECK_INT(throttle_group_set(tg, &l, NULL), 0);
    start(&g, node, 100, 1);
    coro_sleep(NS_PER_S);
    CHECK_INT(g.done, 1);
    uint64_t begin = loop_now(loop);

    g.left = 0;
    root_free(g.root);
    CHECK(loop_now(loop) - begin < NS_PER_S);
    CHECK_INT(g.running, 0);
    CHECK_INT(g.done, 2);
    throttle_limits_init(&l);
    CHECK_INT(throttle_group_set(tg, &l, NULL), 0); /* for the close */
}

static void
below_a_format_a_drain_does_not_wait_either(void)
{
    in_world(deep);
}

int
main(void)
{
    tap_run("1000 requests at 100 a second take 10 seconds",
            thousand_requests_at_100_a_second_take_10_seconds);
    tap_run("a limit of writes in bytes leaves reads alone",
            a_limit_of_writes_in_bytes_leaves_reads_alone);
    tap_run("a large request counts as several",
            a_large_request_counts_as_several);
    tap_run("a burst lasts as long as documented",
            a_burst_lasts_as_long_as_documented);
    tap_run("new limits hold at once", new_limits_hold_at_once);
    tap_run("members of a group share evenly", members_of_a_group_share_evenly);
    tap_run("the first comes first", the_first_comes_first);
    tap_run("nobody waits for a throttled request",
            nobody_waits_for_a_throttled_request);
    tap_run("below a format a drain does not wait either",
            below_a_format_a_drain_does_not_wait_either);
    return tap_done();
}
