// SPDX-License-Identifier: BSD-3-Clause
/*
 * A disk grows beside its guest's requests: a driver makes its new size known
 * last, so that nobody reaches what is not there yet.
 *
 * Two cases need the guest to stand still, so they close the gates of all
 * roots above, as a graph edit does:
 *   - it shrinks: a write in flight past the new end would make the file
 *     longer again;
 *   - its backing file reaches past the old end, where the guest would see it
 *     until zeroes are in its place.
 */
#include "block/resize.h"

#include <errno.h>

#include "base/bytes.h"
#include "block/graph_internal.h"

/* The node and all above it, children first, and their roots; all held. */
struct above {
    struct node **nodes;
    struct root **roots;
    unsigned n_nodes, n_roots;
};

static void
add_node(struct above *a, struct node *node)
{
    for (unsigned i = 0; i < a->n_nodes; i++) {
        if (a->nodes[i] == node) {
            return;
        }
    }
    a->nodes = xrealloc(a->nodes, (a->n_nodes + 1) * sizeof(struct node *));
    a->nodes[a->n_nodes++] = node_ref(node);
}

static void
above_find(struct above *a, struct node *node)
{
    *a = (struct above){0};
    add_node(a, node);
    for (unsigned i = 0; i < a->n_nodes; i++) {
        list_for_each(it, &a->nodes[i]->parents)
        {
            add_node(a, container_of(it, struct edge, link)->parent);
        }
        list_for_each(it, &a->nodes[i]->roots)
        {
            a->roots = xrealloc(a->roots,
                                (a->n_roots + 1) * sizeof(struct root *));
            a->roots[a->n_roots] = container_of(it, struct root, link);
            a->roots[a->n_roots++]->waiting++;
        }
    }
}

static void
above_release(struct above *a)
{
    for (unsigned i = 0; i < a->n_roots; i++) {
        a->roots[i]->waiting--;
        waitq_wake_all(&a->roots[i]->idle);
    }
    for (unsigned i = 0; i < a->n_nodes; i++) {
        node_unref(a->nodes[i]);
    }
    free(a->roots);
    free(a->nodes);
}

static void
close_gates(struct above *a)
{
    for (unsigned i = 0; i < a->n_roots; i++) {
        a->roots[i]->gates++;
    }
}

static void
open_gates(struct above *a)
{
    for (unsigned i = 0; i < a->n_roots; i++) {
        if (--a->roots[i]->gates == 0) {
            waitq_wake_all(&a->roots[i]->gate);
        }
    }
}

static int
drain(struct above *a, uint64_t deadline_ns, struct err *err)
{
    for (unsigned i = 0; i < a->n_roots; i++) {
        while (a->roots[i]->in_flight) {
            if (!waitq_wait_until(&a->roots[i]->idle, deadline_ns) &&
                a->roots[i]->in_flight) {
                int r = err_set(err, -ETIMEDOUT,
                                "Requests in flight on node '%s' did not end "
                                "in time",
                                a->nodes[0]->name);

                err_hint(err, "its backend may hang; nothing was changed");
                return r;
            }
        }
    }
    return 0;
}

/* A window of a fixed size does not follow its file. */
static bool
is_window(const struct node *node)
{
    return json_object_get(node->options, "size") != NULL;
}

/* May @node, which is the changed one or above it, get another size? */
static int
check(const struct above *a, unsigned i, uint64_t size, struct err *err)
{
    struct node *node = a->nodes[i];
    uint64_t old = a->nodes[0]->size;
    int r = claim_check(node, CLAIM_WRITE, "block_resize", err);

    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (!r && root->pinned) {
            r = err_set(err, -EBUSY, "Node '%s' is busy: %s uses it",
                        node->name, root->owner);
        }
    }
    if (!r && i && size < old &&
        (is_window(node) || node->size < old - size)) {
        r = err_set(err, -EBUSY,
                    "Node '%s' needs more of node '%s' than would be left",
                    node->name, a->nodes[0]->name);
    }
    return r;
}

static int
check_all(const struct above *a, uint64_t size, struct err *err)
{
    int r = 0;

    for (unsigned i = 0; i < a->n_nodes && !r; i++) {
        r = check(a, i, size, err);
    }
    return r;
}

/* The filters above follow; does not yield. */
static void
set_sizes(const struct above *a, uint64_t old)
{
    uint64_t size = a->nodes[0]->size;

    for (unsigned i = 1; i < a->n_nodes; i++) {
        if (!is_window(a->nodes[i])) {
            a->nodes[i]->size = a->nodes[i]->size - old + size;
        }
    }
}

/* Until where the backing file would show through. */
static uint64_t
backing_end(const struct node *node)
{
    return node->backing ? node->backing->child->size : 0;
}

static int
resize(struct above *a, uint64_t size, struct err *err)
{
    struct node *node = a->nodes[0];
    uint64_t old = node->size, shown = min_u64(size, backing_end(node));
    int r = check_all(a, size, err);

    if (!r) {
        r = node_truncate(node, size, err);
    }
    if (!r && shown > old) {
        r = node_zero(node, old, shown - old, REQ_BACKGROUND, NULL);
        if (r) {
            err_set_errno(err, r, "Could not zero what was added to node '%s'",
                          node->name);
        }
    }
    set_sizes(a, old); /* whatever became of it */
    return r;
}

int
node_resize(struct node *node, uint64_t size, uint64_t deadline_ns,
            struct err *err)
{
    struct above a;
    int r;

    /* A filter that maps (raw) has a size of its own to change. */
    while (node->drv->is_filter && !node->drv->map && node->file) {
        node = node->file->child;
    }
    if (node->drv->set_backing && size % 512) {
        return err_set(err, -EINVAL, "The new size must be a multiple of 512");
    }
    above_find(&a, node);
    r = check_all(&a, size, err);
    if (!r && (size < node->size ||
               min_u64(size, backing_end(node)) > node->size)) {
        close_gates(&a);
        r = drain(&a, deadline_ns, err);
        if (!r) {
            r = resize(&a, size, err);
        }
        open_gates(&a);
    } else if (!r) {
        r = resize(&a, size, err);
    }
    above_release(&a);
    return r;
}
