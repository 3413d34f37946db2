// SPDX-License-Identifier: BSD-3-Clause
/*
 * The model test's operations.  To add one: a start function, a row of the
 * table, and what must hold when it has completed (ops_judge()).
 *
 * An operation is driven by a coroutine of its own, which does to its job what
 * the operator's seed wants: pauses, speeds, and in the end a cancel, a stop or
 * a job-complete.  What is refused with -EBUSY or -EINVAL is an outcome, too;
 * any other error is a failure.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/edit.h"
#include "block/graph_internal.h"
#include "block/resize.h"
#include "sim/model.h"

enum { DEADLINE_NS = 2000000000, VERBS_MAX = 6, RARELY = 12 };

enum ending { END_COMPLETE, END_STOP, END_CANCEL };

struct op {
    struct world *w;
    const struct kind *kind;
    char id[24]; /* of the job */
    uint64_t rng;
    bool alone; /* no other one is under way */
    struct node *device, *base; /* may be gone: only to be compared */
    char *device_name;
    unsigned target;      /* image; IMAGES_MAX: none */
    struct node *to;      /* its node, while it is named */
    enum ending ending;
    uint64_t start_ns, end_ns; /* when it begins, when the end is asked for */
    bool exact;           /* guests are held when the copy is to be cut off */
    bool holds, ended;
    uint64_t sectors;     /* of the disk when it began */
    uint64_t since;       /* oracle: the copy is of this time or later; or 0 */
    unsigned verbs;       /* that may still disturb it */
    bool cancelled;       /* so the job says */
    enum outcome outcome;
};

/* What is left where the job has ended well. */
enum leaves { LEAVES_NOTHING, LEAVES_FILLED, LEAVES_SWITCHED, LEAVES_COPY };

struct kind {
    const char *name;
    /* 0: the job op->id runs, or it is done where it is none. */
    int (*start)(struct op *op, struct transfer_options *o, struct err *err);
    enum leaves leaves;
    unsigned outcomes; /* bits */
    bool is_job;
    bool waits; /* for job-complete */
    bool moves_first; /* the disk is on the target before the job ends */
};

static uint64_t
pick(struct op *op, uint64_t n)
{
    return sim_random(&op->rng) % n;
}

/* The layer whose backing file the operation changes: by name, for it can go. */
static void
look_at(struct op *op, const struct node *node)
{
    free(op->device_name);
    op->device_name = xstrdup(node->name);
}

/* Targets. */

/* What a copy must overwrite, or make zero. */
static void
put_old_data(struct op *op, struct node *node)
{
    unsigned char buf[SECTOR];

    for (unsigned i = 0; i < 20; i++) {
        sector_fill(buf, 0xdead0000 + i);
        if (node_write_buf(node, pick(op, node->size / SECTOR) * SECTOR, buf,
                           SECTOR)) {
            abort();
        }
    }
    op->w->images[op->target].old_data = true;
}

/* A target, mostly as large as the disk; now and then the source itself. */
static void
take_target(struct op *op, struct transfer_options *o, bool overlay)
{
    struct world *w = op->w;
    uint64_t size = w->sectors, n = pick(op, 16);
    bool old = !overlay && pick(op, 4) == 0;

    if (pick(op, RARELY) == 0) {
        o->target = o->device;
        return;
    }
    size = n == 0 ? size + 8 : n <= 2 ? size - size / 4 : size;
    op->target = world_make_image(
        w, &op->rng, overlay ? (pick(op, 5) ? "qcow2" : "qed") : NULL, size,
        NULL);
    o->target = op->to = world_open_image(w, &op->rng, op->target);
    if (old && op->to) {
        put_old_data(op, op->to);
    }
    /* Another operation may have moved the disk meanwhile. */
    o->device = op->device = world_head(w);
    look_at(op, op->device);
}

static uint64_t
below(struct op *op)
{
    uint64_t n = 0;

    for (struct node *node = op->device->backing
                                 ? op->device->backing->child
                                 : NULL;
         node; node = node->backing ? node->backing->child : NULL) {
        n++;
    }
    return n;
}

