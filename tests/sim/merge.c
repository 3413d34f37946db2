// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over block-merge under guests that write: into the snapshot and
 * into the overlay, with clusters of all sizes above and below.  At every
 * moment the disk's top reads right as an ordinary chain; once the merge is
 * over, the survivor does, too; and a merge that a crash has cut goes on.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "run/file.h"
#include "sim/cases.h"
#include "sim/transfer.h"

enum { SIZE = 40 * 1024 };

#define IMAGE(driver, file)                                                    \
    "{\"driver\":\"" driver "\",\"node-name\":\"top\",\"discard\":\"unmap\","  \
    "\"file\":{\"driver\":\"file\",\"filename\":\"" file "\"}}"
#define TOP(format, cluster, below, below_format)                              \
    "create " format " top " cluster " backing-file=" below                    \
    " backing-fmt=" below_format " size=40960\n"                               \
    "fill " format " top 20 30 2001\n"                                         \
    "fill " format " top 70 3 3001\n"
#define QCOW2_TOP(cluster, below)                                              \
    TOP("qcow2", "cluster-size=" cluster, "base", below)
#define QCOW2_BASE(cluster)                                                    \
    "create qcow2 base cluster-size=" cluster " size=40960\n"                  \
    "fill qcow2 base 5 60 1\n"
/* Clusters that are more than one for the whole disk, and known to QEMU. */
#define QED_CLUSTERS "cluster-size=4096 table-size=2"
#define SMALL_QED_BASE                                                         \
    "create qed base " QED_CLUSTERS " size=40960\n"                            \
    "fill qed base 5 60 1\n"
#define SMALL_QED_TOP(below) TOP("qed", QED_CLUSTERS, "base", below)
#define QED_BASE                                                               \
    "create qed base size=40960\n"                                             \
    "fill qed base 5 60 1\n"
/* Shorter than the disk: it grows. */
#define RAW_BASE                                                               \
    "create file base size=30720\n"                                            \
    "fill raw base 5 50 1\n"
/* Below the snapshot there is one more. */
#define BELOW                                                                  \
    "create qcow2 root cluster-size=2048 size=40960\n"                         \
    "fill qcow2 root 0 80 501\n"
#define BASE_ON_ROOT                                                           \
    "create qcow2 base cluster-size=1024 backing-file=root "                   \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 base 5 40 1\n"
/* Three layers that become one: middle <- other <- top above the base. */
#define THREE                                                                  \
    "create qcow2 middle cluster-size=512 backing-file=base "                  \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 middle 10 17 1001\n"                                           \
    "create qcow2 other cluster-size=4096 backing-file=middle "                \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 other 26 3 1501\n"                                             \
    TOP("qcow2", "cluster-size=1024", "other", "qcow2")
/* A snapshot that is longer than the disk: it is cut. */
#define LONG_BASE(format, cluster)                                             \
    "create " format " base " cluster " size=50176\n"                          \
    "fill " format " base 5 52 1\n"                                            \
    "unread " format " base 80 18 401\n"
/* Shorter than what is below them: the disk reads zero behind their ends. */
#define SHORT_MIDDLE                                                           \
    LONG_BASE("qcow2", "cluster-size=2048")                                    \
    "unread qcow2 base 57 23 301\n"                                             \
    "create qcow2 middle cluster-size=1024 backing-file=base "                 \
    "backing-fmt=qcow2 size=29184\n"                                           \
    "fill qcow2 middle 10 17 1001\n"                                           \
    TOP("qcow2", "cluster-size=4096", "middle", "qcow2")
#define SHORT_BASE                                                             \
    "create qcow2 root cluster-size=2048 size=50176\n"                         \
    "fill qcow2 root 0 57 501\n"                                               \
    "unread qcow2 root 57 41 601\n"                                             \
    "create qcow2 base cluster-size=1024 backing-file=root "                   \
    "backing-fmt=qcow2 size=29184\n"                                           \
    "fill qcow2 base 5 40 1\n"

