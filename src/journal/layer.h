// SPDX-License-Identifier: BSD-3-Clause
/* Beside a layer: the job that writes to it, and the disk whose job that is. */
#ifndef SLUICE_JOURNAL_LAYER_H
#define SLUICE_JOURNAL_LAYER_H

#include "journal/journal.h"

struct layer_record {
    const char *id;            /* the job's */
    const unsigned char *uuid; /* of the disk's journal */
    char *disk;                /* its path; the caller's */
};

/*
 * Adds one, as of the job @id that the journal @disk knows; 0, -ENAMETOOLONG, or
 * what journal_add() says.  Yields.
 */
int layer_record_add(struct journal *journal, const char *id,
                     const struct journal *disk);
/*
 * False where @record is none.  What it points at is @record's, until something
 * is added to the journal; but for the path.  Does not yield.
 */
bool layer_record_read(const struct journal *journal,
                       const struct journal_record *record,
                       struct layer_record *ret);

#endif
