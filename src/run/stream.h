// SPDX-License-Identifier: BSD-3-Clause
/*
 * Byte streams between processes: Unix and TCP sockets, and the simulator's
 * pipes.  One coroutine may read while another one writes.
 */
#ifndef SLUICE_RUN_STREAM_H
#define SLUICE_RUN_STREAM_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/err.h"
#include "run/loop.h"

enum address_kind { ADDRESS_UNIX, ADDRESS_TCP, ADDRESS_FD };

struct address {
    enum address_kind kind;
    const char *path; /* Unix */
    const char *host; /* TCP; NULL or "": every interface */
    const char *port; /* TCP, decimal or a service's name */
    int fd;           /* an open, listening or connected socket; taken over */
};

struct stream_ops {
    ssize_t (*read)(struct stream *stream, void *buf, size_t len);
    int (*write)(struct stream *stream, const struct iovec *iov, int n);
    void (*shutdown)(struct stream *stream);
    void (*close)(struct stream *stream);
};

struct stream {
    const struct stream_ops *ops;
    struct loop *loop;
};

struct listener_ops {
    int (*accept)(struct listener *listener, struct stream **ret);
    void (*shutdown)(struct listener *listener);
    void (*close)(struct listener *listener);
};

struct listener {
    const struct listener_ops *ops;
    struct loop *loop;
    char *bound; /* "unix:PATH" or "HOST:PORT" with the port really bound */
};

/* At least 1 byte, at most @len; 0 at the end; -errno.  Yields. */
static inline ssize_t
stream_read(struct stream *s, void *buf, size_t len)
{
    return s->ops->read(s, buf, len);
}

/*
 * Exactly @len bytes.  -EPIPE where the stream ended before the first byte,
 * -ECONNRESET where it ended within.  Yields.
 */
int stream_read_full(struct stream *s, void *buf, size_t len);

/* Writes all of it; the memory is the caller's again on return.  Yields. */
static inline int
stream_write(struct stream *s, const struct iovec *iov, int n)
{
    return s->ops->write(s, iov, n);
}

int stream_write_buf(struct stream *s, const void *buf, size_t len);

/*
 * Ends both directions: whoever reads or writes returns, now and later.  Does
 * not yield; the stream stays valid until stream_close().
 */
static inline void
stream_shutdown(struct stream *s)
{
    s->ops->shutdown(s);
}

/* Frees; nobody may be reading or writing any more. */
static inline void
stream_close(struct stream *s)
{
    s->ops->close(s);
}

/* Does not yield.  A Unix socket left behind by a dead process is replaced. */
static inline int
stream_listen(struct loop *loop, const struct address *address,
              struct listener **ret, struct err *err)
{
    return loop->ops->listen(loop, address, ret, err);
}

/* Yields. */
static inline int
stream_connect(struct loop *loop, const struct address *address,
               struct stream **ret, struct err *err)
{
    return loop->ops->connect(loop, address, ret, err);
}

/* The next connection; -ESHUTDOWN after listener_shutdown().  Yields. */
static inline int
listener_accept(struct listener *l, struct stream **ret)
{
    return l->ops->accept(l, ret);
}

static inline void
listener_shutdown(struct listener *l)
{
    l->ops->shutdown(l);
}

/* Frees, and removes a Unix socket's name; nobody may be accepting. */
static inline void
listener_close(struct listener *l)
{
    l->ops->close(l);
}

#endif
