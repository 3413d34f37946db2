// SPDX-License-Identifier: BSD-3-Clause
/*
 * One connection: a reader, a sender, and a coroutine for each request.
 *
 *   stream -> reader -> op coroutines (root_*) -> replies -> sender -> stream
 *                ^                                             |
 *                +------------- room (ops, bytes) <------------+
 *
 * The reader receives into one large buffer and starts every request that is
 * whole in it before it receives again; what of a write's data is not there
 * yet is received straight into the request's buffer.  Each op is counted,
 * with its data, from its header until its answer has left; where the counts
 * are full the reader stops reading, which is the back-pressure.
 *
 * The sender takes all answers that became ready while it slept and sends
 * them with one gathered write: the loop runs the coroutines of a burst before
 * it comes to the sender, which was woken by the first.
 *
 * Ending.  The reader ends on a disconnect request, the end of the stream, a
 * broken protocol or an error; the ops that run finish by themselves; the
 * sender ends when the reader has and no op is left.  Only then is anything
 * freed.  nbd_client_stop() lets the ops in flight be answered, refuses what
 * comes after, and shuts the stream down when idle or after a grace time.
 */
#include "export/nbd_internal.h"

#include <assert.h>
#include <errno.h>

#include "base/mem.h"

/* Ops. */

static struct nbd_op *
op_new(struct nbd_client *c, const struct nbd_request *request)
{
    struct nbd_op *op;

    if (list_empty(&c->free_ops)) {
        op = xmalloc(sizeof(*op));
        list_init(&op->link);
        op->client = c;
    } else {
        op = list_first(&c->free_ops, struct nbd_op, link);
        list_remove(&op->link);
    }
    op->request = *request;
    op->head_len = op->send_len = 0;
    op->buf = NULL;
    op->buf_len = op->reserved = 0;
    c->n_ops++;
    return op;
}

static void
op_free(struct nbd_op *op)
{
    struct nbd_client *c = op->client;

    nbd_pool_put(&c->pool, op->buf, op->buf_len);
    c->bytes -= op->reserved;
    c->n_ops--;
    list_push_front(&c->free_ops, &op->link);
}

/* Data that the request will hold, for the client's account. */
static uint64_t
op_bytes(const struct nbd_request *request)
{
    switch (request->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return request->length;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_STATUS_EXTENTS_MAX * NBD_EXTENT_SIZE_MAX;
    default:
        return 0;
    }
}

/* The sender. */

void
nbd_client_reply(struct nbd_op *op)
{
    list_push(&op->client->replies, &op->link);
    op->client->unsent += op->send_len;
    waitq_wake_one(&op->client->to_send);
}

/* Sends what is queued, at most NBD_SEND_MAX answers.  Yields. */
static void
send_batch(struct nbd_client *c)
{
    struct iovec *iov = c->iov;
    struct list batch;
    uint64_t bytes = 0;
    int n_iov = 0;

    list_init(&batch);
    for (int n = 0; n < NBD_SEND_MAX && bytes < NBD_SEND_BYTES &&
                    !list_empty(&c->replies);
         n++) {
        struct nbd_op *op = list_first(&c->replies, struct nbd_op, link);

        list_remove(&op->link);
        list_push(&batch, &op->link);
        iov[n_iov++] = (struct iovec){op->head, op->head_len};
        if (op->send_len) {
            iov[n_iov++] = (struct iovec){op->buf, op->send_len};
            bytes += op->send_len;
        }
    }
    if (!c->broken && stream_write(c->stream, iov, n_iov)) {
        /* The reader learns it from the stream. */
        c->broken = true;
        stream_shutdown(c->stream);
    }
    list_for_each_safe(it, &batch)
    {
        list_remove(it);
        op_free(container_of(it, struct nbd_op, link));
    }
    c->unsent -= bytes;
    waitq_wake_all(&c->room);
}

static void
run_sender(void *arg)
{
    struct nbd_client *c = arg;

    for (;;) {
        if (!list_empty(&c->replies)) {
            send_batch(c);
        } else if (c->read_all && !c->n_ops) {
            break;
        } else {
            if (c->stopping && !c->n_ops) {
                stream_shutdown(c->stream);
            }
            waitq_wait(&c->to_send);
        }
    }
    c->sending = false;
    waitq_wake_all(&c->room);
}

