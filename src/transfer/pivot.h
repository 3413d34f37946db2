// SPDX-License-Identifier: BSD-3-Clause
/*
 * The end of a tracked transfer: the disk goes on on the target, or the target
 * becomes a copy as of now.  The only place of a transfer that edits the
 * graph under a guest that writes.
 *
 *   1 forward; copy until nothing is missing
 *   2 guest flushes go to both sides from here on; flush the target
 *   3 the target counts as complete, then as the disk, durably
 *   4 close the gates, wait for what is in flight
 *   5 is something missing again?  Then open them, take 3 back, begin anew
 *   6 swap, open the gates
 *
 * No fsync and no open is waited for between 4 and 6.  What is acknowledged
 * before 6 is on both sides, so a crash at any point leaves a target that is
 * refused, or one that is the disk.  A target that misses a write between 3
 * and 6 is marked incomplete again, and no longer recorded as the disk, before
 * that write is acknowledged.
 */
#ifndef SLUICE_TRANSFER_PIVOT_H
#define SLUICE_TRANSFER_PIVOT_H

#include "transfer/engine.h"

/* Ends @t by @finish.  0, -ECANCELED, or -errno with @err set.  Yields. */
int transfer_pivot(struct transfer *t, enum finish finish, struct err *err);
/*
 * Marks the target as unfinished, durably, or as finished; nothing where it can
 * have no such mark (block/mark.h).  Yields.
 */
int transfer_mark(struct transfer *t, bool incomplete, struct err *err);

/* The target is neither complete nor the disk; for track.withdraw.  Yields. */
void transfer_withdraw(void *transfer);

/*
 * The guests' claims on the target come beside the job's; where it lies below
 * the source, nobody reads through to it any more, and what is diverted to it
 * stays there.  For the check of a graph
 * edit; does not yield.
 */
void transfer_claim_to_switch(struct transfer *t, bool switching);

/*
 * Until when the gates of the next attempt may be closed.  Where the requests in
 * flight have not ended by then (@r is -ETIMEDOUT, as graph_edit() says), the
 * second sleeps, takes @err back and returns true: it is to be tried again, with
 * more patience.  A guest's slow request ends no job.  The second yields.
 */
uint64_t transfer_drain_deadline(struct transfer *t);
bool transfer_drains_again(struct transfer *t, int r, struct err *err);

#endif
