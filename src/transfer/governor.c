// SPDX-License-Identifier: BSD-3-Clause
/* See governor.h.  Times are in ns. */
#include "transfer/governor.h"

#include "base/bytes.h"
#include "run/loop.h"

enum {
    START_DEPTH = 8,
    WINDOW_MS = 20,
    TOLERANCE = 2,      /* times the best latency */
    FORGET_SHIFT = 7,   /* the best latency rises by 1/128 a window */
};

void
governor_init(struct governor *g)
{
    *g = (struct governor){.depth = START_DEPTH};
}

void
governor_update(struct governor *g, uint64_t now_ns,
                const struct root_stats *guests)
{
    if (now_ns < g->window_end_ns) {
        return;
    }
    uint64_t n = guests->requests - g->last.requests;
    uint64_t busy = guests->busy_ns - g->last.busy_ns;

    g->window_end_ns = now_ns + WINDOW_MS * NS_PER_MS;
    /* A root that went away takes its counts with it: begin anew. */
    bool valid = guests->requests >= g->last.requests;

    g->last = *guests;
    if (!n || !valid) {
        g->depth = (unsigned)min_u64(g->depth * 2ULL, GOVERNOR_DEPTH_MAX);
        return;
    }
    uint64_t mean = busy / n;

    if (!g->best_ns || mean < g->best_ns) {
        g->best_ns = mean;
    } else {
        g->best_ns += g->best_ns >> FORGET_SHIFT;
    }
    if (mean > TOLERANCE * g->best_ns) {
        g->depth = (unsigned)max_u64(g->depth / 2, 1);
    } else if (g->depth < GOVERNOR_DEPTH_MAX) {
        g->depth++;
    }
}
