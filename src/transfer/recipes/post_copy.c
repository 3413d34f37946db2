// SPDX-License-Identifier: BSD-3-Clause
/*
 * post-copy (S2): switch first, then stream.
 *
 *   source   the disk until now; from the switch on the target's backing file
 *   target   an empty image of a format that can name a backing file
 *   missing  what the source holds and the target not yet
 *   on_write fill: the guest is on the target
 *   finish   the target names no backing file
 *
 * The target names the source, durably, before the switch: as the head it then
 * reads as the source does.  What a crash leaves is an ordinary overlay; a
 * block-stream of it finishes the job.
 */
#include <errno.h>

#include "block/edit.h"
#include "block/resize.h"
#include "transfer/departure.h"
#include "transfer/pivot.h"
#include "transfer/recipes/recipes.h"
#include "transfer/resume.h"

enum { DRAIN_DEADLINE_MS = 5000 };

int
post_copy_prepare(struct job *job, struct err *err)
{
    int r = stream_prepare(job, err);

    return r ? r : departure_end(transfer_of(job), true, err);
}

static int
post_copy_run(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);

    resume_record_as_stream(t); /* before what led here goes */
    departure_arrive(t);
    return transfer_run(job, err);
}

static const struct transfer_recipe recipe = {
    .driver = {.type = "copy",
               .is_block_job = true,
               .run = post_copy_run,
               .prepare = post_copy_prepare,
               .clean = transfer_clean,
               .remember = transfer_remember,
               .cancelled = transfer_cancelled},
    .next = stream_next,
};

int
check_empty(struct node *target, struct err *err)
{
    for (uint64_t off = 0; off < target->size;) {
        struct extent ext;
        int r =
            node_status(target, off, target->size - off, false, &ext);

        if (r) {
            return err_set_errno(err, r, "Reading the map of '%s' failed",
                                 target->name);
        }
        if (ext.kind != EXTENT_UNALLOCATED) {
            return err_set(err, -EEXIST,
                           "The target '%s' is not empty: it holds data at "
                           "%llu",
                           target->name, (unsigned long long)off);
        }
        off += ext.len;
        coro_relax();
    }
    return 0;
}

int
check_overlay_target(const struct transfer_options *o, struct err *err)
{
    struct node *source = o->device, *target = o->target;
    int r = 0;

    if (target == source || chain_contains(source, target)) {
        return err_set(err, -EINVAL, "Node '%s' is part of the disk '%s'",
                       target->name, source->name);
    }
    if (!target->drv->set_backing) {
        r = err_set(err, -ENOTSUP,
                    "A target of the format '%s' cannot name a backing file, "
                    "through which the disk would be read",
                    target->drv->name);
        err_hint(err, "take a qcow2 or QED target, or pre-copy");
    } else if (target->backing && target->backing->child != source) {
        r = err_set(err, -EINVAL,
                    "The target '%s' has a backing file of its own",
                    target->name);
        err_hint(err, "open it with \"backing\": null");
    } else if (!source->filename) {
        r = err_set(err, -ENOTSUP,
                    "Node '%s' has no file that a header could name",
                    source->name);
        err_hint(err, "pre-copy can copy it");
    } else {
        r = node_check_name(source, err);
        if (r) {
            err_hint(err, "pre-copy can copy it");
        }
    }
    return r;
}

static int
check(const struct transfer_options *o, struct err *err)
{
    int r = check_overlay_target(o, err);

    return r ? r : check_empty(o->target, err);
}

static int
allow_guests(void *arg)
{
    struct transfer *t = arg;

    root_set_claim(t->root, CLAIM_FILL);
    departure_free_overlays(t);
    return 0;
}

int
name_source(struct transfer *t, struct err *err)
{
    struct node *source = t->copy.source, *target = t->copy.target;
    auto_free char *name =
        backing_name_for(target->filename, source->filename);

    return target->drv->set_backing(target, name, node_image_format(source),
                                    err);
}

int
put_on_top(struct transfer *t, uint64_t deadline_ns, int (*ready)(void *arg),
           void *arg, struct err *err)
{
    struct node *source = t->copy.source, *target = t->copy.target;
    struct edit edits[] = {{EDIT_BACKING, target, source},
                           {EDIT_REPLACE, source, target}};
    struct edit_options options = {
        .deadline_ns = deadline_ns, .check = ready, .arg = arg};
    struct edit_report report = {0};
    int r = graph_edit(source->graph, edits, ARRAY_LEN(edits), &options,
                       &report, err);

    transfer_report_pause(t, report.pause_ns, report.held);
    /* The edge between them is new, those below were ours. */
    return r ? r : transfer_freeze(t, target, NULL, err);
}

