// SPDX-License-Identifier: BSD-3-Clause
/*
 * Requests: from what a client asks to the root's functions, and back into an
 * answer.  The wire has checked ranges and flags, so the code here follows
 * only the good path and maps the root's errors.
 *
 * An export that is being removed gives its root up before its ops have ended,
 * since freeing the root is what makes parked requests return.  So an op asks
 * for the root before each call (`op_root()`), never keeps it over one, and
 * fails with ESHUTDOWN where there is none.
 */
#include "export/nbd_internal.h"

#include <errno.h>

#include "base/log.h"

/* Answers. */

void
nbd_op_fail(struct nbd_op *op, enum nbd_error error, const char *text)
{
    op->send_len = 0;
    op->head_len = nbd_put_error(op->head, &op->client->session, &op->request,
                                 error, text);
}

static const char *
command_name(uint16_t type)
{
    static const char *const names[] = {
        "read", "write", "disconnect",   "flush",
        "trim", "cache", "write zeroes", "block status",
    };

    return type < ARRAY_LEN(names) ? names[type] : "request";
}

static bool
is_read(uint16_t type)
{
    return type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS ||
           type == NBD_CMD_CACHE;
}

/* The first of a connection is logged, so that a dead disk does not fill the
 * log. */
static void
report(struct nbd_op *op, int r)
{
    const struct nbd_request *rq = &op->request;
    struct nbd_export *e = op->client->export;

    if (e->on_error) {
        e->on_error(e->arg, is_read(rq->type), r);
    }
    if (!op->client->logged) {
        op->client->logged = true;
        log_error("NBD export '%s': %s of %llu bytes at %llu failed: %s; "
                  "further failures of this connection are not logged",
                  e->name, command_name(rq->type),
                  (unsigned long long)rq->length,
                  (unsigned long long)rq->offset, err_text(r));
    }
}

/* A root's error. */
static void
fail_errno(struct nbd_op *op, int r)
{
    const struct nbd_request *rq = &op->request;
    enum nbd_error error = nbd_error_from_errno(r);

    if (error == NBD_ENOTSUP && !(rq->flags & NBD_CMD_FLAG_FAST_ZERO)) {
        error = NBD_EINVAL; /* spec, Error values */
    } else if (error != NBD_ENOTSUP && error != NBD_ESHUTDOWN) {
        report(op, r);
    }
    nbd_op_fail(op, error, err_text(r));
}

static void
finish(struct nbd_op *op, int r)
{
    if (r) {
        fail_errno(op, r);
    } else {
        op->head_len = nbd_put_ok(op->head, &op->client->session, &op->request);
    }
}

/* NULL where the export is being removed. */
static struct root *
op_root(const struct nbd_op *op)
{
    return op->client->export->root;
}

/* Reads. */

static void
op_read(struct nbd_op *op, struct root *root)
{
    const struct nbd_request *rq = &op->request;
    struct iovec iov = {op->buf, rq->length};
    const struct nbd_session *session = &op->client->session;

    int r = rq->length ? root_read(root, rq->offset, sg_one(&iov), 0) : 0;

    if (r) {
        fail_errno(op, r);
        return;
    }
    /* Zeroes need not travel.  Looking at the data costs next to nothing
     * where there is some, and asking for the status may be slow.  Spec,
     * NBD_CMD_READ: with DF the zeroes are sent. */
    if (session->structured && rq->length >= NBD_HOLE_MIN &&
        !(rq->flags & NBD_CMD_FLAG_DF) && bytes_are_zero(op->buf, rq->length)) {
        op->head_len = nbd_put_hole(op->head, session, rq);
        return;
    }
    op->head_len = nbd_put_data(op->head, session, rq);
    op->send_len = rq->length;
}

/* Writes. */

static void
op_write(struct nbd_op *op, struct root *root)
{
    const struct nbd_request *rq = &op->request;
    struct iovec iov = {op->buf, rq->length};
    bool fua = rq->flags & NBD_CMD_FLAG_FUA;

    finish(op, rq->length ? root_write(root, rq->offset, sg_one(&iov),
                                       fua ? REQ_FUA : 0)
                          : 0);
}

static void
op_write_zeroes(struct nbd_op *op, struct root *root)
{
    const struct nbd_request *rq = &op->request;
    unsigned flags = 0;

    if (rq->flags & NBD_CMD_FLAG_FUA) {
        flags |= REQ_FUA;
    }
    if (!(rq->flags & NBD_CMD_FLAG_NO_HOLE)) {
        flags |= REQ_MAY_UNMAP;
    }
    if (rq->flags & NBD_CMD_FLAG_FAST_ZERO) {
        flags |= REQ_NO_FALLBACK;
    }
    finish(op, rq->length ? root_zero(root, rq->offset, rq->length, flags) : 0);
}