/* A base that was cut within a cluster, the rest of which is not zero. */
#define CUT_BASE(format, cluster)                                              \
    "create " format " base " cluster " size=32768\n"                          \
    "fill " format " base 5 55 1\n"                                            \
    "unread " format " base 60 4 601\n"                                        \
    "cut " format " base 60\n"

/* Above the base compressed clusters, some of them over compressed ones. */
#define PACKED                                                                 \
    "create qcow2 base cluster-size=4096 size=40960\n"                         \
    "pack qcow2 base 0 48 1\n"                                                 \
    "create qcow2 top cluster-size=4096 backing-file=base "                    \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "pack qcow2 top 24 48 2001\n"                                              \
    "fill qcow2 top 72 3 3001\n"

/* The middle says zero over data of the base. */
#define ZERO_MIDDLE                                                            \
    QCOW2_BASE("1024")                                                         \
    "create qcow2 middle cluster-size=1024 backing-file=base "                 \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "zero qcow2 middle 8 48\n"                                                 \
    "create qcow2 top cluster-size=1024 backing-file=middle "                  \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 70 3 3001\n"

/* Data and zeroes by turns hide a whole cluster of the base. */
#define MIXED_TOP                                                              \
    QCOW2_BASE("4096")                                                         \
    "create qcow2 top cluster-size=512 backing-file=base "                     \
    "backing-fmt=qcow2 size=40960\n"                                           \
    "fill qcow2 top 14 30 2001\n"                                              \
    "zero qcow2 top 18 3\n"                                                    \
    "zero qcow2 top 30 1\n"

static void
merge(struct sweep *s, const struct sweep_transfer *plan)
{
    struct node *base = sweep_layer(s, plan->base);

    sweep_run_transfer(s, plan);
    if (s->done && plan->into == MERGE_INTO_SNAPSHOT &&
        root_node(s->root) != base) {
        sweep_fail(s, "the merge ended, but the disk is where it was");
    }
    if (s->done && plan->into == MERGE_INTO_OVERLAY && s->top->backing &&
        chain_contains(s->top, base)) {
        sweep_fail(s, "the merge ended, but the chain is as it was");
    }
}

static void
sink_layers(struct sweep *s, unsigned n)
{
    merge(s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                      .release = true,
                                      .into = MERGE_INTO_SNAPSHOT,
                                      .base = n});
}

static void
sink(struct sweep *s)
{
    sink_layers(s, 1);
}

static void
sink_two(struct sweep *s)
{
    sink_layers(s, 2);
}

static void
sink_three(struct sweep *s)
{
    sink_layers(s, 3);
}

static void
sink_and_keep_the_name(struct sweep *s)
{
    merge(s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                      .release = true,
                                      .keep_name = true,
                                      .into = MERGE_INTO_SNAPSHOT,
                                      .base = 1});
    if (s->done && (root_node(s->root)->filename[0] != 't' ||
                    sim_disk_has(sim_world_disk(s->sim), "base"))) {
        sweep_fail(s, "the survivor has not taken the name");
    }
}

static void
rise_through(struct sweep *s, unsigned n)
{
    merge(s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                      .release = true,
                                      .into = MERGE_INTO_OVERLAY,
                                      .base = n});
}

static void
rise(struct sweep *s)
{
    rise_through(s, 1);
}

static void
rise_two(struct sweep *s)
{
    rise_through(s, 2);
}

static void
rise_three(struct sweep *s)
{
    rise_through(s, 3);
}

/* Bytes that the layer's own map has. */
static uint64_t
held_by(struct node *node)
{
    struct extent ext = {0};
    uint64_t sum = 0;

    for (uint64_t off = 0; off < node->size; off += ext.len) {
        if (node_status(node, off, node->size - off, false, &ext)) {
            break;
        }
        sum += ext.kind == EXTENT_UNALLOCATED ? 0 : ext.len;
    }
    return sum;
}

/* What it says that it gave back is what the snapshot holds no more. */
static void
rise_and_count(struct sweep *s)
{
    struct node *base = node_ref(sweep_layer(s, 1));
    uint64_t before = held_by(base);

    rise(s);
    if (s->done && !s->may_fail) {
        uint64_t gone = before - held_by(base);

        if (gone != s->released) {
            sweep_fail(s, "%llu bytes were given back, %llu were counted",
                       (unsigned long long)gone,
                       (unsigned long long)s->released);
        }
    }
    node_unref(base);
}

