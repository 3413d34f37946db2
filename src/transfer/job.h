// SPDX-License-Identifier: BSD-3-Clause
/*
 * Jobs: QEMU's life cycle, verbs and events (qapi/job.json; its job.c has the
 * same two matrices as job.c here).
 *
 * A job is a coroutine that runs a driver's `run`, then waits (`waiting`,
 * `pending`) for finalisation, then commits or aborts, and is dismissed.  All
 * jobs of one control context are in one list.  Everything runs in the loop's
 * thread.
 */
#ifndef SLUICE_TRANSFER_JOB_H
#define SLUICE_TRANSFER_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"
#include "run/loop.h"

enum job_status {
    JOB_UNDEFINED,
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL,
};

enum job_verb {
    JOB_CANCEL,
    JOB_PAUSE,
    JOB_RESUME,
    JOB_SET_SPEED,
    JOB_COMPLETE,
    JOB_FINALIZE,
    JOB_DISMISS,
    JOB_CHANGE,
};

enum job_io_status { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE };

/* QEMU's policies (BlockdevOnError), in its order. */
enum on_error {
    ON_ERROR_REPORT,
    ON_ERROR_IGNORE,
    ON_ERROR_ENOSPC, /* stop where space is out, else report */
    ON_ERROR_STOP,
    ON_ERROR_AUTO, /* nobody said: as enospc, for the target (rule 9) */
};

struct job;
struct jobs;

/* What a job tells its surroundings, as it happens; must not yield. */
enum job_event_kind {
    JOB_EVENT_STATUS,    /* JOB_STATUS_CHANGE */
    JOB_EVENT_COMPLETED, /* BLOCK_JOB_COMPLETED, with error or without */
    JOB_EVENT_CANCELLED, /* BLOCK_JOB_CANCELLED */
    JOB_EVENT_READY,     /* BLOCK_JOB_READY */
    JOB_EVENT_PENDING,   /* BLOCK_JOB_PENDING */
    JOB_EVENT_ERROR,     /* BLOCK_JOB_ERROR */
};

struct job_event {
    enum job_event_kind kind;
    const struct job *job;
    /* JOB_EVENT_ERROR */
    bool is_read;
    enum on_error action; /* what was done: REPORT, IGNORE or STOP */
};

/* How a job that was ready was asked to end. */
enum job_end {
    JOB_END_OPEN,
    JOB_END_COMPLETE, /* job-complete */
    JOB_END_STOP,     /* block-job-cancel without force */
};

struct job_driver {
    const char *type; /* "stream" and so on, as query-jobs says */
    bool is_block_job; /* query-block-jobs shows it; BLOCK_JOB_* are sent */
    bool can_complete; /* it becomes ready, then looks at job->end */
    /*
     * The work.  0, or -errno with @err set; -ECANCELED where job_cancelled().
     * Yields; calls job_pause_point() often.
     */
    int (*run)(struct job *job, struct err *err);
    /* After finalisation was asked for; may yield and still fail. */
    int (*prepare)(struct job *job, struct err *err);
    /* Whatever became of it; yields; the last call. */
    void (*clean)(struct job *job, bool success);
    /*
     * It was cancelled: ends its waits for the outside; must not yield.  May
     * be NULL.
     */
    void (*cancelled)(struct job *job);
    /*
     * Its speed is another, or a user has paused it or lets it go on: called in
     * its own coroutine, soon; yields.  May be NULL.
     */
    void (*remember)(struct job *job);
};

/* Embedded in what a driver needs; zeroed, then job_start(). */
struct job {
    const struct job_driver *driver;
    char *id;
    struct jobs *jobs;
    struct list link;
    enum job_status status;
    bool auto_finalize, auto_dismiss;

    unsigned pauses;  /* reasons to be paused */
    bool user_paused; /* one of them is job-pause or an error */
    bool by_verb;     /* and it is job-pause */
    bool is_changed;  /* what driver->remember() is for */
    bool begun;       /* see job_set_begun() */
    bool cancelled, busy, ready;
    bool has_moved; /* no copy as of then can be left: any cancel is forced */
    enum job_end end;
    bool decided; /* `end` stays as it is */
    bool finalizing; /* job-finalize was said */
    uint64_t speed;  /* bytes a second; 0: unlimited */
    uint64_t current, total; /* bytes, total can grow */
    enum job_io_status io_status;
    struct err err;
    struct waitq wake; /* anything changed that the job may wait for */
    struct waitq changed; /* its status did, or it is gone from there */
    unsigned refs;
    void (*free)(struct job *job); /* frees the embedding struct */
};

