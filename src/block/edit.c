// SPDX-License-Identifier: BSD-3-Clause
/*
 * See edit.h for the steps.  An edit in memory cannot fail by itself; it is
 * made, then the claims of every node it touched are checked, and the edits
 * are undone backwards where one is violated.  All that happens without a
 * yield, so nobody ever sees it half done.
 */
#include "block/edit.h"

#include <errno.h>

#include "block/graph_internal.h"
#include "block/quiesce.h"
#include "block/resize.h"

/* What one edit did, to undo it or to clean up behind it. */
struct done {
    struct edge *old_edge, *new_edge; /* EDIT_BACKING */
    struct edge **edges; /* EDIT_REPLACE: what moved */
    struct root **roots;
    unsigned n_edges, n_roots;
};

/* Edits in memory. */

static void
do_backing(struct node *node, struct node *to, struct done *done)
{
    done->old_edge = node->backing;
    if (done->old_edge) {
        edge_unlink(done->old_edge);
    }
    if (to) {
        done->new_edge = xzalloc(sizeof(*done->new_edge));
        *done->new_edge = (struct edge){.parent = node,
                                        .child = node_ref(to),
                                        .role = EDGE_BACKING,
                                        .claim = CLAIM_STABLE};
        edge_link(done->new_edge);
    }
    node->backing = done->new_edge;
}

static void
undo_backing(struct node *node, struct done *done)
{
    node->backing = done->old_edge;
    if (done->old_edge) {
        edge_link(done->old_edge);
    }
    if (done->new_edge) {
        edge_unlink(done->new_edge);
        done->new_edge->child->refs--; /* it had one before: never the last */
        free(done->new_edge);
        done->new_edge = NULL;
    }
    done->old_edge = NULL;
}

/*
 * Roots and parents that moved are remembered in arrays, so that exactly these
 * go back in an undo.
 */
static void
do_replace(struct node *node, struct node *to, struct done *done)
{
    list_for_each_safe(it, &node->parents)
    {
        struct edge *edge = container_of(it, struct edge, link);

        if (edge->parent == to) {
            continue;
        }
        done->edges = xrealloc(done->edges, (done->n_edges + 1) *
                                                sizeof(*done->edges));
        done->edges[done->n_edges++] = edge;
        edge_unlink(edge);
        edge->child = node_ref(to);
        edge_link(edge);
    }
    list_for_each_safe(it, &node->roots)
    {
        struct root *root = container_of(it, struct root, link);

        if (root->pinned) {
            continue;
        }
        done->roots = xrealloc(done->roots, (done->n_roots + 1) *
                                                sizeof(*done->roots));
        done->roots[done->n_roots++] = root;
        root_unlink(root);
        root_link(root, node_ref(to));
    }
    /* The references to @node are dropped once nothing can be undone. */
}

static void
undo_replace(struct node *node, struct node *to, struct done *done)
{
    for (unsigned i = 0; i < done->n_edges; i++) {
        edge_unlink(done->edges[i]);
        done->edges[i]->child = node;
        edge_link(done->edges[i]);
        to->refs--; /* the caller of graph_edit() holds one more */
    }
    for (unsigned i = 0; i < done->n_roots; i++) {
        root_unlink(done->roots[i]);
        root_link(done->roots[i], node);
        to->refs--;
    }
}

/* Checks. */

/* The claims on a node, so that each meets every other one. */
struct claims {
    unsigned n[CLAIM_SINK + 1];
    unsigned overlays; /* of these, backing edges of images in use */
};

static bool
claims_are_at_odds(const struct claims *c)
{
    bool sunk_from_one = c->n[CLAIM_SINK] == 1 && c->overlays == 1 &&
                         c->n[CLAIM_STABLE] == 1;

    for (unsigned a = 0; a < ARRAY_LEN(c->n); a++) {
        for (unsigned b = a; b < ARRAY_LEN(c->n); b++) {
            bool both = a == b ? c->n[a] > 1 : c->n[a] && c->n[b];

            if (both && claims_clash(a, b) &&
                !(sunk_from_one && a == CLAIM_STABLE && b == CLAIM_SINK)) {
                return true;
            }
        }
    }
    return false;
}

static int
check_claims(struct node *node, struct err *err)
{
    struct claims c = {0};

    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);
        enum claim claim = edge_claim(e);

        c.n[claim]++;
        c.overlays += claim != CLAIM_NONE && e->role == EDGE_BACKING;
    }
    list_for_each(it, &node->roots)
    {
        c.n[container_of(it, struct root, link)->claim]++;
    }
    if (node->inactive) {
        return node_check_active(node, err);
    }
    if (node->read_only &&
        (c.n[CLAIM_WRITE] || c.n[CLAIM_ALONE] || c.n[CLAIM_TARGET])) {
        return err_set(err, -EACCES, "Node '%s' is read-only", node->name);
    }
    if (claims_are_at_odds(&c)) {
        return err_set(err, -EBUSY,
                       "Node '%s' would be written to while another node "
                       "needs that nobody writes to it",
                       node->name);
    }
    return 0;
}

/* What is used anew reaches down to the end of the chain. */
static int
check_chain(struct node *top, struct err *err)
{
    int r = 0;

    for (struct node *n = top; n && !r;
         n = n->backing ? n->backing->child : NULL) {
        r = check_claims(n, err);
    }
    return r;
}

