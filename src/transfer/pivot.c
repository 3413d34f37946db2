// SPDX-License-Identifier: BSD-3-Clause
/* See pivot.h for the steps. */
#include "transfer/pivot.h"

#include <errno.h>

#include "base/log.h"
#include "block/edit.h"
#include "block/mark.h"
#include "transfer/departure.h"

enum {
    DRAIN_FIRST_MS = 100, /* then twice that, and so on */
    DRAIN_MOST_MS = 5000,
    RETRY_MS = 20,
    MARK_TRIES = 3
};

/*
 * A file that failed once is never written again (rule 9), but for this: that
 * it is not the disk must be said on it, if it still can be.
 */
static int
mark_even_if_failed(struct node *target, struct err *err)
{
    struct node *file = target->file ? target->file->child : target;
    int target_failed = target->failed, file_failed = file->failed;

    target->failed = file->failed = 0;
    int r = node_set_incomplete(target, true, err);

    target->failed = target_failed ? target_failed : target->failed;
    file->failed = file_failed ? file_failed : file->failed;
    return r;
}

/*
 * While it is not there, the target passes for the disk, though it may miss
 * something: one error is not the last word.
 */
static int
put_mark(struct node *target, struct err *err)
{
    int r = -EIO;

    for (unsigned i = 0; i < MARK_TRIES && r && r != -ENOTSUP; i++) {
        r = mark_even_if_failed(target, i + 1 < MARK_TRIES ? NULL : err);
    }
    if (r && r != -ENOTSUP) {
        log_error("'%s' may miss writes, and cannot be marked as unfinished: "
                  "it is not the disk",
                  target->filename ? target->filename : target->name);
    }
    return r;
}

int
transfer_mark(struct transfer *t, bool incomplete, struct err *err)
{
    struct node *target = node_skip_filters(t->copy.target);
    int r = 0;

    comutex_lock(&t->mark_lock);
    t->unmarked |= !incomplete;
    if (!t->shadowed && target->incomplete != incomplete) {
        r = incomplete ? put_mark(target, err)
                       : node_set_incomplete(target, false, err);
    }
    t->unmarked &= !incomplete || (r && r != -ENOTSUP);
    comutex_unlock(&t->mark_lock);
    return r == -ENOTSUP && !target->drv->set_incomplete ? 0 : r;
}

void
transfer_withdraw(void *arg)
{
    transfer_mark(arg, true, NULL);
    departure_withdraw(arg);
}

struct attempt {
    struct transfer *t;
    uint64_t broken;
    bool detach;
    bool layer; /* a layer needs no record: is the source one? */
};

void
transfer_claim_to_switch(struct transfer *t, bool switching)
{
    enum claim before = t->shadowed ? CLAIM_SINK : CLAIM_TARGET;

    /* What is diverted must not come back to a layer that goes. */
    t->track.tap.is_left = switching;
    root_set_claim(t->root, switching ? CLAIM_FILL : before);
    if (t->shadowed) {
        root_set_claim(t->source_root, switching ? CLAIM_NONE : CLAIM_READ);
    }
    if (t->below_root) { /* from then on the target's own claim holds it */
        root_set_claim(t->below_root, switching ? CLAIM_NONE : CLAIM_STABLE);
    }
    for (unsigned i = 0; i < t->n_between; i++) {
        root_set_claim(t->between[i], switching ? CLAIM_NONE : CLAIM_SINK);
    }
}

uint64_t
transfer_drain_deadline(struct transfer *t)
{
    t->drain_ns = t->drain_ns ? t->drain_ns : DRAIN_FIRST_MS * NS_PER_MS;
    return loop_now(jobs_loop(t->job.jobs)) + t->drain_ns;
}

bool
transfer_drains_again(struct transfer *t, int r, struct err *err)
{
    if (r != -ETIMEDOUT) {
        return false;
    }
    if (t->drain_ns == DRAIN_FIRST_MS * NS_PER_MS) {
        log_info("%s: a request of the guest takes long: the switch waits for "
                 "it with the guest running",
                 t->owner);
    }
    err_clear(err);
    /* For as long as it was held, the guest goes on. */
    job_sleep(&t->job, t->drain_ns);
    t->drain_ns = min_u64(2 * t->drain_ns, DRAIN_MOST_MS * NS_PER_MS);
    return true;
}

/* With nothing in flight: is the target still in step? */
static int
check(void *arg)
{
    struct attempt *a = arg;
    struct track *track = &a->t->track;

    if (track->broken != a->broken || track->late ||
        track->missing.n_dirty) {
        return -EAGAIN;
    }
    if (a->detach) {
        track_detach(track);
    } else if (a->layer != departure_is_of_a_layer(a->t)) {
        return -EAGAIN;
    } else {
        transfer_claim_to_switch(a->t, true);
        departure_free_overlays(a->t);
    }
    return 0;
}

