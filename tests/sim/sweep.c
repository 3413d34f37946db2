// SPDX-License-Identifier: BSD-3-Clause
#include "sim/sweep.h"
#include "transfer/job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"

enum { SECTOR = 512, STEP_MAX = 24, STRIDES = 50 };

static double
seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

enum { FULL_SHARE_SETUPS = 8 };

static double share = 1;

void
sweep_share_budget(size_t n_setups)
{
    if (n_setups > FULL_SHARE_SETUPS) {
        share = (double)FULL_SHARE_SETUPS / (double)n_setups;
    }
}

static double
budget(void)
{
    const char *text = getenv("SIM_BUDGET");

    return (text ? atof(text) : 2) * share;
}

static enum step_op
random_op(uint64_t *rng)
{
    switch (sim_random(rng) % 10) {
    case 0:
    case 1:
        return STEP_READ;
    case 2:
        return sim_random(rng) & 1 ? STEP_UNMAP : STEP_ZERO;
    case 3:
        return STEP_DISCARD;
    case 4:
    case 5:
        return STEP_FLUSH;
    default:
        return sim_random(rng) % 8 ? STEP_WRITE : STEP_WRITE_FUA;
    }
}

struct script
sweep_script(const struct sweep_setup *setup, uint64_t seed)
{
    uint64_t span =
        setup->span ? setup->span : setup->size / SECTOR - setup->first;
    uint64_t rng = seed * 0x9e3779b97f4a7c15 + 7;
    struct script sc = {.setup = xstrdup(setup->name),
                        .seed = seed,
                        .image = xstrdup(setup->image)};

    for (unsigned i = 0; i < setup->guests * setup->ops; i++) {
        uint64_t at = sim_random(&rng) % span;
        struct step st = {.guest = i % setup->guests,
                          .op = random_op(&rng),
                          .sector = setup->first + at,
                          .n = 1 +
                               sim_random(&rng) % min_u64(span - at, STEP_MAX)};

        script_add(&sc, st);
    }
    return sc;
}

/* After a failure: shrinks what was found and shows it. */
static unsigned
report(struct sweep *s)
{
    unsigned failures = s->failures;

    if (failures && !s->quiet) {
        printf("# %s, seed %llu: %s\n", s->setup->name,
               (unsigned long long)s->seed, s->why);
        struct script small = sweep_shrink(s);

        printf("# the smallest script that fails (%u of its steps left): %s\n",
               small.n_steps, s->why);
        script_print(&small, stdout, "#   ");
        script_fini(&small);
    }
    sweep_fini(s);
    return failures;
}

static void
run_seed(struct sweep *s, uint64_t seed, uint64_t lie)
{
    struct script sc = sweep_script(s->setup, seed);

    sc.lie = lie;
    sweep_run(s, &sc);
    script_fini(&sc);
}

void
sweep_cancel_job(struct sweep *s)
{
    struct job *job = s->op ? jobs_find(s->op, "j") : NULL;

    if (job) {
        job_cancel(job, true, NULL);
    }
}

void
sweep_pause_job(struct sweep *s)
{
    struct job *job = s->op ? jobs_find(s->op, "j") : NULL;

    if (job && !job_pause(job, NULL)) {
        coro_sleep(NS_PER_MS);
        job = s->op ? jobs_find(s->op, "j") : NULL;
        if (job) {
            job_resume(job, NULL);
        }
    }
}

unsigned
sweep_crashes(const struct sweep_setup *setup, uint64_t first)
{
    struct sweep s = {.setup = setup, .crashes = true};
    double end = seconds() + budget();
    uint64_t seed = first;

    do {
        run_seed(&s, seed++, 0);
    } while (seconds() < end && !s.failures);
    if (setup->recover && !s.resumed && !s.failures) {
        printf("# %s: nothing was resumed\n", setup->name);
        return 1;
    }
    printf("# %s: %llu crash states, %llu of a second crash, seeds %llu to "
           "%llu\n",
           setup->name, (unsigned long long)s.states,
           (unsigned long long)s.second_states, (unsigned long long)first,
           (unsigned long long)seed - 1);
    return report(&s);
}

unsigned
sweep_lies(const struct sweep_setup *setup, uint64_t seed, unsigned max)
{
    unsigned noticed = 0;

    for (unsigned n = 1; n <= max; n++) {
        struct sweep s = {.setup = setup, .crashes = true, .quiet = true};

        run_seed(&s, seed, n);
        noticed += report(&s) != 0;
    }
    return noticed;
}

