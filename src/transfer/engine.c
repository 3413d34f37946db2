// SPDX-License-Identifier: BSD-3-Clause
/*
 * The engine's loop.
 *
 * The job's coroutine is the dispatcher: it looks for the next missing piece
 * and starts a worker for it, while the bytes in flight, the governor's depth
 * and the rate allow.  A worker copies its piece (block/copy.h) and goes.
 *
 * A piece that fails by a policy that stops is tried again after the resume; a
 * source that must be waited for (-ERESTART) is tried again with a back-off,
 * so that a cancel is heard meanwhile.
 *
 * Behind the pass, a tracked transfer copies what the guest has dirtied, by
 * windows of a piece's size, each run of dirty blocks by itself, so that what
 * is sent is what was written.
 *
 * Epochs (rule 4): after EPOCH_BYTES or EPOCH_NS the target is flushed beside
 * the copying; what was written since the flush began belongs to the next one.
 * A guest feels a flush, which writes back what it wrote, too: where they take
 * long, there are fewer of them, so that they take a tenth of the time, as far
 * as EPOCH_MAX_BYTES and EPOCH_MAX_NS go.
 */
#include "transfer/engine.h"

#include <errno.h>

#include "base/log.h"
#include "block/dirty_log.h"
#include "block/limits.h"
#include "run/file.h"
#include "transfer/departure.h"
#include "transfer/resume.h"

enum {
    SCAN_STEP_SHIFT = 30, /* look at most 1 GiB ahead before a pause point */
    RETRY_MS = 100,
    CUT_OFF_MS = 1000,    /* so long a request may last that nobody wants */
};
#define DEFAULT_IN_FLIGHT (64 * MIB)
#define DEFAULT_PIECE MIB
#define EPOCH_BYTES (256 * MIB)
#define EPOCH_NS NS_PER_S
#define EPOCH_PER_FLUSH 10
#define EPOCH_MAX_BYTES (4 * EPOCH_BYTES)
#define EPOCH_MAX_NS (10 * NS_PER_S)
#define CLEAR_NS (5 * NS_PER_S)
/* How long less in flight needs to be felt, lasts, and takes to be twice that. */
#define ROOM_SETTLES_NS (500 * NS_PER_MS)
#define ROOM_LASTS_NS (20 * NS_PER_S)
#define ROOM_GROWS_NS (5 * NS_PER_S)
#define FAR_AFTER 4
#define LEAST_PIECE (64 * KIB)

static struct loop *
loop_of(const struct transfer *t)
{
    return jobs_loop(t->job.jobs);
}

/* Workers. */

struct worker {
    struct list link;
    struct transfer *t;
    struct copy copy;
    uint64_t off, len;
    bool hot; /* out of turn: the sequential pass counts it as progress */
    bool dirty; /* only the dirty runs within */
};

/* How much would have to be freed before a resume: one worker reckons. */
static void
say_what_is_missing(struct transfer *t)
{
    struct transfer_plan plan;

    if (t->measuring) {
        return;
    }
    t->measuring = true;
    if (!transfer_measure(t, t->recipe->next, &plan, NULL)) {
        /* However little is left, there was no room for the next of it. */
        uint64_t least = plan.space_free + t->copy.target->cluster_size;
        bool is_known = plan.space_free != UINT64_MAX;

        t->report.space_needed =
            is_known ? max_u64(plan.space_needed, least) : plan.space_needed;
        t->report.space_free = plan.space_free;
    }
    t->measuring = false;
}

/* What is paused for an error goes on when the job is resumed, or cancelled. */
static void
wait_for_resume(struct transfer *t)
{
    waitq_wake_all(&t->worker_done); /* the dispatcher pauses, too */
    if (coro_self() == t->dispatcher) {
        job_pause_point(&t->job);
    }
    while (t->job.pauses && !job_cancelled(&t->job)) {
        waitq_wait(&t->job.wake);
    }
}

bool
transfer_waits_for_space(struct transfer *t, int r)
{
    if (!t->ending || r != -ENOSPC || t->on_target_error == ON_ERROR_REPORT ||
        t->on_target_error == ON_ERROR_IGNORE) {
        return false;
    }
    say_what_is_missing(t);
    job_wait_for_space(&t->job);
    return true;
}

bool
transfer_error_ends(struct transfer *t, int r, bool is_read)
{
    if (r == -ERESTART) {
        /* A paused job's sleep ends at once: wait for its resume first. */
        wait_for_resume(t);
        job_sleep(&t->job, RETRY_MS * NS_PER_MS);
        return job_cancelled(&t->job);
    }
    enum on_error policy = is_read ? t->on_source_error : t->on_target_error;

    if (!is_read && transfer_waits_for_space(t, r)) {
        return job_cancelled(&t->job);
    }
    /* Nobody can resume a job that is about to end. */
    switch (job_error(&t->job, t->ending ? ON_ERROR_REPORT : policy, is_read,
                      r)) {
    case ON_ERROR_IGNORE:
        if (t->tracked) { /* it stays missing */
            job_sleep(&t->job, RETRY_MS * NS_PER_MS);
            return job_cancelled(&t->job);
        }
        t->ignored = r;
        return true;
    case ON_ERROR_STOP:
        if (r == -ENOSPC) {
            say_what_is_missing(t);
        }
        wait_for_resume(t);
        return job_cancelled(&t->job);
    case ON_ERROR_REPORT:
    case ON_ERROR_ENOSPC:
    case ON_ERROR_AUTO:
        break;
    }
    if (!t->error) {
        t->error = r;
        t->error_on_read = is_read;
    }
    return true;
}

