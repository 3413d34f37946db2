// SPDX-License-Identifier: BSD-3-Clause
/*
 * New QED images: one cluster of header, then L1, all zero.  The header is
 * written last, so that nothing takes an unfinished file for an image.
 *
 * Options are those of QEMU's BlockdevCreateOptionsQed.  `file` is a node's
 * name or a definition; with `filename` instead, the file itself is made
 * first.
 */
#include <errno.h>

#include "block/limits.h"
#include "drivers/qed.h"

#define DEFAULT_CLUSTER_SIZE (64 * KIB)
enum { DEFAULT_TABLE_SIZE = 4 };

struct plan {
    uint64_t size, cluster_size, table_size;
    const char *backing;
    bool is_raw;
};

static int
plan_backing(json_t *options, struct plan *p, struct err *err)
{
    const char *format = opt_str(options, "backing-fmt");

    p->backing = opt_str(options, "backing-file");
    if (format && !p->backing) {
        return err_set(err, -EINVAL,
                       "Backing format cannot be used without backing file");
    }
    if (!p->backing) {
        return 0;
    }
    if (!*p->backing || strlen(p->backing) > LIMIT_BACKING_NAME) {
        return err_set(err, -EINVAL,
                       "The backing file's name must have 1 to %d bytes",
                       LIMIT_BACKING_NAME);
    }
    p->is_raw = format && !strcmp(format, "raw");
    if (format && !p->is_raw && strcmp(format, "qcow2") &&
        strcmp(format, "qed")) {
        return err_set(err, -EINVAL,
                       "QED cannot record the backing format '%s'", format);
    }
    return 0;
}

static int
plan_image(json_t *options, struct plan *p, struct err *err)
{
    uint64_t reach;

    p->size = opt_u64(options, "size", 0);
    p->cluster_size = opt_u64(options, "cluster-size", DEFAULT_CLUSTER_SIZE);
    p->table_size = opt_u64(options, "table-size", DEFAULT_TABLE_SIZE);
    if (!json_object_get(options, "size")) {
        return err_set(err, -EINVAL, "Parameter 'size' is missing");
    }
    if (!is_pow2(p->cluster_size) || p->cluster_size < QED_CLUSTER_MIN ||
        p->cluster_size > QED_CLUSTER_MAX) {
        return err_set(err, -EINVAL,
                       "QED cluster size must be a power of two from 4096 to "
                       "67108864");
    }
    if (!is_pow2(p->table_size) || p->table_size > QED_TABLE_MAX) {
        return err_set(err, -EINVAL,
                       "QED table size must be a power of two from 1 to %d",
                       QED_TABLE_MAX);
    }
    qed_reach(p->cluster_size, p->table_size, &reach);
    if (!is_aligned(p->size, QED_SECTOR) || p->size > reach ||
        p->size > LIMIT_IMAGE_SIZE) {
        return err_set(err, -EINVAL,
                       "QED image size must be a multiple of 512 and at most "
                       "%llu with these clusters and tables",
                       (unsigned long long)min_u64(reach, LIMIT_IMAGE_SIZE));
    }
    return plan_backing(options, p, err);
}

static void
fill_header(const struct plan *p, unsigned char *head)
{
    uint64_t features = 0;

    if (p->backing) {
        features |= QED_F_BACKING_FILE;
        features |= p->is_raw ? QED_F_BACKING_FORMAT_NO_PROBE : 0;
        st_le32(head + QED_H_BACKING_OFF, QED_SECTOR);
        st_le32(head + QED_H_BACKING_LEN, (uint32_t)strlen(p->backing));
        memcpy(head + QED_SECTOR, p->backing, strlen(p->backing));
    }
    st_le32(head + QED_H_MAGIC, QED_MAGIC);
    st_le32(head + QED_H_CLUSTER_SIZE, (uint32_t)p->cluster_size);
    st_le32(head + QED_H_TABLE_SIZE, (uint32_t)p->table_size);
    st_le32(head + QED_H_HEADER_SIZE, 1);
    st_le64(head + QED_H_FEATURES, features);
    st_le64(head + QED_H_L1_OFF, p->cluster_size);
    st_le64(head + QED_H_IMAGE_SIZE, p->size);
}

static int
write_image(struct node *file, const struct plan *p)
{
    auto_free unsigned char *head = xzalloc(QED_CLUSTER_MIN);
    uint64_t table = p->table_size * p->cluster_size;
    int r = node_zero(file, 0, p->cluster_size + table, REQ_MAY_UNMAP, NULL);

    if (!r) {
        r = node_flush(file);
    }
    if (!r) {
        fill_header(p, head);
        r = node_write_buf(file, 0, head, QED_CLUSTER_MIN);
    }
    return r ? r : node_flush(file);
}

/* Makes the file that `filename` names; *ret_def is the node to open then. */
static int
create_file(struct graph *graph, const char *filename, json_t **ret_def,
            struct err *err)
{
    const struct driver *drv = graph_driver(graph, "file");
    json_t *options = json_pack("{s:s, s:s, s:i}", "driver", "file", "filename",
                                filename, "size", 0);
    int r = drv ? drv->create(graph, options, err)
                : err_set(err, -ENOTSUP, "There is no driver 'file'");

    json_object_del(options, "size");
    if (r) {
        json_decref(options);
        return r;
    }
    *ret_def = options;
    return 0;
}

static int
open_file(struct graph *graph, json_t *options, struct node **ret,
          struct err *err)
{
    const char *filename = opt_str(options, "filename");
    json_t *def = json_incref(json_object_get(options, "file"));
    int r = 0;

    if (!def && filename) {
        r = create_file(graph, filename, &def, err);
    }
    if (!r) {
        r = node_open_ref(graph, def, ret, err);
    }
    json_decref(def);
    return r;
}

int
qed_create(struct graph *graph, json_t *options, struct err *err)
{
    struct plan p = {0};
    struct node *file;
    struct root *root;
    int r = plan_image(options, &p, err);

    if (!r) {
        r = open_file(graph, options, &file, err);
    }
    if (r) {
        return r;
    }
    r = root_new(file, CLAIM_WRITE, "blockdev-create", &root, err);
    if (!r) {
        r = node_truncate(file, 0, err);
        if (!r) {
            r = write_image(file, &p);
            if (r) {
                err_set_errno(err, r, "Could not write QED image '%s'",
                              qed_name(file));
            }
        }
        root_free(root);
    }
    node_unref(file);
    return r;
}
