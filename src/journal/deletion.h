// SPDX-License-Identifier: BSD-3-Clause
/*
 * Files that a job deletes at its end, durably said before the first one goes,
 * beside the image that goes on without them: its heir (docs/design/intents.md).
 *
 * All functions yield.
 */
#ifndef SLUICE_JOURNAL_DELETION_H
#define SLUICE_JOURNAL_DELETION_H

#include <jansson.h>

#include "journal/intent.h"
#include "journal/journal.h"

struct deletion {
    const char *job;
    unsigned number, total; /* of those of the job */
    uint64_t heir_ino, heir_born; /* the file that must be found there */
    /* .source goes, if nobody is found who needs it; NULL: none does. */
    const struct switch_intent *what;
    /* An image whose journal says of it that the job writes to it, or NULL. */
    const char *survivor;
};

/*
 * Into the heir's journal, in the order of their numbers: only with the last one
 * they count, and they end in that order.  0 or -errno.
 */
int deletion_record(struct journal *journal, const struct deletion *deletion);
/*
 * What counts beside @image, each an object with "id", "job", "is-last",
 * "heir-ino", "heir-born", maybe "survivor", and, where a file goes, "file",
 * "format", "ino", "born", "exclusive" and "dependents-in".
 */
json_t *deletions_of(struct journals *journals, const char *image);
/* All of them are done, and so is their job. */
void deletions_end(struct journal *journal, json_t *list);

#endif
