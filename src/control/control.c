// SPDX-License-Identifier: BSD-3-Clause
/* The control context: see control.h.  The commands are in cmd_*.c. */
#include "control/control.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "control/control_internal.h"
#include "drivers/drivers.h"
#include "schema_dispatch.h"

struct control *
control_new(struct loop *loop, const struct control_options *options)
{
    struct control *ctl = xzalloc(sizeof(*ctl));

    ctl->loop = loop;
    ctl->held = options->hold_clients;
    ctl->resume = options->resume;
    ctl->graph = graph_new(
        loop, &(struct graph_options){.drivers = all_drivers,
                                      .backing_paths = options->backing_paths,
                                      .state_dir = options->state_dir,
                                      .folder = options->folder,
                                      .chain_index_bytes =
                                          options->chain_index_bytes});
    ctl->jobs = jobs_new(loop, control_job_event, ctl);
    ctl->objects = json_object();
    list_init(&ctl->clients);
    list_init(&ctl->acceptors);
    list_init(&ctl->exports);
    waitq_init(&ctl->monitors_changed);
    waitq_init(&ctl->exports_changed);
    waitq_init(&ctl->quit);
    return ctl;
}

static void
waited_enough(struct timer *timer)
{
    struct control *ctl = container_of(timer, struct control, end_timer);

    graph_end(ctl->graph, true);
}

/*
 * The exports end before the jobs and the images, so that no guest writes any
 * more when those do.
 */
bool
control_free(struct control *ctl)
{
    uint64_t now = loop_now(ctl->loop);

    graph_end(ctl->graph, false);
    timer_set(ctl->loop, &ctl->end_timer, now + CONTROL_END_SECONDS * NS_PER_S,
              waited_enough);
    monitors_stop(ctl);
    control_stop_nbd(ctl);
    bool over = jobs_wait_resumed_until(
        ctl->jobs, loop_now(ctl->loop) + CONTROL_LET_GO_MS * NS_PER_MS);

    over = jobs_end(ctl->jobs, loop_now(ctl->loop) +
                                   CONTROL_LET_GO_MS * NS_PER_MS) &&
           over;

    over = graph_close(ctl->graph) && over;
    timer_cancel(&ctl->end_timer);
    over = monitors_close(ctl) && over;
    if (!over) {
        log_warn("a command hangs in the system: it was let go of");
        return false;
    }
    jobs_free(ctl->jobs);
    graph_free(ctl->graph);
    json_decref(ctl->objects);
    free(ctl);
    return true;
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

void
control_set_folder(struct control *ctl, const char *folder)
{
    graph_set_folder(ctl->graph, folder);
}

void
control_ready(struct control *ctl)
{
    ctl->held = false;
    if (ctl->nbd) {
        nbd_server_release(ctl->nbd);
    }
}

int
control_find_named(struct control *ctl, const char *device, const char *name,
                   struct node **ret, struct err *err)
{
    struct node *node = name ? graph_find(ctl->graph, name) : NULL;

    if (!node) {
        return err_set(err, -ENOENT,
                       "Cannot find device='%s' nor node-name='%s'",
                       device ? device : "", name ? name : "");
    }
    *ret = node;
    return 0;
}

int
control_find_node(struct control *ctl, const char *name, bool device,
                  struct node **ret, struct err *err)
{
    struct node *node = graph_find(ctl->graph, name);

    if (!node) {
        return err_set(err, -ENOENT,
                       "Cannot find device='%s' nor node-name='%s'",
                       device ? name : "", name);
    }
    *ret = node;
    return 0;
}

int
control_find_layer(struct control *ctl, const char *name, struct node *top,
                   struct node **ret, struct err *err)
{
    struct node *node = NULL;
    int r = control_find_node(ctl, name, false, &node, err);

    if (r) {
        return r;
    }
    *ret = chain_find_layer(top, node);
    return *ret ? 0
                : err_set(err, -EINVAL,
                          "'%s' is not in this backing file chain", name);
}

int
control_find_lowest(struct node *top, struct node **ret, struct err *err)
{
    const struct node *image;

    *ret = chain_bottom(top);
    image = node_skip_filters(*ret);
    return !image->backing || image == *ret
               ? 0
               : err_set(err, -ENOTSUP,
                         "The filter '%s' stands in the middle of the chain: "
                         "say which layer below '%s' is meant",
                         (*ret)->name, top->name);
}

int
control_check_root(const struct node *image, struct err *err)
{
    return node_is_root(image)
               ? 0
               : err_set(err, -EINVAL, "Need a root block node");
}

bool
control_id_ok(const char *id)
{
    bool ok = isalpha((unsigned char)id[0]);

    for (const char *p = id; ok && *p; p++) {
        ok = isalnum((unsigned char)*p) || strchr("-._", *p);
    }
    return ok;
}

int
cmd_quit(struct control *ctl, const struct args_quit *args, json_t **ret,
         struct err *err)
{
    control_quit(ctl);
    return 0;
}
