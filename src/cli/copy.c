// SPDX-License-Identifier: BSD-3-Clause
/*
 * copy and mirror: a daemon's disk goes to another image, or is kept there,
 * too, while it is used.
 *
 * The steps: what source and target are (nothing is touched yet), the target
 * is made and opened, block-copy is started, the job is followed.  Until it is
 * started, whatever fails takes the target away again, and Ctrl-C is put off.
 * Once it is, only a target that is marked as an unfinished copy is: nothing
 * else is known to be of no use.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/close.h"
#include "cli/disk.h"
#include "cli/follow.h"
#include "cli/plan.h"
#include "cli/target.h"

struct copy {
    struct cli *cli;
    struct qmp_client *client;

    const char *disk, *where; /* as the user calls them */
    const char *mode, *then, *format, *job_id;
    uint64_t speed;
    json_t *folders; /* --dependents-in */
    bool reuse, manual, delete_source, exclusive, upgrade, detach, wait;

    char *node, *id; /* the source, the job */
    struct target target;
};

static bool
is_mirror(const struct copy *c)
{
    return !strcmp(c->mode, "mirror");
}

/* Post-copy and hybrid put the target on top of the source. */
static bool
is_overlaid(const struct copy *c)
{
    return !strcmp(c->mode, "post-copy") || !strcmp(c->mode, "hybrid");
}

static bool
stays(const struct copy *c)
{
    return c->then ? !strcmp(c->then, "stay") : is_mirror(c);
}

/* The job and the start. */

/* What a plan needs, too, to refuse what the start would. */
static json_t *
plan_arguments(const struct copy *c)
{
    json_t *o = json_pack("{s:s, s:s, s:s}", "device", c->node, "mode", c->mode,
                          "finish", stays(c) ? "stay" : "switch");

    if (c->manual) {
        json_object_set_new(o, "auto-complete", json_false());
    }
    if (c->delete_source) {
        json_object_set_new(o, "delete-source", json_true());
    }
    if (c->exclusive) {
        json_object_set_new(o, "exclusive", json_true());
    }
    if (c->upgrade) {
        json_object_set_new(o, "upgrade", json_true());
    }
    if (json_array_size(c->folders)) {
        json_object_set_new(o, "dependents-in", disk_absolute_list(c->folders));
    }
    return o;
}

/* As the daemon finds them. */
static json_t *
block_copy_arguments(const struct copy *c)
{
    json_t *o = plan_arguments(c);

    json_object_set_new(o, "job-id", json_string(c->id));
    json_object_set_new(o, "target", json_string(c->target.node));
    json_object_set_new(o, "auto-dismiss", json_false());
    if (c->speed) {
        json_object_set_new(o, "speed", json_integer((json_int_t)c->speed));
    }
    return o;
}

/* QMP's errors have no hint; these are the ones that users run into. */
static void
add_hint(const struct copy *c, struct err *err)
{
    if (strstr(err->msg, "Job ID")) {
        err_hint(err, "'sluice job wait %s' tells what came of it and "
                      "dismisses it; --job-id names another",
                 c->id);
    } else if (is_overlaid(c) && strstr(err->msg, "cannot name")) {
        err_hint(err, "take a qcow2 or QED target (-f), or --mode pre-copy");
    } else if (strstr(err->msg, "of version 2")) {
        err_hint(err, "--upgrade makes it version 3; or copy into a new image");
    } else if (strstr(err->msg, "different sizes")) {
        err_hint(err, "without --reuse the target is made as large as the "
                      "disk");
    }
}

static int
start(struct copy *c, struct err *err)
{
    int r = target_open(&c->target, false, err);

    if (!r) {
        r = qmp_client_call(c->client, "block-copy", block_copy_arguments(c),
                            NULL, err);
    }
    if (r) {
        target_undo(&c->target);
        add_hint(c, err);
    }
    return r;
}

/* The end. */

static char *
how_it_ends(const struct copy *c)
{
    return !strcmp(c->mode, "hybrid")
               ? xasprintf("ready: 'sluice job complete %s' switches now, "
                           "whatever is left; 'sluice job stop %s' leaves a "
                           "copy.",
                           c->id, c->id)
               : xasprintf("ready: the target is kept in step. 'sluice job "
                           "complete %s' switches to it, 'sluice job stop %s' "
                           "leaves it as a copy, 'sluice job cancel %s' throws "
                           "it away.",
                           c->id, c->id, c->id);
}

/* A mirror that is not told how it ends is kept in step. */
static enum at_ready
at_ready(const struct copy *c)
{
    return c->wait                      ? READY_WAIT
           : c->manual                  ? READY_RETURN
           : is_mirror(c)               ? (!c->then     ? READY_RETURN
                                           : stays(c)   ? READY_STOP
                                                        : READY_COMPLETE)
           : !strcmp(c->mode, "hybrid") ? READY_COMPLETE
                                        : READY_WAIT;
}

