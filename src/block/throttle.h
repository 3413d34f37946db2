// SPDX-License-Identifier: BSD-3-Clause
/*
 * Throttle groups: limits that the nodes of the driver `throttle` share.
 *
 * A guest's request waits for its throttles *outside*, before the gate of its
 * root: it holds nothing and is not in flight, so no drain, cancel or `quit`
 * waits for it.  That works where filters alone stand between the root and the
 * throttle.  A request that comes to a throttle deeper in the graph, or from a
 * job, waits in place, and goes on without its turn where somebody drains.
 */
#ifndef SLUICE_BLOCK_THROTTLE_H
#define SLUICE_BLOCK_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"

struct coro;
struct graph;
struct node;
struct root;
struct throttle_group;

/* What is limited; QEMU's order. */
enum throttle_kind {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_KINDS,
};

/* Signed, since an operator can say anything; checked by the functions. */
struct throttle_limit {
    int64_t avg;    /* units a second; 0: no limit */
    int64_t max;    /* units a second in a burst; 0: a tenth of a second */
    int64_t length; /* seconds that such a burst may last */
};

struct throttle_limits {
    struct throttle_limit kind[THROTTLE_KINDS];
    int64_t iops_size; /* a larger request counts as several; 0: as one */
};

/* No limit at all. */
void throttle_limits_init(struct throttle_limits *limits);

/* -EINVAL with QEMU's text where the limits make no sense.  No yield. */
int throttle_group_new(struct graph *graph, const char *name,
                       const struct throttle_limits *limits, struct err *err);
/* NULL where there is none. */
struct throttle_group *throttle_group_find(struct graph *graph,
                                           const char *name);
/* -EBUSY where a node uses it.  Does not yield. */
int throttle_group_del(struct throttle_group *group, struct err *err);
/* Holds at once, also for those that wait.  Does not yield. */
int throttle_group_set(struct throttle_group *group,
                       const struct throttle_limits *limits, struct err *err);
void throttle_group_get(const struct throttle_group *group,
                        struct throttle_limits *ret);

/* At the graph's end, when no node is left. */
void throttle_groups_free(struct graph *graph);

/* For the driver. */

/* Puts @node into the group @name; -ENOENT where there is none.  No yield. */
int throttle_join(struct node *node, const char *name, struct err *err);
void throttle_leave(struct node *node); /* does not yield */
/*
 * For a request that came to @node: returns once it may go on.  Yields, unless
 * it has its turn already.
 */
void throttle_take(struct node *node, bool is_write, uint64_t bytes);
/* The driver's let_go: whoever waits in place goes on.  Does not yield. */
void throttle_let_go(struct node *node, bool all);

/* For block/root.c. */

enum { THROTTLES_OUTSIDE = 4 }; /* further ones down are waited for in place */

/* A request's leave to pass the throttles that its root begins with. */
struct throttle_pass {
    unsigned n;
    struct throttle_stamp {
        struct list link; /* the member's */
        struct coro *co;
        struct node *node; /* referred to */
    } at[THROTTLES_OUTSIDE];
};

/*
 * Waits for them.  False, with nothing taken, where the root is being freed.
 * Does not yield where there are none.
 */
bool throttle_enter(struct root *root, struct throttle_pass *pass,
                    bool is_write, uint64_t bytes);
void throttle_exit(struct throttle_pass *pass); /* may close a node: yields */
/* Those that wait at the root leave; does not yield. */
void throttle_forget_root(struct root *root);

#endif