/* Clusters of the base that it still has though the top has all of them. */
static uint64_t
hidden_and_held(struct node *top, struct node *base)
{
    uint64_t sum = 0;

    for (uint64_t off = 0; off < base->size; off += base->cluster_size) {
        struct extent own, hides = {0};
        uint64_t end = off + base->cluster_size, at = off;

        for (; at < end; at += hides.len) {
            if (node_status(top, at, end - at, false, &hides) ||
                hides.kind == EXTENT_UNALLOCATED) {
                break;
            }
        }
        if (at == end && !node_status(base, off, 1, false, &own)) {
            sum += own.kind == EXTENT_UNALLOCATED ? 0 : base->cluster_size;
        }
    }
    return sum;
}

/* Without guests: what they wrote later is not given back. */
static void
rise_and_look(struct sweep *s)
{
    struct node *base = node_ref(sweep_layer(s, 1));

    rise(s);
    uint64_t left = s->done ? hidden_and_held(s->top, base) : 0;

    if (left && !s->may_fail) {
        sweep_fail(s, "%llu bytes are hidden as whole clusters, and still held",
                   (unsigned long long)left);
    }
    node_unref(base);
}

static void
must_be_gone(struct sweep *s, const char *const *files)
{
    for (; s->done && *files; files++) {
        if (sim_disk_has(sim_world_disk(s->sim), *files)) {
            sweep_fail(s, "'%s' is still there", *files);
        }
    }
}

static bool
is_there(struct loop *loop, const char *name)
{
    struct file *f;

    if (file_open(loop, name, 0, &f)) {
        return false;
    }
    file_close(f);
    return true;
}

/*
 * What is deleted in the end goes as a whole, whatever crashes: all of it where
 * the job went on, or where @must.
 */
static void
resume_and_delete(struct sweep *s, struct graph *graph, struct node *top,
                  const char *const *layers, bool must)
{
    struct loop *loop = graph_loop(graph);
    unsigned layers_left = 0, journals_left = 0, gone = 0;
    uint64_t before = s->resumed;

    sweep_resume(s, graph, top);
    for (const char *const *name = layers; *name; name++) {
        auto_free char *journal = xasprintf("%s.sluice", *name);

        layers_left += is_there(loop, *name);
        gone += !is_there(loop, *name);
        journals_left += is_there(loop, journal);
    }
    must |= s->resumed != before || gone;
    if (must && s->crashes && !s->may_fail && (layers_left || journals_left)) {
        sweep_fail(s, "%u layers and %u journals were not deleted", layers_left,
                   journals_left);
    }
}

static void
resume_sink(struct sweep *s, struct graph *graph, struct node *top)
{
    static const char *const one[] = {"top", NULL};
    static const char *const three[] = {"top", "other", "middle", NULL};
    bool has_three = strstr(s->setup->name, "three");

    resume_and_delete(s, graph, top, has_three ? three : one, false);
}

static void
resume_rise(struct sweep *s, struct graph *graph, struct node *top)
{
    static const char *const layers[] = {"base", NULL};

    resume_and_delete(s, graph, top, layers, !top->header_backing.filename);
}

/* Its name has gone, too: the survivor is 'top'. */
static void
resume_keep(struct sweep *s, struct graph *graph, struct node *top)
{
    static const char *const layers[] = {"other", "middle", "base", NULL};

    resume_and_delete(s, graph, top, layers, false);
}

static void
sink_keep_and_delete(struct sweep *s)
{
    static const char *const files[] = {"base", "middle", "other", NULL};

    merge(s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                      .release = true,
                                      .delete_source = true,
                                      .keep_name = true,
                                      .into = MERGE_INTO_SNAPSHOT,
                                      .base = 3});
    must_be_gone(s, files);
}

static void
sink_and_delete(struct sweep *s)
{
    static const char *const files[] = {"top", "middle", "other", NULL};

    merge(s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                      .release = true,
                                      .delete_source = true,
                                      .into = MERGE_INTO_SNAPSHOT,
                                      .base = sweep_layer(s, 2) ? 3 : 1});
    must_be_gone(s, files);
}

