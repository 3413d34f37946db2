// SPDX-License-Identifier: BSD-3-Clause
/*
 * Sockets.  A descriptor is registered once, edge-triggered: `readable` and
 * `writable` say that a call may succeed, and are cleared when one did less
 * than it was asked (epoll(7): the next edge comes when that changes), so that
 * a busy socket costs one system call per read and no epoll_ctl().  The end of
 * a stream has no edge of its own where it came together with the last data,
 * so once it was seen a short read clears nothing.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "run/real_internal.h"

enum { LISTEN_BACKLOG = 128, IOV_CALL = 64, SEND_BUFFER = 1 << 20 };

struct real_stream {
    struct stream s;
    struct watch watch;
    int fd;
    bool readable, writable, shut;
    bool ending; /* the peer hung up: what is left may be read to the end */
    struct waitq readers, writers;

    /* For a loop that waits awake: what the reader waits for. */
    struct look look;
    void *buf;
    size_t len;
    ssize_t received; /* -EAGAIN: nothing yet */
};

static struct real_stream *
stream_of(struct stream *s)
{
    return container_of(s, struct real_stream, s);
}

static void
stream_event(struct watch *watch, unsigned events)
{
    struct real_stream *rs = container_of(watch, struct real_stream, watch);

    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        rs->readable = true;
        rs->ending |= (events & ~(unsigned)(EPOLLIN | EPOLLOUT)) != 0;
        waitq_wake_all(&rs->readers);
    }
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        rs->writable = true;
        waitq_wake_all(&rs->writers);
    }
}

