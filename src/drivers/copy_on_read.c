// SPDX-License-Identifier: BSD-3-Clause
/*
 * copy-on-read: a filter whose reads bring what they touch into its child from
 * below, so that the next one finds it there.  It is filled by node_fill(), which
 * takes only what the child lacks, and holds the range only while it writes.
 *
 * It reads without `map`, since a look-up alone would pass the copy by.
 */
#include <errno.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"

enum { PIECE = 1 << 20 };

static int
cor_open(struct node *node, json_t *options, struct err *err)
{
    int r = node_open_file(node, options, err);

    if (r) {
        return r;
    }
    struct node *child = node->file->child;

    node->size = child->size;
    node->limits = child->limits;
    node->limits.min_align = 1; /* the child sees to its own alignment */
    return 0;
}

static int
cor_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    struct node *child = node->file->child;
    uint64_t unit = max_u64(child->cluster_size, 4096);
    uint64_t end = min_u64(align_up(off + sg.len, unit), child->size);

    for (uint64_t at = align_down(off, unit); at < end; at += PIECE) {
        bool read_failed = false;
        int r = node_fill(child, at, min_u64(PIECE, end - at), &read_failed);

        /* A full target must not fail a read; a lost source does. */
        if (r && read_failed) {
            return r;
        }
    }
    return node_read(child, off, sg, flags);
}

static int
cor_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
          struct range_hold *hold)
{
    return node_write(node->file->child, off, sg, flags, NULL);
}

static int
cor_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
         struct range_hold *hold)
{
    return node_zero(node->file->child, off, len, flags, NULL);
}

static int
cor_discard(struct node *node, uint64_t off, uint64_t len,
            struct range_hold *hold)
{
    return node_discard(node->file->child, off, len);
}

static int
cor_status(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    return chain_status(node->file->child, NULL, off, len, true, ret, NULL);
}

const struct driver driver_copy_on_read = {
    .name = "copy-on-read",
    .is_filter = true,
    .open = cor_open,
    .read = cor_read,
    .write = cor_write,
    .zero = cor_zero,
    .discard = cor_discard,
    .status = cor_status,
};
