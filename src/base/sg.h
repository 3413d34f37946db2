// SPDX-License-Identifier: BSD-3-Clause
/*
 * A view of scattered memory: where a request's data lies.  A view is passed
 * by value, owns nothing and can be cut without allocating; the iovec array
 * and the memory stay with whoever made them and must outlive the request.
 */
#ifndef SLUICE_BASE_SG_H
#define SLUICE_BASE_SG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct sg {
    const struct iovec *iov; /* first element in use */
    size_t skip;             /* bytes of the first element to pass over */
    uint64_t len;            /* bytes in the view */
};

/* A view of one iovec, which the caller keeps alive. */
static inline struct sg
sg_one(const struct iovec *iov)
{
    return (struct sg){.iov = iov, .len = iov->iov_len};
}

/* The part [off, off + len) of a view; asserts that it lies inside. */
struct sg sg_slice(struct sg sg, uint64_t off, uint64_t len);
/*
 * Writes at most @max elements for the view's beginning into @iov; returns
 * their number and in *ret_bytes how much of the view they cover.
 */
int sg_to_iov(struct sg sg, struct iovec *iov, int max, uint64_t *ret_bytes);
void sg_copy_from(struct sg dst, const void *src); /* dst.len bytes */
void sg_copy_to(struct sg src, void *dst);         /* src.len bytes */
void sg_zero(struct sg sg);
bool sg_is_zero(struct sg sg);
/* True where every element's address and length are multiples of @align. */
bool sg_is_aligned(struct sg sg, size_t align);

#endif
