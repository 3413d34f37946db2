// SPDX-License-Identifier: BSD-3-Clause
/*
 * throttle: a filter whose requests take their turns in a group with limits
 * (block/throttle.h).  Zero and discard requests count as writes of their
 * length; a flush passes, and so does the question where data is.
 *
 * It may stand below a format, whose file grows by being written to: so it
 * takes what lies behind its end, as a protocol does, and follows its child's
 * size.
 */
#include "block/throttle.h"

#include <errno.h>

#include "block/node.h"
#include "drivers/drivers.h"

static int
throttle_open(struct node *node, json_t *options, struct err *err)
{
    const char *group = opt_str(options, "throttle-group");
    int r = group ? node_open_file(node, options, err)
                  : err_set(err, -EINVAL,
                            "Parameter 'throttle-group' is missing");

    if (!r) {
        r = throttle_join(node, group, err);
    }
    if (r) {
        return r;
    }
    node->size = node->file->child->size;
    node->limits = node->file->child->limits;
    node->limits.min_align = 1; /* the child sees to its own alignment */
    return 0;
}

static int
throttle_close(struct node *node)
{
    throttle_leave(node);
    return 0;
}

static int
throttle_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    throttle_take(node, false, sg.len);
    return node_read(node->file->child, off, sg, flags);
}

/* A write may have made the file longer. */
static int
changed(struct node *node, int r)
{
    node->size = node->file->child->size;
    return r;
}

static int
throttle_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
               struct range_hold *hold)
{
    throttle_take(node, true, sg.len);
    return changed(node,
                   node_write(node->file->child, off, sg, flags, NULL));
}

static int
throttle_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
              struct range_hold *hold)
{
    throttle_take(node, true, len);
    return changed(node,
                   node_zero(node->file->child, off, len, flags, NULL));
}

static int
throttle_discard(struct node *node, uint64_t off, uint64_t len,
                 struct range_hold *hold)
{
    throttle_take(node, true, len);
    return node_discard(node->file->child, off, len);
}

static int
throttle_status(struct node *node, uint64_t off, uint64_t len,
                struct extent *ret)
{
    return chain_status(node->file->child, NULL, off, len, true, ret, NULL);
}

static int
throttle_truncate(struct node *node, uint64_t size, struct err *err)
{
    return changed(node, node_truncate(node->file->child, size, err));
}

const struct driver driver_throttle = {
    .name = "throttle",
    .is_protocol = true,
    .is_filter = true,
    .open = throttle_open,
    .close = throttle_close,
    .read = throttle_read,
    .write = throttle_write,
    .zero = throttle_zero,
    .discard = throttle_discard,
    .status = throttle_status,
    .truncate = throttle_truncate,
    .let_go = throttle_let_go,
};
