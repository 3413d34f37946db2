// SPDX-License-Identifier: BSD-3-Clause
/*
 * The simulated network: listeners by address, and links between two ends.
 *
 * A link has a queue of messages for each direction, each with the virtual
 * time at which it arrives; the order is kept, and a reader gets random parts.
 * While the net is *silent* nothing that is sent arrives, and nobody is told.
 * A *cut* loses what has not arrived and breaks both ends; who connects while
 * the net is down is refused.
 *
 * An end is a stream, or a descriptor for libraries that want one (libnbd):
 * one end of a socket pair, whose other end the pump empties and fills at each
 * turn of the loop.  Nobody else has it, so its readiness changes only there
 * and by the library's own calls, and a run stays determined by its seed.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "run/sim/world.h"
#include "run/stream.h"

enum {
    DELAY_NS = 200000, /* at most; one in STALL_CHANCE takes longer */
    STALL_CHANCE = 32,
    STALL_NS = 20000000,
    SILENCE_ENDS_NS = 1000000000, /* at most, between two links */
    WINDOW = 256 * 1024, /* bytes on the way, per direction */
    PIECE = 64 * 1024,   /* taken from a descriptor at once */
};

struct message {
    struct list link;
    uint64_t due;     /* when it arrives */
    size_t len, done; /* len 0: the sender has ended */
    unsigned char data[];
};

struct end {
    struct stream stream;
    struct link *link;
    struct list inbox; /* messages to this end, in order */
    size_t queued;     /* their bytes */
    uint64_t last_due;
    struct waitq readable, writable; /* writable: the peer's inbox has room */
    struct timer arrival;
    int fd;     /* the pump's end of a socket pair; -1: a stream */
    bool said;  /* the library has ended what it sends */
    bool ended; /* shut down here: reads and writes are over */
    bool freed; /* its owner is gone */
};

struct link {
    struct list link; /* of the world */
    struct end end[2];
    bool cut;
};

struct sim_listener {
    struct listener l;
    struct list link;
    struct list waiting; /* of struct pending */
    struct waitq arrived;
    bool shut;
};

struct pending {
    struct list link;
    struct end *end;
};

struct fd_waiter {
    struct list link;
    int fd;
    short events, got;
    struct waitq ready;
};

static struct end *
end_of(struct stream *stream)
{
    return container_of(stream, struct end, stream);
}

static struct end *
peer_of(struct end *e)
{
    return &e->link->end[e == &e->link->end[0]];
}

static struct sim *
sim_of_end(struct end *e)
{
    return sim_of(e->stream.loop);
}

static void
drop_messages(struct end *e, bool also_arrived)
{
    uint64_t now = sim_of_end(e)->now;

    list_for_each_safe (it, &e->inbox) {
        struct message *m = container_of(it, struct message, link);

        if (also_arrived || m->due > now) {
            e->queued -= m->len - m->done;
            list_remove(it);
            free(m);
        }
    }
}

static void
wake_all(struct link *link)
{
    for (int i = 0; i < 2; i++) {
        waitq_wake_all(&link->end[i].readable);
        waitq_wake_all(&link->end[i].writable);
    }
}

static void
close_fd(struct end *e)
{
    if (e->fd >= 0) {
        close(e->fd);
        e->fd = -1;
        e->ended = e->freed = true;
    }
}

static void
cut_link(struct link *link)
{
    link->cut = true;
    for (int i = 0; i < 2; i++) {
        drop_messages(&link->end[i], false);
        close_fd(&link->end[i]);
    }
    wake_all(link);
}

void
sim_cut_links(struct sim *sim, uint64_t down_ns)
{
    sim->down_until = max_u64(sim->down_until, sim->now + down_ns);
    list_for_each (it, &sim->links) {
        cut_link(container_of(it, struct link, link));
    }
}

void
sim_silence_links(struct sim *sim, uint64_t ns)
{
    sim->silent_until = max_u64(sim->silent_until, sim->now + ns);
}

static void
link_free_if_unused(struct link *link)
{
    if (!link->end[0].freed || !link->end[1].freed) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        drop_messages(&link->end[i], true);
        timer_cancel(&link->end[i].arrival);
    }
    list_remove(&link->link);
    free(link);
}

