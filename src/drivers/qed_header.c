// SPDX-License-Identifier: BSD-3-Clause
/*
 * Changes of the header.
 *
 * Its fields lie in the file's first 64 bytes, so each change is one write of
 * one sector and is there as a whole or not at all.  A backing file's name is
 * stored first, durably, at a place that the old header does not name; then
 * the sector points at it.
 */
#include <errno.h>

#include "block/limits.h"
#include "drivers/qed.h"

/*
 * Places for the name, behind the first sector.  A name that another program
 * stored may lie across two of them, so there are three; the smallest header
 * has room for them.
 */
enum { NAME_SLOT = 1024, NAME_SLOTS = 3 };

int
qed_write_header(struct qed *q, const struct qed_field *fields, unsigned n)
{
    unsigned char sector[QED_SECTOR];
    struct node *file = qed_file(q);

    comutex_lock(&q->header_lock);
    int r = node_read_buf(file, 0, sector, sizeof(sector));

    for (unsigned i = 0; i < n; i++) {
        if (fields[i].size == 8) {
            st_le64(sector + fields[i].at, fields[i].value);
        } else {
            st_le32(sector + fields[i].at, (uint32_t)fields[i].value);
        }
    }
    if (!r) {
        r = node_write_buf(file, 0, sector, sizeof(sector));
    }
    comutex_unlock(&q->header_lock);
    return r;
}

int
qed_update_header(struct qed *q, const struct qed_field *fields, unsigned n)
{
    int r = qed_write_header(q, fields, n);

    return r ? r : node_flush(qed_file(q));
}

/* Stores the name where the header on disk does not name one; durable. */
static int
store_name(struct qed *q, const char *name, uint32_t *ret_off)
{
    uint32_t off = QED_SECTOR;

    for (int i = 0; i < NAME_SLOTS; i++, off += NAME_SLOT) {
        if (q->name_off + q->name_len <= off ||
            q->name_off >= off + NAME_SLOT) {
            break;
        }
    }
    int r = node_write_buf(qed_file(q), off, name, strlen(name));

    *ret_off = off;
    return r ? r : node_flush(qed_file(q));
}

static int
change_backing(struct qed *q, const char *name, bool is_raw)
{
    uint64_t features =
        q->features & ~(QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE);
    uint32_t off = 0, len = name ? (uint32_t)strlen(name) : 0;
    /* What the image took over from the old backing file comes first. */
    int r = meta_commit(q->meta);

    if (!r && name) {
        features |= QED_F_BACKING_FILE;
        features |= is_raw ? QED_F_BACKING_FORMAT_NO_PROBE : 0;
        r = store_name(q, name, &off);
    }
    if (!r) {
        struct qed_field f[] = {{QED_H_FEATURES, 8, features},
                                {QED_H_BACKING_OFF, 4, off},
                                {QED_H_BACKING_LEN, 4, len}};

        r = qed_update_header(q, f, ARRAY_LEN(f));
    }
    if (!r) {
        q->features = features;
        q->name_off = off;
        q->name_len = len;
    }
    return r;
}

static int
check_backing(const char *filename, const char *format, struct err *err)
{
    if (!*filename || strlen(filename) > LIMIT_BACKING_NAME) {
        return err_set(err, -EINVAL,
                       "The name must have 1 to %d bytes, not %zu",
                       LIMIT_BACKING_NAME, strlen(filename));
    }
    if (format && strcmp(format, "raw") && strcmp(format, "qcow2") &&
        strcmp(format, "qed")) {
        int r = err_set(err, -EINVAL,
                        "QED cannot record the backing format '%s'", format);

        err_hint(err, "it knows raw, and finds qcow2 and qed by themselves");
        return r;
    }
    return 0;
}

bool
qed_find_names(const unsigned char *head, struct header_names *ret)
{
    if (ld_le32(head + QED_H_MAGIC) != QED_MAGIC) {
        return false;
    }
    *ret = (struct header_names){0};
    if (ld_le64(head + QED_H_FEATURES) & QED_F_BACKING_FILE) {
        ret->n = 1;
        ret->name[0].off = ld_le32(head + QED_H_BACKING_OFF);
        ret->name[0].len = ld_le32(head + QED_H_BACKING_LEN);
    }
    return true;
}