static int
copy_and_count(struct worker *w, uint64_t off, uint64_t len, bool *ret_is_read)
{
    struct transfer *t = w->t;
    struct copy_result res;
    int r = copy_range(&w->copy, off, len, &res);

    t->report.bytes_moved += res.copied;
    t->report.bytes_cloned += res.cloned;
    t->report.bytes_zeroed += res.zeroed;
    t->report.bytes_skipped += res.skipped;
    t->epoch_bytes += res.copied + res.cloned;
    release_grown(t);
    *ret_is_read = res.read_failed;
    return r;
}

/*
 * A range that is no longer missing from here on: what a guest writes to it
 * from now on counts anew.  It can be one block, larger than a piece.
 */
static int
copy_tracked(struct worker *w, uint64_t off, uint64_t len, bool *ret_is_read)
{
    struct dirty_set *missing = &w->t->track.missing;
    int r = 0;

    dirty_set_remove(missing, off, len);
    for (uint64_t at = off, n; at < off + len && !r; at += n) {
        n = min_u64(w->t->piece, off + len - at);
        r = copy_and_count(w, at, n, ret_is_read);
    }
    if (r) {
        dirty_set_add(missing, off, len);
    } else {
        dirty_set_remove(&w->t->track.hollow, off, len);
        track_written(&w->t->track, off, len);
    }
    return r;
}

static int
copy_dirty_runs(struct worker *w, bool *ret_is_read)
{
    uint64_t at = w->off, end = w->off + w->len, off, len;
    int r = 0;

    while (!r && dirty_set_next(&w->t->track.missing, at, end, &off, &len)) {
        r = copy_tracked(w, off, len, ret_is_read);
        at = off + len;
    }
    return r;
}

static struct grace *
chain_grace(const struct transfer *t)
{
    return t->source_root ? root_grace(t->source_root) : NULL;
}

int
transfer_look(struct transfer *t, transfer_next *next, uint64_t off,
              uint64_t limit, struct missing *ret)
{
    struct grace *grace = chain_grace(t);
    unsigned token = grace ? grace_enter(grace) : 0;
    int r = next(t, off, limit, ret);

    if (grace) {
        grace_leave(grace, token);
    }
    return r;
}

static int
copy_piece(struct worker *w, bool *ret_is_read)
{
    struct transfer *t = w->t;
    /* What the chain loses meanwhile must live until this has been read. */
    struct grace *grace = chain_grace(t);
    unsigned token = grace ? grace_enter(grace) : 0;
    int r = w->dirty ? copy_dirty_runs(w, ret_is_read)
            : t->tracked
                ? copy_tracked(w, w->off, w->len, ret_is_read)
                : copy_and_count(w, w->off, w->len, ret_is_read);

    if (grace) {
        grace_leave(grace, token);
    }
    return r;
}

static void
worker_main(void *arg)
{
    struct worker *w = arg;
    struct transfer *t = w->t;
    bool done = false, is_read = false;
    uint64_t start = loop_now(loop_of(t));
    int r = 0;

    while (!done && !t->error && !job_cancelled(&t->job)) {
        r = copy_piece(w, &is_read);
        done = !r || transfer_error_ends(t, r, is_read);
    }
    uint64_t now = loop_now(loop_of(t));

    governor_piece_done(&t->governor, now, now - start, w->len);
    t->job.current += w->hot || (r && t->error) ? 0 : w->len;
    list_remove(&w->link);
    t->in_flight -= w->len;
    t->workers--;
    waitq_wake_all(&t->worker_done);
    free(w);
}

static void
start_worker(struct transfer *t, const struct missing *m, bool hot, bool dirty)
{
    struct worker *w = xzalloc(sizeof(*w));

    *w = (struct worker){.t = t,
                         .copy = t->copy,
                         .off = m->off,
                         .len = m->len,
                         .hot = hot,
                         .dirty = dirty};
    w->copy.known_zero = m->zero;
    w->copy.buffers = &t->buffers;
    w->copy.no_clone = &t->no_clone;
    w->copy.lock_first = t->tracked;
    w->copy.keep_encoded = t->release.side;
    list_push(&t->active, &w->link);
    t->workers++;
    t->in_flight += m->len;
    coro_start(loop_of(t), worker_main, w);
}

/* Epochs. */

