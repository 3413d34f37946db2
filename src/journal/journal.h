// SPDX-License-Identifier: BSD-3-Clause
/*
 * A journal: a small file of records beside an image, for changes of several
 * steps and for jobs that are under way (docs/design/intents.md, resume.md).
 *
 *   "SLUICE-J", a UUID, the file's size, CRC-32C of these; where the records end
 *   that were added, CRC-32C of that; then records: length of the payload,
 *   CRC-32C of type and payload, type (little-endian, 32 bits each), payload,
 *   zeroes up to a multiple of 8.  Behind that end there is nothing, or one, or
 *   a part of one, that was being added when all ended.
 *
 * It is found by any name of the image (place.h).  It is allocated whole before
 * it gets its name, so that records can be added on a full disk, and room is
 * kept in it to end all that it says is under way.  So a file of that name that
 * is shorter, or in which a record before the end is not whole, is damaged: it
 * is refused, for it may have said that the image is not the disk any more.
 *
 * Whatever writes to it shares one `struct journal`; it is removed when the last
 * one leaves it and nothing that it says counts any more.
 *
 * All functions yield and return 0 or -errno.
 */
#ifndef SLUICE_JOURNAL_JOURNAL_H
#define SLUICE_JOURNAL_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "run/wait.h"
#include "run/file.h"

enum {
    JOURNAL_SIZE = 16384,           /* at first */
    JOURNAL_SIZE_MAX = 1024 * 1024, /* with many records that count */
    JOURNAL_PAYLOAD_MAX = 2048,
    JOURNAL_UUID = 16,
};

enum journal_type {
    /* Which file is the disk: of these three the last one counts. */
    JOURNAL_SWITCH = 1,
    JOURNAL_WITHDRAWN = 2, /* nothing is under way */
    JOURNAL_POINTER = 3,
    /* A job, by the string that both payloads begin with. */
    JOURNAL_JOB = 4,
    JOURNAL_JOB_ENDED = 5,
    /* Such a string, then the disk whose job writes to this layer of it. */
    JOURNAL_LAYER = 6,
    /* One of a job's files that is deleted at its end (deletion.h). */
    JOURNAL_DELETION = 7,
    /* The image is an unfinished target (unfinished.h). */
    JOURNAL_UNFINISHED = 8,
};

struct journal;

/* Those of one graph that are open to be written. */
struct journals {
    struct loop *loop;
    struct list open;
    struct list turns; /* of who opens, makes or removes one just now */
    struct waitq turn_ended;
    char *state_dir; /* NULL: there is none */
};

struct journal_record {
    enum journal_type type;
    const unsigned char *payload; /* the journal's, until it is closed */
    uint32_t len;
};

/* @state_dir is copied; NULL: all journals lie beside their images. */
void journals_init(struct journals *journals, struct loop *loop,
                   const char *state_dir);
void journals_fini(struct journals *journals);
/* Where the state is kept unless told otherwise; the caller frees it. */
char *journals_default_state_dir(void);

/*
 * The journal of @image to be written: what it says stays, and where there is
 * none it is made, durably.  -EUCLEAN where the file is damaged, or something
 * else.
 */
int journal_share(struct journals *journals, const char *image,
                  struct journal **ret);
/* NULL does nothing. */
void journal_leave(struct journal *journal);
/*
 * Adds a record, durably.  Where there is no room, what does not count any more
 * is left out, and the file becomes longer; -ENOSPC where that does not help.
 * A record that ends something always has its room.
 */
int journal_add(struct journal *journal, enum journal_type type,
                const void *payload, uint32_t len);
/* What it says of the disk's file counts no more once it is left. */
void journal_withdraw(struct journal *journal);
/* Nothing counts any more, if nobody else shares it.  Does not yield. */
void journal_clear(struct journal *journal);

/*
 * That of @image, to be read only, as it was at that moment: -ENOENT where
 * there is none, -EUCLEAN where it is damaged, or something else.
 */
int journal_open(const struct journals *journals, const char *image,
                 struct journal **ret);
/* The file that it is in.  Does not yield. */
const char *journal_file(const struct journal *journal);
/* Does not yield. */
void journal_close(struct journal *journal);
/* The records that count, in order: false after the last.  *@pos begins at 0. */
bool journal_next(const struct journal *journal, uint32_t *pos,
                  struct journal_record *ret);
/*
 * How it calls the file @path: by its name alone where that lies in the folder
 * of the image and the journal, which can be moved then.  Yields.  And back,
 * relative to the image's folder as it was given; that does not yield.  The
 * caller frees either.
 */
char *journal_name(const struct journal *journal, const char *path);
char *journal_path(const struct journal *journal, const char *name);
/* The image's path, without links; the journal's.  Does not yield. */
const char *journal_image(const struct journal *journal);
/* JOURNAL_UUID bytes, the journal's own while it lives.  Does not yield. */
const unsigned char *journal_uuid(const struct journal *journal);
/* Does not yield. */
struct journals *journal_owner(struct journal *journal);
/* What it says of the disk's file; false: nothing.  Does not yield. */
bool journal_word(const struct journal *journal, struct journal_record *ret);

/*
 * Is this -errno of journal_share() one of an image that can have no journal,
 * as there is no place for one?  Does not yield.
 */
bool journal_place_is_unfit(int r);

/* Removes a journal's file, durably; nothing where it is not there. */
int journal_remove(const struct journal *journal);

#endif