/* One trouble at every place of a run; @ret_total: how many there are. */
static uint64_t
sweep_places(struct sweep *s, struct script *sc, const uint64_t *total)
{
    static const int codes[] = {EIO, ENOSPC};
    double end = seconds() + budget();
    uint64_t all = *total, runs = 0;

    /* Where the budget is short, a stride still spans all of them. */
    for (sc->at = 1; sc->at <= all && !s->failures; sc->at++) {
        if (seconds() > end) {
            sc->at += all / STRIDES;
        }
        for (size_t c = 0; c < ARRAY_LEN(codes) && !s->failures; c++) {
            sc->error = codes[c];
            sweep_run(s, sc);
            runs++;
            if (sc->trouble != TROUBLE_FAIL) {
                break;
            }
        }
    }
    return runs;
}

static unsigned
sweep_trouble(const struct sweep_setup *setup, uint64_t seed,
              enum trouble trouble)
{
    struct sweep s = {.setup = setup};
    struct script sc = sweep_script(setup, seed);
    const uint64_t *total = trouble == TROUBLE_FAIL     ? &s.n_io
                            : trouble == TROUBLE_SWITCH ? &s.n_switches
                                                        : &s.n_messages;
    const char *what = trouble == TROUBLE_FAIL     ? "with a failing I/O"
                       : trouble == TROUBLE_SWITCH ? "disturbed at a switch"
                                                   : "with links cut";

    sweep_run(&s, &sc);
    uint64_t all = *total, runs = 0;

    sc.trouble = trouble;
    if (!s.failures) {
        runs = sweep_places(&s, &sc, &all);
    }
    printf("# %s: %llu runs %s, of %llu places\n", setup->name,
           (unsigned long long)runs, what, (unsigned long long)all);
    script_fini(&sc);
    return report(&s);
}

unsigned
sweep_failures(const struct sweep_setup *setup, uint64_t seed)
{
    return sweep_trouble(setup, seed, TROUBLE_FAIL);
}

unsigned
sweep_failures_and_crashes(const struct sweep_setup *setup, uint64_t first)
{
    /* A script has one trouble: what fails here is not shrunk. */
    struct sweep s = {.setup = setup, .quiet = true, .max_states = 2};
    double end = seconds() + budget();
    uint64_t rng = first, runs = 0;

    do {
        struct script sc = sweep_script(setup, first + runs / STRIDES);

        if (runs % STRIDES == 0) {
            s.crashes = false;
            sweep_run(&s, &sc);
            s.crashes = true;
        }
        sc.trouble = TROUBLE_FAIL;
        sc.error = EIO;
        sc.at = 1 + sim_random(&rng) % s.n_io;
        if (!s.failures) {
            sweep_run(&s, &sc);
        }
        if (s.failures) {
            printf("# %s, seed %llu, I/O %llu fails, and then: %s\n",
                   setup->name, (unsigned long long)sc.seed,
                   (unsigned long long)sc.at, s.why);
        }
        script_fini(&sc);
        runs++;
    } while (seconds() < end && !s.failures);
    printf("# %s: %llu runs with a failing I/O, %llu crash states\n",
           setup->name, (unsigned long long)runs, (unsigned long long)s.states);
    return report(&s);
}

unsigned
sweep_switches(const struct sweep_setup *setup, uint64_t seed)
{
    return sweep_trouble(setup, seed, TROUBLE_SWITCH);
}

unsigned
sweep_cuts(const struct sweep_setup *setup, uint64_t seed)
{
    return sweep_trouble(setup, seed, TROUBLE_CUT);
}

unsigned
sweep_plain(const struct sweep_setup *setup, uint64_t first, unsigned runs)
{
    struct sweep s = {.setup = setup};
    double end = seconds() + budget();

    for (unsigned i = 0; i < runs && !s.failures && seconds() < end; i++) {
        run_seed(&s, first + i, 0);
    }
    return report(&s);
}

/* The whole file; NULL where it cannot be read. */
static char *
read_text(const char *path)
{
    enum { MAX = 1 << 20 };
    FILE *f = fopen(path, "r");

    if (!f) {
        return NULL;
    }
    char *text = xmalloc(MAX + 1);

    text[fread(text, 1, MAX, f)] = 0;
    fclose(f);
    return text;
}

unsigned
sweep_replay(const struct sweep_setup *setups, size_t n, const char *path)
{
    struct sweep s = {.verbose = true};
    auto_free char *text = read_text(path);
    struct script sc;

    if (!text || !script_parse(text, &sc)) {
        printf("# no script: %s\n", path);
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        if (!strcmp(setups[i].name, sc.setup)) {
            s.setup = &setups[i];
        }
    }
    if (!s.setup) {
        printf("# no setup here has the name '%s'\n", sc.setup);
        return 1;
    }
    /* Without a crash of its own it is judged at every one, unless troubled. */
    s.crashes = sc.trouble == TROUBLE_NONE;
    sweep_run(&s, &sc);
    unsigned failures = s.failures;

    printf("# %s\n", failures ? s.why : "the script passes");
    script_fini(&sc);
    sweep_fini(&s);
    return failures;
}
