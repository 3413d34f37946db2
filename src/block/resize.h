// SPDX-License-Identifier: BSD-3-Clause
/* Changing the size of a disk while it is used. */
#ifndef SLUICE_BLOCK_RESIZE_H
#define SLUICE_BLOCK_RESIZE_H

#include "block/node.h"

/*
 * Makes @node @size bytes long, and the filters above it.  What is added reads
 * zero, also where the backing file is longer.  Requests that began before it
 * see the old size.  -EBUSY where somebody above needs that nobody writes to
 * it, or a job holds it; -ETIMEDOUT where requests in flight had to be waited
 * for and did not end in time.  Yields.
 */
int node_resize(struct node *node, uint64_t size, uint64_t deadline_ns,
                struct err *err);
/*
 * -EBUSY while that is under way: for who relies on the size from now on.
 * Does not yield.
 */
int check_not_resizing(const struct node *node, struct err *err);

#endif
