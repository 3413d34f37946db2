// SPDX-License-Identifier: BSD-3-Clause
/*
 * Free clusters ("Host cluster management" in the specification).
 *
 * A count changes in the cache; the order on disk is the cache's matter (see
 * docs/design/qcow2-ordering.md).  Everything here runs under `alloc_lock`.
 *
 * A refcount block that is missing is made in the first cluster of the range
 * that it counts, which is free since nothing counts it.  So a block counts
 * itself, and is durable before the refcount table names it.  A refcount table
 * that is full is replaced by a larger one the same way.
 *
 * Compressed clusters are packed: `packed` is where the next one may go in a
 * cluster that counts those before it.  It may reach into the following cluster
 * if that is free.  A cluster whose last one goes takes nothing more in.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/limits.h"
#include "drivers/qcow2/qcow2.h"

static struct node *
file_of(struct qcow2 *q)
{
    return q->node->file->child;
}

/* Counts of any width, from 1 to 64 bits. */

static uint64_t
get_count(const unsigned char *block, uint64_t i, unsigned order)
{
    switch (order) {
    case 3:
        return block[i];
    case 4:
        return ld_be16(block + i * 2);
    case 5:
        return ld_be32(block + i * 4);
    case 6:
        return ld_be64(block + i * 8);
    default: { /* bit fields, from the least significant bit on */
        unsigned bits = 1u << order, per_byte = 8 / bits;

        return block[i / per_byte] >> (i % per_byte * bits) &
               ((1u << bits) - 1);
    }
    }
}

/* The bytes that hold count @i once it is @v: *ret_at, *ret_len of them. */
static void
encode_count(const unsigned char *block, uint64_t i, unsigned order, uint64_t v,
             unsigned char *bytes, uint64_t *ret_at, uint32_t *ret_len)
{
    if (order < 3) {
        unsigned bits = 1u << order, per_byte = 8 / bits;
        unsigned shift = (unsigned)(i % per_byte) * bits;
        unsigned mask = ((1u << bits) - 1) << shift;

        *ret_at = i / per_byte;
        *ret_len = 1;
        bytes[0] = (unsigned char)((block[*ret_at] & ~mask) | v << shift);
        return;
    }
    *ret_len = 1u << (order - 3);
    *ret_at = i * *ret_len;
    st_be64(bytes, v << (64 - 8 * *ret_len));
}

/* The offset of the block that counts a cluster; 0 where there is none. */
static int
block_of(struct qcow2 *q, uint64_t index, uint64_t *ret)
{
    uint64_t i = index >> q->block_bits;
    struct slice *s;

    *ret = 0;
    if (i >= q->reftable_entries) {
        return 0;
    }
    uint64_t at = q->reftable_off + i * 8;
    int r = meta_get(q->meta, at, 0, &s);

    if (r) {
        return r;
    }
    *ret = ld_be64(slice_at(s, at)) & ENTRY_OFFSET;
    meta_put(q->meta, s);
    return in_cluster(q, *ret) || *ret >= file_of(q)->size ? *ret ? -EIO : 0
                                                           : 0;
}

/* The byte range of a count's slice: counts never cross slices. */
static uint64_t
count_byte(const struct qcow2 *q, uint64_t index)
{
    uint64_t i = index & ((1ULL << q->block_bits) - 1);

    return (i << q->refcount_order) / 8;
}

static int
count_slice(struct qcow2 *q, uint64_t block, uint64_t index, struct slice **ret)
{
    return meta_get(q->meta, block + count_byte(q, index), 0, ret);
}

/* Index of a count within its slice, and the slice's beginning. */
static const unsigned char *
slice_base(struct qcow2 *q, struct slice *s, uint64_t block, uint64_t index,
           uint64_t *ret_i, uint64_t *ret_off)
{
    uint64_t slice_size = min_u64(q->cluster_size, 4096);
    uint64_t i = index & ((1ULL << q->block_bits) - 1);

    *ret_off = align_down(block + count_byte(q, index), slice_size);
    *ret_i = i - ((*ret_off - block) * 8 >> q->refcount_order);
    return slice_at(s, *ret_off);
}

int
qcow2_refcount(struct qcow2 *q, uint64_t index, uint64_t *ret)
{
    uint64_t block, i, off;
    struct slice *s;
    int r = block_of(q, index, &block);

    *ret = 0;
    if (r || !block) {
        return r;
    }
    r = count_slice(q, block, index, &s);
    if (r) {
        return r;
    }
    const unsigned char *base = slice_base(q, s, block, index, &i, &off);

    *ret = get_count(base, i, q->refcount_order);
    meta_put(q->meta, s);
    return 0;
}

