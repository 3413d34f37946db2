// SPDX-License-Identifier: BSD-3-Clause
/*
 * Where the journal of an image lies.  An image has many names (links; paths
 * from another working folder), and one journal:
 *
 *   IMAGE.sluice beside the file that all links lead to.  Where it cannot lie
 *   there (a folder that cannot be written, a name that is too long for seven
 *   more bytes), in the state folder, named after that file's path, each '/' a
 *   '!', each '!' two; where that is too long, by the file's inode and when it was made.
 *
 *   Of a file with several names (hard links) in the state folder, by inode:
 *   none of its names is the one by which it will be opened.
 *
 *   Of a block device in the state folder, by what the kernel knows it by (its
 *   serial number and the like); its names and numbers are another device's
 *   after a boot.  Where it knows nothing, by the path that was used.
 */
#ifndef SLUICE_JOURNAL_PLACE_H
#define SLUICE_JOURNAL_PLACE_H

#include "journal/journal.h"

enum { PLACES_MAX = 3 };

struct journal_places {
    char *image; /* the name that counts: without links */
    char *shown; /* the one that was used, where only its folder has links */
    char *paths[PLACES_MAX]; /* where it may lie; the first is to be tried first */
    unsigned n;
};

/*
 * Fills in @ret, also where no file has that name (any more).  journal_places_fini()
 * for what it gives.  Yields; 0 or -errno.
 */
int journal_places_find(const struct journals *journals, const char *image,
                        struct journal_places *ret);
/* Does not yield. */
void journal_places_fini(struct journal_places *places);

/* Does this -errno of opening one say that none is there?  Does not yield. */
bool journal_place_has_none(int r);

#endif
