// SPDX-License-Identifier: BSD-3-Clause
/*
 * The list of nodes grows upwards, in breadth, while it is walked.  It is
 * walked anew after each wait, since roots may have come meanwhile.
 */
#include "block/quiesce.h"

#include <errno.h>

void
quiesce_init(struct quiesce *q)
{
    *q = (struct quiesce){0};
}

static void
add_node(struct quiesce *q, struct node *node)
{
    for (unsigned i = 0; i < q->n_nodes; i++) {
        if (q->nodes[i] == node) {
            return;
        }
    }
    q->nodes = xrealloc(q->nodes, (q->n_nodes + 1) * sizeof(struct node *));
    q->nodes[q->n_nodes++] = node_ref(node);
}

static void
add_root(struct quiesce *q, struct root *root)
{
    for (unsigned i = 0; i < q->n_roots; i++) {
        if (q->roots[i] == root) {
            return;
        }
    }
    q->roots = xrealloc(q->roots, (q->n_roots + 1) * sizeof(struct root *));
    q->roots[q->n_roots++] = root;
    root->waiting++;
}

/* What is above the nodes that are there. */
static void
look_up(struct quiesce *q)
{
    for (unsigned i = 0; i < q->n_nodes; i++) {
        list_for_each(it, &q->nodes[i]->parents)
        {
            add_node(q, container_of(it, struct edge, link)->parent);
        }
        list_for_each(it, &q->nodes[i]->roots)
        {
            add_root(q, container_of(it, struct root, link));
        }
    }
}

void
quiesce_add(struct quiesce *q, struct node *node)
{
    add_node(q, node);
    look_up(q);
}

static bool
drain(struct quiesce *q, unsigned from, uint64_t deadline_ns)
{
    for (unsigned i = from; i < q->n_closed; i++) {
        struct root *root = q->roots[i];

        while (root->in_flight) {
            if (!waitq_wait_until(&root->idle, deadline_ns) &&
                root->in_flight) {
                return false;
            }
        }
    }
    return true;
}

int
quiesce_close(struct quiesce *q, uint64_t deadline_ns, struct err *err)
{
    while (q->n_closed < q->n_roots) {
        unsigned from = q->n_closed;

        while (q->n_closed < q->n_roots) {
            q->roots[q->n_closed++]->gates++;
        }
        if (!drain(q, from, deadline_ns)) {
            int r = err_set(err, -ETIMEDOUT,
                            "Requests in flight on node '%s' did not end in "
                            "time",
                            q->nodes[0]->name);

            err_hint(err, "its backend may hang; nothing was changed");
            return r;
        }
        look_up(q);
    }
    return 0;
}

void
quiesce_open(struct quiesce *q)
{
    while (q->n_closed) {
        struct root *root = q->roots[--q->n_closed];

        if (--root->gates == 0) {
            waitq_wake_all(&root->gate);
        }
    }
}

uint64_t
quiesce_held(const struct quiesce *q)
{
    uint64_t held = 0;

    for (unsigned i = 0; i < q->n_roots; i++) {
        held += q->roots[i]->held;
    }
    return held;
}

void
quiesce_fini(struct quiesce *q)
{
    for (unsigned i = 0; i < q->n_roots; i++) {
        q->roots[i]->waiting--;
        waitq_wake_all(&q->roots[i]->idle);
    }
    for (unsigned i = 0; i < q->n_nodes; i++) {
        node_unref(q->nodes[i]);
    }
    free(q->roots);
    free(q->nodes);
    quiesce_init(q);
}
