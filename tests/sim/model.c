// SPDX-License-Identifier: BSD-3-Clause
/*
 * The model test's loop over seeds: see model.h.  A seed that fails is shrunk
 * and printed as the command that runs it again:
 *
 *   sim-model --seed N [--steps MASK] [--guests N] [--layers N]
 *
 * Everything that a world draws comes from its seed and a place of its own, so
 * a world with a step, a guest or a layer less is the same one otherwise.
 * MODEL_WORLDS says how many there are at least, however short SIM_BUDGET is.
 */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "drivers/drivers.h"
#include "sim/model.h"
#include "tap.h"

enum {
    WORLDS_MIN = 400, /* however short the time: the counts must be met */
    STEPS_MIN = 3,
    FIRST_SEED = 1,
};

#define ALL_STEPS ((1u << 2 * STEPS_MAX) - 1)
#define HANGS_NS (300 * NS_PER_S)

static uint64_t counts[16][OUTCOMES];
static struct plan running; /* for a crash */
static struct sim_spares *spares;

static double
seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
world_main(void *arg)
{
    struct world *w = arg;
    struct graph_options o = {.drivers = all_drivers};
    uint64_t rng = w->plan->seed * 31 + 5;
    unsigned steps = STEPS_MIN + sim_random(&rng) % (STEPS_MAX - STEPS_MIN + 1);

    w->graph = graph_new(sim_loop(w->sim), &o);
    w->jobs = jobs_new(sim_loop(w->sim), ops_on_event, w);
    waitq_init(&w->quiet);
    waitq_init(&w->go);
    world_open_chain(w);
    if (!w->failures) {
        world_start_guests(w);
    }
    for (unsigned i = 0; i < steps && !w->failures; i++) {
        if (w->plan->steps >> (2 * i) & 3) {
            ops_step(w, i, counts);
        }
    }
    w->stop = true;
    while (w->n_running) {
        waitq_wait(&w->quiet);
    }
    if (!w->failures) {
        world_settle(w);
    }
    if (!w->failures) {
        world_judge(w);
    }
    for (unsigned i = 0; i < w->n_roots; i++) {
        root_free(w->roots[i]);
    }
    jobs_free(w->jobs);
    graph_free(w->graph);
}

/* NULL, or why it fails, which the caller frees. */
static char *
run_world(const struct plan *plan, bool verbose)
{
    struct sim_disk *disk = sim_disk_new();
    struct sim_options o = {
        .seed = plan->seed, .spares = spares, .max_ns = HANGS_NS};
    struct world w = {.plan = plan,
                      .verbose = verbose,
                      .rng = plan->seed,
                      .spares = spares,
                      .next_tag = 1,
                      .oracle = oracle_new(SECTORS_MAX)};

    running = *plan;
    w.sim = sim_new(disk, &o);
    if (!loop_run_main(sim_loop(w.sim), world_main, &w)) {
        return w.why ? w.why : xstrdup("it hangs"); /* its world is lost */
    }
    sim_free(w.sim);
    w.sim = NULL;
    if (!w.failures) {
        world_judge_closed(&w, disk);
    }
    json_decref(w.head);
    sim_disk_free(disk);
    oracle_free(w.oracle);
    return w.why;
}

static void
print_plan(const struct plan *p)
{
    printf("# sim-model --seed %llu --steps %#x --guests %u --layers %u\n",
           (unsigned long long)p->seed, p->steps, p->guests, p->layers);
}

static bool
fails(const struct plan *p)
{
    char *why = run_world(p, false);

    free(why);
    return why != NULL;
}

/* Leaves out operations, guests, layers, as long as it fails in any way. */
static struct plan
shrink(struct plan p)
{
    bool any = true;

    while (any) {
        any = false;
        for (unsigned i = 0; i < 2 * STEPS_MAX + 2; i++) {
            struct plan q = p;

            if (i < 2 * STEPS_MAX) {
                q.steps &= ~(1u << i);
            } else if (i == 2 * STEPS_MAX) {
                q.guests -= q.guests > 0;
            } else {
                q.layers -= q.layers > 1;
            }
            if (memcmp(&p, &q, sizeof(p)) && fails(&q)) {
                p = q;
                any = true;
            }
        }
    }
    return p;
}

static const struct plan whole = {
    .steps = ALL_STEPS, .guests = GUESTS_MAX, .layers = LAYERS_MAX};

static void
random_worlds_read_as_their_model(void)
{
    const char *text = getenv("SIM_BUDGET");
    const char *first = getenv("MODEL_SEED");
    const char *worlds = getenv("MODEL_WORLDS");
    double start = seconds(), end = start + (text ? atof(text) : 2);
    uint64_t least = worlds ? strtoull(worlds, NULL, 10) : WORLDS_MIN;
    struct plan p = whole;
    uint64_t n = 0;

    p.seed = first ? strtoull(first, NULL, 10) : FIRST_SEED;
    for (; n < least || seconds() < end; n++, p.seed++) {
        auto_free char *why = run_world(&p, false);

        if (why) {
            printf("# seed %llu: %s\n", (unsigned long long)p.seed, why);
            struct plan small = shrink(p);
            auto_free char *still = run_world(&small, true);

            print_plan(&small);
            CHECK(!why && !still);
            return;
        }
    }
    printf("# %llu worlds, %.0f a second\n", (unsigned long long)n,
           (double)n / (seconds() - start));
}

static void
every_operation_ended_in_every_way(void)
{
    static const char *const names[] = {"completed", "cancelled", "refused"};

    for (unsigned k = 0; k < ops_kinds(); k++) {
        printf("# %-10s", ops_name(k));
        for (unsigned i = 0; i < OUTCOMES; i++) {
            if (ops_outcomes(k) & 1u << i) {
                printf(" %8llu %s", (unsigned long long)counts[k][i], names[i]);
            }
        }
        printf("\n");
        for (unsigned i = 0; i < OUTCOMES; i++) {
            CHECK(counts[k][i] || !(ops_outcomes(k) & 1u << i));
        }
    }
}

static struct plan one;

static void
the_world_passes(void)
{
    auto_free char *why = run_world(&one, true);

    CHECK_STR(why ? why : "", "");
}

/* An assertion of the program, or worse: which world was it? */
static void
on_crash(int signal)
{
    print_plan(&running);
    fflush(stdout);
    _exit(128 + signal);
}

int
main(int argc, char **argv)
{
    /* What nobody wrote must not look right by chance. */
    mallopt(M_PERTURB, 0xa5);
    spares = sim_spares_new();
    signal(SIGABRT, on_crash);
    signal(SIGSEGV, on_crash);
    one = whole;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t n = strtoull(argv[i + 1], NULL, 0);

        if (!strcmp(argv[i], "--seed")) {
            one.seed = n;
        } else if (!strcmp(argv[i], "--steps")) {
            one.steps = (uint32_t)n;
        } else if (!strcmp(argv[i], "--guests")) {
            one.guests = (unsigned)n;
        } else if (!strcmp(argv[i], "--layers")) {
            one.layers = (unsigned)n;
        }
    }
    if (argc > 1) {
        tap_run("the world passes", the_world_passes);
        return tap_done();
    }
    tap_run("random worlds read as their model",
            random_worlds_read_as_their_model);
    tap_run("every operation ended in every way",
            every_operation_ended_in_every_way);
    return tap_done();
}
