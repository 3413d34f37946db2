// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a mirror under guests that write: it comes in step, and the
 * disk goes on on the target, or stays.  A crash at any event leaves a target
 * that is refused as unfinished, or one that reads right; then the source need
 * not.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/edit.h"
#include "run/file.h"
#include "sim/cases.h"
#include "sim/transfer.h"

enum { SIZE = 40 * 1024 };

#define FILE_OF(name) "\"file\":{\"driver\":\"file\",\"filename\":\"" name "\"}"
#define IMAGE(name, driver, file)                                              \
    "{\"driver\":\"" driver "\",\"node-name\":\"" name                         \
    "\",\"discard\":\"unmap\"," FILE_OF(file) "}"

/* And between them one that holds only what is hidden, and a table. */
#define THREE                                                                  \
    "create qcow2 base cluster-size=1024 size=40960\n"                         \
    "fill qcow2 base 5 40 1\n"                                                 \
    "create qcow2 middle cluster-size=512 backing-file=base "                  \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 middle 32 8 1001\n"                                            \
    "create qcow2 top cluster-size=2048 backing-file=middle "                  \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 30 13 2001\n"

/* base <- top, and an empty target beside them. */
#define TWO                                                                    \
    "create qcow2 base cluster-size=1024 size=40960\n"                         \
    "fill qcow2 base 5 40 1\n"                                                 \
    "create qcow2 top cluster-size=2048 backing-file=base "                    \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 30 13 2001\n"

static void
copy(struct sweep *s, const struct sweep_transfer *plan)
{
    sweep_run_transfer(s, plan);
    if (s->done && (root_node(s->root) == s->top) !=
                       (plan->finish == FINISH_STAY)) {
        sweep_fail(s, "the disk is not where it should be");
    }
    if (s->done && root_node(s->root) != s->top &&
        root_node(s->root)->backing) {
        sweep_fail(s, "the copy ended, but the target has a backing file");
    }
}

#define TO_QCOW2 IMAGE("target", "qcow2", "copy")
#define TO_QED IMAGE("target", "qed", "copy")
#define OVERLAY                                                                \
    "{\"driver\":\"qcow2\",\"node-name\":\"target\",\"backing\":\"top\","        \
    "\"discard\":\"unmap\"," FILE_OF("copy") "}"

static void
switch_to_qcow2(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = TO_QCOW2});
}

static void
step(struct sweep *s, enum step_op op, uint64_t sector)
{
    sweep_step(s, &(struct step){.op = op, .sector = sector, .n = 8});
}

/*
 * What was discarded is missing on the target, so the write misses it: that
 * must be said on the target before the guest hears of the write, let alone of
 * the flush, and goes on.
 */
static void
write_what_is_missing(struct sweep *s)
{
    uint64_t at = sim_random(&s->rng) % 72;

    step(s, STEP_DISCARD, at);
    step(s, STEP_WRITE, at);
    step(s, STEP_FLUSH, at);
    step(s, STEP_WRITE, at);
}

static void
switch_and_miss(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = TO_QCOW2,
                                     .in_switch = write_what_is_missing,
                                     .n_in_switch = 4});
}

/* It is forwarded, and no flush of the target covers it before the switch. */
static void
write_once(struct sweep *s)
{
    step(s, STEP_WRITE, sim_random(&s->rng) % 72);
}

static void
flush(struct sweep *s)
{
    step(s, STEP_FLUSH, 0);
}

/* From copy to copy: the first target is a layer before it was flushed. */
static void
switch_twice(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = TO_QCOW2,
                                     .in_switch = write_once,
                                     .n_in_switch = 1});
    if (s->done) {
        s->done = false;
        copy(s, &(struct sweep_transfer){.preset = PRESET_POST_COPY,
                                         .target =
                                             IMAGE("next", "qcow2", "next"),
                                         .once_started = flush});
    }
}

/*
 * As the end of a stream or a commit below does it: a layer goes whose
 * data is hidden, whoever is looking through it.
 */
static void
drop_a_layer(struct sweep *s)
{
    struct edge *backing = s->top->backing;
    struct node *middle = backing ? backing->child : NULL;

    if (middle && middle->backing) {
        struct edit edit = {EDIT_BACKING, s->top, middle->backing->child};
        struct edit_options o = {.alike = true};

        if (graph_edit(s->graph, &edit, 1, &o, NULL, NULL)) {
            sweep_fail(s, "the layer stays");
        }
    }
}

