// SPDX-License-Identifier: BSD-3-Clause
/*
 * Changes of the header.  Each reads it, changes it and writes it under the
 * header's lock, or one would take back what another has just written.
 *
 * All fields that matter lie in sector 0, which a disk writes whole or not at
 * all, so every change is one write of it, and durable on return.  A new
 * backing name is stored first, in bytes that the old header does not name.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/limits.h"
#include "drivers/qcow2/qcow2.h"

static int
write_sector0(struct qcow2 *q, const unsigned char *sector)
{
    struct node *file = q->node->file->child;
    int r = node_write_buf(file, 0, sector, SECTOR);

    return r ? r : node_flush(file);
}

int
qcow2_write_header(struct qcow2 *q, const struct header_field *fields,
                   unsigned n)
{
    unsigned char sector[SECTOR];

    comutex_lock(&q->header_lock);
    int r = node_read_buf(q->node->file->child, 0, sector, SECTOR);

    for (unsigned i = 0; i < n; i++) {
        if (fields[i].size == 8) {
            st_be64(sector + fields[i].at, fields[i].value);
        } else {
            st_be32(sector + fields[i].at, (uint32_t)fields[i].value);
        }
    }
    if (!r) {
        r = node_write_buf(q->node->file->child, 0, sector, SECTOR);
    }
    comutex_unlock(&q->header_lock);
    return r;
}

int
qcow2_update_header(struct qcow2 *q, const struct header_field *fields,
                    unsigned n)
{
    int r = qcow2_write_header(q, fields, n);

    return r ? r : node_flush(q->node->file->child);
}

/* Header extensions, as they lie in the first cluster. */
struct ext {
    uint32_t type, len;
    uint64_t at; /* of its data */
};

/* Finds an extension and the end of all; false where the area is broken. */
static bool
find_ext(const unsigned char *head, uint64_t size, uint32_t type,
         struct ext *ret, uint64_t *ret_end)
{
    uint64_t at = ld_be32(head + H_VERSION) >= 3 ? ld_be32(head + H_LENGTH)
                                                 : HEADER_V2;

    *ret = (struct ext){0};
    while (at + 8 <= size) {
        struct ext e = {ld_be32(head + at), ld_be32(head + at + 4), at + 8};

        if (e.type == EXT_END) {
            *ret_end = at;
            return true;
        }
        if (e.len > size - e.at) {
            return false;
        }
        if (e.type == type) {
            *ret = e;
        }
        at = align_up(e.at + e.len, 8);
    }
    return false;
}

/*
 * A place for a name in the first cluster, behind the extensions: in sector 0,
 * which is replaced as a whole, or where the old name is not; 0 where there is
 * none.
 */
static uint64_t
place_for_name(const unsigned char *head, uint64_t size, uint64_t ext_end,
               uint64_t len)
{
    uint64_t old = ld_be64(head + H_BACKING_OFF);
    uint64_t old_len = old ? ld_be32(head + H_BACKING_LEN) : 0;
    uint64_t at = ext_end + 8;

    if (at + len <= SECTOR) {
        return at;
    }
    at = max_u64(at, SECTOR);
    if (!old || at + len <= old) {
        return at + len <= size ? at : 0;
    }
    at = max_u64(at, align_up(old + old_len, 8));
    return at + len <= size ? at : 0;
}

static bool feature_is_set(const struct qcow2 *q, const unsigned char *entry);

/*
 * Makes room in sector 0: takes the name of a feature that the image does not
 * use out of the table.  False where there is none.
 */
static bool
drop_a_feature_name(const struct qcow2 *q, unsigned char *head, uint64_t *end)
{
    struct ext ext;
    uint64_t last;

    if (!find_ext(head, q->cluster_size, EXT_FEATURES, &ext, end) ||
        !ext.type || *end + 8 > SECTOR) {
        return false;
    }
    for (last = ext.at + align_down(ext.len, 8); last > ext.at;
         last -= FEATURE_ENTRY) {
        unsigned char *entry = head + last - FEATURE_ENTRY;

        if (!feature_is_set(q, entry)) {
            memmove(entry, entry + FEATURE_ENTRY,
                    *end + 8 - (last - FEATURE_ENTRY) - FEATURE_ENTRY);
            *end -= FEATURE_ENTRY;
            memset(head + *end + 8, 0, FEATURE_ENTRY);
            st_be32(head + ext.at - 4, ext.len - FEATURE_ENTRY);
            return true;
        }
    }
    return false;
}

