// SPDX-License-Identifier: BSD-3-Clause
/*
 * Jobs: their verbs, queries and events.
 *
 * Every verb exists twice: job-* takes any job and block-job-* only those on
 * nodes, with the error class DeviceNotActive, which managers look for.
 */
#include <errno.h>
#include <string.h>

#include "control/transfer_args.h"
#include "schema_dispatch.h"

/* One of an earlier daemon may be about to be there again. */
static struct job *
wait_for_job(struct control *ctl, const char *id)
{
    struct job *job = jobs_find(ctl->jobs, id);

    if (!job) {
        jobs_wait_resumed(ctl->jobs);
        job = jobs_find(ctl->jobs, id);
    }
    return job;
}

static int
find_job(struct control *ctl, const char *id, struct job **ret,
         struct err *err)
{
    *ret = wait_for_job(ctl, id);
    return *ret ? 0 : err_set(err, -ENOENT, "Job not found");
}

static int
find_block_job(struct control *ctl, const char *id, struct job **ret,
               struct err *err)
{
    struct job *job = wait_for_job(ctl, id);

    if (!job || !job->driver->is_block_job) {
        return err_set_class(err, ERR_DEVICE_NOT_ACTIVE, -ENOENT,
                             "Block job '%s' not found", id);
    }
    *ret = job;
    return 0;
}

/* A handler that finds a job by the argument @member and calls @verb on it. */
#define VERB(name, find, member, verb)                                         \
    int cmd_##name(struct control *ctl, const struct args_##name *args,        \
                   json_t **ret, struct err *err)                              \
    {                                                                          \
        struct job *job = NULL;                                                \
        int r = find(ctl, args->member, &job, err);                            \
                                                                               \
        return r ? r : verb(job, err);                                         \
    }

static int
cancel_by_force(struct job *job, struct err *err)
{
    return job_cancel(job, true, err);
}

VERB(job_pause, find_job, id, job_pause)
VERB(job_resume, find_job, id, job_resume)
VERB(job_cancel, find_job, id, cancel_by_force)
VERB(job_complete, find_job, id, job_complete)
VERB(job_finalize, find_job, id, job_finalize)
VERB(job_dismiss, find_job, id, job_dismiss)
VERB(block_job_pause, find_block_job, device, job_pause)
VERB(block_job_resume, find_block_job, device, job_resume)
VERB(block_job_complete, find_block_job, device, job_complete)
VERB(block_job_finalize, find_block_job, id, job_finalize)
VERB(block_job_dismiss, find_block_job, id, job_dismiss)

int
cmd_block_job_cancel(struct control *ctl,
                     const struct args_block_job_cancel *args, json_t **ret,
                     struct err *err)
{
    struct job *job = NULL;
    int r = find_block_job(ctl, args->device, &job, err);

    if (!r && job->user_paused && !args->force) {
        r = err_set(err, -EBUSY,
                    "The block job for device '%s' is currently paused",
                    args->device);
    }
    return r ? r : job_cancel(job, args->force, err);
}

int
cmd_block_job_set_speed(struct control *ctl,
                        const struct args_block_job_set_speed *args,
                        json_t **ret, struct err *err)
{
    struct job *job = NULL;
    int r = find_block_job(ctl, args->device, &job, err);

    if (!r && args->speed < 0) {
        /* The state comes first in QEMU: the old speed asks about it. */
        r = job_set_speed(job, job->speed, err);
        if (!r) {
            r = err_set(err, -EINVAL,
                        "Parameter 'speed' expects a non-negative value");
        }
    }
    return r ? r : job_set_speed(job, (uint64_t)args->speed, err);
}

int
cmd_block_job_change(struct control *ctl,
                     const struct args_block_job_change *args, json_t **ret,
                     struct err *err)
{
    struct job *job = NULL;
    int r = find_block_job(ctl, args->id, &job, err);

    if (!r && args->type != QMP_JOB_TYPE_MIRROR) {
        r = err_set(err, -EINVAL, "Job '%s' is '%s' job, not '%s'", job->id,
                    job->driver->type, qmp_job_type_name(args->type));
    }
    return r ? r
             : mirror_set_copy_mode(
                   job, take_copy_mode(true, args->copy_mode), err);
}

