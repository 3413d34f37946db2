// SPDX-License-Identifier: BSD-3-Clause
/*
 * A hash table with linear probing, at most half full.  Images choose how many
 * files there are (up to LIMIT_CHAIN_DEPTH) but not their inode numbers.
 */
#include "block/file_set.h"

#include <stdlib.h>

#include "base/mem.h"

enum { FIRST_SIZE = 16 };

static bool
is_known(struct file_id id)
{
    return id.dev || id.ino;
}

/* The slot that holds @id, or the free one where it belongs. */
static struct file_id *
find(const struct file_set *set, struct file_id id)
{
    uint64_t hash = (id.ino ^ id.dev << 32) * 0x9e3779b97f4a7c15ULL;
    uint32_t mask = set->size - 1, i = (uint32_t)(hash >> 32) & mask;

    while (is_known(set->slots[i]) &&
           (set->slots[i].dev != id.dev || set->slots[i].ino != id.ino)) {
        i = (i + 1) & mask;
    }
    return &set->slots[i];
}

static void
grow(struct file_set *set)
{
    struct file_set old = *set;

    set->size = old.size ? old.size * 2 : FIRST_SIZE;
    set->slots = xzalloc(set->size * sizeof(*set->slots));
    for (uint32_t i = 0; i < old.size; i++) {
        if (is_known(old.slots[i])) {
            *find(set, old.slots[i]) = old.slots[i];
        }
    }
    file_set_fini(&old);
}

void
file_set_fini(struct file_set *set)
{
    free(set->slots);
}

bool
file_set_has(const struct file_set *set, struct file_id id)
{
    return is_known(id) && set->size && is_known(*find(set, id));
}

void
file_set_add(struct file_set *set, struct file_id id)
{
    if (!is_known(id) || file_set_has(set, id)) {
        return;
    }
    if (set->n >= set->size / 2) {
        grow(set);
    }
    *find(set, id) = id;
    set->n++;
}
