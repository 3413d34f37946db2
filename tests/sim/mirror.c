// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a mirror under guests that write: it comes in step, and the
 * disk goes on on the target, or stays.  A crash at any event leaves a target
 * that is refused as unfinished, or one that reads right; then the source need
 * not.
 */
#include <errno.h>

#include "base/bytes.h"
#include "sim/cases.h"
#include "transfer/transfer.h"

enum { SIZE = 40 * 1024, VERB_NS = 60000000 };

#define FILE_OF(name) "\"file\":{\"driver\":\"file\",\"filename\":\"" name "\"}"
#define IMAGE(name, driver, file)                                              \
    "{\"driver\":\"" driver "\",\"node-name\":\"" name                         \
    "\",\"discard\":\"unmap\"," FILE_OF(file) "}"

/* base <- top, and an empty target beside them. */
#define TWO                                                                    \
    "create qcow2 base cluster-size=1024 size=40960\n"                         \
    "fill qcow2 base 5 40 1\n"                                                 \
    "create qcow2 top cluster-size=2048 backing-file=base "                    \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 30 13 2001\n"

typedef int start_fn(struct jobs *jobs, const struct transfer_options *o,
                     struct err *err);

struct plan {
    start_fn *start;
    enum finish finish;
    enum copy_mode mode;
    bool wait_for_verb;
    bool at_any_time; /* the verb comes when it pleases */
    uint64_t speed;   /* so slow that the guests are ahead; 0: no limit */
};

static struct job *
start(struct sweep *s, struct jobs *jobs, const struct plan *plan,
      const char *target)
{
    json_t *options = json_loads(target, 0, NULL);
    auto_err err = ERR_INIT;
    struct node *node;
    struct transfer_options o = {.job_id = "j",
                                 .device = s->top,
                                 .piece = 4096,
                                 .max_in_flight = 16384,
                                 .granularity = 512,
                                 .speed = plan->speed,
                                 .finish = plan->finish,
                                 .copy_mode = plan->mode,
                                 .wait_for_verb = plan->wait_for_verb,
                                 .auto_finalize = true};

    if (node_add(s->graph, options, &node, &err)) {
        if (!s->may_fail) {
            sweep_fail(s, "the target does not open: %s", err.msg);
        }
        node = NULL;
    }
    json_decref(options);
    o.target = node;
    if (node && plan->start(jobs, &o, &err) && !s->may_fail) {
        sweep_fail(s, "the copy does not start: %s", err.msg);
    }
    return jobs_find(jobs, "j");
}

static void
mirror(struct sweep *s, const struct plan *plan, const char *target)
{
    struct jobs *jobs = jobs_new(sim_loop(s->sim), NULL, NULL);
    struct job *job = start(s, jobs, plan, target);

    uint64_t now = loop_now(sim_loop(s->sim));
    uint64_t at = plan->at_any_time ? now + sim_random(&s->rng) % VERB_NS : 0;

    s->op = jobs;
    while (job && job->status != JOB_CONCLUDED) {
        if (loop_now(sim_loop(s->sim)) < at) {
            coro_sleep(NS_PER_MS / 10);
            continue;
        }
        if (job->status == JOB_READY && plan->finish == FINISH_SWITCH) {
            job_complete(job, NULL);
        } else if (job->status == JOB_READY) {
            job_cancel(job, false, NULL);
        }
        /* A verb is refused where a pause is asked for: it is said again. */
        waitq_wait_until(&job->changed,
                         loop_now(sim_loop(s->sim)) + NS_PER_MS);
    }
    if (job && job->err.code && !s->may_fail) {
        sweep_fail(s, "the mirror failed: %s", job->err.msg);
    }
    s->done = job && !job->err.code && !job->cancelled;
    if (s->done && (root_node(s->root) == s->top) !=
                       (plan->finish == FINISH_STAY)) {
        sweep_fail(s, "the disk is not where it should be");
    }
    s->op = NULL;
    jobs_free(jobs);
}

#define TO_QCOW2 IMAGE("target", "qcow2", "copy")
#define TO_QED IMAGE("target", "qed", "copy")

