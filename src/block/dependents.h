// SPDX-License-Identifier: BSD-3-Clause
/* Who would miss an image that is to be deleted or changed. */
#ifndef SLUICE_BLOCK_DEPENDENTS_H
#define SLUICE_BLOCK_DEPENDENTS_H

#include "block/node.h"

/* An image, and an overlay of it that will not need it (NULL: none). */
struct dependents_of {
    struct node *node;
    const struct node *except;
};

struct dependents_search {
    const char *const *folders; /* to be searched besides */
    size_t n_folders;
    bool stays;     /* its data goes, not its file */
    bool is_opened_to_look; /* read-only for that alone */
    bool may_be_device; /* whose header goes */
    bool exclusive; /* the operator says that nobody outside uses it */
};

/*
 * 0 where nobody uses the files of these @n images: no other node here, no other
 * program by QEMU's locks, no qcow2 or QED image as its backing file.  Such are
 * looked for in their folders, in those of all images that stand on them here,
 * and in @how->folders; not in folders in these.  Each file there is looked at
 * once, however many images are asked for.
 *
 * -EBUSY with what was searched and found, also where a hard link of one was not
 * found; where the file is to go, -EACCES where it is read-only, -ENOTSUP where
 * it is no regular file.  A block device has no folder of its own.  Yields; the
 * nodes are the caller's until then.
 */
int dependents_check(const struct dependents_of *of, size_t n,
                     const struct dependents_search *how, struct err *err);

#endif
