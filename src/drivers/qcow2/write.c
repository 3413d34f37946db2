// SPDX-License-Identifier: BSD-3-Clause
/*
 * Changing guest clusters.
 *
 * A write to a cluster that is in place goes to the file under the shared hold
 * that io.c took.  Anything else widens the hold to whole clusters, looks
 * again (somebody may have been faster), and takes fresh clusters: the rest of
 * a partial cluster is read from wherever the range reads now, all of it is
 * written in one request, and then the entries change, in the cache.  If a
 * step fails the fresh clusters go back, and nothing has changed.
 */
#include <errno.h>

#include "drivers/qcow2/qcow2.h"

enum {
    BATCH = 64,           /* clusters that one allocation takes at most */
    PAYLOAD_IOVS = 30,    /* elements of a payload written without a copy */
    SET_BATCH = 64,
    CLONE_BATCH = 1024,
};

/* How many clusters from @off on are, or are not, in place. */
static int
classify(struct qcow2 *q, uint64_t off, uint64_t len, bool *ret_in_place,
         uint64_t *ret_host, uint64_t *ret_len)
{
    uint64_t entries[BATCH];
    uint64_t want = div_up(in_cluster(q, off) + len, q->cluster_size);
    unsigned n, i;
    int r = qcow2_lookup(q, off, entries, (unsigned)min_u64(want, BATCH), &n);

    if (r) {
        return r;
    }
    bool in_place = entry_in_place(q, entries[0]);
    uint64_t host = entries[0] & ENTRY_OFFSET;

    if (in_place && (in_cluster(q, host) || !host)) {
        return -EIO;
    }
    for (i = 1; i < n; i++) {
        if (entry_in_place(q, entries[i]) != in_place ||
            (in_place &&
             (entries[i] & ENTRY_OFFSET) != host + i * q->cluster_size)) {
            break;
        }
    }
    *ret_in_place = in_place;
    *ret_host = host + in_cluster(q, off);
    *ret_len = min_u64(len, i * q->cluster_size - in_cluster(q, off));
    return 0;
}

/* The rest of the clusters around a payload, read from what is there now. */
struct rest {
    unsigned char *buf;         /* holds both */
    unsigned char *head, *tail; /* NULL: need not be written */
    uint64_t head_len, tail_len;
};

/* What the guest range reads; zeroes behind the disk's end. */
static int
read_now(struct qcow2 *q, uint64_t off, unsigned char *buf, uint64_t len,
         unsigned flags)
{
    struct node *node = q->node;
    uint64_t inside = off < node->size ? min_u64(len, node->size - off) : 0;
    struct iovec iov = {buf, inside};

    memset(buf + inside, 0, len - inside);
    return node_read(node, off, sg_one(&iov),
                     (flags & REQ_BACKGROUND) | REQ_QUIET);
}

static int
read_rest(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags,
          struct rest *rest)
{
    uint64_t end = off + len, start = off - in_cluster(q, off);
    uint64_t head = off - start, tail = align_up(end, q->cluster_size) - end;
    /* Within one cluster, one read of all of it is cheaper than two. */
    bool whole = head && tail && head + len + tail == q->cluster_size;
    uint64_t gap = whole ? len : 0;
    int r = 0;

    *rest = (struct rest){.head_len = head, .tail_len = tail};
    if (!head && !tail) {
        return 0;
    }
    rest->buf = try_alloc_aligned(4096, head + gap + tail);
    if (!rest->buf) {
        return -ENOMEM;
    }
    rest->head = head ? rest->buf : NULL;
    rest->tail = tail ? rest->buf + head + gap : NULL;
    if (whole) {
        return read_now(q, start, rest->buf, q->cluster_size, flags);
    }
    if (head) {
        r = read_now(q, start, rest->head, head, flags);
    }
    return r || !tail ? r : read_now(q, end, rest->tail, tail, flags);
}

