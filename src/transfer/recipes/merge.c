// SPDX-License-Identifier: BSD-3-Clause
/*
 * merge (S5): a disk's top, the layers below it and a snapshot become one.
 *
 * into the snapshot (docs/design/merge.md):
 *   source   the top, with the layers between it and the snapshot
 *   target   the snapshot, which these layers hide wherever it is written
 *   missing  what they hold
 *   on_write sink: the snapshot alone where they hold nothing, both where it
 *            was copied and is not given back yet, else the top
 *   switch   none is needed: in the end both read alike
 *   finish   the disk goes on on the snapshot; what is above it is empty
 *
 * into the overlay: a stream down to what lies below the snapshot.
 *
 * Either way the sources give back what has landed, epoch by epoch, and a chain
 * that was left half merged is an ordinary one.
 */
#include <errno.h>

#include "block/edit.h"
#include "block/resize.h"
#include "transfer/pivot.h"
#include "transfer/recipes/keep_name.h"
#include "transfer/recipes/recipes.h"
#include "transfer/resume.h"

enum { RETRY_MS = 5 };

/* Asked right before the swap: is all of the disk in the snapshot? */
static int
ready_to_drop(void *arg)
{
    struct transfer *t = arg;

    if (!release_is_complete(t) || t->track.missing.n_dirty) {
        return -EAGAIN;
    }
    transfer_claim_to_switch(t, true);
    return 0;
}

/*
 * A longer snapshot is as long as the disk before it is the disk.  Where that is
 * within a cluster, it gets one.
 */
static int
cut_snapshot(struct transfer *t, struct err *err)
{
    struct node *base = t->copy.target;
    uint64_t size = t->copy.source->size;
    int r;

    do {
        err_clear(err);
        r = base->size > size ? node_truncate(base, size, err) : 0;
    } while (r && transfer_waits_for_space(t, r) && !job_cancelled(&t->job));
    return job_cancelled(&t->job) ? -ECANCELED : r;
}

static int
drop_top(struct transfer *t, struct err *err)
{
    struct node *top = t->copy.source, *base = t->copy.target;
    const struct edit edit = {EDIT_REPLACE, top, base};
    const struct edit_options options = {
        .alike = true, .check = ready_to_drop, .arg = t};
    struct edit_report report = {0};
    int r = release_rest(t);

    if (!r) {
        r = transfer_converge(t); /* what is held no more */
    }
    if (!r) {
        r = node_flush(base);
    }
    if (r) {
        return r == -ECANCELED
                   ? r
                   : err_set_errno(err, r, "Writing '%s' failed", base->name);
    }
    r = graph_edit(top->graph, &edit, 1, &options, &report, err);
    if (r) {
        transfer_claim_to_switch(t, false);
    }
    transfer_report_pause(t, report.pause_ns, report.held);
    return r;
}

static int
overlay_prepare(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);

    merge_record_deletions(t, t->copy.target);
    int r = stream_prepare(job, err);

    return r ? r : merge_delete_layers(t, err);
}

/* The disk, or the image above, goes on on the snapshot. */
static int
drop_layers(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);

    t->ending = true;
    int r = cut_snapshot(t, err);

    if (r) {
        return r;
    }
    if (t->overlay) {
        merge_record_deletions(t, t->overlay);
        r = node_flush(t->copy.target);
        return r ? err_set_errno(err, r, "Flushing '%s' failed",
                                 t->copy.target->name)
                 : sink_drop_layers(job, err);
    }
    while ((r = drop_top(t, err)) == -EAGAIN) {
        job_sleep(job, RETRY_MS * NS_PER_MS);
    }
    return r;
}

static int
snapshot_prepare(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);
    int r = drop_layers(job, err);

    if (!r && !t->overlay) {
        merge_record_deletions(t, t->copy.target);
    }
    if (!r) {
        r = merge_delete_layers(t, err);
        if (!t->overlay) {
            transfer_keep_writable(t);
        }
    }
    return r;
}

/* There is room, and it is recorded. */
static int
begin(struct transfer *t, struct err *err)
{
    struct node *disk = t->copy.source, *snapshot = t->copy.target;
    int r;

    do {
        err_clear(err);
        r = merge_match_sizes(disk, snapshot, err);
    } while (r == -ENOSPC && !transfer_error_ends(t, r, false));
    t->error = 0; /* it is in @err */

    if (disk->unmap) { /* it is to be the disk: a guest's discards go on */
        snapshot->unmap = true;
        if (snapshot->file) {
            snapshot->file->child->unmap = true;
        }
    }
    t->job.total = t->copy.target->size;
    return r;
}

