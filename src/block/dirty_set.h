// SPDX-License-Identifier: BSD-3-Clause
/*
 * A set of ranges of a disk that have to be copied (again): one bit a block,
 * in leaves that exist only where a bit is set, so that a disk of any size
 * costs what was written to it.
 *
 * Nothing here yields.
 */
#ifndef SLUICE_BLOCK_DIRTY_SET_H
#define SLUICE_BLOCK_DIRTY_SET_H

#include <stdbool.h>
#include <stdint.h>

struct dirty_set {
    uint64_t size;        /* of the disk, bytes */
    uint32_t granularity; /* bytes a bit stands for; a power of two */
    uint64_t n_dirty;     /* blocks in the set */
    uint64_t n_leaves;
    struct dirty_leaf **leaves;
};

void dirty_set_init(struct dirty_set *set, uint64_t size, uint32_t granularity);
void dirty_set_fini(struct dirty_set *set);

/* Every block that the range touches; what lies behind the end is left out. */
void dirty_set_add(struct dirty_set *set, uint64_t off, uint64_t len);
/* Every block that lies in the range as a whole (or ends the disk there). */
void dirty_set_remove(struct dirty_set *set, uint64_t off, uint64_t len);
/* Whether a block that the range touches is in the set. */
bool dirty_set_any(const struct dirty_set *set, uint64_t off, uint64_t len);
/*
 * The first run of dirty blocks in [off, end), cut to it.  False where there
 * is none.
 */
bool dirty_set_next(const struct dirty_set *set, uint64_t off, uint64_t end,
                    uint64_t *ret_off, uint64_t *ret_len);

/* Bytes in the set; the last block counts as a whole. */
static inline uint64_t
dirty_set_bytes(const struct dirty_set *set)
{
    return set->n_dirty * set->granularity;
}

#endif
