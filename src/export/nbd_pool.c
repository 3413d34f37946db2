// SPDX-License-Identifier: BSD-3-Clause
/*
 * The buffers of one connection's requests.  A class's free buffers form a
 * stack, so that the warmest one is used next.  Sizes above the largest class
 * come from and go to the allocator.
 *
 * What is in use is bounded by the connection (NBD_CLIENT_BYTES_MAX), what is
 * idle here by NBD_CLIENT_IDLE_BYTES_MAX.
 */
#include "export/nbd_internal.h"

enum { ALIGN = 4096 };

static unsigned
class_of(uint64_t len)
{
    unsigned shift = NBD_POOL_SHIFT_MIN;

    while (shift < NBD_POOL_SHIFT_MAX && (1ULL << shift) < len) {
        shift++;
    }
    return shift - NBD_POOL_SHIFT_MIN;
}

static uint64_t
class_size(unsigned class)
{
    return 1ULL << (class + NBD_POOL_SHIFT_MIN);
}

void *
nbd_pool_get(struct nbd_pool *pool, uint64_t len)
{
    unsigned class = class_of(len);
    void *p = pool->idle[class];

    if (len > class_size(class)) {
        return try_alloc_aligned(ALIGN, align_up(len, ALIGN));
    }
    if (!p) {
        return try_alloc_aligned(ALIGN, class_size(class));
    }
    pool->idle[class] = *(void **)p;
    pool->idle_bytes -= class_size(class);
    return p;
}

void
nbd_pool_put(struct nbd_pool *pool, void *p, uint64_t len)
{
    unsigned class = class_of(len);
    uint64_t size = class_size(class);

    if (!p || len > size ||
        pool->idle_bytes + size > NBD_CLIENT_IDLE_BYTES_MAX) {
        free(p);
        return;
    }
    *(void **)p = pool->idle[class];
    pool->idle[class] = p;
    pool->idle_bytes += size;
}

void
nbd_pool_fini(struct nbd_pool *pool)
{
    for (unsigned class = 0; class < ARRAY_LEN(pool->idle); class++) {
        while (pool->idle[class]) {
            void *p = pool->idle[class];

            pool->idle[class] = *(void **)p;
            free(p);
        }
    }
    pool->idle_bytes = 0;
}
