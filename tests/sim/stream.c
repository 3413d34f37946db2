// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over block-stream under a guest that writes: power failures and
 * kills at every durable event, a failing I/O, and a cancel, a pause at every
 * switch of coroutines.
 */
#include <errno.h>

#include "base/bytes.h"
#include "sim/cases.h"
#include "sim/transfer.h"
#include "transfer/transfer.h"

enum { SIZE = 40 * 1024, ODD_SIZE = 9 * 4096 + 512 };

#define TOP                                                                    \
    "{\"driver\":\"qcow2\",\"node-name\":\"top\",\"discard\":\"unmap\","       \
    "\"file\":{\"driver\":\"file\",\"filename\":\"top\"}}"

/* base (data in most of it) <- middle, shorter than both <- top. */
#define THREE                                                                  \
    "create qcow2 base cluster-size=1024 size=40960\n"                         \
    "fill qcow2 base 5 60 1\n"                                                 \
    "create qcow2 middle cluster-size=512 backing-file=base "                  \
    "backing-fmt=qcow2 size=20480\n"                                           \
    "fill qcow2 middle 10 7 1001\n"                                            \
    "hide 40 40\n"                                                             \
    "create qcow2 top cluster-size=2048 backing-file=middle "                  \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 30 3 2001\n"

static struct node *
backing_of(struct node *node)
{
    return node->backing ? node->backing->child : NULL;
}

struct plan {
    bool to_base; /* stop above the base */
};

static const struct plan whole = {false}, partly = {true};

static void
stream(struct sweep *s, const struct plan *plan)
{
    struct jobs *jobs = jobs_new(sim_loop(s->sim), NULL, NULL);
    struct node *base = plan->to_base ? backing_of(backing_of(s->top)) : NULL;
    struct transfer_options o = {.job_id = "j",
                                 .device = s->top,
                                 .base = base,
                                 .piece = 4096,
                                 .max_in_flight = 16384,
                                 .auto_finalize = true};
    auto_err err = ERR_INIT;

    s->op = jobs;
    if (transfer_start(jobs, PRESET_STREAM, &o, &err)) {
        sweep_fail(s, "the stream does not start: %s", err.msg);
        jobs_free(jobs);
        s->op = NULL;
        return;
    }
    struct job *job = jobs_find(jobs, "j");

    while (job->status != JOB_CONCLUDED) {
        waitq_wait(&job->changed);
    }
    if (!job->err.code && !job->cancelled && backing_of(s->top) != base) {
        sweep_fail(s, "the stream ended, but the chain is as it was");
    }
    if (job->err.code && !s->may_fail) {
        sweep_fail(s, "the stream failed: %s", job->err.msg);
    }
    s->op = NULL;
    jobs_free(jobs);
}

static void
stream_all(struct sweep *s)
{
    stream(s, &whole);
}

static void
stream_to_base(struct sweep *s)
{
    stream(s, &partly);
}

/* The disk fills up: the job pauses and says so; with space it goes on. */
static void
stream_on_a_full_disk(struct sweep *s)
{
    struct sim_disk *disk = sim_world_disk(s->sim);
    struct jobs *jobs = jobs_new(sim_loop(s->sim), NULL, NULL);
    struct transfer_options o = {.job_id = "j",
                                 .device = s->top,
                                 .piece = 4096,
                                 .on_error = ON_ERROR_AUTO,
                                 .auto_finalize = true};
    bool paused = false;

    if (transfer_start(jobs, PRESET_STREAM, &o, NULL)) {
        sweep_fail(s, "the stream does not start");
    }
    struct job *job = jobs_find(jobs, "j");

    /* After the job has looked whether there is enough. */
    while (job->status != JOB_RUNNING) {
        waitq_wait(&job->changed);
    }
    coro_relax();
    sim_disk_set_capacity(disk, sim_disk_used(disk) + 6000);

    while (job->status != JOB_CONCLUDED) {
        if (job->status == JOB_PAUSED) {
            paused = true;
            if (job->io_status != JOB_IO_NOSPACE) {
                sweep_fail(s, "paused, but not for want of space");
            }
            sim_disk_set_capacity(disk, 0);
            job_resume(job, NULL);
        }
        waitq_wait(&job->changed);
    }
    if (!paused || job->err.code || backing_of(s->top)) {
        sweep_fail(s, "paused %d, error %s", paused,
                   job->err.msg ? job->err.msg : "none");
    }
    jobs_free(jobs);
}

