// SPDX-License-Identifier: BSD-3-Clause
/*
 * serve: one disk over NBD, in the foreground, with a control socket beside it;
 * a daemon without a command line.  It uses the daemon's own commands.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "control/control.h"
#include "control/qmp_dispatch.h"
#include "run/process.h"
#include "run/real.h"
#include "run/stream.h"

struct serve {
    struct cli *cli;
    const char *path, *format, *nbd, *control, *name;
    bool read_only;
    char *made_nbd, *made_control, *folder; /* where none was given */
    struct control *ctl;
    struct signal_watch signals;
    bool hanging; /* a command was let go of, with a thread in the kernel */
    int code;
};

static int
call(struct serve *s, const char *command, json_t *args, struct err *err)
{
    json_t *ret = NULL;
    int r = args ? qmp_dispatch(s->ctl, command, args, &ret, err)
                 : err_set(err, -EINVAL, "'%s' is not UTF-8", s->path);

    json_decref(args);
    json_decref(ret);
    return r;
}

static json_t *
nbd_address(struct serve *s)
{
    const char *colon = strrchr(s->nbd, ':');

    if (!strncmp(s->nbd, "unix:", 5)) {
        return json_pack("{s:s, s:{s:s}}", "type", "unix", "data", "path",
                         s->nbd + 5);
    }
    if (!colon) {
        return NULL;
    }
    auto_free char *host = xstrndup(s->nbd, (size_t)(colon - s->nbd));

    return json_pack("{s:s, s:{s:s, s:s}}", "type", "inet", "data", "host",
                     host, "port", colon + 1);
}

static int
start(struct serve *s, struct err *err)
{
    struct address control = {.kind = ADDRESS_UNIX, .path = s->control};
    struct listener *l;
    json_t *address = nbd_address(s);
    int r;

    if (!address) {
        return err_set(err, -EINVAL,
                       "'%s' is no address: unix:PATH or HOST:PORT", s->nbd);
    }
    r = call(s, "blockdev-add",
             json_pack("{s:s, s:s, s:b, s:s, s:{s:s, s:s}}", "driver",
                       s->format, "node-name", "disk", "read-only",
                       (int)(s->read_only || s->cli->dry_run), "discard", "unmap", "file", "driver",
                       "file", "filename", s->path),
             err);
    if (s->cli->dry_run) {
        json_decref(address);
        return r;
    }
    if (!r) {
        r = call(s, "nbd-server-start", json_pack("{s:O}", "addr", address),
                 err);
    }
    json_decref(address);
    if (!r) {
        r = call(s, "block-export-add",
                 json_pack("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id",
                           "disk", "node-name", "disk", "name", s->name,
                           "writable", (int)!s->read_only),
                 err);
    }
    if (!r) {
        r = stream_listen(s->cli->loop, &control, &l, err);
    }
    if (!r) {
        control_listen(s->ctl, l, false);
    }
    return r;
}

static void
print_where(const struct serve *s)
{
    auto_free char *uri =
        strncmp(s->nbd, "unix:", 5)
            ? xasprintf("nbd://%s/%s", s->nbd, s->name)
            : xasprintf("nbd+unix:///%s?socket=%s", s->name, s->nbd + 5);

    if (s->cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:s, s:s, s:b}", "type", "result",
                                 "uri", uri, "control", s->control, "node",
                                 "disk", "dry-run", (int)s->cli->dry_run));
    } else if (s->cli->dry_run) {
        printf("Would serve '%s' (%s) at %s\n", s->path, s->format, uri);
    } else {
        printf("Serving  %s\nControl  %s\nDisk     disk   (e.g. sluice "
               "--socket %s stream disk)\n",
               uri, s->control, s->control);
        fflush(stdout);
    }
}

static void
quit(void *arg)
{
    struct serve *s = arg;

    control_quit(s->ctl);
}

static void
serve_main(void *arg)
{
    struct serve *s = arg;
    struct control_options o = {0};
    auto_err err = ERR_INIT;

    s->ctl = control_new(s->cli->loop, &o);
    signal_watch_start(&s->signals, s->cli->loop, quit, s);
    if (start(s, &err)) {
        s->code = cli_error(s->cli, &err);
    } else {
        s->code = EXIT_OK;
        print_where(s);
        if (!s->cli->dry_run) {
            control_wait_quit(s->ctl);
        }
    }
    signal_watch_stop(&s->signals);
    s->hanging = !control_free(s->ctl);
}

/* Without addresses given, both sockets lie in a private folder. */
static void
choose_addresses(struct serve *s)
{
    char folder[] = "/tmp/sluice-XXXXXX";

    if ((!s->nbd || !s->control) && !s->cli->dry_run && mkdtemp(folder)) {
        s->folder = xstrdup(folder);
    }
    if (!s->nbd) {
        s->nbd = s->made_nbd = xasprintf("unix:%s/nbd.sock", folder);
    }
    if (!s->control) {
        s->control = s->made_control = xasprintf("%s/control.sock", folder);
    }
}

static int
run(struct serve *s)
{
    struct real_loop_options o = {0};
    auto_err err = ERR_INIT;

    choose_addresses(s);
    if (signal_watch_init(&s->signals, &err) ||
        real_loop_new(&o, &s->cli->loop, &err)) {
        return cli_error(s->cli, &err);
    }
    loop_run_main(s->cli->loop, serve_main, s);
    if (s->folder) {
        rmdir(s->folder);
    }
    free(s->made_nbd);
    free(s->made_control);
    free(s->folder);
    if (s->hanging) {
        fflush(stdout);
        _exit(s->code);
    }
    loop_free(s->cli->loop);
    return s->code;
}

int
verb_serve(struct cli *cli)
{
    struct serve s = {.cli = cli, .name = "", .code = EXIT_FAILED};
    const struct cli_option options[] = {
        {'f', NULL, &s.format, NULL, true},
        {0, "nbd", &s.nbd, NULL, false},
        {0, "control", &s.control, NULL, false},
        {0, "name", &s.name, NULL, false, NULL, true},
        {'r', "read-only", NULL, &s.read_only, false},
        {0}};
    int r = cli_parse(cli, options, &s.path, 1,
                      "an image and its format, -f, are");

    if (r) {
        return r;
    }
    return run(&s);
}