static void
say_where(const struct copy *c, bool switched)
{
    const char *path = c->target.path;

    if (c->cli->json) {
        return;
    }
    if (switched) {
        printf("The disk is now node '%s'%s%s%s; '%s' is out of use.\n",
               c->target.node, path ? " in '" : "", path ? path : "",
               path ? "'" : "", c->node);
    } else {
        printf("The copy is node '%s'%s%s%s.\n", c->target.node,
               path ? " in '" : "", path ? path : "", path ? "'" : "");
    }
}

static void
say_what_stays(struct copy *c)
{
    const struct target *t = &c->target;

    if (target_undo_unfinished(&c->target)) {
        if (!c->cli->json) {
            fprintf(stderr, "The unfinished copy '%s' was %s.\n", t->path,
                    t->reuse ? "closed" : "removed");
        }
    } else if (t->opened && !c->cli->json) {
        fprintf(stderr, "The target '%s' is still open, as node '%s'.\n",
                t->path, t->node);
    }
}

/* Not what is below it, which others may have their disks on. */
static void
close_source(const struct copy *c, struct closing *closing)
{
    json_t *nodes = json_pack("[s]", c->node);

    closing_try(closing, c->client, nodes, c->target.node);
    json_decref(nodes);
}

static int
follow(struct copy *c)
{
    auto_free char *ready = how_it_ends(c);
    struct follow f = {.cli = c->cli,
                       .client = c->client,
                       .id = c->id,
                       .what = c->cli->verb,
                       .at_ready = at_ready(c),
                       .switches = true,
                       .ready = ready};

    if (!c->detach) {
        follow_job(&f);
    }
    bool done = f.end == FOLLOW_DONE;
    bool switched = done && !(c->then && stays(c)) &&
                    node_is_used(c->client, c->target.node, NULL);
    struct closing closing = {0};
    json_t *more = json_pack("{s:s, s:s, s:s, s:s, s:b}", "verb",
                             c->cli->verb, "disk", c->disk, "node",
                             c->target.node, "mode", c->mode, "switched",
                             (int)switched);

    if (c->target.path) {
        json_object_set_new(more, "target", json_string(c->target.path));
    }
    if (switched) {
        close_source(c, &closing);
        closing_add(&closing, more);
    }
    int code = follow_say(&f, more);

    if (f.end == FOLLOW_FAILED) {
        say_what_stays(c);
    } else if (done) {
        say_where(c, switched);
    }
    closing_say(&closing, c->cli);
    return code;
}

/* The dry run. */

/* Of the file system that a new image would be on, as far as we can see it. */
static void
add_space_free(json_t *plan, const char *path)
{
    auto_free char *folder = xstrdup(path);
    struct statvfs fs;

    *(strrchr(folder, '/') + 1) = 0;
    if (!json_object_get(plan, "space-free") && !statvfs(folder, &fs)) {
        json_object_set_new(
            plan, "space-free",
            json_integer((json_int_t)(fs.f_bavail * fs.f_frsize)));
    }
}

static int
say_plan(struct copy *c, json_t *plan)
{
    const struct target *t = &c->target;
    const char *to = t->path ? t->path : t->node;
    auto_free char *what =
        xasprintf("of '%s' to '%s' (%s%s%s), then %s", c->disk, to,
                  t->format ? t->format : "", t->format ? ", " : "", c->mode,
                  is_mirror(c) && !c->then ? "keep it in step"
                  : stays(c)   ? "leave it as a copy"
                               : "switch to it");
    json_t *more = json_pack("{s:s, s:s, s:s, s:s, s:b}", "disk", c->disk,
                             "target", to, "mode", c->mode, "then",
                             stays(c) ? "stay" : "switch", "delete-source",
                             (int)c->delete_source);

    if (t->format) {
        json_object_set_new(more, "format", json_string(t->format));
    }
    return plan_say(c->cli, c->client, plan, what, more);
}

static int
dry_run(struct copy *c, struct err *err)
{
    struct target *t = &c->target;
    bool is_new = t->path && !t->reuse;
    json_t *plan = NULL;
    int r = is_new ? 0 : target_open(t, true, err);

    if (!r) {
        json_t *args = plan_arguments(c);

        json_object_set_new(args, is_new ? "format" : "target",
                            json_string(is_new ? t->format : t->node));
        r = qmp_client_call(c->client, "query-copy-plan", args, &plan, err);
    }
    target_undo(t);
    if (r) {
        add_hint(c, err);
        return cli_error(c->cli, err);
    }
    if (is_new) {
        add_space_free(plan, t->path);
    }
    int code = say_plan(c, plan);

    json_decref(plan);
    return code;
}

/* The verbs. */