#define RECIPE(find, end, start)                                               \
    {                                                                          \
        .driver = {.type = "merge",                                            \
                   .is_block_job = true,                                       \
                   .run = transfer_run,                                        \
                   .prepare = end,                                             \
                   .clean = transfer_clean,                                    \
                   .remember = transfer_remember,                              \
                   .cancelled = transfer_cancelled},                           \
        .next = find, .begin = start,                                          \
    }

static const struct transfer_recipe into_snapshot =
    RECIPE(mirror_next, snapshot_prepare, begin);
static const struct transfer_recipe into_overlay =
    RECIPE(stream_next, overlay_prepare, NULL);

/* The image in use that has @node as its backing file, or NULL. */
static struct node *
find_overlay(struct node *node)
{
    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e->role == EDGE_BACKING && edge_claim(e) != CLAIM_NONE) {
            return e->parent;
        }
    }
    return NULL;
}

static int
check(const struct transfer_options *o, struct err *err)
{
    if (!o->device->backing) {
        return err_set(err, -EINVAL, "'%s' has no backing file to merge",
                       o->device->filename ? o->device->filename
                                           : o->device->name);
    }
    if (o->base == o->device || !chain_contains(o->device, o->base)) {
        return err_set(err, -EINVAL, "Node '%s' is not a backing image of '%s'",
                       o->base->name, o->device->name);
    }
    return 0;
}

static bool
can_resize(struct node *node)
{
    const struct node *file = node;

    while (file->file) {
        file = file->file->child;
    }
    return node->drv->truncate && file->drv->truncate && !file->is_device &&
           !json_object_get(node->options, "size");
}

static bool
has_layers_between(const struct transfer_options *o)
{
    const struct node *disk = node_skip_filters(o->device);

    return !disk->backing || node_skip_filters(disk->backing->child) !=
                                 node_skip_filters(o->base);
}

static int
check_into_snapshot(const struct transfer_options *o, struct err *err)
{
    int r = 0;

    if (o->keep_name) {
        r = keep_name_check(o->device, o->base, err);
        r = r ? r : check(o, err); /* it has yielded */
    }
    const struct node *overlay = find_overlay(o->device);

    if (!r && o->keep_name && !o->delete_source && has_layers_between(o)) {
        r = err_set(err, -EINVAL,
                    "'keep-name' needs 'delete' here: the layers between "
                    "'%s' and '%s' would name a file that is no more",
                    o->device->name, o->base->name);
    }
    if (!r && o->keep_name && overlay) {
        r = err_set(err, -ENOTSUP,
                    "'keep-name' is for a disk: '%s' lies over '%s'",
                    overlay->name, o->device->name);
    }
    if (r) {
        return r;
    }
    for (const struct node *n = o->device; n != o->base;
         n = n->backing->child) {
        if (!n->drv->unallocate) {
            return err_set(err, -ENOTSUP,
                           "The format '%s' of node '%s' cannot give back "
                           "what it holds",
                           n->drv->name, n->name);
        }
    }
    if (overlay && !overlay->drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' does not support changing "
                       "its backing file",
                       overlay->drv->name, overlay->name);
    }
    r = overlay ? check_base_name(o, err) : 0;
    if (r) {
        return r;
    }
    if (o->base->size != o->device->size && !can_resize(o->base)) {
        return err_set(err, -ENOTSUP,
                       "The snapshot '%s' has %llu bytes and the disk '%s' "
                       "%llu, and its size cannot be changed",
                       o->base->name, (unsigned long long)o->base->size,
                       o->device->name, (unsigned long long)o->device->size);
    }
    return 0;
}

/* What a map in memory says from here on, the file says, too. */
static int
flush_layers(const struct transfer_options *o, struct err *err)
{
    int r = 0;

    for (struct node *n = o->device; n != o->base && !r;
         n = n->backing->child) {
        r = node_flush(n);
        if (r) {
            err_set_errno(err, r, "Flushing '%s' failed", n->name);
        }
    }
    return r;
}

