// SPDX-License-Identifier: BSD-3-Clause
/*
 * snapshot: new overlays on a daemon's disks, all at one instant or none.  The
 * daemon makes the files, and removes them where it comes to nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/disk.h"

/* One disk of them, all its own. */
struct overlay {
    char *disk, *node; /* as the user calls it; the node below */
    char *file, *name; /* the overlay's path and node */
};

struct snapshot {
    struct cli *cli;
    struct qmp_client *client;
    const char *format;
    struct overlay *v;
    unsigned n;
};

static void
overlay_fini(struct overlay *o)
{
    free(o->disk);
    free(o->node);
    free(o->file);
    free(o->name);
}

/* Checks. */

static int
check_file(const struct snapshot *s, const struct overlay *o, struct err *err)
{
    for (const struct overlay *other = s->v; other != o; other++) {
        if (!strcmp(other->file, o->file)) {
            return err_set(err, -EINVAL, "'%s' is named twice", o->file);
        }
    }
    return disk_check_new(o->file, err);
}

static int
prepare(const struct snapshot *s, struct overlay *o, struct err *err)
{
    auto_free char *wish = disk_job_id("overlay", o->disk, NULL);
    json_t *node = NULL;
    int r = check_file(s, o, err);

    r = r ? r : disk_find(s->client, o->disk, &o->node, err);
    r = r ? r : disk_info(s->client, o->node, &node, err);
    json_decref(node);
    if (!r) {
        o->name = disk_free_name(s->client, wish, err);
        r = o->name ? 0 : err->code;
    }
    return r;
}

/* The command. */

static json_t *
action_of(const struct snapshot *s, const struct overlay *o)
{
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s}}", "type",
                     "blockdev-snapshot-sync", "data", "node-name", o->node,
                     "snapshot-file", o->file, "snapshot-node-name", o->name,
                     "format", s->format);
}

static int
take(const struct snapshot *s, struct err *err)
{
    json_t *actions = json_array();

    for (unsigned i = 0; i < s->n; i++) {
        json_t *action = action_of(s, &s->v[i]);

        if (!action) {
            json_decref(actions);
            return err_set(err, -EINVAL, "'%s' is not valid UTF-8",
                           s->v[i].file);
        }
        json_array_append_new(actions, action);
    }
    return qmp_client_call(s->client, "transaction",
                           json_pack("{s:o}", "actions", actions), NULL, err);
}

static void
say(const struct snapshot *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->n; i++) {
        const struct overlay *o = &s->v[i];

        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s}", "disk",
                                              o->disk, "node", o->name,
                                              "backing-node", o->node, "file",
                                              o->file));
        if (!s->cli->json) {
            printf(s->cli->dry_run
                       ? "Would put '%s', node '%s', on top of '%s'.\n"
                       : "'%s', node '%s', is on top of '%s'.\n",
                   o->file, o->name, o->node);
        }
    }
    if (s->cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:b, s:s, s:O}", "type", "result",
                                 "verb", "snapshot", "dry-run",
                                 (int)s->cli->dry_run, "format", s->format,
                                 "disks", list));
    }
    json_decref(list);
}

static int
run(struct snapshot *s)
{
    auto_err err = ERR_INIT;
    int r = qmp_client_open(s->cli->socket, &s->client, &err);

    if (r) {
        return cli_error(s->cli, &err);
    }
    for (unsigned i = 0; i < s->n && !r; i++) {
        r = prepare(s, &s->v[i], &err);
    }
    if (!r && !s->cli->dry_run) {
        r = take(s, &err);
    }
    qmp_client_close(s->client);
    if (r) {
        return cli_error(s->cli, &err);
    }
    say(s);
    return EXIT_OK;
}

/* Arguments: DISK FILE, or DISK=FILE any number of times. */

static int
take_pair(struct snapshot *s, const char *text)
{
    const char *equals = strchr(text, '=');

    if (!equals || equals == text || !equals[1]) {
        return cli_usage(s->cli, "'%s' is not DISK=FILE", text);
    }
    s->v[s->n++] = (struct overlay){
        .disk = xstrndup(text, (size_t)(equals - text)),
        .file = disk_absolute(equals + 1)};
    return 0;
}

static int
take_arguments(struct snapshot *s, const char *const *args, int n)
{
    int r = 0;

    if (n == 2 && !strchr(args[0], '=')) {
        s->v[s->n++] = (struct overlay){.disk = xstrdup(args[0]),
                                        .file = disk_absolute(args[1])};
        return 0;
    }
    if (!n || (n == 1 && !strchr(args[0], '='))) {
        return cli_usage(s->cli, "a disk and a file are needed");
    }
    for (int i = 0; i < n && !r; i++) {
        r = take_pair(s, args[i]);
    }
    return r;
}

int
verb_snapshot(struct cli *cli)
{
    struct snapshot s = {.cli = cli, .format = "qcow2"};
    const struct cli_option options[] = {{'f', NULL, &s.format, NULL, false},
                                         {0}};
    const char **args = xzalloc((size_t)cli->argc * sizeof(*args));
    int n, r = cli_parse_up_to(cli, options, args, cli->argc, &n);

    s.v = xzalloc((size_t)cli->argc * sizeof(*s.v));
    if (!r) {
        r = take_arguments(&s, args, n);
    }
    if (!r) {
        r = run(&s);
    }
    for (unsigned i = 0; i < s.n; i++) {
        overlay_fini(&s.v[i]);
    }
    free(s.v);
    free(args);
    return r;
}