/* Was all of it copied, and is nothing of it missing again? */
static bool
is_alike(const struct transfer *t, uint64_t off, uint64_t len)
{
    return off + len <= t->passed && !t->error && !t->track.late &&
           !transfer_is_active(t, off, len) &&
           !track_is_forwarding(&t->track, off, len) &&
           !dirty_set_any(&t->track.missing, off, len);
}

/*
 * Takes regions out of the source's log.  Both sides are flushed: where the
 * source alone loses what nobody flushed, the two are not alike.
 */
static int
flush_and_clear(struct transfer *t)
{
    struct node *source = t->copy.source;
    uint64_t at = 0, region = dirty_log_region(t->log), off, len;

    dirty_log_watch(t->log);
    grace_wait(&source->changes); /* what began before is known now */
    while (dirty_log_next(t->log, at, source->size, &off, &len)) {
        at = off + min_u64(len, region);
        if (is_alike(t, off, at - off)) {
            dirty_log_is_alike(t->log, off, at - off);
        }
        coro_relax();
    }
    int r = node_flush(source);

    r = r ? r : track_flush_target(&t->track);
    if (!r) {
        dirty_log_clear(t->log);
    }
    t->cleared_ns = loop_now(loop_of(t));
    return r;
}

static bool
clearing_is_due(const struct transfer *t)
{
    return t->log && dirty_log_is_dirty(t->log) &&
           loop_now(loop_of(t)) - t->cleared_ns >= t->clear_ns;
}

static void
flush_main(void *arg)
{
    struct transfer *t = arg;
    uint64_t begin = loop_now(loop_of(t));

    /*
     * A failure shows again at the last flush, which decides; a failed fsync
     * has made the node fail for good by then.
     */
    if (clearing_is_due(t)) {
        flush_and_clear(t);
    } else if (t->tracked) {
        if (track_flush_target(&t->track) == -ESTALE && !t->error) {
            t->error = -ESTALE;
        }
    } else {
        node_flush(t->copy.target);
    }
    t->flush_ns = loop_now(loop_of(t)) - begin;
    t->flushing = false;
    waitq_wake_all(&t->worker_done);
}

static void
release_main(void *arg)
{
    struct transfer *t = arg;

    release_epoch(t, t->closing);
    t->flushing = false;
    waitq_wake_all(&t->worker_done);
}

static bool
epoch_is_over(const struct transfer *t, uint64_t now)
{
    uint64_t ns = now - t->epoch_start_ns;

    /* A flush that takes long because of what it writes must not grow. */
    if (clearing_is_due(t) || t->epoch_bytes >= EPOCH_MAX_BYTES) {
        return true;
    }
    return (t->epoch_bytes >= EPOCH_BYTES || ns >= EPOCH_NS) &&
           ns >= min_u64(t->flush_ns * EPOCH_PER_FLUSH, EPOCH_MAX_NS);
}

static void
close_epoch(struct transfer *t)
{
    uint64_t now = loop_now(loop_of(t));

    if (t->release.side) {
        if (!t->flushing && release_is_due(t, t->passed)) {
            t->flushing = true;
            t->closing = t->passed;
            t->release.handed_out = 0;
            coro_start(loop_of(t), release_main, t);
        }
        return;
    }
    if (t->flushing || !t->epoch_bytes || !epoch_is_over(t, now)) {
        return;
    }
    t->flushing = true;
    t->epoch_bytes = 0;
    t->epoch_start_ns = now;
    coro_start(loop_of(t), flush_main, t);
}

/* What the next piece waits for. */

void
transfer_wait_worker(struct transfer *t)
{
    bool may_pause = coro_self() == t->dispatcher && t->job.busy;

    if (may_pause && t->job.pauses && !job_cancelled(&t->job)) {
        job_pause_point(&t->job);
    } else {
        waitq_wait(&t->worker_done);
    }
}

/*
 * The guest's forwards queue behind the job's pieces.  Where they are late, there
 * is too much of these for so slow a target, and as long as they are, nothing is
 * forwarded and the target never gets in step.  Where less does not help, the
 * target is far, not slow.
 */
static void
narrow_room(struct transfer *t, uint64_t now)
{
    if (t->room > t->least_piece) {
        t->room = max_u64(min_u64(t->room, t->in_flight) / 4, t->least_piece);
        t->room_is_tried = 0;
    } else if (++t->room_is_tried > FAR_AFTER) {
        t->room = t->max_in_flight;
    }
    t->room_ns = now;
    t->room_until_ns = now + ROOM_LASTS_NS;
}

static void
adapt_room(struct transfer *t, uint64_t now)
{
    bool is_late = t->track.n_late != t->seen_late;

    t->seen_late = t->track.n_late;
    if (is_late && now - t->room_ns >= ROOM_SETTLES_NS &&
        (t->room < t->max_in_flight || now >= t->room_until_ns)) {
        narrow_room(t, now);
    } else if (!is_late && t->room < t->max_in_flight &&
               now >= t->room_until_ns) {
        t->room = min_u64(2 * t->room, t->max_in_flight);
        t->room_until_ns = now + ROOM_GROWS_NS;
    }
    t->piece = t->most_piece;
    while (t->piece > max_u64(t->room, t->least_piece)) {
        t->piece /= 2;
    }
}