struct jobs *jobs_new(struct loop *loop,
                      void (*on_event)(void *arg, const struct job_event *ev),
                      void *arg);
/* Cancels all, waits until they have ended, frees.  Yields. */
void jobs_free(struct jobs *jobs);
/*
 * The first half of jobs_free().  False where at @deadline_ns a job that is
 * not on a node (`create`) has not ended: what it waits for cannot be
 * cancelled.  Then @jobs must not be freed.  Yields.
 */
bool jobs_end(struct jobs *jobs, uint64_t deadline_ns);
/* jobs_end() was called: what is cancelled was not cancelled by anybody. */
bool jobs_are_ending(const struct jobs *jobs);
struct loop *jobs_loop(const struct jobs *jobs);
struct list *jobs_list(struct jobs *jobs); /* of struct job.link */
struct job *jobs_find(struct jobs *jobs, const char *id);

/*
 * Between the two the jobs of an earlier daemon are started again (resume.h).
 * Who would start another, which may be the same once more, or asks about jobs,
 * waits, but for five seconds at most since the first of them: a disk that
 * hangs shall not hold up the others.  They nest, and do not yield; who waits
 * does.
 */
void jobs_resume_begin(struct jobs *jobs);
void jobs_resume_end(struct jobs *jobs);
void jobs_wait_resumed(struct jobs *jobs);
/* False where they are not all there at @deadline_ns. */
bool jobs_wait_resumed_until(struct jobs *jobs, uint64_t deadline_ns);
struct list *jobs_looked_at(struct jobs *jobs); /* of resume.c's own */

/*
 * Checks the id (QEMU's rule and text; -EEXIST where it is taken) before
 * anything is touched.
 */
int job_check_id(struct jobs *jobs, const char *id, struct err *err);
/*
 * The id of a job that is about to be started by something that yields: until
 * job_id_free(), nobody else can take it.  -EEXIST as job_check_id().
 */
struct job_id {
    struct list link;
    const char *id; /* borrowed */
};
int job_id_take(struct jobs *jobs, const char *id, struct job_id *ret,
                struct err *err);
void job_id_free(struct job_id *id);
/* Takes the job into the list and starts it.  Events come from here on. */
void job_start(struct jobs *jobs, struct job *job, const char *id);
/*
 * Until the job of that name has begun, is over, or is paused; not beyond
 * @deadline_ns.  Yields.
 */
void jobs_wait_begun(struct jobs *jobs, const char *id, uint64_t deadline_ns);

/* Verbs: refused with QEMU's text where the status does not allow them. */
int job_cancel(struct job *job, bool force, struct err *err);
int job_pause(struct job *job, struct err *err);
int job_resume(struct job *job, struct err *err);
int job_set_speed(struct job *job, uint64_t speed, struct err *err);
int job_complete(struct job *job, struct err *err);
int job_finalize(struct job *job, struct err *err);
int job_dismiss(struct job *job, struct err *err);
/* May it be changed now (block-job-change)?  What changes is the driver's. */
int job_check_change(struct job *job, struct err *err);

/* For drivers. */

static inline bool
job_cancelled(const struct job *job)
{
    return job->cancelled;
}

/* All that it does before its first step is done.  Does not yield. */
void job_set_begun(struct job *job);
/*
 * Returns at once unless the job is paused; else waits until it is resumed or
 * cancelled.  Yields.
 */
void job_pause_point(struct job *job);
/* Yields for @ns at most; a cancel, pause or change of speed ends it. */
void job_sleep(struct job *job, uint64_t ns);
void job_set_ready(struct job *job);
/*
 * An I/O error: tells the world, and says what to do.  STOP has paused the job
 * and set its I/O status; the driver tries again after job_pause_point().
 */
enum on_error job_error(struct job *job, enum on_error policy, bool is_read,
                        int error);
/*
 * A job that is about to end, whom nobody can resume any more, lacks space:
 * tells the world once, as if it were paused, and waits for a moment.  Who has
 * space again sets io_status.  Yields.
 */
void job_wait_for_space(struct job *job);

const char *job_status_name(enum job_status status);
const char *job_io_status_name(enum job_io_status status);
const char *on_error_name(enum on_error policy);

#endif
