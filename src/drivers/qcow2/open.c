// SPDX-License-Identifier: BSD-3-Clause
/*
 * Opening qcow2 images, and the driver's table.
 *
 * Every number of the header is checked before it is used.  What is not built
 * is refused by its name, never guessed.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/limits.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/qcow2.h"

#define DEFAULT_CACHE (4 * MIB)
enum { HEAD_READ = 4096, DECOMPRESS_WORKERS = 2 };

static const char *
self(const struct node *node)
{
    return node->filename ? node->filename : node->name;
}

#define REFUSE(code, ...) err_set(err, code, "qcow2 image " __VA_ARGS__)

static int
check_features(struct node *node, const unsigned char *head, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t known = INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_DATA_FILE |
                     INCOMPAT_COMPRESSION | INCOMPAT_EXTENDED_L2 |
                     INCOMPAT_UNFINISHED;

    if (q->incompatible & ~known) {
        return REFUSE(-ENOTSUP, "'%s' uses unknown incompatible features "
                                "(0x%llx)",
                      self(node),
                      (unsigned long long)(q->incompatible & ~known));
    }
    node->incomplete = q->incompatible & INCOMPAT_UNFINISHED;
    if (q->incompatible & INCOMPAT_DATA_FILE) {
        return REFUSE(-ENOTSUP, "'%s' has an external data file, which is not "
                                "supported yet",
                      self(node));
    }
    if (q->incompatible & INCOMPAT_EXTENDED_L2) {
        return REFUSE(-ENOTSUP, "'%s' has extended L2 entries (subclusters), "
                                "which are not supported yet",
                      self(node));
    }
    if ((q->incompatible & (INCOMPAT_CORRUPT | INCOMPAT_DIRTY)) &&
        !node->read_only && !opt_bool(node->options, "for-check", false)) {
        bool corrupt = q->incompatible & INCOMPAT_CORRUPT;
        int r = REFUSE(-EUCLEAN, "'%s' is marked %s; it can only be opened "
                                 "read-only",
                       self(node), corrupt ? "corrupt" : "dirty");

        err_hint(err, "repair it with 'sluice check --repair' or 'qemu-img "
                      "check -r all'");
        return r;
    }
    if (ld_be32(head + H_CRYPT)) {
        return REFUSE(-ENOTSUP, "'%s' is encrypted, which is not supported yet",
                      self(node));
    }
    if (ld_be32(head + H_SNAPSHOTS) && !node->read_only) {
        return REFUSE(-ENOTSUP, "'%s' has internal snapshots; writing to it is "
                                "not supported yet",
                      self(node));
    }
    if ((q->autoclear & AUTOCLEAR_BITMAPS) && !node->read_only) {
        return REFUSE(-ENOTSUP, "'%s' has persistent dirty bitmaps; writing to "
                                "it is not supported yet",
                      self(node));
    }
    return 0;
}

static int
check_table(struct node *node, const char *what, uint64_t off, uint64_t bytes,
            struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t end;

    if (bytes > LIMIT_TABLE_BYTES) {
        return REFUSE(-EFBIG, "'%s': its %s of %llu bytes is larger than the "
                              "limit of %llu",
                      self(node), what, (unsigned long long)bytes,
                      (unsigned long long)LIMIT_TABLE_BYTES);
    }
    if (!off || in_cluster(q, off) || !add_ok(off, bytes, &end) ||
        off >= node->file->child->size) {
        int r = REFUSE(-EUCLEAN, "'%s': its %s cannot lie at offset %llu of a "
                                 "file of %llu bytes",
                       self(node), what, (unsigned long long)off,
                       (unsigned long long)node->file->child->size);

        err_hint(err, "it is damaged or cut off: restore it from a copy");
        return r;
    }
    return 0;
}

static int
parse_numbers(struct node *node, const unsigned char *head, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    bool v3;

    if (ld_be32(head + H_MAGIC) != QCOW2_MAGIC) {
        return err_set(err, -EINVAL, "Image '%s' is not in qcow2 format",
                       self(node));
    }
    q->version = ld_be32(head + H_VERSION);
    if (q->version != 2 && q->version != 3) {
        return REFUSE(-ENOTSUP, "'%s' has the unsupported version %u",
                      self(node), q->version);
    }
    v3 = q->version >= 3;
    q->cluster_bits = ld_be32(head + H_CLUSTER_BITS);
    if (q->cluster_bits < CLUSTER_BITS_MIN ||
        q->cluster_bits > CLUSTER_BITS_MAX) {
        return REFUSE(-EUCLEAN, "'%s': unsupported cluster size 2^%u",
                      self(node), q->cluster_bits);
    }
    q->cluster_size = 1ULL << q->cluster_bits;
    q->l2_bits = q->cluster_bits - 3;
    q->incompatible = v3 ? ld_be64(head + H_INCOMPATIBLE) : 0;
    q->compatible = v3 ? ld_be64(head + H_COMPATIBLE) : 0;
    q->autoclear = v3 ? ld_be64(head + H_AUTOCLEAR) : 0;
    q->refcount_order = v3 ? ld_be32(head + H_REFCOUNT_ORDER) : 4;
    if (q->refcount_order > 6) {
        return REFUSE(-EUCLEAN, "'%s': the refcount width 2^%u is too large",
                      self(node), q->refcount_order);
    }
    q->block_bits = q->cluster_bits + 3 - q->refcount_order;
    node->size = ld_be64(head + H_SIZE);
    q->l1_off = ld_be64(head + H_L1_OFF);
    q->l1_size = ld_be32(head + H_L1_SIZE);
    q->reftable_off = ld_be64(head + H_REFTABLE_OFF);
    q->reftable_entries =
        ld_be32(head + H_REFTABLE_CLUSTERS) * q->cluster_size / 8;
    return 0;
}

static int
check_numbers(struct node *node, const unsigned char *head, uint64_t got,
              struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t length = q->version >= 3 ? ld_be32(head + H_LENGTH) : HEADER_V2;
    uint64_t need = div_up(node->size, q->cluster_size << q->l2_bits);

    if (length < (q->version >= 3 ? HEADER_V3 : HEADER_V2) ||
        length > min_u64(q->cluster_size, got)) {
        return REFUSE(-EUCLEAN, "'%s': the header length %llu is invalid",
                      self(node), (unsigned long long)length);
    }
    if (q->incompatible & INCOMPAT_COMPRESSION) {
        q->compression = length > H_COMPRESSION ? head[H_COMPRESSION] : 0;
        if (q->compression != 1) {
            return REFUSE(-ENOTSUP, "'%s': unknown compression type %u",
                          self(node), q->compression);
        }
    }
    if (node->size > LIMIT_IMAGE_SIZE || q->l1_size < need) {
        return REFUSE(-EUCLEAN, "'%s': its L1 table of %u entries is too small "
                                "for %llu bytes",
                      self(node), q->l1_size, (unsigned long long)node->size);
    }
    int r = q->l1_size || node->size
                ? check_table(node, "L1 table", q->l1_off, q->l1_size * 8ULL,
                              err)
                : 0;

    return r ? r
             : check_table(node, "refcount table", q->reftable_off,
                           q->reftable_entries * 8, err);
}

/* "Header extensions": the backing format is all that is used. */
static int
parse_extensions(struct node *node, const unsigned char *head, uint64_t size,
                 struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t at = q->version >= 3 ? ld_be32(head + H_LENGTH) : HEADER_V2;

    while (at + 8 <= size) {
        uint32_t type = ld_be32(head + at), len = ld_be32(head + at + 4);

        if (type == EXT_END) {
            break;
        }
        at += 8;
        if (len > size - at) {
            return REFUSE(-EUCLEAN, "'%s': a header extension is longer than "
                                    "the header",
                          self(node));
        }
        if (type == EXT_BACKING_FORMAT) {
            free(node->header_backing.format);
            node->header_backing.format =
                xstrndup((const char *)head + at, len);
        }
        at = align_up(at + len, 8);
    }
    return 0;
}