/* Timeouts. */

static void
time_is_up(struct timer *timer)
{
    stream_shutdown(container_of(timer, struct nbd_client, timer)->stream);
}

static void
shut_down_after(struct nbd_client *c, uint64_t ns)
{
    timer_set(c->server->loop, &c->timer, loop_now(c->server->loop) + ns,
              time_is_up);
}

void
nbd_client_stop(struct nbd_client *c)
{
    if (c->stopping) {
        return;
    }
    c->stopping = true;
    if (c->n_ops) {
        shut_down_after(c, NBD_STOP_GRACE_MS * NS_PER_MS);
    } else {
        stream_shutdown(c->stream);
    }
}

/* Receiving. */

static size_t
unread(const struct nbd_client *c)
{
    return c->in_end - c->in_start;
}

/* Receives once, behind what is unread.  False at the end.  Yields. */
static bool
receive(struct nbd_client *c)
{
    if (c->in_start) {
        memmove(c->in, c->in + c->in_start, unread(c));
        c->in_end -= c->in_start;
        c->in_start = 0;
    }
    ssize_t n =
        stream_read(c->stream, c->in + c->in_end, NBD_RECEIVE_SIZE - c->in_end);

    if (n <= 0) {
        return false;
    }
    c->in_end += (size_t)n;
    return true;
}

/* Passes over @len bytes of a refused write.  Yields. */
static bool
skip(struct nbd_client *c, uint64_t len)
{
    for (;;) {
        size_t here = min_u64(len, unread(c));

        c->in_start += here;
        len -= here;
        if (!len) {
            return true;
        }
        if (!receive(c)) {
            return false;
        }
    }
}

/* A write's data: what is there is copied, the rest comes directly.  Yields. */
static bool
receive_data(struct nbd_client *c, struct nbd_op *op)
{
    size_t here = min_u64(op->buf_len, unread(c));

    memcpy(op->buf, c->in + c->in_start, here);
    c->in_start += here;
    return here == op->buf_len ||
           stream_read_full(c->stream, (char *)op->buf + here,
                            op->buf_len - here) == 0;
}

/* Requests. */

static void
wait_for_room(struct nbd_client *c, uint64_t bytes)
{
    /* Lets large requests begin before their successors are looked at. */
    c->started += bytes;
    if (c->started >= NBD_UNSENT_MAX) {
        c->started = 0;
        coro_relax();
    }
    while (c->n_ops >= NBD_CLIENT_REQUESTS_MAX ||
           c->bytes + bytes > NBD_CLIENT_BYTES_MAX ||
           c->unsent >= NBD_UNSENT_MAX) {
        waitq_wait(&c->room);
    }
}

static bool
refuse_request(struct nbd_client *c, const struct nbd_request *request,
               enum nbd_error error, const char *text)
{
    wait_for_room(c, 0);
    struct nbd_op *op = op_new(c, request);

    nbd_op_fail(op, error, text);
    nbd_client_reply(op);
    return skip(c, nbd_request_payload(&c->session, request));
}

/* Gives the op its buffer and, for a write, its data.  Yields. */
static bool
start_request(struct nbd_client *c, const struct nbd_request *request)
{
    uint64_t bytes = op_bytes(request);

    wait_for_room(c, bytes);
    /* Only now, so that what stopped while we waited is refused. */
    if (c->stopping) {
        return refuse_request(c, request, NBD_ESHUTDOWN,
                              "the server is shutting down");
    }
    struct nbd_op *op = op_new(c, request);

    op->reserved = bytes;
    c->bytes += bytes;
    if (bytes) {
        op->buf = nbd_pool_get(&c->pool, bytes);
        op->buf_len = bytes;
        if (!op->buf) {
            nbd_op_fail(op, NBD_ENOMEM, "out of memory");
            nbd_client_reply(op);
            return skip(c, nbd_request_payload(&c->session, request));
        }
    }
    if (request->type == NBD_CMD_WRITE && !receive_data(c, op)) {
        op_free(op); /* cut off: it was never a request */
        return false;
    }
    coro_start(c->server->loop, nbd_op_run, op);
    return true;
}

