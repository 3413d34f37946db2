// SPDX-License-Identifier: BSD-3-Clause
/*
 * QED images: opening and closing ("Header").
 *
 * Nothing from the header is used before its range was checked.  The tables
 * are not read at open; an entry is checked when it is looked up.
 *
 * The backing file's format.  The header can say "raw, do not probe" and no
 * more.  Without that a backing file is qcow2 or QED by its magic; it is never
 * taken for raw, or whoever writes a raw disk could put a header into it that
 * names any file of the host.
 */
#include <errno.h>

#include "block/limits.h"
#include "drivers/drivers.h"
#include "drivers/qed.h"
#include "run/file.h"

enum { CACHE_BUDGET = 1 * MIB };

/* The header's fields as they stand in the file. */
struct header {
    uint32_t cluster_size, table_size, header_size;
    uint64_t features, autoclear, l1_off, image_size;
    uint32_t name_off, name_len;
};

bool
qed_reach(uint64_t cluster_size, uint64_t table_clusters, uint64_t *ret)
{
    uint64_t entries = table_clusters * cluster_size / 8, clusters;

    if (!mul_ok(entries, entries, &clusters) ||
        !mul_ok(clusters, cluster_size, ret)) {
        *ret = UINT64_MAX; /* more than a size can be */
        return false;
    }
    return true;
}

static int
read_header(struct node *node, struct header *h, struct err *err)
{
    unsigned char p[QED_HEADER_LEN];
    struct node *file = node->file->child;
    int r = node_read_buf(file, 0, p, sizeof(p));

    if (r) {
        return err_set_errno(err, r, "Cannot read the header");
    }
    if (file->size < QED_HEADER_LEN || ld_le32(p + QED_H_MAGIC) != QED_MAGIC) {
        r = err_set(err, -EINVAL, "Image is not in QED format");
        err_hint(err, "state the driver that fits its contents");
        return r;
    }
    *h = (struct header){
        .cluster_size = ld_le32(p + QED_H_CLUSTER_SIZE),
        .table_size = ld_le32(p + QED_H_TABLE_SIZE),
        .header_size = ld_le32(p + QED_H_HEADER_SIZE),
        .features = ld_le64(p + QED_H_FEATURES),
        .autoclear = ld_le64(p + QED_H_AUTOCLEAR),
        .l1_off = ld_le64(p + QED_H_L1_OFF),
        .image_size = ld_le64(p + QED_H_IMAGE_SIZE),
        .name_off = ld_le32(p + QED_H_BACKING_OFF),
        .name_len = ld_le32(p + QED_H_BACKING_LEN),
    };
    return 0;
}

static int
check_features(const struct header *h, struct err *err)
{
    uint64_t unknown = h->features & ~QED_F_KNOWN;

    if (!unknown) {
        return 0;
    }
    int r = err_set(err, -ENOTSUP,
                    "The image needs the unknown feature bit %d (all unknown "
                    "ones: 0x%llx)",
                    __builtin_ctzll(unknown), (unsigned long long)unknown);

    err_hint(err, "it was written by a newer program: open it with that one");
    return r;
}

/* "Field descriptions". */
static int
check_sizes(const struct header *h, struct err *err)
{
    uint64_t reach;

    if (!is_pow2(h->cluster_size) || h->cluster_size < QED_CLUSTER_MIN ||
        h->cluster_size > QED_CLUSTER_MAX) {
        return err_set(err, -EINVAL,
                       "The cluster size %u is no power of two from 4096 to "
                       "67108864",
                       h->cluster_size);
    }
    if (!is_pow2(h->table_size) || h->table_size > QED_TABLE_MAX) {
        return err_set(err, -EINVAL,
                       "The table size %u is no power of two from 1 to %d",
                       h->table_size, QED_TABLE_MAX);
    }
    if (!is_aligned(h->image_size, QED_SECTOR)) {
        return err_set(err, -EINVAL,
                       "The image size %llu is no multiple of 512",
                       (unsigned long long)h->image_size);
    }
    qed_reach(h->cluster_size, h->table_size, &reach);
    if (h->image_size > reach || h->image_size > LIMIT_IMAGE_SIZE) {
        return err_set(err, -EFBIG,
                       "The image size %llu is above the %llu bytes that its "
                       "tables reach, or above the limit",
                       (unsigned long long)h->image_size,
                       (unsigned long long)reach);
    }
    return 0;
}