/* On clusters that read zero already, a rest of zeroes need not be written. */
static void
drop_zero_rest(struct rest *rest)
{
    if (rest->head && bytes_are_zero(rest->head, rest->head_len)) {
        rest->head = NULL;
    }
    if (rest->tail && bytes_are_zero(rest->tail, rest->tail_len)) {
        rest->tail = NULL;
    }
}

static int
write_with_rest(struct qcow2 *q, uint64_t host, struct sg sg, unsigned flags,
                const struct rest *rest)
{
    struct iovec iov[PAYLOAD_IOVS + 2];
    struct sg all = {.iov = iov};
    uint64_t covered;
    int n = 0;

    if (rest->head) {
        iov[n++] = (struct iovec){rest->head, rest->head_len};
    } else {
        host += rest->head_len;
    }
    n += sg_to_iov(sg, iov + n, PAYLOAD_IOVS, &covered);
    if (covered < sg.len) { /* too scattered: in one piece then */
        auto_free unsigned char *flat = try_alloc(sg.len);
        struct iovec one = {flat, sg.len};

        if (!flat) {
            return -ENOMEM;
        }
        sg_copy_to(sg, flat);
        return write_with_rest(q, host - (rest->head ? 0 : rest->head_len),
                               sg_one(&one), flags, rest);
    }
    if (rest->tail) {
        iov[n++] = (struct iovec){rest->tail, rest->tail_len};
    }
    for (int i = 0; i < n; i++) {
        all.len += iov[i].iov_len;
    }
    return node_write(q->node->file->child, host, all, flags, NULL);
}

static int
set_entries(struct qcow2 *q, uint64_t off, uint64_t n, uint64_t host)
{
    int r = 0;

    for (uint64_t i = 0; i < n && !r; i++) {
        r = qcow2_set_entry(q, off + i * q->cluster_size,
                            (host + i * q->cluster_size) | ENTRY_COPIED);
    }
    return r;
}

/*
 * Writes the beginning of a range whose clusters are not in place; their
 * range is held exclusively.
 */
static int
write_fresh(struct qcow2 *q, uint64_t off, struct sg sg, unsigned flags,
            uint64_t *ret_len)
{
    uint64_t first = off - in_cluster(q, off);
    uint64_t want = div_up(off + sg.len - first, q->cluster_size);
    uint64_t host, n, len;
    bool is_zero;
    struct rest rest = {0};
    int r = qcow2_alloc(q, min_u64(want, BATCH), &host, &n, &is_zero);

    if (r) {
        return r;
    }
    len = min_u64(sg.len, first + n * q->cluster_size - off);
    r = read_rest(q, off, len, flags, &rest);
    if (!r && is_zero) {
        drop_zero_rest(&rest);
    }
    if (!r) {
        r = write_with_rest(q, host, sg_slice(sg, 0, len), flags, &rest);
    }
    free(rest.buf);
    if (!r) {
        r = set_entries(q, first, n, host);
    } else {
        qcow2_unalloc(q, host, n); /* where this fails too, they leak */
    }
    *ret_len = len;
    return r;
}

int
qcow2_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
            struct range_hold *hold)
{
    struct qcow2 *q = qcow2_of(node);

    while (sg.len) {
        bool in_place;
        uint64_t host, len;
        int r = classify(q, off, sg.len, &in_place, &host, &len);

        if (!r && in_place) {
            r = node_write(node->file->child, host, sg_slice(sg, 0, len), flags,
                           NULL);
        } else if (!r) {
            if (!range_lock_widen(&node->ranges, hold,
                                  off - in_cluster(q, off),
                                  align_up(off + sg.len, q->cluster_size))) {
                continue;
            }
            r = write_fresh(q, off, sg_slice(sg, 0, len), flags, &len);
        }
        if (r) {
            return r;
        }
        off += len;
        sg = sg_slice(sg, len, sg.len - len);
    }
    return 0;
}

