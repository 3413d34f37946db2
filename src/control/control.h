// SPDX-License-Identifier: BSD-3-Clause
/*
 * The control context: what commands work on.  It owns the block graph, the
 * jobs, the NBD server with its exports, and the monitors to which events go.
 * Several can live in one process.
 */
#ifndef SLUICE_CONTROL_H
#define SLUICE_CONTROL_H

#include <stdint.h>
#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "transfer/resume.h"

struct control;
struct graph;
struct jobs;
struct loop;
struct listener;
struct stream;

struct control_options {
    /* Where headers may name backing files: see graph_options. */
    const char *backing_paths;
    const char *state_dir, *folder; /* see graph_options */
    uint64_t chain_index_bytes; /* of each disk; 0: the default */
    /* NBD clients wait until control_ready(). */
    bool hold_clients;
    enum resume_mode resume; /* of jobs that an earlier daemon left */
};

struct control *control_new(struct loop *loop,
                            const struct control_options *options);
/*
 * Takes no further command, ends those that run, removes the exports, cancels
 * the jobs, closes the graph, and then the monitors, which get the events of
 * all that.  Yields.
 *
 * What may never answer is not waited for: a server that nobody writes to is
 * dropped at once, one that images are written to after CONTROL_END_SECONDS.
 * False where a command hangs in the kernel: it is let go of, @ctl is not
 * freed, and the process must end without freeing the loop.
 */
bool control_free(struct control *ctl);

/* Yields until `quit` or control_quit(). */
void control_wait_quit(struct control *ctl);
void control_quit(struct control *ctl);

/* The process has left its folder for @folder.  Does not yield. */
void control_set_folder(struct control *ctl, const char *folder);
/* Lets NBD clients in, where they were held.  Does not yield. */
void control_ready(struct control *ctl);

/*
 * Starts again what was under way on the nodes that are there, and from now on
 * on every one that is added.  Commands that start a job wait for it; what
 * takes commands is to be served just before.  Does not yield: a disk that hangs
 * holds up nobody.
 */
void control_resume(struct control *ctl);

/* --object, decoded (borrowed).  Does not yield. */
int control_add_object(struct control *ctl, json_t *object, struct err *err);

/* Serves QMP on every connection of the listener, which is taken over. */
void control_listen(struct control *ctl, struct listener *listener,
                    bool pretty);
/* Serves QMP on one connected stream, which is taken over. */
void control_serve(struct control *ctl, struct stream *stream, bool pretty);

/*
 * Where the control socket is when nobody says otherwise; the caller frees it.
 * /run/sluice/control.sock, or without root in $XDG_RUNTIME_DIR.
 */
char *control_default_socket(void);

/* Sends an event to every monitor; takes @data.  Does not yield. */
void control_event(struct control *ctl, const char *name, json_t *data);

#endif
