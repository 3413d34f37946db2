// SPDX-License-Identifier: BSD-3-Clause
/*
 * The commands that start copies of a disk, and what they report.  Each only
 * fills in struct transfer_options.
 */
#include <errno.h>

#include "control/control_internal.h"
#include "schema_dispatch.h"
#include "transfer/transfer.h"

/* What several commands take. */
static int
take_speed(int64_t speed, struct transfer_options *o, struct err *err)
{
    if (speed < 0) {
        return err_set(err, -EINVAL,
                       "Parameter 'speed' expects a non-negative value");
    }
    o->speed = (uint64_t)speed;
    return 0;
}

static enum copy_mode
copy_mode(bool given, enum qmp_mirror_copy_mode mode)
{
    return !given ? COPY_MODE_AUTO
           : mode == QMP_MIRROR_COPY_MODE_BACKGROUND ? COPY_MODE_BACKGROUND
                                                   : COPY_MODE_FORWARD;
}

static enum on_error
on_error(bool given, enum qmp_blockdev_on_error policy, enum on_error otherwise)
{
    return given ? (enum on_error)policy : otherwise; /* both are QEMU's */
}

static int
find_pair(struct control *ctl, const char *device, const char *target,
          struct transfer_options *o, struct err *err)
{
    int r = control_find_node(ctl, device, true, &o->device, err);

    return r ? r : control_find_node(ctl, target, true, &o->target, err);
}

static int
take_sync(enum qmp_mirror_sync_mode mode, struct transfer_options *o,
          struct err *err)
{
    switch (mode) {
    case QMP_MIRROR_SYNC_MODE_FULL:
        o->sync = SYNC_FULL;
        return 0;
    case QMP_MIRROR_SYNC_MODE_TOP:
        o->sync = SYNC_TOP;
        return 0;
    case QMP_MIRROR_SYNC_MODE_NONE:
        o->sync = SYNC_NONE;
        return 0;
    default:
        return err_set(err, -EINVAL, "Sync mode '%s' not supported",
                       mode == QMP_MIRROR_SYNC_MODE_BITMAP ? "bitmap"
                                                         : "incremental");
    }
}

int
cmd_blockdev_mirror(struct control *ctl,
                    const struct args_blockdev_mirror *args, json_t **ret,
                    struct err *err)
{
    struct transfer_options o = {
        .job_id = args->job_id ? args->job_id : "",
        .copy_mode = copy_mode(args->has_copy_mode, args->copy_mode),
        .wait_for_verb = true,
        .granularity = args->granularity,
        .target_is_zero = args->target_is_zero,
        .on_error = on_error(args->has_on_source_error, args->on_source_error,
                             ON_ERROR_REPORT),
        .on_target_error = on_error(args->has_on_target_error,
                                    args->on_target_error, ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_pair(ctl, args->device, args->target, &o, err);

    if (!r && args->replaces) {
        r = control_find_node(ctl, args->replaces, false, &o.replaces, err);
    }
    if (!r) {
        r = take_sync(args->sync, &o, err);
    }
    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    if (!r && args->buf_size < 0) {
        r = err_set(err, -EINVAL, "Invalid parameter 'buf-size'");
    }
    o.max_in_flight = (uint64_t)args->buf_size;
    return r ? r : mirror_start(ctl->jobs, &o, err);
}

int
cmd_block_copy(struct control *ctl, const struct args_block_copy *args,
               json_t **ret, struct err *err)
{
    enum qmp_copy_mode mode =
        args->has_mode ? args->mode : QMP_COPY_MODE_PRE_COPY;
    bool is_mirror = mode == QMP_COPY_MODE_MIRROR;
    bool stays = args->has_finish ? args->finish == QMP_COPY_FINISH_STAY
                                  : is_mirror;
    struct transfer_options o = {
        .job_id = args->job_id,
        .copy_mode = copy_mode(args->has_copy_mode, args->copy_mode),
        .finish = stays ? FINISH_STAY : FINISH_SWITCH,
        .wait_for_verb =
            is_mirror || (args->has_auto_complete && !args->auto_complete),
        .granularity = args->granularity,
        .on_error = on_error(args->has_on_source_error, args->on_source_error,
                             ON_ERROR_REPORT),
        .on_target_error = on_error(args->has_on_target_error,
                                    args->on_target_error, ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_pair(ctl, args->device, args->target, &o, err);

    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    if (r) {
        return r;
    }
    if (mode == QMP_COPY_MODE_PRE_COPY || is_mirror) {
        return copy_start(ctl->jobs, &o, err);
    }
    if (stays) {
        return err_set(err, -EINVAL,
                       "Post-copy and hybrid end with the disk on the target: "
                       "'finish' cannot be 'stay'");
    }
    return mode == QMP_COPY_MODE_HYBRID ? hybrid_start(ctl->jobs, &o, err)
                                        : post_copy_start(ctl->jobs, &o, err);
}

int
cmd_query_copy_plan(struct control *ctl,
                    const struct args_query_copy_plan *args, json_t **ret,
                    struct err *err)
{
    struct transfer_options o = {0};
    struct transfer_plan plan;
    int r = find_pair(ctl, args->device, args->target, &o, err);

    if (r) {
        return r;
    }
    node_ref(o.device);
    node_ref(o.target);
    r = args->has_mode && args->mode == QMP_COPY_MODE_POST_COPY
            ? post_copy_plan(&o, &plan, err)
            : mirror_plan(&o, &plan, err);
    if (!r) {
        *ret = json_pack("{s:I, s:I, s:[]}", "bytes-to-copy",
                         (json_int_t)plan.bytes_to_copy, "bytes-to-zero",
                         (json_int_t)plan.bytes_to_zero, "drops");
    }
    node_unref(o.target);
    node_unref(o.device);
    return r;
}

int
cmd_block_job_change(struct control *ctl,
                     const struct args_block_job_change *args, json_t **ret,
                     struct err *err)
{
    struct job *job = jobs_find(ctl->jobs, args->id);

    if (!job || !job->driver->is_block_job) {
        return err_set(err, -ENOENT, "Job not found");
    }
    if (args->type != QMP_JOB_TYPE_MIRROR) {
        return err_set(err, -EINVAL, "Job type of '%s' cannot be changed",
                       job->id);
    }
    return mirror_set_copy_mode(job, copy_mode(true, args->copy_mode), err);
}

int
cmd_query_transfers(struct control *ctl,
                    const struct args_query_transfers *args, json_t **ret,
                    struct err *err)
{
    *ret = json_array();
    list_for_each(it, jobs_list(ctl->jobs))
    {
        const struct job *job = container_of(it, struct job, link);
        struct transfer_report r;

        if (!transfer_report(job, &r)) {
            continue;
        }
        json_array_append_new(
            *ret,
            json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                      "id", job->id, "type", job->driver->type, "bytes-moved",
                      (json_int_t)r.bytes_moved, "bytes-cloned",
                      (json_int_t)r.bytes_cloned, "bytes-zeroed",
                      (json_int_t)r.bytes_zeroed, "bytes-dirtied",
                      (json_int_t)r.bytes_dirtied, "bytes-forwarded",
                      (json_int_t)r.bytes_forwarded, "pause-ns",
                      (json_int_t)r.pause_ns, "requests-held",
                      (json_int_t)r.held, "rate-bps", (json_int_t)r.rate_bps,
                      "elapsed-ns", (json_int_t)r.elapsed_ns));
    }
    return 0;
}