static int
parse_backing(struct node *node, const unsigned char *head, uint64_t size,
              struct err *err)
{
    uint64_t off = ld_be64(head + H_BACKING_OFF);
    uint32_t len = ld_be32(head + H_BACKING_LEN);

    if (!off) {
        return 0;
    }
    if (len > LIMIT_BACKING_NAME || off > size || len > size - off) {
        return REFUSE(-EUCLEAN, "'%s': the backing file name lies outside the "
                                "header",
                      self(node));
    }
    node->header_backing.filename = xstrndup((const char *)head + off, len);
    return 0;
}

static int
read_header(struct node *node, struct err *err)
{
    struct node *file = node->file->child;
    uint64_t size = min_u64(file->size, 1ULL << CLUSTER_BITS_MAX);
    uint64_t first = min_u64(size, HEAD_READ);
    auto_free unsigned char *head = NULL;
    int r;

    if (size < HEADER_V2) {
        return err_set(err, -EINVAL,
                       "Image '%s' is not in qcow2 format: it has only %llu "
                       "bytes",
                       self(node), (unsigned long long)size);
    }
    head = xzalloc(max_u64(first, HEADER_OURS));
    r = node_read_buf(file, 0, head, first);
    if (r) {
        return err_set_errno(err, r, "Could not read the header of '%s'",
                             self(node));
    }
    r = parse_numbers(node, head, err);
    if (r) {
        return r;
    }
    /* The rest of the header lies anywhere in the first cluster. */
    size = min_u64(size, qcow2_of(node)->cluster_size);
    if (size > first) {
        head = xrealloc(head, size);
        r = node_read_buf(file, 0, head, size);
        if (r) {
            return err_set_errno(err, r, "Could not read the header of '%s'",
                                 self(node));
        }
    }
    r = check_numbers(node, head, size, err);
    if (!r) {
        r = check_features(node, head, err);
    }
    if (!r) {
        r = parse_extensions(node, head, size, err);
    }
    return r ? r : parse_backing(node, head, size, err);
}

