// SPDX-License-Identifier: BSD-3-Clause
/* The sweeps over qcow2: cluster sizes, refcount widths, backing files. */
#include "base/bytes.h"
#include "sim/cases.h"

enum { SIZE = 48 * 1024, ODD_SIZE = 37 * 512 };

#define TOP                                                                    \
    "{\"driver\":\"qcow2\",\"node-name\":\"top\",\"discard\":\"unmap\","       \
    "\"file\":{\"driver\":\"file\",\"filename\":\"top\"}}"

#define COMMON .options = TOP, .ops = 12, .max_states = 48

static const struct sweep_setup setups[] = {
    {.name = "qcow2-512",
     .image = "create qcow2 top cluster-size=512 size=49152\n",
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
};

/* The judges themselves: a dropped flush must show, in most places. */
static void
an_fsync_that_lies_is_noticed(void)
{
    unsigned noticed = sweep_lies(&setups[0], 1, 10);

    printf("# %u of 10 lies noticed\n", noticed);
    CHECK(noticed >= 5);
}

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 500);
    tap_run("an fsync that lies is noticed", an_fsync_that_lies_is_noticed);
    return tap_done();
}
