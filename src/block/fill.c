// SPDX-License-Identifier: BSD-3-Clause
/*
 * Filling a layer from below beside its guests: NBD's CACHE, copy-on-read.
 *
 * It reads what lies below, then writes it where the layer has nothing.  That is
 * right as long as a guest's write goes to the layer: then the layer has
 * something.  While a tap diverts writes to a layer below (a merge), it would
 * put old data over a new write, so it stays out; and since it counts as a
 * change of the layer, who attaches such a tap waits for those under way.
 */
#include "block/copy.h"

static bool
is_diverted(const struct node *node)
{
    list_for_each(it, &node->taps)
    {
        if (container_of(it, struct tap, link)->divert) {
            return true;
        }
    }
    return false;
}

int
node_fill(struct node *node, uint64_t off, uint64_t len, bool *ret_read_failed)
{
    struct copy copy = {.target = node, .fill = true, .flags = REQ_BACKGROUND};
    struct copy_result result = {0};
    int r = 0;

    if (!node->backing || node->read_only) {
        return 0;
    }
    unsigned token = grace_enter(&node->changes);

    if (!is_diverted(node)) {
        copy.source = node->backing->child;
        r = copy_range(&copy, off, len, &result);
    }
    grace_leave(&node->changes, token);
    *ret_read_failed = result.read_failed;
    return r;
}
