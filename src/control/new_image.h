// SPDX-License-Identifier: BSD-3-Clause
/* Images that a command makes for itself: overlays, and targets of copies. */
#ifndef SLUICE_CONTROL_NEW_IMAGE_H
#define SLUICE_CONTROL_NEW_IMAGE_H

#include "block/node.h"

struct new_image {
    const char *format, *path;
    uint64_t size;
    const struct node *backing; /* what its header is to name; NULL: nothing */
};

/*
 * Makes the image; *ret_made is its path where there was no file of that name,
 * which the caller frees, and may remove.  QEMU's texts.  Yields.
 */
int new_image_create(struct graph *graph, const struct new_image *image,
                     char **ret_made, struct err *err);
/* Do both paths, which are copied, lead to one file?  Yields. */
bool is_same_file(struct loop *loop, const char *a, const char *b);

#endif
