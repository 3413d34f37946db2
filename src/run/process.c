// SPDX-License-Identifier: BSD-3-Clause
/* See process.h.  The watch is a coroutine that waits for a signalfd. */
#include "run/process.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

void
process_init(void)
{
    struct rlimit limit;

    signal(SIGPIPE, SIG_IGN);
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int
signal_watch_init(struct signal_watch *w, struct err *err)
{
    sigset_t set;

    *w = (struct signal_watch){.fd = -1};
    waitq_init(&w->gone);
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    w->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return w->fd < 0 ? err_set_errno(err, -errno, "Could not watch signals")
                     : 0;
}

static void
watch_main(void *arg)
{
    struct signal_watch *w = arg;
    struct signalfd_siginfo info;

    while (!w->stopping && read(w->fd, &info, sizeof(info)) < 0) {
        fd_wait(w->loop, w->fd, POLLIN, NEVER);
    }
    if (!w->stopping) {
        w->fn(w->arg);
    }
    w->running = false;
    waitq_wake_all(&w->gone);
}

void
signal_watch_start(struct signal_watch *w, struct loop *loop,
                   void (*fn)(void *), void *arg)
{
    w->loop = loop;
    w->fn = fn;
    w->arg = arg;
    w->running = true;
    coro_start(loop, watch_main, w);
}

void
signal_watch_stop(struct signal_watch *w)
{
    w->stopping = true;
    while (w->running) {
        fd_wake(w->loop, w->fd);
        waitq_wait(&w->gone);
    }
    if (w->fd >= 0) {
        close(w->fd);
        w->fd = -1;
    }
}