static int
no_room_for_format(const char *format, struct err *err)
{
    int r = err_set(err, -ENOTSUP,
                    "The header has no room to state the backing format '%s'",
                    format);

    err_hint(err, "rewrite it offline with 'qemu-img rebase -u'");
    return r;
}

/*
 * States the backing file's format, in the extension that is there or a new
 * one, by sector 0 alone.
 */
static int
put_format(const struct qcow2 *q, unsigned char *head, const char *format,
           struct err *err)
{
    uint64_t len = strlen(format), room = align_up(len, 8), end;
    struct ext ext;

    if (!find_ext(head, q->cluster_size, EXT_BACKING_FORMAT, &ext, &end)) {
        return no_room_for_format(format, err);
    }
    /* As long as the old one, so that nothing behind it moves. */
    if (ext.type && ext.at + ext.len <= SECTOR &&
        room == align_up(ext.len, 8)) {
        memset(head + ext.at, 0, room);
        memcpy(head + ext.at, format, len);
        st_be32(head + ext.at - 4, (uint32_t)len);
        return 0;
    }
    if (ext.type ||
        (end + 8 + room + 8 > SECTOR && !drop_a_feature_name(q, head, &end)) ||
        end + 8 + room + 8 > SECTOR) {
        return no_room_for_format(format, err);
    }
    memset(head + end, 0, 8 + room + 8);
    st_be32(head + end, EXT_BACKING_FORMAT);
    st_be32(head + end + 4, (uint32_t)len);
    memcpy(head + end + 8, format, len);
    return 0;
}

static int
change_backing(struct qcow2 *q, unsigned char *head, const char *filename,
               const char *format, struct err *err)
{
    uint64_t len = filename ? strlen(filename) : 0, end, at = 0;
    struct node *file = q->node->file->child;
    struct ext ext;
    int r = filename && format ? put_format(q, head, format, err) : 0;

    if (r) {
        return r;
    }
    if (!find_ext(head, q->cluster_size, EXT_BACKING_FORMAT, &ext, &end)) {
        return err_set(err, -EIO, "The header extensions are damaged");
    }
    if (filename) {
        at = place_for_name(head, q->cluster_size, end, len);
        if (!at || len > LIMIT_BACKING_NAME) {
            return err_set(err, -ENAMETOOLONG,
                           "The header has no room for the backing file "
                           "name '%s'",
                           filename);
        }
        if (at + len <= SECTOR) {
            memcpy(head + at, filename, len);
        } else {
            r = node_write_buf(file, at, filename, len);
        }
        if (!r) {
            r = node_flush(file);
        }
        if (r) {
            return err_set_errno(err, r, "Could not store the name");
        }
    }
    st_be64(head + H_BACKING_OFF, at);
    st_be32(head + H_BACKING_LEN, (uint32_t)len);
    r = write_sector0(q, head);
    return r ? err_set_errno(err, r, "Could not write the header") : 0;
}

/* "Header extensions": the external data file's name is one of them. */
bool
qcow2_find_names(const unsigned char *head, struct header_names *ret)
{
    uint64_t backing = ld_be64(head + H_BACKING_OFF), end;
    struct ext ext;

    if (ld_be32(head + H_MAGIC) != QCOW2_MAGIC) {
        return false;
    }
    *ret = (struct header_names){0};
    if (backing && ld_be32(head + H_BACKING_LEN)) {
        ret->name[ret->n].off = backing;
        ret->name[ret->n++].len = ld_be32(head + H_BACKING_LEN);
    }
    find_ext(head, HEADER_PEEK, EXT_DATA_FILE, &ext, &end);
    if (ext.type == EXT_DATA_FILE && ext.len) {
        ret->name[ret->n].off = ext.at;
        ret->name[ret->n++].len = ext.len;
    }
    return true;
}

int
qcow2_set_backing(struct node *node, const char *filename, const char *format,
                  struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    auto_free unsigned char *head = xmalloc(q->cluster_size);
    auto_err inner = ERR_INIT;

    comutex_lock(&q->header_lock);
    int r = node_read_buf(node->file->child, 0, head, q->cluster_size);

    if (r) {
        err_set_errno(&inner, r, "Could not read the header");
    } else {
        r = change_backing(q, head, filename, format, &inner);
    }
    comutex_unlock(&q->header_lock);
    if (r) {
        err_prefix(&inner, "Changing the backing file of '%s'", node->filename);
        return err_propagate(err, &inner);
    }
    free(node->header_backing.filename);
    free(node->header_backing.format);
    node->header_backing.filename = filename ? xstrdup(filename) : NULL;
    node->header_backing.format = format ? xstrdup(format) : NULL;
    return 0;
}