static void
stay_with_the_top_layer(struct sweep *s)
{
    sweep_run_transfer(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                                   .target = TO_QCOW2,
                                                   .sync = SYNC_TOP,
                                                   .finish = FINISH_STAY});
}

/*
 * A layer of the disk is another file afterwards.  The old one goes: only what
 * the disk's header names durably by then can be found.
 */
static void
move_a_layer(struct sweep *s, const struct sweep_transfer *plan)
{
    sweep_run_transfer(s, plan);
    struct node *layer = sweep_layer(s, 1);

    if (root_node(s->root) != s->top) {
        sweep_fail(s, "the disk is not where it was");
    } else if (s->done && (!layer || strcmp(layer->name, "target"))) {
        sweep_fail(s, "the target is not the layer below the disk");
    } else if (s->done && layer->backing) {
        sweep_fail(s, "the copy ended, but the target has a backing file");
    }
    if (s->done && file_unlink(sim_loop(s->sim), "middle") && !s->may_fail) {
        sweep_fail(s, "the old layer stays");
    }
}

static void
switch_a_layer(struct sweep *s)
{
    move_a_layer(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                             .target = TO_QCOW2,
                                             .device = 1});
}

static void
switch_a_layer_when_told(struct sweep *s)
{
    move_a_layer(s, &(struct sweep_transfer){.preset = PRESET_MIRROR,
                                             .target = TO_QCOW2,
                                             .wait_for_verb = true,
                                             .device = 1});
}

static void
post_copy_a_layer(struct sweep *s)
{
    move_a_layer(s, &(struct sweep_transfer){.preset = PRESET_POST_COPY,
                                             .target = TO_QED,
                                             .device = 1});
}

static void
hybrid_of_a_layer(struct sweep *s)
{
    move_a_layer(s, &(struct sweep_transfer){.preset = PRESET_HYBRID,
                                             .target = TO_QCOW2,
                                             .mode = COPY_MODE_BACKGROUND,
                                             .at_any_time = true,
                                             .speed = 4 * MIB,
                                             .device = 1});
}

static void
must_be_gone(struct sweep *s)
{
    if (s->done && sim_disk_has(sim_world_disk(s->sim), "top")) {
        sweep_fail(s, "the source is still there");
    }
}

static void
switch_and_delete(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = TO_QCOW2,
                                     .delete_source = true});
    must_be_gone(s);
}

static void
post_copy_and_delete(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_POST_COPY,
                                     .target = TO_QCOW2,
                                     .delete_source = true});
    must_be_gone(s);
}

static void
switch_to_qed(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = TO_QED});
}

static void
switch_to_raw(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = IMAGE("target", "raw",
                                                     "copy")});
}

static void
switch_when_told(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_MIRROR,
                                     .target = TO_QCOW2,
                                     .mode = COPY_MODE_BACKGROUND,
                                     .wait_for_verb = true});
}

static void
forward_from_the_start(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_MIRROR,
                                     .target = TO_QCOW2,
                                     .mode = COPY_MODE_FORWARD,
                                     .wait_for_verb = true});
}

/* The target reads through to the disk that it copies, which is written. */
static void
switch_to_an_overlay(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = OVERLAY});
}

static void
post_copy(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_POST_COPY,
                                     .target = TO_QCOW2});
}

static void
post_copy_to_an_overlay(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_POST_COPY,
                                     .target = OVERLAY});
}

static void
hybrid(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_HYBRID,
                                     .target = TO_QCOW2,
                                     .mode = COPY_MODE_BACKGROUND,
                                     .at_any_time = true,
                                     .speed = 4 * MIB});
}

/* Target clusters of 4 KiB, each with blocks that are missing. */
static void
write_across_a_cluster(void *arg)
{
    struct sweep *s = arg;

    for (unsigned i = 0; i < 2; i++) {
        uint64_t boundary = 8 * (1 + sim_random(&s->rng) % 9);
        uint64_t before = 1 + sim_random(&s->rng) % 6;

        sweep_step(s, &(struct step){.op = STEP_WRITE,
                                     .sector = boundary - before,
                                     .n = before + 1 +
                                          sim_random(&s->rng) % 6});
    }
    s->running--;
}