static void
rise_and_delete(struct sweep *s)
{
    static const char *const files[] = {"base", "middle", "other", NULL};

    merge(s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                      .release = true,
                                      .delete_source = true,
                                      .into = MERGE_INTO_OVERLAY,
                                      .base = sweep_layer(s, 2) ? 3 : 1});
    must_be_gone(s, files);
}

static void
stream_with_release(struct sweep *s)
{
    merge(s, &(struct sweep_transfer){.preset = PRESET_STREAM,
                                      .release = true});
}

/* What block-commit of layers below the disk is, with `release`. */
static void
commit_with_release(struct sweep *s)
{
    struct node *base = sweep_layer(s, 3);

    sweep_run_transfer(
        s, &(struct sweep_transfer){.preset = PRESET_MERGE,
                                    .release = true,
                                    .into = MERGE_INTO_SNAPSHOT,
                                    .device = 1,
                                    .base = 3});
    if (s->done && sweep_layer(s, 1) != base) {
        sweep_fail(s, "the commit ended, but the chain is as it was");
    }
}

#define COMMON                                                                 \
    .size = SIZE, .guests = 2, .ops = 20, .max_states = 12,                    \
    .think_ns = 2 * NS_PER_MS, .disturb = sweep_cancel_job
#define DISK .options = IMAGE("qcow2", "top")
#define QED_DISK .options = IMAGE("qed", "top")

