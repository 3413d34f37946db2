// SPDX-License-Identifier: BSD-3-Clause
/*
 * New qcow2 images, version 3, laid out as
 *
 *   header | refcount table | refcount block(s) | L1 table
 *
 * They are as small as the format allows: L1 lies behind the end of the file
 * as a hole, and the file ends in its last cluster.  Nothing names the image
 * before its header is written, last.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/limits.h"
#include "drivers/qcow2/qcow2.h"

#define DEFAULT_CLUSTER_SIZE (64 * KIB)

struct layout {
    uint64_t cluster_size, size;
    unsigned cluster_bits, refcount_order;
    uint64_t table_clusters, blocks, l1_clusters, l1_entries;
    unsigned compression;
    bool lazy_refcounts;
    const char *backing, *backing_format;
};

static int
plan(struct layout *l, struct err *err)
{
    uint64_t entries_per_l2 = l->cluster_size / 8;
    uint64_t per_block = l->cluster_size * 8 >> l->refcount_order;

    l->cluster_bits = (unsigned)__builtin_ctzll(l->cluster_size);
    l->l1_entries = div_up(l->size, l->cluster_size * entries_per_l2);
    if (l->l1_entries * 8 > LIMIT_TABLE_BYTES || l->size > LIMIT_IMAGE_SIZE) {
        int r = err_set(err, -EFBIG,
                        "The image size is too large for cluster size %llu",
                        (unsigned long long)l->cluster_size);

        err_hint(err, "take larger clusters");
        return r;
    }
    l->l1_clusters =
        max_u64(div_up(l->l1_entries * 8, l->cluster_size), 1);
    l->table_clusters = 1;
    l->blocks = 1;
    /* The blocks and the table count themselves, too. */
    for (;;) {
        uint64_t all = 1 + l->table_clusters + l->blocks + l->l1_clusters;
        uint64_t blocks = div_up(all, per_block);
        uint64_t table = div_up(blocks * 8, l->cluster_size);

        if (blocks == l->blocks && table == l->table_clusters) {
            return 0;
        }
        l->blocks = blocks;
        l->table_clusters = table;
    }
}

static uint64_t
put_extension(unsigned char *head, uint64_t at, uint32_t type, const void *data,
              uint32_t len)
{
    st_be32(head + at, type);
    st_be32(head + at + 4, len);
    memcpy(head + at + 8, data, len);
    return align_up(at + 8 + len, 8);
}

static void
fill_header(const struct layout *l, unsigned char *head)
{
    unsigned char name[FEATURE_ENTRY];
    uint64_t at = HEADER_OURS;

    st_be32(head + H_MAGIC, QCOW2_MAGIC);
    st_be32(head + H_VERSION, 3);
    st_be32(head + H_CLUSTER_BITS, l->cluster_bits);
    st_be64(head + H_SIZE, l->size);
    st_be32(head + H_L1_SIZE, (uint32_t)l->l1_entries);
    st_be64(head + H_L1_OFF,
            (1 + l->table_clusters + l->blocks) << l->cluster_bits);
    st_be64(head + H_REFTABLE_OFF, l->cluster_size);
    st_be32(head + H_REFTABLE_CLUSTERS, (uint32_t)l->table_clusters);
    st_be32(head + H_REFCOUNT_ORDER, l->refcount_order);
    st_be32(head + H_LENGTH, HEADER_OURS);
    if (l->compression) {
        st_be64(head + H_INCOMPATIBLE, INCOMPAT_COMPRESSION);
        head[H_COMPRESSION] = (unsigned char)l->compression;
    }
    if (l->lazy_refcounts) {
        st_be64(head + H_COMPATIBLE, COMPAT_LAZY_REFCOUNTS);
    }
    if (l->backing_format) {
        at = put_extension(head, at, EXT_BACKING_FORMAT, l->backing_format,
                           (uint32_t)strlen(l->backing_format));
    }
    /* The names of features: ours, so that the bit can be set at once. */
    if (at + 8 + FEATURE_ENTRY + 8 + (l->backing ? strlen(l->backing) : 0) <=
        min_u64(l->cluster_size, SECTOR)) {
        qcow2_put_feature_name(name);
        at = put_extension(head, at, EXT_FEATURES, name, FEATURE_ENTRY);
    }
    at += 8; /* the end of the extensions: zeroes */
    if (l->backing) {
        memcpy(head + at, l->backing, strlen(l->backing));
        st_be64(head + H_BACKING_OFF, at);
        st_be32(head + H_BACKING_LEN, (uint32_t)strlen(l->backing));
    }
}

static void
set_bit_count(unsigned char *blocks, uint64_t i, unsigned order)
{
    uint64_t bit = i << order;

    if (order >= 3) {
        blocks[bit / 8 + (1u << (order - 3)) - 1] = 1; /* big-endian */
    } else {
        blocks[bit / 8] |= (unsigned char)(1u << bit % 8);
    }
}

/* The first blocks of the count table: what counts the @n clusters in use. */
static int
write_counts(struct node *file, const struct layout *l, uint64_t n)
{
    uint64_t bytes = align_up(div_up(n << l->refcount_order, 8), 512);
    auto_free unsigned char *buf = try_zalloc(bytes);

    if (!buf) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < n; i++) {
        set_bit_count(buf, i, l->refcount_order);
    }
    return node_write_buf(file, (1 + l->table_clusters) << l->cluster_bits,
                          buf, bytes);
}

