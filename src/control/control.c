// SPDX-License-Identifier: BSD-3-Clause
/* The control context: see control.h.  The commands are in cmd_*.c. */
#include "control/control.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "control/control_internal.h"
#include "control/qmp_dispatch.h"
#include "drivers/drivers.h"
#include "schema_dispatch.h"

struct control *
control_new(struct loop *loop, const struct control_options *options)
{
    struct control *ctl = xzalloc(sizeof(*ctl));

    ctl->loop = loop;
    ctl->options = *options;
    ctl->graph = graph_new(
        loop, &(struct graph_options){.drivers = all_drivers,
                                      .backing_paths = options->backing_paths});
    ctl->jobs = jobs_new(loop, control_job_event, ctl);
    ctl->objects = json_object();
    list_init(&ctl->listeners);
    list_init(&ctl->exports);
    waitq_init(&ctl->exports_changed);
    return ctl;
}

/*
 * The exports first, so that no guest writes any more when jobs end and images
 * are closed.
 */
void
control_close(struct control *ctl)
{
    control_stop_nbd(ctl);
    jobs_free(take_ptr(ctl->jobs));
    graph_free(take_ptr(ctl->graph));
}

void
control_free(struct control *ctl)
{
    assert(!ctl->graph && list_empty(&ctl->listeners));
    json_decref(ctl->objects);
    free(ctl);
}

void
control_ready(struct control *ctl)
{
    ctl->ready = true;
    if (ctl->nbd) {
        nbd_server_release(ctl->nbd);
    }
}

void
control_listen(struct control *ctl, struct control_listener *listener)
{
    list_push(&ctl->listeners, &listener->link);
}

void
control_unlisten(struct control_listener *listener)
{
    list_remove(&listener->link);
}

void
control_event(struct control *ctl, const char *name, json_t *data)
{
    json_t *event = qmp_event(name, data, loop_wall_now(ctl->loop));

    list_for_each(it, &ctl->listeners)
    {
        struct control_listener *listener =
            container_of(it, struct control_listener, link);

        listener->on_event(listener, event);
    }
    json_decref(event);
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

bool
control_id_ok(const char *id)
{
    bool ok = isalpha((unsigned char)id[0]);

    for (const char *p = id; ok && *p; p++) {
        ok = isalnum((unsigned char)*p) || strchr("-._", *p);
    }
    return ok;
}

/* Threads are not for the operator to place here, but naming one works. */
int
control_add_object(struct control *ctl, json_t *object, struct err *err)
{
    struct qmp_object_options o;

    decode_qmp_object_options(object, &o);
    if (!control_id_ok(o.id)) {
        return err_set(err, -EINVAL, "Parameter 'id' expects an identifier");
    }
    if (json_object_get(ctl->objects, o.id)) {
        return err_set(err, -EEXIST,
                       "attempt to add duplicate property '%s' to object "
                       "(type 'container')",
                       o.id);
    }
    if (o.qom_type != QMP_OBJECT_TYPE_IOTHREAD) {
        int r = err_set(err, -ENOTSUP,
                        "Objects of type '%s' are not supported yet",
                        json_string_value(
                            json_object_get(object, "qom-type")));

        err_hint(err, "Only 'iothread' is, and has no effect");
        return r;
    }
    json_object_set(ctl->objects, o.id, object);
    return 0;
}

int
cmd_quit(struct control *ctl, const struct args_quit *args, json_t **ret,
         struct err *err)
{
    if (ctl->options.on_quit) {
        ctl->options.on_quit(ctl->options.arg);
    }
    return 0;
}
