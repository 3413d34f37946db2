// SPDX-License-Identifier: BSD-3-Clause
/*
 * hybrid (S8 on one host): pre-copy until job-complete is said, whatever is
 * left then, and post-copy the rest.
 *
 *   source   the disk until the switch, then the target's backing file
 *   target   an empty image of a format that can name a backing file
 *   missing  what the source reads as; from the switch on, what the target
 *            does not hold: allocation is progress again
 *   on_write dirty, then forward; from the switch on, fill
 *   finish   the target names no backing file
 *
 * At the switch the blocks that are stale on the target are unallocated there,
 * by whole clusters, so that it reads through to the source.  While that
 * happens, what is in step is forwarded, and what is missing stays so; a block
 * that goes stale meanwhile (track.h) begins the attempt anew.
 */
#include <errno.h>

#include "transfer/departure.h"
#include "transfer/pivot.h"
#include "transfer/recipes/recipes.h"
#include "transfer/resume.h"

enum { RETRY_MS = 20 };

/* One recipe whose `next` changes with the phase. */
static int
hybrid_next(struct transfer *t, uint64_t off, uint64_t limit,
            struct missing *ret)
{
    return t->tracked ? mirror_next(t, off, limit, ret)
                      : stream_next(t, off, limit, ret);
}

/* Makes a run of stale blocks, and the rest of their clusters, read through. */
static int
drop_stale(struct transfer *t, uint64_t off, uint64_t len)
{
    struct node *target = t->copy.target;
    uint64_t unit = target->cluster_size;
    uint64_t start = align_down(off, unit);
    uint64_t end = min_u64(align_up(off + len, unit), target->size);
    struct range_hold hold;

    /* First of all nothing is forwarded to it any more. */
    dirty_set_add(&t->track.missing, start, end - start);
    range_lock_take(&target->ranges, &hold, start, align_up(end, unit),
                    RANGE_EXCLUSIVE);
    int r = node_unallocate(target, start, end - start, &hold);

    range_lock_release(&target->ranges, &hold);
    return r;
}

static int
drop_all_stale(struct transfer *t)
{
    const struct dirty_set *missing = &t->track.missing;
    uint64_t at = 0, off, len;
    int r = 0;

    while (!r && dirty_set_next(missing, at, missing->size, &off, &len)) {
        len = min_u64(len, t->piece);
        r = drop_stale(t, off, len);
        at = align_up(off + len, t->copy.target->cluster_size);
        coro_relax();
    }
    return r;
}

/*
 * From the frontier on the target is to hold nothing.  The frontier can lie in
 * a cluster of which only the first part was copied; a piece that a guest's
 * read brought forward can be a part of its clusters, too; and what the guest
 * writes there from now on goes to the source alone.
 */
static int
drop_rest(struct transfer *t)
{
    struct node *target = t->copy.target;
    uint64_t at = t->track.frontier;
    int r = 0;

    if (at < target->size) {
        at = align_down(at, target->cluster_size);
    }
    while (!r && at < target->size) {
        struct extent ext;

        r = node_status(target, at, target->size - at, false, &ext);
        if (!r && ext.kind != EXTENT_UNALLOCATED) {
            ext.len = min_u64(ext.len, t->piece);
            r = drop_stale(t, at, ext.len);
        }
        at = r ? at : at + ext.len;
        coro_relax();
    }
    return r;
}

struct attempt {
    struct transfer *t;
    uint64_t broken;
};

/* With nothing in flight: does the target still read as the source? */
static int
check(void *arg)
{
    const struct attempt *a = arg;
    const struct track *track = &a->t->track;

    if (track->broken != a->broken || track->late || track->went_stale) {
        return -EAGAIN;
    }
    root_set_claim(a->t->root, CLAIM_FILL);
    departure_free_overlays(a->t);
    return 0;
}

