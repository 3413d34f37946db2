// SPDX-License-Identifier: BSD-3-Clause
/*
 * Jobs that outlive their daemon (docs/design/resume.md): what a job does is
 * written into the journal of its disk, and whoever opens the disk next starts
 * it again.
 */
#ifndef SLUICE_TRANSFER_RESUME_H
#define SLUICE_TRANSFER_RESUME_H

#include <jansson.h>

#include "transfer/transfer.h"

struct transfer;

/*
 * What a job is, as its record says it; NULL where the preset cannot be
 * resumed, or @o->device is not in a local file.  The caller frees it.  Does
 * not yield.
 */
char *resume_describe(enum transfer_preset preset,
                      const struct transfer_options *o);

/*
 * The record of a job, durable before its first write.  Where it cannot be
 * written the job goes on without, which is said.  Yields.
 */
void resume_record(struct transfer *t);
/* The job's speed is another, or it is paused: its record says so.  Yields. */
void resume_change(struct transfer *t);
/*
 * The disk is on the target, whose layers below are all that is left to copy:
 * from now on the record is that of a stream, in the target's journal.  Yields.
 */
void resume_record_as_stream(struct transfer *t);
/*
 * The job has ended; its record goes, unless it is not @done and the daemon
 * ends, and the job with it.  Nothing where it has none.  Yields.
 */
void resume_forget(struct transfer *t, bool done);

/*
 * What it was to delete at its end is deleted, or never will be.  After the
 * job's own record, so that one which is left says that others may be.  Yields.
 */
void resume_forget_deletions(struct transfer *t);

/*
 * Is this what a job of that id does already, on the same layers?  Its speed,
 * and which way it chose to go, do not matter.  Does not yield.
 */
bool resume_is_same(struct jobs *jobs, enum transfer_preset preset,
                    const struct transfer_options *o);

enum resume_mode {
    RESUME_AUTO,  /* what was under way goes on */
    RESUME_ASK,   /* it is there, but paused */
    RESUME_NEVER, /* it stays in the journal */
};

/*
 * Starts what the journal of @node's file says was under way.  What cannot go
 * on is said in the log, and forgotten.  Yields.
 */
void resume_jobs(struct jobs *jobs, struct node *node, enum resume_mode mode);

/*
 * @node was opened to be written, by itself: says whose layer it is, and
 * forgets jobs that are over, or never began.  Yields.
 */
void resume_check_layer(struct node *node);
/*
 * What the journal beside @image says: an array of {"id", "preset", "base"?,
 * "top"?, …}, new.  Empty where there is none.  Yields.
 */
json_t *resume_list(struct journals *journals, const char *image);

#endif
