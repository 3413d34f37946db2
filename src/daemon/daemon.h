// SPDX-License-Identifier: BSD-3-Clause
/* Shared by the files of src/daemon only: the process and its command line. */
#ifndef SLUICE_DAEMON_DAEMON_H
#define SLUICE_DAEMON_DAEMON_H

#include "base/err.h"
#include "base/list.h"
#include "daemon/service.h"
#include "run/process.h"
#include "transfer/resume.h"

/* What the first pass over the command line finds. */
struct daemon_options {
    bool daemonize, untrusted;
    const char *pidfile, *backing_paths, *state_dir;
    unsigned long chain_index_mib; /* 0: the default */
    enum resume_mode resume;
};

/* --chardev: where a monitor's clients come from, until it takes it. */
struct chardev {
    struct list link;
    char *id;
    struct listener *listener;
    struct stream *stream; /* stdio, a connection, the awaited first client */
    bool stdio, in_use;
};

/* --monitor: served only once every option was processed. */
struct pending_monitor {
    struct list link;
    struct chardev *chardev;
    bool pretty;
};

struct daemon {
    int argc;
    char **argv;
    struct daemon_options options;
    struct loop *loop;
    struct control *ctl;
    struct list chardevs;         /* of struct chardev.link */
    struct list pending_monitors; /* of struct pending_monitor.link */
    struct pidfile pidfile;
    int ready_fd;  /* the waiting parent's; -1: none */
    int start_dir; /* relative names on the command line mean this one */
    struct signal_watch signals;
    bool hanging; /* a command was let go of, with a thread in the kernel */
    int status;   /* exit code */
};

/*
 * First pass: help and version, which exit, and what must be known before
 * anything happens.  An error is printed, and the exit code returned: negative
 * where the process goes on.
 */
int options_first_pass(int argc, char **argv, struct daemon_options *ret);
/*
 * Second pass: everything else, strictly in order.  False after an error,
 * which was printed.  In a coroutine; yields.
 */
bool options_second_pass(struct daemon *d);

void print_help(const char *program);

/* chardev.c; all in a coroutine, chardev_add() yields. */
int chardev_add(struct daemon *d, const char *text, struct err *err);
int chardev_monitor(struct daemon *d, const char *text, struct err *err);
/* Without --monitor: the default socket; only warns where it cannot. */
void chardev_default_monitor(struct daemon *d);
/* Hands the chardevs to their monitors. */
void chardev_serve(struct daemon *d);
/* Closes what no monitor took. */
void chardev_fini(struct daemon *d);

#endif
