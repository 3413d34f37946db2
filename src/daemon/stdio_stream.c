// SPDX-License-Identifier: BSD-3-Clause
/*
 * Every call is tried first and waits only where it would block: epoll knows
 * nothing of regular files, which never do.
 */
#include "daemon/stdio_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "run/stream.h"

struct stdio_stream {
    struct stream s;
    bool shut;
};

static struct stdio_stream *
stdio_of(struct stream *s)
{
    return container_of(s, struct stdio_stream, s);
}

static ssize_t
stdio_read(struct stream *s, void *buf, size_t len)
{
    while (!stdio_of(s)->shut) {
        ssize_t n = read(STDIN_FILENO, buf, len);

        if (n >= 0) {
            return n;
        }
        if (errno == EAGAIN) {
            fd_wait(s->loop, STDIN_FILENO, POLLIN, NEVER);
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return -ESHUTDOWN;
}

static int
write_one(struct stream *s, const char *p, size_t len)
{
    while (len) {
        ssize_t n = write(STDOUT_FILENO, p, len);

        if (n >= 0) {
            p += n;
            len -= (size_t)n;
        } else if (stdio_of(s)->shut) {
            return -ESHUTDOWN;
        } else if (errno == EAGAIN) {
            fd_wait(s->loop, STDOUT_FILENO, POLLOUT, NEVER);
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int
stdio_write(struct stream *s, const struct iovec *iov, int n)
{
    int r = 0;

    for (int i = 0; i < n && !r; i++) {
        r = write_one(s, iov[i].iov_base, iov[i].iov_len);
    }
    return r;
}

static void
stdio_shutdown(struct stream *s)
{
    stdio_of(s)->shut = true;
    fd_wake(s->loop, STDIN_FILENO);
    fd_wake(s->loop, STDOUT_FILENO);
}

static void
set_nonblocking(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);

    fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

static void
stdio_close(struct stream *s)
{
    /* Whoever shares the terminal with us expects it to block. */
    set_nonblocking(STDIN_FILENO, false);
    set_nonblocking(STDOUT_FILENO, false);
    free(stdio_of(s));
}

static const struct stream_ops stdio_ops = {
    .read = stdio_read,
    .write = stdio_write,
    .shutdown = stdio_shutdown,
    .close = stdio_close,
};

struct stream *
stdio_stream_new(struct loop *loop)
{
    struct stdio_stream *st = xzalloc(sizeof(*st));

    st->s = (struct stream){.ops = &stdio_ops, .loop = loop};
    set_nonblocking(STDIN_FILENO, true);
    set_nonblocking(STDOUT_FILENO, true);
    return &st->s;
}
