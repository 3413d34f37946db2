// SPDX-License-Identifier: BSD-3-Clause
/*
 * Grace periods: "wait until everyone who may have seen the old state is
 * gone".  Whoever looks something up and uses it enters first and leaves
 * afterwards; whoever changed it waits for a grace period before the old thing
 * is reused (a freed cluster) or closed (a dropped backing file).
 */
#ifndef SLUICE_BLOCK_GRACE_H
#define SLUICE_BLOCK_GRACE_H

#include "run/wait.h"

struct grace {
    unsigned phase;    /* new entrants count here */
    unsigned count[2]; /* inside, by the phase in which they entered */
    struct waitq empty;
    struct comutex flip;
};

void grace_init(struct grace *g);

/* Does not yield; the token goes to grace_leave(). */
static inline unsigned
grace_enter(struct grace *g)
{
    g->count[g->phase]++;
    return g->phase;
}

static inline void
grace_leave(struct grace *g, unsigned token)
{
    if (--g->count[token] == 0 && !waitq_idle(&g->empty)) {
        waitq_wake_all(&g->empty);
    }
}

/* Yields until all who were inside when it was called have left. */
void grace_wait(struct grace *g);

#endif