/* An edge that is to be moved, or NULL where it may be. */
static const struct edge *
find_frozen(const struct edit *e)
{
    const struct edge *own = e->node->backing;

    if (e->kind == EDIT_BACKING) {
        return own && own->frozen ? own : NULL;
    }
    list_for_each(it, &e->node->parents)
    {
        const struct edge *edge = container_of(it, struct edge, link);

        if (e->kind == EDIT_REPLACE && edge->frozen && edge->parent != e->to) {
            return edge;
        }
    }
    return NULL;
}

static int
check_frozen(const struct edit *edits, unsigned n, struct err *err)
{
    for (unsigned i = 0; i < n; i++) {
        const struct edge *edge = find_frozen(&edits[i]);

        if (edge) {
            return node_busy(edge->parent, edge->frozen, err,
                             "needs that its backing file stays '%s'",
                             edge->child->name);
        }
    }
    return 0;
}

static void
undo(const struct edit *edits, unsigned n, struct done *done)
{
    while (n--) {
        if (edits[n].kind == EDIT_BACKING) {
            undo_backing(edits[n].node, &done[n]);
        } else if (edits[n].kind == EDIT_REPLACE) {
            undo_replace(edits[n].node, edits[n].to, &done[n]);
        }
    }
}

/* Its size may change any moment: nothing can take its place as it is. */
static int
check_sizes(const struct edit *edits, unsigned n, struct err *err)
{
    int r = 0;

    for (unsigned i = 0; i < n && !r; i++) {
        if (edits[i].kind == EDIT_REPLACE) {
            r = check_not_resizing(edits[i].node, err);
        }
    }
    return r;
}

int
check_no_loop(const struct node *node, const struct node *to, struct err *err)
{
    list_for_each(it, &node->parents)
    {
        const struct node *over = container_of(it, struct edge, link)->parent;

        if (over != to && chain_contains(to, over)) {
            return err_set(err, -ELOOP,
                           "'%s' cannot take the place of '%s': it stands on "
                           "'%s', which stands on that",
                           to->name, node->name, over->name);
        }
    }
    return 0;
}

/* All edits, then all checks; undone where one fails.  Does not yield. */
static int
swap(const struct edit *edits, unsigned n, struct done *done, struct err *err)
{
    int r = check_frozen(edits, n, err);

    if (!r) {
        r = check_sizes(edits, n, err);
    }
    for (unsigned i = 0; i < n && !r; i++) {
        if (edits[i].kind == EDIT_REPLACE &&
            check_no_loop(edits[i].node, edits[i].to, err)) {
            undo(edits, i, done);
            return -ELOOP;
        }
        if (edits[i].kind == EDIT_REPLACE) {
            do_replace(edits[i].node, edits[i].to, &done[i]);
        } else if (edits[i].to && chain_contains(edits[i].to, edits[i].node)) {
            r = err_set(err, -ELOOP,
                        "Making '%s' a backing child of '%s' would create a "
                        "cycle",
                        edits[i].to->name, edits[i].node->name);
            undo(edits, i, done);
            return r;
        } else if (edits[i].kind == EDIT_BACKING) {
            do_backing(edits[i].node, edits[i].to, &done[i]);
        }
    }
    if (r) {
        return r;
    }
    for (unsigned i = 0; i < n && !r; i++) {
        r = edits[i].to ? check_chain(edits[i].to, err) : 0;
    }
    if (r) {
        undo(edits, n, done);
    }
    return r;
}

/* What lies over what was replaced shows another file now. */
static void
follow_files(const struct done *done, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        for (unsigned k = 0; k < done[i].n_edges; k++) {
            const struct edge *e = done[i].edges[k];

            if (e->role == EDGE_DATA) {
                node_show_file(e->parent, e->child->filename,
                               e->child->file_id);
            }
        }
    }
}

/* Lets go of what was replaced; closing may take its time. */
static void
clean_up(const struct edit *edits, unsigned n, struct done *done, bool swapped)
{
    for (unsigned i = 0; i < n; i++) {
        if (swapped && done[i].old_edge) {
            struct node *child = done[i].old_edge->child;

            free(done[i].old_edge);
            node_unref(child);
        }
        for (unsigned k = done[i].n_edges + done[i].n_roots; swapped && k;
             k--) {
            node_unref(edits[i].node);
        }
        free(done[i].edges);
        free(done[i].roots);
    }
    free(done);
}

int
graph_edit(struct graph *graph, const struct edit *edits, unsigned n,
           const struct edit_options *options, struct edit_report *report,
           struct err *err)
{
    struct quiesce q;
    struct done *done = xzalloc(n * sizeof(*done));
    uint64_t start = loop_now(graph->loop);
    uint64_t held;
    int r = 0;

    quiesce_init(&q);
    for (unsigned i = 0; i < n; i++) {
        quiesce_add(&q, edits[i].node);
    }
    held = quiesce_held(&q);
    if (!options->alike) {
        r = quiesce_close(&q, options->deadline_ns, err);
    }
    if (!r && options->check) {
        r = options->check(options->arg);
    }
    if (!r) {
        r = swap(edits, n, done, err);
    }
    if (!r) {
        follow_files(done, n);
    }
    if (!options->alike) {
        quiesce_open(&q);
    }
    if (report) {
        report->pause_ns =
            options->alike ? 0 : loop_now(graph->loop) - start;
        report->held = quiesce_held(&q) - held;
    }
    /* A job's requests pass no gate: what they read through must live on. */
    for (unsigned i = 0; i < q.n_roots && !r; i++) {
        grace_wait(&q.roots[i]->requests);
    }
    clean_up(edits, n, done, !r);
    quiesce_fini(&q);
    return r;
}
