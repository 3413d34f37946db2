// SPDX-License-Identifier: BSD-3-Clause
/*
 * The log of changes that are not yet in the image (rule 10; docs/design/
 * shared-log.md): a copy of every dirty piece of a table, in shared memory.
 *
 * Whoever opens the image next, on the same boot, writes them where they
 * belong.  An autoclear bit in the image says that nobody else has written to
 * it since.
 */
#ifndef SLUICE_DRIVERS_META_LOG_H
#define SLUICE_DRIVERS_META_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/*
 * The autoclear bits, in both formats: the highest says that there is a log, the
 * others which one, lest a copy that is put back in place be taken for it: 20
 * bits are one session's, 10 are other ones each time that the log begins to
 * hold something.
 */
#define META_LOG_AUTOCLEAR (0x7fffffffULL << 32)
#define META_LOG_SESSION (0x1fffffULL << 42)

struct node;
struct meta_log;

/*
 * What a daemon that died has left of @image, whose file is open and not yet
 * looked at, is written into it, if the image's @autoclear bits name it; else
 * it is void.  -errno where it cannot be written.  Yields.
 */
int meta_log_recover(struct node *image, uint64_t autoclear, struct err *err);

/* Is there a region of this file?  Changes nothing.  Does not yield. */
enum log_left {
    LOG_NONE,
    LOG_IN_USE,      /* of a process that lives */
    LOG_LEFT_BEHIND, /* of one that died, for who opens the image next */
};
enum log_left meta_log_look(const struct node *file);

/*
 * An empty log for @n_slots slices of @slice_size bytes; NULL where there is no
 * such memory, which is said once.  Does not yield.
 */
struct meta_log *meta_log_new(struct node *image, uint32_t slice_size,
                              uint32_t n_slots);
/* What the image's autoclear bits must be while it is used.  No yield. */
uint64_t meta_log_autoclear(const struct meta_log *log);
/*
 * The next bits of this session, which the image is about to get; until the
 * second one is called, whichever it has names the log.  Neither yields.
 */
uint64_t meta_log_begin_renaming(struct meta_log *log);
void meta_log_end_renaming(struct meta_log *log);
/* @keep: for who opens the image next; else it is done with.  No yield. */
void meta_log_free(struct meta_log *log, bool keep);

/* Where a slice lies in the log. */
struct log_place {
    uint32_t slot, generation; /* 0: nowhere */
};

/*
 * @len bytes at @at of the slice at file offset @off have changed; @data is all
 * of it, in whose @granules (by 512 bytes) they lie.  Does not yield.
 */
void meta_log_change(struct meta_log *log, struct log_place *place,
                     uint64_t off, unsigned phase, const unsigned char *data,
                     uint32_t at, uint32_t len, uint8_t granules);
/* Only these granules of it are not in the image; 0: it is.  No yield. */
void meta_log_keep(struct meta_log *log, struct log_place *place,
                   uint8_t granules);
/* What the image holds is not known any more: it is no log.  No yield. */
void meta_log_give_up(struct meta_log *log);
/* What changes now is not in it; false for no log.  Does not yield. */
bool meta_log_is_partial(const struct meta_log *log);
/* Nothing is dirty: one that was full or given up begins anew.  No yield. */
void meta_log_all_clean(struct meta_log *log);

#endif
