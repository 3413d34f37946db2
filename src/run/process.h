// SPDX-License-Identifier: BSD-3-Clause
/*
 * What a process that serves does once: limits and signals.  SIGINT, SIGTERM
 * and SIGHUP each mean a clean end.
 */
#ifndef SLUICE_RUN_PROCESS_H
#define SLUICE_RUN_PROCESS_H

#include "base/err.h"
#include "run/loop.h"

/*
 * Ignores SIGPIPE and allows as many descriptors as the system lets us: a long
 * chain has one an image.  First of all in main().
 */
void process_init(void);

/* Calls @fn once, at the first of the three signals. */
struct signal_watch {
    struct loop *loop;
    void (*fn)(void *arg);
    void *arg;
    int fd;
    bool stopping, running;
    struct waitq gone;
};

/* Before there are threads, so that only the descriptor gets the signals. */
int signal_watch_init(struct signal_watch *w, struct err *err);
/* In a coroutine; @fn runs in another one. */
void signal_watch_start(struct signal_watch *w, struct loop *loop,
                        void (*fn)(void *), void *arg);
/* Yields; @fn is not called any more.  Harmless where it was not started. */
void signal_watch_stop(struct signal_watch *w);

#endif
