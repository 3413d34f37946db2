// SPDX-License-Identifier: BSD-3-Clause
/* Views of scattered memory: every function walks the elements once. */
#include "base/sg.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"

/* One contiguous piece at the view's beginning; the view moves past it. */
static bool
next_piece(struct sg *sg, unsigned char **ret_p, size_t *ret_len)
{
    while (sg->len) {
        size_t here = sg->iov->iov_len - sg->skip;
        unsigned char *p = (unsigned char *)sg->iov->iov_base + sg->skip;

        if (here > sg->len) {
            here = sg->len;
        }
        sg->iov++;
        sg->skip = 0;
        sg->len -= here;
        if (here) {
            *ret_p = p;
            *ret_len = here;
            return true;
        }
    }
    return false;
}

struct sg
sg_slice(struct sg sg, uint64_t off, uint64_t len)
{
    assert(off <= sg.len && len <= sg.len - off);
    off += sg.skip;
    if (len) {
        while (off >= sg.iov->iov_len) {
            off -= sg.iov->iov_len;
            sg.iov++;
        }
    }
    return (struct sg){.iov = sg.iov, .skip = off, .len = len};
}

int
sg_to_iov(struct sg sg, struct iovec *iov, int max, uint64_t *ret_bytes)
{
    unsigned char *p;
    size_t len;
    int n = 0;

    *ret_bytes = 0;
    while (n < max && next_piece(&sg, &p, &len)) {
        iov[n++] = (struct iovec){p, len};
        *ret_bytes += len;
    }
    return n;
}

void
sg_copy_from(struct sg dst, const void *src)
{
    const unsigned char *s = src;
    unsigned char *p;
    size_t len;

    while (next_piece(&dst, &p, &len)) {
        memcpy(p, s, len);
        s += len;
    }
}

void
sg_copy_to(struct sg src, void *dst)
{
    unsigned char *d = dst;
    unsigned char *p;
    size_t len;

    while (next_piece(&src, &p, &len)) {
        memcpy(d, p, len);
        d += len;
    }
}

void
sg_zero(struct sg sg)
{
    unsigned char *p;
    size_t len;

    while (next_piece(&sg, &p, &len)) {
        memset(p, 0, len);
    }
}

bool
sg_is_zero(struct sg sg)
{
    unsigned char *p;
    size_t len;

    while (next_piece(&sg, &p, &len)) {
        if (!bytes_are_zero(p, len)) {
            return false;
        }
    }
    return true;
}

bool
sg_is_aligned(struct sg sg, size_t align)
{
    unsigned char *p;
    size_t len;

    while (next_piece(&sg, &p, &len)) {
        if (!is_aligned((uintptr_t)p, align) || !is_aligned(len, align)) {
            return false;
        }
    }
    return true;
}
