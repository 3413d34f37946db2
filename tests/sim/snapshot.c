// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a graph transaction: a live snapshot under a guest that
 * writes.  The overlay is made before, so whenever the crash falls, the chain
 * from the overlay down must read as what was flushed.
 */
#include <errno.h>

#include "block/edit.h"
#include "sim/sweep.h"
#include "tap.h"

enum { SIZE = 40 * 1024 };

#define IMAGE(name, file, more)                                                \
    "{\"driver\":\"qcow2\",\"node-name\":\"" name "\"," more                   \
    "\"discard\":\"unmap\",\"file\":{\"driver\":\"file\",\"filename\":\"" file \
    "\"}}"

static void
create(struct graph *graph, const char *name, const char *more)
{
    auto_free char *file = xasprintf("{\"filename\":\"%s\",\"size\":0}", name);
    auto_free char *image = xasprintf(
        "{\"file\":{\"driver\":\"file\",\"filename\":\"%s\"},\"size\":%d%s}",
        name, SIZE, more);

    sweep_create(graph, "file", file);
    sweep_create(graph, "qcow2", image);
}

static void
prepare(struct graph *graph, struct oracle *o, uint64_t seed)
{
    create(graph, "base", ",\"cluster-size\":1024");
    create(graph, "over",
           ",\"cluster-size\":2048,\"backing-file\":\"base\","
           "\"backing-fmt\":\"qcow2\"");
}

static void
snapshot(struct sweep *s)
{
    json_t *options =
        json_loads(IMAGE("over", "over", "\"backing\":null,"), 0, NULL);
    struct edit_options o = {.deadline_ns = NEVER};
    struct edit_report report = {0};
    auto_err err = ERR_INIT;
    struct node *over = NULL;

    coro_sleep(sim_random(&s->rng) % (2 * NS_PER_MS));
    if (node_add(s->graph, options, &over, &err)) {
        if (!s->may_fail) {
            sweep_fail(s, "the overlay does not open: %s", err.msg);
        }
        json_decref(options);
        return;
    }
    json_decref(options);
    struct edit edits[] = {{EDIT_REPLACE, s->top, over},
                           {EDIT_BACKING, over, s->top}};

    if (graph_edit(s->graph, edits, 2, &o, &report, &err)) {
        sweep_fail(s, "the snapshot fails: %s", err.msg);
    } else if (root_node(s->root) != over) {
        sweep_fail(s, "the guest was not moved");
    }
}

static const struct sweep_setup setup = {
    .name = "snapshot",
    .options = IMAGE("top", "base", ""),
    .judge_options = IMAGE("top", "over", ""),
    .size = SIZE,
    .prepare = prepare,
    .operation = snapshot,
    .guests = 3,
    .ops = 12,
    .max_states = 32,
};

static void
every_read_is_right(void)
{
    CHECK_INT(sweep_plain(&setup, 1, 300), 0);
}

static void
every_crash_leaves_a_right_chain(void)
{
    CHECK_INT(sweep_crashes(&setup, 1), 0);
}

static void
every_failing_io_leaves_a_right_chain(void)
{
    CHECK_INT(sweep_failures(&setup, 1), 0);
}

int
main(void)
{
    tap_run("every read is right", every_read_is_right);
    tap_run("every crash leaves a right chain",
            every_crash_leaves_a_right_chain);
    tap_run("every failing I/O leaves a right chain",
            every_failing_io_leaves_a_right_chain);
    return tap_done();
}