static int
write_refcount_table(struct node *file, const struct layout *l)
{
    uint64_t bytes = align_up(l->blocks * 8, 512);
    auto_free unsigned char *buf = try_zalloc(bytes);

    if (!buf) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < l->blocks; i++) {
        st_be64(buf + i * 8, (1 + l->table_clusters + i) << l->cluster_bits);
    }
    return node_write_buf(file, l->cluster_size, buf, bytes);
}

static int
write_header(struct node *file, const struct layout *l)
{
    uint64_t bytes = min_u64(l->cluster_size, HEADER_BYTES);
    auto_free unsigned char *buf = xzalloc(bytes);

    fill_header(l, buf);
    return node_write_buf(file, 0, buf, bytes);
}

/* A file is emptied, so that nothing of it takes blocks; a device cannot be. */
static int
make_zero(struct node *file, uint64_t bytes)
{
    auto_err ignored = {0};
    int r = node_truncate(file, 0, &ignored);

    if (!r && !file->size) {
        r = node_truncate(file, bytes, &ignored);
    } else {
        r = node_zero(file, 0, bytes, REQ_MAY_UNMAP, NULL);
    }
    return r;
}

/*
 * All of it is made zero first, then only what is not zero is written: a clone
 * takes some 16 KiB.  The header comes last, so that what a crash leaves is no
 * image.
 */
static int
write_image(struct node *file, const struct layout *l)
{
    uint64_t all = 1 + l->table_clusters + l->blocks + l->l1_clusters;
    int r = make_zero(file, all << l->cluster_bits);

    if (!r) {
        r = write_refcount_table(file, l);
    }
    if (!r) {
        r = write_counts(file, l, all);
    }
    if (!r) {
        r = node_flush(file);
    }
    if (!r) {
        r = write_header(file, l);
    }
    return r ? r : node_flush(file);
}

static int
read_options(json_t *o, struct layout *l, struct err *err)
{
    const char *compression = opt_str(o, "compression-type");
    const char *version = opt_str(o, "version");
    uint64_t bits = opt_u64(o, "refcount-bits", 16);

    l->size = opt_u64(o, "size", 0);
    l->cluster_size = opt_u64(o, "cluster-size", DEFAULT_CLUSTER_SIZE);
    if (l->size % 512) {
        return err_set(err, -EINVAL,
                       "Image size must be a multiple of 512 bytes");
    }
    l->backing = opt_str(o, "backing-file");
    l->backing_format = opt_str(o, "backing-fmt");
    l->lazy_refcounts = opt_bool(o, "lazy-refcounts", false);
    if (!is_pow2(l->cluster_size) ||
        l->cluster_size < 1u << CLUSTER_BITS_MIN ||
        l->cluster_size > 1u << CLUSTER_BITS_MAX) {
        return err_set(err, -EINVAL,
                       "Cluster size must be a power of two between 512 and "
                       "2048k");
    }
    if (!is_pow2(bits) || bits > 64) {
        return err_set(err, -EINVAL,
                       "Refcount width must be a power of two and may not "
                       "exceed 64 bits");
    }
    l->refcount_order = (unsigned)__builtin_ctzll(bits);
    if (version && strcmp(version, "v3")) {
        return err_set(err, -ENOTSUP, "Only version v3 can be created");
    }
    if (opt_bool(o, "extended-l2", false) || json_object_get(o, "data-file") ||
        json_object_get(o, "encrypt")) {
        return err_set(err, -ENOTSUP,
                       "Subclusters, external data files and encryption are "
                       "not supported yet");
    }
    if (json_object_get(o, "preallocation") &&
        strcmp(opt_str(o, "preallocation"), "off")) {
        return err_set(err, -ENOTSUP, "Preallocation is not supported yet");
    }
    l->compression = compression && !strcmp(compression, "zstd");
    if (l->backing && !l->backing_format) {
        return err_set(err, -EINVAL,
                       "Backing format must be stated with the backing file");
    }
    if (l->backing &&
        (strlen(l->backing) > LIMIT_BACKING_NAME ||
         HEADER_OURS + 24 + 8 + strlen(l->backing) > l->cluster_size)) {
        return err_set(err, -ENAMETOOLONG,
                       "The backing file name is too long for the header");
    }
    return 0;
}

int
qcow2_create(struct graph *graph, json_t *options, struct err *err)
{
    struct layout l = {0};
    struct node *file;
    struct root *root;
    int r = read_options(options, &l, err);

    if (!r) {
        r = plan(&l, err);
    }
    if (!r) {
        r = node_open_ref(graph, json_object_get(options, "file"), &file, err);
    }
    if (r) {
        return r;
    }
    /* Held to the end: nobody may open what is half written. */
    r = root_new(file, CLAIM_WRITE, "blockdev-create", &root, err);
    if (!r) {
        r = write_image(file, &l);
        root_free(root);
        if (r) {
            err_set_errno(err, r, "Could not write the image '%s'",
                          file->filename ? file->filename : file->name);
        }
    }
    node_unref(file);
    return r;
}
