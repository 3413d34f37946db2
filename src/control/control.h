// SPDX-License-Identifier: BSD-3-Clause
/*
 * A control context: everything that the commands of one daemon work on.  It
 * owns the graph of nodes, the jobs, the NBD server, the exports and the
 * objects, and knows the sessions that events go to.
 *
 * Commands are run by qmp_session_execute() or qmp_dispatch(), in a coroutine
 * of the context's loop; any number of them at once, one per session.
 */
#ifndef SLUICE_CONTROL_CONTROL_H
#define SLUICE_CONTROL_CONTROL_H

#include <jansson.h>

#include "base/err.h"
#include "base/list.h"

struct control;
struct loop;

struct control_options {
    const char *backing_paths; /* as in struct graph_options */
    /* `quit` was said; must not yield.  May be NULL. */
    void (*on_quit)(void *arg);
    void *arg;
};

struct control *control_new(struct loop *loop,
                            const struct control_options *options);
/*
 * Removes the exports, stops the NBD server, cancels the jobs and closes the
 * graph, each with its events.  No command may be running, nor be run later.
 * Yields.
 */
void control_close(struct control *ctl);
/* After control_close(); nobody may listen any more.  Does not yield. */
void control_free(struct control *ctl);

/* NBD clients are let in from now on, when all options are known. */
void control_ready(struct control *ctl);

/* --object, decoded (borrowed).  Does not yield. */
int control_add_object(struct control *ctl, json_t *object, struct err *err);

/* Who gets events.  Embedded; neither function yields. */
struct control_listener {
    struct list link;
    /* @event is borrowed; must not yield, nor remove the listener. */
    void (*on_event)(struct control_listener *listener, const json_t *event);
};

void control_listen(struct control *ctl, struct control_listener *listener);
void control_unlisten(struct control_listener *listener);

#endif