/* Of all streams whose flushes take long. */
static struct {
    uint64_t syncs, ns;
} slow;

static void
stream_with_slow_flushes(struct sweep *s)
{
    static const struct sweep_transfer slowly = {.preset = PRESET_STREAM,
                                                 .speed = 4096};

    slow.syncs -= sim_n_syncs(s->sim);
    slow.ns -= loop_now(sim_loop(s->sim));
    sweep_run_transfer(s, &slowly);
    slow.syncs += sim_n_syncs(s->sim);
    slow.ns += loop_now(sim_loop(s->sim));
}

#define COMMON .options = TOP, .image = THREE, .size = SIZE
#define GUESTS .guests = 2, .ops = 10, .max_states = 32

static const struct sweep_setup setups[] = {
    {.name = "stream-all",
     .operation = stream_all,
     .disturb = sweep_cancel_job,
     COMMON,
     GUESTS},
    {.name = "stream-to-base",
     .operation = stream_to_base,
     .disturb = sweep_cancel_job,
     COMMON,
     GUESTS},
    {.name = "stream-resumed",
     .operation = stream_to_base,
     .recover = sweep_resume,
     COMMON,
     GUESTS},
    /* Its last piece is one sector of one cluster. */
    {.name = "stream-odd",
     .image = "create qcow2 base cluster-size=1024 size=37376\n"
              "fill qcow2 base 5 68 1\n"
              "create qcow2 top cluster-size=2048 backing-file=base "
              "backing-fmt=qcow2 size=37376\n",
     .options = TOP,
     .size = ODD_SIZE,
     .operation = stream_all,
     .disturb = sweep_cancel_job,
     GUESTS},
    {.name = "stream-paused",
     .operation = stream_all,
     .disturb = sweep_pause_job,
     .special = true,
     COMMON,
     GUESTS},
    {.name = "stream-full",
     .operation = stream_on_a_full_disk,
     .max_states = 8,
     .special = true,
     COMMON},
    {.name = "stream-slow",
     .operation = stream_with_slow_flushes,
     .slow_file = "top",
     .max_ns = 600 * NS_PER_S,
     .special = true,
     .options = TOP,
     .image = "create qcow2 base cluster-size=1024 size=262144\n"
              "fill qcow2 base 0 256 1\n"
              "create qcow2 top cluster-size=1024 backing-file=base "
              "backing-fmt=qcow2 size=262144\n",
     .size = 262144},
};

/*
 * A guest feels a flush: where they take long there is none each second, which
 * would be two fsyncs.
 */
static void
slow_flushes_are_few(void)
{
    cases_one(cases_plain_sweep, "stream-slow");
    CHECK(slow.ns > 30 * NS_PER_S);
    CHECK(slow.syncs * NS_PER_S < 16 * slow.ns / 10);
}

static void
a_cancel_at_any_moment_leaves_a_right_disk(void)
{
    cases_one(sweep_switches, "stream-all");
    cases_one(sweep_switches, "stream-to-base");
}

static void
a_pause_at_any_moment_loses_nothing(void)
{
    cases_one(sweep_switches, "stream-paused");
}

static void
a_full_disk_pauses_the_stream(void)
{
    cases_one(cases_plain_sweep, "stream-full");
    cases_one(sweep_crashes, "stream-full");
}

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 300);
    tap_run("a full disk pauses the stream", a_full_disk_pauses_the_stream);
    tap_run("slow flushes are few", slow_flushes_are_few);
    tap_run("a cancel at any moment leaves a right disk",
            a_cancel_at_any_moment_leaves_a_right_disk);
    tap_run("a pause at any moment loses nothing",
            a_pause_at_any_moment_loses_nothing);
    return cases_done();
}