/* The table's start functions. */

static int
start_stream(struct op *op, struct transfer_options *o, struct err *err)
{
    if (pick(op, RARELY) == 0) {
        o->base = op->base = op->device; /* nonsense */
    } else if (below(op)) {
        if (below(op) > 1 && pick(op, 5) == 0) {
            o->device = op->device = op->device->backing->child;
            look_at(op, op->device);
        }
        uint64_t n = pick(op, below(op) + 1);

        for (struct node *node = op->device; n; n--) {
            node = op->base = node->backing->child;
        }
        o->base = op->base = pick(op, 2) ? op->base : NULL;
    }
    bool read_only = o->device->read_only;
    int r = transfer_start(op->w->jobs, PRESET_STREAM, o, err);

    return r == -EACCES && read_only ? -EINVAL : r;
}

static int
start_switch(struct op *op, struct transfer_options *o, struct err *err)
{
    take_target(op, o, false);
    o->finish = FINISH_SWITCH;
    return copy_start(op->w->jobs, o, err);
}

static int
start_stay(struct op *op, struct transfer_options *o, struct err *err)
{
    take_target(op, o, false);
    o->finish = FINISH_STAY;
    o->wait_for_verb = false;
    op->since = oracle_read_begin(op->w->oracle);
    return copy_start(op->w->jobs, o, err);
}

static int
start_mirror(struct op *op, struct transfer_options *o, struct err *err)
{
    take_target(op, o, false);
    o->wait_for_verb = true;
    return mirror_start(op->w->jobs, o, err);
}

static int
start_hybrid(struct op *op, struct transfer_options *o, struct err *err)
{
    take_target(op, o, true);
    return hybrid_start(op->w->jobs, o, err);
}

static int
start_post_copy(struct op *op, struct transfer_options *o, struct err *err)
{
    take_target(op, o, true);
    return post_copy_start(op->w->jobs, o, err);
}

static struct node *
layer(struct node *top, uint64_t depth)
{
    while (depth--) {
        top = top->backing->child;
    }
    return top;
}

/* A base between a shorter and a longer one cannot grow. */
static int
start_commit_job(struct op *op, struct transfer_options *o, struct err *err)
{
    int r = commit_start(op->w->jobs, o, err);

    return r == -ENOTSUP ? -EINVAL : r;
}

/* The disk's own layers into one below; that one is the disk then. */
static int
start_commit(struct op *op, struct transfer_options *o, struct err *err)
{
    uint64_t n = below(op);

    o->top = op->device;
    o->base = n && pick(op, RARELY) ? layer(op->device, 1 + pick(op, n))
                                    : op->device; /* nonsense */
    if (o->base->size > op->device->size) {
        return -EINVAL; /* the disk would grow */
    }
    op->to = o->base == op->device ? NULL : o->base;
    o->wait_for_verb = true;
    return start_commit_job(op, o, err);
}

static int
start_merge_job(struct op *op, struct transfer_options *o, struct err *err)
{
    o->release = true;
    o->max_extra = 8192 << pick(op, 3);
    o->exclusive = true; /* nobody else is in this world */
    o->upgrade = true;   /* of version 2 */
    op->w->has_released = true;
    int r = transfer_start(op->w->jobs, PRESET_MERGE, o, err);

    return r == -EACCES ? -EINVAL : r;
}

/* The disk sinks into a layer below; that one is the disk then. */
static int
start_merge(struct op *op, struct transfer_options *o, struct err *err)
{
    uint64_t n = below(op);

    if (!n) {
        return -EINVAL;
    }
    op->to = o->base = layer(op->device, 1 + pick(op, n));
    o->into = MERGE_INTO_SNAPSHOT;
    return start_merge_job(op, o, err);
}

