// SPDX-License-Identifier: BSD-3-Clause
/*
 * Transmission, what comes in: the request header, and whether the session
 * allows the request.
 *
 * The checks are a table by command (which flags it takes, whether it writes,
 * which error a range past the end has) and then what is particular to one.
 * They are strict, so that nothing behind them needs to doubt a range.
 */
#include "wire/nbd.h"

#include "base/bytes.h"
#include "base/mem.h"

struct command {
    uint16_t flags; /* allowed besides FUA, which every command takes */
    bool writes, has_range;
    enum nbd_error past_end;
};

/*
 * Spec, Error values: ENOSPC for a write beyond the end of the device, EINVAL
 * for other ranges.  FUA is valid with every command (spec, Command flags).
 */
static const struct command commands[] = {
    [NBD_CMD_READ] = {.flags = NBD_CMD_FLAG_DF,
                      .has_range = true,
                      .past_end = NBD_EINVAL},
    [NBD_CMD_WRITE] = {.writes = true,
                       .has_range = true,
                       .past_end = NBD_ENOSPC},
    [NBD_CMD_DISC] = {0},
    [NBD_CMD_FLUSH] = {0},
    [NBD_CMD_TRIM] = {.writes = true,
                      .has_range = true,
                      .past_end = NBD_EINVAL},
    [NBD_CMD_CACHE] = {.has_range = true, .past_end = NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {.flags =
                                  NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              .writes = true,
                              .has_range = true,
                              .past_end = NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {.flags = NBD_CMD_FLAG_REQ_ONE,
                              .has_range = true,
                              .past_end = NBD_EINVAL},
};

size_t
nbd_request_size(const struct nbd_session *session)
{
    return session->extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}

bool
nbd_request_parse(const struct nbd_session *session, const uint8_t *p,
                  struct nbd_request *ret)
{
    if (ld_be32(p) !=
        (session->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        return false;
    }
    *ret = (struct nbd_request){
        .flags = ld_be16(p + 4),
        .type = ld_be16(p + 6),
        .cookie = ld_be64(p + 8),
        .offset = ld_be64(p + 16),
        .length = session->extended ? ld_be64(p + 24) : ld_be32(p + 24),
    };
    return true;
}

/* Spec, Request message: an extended header says itself whether data comes. */
uint64_t
nbd_request_payload(const struct nbd_session *session,
                    const struct nbd_request *rq)
{
    bool payload = session->extended
                       ? (rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN) != 0
                       : rq->type == NBD_CMD_WRITE;

    return payload ? rq->length : 0;
}

static enum nbd_error
refuse(const char **ret_text, enum nbd_error error, const char *text)
{
    *ret_text = text;
    return error;
}

/* What is particular to one command. */
static enum nbd_error
check_particular(const struct nbd_session *session,
                 const struct nbd_request *rq, const char **ret_text)
{
    switch (rq->type) {
    case NBD_CMD_READ:
        if (rq->length <= NBD_DATA_MAX) {
            return NBD_OK;
        }
        /* Spec, NBD_CMD_READ: a length that cannot be sent in one chunk. */
        if (rq->flags & NBD_CMD_FLAG_DF) {
            return refuse(ret_text, NBD_EOVERFLOW, "too large for one chunk");
        }
        return refuse(ret_text, NBD_EINVAL, "read of more than 32 MiB");
    case NBD_CMD_WRITE:
        if (rq->length > NBD_DATA_MAX) {
            return refuse(ret_text, NBD_EINVAL, "write of more than 32 MiB");
        }
        return NBD_OK;
    case NBD_CMD_FLUSH:
        if (rq->offset || rq->length) {
            return refuse(ret_text, NBD_EINVAL,
                          "flush with an offset or a length");
        }
        return NBD_OK;
    case NBD_CMD_BLOCK_STATUS:
        if (!session->base_allocation) {
            return refuse(ret_text, NBD_EINVAL,
                          "no metadata context was negotiated");
        }
        /* An answer has at least one extent, of at least one byte. */
        if (!rq->length) {
            return refuse(ret_text, NBD_EINVAL, "block status of nothing");
        }
        return NBD_OK;
    default:
        return NBD_OK;
    }
}

enum nbd_error
nbd_request_check(const struct nbd_session *session,
                  const struct nbd_request *rq, const char **ret_text)
{
    *ret_text = NULL;
    if (rq->type >= ARRAY_LEN(commands)) {
        return refuse(ret_text, NBD_EINVAL, "unknown command");
    }
    const struct command *c = &commands[rq->type];
    unsigned payload_flag = session->extended && rq->type == NBD_CMD_WRITE
                                ? NBD_CMD_FLAG_PAYLOAD_LEN
                                : 0;

    if (rq->flags & ~(c->flags | NBD_CMD_FLAG_FUA | payload_flag)) {
        return refuse(ret_text, NBD_EINVAL, "flag not valid for this command");
    }
    if ((rq->flags & payload_flag) != payload_flag) {
        return refuse(ret_text, NBD_EINVAL, "extended write without payload");
    }
    if ((rq->flags & NBD_CMD_FLAG_DF) && !session->structured) {
        return refuse(ret_text, NBD_EINVAL, "DF without structured replies");
    }
    if (c->writes && (session->flags & NBD_FLAG_READ_ONLY)) {
        return refuse(ret_text, NBD_EPERM, "the export is read-only");
    }
    if (c->has_range && (rq->offset > session->size ||
                         rq->length > session->size - rq->offset)) {
        return refuse(ret_text, c->past_end, "beyond the end of the export");
    }
    return check_particular(session, rq, ret_text);
}