/* What it read through to, it has by now, or that is zero. */
static bool
leaves_its_backing(const struct transfer *t)
{
    return t->sync == SYNC_FULL && !t->shadowed &&
           node_skip_filters(t->copy.target)->backing;
}

/* A name in its header, of what it does not need: nobody shall follow it. */
static bool
names_too_much(const struct transfer *t)
{
    const struct node *target = node_skip_filters(t->copy.target);

    return leaves_its_backing(t) ||
           (t->sync == SYNC_FULL && !t->shadowed &&
            target->header_backing.filename);
}

static int
swap(struct transfer *t, enum finish finish, struct attempt *a,
     struct err *err)
{
    struct node *source = t->copy.source, *target = t->copy.target;
    struct edit edits[] = {
        {EDIT_REPLACE, t->replaces ? t->replaces : source, target},
        {EDIT_BACKING, node_skip_filters(target), NULL},
    };
    struct edit_options options = {
        .deadline_ns = transfer_drain_deadline(t),
        .check = check,
        .arg = a};
    struct edit_report report = {0};

    if (finish == FINISH_STAY) {
        edits[0] = (struct edit){EDIT_NOTHING, source, NULL};
        a->detach = true;
    }
    int r = graph_edit(source->graph, edits, leaves_its_backing(t) ? 2 : 1,
                       &options, &report, err);

    if (r && finish == FINISH_SWITCH) {
        transfer_claim_to_switch(t, false);
        departure_hold_overlays(t, NULL);
    }

    transfer_report_pause(t, report.pause_ns, report.held);
    return r;
}

/*
 * One attempt, while the track pivots; -EAGAIN where the target fell behind.
 */
static int
attempt(struct transfer *t, enum finish finish, struct err *err)
{
    struct track *track = &t->track;
    struct attempt a = {.t = t, .broken = track->broken};

    /* What began before is over then; what begins from here on is counted. */
    grace_wait(&t->copy.source->changes);
    if (track->missing.n_dirty || track->late) {
        return -EAGAIN;
    }
    int r = track_flush_target(track);

    if (r == -EAGAIN || transfer_waits_for_space(t, r)) {
        return -EAGAIN;
    }
    if (r) {
        return err_set_errno(err, r, "Flushing the target '%s' failed",
                             t->copy.target->name);
    }
    t->job.io_status = JOB_IO_OK;
    if (names_too_much(t)) {
        struct node *image = node_skip_filters(t->copy.target);

        r = image->drv->set_backing(image, NULL, NULL, err);
    }
    if (!r && finish == FINISH_SWITCH) {
        /* Who falls behind from here on waits for this, then takes it back. */
        r = track->broken == a.broken ? transfer_mark(t, false, err) : -EAGAIN;
        if (!r) {
            a.layer = departure_is_of_a_layer(t);
            r = track->broken == a.broken ? departure_record(t, err) : -EAGAIN;
        }
    }
    if (!r) {
        r = swap(t, finish, &a, err);
    }
    if (r) {
        transfer_withdraw(t);
    }
    return r;
}

int
transfer_pivot(struct transfer *t, enum finish finish, struct err *err)
{
    struct track *track = &t->track;
    int r = finish == FINISH_SWITCH ? departure_prepare_overlays(t, err) : 0;

    if (r) {
        return r;
    }
    t->ending = true;
    track->forwarding = true;
    track->withdraw = finish == FINISH_SWITCH ? transfer_withdraw : NULL;
    for (;;) {
        r = transfer_converge(t);
        if (r) {
            if (r != -ECANCELED) {
                err_set_errno(err, r, "Copying to '%s' failed",
                              t->copy.target->name);
            }
            break;
        }
        track->pivoting = true;
        r = attempt(t, finish, err);
        track->pivoting = false;
        if (r == -EAGAIN) {
            job_sleep(&t->job, RETRY_MS * NS_PER_MS);
        } else if (!transfer_drains_again(t, r, err)) {
            break;
        }
    }
    if (r) {
        return r;
    }
    track_detach(track);
    if (finish == FINISH_SWITCH) {
        return departure_end(t, true, err);
    }
    r = node_flush(t->copy.target);
    if (r) {
        return err_set_errno(err, r, "Flushing the target '%s' failed",
                             t->copy.target->name);
    }
    return transfer_mark(t, false, err);
}
