// SPDX-License-Identifier: BSD-3-Clause
/*
 * Transmission, what goes out: headers of simple replies and of structured
 * chunks, each the last of its reply.  Data and extents follow from the
 * caller's memory, so that nothing is copied.
 */
#include "wire/nbd.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

/* Spec, Error values. */
enum nbd_error
nbd_error_from_errno(int err)
{
    switch (err < 0 ? -err : err) {
    case 0:
        return NBD_OK;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

size_t
nbd_put_simple(uint8_t *p, uint64_t cookie, enum nbd_error error)
{
    st_be32(p, NBD_SIMPLE_REPLY_MAGIC);
    st_be32(p + 4, (uint32_t)error);
    st_be64(p + 8, cookie);
    return NBD_SIMPLE_REPLY_SIZE;
}

size_t
nbd_put_chunk(uint8_t *p, uint64_t cookie, uint16_t flags,
              enum nbd_reply_type type, uint32_t payload)
{
    st_be32(p, NBD_STRUCTURED_REPLY_MAGIC);
    st_be16(p + 4, flags);
    st_be16(p + 6, (uint16_t)type);
    st_be64(p + 8, cookie);
    st_be32(p + 16, payload);
    return NBD_CHUNK_SIZE;
}

size_t
nbd_put_none(uint8_t *p, uint64_t cookie)
{
    return nbd_put_chunk(p, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE,
                         0);
}

size_t
nbd_put_offset_data(uint8_t *p, uint64_t cookie, uint64_t offset, uint32_t len)
{
    nbd_put_chunk(p, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA,
                  8 + len);
    st_be64(p + NBD_CHUNK_SIZE, offset);
    return NBD_OFFSET_DATA_SIZE;
}

size_t
nbd_put_offset_hole(uint8_t *p, uint64_t cookie, uint64_t offset, uint32_t len)
{
    nbd_put_chunk(p, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_HOLE,
                  12);
    st_be64(p + NBD_CHUNK_SIZE, offset);
    st_be32(p + NBD_CHUNK_SIZE + 8, len);
    return NBD_OFFSET_HOLE_SIZE;
}

size_t
nbd_put_error(uint8_t *p, uint64_t cookie, enum nbd_error error,
              const char *text)
{
    size_t n = text ? min_u64(strlen(text), NBD_ERROR_TEXT_MAX) : 0;

    nbd_put_chunk(p, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                  (uint32_t)(6 + n));
    st_be32(p + NBD_CHUNK_SIZE, (uint32_t)error);
    st_be16(p + NBD_CHUNK_SIZE + 4, (uint16_t)n);
    if (n) {
        memcpy(p + NBD_CHUNK_SIZE + 6, text, n);
    }
    return NBD_CHUNK_SIZE + 6 + n;
}

size_t
nbd_put_status(uint8_t *p, uint64_t cookie, uint32_t context, uint32_t n)
{
    nbd_put_chunk(p, cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS,
                  4 + n * NBD_STATUS_EXTENT_SIZE);
    st_be32(p + NBD_CHUNK_SIZE, context);
    return NBD_STATUS_SIZE;
}

size_t
nbd_put_status_extent(uint8_t *p, uint32_t len, uint32_t state)
{
    st_be32(p, len);
    st_be32(p + 4, state);
    return NBD_STATUS_EXTENT_SIZE;
}
