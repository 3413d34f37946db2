// SPDX-License-Identifier: BSD-3-Clause
/*
 * sluiced: the daemon, with qemu-storage-daemon's command line.
 *
 * Options are read twice.  First what decides about the process itself (--help,
 * --version, --daemonize, --pidfile); then everything else, strictly in order,
 * inside the event loop, since opening an image yields.  The pid file is
 * written last: whoever waits for it finds every socket listening.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "control/control.h"
#include "control/options.h"
#include "control/qmp_dispatch.h"
#include "control/control.h"
#include "run/real.h"
#include "run/stream.h"

enum {
    OPT_BLOCKDEV = 256,
    OPT_EXPORT,
    OPT_NBD_SERVER,
    OPT_OBJECT,
    OPT_CHARDEV,
    OPT_MONITOR,
    OPT_DAEMONIZE,
    OPT_PIDFILE,
    OPT_BACKING_PATHS,
    OPT_UNTRUSTED,
};

static const struct option longs[] = {
    {"help", no_argument, 0, 'h'},
    {"version", no_argument, 0, 'V'},
    {"trace", required_argument, 0, 'T'},
    {"blockdev", required_argument, 0, OPT_BLOCKDEV},
    {"export", required_argument, 0, OPT_EXPORT},
    {"nbd-server", required_argument, 0, OPT_NBD_SERVER},
    {"object", required_argument, 0, OPT_OBJECT},
    {"chardev", required_argument, 0, OPT_CHARDEV},
    {"monitor", required_argument, 0, OPT_MONITOR},
    {"daemonize", no_argument, 0, OPT_DAEMONIZE},
    {"pidfile", required_argument, 0, OPT_PIDFILE},
    {"backing-paths", required_argument, 0, OPT_BACKING_PATHS},
    {"untrusted", no_argument, 0, OPT_UNTRUSTED},
    {0},
};

static const char help_text[] =
    "Usage: sluiced [options]\n"
    "\n"
    "  --blockdev [driver=]DRIVER,node-name=NAME[,...]   open an image\n"
    "  --nbd-server addr.type=unix|inet,addr.path=...|addr.host=,addr.port=\n"
    "  --export [type=]nbd,id=ID,node-name=NAME[,name=NAME][,writable=on]\n"
    "  --chardev socket,id=ID,path=PATH,server=on,wait=off\n"
    "  --monitor [chardev=]ID[,mode=control][,pretty=on] serve QMP there\n"
    "  --object TYPE,id=ID[,...]\n"
    "  --daemonize               go to the background once everything works\n"
    "  --pidfile PATH            written when ready\n"
    "  --backing-paths DIR[:DIR] where image headers may name backing files\n"
    "  --untrusted               headers may name no backing file at all\n"
    "  --help, --version\n"
    "\n"
    "Without --monitor, QMP is served on the usual control socket, where\n"
    "'sluice' looks for it.  sluiced(8) has more.\n";

struct chardev {
    struct list link;
    struct option_chardev o;
};

struct daemon_state {
    int argc;
    char **argv;
    bool daemonize;
    const char *pidfile;
    int pidfile_fd, ready_fd; /* ready_fd: tells the parent of --daemonize */
    struct control *ctl;
    struct loop *loop;
    const char *backing_paths;
    struct list chardevs;
    bool has_monitor;
    int status;
};

/* Prints "sluiced: --opt ARG: message". */
static int
option_failed(const char *name, const char *arg, struct err *err)
{
    fprintf(stderr, "%s: --%s%s%s: %s\n", program_invocation_short_name, name,
            arg ? " " : "", arg ? arg : "", err->msg);
    if (err->hint) {
        fprintf(stderr, "%s\n", err->hint);
    }
    return -1;
}

/* The pid file: locked as long as we live, so a second daemon refuses. */
static int
open_pidfile(struct daemon_state *d)
{
    if (!d->pidfile) {
        return 0;
    }
    d->pidfile_fd = open(d->pidfile, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (d->pidfile_fd < 0 || flock(d->pidfile_fd, LOCK_EX | LOCK_NB)) {
        fprintf(stderr, "%s: cannot create PID file %s: %s\n",
                program_invocation_short_name, d->pidfile, strerror(errno));
        return -1;
    }
    return 0;
}

static void
write_pidfile(struct daemon_state *d)
{
    if (!d->pidfile) {
        return;
    }
    char text[32];
    int n = snprintf(text, sizeof(text), "%d\n", getpid());

    if (ftruncate(d->pidfile_fd, 0) ||
        pwrite(d->pidfile_fd, text, (size_t)n, 0) != n) {
        log_warn("cannot write PID file %s: %s", d->pidfile, strerror(errno));
    }
}

/* systemd's sd_notify(3) protocol: one datagram to $NOTIFY_SOCKET. */
static void
notify_ready(void)
{
    static const char text[] = "READY=1";
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un sun = {.sun_family = AF_UNIX};

    if (!path || strlen(path) >= sizeof(sun.sun_path)) {
        return;
    }
    strcpy(sun.sun_path, path);
    if (sun.sun_path[0] == '@') {
        sun.sun_path[0] = 0;
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        sendto(fd, text, sizeof(text) - 1, MSG_NOSIGNAL,
               (struct sockaddr *)&sun,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
                           strlen(path)));
        close(fd);
    }
}

