// SPDX-License-Identifier: BSD-3-Clause
/*
 * What a guest's write does to a transfer while the guest is on the source
 * (design §2, on_write): `dirty` or `forward`.
 *
 *   dirty    the blocks that it touched are missing again
 *   forward  it goes to the target, too, beside the source; a write that
 *            touches a missing block stays dirty, since it is copied anyway
 *
 * So while forwarding, what is missing only shrinks.  A target that fails, or
 * does not answer in FORWARD_PATIENCE_MS, never fails the guest: the blocks
 * are missing again.  A late write keeps the target's range until it returns,
 * and while there is one, nothing is forwarded.
 *
 * While the transfer pivots, nothing may be on the source alone: a change that
 * would be, or that failed on the target, first withdraws the target's claim
 * to be the disk (rule 6).
 *
 * A *bare* target lacks the backing file that its header names, and will have it
 * again: a cluster that it does not hold is copied as a whole, for its rest is
 * not zero.  Until then no part of it is forwarded.
 *
 * A merge knows a third way, `sink`: what no layer above the target holds goes
 * to the target alone (docs/design/merge.md).
 *
 * A forward holds the target's range until both sides are written, a piece
 * holds it while it reads the source and writes the target (copy.lock_first).
 * Whichever is first, the target ends with what the source has.
 */
#ifndef SLUICE_TRANSFER_TRACK_H
#define SLUICE_TRANSFER_TRACK_H

#include "block/dirty_set.h"
#include "block/node.h"

struct track {
    struct node *source, *target;
    struct dirty_set missing;
    struct tap tap;
    bool attached;
    bool forwarding;
    bool pivoting; /* flushes go to both sides, too (rule 2) */
    /*
     * Blocks from here on are missing without being in the set: a pass that
     * may be broken off has not reached them.  UINT64_MAX: none are.
     */
    uint64_t frontier;
    /*
     * A merge: what is not held above the target goes there alone, and what
     * lies before @released is no longer forwarded.
     */
    bool sinks;
    uint64_t released;
    bool is_bare;
    struct dirty_set hollow; /* with @is_bare: blocks that were not copied */
    /*
     * A target whose server may lose what it did not flush (rule 4): blocks
     * that were written since the last flush began, and before it.
     */
    bool can_lose;
    struct dirty_set unflushed, flushing;
    struct comutex flush_lock;
    uint64_t losses; /* that are settled */
    bool reads_through; /* the target does, where something is missing */
    bool went_stale; /* a block became missing that was not */
    uint64_t broken; /* what the target has missed while it pivots, in all */
    unsigned late;      /* forwards that their guest no longer waits for */
    uint64_t n_late;    /* how many have been, in all */
    unsigned in_flight; /* forwards that a side still works on */
    struct list twins;  /* and these */
    struct waitq idle;
    /* Something is missing that was not, or a late one is over; no yield. */
    void (*changed)(void *arg);
    /* The target does not count as the disk when this returns.  Yields. */
    void (*withdraw)(void *arg);
    void *arg;
    uint64_t bytes_forwarded, bytes_dirtied, bytes_sunk;
};

/* Begins to watch @source, with @sinks as it is.  Does not yield. */
void track_start(struct track *t, struct node *source, struct node *target,
                 uint32_t granularity, void (*changed)(void *arg), void *arg);
/* The range of the target was written.  Does not yield. */
void track_written(struct track *t, uint64_t off, uint64_t len);
/*
 * Flushes the target.  What a lost server may have lost is missing again, and
 * then it is -EAGAIN, as where a server is to be waited for; -ESTALE where that
 * cannot be made good, since the target has tables of its own.  Yields.
 */
int track_flush_target(struct track *t);
/* Is a change of the range on its way to both sides?  Does not yield. */
bool track_is_forwarding(const struct track *t, uint64_t off, uint64_t len);
/* Watches no more; forwards under way end by themselves.  Does not yield. */
void track_detach(struct track *t);
/* Detaches, waits for the last forward, frees.  Yields. */
void track_stop(struct track *t);

#endif
