// SPDX-License-Identifier: BSD-3-Clause
/* Invariant: v[i].start < v[i].end < v[i + 1].start. */
#include "base/ranges.h"

#include <string.h>

#include "base/mem.h"

void
ranges_init(struct ranges *r)
{
    *r = (struct ranges){0};
}

void
ranges_fini(struct ranges *r)
{
    free(r->v);
    ranges_init(r);
}

void
ranges_clear(struct ranges *r)
{
    r->n = 0;
    r->bytes = 0;
}

/* Index of the first range whose end lies behind @off. */
static size_t
first_ending_after(const struct ranges *r, uint64_t off)
{
    size_t lo = 0, hi = r->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (r->v[mid].end > off) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return lo;
}

/* Replaces @count ranges at @at by the @n ranges of @with. */
static void
splice(struct ranges *r, size_t at, size_t count, const struct range *with,
       size_t n)
{
    size_t tail = r->n - at - count;

    if (r->n - count + n > r->cap) {
        r->cap = r->cap ? r->cap * 2 : 8;
        r->v = xrealloc(r->v, r->cap * sizeof(r->v[0]));
    }
    memmove(r->v + at + n, r->v + at + count, tail * sizeof(r->v[0]));
    if (n) {
        memcpy(r->v + at, with, n * sizeof(r->v[0]));
    }
    r->n = at + n + tail;
}

void
ranges_add(struct ranges *r, uint64_t off, uint64_t len)
{
    if (!len) {
        return;
    }
    struct range merged = {off, off + len};
    /* A range that ends exactly at @off is joined as well. */
    size_t at = off ? first_ending_after(r, off - 1) : 0;
    size_t count = 0;

    while (at + count < r->n && r->v[at + count].start <= off + len) {
        const struct range *old = &r->v[at + count];

        if (old->start < merged.start) {
            merged.start = old->start;
        }
        if (old->end > merged.end) {
            merged.end = old->end;
        }
        r->bytes -= old->end - old->start;
        count++;
    }
    r->bytes += merged.end - merged.start;
    splice(r, at, count, &merged, 1);
}

void
ranges_remove(struct ranges *r, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    size_t at = first_ending_after(r, off);
    struct range left[2];
    size_t count = 0, n = 0;

    if (!len) {
        return;
    }
    while (at + count < r->n && r->v[at + count].start < end) {
        const struct range *old = &r->v[at + count];

        r->bytes -= old->end - old->start;
        if (old->start < off) {
            left[n++] = (struct range){old->start, off};
        }
        if (old->end > end) {
            left[n++] = (struct range){end, old->end};
        }
        count++;
    }
    for (size_t i = 0; i < n; i++) {
        r->bytes += left[i].end - left[i].start;
    }
    if (count) {
        splice(r, at, count, left, n);
    }
}

bool
ranges_intersects(const struct ranges *r, uint64_t off, uint64_t len)
{
    size_t at = first_ending_after(r, off);

    return len && at < r->n && r->v[at].start < off + len;
}

bool
ranges_contains(const struct ranges *r, uint64_t off, uint64_t len)
{
    size_t at = first_ending_after(r, off);

    return !len ||
           (at < r->n && r->v[at].start <= off && r->v[at].end >= off + len);
}

bool
ranges_next(const struct ranges *r, uint64_t off, struct range *ret)
{
    size_t at = first_ending_after(r, off);

    if (at == r->n) {
        return false;
    }
    *ret = r->v[at];
    if (ret->start < off) {
        ret->start = off;
    }
    return true;
}
