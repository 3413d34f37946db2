// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over block-commit, and over a stream below the disk, under guests
 * that write.  Until the switch the disk's top reads right, over a base in any
 * state; after it, the base does.
 */
#include <errno.h>

#include "base/bytes.h"
#include "sim/cases.h"
#include "sim/transfer.h"

enum { SIZE = 40 * 1024 };

#define IMAGE(driver, file)                                                    \
    "{\"driver\":\"" driver "\",\"node-name\":\"top\",\"discard\":\"unmap\","  \
    "\"file\":{\"driver\":\"file\",\"filename\":\"" file "\"}}"

/* base <- middle, with other clusters and shorter <- top. */
#define MIDDLE_AND_TOP(base_format)                                            \
    "create qcow2 middle cluster-size=512 backing-file=base "                  \
    "backing-fmt=" base_format " size=20480\n"                                 \
    "fill qcow2 middle 10 17 1001\n"                                           \
    "hide 40 40\n"                                                             \
    "create qcow2 top cluster-size=2048 backing-file=middle "                  \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 30 3 2001\n"
#define QCOW2_BASE                                                             \
    "create qcow2 base cluster-size=1024 size=40960\n"                         \
    "fill qcow2 base 5 60 1\n"
#define QED_BASE                                                               \
    "create qed base size=40960\n"                                             \
    "fill qed base 5 60 1\n"
/* Shorter than the disk: it grows. */
#define RAW_BASE                                                               \
    "create file base size=30720\n"                                            \
    "fill raw base 5 50 1\n"
/* And one more, so that there are two pairs below the disk. */
#define FOUR                                                                   \
    QCOW2_BASE MIDDLE_AND_TOP("qcow2")                                         \
    "create qcow2 disk cluster-size=1024 backing-file=top "                    \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 disk 2 9 3001\n"

static void
commit(struct sweep *s, const struct sweep_transfer *plan)
{
    struct node *base = sweep_layer(s, plan->base);
    struct node *overlay = plan->top ? sweep_layer(s, plan->top - 1) : NULL;
    bool stays = plan->finish == FINISH_STAY;

    sweep_run_transfer(s, plan);
    if (!s->done) {
        return;
    }
    if (overlay ? overlay->backing->child != base
                : root_node(s->root) != (stays ? s->top : base)) {
        sweep_fail(s, "the commit ended, but the chain is as it was");
    }
}

static void
commit_the_disk(struct sweep *s)
{
    commit(s, &(struct sweep_transfer){.preset = PRESET_COMMIT,
                                       .wait_for_verb = true,
                                       .base = 2});
}

static void
commit_the_disk_and_stay(struct sweep *s)
{
    commit(s, &(struct sweep_transfer){.preset = PRESET_COMMIT,
                                       .wait_for_verb = true,
                                       .finish = FINISH_STAY,
                                       .base = 2});
}

static void
commit_one_layer(struct sweep *s)
{
    commit(s, &(struct sweep_transfer){
                  .preset = PRESET_COMMIT, .top = 1, .base = 2});
}

static void
commit_two_layers(struct sweep *s)
{
    commit(s, &(struct sweep_transfer){
                  .preset = PRESET_COMMIT, .top = 1, .base = 3});
}

static void
stream_below(struct sweep *s)
{
    struct node *middle = sweep_layer(s, 1);

    sweep_run_transfer(
        s, &(struct sweep_transfer){.preset = PRESET_STREAM, .device = 1});
    if (s->done && middle->backing) {
        sweep_fail(s, "the stream ended, but the chain is as it was");
    }
}

#define COMMON                                                                 \
    .size = SIZE, .guests = 2, .ops = 20, .max_states = 12,                    \
    .think_ns = 2 * NS_PER_MS, .disturb = sweep_cancel_job
#define DISK .options = IMAGE("qcow2", "top")

static const struct sweep_setup setups[] = {
    {.name = "commit-disk",
     .image = QCOW2_BASE MIDDLE_AND_TOP("qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = commit_the_disk,
     .leaves_a_record = true,
     DISK,
     COMMON},
    {.name = "commit-resumed",
     .image = QCOW2_BASE MIDDLE_AND_TOP("qcow2"),
     .operation = commit_one_layer,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "commit-disk-resumed",
     .image = QCOW2_BASE MIDDLE_AND_TOP("qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = commit_the_disk,
     .leaves_a_record = true,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "commit-disk-qed",
     .image = QED_BASE MIDDLE_AND_TOP("qed"),
     .judge_moved = IMAGE("qed", "base"),
     .operation = commit_the_disk,
     .leaves_a_record = true,
     DISK,
     COMMON},
    {.name = "commit-disk-raw",
     .image = RAW_BASE MIDDLE_AND_TOP("raw"),
     .judge_moved = IMAGE("raw", "base"),
     .operation = commit_the_disk,
     .leaves_a_record = true,
     DISK,
     COMMON},
    {.name = "commit-stay",
     .image = QCOW2_BASE MIDDLE_AND_TOP("qcow2"),
     .operation = commit_the_disk_and_stay,
     DISK,
     COMMON},
    {.name = "commit-below",
     .image = QCOW2_BASE MIDDLE_AND_TOP("qcow2"),
     .operation = commit_one_layer,
     DISK,
     COMMON},
    {.name = "commit-below-raw",
     .image = RAW_BASE MIDDLE_AND_TOP("raw"),
     .operation = commit_one_layer,
     DISK,
     COMMON},
    {.name = "commit-two-below",
     .image = FOUR,
     .options = IMAGE("qcow2", "disk"),
     .operation = commit_two_layers,
     COMMON},
    {.name = "stream-below",
     .image = QED_BASE MIDDLE_AND_TOP("qed"),
     .operation = stream_below,
     DISK,
     COMMON},
};

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 300);
    tap_run("a crash after a failure leaves a right disk",
            cases_failures_and_crashes);
    tap_run("a cancel at any moment leaves a right disk",
            cases_switches);
    return cases_done();
}
