// SPDX-License-Identifier: BSD-3-Clause
/*
 * An array of leaves of LEAF_BITS bits.  A leaf is made with its first bit and
 * freed with its last, so a search skips what is clean by the leaf: 128 MiB a
 * step with blocks of 4 KiB.
 */
#include "block/dirty_set.h"

#include <assert.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"

enum { LEAF_BITS = 32768, WORD_BITS = 64 };

struct dirty_leaf {
    uint32_t n; /* bits set, never 0 */
    uint64_t words[LEAF_BITS / WORD_BITS];
};

void
dirty_set_init(struct dirty_set *set, uint64_t size, uint32_t granularity)
{
    assert(is_pow2(granularity));
    *set = (struct dirty_set){.size = size, .granularity = granularity};
    set->n_leaves = div_up(div_up(size, granularity), LEAF_BITS);
    set->leaves = xzalloc((set->n_leaves + 1) * sizeof(struct dirty_leaf *));
}

void
dirty_set_fini(struct dirty_set *set)
{
    for (uint64_t i = 0; i < set->n_leaves; i++) {
        free(set->leaves[i]);
    }
    free(set->leaves);
    *set = (struct dirty_set){0};
}

/* Sets or clears the bits [first, last) of one word of a leaf. */
static void
change_word(struct dirty_set *set, uint64_t i_leaf, unsigned word,
            uint64_t mask, bool dirty)
{
    struct dirty_leaf *leaf = set->leaves[i_leaf];
    uint64_t old = leaf->words[word];
    uint64_t now = dirty ? old | mask : old & ~mask;
    int by = __builtin_popcountll(now) - __builtin_popcountll(old);

    leaf->words[word] = now;
    leaf->n += (uint32_t)by;
    set->n_dirty += (uint64_t)(int64_t)by;
    if (!leaf->n) {
        free(leaf);
        set->leaves[i_leaf] = NULL;
    }
}

static void
change(struct dirty_set *set, uint64_t first, uint64_t last, bool dirty)
{
    while (first < last) {
        uint64_t i_leaf = first / LEAF_BITS;
        unsigned word = (unsigned)(first % LEAF_BITS / WORD_BITS);
        unsigned bit = (unsigned)(first % WORD_BITS);
        uint64_t n = min_u64(WORD_BITS - bit, last - first);
        uint64_t mask = (n == WORD_BITS ? ~0ULL : (1ULL << n) - 1) << bit;

        if (!set->leaves[i_leaf]) {
            if (!dirty) {
                first = (i_leaf + 1) * LEAF_BITS;
                continue;
            }
            set->leaves[i_leaf] = xzalloc(sizeof(struct dirty_leaf));
        }
        change_word(set, i_leaf, word, mask, dirty);
        first += n;
    }
}

void
dirty_set_add(struct dirty_set *set, uint64_t off, uint64_t len)
{
    if (off < set->size && len) {
        uint64_t end = off + min_u64(len, set->size - off);

        change(set, off / set->granularity, div_up(end, set->granularity),
               true);
    }
}

void
dirty_set_remove(struct dirty_set *set, uint64_t off, uint64_t len)
{
    if (off < set->size) {
        uint64_t end = off + min_u64(len, set->size - off);
        uint64_t last = end == set->size ? div_up(end, set->granularity)
                                         : end / set->granularity;

        change(set, div_up(off, set->granularity), last, false);
    }
}

/* The first block at or behind @i whose bit is @dirty, at most @end. */
static uint64_t
find(const struct dirty_set *set, uint64_t i, uint64_t end, bool dirty)
{
    while (i < end) {
        const struct dirty_leaf *leaf = set->leaves[i / LEAF_BITS];

        if (!leaf) {
            if (!dirty) {
                return i;
            }
            i = (i / LEAF_BITS + 1) * LEAF_BITS;
            continue;
        }
        uint64_t word = leaf->words[i % LEAF_BITS / WORD_BITS];

        word = (dirty ? word : ~word) >> (i % WORD_BITS);
        if (word) {
            i += (uint64_t)__builtin_ctzll(word);
            break;
        }
        i = align_down(i, WORD_BITS) + WORD_BITS;
    }
    return min_u64(i, end);
}

bool
dirty_set_next(const struct dirty_set *set, uint64_t off, uint64_t end,
               uint64_t *ret_off, uint64_t *ret_len)
{
    end = min_u64(end, set->size);
    if (off >= end || !set->n_dirty) {
        return false;
    }
    uint64_t last = div_up(end, set->granularity);
    uint64_t from = find(set, off / set->granularity, last, true);

    if (from >= last) {
        return false;
    }
    uint64_t to = find(set, from, last, false);

    *ret_off = max_u64(off, from * set->granularity);
    *ret_len = min_u64(end, to * set->granularity) - *ret_off;
    return true;
}

bool
dirty_set_any(const struct dirty_set *set, uint64_t off, uint64_t len)
{
    uint64_t at, n;

    return dirty_set_next(set, off, off + len, &at, &n);
}
