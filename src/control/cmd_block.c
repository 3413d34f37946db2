// SPDX-License-Identifier: BSD-3-Clause
/*
 * Nodes: adding, removing, creating images, and block-stream.
 *
 * A handler that yields holds a reference to every node it goes on with, since
 * another session may remove the node meanwhile.
 */
#include <errno.h>
#include <string.h>

#include "control/control_internal.h"
#include "schema_dispatch.h"
#include "transfer/transfer.h"

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

/* Creating images. */

struct create_job {
    struct job job;
    struct graph *graph;
    const struct driver *drv;
    json_t *options;
};

static int
create_run(struct job *job, struct err *err)
{
    struct create_job *c = container_of(job, struct create_job, job);
    int r = c->drv->create(c->graph, c->options, err);

    job->current = 1;
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
    .type = "create",
    .run = create_run,
    .clean = create_clean,
};

int
cmd_blockdev_create(struct control *ctl,
                    const struct args_blockdev_create *args, json_t **ret,
                    struct err *err)
{
    const char *name =
        json_string_value(json_object_get(args->options, "driver"));
    const struct driver *drv = graph_driver(ctl->graph, name);

    if (!drv || !drv->create) {
        return err_set(err, -ENOTSUP,
                       "Driver does not support blockdev-create");
    }
    int r = job_check_id(ctl->jobs, args->job_id, err);

    if (r) {
        return r;
    }
    struct create_job *c = xzalloc(sizeof(*c));

    c->graph = ctl->graph;
    c->drv = drv;
    c->options = json_deep_copy(args->options);
    c->job.driver = &create_driver;
    c->job.free = create_free;
    c->job.auto_finalize = true;
    c->job.total = 1;
    job_start(ctl->jobs, &c->job, args->job_id);
    return 0;
}

/* Streaming. */

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

/* The node to stop at: *ret is NULL where the whole chain is meant. */
static int
find_base(struct control *ctl, const struct stream_range *args,
          struct node *device, struct node **ret, struct err *err)
{
    struct node *node;
    int r = 0;

    *ret = NULL;
    if (args->base) {
        r = find_backing_file(device, args->base, ret, err);
    } else if (args->base_node) {
        r = control_find_node(ctl, args->base_node, false, &node, err);
        if (!r && (node == device || !chain_contains(device, node))) {
            r = err_set(err, -EINVAL,
                        "Node '%s' is not a backing image of '%s'",
                        args->base_node, device->name);
        }
        *ret = r ? NULL : node;
    } else if (args->bottom) {
        r = control_find_node(ctl, args->bottom, false, &node, err);
        if (!r && !chain_contains(device, node)) {
            r = err_set(err, -EINVAL,
                        "Node '%s' is not in a chain starting from '%s'",
                        args->bottom, device->name);
        }
        *ret = r || !node->backing ? NULL : node->backing->child;
    }
    return r;
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
    return r ? r : find_base(ctl, range, *ret_device, ret_base, err);
}

int
cmd_query_stream_plan(struct control *ctl,
                      const struct args_query_stream_plan *args, json_t **ret,
                      struct err *err)
{
    struct stream_range range = {args->base, args->base_node, args->bottom};
    struct transfer_options o = {0};
    struct transfer_plan plan;
    int r = find_stream(ctl, args->device, &range, &o.device, &o.base, err);

    if (!r) {
        r = claim_check(o.device, CLAIM_WRITE, "a stream", err);
    }
    if (r) {
        return r;
    }
    json_t *drops = json_array();

    for (struct node *n = o.device; n->backing; n = n->backing->child) {
        if (n->backing->child == o.base) {
            break;
        }
        json_array_append_new(drops, json_string(n->backing->child->name));
    }
    node_ref(o.device);
    if (o.base) {
        node_ref(o.base);
    }
    r = stream_plan(&o, &plan, err);
    if (o.base) {
        node_unref(o.base);
    }
    node_unref(o.device);
    if (!r) {
        *ret = json_pack("{s:I, s:I, s:O}", "bytes-to-copy",
                         (json_int_t)plan.bytes_to_copy, "bytes-to-zero",
                         (json_int_t)plan.bytes_to_zero, "drops", drops);
    }
    json_decref(drops);
    return r;
}

int
cmd_block_stream(struct control *ctl, const struct args_block_stream *args,
                 json_t **ret, struct err *err)
{
    struct stream_range range = {args->base, args->base_node, args->bottom};
    struct node *device, *base;
    int r = find_stream(ctl, args->device, &range, &device, &base, err);

    if (!r && !base && args->backing_file) {
        r = err_set(err, -EINVAL,
                    "backing file specified, but streaming the entire chain");
    }
    if (!r) {
        /* There is no device here whose name could be the default. */
        r = job_check_id(ctl->jobs, args->job_id ? args->job_id : "", err);
    }
    if (!r && args->speed < 0) {
        r = err_set(err, -EINVAL,
                    "Parameter 'speed' expects a non-negative value");
    }
    if (r) {
        return r;
    }
    return stream_start(
        ctl->jobs,
        &(struct transfer_options){
            .job_id = args->job_id,
            .device = device,
            .base = base,
            .backing_file = args->backing_file,
            .speed = (uint64_t)args->speed,
            /* Both enumerations are QEMU's. */
            .on_error = args->has_on_error ? (enum on_error)args->on_error
                                           : ON_ERROR_AUTO,
            .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
            .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
        },
        err);
}