/* A layer below the disk sinks into one further below. */
static int
start_merge_below(struct op *op, struct transfer_options *o, struct err *err)
{
    uint64_t n = below(op);

    if (n < 2) {
        return -EINVAL;
    }
    uint64_t top = 1 + pick(op, n - 1);

    o->device = layer(op->device, top);
    o->base = op->base = layer(o->device, 1 + pick(op, n - top));
    o->top = o->device;
    o->into = MERGE_INTO_SNAPSHOT;
    look_at(op, layer(op->device, top - 1));
    return start_merge_job(op, o, err);
}

/* The disk, or a layer below it, takes in those below. */
static int
start_merge_up(struct op *op, struct transfer_options *o, struct err *err)
{
    uint64_t n = below(op);

    if (!n) {
        return -EINVAL;
    }
    o->device = op->device = layer(op->device, pick(op, n));
    look_at(op, op->device);
    o->base = layer(o->device, 1 + pick(op, below(op)));
    op->base = o->base->backing ? o->base->backing->child : NULL;
    o->into = MERGE_INTO_OVERLAY;
    return start_merge_job(op, o, err);
}

/* Layers below the disk; it reads as before. */
static int
start_commit_below(struct op *op, struct transfer_options *o, struct err *err)
{
    uint64_t n = below(op);

    if (n < 2) {
        return -EINVAL;
    }
    uint64_t top = 1 + pick(op, n - 1);

    o->top = layer(op->device, top);
    o->base = op->base = layer(o->top, 1 + pick(op, n - top));
    o->device = op->device;
    look_at(op, layer(op->device, top - 1));
    return start_commit_job(op, o, err);
}

static bool
is_backing(const struct node *node)
{
    list_for_each(it, &node->parents)
    {
        if (container_of(it, struct edge, link)->role == EDGE_BACKING) {
            return true;
        }
    }
    return false;
}

static bool
has_job(const struct node *node)
{
    list_for_each(it, &node->roots)
    {
        if (container_of(it, struct root, link)->pinned) {
            return true;
        }
    }
    return false;
}

struct overlay {
    struct node *node, *over;
};

/* As the control interface's, which asks twice, too. */
static int
check_overlay(void *arg)
{
    const struct overlay *o = arg;

    return is_backing(o->node) || has_job(o->node) ||
                   (o->over && o->over->size != o->node->size)
               ? -EBUSY
               : 0;
}

/* As blockdev-snapshot-sync does it. */
static int
put_overlay(struct op *op, struct node *node, struct err *err)
{
    struct world *w = op->w;
    struct overlay o = {node, NULL};
    struct edit_options options = {.check = check_overlay, .arg = &o};

    if (check_overlay(&o)) {
        return -EBUSY;
    }
    if (node_flush(node)) {
        return -EIO;
    }
    op->target = world_make_image(w, &op->rng, NULL, node->size / SECTOR, node);
    o.over = world_open_image(w, &op->rng, op->target);
    if (!o.over || check_overlay(&o)) {
        return -EBUSY; /* another operation used the time */
    }
    struct edit edits[] = {{EDIT_BACKING, o.over, node},
                           {EDIT_REPLACE, node, o.over}};

    options.deadline_ns = loop_now(sim_loop(w->sim)) + DEADLINE_NS;

    return graph_edit(w->graph, edits, ARRAY_LEN(edits), &options, NULL, err);
}

static int
start_snapshot(struct op *op, struct transfer_options *o, struct err *err)
{
    struct node *node = op->device;

    if (pick(op, RARELY) == 0 && node->backing) {
        node = node->backing->child;
    }
    node_ref(node);
    int r = put_overlay(op, node, err);

    node_unref(node);
    return r;
}

static int
start_resize(struct op *op, struct transfer_options *o, struct err *err)
{
    struct world *w = op->w;
    uint64_t size = w->sectors + 1 + pick(op, 12);
    int r;

    if (size > SECTORS_MAX) {
        return -EINVAL;
    }
    r = node_resize(op->device, size * SECTOR,
                    loop_now(sim_loop(w->sim)) + DEADLINE_NS, err);
    /* A snapshot may have come between: then it is a layer that has grown. */
    if (!r && op->device == world_head(w)) {
        w->sectors = size;
    }
    return r;
}

