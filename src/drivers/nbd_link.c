// SPDX-License-Identifier: BSD-3-Clause
/*
 * The connection to an NBD server.
 *
 * libnbd's state machine does the protocol; one coroutine, the pump, waits for
 * its socket and turns it.  When the connection breaks libnbd fails all
 * requests in flight, and the pump connects again:
 *
 *   reconnect-delay > 0   at once and then with growing pauses; requests are
 *                         parked (-ERESTART) until `delay` after the loss, and
 *                         fail from then on, while the pump goes on trying
 *   reconnect-delay = 0   requests fail at once, as with QEMU; each lets the
 *                         pump try once more
 *
 * A link whose server does not answer is cut off for a job that was told to stop
 * (nbd_link_cut_off()): that is a loss, too.  The server may still carry out
 * what it was sent, so it is told that the connection is over, and there is no
 * other one before it has closed its side.  A request would have waited for it
 * on the old connection, and does so now; a server that then refuses a
 * connection is lost as any other.
 *
 * An abandoned link (the daemon ends, and the server may never answer) is shut
 * down below libnbd, which then fails what is in flight, and is never made
 * again.
 *
 * What the server had acknowledged but not flushed when it was lost may be lost
 * with it.  For a disk that is the server's matter, as it is with any NBD
 * client; the node counts it (node->losses), so that a copy begins anew there.
 */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "block/limits.h"
#include "drivers/nbd_client.h"
#include "run/stream.h"

#define PAUSE_MIN (50 * NS_PER_MS)
#define PAUSE_MAX (8 * NS_PER_S)
#define CONNECT_TIMEOUT (10 * NS_PER_S)
#define GOODBYE_TIMEOUT NS_PER_S

static struct loop *
loop_of(struct nbd_link *link)
{
    return graph_loop(link->node->graph);
}

/* Waits for the socket and turns the state machine once. */
static void
turn(struct nbd_link *link, struct nbd_handle *h, uint64_t deadline_ns)
{
    unsigned dir = nbd_aio_get_direction(h);
    short events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                   (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
    short got = fd_wait(loop_of(link), link->fd, events, deadline_ns);

    /* The direction can have changed while we waited. */
    dir = nbd_aio_get_direction(h);
    if ((dir & LIBNBD_AIO_DIRECTION_READ) &&
        (got & (POLLIN | POLLHUP | POLLERR))) {
        nbd_aio_notify_read(h);
    } else if ((dir & LIBNBD_AIO_DIRECTION_WRITE) &&
               (got & (POLLOUT | POLLHUP | POLLERR))) {
        nbd_aio_notify_write(h);
    }
}

/* Requests in flight have failed before. */
static void
drop(struct nbd_link *link, struct nbd_handle *h)
{
    nbd_close(h);
    if (link->fd >= 0) {
        close(link->fd);
        link->fd = -1;
    }
}

static bool
is_over(struct nbd_handle *h)
{
    return nbd_aio_is_dead(h) || nbd_aio_is_closed(h);
}

/* Name resolution may block for long: not in the loop's thread. */
struct resolve {
    const char *host, *port;
    char numeric[NI_MAXHOST];
    int result;
};

static void
resolve_main(void *arg)
{
    struct resolve *r = arg;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;

    r->result = getaddrinfo(r->host, r->port, &hints, &list);
    if (!r->result) {
        r->result = getnameinfo(list->ai_addr, list->ai_addrlen, r->numeric,
                                sizeof(r->numeric), NULL, 0, NI_NUMERICHOST);
        freeaddrinfo(list);
    }
}

static int
begin_connect(struct nbd_link *link, struct nbd_handle *h, struct err *err)
{
    struct offload_group group;
    struct resolve res = {.host = link->o.host, .port = link->o.port};
    struct address to = {.kind = link->o.path ? ADDRESS_UNIX : ADDRESS_TCP,
                         .path = link->o.path,
                         .host = link->o.host,
                         .port = link->o.port};
    int fd, r = fd_connect(loop_of(link), &to, &fd, err);

    if (r != -ENOTSUP) {
        return r ? r : nbd_aio_connect_socket(h, fd);
    }
    if (link->o.path) {
        return nbd_aio_connect_unix(h, link->o.path);
    }
    offload_group_init(&group, 1);
    offload(loop_of(link), &group, resolve_main, &res);
    if (res.result) {
        return err_set(err, -EHOSTUNREACH, "%s", gai_strerror(res.result));
    }
    return nbd_aio_connect_tcp(h, res.numeric, link->o.port);
}

/* libnbd's last error, for @err; the text is its own. */
static int
nbd_error(struct err *err)
{
    int code = nbd_get_errno();
    const char *text = nbd_get_error();

    return err_set(err, code ? -code : -EIO, "%s", text ? text : "failed");
}

static uint64_t
block_size(struct nbd_handle *h, int which, uint64_t otherwise)
{
    int64_t v = nbd_get_block_size(h, which);

    return v > 0 ? (uint64_t)v : otherwise;
}

static int
ask_export(struct nbd_handle *h, struct nbd_export *ex, struct err *err)
{
    int64_t size = nbd_get_size(h);
    uint64_t align = block_size(h, LIBNBD_SIZE_MINIMUM, 1);
    uint64_t preferred = block_size(h, LIBNBD_SIZE_PREFERRED, 4096);
    uint64_t max = block_size(h, LIBNBD_SIZE_MAXIMUM, 32 * MIB);

    if (size < 0) {
        return nbd_error(err);
    }
    if (!is_pow2(align) || align > 64 * KIB || !is_pow2(preferred) ||
        preferred > 64 * MIB || max < align) {
        return err_set(err, -EINVAL, "its block sizes make no sense");
    }
    *ex = (struct nbd_export){
        .size = (uint64_t)size,
        .read_only = nbd_is_read_only(h) > 0,
        .can_flush = nbd_can_flush(h) > 0,
        .can_trim = nbd_can_trim(h) > 0,
        .can_zero = nbd_can_zero(h) > 0,
        .can_fast_zero = nbd_can_fast_zero(h) > 0,
        .can_status =
            nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
        .min_align = (uint32_t)align,
        .preferred = (uint32_t)max_u64(preferred, align),
        .max_request = align_down(min_u64(max, 32 * MIB), align),
    };
    return 0;
}

/* A new handle, connected and through its handshake. */
static int
connect_once(struct nbd_link *link, struct nbd_handle **ret,
             struct nbd_export *ret_export, struct err *err)
{
    uint64_t deadline = loop_now(loop_of(link)) + CONNECT_TIMEOUT;
    struct nbd_handle *h = nbd_create();
    int r = 0;

    if (!h || nbd_set_export_name(h, link->o.export) ||
        nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION)) {
        r = nbd_error(err);
    }
    if (!r) {
        r = begin_connect(link, h, err);
        r = r == -1 ? nbd_error(err) : r;
    }
    if (!r && !is_over(h)) {
        link->fd = dup(nbd_aio_get_fd(h));
        r = link->fd < 0 ? err_set_errno(err, -errno, "dup") : 0;
    }
    while (!r && !nbd_aio_is_ready(h) && !is_over(h) && !link->closing &&
           !link->abandoned && loop_now(loop_of(link)) < deadline) {
        turn(link, h, deadline);
    }
    if (!r && link->abandoned) {
        r = err_set(err, -ESHUTDOWN, "the attempt was given up");
    } else if (!r && is_over(h)) {
        r = nbd_error(err);
    } else if (!r && !nbd_aio_is_ready(h)) {
        r = err_set(err, -ETIMEDOUT, "the server does not answer");
    }
    if (!r) {
        r = ask_export(h, ret_export, err);
    }
    if (r) {
        drop(link, h);
        return r;
    }
    *ret = h;
    return 0;
}