static int
attempt(struct transfer *t, struct err *err)
{
    struct track *track = &t->track;
    struct attempt a = {t, track->broken};

    /*
     * What began before is over then, and its blocks are dirty; what begins
     * from here on is forwarded, or counted.
     */
    grace_wait(&t->copy.source->changes);
    track->went_stale = false;
    int r = drop_rest(t);

    if (!r) {
        r = drop_all_stale(t);
    }
    if (!r) {
        r = track_flush_target(track);
    }
    if (r == -EAGAIN || transfer_waits_for_space(t, r)) {
        return -EAGAIN;
    }
    if (r) {
        return err_set_errno(err, r, "Writing the target '%s' failed",
                             t->copy.target->name);
    }
    /* Without its mark it reads as the disk: the name comes first. */
    r = name_source(t, err);
    if (!r) {
        r = track->broken == a.broken ? transfer_mark(t, false, err) : -EAGAIN;
    }
    if (!r) {
        r = track->broken == a.broken ? departure_record(t, err) : -EAGAIN;
    }
    if (!r) {
        r = put_on_top(t, transfer_drain_deadline(t), check, &a, err);
    }
    if (r) {
        root_set_claim(t->root, CLAIM_TARGET);
        departure_hold_overlays(t, NULL);
        transfer_withdraw(t);
        t->copy.target->drv->set_backing(t->copy.target, NULL, NULL, NULL);
    }
    return r;
}

/* Pre-copy was broken off; 0 once the disk is on the target. */
static int
switch_now(struct transfer *t, struct err *err)
{
    struct track *track = &t->track;
    int r = departure_prepare_overlays(t, err);

    if (r) {
        return r;
    }
    t->ending = true;
    track->forwarding = true;
    track->tap.drops_discards = true; /* it is past transfer_converge() */
    track->reads_through = true;
    track->withdraw = transfer_withdraw;
    do {
        transfer_wait_late(t);
        if (job_cancelled(&t->job)) {
            return -ECANCELED;
        }
        track->pivoting = true;
        r = attempt(t, err);
        track->pivoting = false;
        if (r == -EAGAIN) {
            job_sleep(&t->job, RETRY_MS * NS_PER_MS);
        }
    } while (r == -EAGAIN || transfer_drains_again(t, r, err));
    if (!r) {
        t->job.has_moved = true;
        resume_record_as_stream(t); /* before what led here goes */
        departure_arrive(t);
        track_detach(track);
        t->ending = false;
        t->tracked = false;
        t->guest = t->copy.target;
        t->copy.fill = true;
        t->room = t->max_in_flight; /* no guest's write waits for it now */
        t->piece = t->most_piece;
    }
    return r;
}

static int
hybrid_run(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);
    int r = transfer_run(job, err);

    job->decided |= job->end == JOB_END_COMPLETE;
    if (r || !job->decided) {
        return r;
    }
    r = switch_now(t, err);
    return r ? r : transfer_run(job, err);
}

static int
hybrid_prepare(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);

    return t->tracked ? transfer_pivot(t, FINISH_STAY, err)
                      : post_copy_prepare(job, err);
}

static const struct transfer_recipe recipe = {
    .driver = {.type = "copy",
               .is_block_job = true,
               .can_complete = true,
               .run = hybrid_run,
               .prepare = hybrid_prepare,
               .clean = transfer_clean,
               .remember = transfer_remember,
               .cancelled = transfer_cancelled},
    .next = hybrid_next,
    .begin = mark_target,
};

/* @only_look: for a plan. */
static int
make(const struct transfer_options *o, bool only_look, struct transfer **ret,
     struct err *err)
{
    int r = check_overlay_target(o, err);

    if (!r && !o->target->drv->unallocate) {
        r = err_set(err, -ENOTSUP,
                    "The format of the target '%s' cannot unallocate",
                    o->target->name);
    }
    r = r ? r : mirror_make(&recipe, o, only_look, ret, err);
    if (r) {
        return r;
    }
    /* Yields: another job could have moved the disk, were it not claimed. */
    r = o->resumed ? 0 : check_empty(o->target, err);
    if (!r) {
        r = transfer_freeze(*ret, o->device, NULL, err);
    }
    if (only_look) {
        transfer_unclaim(*ret);
    }
    if (r) {
        transfer_discard(*ret);
    }
    return r;
}

int
hybrid_start(struct jobs *jobs, const struct transfer_options *o,
             struct err *err)
{
    struct transfer *t;
    int r = job_check_id(jobs, o->job_id, err);

    r = r ? r : make(o, false, &t, err);
    if (r) {
        return r;
    }
    t->hybrid = t->wait_for_verb = true;
    transfer_launch(t, jobs, o);
    return 0;
}

int
hybrid_plan(const struct transfer_options *o, struct transfer_plan *ret,
            struct err *err)
{
    struct transfer *t;
    int r = make(o, true, &t, err);

    if (r) {
        return r;
    }
    r = transfer_measure(t, hybrid_next, ret, err);
    transfer_discard(t);
    return r;
}