/* Options that are commands. */

static int
run_command(struct daemon_state *d, const char *command,
            int (*parse)(const char *text, json_t **args, struct err *err),
            const char *arg, struct err *err)
{
    json_t *args = NULL, *ret = NULL;
    int r = parse(arg, &args, err);

    if (!r) {
        r = qmp_dispatch(d->ctl, command, args, &ret, err);
    }
    json_decref(args);
    json_decref(ret);
    return r;
}

static int
add_chardev(struct daemon_state *d, const char *arg, struct err *err)
{
    struct chardev *c = xzalloc(sizeof(*c));
    int r = option_chardev(arg, &c->o, err);

    if (!r && (c->o.stdio || !c->o.server)) {
        r = err_set(err, -ENOTSUP,
                    "only listening sockets (socket,...,server=on) are "
                    "supported");
        option_chardev_fini(&c->o);
    }
    if (r) {
        free(c);
        return r;
    }
    list_push(&d->chardevs, &c->link);
    return 0;
}

static struct chardev *
find_chardev(struct daemon_state *d, const char *id)
{
    list_for_each(it, &d->chardevs)
    {
        struct chardev *c = container_of(it, struct chardev, link);

        if (!strcmp(c->o.id, id)) {
            return c;
        }
    }
    return NULL;
}

