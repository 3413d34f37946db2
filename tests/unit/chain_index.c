// SPDX-License-Identifier: BSD-3-Clause
/*
 * The chain index: random chains of unequal cluster sizes and lengths, read at
 * random beside a byte model, while layers below are written and unallocated,
 * layers are dropped, and a budget of two windows makes it forget.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/chain_index.h"
#include "block/edit.h"
#include "drivers/drivers.h"
#include "run/sim/sim.h"
#include "tap.h"

enum { LAYERS = 7, SIZE = 9 << 20, CHUNK = 40000, ROUNDS = 250 };

static const struct driver *const drivers[] = {&driver_file, &driver_raw,
                                               &driver_qcow2, NULL};

/* What each layer holds by itself: 0 is "nothing", so zeroes are 255. */
struct model {
    unsigned char *held[LAYERS];
    uint64_t size[LAYERS], cluster[LAYERS];
};

struct world {
    struct loop *loop;
    struct graph *graph;
    uint64_t rng, budget;
    struct node *nodes[LAYERS];
    struct model m;
};

static uint64_t
roll(struct world *w, uint64_t n)
{
    return sim_random(&w->rng) % n;
}

static struct node *
make_layer(struct world *w, unsigned i, const char *backing)
{
    auto_free char *path = xasprintf("/layer%u", i);
    auto_free char *name = xasprintf("l%u", i);
    json_t *file = json_pack("{s:s, s:s}", "driver", "file", "filename", path);
    json_t *create = json_pack("{s:s, s:i}", "filename", path, "size", 0);
    auto_err err = {0};
    struct node *node = NULL;

    CHECK(!driver_file.create(w->graph, create, &err));
    json_decref(create);
    create = json_pack("{s:O, s:I, s:I}", "file", file, "size",
                       (json_int_t)w->m.size[i], "cluster-size",
                       (json_int_t)w->m.cluster[i]);
    CHECK(!driver_qcow2.create(w->graph, create, &err));
    json_decref(create);
    json_t *open = json_pack("{s:s, s:s, s:O, s:s?}", "driver", "qcow2",
                             "node-name", name, "file", file, "backing",
                             backing);
    CHECK(!node_add(w->graph, open, &node, &err));
    json_decref(open);
    json_decref(file);
    return node;
}

/* A write into one layer; the rest of its clusters comes from below. */
static void
write_layer(struct world *w, unsigned i)
{
    struct model *m = &w->m;
    uint64_t off = roll(w, m->size[i]);
    uint64_t len = min_u64(1 + roll(w, CHUNK), m->size[i] - off);
    auto_free unsigned char *data = xmalloc(len);
    unsigned char value = (unsigned char)(1 + roll(w, 254));

    memset(data, value, len);
    CHECK(!node_write_buf(w->nodes[i], off, data, len));
    uint64_t end = min_u64(align_up(off + len, m->cluster[i]), m->size[i]);

    for (uint64_t at = align_down(off, m->cluster[i]); at < end; at++) {
        unsigned k = i;

        if (at >= off && at < off + len) {
            m->held[i][at] = value;
            continue;
        }
        while (!m->held[k][at] && k && at < m->size[k - 1]) {
            k--;
        }
        m->held[i][at] = m->held[k][at] ? m->held[k][at] : 255;
    }
}

static void
unallocate_layer(struct world *w, unsigned i)
{
    struct model *m = &w->m;
    uint64_t unit = m->cluster[i];
    uint64_t off = align_down(roll(w, m->size[i]), unit);
    uint64_t end = min_u64(off + unit * (1 + roll(w, 4)), m->size[i]);

    CHECK(!node_unallocate(w->nodes[i], off, end - off, NULL));
    memset(m->held[i] + off, 0, end - off);
}

static unsigned char
expected(const struct world *w, uint64_t at)
{
    for (unsigned i = LAYERS; i--;) {
        if (at >= w->m.size[i]) {
            return 0;
        }
        if (w->m.held[i][at]) {
            return w->m.held[i][at] == 255 ? 0 : w->m.held[i][at];
        }
    }
    return 0;
}

static bool
read_and_compare(struct world *w)
{
    uint64_t size = w->m.size[LAYERS - 1];
    uint64_t off = roll(w, size), len = min_u64(1 + roll(w, 300000), size - off);
    auto_free unsigned char *data = xmalloc(len);

    if (node_read_buf(w->nodes[LAYERS - 1], off, data, len)) {
        return false;
    }
    for (uint64_t i = 0; i < len; i++) {
        if (data[i] != expected(w, off + i)) {
            printf("# byte %llu is %u, not %u\n", (unsigned long long)(off + i),
                   data[i], expected(w, off + i));
            return false;
        }
    }
    return true;
}

