// SPDX-License-Identifier: BSD-3-Clause
/*
 * See connect.h.  Our own daemon is the control layer in a child, as `serve`
 * runs it, which has one client, over a pair of sockets: so everything that
 * guards a job in a daemon guards it here.  Ctrl-C is ours alone; where we
 * die, it ends as at `quit`, and leaves its job to whoever opens the image.
 */
#include "cli/connect.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "control/control.h"
#include "journal/journal.h"
#include "run/process.h"
#include "run/real.h"
#include "run/stream.h"

struct own {
    struct loop *loop;
    struct control *ctl;
    struct signal_watch signals;
    int fd;
    bool hanging;
};

/* In the child. */

static void
quit(void *arg)
{
    struct own *own = arg;

    control_quit(own->ctl);
}

static void
own_main(void *arg)
{
    struct own *own = arg;
    auto_free char *state = journals_default_state_dir();
    const struct control_options o = {.state_dir = state,
                                      .resume = RESUME_AUTO};
    const struct address address = {.kind = ADDRESS_FD, .fd = own->fd};
    struct stream *stream;

    own->ctl = control_new(own->loop, &o);
    signal_watch_start(&own->signals, own->loop, quit, own);
    if (!stream_connect(own->loop, &address, &stream, NULL)) {
        control_serve(own->ctl, stream, false);
        control_resume(own->ctl);
        control_wait_quit(own->ctl);
    }
    signal_watch_stop(&own->signals);
    own->hanging = !control_free(own->ctl);
}

static void
run_own(int fd, pid_t parent)
{
    struct real_loop_options o = {0};
    struct own own = {.fd = fd};

    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == parent && !signal_watch_init(&own.signals, NULL) &&
        !real_loop_new(&o, &own.loop, NULL)) {
        loop_run_main(own.loop, own_main, &own);
        if (!own.hanging) {
            loop_free(own.loop);
        }
    }
    _exit(0);
}

/* Ours. */

static int
start_own(struct cli *cli, struct qmp_client **ret, struct err *err)
{
    pid_t parent = getpid();
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) {
        return err_set_errno(err, -errno, "Could not make a pair of sockets");
    }
    fflush(NULL);
    cli->own = fork();
    if (!cli->own) {
        close(fds[0]);
        run_own(fds[1], parent);
    }
    close(fds[1]);
    if (cli->own < 0) {
        cli->own = 0;
        close(fds[0]);
        return err_set_errno(err, -errno, "Could not make a process");
    }
    return qmp_client_take(fds[0], ret, err);
}

/* Users are told of the file; so this is nothing that a file is called. */
#define OWN_NODE "sluice-own-disk"

static int
open_disk(struct cli *cli, struct qmp_client *c, const char *path,
          const char *format, struct err *err)
{
    json_t *options = json_pack(
        "{s:s, s:s, s:b, s:s, s:{s:s, s:s}}", "driver", format, "node-name",
        OWN_NODE, "read-only", (int)cli->dry_run, "discard", "unmap", "file",
        "driver", "file", "filename", path);

    if (options) {
        qmp_client_call_node(c, OWN_NODE, path);
    }
    return options ? qmp_client_call(c, "blockdev-add", options, NULL, err)
                   : err_set(err, -EINVAL, "The path '%s' is not UTF-8", path);
}

int
cli_connect(struct cli *cli, const char *disk, const char *format,
            struct qmp_client **ret, struct err *err)
{
    int r = format ? start_own(cli, ret, err)
                   : qmp_client_open(cli->socket, ret, err);

    if (r == -ECONNREFUSED && !access(disk, F_OK)) {
        err_hint(err, "start sluiced, or name its socket with --socket; with "
                      "-f FORMAT the image is worked on without one");
    }
    if (!r && format) {
        r = open_disk(cli, *ret, disk, format, err);
        if (r == -EBUSY) {
            err_hint(err, "another program has it open; where that is a "
                          "daemon, leave out -f");
        }
        if (r) {
            cli_disconnect(cli, *ret);
        }
    }
    return r;
}

static json_t *
file_of(struct qmp_client *c, const json_t *node)
{
    auto_free char *file = qmp_client_file(c, json_string_value(node));

    return json_string(file);
}

void
cli_own_files(const struct cli *cli, struct qmp_client *c, json_t *object)
{
    static const char *const members[] = {"drops", "lost", "survivor"};

    for (size_t i = 0; cli->own && i < ARRAY_LEN(members); i++) {
        const json_t *is = json_object_get(object, members[i]), *node;
        json_t *files = json_is_array(is) ? json_array() : NULL;
        size_t k;

        json_array_foreach(is, k, node)
        {
            json_array_append_new(files, file_of(c, node));
        }
        if (json_is_string(is)) {
            files = file_of(c, is);
        }
        if (files) {
            json_object_set_new(object, members[i], files);
        }
    }
}

void
cli_disconnect(struct cli *cli, struct qmp_client *c)
{
    if (cli->own) {
        qmp_client_call(c, "quit", NULL, NULL, NULL);
    }
    qmp_client_close(c);
    if (cli->own) {
        waitpid(cli->own, NULL, 0);
    }
}

char *
cli_went_on(const struct cli *cli, struct qmp_client *c)
{
    json_t *list = NULL, *job;
    char *id = NULL;
    size_t i;

    if (cli->own && !cli->dry_run) {
        qmp_client_call(c, "query-jobs", NULL, &list, NULL);
    }
    json_array_foreach(list, i, job)
    {
        if (!id && !strcmp(qmp_text(job, "type"), cli->verb)) {
            id = xstrdup(qmp_text(job, "id"));
        }
    }
    json_decref(list);
    if (id && !cli->json) {
        printf("Job '%s', which was cut off, goes on as it was begun; Ctrl-C "
               "ends it.\n",
               id);
        fflush(stdout);
    }
    return id;
}

int
cli_check_own(struct cli *cli, const char *format, bool leaves)
{
    return format && leaves
               ? cli_usage(cli, "with -f there is no daemon that the job could "
                                "be left to")
               : 0;
}
