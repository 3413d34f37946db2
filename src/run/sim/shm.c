// SPDX-License-Identifier: BSD-3-Clause
/* Shared memory of the simulator: it lies with the disk. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "run/shm.h"
#include "run/sim/disk.h"
#include "run/sim/world.h"

struct region {
    struct shm shm;
    struct list link; /* of the disk */
    struct sim_spares *spares; /* where it goes; NULL: nowhere */
    char *name;
    uint64_t mapped, reserved; /* only what is reserved was ever touched */
    uint64_t limit;            /* of `reserved` */
    bool is_open;
};

static void
region_unmap(struct region *r)
{
    list_remove(&r->link);
    munmap(r->shm.base, r->mapped);
    free(r);
}

void
spare_regions_free(struct sim_spares *spares)
{
    list_for_each_safe (it, &spares->regions) {
        region_unmap(container_of(it, struct region, link));
    }
}

static void
region_free(struct region *r)
{
    free(take_ptr(r->name));
    if (!r->spares) {
        region_unmap(r);
        return;
    }
    memset(r->shm.base, 0, r->reserved);
    list_remove(&r->link);
    list_push_front(&r->spares->regions, &r->link);
}

/* One that is large enough and all zero. */
static struct region *
take_spare(struct sim_spares *spares, uint64_t size)
{
    list_for_each (it, &spares->regions) {
        struct region *r = container_of(it, struct region, link);

        if (r->mapped >= size) {
            list_remove(it);
            return r;
        }
    }
    return NULL;
}

static int
reserve(struct shm *shm, uint64_t len)
{
    struct region *r = container_of(shm, struct region, shm);

    if (len > r->limit) {
        return -ENOSPC;
    }
    r->reserved = r->reserved > len ? r->reserved : len;
    return 0;
}

static void
sim_shm_close(struct shm *shm, bool remove)
{
    struct region *r = container_of(shm, struct region, shm);

    r->is_open = false;
    if (remove) {
        region_free(r);
    }
}

static const struct shm_ops ops = {reserve, sim_shm_close};

static struct region *
region_map(uint64_t size)
{
    struct region *r = xzalloc(sizeof(*r));

    /* Most of it is never touched. */
    r->shm.base = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (r->shm.base == MAP_FAILED) {
        abort();
    }
    r->mapped = size;
    return r;
}

static struct region *
region_new(struct sim_disk *disk, const char *name, uint64_t size)
{
    struct region *r = disk->spares ? take_spare(disk->spares, size) : NULL;

    r = r ? r : region_map(size);
    r->shm.ops = &ops;
    r->shm.size = size;
    r->limit = disk->shm_bytes ? min_u64(disk->shm_bytes, size) : size;
    r->spares = disk->spares;
    r->reserved = 0;
    r->name = xstrdup(name);
    list_push(&disk->regions, &r->link);
    return r;
}

static struct region *
find(struct sim_disk *disk, const char *name)
{
    list_for_each (it, &disk->regions) {
        struct region *r = container_of(it, struct region, link);

        if (!strcmp(r->name, name)) {
            return r;
        }
    }
    return NULL;
}

int
world_shm_open(struct loop *loop, const char *name, uint64_t size,
               struct shm **ret)
{
    struct sim_disk *disk = sim_world_disk(sim_of(loop));
    struct region *r = find(disk, name);

    if (r && r->is_open) {
        return -EBUSY;
    }
    if (size) {
        if (r) {
            region_free(r);
        }
        r = region_new(disk, name, size);
    }
    if (!r) {
        return -ENOENT;
    }
    r->is_open = true;
    *ret = &r->shm;
    return 0;
}

void
disk_copy_regions(struct sim_disk *to, const struct sim_disk *from)
{
    list_for_each (it, &from->regions) {
        const struct region *old = container_of(it, struct region, link);

        struct region *r = region_new(to, old->name, old->shm.size);

        r->reserved = old->reserved;
        memcpy(r->shm.base, old->shm.base, old->reserved);
    }
}

void
disk_free_regions(struct sim_disk *disk)
{
    list_for_each_safe (it, &disk->regions) {
        region_free(container_of(it, struct region, link));
    }
}
