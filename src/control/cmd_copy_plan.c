// SPDX-License-Identifier: BSD-3-Clause
/*
 * query-copy-plan: what a block-copy would move, onto a node or onto an image
 * that is yet to be made.
 *
 * Of the latter an empty one is made in memory, as large as the disk, and
 * measured like any other: so the checks and the clusters are those of the
 * format.  For QED, which cannot be made in memory, since it needs a file that
 * grows, qcow2 stands in: both can be overlays, and have clusters of 64 KiB.
 * A raw image is as many bytes as were copied.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "control/transfer_args.h"
#include "schema_dispatch.h"

/* What headers and tables of an empty image need, and a first table of L1. */
#define EMPTY_IMAGE_BYTES(size) (4 * MIB + ((size) >> 24))

static int
open_json(struct graph *graph, json_t *options, struct node **ret,
          struct err *err)
{
    int r = node_open(graph, options, ret, err);

    json_decref(options);
    return r;
}

static int
open_empty_raw(struct graph *graph, uint64_t size, struct node **ret,
               struct err *err)
{
    return open_json(graph,
                     json_pack("{s:s, s:{s:s, s:I, s:b}}", "driver", "raw",
                               "file", "driver", "null-co", "size",
                               (json_int_t)size, "read-zeroes", 1),
                     ret, err);
}

static int
open_empty_qcow2(struct graph *graph, uint64_t size, struct node **ret,
                 struct err *err)
{
    struct node *memory;
    int r = open_json(graph,
                      json_pack("{s:s, s:I}", "driver", "mem", "size",
                                (json_int_t)EMPTY_IMAGE_BYTES(size)),
                      &memory, err);

    if (r) {
        return r;
    }
    json_t *create = json_pack("{s:s, s:I}", "file", memory->name, "size",
                               (json_int_t)size);

    r = graph_driver(graph, "qcow2")->create(graph, create, err);
    json_decref(create);
    if (!r) {
        r = open_json(graph,
                      json_pack("{s:s, s:s, s:n}", "driver", "qcow2", "file",
                                memory->name, "backing"),
                      ret, err);
    }
    node_unref(memory);
    return r;
}

static int
plan_new_image(const struct args_query_copy_plan *args, struct graph *graph,
               struct transfer_options *o, json_t **ret, struct err *err)
{
    bool is_raw = args->format == QMP_BLOCKDEV_DRIVER_RAW;
    uint64_t size = o->device->size;

    if (!is_raw && args->format != QMP_BLOCKDEV_DRIVER_QCOW2 &&
        args->format != QMP_BLOCKDEV_DRIVER_QED) {
        return err_set(err, -ENOTSUP,
                       "Format driver '%s' does not support image creation",
                       qmp_blockdev_driver_name(args->format));
    }
    int r = is_raw ? open_empty_raw(graph, size, &o->target, err)
                   : open_empty_qcow2(graph, size, &o->target, err);

    if (r) {
        return r;
    }
    /* It will be a file, which a header can name. */
    node_show_file(o->target->file->child, "a new image", (struct file_id){0});
    r = plan_transfer(take_copy_preset(args->has_mode, args->mode), o,
                      json_array(), ret, err);
    if (!r && is_raw) { /* a new file is zero */
        json_object_set(*ret, "space-needed",
                        json_object_get(*ret, "bytes-to-copy"));
        json_object_set_new(*ret, "bytes-to-zero", json_integer(0));
    }
    node_unref(o->target);
    return r;
}

static int
take_ends(struct control *ctl, const struct args_query_copy_plan *args,
          struct transfer_options *o, struct err *err)
{
    int r = control_find_node(ctl, args->device, true, &o->device, err);

    if (!r && !args->target == !args->has_format) {
        r = err_set(err, -EINVAL,
                    "Either 'target' or 'format' says where the disk goes");
    }
    return r || !args->target
               ? r
               : control_find_node(ctl, args->target, true, &o->target, err);
}

static int
plan(struct control *ctl, const struct args_query_copy_plan *args,
     struct transfer_options *o, json_t **ret, struct err *err)
{
    if (o->target) {
        return plan_transfer(take_copy_preset(args->has_mode, args->mode), o,
                             json_array(), ret, err);
    }
    node_ref(o->device); /* making the image yields */
    int r = plan_new_image(args, ctl->graph, o, ret, err);

    node_unref(o->device);
    return r;
}

int
cmd_query_copy_plan(struct control *ctl,
                    const struct args_query_copy_plan *args, json_t **ret,
                    struct err *err)
{
    const struct copy_end end = {
        .is_mirror = args->has_mode && args->mode == QMP_COPY_MODE_MIRROR,
        .has_finish = args->has_finish,
        .finish = args->finish,
        .has_auto_complete = args->has_auto_complete,
        .auto_complete = args->auto_complete,
    };
    struct transfer_options o = {.granularity = args->granularity,
                                 .upgrade = args->upgrade};
    int r = take_ends(ctl, args, &o, err);

    if (!r) {
        r = check_parameters(take_copy_preset(args->has_mode, args->mode),
                             args->json, err);
    }
    if (!r) {
        r = take_copy_end(&end, &o, err);
    }
    if (r) {
        return r;
    }
    take_deletion(args->delete_source, args->exclusive, args->dependents_in,
                  &o);
    r = plan(ctl, args, &o, ret, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}
