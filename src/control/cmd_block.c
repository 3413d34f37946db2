// SPDX-License-Identifier: BSD-3-Clause
/* Commands on nodes: add, delete, create, snapshot, list. */
#include <errno.h>
#include <string.h>

#include "block/edit.h"
#include "control/control_internal.h"

#define SNAPSHOT_DEADLINE_NS (30 * NS_PER_S)

int
cmd_blockdev_add(struct control *ctl, const struct args_blockdev_add *args,
                 json_t **ret, struct err *err)
{
    return node_add(ctl->graph, args->json, NULL, err);
}

int
cmd_blockdev_del(struct control *ctl, const struct args_blockdev_del *args,
                 json_t **ret, struct err *err)
{
    return node_del(ctl->graph, args->node_name, err);
}

/* blockdev-create is a job without BLOCK_JOB_* events. */

struct create_job {
    struct job job;
    struct graph *graph;
    json_t *options;
};

static int
create_run(struct job *job, struct err *err)
{
    struct create_job *c = container_of(job, struct create_job, job);
    const char *name = json_string_value(json_object_get(c->options, "driver"));
    const struct driver *drv = graph_driver(c->graph, name);

    job->total = 1;
    if (!drv || !drv->create) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' does not support blockdev-create", name);
    }
    int r = drv->create(c->graph, c->options, err);

    job->current = r ? 0 : 1;
    return r;
}

static void
create_clean(struct job *job, bool success)
{
}

static void
create_free(struct job *job)
{
    struct create_job *c = container_of(job, struct create_job, job);

    json_decref(c->options);
    free(c);
}

static const struct job_driver create_driver = {
    .type = "create", .run = create_run, .clean = create_clean};

int
cmd_blockdev_create(struct control *ctl,
                    const struct args_blockdev_create *args, json_t **ret,
                    struct err *err)
{
    int r = job_check_id(ctl->jobs, args->job_id, err);

    if (r) {
        return r;
    }
    struct create_job *c = xzalloc(sizeof(*c));

    c->graph = ctl->graph;
    c->options = json_deep_copy(args->options);
    c->job.driver = &create_driver;
    c->job.free = create_free;
    c->job.auto_finalize = true;
    job_start(ctl->jobs, &c->job, args->job_id);
    return 0;
}

static struct node *
find_node(struct control *ctl, const char *name, struct err *err)
{
    struct node *node = graph_find(ctl->graph, name);

    if (!node) {
        err_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'",
                name, name);
    }
    return node;
}

int
cmd_blockdev_snapshot(struct control *ctl,
                      const struct args_blockdev_snapshot *args, json_t **ret,
                      struct err *err)
{
    struct node *node = find_node(ctl, args->node, err);
    struct node *overlay = node ? find_node(ctl, args->overlay, err) : NULL;
    struct edit_options options = {
        .deadline_ns = loop_now(ctl->loop) + SNAPSHOT_DEADLINE_NS};

    if (!overlay) {
        return -ENOENT;
    }
    if (!list_empty(&overlay->roots) || !list_empty(&overlay->parents)) {
        return err_set(err, -EBUSY, "The overlay is already in use");
    }
    if (overlay->backing) {
        return err_set(err, -EINVAL, "The overlay already has a backing image");
    }
    if (!overlay->drv->set_backing) {
        return err_set(err, -ENOTSUP, "The overlay does not support backing "
                                      "images");
    }
    struct edit edits[] = {{EDIT_REPLACE, node, overlay},
                           {EDIT_BACKING, overlay, node}};
    /* What was written so far is durable below, or the overlay's flush lies. */
    int r = node_flush(node);

    if (r) {
        return err_set_errno(err, r, "Flushing node '%s' failed", node->name);
    }
    return graph_edit(ctl->graph, edits, 2, &options, NULL, err);
}

/* query-named-block-nodes */

enum { NESTED_MAX = 64 }; /* images described inside each other */

static json_t *
text(const char *s)
{
    json_t *v = json_string(s ? s : "");

    return v ? v : json_string("(a name that is not UTF-8)");
}

static json_t *
image_info(struct node *node)
{
    json_t *o = json_pack("{s:o, s:s, s:I}", "filename", text(node->filename),
                          "format", node->drv->name, "virtual-size",
                          (json_int_t)node->size);

    if (node->header_backing.filename) {
        json_object_set_new(o, "backing-filename",
                            text(node->header_backing.filename));
        if (node->header_backing.format) {
            json_object_set_new(o, "backing-filename-format",
                                text(node->header_backing.format));
        }
    }
    if (node->drv->info) {
        node->drv->info(node, o);
    }
    if (node->file && node->file->child->drv->info) {
        node->file->child->drv->info(node->file->child, o);
    }
    return o;
}

static json_t *
chain_info(struct node *node)
{
    json_t *top = image_info(node), *at = top;
    unsigned depth = 1;

    while (node->backing && depth++ < NESTED_MAX) {
        node = node->backing->child;
        json_t *next = image_info(node);

        json_object_set_new(at, "backing-image", next);
        at = next;
    }
    return top;
}

static json_t *
node_info(struct node *node, bool flat)
{
    json_t *cache = json_object_get(node->options, "cache");
    json_t *children = json_array();
    json_int_t depth = 0;

    for (struct node *n = node; n->backing; n = n->backing->child) {
        depth++;
    }
    if (node->file) {
        json_array_append_new(
            children, json_pack("{s:s, s:s}", "child", "file", "node-name",
                                node->file->child->name));
    }
    if (node->backing) {
        json_array_append_new(
            children, json_pack("{s:s, s:s}", "child", "backing", "node-name",
                                node->backing->child->name));
    }
    json_t *o = json_pack(
        "{s:o, s:s, s:b, s:s, s:I, s:o, s:b, s:b, s:s, s:i, s:i, s:i, s:i,"
        " s:i, s:i, s:o, s:{s:b, s:b, s:b}, s:i}",
        "file", text(node->filename), "node-name", node->name, "ro",
        (int)node->read_only, "drv", node->drv->name, "backing_file_depth",
        depth, "children", children, "active", 1, "encrypted", 0,
        "detect_zeroes", "off", "bps", 0, "bps_rd", 0, "bps_wr", 0, "iops", 0,
        "iops_rd", 0, "iops_wr", 0, "image",
        flat ? image_info(node) : chain_info(node), "cache", "writeback", 1,
        "direct", (int)opt_bool(cache, "direct", false), "no-flush",
        (int)opt_bool(cache, "no-flush", false), "write_threshold", 0);

    if (node->backing) {
        json_object_set_new(o, "backing_file",
                            text(node->backing->child->filename));
    }
    return o;
}

int
cmd_query_named_block_nodes(struct control *ctl,
                            const struct args_query_named_block_nodes *args,
                            json_t **ret, struct err *err)
{
    struct node **nodes = NULL;
    size_t n = 0;

    /* node_info() may yield, so the list is held, not walked. */
    *ret = json_array();
    graph_hold_all(ctl->graph, &nodes, &n);
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(*ret, node_info(nodes[i], args->flat));
        node_unref(nodes[i]);
    }
    free(nodes);
    return 0;
}