#define BIT(outcome) (1u << (outcome))
#define JOB_OUTCOMES (BIT(COMPLETED) | BIT(CANCELLED) | BIT(REFUSED))
#define AT_ONCE (BIT(COMPLETED) | BIT(REFUSED))

static const struct kind kinds[] = {
    {"stream", start_stream, LEAVES_FILLED, JOB_OUTCOMES, true, false,
     false},
    {"pre-copy", start_switch, LEAVES_SWITCHED, JOB_OUTCOMES, true, false,
     false},
    {"copy", start_stay, LEAVES_COPY, JOB_OUTCOMES, true, false, false},
    {"mirror", start_mirror, LEAVES_SWITCHED, JOB_OUTCOMES, true, true, false},
    {"hybrid", start_hybrid, LEAVES_SWITCHED, JOB_OUTCOMES, true, true, true},
    {"post-copy", start_post_copy, LEAVES_SWITCHED, JOB_OUTCOMES, true, false,
     true},
    {"commit", start_commit, LEAVES_SWITCHED, JOB_OUTCOMES, true, false, false},
    {"commit-below", start_commit_below, LEAVES_FILLED, JOB_OUTCOMES, true,
     false, false},
    {"merge", start_merge, LEAVES_SWITCHED, JOB_OUTCOMES, true, false, false},
    {"merge-below", start_merge_below, LEAVES_FILLED, JOB_OUTCOMES, true,
     false, false},
    {"merge-up", start_merge_up, LEAVES_FILLED, JOB_OUTCOMES, true, false,
     false},
    {"snapshot", start_snapshot, LEAVES_NOTHING, AT_ONCE, false, false, false},
    {"resize", start_resize, LEAVES_NOTHING, AT_ONCE, false, false, false},
};

unsigned
ops_kinds(void)
{
    return ARRAY_LEN(kinds);
}

const char *
ops_name(unsigned kind)
{
    return kinds[kind].name;
}

unsigned
ops_outcomes(unsigned kind)
{
    return kinds[kind].outcomes;
}

/* What is done to a job. */

static struct job *
job_of(struct op *op)
{
    return jobs_find(op->w->jobs, op->id);
}

static bool
is_before_its_end(const struct job *job)
{
    return job->status == JOB_CREATED || job->status == JOB_RUNNING ||
           job->status == JOB_PAUSED || job->status == JOB_READY ||
           job->status == JOB_STANDBY;
}

/* From here on the disk does not change, so that a copy of it is exact. */
static void
cut_off(struct op *op)
{
    if (op->exact && !op->holds) {
        op->holds = true;
        world_hold(op->w);
    }
    if (is_before_its_end(job_of(op)) && !job_of(op)->cancelled) {
        if (op->since) {
            oracle_read_end(op->w->oracle, op->since);
        }
        op->since = oracle_read_begin(op->w->oracle);
    }
}

static void
ask_for_the_end(struct op *op)
{
    struct job *job = job_of(op);
    int r = 0;

    if (op->ending == END_CANCEL) {
        r = job_cancel(job, job->driver->can_complete || pick(op, 2), NULL);
    } else if (op->kind->leaves == LEAVES_COPY) {
        cut_off(op);
    } else if (job->status != JOB_READY) {
        return;
    } else if (op->ending == END_STOP) {
        cut_off(op);
        job = job_of(op);
        r = job->status == JOB_READY ? job_cancel(job, false, NULL) : -EAGAIN;
    } else {
        r = job_complete(job, NULL);
    }
    op->ended = !r;
    if (op->ended) {
        world_say(op->w, "%s: %s", op->id,
                  op->ending == END_CANCEL    ? "cancel"
                  : op->ending == END_STOP    ? "stop"
                  : op->kind->leaves == LEAVES_COPY ? "guests are held"
                                              : "complete");
    }
}

