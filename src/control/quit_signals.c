// SPDX-License-Identifier: BSD-3-Clause
/* See quit_signals.h: a coroutine that waits for a signalfd. */
#include "control/quit_signals.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "control/control.h"

int
quit_signals_init(struct quit_signals *q, struct err *err)
{
    sigset_t set;

    *q = (struct quit_signals){0};
    waitq_init(&q->gone);
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    q->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return q->fd < 0 ? err_set_errno(err, -errno, "Could not watch signals")
                     : 0;
}

/* A coroutine; it ends at the first signal, or when it is told to. */
static void
watch(void *arg)
{
    struct quit_signals *q = arg;
    struct signalfd_siginfo info;

    while (!q->ending && read(q->fd, &info, sizeof(info)) < 0) {
        fd_wait(q->loop, q->fd, POLLIN, NEVER);
    }
    control_quit(q->ctl);
    q->watching = false;
    waitq_wake_all(&q->gone);
}

void
quit_signals_watch(struct quit_signals *q, struct loop *loop,
                   struct control *ctl)
{
    q->loop = loop;
    q->ctl = ctl;
    q->watching = true;
    coro_start(loop, watch, q);
}

void
quit_signals_stop(struct quit_signals *q)
{
    q->ending = true;
    fd_wake(q->loop, q->fd);
    while (q->watching) {
        waitq_wait(&q->gone);
    }
    close(q->fd);
}
