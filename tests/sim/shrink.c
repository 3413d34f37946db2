// SPDX-License-Identifier: BSD-3-Clause
/*
 * Shrinking: makes a failing script smaller as long as it fails, in rounds
 * until one brings nothing.  A round tries to
 *
 *   leave out the operation, a fill of the images,
 *   have one guest do everything,
 *   drop steps, in halves, quarters, ... and one by one,
 *   shorten ranges;
 *
 * then, once, to do without the random order and to lose fewer changes in the
 * crash.
 *
 * Any failure counts, also another one than the first.  Since a smaller script
 * moves its events, the place of the trouble is looked for anew: all crash
 * states are judged, and the other kinds are tried at each of their places; and
 * since it moves the order of things, a few seeds are.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "sim/sweep.h"

enum {
    WORK_MAX = 100000, /* judged states and runs, in all */
    RUN_COST = 4,
    PLACES_MAX = 400, /* looked at for one candidate */
    SEEDS = 6,        /* tried for one candidate */
    FEW_STATES = 6,   /* per event, where these show the failure, too */
};

struct shrink {
    struct sweep *s;
    struct script best;
    uint64_t work;
};

static bool
is_crash(const struct script *sc)
{
    return sc->trouble == TROUBLE_KILL || sc->trouble == TROUBLE_POWER;
}

/* Runs it once; true where it fails, and is the best one now. */
static bool
try_once(struct shrink *sh, const struct script *sc, bool crashes)
{
    struct sweep *s = sh->s;
    uint64_t before = s->states;

    s->crashes = crashes;
    sweep_run(s, sc);
    sh->work += RUN_COST + s->states - before;
    if (!s->failures) {
        return false;
    }
    script_fini(&sh->best);
    sh->best = script_copy(&s->found);
    return true;
}

static bool
try_places(struct shrink *sh, struct script *sc)
{
    const struct sweep *s = sh->s;
    const uint64_t *total = sc->trouble == TROUBLE_FAIL     ? &s->n_io
                            : sc->trouble == TROUBLE_SWITCH ? &s->n_switches
                                                            : &s->n_messages;
    uint64_t was = sc->at, max;
    enum trouble trouble = sc->trouble;

    if (try_once(sh, sc, false)) {
        return true;
    }
    sc->trouble = TROUBLE_NONE; /* how many places are there? */
    if (try_once(sh, sc, false)) {
        return true;
    }
    sc->trouble = trouble;
    max = min_u64(*total, PLACES_MAX);
    for (sc->at = 1; sc->at <= max && sh->work < WORK_MAX; sc->at++) {
        if (sc->at != was && try_once(sh, sc, false)) {
            return true;
        }
    }
    return false;
}

/* Takes @sc over. */
static bool
try_script(struct shrink *sh, struct script sc)
{
    bool crashes = is_crash(&sc) || sc.lie;
    bool fails = false;

    if (is_crash(&sc)) {
        sc.trouble = TROUBLE_NONE;
    }
    if (sc.trouble != TROUBLE_NONE) {
        fails = sh->work < WORK_MAX && try_places(sh, &sc);
    } else {
        for (int i = 0; i < SEEDS && !fails && sh->work < WORK_MAX; i++) {
            fails = try_once(sh, &sc, crashes);
            sc.seed++;
        }
    }
    script_fini(&sc);
    return fails;
}

static bool
try_flags(struct shrink *sh)
{
    bool any = false;
    struct script sc = script_copy(&sh->best);

    sc.alone = true;
    if (sh->s->setup->operation && !sh->best.alone) {
        any |= try_script(sh, sc);
    } else {
        script_fini(&sc);
    }
    if (script_guests(&sh->best) > 1) {
        sc = script_copy(&sh->best);
        for (unsigned i = 0; i < sc.n_steps; i++) {
            sc.steps[i].guest = 0;
        }
        any |= try_script(sh, sc);
    }
    return any;
}

/* Drops each line that only puts data into an image. */
static bool
try_fills(struct shrink *sh)
{
    bool any = false;

    for (size_t at = 0; sh->best.image[at];) {
        size_t len = strcspn(sh->best.image + at, "\n");
        size_t next = at + len + (sh->best.image[at + len] == '\n');

        if (!strncmp(sh->best.image + at, "fill ", 5)) {
            struct script sc = script_copy(&sh->best);

            memmove(sc.image + at, sc.image + next,
                    strlen(sc.image + next) + 1);
            if (try_script(sh, sc)) {
                any = true;
                continue;
            }
        }
        at = next;
    }
    return any;
}

static bool
try_drops(struct shrink *sh)
{
    bool any = false;

    for (unsigned n = max_u64(sh->best.n_steps / 2, 1); n; n /= 2) {
        for (unsigned at = 0; at < sh->best.n_steps;) {
            struct script sc = script_copy(&sh->best);
            unsigned end = (unsigned)min_u64(at + n, sc.n_steps);

            memmove(sc.steps + at, sc.steps + end,
                    (sc.n_steps - end) * sizeof(*sc.steps));
            sc.n_steps -= end - at;
            if (try_script(sh, sc)) {
                any = true;
            } else {
                at += n;
            }
        }
    }
    return any;
}

/* The first half, the second half, all but the first or the last sector. */
static bool
try_range(struct shrink *sh, unsigned i)
{
    const struct step st = sh->best.steps[i];
    uint64_t half = st.n / 2;
    const struct step tries[] = {
        {st.guest, st.op, st.sector, half},
        {st.guest, st.op, st.sector + half, st.n - half},
        {st.guest, st.op, st.sector, st.n - 1},
        {st.guest, st.op, st.sector + 1, st.n - 1},
    };

    for (size_t t = 0; t < ARRAY_LEN(tries); t++) {
        struct script sc = script_copy(&sh->best);

        sc.steps[i] = tries[t];
        if (try_script(sh, sc)) {
            return true;
        }
    }
    return false;
}

static bool
try_ranges(struct shrink *sh)
{
    bool any = false;

    for (unsigned i = 0; i < sh->best.n_steps; i++) {
        while (sh->best.steps[i].op != STEP_FLUSH && sh->best.steps[i].n > 1 &&
               try_range(sh, i)) {
            any = true;
        }
    }
    return any;
}

/* Keeps what need not be lost. */
static void
try_fates(struct shrink *sh)
{
    for (size_t i = 0; sh->best.fates[i]; i++) {
        static const char better[] = {SIM_KEPT, SIM_LOST};

        for (size_t b = 0;
             b < ARRAY_LEN(better) && sh->best.fates[i] != better[b]; b++) {
            struct script sc = script_copy(&sh->best);
            bool fails;

            sc.fates[i] = better[b];
            fails = try_once(sh, &sc, false);
            script_fini(&sc);
            if (fails) {
                break;
            }
        }
    }
}

struct script
sweep_shrink(struct sweep *s)
{
    struct shrink sh = {.s = s, .best = script_copy(&s->found)};
    bool any = true;

    s->max_states = FEW_STATES;
    if (is_crash(&sh.best) && !try_script(&sh, script_copy(&sh.best))) {
        s->max_states = 0;
    }
    while (any && sh.work < WORK_MAX) {
        any = try_drops(&sh);
        any |= try_flags(&sh);
        any |= try_fills(&sh);
        any |= try_ranges(&sh);
    }
    if (!sh.best.calm) {
        struct script sc = script_copy(&sh.best);

        sc.calm = true;
        try_script(&sh, sc);
    }
    if (sh.best.trouble == TROUBLE_POWER) {
        try_fates(&sh);
    }
    s->max_states = 0;
    return sh.best;
}
