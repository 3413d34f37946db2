// SPDX-License-Identifier: BSD-3-Clause
/*
 * The commands that move data between the layers of one chain: block-stream
 * and block-commit.  Each only fills in struct transfer_options.
 *
 * Filters over a disk are skipped, as by QEMU: what is named is the image that
 * they show, by its own name or by theirs, and they stay where they are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/transfer_args.h"
#include "schema_dispatch.h"

/* By file name: as the header above has it, or in full. */
static int
find_backing_file(struct node *top, const char *filename, struct node **ret,
                  struct err *err)
{
    for (struct node *n = top; n->backing; n = n->backing->child) {
        struct node *below = n->backing->child;
        const char *stated = n->header_backing.filename;

        if ((stated && !strcmp(stated, filename)) ||
            (below->filename && !strcmp(below->filename, filename))) {
            *ret = below;
            return 0;
        }
    }
    return err_set(err, -ENOENT, "Can't find '%s' in the backing chain",
                   filename);
}

/* What says where a stream stops, as both commands have it. */
struct stream_range {
    const char *base, *base_node, *bottom;
};

static int
check_exclusive(const struct stream_range *args, struct err *err)
{
    static const char fmt[] =
        "'%s' and '%s' cannot be specified at the same time";

    if (args->base && args->base_node) {
        return err_set(err, -EINVAL, fmt, "base", "base-node");
    }
    if (args->base && args->bottom) {
        return err_set(err, -EINVAL, fmt, "base", "bottom");
    }
    if (args->bottom && args->base_node) {
        return err_set(err, -EINVAL, fmt, "bottom", "base-node");
    }
    return 0;
}

/* Is @node below @top with nothing but filters between? */
static bool
is_shown_by(struct node *top, const struct node *node)
{
    const struct node *image = node_skip_filters(top);

    while (top != node && top != image) {
        top = top->file->child;
    }
    return top == node;
}

static int
find_base_node(struct control *ctl, const char *name, struct node *device,
               struct node **ret, struct err *err)
{
    struct node *node;
    int r = control_find_node(ctl, name, false, &node, err);

    if (r) {
        return r;
    }
    *ret = chain_find_layer(device, node);
    if (node == device || !*ret) {
        return err_set(err, -EINVAL, "Node '%s' is not a backing image of '%s'",
                       name, device->name);
    }
    if (*ret == node_skip_filters(device)) {
        return err_set(err, -EINVAL,
                       is_shown_by(device, node)
                           ? "'%s' is not in the backing chain of '%s'"
                           : "Node '%s' is not a backing image of '%s'",
                       name, device->name);
    }
    return 0;
}

static int
find_bottom_node(struct control *ctl, const char *name, struct node *device,
                 struct node **ret, struct err *err)
{
    struct node *node, *layer;
    int r = control_find_node(ctl, name, false, &node, err);

    if (r) {
        return r;
    }
    if (node_skip_filters(node) != node) {
        return err_set(err, -EINVAL,
                       "Node '%s' is a filter, use a non-filter node as "
                       "'bottom'",
                       name);
    }
    layer = chain_find_layer(device, node);
    if (layer != node) {
        return err_set(err, -EINVAL,
                       "Node '%s' is not in a chain starting from '%s'", name,
                       device->name);
    }
    *ret = layer->backing ? layer->backing->child : NULL;
    return 0;
}

/* The node to stop at: *ret is NULL where the whole chain is meant. */
static int
find_base(struct control *ctl, const struct stream_range *args,
          struct node *device, struct node **ret, struct err *err)
{
    *ret = NULL;
    return args->base ? find_backing_file(node_skip_filters(device),
                                          args->base, ret, err)
           : args->base_node
               ? find_base_node(ctl, args->base_node, device, ret, err)
           : args->bottom
               ? find_bottom_node(ctl, args->bottom, device, ret, err)
               : 0;
}

