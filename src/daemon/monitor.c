// SPDX-License-Identifier: BSD-3-Clause
/*
 * A client is three coroutines around one stream: the reader, which feeds the
 * session; the runner, which takes its commands one after the other; and the
 * writer, which sends answers and events in the order in which they were
 * queued.  The reader starts the two others and frees the client when both
 * have ended.
 *
 *   1. The reader pauses while many commands wait, so that a client cannot
 *      make the daemon store them.
 *   2. A client that does not read is disconnected once more than
 *      CLIENT_QUEUE_MAX bytes wait for it; one answer may be larger.
 *   3. After `broken` nothing is sent or run any more; after `read_all` what
 *      was read is still run and answered.
 */
#include "daemon/monitor.h"

#include <string.h>

#include "base/log.h"
#include "control/control.h"
#include "control/qmp_session.h"
#include "run/stream.h"

enum {
    CLIENT_QUEUE_MAX = 8 << 20,
    CLIENT_READ_SIZE = 4096,
    ACCEPT_RETRY_MS = 100,
    LINGER_MS = 1000, /* for the last answers, when the daemon ends */
};

struct text {
    struct list link;
    size_t len;
    char *s;
};

struct client {
    struct list link;
    struct monitors *monitors;
    struct stream *stream;
    struct qmp_session *session;
    struct control_listener listener;
    struct list out; /* of struct text.link */
    size_t out_bytes;
    bool read_all, broken;
    bool running, sending; /* the runner, the writer is alive */
    struct waitq room;     /* commands were taken, or an end */
    struct waitq to_run, to_send;
};

struct acceptor {
    struct list link;
    struct monitors *monitors;
    struct listener *listener;
    bool pretty;
};

static void
client_break(struct client *c)
{
    if (!c->broken) {
        c->broken = true;
        stream_shutdown(c->stream);
        waitq_wake_all(&c->room);
        waitq_wake_all(&c->to_run);
        waitq_wake_all(&c->to_send);
    }
}

/* @s is taken over. */
static void
client_send(struct client *c, char *s)
{
    if (c->broken || c->out_bytes > CLIENT_QUEUE_MAX) {
        free(s);
        if (!c->broken) {
            log_warn("a monitor's client does not read: disconnected");
            client_break(c);
        }
        return;
    }
    struct text *t = xzalloc(sizeof(*t));

    t->s = s;
    t->len = strlen(s);
    c->out_bytes += t->len;
    list_push(&c->out, &t->link);
    waitq_wake_all(&c->to_send);
}

static void
client_event(struct control_listener *listener, const json_t *event)
{
    struct client *c = container_of(listener, struct client, listener);

    if (qmp_session_negotiated(c->session)) {
        client_send(c, qmp_session_format(c->session, event));
    }
}

/* The runner. */
static void
run_commands(void *arg)
{
    struct client *c = arg;
    struct monitors *m = c->monitors;
    struct qmp_request *request;

    while (!c->broken && !m->stopping) {
        request = qmp_session_next(c->session);
        if (!request && c->read_all) {
            break;
        }
        if (!request) {
            waitq_wait(&c->to_run);
            continue;
        }
        waitq_wake_all(&c->room);
        m->running++;
        client_send(c, qmp_session_execute(c->session, m->ctl, request));
        m->running--;
        waitq_wake_all(&m->changed);
    }
    c->running = false;
    waitq_wake_all(&c->to_send);
    waitq_wake_all(&c->room);
}

/* The writer; it ends when nothing more can come. */
static void
send_texts(void *arg)
{
    struct client *c = arg;

    for (;;) {
        if (list_empty(&c->out)) {
            if (c->broken || (c->read_all && !c->running)) {
                break;
            }
            waitq_wait(&c->to_send);
            continue;
        }
        struct text *t = list_first(&c->out, struct text, link);

        if (!c->broken && stream_write_buf(c->stream, t->s, t->len)) {
            client_break(c);
        }
        list_remove(&t->link);
        c->out_bytes -= t->len;
        free(t->s);
        free(t);
        if (c->monitors->stopping && !c->out_bytes) {
            waitq_wake_all(&c->monitors->changed);
        }
    }
    c->sending = false;
    waitq_wake_all(&c->room);
    waitq_wake_all(&c->monitors->changed);
}