static void
expired(struct timer *timer)
{
    struct nbd_link *link = container_of(timer, struct nbd_link, expiry);

    graph_unpark(link->node->graph); /* they see that it took too long */
}

static void
lost(struct nbd_link *link)
{
    struct nbd_handle *h = link->h;
    uint64_t now = loop_now(loop_of(link));

    /* A server that dies of every connection is not there: no new delay. */
    link->flapping = !link->progress && now - link->up_ns < NS_PER_S;
    if (!link->flapping || !link->lost_ns) {
        link->lost_ns = now;
    }
    /* What was cut off may still be carried out. */
    if (link->written != link->flushed || link->cut_off) {
        link->node->losses++;
        link->flushed = link->written;
    }
    link->h = NULL;
    link->wanted = false;
    if (link->cut_off) {
        nbd_close(h); /* without a word to those who wait */
        nbd_calls_fail(link);
        shutdown(link->fd, SHUT_WR);
    } else {
        drop(link, h);
    }
    if (link->o.reconnect_delay_ns && !link->closing && !link->abandoned) {
        timer_set(loop_of(link), &link->expiry,
                  link->lost_ns + link->o.reconnect_delay_ns, expired);
    }
}

/* A host that does not even say no for so long, after one was cut off, is gone. */
#define GONE_NS (60 * NS_PER_S)

/* One attempt; an export that has changed is no connection. */
static bool
reconnect(struct nbd_link *link)
{
    struct nbd_export ex;
    struct nbd_handle *h;
    int r = connect_once(link, &h, &ex, NULL);

    if (!r && (link->closing || ex.size != link->export.size ||
               ex.min_align > link->export.min_align ||
               (ex.read_only && !link->node->read_only))) {
        drop(link, h);
        r = -EINVAL;
    }
    bool is_late = loop_now(loop_of(link)) >=
                   link->lost_ns + link->o.reconnect_delay_ns + GONE_NS;

    if (r && (r != -ETIMEDOUT || is_late) && link->cut_off) {
        link->cut_off = false; /* it is gone, not silent */
        graph_unpark(link->node->graph);
    }
    if (r) {
        return false;
    }
    link->export = ex;
    link->h = h;
    link->cut_off = false;
    link->up_ns = loop_now(loop_of(link));
    link->progress = false;
    timer_cancel(&link->expiry);
    graph_unpark(link->node->graph);
    return true;
}