/* Queries. */

static json_t *
number(uint64_t v)
{
    return json_integer((json_int_t)(v > INT64_MAX ? INT64_MAX : v));
}

static void
add_error(json_t *info, const struct job *job)
{
    if (job->err.code) {
        json_object_set_new(info, "error", json_string(job->err.msg));
    } else if (job->cancelled &&
               job->status == JOB_CONCLUDED) {
        json_object_set_new(info, "error", json_string("Operation canceled"));
    }
}

int
cmd_query_jobs(struct control *ctl, const struct args_query_jobs *args,
               json_t **ret, struct err *err)
{
    jobs_wait_resumed(ctl->jobs);
    *ret = json_array();
    list_for_each(it, jobs_list(ctl->jobs))
    {
        struct job *job = container_of(it, struct job, link);
        json_t *info = json_pack(
            "{s:s, s:s, s:s, s:o, s:o}", "id", job->id, "type",
            job->driver->type, "status", job_status_name(job->status),
            "current-progress", number(job->current), "total-progress",
            number(job->total));

        add_error(info, job);
        json_array_append_new(*ret, info);
    }
    return 0;
}

static json_t *
block_job_info(const struct job *job)
{
    bool is_synced;
    json_t *info = json_pack(
        "{s:s, s:s, s:o, s:o, s:b, s:b, s:o, s:s, s:b, s:s, s:b, s:b}", "type",
        job->driver->type, "device", job->id, "len", number(job->total),
        "offset", number(job->current), "busy", job->busy, "paused",
        job->pauses > 0, "speed", number(job->speed), "io-status",
        job_io_status_name(job->io_status), "ready", job->ready, "status",
        job_status_name(job->status), "auto-finalize", job->auto_finalize,
        "auto-dismiss", job->auto_dismiss);

    if (mirror_is_synced(job, &is_synced)) {
        json_object_set_new(info, "actively-synced", json_boolean(is_synced));
    }
    add_error(info, job);
    return info;
}

int
cmd_query_block_jobs(struct control *ctl,
                     const struct args_query_block_jobs *args, json_t **ret,
                     struct err *err)
{
    jobs_wait_resumed(ctl->jobs);
    *ret = json_array();
    list_for_each(it, jobs_list(ctl->jobs))
    {
        const struct job *job = container_of(it, struct job, link);

        if (job->driver->is_block_job) {
            json_array_append_new(*ret, block_job_info(job));
        }
    }
    return 0;
}

/* Events. */

static json_t *
progress(const struct job *job)
{
    return json_pack("{s:s, s:s, s:o, s:o, s:o}", "type", job->driver->type,
                     "device", job->id, "len", number(job->total), "offset",
                     number(job->current), "speed", number(job->speed));
}

void
control_job_event(void *arg, const struct job_event *ev)
{
    struct control *ctl = arg;
    const struct job *job = ev->job;
    json_t *data;

    switch (ev->kind) {
    case JOB_EVENT_STATUS:
        data = json_pack("{s:s, s:s}", "id", job->id, "status",
                         job_status_name(job->status));
        control_event(ctl, "JOB_STATUS_CHANGE", data);
        break;
    case JOB_EVENT_COMPLETED:
        data = progress(job);
        if (job->err.code) {
            json_object_set_new(data, "error", json_string(job->err.msg));
        }
        control_event(ctl, "BLOCK_JOB_COMPLETED", data);
        break;
    case JOB_EVENT_CANCELLED:
        control_event(ctl, "BLOCK_JOB_CANCELLED", progress(job));
        break;
    case JOB_EVENT_READY:
        control_event(ctl, "BLOCK_JOB_READY", progress(job));
        break;
    case JOB_EVENT_PENDING:
        data = json_pack("{s:s, s:s}", "type", job->driver->type, "id",
                         job->id);
        control_event(ctl, "BLOCK_JOB_PENDING", data);
        break;
    case JOB_EVENT_ERROR:
        data = json_pack("{s:s, s:s, s:s}", "device", job->id, "operation",
                         ev->is_read ? "read" : "write", "action",
                         on_error_name(ev->action));
        control_event(ctl, "BLOCK_JOB_ERROR", data);
        break;
    }
}
