// SPDX-License-Identifier: BSD-3-Clause
/* The sweeps over qcow2: cluster sizes, refcount widths, backing files. */
#include "sim/sweep.h"
#include "tap.h"

enum { SIZE = 48 * 1024, ODD_SIZE = 37 * 512 };

#define TOP                                                                    \
    "{\"driver\":\"qcow2\",\"node-name\":\"top\",\"discard\":\"unmap\","       \
    "\"file\":{\"driver\":\"file\",\"filename\":\"top\"}}"

static void
create(struct graph *graph, const char *name, const char *more, uint64_t size)
{
    auto_free char *file =
        xasprintf("{\"filename\":\"%s\",\"size\":0}", name);
    auto_free char *image = xasprintf(
        "{\"file\":{\"driver\":\"file\",\"filename\":\"%s\",\"discard\":"
        "\"unmap\"},\"size\":%llu%s}",
        name, (unsigned long long)size, more);

    sweep_create(graph, "file", file);
    sweep_create(graph, "qcow2", image);
}

static void
prepare_512(struct graph *graph, struct oracle *o, uint64_t seed)
{
    create(graph, "top", ",\"cluster-size\":512", SIZE);
}

static void
prepare_4k_bits1(struct graph *graph, struct oracle *o, uint64_t seed)
{
    create(graph, "top", ",\"cluster-size\":4096,\"refcount-bits\":1", SIZE);
}

static void
prepare_odd_bits64(struct graph *graph, struct oracle *o, uint64_t seed)
{
    create(graph, "top", ",\"cluster-size\":1024,\"refcount-bits\":64",
           ODD_SIZE);
}

/* A backing file shorter than the overlay, with data in most of it. */
static void
prepare_backing(struct graph *graph, struct oracle *o, uint64_t seed)
{
    json_t *options = json_pack(
        "{s:s, s:s, s:{s:s, s:s}}", "driver", "qcow2", "node-name", "base",
        "file", "driver", "file", "filename", "base");
    struct node *base;

    create(graph, "base", ",\"cluster-size\":2048", SIZE / 2);
    create(graph, "top",
           ",\"cluster-size\":4096,\"backing-file\":\"base\","
           "\"backing-fmt\":\"qcow2\"",
           SIZE);
    if (node_add(graph, options, &base, NULL)) {
        abort();
    }
    sweep_fill(base, o, 3, 37, 1);
    json_decref(options);
}

static const struct sweep_setup setups[] = {
    {.name = "qcow2-512",
     .options = TOP,
     .size = SIZE,
     .prepare = prepare_512,
     .guests = 3,
     .ops = 12,
     .max_states = 48},
    {.name = "qcow2-4k-refcount1",
     .options = TOP,
     .size = SIZE,
     .prepare = prepare_4k_bits1,
     .guests = 3,
     .ops = 12,
     .max_states = 48},
    {.name = "qcow2-odd-refcount64",
     .options = TOP,
     .size = ODD_SIZE,
     .prepare = prepare_odd_bits64,
     .guests = 4,
     .ops = 10,
     .max_states = 48},
    {.name = "qcow2-backing",
     .options = TOP,
     .size = SIZE,
     .prepare = prepare_backing,
     .guests = 3,
     .ops = 12,
     .max_states = 48},
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

/* The judges themselves: a dropped flush must show, in most places. */
static void
an_fsync_that_lies_is_noticed(void)
{
    unsigned noticed = sweep_lies(&setups[0], 1, 10);

    printf("# %u of 10 lies noticed\n", noticed);
    CHECK(noticed >= 5);
}

int
main(void)
{
    tap_run("an fsync that lies is noticed", an_fsync_that_lies_is_noticed);
    tap_run("every read is right", every_read_is_right);
    tap_run("every crash leaves a right image",
            every_crash_leaves_a_right_image);
    tap_run("every failing I/O leaves a right image",
            every_failing_io_leaves_a_right_image);
    return tap_done();
}
