// SPDX-License-Identifier: BSD-3-Clause
/* What every program of sweeps does: the common cases, or one script. */
#ifndef SLUICE_TESTS_SIM_CASES_H
#define SLUICE_TESTS_SIM_CASES_H

#include <malloc.h>
#include <stdlib.h>

#include "sim/sweep.h"
#include "tap.h"

enum { KEEP_BYTES = 32 << 20 };

static const struct sweep_setup *cases_setups;
static size_t cases_n;
static unsigned cases_plain_runs;
static const char *cases_script;

static inline void
cases_replay(void)
{
    CHECK_INT(sweep_replay(cases_setups, cases_n, cases_script), 0);
}

static inline void
cases_plain(void)
{
    for (size_t i = 0; i < cases_n; i++) {
        if (!cases_setups[i].special) {
            CHECK_INT(sweep_plain(&cases_setups[i], 1, cases_plain_runs), 0);
        }
    }
}

static inline void
cases_crashes(void)
{
    for (size_t i = 0; i < cases_n; i++) {
        if (!cases_setups[i].special) {
            CHECK_INT(sweep_crashes(&cases_setups[i], 1), 0);
        }
    }
}

static inline void
cases_failures(void)
{
    for (size_t i = 0; i < cases_n; i++) {
        if (!cases_setups[i].special) {
            CHECK_INT(sweep_failures(&cases_setups[i], 1), 0);
        }
    }
}

/* The two that only sweeps of an operation make, over all that cases_run() got. */
static inline void
cases_failures_and_crashes(void)
{
    for (size_t i = 0; i < cases_n; i++) {
        CHECK_INT(sweep_failures_and_crashes(&cases_setups[i], 1 + i), 0);
    }
}

static inline void
cases_switches(void)
{
    for (size_t i = 0; i < cases_n; i++) {
        CHECK_INT(sweep_switches(&cases_setups[i], 1 + i), 0);
    }
}

/*
 * Runs the common cases over the setups that are not special, each plainly
 * @plain_runs times.  With "--script FILE" only that script, and exits.
 */
static inline void
cases_run(int argc, char **argv, const struct sweep_setup *setups, size_t n,
          unsigned plain_runs)
{
    /* What nobody wrote must not look right by chance. */
    mallopt(M_PERTURB, 0xa5);
    /* And what was freed is needed again at once. */
    mallopt(M_MMAP_THRESHOLD, KEEP_BYTES);
    mallopt(M_TRIM_THRESHOLD, KEEP_BYTES);
    cases_setups = setups;
    cases_n = n;
    cases_plain_runs = plain_runs;
    sweep_share_budget(n);
    if (argc == 3 && !strcmp(argv[1], "--script")) {
        cases_script = argv[2];
        tap_run("the script passes", cases_replay);
        exit(tap_done());
    }
    tap_run("every read is right", cases_plain);
    tap_run("every crash leaves a right disk", cases_crashes);
    tap_run("every failing I/O leaves a right disk", cases_failures);
}

#endif