/* Called by the timer: the pump does the rest for a descriptor. */
static void
arrived(struct timer *timer)
{
    waitq_wake_all(&container_of(timer, struct end, arrival)->readable);
}

static void
set_arrival(struct end *e)
{
    if (!list_empty(&e->inbox)) {
        uint64_t due = list_first(&e->inbox, struct message, link)->due;

        timer_set(e->stream.loop, &e->arrival, due, arrived);
    }
}

/* Sends to @e's peer; what a cut link is given is lost. */
static void
send_message(struct end *e, const struct iovec *iov, int n, size_t len)
{
    struct sim *sim = sim_of_end(e);
    struct end *to = peer_of(e);

    if (e->link->cut) {
        return;
    }
    if (++sim->n_messages == sim->o.cut_at) {
        sim_cut_links(sim, sim->o.cut_ns);
        return;
    }
    struct message *m = xzalloc(sizeof(*m) + len);
    uint64_t delay = 0;

    if (!sim->o.in_order) {
        delay = sim_random(&sim->rng) %
                (sim_random(&sim->rng) % STALL_CHANCE ? DELAY_NS : STALL_NS);
    }
    m->len = len;
    for (int i = 0, at = 0; i < n && len; i++) {
        memcpy(m->data + at, iov[i].iov_base, iov[i].iov_len);
        at += (int)iov[i].iov_len;
    }
    m->due = sim->now + delay;
    if (sim->now < sim->silent_until) {
        m->due = sim->silent_until + sim_random(&sim->rng) % SILENCE_ENDS_NS;
    }
    m->due = to->last_due = max_u64(to->last_due, m->due);
    list_push(&to->inbox, &m->link);
    to->queued += len;
    set_arrival(to);
}

/* The first message that has arrived; NULL: none has. */
static struct message *
first_arrived(struct end *e)
{
    struct message *m = list_empty(&e->inbox)
                            ? NULL
                            : list_first(&e->inbox, struct message, link);

    return m && m->due <= sim_of_end(e)->now ? m : NULL;
}

/* @len bytes of the first message have been taken. */
static void
took(struct end *e, struct message *m, size_t len)
{
    m->done += len;
    e->queued -= len;
    if (m->done == m->len) {
        list_remove(&m->link);
        free(m);
        set_arrival(e);
    }
    waitq_wake_all(&peer_of(e)->writable);
}

/* Streams. */

static ssize_t
net_read(struct stream *stream, void *buf, size_t len)
{
    struct end *e = end_of(stream);
    struct sim *sim = sim_of_end(e);
    struct message *m;

    while (!e->ended && !(m = first_arrived(e)) && !e->link->cut) {
        waitq_wait(&e->readable);
    }
    if (e->ended) {
        return 0;
    }
    if (!m) {
        return -ECONNRESET;
    }
    if (!m->len) {
        return 0; /* stays: whoever reads again sees the end again */
    }
    size_t n = min_u64(len, m->len - m->done);

    if (!sim->o.in_order && n > 1 && sim_random(&sim->rng) % 4 == 0) {
        n = 1 + sim_random(&sim->rng) % n;
    }
    memcpy(buf, m->data + m->done, n);
    took(e, m, n);
    return (ssize_t)n;
}

static int
net_write(struct stream *stream, const struct iovec *iov, int n)
{
    struct end *e = end_of(stream);
    size_t len = 0;

    for (int i = 0; i < n; i++) {
        len += iov[i].iov_len;
    }
    while (!e->ended && !e->link->cut && !peer_of(e)->ended &&
           peer_of(e)->queued > WINDOW) {
        waitq_wait(&e->writable);
    }
    if (e->ended || e->link->cut || peer_of(e)->ended) {
        return -EPIPE;
    }
    if (len) {
        send_message(e, iov, n, len);
    }
    return 0;
}

static void
net_shutdown(struct stream *stream)
{
    struct end *e = end_of(stream);

    if (!e->ended) {
        e->ended = true;
        send_message(e, NULL, 0, 0);
        wake_all(e->link);
    }
}

