// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a graph transaction: a live snapshot under a guest that
 * writes.  The overlay is made before, so whenever the crash falls, the chain
 * from the overlay down must read as what was flushed.
 */
#include <errno.h>

#include "block/edit.h"
#include "base/bytes.h"
#include "sim/cases.h"

enum { SIZE = 40 * 1024 };

#define IMAGE(name, file, more)                                                \
    "{\"driver\":\"qcow2\",\"node-name\":\"" name "\"," more                   \
    "\"discard\":\"unmap\",\"file\":{\"driver\":\"file\",\"filename\":\"" file \
    "\"}}"

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

static const struct sweep_setup setups[] = {
    {.name = "snapshot",
     .image = "create qcow2 base cluster-size=1024 size=40960\n"
              "create qcow2 over cluster-size=2048 backing-file=base "
              "backing-fmt=qcow2 size=40960\n",
     .options = IMAGE("top", "base", ""),
     .judge_options = IMAGE("top", "over", ""),
     .size = SIZE,
     .operation = snapshot,
     .guests = 3,
     .ops = 12,
     .max_states = 32},
};

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 300);
    return tap_done();
}
