// SPDX-License-Identifier: BSD-3-Clause
/* Shared by control.c, monitor.c and the handlers only. */
#ifndef SLUICE_CONTROL_INTERNAL_H
#define SLUICE_CONTROL_INTERNAL_H

#include "block/node.h"
#include "control/control.h"
#include "export/nbd_server.h"
#include "schema_dispatch.h"
#include "transfer/job.h"

struct control {
    struct loop *loop;
    struct graph *graph;
    struct jobs *jobs;
    struct nbd_server *nbd;
    struct list exports;   /* of struct export_entry */
    struct list monitors;  /* of struct monitor, see monitor.c */
    struct list listeners; /* of struct monitor_listener */
    bool quitting;
    struct waitq quit, idle;
};

struct export_entry {
    struct list link;
    char *id;
    struct root *root;
    struct nbd_export *nbd;
    bool removing;
};

/* Removes it and tells the world; yields. */
void export_remove(struct control *ctl, struct export_entry *e);
/* Closes all monitors and listeners; yields. */
void monitors_close(struct control *ctl);
/* jobs_new()'s callback: @arg is the control context. */
void control_job_event(void *arg, const struct job_event *ev);

#endif