static struct layers
layers_of(const struct transfer_options *o)
{
    return (struct layers){.top = o->device,
                           .last = o->base,
                           .overlay = find_overlay(o->device),
                           .sinks = true};
}

/* What is claimed stays while the rest yields. */
static int
claim(struct transfer *t, const struct transfer_options *o, struct err *err)
{
    int r = sink_claim(t, o, err);

    if (!r) {
        r = transfer_claim_more(t, o->device, CLAIM_FILL, err);
    }
    return r ? r
             : transfer_freeze(t, t->overlay ? t->overlay : o->device, o->base,
                               err);
}

static int
check_other_work(const struct transfer_options *o, struct err *err)
{
    int r = check_other_jobs(o->device, CLAIM_READ, err);

    if (!r) {
        r = check_other_jobs(o->device, CLAIM_FILL, err);
    }
    return r ? r : check_not_resizing(o->base, err);
}

/* @only_look: for a plan; nothing is changed or kept claimed. */
static int
sink_make(const struct transfer_options *given, bool only_look,
          struct transfer **ret, struct err *err)
{
    struct transfer_options o = *given;
    int r = check_into_snapshot(&o, err); /* it may yield */
    struct layers layers = layers_of(&o);

    r = r ? r : check_other_work(&o, err);
    if (r) {
        return r;
    }
    struct transfer *t = transfer_new(&into_snapshot, &o);
    struct node *overlay = find_overlay(o.device);

    o.top = o.device;
    t->overlay = overlay ? node_ref(overlay) : NULL;
    r = claim(t, &o, err);
    if (only_look) {
        transfer_unclaim(t);
    }
    r = r ? r : check_layers(&layers, &o, err);
    if (!r && only_look) {
        r = check(&o, err); /* it has yielded */
    } else if (!r) {
        r = open_layers(t, &layers, &o, err);
        r = r ? r : flush_layers(&o, err);
    }
    if (r) {
        transfer_discard(t);
        return r;
    }
    *ret = t;
    return 0;
}

static int
start_into_snapshot(struct jobs *jobs, const struct transfer_options *o,
                    struct err *err)
{
    struct transfer *t;
    int r = sink_make(o, false, &t, err);

    if (r) {
        return r;
    }
    t->copy = (struct copy){
        .source = o->device, .target = o->base, .flags = REQ_BACKGROUND};
    t->shadowed = true;
    t->guest = o->device;
    t->sync = SYNC_TOP;
    t->tracked = t->sinks = true;
    t->copy_mode = COPY_MODE_FORWARD;
    release_init(t, RELEASE_ABOVE, o->device, o->base);
    transfer_launch(t, jobs, o);
    return 0;
}

/* What lies below the snapshot stays below the overlay. */
static struct transfer_options
as_stream(const struct transfer_options *given)
{
    struct transfer_options o = *given;

    o.base = o.base->backing ? o.base->backing->child : NULL;
    o.keep_name = false; /* it has it */
    return o;
}

static int
start_into_overlay(struct jobs *jobs, const struct transfer_options *given,
                   struct err *err)
{
    struct transfer_options o = as_stream(given);
    struct transfer *t;
    int r = stream_make(&into_overlay, &o, false, &t, err);

    if (!r) {
        transfer_launch(t, jobs, &o);
    }
    return r;
}

/* Without a release it is what it then comes to, a commit. */
static int
check_plain_sink(const struct transfer_options *o, struct err *err)
{
    struct layers layers = layers_of(o);
    int r = check_dependents(&layers, o, err);

    return r ? r : check(o, err); /* it has yielded */
}

static int
plan_into_snapshot(const struct transfer_options *given,
                   struct transfer_plan *ret, struct err *err)
{
    struct transfer_options o = *given;
    struct transfer *t;

    o.top = o.device;
    if (!o.release) {
        int r = check_plain_sink(&o, err);

        return r ? r : commit_plan(&o, ret, err);
    }
    int r = sink_make(given, true, &t, err);

    if (r) {
        return r;
    }
    transfer_discard(t);
    return sink_measure(&o, ret, err);
}

static int
plan_into_overlay(const struct transfer_options *given,
                  struct transfer_plan *ret, struct err *err)
{
    struct transfer_options o = as_stream(given);

    return o.release ? stream_measure(&into_overlay, &o, ret, err)
                     : stream_plan(&o, ret, err);
}

