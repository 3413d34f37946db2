// SPDX-License-Identifier: BSD-3-Clause
/* The real side of the seam: io_uring, epoll, worker threads. */
#ifndef SLUICE_RUN_REAL_H
#define SLUICE_RUN_REAL_H

#include <stdbool.h>

#include "base/err.h"
#include "run/loop.h"

struct real_loop_options {
    bool no_io_uring; /* use worker threads, as where the kernel refuses it */
};

/* Makes a loop for the calling thread; loop_free() ends it. */
int real_loop_new(const struct real_loop_options *options, struct loop **ret,
                  struct err *err);

/*
 * Calls @fn(@arg) in the loop's context soon; the only function here that any
 * thread, and a signal handler's helper thread, may call.
 */
void real_loop_post(struct loop *loop, void (*fn)(void *), void *arg);

#endif
