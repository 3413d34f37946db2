// SPDX-License-Identifier: BSD-3-Clause
/* See sweep_grow() in sweep.h. */
#include <string.h>

#include "base/bytes.h"
#include "block/resize.h"
#include "sim/sweep.h"

enum { SECTOR = 512, ROUNDS = 6, ADDED = 3 };

struct round {
    struct sweep *s;
    uint64_t end; /* of the disk, in sectors, before it grows */
    bool discards, over, failed;
};

/* The last cluster as far as there is a disk; what is behind that, too? */
static void
empty_the_end(void *arg)
{
    struct round *r = arg;
    uint64_t end = r->end * SECTOR;
    uint64_t off = align_down(end - 1, r->s->top->cluster_size);
    uint64_t len = end - off;

    r->failed = r->discards
                    ? root_discard(r->s->root, off, len)
                    : root_zero(r->s->root, off, len, REQ_MAY_UNMAP);
    r->over = true;
}

static bool
reads_as(struct sweep *s, uint64_t sector, uint64_t tag)
{
    unsigned char want[SECTOR], got[SECTOR];
    struct iovec iov = {got, SECTOR};

    sector_fill(want, tag);
    return root_read(s->root, sector * SECTOR, sg_one(&iov), 0) ||
           !memcmp(want, got, SECTOR);
}

static int
grow_and_write(struct sweep *s, uint64_t end, uint64_t tag)
{
    unsigned char buf[ADDED * SECTOR];
    struct iovec iov = {buf, sizeof(buf)};
    int r = node_resize(s->top, (end + ADDED) * SECTOR, NEVER, NULL);

    for (unsigned i = 0; i < ADDED; i++) {
        sector_fill(buf + i * SECTOR, tag);
    }
    return r ? r : root_write(s->root, end * SECTOR, sg_one(&iov), 0);
}

static bool
grow_once(struct sweep *s, uint64_t tag)
{
    struct round r = {
        .s = s, .end = s->top->size / SECTOR, .discards = tag & 1};

    coro_start(sim_loop(s->sim), empty_the_end, &r);
    coro_sleep(sim_random(&s->rng) % (NS_PER_MS / 4));
    bool failed = grow_and_write(s, r.end, tag);

    while (!r.over) {
        coro_sleep(NS_PER_MS / 10);
    }
    failed |= r.failed;
    if (failed && !s->may_fail) {
        sweep_fail(s, "the disk does not grow while its end is emptied");
    }
    for (unsigned i = 0; i < ADDED && !failed; i++) {
        if (!reads_as(s, r.end + i, tag)) {
            sweep_fail(s, "what was written to the new end is not there");
        }
    }
    return !failed;
}

void
sweep_grow(struct sweep *s)
{
    /* First beyond the clusters of what the oracle knows. */
    uint64_t end = align_up(s->top->size, s->top->cluster_size) / SECTOR;
    bool goes_on = !grow_and_write(s, end, 1);

    for (unsigned i = 0; i < ROUNDS && goes_on; i++) {
        goes_on = grow_once(s, 2 + i);
    }
}
