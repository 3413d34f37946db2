// SPDX-License-Identifier: BSD-3-Clause
/*
 * The life of a job, as in QEMU's job.c:
 *
 *   created -> running <-> paused          ready <-> standby
 *                 |  \-> ready ---------------|
 *                 v                           v
 *              waiting -> pending -> concluded -> null
 *   (any of them) -> aborting -> concluded
 *
 * The job's coroutine makes every transition but the last; verbs only leave a
 * note and wake it.
 */
#include "transfer/job.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

enum { RESUME_MS = 5000 };

struct jobs {
    struct loop *loop;
    struct list list;
    void (*on_event)(void *arg, const struct job_event *ev);
    void *arg;
    bool closing;
    struct waitq changed; /* one has left the list */
    struct list ids; /* of struct job_id.link */
    unsigned resuming;
    uint64_t resuming_since;
    struct waitq resumed; /* nobody is any more */
    struct list looked_at;
};

#define S(status) (1u << JOB_##status)

/* Which transitions are legal, by the old status (QEMU: JobSTT). */
static const unsigned transitions[] = {
    [JOB_UNDEFINED] = S(CREATED),
    [JOB_CREATED] = S(RUNNING) | S(PAUSED) | S(ABORTING) | S(CONCLUDED) | S(NULL),
    [JOB_RUNNING] = S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING),
    [JOB_PAUSED] = S(RUNNING),
    [JOB_READY] = S(STANDBY) | S(WAITING) | S(ABORTING),
    [JOB_STANDBY] = S(READY),
    [JOB_WAITING] = S(PENDING) | S(ABORTING),
    [JOB_PENDING] = S(ABORTING) | S(CONCLUDED),
    [JOB_ABORTING] = S(CONCLUDED),
    [JOB_CONCLUDED] = S(NULL),
    [JOB_NULL] = 0,
};

#define ACTIVE (S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY))

/* Which verbs are, by the status (QEMU: JobVerbTable). */
static const unsigned verbs[] = {
    [JOB_CANCEL] = ACTIVE | S(WAITING) | S(PENDING),
    [JOB_PAUSE] = ACTIVE,
    [JOB_RESUME] = ACTIVE,
    [JOB_SET_SPEED] = ACTIVE,
    [JOB_COMPLETE] = S(READY) | S(STANDBY),
    [JOB_FINALIZE] = S(PENDING),
    [JOB_DISMISS] = S(CONCLUDED),
    [JOB_CHANGE] = ACTIVE,
};

const char *
job_status_name(enum job_status status)
{
    static const char *const names[] = {
        "undefined", "created", "running", "paused",  "ready",
        "standby",   "waiting", "pending", "aborting", "concluded",
        "null"};

    return names[status];
}

const char *
job_io_status_name(enum job_io_status status)
{
    static const char *const names[] = {"ok", "failed", "nospace"};

    return names[status];
}

const char *
on_error_name(enum on_error policy)
{
    static const char *const names[] = {"report", "ignore", "enospc", "stop",
                                        "auto"};

    return names[policy];
}

static void
emit(struct job *job, struct job_event ev)
{
    ev.job = job;
    if (job->jobs->on_event &&
        (job->driver->is_block_job || ev.kind == JOB_EVENT_STATUS)) {
        job->jobs->on_event(job->jobs->arg, &ev);
    }
}

static void
set_status(struct job *job, enum job_status status)
{
    assert(transitions[job->status] & 1u << status);
    job->status = status;
    emit(job, (struct job_event){.kind = JOB_EVENT_STATUS});
    waitq_wake_all(&job->changed);
}

static int
check_verb(struct job *job, enum job_verb verb, struct err *err)
{
    static const char *const names[] = {"cancel",    "pause",    "resume",
                                        "set-speed", "complete", "finalize",
                                        "dismiss",   "change"};

    if (verbs[verb] & 1u << job->status) {
        return 0;
    }
    return err_set(err, -EPERM,
                   "Job '%s' in state '%s' cannot accept command verb '%s'",
                   job->id, job_status_name(job->status), names[verb]);
}

/* The list of jobs. */