static void
net_close(struct stream *stream)
{
    struct end *e = end_of(stream);

    net_shutdown(stream);
    e->freed = true;
    link_free_if_unused(e->link);
}

static const struct stream_ops net_stream_ops = {
    .read = net_read,
    .write = net_write,
    .shutdown = net_shutdown,
    .close = net_close,
};

static void
end_init(struct end *e, struct link *link, struct loop *loop)
{
    *e =
        (struct end){.stream = {&net_stream_ops, loop}, .link = link, .fd = -1};
    list_init(&e->inbox);
    waitq_init(&e->readable);
    waitq_init(&e->writable);
}

/* Listeners. */

static struct sim_listener *
listener_of(struct listener *l)
{
    return container_of(l, struct sim_listener, l);
}

static int
net_accept(struct listener *listener, struct stream **ret)
{
    struct sim_listener *l = listener_of(listener);

    while (!l->shut && list_empty(&l->waiting)) {
        waitq_wait(&l->arrived);
    }
    if (l->shut) {
        return -ESHUTDOWN;
    }
    struct pending *p = list_first(&l->waiting, struct pending, link);

    *ret = &p->end->stream;
    list_remove(&p->link);
    free(p);
    return 0;
}

static void
net_listener_shutdown(struct listener *listener)
{
    struct sim_listener *l = listener_of(listener);

    l->shut = true;
    waitq_wake_all(&l->arrived);
}

static void
net_listener_close(struct listener *listener)
{
    struct sim_listener *l = listener_of(listener);

    list_for_each_safe (it, &l->waiting) {
        struct pending *p = container_of(it, struct pending, link);

        list_remove(it);
        net_close(&p->end->stream);
        free(p);
    }
    list_remove(&l->link);
    free(l->l.bound);
    free(l);
}

static const struct listener_ops net_listener_ops = {
    .accept = net_accept,
    .shutdown = net_listener_shutdown,
    .close = net_listener_close,
};

static char *
address_text(const struct address *a)
{
    return a->kind == ADDRESS_UNIX ? xasprintf("unix:%s", a->path)
                                   : xasprintf("%s:%s", a->host ? a->host : "",
                                               a->port ? a->port : "");
}

static struct sim_listener *
find_listener(struct sim *sim, const char *bound)
{
    list_for_each (it, &sim->listeners) {
        struct sim_listener *l = container_of(it, struct sim_listener, link);

        if (!l->shut && !strcmp(l->l.bound, bound)) {
            return l;
        }
    }
    return NULL;
}

int
net_listen(struct loop *loop, const struct address *address,
           struct listener **ret, struct err *err)
{
    struct sim *sim = sim_of(loop);
    auto_free char *bound = address_text(address);

    if (find_listener(sim, bound)) {
        return err_set_errno(err, -EADDRINUSE, "Could not listen on '%s'",
                             bound);
    }
    struct sim_listener *l = xzalloc(sizeof(*l));

    l->l = (struct listener){&net_listener_ops, loop, take_ptr(bound)};
    list_init(&l->waiting);
    waitq_init(&l->arrived);
    list_push(&sim->listeners, &l->link);
    *ret = &l->l;
    return 0;
}

/* Connects to who listens; the caller's end is the first. */
static int
new_link(struct sim *sim, const struct address *address, struct link **ret,
         struct err *err)
{
    auto_free char *name = address_text(address);
    struct sim_listener *l = find_listener(sim, name);

    if (!l || sim->now < sim->down_until) {
        return err_set_errno(err, -ECONNREFUSED, "Could not connect to '%s'",
                             name);
    }
    struct link *link = xzalloc(sizeof(*link));
    struct pending *p = xzalloc(sizeof(*p));

    end_init(&link->end[0], link, &sim->loop);
    end_init(&link->end[1], link, &sim->loop);
    list_push(&sim->links, &link->link);
    p->end = &link->end[1];
    list_push(&l->waiting, &p->link);
    waitq_wake_all(&l->arrived);
    *ret = link;
    return 0;
}

static void
connect_delay(struct sim *sim)
{
    if (sim->o.in_order) {
        coro_relax();
    } else {
        coro_sleep(sim_random(&sim->rng) % DELAY_NS);
    }
}

