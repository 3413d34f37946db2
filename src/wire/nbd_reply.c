// SPDX-License-Identifier: BSD-3-Clause
/*
 * Transmission, what goes out, in one of three forms:
 *
 *   simple      16 bytes; without negotiation the only one
 *   structured  20 bytes and a payload, whose length stands in the header
 *   extended    32 bytes and a payload; then no other form is allowed
 *
 * With structured replies a success without data is still a simple reply: the
 * specification allows it and it is the shortest (spec, Simple reply message).
 *
 * Every chunk is the last of its reply.  Data and extents follow from the
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

static size_t
put_simple(uint8_t *p, const struct nbd_request *rq, enum nbd_error error)
{
    st_be32(p, NBD_SIMPLE_REPLY_MAGIC);
    st_be32(p + 4, (uint32_t)error);
    st_be64(p + 8, rq->cookie);
    return NBD_SIMPLE_REPLY_SIZE;
}

/* The header of a reply's only chunk, with @payload bytes behind it. */
static size_t
put_chunk(uint8_t *p, const struct nbd_session *session,
          const struct nbd_request *rq, enum nbd_reply_type type,
          uint32_t payload)
{
    st_be32(p, session->extended ? NBD_EXTENDED_REPLY_MAGIC
                                 : NBD_STRUCTURED_REPLY_MAGIC);
    st_be16(p + 4, NBD_REPLY_FLAG_DONE);
    st_be16(p + 6, (uint16_t)type);
    st_be64(p + 8, rq->cookie);
    if (!session->extended) {
        st_be32(p + 16, payload);
        return NBD_CHUNK_SIZE;
    }
    st_be64(p + 16, rq->offset);
    st_be64(p + 24, payload);
    return NBD_EXTENDED_CHUNK_SIZE;
}

size_t
nbd_put_ok(uint8_t *p, const struct nbd_session *session,
           const struct nbd_request *rq)
{
    /* Spec, Simple reply message: never one as the answer to a read. */
    bool chunk =
        session->extended || (session->structured && rq->type == NBD_CMD_READ);

    return chunk ? put_chunk(p, session, rq, NBD_REPLY_TYPE_NONE, 0)
                 : put_simple(p, rq, NBD_OK);
}

size_t
nbd_put_error(uint8_t *p, const struct nbd_session *session,
              const struct nbd_request *rq, enum nbd_error error,
              const char *text)
{
    size_t n = text ? min_u64(strlen(text), NBD_ERROR_TEXT_MAX) : 0;

    if (!session->structured) {
        return put_simple(p, rq, error);
    }
    size_t at =
        put_chunk(p, session, rq, NBD_REPLY_TYPE_ERROR, (uint32_t)(6 + n));

    st_be32(p + at, (uint32_t)error);
    st_be16(p + at + 4, (uint16_t)n);
    if (n) {
        memcpy(p + at + 6, text, n);
    }
    return at + 6 + n;
}

size_t
nbd_put_data(uint8_t *p, const struct nbd_session *session,
             const struct nbd_request *rq)
{
    /* A data chunk cannot be empty (spec, NBD_REPLY_TYPE_OFFSET_DATA). */
    if (!rq->length) {
        return nbd_put_ok(p, session, rq);
    }
    if (!session->structured) {
        return put_simple(p, rq, NBD_OK);
    }
    size_t at = put_chunk(p, session, rq, NBD_REPLY_TYPE_OFFSET_DATA,
                          (uint32_t)(8 + rq->length));

    st_be64(p + at, rq->offset);
    return at + 8;
}

size_t
nbd_put_hole(uint8_t *p, const struct nbd_session *session,
             const struct nbd_request *rq)
{
    size_t at = put_chunk(p, session, rq, NBD_REPLY_TYPE_OFFSET_HOLE, 12);

    st_be64(p + at, rq->offset);
    st_be32(p + at + 8, (uint32_t)rq->length);
    return at + 12;
}

size_t
nbd_put_status(uint8_t *p, const struct nbd_session *session,
               const struct nbd_request *rq, uint32_t context, uint32_t n)
{
    size_t at;

    if (!session->extended) {
        at = put_chunk(p, session, rq, NBD_REPLY_TYPE_BLOCK_STATUS, 4 + n * 8);
        st_be32(p + at, context);
        return at + 4;
    }
    at = put_chunk(p, session, rq, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 8 + n * 16);
    st_be32(p + at, context);
    st_be32(p + at + 4, n);
    return at + 8;
}

size_t
nbd_put_extent(uint8_t *p, const struct nbd_session *session, uint64_t len,
               uint32_t state)
{
    if (!session->extended) {
        st_be32(p, (uint32_t)len);
        st_be32(p + 4, state);
        return 8;
    }
    st_be64(p, len);
    st_be64(p + 8, state);
    return 16;
}
