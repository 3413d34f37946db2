// SPDX-License-Identifier: BSD-3-Clause
/* See governor.h.  Times are in ns. */
#include "transfer/governor.h"

#include "base/bytes.h"
#include "run/loop.h"

enum {
    START_DEPTH = 4,
    WINDOW_MS = 10,
    PROBE_EVERY_MS = 1000,
    CLIMB_WINDOW_MS = 50, /* and two pieces for each in flight */
    CLIMB_HOLD_MS = 1000,
};

/* Half of the undisturbed rate is promised, which is twice the latency; a
 * window is slower by chance, too. */
#define TOLERANCE 1.85
#define SLACK_NS 20000 /* a latency that nobody feels */
#define TELLING 32     /* requests of a window whose rate says something */
#define GROWTH 1.15
#define CUT 0.7
#define PAUSE_MAX (100 * NS_PER_MS)
#define PROBE_MAX (200 * NS_PER_MS)
#define STEP 2.0
#define GAIN 1.05 /* what a step up must bring to stay */
#define LIMIT_MIN 2.0

void
governor_init(struct governor *g)
{
    *g = (struct governor){.depth = START_DEPTH, .limit = START_DEPTH};
}

static void
begin_window(struct governor *g, uint64_t now, const struct root_stats *guests)
{
    g->last = *guests;
    g->window_start_ns = now;
    g->window_end_ns = now + WINDOW_MS * NS_PER_MS;
}

/* A guest's requests of a window: how many ended, their mean time. */
struct seen {
    uint64_t n, mean_ns;
    double rate;
};

static bool
is_disturbed(const struct governor *g, const struct seen *s)
{
    return (double)s->mean_ns > TOLERANCE * (double)g->quiet_ns + SLACK_NS ||
           s->rate * TOLERANCE < g->quiet_rate;
}

/*
 * What the transfer wrote is still on its way to the disk while nothing is in
 * flight, so that a probe can find the guest slower than it is undisturbed, but
 * never faster: the best of the last ones counts.  Its rate is not only that: it
 * can ask for less.
 */
static void
take_probe(struct governor *g, const struct seen *s)
{
    double rate = s->n >= TELLING ? s->rate : 0;

    if (!g->quiet_ns) {
        g->n_probes = 0;
    }
    g->probes[g->n_probes++ % GOVERNOR_PROBES] =
        (struct governor_probe){.ns = s->mean_ns, .rate = rate};
    unsigned n = (unsigned)min_u64(g->n_probes, GOVERNOR_PROBES);

    g->quiet_ns = s->mean_ns;
    g->quiet_rate = 0;
    for (unsigned i = 0; i < n; i++) {
        g->quiet_ns = min_u64(g->quiet_ns, g->probes[i].ns);
    }
    /* As fast as ever: then its rate is the guest's own wish. */
    bool undisturbed = s->mean_ns <= g->quiet_ns * 5 / 4;

    for (unsigned i = 0; i < n; i++) {
        if (undisturbed) {
            g->probes[i].rate = rate;
        }
        g->quiet_rate = g->probes[i].rate > g->quiet_rate ? g->probes[i].rate
                                                          : g->quiet_rate;
    }
}

static void
judge(struct governor *g, uint64_t now, const struct seen *s)
{
    if (g->probing) {
        take_probe(g, s);
        g->probing = g->measuring = false;
        g->next_probe_ns = now + PROBE_EVERY_MS * NS_PER_MS;
    } else if (!g->quiet_ns || now >= g->next_probe_ns) {
        g->probing = true;
    } else if (is_disturbed(g, s)) {
        g->depth = g->depth * CUT > GOVERNOR_DEPTH_MIN ? g->depth * CUT
                                                       : GOVERNOR_DEPTH_MIN;
    } else {
        g->depth = g->depth * GROWTH < GOVERNOR_DEPTH_MAX ? g->depth * GROWTH
                                                          : GOVERNOR_DEPTH_MAX;
    }
}

