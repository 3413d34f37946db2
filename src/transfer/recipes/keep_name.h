// SPDX-License-Identifier: BSD-3-Clause
/* The image that survives a merge takes the name of the disk's old file. */
#ifndef SLUICE_TRANSFER_RECIPES_KEEP_NAME_H
#define SLUICE_TRANSFER_RECIPES_KEEP_NAME_H

#include "transfer/engine.h"

/*
 * Can @base take @top's name?  -ENOTSUP or -EXDEV with what differs: the format
 * that whoever opens the name expects, the folder, the file system.  Where names
 * are links, the files that they lead to count.  Yields.
 */
int keep_name_check(const struct node *top, const struct node *base,
                    struct err *err);
/*
 * Renames the file of @base over @top's, durably, where neither is another file
 * by now; @base's nodes say so.  Before and after it the name shows the disk,
 * also where it is a link.
 * Yields.
 */
int keep_name(struct node *top, struct node *base, struct err *err);

#endif