static void
write_across_clusters(struct sweep *s)
{
    for (unsigned i = 0; i < 6; i++) {
        s->running++;
        coro_start(sim_loop(s->sim), write_across_a_cluster, s);
    }
}

static void
hybrid_across_clusters(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_HYBRID,
                                     .target = TO_QCOW2,
                                     .mode = COPY_MODE_BACKGROUND,
                                     .at_any_time = true,
                                     .speed = MIB,
                                     .in_switch = write_across_clusters,
                                     .n_in_switch = 2,
                                     .from_the_first = true});
}

/* What was copied is forwarded from the start: there is more in the air. */
static void
hybrid_forwarding(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_HYBRID,
                                     .target = TO_QCOW2,
                                     .mode = COPY_MODE_FORWARD,
                                     .at_any_time = true});
}

static void
stay(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_PRE_COPY,
                                     .target = TO_QCOW2,
                                     .finish = FINISH_STAY});
}

/* In step for some time: the log gets shorter, and longer again. */
static void
mirror_for_long(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_MIRROR,
                                     .target = TO_QCOW2,
                                     .wait_for_verb = true,
                                     .at_any_time = true,
                                     .finish = FINISH_STAY});
}

static void
mirror_qed_for_long(struct sweep *s)
{
    copy(s, &(struct sweep_transfer){.preset = PRESET_MIRROR,
                                     .target = TO_QED,
                                     .mode = COPY_MODE_BACKGROUND,
                                     .wait_for_verb = true,
                                     .at_any_time = true,
                                     .finish = FINISH_STAY});
}

#define COMMON                                                                 \
    .options = IMAGE("top", "qcow2", "top"), .size = SIZE, .guests = 2,        \
    .ops = 40, .max_states = 6, .think_ns = 2 * NS_PER_MS, .ends_on_target = true

/* So that there are regions that nobody has touched for some time. */
#define SELDOM                                                                 \
    .options = IMAGE("top", "qcow2", "top"), .size = SIZE, .guests = 2,        \
    .ops = 20, .max_states = 6, .think_ns = 8 * NS_PER_MS

/* Where what matters is a moment, it is met by many short runs. */
#define SHORT                                                                  \
    .options = IMAGE("top", "qcow2", "top"), .size = SIZE, .guests = 2,        \
    .ops = 10, .max_states = 2, .think_ns = 2 * NS_PER_MS, .ends_on_target = true

/*
 * The target's file takes as long now and then as no guest waits (250 ms), and
 * the guests write all the time that it takes.
 */
#define LATE                                                                   \
    .image = TWO QCOW2_COPY, .options = IMAGE("top", "qcow2", "top"),          \
    .judge_target = IMAGE("top", "qcow2", "copy"), .size = SIZE, .guests = 2,  \
    .ops = 24, .max_states = 3, .think_ns = 300 * NS_PER_MS,                   \
    .slow_file = "copy", .max_ns = 600 * NS_PER_S, .ends_on_target = true
#define LATE_SETUPS(what, run, records)                                        \
    {.name = what "-late",                                                     \
     .operation = run,                                                         \
     .disturb = sweep_cancel_job,                                              \
     .leaves_a_record = records,                                               \
     LATE},                                                                    \
    {                                                                          \
        .name = what "-late-paused", .operation = run,                         \
        .disturb = sweep_pause_job, .leaves_a_record = records, LATE           \
    }

#define OVERLAY_COPY                                                           \
    "create qcow2 copy cluster-size=2048 backing-file=top "                    \
    "backing-fmt=qcow2 size=40960\n"
#define QCOW2_COPY "create qcow2 copy cluster-size=1024 size=40960\n"

