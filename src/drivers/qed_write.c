// SPDX-License-Identifier: BSD-3-Clause
/*
 * Writes, zeroes and discards ("Unallocated L2 tables and data clusters",
 * "Zero data clusters").
 *
 * A write to an allocated cluster goes in place, under the caller's shared
 * hold.  Every other change of a cluster's entry widens the hold to whole
 * clusters, alone, and looks again, because somebody may have changed it while
 * the hold was let go.  Data is written to fresh clusters, whole, before the
 * entries that name them change in the cache.
 *
 * Zeroes.  QED cannot record free clusters, so that a cluster which is given
 * up is lost to every later run unless this one uses it again.  Therefore a
 * zero request keeps an allocated cluster and zeroes it where it is, as a hole
 * where the blocks may go (REQ_MAY_UNMAP); only where the file cannot do that
 * without writing zeroes out, the entry changes instead.
 */
#include <errno.h>

#include "drivers/qed.h"

enum {
    INLINE_FILL = 256 * KIB, /* written in one request with the payload */
    FILL_CHUNK = 1 * MIB,
    FILL_IOVS = 32,
};

/* A write to fresh clusters. */
struct fresh {
    struct qed *q;
    uint64_t start, host, len; /* whole clusters: guest and file offset */
    uint64_t head, tail;       /* bytes before and behind the payload */
    struct sg payload;
    unsigned flags;
    bool zero; /* the range reads zero now */
};

/* What the guest range reads now; zero behind the end of the disk. */
static int
read_now(struct fresh *f, uint64_t off, unsigned char *buf, uint64_t len)
{
    struct node *node = f->q->node;
    uint64_t here = off < node->size ? min_u64(len, node->size - off) : 0;
    struct iovec iov = {buf, here};

    memset(buf + here, 0, len - here);
    return here ? node_read(node, off, sg_one(&iov),
                            (f->flags & REQ_BACKGROUND) | REQ_QUIET)
                : 0;
}

static int
write_file(struct fresh *f, uint64_t at, struct sg sg)
{
    return node_write(qed_file(f->q), f->host + at, sg, f->flags, NULL);
}

/* Fills [at, at + len) of the clusters with what it reads now. */
static int
fill(struct fresh *f, uint64_t at, uint64_t len)
{
    if (f->zero) {
        return len ? node_zero(qed_file(f->q), f->host + at, len,
                               f->flags & REQ_BACKGROUND, NULL)
                   : 0;
    }
    auto_free unsigned char *buf =
        try_alloc_aligned(4096, min_u64(max_u64(len, 1), FILL_CHUNK));
    int r = buf ? 0 : -ENOMEM;

    while (!r && len) {
        struct iovec iov = {buf, min_u64(len, FILL_CHUNK)};

        r = read_now(f, f->start + at, buf, iov.iov_len);
        if (!r) {
            r = write_file(f, at, sg_one(&iov));
        }
        at += iov.iov_len;
        len -= iov.iov_len;
    }
    return r;
}

static int
write_in_parts(struct fresh *f)
{
    int r = fill(f, 0, f->head);

    if (!r) {
        r = write_file(f, f->head, f->payload);
    }
    return r ? r : fill(f, f->len - f->tail, f->tail);
}

/* Head, payload and tail in one write; -E2BIG where they need several. */
static int
write_at_once(struct fresh *f)
{
    struct iovec iov[FILL_IOVS];
    uint64_t got;
    int n = sg_to_iov(f->payload, iov + 1, FILL_IOVS - 2, &got);

    if (got < f->payload.len || f->head + f->tail > INLINE_FILL) {
        return -E2BIG;
    }
    auto_free unsigned char *buf =
        try_alloc_aligned(4096, max_u64(f->head + f->tail, 1));

    if (!buf) {
        return -ENOMEM;
    }
    int r = read_now(f, f->start, buf, f->head);

    if (!r) {
        r = read_now(f, f->start + f->len - f->tail, buf + f->head, f->tail);
    }
    iov[0] = (struct iovec){buf, f->head};
    iov[n + 1] = (struct iovec){buf + f->head, f->tail};
    return r ? r : write_file(f, 0, (struct sg){.iov = iov, .len = f->len});
}

/* The beginning of a write that lies in clusters which nothing backs yet. */
static int
write_fresh(struct qed *q, uint64_t off, struct sg sg, unsigned flags,
            bool zero, uint64_t *ret_len)
{
    struct fresh f = {.q = q, .flags = flags, .zero = zero};
    uint64_t n;

    f.head = qed_in_cluster(q, off);
    f.start = off - f.head;
    int r = qed_alloc(q, div_up(f.head + sg.len, q->cluster_size), &f.host, &n);

    if (r) {
        return r;
    }
    f.len = n << q->cluster_bits;
    f.payload = sg_slice(sg, 0, min_u64(sg.len, f.len - f.head));
    f.tail = f.len - f.head - f.payload.len;
    r = write_at_once(&f);
    if (r == -E2BIG) {
        r = write_in_parts(&f);
    }
    if (!r) {
        r = qed_set_entries(q, f.start, n, f.host);
    }
    if (r) {
        qed_give_back(q, f.host, f.len);
    }
    *ret_len = f.payload.len;
    return r;
}

