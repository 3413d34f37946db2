// SPDX-License-Identifier: BSD-3-Clause
/*
 * Standing still: the gates of all roots that reach some nodes are closed, and
 * what is in flight through them is over.  For the block layer's own files.
 */
#ifndef SLUICE_BLOCK_QUIESCE_H
#define SLUICE_BLOCK_QUIESCE_H

#include "block/graph_internal.h"

struct quiesce {
    /* Each node that was added before those above it; referred to. */
    struct node **nodes;
    struct root **roots; /* kept alive */
    unsigned n_nodes, n_roots;
    unsigned n_closed; /* the first so many roots have their gates closed */
};

void quiesce_init(struct quiesce *q);
/* The node, all above it, and their roots.  Does not yield. */
void quiesce_add(struct quiesce *q, struct node *node);
/*
 * Closes the gates and waits for what is in flight, also of roots that come
 * meanwhile.  -ETIMEDOUT, with the gates closed, where that did not end by
 * @deadline_ns.  Yields.
 */
int quiesce_close(struct quiesce *q, uint64_t deadline_ns, struct err *err);
/* Opens the gates that were closed.  Does not yield. */
void quiesce_open(struct quiesce *q);
/* Requests that a closed gate has ever made wait at one of the roots. */
uint64_t quiesce_held(const struct quiesce *q);
/* Lets go of all; yields where that closes a node. */
void quiesce_fini(struct quiesce *q);

#endif
