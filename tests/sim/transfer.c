// SPDX-License-Identifier: BSD-3-Clause
/* See transfer.h. */
#include "sim/transfer.h"

#include "transfer/engine.h"
#include "transfer/resume.h"

enum { VERB_POLLS = 60, WATCH_NS = 20000 };

struct node *
sweep_layer(const struct sweep *s, unsigned depth)
{
    struct node *n = root_node(s->root);

    while (n && depth--) {
        n = n->backing ? n->backing->child : NULL;
    }
    return n;
}

static int
open_target(struct sweep *s, const char *text, struct node **ret,
            struct err *err)
{
    json_t *options = json_loads(text, 0, NULL);
    int r = node_add(s->graph, options, ret, err);

    json_decref(options);
    return r;
}

static struct job *
start(struct sweep *s, struct jobs *jobs, const struct sweep_transfer *plan)
{
    auto_err err = ERR_INIT;
    struct transfer_options o = {.job_id = "j",
                                 .device = sweep_layer(s, plan->device),
                                 .top = sweep_layer(s, plan->top),
                                 .base = plan->base
                                             ? sweep_layer(s, plan->base)
                                             : NULL,
                                 .piece = 4096,
                                 .max_in_flight = 16384,
                                 .granularity = 512,
                                 .clear_ns = NS_PER_MS,
                                 .speed = plan->speed,
                                 .finish = plan->finish,
                                 .copy_mode = plan->mode,
                                 .sync = plan->sync,
                                 .wait_for_verb = plan->wait_for_verb,
                                 .delete_source = plan->delete_source,
                                 .into = plan->into,
                                 .keep_name = plan->keep_name,
                                 .release = plan->release,
                                 .max_extra = 8192,
                                 .exclusive = true,
                                 .auto_finalize = true};
    int r = plan->target ? open_target(s, plan->target, &o.target, &err) : 0;

    if (!r) {
        r = transfer_start(jobs, plan->preset, &o, &err);
    }
    if (r && !s->may_fail) {
        sweep_fail(s, "the transfer does not start: %s", err.msg);
    }
    return jobs_find(jobs, "j");
}

/* Calls in_switch() at its time. */
struct watch {
    struct sweep *s;
    const struct sweep_transfer *plan;
    const struct transfer *t;
    bool over, left;
};

static void
watch(void *arg)
{
    struct watch *w = arg;
    bool was_there = false;

    for (unsigned n = 0; !w->over && n < w->plan->n_in_switch;) {
        bool there =
            w->t->track.pivoting &&
            (w->plan->from_the_first || !w->t->copy.target->incomplete);

        if (there && !was_there) {
            w->plan->in_switch(w->s);
            n++;
        }
        was_there = there;
        coro_sleep(WATCH_NS);
    }
    w->left = true;
}

void
sweep_run_transfer(struct sweep *s, const struct sweep_transfer *plan)
{
    struct loop *loop = sim_loop(s->sim);
    struct jobs *jobs = jobs_new(loop, NULL, NULL);
    struct job *job = start(s, jobs, plan);
    uint64_t at = plan->at_any_time
                      ? loop_now(loop) +
                            sim_random(&s->rng) %
                                (VERB_POLLS * sweep_poll_ns(s))
                      : 0;
    struct watch w = {.s = s, .plan = plan, .left = true};
    struct transfer_report report;

    if (job && plan->in_switch) {
        w.t = transfer_of(job);
        w.left = false;
        coro_start(loop, watch, &w);
    }
    s->op = jobs;
    if (job && plan->once_started) {
        plan->once_started(s);
    }
    while (job && job->status != JOB_CONCLUDED) {
        if (loop_now(loop) < at) {
            coro_sleep(sweep_poll_ns(s) / 10);
            continue;
        }
        if (job->status == JOB_READY && plan->finish == FINISH_SWITCH) {
            job_complete(job, NULL);
        } else if (job->status == JOB_READY) {
            job_cancel(job, false, NULL);
        }
        /* A verb is refused where a pause is asked for: it is said again. */
        waitq_wait_until(&job->changed, loop_now(loop) + sweep_poll_ns(s));
    }
    if (job && job->err.code && !s->may_fail) {
        sweep_fail(s, "the transfer failed: %s", job->err.msg);
    }
    s->done = job && !job->err.code && !job->cancelled;
    if (job && transfer_report(job, &report)) {
        s->released = report.bytes_released;
    }
    s->op = NULL;
    w.over = true;
    while (!w.left) {
        coro_sleep(WATCH_NS);
    }
    jobs_free(jobs);
}

static struct job *
first_running(struct jobs *jobs)
{
    list_for_each (it, jobs_list(jobs)) {
        struct job *job = container_of(it, struct job, link);

        if (job->status != JOB_CONCLUDED) {
            return job;
        }
    }
    return NULL;
}

void
sweep_resume(struct sweep *s, struct graph *graph, struct node *top)
{
    struct loop *loop = graph_loop(graph);
    struct jobs *jobs = jobs_new(loop, NULL, NULL);
    struct job *job;

    resume_jobs(jobs, top, RESUME_AUTO);
    while ((job = first_running(jobs))) {
        if (job->status == JOB_READY &&
            transfer_of(job)->finish == FINISH_STAY) {
            job_cancel(job, false, NULL);
        } else if (job->status == JOB_READY) {
            job_complete(job, NULL);
        }
        waitq_wait_until(&job->changed, loop_now(loop) + NS_PER_MS);
    }
    list_for_each (it, jobs_list(jobs)) {
        job = container_of(it, struct job, link);
        if (job->err.code) {
            sweep_fail(s, "what was resumed failed: %s", job->err.msg);
        }
        s->resumed++;
    }
    jobs_free(jobs);
    json_t *left = resume_list(graph_journals(top->graph), node_local_file(top)->filename);

    if (json_array_size(left)) {
        sweep_fail(s, "the journal still speaks of a job");
    }
    json_decref(left);
}

/* All of both; they are small. */
static void
must_be_alike(struct sweep *s, struct node *a, struct node *b)
{
    auto_free unsigned char *x = xmalloc(a->size), *y = xmalloc(a->size);

    if (a->size > b->size || node_read_buf(a, 0, x, a->size) ||
        node_read_buf(b, 0, y, a->size)) {
        sweep_fail(s, "the copy that was resumed cannot be read");
    }
    for (uint64_t i = 0; i < a->size && !s->failures; i++) {
        if (x[i] != y[i]) {
            sweep_fail(s, "the copy that was resumed differs in sector %u",
                       (unsigned)(i / 512));
        }
    }
}

void
sweep_resume_copy(struct sweep *s, struct graph *graph, struct node *top)
{
    uint64_t before = s->resumed;

    sweep_resume(s, graph, top);
    struct node *target = graph_find(graph, "target");

    if (s->resumed != before && !s->failures && !target) {
        sweep_fail(s, "the copy that was resumed is not there");
    } else if (s->resumed != before && !s->failures) {
        must_be_alike(s, top, target);
    }
    if (target) {
        node_del(graph, "target", NULL);
    }
}
