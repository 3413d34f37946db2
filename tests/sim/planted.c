// SPDX-License-Identifier: BSD-3-Clause
/*
 * The simulator proves itself: a small store with the same rules as an image
 * format, correct and with planted bugs.  Each bug must be caught, and the
 * correct one must pass, or the sweeps that everything else relies on are
 * worth nothing.
 *
 * The store: a map of SLOTS sectors in file "map" says which sector of file
 * "data" holds the slot's value.  An update writes the data to a fresh place,
 * syncs, points the map at it, syncs; then it is acknowledged.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/range_lock.h"
#include "run/file.h"
#include "run/sim/sim.h"
#include "tap.h"

enum { SLOTS = 4, UPDATES = 12, MAX_STATES = 256 };

enum bug {
    NO_BUG,
    BUG_NO_DATA_SYNC, /* the flush between data and map is dropped */
    BUG_MAP_FIRST,    /* the map entry becomes durable before its data */
    BUG_NO_MAP_SYNC,  /* acknowledged before it is durable */
    BUG_LOCK_EARLY,   /* the lock is released before the write-back */
};

struct store {
    enum bug bug;
    struct sim *sim;
    struct file *map, *data;
    uint64_t next_place;
    uint64_t acked[SLOTS], started[SLOTS]; /* values: allowed, the set */
    bool updating[SLOTS];
    struct range_lock lock;
    uint64_t states;
    bool caught;
};

static void
fill(unsigned char *sector, uint64_t value)
{
    for (int i = 0; i < SIM_SECTOR; i += 8) {
        st_be64(sector + i, value);
    }
}

static int
update(struct store *st, unsigned slot, uint64_t value)
{
    unsigned char sector[SIM_SECTOR], entry[SIM_SECTOR];
    uint64_t place = st->next_place++;

    fill(sector, value);
    fill(entry, place + 1);
    if (st->bug == BUG_MAP_FIRST) {
        file_write_buf(st->map, slot * SIM_SECTOR, entry, SIM_SECTOR);
        file_sync(st->map);
    }
    file_write_buf(st->data, place * SIM_SECTOR, sector, SIM_SECTOR);
    if (st->bug != BUG_NO_DATA_SYNC) {
        file_sync(st->data);
    }
    if (st->bug != BUG_MAP_FIRST) {
        file_write_buf(st->map, slot * SIM_SECTOR, entry, SIM_SECTOR);
    }
    return st->bug == BUG_NO_MAP_SYNC ? 0 : file_sync(st->map);
}

/* What a reader finds after the crash: SIM_SECTOR equal values, or garbage. */
static bool
crash_state_is_allowed(struct store *st, struct sim_disk *disk)
{
    size_t map_len, data_len;
    const unsigned char *map = sim_disk_get(disk, "map", &map_len);
    const unsigned char *data = sim_disk_get(disk, "data", &data_len);

    for (unsigned slot = 0; slot < SLOTS; slot++) {
        uint64_t place = ld_be64(map + slot * SIM_SECTOR);
        uint64_t value = 0;

        for (int i = 8; i < SIM_SECTOR; i += 8) {
            if (ld_be64(map + slot * SIM_SECTOR + i) != place) {
                return false;
            }
        }
        if (place && place * SIM_SECTOR > data_len) {
            return false;
        }
        if (place) {
            value = ld_be64(data + (place - 1) * SIM_SECTOR);
        }
        if (value != st->acked[slot] &&
            !(st->updating[slot] && value == st->started[slot])) {
            return false;
        }
    }
    return true;
}

static void
crash_here(void *arg, struct sim *sim)
{
    struct store *st = arg;
    struct sim_crash crash = {.disk = sim_world_disk(sim),
                              .kind = SIM_CRASH_POWER,
                              .max_states = MAX_STATES,
                              .seed = sim_n_events(sim)};
    struct sim_disk *after;

    while ((after = sim_crash_next(&crash))) {
        st->states++;
        if (!crash_state_is_allowed(st, after)) {
            st->caught = true;
        }
        sim_disk_free(after);
    }
}

static void
updates(void *arg)
{
    struct store *st = arg;

    file_open(sim_loop(st->sim), "map", FILE_WRITE, &st->map);
    file_open(sim_loop(st->sim), "data", FILE_WRITE, &st->data);
    for (uint64_t i = 1; i <= UPDATES; i++) {
        unsigned slot = (unsigned)(i * 7 % SLOTS);

        st->started[slot] = i;
        st->updating[slot] = true;
        CHECK_INT(update(st, slot, i), 0);
        st->acked[slot] = i;
        st->updating[slot] = false;
    }
    file_close(st->map);
    file_close(st->data);
}

static struct store
run_store(enum bug bug, struct sim_options o)
{
    struct sim_disk *disk = sim_disk_new();
    unsigned char zeroes[SLOTS * SIM_SECTOR] = {0};
    struct store st = {.bug = bug};

    sim_disk_put(disk, "map", zeroes, sizeof(zeroes));
    sim_disk_put(disk, "data", NULL, 0);
    o.on_event = crash_here;
    o.arg = &st;
    st.sim = sim_new(disk, &o);
    CHECK(loop_run_main(sim_loop(st.sim), updates, &st));
    sim_free(st.sim);
    sim_disk_free(disk);
    return st;
}

static void
a_correct_store_passes(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct store st = run_store(NO_BUG, (struct sim_options){.seed = seed});

        CHECK(!st.caught);
        CHECK(st.states > 4 * UPDATES);
    }
}

