// SPDX-License-Identifier: BSD-3-Clause
/* Who would miss an image that is to be deleted or changed. */
#ifndef SLUICE_BLOCK_DEPENDENTS_H
#define SLUICE_BLOCK_DEPENDENTS_H

#include "block/node.h"

struct dependents_search {
    struct node *node;
    const struct node *except; /* an overlay that will not need it; or NULL */
    const char *const *folders; /* to be searched besides */
    size_t n_folders;
    bool stays;     /* its data goes, not its file */
    bool is_opened_to_look; /* read-only for that alone */
    bool may_be_device; /* whose header goes */
    bool exclusive; /* the operator says that nobody outside uses it */
};

/*
 * 0 where nobody uses the image's file: no other node here, no other program
 * by QEMU's locks, no qcow2 or QED image as its backing file.  These are looked
 * for in its folder, in those of all images that stand on it here (and on
 * @except), and in @folders; not in folders in these.  -EBUSY with what was
 * searched and found, also where a hard link of it was not found; where the
 * file is to go, -EACCES where it is read-only, -ENOTSUP where it is no regular
 * file.  A block device has no folder of its own.  Yields.
 */
int dependents_check(const struct dependents_search *search, struct err *err);
/*
 * Of each layer below @top that is above @bottom (NULL: of all), except by the
 * layer over it; @how->node and @how->except are not used.  Looks at each file
 * once, however many layers there are.  The chain stays as it is meanwhile.
 */
int dependents_check_below(struct node *top, const struct node *bottom,
                           const struct dependents_search *how,
                           struct err *err);

#endif
