// SPDX-License-Identifier: BSD-3-Clause
/*
 * Consistency ("Consistency checking"): each cluster is named once, aligned
 * and inside the file; a table lies inside the file as a whole.
 *
 * One bit for each cluster of the file.  First L1 is walked and claims the L2
 * tables, then each table claims its data clusters, so that a cluster that two
 * name stays a table where one of them is.  Tables are read through the cache,
 * slice by slice: the image's sizes cost time, not memory, and there is no
 * recursion.  No table is walked twice, because only its first claim succeeds.
 *
 * The check is alone on the whole disk, or a cluster that a write has just
 * taken would pass for a leak.
 */
#include <errno.h>

#include "block/limits.h"
#include "drivers/qed.h"

struct check {
    struct qed *q;
    unsigned fix;
    struct check_report *report;
    /* A bit for each cluster of the file: named; begins a table to walk. */
    unsigned char *used, *tables;
    uint64_t n_clusters;
};

static void say(struct check *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void
say(struct check *c, const char *fmt, ...)
{
    va_list ap;

    if (!c->report->say) {
        return;
    }
    va_start(ap, fmt);
    auto_free char *line = xvasprintf(fmt, ap);

    va_end(ap);
    c->report->say(c->report->arg, line);
}

static bool
bit(const unsigned char *bits, uint64_t i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

/* Marks clusters as named; false, and nothing marked, where one is already. */
static bool
claim(struct check *c, uint64_t off, uint64_t len)
{
    uint64_t first = off >> c->q->cluster_bits;
    uint64_t end = (off + len) >> c->q->cluster_bits;

    for (uint64_t i = first; i < end; i++) {
        if (bit(c->used, i)) {
            return false;
        }
    }
    for (uint64_t i = first; i < end; i++) {
        c->used[i / 8] |= (unsigned char)(1u << i % 8);
    }
    return true;
}

/* One entry that is neither 0 nor 1: false where it is bad. */
static bool
check_entry(struct check *c, uint64_t entry, uint64_t len, uint64_t guest,
            const char *what)
{
    const char *why = !qed_place_ok(c->q, entry, len)
                          ? "is not aligned or not inside the file"
                      : !claim(c, entry, len) ? "is in use already"
                                              : NULL;

    if (why) {
        say(c, "%s for guest offset %llu: %llu %s", what,
            (unsigned long long)guest, (unsigned long long)entry, why);
    }
    return !why;
}

/* Drops a bad entry, or reports it. */
static void
bad_entry(struct check *c, struct slice *s, uint64_t at)
{
    static const unsigned char none[8];

    if (!(c->fix & CHECK_FIX_ERRORS)) {
        c->report->corruptions++;
        return;
    }
    meta_change(c->q->meta, s, at, none, 8, META_MAPS);
    c->report->fixed_corruptions++;
}

/* What to do with the entries of a slice, whose first maps @guest. */
typedef void slice_fn(struct check *c, struct slice *s, uint64_t at,
                      uint64_t guest);

/* Calls @fn for each slice of a table, each entry of which maps @span. */
static void
walk_table(struct check *c, uint64_t table, uint64_t guest, uint64_t span,
           slice_fn *fn)
{
    struct qed *q = c->q;
    uint64_t step = qed_slice_size(q);

    for (uint64_t i = 0; i < q->table_bytes; i += step) {
        struct slice *s;
        int r = meta_get(q->meta, table + i, 0, &s);

        if (r) {
            c->report->check_errors++;
            say(c, "Cannot read the table at offset %llu: %s",
                (unsigned long long)(table + i), err_text(r));
            continue;
        }
        if (!bytes_are_zero(slice_at(s, table + i), step)) {
            fn(c, s, table + i, guest + i / 8 * span);
        }
        meta_put(q->meta, s);
    }
}

static void
claim_tables(struct check *c, struct slice *s, uint64_t at, uint64_t guest)
{
    struct qed *q = c->q;
    uint64_t span = q->cluster_size << q->table_bits;

    for (uint64_t i = 0; i < qed_slice_size(q) / 8; i++, at += 8) {
        uint64_t entry = ld_le64(slice_at(s, at));
        uint64_t index = entry >> q->cluster_bits;

        if (!entry) {
            continue;
        }
        if (check_entry(c, entry, q->table_bytes, guest + i * span,
                        "L2 table")) {
            c->tables[index / 8] |= (unsigned char)(1u << index % 8);
        } else {
            bad_entry(c, s, at);
        }
    }
}

static void
claim_data(struct check *c, struct slice *s, uint64_t at, uint64_t guest)
{
    struct qed *q = c->q;

    for (uint64_t i = 0; i < qed_slice_size(q) / 8; i++, at += 8) {
        uint64_t entry = ld_le64(slice_at(s, at));

        if (entry <= QED_ZERO) {
            continue;
        }
        if (check_entry(c, entry, q->cluster_size,
                        guest + (i << q->cluster_bits), "Data cluster")) {
            c->report->allocated_clusters++;
        } else {
            bad_entry(c, s, at);
        }
    }
}

/* The tables that claim_tables() found good, each once. */
static void
walk_tables(struct check *c, struct slice *s, uint64_t at, uint64_t guest)
{
    struct qed *q = c->q;
    uint64_t span = q->cluster_size << q->table_bits;

    for (uint64_t i = 0; i < qed_slice_size(q) / 8; i++, at += 8) {
        uint64_t entry = ld_le64(slice_at(s, at));
        uint64_t index = entry >> q->cluster_bits;

        if (entry && qed_place_ok(q, entry, q->table_bytes) &&
            bit(c->tables, index)) {
            c->tables[index / 8] &= (unsigned char)~(1u << index % 8);
            walk_table(c, entry, guest + i * span, q->cluster_size, claim_data);
        }
    }
}

/*
 * Clusters that nothing names.  Those at the end of the file are cut off; the
 * others this run may use again, but on disk they stay.
 */
static void
find_leaks(struct check *c)
{
    struct qed *q = c->q;
    uint64_t end = c->n_clusters;
    bool can_fix = (c->fix & CHECK_FIX_LEAKS) && !c->report->corruptions &&
                   !c->report->check_errors;

    while (end && !bit(c->used, end - 1)) {
        end--;
    }
    c->report->end_offset = end << q->cluster_bits;
    for (uint64_t i = 0; i < c->n_clusters; i++) {
        if (bit(c->used, i)) {
            continue;
        }
        c->report->leaks += !can_fix || i < end;
        c->report->fixed_leaks += can_fix && i >= end;
        if (can_fix) {
            qed_give_back(q, i << q->cluster_bits, q->cluster_size);
        }
    }
    if (can_fix && qed_cut_tail(q)) {
        c->report->check_errors++;
        say(c, "Cannot cut off the unused end of the file");
    }
}

/* Nothing else was wrong: the image need not be checked again. */
static int
clear_need_check(struct qed *q)
{
    uint64_t features = q->features & ~QED_F_NEED_CHECK;
    struct qed_field f = {QED_H_FEATURES, 8, features};
    int r = qed_update_header(q, &f, 1);

    if (!r) {
        q->features = features;
    }
    return r;
}

static int
check_alone(struct check *c)
{
    struct qed *q = c->q;
    int r = q->node->read_only ? 0 : meta_free_now(q->meta);

    if (r) {
        return r;
    }
    c->report->total_clusters = div_up(q->node->size, q->cluster_size);
    claim(c, 0, q->header_bytes);
    claim(c, q->l1_off, q->table_bytes);
    walk_table(c, q->l1_off, 0, q->cluster_size << q->table_bits, claim_tables);
    walk_table(c, q->l1_off, 0, q->cluster_size << q->table_bits, walk_tables);
    if (c->report->fixed_corruptions) {
        r = meta_commit(q->meta);
    }
    if (!r) {
        find_leaks(c);
    }
    if (!r && c->fix && (q->features & QED_F_NEED_CHECK) &&
        !c->report->corruptions && !c->report->check_errors) {
        r = clear_need_check(q);
    }
    return r;
}

int
qed_check(struct node *node, unsigned fix, struct check_report *report,
          struct err *err)
{
    struct qed *q = qed_of(node);
    struct check c = {.q = q,
                      .fix = node->read_only ? 0 : fix,
                      .report = report,
                      .n_clusters = qed_file(q)->size >> q->cluster_bits};
    struct range_hold hold;

    if (c.n_clusters > LIMIT_CHECK_CLUSTERS) {
        return err_set(err, -EFBIG,
                       "Cannot check '%s': its %llu clusters are more than the "
                       "limit of %llu",
                       qed_name(node), (unsigned long long)c.n_clusters,
                       (unsigned long long)LIMIT_CHECK_CLUSTERS);
    }
    auto_free unsigned char *used = try_zalloc(c.n_clusters / 8 + 1);
    auto_free unsigned char *tables = try_zalloc(c.n_clusters / 8 + 1);

    if (!used || !tables) {
        return err_set_errno(err, -ENOMEM, "Cannot check '%s'", qed_name(node));
    }
    c.used = used;
    c.tables = tables;
    range_lock_take(&node->ranges, &hold, 0, UINT64_MAX, RANGE_EXCLUSIVE);
    int r = check_alone(&c);

    range_lock_release(&node->ranges, &hold);
    return r ? err_set_errno(err, r, "Cannot check '%s'", qed_name(node)) : 0;
}
