// SPDX-License-Identifier: BSD-3-Clause
/*
 * A stand-in for the block layer: block/block.h's functions over memory, with
 * a state per 4 KiB block.  `hold` makes every request wait until
 * fake_root_release(); `park` makes it wait until root_free(), as a request
 * does that waits for something outside; `fail` makes every request return it.
 */
#ifndef SLUICE_TESTS_FAKE_ROOT_H
#define SLUICE_TESTS_FAKE_ROOT_H

#include "block/block.h"
#include "run/wait.h"

enum { FAKE_BLOCK = 4096 };

struct root {
    struct loop *loop;
    uint8_t *data;
    uint8_t *kind; /* enum extent_kind, one each block */
    uint64_t size;
    bool writable, hold, park, closing;
    int fail;
    uint32_t min_align;
    unsigned n_held, n_flushes, n_fua, n_populates, n_reads;
    unsigned last_zero_flags;
    struct waitq held, parked, idle;
    bool *freed; /* set by root_free(); may be NULL */
};

struct root *fake_root_new(struct loop *loop, uint64_t size, bool writable);
void fake_root_release(struct root *root);

#endif
