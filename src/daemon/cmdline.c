// SPDX-License-Identifier: BSD-3-Clause
/*
 * The command line, in qemu-storage-daemon's two passes.  An error shows the
 * words of the option as they were written:
 *
 *     sluiced: --blockdev driver=foo: Parameter 'driver' does not accept ...
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/control.h"
#include "control/options.h"
#include "control/qmp_dispatch.h"
#include "daemon/daemon.h"

enum {
    OPTION_BLOCKDEV = 256,
    OPTION_CHAIN_INDEX,
    OPTION_CHARDEV,
    OPTION_DAEMONIZE,
    OPTION_EXPORT,
    OPTION_MONITOR,
    OPTION_NBD_SERVER,
    OPTION_OBJECT,
    OPTION_PIDFILE,
    OPTION_BACKING_PATHS,
    OPTION_RESUME,
    OPTION_STATE_DIR,
    OPTION_UNTRUSTED,
};

enum { CHAIN_INDEX_MIB_MAX = 65536 };

/* "-": words that are no options come in their place, as option 1. */
static const char short_options[] = "-hT:V";

static const struct option long_options[] = {
    {"backing-paths", required_argument, NULL, OPTION_BACKING_PATHS},
    {"blockdev", required_argument, NULL, OPTION_BLOCKDEV},
    {"chain-index-size", required_argument, NULL, OPTION_CHAIN_INDEX},
    {"chardev", required_argument, NULL, OPTION_CHARDEV},
    {"daemonize", no_argument, NULL, OPTION_DAEMONIZE},
    {"export", required_argument, NULL, OPTION_EXPORT},
    {"help", no_argument, NULL, 'h'},
    {"monitor", required_argument, NULL, OPTION_MONITOR},
    {"nbd-server", required_argument, NULL, OPTION_NBD_SERVER},
    {"object", required_argument, NULL, OPTION_OBJECT},
    {"pidfile", required_argument, NULL, OPTION_PIDFILE},
    {"resume", required_argument, NULL, OPTION_RESUME},
    {"state-dir", required_argument, NULL, OPTION_STATE_DIR},
    {"trace", required_argument, NULL, 'T'},
    {"untrusted", no_argument, NULL, OPTION_UNTRUSTED},
    {"version", no_argument, NULL, 'V'},
    {0},
};

static const char help[] =
    "Usage: %s [options]\n"
    "Serves and moves the disks of virtual machines.\n"
    "\n"
    "  -h, --help             display this help and exit\n"
    "  -V, --version          output version information and exit\n"
    "\n"
    "  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]\n"
    "             [,cache.direct=on|off][,read-only=on|off]\n"
    "             [,auto-read-only=on|off][,force-share=on|off]\n"
    "             [,driver specific parameters...]\n"
    "                         open an image as a node\n"
    "  --chardev socket,id=<id>,path=<path>|host=<h>,port=<p>|fd=<fd>\n"
    "            [,server=on|off][,wait=on|off]\n"
    "  --chardev stdio,id=<id>\n"
    "                         where a monitor's clients come from\n"
    "  --daemonize            go into the background once all is ready\n"
    "  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<name>]\n"
    "           [,description=<text>][,writable=on|off]\n"
    "                         export a node (requires --nbd-server)\n"
    "  --monitor [chardev=]<id>[,mode=control][,pretty=on|off]\n"
    "                         serve QMP on a chardev; without this option, on\n"
    "                         /run/sluice/control.sock, or without root on\n"
    "                         $XDG_RUNTIME_DIR/sluice/control.sock\n"
    "  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>\n"
    "               [,max-connections=<n>][,handshake-max-seconds=<n>]\n"
    "  --nbd-server addr.type=unix,addr.path=<path>[,...]\n"
    "                         start the NBD server\n"
    "  --object help          list the types of objects\n"
    "  --object iothread,id=<id>\n"
    "                         accepted; threads are the daemon's own affair\n"
    "  --object throttle-group,id=<id>[,limits.iops-total=<n>]\n"
    "           [,limits.bps-total=<n>][,limits....]\n"
    "                         limits that nodes of the driver throttle share\n"
    "  --pidfile <path>       write the process id there once all is ready\n"
    "\n"
    "  --backing-paths <folder>[:<folder>...]\n"
    "                         where image headers may name backing files\n"
    "                         (default: any plain local path)\n"
    "  --chain-index-size <MiB>\n"
    "                         memory of each disk's index of its backing files\n"
    "                         (default: 32)\n"
    "  --resume auto|ask|never\n"
    "                         what becomes of the jobs that were under way on\n"
    "                         images when the last daemon ended: they go on, are\n"
    "                         there but paused, or stay as they are\n"
    "                         (default: auto)\n"
    "  --state-dir <folder>   where journals lie that cannot lie beside their\n"
    "                         images (default: $SLUICE_STATE_DIR, else\n"
    "                         /var/lib/sluice, or without root\n"
    "                         $XDG_STATE_HOME/sluice)\n"
    "  --untrusted            image headers may name no backing file\n"
    "\n"
    "All options but --help, --version, --daemonize, --pidfile,\n"
    "--backing-paths, --chain-index-size, --resume, --state-dir and --untrusted\n"
    "take effect in their order.\n";

