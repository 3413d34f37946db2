// SPDX-License-Identifier: BSD-3-Clause
/*
 * nbd: an export of an NBD server, through libnbd's asynchronous calls.
 *
 * A request is put into the connection's handle, which the pump (nbd_link.c)
 * turns, and waits until libnbd calls back.  A request that the connection's
 * loss failed is tried again: it returns as one that found no connection does.
 *
 * What nobody may have to wait for (a job's reads, look-ups here and of
 * formats) is a `call` on the heap with a buffer of its own, so that its
 * requester can leave while libnbd still expects the answer.  All others hold
 * their memory until libnbd is done with it: who must not wait for them breaks
 * the connection (client_cut_off()).
 */
#include <errno.h>

#include "base/bytes.h"
#include "block/limits.h"
#include "drivers/drivers.h"
#include "drivers/nbd_client.h"

/* The longest zero, trim and status request: 32 bits of the protocol. */
#define LONG_MAX_LEN (1 * GIB)

enum {
    KEPT_SIZE = 1 << 20, /* of a buffer that is kept: a job's piece */
    KEPT_MIN = 128 << 10, /* smaller ones come from the heap anyway */
};

/* A request in flight; on its coroutine's stack unless it can be let go. */
struct call {
    struct coro *co;
    bool done, waiting;
    int error; /* positive errno */
    uint64_t begun_ns;
    struct list link; /* nbd_link.calls, or .held while it is in flight */
    struct extent extent;

    /* If it can be let go: */
    unsigned refs;    /* the requester's and libnbd's */
    bool left;        /* nobody waits for it any more */
    struct nbd_link *of;
    unsigned char *buf;
    uint64_t buf_len;
};

static struct nbd_link *
link_of(struct node *node)
{
    return node->state;
}

/*
 * Buffers.  Large ones are kept for the next request, all of one size: the
 * kernel clears fresh memory page by page, which takes longer than the copy.
 */

static bool
is_kept(uint64_t len)
{
    return len >= KEPT_MIN && len <= KEPT_SIZE;
}

static unsigned char *
get_buffer(struct nbd_link *link, uint64_t len)
{
    if (is_kept(len) && link->n_idle) {
        return link->idle[--link->n_idle];
    }
    return try_alloc_aligned(4096, is_kept(len) ? KEPT_SIZE : len);
}

static void
put_buffer(struct nbd_link *link, unsigned char *buf, uint64_t len)
{
    if (buf && is_kept(len) && link->n_idle < NBD_BUFFERS) {
        link->idle[link->n_idle++] = buf;
    } else {
        free(buf);
    }
}

/* Called by libnbd, in the loop's thread; 1: it is retired at once. */
static int
completed(void *arg, int *error)
{
    struct call *call = arg;

    call->done = true;
    call->error = *error;
    /*
     * libnbd calls also from within the call that issues it, where sending
     * fails: nobody waits yet, and a wake would outlive the coroutine.
     */
    if (call->waiting && !call->left) {
        coro_wake(call->co);
    }
    return 1;
}

static void
fail_all(struct list *calls)
{
    list_for_each(it, calls)
    {
        struct call *call = container_of(it, struct call, link);

        if (!call->done) {
            int error = ENOTCONN;

            completed(call, &error);
        }
    }
}

void
nbd_calls_fail(struct nbd_link *link)
{
    fail_all(&link->held);
    fail_all(&link->calls);
}

static void
call_unref(void *arg)
{
    struct call *call = arg;

    if (call->refs && --call->refs == 0) {
        list_remove(&call->link);
        put_buffer(call->of, call->buf, call->buf_len);
        free(call);
    }
}

static nbd_completion_callback
on_completion(struct call *call)
{
    return (nbd_completion_callback){.callback = completed,
                                     .user_data = call,
                                     .free = call->refs ? call_unref : NULL};
}

/* A call that can be let go; libnbd frees its reference whatever happens. */
static struct call *
call_new(struct nbd_link *link)
{
    struct call *call = xzalloc(sizeof(*call));

    call->co = coro_self();
    call->refs = 2;
    call->of = link;
    list_push(&link->calls, &call->link);
    return call;
}

