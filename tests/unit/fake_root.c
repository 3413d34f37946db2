// SPDX-License-Identifier: BSD-3-Clause
/* The block layer's interface over an array. */
#include "fake_root.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "run/coro.h"

struct root *
fake_root_new(struct loop *loop, uint64_t size, bool writable)
{
    struct root *root = xzalloc(sizeof(*root));

    root->loop = loop;
    root->data = xzalloc(size);
    root->kind = xzalloc(div_up(size, FAKE_BLOCK));
    root->size = size;
    root->writable = writable;
    root->min_align = 1;
    waitq_init(&root->held);
    waitq_init(&root->parked);
    waitq_init(&root->idle);
    return root;
}

void
fake_root_release(struct root *root)
{
    root->hold = false;
    waitq_wake_all(&root->held);
}

void
root_free(struct root *root)
{
    /* As the real one: what is parked returns, what is in flight is awaited. */
    root->closing = true;
    waitq_wake_all(&root->parked);
    while (root->n_held) {
        waitq_wait(&root->idle);
    }
    if (root->freed) {
        *root->freed = true;
    }
    free(root->data);
    free(root->kind);
    free(root);
}

struct loop *
root_loop(const struct root *root)
{
    return root->loop;
}

bool
root_writable(const struct root *root)
{
    return root->writable;
}

uint64_t
root_size(const struct root *root)
{
    return root->size;
}

void
root_limits(const struct root *root, struct block_limits *ret)
{
    *ret = (struct block_limits){root->min_align, 65536, 32 * MIB};
}

/* What every request does first. */
static int
enter(struct root *root, uint64_t off, uint64_t len)
{
    root->n_held++;
    while (root->hold) {
        waitq_wait(&root->held);
    }
    while (root->park && !root->closing) {
        waitq_wait(&root->parked);
    }
    if (--root->n_held == 0) {
        waitq_wake_all(&root->idle);
    }
    if (root->park) {
        return -ESHUTDOWN;
    }
    if (off > root->size || len > root->size - off) {
        return -EINVAL;
    }
    return root->fail;
}

static void
mark(struct root *root, uint64_t off, uint64_t len, enum extent_kind kind)
{
    /* Only whole blocks become zero; any touch makes a block data. */
    uint64_t first =
        kind == EXTENT_DATA ? off / FAKE_BLOCK : div_up(off, FAKE_BLOCK);
    uint64_t end = kind == EXTENT_DATA || off + len == root->size
                       ? div_up(off + len, FAKE_BLOCK)
                       : (off + len) / FAKE_BLOCK;

    for (uint64_t i = first; i < end; i++) {
        root->kind[i] = (uint8_t)kind;
    }
}

int
root_read(struct root *root, uint64_t off, struct sg sg, unsigned flags)
{
    int r = enter(root, off, sg.len);

    if (!r) {
        root->n_reads++;
        sg_copy_from(sg, root->data + off);
    }
    return r;
}

int
root_write(struct root *root, uint64_t off, struct sg sg, unsigned flags)
{
    int r = enter(root, off, sg.len);

    if (!r) {
        root->n_fua += (flags & REQ_FUA) != 0;
        sg_copy_to(sg, root->data + off);
        mark(root, off, sg.len, EXTENT_DATA);
    }
    return r;
}

int
root_zero(struct root *root, uint64_t off, uint64_t len, unsigned flags)
{
    int r = enter(root, off, len);

    if (r) {
        return r;
    }
    root->last_zero_flags = flags;
    if ((flags & REQ_NO_FALLBACK) && !is_aligned(off | len, FAKE_BLOCK)) {
        return -ENOTSUP;
    }
    memset(root->data + off, 0, len);
    mark(root, off, len,
         flags & REQ_MAY_UNMAP ? EXTENT_UNALLOCATED : EXTENT_ZERO);
    return 0;
}

int
root_discard(struct root *root, uint64_t off, uint64_t len)
{
    return root_zero(root, off, len, REQ_MAY_UNMAP);
}

int
root_flush(struct root *root)
{
    int r = enter(root, 0, 0);

    root->n_flushes += !r;
    return r;
}

int
root_status(struct root *root, uint64_t off, uint64_t len, struct extent *ret)
{
    int r = enter(root, off, len);
    uint64_t end = off;

    if (r) {
        return r;
    }
    enum extent_kind kind = root->kind[off / FAKE_BLOCK];

    while (end < off + len && root->kind[end / FAKE_BLOCK] == kind) {
        end = align_down(end, FAKE_BLOCK) + FAKE_BLOCK;
    }
    *ret = (struct extent){.kind = kind, .len = min_u64(end - off, len)};
    return 0;
}

int
root_populate(struct root *root, uint64_t off, uint64_t len)
{
    int r = enter(root, off, len);

    root->n_populates += !r;
    return r;
}
