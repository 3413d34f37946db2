// SPDX-License-Identifier: BSD-3-Clause
/*
 * Monitors: the protocol's clients.  Commands of one client run in order;
 * those of different clients do not wait for each other.
 *
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
#include <string.h>

#include "base/log.h"
#include "control/control_internal.h"
#include "control/qmp_dispatch.h"
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
    struct control *ctl;
    struct stream *stream;
    struct qmp_session *session;
    struct list out; /* of struct text.link */
    size_t out_bytes;
    bool read_all, broken;
    bool running, sending; /* the runner, the writer is alive */
    bool executing;        /* the runner is in a command */
    struct waitq room;     /* commands were taken, or an end */
    struct waitq to_run, to_send;
};

struct acceptor {
    struct list link;
    struct control *ctl;
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

/* The runner. */
static void
run_commands(void *arg)
{
    struct client *c = arg;
    struct control *ctl = c->ctl;
    struct qmp_request *request;

    while (!c->broken && !ctl->stopping) {
        request = qmp_session_next(c->session);
        if (!request && c->read_all) {
            break;
        }
        if (!request) {
            waitq_wait(&c->to_run);
            continue;
        }
        waitq_wake_all(&c->room);
        ctl->running++;
        c->executing = true;
        client_send(c, qmp_session_execute(c->session, ctl, request));
        c->executing = false;
        ctl->running--;
        waitq_wake_all(&ctl->monitors_changed);
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
        if (c->ctl->stopping && !c->out_bytes) {
            waitq_wake_all(&c->ctl->monitors_changed);
        }
    }
    c->sending = false;
    waitq_wake_all(&c->room);
    waitq_wake_all(&c->ctl->monitors_changed);
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
    struct control *ctl = c->ctl;

    client_send(c, qmp_session_greeting(c->session));
    coro_start(ctl->loop, run_commands, c);
    coro_start(ctl->loop, send_texts, c);
    read_commands(c);
    c->read_all = true;
    waitq_wake_all(&c->to_run);
    waitq_wake_all(&c->to_send);
    while (c->running || c->sending) {
        waitq_wait(&c->room);
    }
    list_remove(&c->link);
    stream_close(c->stream);
    qmp_session_free(c->session);
    free(c);
    waitq_wake_all(&ctl->monitors_changed);
}

void
control_serve(struct control *ctl, struct stream *stream, bool pretty)
{
    struct client *c = xzalloc(sizeof(*c));

    c->ctl = ctl;
    c->stream = stream;
    c->session = qmp_session_new(pretty);
    c->running = c->sending = true;
    list_init(&c->out);
    waitq_init(&c->room);
    waitq_init(&c->to_run);
    waitq_init(&c->to_send);
    list_push(&ctl->clients, &c->link);
    coro_start(ctl->loop, serve, c);
}

static void
accept_clients(void *arg)
{
    struct acceptor *a = arg;
    struct control *ctl = a->ctl;
    bool failing = false;

    while (!ctl->stopping) {
        struct stream *stream;
        int r = listener_accept(a->listener, &stream);

        if (!r && ctl->stopping) {
            stream_close(stream);
        } else if (!r) {
            failing = false;
            control_serve(ctl, stream, a->pretty);
        } else if (!ctl->stopping) {
            if (!failing) {
                log_warn("monitor on %s cannot accept a connection: %s; "
                         "trying again",
                         a->listener->bound, err_text(r));
            }
            failing = true;
            waitq_wait_until(&ctl->monitors_changed,
                             loop_now(ctl->loop) + ACCEPT_RETRY_MS * NS_PER_MS);
        }
    }
    listener_close(a->listener);
    list_remove(&a->link);
    free(a);
    waitq_wake_all(&ctl->monitors_changed);
}

void
control_listen(struct control *ctl, struct listener *listener, bool pretty)
{
    struct acceptor *a = xzalloc(sizeof(*a));

    *a = (struct acceptor){.ctl = ctl, .listener = listener, .pretty = pretty};
    list_push(&ctl->acceptors, &a->link);
    coro_start(ctl->loop, accept_clients, a);
}

void
control_event(struct control *ctl, const char *name, json_t *data)
{
    json_t *event = qmp_event(name, data, loop_wall_now(ctl->loop));

    list_for_each(it, &ctl->clients)
    {
        struct client *c = container_of(it, struct client, link);

        if (qmp_session_negotiated(c->session)) {
            client_send(c, qmp_session_format(c->session, event));
        }
    }
    json_decref(event);
}

void
monitors_stop(struct control *ctl)
{
    ctl->stopping = true;
    list_for_each(it, &ctl->acceptors)
    {
        listener_shutdown(container_of(it, struct acceptor, link)->listener);
    }
    list_for_each(it, &ctl->clients)
    {
        waitq_wake_all(&container_of(it, struct client, link)->to_run);
    }
    uint64_t deadline = loop_now(ctl->loop) + CONTROL_LET_GO_MS * NS_PER_MS;

    while (!list_empty(&ctl->acceptors)) {
        waitq_wait(&ctl->monitors_changed);
    }
    while (ctl->running && waitq_wait_until(&ctl->monitors_changed, deadline)) {
    }
}

static bool
all_sent(struct control *ctl)
{
    list_for_each(it, &ctl->clients)
    {
        if (container_of(it, struct client, link)->out_bytes) {
            return false;
        }
    }
    return true;
}

/* All but those with a command that does not return. */
static bool
all_ended(struct control *ctl)
{
    list_for_each(it, &ctl->clients)
    {
        if (!container_of(it, struct client, link)->executing) {
            return false;
        }
    }
    return true;
}

bool
monitors_close(struct control *ctl)
{
    uint64_t deadline = loop_now(ctl->loop) + LINGER_MS * NS_PER_MS;

    while (!all_sent(ctl) &&
           waitq_wait_until(&ctl->monitors_changed, deadline)) {
    }
    list_for_each(it, &ctl->clients)
    {
        client_break(container_of(it, struct client, link));
    }
    while (!all_ended(ctl)) {
        waitq_wait(&ctl->monitors_changed);
    }
    return list_empty(&ctl->clients);
}