static int
check_places(const struct header *h, uint64_t file_size, struct err *err)
{
    uint64_t header = (uint64_t)h->header_size * h->cluster_size;
    uint64_t table = (uint64_t)h->table_size * h->cluster_size, end;
    int r = 0;

    if (!header || header > file_size) {
        r = err_set(err, -EINVAL,
                    "The header's %u clusters do not lie inside the file (%llu "
                    "bytes)",
                    h->header_size, (unsigned long long)file_size);
    } else if (!is_aligned(h->l1_off, h->cluster_size) || h->l1_off < header ||
               !add_ok(h->l1_off, table, &end) || end > file_size) {
        r = err_set(err, -EINVAL,
                    "The L1 table at offset %llu is not aligned, or not "
                    "between the header and the file's end (%llu bytes)",
                    (unsigned long long)h->l1_off,
                    (unsigned long long)file_size);
    } else if ((h->features & QED_F_BACKING_FILE) &&
               (!h->name_len || h->name_len > LIMIT_BACKING_NAME ||
                (uint64_t)h->name_off + h->name_len > header)) {
        r = err_set(err, -EINVAL,
                    "The backing file's name (%u bytes at offset %u) is empty, "
                    "longer than %d bytes, or outside the header",
                    h->name_len, h->name_off, LIMIT_BACKING_NAME);
    }
    if (r && file_size < header + table) {
        err_hint(err, "the file seems to be cut off");
    }
    return r;
}

/* Opening: from here on with the state. */

static int
read_backing(struct qed *q, const struct header *h, struct err *err)
{
    struct node *node = q->node;
    char name[LIMIT_BACKING_NAME + 1];

    if (!(h->features & QED_F_BACKING_FILE)) {
        return 0;
    }
    int r = node_read_buf(qed_file(q), h->name_off, name, h->name_len);

    if (r) {
        return err_set_errno(err, r, "Cannot read the backing file's name");
    }
    if (memchr(name, 0, h->name_len)) {
        return err_set(err, -EINVAL, "The backing file's name contains a NUL");
    }
    q->name_off = h->name_off;
    q->name_len = h->name_len;
    node->header_backing.filename = xstrndup(name, h->name_len);
    if (h->features & QED_F_BACKING_FORMAT_NO_PROBE) {
        node->header_backing.format = xstrdup("raw");
    }
    return 0;
}

static const char *
format_of_magic(const unsigned char *magic)
{
    if (!memcmp(magic, "QFI\xfb", 4)) {
        return "qcow2";
    }
    return ld_le32(magic) == QED_MAGIC ? "qed" : NULL;
}

/*
 * Looks into the backing file that the header names, where it will be opened
 * by that name.  What the policy forbids is not touched: block/open.c refuses
 * it with its reason.
 */
static int
probe_backing(struct node *node, json_t *options, struct err *err)
{
    auto_free char *path = NULL;
    unsigned char magic[4];
    struct file *f;

    if (!node->header_backing.filename || node->header_backing.format ||
        json_object_get(options, "backing") ||
        node_backing_path(node, &path, NULL)) {
        return 0;
    }
    int r = file_open(graph_loop(node->graph), path, 0, &f);

    if (!r) {
        r = file_read_buf(f, 0, magic, sizeof(magic));
        file_close(f);
    }
    if (r) {
        return err_set_errno(err, r, "Cannot read its backing file '%s'", path);
    }
    const char *format = format_of_magic(magic);

    if (!format) {
        r = err_set(err, -EINVAL,
                    "Its backing file '%s' is in neither qcow2 nor QED format",
                    path);
        err_hint(err, "if it is raw, the header must say so: 'qemu-img rebase "
                      "-u -b BACKING -F raw IMAGE'; or give the option "
                      "'backing'");
        return r;
    }
    node->header_backing.format = xstrdup(format);
    return 0;
}