static const struct sweep_setup setups[] = {
    {.name = "merge",
     .image = QCOW2_BASE("1024") QCOW2_TOP("1024", "qcow2"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-survivor",
     .image = QCOW2_BASE("1024") QCOW2_TOP("1024", "qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-keep-name",
     .image = QCOW2_BASE("1024") QCOW2_TOP("1024", "qcow2"),
     .operation = sink_and_keep_the_name,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-keep-name-delete",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = sink_keep_and_delete,
     .recover = resume_keep,
     DISK,
     COMMON},
    {.name = "merge-resumed",
     .image = QCOW2_BASE("1024") QCOW2_TOP("1024", "qcow2"),
     .operation = sink,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-of-qed-resumed",
     .image = QCOW2_BASE("1024") TOP("qed", "", "base", "qcow2"),
     .operation = sink,
     .recover = sweep_resume,
     QED_DISK,
     COMMON},
    {.name = "merge-up-resumed",
     .image = QCOW2_BASE("4096") QCOW2_TOP("1024", "qcow2"),
     .operation = rise,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-small-on-big",
     .image = QCOW2_BASE("4096") QCOW2_TOP("512", "qcow2"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-big-on-small",
     .image = QCOW2_BASE("512") QCOW2_TOP("4096", "qcow2"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-into-raw",
     .image = RAW_BASE QCOW2_TOP("1024", "raw"),
     .judge_moved = IMAGE("raw", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-into-qed",
     .image = QED_BASE QCOW2_TOP("1024", "qed"),
     .judge_moved = IMAGE("qed", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-of-qed",
     .image = QCOW2_BASE("1024") TOP("qed", "", "base", "qcow2"),
     .operation = sink,
     QED_DISK,
     COMMON},
    {.name = "merge-on-root",
     .image = BELOW BASE_ON_ROOT QCOW2_TOP("1024", "qcow2"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-cut-qcow2",
     .image = LONG_BASE("qcow2", "cluster-size=4096") QCOW2_TOP("1024", "qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-cut-qed",
     .image = LONG_BASE("qed", "") QCOW2_TOP("1024", "qed"),
     .judge_moved = IMAGE("qed", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-short-middle",
     .image = SHORT_MIDDLE,
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = sink_two,
     DISK,
     COMMON},
    {.name = "merge-short-base",
     .image = SHORT_BASE QCOW2_TOP("1024", "qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-cut-base",
     .image = CUT_BASE("qcow2", "cluster-size=4096") QCOW2_TOP("1024", "qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-cut-qed-base",
     .image = CUT_BASE("qed", QED_CLUSTERS) QCOW2_TOP("1024", "qed"),
     .judge_moved = IMAGE("qed", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-packed",
     .image = PACKED,
     .judge_moved = IMAGE("qcow2", "base"),
     .operation = sink,
     DISK,
     COMMON},
    {.name = "merge-up-packed",
     .image = PACKED,
     .operation = rise,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-of-qed-into-qed",
     .image = SMALL_QED_BASE SMALL_QED_TOP("qed"),
     .judge_moved = IMAGE("qed", "base"),
     .operation = sink,
     QED_DISK,
     COMMON},
    {.name = "merge-of-qed-into-raw",
     .image = RAW_BASE SMALL_QED_TOP("raw"),
     .judge_moved = IMAGE("raw", "base"),
     .operation = sink,
     QED_DISK,
     COMMON},
    {.name = "merge-up-raw-to-qed",
     .image = RAW_BASE SMALL_QED_TOP("raw"),
     .operation = rise,
     QED_DISK,
     COMMON},
    {.name = "merge-up-qed-to-qcow2",
     .image = SMALL_QED_BASE QCOW2_TOP("1024", "qed"),
     .operation = rise,
     DISK,
     COMMON},
    {.name = "merge-up-qcow2-to-qed",
     .image = QCOW2_BASE("1024") SMALL_QED_TOP("qcow2"),
     .operation = rise,
     QED_DISK,
     COMMON},
    /* A cluster of the base goes when all that hides it is in the top. */
    {.name = "merge-up-small-over-big",
     .image = QCOW2_BASE("4096") QCOW2_TOP("512", "qcow2"),
     .operation = rise_and_count,
     DISK,
     COMMON},
    /* A guest's writes there are in the top's map before they are durable. */
    {.name = "merge-up-zero",
     .image = ZERO_MIDDLE,
     .operation = rise_two,
     .first = 6,
     .span = 52,
     DISK,
     COMMON},
    {.name = "merge-up-mixed",
     .image = MIXED_TOP,
     .operation = rise_and_look,
     .size = SIZE,
     .max_states = 12,
     .disturb = sweep_cancel_job,
     DISK},
    {.name = "merge-delete",
     .image = QCOW2_BASE("1024") QCOW2_TOP("1024", "qcow2"),
     .judge_moved = IMAGE("qcow2", "base"),
     .recover = resume_sink,
     .operation = sink_and_delete,
     DISK,
     COMMON},
    {.name = "merge-delete-three",
     .image = BELOW BASE_ON_ROOT THREE,
     .judge_moved = IMAGE("qcow2", "base"),
     .recover = resume_sink,
     .operation = sink_and_delete,
     DISK,
     COMMON},
    {.name = "merge-up-delete",
     .image = BELOW BASE_ON_ROOT THREE,
     .recover = resume_rise,
     .operation = rise_and_delete,
     DISK,
     COMMON},
    {.name = "commit-release",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = commit_with_release,
     DISK,
     COMMON},
    {.name = "merge-three-resumed",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = sink_three,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-up-three-resumed",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = rise_three,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-into-raw-resumed",
     .image = RAW_BASE QCOW2_TOP("1024", "raw"),
     .operation = sink,
     .recover = sweep_resume,
     DISK,
     COMMON},
    {.name = "merge-three",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = sink_three,
     DISK,
     COMMON},
    {.name = "merge-up",
     .image = BELOW BASE_ON_ROOT QCOW2_TOP("1024", "qcow2"),
     .operation = rise,
     DISK,
     COMMON},
    {.name = "merge-up-raw",
     .image = RAW_BASE QCOW2_TOP("4096", "raw"),
     .operation = rise,
     DISK,
     COMMON},
    {.name = "merge-up-qed",
     .image = QED_BASE TOP("qed", "", "base", "qed"),
     .operation = rise,
     QED_DISK,
     COMMON},
    {.name = "merge-up-three",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = rise_three,
     DISK,
     COMMON},
    {.name = "stream-release",
     .image = BELOW BASE_ON_ROOT THREE,
     .operation = stream_with_release,
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