static void
wait_for_room(struct transfer *t, uint64_t len)
{
    struct root_stats guests;
    uint64_t again;

    while (!job_cancelled(&t->job)) {
        uint64_t now = loop_now(loop_of(t));

        if (t->tracked && !t->sinks) {
            adapt_room(t, now);
        }
        bool fits = (!t->workers || t->in_flight + len <= t->room) &&
                    (!t->release.side || release_has_room(t));

        node_guest_stats(t->guest, &guests);
        governor_update(&t->governor, now, &guests, t->workers);
        bool allowed = governor_allows(&t->governor, now, t->workers, &again);

        if (fits && allowed) {
            return;
        }
        if (t->workers || t->job.pauses || !fits) {
            transfer_wait_worker(t);
        } else {
            job_sleep(&t->job, again > now ? again - now : 0);
        }
    }
}

/* From then on the target lacks what was not looked at: it can be no copy. */
static bool
is_broken_off(struct transfer *t)
{
    if (!t->tracked || !t->hybrid) {
        return false;
    }
    t->job.decided |= t->job.end == JOB_END_COMPLETE;
    return t->job.decided;
}

/* Leaves @speed bytes a second on average, without a burst after a pause. */
static void
wait_for_rate(struct transfer *t, uint64_t len)
{
    uint64_t now, speed;

    for (;;) {
        job_pause_point(&t->job);
        now = loop_now(loop_of(t));
        speed = t->job.speed;
        if (speed && t->paced_at && t->budget_ns > now) {
            /* What is still owed, at the speed that holds now. */
            t->budget_ns = now + (uint64_t)((double)(t->budget_ns - now) *
                                            (double)t->paced_at /
                                            (double)speed);
        }
        t->paced_at = speed;
        if (!speed || t->budget_ns <= now || job_cancelled(&t->job) ||
            is_broken_off(t)) {
            break;
        }
        job_sleep(&t->job, t->budget_ns - now);
    }
    t->budget_ns =
        speed ? max_u64(t->budget_ns, now) + len * NS_PER_S / speed : 0;
}

/* The order. */

static void
saw_read(struct tap *tap, uint64_t off, uint64_t len)
{
    struct transfer *t = container_of(tap, struct transfer, tap);
    uint64_t piece = align_down(off, t->piece);

    if (!t->copy.fill) {
        return; /* the guest reads the source: nothing gets faster by it */
    }
    if (t->release.side) {
        return; /* it could not be given back before all below it is */
    }
    if (t->hot_n && t->hot[(t->hot_head + t->hot_n - 1) % HOT_MAX] == piece) {
        return;
    }
    if (t->hot_n < HOT_MAX) {
        t->hot[(t->hot_head + t->hot_n++) % HOT_MAX] = piece;
    }
}

bool
transfer_is_active(const struct transfer *t, uint64_t off, uint64_t len)
{
    list_for_each(it, &t->active)
    {
        const struct worker *w = container_of(it, struct worker, link);

        if (w->off < off + len && off < w->off + w->len) {
            return true;
        }
    }
    return false;
}

/* A piece that a guest has read lately and that is still missing. */
static int
next_hot(struct transfer *t, struct missing *ret)
{
    ret->len = 0;
    while (t->hot_n && !ret->len) {
        uint64_t off = t->hot[t->hot_head];

        t->hot_head = (t->hot_head + 1) % HOT_MAX;
        t->hot_n--;
        if (off < t->copy.target->size && !transfer_is_active(t, off, t->piece)) {
            int r =
                transfer_look(t, t->recipe->next, off, t->piece, ret);

            if (r) {
                return r;
            }
        }
    }
    return 0;
}

static int
next_piece(struct transfer *t, uint64_t *pos, struct missing *ret, bool *ret_hot)
{
    uint64_t size = t->copy.target->size;
    int r = next_hot(t, ret);

    *ret_hot = ret->len != 0;
    if (r || ret->len) {
        return r;
    }
    /* A look-up can be slow (SEEK_HOLE): one serves many pieces. */
    if (!t->rest.len) {
        uint64_t limit = min_u64(size - *pos, 1ULL << SCAN_STEP_SHIFT);

        r = transfer_look(t, t->recipe->next, *pos, limit, &t->rest);
        if (r) {
            t->rest.len = 0;
            return r;
        }
        t->job.current += t->rest.off - *pos;
        *pos = t->rest.off;
    }
    *ret = t->rest;
    /* Pieces end at multiples of their size, so that clusters stay whole. */
    uint64_t end = align_down(ret->off, t->piece) + t->piece;

    ret->len = min_u64(ret->len, end - ret->off);
    t->rest.off += ret->len;
    t->rest.len -= ret->len;
    *pos += ret->len;
    return 0;
}

