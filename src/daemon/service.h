// SPDX-License-Identifier: BSD-3-Clause
/*
 * What makes a process a service: the background, the pid file, the service
 * manager.  Nothing here yields.
 */
#ifndef SLUICE_DAEMON_SERVICE_H
#define SLUICE_DAEMON_SERVICE_H

#include "base/err.h"

/*
 * Goes into the background.  Returns in the child only; the parent waits and
 * exits with 0 once the child has called service_ready(), else with 1.  Must
 * come before threads exist.
 */
int service_daemonize(int *ret_ready_fd, struct err *err);
/*
 * The other half: lets go of the terminal and the folder (as QEMU does) and
 * lets the parent exit.
 */
int service_detach(int ready_fd, struct err *err);

struct pidfile {
    int fd;
    char *path; /* absolute */
};

/* Creates, locks and writes it.  -EAGAIN where another process holds it. */
int pidfile_create(struct pidfile *p, const char *path, struct err *err);
/* Removes it; harmless on a zeroed one. */
void pidfile_remove(struct pidfile *p);

/* Tells systemd, where it asked ($NOTIFY_SOCKET); @state as sd_notify(3). */
void service_notify(const char *state);

/* The folder that @path lies in, for this user alone, if there is none yet. */
int service_make_folder_of(const char *path, struct err *err);

#endif
