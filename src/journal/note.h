// SPDX-License-Identifier: BSD-3-Clause
/* Records of jobs: the job's id, a zero, and maybe a JSON object. */
#ifndef SLUICE_JOURNAL_NOTE_H
#define SLUICE_JOURNAL_NOTE_H

#include <jansson.h>

#include "journal/journal.h"

/*
 * Adds a record; @object is the object's text, "" where there is none.  Yields;
 * 0, -ENAMETOOLONG where it is too long, or what journal_add() says.
 */
int note_add(struct journal *journal, enum journal_type type, const char *id,
             const char *object);
/*
 * The objects of all records of one type, each with its "id"; what is none is
 * left out.  The caller's.  Does not yield; with the journal of @image it does.
 */
json_t *notes_in(const struct journal *journal, enum journal_type type);
json_t *notes_of(struct journals *journals, const char *image,
                 enum journal_type type);

/* A member; NULL or 0 where there is none.  Neither yields. */
const char *note_text(const json_t *note, const char *key);
uint64_t note_number(const json_t *note, const char *key);

#endif