void
print_help(const char *program)
{
    printf(help, program);
}

static bool
parse_resume(const char *text, enum resume_mode *ret)
{
    static const char *const modes[] = {[RESUME_AUTO] = "auto",
                                        [RESUME_ASK] = "ask",
                                        [RESUME_NEVER] = "never"};

    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        if (!strcmp(text, modes[i])) {
            *ret = (enum resume_mode)i;
            return true;
        }
    }
    return false;
}

int
options_first_pass(int argc, char **argv, struct daemon_options *ret)
{
    char *end;
    int c;

    optind = 0; /* glibc: begin anew, with the current short_options */
    opterr = 1;
    while ((c = getopt_long(argc, argv, short_options, long_options, NULL)) !=
           -1) {
        switch (c) {
        case '?':
            return 1;
        case 'h':
            print_help(argv[0]);
            return 0;
        case 'V':
            printf("sluiced version " SLUICE_VERSION "\n");
            return 0;
        case OPTION_DAEMONIZE:
            ret->daemonize = true;
            break;
        case OPTION_PIDFILE:
            ret->pidfile = optarg;
            break;
        case OPTION_BACKING_PATHS:
            ret->backing_paths = optarg;
            break;
        case OPTION_CHAIN_INDEX:
            ret->chain_index_mib = strtoul(optarg, &end, 10);
            if (*end || !ret->chain_index_mib ||
                ret->chain_index_mib > CHAIN_INDEX_MIB_MAX) {
                fprintf(stderr,
                        "%s: --chain-index-size '%s' is no number of MiB from "
                        "1 to %d\n",
                        argv[0], optarg, CHAIN_INDEX_MIB_MAX);
                return 1;
            }
            break;
        case OPTION_RESUME:
            if (!parse_resume(optarg, &ret->resume)) {
                fprintf(stderr, "%s: --resume '%s' is none of auto, ask, never\n",
                        argv[0], optarg);
                return 1;
            }
            break;
        case OPTION_STATE_DIR:
            ret->state_dir = optarg;
            break;
        case OPTION_UNTRUSTED:
            ret->untrusted = true;
            break;
        default:
            break;
        }
    }
    return -1;
}

/* Runs @name with @args, which is consumed. */
static int
run_command(struct daemon *d, const char *name, json_t *args, struct err *err)
{
    json_t *ret = NULL;
    int r = qmp_dispatch(d->ctl, name, args, &ret, err);

    json_decref(args);
    json_decref(ret);
    return r;
}

static int
add_object(struct daemon *d, const char *text, struct err *err)
{
    json_t *object;
    int r = option_object(text, &object, err);

    if (!r) {
        r = control_add_object(d->ctl, object, err);
        json_decref(object);
    }
    return r;
}

static int
process(struct daemon *d, int option, const char *arg, struct err *err)
{
    json_t *args = NULL;
    int r;

    switch (option) {
    case OPTION_BLOCKDEV:
        r = option_blockdev(arg, &args, err);
        return r ? r : run_command(d, "blockdev-add", args, err);
    case OPTION_EXPORT:
        r = option_export(arg, &args, err);
        return r ? r : run_command(d, "block-export-add", args, err);
    case OPTION_NBD_SERVER:
        r = option_nbd_server(arg, &args, err);
        return r ? r : run_command(d, "nbd-server-start", args, err);
    case OPTION_OBJECT:
        return add_object(d, arg, err);
    case OPTION_CHARDEV:
        return chardev_add(d, arg, err);
    case OPTION_MONITOR:
        return chardev_monitor(d, arg, err);
    case 'T':
        r = err_set(err, -ENOTSUP, "Tracing is not supported");
        err_hint(err, "Leave the option out");
        return r;
    case 1:
        return err_set(err, -EINVAL, "Unexpected argument");
    default:
        return 0; /* the first pass's */
    }
}

/* The words argv[first] up to argv[end - 1], then the message, the hint. */
static void
print_error(struct daemon *d, int first, int end, const struct err *err)
{
    fprintf(stderr, "%s:", program_invocation_short_name);
    for (int i = first; i < end; i++) {
        fprintf(stderr, " %s", d->argv[i]);
    }
    fprintf(stderr, ": %s\n", err->msg);
    if (err->hint) {
        fprintf(stderr, "%s\n", err->hint);
    }
}

bool
options_second_pass(struct daemon *d)
{
    int first, c;

    optind = 0;
    opterr = 0; /* the first pass would have failed */
    for (first = 1; (c = getopt_long(d->argc, d->argv, short_options,
                                     long_options, NULL)) != -1;
         first = optind) {
        auto_err err = ERR_INIT;
        int end = optind;

        if (c == OPTION_OBJECT && !strcmp(optarg, "help")) {
            printf("List of user creatable objects:\n  iothread\n"
                   "  throttle-group\n");
            d->status = 0;
            return false;
        }
        if (process(d, c, optarg, &err)) {
            print_error(d, first, end, &err);
            return false;
        }
    }
    return true;
}
