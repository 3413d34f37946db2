// SPDX-License-Identifier: BSD-3-Clause
/*
 * The governor: how many pieces a transfer may have in flight, so that the
 * guest hardly feels it (design §2).
 *
 * It looks at the guest's mean latency over short windows.  Without a guest's
 * request in a window the depth grows at once; with some, it halves when the
 * latency is well above the best that was seen lately, and grows by one when
 * it is not.  It never falls below one: a busy guest never stops a transfer.
 */
#ifndef SLUICE_TRANSFER_GOVERNOR_H
#define SLUICE_TRANSFER_GOVERNOR_H

#include <stdint.h>

#include "block/block.h"

enum { GOVERNOR_DEPTH_MAX = 16 };

struct governor {
    unsigned depth;
    uint64_t window_end_ns;
    uint64_t best_ns; /* the guest's latency when it was well; 0: unknown */
    struct root_stats last;
};

void governor_init(struct governor *g);
/* Takes the guests' statistics and sets the depth.  Does not yield. */
void governor_update(struct governor *g, uint64_t now_ns,
                     const struct root_stats *guests);

#endif