static void
switch_to_qcow2(struct sweep *s)
{
    mirror(s, &(struct plan){.start = copy_start, .finish = FINISH_SWITCH}, TO_QCOW2);
}

static void
switch_to_qed(struct sweep *s)
{
    mirror(s, &(struct plan){.start = copy_start, .finish = FINISH_SWITCH}, TO_QED);
}

static void
switch_when_told(struct sweep *s)
{
    mirror(s,
           &(struct plan){.start = mirror_start,
                          .finish = FINISH_SWITCH,
                          .mode = COPY_MODE_BACKGROUND,
                          .wait_for_verb = true},
           TO_QCOW2);
}

static void
forward_from_the_start(struct sweep *s)
{
    mirror(s,
           &(struct plan){.start = mirror_start,
                          .finish = FINISH_SWITCH,
                          .mode = COPY_MODE_FORWARD,
                          .wait_for_verb = true},
           TO_QCOW2);
}

static void
post_copy(struct sweep *s)
{
    mirror(s, &(struct plan){.start = post_copy_start}, TO_QCOW2);
    if (s->done && root_node(s->root)->backing) {
        sweep_fail(s, "the copy ended, but the target has a backing file");
    }
}

static void
hybrid(struct sweep *s)
{
    mirror(s, &(struct plan){.start = hybrid_start,
                          .mode = COPY_MODE_BACKGROUND,
                          .at_any_time = true,
                          .speed = 4 * MIB},
           TO_QCOW2);
    if (s->done && root_node(s->root)->backing) {
        sweep_fail(s, "the copy ended, but the target has a backing file");
    }
}

static void
stay(struct sweep *s)
{
    mirror(s, &(struct plan){.start = copy_start, .finish = FINISH_STAY},
           TO_QCOW2);
}

#define COMMON                                                                 \
    .options = IMAGE("top", "qcow2", "top"), .size = SIZE, .guests = 2,        \
    .ops = 40, .max_states = 6, .think_ns = 2 * NS_PER_MS, .ends_on_target = true

#define QCOW2_COPY "create qcow2 copy cluster-size=1024 size=40960\n"

static const struct sweep_setup setups[] = {
    {.name = "mirror-switch",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_to_qcow2,
     .disturb = sweep_cancel_job,
     COMMON},
    {.name = "mirror-qed",
     .image = TWO "create qed copy size=40960\n"
                  "stale qed copy 0 80 9001\n",
     .judge_target = IMAGE("top", "qed", "copy"),
     .operation = switch_to_qed,
     .disturb = sweep_cancel_job,
     COMMON},
    {.name = "mirror-told",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_when_told,
     .disturb = sweep_pause_job,
     COMMON},
    {.name = "mirror-forward",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = forward_from_the_start,
     .disturb = sweep_pause_job,
     COMMON},
    /* Before the switch the target reads as the source: it is below. */
    {.name = "post-copy",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = post_copy,
     .disturb = sweep_cancel_job,
     COMMON},
    {.name = "hybrid",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = hybrid,
     .disturb = sweep_cancel_job,
     COMMON},
    /* The disk stays, so that nothing is asked of the target. */
    {.name = "mirror-stay",
     .image = TWO QCOW2_COPY,
     .operation = stay,
     .disturb = sweep_cancel_job,
     COMMON},
};

static void
a_crash_after_a_failure_leaves_a_right_disk(void)
{
    for (size_t i = 0; i < ARRAY_LEN(setups); i++) {
        CHECK_INT(sweep_failures_and_crashes(&setups[i], 1 + i), 0);
    }
}

static void
a_cancel_or_pause_at_any_moment_leaves_a_right_disk(void)
{
    for (size_t i = 0; i < ARRAY_LEN(setups); i++) {
        CHECK_INT(sweep_switches(&setups[i], 1 + i), 0);
    }
}

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 300);
    tap_run("a crash after a failure leaves a right disk",
            a_crash_after_a_failure_leaves_a_right_disk);
    tap_run("a cancel or pause at any moment leaves a right disk",
            a_cancel_or_pause_at_any_moment_leaves_a_right_disk);
    return tap_done();
}
