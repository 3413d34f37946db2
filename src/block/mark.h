// SPDX-License-Identifier: BSD-3-Clause
/*
 * The mark of an unfinished target (design rule 5): a bit in the image's
 * header, which other programs respect; where its format has no place for one
 * (raw), a record in the journal beside it, which only Sluice knows.
 */
#ifndef SLUICE_BLOCK_MARK_H
#define SLUICE_BLOCK_MARK_H

#include "block/node.h"

/*
 * Marks the image, or takes the mark away, durably; 0, -ENOTSUP, and @err as it
 * was, where it can have none (no local file, no place for a journal), or
 * another error, after which nobody knows.  Sets node->incomplete.  Yields.
 */
int node_set_incomplete(struct node *image, bool incomplete, struct err *err);
/*
 * The image was opened, which is in a file of its own: what its journal says of
 * that, where it has one.  Yields.
 */
void node_find_mark(struct node *image, bool has_journal);
/* What the journal of a file says of the raw image in it.  Yields. */
bool file_is_unfinished(const struct node *file);
/* Is the image that @node shows marked?  Does not yield. */
bool node_is_unfinished(struct node *node);

#endif