struct jobs *
jobs_new(struct loop *loop,
         void (*on_event)(void *arg, const struct job_event *ev), void *arg)
{
    struct jobs *jobs = xzalloc(sizeof(*jobs));

    jobs->loop = loop;
    jobs->on_event = on_event;
    jobs->arg = arg;
    list_init(&jobs->list);
    list_init(&jobs->ids);
    waitq_init(&jobs->changed);
    waitq_init(&jobs->resumed);
    list_init(&jobs->looked_at);
    return jobs;
}

struct loop *
jobs_loop(const struct jobs *jobs)
{
    return jobs->loop;
}

struct list *
jobs_list(struct jobs *jobs)
{
    return &jobs->list;
}

struct job *
jobs_find(struct jobs *jobs, const char *id)
{
    list_for_each(it, &jobs->list)
    {
        struct job *job = container_of(it, struct job, link);

        if (!strcmp(job->id, id)) {
            return job;
        }
    }
    return NULL;
}

void
jobs_resume_begin(struct jobs *jobs)
{
    if (!jobs->resuming++) {
        jobs->resuming_since = loop_now(jobs->loop);
    }
}

void
jobs_resume_end(struct jobs *jobs)
{
    if (!--jobs->resuming) {
        waitq_wake_all(&jobs->resumed);
    }
}

bool
jobs_wait_resumed_until(struct jobs *jobs, uint64_t deadline_ns)
{
    while (jobs->resuming && waitq_wait_until(&jobs->resumed, deadline_ns)) {
    }
    return !jobs->resuming;
}

void
jobs_wait_resumed(struct jobs *jobs)
{
    jobs_wait_resumed_until(jobs,
                            jobs->resuming_since + RESUME_MS * NS_PER_MS);
}

struct list *
jobs_looked_at(struct jobs *jobs)
{
    return &jobs->looked_at;
}

int
job_check_id(struct jobs *jobs, const char *id, struct err *err)
{
    bool ok = isalpha((unsigned char)id[0]);

    for (const char *p = id; ok && *p; p++) {
        ok = isalnum((unsigned char)*p) || strchr("-._", *p);
    }
    if (!ok) {
        return err_set(err, -EINVAL, "Invalid job ID '%s'", id);
    }
    if (jobs_find(jobs, id)) {
        return err_set(err, -EEXIST, "Job ID '%s' already in use", id);
    }
    return 0;
}

int
job_id_take(struct jobs *jobs, const char *id, struct job_id *ret,
            struct err *err)
{
    list_for_each(it, &jobs->ids)
    {
        if (!strcmp(container_of(it, struct job_id, link)->id, id)) {
            return err_set(err, -EEXIST, "Job ID '%s' already in use", id);
        }
    }
    ret->id = id;
    list_push(&jobs->ids, &ret->link);
    return 0;
}

void
job_id_free(struct job_id *id)
{
    list_remove(&id->link);
}

static void
job_unref(struct job *job)
{
    if (--job->refs == 0) {
        free(job->id);
        err_clear(&job->err);
        job->free(job);
    }
}

/* Out of the list, for good. */
static void
dismiss(struct job *job)
{
    struct jobs *jobs = job->jobs;

    set_status(job, JOB_NULL);
    list_remove(&job->link);
    waitq_wake_all(&jobs->changed);
    job_unref(job);
}

/* The job's coroutine. */

static void
wait_for_finalize(struct job *job)
{
    if (job->auto_finalize || job->jobs->closing) {
        return;
    }
    emit(job, (struct job_event){.kind = JOB_EVENT_PENDING});
    while (!job->finalizing && !job->cancelled) {
        waitq_wait(&job->wake);
    }
}