static const char *
member(json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static int
listen_on(struct daemon_state *d, const struct address *a, bool pretty,
          struct err *err)
{
    struct listener *l;
    int r = stream_listen(d->loop, a, &l, err);

    if (!r) {
        control_listen(d->ctl, l, pretty);
    }
    return r;
}

static int
add_monitor(struct daemon_state *d, const char *arg, struct err *err)
{
    struct option_monitor m;
    int r = option_monitor(arg, &m, err);

    if (r) {
        return r;
    }
    struct chardev *c = find_chardev(d, m.chardev);

    if (!c) {
        r = err_set(err, -ENOENT, "chardev \"%s\" not found", m.chardev);
    } else {
        const char *type = member(c->o.addr, "type");
        struct address a = {.kind = !strcmp(type, "unix")   ? ADDRESS_UNIX
                                    : !strcmp(type, "inet") ? ADDRESS_TCP
                                                            : ADDRESS_FD,
                            .path = member(c->o.addr, "path"),
                            .host = member(c->o.addr, "host"),
                            .port = member(c->o.addr, "port")};

        if (a.kind == ADDRESS_FD) {
            a.fd = atoi(member(c->o.addr, "str"));
        }
        r = listen_on(d, &a, m.pretty, err);
        d->has_monitor = true;
    }
    option_monitor_fini(&m);
    return r;
}

static int
add_object(const char *arg, struct err *err)
{
    json_t *object = NULL;
    int r = option_object(arg, &object, err);

    if (!r && strcmp(member(object, "qom-type"), "iothread")) {
        r = err_set(err, -ENOTSUP, "objects of type '%s' are not supported yet",
                    member(object, "qom-type"));
    }
    json_decref(object);
    return r;
}

static int
do_option(struct daemon_state *d, int c, const char *arg, struct err *err)
{
    switch (c) {
    case OPT_BLOCKDEV:
        return run_command(d, "blockdev-add", option_blockdev, arg, err);
    case OPT_EXPORT:
        return run_command(d, "block-export-add", option_export, arg, err);
    case OPT_NBD_SERVER:
        return run_command(d, "nbd-server-start", option_nbd_server, arg, err);
    case OPT_CHARDEV:
        return add_chardev(d, arg, err);
    case OPT_MONITOR:
        return add_monitor(d, arg, err);
    case OPT_OBJECT:
        return add_object(arg, err);
    case 'T':
        return err_set(err, -ENOTSUP, "there are no trace events");
    default:
        return 0;
    }
}

static int
do_options(struct daemon_state *d)
{
    int c, index = 0;
    auto_err err = ERR_INIT;

    optind = 0;
    while ((c = getopt_long(d->argc, d->argv, "-hVT:", longs, &index)) != -1) {
        if (do_option(d, c, optarg, &err)) {
            return option_failed(c == 'T' ? "trace" : longs[index].name, optarg,
                                 &err);
        }
    }
    return 0;
}

/* Where `sluice` looks for a daemon. */
static int
listen_on_default(struct daemon_state *d, struct err *err)
{
    auto_free char *path = control_default_socket();
    struct address a = {.kind = ADDRESS_UNIX, .path = path};
    char *slash = strrchr(path, '/');

    *slash = 0;
    if (mkdir(path, 0755) && errno != EEXIST) {
        return err_set_errno(err, -errno, "Could not make the folder '%s'",
                             path);
    }
    *slash = '/';
    return listen_on(d, &a, false, err);
}

static void
wait_for_signal(void *arg)
{
    struct daemon_state *d = arg;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);

    while (fd >= 0 && d->ctl) {
        struct signalfd_siginfo si;

        if (read(fd, &si, sizeof(si)) == sizeof(si)) {
            control_quit(d->ctl);
            break;
        }
        fd_wait(d->loop, fd, POLLIN, NEVER);
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* In the background now: the parent may go. */
static void
tell_parent(struct daemon_state *d)
{
    if (d->ready_fd >= 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        if (write(d->ready_fd, "1", 1) != 1) {
            log_warn("the parent process is gone");
        }
        close(d->ready_fd);
    }
}

static void
daemon_main(void *arg)
{
    struct daemon_state *d = arg;
    struct control_options o = {.backing_paths = d->backing_paths};
    auto_err err = ERR_INIT;

    d->ctl = control_new(d->loop, &o);
    coro_start(d->loop, wait_for_signal, d);
    d->status = do_options(d) ? 1 : 0;
    if (!d->status && !d->has_monitor && listen_on_default(d, &err)) {
        log_warn("no control socket: %s", err.msg);
    }
    if (!d->status) {
        write_pidfile(d);
        notify_ready();
        tell_parent(d);
        control_wait_quit(d->ctl);
    }
    control_free(take_ptr(d->ctl));
}

static void
free_chardevs(struct daemon_state *d)
{
    while (!list_empty(&d->chardevs)) {
        struct chardev *c = list_first(&d->chardevs, struct chardev, link);

        list_remove(&c->link);
        option_chardev_fini(&c->o);
        free(c);
    }
}

/* The first pass; -1: go on, else the exit code. */
static int
first_pass(struct daemon_state *d)
{
    int c;

    while ((c = getopt_long(d->argc, d->argv, "-hVT:", longs, NULL)) != -1) {
        switch (c) {
        case 'h':
            fputs(help_text, stdout);
            return 0;
        case 'V':
            printf("sluiced version %s\n", SLUICE_VERSION);
            return 0;
        case OPT_DAEMONIZE:
            d->daemonize = true;
            break;
        case OPT_PIDFILE:
            d->pidfile = optarg;
            break;
        case OPT_BACKING_PATHS:
            d->backing_paths = optarg;
            break;
        case OPT_UNTRUSTED:
            d->backing_paths = "";
            break;
        case '?':
            return 1;
        case 1:
            fprintf(stderr, "%s: %s: Unexpected argument\n",
                    program_invocation_short_name, optarg);
            return 1;
        default:
            break;
        }
    }
    return -1;
}

/* Forks; the parent returns the child's verdict, the child returns -1. */
static int
go_to_background(struct daemon_state *d)
{
    int fds[2];
    char ok = 0;

    if (pipe2(fds, O_CLOEXEC)) {
        return 1;
    }
    pid_t pid = fork();

    if (pid < 0) {
        perror("fork");
        return 1;
    }
    if (pid) {
        close(fds[1]);
        return read(fds[0], &ok, 1) == 1 ? 0 : 1;
    }
    close(fds[0]);
    setsid();
    d->ready_fd = fds[1];
    return -1;
}

int
main(int argc, char **argv)
{
    struct daemon_state d = {
        .argc = argc, .argv = argv, .ready_fd = -1, .pidfile_fd = -1};
    struct real_loop_options o = {.no_io_uring = getenv("SLUICE_NO_IO_URING")};
    auto_err err = ERR_INIT;
    sigset_t set;
    int r = first_pass(&d);

    if (r < 0 && d.daemonize) {
        r = go_to_background(&d);
    }
    if (r >= 0) {
        return r;
    }
    list_init(&d.chardevs);
    signal(SIGPIPE, SIG_IGN);
    /* Blocked before threads start, so that only the signalfd sees them. */
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (open_pidfile(&d)) {
        return 1;
    }
    if (real_loop_new(&o, &d.loop, &err)) {
        log_error("%s", err.msg);
        return 1;
    }
    loop_run_main(d.loop, daemon_main, &d);
    free_chardevs(&d);
    if (d.pidfile) {
        unlink(d.pidfile);
    }
    /* The signal's coroutine may be asleep: the process ends it. */
    return d.status;
}