/* What lies before @pos has been looked at; see track.h. */
static void
move_frontier(struct transfer *t, uint64_t pos)
{
    t->passed = pos;
    if (t->tracked && (t->hybrid || t->sinks)) {
        t->track.frontier = pos;
    }
}

static int
dispatch(struct transfer *t)
{
    uint64_t pos = 0;

    while (pos < t->copy.target->size && !t->error) {
        struct missing m;
        bool hot;

        job_pause_point(&t->job);
        if (job_cancelled(&t->job)) {
            return -ECANCELED;
        }
        if (is_broken_off(t)) {
            break;
        }
        int r = next_piece(t, &pos, &m, &hot);

        if (r == -ERESTART) {
            job_sleep(&t->job, RETRY_MS * NS_PER_MS);
            continue;
        }
        if (r) {
            t->error = r;
            t->error_on_read = true;
            break;
        }
        if (!m.len) {
            move_frontier(t, pos);
            coro_relax();
            continue;
        }
        wait_for_room(t, m.len);
        wait_for_rate(t, m.len);
        if (is_broken_off(t)) {
            break;
        }
        move_frontier(t, pos);
        start_worker(t, &m, hot, false);
        t->release.handed_out += m.len;
        close_epoch(t);
    }
    return t->error;
}

/*
 * A worker of a cancelled job can still come to a source that does not answer:
 * on its way there it holds nothing that could be let go of.
 */
void
transfer_rest(struct transfer *t)
{
    while (t->workers || t->flushing) {
        if (job_cancelled(&t->job)) {
            chain_let_go(t->copy.source);
            waitq_wait_until(&t->worker_done,
                             loop_now(loop_of(t)) + RETRY_MS * NS_PER_MS);
        } else {
            transfer_wait_worker(t);
        }
    }
}

/* What the guest dirties. */

/* A window with dirty blocks that nobody copies just now: whole blocks. */
static bool
next_window(struct transfer *t, struct missing *ret)
{
    const struct dirty_set *missing = &t->track.missing;
    uint64_t at = t->window, unit = max_u64(t->piece, t->granularity);
    uint64_t off, len;

    for (bool again = false;;) {
        if (!dirty_set_next(missing, at, missing->size, &off, &len)) {
            if (again || !at) {
                return false;
            }
            again = true;
            at = 0;
            continue;
        }
        off = align_down(off, unit);
        at = off + unit;
        if (!transfer_is_active(t, off, unit)) {
            *ret = (struct missing){off, min_u64(unit, missing->size - off),
                                    false};
            t->window = at;
            return true;
        }
    }
}

static bool
is_clean(const struct transfer *t)
{
    return !t->workers && !t->track.missing.n_dirty && !t->track.late;
}

void
transfer_wait_late(struct transfer *t)
{
    job_pause_point(&t->job);
    while (t->track.late && !job_cancelled(&t->job)) {
        transfer_wait_worker(t); /* or for what is late */
    }
}

/*
 * Until it is in step, and where it is to end, the guest's discards do nothing:
 * they cannot be forwarded, and each would have the target fall behind again.
 */
static void
hold_discards(struct transfer *t)
{
    t->track.tap.drops_discards =
        !t->sinks && (!t->job.ready || !t->wait_for_verb ||
                      t->job.end != JOB_END_OPEN);
}

int
transfer_converge(struct transfer *t)
{
    struct missing m;

    for (;;) {
        hold_discards(t);
        job_pause_point(&t->job);
        if (job_cancelled(&t->job)) {
            return -ECANCELED;
        }
        if (t->error || is_clean(t) || is_broken_off(t)) {
            return t->error;
        }
        if (!next_window(t, &m)) {
            transfer_wait_worker(t); /* or for what is late */
            continue;
        }
        wait_for_room(t, m.len);
        wait_for_rate(t, m.len);
        t->job.total += m.len;
        start_worker(t, &m, false, true);
        close_epoch(t);
    }
}

static void
saw_something_missing(void *arg)
{
    struct transfer *t = arg;

    waitq_wake_all(&t->worker_done);
    if (t->job.ready && !t->job.pauses) {
        waitq_wake_all(&t->job.wake);
    }
}

/* Nothing is missing: until that or the job changes. */
static void
wait_in_step(struct transfer *t)
{
    uint64_t ns = t->log ? t->clear_ns : EPOCH_NS;

    if (!t->log && !t->track.can_lose) {
        waitq_wait(&t->job.wake);
    } else if (!waitq_wait_until(&t->job.wake, loop_now(loop_of(t)) + ns) &&
               !t->flushing &&
               (clearing_is_due(t) || t->track.unflushed.n_dirty)) {
        t->flushing = true;
        coro_start(loop_of(t), flush_main, t);
    }
}

