// SPDX-License-Identifier: BSD-3-Clause
/*
 * Scripts prove themselves: with a bug planted in a driver, a seed must fail,
 * shrink to a few steps, survive being printed and read, fail again, and pass
 * once the bug is gone.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "drivers/drivers.h"
#include "sim/sweep.h"
#include "tap.h"

enum { SEEDS = 20 };

static struct driver buggy;
static const struct driver *const buggy_drivers[] = {&driver_file, &buggy,
                                                     NULL};

static const struct node *writing;

static int
slow_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           struct range_hold *hold)
{
    writing = node;
    int r = driver_qcow2.write(node, off, sg, flags, hold);

    writing = NULL;
    return r;
}

/* Bug: while somebody writes, a flush does nothing. */
static int
lazy_flush(struct node *node)
{
    return writing == node ? 0 : driver_qcow2.flush(node);
}

/* Bug: a failed write is a success. */
static int
deaf_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           struct range_hold *hold)
{
    driver_qcow2.write(node, off, sg, flags, hold);
    return 0;
}

/* Bug: of a zero request the last cluster is forgotten. */
static int
short_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
           struct range_hold *hold)
{
    len -= node->cluster_size;
    return len ? driver_qcow2.zero(node, off, len, flags, hold) : 0;
}

static struct sweep_setup
setup_with(const struct driver *const *drivers)
{
    return (struct sweep_setup){
        .name = "shrinking",
        .image = "create qcow2 base cluster-size=512 size=32768\n"
                 "create qcow2 top cluster-size=1024 backing-file=base "
                 "backing-fmt=qcow2 size=32768\n"
                 "fill qcow2 base 3 37 1\n",
        .options = "{\"driver\":\"qcow2\",\"node-name\":\"top\",\"file\":"
                   "{\"driver\":\"file\",\"filename\":\"top\"}}",
        .size = 32768,
        .guests = 3,
        .ops = 8,
        .max_states = 12,
        .drivers = drivers,
    };
}

/* Runs seeds, or the places of a failing I/O, until one fails. */
static bool
find_failure(struct sweep *s, bool fail)
{
    for (uint64_t seed = 1; seed <= SEEDS && !s->failures; seed++) {
        struct script sc = sweep_script(s->setup, seed);

        s->crashes = !fail;
        sweep_run(s, &sc);
        uint64_t places = fail ? s->n_io : 0;

        sc.trouble = TROUBLE_FAIL;
        sc.error = EIO;
        for (sc.at = 1; sc.at <= places && !s->failures; sc.at++) {
            sweep_run(s, &sc);
        }
        script_fini(&sc);
    }
    return s->failures;
}

/* The script as text and back. */
static struct script
round_trip(const struct script *sc)
{
    struct script again;
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    script_print(sc, f, "");
    fclose(f);
    printf("# %zu bytes of script, %u steps:\n", len, sc->n_steps);
    script_print(sc, stdout, "#   ");
    CHECK(script_parse(text, &again));
    free(text);
    return again;
}

static void
shrinks_to(unsigned most_steps, bool fail)
{
    struct sweep_setup bad = setup_with(buggy_drivers), good = setup_with(NULL);
    struct sweep s = {.setup = &bad};

    if (!find_failure(&s, fail)) {
        CHECK(!"the bug was found");
        return;
    }
    struct script small = sweep_shrink(&s), again = round_trip(&small);

    CHECK(small.n_steps <= most_steps);
    s.crashes = false; /* only what the script says */
    sweep_run(&s, &again);
    CHECK(s.failures);
    s.setup = &good;
    sweep_run(&s, &again);
    CHECK_INT(s.failures, 0);
    script_fini(&small);
    script_fini(&again);
    sweep_fini(&s);
}

static void
a_lost_flush_shrinks(void)
{
    buggy = driver_qcow2;
    buggy.write = slow_write;
    buggy.flush = lazy_flush;
    shrinks_to(6, false); /* of 24 */
}

static void
a_lost_error_shrinks(void)
{
    buggy = driver_qcow2;
    buggy.write = deaf_write;
    shrinks_to(2, true);
}

static void
a_lost_cluster_shrinks(void)
{
    buggy = driver_qcow2;
    buggy.zero = short_zero;
    shrinks_to(2, false);
}

static void
nonsense_is_no_script(void)
{
    struct script sc;

    CHECK(!script_parse("setup x\nstep 0 dance 1 2\n", &sc));
    CHECK(!script_parse("step 0 write 1\n", &sc));
    CHECK(!script_parse("fail 1\n", &sc));
    CHECK(script_parse("# only a comment\n\n", &sc));
    script_fini(&sc);
}

int
main(void)
{
    tap_run("a lost flush shrinks to a script", a_lost_flush_shrinks);
    tap_run("a lost error shrinks to a script", a_lost_error_shrinks);
    tap_run("a lost cluster shrinks to a script", a_lost_cluster_shrinks);
    tap_run("nonsense is no script", nonsense_is_no_script);
    return tap_done();
}
