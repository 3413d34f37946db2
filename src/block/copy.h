// SPDX-License-Identifier: BSD-3-Clause
/*
 * Copying one range from one node into another: the only place that does it.
 * The transfer engine runs many of these at once; copy-on-read and NBD's CACHE
 * run one.
 *
 * A source that does not change under it (a layer below with a stable claim)
 * is read without a lock: a slow source never holds up the guest.  Then the
 * target's range is held exclusively while what is still missing is written.
 */
#ifndef SLUICE_BLOCK_COPY_H
#define SLUICE_BLOCK_COPY_H

#include "block/node.h"

enum { COPY_BUFFERS = 32 };

/*
 * Buffers that one piece after the other uses: fresh memory for each costs as
 * much as the copy, by the page.  All have one size; what is idle is bounded.
 */
struct copy_buffers {
    uint64_t size;
    unsigned n;
    void *idle[COPY_BUFFERS]; /* the warmest last */
};

/* Does not yield. */
void copy_buffers_free(struct copy_buffers *buffers);

struct copy {
    struct node *source, *target;
    struct copy_buffers *buffers; /* NULL: memory of its own for each */
    bool fill;       /* only where the target's own layer has nothing */
    /*
     * The source is written meanwhile: it is read with the target's range
     * held, so that copies of one range come one after the other.
     */
    bool lock_first;
    bool known_zero; /* the source reads zero: do not read it */
    /*
     * Compressed clusters stay compressed, where the target's format takes them
     * as they are.
     */
    bool keep_encoded;
    bool *no_clone;  /* set once blocks cannot be shared; NULL: never try */
    unsigned flags;  /* REQ_BACKGROUND */
};

struct copy_result {
    /*
     * Bytes of the target.  What was copied includes the rest of clusters that
     * it did not have yet, unless that reads zero.
     */
    uint64_t copied, cloned, zeroed, skipped;
    bool read_failed; /* an error came from the source, not the target */
};

/*
 * [off, off + len) is the rest of a cluster that a write at @at begins.  Where
 * that has no place in the target yet, the driver writes the rest, too, and it
 * is added to *sum, unless all of it reads zero.  Yields.
 */
int copy_count_rest(struct node *target, uint64_t at, uint64_t off,
                    uint64_t len, uint64_t *sum);
/*
 * With keep_encoded, does the target take the extent at @off as @layer of the
 * source has it, compressed?  Does not yield.
 */
bool copy_keeps_encoded(const struct copy *copy, uint64_t off,
                        const struct extent *ext, const struct node *layer);
/*
 * Copies [off, off + len), at most LIMIT_COPY, cut to the target's size; what
 * lies behind the source's end is zero.  Whole clusters of zeroes are written
 * as such.  Yields; 0 or -errno (-ERESTART where the source must be waited
 * for).
 */
int copy_range(const struct copy *copy, uint64_t off, uint64_t len,
               struct copy_result *ret);

#endif
