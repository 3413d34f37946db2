// SPDX-License-Identifier: BSD-3-Clause
/*
 * Where guest clusters are ("Cluster mapping" in the specification).
 *
 * L1 and L2 are read through the metadata cache, slice by slice: nothing is
 * loaded at open, and a look-up that hits costs two hash look-ups and no
 * yield.  Entries of a guest cluster change only under an exclusive hold on
 * the cluster's range; a new L2 table is made under the allocator's lock.
 */
#include <errno.h>

#include "drivers/qcow2/qcow2.h"

enum cluster_kind
entry_kind(const struct qcow2 *q, uint64_t entry)
{
    if (entry & ENTRY_COMPRESSED) {
        return C_COMPRESSED;
    }
    if (q->version >= 3 && (entry & ENTRY_ZERO)) {
        return C_ZERO;
    }
    return entry & ENTRY_OFFSET ? C_DATA : C_UNALLOCATED;
}

bool
entry_in_place(const struct qcow2 *q, uint64_t entry)
{
    return entry_kind(q, entry) == C_DATA && (entry & ENTRY_COPIED);
}

static int
get_slice(struct qcow2 *q, uint64_t off, unsigned flags, struct slice **ret)
{
    *ret = meta_peek(q->meta, off);
    return *ret ? 0 : meta_get(q->meta, off, flags, ret);
}

/* The offset of the L2 table for a guest offset; 0 where there is none. */
static int
l2_table(struct qcow2 *q, uint64_t off, unsigned flags, uint64_t *ret)
{
    uint64_t index = off >> (q->cluster_bits + q->l2_bits);
    uint64_t at = q->l1_off + index * 8;
    struct slice *s;

    if (index >= q->l1_size) {
        *ret = 0;
        return 0;
    }
    int r = get_slice(q, at, flags, &s);

    if (r) {
        return r;
    }
    *ret = ld_be64(slice_at(s, at)) & ENTRY_OFFSET;
    meta_put(q->meta, s);
    /* A table that is no whole cluster of the file is corruption. */
    if (in_cluster(q, *ret) || *ret >= q->node->file->child->size) {
        return *ret ? -EIO : 0;
    }
    return 0;
}

static uint64_t
l2_index(const struct qcow2 *q, uint64_t off)
{
    return (off >> q->cluster_bits) & ((1ULL << q->l2_bits) - 1);
}

static unsigned
slice_entries(const struct qcow2 *q)
{
    return (unsigned)min_u64(q->cluster_size, 4096) / 8;
}

int
qcow2_lookup(struct qcow2 *q, uint64_t off, uint64_t *entries, unsigned max,
             unsigned *ret_n)
{
    uint64_t table, index = l2_index(q, off);
    unsigned here = slice_entries(q) - (unsigned)(index % slice_entries(q));
    struct slice *s;
    int r = l2_table(q, off, 0, &table);

    if (r) {
        return r;
    }
    *ret_n = (unsigned)min_u64(max, here);
    if (!table) {
        for (unsigned i = 0; i < *ret_n; i++) {
            entries[i] = 0;
        }
        return 0;
    }
    r = get_slice(q, table + index * 8, 0, &s);
    if (r) {
        return r;
    }
    const unsigned char *p = slice_at(s, table + index * 8);

    for (unsigned i = 0; i < *ret_n; i++) {
        entries[i] = ld_be64(p + i * 8ULL);
    }
    meta_put(q->meta, s);
    return 0;
}

/* Makes the L2 table for @off; another writer may have made it meanwhile. */
static int
make_l2_table(struct qcow2 *q, uint64_t off, uint64_t *ret)
{
    uint64_t index = off >> (q->cluster_bits + q->l2_bits);
    uint64_t at = q->l1_off + index * 8, table, other;
    unsigned char entry[8];
    struct slice *s;
    int r = qcow2_alloc_exact(q, 1, &table);

    if (r) {
        return r;
    }
    /* Zero on disk long before L1 names it; the file reaches behind it. */
    r = node_zero(q->node->file->child, table, q->cluster_size, 0, NULL);
    if (!r) {
        r = meta_get(q->meta, at, 0, &s);
    }
    if (r) {
        qcow2_unalloc(q, table, 1);
        return r;
    }
    other = ld_be64(slice_at(s, at)) & ENTRY_OFFSET;
    if (!other) {
        st_be64(entry, table | ENTRY_COPIED);
        meta_change(q->meta, s, at, entry, 8, META_MAPS);
    }
    meta_put(q->meta, s);
    *ret = other ? other : table;
    return other ? qcow2_unalloc(q, table, 1) : 0;
}

