// SPDX-License-Identifier: BSD-3-Clause
/*
 * The chain index: one look-up for a read, however many layers lie below.
 *
 * The index of a node maps ranges of the disk to the layer, from that node
 * down, that holds them, and to the place in that layer's file.  It is composed
 * lazily: by windows of 512 granules, and in each only as far down as somebody
 * had to look, so that nobody waits for a layer that he does not need.  Windows
 * are dropped in the order of their last use when the budget is full.
 *
 * It stands only over layers that do not change under a reader: a node that
 * others overlay, or that is read-only.  Whatever does change one (a merge, a
 * stream into a layer below the guest's) says so around the change
 * (chain_index_change_begin/_end), and a new or dropped edge drops the indexes
 * above it.
 */
#ifndef SLUICE_BLOCK_CHAIN_INDEX_H
#define SLUICE_BLOCK_CHAIN_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"

struct node;

/* Where the first bytes of a range are, from a node down. */
struct chain_place {
    enum extent_kind kind; /* EXTENT_ENCODED: only `layer` can read it */
    uint64_t len;
    struct node *layer; /* NULL: in none; it reads zero */
    uint64_t host_off;  /* EXTENT_DATA: in the layer's file child */
};

/* Does an index of @node stand, or may one be made?  Does not yield. */
bool chain_index_usable(const struct node *node);

/*
 * The first place of [off, off + len), which lies within @node.  False where
 * it must be looked for layer by layer (clusters that are not aligned with one
 * another, a layer that is being changed; for a guest also while background
 * work, REQ_BACKGROUND in @flags, asks further layers).  Where true, *ret_error
 * is 0 or what a layer's look-up failed with.  Yields.
 */
bool chain_index_find(struct node *node, uint64_t off, uint64_t len,
                      unsigned flags, struct chain_place *ret, int *ret_error);

/*
 * Around every change of a node that others overlay: forgets what the indexes
 * above know of the range, and lets nothing of it in before the end.  Neither
 * yields.
 */
void chain_index_change_begin(struct node *node, uint64_t off, uint64_t len);
void chain_index_change_end(struct node *node);

/* The node's index and those of all nodes above it are void; no yield. */
void chain_index_drop(struct node *node);

#endif