static void
world_main(void *arg)
{
    struct world *w = arg;
    struct graph_options o = {.drivers = drivers,
                              .chain_index_bytes = w->budget};
    bool same = true;

    w->graph = graph_new(w->loop, &o);
    for (unsigned i = 0; i < LAYERS; i++) {
        auto_free char *below = i ? xasprintf("l%u", i - 1) : NULL;

        w->m.cluster[i] = 1024ULL << roll(w, 6);
        w->m.size[i] = SIZE - 512 * roll(w, 4000);
        w->m.held[i] = calloc(SIZE, 1);
        w->nodes[i] = make_layer(w, i, below);
        for (int k = 0; k < 20; k++) {
            write_layer(w, i);
        }
    }
    for (int k = 0; k < ROUNDS && same; k++) {
        switch (roll(w, 8)) {
        case 0:
            write_layer(w, (unsigned)roll(w, LAYERS));
            break;
        case 1:
            unallocate_layer(w, (unsigned)roll(w, LAYERS));
            break;
        default:
            same = read_and_compare(w);
        }
    }
    CHECK(same);
    CHECK(w->nodes[LAYERS - 2]->index != NULL);
    CHECK(!chain_index_usable(w->nodes[LAYERS - 1]));

    /* A dropped layer: what lay in it and below is gone. */
    struct edit edit = {.kind = EDIT_BACKING, .node = w->nodes[3], .to = NULL};
    struct edit_options eo = {.deadline_ns = NEVER};
    struct edit_report report;
    auto_err err = {0};

    CHECK(!graph_edit(w->graph, &edit, 1, &eo, &report, &err));
    CHECK(!w->nodes[LAYERS - 2]->index);
    for (unsigned i = 0; i < 3; i++) {
        memset(w->m.held[i], 0, SIZE);
        w->m.size[i] = SIZE;
    }
    for (int k = 0; k < 50 && same; k++) {
        same = read_and_compare(w);
    }
    CHECK(same);
    for (unsigned i = 0; i < LAYERS; i++) {
        free(w->m.held[i]);
    }
    graph_free(w->graph);
}

/*
 * A fill that gets stuck in the lowest layer, while the one above it takes a
 * second to say where something is that another guest wants.
 */
enum { STUCK, TARDY, LAYER, TOP, N_TARDY };

static struct driver tardy;
static const struct driver *const tardy_drivers[] = {&driver_file, &tardy,
                                                     NULL};
static bool silent;
static struct waitq spoken;

static int
tardy_map(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    if (!strcmp(node->name, "l1")) {
        coro_sleep(NS_PER_S);
    }
    while (silent && !strcmp(node->name, "l0")) {
        waitq_wait(&spoken);
    }
    return driver_qcow2.map(node, off, len, ret);
}

struct asker {
    struct node *node;
    uint64_t off;
    unsigned flags;
    unsigned char byte;
    bool done;
};

static void
ask(void *arg)
{
    struct asker *a = arg;
    struct iovec iov = {&a->byte, 1};

    CHECK_INT(node_read(a->node, a->off, sg_one(&iov), a->flags), 0);
    a->done = true;
}

static void
beside_a_stuck_fill(struct world *w, unsigned flags)
{
    struct asker first = {.node = w->nodes[TOP], .flags = flags};
    struct asker second = {.node = w->nodes[TOP], .off = 1 << 20};

    silent = true;
    coro_start(w->loop, ask, &first);
    coro_sleep(NS_PER_MS);
    coro_start(w->loop, ask, &second);
    coro_sleep(10 * NS_PER_S);
    CHECK(!first.done && second.done);
    CHECK_INT(second.byte, 7);
    silent = false;
    waitq_wake_all(&spoken);
    coro_sleep(10 * NS_PER_S);
    CHECK(first.done);
    CHECK(w->nodes[LAYER]->index != NULL);
    chain_index_drop(w->nodes[LAYER]);
}

static void
tardy_main(void *arg)
{
    struct world *w = arg;
    struct graph_options o = {.drivers = tardy_drivers};

    tardy = driver_qcow2;
    tardy.map = tardy_map;
    waitq_init(&spoken);
    w->graph = graph_new(w->loop, &o);
    for (unsigned i = 0; i < N_TARDY; i++) {
        auto_free char *below = i ? xasprintf("l%u", i - 1) : NULL;

        w->m.cluster[i] = 65536;
        w->m.size[i] = SIZE;
        w->nodes[i] = make_layer(w, i, below);
    }
    CHECK_INT(node_write_buf(w->nodes[TARDY], 1 << 20, "\7", 1), 0);
    beside_a_stuck_fill(w, REQ_BACKGROUND);
    beside_a_stuck_fill(w, 0);
    graph_free(w->graph);
}

static void
in_world(uint64_t seed, uint64_t budget, void (*fn)(void *))
{
    struct sim_disk *disk = sim_disk_new();
    struct sim *sim = sim_new(disk, &(struct sim_options){.seed = seed});
    struct world w = {.loop = sim_loop(sim), .rng = seed, .budget = budget};

    CHECK(loop_run_main(w.loop, fn, &w));
    sim_free(sim);
    sim_disk_free(disk);
}

static void
reads_match_the_model(void)
{
    for (uint64_t seed = 1; seed <= 2; seed++) {
        in_world(seed, 0, world_main);
    }
}

static void
also_with_two_windows(void)
{
    for (uint64_t seed = 11; seed <= 12; seed++) {
        in_world(seed, 1, world_main); /* two windows at least */
    }
}

static void
nobody_waits_for_layers_he_does_not_need(void)
{
    in_world(5, 0, tardy_main);
}

int
main(void)
{
    tap_run("reads match the model", reads_match_the_model);
    tap_run("also with two windows", also_with_two_windows);
    tap_run("nobody waits for layers he does not need",
            nobody_waits_for_layers_he_does_not_need);
    return tap_done();
}