static int
check_arguments(const struct transfer_options *o, struct err *err)
{
    const char *found = o->release         ? NULL
                        : o->delete_source ? "delete"
                        : o->keep_name     ? "keep-name"
                        : o->max_extra     ? "max-extra"
                                           : NULL;

    return found ? err_set(err, -EINVAL, "'%s' needs 'release'", found) : 0;
}

/* The plan of either direction. */
static int
plan_into(const struct transfer_options *o, enum merge_into into,
          struct transfer_plan *ret, struct err *err)
{
    int r = check(o, err); /* again: it may have been planned before */

    return r                            ? r
           : into == MERGE_INTO_SNAPSHOT ? plan_into_snapshot(o, ret, err)
                                         : plan_into_overlay(o, ret, err);
}

/* Where one direction cannot be gone, it is the other. */
static int
choose_cheaper(const struct transfer_options *o, enum merge_into *ret,
               struct transfer_plan *ret_plan, struct err *err)
{
    struct transfer_plan down;
    auto_err no = ERR_INIT, neither = ERR_INIT;
    int up = plan_into(o, MERGE_INTO_OVERLAY, ret_plan, &neither);
    int r = plan_into(o, MERGE_INTO_SNAPSHOT, &down, &no);

    if (up && r) {
        return err_propagate(err, &neither);
    }
    *ret = MERGE_INTO_OVERLAY;
    if (!r && (up || down.bytes_to_copy <= ret_plan->bytes_to_copy)) {
        *ret = MERGE_INTO_SNAPSHOT;
        *ret_plan = down;
    }
    return 0;
}

int
merge_choose(const struct transfer_options *o, enum merge_into *ret,
             struct transfer_plan *ret_plan, struct err *err)
{
    node_ref(o->device);
    node_ref(o->base);
    *ret = o->into;
    int r = check_arguments(o, err);

    if (!r) {
        r = o->into == MERGE_INTO_AUTO ? choose_cheaper(o, ret, ret_plan, err)
                                       : plan_into(o, o->into, ret_plan, err);
    }

    node_unref(o->base);
    node_unref(o->device);
    return r;
}

/* Without a release it is what it then comes to. */
static int
start_plain(struct jobs *jobs, const struct transfer_options *given,
            enum merge_into into, struct err *err)
{
    struct transfer_options o = *given;

    if (into == MERGE_INTO_SNAPSHOT) {
        int r = check_plain_sink(&o, err);

        o.top = o.device;
        return r ? r : commit_start(jobs, &o, err);
    }
    o = as_stream(given);
    return stream_start(jobs, &o, err);
}

/* Which one, where that was left open; it yields. */
static int
choose(const struct transfer_options *o, enum merge_into *ret, struct err *err)
{
    struct transfer_plan plan;

    *ret = o->into;
    if (o->into != MERGE_INTO_AUTO) {
        return check(o, err);
    }
    int r = merge_choose(o, ret, &plan, err);

    return r ? r : check(o, err); /* another job may have ended meanwhile */
}

static int
start(struct jobs *jobs, const struct transfer_options *given, struct err *err)
{
    struct transfer_options o = *given;
    int r;

    if (resume_is_same(jobs, PRESET_MERGE, given)) {
        return 0;
    }
    r = job_check_id(jobs, o.job_id, err);
    if (!r) {
        r = check_arguments(&o, err);
    }
    if (!r) {
        r = choose(given, &o.into, err);
    }
    if (r) {
        return r;
    }
    /* Who goes on with it goes the same way. */
    auto_free char *note = resume_describe(PRESET_MERGE, &o);

    o.note = note;
    return !o.release ? start_plain(jobs, &o, o.into, err)
           : o.into == MERGE_INTO_SNAPSHOT
               ? start_into_snapshot(jobs, &o, err)
               : start_into_overlay(jobs, &o, err);
}

int
merge_start(struct jobs *jobs, const struct transfer_options *o,
            struct err *err)
{
    /* Much is looked at before there is a job that holds them. */
    struct node *device = node_ref(o->device), *base = node_ref(o->base);
    int r = start(jobs, o, err);

    node_unref(base);
    node_unref(device);
    return r;
}

int
merge_plan(const struct transfer_options *o, struct transfer_plan *ret,
           struct err *err)
{
    enum merge_into into;

    return merge_choose(o, &into, ret, err);
}
