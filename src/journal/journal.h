// SPDX-License-Identifier: BSD-3-Clause
/*
 * A journal: a small file of records beside an image, for changes of several
 * steps (docs/design/intents.md).
 *
 *   "SLUICE-J", then records: length of the payload, CRC-32C of type and
 *   payload, type (little-endian, 32 bits each), payload, zeroes up to a
 *   multiple of 8.  A length of 0, or a record whose sum is wrong, ends it.
 *
 * It is allocated whole when it is made, so that records can be added on a
 * full disk.  All functions yield and return 0 or -errno.
 */
#ifndef SLUICE_JOURNAL_JOURNAL_H
#define SLUICE_JOURNAL_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "run/file.h"

enum { JOURNAL_SIZE = 4096, JOURNAL_PAYLOAD_MAX = 2048 };

enum journal_type {
    JOURNAL_SWITCH = 1,
    JOURNAL_WITHDRAWN = 2,
    JOURNAL_POINTER = 3,
};

struct journal;

struct journal_record {
    enum journal_type type;
    const unsigned char *payload; /* the journal's, until it is closed */
    uint32_t len;
};

/* The journal's path beside an image; the caller frees it.  No yield. */
char *journal_path(const char *image);

/* Makes an empty one, durably, in the place of an old one. */
int journal_create(struct loop *loop, const char *path, struct journal **ret);
/* -ENOENT where there is none, -EUCLEAN where it is something else. */
int journal_open(struct loop *loop, const char *path, struct journal **ret);
/* Adds a record, durably; -ENOSPC where it is full. */
int journal_add(struct journal *journal, enum journal_type type,
                const void *payload, uint32_t len);
/* The records, in order: false after the last.  *@pos begins at 0. */
bool journal_next(const struct journal *journal, uint32_t *pos,
                  struct journal_record *ret);
/* Does not yield. */
void journal_close(struct journal *journal);
/* Removes the file, durably; nothing where it is not there. */
int journal_remove(struct loop *loop, const char *path);

#endif