int
net_connect(struct loop *loop, const struct address *address,
            struct stream **ret, struct err *err)
{
    struct link *link;

    connect_delay(sim_of(loop));
    int r = new_link(sim_of(loop), address, &link, err);

    if (!r) {
        *ret = &link->end[0].stream;
    }
    return r;
}

/* Descriptors. */

int
net_connect_fd(struct loop *loop, const struct address *address, int *ret,
               struct err *err)
{
    struct link *link;
    int fd[2];

    connect_delay(sim_of(loop));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
                   fd)) {
        return err_set_errno(err, -errno, "socketpair");
    }
    int r = new_link(sim_of(loop), address, &link, err);

    if (r) {
        close(fd[0]);
        close(fd[1]);
        return r;
    }
    link->end[0].fd = fd[1];
    *ret = fd[0];
    return 0;
}

/* The library can read no more, either. */
static bool
is_hung_up(const struct end *e)
{
    struct pollfd p = {.fd = e->fd};

    return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR));
}

/*
 * What the library wrote becomes messages, the last of which says that it has
 * ended; it can still read until the other side has.
 */
static void
take_from_fd(struct end *e)
{
    auto_free unsigned char *buf = e->fd >= 0 ? xmalloc(PIECE) : NULL;

    while (e->fd >= 0 && !e->said && peer_of(e)->queued <= WINDOW) {
        ssize_t n = read(e->fd, buf, PIECE);

        if (n > 0) {
            struct iovec iov = {buf, (size_t)n};

            send_message(e, &iov, 1, (size_t)n);
            continue;
        }
        if (n == 0 || errno != EAGAIN) {
            send_message(e, NULL, 0, 0);
            e->said = true;
        }
        break;
    }
    if (e->fd >= 0 && e->said && is_hung_up(e)) {
        close_fd(e);
    }
}

static void
give_to_fd(struct end *e)
{
    struct message *m;

    while (e->fd >= 0 && (m = first_arrived(e))) {
        if (!m->len) {
            close_fd(e);
            return;
        }
        ssize_t n =
            send(e->fd, m->data + m->done, m->len - m->done, MSG_NOSIGNAL);

        if (n < 0) {
            if (errno != EAGAIN) {
                close_fd(e); /* the library has closed its end */
                if (!e->said) {
                    send_message(e, NULL, 0, 0);
                }
            }
            return;
        }
        took(e, m, (size_t)n);
    }
}

static void
wake_fd_waiters(struct sim *sim)
{
    list_for_each (it, &sim->fd_waiters) {
        struct fd_waiter *w = container_of(it, struct fd_waiter, link);
        struct pollfd p = {.fd = w->fd, .events = w->events};

        if (!w->got && poll(&p, 1, 0) > 0) {
            w->got = p.revents;
            waitq_wake_all(&w->ready);
        }
    }
}

void
net_pump(struct sim *sim)
{
    list_for_each_safe (it, &sim->links) {
        struct link *link = container_of(it, struct link, link);

        for (int i = 0; i < 2; i++) {
            take_from_fd(&link->end[i]);
            give_to_fd(&link->end[i]);
        }
        link_free_if_unused(link);
    }
    wake_fd_waiters(sim);
}

short
net_fd_wait(struct loop *loop, int fd, short events, uint64_t deadline_ns)
{
    struct fd_waiter w = {.fd = fd, .events = events};

    waitq_init(&w.ready);
    list_push(&sim_of(loop)->fd_waiters, &w.link);
    waitq_wait_until(&w.ready, deadline_ns);
    list_remove(&w.link);
    return w.got;
}

void
net_fd_wake(struct loop *loop, int fd)
{
    list_for_each (it, &sim_of(loop)->fd_waiters) {
        struct fd_waiter *w = container_of(it, struct fd_waiter, link);

        if (w->fd == fd) {
            waitq_wake_all(&w->ready);
        }
    }
}

void
net_init(struct sim *sim)
{
    list_init(&sim->links);
    list_init(&sim->listeners);
    list_init(&sim->fd_waiters);
}
