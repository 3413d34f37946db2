// SPDX-License-Identifier: BSD-3-Clause
/*
 * The governor: how many pieces a transfer may have in flight, so that the
 * guest hardly feels it (design §2).
 *
 * It compares the guest's mean latency over short windows with what it is
 * undisturbed, and the rate of a guest that is busy: what a request waits
 * before the daemon has seen it is in no latency.  What undisturbed means it
 * measures itself: about once a second the transfer stands still for one window
 * (a probe), and the best of the last few counts, but for the rate of a guest
 * that is as fast as ever and asks for less.  Well below twice the undisturbed
 * latency, and well above half the rate, the depth grows, else it falls.  A
 * depth below one means one piece at a time with a pause behind it, in
 * proportion; it never falls below GOVERNOR_DEPTH_MIN, so a busy guest never
 * stops a transfer.  Where no guest asks for anything the depth grows at once,
 * and nothing is probed.
 *
 * How far it may grow is measured, too: more in flight than the source and the
 * target can use costs memory and the CPU's cache, less than a long link holds
 * costs time.  So the limit doubles while that moves more bytes a
 * second, goes back where it does not, and tries again a second later.
 */
#ifndef SLUICE_TRANSFER_GOVERNOR_H
#define SLUICE_TRANSFER_GOVERNOR_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"

#define GOVERNOR_DEPTH_MAX 64.0
#define GOVERNOR_DEPTH_MIN 0.125

#define GOVERNOR_PROBES 4

struct governor_probe {
    uint64_t ns;
    double rate;
};

struct governor {
    double depth; /* what the guest allows */
    double limit; /* what still makes it faster */
    bool probing;           /* nothing may start */
    bool measuring;         /* and nothing is in flight any more */
    uint64_t quiet_ns;      /* the guest's latency undisturbed; 0: unknown */
    double quiet_rate;      /* its requests a ns; 0: too few to tell */
    struct governor_probe probes[GOVERNOR_PROBES]; /* the last ones */
    unsigned n_probes;      /* since the guest is there */
    uint64_t window_start_ns, window_end_ns, next_probe_ns;
    uint64_t pause_end_ns;  /* the piece of a depth below one is paid for */
    struct root_stats last;

    /* The climb of `limit`. */
    uint64_t climb_start_ns, climb_bytes, hold_until_ns;
    unsigned climb_pieces;
    double last_rate; /* bytes a ns, before the last step up */
    bool stepped_up;
};

void governor_init(struct governor *g);
/*
 * Takes the guests' statistics and sets the depth; @in_flight: pieces of the
 * transfer.  Does not yield.
 */
void governor_update(struct governor *g, uint64_t now_ns,
                     const struct root_stats *guests, unsigned in_flight);
/* A piece of @bytes has ended that took @ns. */
void governor_piece_done(struct governor *g, uint64_t now_ns, uint64_t ns,
                         uint64_t bytes);
/*
 * May another piece start beside @in_flight?  Else *ret_ns: when to ask, which
 * is later than now; NEVER: when one has ended.
 */
bool governor_allows(const struct governor *g, uint64_t now_ns,
                     unsigned in_flight, uint64_t *ret_ns);

#endif