/* Waits for what was just put into the handle; @cookie is what it returned. */
static int
finish(struct nbd_link *link, struct call *call, int64_t cookie)
{
    if (cookie == -1 && !call->done) {
        call->error = nbd_get_errno();
        call->done = true;
    }
    /* It may have to be sent, or to notice that the connection broke. */
    nbd_link_pump(link);
    call->waiting = true;
    call->begun_ns = loop_now(graph_loop(link->node->graph));
    if (!call->refs) {
        list_push(&link->held, &call->link);
    }
    while (!call->done && !call->left) {
        coro_yield();
    }
    if (!call->refs) {
        list_remove(&call->link);
    }
    if (call->left) {
        return -ERESTART;
    }
    if (call->error == ENOTCONN || call->error == ESHUTDOWN ||
        call->error == EPIPE || call->error == ECONNRESET) {
        int r = nbd_link_check(link);

        /* Connected again already: once more from the start. */
        return r ? r : link->o.reconnect_delay_ns ? -ERESTART : -EIO;
    }
    link->progress |= !call->error;
    return -call->error;
}

/* Options. */

static int
read_server(struct nbd_link *link, json_t *options, struct err *err)
{
    json_t *server = json_object_get(options, "server");
    const char *type = opt_str(server, "type");
    const char *path = opt_str(server, "path");
    const char *host = opt_str(server, "host"), *port = opt_str(server, "port");

    if (type && !strcmp(type, "unix") && path) {
        link->o.path = xstrdup(path);
        link->node->filename =
            xasprintf("nbd+unix:///%s?socket=%s", link->o.export, path);
        return 0;
    }
    if (type && !strcmp(type, "inet") && host && port) {
        link->o.host = xstrdup(host);
        link->o.port = xstrdup(port);
        link->node->filename =
            xasprintf("nbd://%s:%s/%s", host, port, link->o.export);
        return 0;
    }
    return err_set(err, -EINVAL,
                   "Parameter 'server' must be {type: unix, path} or {type: "
                   "inet, host, port}");
}

static int
read_options(struct nbd_link *link, json_t *options, struct err *err)
{
    const char *export = opt_str(options, "export");
    uint64_t delay = opt_u64(options, "reconnect-delay", 0);
    uint64_t timeout = opt_u64(options, "open-timeout", 0);

    if (json_object_get(options, "tls-creds")) {
        return err_set(err, -ENOTSUP, "TLS is not supported yet");
    }
    if (delay > UINT32_MAX || timeout > UINT32_MAX) {
        return err_set(err, -EINVAL, "A time of more than 2^32 s is too long");
    }
    link->o.export = xstrdup(export ? export : "");
    link->o.reconnect_delay_ns = delay * NS_PER_S;
    link->o.open_timeout_ns = timeout * NS_PER_S;
    return read_server(link, options, err);
}

static void
link_free(struct nbd_link *link)
{
    link->node->state = NULL;
    while (link->n_idle) {
        free(link->idle[--link->n_idle]);
    }
    free(link->o.path);
    free(link->o.host);
    free(link->o.port);
    free(link->o.export);
    free(link);
}

/* What the export allows must be what the node is to do. */
static int
use_export(struct nbd_link *link, json_t *options, struct err *err)
{
    struct node *node = link->node;

    if (link->export.read_only && !node->read_only) {
        if (!opt_bool(options, "auto-read-only", false)) {
            return err_set(err, -EACCES, "The export '%s' is read-only",
                           node->filename);
        }
        node->read_only = true;
    }
    node->size = link->export.size;
    node->limits = (struct block_limits){
        .min_align = link->export.min_align,
        .preferred = link->export.preferred,
        .max_request = LIMIT_REQUEST,
    };
    return 0;
}

static int
client_open(struct node *node, json_t *options, struct err *err)
{
    struct nbd_link *link = xzalloc(sizeof(*link));
    int r;

    link->node = node;
    link->fd = -1;
    waitq_init(&link->kick);
    waitq_init(&link->ended);
    list_init(&link->calls);
    list_init(&link->held);
    node->state = link;
    r = read_options(link, options, err);
    if (!r) {
        r = nbd_link_start(link, err);
        if (!r) {
            r = use_export(link, options, err);
            if (r) {
                nbd_link_stop(link);
            }
        }
    }
    if (r) {
        link_free(link);
    }
    return r;
}

