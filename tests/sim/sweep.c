// SPDX-License-Identifier: BSD-3-Clause
#include "sim/qemu.h"
#include "sim/sweep.h"
#include "transfer/job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"

enum { SECTOR = 512, STEP_MAX = 24, STRIDES = 50, STATES_OF_A_SEED = 500 };

double
sweep_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* What SIM_BUDGET and SIM_STATES are shared by, and what was judged so far. */
enum { FULL_SHARE_SETUPS = 8 };

static size_t n_setups = 1;
static struct sweep_totals totals;

void
sweep_share_budget(size_t n)
{
    n_setups = n;
}

struct sweep_totals
sweep_totals(void)
{
    return totals;
}

static uint64_t
number_from_env(const char *name)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : 0;
}

uint64_t
sweep_states_wanted(void)
{
    return number_from_env("SIM_STATES");
}

uint64_t
sweep_sample_wanted(void)
{
    return number_from_env("SIM_QEMU");
}

/* In seconds, for one sweep over one setup. */
static double
budget(void)
{
    const char *text = getenv("SIM_BUDGET");
    double full = text ? atof(text) : 2;

    return n_setups > FULL_SHARE_SETUPS
               ? full * FULL_SHARE_SETUPS / (double)n_setups
               : full;
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
        struct script small =
            s->judged_by_qemu ? script_copy(&s->found) : sweep_shrink(s);

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

static void
count(const struct sweep *s)
{
    totals.states += s->states;
    totals.second_states += s->second_states;
    totals.by_qemu += s->sample.taken;
}

/* Spread over @n states, or as many as one seed has at least. */
static struct sample
sample_of(const struct sweep_setup *setup, uint64_t n)
{
    uint64_t wanted = qemu_can_judge(setup)
                          ? div_up(sweep_sample_wanted(), n_setups)
                          : 0;

    return (struct sample){
        .wanted = wanted,
        .stride = wanted ? max_u64(max_u64(n, STATES_OF_A_SEED) / wanted, 1)
                         : 0,
        .next = 1};
}

unsigned
sweep_crashes(const struct sweep_setup *setup, uint64_t first)
{
    struct sweep s = {.setup = setup, .crashes = true};
    double end = sweep_seconds() + budget();
    uint64_t seed = first, least = div_up(sweep_states_wanted(), n_setups);

    s.sample = sample_of(setup, least);
    do {
        run_seed(&s, seed++, 0);
    } while ((sweep_seconds() - s.sample.seconds < end ||
              s.states + s.second_states < least) &&
             !s.failures);
    count(&s);
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

/* Where it comes, each of the kinds it comes in; returns the runs. */
static uint64_t
sweep_place(struct sweep *s, struct script *sc)
{
    static const int codes[] = {EIO, ENOSPC};
    size_t kinds = sc->trouble == TROUBLE_FAIL ? ARRAY_LEN(codes) : 1;
    uint64_t runs = 0;

    while (runs < kinds && !s->failures) {
        sc->error = codes[runs++];
        sweep_run(s, sc);
    }
    return runs;
}

/* One trouble at every place of a seed's run; returns the runs. */
static uint64_t
sweep_places(struct sweep *s, uint64_t seed, enum trouble trouble, double end)
{
    struct script sc = sweep_script(s->setup, seed);
    uint64_t runs = 0;

    sweep_run(s, &sc);
    uint64_t all = trouble == TROUBLE_FAIL     ? s->n_io
                   : trouble == TROUBLE_SWITCH ? s->n_switches
                                               : s->n_messages;

    sc.trouble = trouble;
    /* Where the budget is short, a stride still spans all of them. */
    for (sc.at = 1; sc.at <= all && !s->failures; sc.at++) {
        if (sweep_seconds() > end) {
            sc.at += all / STRIDES;
        }
        runs += sweep_place(s, &sc);
    }
    script_fini(&sc);
    return runs;
}

static unsigned
sweep_trouble(const struct sweep_setup *setup, uint64_t first,
              enum trouble trouble)
{
    struct sweep s = {.setup = setup};
    const char *what = trouble == TROUBLE_FAIL     ? "with a failing I/O"
                       : trouble == TROUBLE_SWITCH ? "disturbed at a switch"
                                                   : "with links cut";
    double end = sweep_seconds() + budget();
    uint64_t runs = 0, seed = first;

    do {
        runs += sweep_places(&s, seed++, trouble, end);
    } while (sweep_seconds() < end && !s.failures);
    printf("# %s: %llu runs %s, seeds %llu to %llu\n", setup->name,
           (unsigned long long)runs, what, (unsigned long long)first,
           (unsigned long long)seed - 1);
    return report(&s);
}

unsigned
sweep_failures(const struct sweep_setup *setup, uint64_t first)
{
    return sweep_trouble(setup, first, TROUBLE_FAIL);
}

unsigned
sweep_failures_and_crashes(const struct sweep_setup *setup, uint64_t first)
{
    /* A script has one trouble: what fails here is not shrunk. */
    struct sweep s = {.setup = setup, .quiet = true, .max_states = 2};
    double end = sweep_seconds() + budget();
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
    } while (sweep_seconds() < end && !s.failures);
    count(&s);
    printf("# %s: %llu runs with a failing I/O, %llu crash states\n",
           setup->name, (unsigned long long)runs, (unsigned long long)s.states);
    return report(&s);
}

unsigned
sweep_switches(const struct sweep_setup *setup, uint64_t first)
{
    return sweep_trouble(setup, first, TROUBLE_SWITCH);
}

unsigned
sweep_cuts(const struct sweep_setup *setup, uint64_t first)
{
    return sweep_trouble(setup, first, TROUBLE_CUT);
}

unsigned
sweep_plain(const struct sweep_setup *setup, uint64_t first, unsigned runs)
{
    struct sweep s = {.setup = setup};
    double end = sweep_seconds() + budget();

    for (unsigned i = 0; i < runs && !s.failures; i++) {
        if (i && sweep_seconds() >= end) {
            break;
        }
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
    s.sample.every = !s.crashes && qemu_can_judge(s.setup);
    sweep_run(&s, &sc);
    unsigned failures = s.failures;

    printf("# %s\n", failures ? s.why : "the script passes");
    script_fini(&sc);
    sweep_fini(&s);
    return failures;
}
