// SPDX-License-Identifier: BSD-3-Clause
/*
 * Leaving the source: the durable record that says which file is the disk, the
 * headers of the images that lie over it, and the deletion of the source where
 * that was asked for (docs/design/intents.md).
 *
 * A source that images in use lie over is a layer, no disk: nobody writes to
 * it, it reads as the target before the swap and after, and so do the images
 * whatever of both their headers name.  There is nothing to record then.
 *
 * All yield unless they say otherwise.
 */
#ifndef SLUICE_TRANSFER_DEPARTURE_H
#define SLUICE_TRANSFER_DEPARTURE_H

#include "transfer/engine.h"

/* May the source be deleted in the end?  0 also where nobody wants that. */
int departure_check(struct transfer *t, struct err *err);
/*
 * Makes the journal, when the job begins: so that the disk may be full when it
 * ends.  Where there can be none (no local files, a folder that nobody may
 * write to), a line in the log says so, and the rest does nothing.
 */
int departure_prepare(struct transfer *t, struct err *err);
/*
 * For a transfer that may switch: the edges of what lies over the source stay
 * where they are until departure_free_overlays().  Where it switches by itself,
 * these images must be able to name the target.  Does not yield.
 */
int departure_hold_overlays(struct transfer *t, struct err *err);
/* For the check of the swap; and where the swap failed.  No yield. */
void departure_free_overlays(struct transfer *t);
/* Before the switch: these images can be written to; the first only asks. */
int departure_check_overlays(struct transfer *t, struct err *err);
int departure_prepare_overlays(struct transfer *t, struct err *err);
/* After the swap: they name the target, durably. */
int departure_name_target(struct transfer *t, struct err *err);
/*
 * The target is in the place of a source that is still needed, and what lies
 * over the target names it.  Where that fails, departure_end() tries again; a
 * line in the log.  The record stands until the source is needed no more: who
 * opens it by its old name must not write to what the disk reads through to.
 */
void departure_arrive(struct transfer *t);
/* The daemon ends before that: the record stays for the next.  No yield. */
void departure_leave(struct transfer *t);
/* Is the source a layer of a disk that is in use?  Does not yield. */
bool departure_is_of_a_layer(const struct transfer *t);
/* The target is the disk; durable. */
int departure_record(struct transfer *t, struct err *err);
/* The source is; durable before it returns, or false: the record may stand. */
bool departure_withdraw(struct transfer *t);
/*
 * The switch is over.  @moved: the disk is on the target for good, what lies
 * over it names it, and the source is deleted if it is to be; an error says
 * what of that was not done.
 */
int departure_end(struct transfer *t, bool moved, struct err *err);

#endif
