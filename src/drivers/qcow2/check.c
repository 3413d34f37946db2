// SPDX-License-Identifier: BSD-3-Clause
/*
 * The consistency check: every reference is counted, and the counts are
 * compared with the refcounts.
 *
 *   a count that is too low, an entry that points outside the file or is not
 *   aligned, a wrong "copied" flag     -> corruption
 *   a count that is too high           -> leak, which costs space only
 *
 * Pending changes are committed first, then the file is read directly.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "block/limits.h"
#include "drivers/qcow2/qcow2.h"

#define CHECK_CLUSTERS_MAX (1ULL << 28)

struct check {
    struct qcow2 *q;
    struct check_report *report;
    unsigned fix;
    uint64_t clusters; /* of the file, rounded up */
    uint32_t *refs;    /* references found, by cluster */
    unsigned char *table; /* one cluster, for L2 tables and blocks */
};

static void __attribute__((format(printf, 2, 3)))
say(struct check *c, const char *fmt, ...)
{
    if (c->report->say) {
        va_list ap;
        va_start(ap, fmt);
        auto_free char *line = xvasprintf(fmt, ap);
        va_end(ap);
        c->report->say(c->report->arg, line);
    }
}

static bool
count_range(struct check *c, uint64_t off, uint64_t len, const char *what)
{
    uint64_t bits = c->q->cluster_bits, end;

    if (!add_ok(off, len, &end) || off >> bits >= c->clusters) {
        say(c, "ERROR %s at offset %llu lies outside the file", what,
            (unsigned long long)off);
        c->report->corruptions++;
        return false;
    }
    for (uint64_t i = off >> bits; i < div_up(end, 1ULL << bits); i++) {
        if (i < c->clusters) {
            c->refs[i]++;
        }
    }
    return true;
}

static bool
count_cluster(struct check *c, uint64_t off, const char *what)
{
    if (in_cluster(c->q, off)) {
        say(c, "ERROR %s at offset %llu is not aligned to a cluster", what,
            (unsigned long long)off);
        c->report->corruptions++;
        return false;
    }
    return count_range(c, off, c->q->cluster_size, what);
}

static void
check_entry(struct check *c, uint64_t entry)
{
    enum cluster_kind kind = entry_kind(c->q, entry);
    uint64_t off = entry & ENTRY_OFFSET, len;

    if (kind == C_COMPRESSED) {
        qcow2_compressed_range(c->q, entry, &off, &len);
        c->report->allocated_clusters++;
        c->report->compressed_clusters++;
        /* The last sectors may lie behind the end of the file. */
        count_range(c, off, len, "compressed cluster");
        if (entry & ENTRY_COPIED) {
            say(c, "ERROR compressed cluster at offset %llu has the copied "
                   "flag",
                (unsigned long long)off);
            c->report->corruptions++;
        }
        return;
    }
    c->report->allocated_clusters += kind == C_DATA;
    if (off) {
        count_cluster(c, off, "data cluster");
    }
}

static int
check_l2(struct check *c, uint64_t off)
{
    int r = node_read_buf(c->q->node->file->child, off, c->table,
                          c->q->cluster_size);

    for (uint64_t i = 0; i < c->q->cluster_size && !r; i += 8) {
        check_entry(c, ld_be64(c->table + i));
    }
    return r;
}

static int
check_l1(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t bytes = q->l1_size * 8ULL;
    auto_free unsigned char *l1 = try_alloc(bytes);

    if (!l1) {
        return -ENOMEM;
    }
    int r = node_read_buf(q->node->file->child, q->l1_off, l1, bytes);

    if (bytes) {
        count_range(c, q->l1_off, bytes, "L1 table");
    }
    for (uint64_t i = 0; i < bytes && !r; i += 8) {
        uint64_t off = ld_be64(l1 + i) & ENTRY_OFFSET;

        if (off && count_cluster(c, off, "L2 table")) {
            r = check_l2(c, off);
        }
    }
    return r;
}

static int
check_reftable(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t bytes = q->reftable_entries * 8;
    auto_free unsigned char *table = try_alloc(bytes);

    if (!table) {
        return -ENOMEM;
    }
    int r = node_read_buf(q->node->file->child, q->reftable_off, table, bytes);

    count_range(c, q->reftable_off, bytes, "refcount table");
    for (uint64_t i = 0; i < bytes && !r; i += 8) {
        uint64_t off = ld_be64(table + i) & ENTRY_OFFSET;

        if (off) {
            count_cluster(c, off, "refcount block");
        }
    }
    return r;
}

