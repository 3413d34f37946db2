// SPDX-License-Identifier: BSD-3-Clause
/*
 * Monitors: QMP sessions on streams.
 *
 * Each has a reader, which runs its commands in order, and a writer, which
 * sends answers and events in the order in which they were queued.  A command
 * that waits holds up its own monitor only.  A client that does not read is
 * disconnected when QUEUE_MAX bytes wait for it.
 */
#include <errno.h>
#include <string.h>

#include "control/control_internal.h"
#include "control/qmp_dispatch.h"
#include "control/qmp_session.h"
#include "run/stream.h"

enum { READ_SIZE = 16384, QUEUE_MAX = 8 << 20 };

struct text {
    struct list link;
    char *p;
    size_t len;
};

struct monitor {
    struct list link;
    struct control *ctl;
    struct stream *stream;
    struct qmp_session *session;
    struct list queue; /* of struct text */
    size_t queued;     /* bytes in it */
    bool closing;
    unsigned coroutines; /* reader and writer */
    struct waitq wake;   /* the writer's */
};

struct monitor_listener {
    struct list link;
    struct control *ctl;
    struct listener *listener;
    bool pretty;
};

static void
shut(struct monitor *m)
{
    if (!m->closing) {
        m->closing = true;
        waitq_wake_all(&m->wake);
    }
}

/* Takes the text. */
static void
send_text(struct monitor *m, char *p)
{
    struct text *t = xzalloc(sizeof(*t));

    t->p = p;
    t->len = strlen(p);
    list_push(&m->queue, &t->link);
    m->queued += t->len;
    if (m->queued > QUEUE_MAX) {
        stream_shutdown(m->stream);
        shut(m);
    }
    waitq_wake_all(&m->wake);
}

static void
ended(struct monitor *m)
{
    struct control *ctl = m->ctl;

    if (--m->coroutines) {
        return;
    }
    while (!list_empty(&m->queue)) {
        struct text *t = list_first(&m->queue, struct text, link);

        list_remove(&t->link);
        free(t->p);
        free(t);
    }
    stream_close(m->stream);
    qmp_session_free(m->session);
    list_remove(&m->link);
    free(m);
    waitq_wake_all(&ctl->idle);
}

static void
writer_main(void *arg)
{
    struct monitor *m = arg;
    int r = 0;

    while (!r) {
        while (list_empty(&m->queue) && !m->closing) {
            waitq_wait(&m->wake);
        }
        if (list_empty(&m->queue)) {
            break; /* closing, and everything was sent */
        }
        struct text *t = list_first(&m->queue, struct text, link);

        list_remove(&t->link);
        r = stream_write_buf(m->stream, t->p, t->len);
        m->queued -= t->len;
        free(t->p);
        free(t);
    }
    m->closing = true;
    stream_shutdown(m->stream); /* the reader ends, too */
    ended(m);
}

static void
reader_main(void *arg)
{
    struct monitor *m = arg;
    auto_free char *buf = xmalloc(READ_SIZE);
    struct qmp_request *request;

    send_text(m, qmp_session_greeting(m->session));
    while (!m->closing) {
        ssize_t n = stream_read(m->stream, buf, READ_SIZE);

        if (n <= 0) {
            break;
        }
        qmp_session_feed(m->session, buf, (size_t)n);
        while (!m->closing && (request = qmp_session_next(m->session))) {
            send_text(m, qmp_session_execute(m->session, m->ctl, request));
        }
    }
    shut(m);
    ended(m);
}

void
control_serve(struct control *ctl, struct stream *stream, bool pretty)
{
    struct monitor *m = xzalloc(sizeof(*m));

    m->ctl = ctl;
    m->stream = stream;
    m->session = qmp_session_new(pretty);
    m->coroutines = 2;
    list_init(&m->queue);
    waitq_init(&m->wake);
    list_push(&ctl->monitors, &m->link);
    coro_start(ctl->loop, writer_main, m);
    coro_start(ctl->loop, reader_main, m);
}

static void
accept_main(void *arg)
{
    struct monitor_listener *ml = arg;
    struct control *ctl = ml->ctl;
    struct stream *stream;
    int r;

    while ((r = listener_accept(ml->listener, &stream)) != -ESHUTDOWN) {
        if (!r) {
            control_serve(ctl, stream, ml->pretty);
        } else {
            coro_sleep(100 * NS_PER_MS); /* out of descriptors, perhaps */
        }
    }
    listener_close(ml->listener);
    list_remove(&ml->link);
    free(ml);
    waitq_wake_all(&ctl->idle);
}

void
control_listen(struct control *ctl, struct listener *listener, bool pretty)
{
    struct monitor_listener *ml = xzalloc(sizeof(*ml));

    *ml = (struct monitor_listener){
        .ctl = ctl, .listener = listener, .pretty = pretty};
    list_push(&ctl->listeners, &ml->link);
    coro_start(ctl->loop, accept_main, ml);
}

void
monitors_close(struct control *ctl)
{
    list_for_each(it, &ctl->listeners)
    {
        listener_shutdown(
            container_of(it, struct monitor_listener, link)->listener);
    }
    list_for_each(it, &ctl->monitors)
    {
        shut(container_of(it, struct monitor, link)); /* sends what waits */
    }
    while (!list_empty(&ctl->monitors) || !list_empty(&ctl->listeners)) {
        waitq_wait(&ctl->idle);
    }
}

void
control_event(struct control *ctl, const char *name, json_t *data)
{
    json_t *event = qmp_event(name, data, loop_wall_now(ctl->loop));

    list_for_each(it, &ctl->monitors)
    {
        struct monitor *m = container_of(it, struct monitor, link);

        if (qmp_session_negotiated(m->session) && !m->closing) {
            send_text(m, qmp_session_format(m->session, event));
        }
    }
    json_decref(event);
}
