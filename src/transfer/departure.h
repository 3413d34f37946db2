// SPDX-License-Identifier: BSD-3-Clause
/*
 * Leaving the source: the durable record that says which file is the disk, and
 * the deletion of the source where that was asked for
 * (docs/design/intents.md).  All yield.
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
/* The target is the disk; durable. */
int departure_record(struct transfer *t, struct err *err);
/* The source is; durable before it returns. */
void departure_withdraw(struct transfer *t);
/*
 * The switch is over.  @moved: the disk is on the target for good, and the
 * source is deleted if it is to be; an error says that it is still there.
 */
int departure_end(struct transfer *t, bool moved, struct err *err);

#endif
