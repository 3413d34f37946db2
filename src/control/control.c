// SPDX-License-Identifier: BSD-3-Clause
/* The control context's birth and death, and the commands about itself. */
#include "control/control_internal.h"
#include "drivers/drivers.h"

struct control *
control_new(struct loop *loop, const struct control_options *options)
{
    struct control *ctl = xzalloc(sizeof(*ctl));
    struct graph_options o = {.drivers = all_drivers,
                              .backing_paths = options->backing_paths};

    ctl->loop = loop;
    ctl->graph = graph_new(loop, &o);
    ctl->jobs = jobs_new(loop, control_job_event, ctl);
    list_init(&ctl->exports);
    list_init(&ctl->monitors);
    list_init(&ctl->listeners);
    waitq_init(&ctl->quit);
    waitq_init(&ctl->idle);
    return ctl;
}

void
control_free(struct control *ctl)
{
    while (!list_empty(&ctl->exports)) {
        export_remove(ctl,
                      list_first(&ctl->exports, struct export_entry, link));
    }
    if (ctl->nbd) {
        nbd_server_stop(ctl->nbd);
    }
    jobs_free(ctl->jobs);
    monitors_close(ctl);
    graph_free(ctl->graph);
    free(ctl);
}

void
control_wait_quit(struct control *ctl)
{
    while (!ctl->quitting) {
        waitq_wait(&ctl->quit);
    }
}

void
control_quit(struct control *ctl)
{
    ctl->quitting = true;
    waitq_wake_all(&ctl->quit);
}

int
cmd_quit(struct control *ctl, const struct args_quit *args, json_t **ret,
         struct err *err)
{
    control_quit(ctl);
    return 0;
}
