// SPDX-License-Identifier: BSD-3-Clause
/* The sweeps over qcow2: cluster sizes, refcount widths, backing files. */
#include "base/bytes.h"
#include "sim/cases.h"
#include "sim/qemu.h"

enum {
    SIZE = 48 * 1024,
    ODD_SIZE = 37 * 512,
    REFTABLE_SIZE = 2 << 20,
    MANY_TABLES_SIZE = 512 << 10,
    LITTLE_SHM = 2400, /* 4 tables */
    L1_SIZE = (2 << 20) - 4096, /* a whole cluster of L1 entries */
    L1_MORE = 64 << 10,
};

#define TOP                                                                    \
    "{\"driver\":\"qcow2\",\"node-name\":\"top\",\"discard\":\"unmap\","       \
    "\"file\":{\"driver\":\"file\",\"filename\":\"top\"}}"

/* Makes the disk larger beside the guests, so that L1 has to move. */
static void
grow(struct sweep *s)
{
    unsigned char sector[512], got[512];
    auto_err err = ERR_INIT;

    coro_sleep(sim_random(&s->rng) % NS_PER_MS);
    int r = node_truncate(s->top, L1_SIZE + L1_MORE, &err);

    if (r) {
        if (!s->may_fail) {
            sweep_fail(s, "growing the disk failed: %s", err.msg);
        }
        return;
    }
    /* The new part is empty, and usable. */
    sector_fill(sector, 77);
    r = node_read_buf(s->top, L1_SIZE + L1_MORE - 512, got, 512);
    if (!r && !bytes_are_zero(got, 512)) {
        sweep_fail(s, "the new part of the disk does not read zero");
    }
    r = r ? r : node_write_buf(s->top, L1_SIZE + L1_MORE - 512, sector, 512);
    r = r ? r : node_read_buf(s->top, L1_SIZE + L1_MORE - 512, got, 512);
    if (r ? !s->may_fail : memcmp(sector, got, 512)) {
        sweep_fail(s, "the new part of the disk does not keep a write");
    }
}

/* What qemu-img says of what a kill now would leave; true: it is content. */
static bool
is_content(struct sweep *s, size_t at, uint64_t damage)
{
    struct sim_crash kill = {.disk = sim_world_disk(s->sim),
                             .kind = SIM_CRASH_PROCESS};
    struct sim_disk *disk = sim_crash_next(&kill);
    unsigned before = s->failures;

    if (at) {
        sim_disk_change(disk, "top", at, &damage, sizeof(damage));
    }
    qemu_judge(s, disk, "a kill");
    sim_disk_free(disk);
    return s->failures == before;
}

/* The other judge: an image that is damaged, or another disk, must show. */
static void
ask_qemu(struct sweep *s)
{
    enum { L1_OFFSET = 40, REFTABLE_OFFSET = 48 }; /* in the header */

    sweep_step(s, &(struct step){.op = STEP_WRITE, .sector = 3, .n = 9});
    sweep_step(s, &(struct step){.op = STEP_FLUSH});
    CHECK(is_content(s, 0, 0));
    CHECK(!is_content(s, L1_OFFSET, UINT64_MAX));
    CHECK(!is_content(s, REFTABLE_OFFSET, 0));
    oracle_init(s->oracle, 5, 4711);
    CHECK(!is_content(s, 0, 0));
    oracle_init(s->oracle, 5, 1000000); /* what was written */
    CHECK(is_content(s, 0, 0));
    s->failures = 0;
}

#define COMMON .options = TOP, .ops = 12, .max_states = 48

static const struct sweep_setup setups[] = {
    {.name = "qcow2-512",
     .image = "create qcow2 top cluster-size=512 size=49152\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    /* A refcount block counts 64 clusters: the guests need a second one. */
    {.name = "qcow2-512-refcount64",
     .image = "create qcow2 top cluster-size=512 refcount-bits=64 size=49152\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    /* Free clusters hold old data, which nobody may ever see again. */
    {.name = "qcow2-litter",
     .image = "create qcow2 top cluster-size=4096 size=49152\n"
              "litter top 128\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    {.name = "qcow2-4k-refcount1",
     .image = "create qcow2 top cluster-size=4096 refcount-bits=1 size=49152\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    {.name = "qcow2-odd-refcount64",
     .image =
         "create qcow2 top cluster-size=1024 refcount-bits=64 size=18944\n",
     .size = ODD_SIZE,
     .guests = 4,
     COMMON},
    /* A backing file shorter than the overlay, with data in most of it. */
    {.name = "qcow2-backing",
     .image = "create qcow2 base cluster-size=2048 size=24576\n"
              "create qcow2 top cluster-size=4096 backing-file=base "
              "backing-fmt=qcow2 size=49152\n"
              "fill qcow2 base 3 37 1\n",
     .size = SIZE,
     .guests = 3,
     COMMON},
    /*
     * The refcount table has one cluster and counts 2 MiB, which the image has
     * nearly filled: the guests' writes make the table grow.
     */
    {.name = "qcow2-reftable",
     .image = "create qcow2 top cluster-size=512 refcount-bits=64 "
              "size=2097152\n"
              "fill qcow2 top 0 3860 1\n",
     .size = REFTABLE_SIZE,
     .first = 3850,
     .guests = 3,
     .ops = 8,
     .options = TOP,
     .max_states = 4},
    {.name = "qcow2-l1",
     .image = "create qcow2 top cluster-size=512 size=2093056\n"
              "fill qcow2 top 4060 20 1\n",
     .size = L1_SIZE,
     .first = 4040,
     .operation = grow,
     .guests = 2,
     .ops = 3,
     .options = TOP,
     .max_states = 3},
    {.name = "qcow2-end",
     .image = "create qcow2 top cluster-size=4096 size=18944\n",
     .size = ODD_SIZE,
     .operation = sweep_grow,
     .guests = 2,
     COMMON},
    /* Many tables, and room for few of them in the log: it is full at once. */
    {.name = "qcow2-little-shared-memory",
     .image = "create qcow2 top cluster-size=512 size=524288\n",
     .size = MANY_TABLES_SIZE,
     .guests = 3,
     .ops = 20,
     .options = TOP,
     .shm_bytes = LITTLE_SHM,
     .max_states = 6},
    {.name = "qcow2-judge",
     .image = "create qcow2 top cluster-size=512 size=49152\n",
     .size = SIZE,
     .operation = ask_qemu,
     .options = TOP,
     .special = true},
};

/* The judges themselves: a dropped flush must show, in many places. */
static void
an_fsync_that_lies_is_noticed(void)
{
    enum { SEEDS = 4, LIES = 10 };
    unsigned noticed = 0;

    for (unsigned seed = 1; seed <= SEEDS; seed++) {
        noticed += sweep_lies(&setups[0], seed, LIES);
    }
    printf("# %u of %u lies noticed\n", noticed, SEEDS * LIES);
    CHECK(noticed >= SEEDS * LIES * 2 / 5);
}

static unsigned
run_once(const struct sweep_setup *setup, uint64_t seed)
{
    return sweep_plain(setup, seed, 1);
}

static void
qemu_img_notices_what_is_wrong(void)
{
    if (qemu_can_judge(&setups[0])) {
        cases_one(run_once, "qcow2-judge");
    } else {
        printf("# no qemu-img\n");
    }
}

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 500);
    if (cases_wants(&setups[0])) {
        tap_run("an fsync that lies is noticed",
                an_fsync_that_lies_is_noticed);
    }
    tap_run("qemu-img notices what is wrong", qemu_img_notices_what_is_wrong);
    return cases_done();
}