/* Until the server has closed the connection that was cut off. */
static void
wait_for_goodbye(struct nbd_link *link)
{
    unsigned char rest[1024];
    ssize_t n = 1;
    int on = 1;

    /* Its host may be gone since. */
    setsockopt(link->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    while (n && !link->closing && !link->abandoned) {
        fd_wait(loop_of(link), link->fd, POLLIN, NEVER);
        n = recv(link->fd, rest, sizeof(rest), MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            n = 0;
        }
    }
    close(link->fd);
    link->fd = -1;
}

static void
connect_again(struct nbd_link *link)
{
    uint64_t pause = PAUSE_MIN;

    if (link->cut_off) {
        wait_for_goodbye(link);
    }
    if (link->flapping) {
        waitq_wait_until(&link->kick, loop_now(loop_of(link)) + pause);
    }
    while (!link->closing) {
        while (!link->closing &&
               (link->abandoned ||
                (!link->o.reconnect_delay_ns && !link->wanted &&
                 !link->cut_off))) {
            waitq_wait(&link->kick);
        }
        link->wanted = false;
        if (link->closing || reconnect(link)) {
            return;
        }
        waitq_wait_until(&link->kick, loop_now(loop_of(link)) + pause);
        pause = min_u64(pause * 2, PAUSE_MAX);
    }
}

static void
pump_main(void *arg)
{
    struct nbd_link *link = arg;

    while (!link->closing) {
        while (link->h && !link->closing && !link->cut_off &&
               !is_over(link->h)) {
            turn(link, link->h, NEVER);
        }
        if (!link->closing) {
            lost(link);
            connect_again(link);
        }
    }
    link->pumping = false;
    waitq_wake_all(&link->ended);
}

int
nbd_link_start(struct nbd_link *link, struct err *err)
{
    uint64_t start = loop_now(loop_of(link)), pause = PAUSE_MIN;
    auto_err inner = ERR_INIT;
    int r;

    while ((r = connect_once(link, &link->h, &link->export, &inner)) &&
           !link->abandoned && loop_now(loop_of(link)) + pause < start + link->o.open_timeout_ns) {
        err_clear(&inner);
        waitq_wait_until(&link->kick, loop_now(loop_of(link)) + pause);
        pause = min_u64(pause * 2, PAUSE_MAX);
    }
    if (r) {
        err_prefix(&inner, "Could not connect to '%s'", link->node->filename);
        return err_propagate(err, &inner);
    }
    link->pumping = true;
    link->up_ns = loop_now(loop_of(link));
    coro_start(loop_of(link), pump_main, link);
    return 0;
}

void
nbd_link_stop(struct nbd_link *link)
{
    uint64_t deadline = loop_now(loop_of(link)) + GOODBYE_TIMEOUT;

    link->closing = true;
    timer_cancel(&link->expiry);
    waitq_wake_all(&link->kick);
    nbd_link_pump(link);
    while (link->pumping) {
        waitq_wait(&link->ended);
    }
    if (link->h) {
        nbd_aio_disconnect(link->h, 0);
        while (!is_over(link->h) && loop_now(loop_of(link)) < deadline) {
            turn(link, link->h, deadline);
        }
        drop(link, link->h);
        link->h = NULL;
    }
}

int
nbd_link_check(struct nbd_link *link)
{
    if (link->abandoned) {
        return -EIO;
    }
    if (link->cut_off) {
        return -ERESTART;
    }
    if (link->h && !is_over(link->h)) {
        return 0;
    }
    link->wanted = true;
    if (!link->h) {
        waitq_wake_all(&link->kick);
    }
    /* The pump has yet to notice: the delay begins when it does. */
    if (link->o.reconnect_delay_ns &&
        (link->h || loop_now(loop_of(link)) <
                        link->lost_ns + link->o.reconnect_delay_ns)) {
        return -ERESTART;
    }
    return -EIO;
}

void
nbd_link_abandon(struct nbd_link *link)
{
    link->abandoned = true;
    timer_cancel(&link->expiry);
    if (link->fd >= 0) {
        shutdown(link->fd, SHUT_RDWR);
    }
    waitq_wake_all(&link->kick);
    nbd_link_pump(link);
}

void
nbd_link_cut_off(struct nbd_link *link)
{
    if (link->h && !link->cut_off && !link->closing) {
        link->cut_off = true;
        nbd_link_pump(link);
    }
}

void
nbd_link_pump(struct nbd_link *link)
{
    if (link->fd >= 0) {
        fd_wake(loop_of(link), link->fd);
    }
}