static int
find_stream(struct control *ctl, const char *name,
            const struct stream_range *range, struct node **ret_device,
            struct node **ret_base, struct err *err)
{
    int r = check_exclusive(range, err);

    if (!r) {
        r = control_find_node(ctl, name, true, ret_device, err);
    }
    if (!r) {
        r = find_base(ctl, range, *ret_device, ret_base, err);
    }
    if (!r) {
        *ret_device = node_skip_filters(*ret_device);
    }
    return r;
}

/* The nodes below @top down to, without, @base: they leave the chain. */
static json_t *
layers_between(const struct node *top, const struct node *base)
{
    json_t *list = json_array();

    for (const struct edge *e = top->backing; e && e->child != base;
         e = e->child->backing) {
        json_array_append_new(list, json_string(e->child->name));
    }
    return list;
}

static int
check_backing_file(const struct transfer_options *o, struct err *err)
{
    return o->base || !o->backing_file
               ? 0
               : err_set(err, -EINVAL, "backing file specified, but streaming "
                                       "the entire chain");
}

int
cmd_query_stream_plan(struct control *ctl,
                      const struct args_query_stream_plan *args, json_t **ret,
                      struct err *err)
{
    struct stream_range range = {args->base, args->base_node, args->bottom};
    struct transfer_options o = {.backing_file = args->backing_file,
                                 .release = args->release,
                                 .max_extra = args->max_extra,
                                 .upgrade = args->upgrade};
    int r = find_stream(ctl, args->device, &range, &o.device, &o.base, err);