static void
read_commands(struct client *c)
{
    auto_free char *buf = xmalloc(CLIENT_READ_SIZE);

    while (!c->broken) {
        if (qmp_session_queued(c->session) >= QMP_SESSION_MAX_QUEUED) {
            waitq_wait(&c->room);
            continue;
        }
        ssize_t n = stream_read(c->stream, buf, CLIENT_READ_SIZE);

        if (n <= 0) {
            break;
        }
        qmp_session_feed(c->session, buf, (size_t)n);
        waitq_wake_all(&c->to_run);
    }
}

static void
serve(void *arg)
{
    struct client *c = arg;
    struct monitors *m = c->monitors;

    client_send(c, qmp_session_greeting(c->session));
    coro_start(m->loop, run_commands, c);
    coro_start(m->loop, send_texts, c);
    read_commands(c);
    c->read_all = true;
    waitq_wake_all(&c->to_run);
    waitq_wake_all(&c->to_send);
    while (c->running || c->sending) {
        waitq_wait(&c->room);
    }
    control_unlisten(&c->listener);
    list_remove(&c->link);
    stream_close(c->stream);
    qmp_session_free(c->session);
    free(c);
    waitq_wake_all(&m->changed);
}

void
monitors_serve(struct monitors *m, struct stream *stream, bool pretty)
{
    struct client *c = xzalloc(sizeof(*c));

    c->monitors = m;
    c->stream = stream;
    c->session = qmp_session_new(pretty);
    c->listener.on_event = client_event;
    c->running = c->sending = true;
    list_init(&c->out);
    waitq_init(&c->room);
    waitq_init(&c->to_run);
    waitq_init(&c->to_send);
    control_listen(m->ctl, &c->listener);
    list_push(&m->clients, &c->link);
    coro_start(m->loop, serve, c);
}

static void
accept_clients(void *arg)
{
    struct acceptor *a = arg;
    struct monitors *m = a->monitors;
    bool failing = false;

    while (!m->stopping) {
        struct stream *stream;
        int r = listener_accept(a->listener, &stream);

        if (!r && m->stopping) {
            stream_close(stream);
        } else if (!r) {
            failing = false;
            monitors_serve(m, stream, a->pretty);
        } else if (!m->stopping) {
            if (!failing) {
                log_warn("monitor on %s cannot accept a connection: %s; "
                         "trying again",
                         a->listener->bound, err_text(r));
            }
            failing = true;
            waitq_wait_until(&m->changed,
                             loop_now(m->loop) + ACCEPT_RETRY_MS * NS_PER_MS);
        }
    }
    listener_close(a->listener);
    list_remove(&a->link);
    free(a);
    waitq_wake_all(&m->changed);
}

void
monitors_accept(struct monitors *m, struct listener *listener, bool pretty)
{
    struct acceptor *a = xzalloc(sizeof(*a));

    *a = (struct acceptor){
        .monitors = m, .listener = listener, .pretty = pretty};
    list_push(&m->acceptors, &a->link);
    coro_start(m->loop, accept_clients, a);
}

void
monitors_init(struct monitors *m, struct loop *loop, struct control *ctl)
{
    *m = (struct monitors){.loop = loop, .ctl = ctl};
    list_init(&m->clients);
    list_init(&m->acceptors);
    waitq_init(&m->changed);
}

void
monitors_stop(struct monitors *m)
{
    m->stopping = true;
    list_for_each(it, &m->acceptors)
    {
        listener_shutdown(container_of(it, struct acceptor, link)->listener);
    }
    list_for_each(it, &m->clients)
    {
        waitq_wake_all(&container_of(it, struct client, link)->to_run);
    }
    while (m->running || !list_empty(&m->acceptors)) {
        waitq_wait(&m->changed);
    }
}

static bool
all_sent(struct monitors *m)
{
    list_for_each(it, &m->clients)
    {
        if (container_of(it, struct client, link)->out_bytes) {
            return false;
        }
    }
    return true;
}

void
monitors_fini(struct monitors *m)
{
    uint64_t deadline = loop_now(m->loop) + LINGER_MS * NS_PER_MS;

    while (!all_sent(m) && waitq_wait_until(&m->changed, deadline)) {
    }
    list_for_each(it, &m->clients)
    {
        client_break(container_of(it, struct client, link));
    }
    while (!list_empty(&m->clients)) {
        waitq_wait(&m->changed);
    }
}