static void
job_main(void *arg)
{
    struct job *job = arg;
    int r;

    job_pause_point(job);
    if (job->status == JOB_CREATED) {
        set_status(job, JOB_RUNNING);
    }
    job->busy = true;
    r = job->cancelled ? -ECANCELED : job->driver->run(job, &job->err);
    job_set_begun(job);
    job->busy = false;
    if (job->status == JOB_PAUSED || job->status == JOB_STANDBY) {
        set_status(job, job->ready ? JOB_READY : JOB_RUNNING);
    }
    if (!r) {
        job_pause_point(job); /* asked for in time; it cannot be resumed later */
    }
    if (!r && !job->cancelled) {
        set_status(job, JOB_WAITING);
        set_status(job, JOB_PENDING);
        wait_for_finalize(job);
        r = job->cancelled ? -ECANCELED : 0;
        if (!r && job->driver->prepare) {
            r = job->driver->prepare(job, &job->err);
            /* It is done: a cancel that came meanwhile came too late. */
            job->cancelled = job->cancelled && r;
        }
    }
    if (job->cancelled) {
        r = -ECANCELED;
    }
    if (r) {
        set_status(job, JOB_ABORTING);
    }
    job->driver->clean(job, !r);
    emit(job, (struct job_event){.kind = r == -ECANCELED && !job->err.code
                                             ? JOB_EVENT_CANCELLED
                                             : JOB_EVENT_COMPLETED});
    set_status(job, JOB_CONCLUDED);
    if (job->auto_dismiss || job->jobs->closing) {
        dismiss(job);
    }
    job_unref(job);
}

void
job_start(struct jobs *jobs, struct job *job, const char *id)
{
    job->jobs = jobs;
    job->id = xstrdup(id);
    job->refs = 2; /* the list's and the coroutine's */
    waitq_init(&job->wake);
    waitq_init(&job->changed);
    list_push(&jobs->list, &job->link);
    set_status(job, JOB_CREATED);
    coro_start(jobs->loop, job_main, job);
}

void
job_set_begun(struct job *job)
{
    job->begun = true;
    waitq_wake_all(&job->jobs->changed);
}

static bool
begins(const struct job *job)
{
    return job && !job->begun && !job->pauses;
}

void
jobs_wait_begun(struct jobs *jobs, const char *id, uint64_t deadline_ns)
{
    while (begins(jobs_find(jobs, id)) &&
           waitq_wait_until(&jobs->changed, deadline_ns)) {
    }
}

void
jobs_free(struct jobs *jobs)
{
    jobs_end(jobs, NEVER);
    free(jobs);
}

static void
cancel(struct job *job)
{
    bool first = !job->cancelled;

    job->cancelled = true;
    waitq_wake_all(&job->wake);
    if (first && job->driver->cancelled) {
        job->driver->cancelled(job);
    }
}

static bool
has_block_jobs(const struct jobs *jobs)
{
    list_for_each(it, &jobs->list)
    {
        if (container_of(it, struct job, link)->driver->is_block_job) {
            return true;
        }
    }
    return false;
}

bool
jobs_end(struct jobs *jobs, uint64_t deadline_ns)
{
    jobs->closing = true;
    while (!list_empty(&jobs->list)) {
        bool dismissed = false;

        list_for_each(it, &jobs->list)
        {
            struct job *job = container_of(it, struct job, link);

            if (job->status == JOB_CONCLUDED) {
                dismiss(job);
                dismissed = true;
                break;
            }
            cancel(job);
        }
        if (!dismissed && has_block_jobs(jobs)) {
            waitq_wait(&jobs->changed);
        } else if (!dismissed &&
                   !waitq_wait_until(&jobs->changed, deadline_ns)) {
            return false;
        }
    }
    return true;
}

bool
jobs_are_ending(const struct jobs *jobs)
{
    return jobs->closing;
}

/* Verbs. */

int
job_cancel(struct job *job, bool force, struct err *err)
{
    int r = check_verb(job, JOB_CANCEL, err);

    if (r) {
        return r;
    }
    if (!force && job->decided && !job->has_moved) {
        return err_set(err, -EBUSY,
                       "Job '%s' is about to switch: it can only be cancelled "
                       "by force",
                       job->id);
    }
    /* Only a job that is ready ends well when it is not forced. */
    if (force || job->has_moved ||
        !(1u << job->status & (S(READY) | S(STANDBY)))) {
        cancel(job);
    } else {
        job->end = JOB_END_STOP;
        waitq_wake_all(&job->wake);
    }
    return 0;
}

