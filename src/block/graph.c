// SPDX-License-Identifier: BSD-3-Clause
/*
 * The graph's structure: nodes, edges, claims and references.
 *
 * Invariants: an edge and a root hold one reference to the node they point at;
 * a node has no driver state before its open succeeded; a claim is checked
 * against all parents before an edge or a root comes into being.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "block/chain_index.h"
#include "block/graph_internal.h"
#include "block/limits.h"

struct graph *
graph_new(struct loop *loop, const struct graph_options *options)
{
    struct graph *graph = xzalloc(sizeof(*graph));

    graph->loop = loop;
    graph->drivers = options->drivers;
    graph->backing_paths =
        options->backing_paths ? xstrdup(options->backing_paths) : NULL;
    graph->chain_index_bytes = options->chain_index_bytes
                                   ? options->chain_index_bytes
                                   : CHAIN_INDEX_BYTES;
    list_init(&graph->nodes);
    list_init(&graph->throttle_groups);
    waitq_init(&graph->parked);
    return graph;
}

/* Whether anything could be lost if @node's requests failed. */
static bool
is_written(const struct node *node)
{
    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (claim_writes(e->claim)) {
            return true;
        }
    }
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (claim_writes(root->claim)) {
            return true;
        }
    }
    return false;
}

void
graph_end(struct graph *graph, bool all)
{
    graph->ending = true;
    list_for_each(it, &graph->nodes)
    {
        struct node *node = container_of(it, struct node, link);

        if (node->drv && node->drv->let_go && (all || !is_written(node))) {
            node->drv->let_go(node, true);
        }
    }
    graph_unpark(graph);
}

void
chain_let_go(struct node *top)
{
    for (struct node *n = top; n; n = n->backing ? n->backing->child : NULL) {
        for (struct node *f = n; f; f = f->file ? f->file->child : NULL) {
            if (f->drv->let_go) {
                f->drv->let_go(f, false);
            }
        }
    }
    if (top) {
        graph_unpark(top->graph); /* a guest's requests go on at once */
    }
}

void
graph_free(struct graph *graph)
{
    bool closed = graph_close(graph);

    assert(closed);
    throttle_groups_free(graph);
    free(graph->backing_paths);
    free(graph);
}

bool
graph_close(struct graph *graph)
{
    bool again = true;

    while (again) {
        again = false;
        list_for_each(it, &graph->nodes)
        {
            struct node *node = container_of(it, struct node, link);

            if (node->named) {
                node->named = false;
                node_unref(node);
                again = true;
                break; /* closing may have removed any number of nodes */
            }
        }
    }
    return list_empty(&graph->nodes);
}

struct loop *
graph_loop(const struct graph *graph)
{
    return graph->loop;
}

const struct driver *
graph_driver(struct graph *graph, const char *name)
{
    for (const struct driver *const *d = graph->drivers; *d; d++) {
        if (!strcmp((*d)->name, name)) {
            return *d;
        }
    }
    return NULL;
}

struct node *
graph_find(struct graph *graph, const char *node_name)
{
    list_for_each(it, &graph->nodes)
    {
        struct node *node = container_of(it, struct node, link);

        if (node->visible && !strcmp(node->name, node_name)) {
            return node;
        }
    }
    return NULL;
}

bool
graph_name_taken(struct graph *graph, const char *name)
{
    list_for_each(it, &graph->nodes)
    {
        if (!strcmp(container_of(it, struct node, link)->name, name)) {
            return true;
        }
    }
    return false;
}

void
graph_hold_all(struct graph *graph, struct node ***ret, size_t *ret_n)
{
    *ret = NULL;
    *ret_n = 0;
    list_for_each(it, &graph->nodes)
    {
        struct node *node = container_of(it, struct node, link);

        if (node->visible) {
            *ret = xrealloc(*ret, (*ret_n + 1) * sizeof(**ret));
            (*ret)[(*ret_n)++] = node_ref(node);
        }
    }
}

void
graph_unpark(struct graph *graph)
{
    graph->park_gen++;
    waitq_wake_all(&graph->parked);
}

void
node_guest_stats(const struct node *node, struct root_stats *ret)
{
    *ret = (struct root_stats){0};
    list_for_each(it, &node->roots)
    {
        struct root *root = container_of(it, struct root, link);

        if (!root->pinned) {
            ret->requests += root->stats.requests;
            ret->busy_ns += root->stats.busy_ns;
            ret->in_flight += root->in_flight;
        }
    }
}

void
node_holders(const struct node *node, struct holder **ret, size_t *ret_n)
{
    *ret = NULL;
    *ret_n = 0;
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        *ret = xrealloc(*ret, (*ret_n + 1) * sizeof(**ret));
        (*ret)[(*ret_n)++] = (struct holder){
            root, root->owner, root->claim, root->pinned};
    }
}

/* Nodes. */

struct node *
node_alloc(struct graph *graph, const char *name)
{
    struct node *node = xzalloc(sizeof(*node));

    node->graph = graph;
    node->name = name ? xstrdup(name)
                      : xasprintf("#block%03u", graph->next_name++);
    node->refs = 1;
    node->cluster_size = 1;
    node->limits = (struct block_limits){1, 4096, LIMIT_REQUEST};
    range_lock_init(&node->ranges);
    grace_init(&node->lookups);
    grace_init(&node->changes);
    list_init(&node->taps);
    list_init(&node->parents);
    list_init(&node->roots);
    list_push(&graph->nodes, &node->link);
    return node;
}

