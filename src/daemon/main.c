// SPDX-License-Identifier: BSD-3-Clause
/*
 * sluiced: the storage daemon.
 *
 * The process is one event loop.  Its main coroutine
 *
 *   processes the options -> writes the pid file -> goes into the background
 *     -> lets clients in -> waits for a signal or `quit`
 *     -> stops taking commands -> removes exports, ends jobs, closes images
 *     -> sends the last events -> removes the pid file
 *
 * An error in an option goes the same way down from where it happened.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "control/control.h"
#include "daemon/daemon.h"
#include "journal/journal.h"
#include "run/real.h"

enum { KEPT_MEMORY = 8 << 20 };

/* Everything between the options and the first client. */
static int
become_ready(struct daemon *d, struct err *err)
{
    int r = 0;

    if (d->options.pidfile) {
        r = pidfile_create(&d->pidfile, d->options.pidfile, err);
        if (r) {
            err_prefix(err, "cannot create PID file");
        }
    }
    if (!r && d->ready_fd >= 0) {
        r = service_detach(d->ready_fd, err);
        d->ready_fd = -1;
        control_set_folder(d->ctl, ""); /* that is "/" */
    }
    return r;
}

static void
serve(struct daemon *d)
{
    auto_err err = ERR_INIT;

    if (!options_second_pass(d)) {
        return;
    }
    chardev_default_monitor(d);
    if (become_ready(d, &err)) {
        fprintf(stderr, "%s: %s\n", program_invocation_short_name, err.msg);
        return;
    }
    d->status = 0;
    control_ready(d->ctl);
    chardev_serve(d);
    service_notify("READY=1");
    control_resume(d->ctl);
    control_wait_quit(d->ctl);
    service_notify("STOPPING=1");
}

static void
quit(void *arg)
{
    struct daemon *d = arg;

    control_quit(d->ctl);
}

static void
daemon_main(void *arg)
{
    struct daemon *d = arg;
    auto_free char *state = d->options.state_dir
                                ? xstrdup(d->options.state_dir)
                                : journals_default_state_dir();
    /* Images are opened anew, and have journals, when it is elsewhere. */
    auto_free char *folder =
        d->options.daemonize ? getcwd(NULL, 0) : NULL;
    struct control_options options = {
        .chain_index_bytes = (uint64_t)d->options.chain_index_mib << 20,
        .backing_paths =
            d->options.untrusted ? "" : d->options.backing_paths,
        .hold_clients = true,
        .resume = d->options.resume,
        .state_dir = state,
        .folder = folder,
    };

    d->ctl = control_new(d->loop, &options);
    signal_watch_start(&d->signals, d->loop, quit, d);
    serve(d);
    signal_watch_stop(&d->signals);
    /* The sockets that are removed were named relative to that folder. */
    if (d->start_dir >= 0 && fchdir(d->start_dir)) {
        log_warn("the folder that sluiced was started in is gone: its sockets "
                 "stay");
    }
    d->hanging = !control_free(d->ctl);
    chardev_fini(d);
    pidfile_remove(&d->pidfile);
}

static int
run(struct daemon *d, struct err *err)
{
    struct real_loop_options options = {
        .no_io_uring = getenv("SLUICE_NO_IO_URING") != NULL,
    };
    int r = signal_watch_init(&d->signals, err);

    if (!r) {
        r = real_loop_new(&options, &d->loop, err);
    }
    if (!r) {
        loop_run_main(d->loop, daemon_main, d);
        if (d->hanging) {
            _exit(d->status);
        }
        loop_free(d->loop);
    }
    return r;
}

/*
 * Memory of buffers that come and go with requests stays with the process: by
 * default each free() gives the end of the heap back, and the next request
 * pays for every page of it again, as it does for what is large enough to be
 * mapped.
 */
static void
keep_memory(void)
{
    mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY);
    mallopt(M_TOP_PAD, KEPT_MEMORY / 8);
    mallopt(M_MMAP_THRESHOLD, KEPT_MEMORY / 2);
}

int
main(int argc, char **argv)
{
    auto_err err = ERR_INIT;
    struct daemon d = {.argc = argc,
                       .argv = argv,
                       .ready_fd = -1,
                       .start_dir = -1,
                       .status = 1};
    int status = options_first_pass(argc, argv, &d.options);

    if (status >= 0) {
        return status;
    }
    process_init();
    keep_memory();
    list_init(&d.chardevs);
    list_init(&d.pending_monitors);
    if (d.options.daemonize) {
        d.start_dir = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    if ((d.options.daemonize && service_daemonize(&d.ready_fd, &err)) ||
        run(&d, &err)) {
        fprintf(stderr, "%s: %s\n", program_invocation_short_name, err.msg);
        return 1;
    }
    return d.status;
}