static int
look_at_both(struct copy *c, struct err *err)
{
    json_t *source = NULL;

    c->id = disk_job_id(c->cli->verb, c->disk, c->job_id);
    c->target = (struct target){
        .client = c->client, .job_id = c->id, .reuse = c->reuse};
    int r = disk_find(c->client, c->disk, &c->node, err);

    r = r ? r : disk_info(c->client, c->node, &source, err);
    if (!r) {
        r = target_init(&c->target, c->where, c->format, source, err);
    }
    json_decref(source);
    return r;
}

static int
run(struct copy *c)
{
    auto_err err = ERR_INIT;
    int r = look_at_both(c, &err);

    if (r) {
        return cli_error(c->cli, &err);
    }
    if (c->cli->dry_run) {
        return dry_run(c, &err);
    }
    cli_hold_interrupt(true);
    r = start(c, &err);
    cli_catch_interrupt();
    cli_hold_interrupt(false);
    return r ? cli_error(c->cli, &err) : follow(c);
}

static int
run_connected(struct copy *c)
{
    auto_err err = ERR_INIT;

    if (qmp_client_open(c->cli->socket, &c->client, &err)) {
        return cli_error(c->cli, &err);
    }
    int code = run(c);

    target_fini(&c->target);
    free(c->node);
    free(c->id);
    qmp_client_close(c->client);
    return code;
}

/* What makes no sense, whatever the disk is. */
static int
check_usage(const struct copy *c)
{
    static const char *const modes[] = {"pre-copy", "post-copy", "hybrid",
                                        "mirror"};
    bool known = false;

    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        known |= !strcmp(c->mode, modes[i]);
    }
    if (!known) {
        return cli_usage(c->cli, "there is no mode '%s'", c->mode);
    }
    int r = cli_check_then(c->cli, c->then);

    r = r ? r : cli_check_job_id(c->cli, c->job_id);
    if (r) {
        return r;
    }
    if (is_overlaid(c) && stays(c)) {
        return cli_usage(c->cli, "%s ends with the disk on the target: it "
                                 "cannot stay",
                         c->mode);
    }
    if (c->manual && !strcmp(c->mode, "post-copy")) {
        return cli_usage(c->cli, "post-copy switches at once: nothing is left "
                                 "to be done by hand");
    }
    if (c->delete_source && stays(c)) {
        return cli_usage(c->cli, "the disk stays in its image, which cannot be "
                                 "deleted");
    }
    if (c->detach && c->wait) {
        return cli_usage(c->cli, "either --detach or --wait");
    }
    return 0;
}

static int
parse_and_run(struct copy *c, const struct cli_option *options,
              const char *const *speed)
{
    const char *names[2];
    int r = cli_parse(c->cli, options, names, 2, "a disk and a target are");

    if (!r && *speed && !cli_parse_size(*speed, &c->speed)) {
        r = cli_usage(c->cli, "'%s' is no rate", *speed);
    }
    if (!r) {
        r = check_usage(c);
    }
    if (r) {
        return r;
    }
    c->disk = names[0];
    c->where = names[1];
    return run_connected(c);
}

int
verb_copy(struct cli *cli)
{
    struct copy c = {.cli = cli, .mode = "pre-copy"};
    const char *speed = NULL;
    const struct cli_option options[] = {
        {0, "mode", &c.mode, NULL, false},
        {0, "then", &c.then, NULL, false},
        {'f', NULL, &c.format, NULL, false},
        {0, "reuse", NULL, &c.reuse, false},
        {0, "speed", &speed, NULL, false},
        {0, "job-id", &c.job_id, NULL, false},
        {0, "manual", NULL, &c.manual, false},
        {0, "delete-source", NULL, &c.delete_source, false},
        {0, "dependents-in", NULL, NULL, false, &c.folders},
        {0, "exclusive", NULL, &c.exclusive, false},
        {0, "upgrade", NULL, &c.upgrade, false},
        {'d', "detach", NULL, &c.detach, false},
        {0, "wait", NULL, &c.wait, false},
        {0}};

    c.folders = json_array();
    int code = parse_and_run(&c, options, &speed);

    json_decref(c.folders);
    return code;
}

int
verb_mirror(struct cli *cli)
{
    struct copy c = {.cli = cli, .mode = "mirror"};
    const char *speed = NULL;
    const struct cli_option options[] = {
        {0, "then", &c.then, NULL, false},
        {'f', NULL, &c.format, NULL, false},
        {0, "reuse", NULL, &c.reuse, false},
        {0, "speed", &speed, NULL, false},
        {0, "job-id", &c.job_id, NULL, false},
        {0, "upgrade", NULL, &c.upgrade, false},
        {'d', "detach", NULL, &c.detach, false},
        {0, "wait", NULL, &c.wait, false},
        {0}};

    return parse_and_run(&c, options, &speed);
}