/* In step until the job is told to end; 0 where that is to be done. */
static int
follow(struct transfer *t)
{
    struct job *job = &t->job;

    t->track.forwarding = t->copy_mode != COPY_MODE_BACKGROUND;
    for (;;) {
        int r = transfer_converge(t);

        if (r) {
            return r;
        }
        if (!t->wait_for_verb || job->end != JOB_END_OPEN) {
            return 0;
        }
        if (!job->ready) {
            job_set_ready(job);
        }
        hold_discards(t);
        job_pause_point(job);
        while (is_clean(t) && job->end == JOB_END_OPEN && !job->pauses &&
               !job_cancelled(job)) {
            job->current = job->total;
            wait_in_step(t);
        }
    }
}

void
transfer_copy_dirty(struct transfer *t, uint64_t off, uint64_t len)
{
    start_worker(t, &(struct missing){off, len, false}, false, true);
    t->job.total += len;
}

/*
 * The target of a copy that was thrown away may never answer.  Not so where a
 * guest may be there already, or its mark is gone: whether that was written must
 * be known.
 */
static void
cut_off(struct timer *timer)
{
    struct transfer *t = container_of(timer, struct transfer, cut_off);

    if (t->tracked && !t->sinks && !t->job.has_moved && !t->unmarked) {
        target_cut_off(t->held[1], CUT_OFF_MS * NS_PER_MS);
    }
    timer_set(loop_of(t), timer, loop_now(loop_of(t)) + RETRY_MS * NS_PER_MS,
              cut_off);
}

void
transfer_cancelled(struct job *job)
{
    struct transfer *t = transfer_of(job);

    if (t->copy.source) {
        chain_let_go(t->copy.source);
    }
    if (t->copy.target) {
        chain_let_go(t->copy.target);
        timer_set(loop_of(t), &t->cut_off,
                  loop_now(loop_of(t)) + CUT_OFF_MS * NS_PER_MS, cut_off);
    }
    waitq_wake_all(&t->worker_done);
}

static void
start_taps(struct transfer *t)
{
    t->tap = (struct tap){.order = TAP_AFTER, .on_read = saw_read};
    tap_attach(t->guest, &t->tap);
    if (t->tracked) {
        t->track.sinks = t->sinks;
        track_start(&t->track, t->copy.source, t->copy.target,
                    t->granularity, saw_something_missing, t);
        t->track.forwarding = t->copy_mode == COPY_MODE_FORWARD;
        t->track.frontier = t->hybrid || t->sinks ? 0 : UINT64_MAX;
        if (t->sinks) { /* what began before this is not diverted */
            grace_wait(&t->copy.source->changes);
        }
    }
}

int
transfer_work(struct transfer *t)
{
    if (!t->start_ns) {
        t->start_ns = loop_now(loop_of(t));
    }
    t->epoch_start_ns = loop_now(loop_of(t));
    t->rest = (struct missing){0};
    t->hot_n = 0;
    governor_init(&t->governor);
    release_begin(t);
    start_taps(t);
    if (t->tracked && t->hybrid) {
        job_set_ready(&t->job);
    }
    int r = dispatch(t);

    if (!r && t->release.side) {
        r = release_rest(t);
    }
    if (!r && t->tracked) {
        r = follow(t);
    }
    transfer_rest(t);
    tap_detach(&t->tap);
    return r ? r : t->error ? t->error : t->ignored;
}

/* So that after a crash only what changed is copied again. */
static void
begin_log(struct transfer *t)
{
    if (!t->note || !t->tracked || t->sinks || t->hybrid) {
        return;
    }
    /* One that is writable for another job only stays so for its log. */
    int r = t->copy.source->borrowers
                ? transfer_make_writable(t, t->copy.source, NULL)
                : 0;

    if (!r) {
        r = dirty_log_begin(t->copy.source, t->copy.target, t->goes_on);
    }
    if (!r) {
        t->log = t->copy.source->dirty_log;
        t->cleared_ns = loop_now(loop_of(t));
    } else if (r != -ENOTSUP) {
        NODE_SAY(t->device, info,
                 "%s: after a crash it will begin anew: the log of what "
                 "changed cannot be written: %s",
                 t->owner, err_text(r));
    }
}

static void
end_log(struct transfer *t)
{
    if (t->log) {
        dirty_log_end(t->copy.source);
        t->copy.target->keep_session = false;
        t->log = NULL;
    }
}

/*
 * One that goes on was promised to wait where there is no space: it is paused,
 * as it may have been when its daemon ended.
 */
static int
check_space(struct transfer *t, struct err *err)
{
    int r = transfer_check_space(t, err);

    while (r == -ENOSPC && t->goes_on && !job_cancelled(&t->job) &&
           job_error(&t->job, t->on_target_error, false, r) == ON_ERROR_STOP) {
        say_what_is_missing(t);
        job_pause_point(&t->job);
        err_clear(err);
        r = transfer_check_space(t, err);
    }
    return job_cancelled(&t->job) ? -ECANCELED : r;
}