static int
client_reopen(struct node *node, bool read_only, struct err *err)
{
    return !read_only && link_of(node)->export.read_only
               ? err_set(err, -EACCES, "The export '%s' is read-only",
                         node->filename)
               : 0;
}

static int
client_close(struct node *node)
{
    nbd_link_stop(link_of(node));
    link_free(link_of(node));
    return 0;
}

/* Requests. */

/* One piece of contiguous memory: the request's own where it is that. */
static unsigned char *
contiguous(struct sg sg, uint64_t len)
{
    return sg.iov->iov_len - sg.skip >= len
               ? (unsigned char *)sg.iov->iov_base + sg.skip
               : NULL;
}

/* Into a buffer of its own, so that it can be let go. */
static int
read_for_job(struct nbd_link *link, uint64_t off, struct sg sg)
{
    int r = nbd_link_check(link);
    unsigned char *buf = r ? NULL : get_buffer(link, sg.len);

    if (!buf) {
        return r ? r : -ENOMEM;
    }
    struct call *call = call_new(link);

    call->buf = buf;
    call->buf_len = sg.len;
    r = finish(link, call,
               nbd_aio_pread(link->h, call->buf, sg.len, off,
                             on_completion(call), 0));
    if (!r) {
        sg_copy_from(sg, call->buf);
    }
    call_unref(call);
    return r;
}

static int
transfer_buffer(struct nbd_link *link, uint64_t off, unsigned char *buf,
                uint64_t len, bool write)
{
    struct call call = {.co = coro_self()};
    int r = nbd_link_check(link);

    if (r) {
        return r;
    }
    return finish(
        link, &call,
        write ? nbd_aio_pwrite(link->h, buf, len, off, on_completion(&call), 0)
              : nbd_aio_pread(link->h, buf, len, off, on_completion(&call), 0));
}

static int
transfer_piece(struct nbd_link *link, uint64_t off, struct sg sg, bool write)
{
    unsigned char *own = contiguous(sg, sg.len);
    unsigned char *bounce = own ? NULL : get_buffer(link, sg.len);

    if (!own && !bounce) {
        return -ENOMEM;
    }
    if (write && bounce) {
        sg_copy_to(sg, bounce);
    }
    int r = transfer_buffer(link, off, own ? own : bounce, sg.len, write);

    link->written += write && !r;
    if (!r && !write && bounce) {
        sg_copy_from(sg, bounce);
    }
    put_buffer(link, bounce, sg.len);
    return r;
}

static int
transfer(struct node *node, uint64_t off, struct sg sg, bool write, bool job)
{
    struct nbd_link *link = link_of(node);

    while (sg.len) {
        uint64_t len = min_u64(sg.len, link->export.max_request);
        int r = job && !write
                    ? read_for_job(link, off, sg_slice(sg, 0, len))
                    : transfer_piece(link, off, sg_slice(sg, 0, len), write);

        if (r) {
            return r;
        }
        off += len;
        sg = sg_slice(sg, len, sg.len - len);
    }
    return 0;
}

static int
client_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    uint64_t here = off < node->size ? min_u64(sg.len, node->size - off) : 0;

    sg_zero(sg_slice(sg, here, sg.len - here));
    return transfer(node, off, sg_slice(sg, 0, here), false,
                    flags & (REQ_BACKGROUND | REQ_LOOKUP));
}

static int
client_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
             struct range_hold *hold)
{
    return off + sg.len > node->size ? -ENOSPC
                                     : transfer(node, off, sg, true, false);
}

/* Zero or trim, in pieces. */
static int
long_request(struct node *node, uint64_t off, uint64_t len, bool zero,
             uint32_t flags)
{
    struct nbd_link *link = link_of(node);

    while (len) {
        struct call call = {.co = coro_self()};
        uint64_t n = min_u64(len, LONG_MAX_LEN);
        int r = nbd_link_check(link);

        if (!r) {
            int64_t cookie =
                zero
                    ? nbd_aio_zero(link->h, n, off, on_completion(&call), flags)
                    : nbd_aio_trim(link->h, n, off, on_completion(&call), 0);

            r = finish(link, &call, cookie);
        }
        if (r) {
            return r;
        }
        link->written++;
        off += n;
        len -= n;
    }
    return 0;
}

