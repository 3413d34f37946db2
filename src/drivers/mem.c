// SPDX-License-Identifier: BSD-3-Clause
/*
 * Protocols without a file: `mem`, an array of memory for tests (option
 * `size`), and `null-co`, which forgets what is written (for measuring).
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"

enum { MEM_SIZE_MAX = 1 << 30 };

static int
mem_open(struct node *node, json_t *options, struct err *err)
{
    node->size = opt_u64(options, "size", 1 << 20);
    if (node->size > MEM_SIZE_MAX) {
        return err_set(err, -EFBIG, "A mem node has at most 1 GiB");
    }
    node->state = try_alloc(node->size);
    if (!node->state) {
        return err_set(err, -ENOMEM, "No memory for node '%s'", node->name);
    }
    memset(node->state, 0, node->size);
    return 0;
}

static int
mem_close(struct node *node)
{
    free(node->state);
    return 0;
}

static int
mem_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    uint64_t here = off < node->size ? min_u64(sg.len, node->size - off) : 0;

    if (here) {
        sg_copy_from(sg_slice(sg, 0, here), (char *)node->state + off);
    }
    sg_zero(sg_slice(sg, here, sg.len - here));
    return 0;
}

static int
mem_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
          struct range_hold *hold)
{
    if (off + sg.len > node->size) {
        return -ENOSPC;
    }
    sg_copy_to(sg, (char *)node->state + off);
    return 0;
}

static int
mem_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
         struct range_hold *hold)
{
    if (off + len > node->size) {
        return -ENOSPC;
    }
    memset((char *)node->state + off, 0, len);
    return 0;
}

const struct driver driver_mem = {
    .name = "mem",
    .is_protocol = true,
    .open = mem_open,
    .close = mem_close,
    .read = mem_read,
    .write = mem_write,
    .zero = mem_zero,
};

static int
null_open(struct node *node, json_t *options, struct err *err)
{
    node->size = opt_u64(options, "size", 1ULL << 30);
    return 0;
}

static int
null_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    sg_zero(sg);
    return 0;
}

static int
null_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           struct range_hold *hold)
{
    return 0;
}

const struct driver driver_null = {
    .name = "null-co",
    .is_protocol = true,
    .open = null_open,
    .read = null_read,
    .write = null_write,
};
