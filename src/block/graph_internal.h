// SPDX-License-Identifier: BSD-3-Clause
/* Shared by the block layer's own files only. */
#ifndef SLUICE_BLOCK_GRAPH_INTERNAL_H
#define SLUICE_BLOCK_GRAPH_INTERNAL_H

#include "block/node.h"
#include "block/throttle.h"
#include "journal/journal.h"

struct graph {
    struct loop *loop;
    const struct driver *const *drivers;
    char *backing_paths;
    char *folder;
    uint64_t chain_index_bytes;
    struct list nodes;
    struct list throttle_groups;
    unsigned next_name;
    bool ending; /* nothing is opened any more */
    json_t *done; /* jobs of earlier daemons that were at their ends */
    bool quiet;
    struct waitq parked;
    uint64_t park_gen; /* counts unparks, so that none is missed */
    struct journals journals;
};

struct root {
    struct list link; /* node->roots */
    struct node *node;
    struct graph *graph;
    enum claim claim;
    /* It stays while its node is inactive, and claims this again afterwards. */
    bool lasts;
    enum claim dormant; /* CLAIM_NONE while the node is active */
    char *owner;

    unsigned gates; /* closed so many times */
    bool closing;
    unsigned in_flight, waiting;
    struct waitq gate, idle;
    struct list throttled; /* requests that wait for a throttle */
    struct grace requests;
    bool writethrough;
    bool pinned; /* stays with its node when the others move on */
    const char *job_type; /* of one that is pinned; borrowed */
    struct root_stats stats;
    uint64_t held; /* requests that a closed gate made wait, in all */
};

/*
 * Puts an edge among its child's parents and takes it out: with its backing
 * role, what was composed of the chains through it is void.  No yield.
 */
void edge_link(struct edge *edge);
void edge_unlink(struct edge *edge);
/* The same for a root and its node. */
void root_link(struct root *root, struct node *node);
void root_unlink(struct root *root);
/*
 * Its node becomes inactive, so it claims nothing, and its requests fail with
 * -EPERM; or is active again: -EBUSY and so on where somebody stands against
 * what it claims.  No yield.
 */
void root_rest(struct root *root);
int root_wake(struct root *root, struct err *err);
/* Whether the holder of such a claim changes what others read. */
bool claim_writes(enum claim c);
/*
 * Whether two parents of a node cannot both have what they claim.  A sink and
 * the one backing edge above it can, which the caller looks after.
 */
bool claims_clash(enum claim a, enum claim b);
/* What a node claims of its file. */
enum claim file_claim(const struct node *node, bool read_only);
/* As claim_check(), of holders alone. */
int claim_check_holders(struct node *node, enum claim claim, const char *owner,
                        struct err *err);
/*
 * Finishes or takes back what an earlier daemon left beside the image.
 * -ESTALE where it is no longer the disk.  Yields.
 */
int node_recover(struct node *node, struct err *err);
/*
 * Makes what node_begins_inactive() inactive, with what was opened below it,
 * before anybody has seen it.  It yields.
 */
int chain_begin_inactive(struct node *top, struct err *err);
/* Also true for a node that is being opened or closed. */
bool graph_name_taken(struct graph *graph, const char *name);
/* For block/open.c: a node without a driver's state, with its reference. */
struct node *node_alloc(struct graph *graph, const char *name);
void node_dealloc(struct node *node);

#endif
