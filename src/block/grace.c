// SPDX-License-Identifier: BSD-3-Clause
/*
 * Two counters: a waiter turns the phase, so that newcomers count elsewhere,
 * and waits until the old counter is zero.  One waiter at a time turns it.
 */
#include "block/grace.h"

void
grace_init(struct grace *g)
{
    *g = (struct grace){0};
    waitq_init(&g->empty);
    comutex_init(&g->flip);
}

void
grace_wait(struct grace *g)
{
    comutex_lock(&g->flip);
    unsigned old = g->phase;

    g->phase = !old;
    while (g->count[old]) {
        waitq_wait(&g->empty);
    }
    comutex_unlock(&g->flip);
}
