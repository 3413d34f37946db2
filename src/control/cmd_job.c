// SPDX-License-Identifier: BSD-3-Clause
/*
 * Jobs: the verbs in both families, the queries, and block-stream.  The
 * families differ in the class and the text for a job that does not exist.
 */
#include <errno.h>
#include <string.h>

#include "control/control_internal.h"
#include "transfer/transfer.h"

void
control_job_event(void *arg, const struct job_event *ev)
{
    struct control *ctl = arg;
    const struct job *job = ev->job;
    const char *name = NULL;
    json_t *data;

    switch (ev->kind) {
    case JOB_EVENT_STATUS:
        control_event(ctl, "JOB_STATUS_CHANGE",
                      json_pack("{s:s, s:s}", "id", job->id, "status",
                                job_status_name(job->status)));
        return;
    case JOB_EVENT_PENDING:
        control_event(ctl, "BLOCK_JOB_PENDING",
                      json_pack("{s:s, s:s}", "type", job->driver->type, "id",
                                job->id));
        return;
    case JOB_EVENT_ERROR:
        control_event(ctl, "BLOCK_JOB_ERROR",
                      json_pack("{s:s, s:s, s:s}", "device", job->id,
                                "operation", ev->is_read ? "read" : "write",
                                "action", on_error_name(ev->action)));
        return;
    case JOB_EVENT_COMPLETED:
        name = "BLOCK_JOB_COMPLETED";
        break;
    case JOB_EVENT_CANCELLED:
        name = "BLOCK_JOB_CANCELLED";
        break;
    case JOB_EVENT_READY:
        name = "BLOCK_JOB_READY";
        break;
    }
    data = json_pack("{s:s, s:s, s:I, s:I, s:I}", "type", job->driver->type,
                     "device", job->id, "len", (json_int_t)job->total, "offset",
                     (json_int_t)job->current, "speed", (json_int_t)job->speed);
    if (ev->kind == JOB_EVENT_COMPLETED && job->err.code) {
        json_object_set_new(data, "error", json_string(job->err.msg));
    }
    control_event(ctl, name, data);
}

static struct job *
find_job(struct control *ctl, const char *id, struct err *err)
{
    struct job *job = jobs_find(ctl->jobs, id);

    if (!job) {
        err_set(err, -ENOENT, "Job not found");
    }
    return job;
}

static struct job *
find_block_job(struct control *ctl, const char *id, struct err *err)
{
    struct job *job = jobs_find(ctl->jobs, id);

    if (!job || !job->driver->is_block_job) {
        err_set_class(err, ERR_DEVICE_NOT_ACTIVE, -ENOENT,
                      "Block job '%s' not found", id);
        return NULL;
    }
    return job;
}

#define JOB_VERB(family, verb, find, name, ...)                                \
    int cmd_##family##_##verb(struct control *ctl,                             \
                              const struct args_##family##_##verb *args,       \
                              json_t **ret, struct err *err)                   \
    {                                                                          \
        struct job *job = find(ctl, args->name, err);                          \
                                                                               \
        return job ? job_##verb(job, ##__VA_ARGS__, err) : -ENOENT;            \
    }

JOB_VERB(job, pause, find_job, id)
JOB_VERB(job, resume, find_job, id)
JOB_VERB(job, cancel, find_job, id, true)
JOB_VERB(job, complete, find_job, id)
JOB_VERB(job, finalize, find_job, id)
JOB_VERB(job, dismiss, find_job, id)
JOB_VERB(block_job, pause, find_block_job, device)
JOB_VERB(block_job, resume, find_block_job, device)
JOB_VERB(block_job, cancel, find_block_job, device,
         args->has_force &&args->force)
JOB_VERB(block_job, complete, find_block_job, device)
JOB_VERB(block_job, finalize, find_block_job, id)
JOB_VERB(block_job, dismiss, find_block_job, id)

int
cmd_block_job_set_speed(struct control *ctl,
                        const struct args_block_job_set_speed *args,
                        json_t **ret, struct err *err)
{
    struct job *job = find_block_job(ctl, args->device, err);

    if (!job) {
        return -ENOENT;
    }
    if (args->speed < 0) {
        return err_set(err, -EINVAL, "Speed must not be negative");
    }
    return job_set_speed(job, (uint64_t)args->speed, err);
}

