// SPDX-License-Identifier: BSD-3-Clause
/*
 * x-debug-query-block-graph: the graph as QEMU draws it.
 *
 * Claims are shown as the permissions that come closest: a claim says whether
 * its holder writes, and whether it lets others write.  A job is whoever holds
 * a node with a pinned root; every other root is a block backend, with the
 * name of the export where it is one.
 */
#include <string.h>

#include "control/control_internal.h"
#include "schema_dispatch.h"

/* What has been given an identifier: nodes and roots. */
struct ids {
    const void **v;
    size_t n;
};

/* The identifier of @p; *ret_new where it had none. */
static json_int_t
id_of(struct ids *ids, const void *p, bool *ret_new)
{
    size_t i = 0;

    while (i < ids->n && ids->v[i] != p) {
        i++;
    }
    *ret_new = i == ids->n;
    if (*ret_new) {
        ids->v = xrealloc(ids->v, (ids->n + 1) * sizeof(*ids->v));
        ids->v[ids->n++] = p;
    }
    return (json_int_t)i + 1;
}

static json_int_t
add_object(struct ids *ids, json_t *nodes, const void *p, const char *type,
           const char *name)
{
    bool is_new;
    json_int_t id = id_of(ids, p, &is_new);

    if (is_new) {
        json_array_append_new(nodes, json_pack("{s:I, s:s, s:s}", "id", id,
                                               "type", type, "name", name));
    }
    return id;
}

static bool
writes(enum claim claim)
{
    return claim != CLAIM_NONE && claim != CLAIM_READ &&
           claim != CLAIM_STABLE && claim != CLAIM_FILL;
}

static json_t *
permissions(enum claim claim)
{
    json_t *list = json_array();

    if (claim != CLAIM_NONE) {
        json_array_append_new(list, json_string("consistent-read"));
    }
    if (writes(claim)) {
        json_array_append_new(list, json_string("write"));
    }
    if (claim == CLAIM_FILL) {
        json_array_append_new(list, json_string("write-unchanged"));
    }
    if (claim == CLAIM_ALONE) {
        json_array_append_new(list, json_string("resize"));
    }
    return list;
}

static json_t *
shared_permissions(enum claim claim)
{
    json_t *list = json_pack("[s, s]", "consistent-read", "write-unchanged");

    if (claim != CLAIM_STABLE && claim != CLAIM_ALONE &&
        claim != CLAIM_TARGET && claim != CLAIM_SINK) {
        json_array_append_new(list, json_string("write"));
        json_array_append_new(list, json_string("resize"));
    }
    return list;
}

static void
add_edge(json_t *edges, json_int_t parent, json_int_t child, const char *name,
         enum claim claim)
{
    json_array_append_new(
        edges, json_pack("{s:I, s:I, s:s, s:o, s:o}", "parent", parent,
                         "child", child, "name", name, "perm",
                         permissions(claim), "shared-perm",
                         shared_permissions(claim)));
}

/* "export 'e'", "job 'j'": what stands between the quotes. */
static char *
name_of_owner(const char *owner)
{
    const char *start = strchr(owner, '\'');
    const char *end = start ? strrchr(owner, '\'') : NULL;

    return end > start ? xstrndup(start + 1, (size_t)(end - start - 1))
                       : xstrdup(owner);
}

static void
add_holders(struct ids *ids, const struct node *node, json_int_t id,
            json_t *nodes, json_t *edges)
{
    struct holder *holders;
    size_t n;

    node_holders(node, &holders, &n);
    for (size_t i = 0; i < n; i++) {
        const struct holder *h = &holders[i];
        auto_free char *name = name_of_owner(h->owner);
        json_int_t parent =
            add_object(ids, nodes, h->root,
                       h->pinned ? "block-job" : "block-backend", name);

        add_edge(edges, parent, id, h->pinned ? "main node" : "root",
                 h->claim);
    }
    free(holders);
}

static void
add_node(struct ids *ids, const struct node *node, json_t *nodes,
         json_t *edges)
{
    const struct edge *children[] = {node->file, node->backing};
    json_int_t id = add_object(ids, nodes, node, "block-driver", node->name);

    for (size_t i = 0; i < ARRAY_LEN(children); i++) {
        const struct edge *e = children[i];

        if (e) {
            json_int_t child = add_object(ids, nodes, e->child, "block-driver",
                                          e->child->name);

            add_edge(edges, id, child,
                     e->role == EDGE_DATA ? "file" : "backing",
                     edge_claim(e));
        }
    }
    add_holders(ids, node, id, nodes, edges);
}

int
cmd_x_debug_query_block_graph(
    struct control *ctl, const struct args_x_debug_query_block_graph *args,
    json_t **ret, struct err *err)
{
    json_t *nodes = json_array(), *edges = json_array();
    struct ids ids = {0};
    struct node **all;
    size_t n;

    graph_hold_all(ctl->graph, &all, &n);
    for (size_t i = n; i--;) { /* the newest comes first */
        add_node(&ids, all[i], nodes, edges);
    }
    *ret = json_pack("{s:o, s:o}", "nodes", nodes, "edges", edges);
    for (size_t i = 0; i < n; i++) {
        node_unref(all[i]);
    }
    free(all);
    free(ids.v);
    return 0;
}