/* "Consistency checking": what another program left unfinished. */
static int
check_before_use(struct qed *q, struct err *err)
{
    struct check_report report = {0};
    int r = qed_check(q->node, 0, &report, err);

    if (r) {
        return r;
    }
    if (report.corruptions || report.check_errors) {
        r = err_set(err, -EUCLEAN,
                    "The image was not closed properly and is damaged: %llu "
                    "bad entries, %llu errors while reading",
                    (unsigned long long)report.corruptions,
                    (unsigned long long)report.check_errors);
        err_hint(err, "repair it with 'sluice check --repair' or 'qemu-img "
                      "check -r all', or open it read-only");
        return r;
    }
    uint64_t features = q->features & ~QED_F_NEED_CHECK;
    struct qed_field f = {QED_H_FEATURES, 8, features};

    r = qed_update_header(q, &f, 1);
    if (r) {
        return err_set_errno(err, r, "Cannot mark the image as checked");
    }
    q->features = features;
    return 0;
}

/*
 * Autoclear bits that are not ours are cleared, durably; that of the log is
 * set, which need not outlive a power failure.
 */
static int
set_autoclear(struct qed *q, uint64_t old)
{
    struct qed_field f = {QED_H_AUTOCLEAR, 8, 0};

    f.value = meta_start_log(q->meta);
    q->logs = f.value;
    q->node->session = f.value & META_LOG_SESSION;
    q->node->last_session = old & META_LOG_SESSION;
    return old & ~META_LOG_AUTOCLEAR ? qed_update_header(q, &f, 1)
           : old != f.value          ? qed_write_header(q, &f, 1)
                                     : 0;
}

/* Everything is in the image. */
static void
end_writing(struct qed *q)
{
    struct qed_field f = {
        QED_H_AUTOCLEAR, 8, q->node->is_refused ? q->node->last_session : 0};

    if (q->logs && !q->node->keep_session) {
        qed_write_header(q, &f, 1);
    }
    q->logs = false;
    q->node->session = 0;
    q->node->keep_session = false;
}

/* What the specification wants done before the first write. */
static int
prepare_to_write(struct qed *q, const struct header *h, bool for_check,
                 struct err *err)
{
    int r = set_autoclear(q, h->autoclear);

    if (r) {
        return err_set_errno(err, r, "Cannot change autoclear features");
    }
    if ((q->features & QED_F_NEED_CHECK) && !for_check) {
        return check_before_use(q, err);
    }
    return 0;
}

static int
rename_log(struct node *node, uint64_t autoclear)
{
    struct qed_field f = {QED_H_AUTOCLEAR, 8, autoclear};

    return qed_write_header(qed_of(node), &f, 1);
}

static struct qed *
qed_new(struct node *node, const struct header *h)
{
    struct qed *q = xzalloc(sizeof(*q));

    q->node = node;
    q->cluster_size = h->cluster_size;
    q->cluster_bits = (unsigned)__builtin_ctz(h->cluster_size);
    q->table_bytes = (uint64_t)h->table_size * h->cluster_size;
    q->table_bits = (unsigned)__builtin_ctzll(q->table_bytes / 8);
    q->header_bytes = (uint64_t)h->header_size * h->cluster_size;
    q->l1_off = h->l1_off;
    q->features = h->features;
    node->incomplete = h->features & QED_F_UNFINISHED;
    /* A part of a cluster at the end need not be preserved. */
    q->end = align_down(node->file->child->size, h->cluster_size);
    comutex_init(&q->header_lock);
    comutex_init(&q->table_lock);
    ranges_init(&q->free);
    q->meta = meta_new(&(struct meta_options){
        .node = node,
        .slice_size = qed_slice_size(q),
        .budget = CACHE_BUDGET,
        .rename = rename_log,
        .freed = qed_freed,
    });
    node->state = q;
    node->size = h->image_size;
    node->cluster_size = h->cluster_size;
    node->table_size = q->table_bytes;
    node->limits.preferred = h->cluster_size;
    return q;
}

