// SPDX-License-Identifier: BSD-3-Clause
/*
 * Changes of one node that leave the graph as it is.
 *
 * A handler that yields holds a reference to every node it goes on with.
 */
#include <errno.h>
#include <string.h>

#include "block/resize.h"
#include "control/control_internal.h"
#include "schema_dispatch.h"

/* change-backing-file: the checks are QEMU's, in its order. */

/* What @node reads through: the backing file, or what it is a filter over. */
static struct node *
below(struct node *node)
{
    return node_skip_filters(node) != node ? node->file->child
           : node->backing                 ? node->backing->child
                                           : NULL;
}

static int
find_image(struct control *ctl, const struct args_change_backing_file *args,
           struct node **ret, struct err *err)
{
    struct node *top, *image;
    int r = control_find_node(ctl, args->device, true, &top, err);

    if (!r) {
        r = control_check_root(node_skip_filters(top), err);
    }
    if (!r) {
        r = control_find_node(ctl, args->image_node_name, false, &image, err);
    }
    image = r ? NULL : node_skip_filters(image);
    if (!r && !image->backing) {
        r = err_set(err, -EINVAL,
                    "not allowing backing file change on an image without a "
                    "backing file");
    }
    if (!r && !chain_find_layer(top, image)) {
        r = err_set(err, -EINVAL,
                    "'%s' and image file are not in the same chain",
                    args->device);
    }
    for (struct node *n = top; !r && n; n = below(n)) {
        r = node_check_no_job(n, err); /* its end would undo this */
    }
    if (!r) {
        *ret = image;
    }
    return r;
}

static int
set_backing(struct node *image, const char *filename, struct err *err)
{
    if (!image->drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' has no header",
                       image->drv->name, image->name);
    }
    bool borrowed;
    int r = node_borrow(image, &borrowed, err);

    if (r) {
        return r;
    }
    r = image->drv->set_backing(
        image, *filename ? filename : NULL,
        *filename ? node_image_format(image->backing->child) : NULL, err);
    if (borrowed) {
        node_return(image);
    }
    return r;
}

int
cmd_change_backing_file(struct control *ctl,
                        const struct args_change_backing_file *args,
                        json_t **ret, struct err *err)
{
    auto_err inner = ERR_INIT;
    struct node *image;
    int r = find_image(ctl, args, &image, err);

    if (r) {
        return r;
    }
    node_ref(image);
    r = set_backing(image, args->backing_file, &inner);
    node_unref(image);
    if (r) {
        err_prefix(&inner, "Could not change backing file to '%s'",
                   args->backing_file);
        return err_propagate(err, &inner);
    }
    return 0;
}

int
cmd_block_resize(struct control *ctl, const struct args_block_resize *args,
                 json_t **ret, struct err *err)
{
    uint64_t deadline =
        loop_now(ctl->loop) + CONTROL_DRAIN_SECONDS * NS_PER_S;
    struct node *node;
    int r = control_find_named(ctl, args->device, args->node_name, &node, err);

    if (!r && args->size < 0) {
        r = err_set(err, -EINVAL, "Parameter 'size' expects a >0 size");
    }
    if (r) {
        return r;
    }
    node_ref(node);
    r = node_resize(node, (uint64_t)args->size, deadline, err);
    node_unref(node);
    return r;
}

static int
set_active(struct control *ctl, struct node *node, bool active,
           struct err *err)
{
    bool was_inactive = node->inactive;
    int r = node_set_active(node, active, err);

    if (!r && was_inactive && active) {
        control_resume_node(ctl, node);
    }
    return r;
}

/* All of them: those that nobody is above first, or last. */
static int
set_all_active(struct control *ctl, bool active, struct err *err)
{
    struct node **nodes;
    size_t n;
    int r = 0;

    graph_hold_all(ctl->graph, &nodes, &n);
    for (size_t i = 0; i < n && !r; i++) {
        bool is_top = list_empty(&nodes[i]->parents);

        r = is_top ? set_active(ctl, nodes[i], active, err) : 0;
    }
    for (size_t i = 0; i < n; i++) {
        node_unref(nodes[i]);
    }
    free(nodes);
    return r;
}

int
cmd_blockdev_set_active(struct control *ctl,
                        const struct args_blockdev_set_active *args,
                        json_t **ret, struct err *err)
{
    struct node *node;

    if (!args->node_name) {
        return set_all_active(ctl, args->active, err);
    }
    int r = control_find_node(ctl, args->node_name, false, &node, err);

    if (r) {
        return r;
    }
    node_ref(node);
    r = set_active(ctl, node, args->active, err);
    node_unref(node);
    return r;
}
