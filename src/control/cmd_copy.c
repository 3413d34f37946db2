// SPDX-License-Identifier: BSD-3-Clause
/*
 * The commands that move or copy a disk to another image.  Each only fills in
 * struct transfer_options.
 */
#include <errno.h>

#include "control/transfer_args.h"
#include "schema_dispatch.h"

static int
find_pair(struct control *ctl, const char *device, const char *target,
          struct transfer_options *o, struct err *err)
{
    int r = control_find_node(ctl, device, true, &o->device, err);

    return r ? r : control_find_node(ctl, target, true, &o->target, err);
}

int
cmd_blockdev_mirror(struct control *ctl,
                    const struct args_blockdev_mirror *args, json_t **ret,
                    struct err *err)
{
    struct transfer_options o = {
        .job_id = args->job_id ? args->job_id : "",
        .copy_mode = take_copy_mode(args->has_copy_mode, args->copy_mode),
        .wait_for_verb = true,
        .granularity = args->granularity,
        .target_is_zero = args->target_is_zero,
        .on_error = take_on_error(args->has_on_source_error,
                                  args->on_source_error, ON_ERROR_REPORT),
        .on_target_error = take_on_error(args->has_on_target_error,
                                         args->on_target_error, ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_pair(ctl, args->device, args->target, &o, err);

    if (!r) {
        r = take_replaces(ctl, args->replaces, &o, err);
    }
    if (!r) {
        r = take_sync(args->sync, &o, err);
    }
    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    if (!r) {
        r = take_buf_size(args->buf_size, &o, err);
    }
    if (!r) {
        r = check_filter_name(ctl, args->filter_node_name, err);
    }
    return r ? r : transfer_start(ctl->jobs, PRESET_MIRROR, &o, err);
}

enum transfer_preset
take_copy_preset(bool given, enum qmp_copy_mode mode)
{
    static const enum transfer_preset presets[] = {
        [QMP_COPY_MODE_PRE_COPY] = PRESET_PRE_COPY,
        [QMP_COPY_MODE_POST_COPY] = PRESET_POST_COPY,
        [QMP_COPY_MODE_HYBRID] = PRESET_HYBRID,
        [QMP_COPY_MODE_MIRROR] = PRESET_PRE_COPY, /* that waits to be told */
    };

    return given ? presets[mode] : PRESET_PRE_COPY;
}

int
take_copy_end(const struct copy_end *end, struct transfer_options *o,
              struct err *err)
{
    bool stays = end->has_finish ? end->finish == QMP_COPY_FINISH_STAY
                                 : end->is_mirror;

    o->finish = stays ? FINISH_STAY : FINISH_SWITCH;
    o->wait_for_verb =
        end->is_mirror || (end->has_auto_complete && !end->auto_complete);
    return end->is_mirror && end->has_auto_complete && end->auto_complete
               ? err_set(err, -EINVAL,
                         "A mirror does not end by itself: 'auto-complete' "
                         "cannot be true")
               : 0;
}

int
cmd_block_copy(struct control *ctl, const struct args_block_copy *args,
               json_t **ret, struct err *err)
{
    enum transfer_preset preset = take_copy_preset(args->has_mode, args->mode);
    const struct copy_end end = {
        .is_mirror = args->has_mode && args->mode == QMP_COPY_MODE_MIRROR,
        .has_finish = args->has_finish,
        .finish = args->finish,
        .has_auto_complete = args->has_auto_complete,
        .auto_complete = args->auto_complete,
    };
    struct transfer_options o = {
        .job_id = args->job_id,
        .copy_mode = take_copy_mode(args->has_copy_mode, args->copy_mode),
        .granularity = args->granularity,
        .upgrade = args->upgrade,
        .on_error = take_on_error(args->has_on_source_error,
                                  args->on_source_error, ON_ERROR_REPORT),
        .on_target_error = take_on_error(args->has_on_target_error,
                                         args->on_target_error, ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_pair(ctl, args->device, args->target, &o, err);

    if (!r) {
        r = check_parameters(preset, args->json, err);
    }
    if (!r) {
        r = take_copy_end(&end, &o, err);
    }
    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    take_deletion(args->delete_source, args->exclusive, args->dependents_in,
                  &o);
    r = r ? r : transfer_start(ctl->jobs, preset, &o, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}
