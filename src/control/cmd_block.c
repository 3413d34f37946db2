// SPDX-License-Identifier: BSD-3-Clause
/* Nodes: adding, removing, creating images. */
#include <errno.h>
#include <stdlib.h>

#include "control/control_internal.h"
#include "schema_dispatch.h"
#include "transfer/resume.h"

/*
 * Jobs of an earlier daemon on the layers of @top go on; filters have none of
 * their own, for they share their image's file.  One that is inactive is another
 * program's until it is made active.
 */
static void
resume_chain(struct control *ctl, struct node *top)
{
    if (top->read_only) {
        return; /* it is only looked at */
    }
    for (struct node *n = node_ref(top), *next; n; n = next) {
        bool is_filter = node_skip_filters(n) != n;

        if (!is_filter && !n->inactive) {
            resume_jobs(ctl->jobs, n, ctl->resume);
        }
        next = is_filter    ? n->file->child
               : n->backing ? n->backing->child
                            : NULL;
        next = next ? node_ref(next) : NULL;
        node_unref(n);
    }
}

struct resumption {
    struct control *ctl;
    struct node *top;
};

static void
resume_main(void *arg)
{
    struct resumption *r = arg;

    if (!r->ctl->quitting) {
        resume_chain(r->ctl, r->top);
    }
    node_unref(r->top);
    jobs_resume_end(r->ctl->jobs);
    free(r);
}

/* Each disk by itself: the target of one may hang. */
void
control_resume(struct control *ctl)
{
    struct node **nodes;
    size_t n;

    ctl->resumes = true;
    graph_hold_all(ctl->graph, &nodes, &n);
    for (size_t i = 0; i < n; i++) {
        if (nodes[i]->named) {
            struct resumption *r = xmalloc(sizeof(*r));

            *r = (struct resumption){.ctl = ctl, .top = nodes[i]};
            jobs_resume_begin(ctl->jobs);
            coro_start(ctl->loop, resume_main, r);
        } else {
            node_unref(nodes[i]);
        }
    }
    free(nodes);
}

void
control_resume_node(struct control *ctl, struct node *node)
{
    if (ctl->resumes) {
        jobs_resume_begin(ctl->jobs);
        resume_chain(ctl, node);
        jobs_resume_end(ctl->jobs);
    }
}

int
cmd_blockdev_add(struct control *ctl, const struct args_blockdev_add *args,
                 json_t **ret, struct err *err)
{
    struct node *node;
    int r = node_add(ctl->graph, args->json, &node, err);

    if (!r) {
        control_resume_node(ctl, node);
    }
    return r;
}

int
cmd_blockdev_del(struct control *ctl, const struct args_blockdev_del *args,
                 json_t **ret, struct err *err)
{
    return node_del(ctl->graph, args->node_name, err);
}

/* Creating images. */

struct create_job {
    struct job job;
    struct graph *graph;
    const struct driver *drv;
    json_t *options;
};

static int
create_run(struct job *job, struct err *err)
{
    struct create_job *c = container_of(job, struct create_job, job);
    int r = c->drv->create(c->graph, c->options, err);

    job->current = 1;
    return r;
}

static void
create_clean(struct job *job, bool success)
{
}

static void
create_free(struct job *job)
{
    struct create_job *c = container_of(job, struct create_job, job);

    json_decref(c->options);
    free(c);
}

static const struct job_driver create_driver = {
    .type = "create",
    .run = create_run,
    .clean = create_clean,
};

int
cmd_blockdev_create(struct control *ctl,
                    const struct args_blockdev_create *args, json_t **ret,
                    struct err *err)
{
    const char *name =
        json_string_value(json_object_get(args->options, "driver"));
    const struct driver *drv = graph_driver(ctl->graph, name);

    if (!drv || !drv->create) {
        return err_set(err, -ENOTSUP,
                       "Driver does not support blockdev-create");
    }
    int r = job_check_id(ctl->jobs, args->job_id, err);

    if (r) {
        return r;
    }
    struct create_job *c = xzalloc(sizeof(*c));

    c->graph = ctl->graph;
    c->drv = drv;
    c->options = json_deep_copy(args->options);
    c->job.driver = &create_driver;
    c->job.free = create_free;
    c->job.auto_finalize = true;
    c->job.total = 1;
    job_start(ctl->jobs, &c->job, args->job_id);
    return 0;
}