static int
client_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
            struct range_hold *hold)
{
    const struct nbd_export *ex = &link_of(node)->export;
    uint32_t cmd = flags & REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;

    if (off + len > node->size) {
        return -ENOSPC;
    }
    if (flags & REQ_NO_FALLBACK) {
        cmd |= LIBNBD_CMD_FLAG_FAST_ZERO;
    }
    if (!ex->can_zero || ((flags & REQ_NO_FALLBACK) && !ex->can_fast_zero)) {
        return -ENOTSUP;
    }
    return long_request(node, off, len, true, cmd);
}

static int
client_discard(struct node *node, uint64_t off, uint64_t len,
               struct range_hold *hold)
{
    return link_of(node)->export.can_trim
               ? long_request(node, off, len, false, 0)
               : 0;
}

static int
client_flush(struct node *node)
{
    struct nbd_link *link = link_of(node);
    struct call call = {.co = coro_self()};
    int r = nbd_link_check(link);

    uint64_t written = link->written;

    if (r || !link->export.can_flush) {
        return r;
    }
    r = finish(link, &call, nbd_aio_flush(link->h, on_completion(&call), 0));
    if (!r) {
        link->flushed = max_u64(link->flushed, written);
    }
    return r;
}

/* "base:allocation": bit 0 is a hole, bit 1 reads zero. */
static int
on_extent(void *arg, const char *context, uint64_t off, uint32_t *entries,
          size_t n, int *error)
{
    struct call *call = arg;

    if (n >= 2 && !strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION)) {
        call->extent.kind =
            entries[1] & LIBNBD_STATE_ZERO ? EXTENT_ZERO : EXTENT_DATA;
        call->extent.len = entries[0];
    }
    return 0;
}

static int
client_status(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    struct nbd_link *link = link_of(node);
    struct extent ext = {.kind = EXTENT_DATA, .len = len};
    uint64_t here = off < node->size ? min_u64(len, node->size - off) : 0;
    /* The server wants its blocks; what surplus it tells is cut off. */
    uint64_t start = align_down(off, link->export.min_align);
    uint64_t want =
        min_u64(align_up(off + here, link->export.min_align), node->size) -
        start;
    int r = link->export.can_status && here ? nbd_link_check(link) : -ENOTSUP;

    if (!r) {
        struct call *call = call_new(link);
        nbd_extent_callback fn = {.callback = on_extent, .user_data = call};

        call->extent = ext;
        r = finish(link, call,
                   nbd_aio_block_status(
                       link->h, min_u64(want, LONG_MAX_LEN), start, fn,
                       on_completion(call), LIBNBD_CMD_FLAG_REQ_ONE));
        ext = call->extent;
        call_unref(call);
    }
    if (r && r != -ENOTSUP) {
        return r;
    }
    if (!r) {
        ext.len -= min_u64(off - start, ext.len);
    }
    /* An answer that is no answer: all is data. */
    *ret =
        r || !ext.len ? (struct extent){.kind = EXTENT_DATA, .len = len} : ext;
    ret->len = min_u64(ret->len, len);
    return 0;
}

static void
client_let_go(struct node *node, bool all)
{
    struct nbd_link *link = link_of(node);

    if (!link) {
        return; /* it is not open yet, or no more */
    }
    list_for_each(it, &link->calls)
    {
        struct call *call = container_of(it, struct call, link);

        if (!call->done && !call->left) {
            call->left = true;
            coro_wake(call->co);
        }
    }
    if (all) {
        nbd_link_abandon(link);
    }
}

static void
client_cut_off(struct node *node, uint64_t ns)
{
    struct nbd_link *link = link_of(node);

    if (!link) {
        return;
    }
    uint64_t now = loop_now(graph_loop(node->graph));

    list_for_each(it, &link->held)
    {
        const struct call *call = container_of(it, struct call, link);

        if (!call->done && now - call->begun_ns >= ns) {
            nbd_link_cut_off(link);
            return;
        }
    }
}

const struct driver driver_nbd = {
    .name = "nbd",
    .is_protocol = true,
    .open = client_open,
    .close = client_close,
    .reopen = client_reopen,
    .read = client_read,
    .write = client_write,
    .zero = client_zero,
    .discard = client_discard,
    .flush = client_flush,
    .status = client_status,
    .let_go = client_let_go,
    .cut_off = client_cut_off,
};