/* The disk is where it was, and the target as it was found. */
static void
take_back(struct transfer *t, bool was_incomplete)
{
    struct node *target = t->copy.target;

    root_set_claim(t->root, CLAIM_TARGET);
    if (was_incomplete) {
        transfer_mark(t, true, NULL);
    }
    /* While the record stands, the target must read as the disk. */
    if (departure_withdraw(t) && !target->backing) {
        target->drv->set_backing(target, NULL, NULL, NULL);
    }
}

/*
 * Durably named first: as the head, the target then reads as the source.  Then
 * the mark goes that an earlier copy may have left on it (rule 2).
 */
static int
switch_over(struct transfer *t, struct err *err)
{
    bool was_incomplete = t->copy.target->incomplete;
    int r = name_source(t, err);

    if (!r) {
        r = transfer_mark(t, false, err);
    }
    if (!r) {
        r = departure_record(t, err);
    }
    if (!r) {
        uint64_t now = loop_now(graph_loop(t->copy.source->graph));

        r = put_on_top(t, now + DRAIN_DEADLINE_MS * NS_PER_MS, allow_guests, t,
                       err);
    }
    if (r) {
        take_back(t, was_incomplete);
        departure_end(t, false, NULL);
    }
    return r;
}

/* Both nodes, and edges that stay; does not yield. */
static int
claim(struct transfer *t, const struct transfer_options *o, bool only_look,
      struct err *err)
{
    /* Until the switch, it is not resized either. */
    int r = copy_claim(t, o, only_look, err);

    if (!r) {
        r = transfer_freeze(t, o->device, NULL, err);
    }
    return r ? r : departure_hold_overlays(t, err);
}

/* Nothing is changed. */
static int
check_images(struct transfer *t, const struct transfer_options *o,
             struct err *err)
{
    int r = check(o, err);

    if (!r) {
        r = node_check_writable(o->target, err);
    }
    if (!r) {
        r = check_target_size(o, err);
    }
    if (!r) {
        r = departure_check(t, err);
    }
    return r ? r : departure_check_overlays(t, err);
}

/* @only_look: for a plan; nothing is changed or kept claimed. */
static int
make(const struct transfer_options *o, bool only_look, struct transfer **ret,
     struct err *err)
{
    int r = check_other_jobs(o->device, CLAIM_READ, err);

    if (!r) {
        r = check_not_resizing(o->target, err);
    }
    if (r) {
        return r;
    }
    struct transfer *t = transfer_new(&recipe, o);

    t->copy = (struct copy){.source = o->device,
                            .target = o->target,
                            .fill = true,
                            .flags = REQ_BACKGROUND};
    t->on_target_error = o->on_target_error;
    t->finish = o->finish;
    r = claim(t, o, only_look, err);
    if (only_look) {
        transfer_unclaim(t);
    }
    r = r ? r : check_images(t, o, err);
    if (r) {
        transfer_discard(t);
        return r;
    }
    *ret = t;
    return 0;
}

static int
begin(struct transfer *t, const struct transfer_options *o, struct err *err)
{
    int r = match_size(o, err);

    if (!r) {
        r = transfer_check_space(t, err); /* before there is no way back */
    }
    if (!r) {
        r = departure_prepare_overlays(t, err);
    }
    if (!r) {
        r = departure_prepare(t, err);
    }
    return r ? r : switch_over(t, err);
}

int
post_copy_start(struct jobs *jobs, const struct transfer_options *o,
                struct err *err)
{
    uint64_t start_ns = loop_now(jobs_loop(jobs));
    struct transfer *t;
    int r = job_check_id(jobs, o->job_id, err);

    r = r ? r : make(o, false, &t, err);
    if (r) {
        return r;
    }
    r = begin(t, o, err);
    if (r) {
        transfer_discard(t);
        return r;
    }
    root_free(take_ptr(t->source_root));
    t->start_ns = start_ns; /* its checks are made */
    transfer_launch(t, jobs, o);
    return 0;
}

int
post_copy_plan(const struct transfer_options *o, struct transfer_plan *ret,
               struct err *err)
{
    struct transfer *t;
    int r = make(o, true, &t, err);

    if (r) {
        return r;
    }
    r = transfer_measure(t, stream_next, ret, err);
    transfer_discard(t);
    return r;
}