int
qed_set_backing(struct node *node, const char *filename, const char *format,
                struct err *err)
{
    struct qed *q = qed_of(node);
    auto_err inner = ERR_INIT;
    int r = filename ? check_backing(filename, format, &inner) : 0;

    if (!r) {
        r = change_backing(q, filename, format && !strcmp(format, "raw"));
        if (r) {
            err_set(&inner, r, "%s", err_text(r));
        }
    }
    if (r) {
        err_prefix(&inner, "Could not change the backing file of '%s'",
                   qed_name(node));
        return err_propagate(err, &inner);
    }
    free(node->header_backing.filename);
    free(node->header_backing.format);
    node->header_backing = (struct backing_ref){
        .filename = filename ? xstrdup(filename) : NULL,
        .format = filename && format ? xstrdup(format) : NULL,
    };
    return 0;
}

int
qed_set_incomplete(struct node *node, bool incomplete, struct err *err)
{
    struct qed *q = qed_of(node);
    uint64_t features = q->features & ~QED_F_UNFINISHED;

    features |= incomplete ? QED_F_UNFINISHED : 0;
    struct qed_field f = {QED_H_FEATURES, 8, features};
    int r = qed_update_header(q, &f, 1);

    if (r) {
        return err_set_errno(err, r, "Could not write the header of '%s'",
                             qed_name(node));
    }
    q->features = features;
    return 0;
}

/* What a larger backing file has in the grown part is hidden by zeroes. */
static int
zero_grown(struct node *node, uint64_t old)
{
    uint64_t reach = node->backing ? node->backing->child->size : 0;
    uint64_t end = min_u64(reach, node->size);
    int r = end > old
                ? node_zero(node, old, end - old, REQ_BACKGROUND, NULL)
                : 0;

    return r ? r : meta_commit(qed_of(node)->meta);
}

static int
grow(struct node *node, uint64_t size)
{
    const struct qed_field f = {QED_H_IMAGE_SIZE, 8, size};
    uint64_t old = node->size;
    struct range_hold all;

    range_lock_take(&node->ranges, &all, 0, UINT64_MAX, RANGE_EXCLUSIVE);
    int r = node_zero_tail(node, size, &all);

    range_lock_release(&node->ranges, &all);
    if (!r) {
        r = qed_update_header(qed_of(node), &f, 1);
    }
    if (!r) {
        node->size = size;
        r = zero_grown(node, old);
    }
    return r;
}

static int
shrink(struct node *node, uint64_t size)
{
    const struct qed_field f = {QED_H_IMAGE_SIZE, 8, size};
    struct range_hold all;

    range_lock_take(&node->ranges, &all, 0, UINT64_MAX, RANGE_EXCLUSIVE);
    int r = node_drop_tail(node, size, &all);

    if (!r) {
        r = meta_commit(qed_of(node)->meta);
    }
    if (!r) {
        r = qed_update_header(qed_of(node), &f, 1);
    }
    if (!r) {
        node->size = size;
    }
    range_lock_release(&node->ranges, &all);
    return r;
}

int
qed_truncate(struct node *node, uint64_t size, struct err *err)
{
    struct qed *q = qed_of(node);
    uint64_t reach = 0, old = node->size;
    int r;

    if (size == old) {
        return 0;
    }
    qed_reach(q->cluster_size, q->table_bytes >> q->cluster_bits, &reach);
    if (!is_aligned(size, QED_SECTOR) || size > reach) {
        return err_set(err, -EINVAL,
                       "Cannot resize '%s' to %llu bytes: its size must be a "
                       "multiple of 512 and at most %llu",
                       qed_name(node), (unsigned long long)size,
                       (unsigned long long)reach);
    }
    r = size < old ? shrink(node, size) : grow(node, size);
    return r ? err_set_errno(err, r, "Could not resize '%s'", qed_name(node))
             : 0;
}
