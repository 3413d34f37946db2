// SPDX-License-Identifier: BSD-3-Clause
/*
 * Layers of unequal sizes in a merge (docs/design/merge.md, "Sizes").
 *
 * Behind its end a layer reads zero, whatever those below it hold there.  All
 * that are merged get the disk's size; so that nothing comes to light, the top
 * holds these zeroes first, durably, and they sink with the rest.
 */
#include "transfer/recipes/recipes.h"

/* How far what lies below @layer reaches. */
static uint64_t
reach_below(const struct node *layer)
{
    uint64_t reach = 0;

    while (layer->backing) {
        layer = layer->backing->child;
        reach = max_u64(reach, layer->size);
    }
    return reach;
}

/*
 * How much of @ext, at @off, reads zero only because @layer ends before it,
 * over data that would show.
 */
static uint64_t
hidden_by_end(const struct node *top, const struct node *layer, uint64_t off,
              const struct extent *ext)
{
    uint64_t reach = layer ? reach_below(layer) : 0;

    return layer && layer != top && off >= layer->size && off < reach
               ? min_u64(ext->len, reach - off)
               : 0;
}

/* One step of hold_zeroes(): a guest's write may come first. */
static int
hold_step(struct node *top, struct node *bottom, uint64_t off,
          uint64_t *ret_len)
{
    struct range_hold hold;
    struct extent ext;
    struct node *layer;
    uint64_t unit = top->cluster_size;
    int r = chain_status(top, bottom, off, top->size - off, false, &ext, &layer);
    uint64_t len = r ? 0 : hidden_by_end(top, layer, off, &ext);

    *ret_len = len ? len : ext.len;
    if (r || !len) {
        return r;
    }
    range_lock_take(&top->ranges, &hold, align_down(off, unit),
                    align_up(off + len, unit), RANGE_EXCLUSIVE);
    r = chain_status(top, bottom, off, len, false, &ext, &layer);
    if (!r) {
        *ret_len = ext.len;
        if (hidden_by_end(top, layer, off, &ext)) {
            r = node_zero(top, off, ext.len, REQ_BACKGROUND, &hold);
        }
    }
    range_lock_release(&top->ranges, &hold);
    return r;
}

/* What lies behind the end of a layer down to @base, where that matters. */
static int
hold_zeroes(struct node *top, struct node *base)
{
    struct node *bottom = base->backing ? base->backing->child : NULL;
    uint64_t off = top->size;
    int r = 0;

    for (struct node *n = top; n != base; n = n->backing->child) {
        off = min_u64(off, n->backing->child->size);
    }
    while (off < top->size && !r) {
        uint64_t len;

        r = hold_step(top, bottom, off, &len);
        off += len;
        coro_relax();
    }
    return r ? r : node_flush(top);
}

int
merge_match_sizes(struct node *top, struct node *base, struct err *err)
{
    int r = hold_zeroes(top, base);

    if (r) {
        return err_set_errno(err, r, "Writing '%s' failed", top->name);
    }
    for (struct node *n = top; n != base && !r; n = n->backing->child) {
        struct node *below = n->backing->child;

        r = below->size < top->size ? node_truncate(below, top->size, err) : 0;
    }
    return r;
}