/* Sets a count in a block that exists. */
static int
put_count(struct qcow2 *q, uint64_t block, uint64_t index, uint64_t v)
{
    unsigned char bytes[8];
    uint64_t i, off, at;
    uint32_t len;
    struct slice *s;
    int r = count_slice(q, block, index, &s);

    if (r) {
        return r;
    }
    const unsigned char *base = slice_base(q, s, block, index, &i, &off);

    encode_count(base, i, q->refcount_order, v, bytes, &at, &len);
    meta_change(q->meta, s, off + at, bytes, len, META_COUNTS);
    meta_put(q->meta, s);
    return 0;
}

/* A larger refcount table, behind everything that the old one covers. */
static int
grow_reftable(struct qcow2 *q)
{
    uint64_t per_block = 1ULL << q->block_bits;
    uint64_t start = q->reftable_entries << q->block_bits;
    uint64_t old_clusters = q->reftable_entries * 8 / q->cluster_size;
    uint64_t clusters = old_clusters + old_clusters / 2 + 1;
    uint64_t blocks = 1;
    struct node *file = file_of(q);

    /* The new area holds the blocks that count it, then the table. */
    while (blocks * per_block < blocks + clusters) {
        blocks++;
    }
    uint64_t bytes = clusters * q->cluster_size;

    if (bytes > LIMIT_TABLE_BYTES) {
        return -EFBIG;
    }
    /* What the old table says must be on disk before it is copied. */
    int r = meta_commit(q->meta);
    unsigned char *table = try_alloc(bytes);
    unsigned char *counts = try_alloc(blocks * q->cluster_size);

    if (!r && (!table || !counts)) {
        r = -ENOMEM;
    }
    if (!r) {
        memset(table, 0, bytes);
        memset(counts, 0, blocks * q->cluster_size);
        r = node_read_buf(file, q->reftable_off, table,
                          q->reftable_entries * 8);
    }
    if (!r) {
        for (uint64_t i = 0; i < blocks; i++) {
            st_be64(table + (q->reftable_entries + i) * 8,
                    (start + i) << q->cluster_bits);
        }
        for (uint64_t i = 0; i < blocks + clusters; i++) {
            unsigned char v[8];
            uint64_t at;
            uint32_t len;
            unsigned char *block = counts + (i >> q->block_bits) *
                                                q->cluster_size;

            encode_count(block, i & (per_block - 1), q->refcount_order, 1, v,
                         &at, &len);
            memcpy(block + at, v, len);
        }
        r = node_write_buf(file, start << q->cluster_bits, counts,
                           blocks * q->cluster_size);
    }
    uint64_t off = (start + blocks) << q->cluster_bits;

    if (!r) {
        r = node_write_buf(file, off, table, bytes);
    }
    free(table);
    free(counts);
    if (!r) {
        r = node_flush(file);
    }
    if (!r) {
        struct header_field f[] = {{H_REFTABLE_OFF, 8, off},
                                   {H_REFTABLE_CLUSTERS, 4, clusters}};

        r = qcow2_update_header(q, f, 2);
    }
    if (r) {
        return r;
    }
    meta_forget(q->meta, start << q->cluster_bits,
                (blocks + clusters) << q->cluster_bits);
    meta_free_later(q->meta, q->reftable_off, old_clusters << q->cluster_bits);
    q->reftable_off = off;
    q->reftable_entries = bytes / 8;
    q->virgin = max_u64(q->virgin, start + blocks + clusters);
    return 0;
}

/* Makes the block that counts @index, in the first cluster it counts. */
static int
make_block(struct qcow2 *q, uint64_t index, uint64_t *ret)
{
    uint64_t first = align_down(index, 1ULL << q->block_bits);
    uint64_t off = first << q->cluster_bits;
    uint64_t at;
    unsigned char entry[8];
    struct slice *s;
    int r = 0;

    while (!r && index >> q->block_bits >= q->reftable_entries) {
        r = grow_reftable(q);
    }
    if (r) {
        return r;
    }
    r = block_of(q, index, ret);
    if (r || *ret) {
        return r; /* growing the table made it */
    }
    meta_forget(q->meta, off, q->cluster_size);
    r = node_zero(file_of(q), off, q->cluster_size, 0, NULL);
    if (!r) {
        r = put_count(q, off, first, 1);
    }
    at = q->reftable_off + (index >> q->block_bits) * 8;
    if (!r) {
        r = meta_get(q->meta, at, 0, &s);
    }
    if (r) {
        return r;
    }
    st_be64(entry, off);
    meta_change(q->meta, s, at, entry, 8, META_LINKS);
    meta_put(q->meta, s);
    q->virgin = max_u64(q->virgin, first + 1);
    *ret = off;
    return 0;
}

