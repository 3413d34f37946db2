// SPDX-License-Identifier: BSD-3-Clause
/*
 * Nodes that hand their file over to another program (blockdev-set-active): an
 * inactive one has written back all that it had, keeps nothing of its file in
 * memory, and has no lock on it.  It stays in the graph, and nobody can use it;
 * activated, it reads its file anew.
 *
 * An export may last (root_new_lasting()): the gates are closed until what is
 * in flight is over, and open again before anything is written back; its
 * requests then fail.
 */
#include <errno.h>
#include <string.h>

#include "block/chain_index.h"
#include "block/dirty_log.h"
#include "block/graph_internal.h"
#include "block/limits.h"
#include "block/quiesce.h"

enum { DRAIN_DEADLINE_MS = 5000 };

int
node_check_active(const struct node *node, struct err *err)
{
    return node->inactive ? err_set(err, -EPERM, "Node '%s' is inactive",
                                    node->name)
                          : 0;
}

/* Does a parent, or somebody from outside, still use it? */
static const char *
find_user(const struct node *node)
{
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (!root->lasts) {
            return root->owner;
        }
    }
    list_for_each(it, &node->parents)
    {
        const struct node *parent =
            container_of(it, struct edge, link)->parent;

        if (!parent->inactive) {
            return parent->name;
        }
    }
    return NULL;
}

static int
in_use(const struct node *node, struct err *err)
{
    return err_set(err, -EBUSY, "Node '%s' is busy: %s uses it", node->name,
                   find_user(node));
}

/* With nothing in flight it begins to be inactive; nobody begins to use it. */
static int
put_to_rest(struct node *node, struct err *err)
{
    struct quiesce q;

    quiesce_init(&q);
    quiesce_add(&q, node);
    int r = quiesce_close(&q,
                          loop_now(node->graph->loop) +
                              DRAIN_DEADLINE_MS * NS_PER_MS,
                          err);

    if (!r && find_user(node)) { /* it came meanwhile */
        r = in_use(node, err);
    }
    node->inactive = node->inactive || !r;
    list_for_each(it, &node->roots)
    {
        struct root *root = container_of(it, struct root, link);

        if (!r && !root->dormant) {
            root_rest(root);
        }
    }
    quiesce_open(&q);
    quiesce_fini(&q);
    return r;
}

static int
inactivate_one(struct node *node, struct err *err)
{
    int waited = put_to_rest(node, err);

    if (waited) {
        return waited;
    }
    chain_index_drop(node);
    dirty_log_leave(node);
    int r = node->drv->close ? node->drv->close(node) : 0;

    node->state = NULL;
    return r ? err_set_errno(err, r, "Could not write back node '%s'",
                             node->name)
             : 0;
}

/* The file goes with its format, unless the operator holds it by name. */
static int
inactivate_file(struct node *node, struct err *err)
{
    if (!node->file) {
        return 0;
    }
    struct node *file = node_ref(node->file->child);
    int r = 0;

    edge_free(take_ptr(node->file));
    if (file->named && !file->inactive && !find_user(file)) {
        r = inactivate_one(file, err);
        r = r ? r : inactivate_file(file, err);
    }
    node_unref(file);
    return r;
}

/* In a loop down the chain: its depth is the images' choice. */
static int
inactivate(struct node *top, struct err *err)
{
    int r = find_user(top) ? in_use(top, err) : 0;

    for (struct node *n = top; n && !r && !n->inactive && !find_user(n);
         n = n->backing ? n->backing->child : NULL) {
        r = inactivate_one(n, err);
        if (!r) {
            r = inactivate_file(n, err);
        }
    }
    return r;
}

/* What its file said goes; what the operator said stays. */
static void
forget(struct node *node)
{
    free(take_ptr(node->filename));
    free(take_ptr(node->header_backing.filename));
    free(take_ptr(node->header_backing.format));
    node->limits = (struct block_limits){1, 4096, LIMIT_REQUEST};
    node->cluster_size = 1;
    node->size = 0;
    node->failed = 0;
    node->incomplete = false;
    node->read_only = opt_bool(node->options, "read-only", false);
    node->flushed_gen = node->users_gen = ++node->write_gen;
}

static int
activate_one(struct node *node, struct err *err)
{
    json_t *options = json_deep_copy(node->options);
    const char *file = json_string_value(json_object_get(options, "file"));
    struct node *child = file ? graph_find(node->graph, file) : NULL;
    int r = child && child->inactive ? activate_one(child, err) : 0;

    if (!r) {
        forget(node);
        r = node->drv->open(node, options, err);
        if (r && node->file) {
            edge_free(take_ptr(node->file));
        }
        node->state = r ? NULL : node->state;
        node->inactive = r != 0;
    }
    json_decref(options);
    return r;
}

/* What lasted claims what it did; the uppermost first. */
static int
wake_roots(struct node *top, struct err *err)
{
    int r = 0;

    for (struct node *n = top; n && !r; n = n->backing ? n->backing->child
                                                       : NULL) {
        list_for_each(it, &n->roots)
        {
            struct root *root = container_of(it, struct root, link);

            r = !r && root->dormant ? root_wake(root, err) : r;
        }
    }
    return r;
}

/* The lowest first: an overlay that opens may look at its backing file. */
static int
activate(struct node *top, struct err *err)
{
    while (top->inactive) {
        struct node *lowest = top;

        for (struct node *n = top; n; n = n->backing ? n->backing->child
                                                     : NULL) {
            lowest = n->inactive ? n : lowest;
        }
        int r = activate_one(lowest, err);

        if (r) {
            return r;
        }
    }
    int r = node_recover(node_skip_filters(top), err);

    if (!r) {
        r = wake_roots(top, err);
    }
    if (r) {
        inactivate(top, NULL);
    }
    return r;
}

static void
forget_active(json_t *options)
{
    const char *key;
    json_t *value;

    json_object_del(options, "active");
    json_object_foreach(options, key, value) {
        if (json_is_object(value) && strcmp(key, "backing")) {
            forget_active(value);
        }
    }
}

int
chain_begin_inactive(struct node *top, struct err *err)
{
    int r = 0;

    for (struct node *n = top; n && !r && node_begins_inactive(n->options);
         n = n->backing ? n->backing->child : NULL) {
        r = inactivate_one(n, err);
        if (!r && n->file) {
            edge_free(take_ptr(n->file));
        }
        n->read_only = opt_bool(n->options, "read-only", false);
        forget_active(n->options);
    }
    return r;
}

int
node_set_active(struct node *node, bool active, struct err *err)
{
    comutex_lock(&node->reopening);
    int r = node->inactive == !active ? 0
            : active                  ? activate(node, err)
                                      : inactivate(node, err);

    comutex_unlock(&node->reopening);
    return r;
}