static int
begin(struct transfer *t, struct err *err)
{
    bool may_switch = t->tracked && !t->sinks && (t->finish == FINISH_SWITCH ||
                                     t->wait_for_verb);
    int r = check_space(t, err);

    if (!r && may_switch) {
        r = departure_prepare(t, err);
    }
    if (!r) {
        begin_log(t);
        resume_record(t);
        if (!t->journal) {
            end_log(t);
        }
    }
    return r || !t->recipe->begin ? r : t->recipe->begin(t, err);
}

/* Tables that are written only now may find no space. */
static bool
flush_again(struct transfer *t, int r)
{
    if (r == -ERESTART) {
        job_sleep(&t->job, RETRY_MS * NS_PER_MS);
        job_pause_point(&t->job);
    } else if (r != -ENOSPC ||
               job_error(&t->job, t->on_target_error, false, r) !=
                   ON_ERROR_STOP) {
        return false;
    } else {
        say_what_is_missing(t);
        job_pause_point(&t->job);
    }
    return !job_cancelled(&t->job);
}

static int
flush_at_end(struct transfer *t)
{
    int r;

    do {
        r = node_flush(t->copy.target);
    } while (r && flush_again(t, r));
    return r;
}

int
transfer_run(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);

    job->total = t->copy.target->size;
    t->dispatcher = coro_self();
    int r = t->start_ns ? 0 : begin(t, err);

    job_set_begun(job);
    if (r) {
        return r;
    }
    r = transfer_work(t);

    if (job_cancelled(job)) {
        return -ECANCELED;
    }
    if (!r && !t->tracked) { /* else its end is the pivot's */
        job->current = job->total;
        r = flush_at_end(t);
        t->error_on_read = false;
    }
    t->report.elapsed_ns = loop_now(loop_of(t)) - t->start_ns;
    if (r) {
        err_set_errno(err, r, "%s",
                      t->error_on_read ? "Reading the source failed"
                                       : "Writing the target failed");
    }
    return r;
}

/* Birth and death. */

struct transfer *
transfer_new(const struct transfer_recipe *recipe,
             const struct transfer_options *options)
{
    struct transfer *t = xzalloc(sizeof(*t));

    t->recipe = recipe;
    t->owner = options->job_id
                   ? xasprintf("job '%s'", options->job_id)
                   : xasprintf("a %s", recipe->driver.type); /* a plan */
    t->on_source_error = t->on_target_error = options->on_error;
    t->granularity =
        options->granularity ? options->granularity : TRANSFER_GRANULARITY;
    t->max_in_flight =
        options->max_in_flight ? options->max_in_flight : DEFAULT_IN_FLIGHT;
    t->piece = options->piece ? options->piece : DEFAULT_PIECE;
    t->goes_on = options->resumed;
    t->clear_ns = options->clear_ns ? options->clear_ns : CLEAR_NS;
    t->release.max_extra = options->max_extra;
    t->delete_source = options->delete_source;
    t->exclusive = options->exclusive;
    t->keep_name = options->keep_name;
    t->folders = xzalloc((options->n_dependents_in + 1) * sizeof(char *));
    while (t->n_folders < options->n_dependents_in) {
        t->folders[t->n_folders] =
            xstrdup(options->dependents_in[t->n_folders]);
        t->n_folders++;
    }
    waitq_init(&t->worker_done);
    comutex_init(&t->mark_lock);
    list_init(&t->active);
    list_init(&t->tap.link);
    return t;
}

int
transfer_claim(struct transfer *t, struct node *node, enum claim claim,
               struct root **ret, struct err *err)
{
    int r = root_new(node, claim, t->owner, ret, err);

    if (!r) {
        root_pin(*ret, t->recipe->driver.type);
    }
    return r;
}

int
transfer_claim_more(struct transfer *t, struct node *node, enum claim claim,
                    struct err *err)
{
    t->between = xrealloc(t->between,
                          (t->n_between + 1) * sizeof(*t->between));
    int r = transfer_claim(t, node, claim, &t->between[t->n_between], err);

    t->n_between += !r;
    return r;
}

static void
unref(struct node **node)
{
    if (*node) {
        node_unref(take_ptr(*node));
    }
}

int
transfer_freeze(struct transfer *t, struct node *top, struct node *bottom,
                struct err *err)
{
    int r = chain_freeze(top, bottom, t->owner, err);

    if (!r) {
        unref(&t->frozen);
        t->frozen = node_ref(top);
    }
    return r;
}

void
transfer_thaw(struct transfer *t)
{
    if (t->frozen) {
        chain_thaw(t->frozen, t->owner);
    }
    unref(&t->frozen);
}

int
transfer_make_writable(struct transfer *t, struct node *node, struct err *err)
{
    bool borrowed;

    node_ref(node); /* it yields */
    int r = node_borrow(node, &borrowed, err);

    if (r || !borrowed) {
        node_unref(node);
        return r;
    }
    t->writable = xrealloc(t->writable,
                           (t->n_writable + 1) * sizeof(struct node *));
    t->writable[t->n_writable++] = node;
    return 0;
}

void
transfer_keep_writable(struct transfer *t)
{
    while (t->n_writable) {
        struct node *node = t->writable[--t->n_writable];

        node_keep_writable(node);
        node_unref(node);
    }
}