static void
op_trim(struct nbd_op *op, struct root *root)
{
    const struct nbd_request *rq = &op->request;
    int r = rq->length ? root_discard(root, rq->offset, rq->length) : 0;

    if (!r && (rq->flags & NBD_CMD_FLAG_FUA)) {
        root = op_root(op);
        r = root ? root_flush(root) : -ESHUTDOWN;
    }
    finish(op, r);
}

static void
op_cache(struct nbd_op *op, struct root *root)
{
    const struct nbd_request *rq = &op->request;

    finish(op, rq->length ? root_populate(root, rq->offset, rq->length) : 0);
}

/* Block status. */

static uint32_t
state_of(enum extent_kind kind)
{
    switch (kind) {
    case EXTENT_UNALLOCATED:
        return NBD_STATE_HOLE | NBD_STATE_ZERO;
    case EXTENT_ZERO:
        return NBD_STATE_ZERO;
    case EXTENT_DATA:
    case EXTENT_ENCODED:
        break;
    }
    return 0;
}

/*
 * The next extent, cut so that it ends on the minimum block size that was
 * advertised, as the specification demands (spec, NBD_CMD_BLOCK_STATUS).  A
 * block of several states is called data, which is always safe.
 */
static int
next_extent(struct root *root, uint32_t min, uint64_t off, uint64_t len,
            uint64_t *ret_len, uint32_t *ret_state)
{
    struct extent e;
    int r = root_status(root, off, len, &e);

    if (r) {
        return r;
    }
    uint64_t here = min_u64(max_u64(e.len, 1), len);
    uint32_t state = state_of(e.kind);

    if (here < len && !is_aligned(off + here, min)) {
        uint64_t end = align_down(off + here, min);

        if (end <= off) {
            end = align_up(off + here, min);
            state = 0;
        }
        here = min_u64(end - off, len);
    }
    *ret_len = here;
    *ret_state = state;
    return 0;
}

/*
 * Fills op->buf with extents, neighbours of one state merged, sets send_len
 * and returns their number, or -errno where there is not even one.
 */
static int
collect_extents(struct nbd_op *op)
{
    const struct nbd_request *rq = &op->request;
    const struct nbd_session *session = &op->client->session;
    uint64_t off = rq->offset, left = rq->length;
    int max = rq->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_STATUS_EXTENTS_MAX;
    uint8_t *p = op->buf;
    uint32_t state = 0, last_state = 0;
    uint64_t last_len = 0;
    size_t size = 0; /* of what was put at p */
    int n = 0;

    for (int i = 0; left && i < NBD_STATUS_LOOKUPS_MAX; i++) {
        uint64_t here;
        struct root *root = op_root(op);
        int r = root ? next_extent(root, session->min_block, off, left, &here,
                                   &state)
                     : -ESHUTDOWN;

        if (r && !n) {
            return r;
        }
        if (r || (n == max && state != last_state)) {
            break; /* less than asked for is allowed */
        }
        if (!n || state != last_state) {
            p += size;
            n++;
            last_state = state;
            last_len = 0;
        }
        last_len += here;
        size = nbd_put_extent(p, session, last_len, last_state);
        off += here;
        left -= here;
    }
    op->send_len = (size_t)(p - (uint8_t *)op->buf) + size;
    return n;
}

static void
op_block_status(struct nbd_op *op)
{
    int n = collect_extents(op);

    if (n < 0) {
        fail_errno(op, n);
        return;
    }
    op->head_len = nbd_put_status(op->head, &op->client->session, &op->request,
                                  NBD_CONTEXT_BASE_ALLOCATION, (uint32_t)n);
}

void
nbd_op_run(void *arg)
{
    struct nbd_op *op = arg;
    struct root *root = op_root(op);

    if (!root) {
        fail_errno(op, -ESHUTDOWN);
        nbd_client_reply(op);
        return;
    }
    switch (op->request.type) {
    case NBD_CMD_READ:
        op_read(op, root);
        break;
    case NBD_CMD_WRITE:
        op_write(op, root);
        break;
    case NBD_CMD_FLUSH:
        finish(op, root_flush(root));
        break;
    case NBD_CMD_TRIM:
        op_trim(op, root);
        break;
    case NBD_CMD_CACHE:
        op_cache(op, root);
        break;
    case NBD_CMD_WRITE_ZEROES:
        op_write_zeroes(op, root);
        break;
    case NBD_CMD_BLOCK_STATUS:
        op_block_status(op);
        break;
    default: /* the wire lets no other command through */
        nbd_op_fail(op, NBD_EINVAL, "unknown command");
        break;
    }
    nbd_client_reply(op);
}
