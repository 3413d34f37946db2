// SPDX-License-Identifier: BSD-3-Clause
/*
 * That an image is the unfinished target of a copy (design rule 5), for formats
 * with no place for it in their header: raw.  Programs that know no journal do
 * not see it.
 *
 * All functions yield.
 */
#ifndef SLUICE_JOURNAL_UNFINISHED_H
#define SLUICE_JOURNAL_UNFINISHED_H

#include <stdbool.h>
#include <stdint.h>

#include "run/file.h"

struct journals;

/*
 * Says so of @image, which is the file @ino, made at @born, durably; 0 or what
 * journal_share() and journal_add() say.
 */
int unfinished_record(struct journals *journals, const char *image,
                      uint64_t ino, uint64_t born);
/* It is not, or not any more, durably; nothing where nothing is said. */
int unfinished_end(struct journals *journals, const char *image);
/* Is it?  What was said of another file that had this name is void. */
bool unfinished_find(struct journals *journals, const char *image,
                     uint64_t ino, uint64_t born);

#endif
