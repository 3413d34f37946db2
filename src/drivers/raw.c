// SPDX-License-Identifier: BSD-3-Clause
/*
 * raw: the bytes of its file child as they are, or a window of them (options
 * `offset` and `size`).  It has no header, so nothing a guest writes can change
 * how it is opened.
 */
#include <errno.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"

struct raw {
    uint64_t offset;
    bool fixed_size; /* `size` was given: the window does not grow */
};

static int
raw_open(struct node *node, json_t *options, struct err *err)
{
    uint64_t offset = opt_u64(options, "offset", 0);
    uint64_t end;
    int r = node_open_file(node, options, err);

    if (r) {
        return r;
    }
    struct node *file = node->file->child;
    bool fixed = json_object_get(options, "size") != NULL;

    if (offset > file->size) {
        return err_set(err, -EINVAL,
                       "Offset %llu is behind the end of '%s' (%llu bytes)",
                       (unsigned long long)offset, node->filename,
                       (unsigned long long)file->size);
    }
    node->size = opt_u64(options, "size", file->size - offset);
    if (!add_ok(offset, node->size, &end) || end > file->size) {
        return err_set(err, -EINVAL,
                       "The size of raw node '%s' reaches behind the end of "
                       "its file (%llu bytes)",
                       node->name, (unsigned long long)file->size);
    }
    struct raw *raw = xzalloc(sizeof(*raw));

    raw->offset = offset;
    raw->fixed_size = fixed;
    node->is_part = offset || fixed;
    node->state = raw;
    node->limits.preferred = file->limits.preferred;
    return 0;
}

static int
raw_close(struct node *node)
{
    free(node->state);
    return 0;
}

static int
raw_map(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    struct raw *raw = node->state;

    *ret = (struct extent){EXTENT_DATA, len, off + raw->offset};
    return 0;
}

static int
raw_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
          struct range_hold *hold)
{
    struct raw *raw = node->state;

    return node_write(node->file->child, off + raw->offset, sg, flags, NULL);
}

static int
raw_clone(struct node *node, uint64_t off, struct node *from,
          uint64_t from_off, uint64_t len, unsigned flags,
          struct range_hold *hold)
{
    struct raw *raw = node->state;

    return node_clone(node->file->child, off + raw->offset, from, from_off,
                      len, flags, NULL);
}

static int
raw_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
         struct range_hold *hold)
{
    struct raw *raw = node->state;

    return node_zero(node->file->child, off + raw->offset, len, flags, NULL);
}

static int
raw_discard(struct node *node, uint64_t off, uint64_t len,
            struct range_hold *hold)
{
    struct raw *raw = node->state;

    return node_discard(node->file->child, off + raw->offset, len);
}

static int
raw_truncate(struct node *node, uint64_t size, struct err *err)
{
    struct raw *raw = node->state;

    if (raw->fixed_size) {
        return err_set(err, -ENOTSUP,
                       "Cannot resize raw node '%s': its size was given",
                       node->name);
    }
    int r = node_truncate(node->file->child, size + raw->offset, err);

    if (!r) {
        node->size = size;
    }
    return r;
}

const struct driver driver_raw = {
    .name = "raw",
    .is_filter = true,
    .open = raw_open,
    .close = raw_close,
    .map = raw_map,
    .write = raw_write,
    .clone = raw_clone,
    .zero = raw_zero,
    .discard = raw_discard,
    .truncate = raw_truncate,
};
