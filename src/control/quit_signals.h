// SPDX-License-Identifier: BSD-3-Clause
/*
 * SIGINT, SIGTERM and SIGHUP as `quit`, for every program that serves.
 */
#ifndef SLUICE_CONTROL_QUIT_SIGNALS_H
#define SLUICE_CONTROL_QUIT_SIGNALS_H

#include "base/err.h"
#include "run/loop.h"

struct control;

/* Embedded in its owner, which keeps it until quit_signals_fini(). */
struct quit_signals {
    struct control *ctl;
    struct loop *loop;
    int fd;
    bool ending, watching; /* watching: the coroutine is alive */
    struct waitq gone;
};

/*
 * Blocks the signals and opens a descriptor for them; SIGPIPE is ignored.
 * Before there are threads, so that only the descriptor gets them.  Does not
 * yield.
 */
int quit_signals_init(struct quit_signals *q, struct err *err);
/* From now on a signal is control_quit(@ctl).  Does not yield. */
void quit_signals_watch(struct quit_signals *q, struct loop *loop,
                        struct control *ctl);
/* Before control_free(): nothing of it runs any more on return.  Yields. */
void quit_signals_stop(struct quit_signals *q);

#endif