void
governor_update(struct governor *g, uint64_t now,
                const struct root_stats *guests, unsigned in_flight)
{
    if (g->probing && !g->measuring && !in_flight) {
        g->measuring = true;
        begin_window(g, now, guests);
        return;
    }
    if (now < g->window_end_ns || (g->probing && !g->measuring)) {
        return;
    }
    uint64_t ns = now - g->window_start_ns;
    struct seen seen = {.n = guests->requests - g->last.requests};

    /* A root that went away takes its counts with it: begin anew. */
    if (guests->requests < g->last.requests) {
        seen.n = 0;
    }
    if (seen.n) {
        seen.mean_ns = (guests->busy_ns - g->last.busy_ns) / seen.n;
        seen.rate = (double)seen.n / (double)ns;
        judge(g, now, &seen);
    } else if (guests->in_flight) {
        /* None of its requests has ended: it is slow, not away. */
        seen.mean_ns = ns;
        if (g->probing ? ns < PROBE_MAX
                       : (double)ns < TOLERANCE * (double)g->quiet_ns) {
            return;
        }
        judge(g, now, &seen);
    } else {
        /* Nobody is there to be disturbed. */
        g->probing = g->measuring = false;
        g->quiet_ns = 0;
        g->depth = g->depth * 2 < GOVERNOR_DEPTH_MAX ? g->depth * 2
                                                     : GOVERNOR_DEPTH_MAX;
    }
    begin_window(g, now, guests);
}

static void
climb(struct governor *g, uint64_t now)
{
    double rate = (double)g->climb_bytes / (double)(now - g->climb_start_ns);
    bool better = rate > GAIN * g->last_rate;

    if (g->stepped_up && !better) {
        g->limit = g->limit / STEP > LIMIT_MIN ? g->limit / STEP : LIMIT_MIN;
        g->stepped_up = false;
        g->hold_until_ns = now + CLIMB_HOLD_MS * NS_PER_MS;
    } else if (now >= g->hold_until_ns) {
        g->limit = g->limit * STEP < GOVERNOR_DEPTH_MAX ? g->limit * STEP
                                                        : GOVERNOR_DEPTH_MAX;
        g->stepped_up = true;
        g->last_rate = rate;
    }
}

void
governor_piece_done(struct governor *g, uint64_t now, uint64_t ns,
                    uint64_t bytes)
{
    g->climb_bytes += bytes;
    g->climb_pieces++;
    /* Only what was bound by the limit says something about it. */
    if (!g->climb_start_ns || g->depth < g->limit) {
        g->climb_start_ns = now;
        g->climb_bytes = g->climb_pieces = 0;
    } else if (now - g->climb_start_ns >= CLIMB_WINDOW_MS * NS_PER_MS &&
               g->climb_pieces >= 2 * g->limit) {
        climb(g, now);
        g->climb_start_ns = now;
        g->climb_bytes = g->climb_pieces = 0;
    }
    if (g->depth < 1) {
        uint64_t pause = (uint64_t)((double)ns * (1 / g->depth - 1));

        g->pause_end_ns = now + min_u64(pause, PAUSE_MAX);
    }
}

bool
governor_allows(const struct governor *g, uint64_t now, unsigned in_flight,
                uint64_t *ret_ns)
{
    /* A window outlasts its end where a guest's request has not ended. */
    uint64_t soon = now + NS_PER_MS;

    if (g->probing) {
        *ret_ns = g->measuring ? max_u64(g->window_end_ns, soon) : soon;
        return false;
    }
    if (g->depth < 1 && now < g->pause_end_ns) {
        *ret_ns = min_u64(g->pause_end_ns, max_u64(g->window_end_ns, soon));
        return false;
    }
    *ret_ns = NEVER;
    return !in_flight || (in_flight + 1 <= (unsigned)g->depth &&
                          in_flight + 1 <= (unsigned)g->limit);
}
