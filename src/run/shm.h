// SPDX-License-Identifier: BSD-3-Clause
/*
 * Shared memory that outlives the process, but not the machine (rule 10).
 *
 * A region has a name; one process at a time has it open.  Real ones are files
 * on tmpfs, of this user and this boot.
 */
#ifndef SLUICE_RUN_SHM_H
#define SLUICE_RUN_SHM_H

#include "run/loop.h"

struct shm_ops;

struct shm {
    const struct shm_ops *ops;
    unsigned char *base;
    uint64_t size;
};

struct shm_ops {
    int (*reserve)(struct shm *shm, uint64_t len);
    void (*close)(struct shm *shm, bool remove);
};

/*
 * @size 0 opens the region of that name: -ENOENT where there is none, -EBUSY
 * where another process has it open.  Else it makes one of @size bytes, all
 * zero, in the place of an old one.  Does not yield.
 */
static inline int
shm_open_region(struct loop *loop, const char *name, uint64_t size,
                struct shm **ret)
{
    return loop->ops->shm_open(loop, name, size, ret);
}

/*
 * The first @len bytes may be written to from here on: -ENOSPC where there is
 * not so much memory.  Does not yield.
 */
static inline int
shm_reserve(struct shm *shm, uint64_t len)
{
    return shm->ops->reserve(shm, len);
}

/* Frees; @remove: also the region.  Does not yield. */
static inline void
shm_close(struct shm *shm, bool remove)
{
    shm->ops->close(shm, remove);
}

#endif