/* The first free cluster from `hint` on, and how many follow, at most @max. */
static int
find_free(struct qcow2 *q, uint64_t max, uint64_t *ret_index, uint64_t *ret_n)
{
    uint64_t index = q->hint, n = 0;

    for (;;) {
        uint64_t count, block;
        int r = block_of(q, index, &block);

        if (!r && !block) {
            if (n) {
                break; /* a run stays within one block */
            }
            r = make_block(q, index, &block);
            if (!r) {
                continue;
            }
        }
        if (!r) {
            r = qcow2_refcount(q, index + n, &count);
        }
        if (r) {
            return r;
        }
        if (count) {
            if (n) {
                break;
            }
            index++;
            continue;
        }
        if (n && (index + n) >> q->block_bits != index >> q->block_bits) {
            break;
        }
        if (++n == max) {
            break;
        }
    }
    *ret_index = index;
    *ret_n = n;
    return 0;
}

static int
take(struct qcow2 *q, uint64_t index, uint64_t n)
{
    uint64_t block;
    int r = block_of(q, index, &block);

    for (uint64_t i = 0; i < n && !r; i++) {
        r = put_count(q, block, index + i, 1);
    }
    return r;
}

int
qcow2_alloc(struct qcow2 *q, uint64_t n, uint64_t *ret_off, uint64_t *ret_n,
            bool *ret_zero)
{
    uint64_t index;

    comutex_lock(&q->alloc_lock);
    int r = find_free(q, n, &index, ret_n);

    if (!r) {
        r = take(q, index, *ret_n);
    }
    if (!r) {
        *ret_off = index << q->cluster_bits;
        *ret_zero = index >= q->virgin;
        q->virgin = max_u64(q->virgin, index + *ret_n);
        q->hint = index + *ret_n;
    }
    comutex_unlock(&q->alloc_lock);
    return r;
}

int
qcow2_alloc_exact(struct qcow2 *q, uint64_t n, uint64_t *ret_off)
{
    uint64_t index = 0, got = 0;
    int r = 0;

    comutex_lock(&q->alloc_lock);
    uint64_t hint = q->hint;

    while (!r && got < n) {
        r = find_free(q, n, &index, &got);
        if (!r && got < n) {
            q->hint = index + got;
        }
    }
    if (!r) {
        r = take(q, index, n);
    }
    if (!r) {
        *ret_off = index << q->cluster_bits;
        q->virgin = max_u64(q->virgin, index + n);
        q->hint = hint == index ? index + n : hint;
    } else {
        q->hint = hint;
    }
    comutex_unlock(&q->alloc_lock);
    if (!r) {
        meta_forget(q->meta, *ret_off, n << q->cluster_bits);
    }
    return r;
}

int
qcow2_set_refcount(struct qcow2 *q, uint64_t index, uint64_t count)
{
    uint64_t block;
    int r = block_of(q, index, &block);

    if (!r && !block) {
        r = count ? make_block(q, index, &block) : 0;
    }
    return r || !block ? r : put_count(q, block, index, count);
}

static bool
is_packed(const struct qcow2 *q, uint64_t index)
{
    return q->packed && q->packed >> q->cluster_bits == index;
}

/* What is left of the cluster that is being packed; 0: take another. */
static int
packed_rest(struct qcow2 *q, uint64_t *ret, uint64_t *ret_count)
{
    uint64_t most = q->refcount_order == 6
                        ? UINT64_MAX
                        : (1ULL << (1u << q->refcount_order)) - 1;

    *ret = 0;
    if (!q->packed) {
        return 0;
    }
    int r = qcow2_refcount(q, q->packed >> q->cluster_bits, ret_count);

    if (!r && *ret_count && *ret_count < most) {
        *ret = q->cluster_size - in_cluster(q, q->packed);
    }
    return r;
}