void
node_dealloc(struct node *node)
{
    list_remove(&node->link);
    json_decref(node->options);
    free(node->header_backing.filename);
    free(node->header_backing.format);
    free(node->filename);
    free(node->name);
    free(node);
}

struct node *
node_ref(struct node *node)
{
    node->refs++;
    return node;
}

/* Closes a node nobody refers to; returns the backing node it let go of. */
static struct node *
node_close(struct node *node)
{
    struct node *backing = NULL;

    node->visible = false; /* closing yields: nobody may find it */
    chain_index_drop(node);
    if (node->drv && node->drv->close) {
        node->drv->close(node);
    }
    if (node->backing) {
        backing = node->backing->child;
        edge_unlink(node->backing);
        free(node->backing);
    }
    if (node->file) {
        edge_free(node->file);
    }
    node_dealloc(node);
    return backing;
}

/* A chain is closed in a loop: its depth is the image's choice. */
void
node_unref(struct node *node)
{
    while (node && --node->refs == 0) {
        node = node_close(node);
    }
}

bool
chain_contains(const struct node *top, const struct node *node)
{
    while (top && top != node) {
        top = top->backing ? top->backing->child : NULL;
    }
    return top != NULL;
}

/* Claims and edges. */

bool
claim_writes(enum claim c)
{
    return c == CLAIM_WRITE || c == CLAIM_ALONE || c == CLAIM_TARGET;
}

static bool
claim_excludes(enum claim c)
{
    return c == CLAIM_STABLE || c == CLAIM_ALONE || c == CLAIM_TARGET;
}

bool
claims_clash(enum claim a, enum claim b)
{
    return (claim_writes(a) && claim_excludes(b)) ||
           (claim_writes(b) && claim_excludes(a));
}

/* The first unfinished copy from @top down; NULL where there is none. */
static const struct node *
find_unfinished(const struct node *top)
{
    while (top && !top->incomplete) {
        top = top->backing ? top->backing->child : NULL;
    }
    return top;
}

static int
claim_refused(struct node *node, enum claim held, const char *owner,
              const char *holder, struct err *err)
{
    int r = err_set(err, -EBUSY, "Node '%s' is busy: %s %s it", node->name,
                    holder,
                    held == CLAIM_STABLE ? "needs that nobody writes to"
                                         : "writes to");

    err_hint(err, "%s cannot have it before that ends", owner);
    return r;
}

int
claim_check(struct node *node, enum claim claim, const char *owner,
            struct err *err)
{
    const struct node *unfinished =
        claim == CLAIM_NONE || claim == CLAIM_TARGET ? NULL
                                                     : find_unfinished(node);

    if (claim_writes(claim) && node->read_only) {
        return err_set(err, -EACCES, "Block node is read-only");
    }
    if (unfinished) {
        int r = err_set(err, -EUCLEAN, "Image '%s' is an unfinished copy",
                        unfinished->filename ? unfinished->filename
                                             : unfinished->name);

        err_hint(err, "the disk is still the image that it was copied from; "
                      "copy again onto this one, or delete it");
        return r;
    }
    list_for_each(it, &node->parents)
    {
        struct edge *e = container_of(it, struct edge, link);

        if (claims_clash(claim, e->claim)) {
            auto_free char *holder =
                xasprintf("node '%s', as its %s,", e->parent->name,
                          e->role == EDGE_DATA ? "file" : "backing file");

            return claim_refused(node, e->claim, owner, holder, err);
        }
    }
    list_for_each(it, &node->roots)
    {
        struct root *root = container_of(it, struct root, link);

        if (claims_clash(claim, root->claim)) {
            return claim_refused(node, root->claim, owner, root->owner, err);
        }
    }
    return 0;
}

void
edge_link(struct edge *edge)
{
    list_push(&edge->child->parents, &edge->link);
    if (edge->role == EDGE_BACKING) {
        edge->child->n_overlays++;
        chain_index_drop(edge->parent);
    }
}

void
edge_unlink(struct edge *edge)
{
    if (edge->role == EDGE_BACKING) {
        edge->child->n_overlays--;
        chain_index_drop(edge->child); /* and with it all that is above */
    }
    list_remove(&edge->link);
}

int
edge_new(struct node *parent, struct node *child, enum edge_role role,
         enum claim claim, struct edge **ret, struct err *err)
{
    int r = claim_check(child, claim, parent->name, err);

    if (r) {
        return r;
    }
    struct edge *edge = xzalloc(sizeof(*edge));

    *edge = (struct edge){.parent = parent,
                          .child = node_ref(child),
                          .role = role,
                          .claim = claim};
    edge_link(edge);
    *ret = edge;
    return 0;
}

void
edge_free(struct edge *edge)
{
    struct node *child = edge->child;

    edge_unlink(edge);
    free(edge);
    node_unref(child);
}

void
tap_attach(struct node *node, struct tap *tap)
{
    struct list *at = node->taps.next;

    while (at != &node->taps &&
           container_of(at, struct tap, link)->order <= tap->order) {
        at = at->next;
    }
    list_push(at, &tap->link);
}

void
tap_detach(struct tap *tap)
{
    list_remove(&tap->link);
}
