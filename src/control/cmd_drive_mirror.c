// SPDX-License-Identifier: BSD-3-Clause
/*
 * drive-mirror: blockdev-mirror onto an image that the command makes, or that
 * is there, by its file's name.
 */
#include <errno.h>
#include <string.h>

#include "control/new_image.h"
#include "control/transfer_args.h"
#include "run/file.h"
#include "schema_dispatch.h"

/* The layers that are not copied: the new image is to name them. */
static const struct node *
shown_below(const struct node *device, enum sync_mode sync)
{
    return sync == SYNC_FULL ? NULL
           : sync == SYNC_NONE ? device
           : device->backing   ? device->backing->child
                               : NULL;
}

static int
create(struct control *ctl, const struct args_drive_mirror *args,
       const struct transfer_options *o, const char *format, char **ret_made,
       struct err *err)
{
    const struct node *ours = node_file_below(o->device);

    *ret_made = NULL;
    if (ours && is_same_file(ctl->loop, args->target, ours->filename)) {
        return err_set(err, -EINVAL, "Can't mirror node into itself");
    }
    if (args->has_mode && args->mode == QMP_NEW_IMAGE_MODE_EXISTING) {
        return 0;
    }
    const struct new_image image = {format, args->target, o->device->size,
                                    shown_below(o->device, o->sync)};

    return new_image_create(ctl->graph, &image, ret_made, err);
}

/*
 * Without a name it is there for as long as somebody uses it.  The caller owns
 * a reference, which a name holds on to.
 */
static int
open_target(struct control *ctl, const struct args_drive_mirror *args,
            const struct transfer_options *o, const char *format,
            struct node **ret, struct err *err)
{
    const struct node *below = shown_below(o->device, o->sync);
    json_t *options = json_pack(
        "{s:s, s:s, s:{s:s, s:s}}", "driver", format, "discard",
        !args->has_unmap || args->unmap ? "unmap" : "ignore", "file", "driver",
        "file", "filename", args->target);
    json_t *cache = json_object_get(o->device->options, "cache");
    const struct driver *drv = graph_driver(ctl->graph, format);

    if (drv && drv->set_backing) {
        json_object_set_new(options, "backing",
                            below ? json_string(below->name) : json_null());
    }
    if (cache) {
        json_object_set(options, "cache", cache);
    }
    if (args->node_name) {
        json_object_set_new(options, "node-name",
                            json_string(args->node_name));
    }
    int r = args->node_name ? node_add(ctl->graph, options, ret, err)
                            : node_open(ctl->graph, options, ret, err);

    if (!r && args->node_name) {
        node_ref(*ret);
    }
    json_decref(options);
    return r;
}

static int
take_options(struct control *ctl, const struct args_drive_mirror *args,
             struct transfer_options *o, struct err *err)
{
    int r = control_find_node(ctl, args->device, true, &o->device, err);

    if (!r) {
        r = take_replaces(ctl, args->replaces, o, err);
    }
    if (!r) {
        r = take_sync(args->sync, o, err);
    }
    if (!r) {
        r = take_speed(args->speed, o, err);
    }
    return r ? r : take_buf_size(args->buf_size, o, err);
}

/* With @o->device referred to. */
static int
mirror(struct control *ctl, const struct args_drive_mirror *args,
       struct transfer_options *o, struct err *err)
{
    auto_free char *made = NULL;
    const char *format =
        args->format ? args->format : node_image_format(o->device);
    int r = create(ctl, args, o, format, &made, err);

    if (!r) {
        r = open_target(ctl, args, o, format, &o->target, err);
    }
    if (!r) {
        r = transfer_start(ctl->jobs, PRESET_MIRROR, o, err);
        node_unref(o->target);
        if (r && args->node_name) {
            node_del(ctl->graph, args->node_name, NULL);
        }
    }
    if (r && made) {
        file_unlink(ctl->loop, made); /* half an image is none */
    }
    return r;
}

int
cmd_drive_mirror(struct control *ctl, const struct args_drive_mirror *args,
                 json_t **ret, struct err *err)
{
    struct transfer_options o = {
        .job_id = args->job_id ? args->job_id : "",
        .copy_mode = take_copy_mode(args->has_copy_mode, args->copy_mode),
        .wait_for_verb = true,
        .granularity = args->granularity,
        .on_error = take_on_error(args->has_on_source_error,
                                  args->on_source_error, ON_ERROR_REPORT),
        .on_target_error = take_on_error(args->has_on_target_error,
                                         args->on_target_error, ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = take_options(ctl, args, &o, err);

    if (!r) {
        r = job_check_id(ctl->jobs, o.job_id, err);
    }
    if (r) {
        return r;
    }
    struct node *device = node_ref(o.device);

    r = mirror(ctl, args, &o, err);
    node_unref(device);
    return r;
}