/*
 * Unknown autoclear bits describe something that our writes would make wrong,
 * so they are cleared, durably, before the first one; that of the log is set.
 * The log does not outlive a power failure, so its bit need not be durable.
 */
static int
begin_writing(struct node *node, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    struct header_field f = {H_AUTOCLEAR, 8, 0};
    uint64_t old = q->autoclear;

    if (q->version < 3) {
        return 0; /* it has no such bits, so it has no log */
    }
    q->autoclear = f.value = meta_start_log(q->meta);
    node->session = q->autoclear & META_LOG_SESSION;
    node->last_session = old & META_LOG_SESSION;
    int r = old & ~META_LOG_AUTOCLEAR ? qcow2_update_header(q, &f, 1)
            : old != q->autoclear     ? qcow2_write_header(q, &f, 1)
                                      : 0;

    return r ? err_set_errno(err, r, "Could not write the header of '%s'",
                             self(node))
             : 0;
}

static int
rename_log(struct node *node, uint64_t autoclear)
{
    struct qcow2 *q = qcow2_of(node);
    struct header_field f = {H_AUTOCLEAR, 8, autoclear};

    q->autoclear = autoclear;
    return qcow2_write_header(q, &f, 1);
}

int
qcow2_begin_log(struct node *node, struct err *err)
{
    struct meta *meta = qcow2_of(node)->meta;

    while (meta_is_committing(meta)) {
        meta_commit(meta); /* a failure shows at the next flush */
    }
    return begin_writing(node, err);
}

/* Everything is in the image. */
static void
end_writing(struct qcow2 *q)
{
    struct header_field f = {
        H_AUTOCLEAR, 8, q->node->is_refused ? q->node->last_session : 0};

    if (q->autoclear && !q->node->keep_session) {
        qcow2_write_header(q, &f, 1);
    }
    q->autoclear = q->node->session = 0;
    q->node->keep_session = false;
}

static int
free_state(struct qcow2 *q, bool discard)
{
    struct node *node = q->node;
    int r = meta_close(q->meta, discard);

    if (!r && !discard) {
        end_writing(q);
    }
    qcow2_compress_fini(q);
    free(q);
    node->state = NULL;
    return r;
}

static int
qcow2_open(struct node *node, json_t *options, struct err *err)
{
    int r = node_open_file(node, options, err);

    if (r) {
        return r;
    }
    struct qcow2 *q = xzalloc(sizeof(*q));

    node->state = q;
    q->node = node;
    comutex_init(&q->header_lock);
    r = read_header(node, err);
    if (!r) {
        node->last_session = q->autoclear & META_LOG_SESSION;
        r = meta_log_recover(node, q->autoclear, err);
    }
    if (r) {
        free(q);
        node->state = NULL;
        return r;
    }
    struct meta_options o = {
        .node = node,
        .slice_size = (uint32_t)min_u64(q->cluster_size, 4096),
        .budget = opt_u64(options, "cache-size", DEFAULT_CACHE),
        .rename = rename_log,
        .freed = qcow2_freed,
    };

    q->meta = meta_new(&o);
    q->virgin = div_up(node->file->child->size, q->cluster_size);
    q->punch_freed = node->unmap;
    comutex_init(&q->alloc_lock);
    offload_group_init(&q->workers, DECOMPRESS_WORKERS);
    node->cluster_size = (uint32_t)q->cluster_size;
    node->table_size = q->cluster_size;
    node->limits.preferred = (uint32_t)q->cluster_size;
    r = node->read_only ? 0 : begin_writing(node, err);
    if (r) {
        free_state(q, true);
    }
    return r;
}

