// SPDX-License-Identifier: BSD-3-Clause
/* Shared by export/nbd_*.c only. */
#ifndef SLUICE_EXPORT_NBD_INTERNAL_H
#define SLUICE_EXPORT_NBD_INTERNAL_H

#include <sys/uio.h>

#include "base/bytes.h"
#include "block/block.h"
#include "export/nbd_server.h"
#include "run/stream.h"
#include "wire/nbd.h"

/* Every limit of a connection. */
enum nbd_client_limits {
    /* Requests being worked on or waiting to be answered. */
    NBD_CLIENT_REQUESTS_MAX = 128,
    /* Their data; at least one request of NBD_DATA_MAX fits. */
    NBD_CLIENT_BYTES_MAX = 64 << 20,
    /* Free buffers kept for the next request. */
    NBD_CLIENT_IDLE_BYTES_MAX = 4 << 20,
    NBD_RECEIVE_SIZE = 256 << 10,
    /* Replies, and about how many bytes, that go out in one gathered write. */
    NBD_SEND_MAX = NBD_CLIENT_REQUESTS_MAX,
    NBD_SEND_BYTES = 512 << 10,
    /* Data that was read and waits to be sent, before more is asked for: what
     * the page cache gives at once would only leave the CPU's cache again. */
    NBD_UNSENT_MAX = 512 << 10,
    /* Extents in one answer, and look-ups made for it. */
    NBD_STATUS_EXTENTS_MAX = 2048,
    NBD_STATUS_LOOKUPS_MAX = 1024,
    /* From here on a read of zeroes only is answered by a hole. */
    NBD_HOLE_MIN = 16 << 10,
    /* How long answers may take to leave once the client has hung up. */
    NBD_LINGER_MS = 10000,
    /* Before accepting is tried again after an error (EMFILE). */
    NBD_ACCEPT_RETRY_MS = 100,
};

/*
 * Buffers, page-aligned, in classes of powers of two; some free ones are kept.
 * A free buffer's first bytes link it into its class.
 */
enum { NBD_POOL_SHIFT_MIN = 12, NBD_POOL_SHIFT_MAX = 21 };

struct nbd_pool {
    void *idle[NBD_POOL_SHIFT_MAX - NBD_POOL_SHIFT_MIN + 1];
    uint64_t idle_bytes;
};

/* At least @len bytes, or NULL where memory is out. */
void *nbd_pool_get(struct nbd_pool *pool, uint64_t len);
/* @len is what was asked for; @p may be NULL. */
void nbd_pool_put(struct nbd_pool *pool, void *p, uint64_t len);
void nbd_pool_fini(struct nbd_pool *pool);

struct nbd_server {
    struct loop *loop;
    struct nbd_export_table table;
    struct listener *listener; /* NULL: does not listen */
    uint32_t max_connections;
    uint64_t handshake_max_ns; /* 0: no limit */
    struct list exports;       /* of nbd_export.link */
    struct list clients;       /* of nbd_client.link */
    unsigned n_clients;
    bool held; /* accepts nobody yet */
    bool stopping, accepting; /* `accepting`: the acceptor is alive */
    struct waitq changed;     /* a client ended, the acceptor ended, stop */
};

struct nbd_export {
    struct list link; /* in its server; alone once removed */
    struct nbd_server *server;
    struct root *root; /* NULL once it is being removed */
    char *name, *description;
    bool writable;
    void (*on_error)(void *arg, bool is_read, int error);
    void *arg;
    unsigned n_clients;
    struct waitq gone; /* a client left */
};

/* One request from its header to its answer. */
struct nbd_op {
    struct list link; /* in the client's free list or its replies */
    struct nbd_client *client;
    struct nbd_request request;
    uint8_t head[NBD_HEAD_MAX]; /* the answer's header */
    size_t head_len;
    void *buf; /* of buf_len bytes, from the pool; NULL: none */
    uint64_t buf_len;
    size_t send_len;   /* bytes of buf that follow the header */
    uint64_t reserved; /* its part of the client's bytes */
};

/*
 * One connection.  Its reader owns it: the reader negotiates, then takes
 * requests until the stream or the server ends, waits until every request is
 * answered and the sender has ended, and frees it.
 */
struct nbd_client {
    struct list link;
    struct nbd_server *server;
    struct stream *stream;
    struct timer timer; /* handshake, grace, linger: shuts the stream down */
    struct nbd_export *export; /* NULL before transmission */
    struct nbd_session session;
    uint8_t *in; /* NBD_RECEIVE_SIZE bytes; [in_start, in_end) is unread */
    size_t in_start, in_end;
    struct nbd_pool pool;
    struct list free_ops;               /* of nbd_op.link */
    struct list replies;                /* of nbd_op.link, to be sent */
    struct iovec iov[2 * NBD_SEND_MAX]; /* the sender's */
    unsigned n_ops;                     /* from header to answer sent */
    uint64_t bytes;                     /* reserved by them */
    uint64_t unsent;                    /* bytes of queued replies */
    uint64_t started; /* bytes of requests since the reader last gave way */
    bool stopping;        /* the server wants it gone: refuse requests */
    bool read_all;        /* no more requests will come */
    bool broken;          /* answers go nowhere */
    bool sending;         /* the sender is alive */
    bool logged;          /* one line about a failing disk was written */
    struct waitq room;    /* an op was freed, or the sender ended */
    struct waitq to_send; /* a reply was queued, or read_all */
};

/* Takes the stream over and counts the client; the rest is a coroutine. */
void nbd_client_start(struct nbd_server *server, struct stream *stream);
/* Makes the client end soon; does not yield. */
void nbd_client_stop(struct nbd_client *client);
/* Queues an op's answer, which the sender sends and then frees the op. */
void nbd_client_reply(struct nbd_op *op);

/* A coroutine: does what the op asks for and queues its answer. */
void nbd_op_run(void *op);
/* Makes the answer an error; the op's buffer is not sent. */
void nbd_op_fail(struct nbd_op *op, enum nbd_error error, const char *text);

#endif