void
qcow2_put_feature_name(unsigned char *entry)
{
    memset(entry, 0, FEATURE_ENTRY);
    entry[0] = FEATURE_INCOMPATIBLE;
    entry[1] = INCOMPAT_UNFINISHED_BIT;
    memcpy(entry + 2, UNFINISHED_NAME, sizeof(UNFINISHED_NAME) - 1);
}

/* Whether the bit that an entry of the feature name table names is set. */
static bool
feature_is_set(const struct qcow2 *q, const unsigned char *entry)
{
    const uint64_t sets[] = {q->incompatible, q->compatible, q->autoclear};

    return entry[0] >= ARRAY_LEN(sets) || entry[1] > 63 ||
           sets[entry[0]] >> entry[1] & 1;
}

/*
 * Puts our bit's name into the feature name table, if sector 0 has one: in the
 * place of a name that the image does not need, since a longer table would not
 * be one write.
 */
static void
name_feature(const struct qcow2 *q, unsigned char *head)
{
    struct ext ext;
    uint64_t end;
    unsigned char *spare = NULL;

    if (!find_ext(head, SECTOR, EXT_FEATURES, &ext, &end) && !ext.type) {
        return;
    }
    for (uint64_t at = ext.at; at + FEATURE_ENTRY <= ext.at + ext.len &&
                               at + FEATURE_ENTRY <= SECTOR;
         at += FEATURE_ENTRY) {
        if (head[at] == FEATURE_INCOMPATIBLE &&
            head[at + 1] == INCOMPAT_UNFINISHED_BIT) {
            return;
        }
        if (!feature_is_set(q, head + at)) {
            spare = head + at;
        }
    }
    if (ext.type && spare) {
        qcow2_put_feature_name(spare);
    }
}

/*
 * Version 2 to 3 ("Header"): a longer header, with the extensions behind it, a
 * table that names our mark, and a backing name in sector 0 behind these; the
 * clusters are as they were.
 */
static int
upgrade(struct qcow2 *q, unsigned char *head, struct err *err)
{
    uint64_t name = ld_be64(head + H_BACKING_OFF);
    uint64_t name_len = name ? ld_be32(head + H_BACKING_LEN) : 0, end;
    unsigned char old[SECTOR];
    struct ext ext;

    if (!find_ext(head, q->cluster_size, EXT_END, &ext, &end)) {
        return err_set(err, -EUCLEAN, "its header extensions are damaged");
    }
    uint64_t exts = end - HEADER_V2;
    uint64_t table = HEADER_OURS + exts;
    uint64_t new_end = table + 8 + FEATURE_ENTRY + 8, room = new_end;

    if (name && name < new_end) {
        name = align_up(new_end, 8);
        room = name + name_len;
    }
    if (room > SECTOR) {
        return err_set(err, -ENOSPC, "its header has no room in sector 0");
    }
    memcpy(old, head, SECTOR);
    memset(head + HEADER_V2, 0, new_end - HEADER_V2);
    memcpy(head + HEADER_OURS, old + HEADER_V2, exts);
    st_be32(head + table, EXT_FEATURES);
    st_be32(head + table + 4, FEATURE_ENTRY);
    qcow2_put_feature_name(head + table + 8);
    if (name != ld_be64(old + H_BACKING_OFF)) {
        memcpy(head + name, old + ld_be64(old + H_BACKING_OFF), name_len);
        st_be64(head + H_BACKING_OFF, name);
    }
    st_be32(head + H_VERSION, 3);
    st_be32(head + H_REFCOUNT_ORDER, 4);
    st_be32(head + H_LENGTH, HEADER_OURS);
    int r = write_sector0(q, head);

    q->version = r ? q->version : 3;
    return r ? err_set_errno(err, r, "its header cannot be written") : 0;
}

