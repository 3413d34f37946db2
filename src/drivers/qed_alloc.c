// SPDX-License-Identifier: BSD-3-Clause
/*
 * Free clusters of a QED image.
 *
 * The format records none: a cluster is in use when a table names it.  New
 * ones come from the end of the file.  What this run stopped naming is kept in
 * a set and taken first; it got there only after the table that named it was
 * durable and everyone who had looked it up was done (meta_free_later()).
 * What is still free at close is cut off where it lies at the end of the file;
 * the rest stays behind as a leak, which is harmless.
 *
 * Everything is in memory and nothing yields in between, so there is no lock.
 */
#include <errno.h>

#include "block/limits.h"
#include "drivers/qed.h"

/* Ranges that are looked at for a fit, so that fragments cost no time. */
enum { FIT_TRIES = 64 };

static int
take_at_end(struct qed *q, uint64_t n, uint64_t *ret_off)
{
    uint64_t len, end;

    if (!mul_ok(n, q->cluster_size, &len) || !add_ok(q->end, len, &end) ||
        end > LIMIT_IMAGE_SIZE) {
        return -EFBIG;
    }
    *ret_off = q->end;
    q->end = end;
    return 0;
}

/* The first free range that holds @len bytes, or the largest one tried. */
static const struct range *
find_fit(const struct qed *q, uint64_t len)
{
    const struct range *best = NULL;

    for (size_t i = 0; i < q->free.n && i < FIT_TRIES; i++) {
        const struct range *r = &q->free.v[i];

        if (!best || r->end - r->start > best->end - best->start) {
            best = r;
        }
        if (r->end - r->start >= len) {
            break;
        }
    }
    return best;
}

int
qed_alloc(struct qed *q, uint64_t n, uint64_t *ret_off, uint64_t *ret_n)
{
    const struct range *fit = find_fit(q, n << q->cluster_bits);

    if (!fit) {
        *ret_n = n;
        return take_at_end(q, n, ret_off);
    }
    uint64_t off = fit->start;

    *ret_n = min_u64(n, (fit->end - fit->start) >> q->cluster_bits);
    *ret_off = off;
    ranges_remove(&q->free, off, *ret_n << q->cluster_bits);
    return 0;
}

int
qed_alloc_exact(struct qed *q, uint64_t n, uint64_t *ret_off)
{
    uint64_t len = n << q->cluster_bits;
    const struct range *fit = find_fit(q, len);

    if (!fit || fit->end - fit->start < len) {
        return take_at_end(q, n, ret_off);
    }
    *ret_off = fit->start;
    ranges_remove(&q->free, *ret_off, len);
    return 0;
}

void
qed_give_back(struct qed *q, uint64_t off, uint64_t len)
{
    ranges_add(&q->free, off, len);
}

void
qed_freed(struct node *node, uint64_t off, uint64_t len)
{
    struct qed *q = qed_of(node);

    if (q->punch_freed) { /* before somebody can take it */
        node_discard(qed_file(q), off, len);
    }
    qed_give_back(q, off, len);
}

int
qed_cut_tail(struct qed *q)
{
    struct node *file = qed_file(q);
    const struct range *last = q->free.n ? &q->free.v[q->free.n - 1] : NULL;

    if (!last || last->end != q->end) {
        return 0;
    }
    q->end = last->start;
    ranges_remove(&q->free, last->start, last->end - last->start);
    return file->size > q->end ? node_truncate(file, q->end, NULL) : 0;
}
