// SPDX-License-Identifier: BSD-3-Clause
/* The dirty set beside an array of bytes, one a block. */
#include "block/dirty_set.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "run/sim/sim.h"
#include "tap.h"

enum { BLOCK = 4096, BLOCKS = 100000, ODD = 700 };

#define SIZE ((uint64_t)(BLOCKS - 1) * BLOCK + ODD)

static unsigned char model[BLOCKS];

static uint64_t
count_model(void)
{
    uint64_t n = 0;

    for (size_t i = 0; i < BLOCKS; i++) {
        n += model[i];
    }
    return n;
}

/* Does the set, walked from the start, hold just what the model holds? */
static void
compare(const struct dirty_set *set)
{
    uint64_t off = 0, len, seen = 0, at = 0;

    while (dirty_set_next(set, at, SIZE, &off, &len)) {
        CHECK(len > 0 && off >= at);
        for (uint64_t i = off / BLOCK; i * BLOCK < off + len; i++) {
            CHECK(model[i]);
            seen++;
        }
        at = off + len;
    }
    CHECK_INT(seen, count_model());
    CHECK_INT(set->n_dirty, seen);
}

static void
random_changes_are_what_the_model_says(void)
{
    struct dirty_set set;
    uint64_t rng = 7;

    dirty_set_init(&set, SIZE, BLOCK);
    memset(model, 0, sizeof(model));
    for (int round = 0; round < 3000; round++) {
        uint64_t off = sim_random(&rng) % SIZE;
        uint64_t max = sim_random(&rng) % 20 ? 20000 : SIZE;
        uint64_t len = 1 + sim_random(&rng) % max;
        uint64_t end = min_u64(off + len, SIZE);

        if (sim_random(&rng) % 2) {
            dirty_set_add(&set, off, len);
            for (uint64_t i = off / BLOCK; i * BLOCK < end; i++) {
                model[i] = 1;
            }
        } else {
            dirty_set_remove(&set, off, len);
            for (uint64_t i = div_up(off, BLOCK); i < BLOCKS; i++) {
                if (min_u64((i + 1) * BLOCK, SIZE) <= end) {
                    model[i] = 0;
                }
            }
        }
        bool any = false;

        for (uint64_t i = off / BLOCK; i * BLOCK < end; i++) {
            any |= model[i];
        }
        CHECK_INT(dirty_set_any(&set, off, len), any);
        if (round % 100 == 0) {
            compare(&set);
        }
    }
    compare(&set);
    dirty_set_remove(&set, 0, SIZE);
    CHECK_INT(set.n_dirty, 0);
    CHECK(!dirty_set_any(&set, 0, SIZE));
    dirty_set_fini(&set);
}

static void
a_run_is_cut_to_what_was_asked_for(void)
{
    struct dirty_set set;
    uint64_t off, len;

    dirty_set_init(&set, SIZE, BLOCK);
    dirty_set_add(&set, 0, 10 * BLOCK);
    CHECK(dirty_set_next(&set, 3 * BLOCK + 1, 5 * BLOCK, &off, &len));
    CHECK_INT(off, 3 * BLOCK + 1);
    CHECK_INT(len, 2 * BLOCK - 1);
    CHECK(!dirty_set_next(&set, 10 * BLOCK, SIZE, &off, &len));
    dirty_set_add(&set, SIZE - 1, 1);
    CHECK(dirty_set_next(&set, 10 * BLOCK, SIZE, &off, &len));
    CHECK_INT(off, SIZE - ODD);
    CHECK_INT(len, ODD);
    dirty_set_fini(&set);
}

static void
memory_grows_with_what_is_dirty(void)
{
    struct dirty_set set;
    unsigned leaves = 0;

    dirty_set_init(&set, 64 * TIB, BLOCK);
    for (uint64_t i = 0; i < 100; i++) {
        dirty_set_add(&set, i * 600 * GIB, 1);
    }
    for (uint64_t i = 0; i < set.n_leaves; i++) {
        leaves += set.leaves[i] != NULL;
    }
    CHECK_INT(leaves, 100);
    CHECK_INT(dirty_set_bytes(&set), 100 * BLOCK);
    dirty_set_remove(&set, 0, 64 * TIB);
    CHECK_INT(set.n_dirty, 0);
    dirty_set_fini(&set);
}

int
main(void)
{
    tap_run("random changes are what the model says",
            random_changes_are_what_the_model_says);
    tap_run("a run is cut to what was asked for",
            a_run_is_cut_to_what_was_asked_for);
    tap_run("memory grows with what is dirty", memory_grows_with_what_is_dirty);
    return tap_done();
}
