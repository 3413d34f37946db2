// SPDX-License-Identifier: BSD-3-Clause
/*
 * A set of byte ranges, kept sorted and merged: what is missing, what is
 * dirty, what was seen.  Exact to the byte.  A look-up is a binary search; an
 * insertion in the middle moves the ranges behind it.
 */
#ifndef SLUICE_BASE_RANGES_H
#define SLUICE_BASE_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct range {
    uint64_t start, end; /* [start, end) */
};

struct ranges {
    struct range *v;
    size_t n, cap;
    uint64_t bytes; /* sum of all lengths */
};

void ranges_init(struct ranges *r);
void ranges_fini(struct ranges *r);
void ranges_clear(struct ranges *r);
/* Empty ranges are ignored; off + len must not wrap. */
void ranges_add(struct ranges *r, uint64_t off, uint64_t len);
void ranges_remove(struct ranges *r, uint64_t off, uint64_t len);
/* True where some byte of [off, off + len) is in the set. */
bool ranges_intersects(const struct ranges *r, uint64_t off, uint64_t len);
/* True where every byte of [off, off + len) is in the set. */
bool ranges_contains(const struct ranges *r, uint64_t off, uint64_t len);
/*
 * The first part of the set at or behind @off: false where there is none, else
 * *ret is that part, cut to begin at @off or later.
 */
bool ranges_next(const struct ranges *r, uint64_t off, struct range *ret);

static inline bool
ranges_empty(const struct ranges *r)
{
    return r->n == 0;
}

#endif