int
job_pause(struct job *job, struct err *err)
{
    int r = check_verb(job, JOB_PAUSE, err);

    if (!r && job->user_paused) {
        r = err_set(err, -EBUSY, "Job is already paused");
    }
    if (!r) {
        job->user_paused = job->by_verb = job->is_changed = true;
        job->pauses++;
        waitq_wake_all(&job->wake);
    }
    return r;
}

int
job_resume(struct job *job, struct err *err)
{
    int r = check_verb(job, JOB_RESUME, err);

    if (!r && !job->user_paused) {
        r = err_set(err, -EINVAL, "Can't resume a job that was not paused");
    }
    if (!r) {
        job->user_paused = job->by_verb = false;
        job->is_changed = true;
        job->io_status = JOB_IO_OK;
        job->pauses--;
        waitq_wake_all(&job->wake);
    }
    return r;
}

int
job_set_speed(struct job *job, uint64_t speed, struct err *err)
{
    int r = check_verb(job, JOB_SET_SPEED, err);

    if (!r) {
        job->speed = speed;
        job->is_changed = true;
        waitq_wake_all(&job->wake);
    }
    return r;
}

/* One that is paused ends when it is resumed, as with QEMU. */
int
job_complete(struct job *job, struct err *err)
{
    int r = check_verb(job, JOB_COMPLETE, err);

    if (!r && (job->cancelled || !job->driver->can_complete)) {
        r = err_set(err, -EPERM,
                    "The active block job '%s' cannot be completed", job->id);
    }
    if (!r) {
        job->end = JOB_END_COMPLETE;
        waitq_wake_all(&job->wake);
    }
    return r;
}

int
job_finalize(struct job *job, struct err *err)
{
    int r = check_verb(job, JOB_FINALIZE, err);

    if (!r) {
        job->finalizing = true;
        waitq_wake_all(&job->wake);
    }
    return r;
}

int
job_dismiss(struct job *job, struct err *err)
{
    int r = check_verb(job, JOB_DISMISS, err);

    if (!r) {
        dismiss(job);
    }
    return r;
}

int
job_check_change(struct job *job, struct err *err)
{
    return check_verb(job, JOB_CHANGE, err);
}

/* For drivers. */

void
job_pause_point(struct job *job)
{
    bool busy = job->busy;

    if (job->is_changed && job->driver->remember) {
        job->is_changed = false;
        job->driver->remember(job);
    }
    if (!job->pauses || job->cancelled) {
        return;
    }
    set_status(job, job->ready ? JOB_STANDBY : JOB_PAUSED);
    job->busy = false;
    while (job->pauses && !job->cancelled) {
        waitq_wait(&job->wake);
    }
    job->busy = busy;
    set_status(job, job->ready ? JOB_READY : JOB_RUNNING);
}

void
job_sleep(struct job *job, uint64_t ns)
{
    if (!job->cancelled && !job->pauses) {
        waitq_wait_until(&job->wake, loop_now(job->jobs->loop) + ns);
    }
}

void
job_set_ready(struct job *job)
{
    job->ready = true;
    set_status(job, JOB_READY);
    emit(job, (struct job_event){.kind = JOB_EVENT_READY});
}

enum on_error
job_error(struct job *job, enum on_error policy, bool is_read, int error)
{
    enum on_error action = policy;

    if (policy == ON_ERROR_ENOSPC || policy == ON_ERROR_AUTO) {
        action = error == -ENOSPC ? ON_ERROR_STOP : ON_ERROR_REPORT;
    }
    emit(job, (struct job_event){.kind = JOB_EVENT_ERROR,
                                 .is_read = is_read,
                                 .action = action});
    if (action == ON_ERROR_STOP) {
        if (!job->user_paused) {
            job->user_paused = true;
            job->pauses++;
        }
        job->io_status = error == -ENOSPC ? JOB_IO_NOSPACE : JOB_IO_FAILED;
        waitq_wake_all(&job->wake);
    }
    return action;
}

void
job_wait_for_space(struct job *job)
{
    if (job->io_status != JOB_IO_NOSPACE) {
        job->io_status = JOB_IO_NOSPACE;
        emit(job, (struct job_event){.kind = JOB_EVENT_ERROR,
                                     .action = ON_ERROR_STOP});
    }
    job_sleep(job, NS_PER_S);
}