static void
qed_free(struct qed *q)
{
    ranges_fini(&q->free);
    q->node->state = NULL;
    free(q);
}

static int
open_image(struct node *node, json_t *options, struct err *err)
{
    struct header h;
    bool for_check = opt_bool(options, "for-check", false);
    int r = read_header(node, &h, err);

    if (!r) {
        r = check_features(&h, err);
    }
    if (!r) {
        r = check_sizes(&h, err);
    }
    if (!r) {
        r = check_places(&h, node->file->child->size, err);
    }
    if (!r) {
        node->last_session = h.autoclear & META_LOG_SESSION;
        r = meta_log_recover(node, h.autoclear, err);
    }
    if (r) {
        return r;
    }
    struct qed *q = qed_new(node, &h);

    r = read_backing(q, &h, err);
    if (!r) {
        r = probe_backing(node, options, err);
    }
    if (!r && !node->read_only) {
        r = prepare_to_write(q, &h, for_check, err);
    }
    if (r) {
        meta_close(q->meta, true);
        qed_free(q);
    }
    return r;
}

static int
qed_open(struct node *node, json_t *options, struct err *err)
{
    auto_err inner = ERR_INIT;
    int r = node_open_file(node, options, err);

    if (r) {
        return r;
    }
    r = open_image(node, options, &inner);
    if (r) {
        err_prefix(&inner, "Could not open '%s'", qed_name(node));
        return err_propagate(err, &inner);
    }
    return 0;
}

static int
reopen(struct node *node, bool read_only, struct err *err)
{
    struct qed *q = qed_of(node);
    struct header h = {0};
    int r = read_only ? meta_free_now(q->meta) : read_header(node, &h, err);

    if (read_only) {
        r = r ? r : qed_cut_tail(q);
        if (!r) {
            end_writing(q);
            meta_stop_log(q->meta);
        }
        return r ? err_set_errno(err, r, "Flushing failed") : 0;
    }
    if (!r) {
        r = meta_log_recover(node, h.autoclear, err);
    }
    if (!r) {
        node->read_only = false;
        r = prepare_to_write(q, &h, false, err);
        node->read_only = true;
    }
    return r;
}

static int
qed_reopen(struct node *node, bool read_only, struct err *err)
{
    auto_err inner = ERR_INIT;
    int r = reopen(node, read_only, &inner);

    if (r) {
        err_prefix(&inner, "Could not reopen '%s'", qed_name(node));
        return err_propagate(err, &inner);
    }
    return 0;
}

static int
qed_close(struct node *node)
{
    struct qed *q = qed_of(node);
    int r = meta_close(q->meta, node->read_only);

    /* After a failed commit, tables on disk may still name what is free. */
    if (!r && !node->read_only) {
        r = qed_cut_tail(q);
        end_writing(q);
    }
    qed_free(q);
    return r;
}

static int
qed_free_now(struct node *node)
{
    return meta_free_now(qed_of(node)->meta);
}

static int
qed_flush(struct node *node)
{
    return node->read_only ? 0 : meta_commit(qed_of(node)->meta);
}

static void
qed_info(struct node *node, json_t *info)
{
    struct qed *q = qed_of(node);

    json_object_set_new(info, "cluster-size",
                        json_integer((json_int_t)q->cluster_size));
    json_object_set_new(info, "dirty-flag",
                        json_boolean(q->features & QED_F_NEED_CHECK));
}

const struct driver driver_qed = {
    .name = "qed",
    .open = qed_open,
    .close = qed_close,
    .reopen = qed_reopen,
    .create = qed_create,
    .map = qed_map,
    .write = qed_write,
    .clone = qed_clone,
    .zero = qed_zero,
    .discard = qed_discard,
    .unallocate = qed_unallocate,
    .flush = qed_flush,
    .free_now = qed_free_now,
    .truncate = qed_truncate,
    .find_names = qed_find_names,
    .set_backing = qed_set_backing,
    .set_incomplete = qed_set_incomplete,
    .check = qed_check,
    .info = qed_info,
};
