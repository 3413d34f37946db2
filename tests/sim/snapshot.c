// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a graph transaction: a live snapshot under a guest that
 * writes.  The overlay is made before, so whenever the crash falls, the chain
 * from the overlay down must read as what was flushed.
 */
#include <errno.h>

#include "block/edit.h"
#include "base/bytes.h"
#include "run/file.h"
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

/* What graph_edit() forbids: the gates are closed. */
static int
sync_a_file(void *arg)
{
    struct sweep *s = arg;
    struct file *file;

    CHECK_INT(file_open(sim_loop(s->sim), "base", FILE_WRITE, &file), 0);
    CHECK_INT(file_sync(file), 0);
    file_close(file);
    return 0;
}

static void
edit_and_sync(struct sweep *s)
{
    struct edit edit = {EDIT_NOTHING, s->top, NULL};
    struct edit_options o = {
        .deadline_ns = NEVER, .check = sync_a_file, .arg = s};

    CHECK_INT(graph_edit(s->graph, &edit, 1, &o, NULL, NULL), 0);
    CHECK_INT(sim_n_held_up(s->sim), 2);
}

static void
edit_alone(struct sweep *s)
{
    struct edit edit = {EDIT_NOTHING, s->top, NULL};
    struct edit_options o = {.deadline_ns = NEVER};

    CHECK_INT(graph_edit(s->graph, &edit, 1, &o, NULL, NULL), 0);
    sync_a_file(s);
    CHECK_INT(sim_n_held_up(s->sim), 0);
}

/* The count that every sweep is judged by. */
static void
a_sync_inside_the_gates_is_counted(void)
{
    struct sweep_setup setup = setups[0];

    setup.judge_options = NULL;
    for (unsigned bad = 0; bad < 2; bad++) {
        struct sweep s = {.setup = &setup, .quiet = true};
        struct script sc = sweep_script(&setup, 1);

        setup.operation = bad ? edit_and_sync : edit_alone;
        sweep_run(&s, &sc);
        CHECK_INT(s.failures, bad);
        script_fini(&sc);
        sweep_fini(&s);
    }
}

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 300);
    tap_run("a sync inside the gates is counted",
            a_sync_inside_the_gates_is_counted);
    return cases_done();
}