static int
pack(struct qcow2 *q, uint64_t len, uint64_t *ret_off)
{
    uint64_t rest, count = 0, index = 0, n = 0, block, at = q->packed;
    int r = packed_rest(q, &rest, &count);

    if (!r && rest < len) {
        r = find_free(q, 1, &index, &n);
        r = r ? r : take(q, index, 1);
        if (r) {
            return r;
        }
        q->virgin = max_u64(q->virgin, index + 1);
        q->hint = index + 1;
        if (!rest || at + rest != index << q->cluster_bits) {
            at = index << q->cluster_bits;
            rest = 0;
        }
    }
    if (!r && rest) {
        r = block_of(q, at >> q->cluster_bits, &block);
        r = r ? r : put_count(q, block, at >> q->cluster_bits, count + 1);
    }
    if (r) {
        return r; /* where one was taken, it leaks */
    }
    *ret_off = at;
    q->packed = in_cluster(q, at + len) ? at + len : 0;
    return 0;
}

int
qcow2_alloc_packed(struct qcow2 *q, uint64_t len, uint64_t *ret_off)
{
    comutex_lock(&q->alloc_lock);
    int r = pack(q, len, ret_off);

    comutex_unlock(&q->alloc_lock);
    return r;
}

/* Lowers counts; false in *ret_free where a cluster is still in use. */
static int
lower(struct qcow2 *q, uint64_t index, bool *ret_free)
{
    uint64_t count;
    int r = qcow2_refcount(q, index, &count);

    *ret_free = count <= 1;
    if (!r && count) {
        r = qcow2_set_refcount(q, index, count - 1);
    }
    if (!r && *ret_free && index < q->hint) {
        q->hint = index;
    }
    if (*ret_free && is_packed(q, index)) {
        q->packed = 0;
    }
    return r;
}

int
qcow2_unalloc(struct qcow2 *q, uint64_t off, uint64_t n)
{
    int r = 0;
    bool is_free;

    comutex_lock(&q->alloc_lock);
    for (uint64_t i = 0; i < n && !r; i++) {
        r = lower(q, (off >> q->cluster_bits) + i, &is_free);
    }
    comutex_unlock(&q->alloc_lock);
    return r;
}

/* Only one still uses the cluster, which takes nothing more in. */
static bool
is_last_use(struct qcow2 *q, uint64_t index)
{
    uint64_t count = 0;

    comutex_lock(&q->alloc_lock);
    bool last = !qcow2_refcount(q, index, &count) && count == 1;

    if (last && is_packed(q, index)) {
        q->packed = 0;
    }
    comutex_unlock(&q->alloc_lock);
    return last;
}

/* With the lock: is the cluster all that is used of its block, and only once? */
static bool
is_last_of_block(struct qcow2 *q, uint64_t index)
{
    uint64_t n = HOST_BLOCK >> q->cluster_bits, first = align_down(index, n);
    bool last = true;

    for (uint64_t i = first; i < first + n && last; i++) {
        uint64_t count = 0;

        last = !qcow2_refcount(q, i, &count) && count == (i == index);
    }
    return last;
}

/* Of smaller clusters the last one takes its block along; locked, it lowers. */
static void
punch_block(struct qcow2 *q, uint64_t index)
{
    uint64_t size = file_of(q)->size;
    uint64_t off = align_down(index << q->cluster_bits, HOST_BLOCK);

    if (off < size && is_last_of_block(q, index)) {
        node_discard(file_of(q), off, min_u64(HOST_BLOCK, size - off));
    }
}

/*
 * A compressed cluster shares its host clusters with others: each sharer has
 * its count, and what reaches zero is free.  An error leaves a leak.
 */
void
qcow2_freed(struct node *node, uint64_t off, uint64_t len)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t first = off >> q->cluster_bits;
    uint64_t end = div_up(off + len, q->cluster_size);

    qcow2_forget_plain(q, off, len);
    for (uint64_t i = first; i < end; i++) {
        bool is_free, is_small = q->cluster_size < HOST_BLOCK;

        /* Punched while it still counts as used: nobody can take it. */
        if (q->punch_freed && !is_small && is_last_use(q, i)) {
            node_discard(file_of(q), i << q->cluster_bits, q->cluster_size);
        }
        comutex_lock(&q->alloc_lock);
        if (q->punch_freed && is_small) {
            punch_block(q, i);
        }
        lower(q, i, &is_free);
        comutex_unlock(&q->alloc_lock);
    }
}
