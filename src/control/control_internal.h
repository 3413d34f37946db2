// SPDX-License-Identifier: BSD-3-Clause
/* Shared by control.c and the handlers (cmd_*.c) only. */
#ifndef SLUICE_CONTROL_INTERNAL_H
#define SLUICE_CONTROL_INTERNAL_H

#include <stdbool.h>

#include "block/node.h"
#include "control/control.h"
#include "export/nbd_server.h"
#include "run/loop.h"
#include "transfer/job.h"

struct control {
    struct loop *loop;
    struct graph *graph;
    struct jobs *jobs;
    struct list clients;   /* of the monitors: struct client.link */
    struct list acceptors; /* of the monitors: struct acceptor.link */
    unsigned running;      /* commands of the monitors */
    bool stopping;         /* take no client and no command */
    struct waitq monitors_changed;
    bool quitting;
    struct waitq quit;
    struct timer end_timer; /* in control_free() */
    struct list exports;   /* of struct control_export.link */
    struct waitq exports_changed;
    struct nbd_server *nbd; /* NULL: none, or it is being stopped */
    bool nbd_stopping;
    bool held; /* see control_options.hold_clients */
    bool resumes; /* control_resume() was called */
    enum resume_mode resume;
    json_t *objects; /* by id */
};

/*
 * An export under its identifier.  It stays in the list, and its identifier
 * taken, until its last request is over.
 */
struct control_export {
    struct list link;
    struct control *ctl;
    char *id;
    char *node_name;         /* once it is shutting down */
    struct root *root;       /* nbd's */
    struct nbd_export *nbd;
    bool shutting_down;
    struct timer error_timer; /* set: an error was told less than 1 s ago */
    json_t *error;            /* the last one since, to be told then */
};

enum {
    CONTROL_STRING_MAX = 4096,  /* NBD export names and descriptions */
    CONTROL_NESTING_MAX = 256,  /* backing images in one another's `image` */
    CONTROL_ERROR_SECONDS = 1,  /* between two BLOCK_IO_ERROR of an export */
    CONTROL_DRAIN_SECONDS = 30, /* for requests in flight at a snapshot */
    CONTROL_END_SECONDS = 5,    /* for a slow server with images, at the end */
    CONTROL_LET_GO_MS = 1000,   /* for a command that was told to end */
};

/*
 * The node called @name, borrowed.  @device says how the error's text has it:
 * QEMU looks some names up as a device's, too.
 */
int control_find_node(struct control *ctl, const char *name, bool device,
                      struct node **ret, struct err *err);

/*
 * The node @name; @device is a device's name, of which there are none here.
 * At least one is given, or none is found.
 */
int control_find_named(struct control *ctl, const char *device,
                       const char *name, struct node **ret, struct err *err);

/*
 * The layer of the chain from @top down that the node @name is, or is shown by.
 * QEMU's text where there is none.  Does not yield.
 */
int control_find_layer(struct control *ctl, const char *name, struct node *top,
                       struct node **ret, struct err *err);
/* The last layer; refused where a filter hides what is below.  No yield. */
int control_find_lowest(struct node *top, struct node **ret, struct err *err);
/* -EINVAL, in QEMU's words, unless node_is_root().  Does not yield. */
int control_check_root(const struct node *image, struct err *err);

/* QEMU's rule for identifiers: a letter, then letters, digits and "-._". */
bool control_id_ok(const char *id);

/* Removes all exports and stops the server; yields. */
void control_stop_nbd(struct control *ctl);

/*
 * Runs no further command, and waits for those that run, for a while.  Yields.
 */
void monitors_stop(struct control *ctl);
/*
 * Sends what is queued, as far as clients take it soon.  False where a command
 * still runs: its client stays.  Yields.
 */
bool monitors_close(struct control *ctl);

/* jobs_new()'s callback. */
void control_job_event(void *ctl, const struct job_event *ev);

/*
 * @node can be written from now on: jobs of an earlier daemon on it, and on the
 * layers below, go on, once control_resume() was called.  Yields.
 */
void control_resume_node(struct control *ctl, struct node *node);

#endif