/* Alone on the whole clusters of the range; false: look again. */
static bool
widen(struct qed *q, struct range_hold *hold, uint64_t off, uint64_t len)
{
    return range_lock_widen(&q->node->ranges, hold,
                            align_down(off, q->cluster_size),
                            align_up(off + len, q->cluster_size));
}

int
qed_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
          struct range_hold *hold)
{
    struct qed *q = qed_of(node);

    while (sg.len) {
        struct extent ext;
        uint64_t len = 0;
        int r = qed_map(node, off, sg.len, &ext);

        if (!r && ext.kind == EXTENT_DATA) {
            len = ext.len;
            r = node_write(qed_file(q), ext.host_off, sg_slice(sg, 0, len),
                           flags, NULL);
        } else if (!r && widen(q, hold, off, sg.len)) {
            r = write_fresh(q, off, sg_slice(sg, 0, ext.len), flags,
                            ext.kind == EXTENT_ZERO || !node->backing, &len);
        }
        if (r) {
            return r;
        }
        off += len;
        sg = sg_slice(sg, len, sg.len - len);
    }
    return 0;
}

/* Clusters that nothing backs yet, then their entries. */
static int
clone_fresh(struct qed *q, uint64_t off, struct node *from, uint64_t from_off,
            unsigned flags, uint64_t *len)
{
    uint64_t host, n;
    int r = qed_alloc(q, *len >> q->cluster_bits, &host, &n);

    if (r) {
        return r;
    }
    *len = n << q->cluster_bits;
    r = node_clone(qed_file(q), host, from, from_off, *len, flags, NULL);
    r = r ? r : qed_set_entries(q, off, n, host);
    if (r) {
        qed_give_back(q, host, *len);
    }
    return r;
}

/* Allocated clusters share the blocks where they are. */
int
qed_clone(struct node *node, uint64_t off, struct node *from,
          uint64_t from_off, uint64_t len, unsigned flags,
          struct range_hold *hold)
{
    struct qed *q = qed_of(node);

    /* A cluster that the disk ends in would be shared in part. */
    if (!is_aligned(len, q->cluster_size)) {
        return -ENOTSUP;
    }
    widen(q, hold, off, len);
    while (len) {
        struct extent ext;
        int r = qed_map(node, off, len, &ext);

        if (!r && ext.kind == EXTENT_DATA) {
            r = node_clone(qed_file(q), ext.host_off, from, from_off, ext.len,
                           flags, NULL);
        } else if (!r) {
            r = clone_fresh(q, off, from, from_off, flags, &ext.len);
        }
        if (r) {
            return r;
        }
        off += ext.len;
        from_off += ext.len;
        len -= ext.len;
    }
    return 0;
}

/* Entries of the whole clusters of an extent; the disk may end in the last. */
static int
set_extent(struct qed *q, uint64_t off, uint64_t len, uint64_t entry)
{
    return qed_set_entries(q, off, div_up(len, q->cluster_size), entry);
}

/* Zero now, and whatever the image is opened with later. */
static bool
reads_zero(const struct qed *q, const struct extent *ext)
{
    return ext->kind == EXTENT_ZERO ||
           (ext->kind == EXTENT_UNALLOCATED && !qed_has_backing(q));
}

static int
zero_extent(struct qed *q, uint64_t off, const struct extent *ext,
            unsigned flags)
{
    int r = -ENOTSUP;

    if (ext->kind == EXTENT_DATA) {
        r = node_zero(qed_file(q), ext->host_off, ext->len,
                      (flags & (REQ_BACKGROUND | REQ_MAY_UNMAP)) |
                          REQ_NO_FALLBACK,
                      NULL);
    }
    return r == -ENOTSUP ? set_extent(q, off, ext->len, QED_ZERO) : r;
}

int
qed_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
         struct range_hold *hold)
{
    struct qed *q = qed_of(node);

    while (len) {
        struct extent ext;
        int r = qed_map(node, off, len, &ext);

        if (!r && !reads_zero(q, &ext)) {
            if (!widen(q, hold, off, len)) {
                continue;
            }
            r = zero_extent(q, off, &ext, flags);
        }
        if (r) {
            return r;
        }
        off += ext.len;
        len -= ext.len;
    }
    return 0;
}

/*
 * The entry stays, for the format has no place to say that a cluster is free;
 * the file gives the blocks back and reads zero there, or does nothing.
 */
int
qed_discard(struct node *node, uint64_t off, uint64_t len,
            struct range_hold *hold)
{
    struct qed *q = qed_of(node);

    while (len) {
        struct extent ext;
        int r = qed_map(node, off, len, &ext);

        if (!r && ext.kind == EXTENT_DATA) {
            r = node_discard(qed_file(q), ext.host_off,
                             align_up(ext.len, q->cluster_size));
        }
        if (r) {
            return r;
        }
        off += ext.len;
        len -= ext.len;
    }
    return 0;
}

int
qed_unallocate(struct node *node, uint64_t off, uint64_t len,
               struct range_hold *hold)
{
    struct qed *q = qed_of(node);

    q->punch_freed = true;
    widen(q, hold, off, len);
    while (len) {
        struct extent ext;
        int r = qed_map(node, off, len, &ext);

        if (!r && ext.kind != EXTENT_UNALLOCATED) {
            r = set_extent(q, off, ext.len, QED_UNALLOCATED);
        }
        if (r) {
            return r;
        }
        off += ext.len;
        len -= ext.len;
    }
    return 0;
}