    if (!r) {
        r = check_backing_file(&o, err);
    }
    if (!r) {
        r = claim_check(o.device, CLAIM_FILL, "a stream", err);
    }
    if (r) {
        return r;
    }
    take_deletion(false, args->exclusive, args->dependents_in, &o);
    r = plan_transfer(PRESET_STREAM, &o, layers_between(o.device, o.base), ret,
                      err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}

int
cmd_block_stream(struct control *ctl, const struct args_block_stream *args,
                 json_t **ret, struct err *err)
{
    struct stream_range range = {args->base, args->base_node, args->bottom};
    struct transfer_options o = {
        .job_id = args->job_id ? args->job_id : "",
        .backing_file = args->backing_file,
        .release = args->release,
        .max_extra = args->max_extra,
        .upgrade = args->upgrade,
        .on_error = take_on_error(args->has_on_error, args->on_error,
                                  ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_stream(ctl, args->device, &range, &o.device, &o.base, err);

    if (!r) {
        r = check_backing_file(&o, err);
    }
    if (!r) {
        /* There is no device here whose name could be the default. */
        r = job_check_id(ctl->jobs, o.job_id, err);
    }
    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    if (!r && check_filter_name(ctl, args->filter_node_name, err)) {
        r = -EINVAL;
        err_prefix(err, "Could not create node");
    }
    take_deletion(false, args->exclusive, args->dependents_in, &o);
    r = r ? r : transfer_start(ctl->jobs, PRESET_STREAM, &o, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}

/* Commit: the checks are QEMU's, in its order. */

static int
find_top(struct control *ctl, const struct args_block_commit *args,
         struct transfer_options *o, struct err *err)
{
    if (args->base && args->base_node) {
        return err_set(err, -EINVAL,
                       "'base-node' and 'base' are mutually exclusive");
    }
    if (args->top && args->top_node) {
        return err_set(err, -EINVAL,
                       "'top-node' and 'top' are mutually exclusive");
    }
    o->top = o->device;
    if (args->top_node) {
        return control_find_layer(ctl, args->top_node, o->device, &o->top,
                                  err);
    }
    if (args->top && o->device->filename &&
        strcmp(o->device->filename, args->top) &&
        find_backing_file(o->device, args->top, &o->top, NULL)) {
        return err_set(err, -ENOENT, "Top image file %s not found", args->top);
    }
    return 0;
}

static int
find_bottom(struct control *ctl, const struct args_block_commit *args,
            struct transfer_options *o, struct err *err)
{
    if (args->base_node) {
        return control_find_layer(ctl, args->base_node, o->top, &o->base, err);
    }
    if (args->base) {
        return find_backing_file(o->top, args->base, &o->base, err);
    }
    return control_find_lowest(o->top, &o->base, err);
}

/* By one name, or by an image's and that of a filter over it. */
static int
into_itself(struct control *ctl, const struct args_block_commit *args,
            struct err *err)
{
    struct node *top = graph_find(
        ctl->graph, args->top_node ? args->top_node : args->device);
    struct node *base =
        args->base_node ? graph_find(ctl->graph, args->base_node) : top;

    if (top == base) {
        return err_set(err, -EINVAL, "cannot commit an image into itself");
    }
    return is_shown_by(top, base)
               ? err_set(err, -EINVAL, "Can't mirror node into itself")
               : err_set(err, -EINVAL,
                         "'%s' is not in this backing file chain",
                         args->base_node);
}

static int
find_layers(struct control *ctl, const struct args_block_commit *args,
            struct transfer_options *o, struct err *err)
{
    struct node *device = graph_find(ctl->graph, args->device);

    if (!device) {
        /* libvirt asks for this to see what a commit can do. */
        return err_set_class(err, ERR_DEVICE_NOT_FOUND, -ENODEV,
                             "Device '%s' not found", args->device);
    }
    o->device = node_skip_filters(device);
    int r = control_check_root(o->device, err);

    if (!r) {
        r = find_top(ctl, args, o, err);
    }
    if (!r) {
        r = find_bottom(ctl, args, o, err);
    }
    return !r && o->top == o->base ? into_itself(ctl, args, err) : r;
}

/* With release it is one: what it is told of a commit alone has no meaning. */
static void
as_merge(struct transfer_options *o)
{
    o->device = o->top;
    o->release = true;
    o->into = MERGE_INTO_SNAPSHOT;
}

int
cmd_block_commit(struct control *ctl, const struct args_block_commit *args,
                 json_t **ret, struct err *err)
{
    struct transfer_options o = {
        .job_id = args->job_id ? args->job_id : "",
        .backing_file = args->backing_file,
        .on_error = take_on_error(args->has_on_error, args->on_error,
                                  ON_ERROR_REPORT),
        .on_target_error = take_on_error(args->has_on_error, args->on_error,
                                         ON_ERROR_AUTO),
        .wait_for_verb = true,
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_layers(ctl, args, &o, err);

    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    if (!r) {
        r = check_filter_name(ctl, args->filter_node_name, err);
    }
    if (!r && args->release) {
        o.max_extra = args->max_extra;
        o.upgrade = args->upgrade;
        as_merge(&o);
        take_deletion(false, args->exclusive, args->dependents_in, &o);
        r = transfer_start(ctl->jobs, PRESET_MERGE, &o, err);
        free((void *)(uintptr_t)o.dependents_in);
        return r;
    }
    return r ? r : transfer_start(ctl->jobs, PRESET_COMMIT, &o, err);
}

int
cmd_query_commit_plan(struct control *ctl,
                      const struct args_query_commit_plan *args, json_t **ret,
                      struct err *err)
{
    struct args_block_commit as = {.device = args->device,
                                   .top_node = args->top_node,
                                   .top = args->top,
                                   .base_node = args->base_node,
                                   .base = args->base};
    struct transfer_options o = {.backing_file = args->backing_file,
                                 .max_extra = args->max_extra,
                                 .upgrade = args->upgrade};
    int r = find_layers(ctl, &as, &o, err);

    if (r) {
        return r;
    }
    json_t *drops = layers_between(o.top, o.base);

    json_array_insert_new(drops, 0, json_string(o.top->name));
    if (args->release) {
        as_merge(&o);
    }
    take_deletion(false, args->exclusive, args->dependents_in, &o);
    r = plan_transfer(args->release ? PRESET_MERGE : PRESET_COMMIT, &o, drops,
                      ret, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}