static void
make_read_only(struct transfer *t)
{
    while (t->n_writable) {
        struct node *node = t->writable[--t->n_writable];

        node_return(node);
        node_unref(node);
    }
}

void
transfer_unclaim(struct transfer *t)
{
    departure_free_overlays(t);
    transfer_thaw(t);
    if (t->root) {
        root_free(take_ptr(t->root));
    }
    if (t->source_root) {
        root_free(take_ptr(t->source_root));
    }
    if (t->below_root) {
        root_free(take_ptr(t->below_root));
    }
    while (t->n_between) {
        root_free(t->between[--t->n_between]);
    }
}

static void
let_go(struct transfer *t, bool success)
{
    if (t->track.source) {
        track_stop(&t->track);
    }
    bool is_over = success || !t->job.jobs || !jobs_are_ending(t->job.jobs);
    /* The rest of a switch, maybe, that an earlier daemon made. */
    struct node *filled =
        is_over && t->goes_on && t->copy.fill ? node_ref(t->copy.target) : NULL;

    if (!is_over) {
        departure_leave(t);
    }
    resume_forget(t, success);
    resume_forget_deletions(t);
    if (is_over) {
        end_log(t);
    }
    departure_end(t, false, NULL);
    transfer_unclaim(t);
    make_read_only(t);
    release_fini(&t->release);
    t->copy.source = t->copy.target = NULL; /* a cancel finds nothing more */
    timer_cancel(&t->cut_off);
    unref(&t->base);
    unref(&t->overlay);
    unref(&t->replaces);
    unref(&t->left);
    unref(&t->device);
    unref(&t->held[0]);
    unref(&t->held[1]);
    if (filled) { /* nobody holds what it read through to */
        node_end_switch(filled);
        node_unref(filled);
    }
}

static void
transfer_free(struct job *job)
{
    struct transfer *t = transfer_of(job);

    free(t->backing_file);
    free(t->between);
    free(t->writable);
    names_free(t->folders, t->n_folders);
    free(t->owner);
    free(t->note);
    free(t);
}

void
transfer_discard(struct transfer *t)
{
    let_go(t, false);
    transfer_free(&t->job);
}

void
transfer_clean(struct job *job, bool success)
{
    transfer_rest(transfer_of(job)); /* of a pivot that failed */
    let_go(transfer_of(job), success);
    copy_buffers_free(&transfer_of(job)->buffers);
}

void
transfer_launch(struct transfer *t, struct jobs *jobs,
                const struct transfer_options *options)
{
    t->job.driver = &t->recipe->driver;
    t->job.free = transfer_free;
    t->job.auto_finalize = options->auto_finalize;
    t->job.auto_dismiss = options->auto_dismiss;
    t->job.speed = options->speed;
    t->job.total = t->copy.target->size;
    /* No cluster of the target is begun by one piece and ended by another. */
    t->piece = max_u64(t->piece,
                       min_u64(t->copy.target->cluster_size, LIMIT_COPY));
    t->most_piece = t->buffers.size = t->piece;
    t->least_piece = min_u64(max_u64(LEAST_PIECE, t->copy.target->cluster_size),
                             t->piece);
    t->room = t->max_in_flight;
    if (!t->guest) {
        t->guest = t->copy.target;
    }
    t->held[0] = t->copy.source ? node_ref(t->copy.source) : NULL;
    t->held[1] = node_ref(t->copy.target);
    if (options->note) {
        t->note = xstrdup(options->note);
        t->device = node_ref(options->device);
    }
    t->job.user_paused = t->job.by_verb = options->start_paused;
    t->job.pauses = options->start_paused;
    job_start(jobs, &t->job, options->job_id);
}

void
transfer_report_pause(struct transfer *t, uint64_t pause_ns, uint64_t held)
{
    t->report.pause_ns = max_u64(t->report.pause_ns, pause_ns);
    t->report.held += held;
}

void
transfer_remember(struct job *job)
{
    resume_change(transfer_of(job));
}

const char *
transfer_note(const struct job *job)
{
    return job->driver->clean == transfer_clean
               ? container_of(job, struct transfer, job)->note
               : NULL;
}

bool
transfer_report(const struct job *job, struct transfer_report *ret)
{
    if (job->driver->clean != transfer_clean) {
        return false;
    }
    const struct transfer *t = container_of(job, struct transfer, job);
    uint64_t ns = t->report.elapsed_ns;

    *ret = t->report;
    ret->bytes_dirtied = t->track.bytes_dirtied;
    ret->bytes_forwarded = t->track.bytes_forwarded;
    ret->bytes_sunk = t->track.bytes_sunk;
    if (!ns && t->start_ns) {
        ret->elapsed_ns = ns = loop_now(loop_of(t)) - t->start_ns;
    }
    ret->rate_bps =
        ns ? (uint64_t)((double)ret->bytes_moved * 1e9 / (double)ns) : 0;
    return true;
}