/* What there is, at most @len bytes, or -errno; says whether there is more. */
static ssize_t
receive(struct real_stream *rs, void *buf, size_t len)
{
    ssize_t n;

    do {
        n = recv(rs->fd, buf, len, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0) {
        rs->readable = n == 0 || (size_t)n == len || rs->ending;
        return n;
    }
    rs->readable = errno != EAGAIN;
    return -errno;
}

static bool
stream_look(struct look *look)
{
    struct real_stream *rs = container_of(look, struct real_stream, look);

    rs->received = receive(rs, rs->buf, rs->len);
    if (rs->received == -EAGAIN) {
        return false;
    }
    real_of(rs->s.loop)->look = NULL;
    waitq_wake_all(&rs->readers);
    return true;
}

/* Until a call may succeed; -EAGAIN, or what was received meanwhile.  Yields. */
static ssize_t
wait_readable(struct real_stream *rs, void *buf, size_t len)
{
    struct real_loop *rl = real_of(rs->s.loop);

    assert(waitq_idle(&rs->readers)); /* stream.h: one reads at a time */
    rs->buf = buf;
    rs->len = len;
    rs->received = -EAGAIN;
    rl->look = &rs->look;
    waitq_wait(&rs->readers);
    if (rl->look == &rs->look) {
        rl->look = NULL;
    }
    return rs->shut ? -EAGAIN : rs->received;
}

static ssize_t
real_stream_read(struct stream *s, void *buf, size_t len)
{
    struct real_stream *rs = stream_of(s);

    for (;;) {
        if (rs->shut) {
            return -ESHUTDOWN;
        }
        ssize_t n = rs->readable ? receive(rs, buf, len)
                                 : wait_readable(rs, buf, len);

        if (n != -EAGAIN) {
            return n;
        }
    }
}

static int
real_stream_write(struct stream *s, const struct iovec *iov, int n)
{
    struct real_stream *rs = stream_of(s);
    struct sg rest = {.iov = iov};

    for (int i = 0; i < n; i++) {
        rest.len += iov[i].iov_len;
    }
    while (rest.len) {
        struct iovec part[IOV_CALL];
        uint64_t bytes;

        if (rs->shut) {
            return -ESHUTDOWN;
        }
        if (!rs->writable) {
            waitq_wait(&rs->writers);
            continue;
        }
        struct msghdr msg = {
            .msg_iov = part,
            .msg_iovlen = (size_t)sg_to_iov(rest, part, IOV_CALL, &bytes),
        };
        ssize_t done = sendmsg(rs->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (done >= 0) {
            rest = sg_slice(rest, (uint64_t)done, rest.len - (uint64_t)done);
        } else if (errno == EAGAIN) {
            rs->writable = false;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static void
real_stream_shutdown(struct stream *s)
{
    struct real_stream *rs = stream_of(s);

    rs->shut = true;
    shutdown(rs->fd, SHUT_RDWR);
    waitq_wake_all(&rs->readers);
    waitq_wake_all(&rs->writers);
}

static void
real_stream_close(struct stream *s)
{
    struct real_stream *rs = stream_of(s);

    close(rs->fd); /* leaves epoll by itself */
    free(rs);
}

static const struct stream_ops real_stream_ops = {
    .read = real_stream_read,
    .write = real_stream_write,
    .shutdown = real_stream_shutdown,
    .close = real_stream_close,
};

static int
stream_new(struct loop *loop, int fd, struct stream **ret)
{
    struct real_stream *rs = xzalloc(sizeof(*rs));
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP |
                                       EPOLLET,
                             .data.ptr = &rs->watch};
    int on = 1, size = SEND_BUFFER;

    rs->s = (struct stream){.ops = &real_stream_ops, .loop = loop};
    rs->fd = fd;
    rs->watch.fn = stream_event;
    rs->look.fn = stream_look;
    rs->readable = rs->writable = true;
    waitq_init(&rs->readers);
    waitq_init(&rs->writers);
    /* Fails on a Unix socket, which needs it not. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    /* A large answer in one call; the kernel's limit may make it less. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size))) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
    if (epoll_ctl(real_of(loop)->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
        int r = -errno;

        close(fd);
        free(rs);
        return r;
    }
    *ret = &rs->s;
    return 0;
}

/* Listening. */

struct real_listener {
    struct listener l;
    struct watch watch;
    int fd;
    bool shut;
    char *unlink_path; /* NULL where there is none */
    struct waitq acceptors;
};

static struct real_listener *
listener_of(struct listener *l)
{
    return container_of(l, struct real_listener, l);
}

static void
listener_event(struct watch *watch, unsigned events)
{
    waitq_wake_all(&container_of(watch, struct real_listener, watch)->acceptors);
}

static int
real_accept(struct listener *l, struct stream **ret)
{
    struct real_listener *rl = listener_of(l);

    for (;;) {
        if (rl->shut) {
            return -ESHUTDOWN;
        }
        int fd = accept4(rl->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            return stream_new(l->loop, fd, ret);
        }
        if (errno == EAGAIN) {
            waitq_wait(&rl->acceptors);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return -errno;
        }
    }
}

static void
real_listener_shutdown(struct listener *l)
{
    struct real_listener *rl = listener_of(l);

    rl->shut = true;
    waitq_wake_all(&rl->acceptors);
}

static void
real_listener_close(struct listener *l)
{
    struct real_listener *rl = listener_of(l);

    close(rl->fd);
    if (rl->unlink_path) {
        unlink(rl->unlink_path);
    }
    free(rl->unlink_path);
    free(l->bound);
    free(rl);
}

static const struct listener_ops real_listener_ops = {
    .accept = real_accept,
    .shutdown = real_listener_shutdown,
    .close = real_listener_close,
};

static int
unix_address(const char *path, struct sockaddr_un *sun, struct err *err)
{
    *sun = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(sun->sun_path)) {
        return err_set(err, -EINVAL,
                       "UNIX socket path '%s' is too long: the limit is %zu",
                       path, sizeof(sun->sun_path) - 1);
    }
    strcpy(sun->sun_path, path);
    return 0;
}

/* A socket file that nobody listens on any more was left by a dead process. */
static bool
socket_is_stale(const struct sockaddr_un *sun)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return false;
    }
    int r = connect(fd, (const struct sockaddr *)sun, sizeof(*sun));
    bool stale = r && errno == ECONNREFUSED;

    close(fd);
    return stale;
}

static int
listen_unix(const char *path, int *ret_fd, struct err *err)
{
    struct sockaddr_un sun;
    int r = unix_address(path, &sun, err);

    if (r) {
        return r;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    r = bind(fd, (struct sockaddr *)&sun, sizeof(sun));
    if (r && errno == EADDRINUSE && socket_is_stale(&sun)) {
        unlink(path);
        r = bind(fd, (struct sockaddr *)&sun, sizeof(sun));
    }
    if (r || listen(fd, LISTEN_BACKLOG)) {
        r = -errno;
        close(fd);
        return err_set_errno(err, r, "Failed to bind socket to %s", path);
    }
    *ret_fd = fd;
    return 0;
}

static int
resolve(const struct address *a, int flags, struct addrinfo **ret,
        struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    const char *host = a->host && *a->host ? a->host : NULL;
    int r = getaddrinfo(host, a->port, &hints, ret);

    if (r) {
        return err_set(err, -EINVAL,
                       "address resolution failed for %s:%s: %s",
                       host ? host : "", a->port, gai_strerror(r));
    }
    return 0;
}

static int
listen_tcp(const struct address *a, int *ret_fd, char **ret_bound,
           struct err *err)
{
    struct addrinfo *list;
    int r = resolve(a, AI_PASSIVE, &list, err);
    int fd = -1, on = 1;

    if (r) {
        return r;
    }
    for (struct addrinfo *ai = list; ai && fd < 0; ai = ai->ai_next) {
        fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (fd >= 0 && (bind(fd, ai->ai_addr, ai->ai_addrlen) ||
                        listen(fd, LISTEN_BACKLOG))) {
            r = -errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0) {
        return err_set_errno(err, r ? r : -EADDRNOTAVAIL,
                             "Failed to listen on %s:%s",
                             a->host ? a->host : "", a->port);
    }
    struct sockaddr_storage bound;
    socklen_t len = sizeof(bound);
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (!getsockname(fd, (struct sockaddr *)&bound, &len) &&
        !getnameinfo((struct sockaddr *)&bound, len, host, sizeof(host), port,
                     sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV)) {
        *ret_bound = xasprintf("%s:%s", host, port);
    }
    *ret_fd = fd;
    return 0;
}

/* A descriptor that was passed can be in any state; epoll_ctl() judges it. */
static void
set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags >= 0) {
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
}

int
real_listen(struct loop *loop, const struct address *address,
            struct listener **ret, struct err *err)
{
    struct real_listener *rl = xzalloc(sizeof(*rl));
    struct epoll_event ev = {.events = EPOLLIN | EPOLLET,
                             .data.ptr = &rl->watch};
    int r = 0;

    switch (address->kind) {
    case ADDRESS_UNIX:
        r = listen_unix(address->path, &rl->fd, err);
        if (!r) {
            rl->unlink_path = xstrdup(address->path);
            rl->l.bound = xasprintf("unix:%s", address->path);
        }
        break;
    case ADDRESS_TCP:
        r = listen_tcp(address, &rl->fd, &rl->l.bound, err);
        break;
    case ADDRESS_FD:
        rl->fd = address->fd;
        set_nonblocking(rl->fd);
        rl->l.bound = xasprintf("fd:%d", address->fd);
        break;
    }
    if (!r && epoll_ctl(real_of(loop)->epoll_fd, EPOLL_CTL_ADD, rl->fd, &ev)) {
        r = err_set_errno(err, -errno, "Could not watch the socket %s",
                          rl->l.bound);
        close(rl->fd);
        if (rl->unlink_path) {
            unlink(rl->unlink_path);
        }
    }
    if (r) {
        free(rl->unlink_path);
        free(rl->l.bound);
        free(rl);
        return r;
    }
    rl->l.ops = &real_listener_ops;
    rl->l.loop = loop;
    rl->watch.fn = listener_event;
    waitq_init(&rl->acceptors);
    *ret = &rl->l;
    return 0;
}

/* Connecting: name resolution and connect(2) block, so in a worker. */

struct connect_call {
    const struct address *address;
    int fd, result;
    struct err *err;
};

static void
connect_in_worker(void *arg)
{
    struct connect_call *c = arg;
    const struct address *a = c->address;
    struct sockaddr_un sun;
    struct addrinfo *list = NULL;
    struct addrinfo one = {.ai_family = AF_UNIX,
                           .ai_addr = (struct sockaddr *)&sun,
                           .ai_addrlen = sizeof(sun)};

    c->fd = -1;
    c->result = a->kind == ADDRESS_UNIX ? unix_address(a->path, &sun, c->err)
                                        : resolve(a, 0, &list, c->err);
    if (c->result) {
        return;
    }
    for (struct addrinfo *ai = list ? list : &one; ai && c->fd < 0;
         ai = ai->ai_next) {
        c->fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd >= 0 && connect(c->fd, ai->ai_addr, ai->ai_addrlen)) {
            c->result = -errno;
            close(c->fd);
            c->fd = -1;
        }
    }
    if (list) {
        freeaddrinfo(list);
    }
    if (c->fd < 0) {
        err_set_errno(c->err, c->result, "Failed to connect to '%s%s%s'",
                      a->kind == ADDRESS_UNIX ? a->path : a->host,
                      a->kind == ADDRESS_UNIX ? "" : ":",
                      a->kind == ADDRESS_UNIX ? "" : a->port);
    } else {
        c->result = 0;
    }
}

int
real_connect(struct loop *loop, const struct address *address,
             struct stream **ret, struct err *err)
{
    struct connect_call c = {.address = address, .err = err};

    if (address->kind == ADDRESS_FD) {
        set_nonblocking(address->fd);
        return stream_new(loop, address->fd, ret);
    }
    offload_by_name(loop,
                    address->kind == ADDRESS_UNIX ? address->path
                    : address->host               ? address->host
                                                  : "",
                    connect_in_worker, &c);
    return c.result ? c.result : stream_new(loop, c.fd, ret);
}
