// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over QED: with and without a backing file, an odd size, larger
 * tables; beside the guest an operation that gives clusters up and takes the
 * backing file's contents again (unallocate), as a commit does.
 */
#include "base/bytes.h"
#include "sim/sweep.h"
#include "tap.h"

enum {
    SIZE = 48 * 1024,
    ODD_SIZE = 37 * 512,
    CLUSTER = 4096,
    SECTORS = CLUSTER / 512, /* in a cluster */
    /* The backing file has tags 1 to BASE_N from sector BASE_FIRST on. */
    BASE_FIRST = 3,
    BASE_N = 37,
    UNALLOCATIONS = 8,
};

#define TOP                                                                    \
    "{\"driver\":\"qed\",\"node-name\":\"top\",\"discard\":\"unmap\","         \
    "\"file\":{\"driver\":\"file\",\"filename\":\"top\"}}"

static void
create(struct graph *graph, const char *name, const char *more, uint64_t size)
{
    auto_free char *image =
        xasprintf("{\"filename\":\"%s\",\"cluster-size\":4096,\"size\":%llu%s}",
                  name, (unsigned long long)size, more);

    sweep_create(graph, "qed", image);
}

static void
prepare_plain(struct graph *graph, struct oracle *o, uint64_t seed)
{
    create(graph, "top", ",\"table-size\":1", SIZE);
}

static void
prepare_odd(struct graph *graph, struct oracle *o, uint64_t seed)
{
    create(graph, "top", ",\"table-size\":2", ODD_SIZE);
}

/* A backing file shorter than the overlay, with data in most of it. */
static void
prepare_backing(struct graph *graph, struct oracle *o, uint64_t seed)
{
    json_t *options =
        json_pack("{s:s, s:s, s:{s:s, s:s}}", "driver", "qed", "node-name",
                  "base", "file", "driver", "file", "filename", "base");
    struct node *base;

    create(graph, "base", ",\"table-size\":1", SIZE / 2);
    create(graph, "top", ",\"table-size\":1,\"backing-file\":\"base\"", SIZE);
    if (node_add(graph, options, &base, NULL)) {
        abort();
    }
    sweep_fill(base, o, BASE_FIRST, BASE_N, 1);
    json_decref(options);
}

static uint64_t
tag_below(struct sweep *s, uint64_t sector)
{
    bool has = root_node(s->root)->backing && sector >= BASE_FIRST &&
               sector < BASE_FIRST + BASE_N;

    return has ? sector - BASE_FIRST + 1 : 0;
}

static void
unallocate_one(struct sweep *s, uint64_t *rng)
{
    uint64_t sectors = s->setup->size / 512, ids[SECTORS];
    uint64_t first = sim_random(rng) % div_up(sectors, SECTORS) * SECTORS;
    uint64_t n = min_u64(SECTORS, sectors - first);

    for (uint64_t i = 0; i < n; i++) {
        ids[i] = oracle_begin(s->oracle, first + i, 1, tag_below(s, first + i));
    }
    int r = node_unallocate(root_node(s->root), first * 512, n * 512, NULL);

    for (uint64_t i = 0; i < n; i++) {
        oracle_end(s->oracle, first + i, 1, ids[i], r == 0);
    }
    if (r && !s->may_fail) {
        sweep_fail(s, "unallocate failed: %d", r);
    }
}

static void
unallocate(struct sweep *s)
{
    uint64_t rng = s->seed * 3 + 1;

    for (int i = 0; i < UNALLOCATIONS; i++) {
        coro_sleep(sim_random(&rng) % (300 * 1000));
        unallocate_one(s, &rng);
    }
}

#define COMMON                                                                 \
    .options = TOP, .operation = unallocate, .ops = 12, .max_states = 48

static const struct sweep_setup setups[] = {
    {.name = "qed",
     .size = SIZE,
     .prepare = prepare_plain,
     .guests = 3,
     COMMON},
    {.name = "qed-odd",
     .size = ODD_SIZE,
     .prepare = prepare_odd,
     .guests = 4,
     COMMON},
    {.name = "qed-backing",
     .size = SIZE,
     .prepare = prepare_backing,
     .guests = 3,
     COMMON},
};

static void
every_read_is_right(void)
{
    for (size_t i = 0; i < ARRAY_LEN(setups); i++) {
        CHECK_INT(sweep_plain(&setups[i], 1, 500), 0);
    }
}

static void
every_crash_leaves_a_right_image(void)
{
    for (size_t i = 0; i < ARRAY_LEN(setups); i++) {
        CHECK_INT(sweep_crashes(&setups[i], 1), 0);
    }
}

static void
every_failing_io_leaves_a_right_image(void)
{
    for (size_t i = 0; i < ARRAY_LEN(setups); i++) {
        CHECK_INT(sweep_failures(&setups[i], 1), 0);
    }
}

int
main(void)
{
    tap_run("every read is right", every_read_is_right);
    tap_run("every crash leaves a right image",
            every_crash_leaves_a_right_image);
    tap_run("every failing I/O leaves a right image",
            every_failing_io_leaves_a_right_image);
    return tap_done();
}