/* One request off the buffer; false where the connection ends.  Yields. */
static bool
next_request(struct nbd_client *c)
{
    struct nbd_request request;
    const char *text;

    while (unread(c) < nbd_request_size(&c->session)) {
        if (!receive(c)) {
            return false;
        }
    }
    if (!nbd_request_parse(&c->session, c->in + c->in_start, &request) ||
        nbd_request_payload(&c->session, &request) > NBD_SKIP_MAX) {
        c->broken = true;
        stream_shutdown(c->stream);
        return false;
    }
    c->in_start += nbd_request_size(&c->session);
    if (request.type == NBD_CMD_DISC) {
        return false;
    }
    enum nbd_error error = nbd_request_check(&c->session, &request, &text);

    return error ? refuse_request(c, &request, error, text)
                 : start_request(c, &request);
}

/* The handshake: true where transmission begins.  Yields. */
static bool
negotiate(struct nbd_client *c)
{
    enum nbd_handshake_result result = NBD_HANDSHAKE_MORE;
    struct nbd_handshake h;

    nbd_handshake_start(&h, &c->server->table);
    for (;;) {
        if (h.out.len && stream_write_buf(c->stream, h.out.p, h.out.len)) {
            result = NBD_HANDSHAKE_DROP;
        }
        h.out.len = 0;
        if (result != NBD_HANDSHAKE_MORE) {
            break;
        }
        size_t used = 0;

        /* An option may be whole in what came with the one before. */
        if (!unread(c) && !receive(c)) {
            result = NBD_HANDSHAKE_DROP;
            break;
        }
        result = nbd_handshake_feed(&h, c->in + c->in_start, unread(c), &used);
        c->in_start += used;
        if (result == NBD_HANDSHAKE_DONE) {
            /* Before anything yields: until now the table kept it alive, from
             * here on its count of clients does. */
            c->session = h.session;
            c->export = c->session.export_cookie;
            c->export->n_clients++;
        }
    }
    nbd_handshake_free(&h);
    return result == NBD_HANDSHAKE_DONE;
}

/* The connection's life. */

static void
client_free(struct nbd_client *c)
{
    struct nbd_server *server = c->server;

    assert(!c->n_ops && !c->bytes && list_empty(&c->replies));
    timer_cancel(&c->timer);
    stream_close(c->stream);
    list_for_each_safe(it, &c->free_ops)
    {
        free(container_of(it, struct nbd_op, link));
    }
    nbd_pool_fini(&c->pool);
    list_remove(&c->link);
    server->n_clients--;
    waitq_wake_all(&server->changed);
    if (c->export) {
        c->export->n_clients--;
        waitq_wake_all(&c->export->gone);
    }
    free(c->in);
    free(c);
}

static void
transmit(struct nbd_client *c)
{
    c->sending = true;
    coro_start(c->server->loop, run_sender, c);
    while (next_request(c)) {
    }
    c->read_all = true;
    /* Answers may still leave, but not for ever to one who does not take
     * them. */
    shut_down_after(c, NBD_LINGER_MS * NS_PER_MS);
    waitq_wake_all(&c->to_send);
    while (c->sending) {
        waitq_wait(&c->room);
    }
}

static void
run_client(void *arg)
{
    struct nbd_client *c = arg;

    if (c->server->handshake_max_ns) {
        shut_down_after(c, c->server->handshake_max_ns);
    }
    if (negotiate(c)) {
        /* A stop that came meanwhile has shut the stream down. */
        timer_cancel(&c->timer);
        transmit(c);
    }
    client_free(c);
}

void
nbd_client_start(struct nbd_server *server, struct stream *stream)
{
    struct nbd_client *c = xzalloc(sizeof(*c));

    c->server = server;
    c->stream = stream;
    c->in = xmalloc(NBD_RECEIVE_SIZE);
    list_init(&c->free_ops);
    list_init(&c->replies);
    waitq_init(&c->room);
    waitq_init(&c->to_send);
    list_push(&server->clients, &c->link);
    server->n_clients++;
    coro_start(server->loop, run_client, c);
}