static void
disturb(struct op *op, struct job *job)
{
    switch (pick(op, 4)) {
    case 0:
        job_pause(job, NULL);
        break;
    case 1:
        job_resume(job, NULL);
        break;
    default:
        job_set_speed(job, pick(op, 3) ? MIB << pick(op, 5) : 0, NULL);
        break;
    }
}

static void
help(struct op *op, struct job *job)
{
    if (job->user_paused) {
        job_resume(job, NULL);
    }
    if (job->speed && pick(op, 4) == 0) {
        job_set_speed(job, 0, NULL);
    }
}

static void
drive(struct op *op)
{
    struct loop *loop = sim_loop(op->w->sim);
    struct job *job;

    while ((job = job_of(op))->status != JOB_CONCLUDED) {
        if (!op->ended && loop_now(loop) >= op->end_ns) {
            ask_for_the_end(op);
        }
        if (op->verbs) {
            op->verbs--;
            disturb(op, job);
        } else {
            help(op, job);
        }
        if (job->status == JOB_PENDING && pick(op, 2)) {
            job_finalize(job, NULL);
        }
        if (job->status != JOB_CONCLUDED) {
            waitq_wait_until(&job->changed,
                             loop_now(loop) + pick(op, 2 * NS_PER_MS));
        }
    }
}

/* What has become of it. */

static void
judge_completed(struct op *op, enum leaves leaves)
{
    struct world *w = op->w;

    if (leaves == LEAVES_COPY) {
        world_compare(w, op->to, op->sectors, op->since, "the copy");
        world_compare_file(w, op->target, op->sectors, op->since);
    }
    if (!op->alone) {
        return;
    }
    if (leaves == LEAVES_SWITCHED && world_head(w) != op->to) {
        world_fail(w, "%s: the disk did not go to its target", op->id);
    }
    if (leaves == LEAVES_COPY && world_head(w) != op->device) {
        world_fail(w, "%s: the disk did not stay", op->id);
    }
    if (leaves == LEAVES_FILLED) {
        struct node *node = graph_find(w->graph, op->device_name);

        if (!node || (node->backing ? node->backing->child : NULL) != op->base) {
            world_fail(w, "%s: the chain is as it was", op->id);
        }
    }
}

static void
judge_cancelled(struct op *op)
{
    struct world *w = op->w;

    if (op->kind->start == start_commit ||
        op->kind->start == start_merge) { /* its target was there before */
        if (world_head(w) == op->to) {
            world_fail(w, "%s was cancelled, but the disk has moved", op->id);
        }
    } else if (op->to && !chain_contains(world_head(w), op->to)) {
        world_check_unfinished(w, op->target);
    } else if (op->to && !op->kind->moves_first) {
        world_fail(w, "%s was cancelled, but the disk has moved", op->id);
    }
}

static void
judge(struct op *op)
{
    struct world *w = op->w;
    struct job *job = job_of(op);
    int code = job->err.code;
    auto_free char *msg = xstrdup(job->err.msg ? job->err.msg : "");
    enum leaves leaves = op->kind->leaves;

    if (op->cancelled) {
        op->outcome = CANCELLED;
    } else if (!code) {
        op->outcome = COMPLETED;
    } else if (!op->alone && (code == -EBUSY || code == -EINVAL)) {
        op->outcome = REFUSED;
    } else {
        world_fail(w, "%s failed: %s", op->id, msg);
    }
    if (job->end == JOB_END_STOP) {
        leaves = LEAVES_COPY;
    }
    job_dismiss(job, NULL);
    if (!w->failures && op->outcome == COMPLETED) {
        judge_completed(op, leaves);
    } else if (!w->failures && op->outcome == CANCELLED) {
        judge_cancelled(op);
    }
}