/* Fresh clusters that share another file's blocks, then the entries. */
int
qcow2_clone(struct node *node, uint64_t off, struct node *from,
            uint64_t from_off, uint64_t len, unsigned flags,
            struct range_hold *hold)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t end = off + len;

    range_lock_widen(&node->ranges, hold, off, align_up(end, q->cluster_size));
    while (off < end) {
        uint64_t want = div_up(end - off, q->cluster_size), host, n;
        bool is_zero;
        int r = qcow2_alloc(q, min_u64(want, CLONE_BATCH), &host, &n, &is_zero);

        if (r) {
            return r;
        }
        uint64_t here = min_u64(n * q->cluster_size, end - off);

        /* A cluster that the source ends in would be shared in part. */
        r = is_aligned(here, q->cluster_size)
                ? node_clone(node->file->child, host, from, from_off, here,
                             flags, NULL)
                : -ENOTSUP;
        if (!r) {
            r = set_entries(q, off, n, host);
        } else {
            qcow2_unalloc(q, host, n); /* where this fails too, they leak */
        }
        if (r) {
            return r;
        }
        off += here;
        from_off += here;
    }
    return 0;
}

/* What a cluster's entry becomes. */
typedef uint64_t (*new_entry_fn)(struct qcow2 *q, uint64_t old,
                                 unsigned flags);

/* Changes the entries of whole clusters, each by a function of the old one. */
static int
change_entries(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags,
               struct range_hold *hold, new_entry_fn fn)
{
    uint64_t entries[SET_BATCH];
    uint64_t end = align_up(off + len, q->cluster_size);
    unsigned n;

    range_lock_widen(&q->node->ranges, hold, off, end);
    while (off < end) {
        uint64_t want = (end - off) >> q->cluster_bits;
        int r = qcow2_lookup(q, off, entries,
                             (unsigned)min_u64(want, SET_BATCH), &n);

        for (unsigned i = 0; i < n && !r; i++) {
            uint64_t entry = fn(q, entries[i], flags);

            if (entry != entries[i]) {
                r = qcow2_set_entry(q, off + i * q->cluster_size, entry);
            }
        }
        if (r) {
            return r;
        }
        off += n * q->cluster_size;
    }
    return 0;
}

/* Reads zero; keeps its cluster unless the blocks may be given back. */
static uint64_t
zero_entry(struct qcow2 *q, uint64_t old, unsigned flags)
{
    switch (entry_kind(q, old)) {
    case C_ZERO:
        return old;
    case C_DATA:
        if (!(flags & REQ_MAY_UNMAP) && (old & ENTRY_COPIED)) {
            return old | ENTRY_ZERO;
        }
        break;
    case C_UNALLOCATED:
    case C_COMPRESSED:
        break;
    }
    return ENTRY_ZERO;
}

int
qcow2_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
           struct range_hold *hold)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->version < 3) {
        return -ENOTSUP; /* version 2 has no zero flag */
    }
    return change_entries(q, off, len, flags, hold, zero_entry);
}

/* A discard must not uncover the backing file. */
static uint64_t
discard_entry(struct qcow2 *q, uint64_t old, unsigned flags)
{
    enum cluster_kind kind = entry_kind(q, old);

    if (kind == C_UNALLOCATED) {
        return old;
    }
    if (!q->node->backing && !q->node->header_backing.filename) {
        return 0;
    }
    return q->version >= 3 ? ENTRY_ZERO : old;
}

int
qcow2_discard(struct node *node, uint64_t off, uint64_t len,
              struct range_hold *hold)
{
    struct qcow2 *q = qcow2_of(node);

    q->punch_freed = true; /* io.c lets no discard through without `unmap` */
    return change_entries(q, off, len, 0, hold, discard_entry);
}

static uint64_t
no_entry(struct qcow2 *q, uint64_t old, unsigned flags)
{
    return 0;
}

int
qcow2_unallocate(struct node *node, uint64_t off, uint64_t len,
                 struct range_hold *hold)
{
    qcow2_of(node)->punch_freed = true;
    return change_entries(qcow2_of(node), off, len, 0, hold, no_entry);
}