static const struct sweep_setup setups[] = {
    {.name = "mirror-switch",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_to_qcow2,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "mirror-delete",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_and_delete,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "post-copy-delete",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = post_copy_and_delete,
     .disturb = sweep_cancel_job,
     COMMON},
    {.name = "mirror-qed",
     .image = TWO "create qed copy size=40960\n"
                  "stale qed copy 0 80 9001\n",
     .judge_target = IMAGE("top", "qed", "copy"),
     .operation = switch_to_qed,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "mirror-raw",
     .image = TWO "create file copy size=40960\n",
     .judge_target = IMAGE("top", "raw", "copy"),
     .target_has_no_mark = true,
     .operation = switch_to_raw,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "mirror-told",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_when_told,
     .disturb = sweep_pause_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "mirror-forward",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = forward_from_the_start,
     .disturb = sweep_pause_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "mirror-overlay",
     .image = TWO OVERLAY_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_to_an_overlay,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
    /* What it reads through to holds data where the disk is zero. */
    {.name = "mirror-over-other",
     .image = TWO "create qcow2 other cluster-size=1024 size=40960\n"
                  "unread qcow2 other 44 30 4001\n"
                  "create qcow2 copy cluster-size=2048 backing-file=other "
                  "backing-fmt=qcow2 size=40960\n"
                  "stale qcow2 copy 70 4 5001\n",
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_to_qcow2,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
    {.name = "post-copy-overlay",
     .image = TWO OVERLAY_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = post_copy_to_an_overlay,
     .disturb = sweep_cancel_job,
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
    {.name = "mirror-miss",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_and_miss,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     SHORT},
    {.name = "mirror-twice",
     .image = TWO QCOW2_COPY
              "create qcow2 next cluster-size=2048 size=40960\n",
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .judge_next = IMAGE("top", "qcow2", "next"),
     .operation = switch_twice,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     SHORT},
    {.name = "mirror-thinner",
     .image = THREE QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_to_qcow2,
     .disturb = drop_a_layer,
     .leaves_a_record = true,
     SHORT},
    {.name = "mirror-top-thinner",
     .image = THREE QCOW2_COPY,
     .operation = stay_with_the_top_layer,
     .disturb = drop_a_layer,
     SHORT},
    {.name = "mirror-layer",
     .image = THREE QCOW2_COPY,
     .operation = switch_a_layer,
     .disturb = sweep_cancel_job,
     SHORT},
    {.name = "mirror-layer-told",
     .image = THREE QCOW2_COPY,
     .operation = switch_a_layer_when_told,
     .disturb = sweep_pause_job,
     SHORT},
    {.name = "post-copy-layer",
     .image = THREE "create qed copy size=40960\n",
     .operation = post_copy_a_layer,
     .disturb = sweep_cancel_job,
     SHORT},
    {.name = "hybrid-layer",
     .image = THREE QCOW2_COPY,
     .operation = hybrid_of_a_layer,
     .disturb = sweep_cancel_job,
     SHORT},
    LATE_SETUPS("pre-copy", switch_to_qcow2, true),
    LATE_SETUPS("mirror", forward_from_the_start, true),
    LATE_SETUPS("hybrid", hybrid_forwarding, false),
    /*
     * Blocks are smaller than the target's clusters, so what is dropped takes
     * what is in step along, beside writes that lie across clusters.
     */
    {.name = "hybrid-across",
     .image = TWO "create qcow2 copy cluster-size=4096 size=40960\n",
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = hybrid_across_clusters,
     .disturb = sweep_cancel_job,
     SHORT},
    /* The disk stays, so that nothing is asked of the target. */
    {.name = "mirror-stay",
     .image = TWO QCOW2_COPY,
     .operation = stay,
     .disturb = sweep_cancel_job,
     COMMON},
    /* Nobody opens the target before the copy goes on, so the log counts. */
    {.name = "mirror-stay-resumed",
     .image = TWO QCOW2_COPY,
     .operation = mirror_for_long,
     .recover = sweep_resume_copy,
     .disturb = sweep_cancel_job,
     SELDOM},
    {.name = "mirror-qed-resumed",
     .image = TWO "create qed copy size=40960\n"
                  "stale qed copy 0 80 9001\n",
     .operation = mirror_qed_for_long,
     .recover = sweep_resume_copy,
     .disturb = sweep_pause_job,
     SELDOM},
    {.name = "mirror-switch-resumed",
     .image = TWO QCOW2_COPY,
     .judge_target = IMAGE("top", "qcow2", "copy"),
     .operation = switch_to_qcow2,
     .recover = sweep_resume_copy,
     .disturb = sweep_cancel_job,
     .leaves_a_record = true,
     COMMON},
};

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 300);
    tap_run("a crash after a failure leaves a right disk",
            cases_failures_and_crashes);
    tap_run("a cancel or pause at any moment leaves a right disk",
            cases_switches);
    return cases_done();
}
