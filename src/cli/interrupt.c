// SPDX-License-Identifier: BSD-3-Clause
/* Ctrl-C: ends our waiting, not the daemon's work. */
#include <signal.h>

#include "cli/cli.h"

static volatile sig_atomic_t interrupted;

static void
on_interrupt(int sig)
{
    interrupted = 1;
}

void
cli_catch_interrupt(void)
{
    struct sigaction sa = {.sa_handler = on_interrupt};

    sigaction(SIGINT, &sa, NULL);
}

bool
cli_interrupted(void)
{
    return interrupted;
}

void
cli_forget_interrupt(void)
{
    interrupted = 0;
}

void
cli_hold_interrupt(bool hold)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}