/* Compares one cluster's count with what was found; mends it if asked to. */
static int
compare_count(struct check *c, uint64_t index)
{
    uint64_t stored;
    int r = qcow2_refcount(c->q, index, &stored);
    uint32_t found = index < c->clusters ? c->refs[index] : 0;
    bool leak = stored > found;

    if (!r && (found || (leak && !(c->fix & CHECK_FIX_LEAKS)))) {
        c->report->end_offset = (index + 1) << c->q->cluster_bits;
    }
    if (r || stored == found) {
        return r;
    }
    say(c, "%s cluster %llu refcount=%llu reference=%u",
        leak ? "Leaked" : "ERROR", (unsigned long long)index,
        (unsigned long long)stored, found);
    if (c->fix & (leak ? CHECK_FIX_LEAKS : CHECK_FIX_ERRORS)) {
        r = qcow2_set_refcount(c->q, index, found);
        if (!r) {
            c->report->fixed_leaks += leak;
            c->report->fixed_corruptions += !leak;
        }
    } else {
        c->report->leaks += leak;
        c->report->corruptions += !leak;
        if (leak) { /* it still counts as used */
            c->report->end_offset = (index + 1) << c->q->cluster_bits;
        }
    }
    return r;
}

/* The "copied" flag says that the count is exactly 1. */
static int
check_copied(struct check *c, uint64_t guest_off, uint64_t entry)
{
    uint64_t host = (entry & ENTRY_OFFSET) >> c->q->cluster_bits;

    if (entry & ENTRY_COMPRESSED || !(entry & ENTRY_OFFSET) ||
        host >= c->clusters ||
        !!(entry & ENTRY_COPIED) == (c->refs[host] == 1)) {
        return 0;
    }
    say(c, "ERROR data cluster of guest offset %llu: copied flag is wrong",
        (unsigned long long)guest_off);
    if (!(c->fix & CHECK_FIX_ERRORS)) {
        c->report->corruptions++;
        return 0;
    }
    c->report->fixed_corruptions++;
    return qcow2_set_entry(c->q, guest_off,
                           (entry & ~ENTRY_COPIED) |
                               (c->refs[host] == 1 ? ENTRY_COPIED : 0));
}

static int
check_copied_flags(struct check *c)
{
    uint64_t entries[64];
    unsigned n;
    int r = 0;

    for (uint64_t off = 0; off < c->q->node->size && !r;
         off += n * c->q->cluster_size) {
        r = qcow2_lookup(c->q, off, entries, ARRAY_LEN(entries), &n);
        for (unsigned i = 0; i < n && !r; i++) {
            uint64_t at = off + i * c->q->cluster_size;

            r = at < c->q->node->size ? check_copied(c, at, entries[i]) : 0;
        }
    }
    return r;
}

static int
run_check(struct check *c)
{
    struct qcow2 *q = c->q;
    int r = 0;

    count_range(c, 0, q->cluster_size, "header");
    if (!r) {
        r = check_l1(c);
    }
    if (!r) {
        r = check_reftable(c);
    }

    for (uint64_t i = 0; i < c->clusters && !r; i++) {
        r = compare_count(c, i);
    }
    return r ? r : check_copied_flags(c);
}

/* After a repair without an error, the marks that refused writers go. */
static int
clear_marks(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t left = q->incompatible & ~(uint64_t)(INCOMPAT_DIRTY |
                                                  INCOMPAT_CORRUPT);
    struct header_field f = {H_INCOMPATIBLE, 8, left};

    if (!(c->fix & CHECK_FIX_ERRORS) || left == q->incompatible ||
        c->report->corruptions) {
        return 0;
    }
    q->incompatible = left;
    return qcow2_update_header(q, &f, 1);
}

int
qcow2_check(struct node *node, unsigned fix, struct check_report *report,
            struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    struct check c = {.q = q, .report = report, .fix = fix};
    int r = node->read_only ? 0 : meta_free_now(q->meta);

    if (!r && !node->read_only) {
        r = meta_commit(q->meta); /* what giving clusters back changed */
    }
    c.clusters = div_up(node->file->child->size, q->cluster_size);
    if (c.clusters > CHECK_CLUSTERS_MAX) {
        return err_set(err, -EFBIG, "'%s' has too many clusters to check",
                       node->filename);
    }
    c.refs = try_alloc(c.clusters * sizeof(*c.refs));
    c.table = try_alloc(q->cluster_size);
    if (c.refs && c.table && !r) {
        memset(c.refs, 0, c.clusters * sizeof(*c.refs));
        report->total_clusters = div_up(node->size, q->cluster_size);
        r = run_check(&c);
    } else if (!r) {
        r = -ENOMEM;
    }
    if (!r && fix) {
        r = meta_commit(q->meta);
    }
    if (!r) {
        r = clear_marks(&c);
    }
    free(c.refs);
    free(c.table);
    return r ? err_set_errno(err, r, "Could not check '%s'", node->filename)
             : 0;
}
