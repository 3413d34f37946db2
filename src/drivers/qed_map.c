// SPDX-License-Identifier: BSD-3-Clause
/*
 * Where guest clusters are ("Tables" and "Logical offset translation").
 *
 * L1 and L2 are read through the metadata cache, slice by slice: nothing is
 * loaded at open, so a table of 1 GiB costs no more than a small one.  Entries
 * of a guest cluster change only under an exclusive hold on the cluster's
 * range; a new L2 table is made under `table_lock`.
 */
#include <errno.h>

#include "drivers/qed.h"

bool
qed_place_ok(const struct qed *q, uint64_t off, uint64_t len)
{
    uint64_t end;

    return !qed_in_cluster(q, off) && off >= q->header_bytes &&
           add_ok(off, len, &end) && end <= qed_file(q)->size &&
           (end <= q->l1_off || off >= q->l1_off + q->table_bytes);
}

static int
get_slice(struct qed *q, uint64_t off, unsigned flags, struct slice **ret)
{
    *ret = meta_peek(q->meta, off);
    return *ret ? 0 : meta_get(q->meta, off, flags, ret);
}

static uint64_t
l1_entry_at(const struct qed *q, uint64_t off)
{
    return q->l1_off + (off >> (q->cluster_bits + q->table_bits)) * 8;
}

/* The offset of the L2 table for a guest offset; 0 where there is none. */
static int
l2_table(struct qed *q, uint64_t off, unsigned flags, uint64_t *ret)
{
    uint64_t at = l1_entry_at(q, off);
    struct slice *s;
    int r = get_slice(q, at, flags, &s);

    if (r) {
        return r;
    }
    *ret = ld_le64(slice_at(s, at));
    meta_put(q->meta, s);
    return !*ret || qed_place_ok(q, *ret, q->table_bytes) ? 0 : -EIO;
}

static uint64_t
l2_index(const struct qed *q, uint64_t off)
{
    return (off >> q->cluster_bits) & ((1ULL << q->table_bits) - 1);
}

/* How many of the entries from @off's on lie in the same slice. */
static uint64_t
entries_in_slice(const struct qed *q, uint64_t off)
{
    uint64_t per_slice = qed_slice_size(q) / 8;

    return per_slice - (l2_index(q, off) & (per_slice - 1));
}

/*
 * How many of @max entries continue the first one: all unallocated, all zero,
 * or clusters that lie behind one another.
 */
static uint64_t
count_alike(const struct qed *q, const unsigned char *p, uint64_t max)
{
    uint64_t first = ld_le64(p), n = 1;
    uint64_t step = first > QED_ZERO ? q->cluster_size : 0;

    while (n < max && ld_le64(p + n * 8) == first + n * step) {
        n++;
    }
    return n;
}

static int
map_entries(struct qed *q, uint64_t off, uint64_t table, uint64_t max,
            uint64_t *ret_entry, uint64_t *ret_n)
{
    uint64_t at = table + l2_index(q, off) * 8;
    struct slice *s;
    int r = get_slice(q, at, REQ_LOOKUP, &s);

    if (r) {
        return r;
    }
    *ret_entry = ld_le64(slice_at(s, at));
    *ret_n = count_alike(q, slice_at(s, at), max);
    meta_put(q->meta, s);
    if (*ret_entry > QED_ZERO &&
        !qed_place_ok(q, *ret_entry, *ret_n << q->cluster_bits)) {
        return -EIO;
    }
    return 0;
}

int
qed_map(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    struct qed *q = qed_of(node);
    uint64_t want = div_up(qed_in_cluster(q, off) + len, q->cluster_size);
    uint64_t n = min_u64(want, entries_in_slice(q, off));
    uint64_t table, entry = QED_UNALLOCATED;
    int r = l2_table(q, off, REQ_LOOKUP, &table);

    if (!r && table) {
        r = map_entries(q, off, table, n, &entry, &n);
    }
    if (r) {
        return r;
    }
    *ret = (struct extent){
        .kind = entry == QED_UNALLOCATED ? EXTENT_UNALLOCATED
                : entry == QED_ZERO      ? EXTENT_ZERO
                                         : EXTENT_DATA,
        .len = min_u64(len, (n << q->cluster_bits) - qed_in_cluster(q, off)),
        .host_off = entry > QED_ZERO ? entry + qed_in_cluster(q, off) : 0,
    };
    return 0;
}

/* Zero on disk before L1 names it: the commit's first flush covers it. */
static int
new_table(struct qed *q, uint64_t off, uint64_t *ret)
{
    uint64_t at = l1_entry_at(q, off), table;
    unsigned char bytes[8];
    struct slice *s;
    int r = qed_alloc_exact(q, q->table_bytes >> q->cluster_bits, &table);

    if (r) {
        return r;
    }
    meta_forget(q->meta, table, q->table_bytes);
    r = node_zero(qed_file(q), table, q->table_bytes, 0, NULL);
    if (!r) {
        r = get_slice(q, at, 0, &s);
    }
    if (r) {
        qed_give_back(q, table, q->table_bytes);
        return r;
    }
    st_le64(bytes, table);
    meta_change(q->meta, s, at, bytes, 8, META_MAPS);
    meta_put(q->meta, s);
    *ret = table;
    return 0;
}

static int
make_table(struct qed *q, uint64_t off, uint64_t *ret)
{
    comutex_lock(&q->table_lock);
    /* Another writer may have made it while we waited. */
    int r = l2_table(q, off, 0, ret);

    if (!r && !*ret) {
        r = new_table(q, off, ret);
    }
    comutex_unlock(&q->table_lock);
    return r;
}

/* Changes entries of a slice that is there; does not yield. */
static void
change_entries(struct qed *q, struct slice *s, uint64_t at, uint64_t n,
               uint64_t entry)
{
    unsigned char bytes[8];

    for (uint64_t i = 0; i < n; i++, at += 8) {
        uint64_t old = ld_le64(slice_at(s, at));

        if (old == entry) {
            continue;
        }
        st_le64(bytes,
                entry > QED_ZERO ? entry + (i << q->cluster_bits) : entry);
        meta_change(q->meta, s, at, bytes, 8, META_MAPS);
        if (qed_place_ok(q, old, q->cluster_size)) {
            meta_free_later(q->meta, old, q->cluster_size);
        }
    }
}

int
qed_set_entries(struct qed *q, uint64_t off, uint64_t n, uint64_t entry)
{
    uint64_t table;
    struct slice *s;
    int r = l2_table(q, off, 0, &table);

    if (!r && !table) {
        if (entry == QED_UNALLOCATED) {
            return 0;
        }
        r = make_table(q, off, &table);
    }
    if (r) {
        return r;
    }
    uint64_t at = table + l2_index(q, off) * 8;

    r = get_slice(q, at, 0, &s);
    if (r) {
        return r;
    }
    change_entries(q, s, at, n, entry);
    meta_put(q->meta, s);
    return 0;
}