int
cmd_query_jobs(struct control *ctl, const struct args_query_jobs *args,
               json_t **ret, struct err *err)
{
    *ret = json_array();
    list_for_each(it, jobs_list(ctl->jobs))
    {
        const struct job *job = container_of(it, struct job, link);
        json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I}", "id", job->id,
                              "type", job->driver->type, "status",
                              job_status_name(job->status), "current-progress",
                              (json_int_t)job->current, "total-progress",
                              (json_int_t)job->total);

        if (job->err.code) {
            json_object_set_new(o, "error", json_string(job->err.msg));
        }
        json_array_append_new(*ret, o);
    }
    return 0;
}

int
cmd_query_block_jobs(struct control *ctl,
                     const struct args_query_block_jobs *args, json_t **ret,
                     struct err *err)
{
    *ret = json_array();
    list_for_each(it, jobs_list(ctl->jobs))
    {
        const struct job *job = container_of(it, struct job, link);

        if (!job->driver->is_block_job) {
            continue;
        }
        json_t *o = json_pack(
            "{s:s, s:s, s:I, s:I, s:b, s:b, s:I, s:s, s:b, s:s, s:b, s:b}",
            "type", job->driver->type, "device", job->id, "len",
            (json_int_t)job->total, "offset", (json_int_t)job->current, "busy",
            (int)job->busy, "paused", (int)(job->pauses != 0), "speed",
            (json_int_t)job->speed, "io-status",
            job_io_status_name(job->io_status), "ready", (int)job->ready,
            "status", job_status_name(job->status), "auto-finalize",
            (int)job->auto_finalize, "auto-dismiss", (int)job->auto_dismiss);

        if (job->err.code) {
            json_object_set_new(o, "error", json_string(job->err.msg));
        }
        json_array_append_new(*ret, o);
    }
    return 0;
}

/* block-stream */

static struct node *
chain_find(struct node *top, struct node *node)
{
    while (top && top != node) {
        top = top->backing ? top->backing->child : NULL;
    }
    return top;
}

static struct node *
chain_find_file(struct node *top, const char *filename)
{
    while (top && (!top->filename || strcmp(top->filename, filename))) {
        top = top->backing ? top->backing->child : NULL;
    }
    return top;
}

/* The node that stays below, from one of the three ways to say it. */
static int
find_base(struct control *ctl, const struct args_block_stream *args,
          struct node *device, struct node **ret, struct err *err)
{
    const char *name = args->base_node ? args->base_node : args->bottom;
    struct node *node;

    *ret = NULL;
    if (args->base && args->base_node) {
        return err_set(err, -EINVAL, "'base' and 'base-node' cannot be "
                                     "specified at the same time");
    }
    if (args->bottom && (args->base || args->base_node)) {
        return err_set(err, -EINVAL, "'bottom' and 'base%s' cannot be "
                                     "specified at the same time",
                       args->base ? "" : "-node");
    }
    if (args->base) {
        *ret = chain_find_file(device->backing ? device->backing->child : NULL,
                               args->base);
        return *ret ? 0
                    : err_set(err, -ENOENT,
                              "Can't find '%s' in the backing chain",
                              args->base);
    }
    if (!name) {
        return 0;
    }
    node = graph_find(ctl->graph, name);
    if (!node) {
        return err_set(err, -ENOENT,
                       "Cannot find device='' nor node-name='%s'", name);
    }
    if (node == device || !chain_find(device, node)) {
        return err_set(err, -EINVAL,
                       "Node '%s' is not a backing image of '%s'", name,
                       device->name);
    }
    /* `bottom` is the last one that is pulled; what is below it stays. */
    *ret = args->bottom ? node->backing ? node->backing->child : NULL : node;
    return 0;
}

int
cmd_block_stream(struct control *ctl, const struct args_block_stream *args,
                 json_t **ret, struct err *err)
{
    struct node *device = graph_find(ctl->graph, args->device);
    struct transfer_options o = {
        .job_id = args->job_id ? args->job_id : args->device,
        .device = device,
        .backing_file = args->backing_file,
        .speed = args->has_speed && args->speed > 0 ? (uint64_t)args->speed : 0,
        .on_error = args->has_on_error ? (enum on_error)args->on_error
                                       : ON_ERROR_AUTO,
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss};

    if (!device) {
        return err_set(err, -ENOENT,
                       "Cannot find device='%s' nor node-name='%s'",
                       args->device, args->device);
    }
    if (args->has_speed && args->speed < 0) {
        return err_set(err, -EINVAL, "Parameter 'speed' expects a non-negative "
                                     "value");
    }
    int r = find_base(ctl, args, device, &o.base, err);

    if (!r && args->backing_file && !o.base) {
        r = err_set(err, -EINVAL,
                    "backing file specified, but streaming the entire chain");
    }
    return r ? r : stream_start(ctl->jobs, &o, err);
}