/* What was looked at when it was opened to be read is looked at again. */
static int
qcow2_check_write(struct node *node, struct err *err)
{
    struct node *file = node->file->child;
    auto_free unsigned char *head = xzalloc(HEAD_READ);
    int r = node_read_buf(file, 0, head, min_u64(file->size, HEAD_READ));

    if (r) {
        return err_set_errno(err, r, "Could not read the header of '%s'",
                             self(node));
    }
    struct qcow2 *q = qcow2_of(node);

    if (q->version >= 3) {
        q->autoclear = ld_be64(head + H_AUTOCLEAR);
    }
    node->read_only = false;
    r = check_features(node, head, err);
    node->read_only = true;
    return r;
}

static int
check_before_writing(struct node *node, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    int r = qcow2_check_write(node, err);

    node->read_only = false;
    if (!r) {
        r = meta_log_recover(node, q->autoclear, err);
    }
    if (!r) {
        r = begin_writing(node, err);
    }
    node->read_only = true;
    return r;
}

static int
qcow2_reopen(struct node *node, bool read_only, struct err *err)
{
    struct qcow2 *q = qcow2_of(node);
    int r = read_only ? meta_free_now(q->meta)
                      : check_before_writing(node, err);

    if (!r && read_only) {
        r = meta_commit(q->meta); /* what giving back clusters changed */
    }
    if (!r && read_only) {
        end_writing(q);
        meta_stop_log(q->meta);
    }
    return r && read_only ? err_set_errno(err, r, "Flushing '%s' failed",
                                          self(node))
                          : r;
}

static int
qcow2_close(struct node *node)
{
    return free_state(qcow2_of(node), node->read_only || node->failed);
}

static int
qcow2_free_now(struct node *node)
{
    return meta_free_now(qcow2_of(node)->meta);
}

static int
qcow2_flush(struct node *node)
{
    return meta_commit(qcow2_of(node)->meta);
}

static void
qcow2_info(struct node *node, json_t *info)
{
    struct qcow2 *q = qcow2_of(node);
    json_t *data = json_pack(
        "{s:s, s:s, s:i, s:b, s:b, s:b}", "compat",
        q->version >= 3 ? "1.1" : "0.10", "compression-type",
        q->compression ? "zstd" : "zlib", "refcount-bits",
        1 << q->refcount_order, "lazy-refcounts",
        !!(q->compatible & COMPAT_LAZY_REFCOUNTS), "corrupt",
        !!(q->incompatible & INCOMPAT_CORRUPT), "extended-l2", 0);

    json_object_set_new(info, "cluster-size",
                        json_integer((json_int_t)q->cluster_size));
    json_object_set_new(info, "format-specific",
                        json_pack("{s:s, s:o}", "type", "qcow2", "data", data));
    json_object_set_new(info, "dirty-flag",
                        json_boolean(q->incompatible & INCOMPAT_DIRTY));
}

const struct driver driver_qcow2 = {
    .name = "qcow2",
    .open = qcow2_open,
    .close = qcow2_close,
    .reopen = qcow2_reopen,
    .check_write = qcow2_check_write,
    .create = qcow2_create,
    .map = qcow2_map,
    .read = qcow2_read_compressed,
    .write = qcow2_write,
    .clone = qcow2_clone,
    .read_encoded = qcow2_read_encoded,
    .write_encoded = qcow2_write_encoded,
    .zero = qcow2_zero,
    .discard = qcow2_discard,
    .unallocate = qcow2_unallocate,
    .flush = qcow2_flush,
    .free_now = qcow2_free_now,
    .truncate = qcow2_truncate,
    .find_names = qcow2_find_names,
    .set_backing = qcow2_set_backing,
    .ensure_mark = qcow2_ensure_mark,
    .set_incomplete = qcow2_set_incomplete,
    .check = qcow2_check,
    .info = qcow2_info,
};