int
qcow2_ensure_mark(struct node *node, bool may_upgrade, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    auto_err inner = ERR_INIT;

    if (q->version >= 3) {
        return 0;
    }
    if (!may_upgrade) {
        int r = err_set(err, -ENOTSUP,
                        "The qcow2 image '%s' is of version 2, which cannot "
                        "be marked as unfinished",
                        node->filename);

        err_hint(err, "with 'upgrade' it becomes version 3; or use a new "
                      "image");
        return r;
    }
    auto_free unsigned char *head = xzalloc(max_u64(q->cluster_size, SECTOR));

    comutex_lock(&q->header_lock);
    int r = node_read_buf(node->file->child, 0, head, q->cluster_size);

    r = r ? err_set_errno(&inner, r, "its header cannot be read")
          : upgrade(q, head, &inner);
    comutex_unlock(&q->header_lock);
    if (r) {
        err_prefix(&inner, "Cannot upgrade '%s' to qcow2 version 3",
                   node->filename);
        return err_propagate(err, &inner);
    }
    return qcow2_begin_log(node, err);
}

int
qcow2_set_incomplete(struct node *node, bool incomplete, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    unsigned char head[SECTOR];
    uint64_t bits = q->incompatible & ~INCOMPAT_UNFINISHED;

    if (q->version < 3) {
        return qcow2_ensure_mark(node, false, err);
    }
    bits |= incomplete ? INCOMPAT_UNFINISHED : 0;
    comutex_lock(&q->header_lock);
    int r = node_read_buf(node->file->child, 0, head, SECTOR);

    if (!r) {
        name_feature(q, head);
        st_be64(head + H_INCOMPATIBLE, bits);
        r = write_sector0(q, head);
    }
    comutex_unlock(&q->header_lock);
    if (r) {
        return err_set_errno(err, r, "Could not write the header of '%s'",
                             node->filename);
    }
    q->incompatible = bits;
    return 0;
}

/* A longer L1 table, in fresh clusters; durable before the header names it. */
static int
grow_l1(struct qcow2 *q, uint64_t entries)
{
    uint64_t clusters = div_up(entries * 8, q->cluster_size);
    uint64_t off, old = q->l1_off;
    uint64_t old_clusters = div_up(q->l1_size * 8ULL, q->cluster_size);
    struct node *file = q->node->file->child;
    int r = meta_commit(q->meta);

    if (!r) {
        r = qcow2_alloc_exact(q, clusters, &off);
    }
    if (r) {
        return r;
    }
    auto_free unsigned char *table = try_alloc(clusters * q->cluster_size);

    if (!table) {
        return -ENOMEM;
    }
    memset(table, 0, clusters * q->cluster_size);
    r = node_read_buf(file, old, table, q->l1_size * 8ULL);
    if (!r) {
        r = node_write_buf(file, off, table, clusters * q->cluster_size);
    }
    if (!r) {
        r = meta_commit(q->meta); /* the new clusters' counts */
    }
    if (!r) {
        r = node_flush(file);
    }
    if (!r) {
        struct header_field f[] = {{H_L1_OFF, 8, off}, {H_L1_SIZE, 4, entries}};

        r = qcow2_update_header(q, f, 2);
    }
    if (!r) {
        meta_free_later(q->meta, old, old_clusters * q->cluster_size);
        q->l1_off = off;
        q->l1_size = (uint32_t)entries;
    }
    return r;
}

int
qcow2_truncate(struct node *node, uint64_t size, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t entries = div_up(size, q->cluster_size << q->l2_bits);
    struct header_field f = {H_SIZE, 8, size};
    struct range_hold all;
    int r = 0;

    if (entries * 8 > LIMIT_TABLE_BYTES) {
        return err_set(err, -EFBIG,
                       "'%s' cannot grow to %llu bytes: its L1 table would be "
                       "larger than %llu bytes",
                       node->filename, (unsigned long long)size,
                       (unsigned long long)LIMIT_TABLE_BYTES);
    }
    /* No write may change L1 while it is copied. */
    range_lock_take(&node->ranges, &all, 0, UINT64_MAX, RANGE_EXCLUSIVE);
    if (size < node->size) { /* L1 may stay longer than it need be */
        r = node_drop_tail(node, size, &all);
        r = r ? r : meta_commit(q->meta);
    } else {
        r = entries > q->l1_size ? grow_l1(q, entries) : 0;
        r = r ? r : node_zero_tail(node, size, &all);
    }
    if (!r) {
        r = qcow2_update_header(q, &f, 1);
    }
    if (!r) {
        node->size = size;
    }
    range_lock_release(&node->ranges, &all);
    return r ? err_set_errno(err, r, "Could not resize '%s'", node->filename)
             : 0;
}