static void
a_dropped_flush_is_caught(void)
{
    CHECK(run_store(BUG_NO_DATA_SYNC, (struct sim_options){.seed = 1}).caught);
}

static void
metadata_before_data_is_caught(void)
{
    CHECK(run_store(BUG_MAP_FIRST, (struct sim_options){.seed = 1}).caught);
}

static void
an_early_acknowledgement_is_caught(void)
{
    CHECK(run_store(BUG_NO_MAP_SYNC, (struct sim_options){.seed = 1}).caught);
}

static void
an_fsync_that_lies_is_caught(void)
{
    unsigned caught = 0;

    for (uint64_t n = 1; n <= UPDATES; n++) {
        caught += run_store(NO_BUG,
                            (struct sim_options){.seed = 1, .drop_sync_at = n})
                      .caught;
    }
    CHECK_INT(caught, UPDATES);
}

/* Read-modify-write of single bytes of one sector by several coroutines. */

struct adder {
    struct store *st;
    unsigned at;
    unsigned *running;
};

static void
add_byte(void *arg)
{
    struct adder *a = arg;
    struct store *st = a->st;
    unsigned char sector[SIM_SECTOR];
    struct range_hold hold;

    range_lock_take(&st->lock, &hold, 0, SIM_SECTOR, RANGE_EXCLUSIVE);
    file_read_buf(st->data, 0, sector, SIM_SECTOR);
    if (st->bug == BUG_LOCK_EARLY) {
        range_lock_release(&st->lock, &hold);
    }
    sector[a->at] = 1;
    file_write_buf(st->data, 0, sector, SIM_SECTOR);
    if (st->bug != BUG_LOCK_EARLY) {
        range_lock_release(&st->lock, &hold);
    }
    --*a->running;
}

static void
add_bytes(void *arg)
{
    struct store *st = arg;
    struct adder adders[8];
    unsigned running = ARRAY_LEN(adders);
    unsigned char sector[SIM_SECTOR];

    range_lock_init(&st->lock);
    file_open(sim_loop(st->sim), "data", FILE_WRITE, &st->data);
    for (unsigned i = 0; i < ARRAY_LEN(adders); i++) {
        adders[i] = (struct adder){st, i, &running};
        coro_start(sim_loop(st->sim), add_byte, &adders[i]);
    }
    while (running) {
        coro_sleep(NS_PER_MS);
    }
    file_read_buf(st->data, 0, sector, SIM_SECTOR);
    for (unsigned i = 0; i < ARRAY_LEN(adders); i++) {
        st->caught |= sector[i] != 1;
    }
    file_close(st->data);
}

static bool
lost_update(enum bug bug, uint64_t seed)
{
    struct sim_disk *disk = sim_disk_new();
    struct store st = {.bug = bug};

    sim_disk_put(disk, "data", NULL, 0);
    st.sim = sim_new(disk, &(struct sim_options){.seed = seed});
    CHECK(loop_run_main(sim_loop(st.sim), add_bytes, &st));
    sim_free(st.sim);
    sim_disk_free(disk);
    return st.caught;
}

static void
a_lock_released_early_is_caught(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        CHECK(!lost_update(NO_BUG, seed));
    }
    CHECK(lost_update(BUG_LOCK_EARLY, 1));
}

/* A failing I/O reaches its caller, each of them once. */
static void
one_read(void *arg)
{
    struct store *st = arg;
    unsigned char byte;

    st->caught = file_open(sim_loop(st->sim), "data", 0, &st->data) != 0;
    st->caught |= file_read_buf(st->data, 0, &byte, 1) == -EIO;
    file_close(st->data);
}

static void
a_failing_io_is_reported(void)
{
    struct sim_disk *disk = sim_disk_new();
    struct store st = {0};

    sim_disk_put(disk, "data", "x", 1);
    st.sim =
        sim_new(disk, &(struct sim_options){.fail_at = 1, .fail_errno = EIO});
    CHECK(loop_run_main(sim_loop(st.sim), one_read, &st));
    CHECK(st.caught);
    sim_free(st.sim);
    sim_disk_free(disk);
}

struct hung {
    struct coro *co;
    bool let_go;
};

static void
wait_for_ever(void *arg)
{
    struct hung *h = arg;

    h->co = coro_self();
    while (!h->let_go) {
        coro_yield();
    }
}

static void
a_hang_is_noticed(void)
{
    struct sim_disk *disk = sim_disk_new();
    struct sim *sim = sim_new(disk, &(struct sim_options){.seed = 1});
    struct hung h = {0};

    coro_start(sim_loop(sim), wait_for_ever, &h);
    loop_run(sim_loop(sim)); /* comes back although it has not ended */
    CHECK(h.co != NULL);
    h.let_go = true;
    coro_wake(h.co);
    loop_run(sim_loop(sim));
    sim_free(sim);
    sim_disk_free(disk);
}

int
main(void)
{
    tap_run("a correct store passes", a_correct_store_passes);
    tap_run("a dropped flush is caught", a_dropped_flush_is_caught);
    tap_run("metadata before data is caught", metadata_before_data_is_caught);
    tap_run("an early acknowledgement is caught",
            an_early_acknowledgement_is_caught);
    tap_run("an fsync that lies is caught", an_fsync_that_lies_is_caught);
    tap_run("a lock released early is caught", a_lock_released_early_is_caught);
    tap_run("a failing I/O is reported", a_failing_io_is_reported);
    tap_run("a hang is noticed", a_hang_is_noticed);
    return tap_done();
}
