// SPDX-License-Identifier: BSD-3-Clause
/*
 * What every program of sweeps does: the common cases, or one script.
 *
 *   sim-NAME [--only TEXT]     the setups whose name contains TEXT
 *   sim-NAME --script FILE     one run (script.h)
 *
 * SIM_BUDGET and SIM_STATES say how long and how much (sweep.h).  The last line
 * but the plan tells how many crash states were judged.
 */
#ifndef SLUICE_TESTS_SIM_CASES_H
#define SLUICE_TESTS_SIM_CASES_H

#include <malloc.h>
#include <stdlib.h>

#include "base/mem.h"
#include "sim/sweep.h"
#include "tap.h"

enum { KEEP_BYTES = 32 << 20 };

typedef unsigned cases_sweep(const struct sweep_setup *setup, uint64_t first);

static struct {
    const struct sweep_setup *setups;
    size_t n;
    unsigned plain_runs;
    const char *script, *only;
} cases;

static inline bool
cases_wants(const struct sweep_setup *setup)
{
    return !cases.only || strstr(setup->name, cases.only);
}

/* One sweep over the setups that are asked for. */
static inline void
cases_each(cases_sweep *sweep, bool also_special)
{
    for (size_t i = 0; i < cases.n; i++) {
        const struct sweep_setup *setup = &cases.setups[i];

        if (cases_wants(setup) && (also_special || !setup->special)) {
            CHECK_INT(sweep(setup, 1 + i), 0);
        }
    }
}

/* One sweep over one setup, which is asked for or not. */
static inline void
cases_one(cases_sweep *sweep, const char *name)
{
    bool found = false;

    for (size_t i = 0; i < cases.n; i++) {
        if (!strcmp(cases.setups[i].name, name)) {
            found = true;
            if (cases_wants(&cases.setups[i])) {
                CHECK_INT(sweep(&cases.setups[i], 1 + i), 0);
            }
        }
    }
    CHECK(found);
}

static inline void
cases_replay(void)
{
    CHECK_INT(sweep_replay(cases.setups, cases.n, cases.script), 0);
}

static inline unsigned
cases_plain_sweep(const struct sweep_setup *setup, uint64_t first)
{
    return sweep_plain(setup, first, cases.plain_runs);
}

static inline void
cases_plain(void)
{
    cases_each(cases_plain_sweep, false);
}

static inline void
cases_crashes(void)
{
    cases_each(sweep_crashes, false);
}

static inline void
cases_failures(void)
{
    cases_each(sweep_failures, false);
}

/* The two that only sweeps of an operation make. */
static inline void
cases_failures_and_crashes(void)
{
    cases_each(sweep_failures_and_crashes, true);
}

static inline void
cases_switches(void)
{
    cases_each(sweep_switches, true);
}

static inline void
cases_enough_states(void)
{
    struct sweep_totals t = sweep_totals();

    CHECK(t.states + t.second_states >= sweep_states_wanted());
}

/* The arguments, and how many setups share the time. */
static inline void
cases_prepare(int argc, char **argv)
{
    size_t n = 0, special = 0;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--script")) {
            cases.script = argv[i + 1];
        } else if (!strcmp(argv[i], "--only")) {
            cases.only = argv[i + 1];
        }
    }
    for (size_t i = 0; i < cases.n; i++) {
        bool wanted = cases_wants(&cases.setups[i]);

        n += wanted && !cases.setups[i].special;
        special += wanted && cases.setups[i].special;
    }
    if (!n && !special) {
        printf("Bail out! No setup has '%s' in its name\n", cases.only);
        exit(1);
    }
    sweep_share_budget(n ? n : 1);
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
    cases.setups = setups;
    cases.n = n;
    cases.plain_runs = plain_runs;
    cases_prepare(argc, argv);
    if (cases.script) {
        tap_run("the script passes", cases_replay);
        exit(tap_done());
    }
    tap_run("every read is right", cases_plain);
    tap_run("every crash leaves a right disk", cases_crashes);
    tap_run("every failing I/O leaves a right disk", cases_failures);
}

/* For main() to return: the total, and whether it is enough. */
static inline int
cases_done(void)
{
    struct sweep_totals t = sweep_totals();

    if (sweep_states_wanted()) {
        tap_run("enough crash states were judged", cases_enough_states);
    }
    if (sweep_sample_wanted() && t.by_qemu) {
        printf("# %llu of them were judged by qemu-img, too\n",
               (unsigned long long)t.by_qemu);
    } else if (sweep_sample_wanted()) {
        printf("# no qemu-img: it has judged nothing\n");
    }
    printf("# total: %llu crash states, %llu of a second crash\n",
           (unsigned long long)t.states, (unsigned long long)t.second_states);
    return tap_done();
}

#endif
