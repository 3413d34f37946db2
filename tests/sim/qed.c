// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over QED: with and without a backing file, an odd size, larger
 * tables; beside the guest an operation that gives clusters up and takes the
 * backing file's contents again (unallocate), as a commit does.
 */
#include "base/bytes.h"
#include "drivers/drivers.h"
#include "sim/cases.h"

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

/* A file that cannot make holes: zeroes then change the entries. */
static struct driver no_holes;
static const struct driver *const without_holes[] = {&no_holes, &driver_qed,
                                                     NULL};

static const struct sweep_setup setups[] = {
    {.name = "qed",
     .image = "create qed top cluster-size=4096 table-size=1 size=49152\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    {.name = "qed-odd",
     .image = "create qed top cluster-size=4096 table-size=2 size=18944\n",
     .size = ODD_SIZE,
     .guests = 4,
     COMMON},
    /* A backing file shorter than the overlay, with data in most of it. */
    {.name = "qed-backing",
     .image = "create qed base cluster-size=4096 table-size=1 size=24576\n"
              "create qed top cluster-size=4096 table-size=1 "
              "backing-file=base size=49152\n"
              "fill qed base 3 37 1\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    {.name = "qed-end",
     .image = "create qed top cluster-size=4096 table-size=2 size=18944\n",
     .size = ODD_SIZE,
     .guests = 2,
     .options = TOP,
     .operation = sweep_grow,
     .ops = 12,
     .max_states = 48},
    {.name = "qed-no-holes",
     .image = "create qed top cluster-size=4096 table-size=1 size=49152\n",
     .size = SIZE,
     .guests = 4,
     .drivers = without_holes,
     COMMON},
};

int
main(int argc, char **argv)
{
    no_holes = driver_file;
    no_holes.zero = NULL;
    no_holes.discard = NULL;
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 500);
    return cases_done();
}