static void
run(struct op *op)
{
    struct world *w = op->w;
    auto_err err = ERR_INIT;

    op->device = world_head(w);
    look_at(op, op->device);
    struct transfer_options o = {
        .job_id = op->id,
        .device = op->device,
        .piece = 4096 << pick(op, 2),
        .max_in_flight = 8192 << pick(op, 3),
        .granularity = 512 << pick(op, 4),
        .speed = pick(op, 2) ? 0 : MIB << pick(op, 4),
        .copy_mode = pick(op, 3),
        .wait_for_verb = op->ending == END_STOP,
        .auto_finalize = pick(op, 3) > 0};
    int r = op->kind->start(op, &o, &err);

    world_say(w, "%s on %s: %s%s", op->id, op->device_name,
              r ? err_text(r) : "begins", op->kind->is_job ? "" : " and ends");
    if (r == -EBUSY || r == -EINVAL) {
        op->outcome = REFUSED;
    } else if (r) {
        world_fail(w, "%s is refused: %s", op->id, err.msg ? err.msg : "");
    } else if (op->kind->is_job) {
        op->sectors = w->sectors; /* a job's source keeps its size */
        drive(op);
        judge(op);
    } else {
        op->outcome = COMPLETED;
    }
    world_say(w, "%s: %s", op->id,
              op->outcome == COMPLETED   ? "completed"
              : op->outcome == CANCELLED ? "cancelled"
                                         : "refused");
    if (op->since) {
        oracle_read_end(w->oracle, op->since);
    }
    if (op->holds) {
        world_release(w);
    }
    free(op->device_name);
}

void
ops_on_event(void *arg, const struct job_event *ev)
{
    struct world *w = arg;

    for (unsigned i = 0; i < OPS_AT_ONCE; i++) {
        if (ev->kind == JOB_EVENT_CANCELLED &&
            !strcmp(w->ops[i].id, ev->job->id)) {
            w->ops[i].cancelled = true;
        }
    }
}

static void
op_main(void *arg)
{
    struct op *op = arg;

    coro_sleep(op->start_ns);
    run(op);
    op->w->n_ops--;
    waitq_wake_all(&op->w->quiet);
}

static void
init_op(struct op *op, struct world *w, unsigned step, unsigned which)
{
    *op = (struct op){.w = w,
                      .target = IMAGES_MAX,
                      .rng = w->plan->seed * 1000003 + step * 4 + which};
    op->kind = &kinds[pick(op, ARRAY_LEN(kinds))];
    snprintf(op->id, sizeof(op->id), "%s-%u%c", op->kind->name, step,
             'a' + which);
    op->ending = pick(op, 3) == 0               ? END_CANCEL
                 : op->kind->waits && pick(op, 2) ? END_STOP
                                                : END_COMPLETE;
    op->start_ns = which ? pick(op, 4 * NS_PER_MS) : 0;
    op->end_ns = loop_now(sim_loop(w->sim)) + op->start_ns +
                 pick(op, (pick(op, 3) ? 10 : 1) * NS_PER_MS);
    op->exact = pick(op, 2);
    op->verbs = pick(op, 2) ? (unsigned)pick(op, VERBS_MAX) : 0;
}

void
ops_step(struct world *w, unsigned step, uint64_t (*counts)[OUTCOMES])
{
    struct op ops[OPS_AT_ONCE];
    uint64_t rng = w->plan->seed * 7919 + step;
    unsigned wanted = w->plan->steps >> (2 * step) & 3;

    w->ops = ops;
    init_op(&ops[0], w, step, 0);
    init_op(&ops[1], w, step, 1);
    if (sim_random(&rng) % 5 < 3) {
        wanted &= 1;
    }
    /* Two sizes at once: the one that comes second could shrink the disk. */
    if (ops[0].kind == ops[1].kind && ops[0].kind->start == start_resize) {
        wanted &= 1;
    }
    for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
        if (wanted & 1u << i) {
            ops[i].alone = wanted != 3;
            w->n_ops++;
            coro_start(sim_loop(w->sim), op_main, &ops[i]);
        }
    }
    while (w->n_ops) {
        waitq_wait(&w->quiet);
    }
    for (unsigned i = 0; i < ARRAY_LEN(ops); i++) {
        if (wanted & 1u << i && !w->failures) {
            counts[ops[i].kind - kinds][ops[i].outcome]++;
        }
    }
    if (!w->failures) {
        world_settle(w);
    }
}
