// SPDX-License-Identifier: BSD-3-Clause
/*
 * Graph transactions: the only place where the graph of open disks is changed
 * under them.
 *
 *   close the gates of the roots that reach the change
 *     -> wait for their requests in flight, with a deadline
 *     -> swap: no I/O; checks every claim; undone as a whole where one is
 *        refused
 *   -> open the gates -> let go of what was replaced
 *
 * No fsync and no open happens while gates are closed: whoever edits has
 * opened the new nodes and written the headers before.  A swap between nodes
 * that read and write alike closes no gate; what was replaced then lives until
 * the requests in flight at the swap are over.
 */
#ifndef SLUICE_BLOCK_EDIT_H
#define SLUICE_BLOCK_EDIT_H

#include "block/node.h"

enum edit_kind {
    EDIT_BACKING, /* @node's backing file becomes @to (NULL: none) */
    EDIT_REPLACE, /* roots and parents of @node, other than @to, go to @to */
    EDIT_NOTHING, /* @node is only quiesced; @to is NULL */
};

struct edit {
    enum edit_kind kind;
    struct node *node, *to;
};

struct edit_options {
    bool alike;           /* both sides read and write the same: no gate */
    uint64_t deadline_ns; /* for the requests in flight; NEVER: none */
    /*
     * Asked when nothing is in flight any more, right before the swap; an
     * error calls it off and is returned.  Must not yield; NULL: not asked.
     */
    int (*check)(void *arg);
    void *arg;
};

struct edit_report {
    uint64_t pause_ns; /* how long gates were closed */
    uint64_t held;     /* requests that came while they were */
};

/*
 * Does all edits, in order, or none.  -ETIMEDOUT where the requests in flight
 * did not end in time, -EBUSY where a claim stands against it or a node that is
 * to be replaced is being resized, -ELOOP where a node would be below itself.
 * @report may be NULL.  Yields.
 */
int graph_edit(struct graph *graph, const struct edit *edits, unsigned n,
               const struct edit_options *options, struct edit_report *report,
               struct err *err);

/*
 * -ELOOP where @to stands on something that stands on @node, so that it cannot
 * take its place.  Does not yield.
 */
int check_no_loop(const struct node *node, const struct node *to,
                  struct err *err);

#endif