static void
free_entry(struct qcow2 *q, uint64_t entry)
{
    uint64_t off = entry & ENTRY_OFFSET, len = q->cluster_size;

    if (entry & ENTRY_COMPRESSED) {
        qcow2_compressed_range(q, entry, &off, &len);
    } else if (!off) {
        return;
    }
    meta_free_later(q->meta, off, len);
}

int
qcow2_set_entry(struct qcow2 *q, uint64_t off, uint64_t entry)
{
    uint64_t table;
    unsigned char bytes[8];
    struct slice *s;
    int r = l2_table(q, off, 0, &table);

    if (!r && !table) {
        if (!entry) {
            return 0;
        }
        r = make_l2_table(q, off, &table);
    }
    if (r) {
        return r;
    }
    uint64_t at = table + l2_index(q, off) * 8;

    r = get_slice(q, at, 0, &s);
    if (r) {
        return r;
    }
    uint64_t old = ld_be64(slice_at(s, at));

    st_be64(bytes, entry);
    meta_change(q->meta, s, at, bytes, 8, META_MAPS);
    meta_put(q->meta, s);
    if ((old & ENTRY_OFFSET) != (entry & ENTRY_OFFSET) ||
        (old & ENTRY_COMPRESSED)) {
        free_entry(q, old);
    }
    return 0;
}

static enum extent_kind
extent_kind_of(enum cluster_kind kind)
{
    switch (kind) {
    case C_ZERO:
        return EXTENT_ZERO;
    case C_DATA:
        return EXTENT_DATA;
    case C_COMPRESSED:
        return EXTENT_ENCODED;
    case C_UNALLOCATED:
        break;
    }
    return EXTENT_UNALLOCATED;
}

/* How many of the @max entries at @p continue the first one. */
static unsigned
count_alike(const struct qcow2 *q, const unsigned char *p, unsigned max)
{
    uint64_t first = ld_be64(p);
    enum cluster_kind kind = entry_kind(q, first);
    unsigned n = 1;

    while (n < max && kind != C_COMPRESSED) {
        uint64_t entry = ld_be64(p + n * 8ULL);

        if (entry_kind(q, entry) != kind ||
            (kind == C_DATA && (entry & ENTRY_OFFSET) !=
                                   (first & ENTRY_OFFSET) +
                                       n * q->cluster_size)) {
            break;
        }
        n++;
    }
    return n;
}

int
qcow2_map(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t want = div_up(in_cluster(q, off) + len, q->cluster_size);
    uint64_t table, index = l2_index(q, off), entry = 0;
    unsigned n = slice_entries(q) - (unsigned)(index % slice_entries(q));
    struct slice *s;
    int r = l2_table(q, off, REQ_LOOKUP, &table);

    if (!r && table) {
        r = get_slice(q, table + index * 8, REQ_LOOKUP, &s);
    }
    if (r) {
        return r;
    }
    n = (unsigned)min_u64(want, n);
    if (table) {
        const unsigned char *p = slice_at(s, table + index * 8);

        entry = ld_be64(p);
        n = count_alike(q, p, n);
        meta_put(q->meta, s);
    }
    uint64_t host = entry & ENTRY_OFFSET;
    enum cluster_kind kind = entry_kind(q, entry);

    if (kind == C_DATA && (in_cluster(q, host) ||
                           host >= node->file->child->size)) {
        return -EIO; /* an entry that points outside the file */
    }
    ret->kind = extent_kind_of(kind);
    ret->len = min_u64(len, n * q->cluster_size - in_cluster(q, off));
    ret->host_off = host + in_cluster(q, off);
    return 0;
}
