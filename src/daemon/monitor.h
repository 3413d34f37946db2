// SPDX-License-Identifier: BSD-3-Clause
/*
 * Monitors: the control protocol's clients.
 *
 * A monitor serves a chardev: all clients of a listening socket, each with its
 * own session, or the one stream that it has.  Commands of one client run in
 * order; those of different clients do not wait for each other.
 */
#ifndef SLUICE_DAEMON_MONITOR_H
#define SLUICE_DAEMON_MONITOR_H

#include <stdbool.h>

#include "base/list.h"
#include "run/wait.h"

struct control;
struct listener;
struct loop;
struct stream;

/* All monitors of a daemon; embedded. */
struct monitors {
    struct loop *loop;
    struct control *ctl;
    struct list clients;   /* of struct client.link */
    struct list acceptors; /* of struct acceptor.link */
    unsigned running;      /* commands */
    bool stopping;
    struct waitq changed;
};

void monitors_init(struct monitors *m, struct loop *loop, struct control *ctl);
/* Serves whoever connects; the listener is taken over.  Does not yield. */
void monitors_accept(struct monitors *m, struct listener *listener,
                     bool pretty);
/* Serves a stream, which is taken over.  Does not yield. */
void monitors_serve(struct monitors *m, struct stream *stream, bool pretty);
/*
 * Takes no client and no command from now on, and waits for those that run.
 * Events still go to the clients.  Yields.
 */
void monitors_stop(struct monitors *m);
/* Sends what is queued, as far as clients take it soon, and ends.  Yields. */
void monitors_fini(struct monitors *m);

#endif
