// SPDX-License-Identifier: BSD-3-Clause
/*
 * The loop's fd_wait() has one waiter, which nobody else can wake.  So it is
 * given an epoll descriptor that is ready when the real one is, or when the
 * bell was rung.
 */
#include "daemon/pollable.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "run/stream.h"

int
pollable_init(struct pollable *p, struct loop *loop, int fd, short events)
{
    struct epoll_event bell = {.events = EPOLLIN};
    struct epoll_event ev = {.events = (unsigned)events};
    int r = 0;

    *p = (struct pollable){
        .loop = loop,
        .epoll_fd = epoll_create1(EPOLL_CLOEXEC),
        .bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
    };
    if (p->epoll_fd < 0 || p->bell_fd < 0 ||
        epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->bell_fd, &bell)) {
        r = -errno;
    } else if (epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
        p->always = errno == EPERM;
        r = p->always ? 0 : -errno;
    }
    if (r) {
        pollable_fini(p);
    }
    return r;
}

void
pollable_fini(struct pollable *p)
{
    if (p->epoll_fd >= 0) {
        close(p->epoll_fd);
    }
    if (p->bell_fd >= 0) {
        close(p->bell_fd);
    }
}

bool
pollable_wait(struct pollable *p)
{
    if (!p->always && !p->rung) {
        fd_wait(p->loop, p->epoll_fd, POLLIN, NEVER);
    }
    return !p->rung;
}

void
pollable_ring(struct pollable *p)
{
    uint64_t one = 1;

    p->rung = true;
    while (write(p->bell_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* Standard input and output. */

struct stdio_stream {
    struct stream s;
    struct pollable in, out;
};

static struct stdio_stream *
stdio_of(struct stream *s)
{
    return container_of(s, struct stdio_stream, s);
}

static ssize_t
stdio_read(struct stream *s, void *buf, size_t len)
{
    struct stdio_stream *st = stdio_of(s);

    while (!st->in.rung) {
        ssize_t n = read(STDIN_FILENO, buf, len);

        if (n >= 0) {
            return n;
        }
        if (errno == EAGAIN) {
            pollable_wait(&st->in);
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return -ESHUTDOWN;
}

static int
stdio_write(struct stream *s, const struct iovec *iov, int n)
{
    struct stdio_stream *st = stdio_of(s);

    for (int i = 0; i < n; i++) {
        size_t done = 0;

        while (done < iov[i].iov_len) {
            ssize_t w = write(STDOUT_FILENO, (char *)iov[i].iov_base + done,
                              iov[i].iov_len - done);

            if (w >= 0) {
                done += (size_t)w;
            } else if (st->out.rung) {
                return -ESHUTDOWN;
            } else if (errno == EAGAIN) {
                pollable_wait(&st->out);
            } else if (errno != EINTR) {
                return -errno;
            }
        }
    }
    return 0;
}

static void
stdio_shutdown(struct stream *s)
{
    struct stdio_stream *st = stdio_of(s);

    pollable_ring(&st->in);
    pollable_ring(&st->out);
}

static void
stdio_close(struct stream *s)
{
    struct stdio_stream *st = stdio_of(s);

    /* Whoever shares the terminal with us expects it to block. */
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) & ~O_NONBLOCK);
    fcntl(STDOUT_FILENO, F_SETFL, fcntl(STDOUT_FILENO, F_GETFL) & ~O_NONBLOCK);
    pollable_fini(&st->in);
    pollable_fini(&st->out);
    free(st);
}

static const struct stream_ops stdio_ops = {
    .read = stdio_read,
    .write = stdio_write,
    .shutdown = stdio_shutdown,
    .close = stdio_close,
};

int
stdio_stream_new(struct loop *loop, struct stream **ret)
{
    struct stdio_stream *st = xzalloc(sizeof(*st));
    int r = pollable_init(&st->in, loop, STDIN_FILENO, POLLIN);

    if (!r) {
        r = pollable_init(&st->out, loop, STDOUT_FILENO, POLLOUT);
        if (r) {
            pollable_fini(&st->in);
        }
    }
    if (r) {
        free(st);
        return r;
    }
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    fcntl(STDOUT_FILENO, F_SETFL, fcntl(STDOUT_FILENO, F_GETFL) | O_NONBLOCK);
    st->s = (struct stream){.ops = &stdio_ops, .loop = loop};
    *ret = &st->s;
    return 0;
}
