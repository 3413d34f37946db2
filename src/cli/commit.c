// SPDX-License-Identifier: BSD-3-Clause
/* commit: layers of a daemon's disk go into one below them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/close.h"
#include "cli/connect.h"
#include "cli/disk.h"
#include "cli/follow.h"
#include "cli/plan.h"

struct commit {
    struct cli *cli;
    struct qmp_client *client;
    const char *disk, *format, *top, *base, *then, *job_id;
    uint64_t speed;
    bool manual, detach, wait;
    char *node, *top_node, *base_node, *id;
    json_t *layers; /* that are committed: names */
};

static json_t *
layers(const struct commit *c)
{
    json_t *o = json_pack("{s:s}", "device", c->node);

    if (c->top) {
        json_object_set_new(o, "top-node", json_string(c->top_node));
    }
    if (c->base) {
        json_object_set_new(o, "base-node", json_string(c->base_node));
    }
    return o;
}

static int
dry_run(const struct commit *c, struct err *err)
{
    json_t *plan = NULL;
    auto_free char *what =
        xasprintf("of '%s' into %s%s%s", c->disk,
                  c->base ? "'" : "its lowest layer", c->base ? c->base : "",
                  c->base ? "'" : "");

    if (qmp_client_call(c->client, "query-commit-plan", layers(c), &plan,
                        err)) {
        return cli_error(c->cli, err);
    }
    int code = plan_say(c->cli, c->client, plan, what,
                        json_pack("{s:s}", "disk", c->disk));

    json_decref(plan);
    return code;
}

static int
start(const struct commit *c, struct err *err)
{
    json_t *args = layers(c);

    json_object_set_new(args, "job-id", json_string(c->id));
    json_object_set_new(args, "auto-dismiss", json_false());
    if (c->speed) {
        json_object_set_new(args, "speed", json_integer((json_int_t)c->speed));
    }
    if (!c->then) {
        return follow_start(c->client, "block-commit", args, NULL, err);
    }
    json_object_set_new(args, "preset", json_string("commit"));
    json_object_set_new(args, "finish", json_string(c->then));
    return follow_start(c->client, "block-transfer", args, NULL, err);
}

/* The disk leaves its own layer. */
static bool
switches(const struct commit *c)
{
    return (!c->top || !strcmp(c->top_node, c->node)) &&
           (!c->then || !strcmp(c->then, "switch"));
}

/* Only a commit of the uppermost layer becomes ready. */
static int
follow(const struct commit *c)
{
    auto_free char *ready = xasprintf(
        "ready: 'sluice job complete %s' drops the layers, 'sluice job stop "
        "%s' leaves them in use.",
        c->id, c->id);
    struct follow f = {.cli = c->cli,
                       .client = c->client,
                       .id = c->id,
                       .what = "commit",
                       .at_ready = !c->manual ? READY_COMPLETE
                                   : c->wait  ? READY_WAIT
                                              : READY_RETURN,
                       .ready = ready};

    if (!c->detach) {
        follow_job(&f);
    }
    bool done = f.end == FOLLOW_DONE;
    struct closing closing = {0};
    auto_free char *node = disk_node(c->client, c->disk, c->node);
    const char *called = qmp_client_called(c->client, node);
    auto_free char *file =
        done ? disk_file(c->client, switches(c) ? c->base_node : c->node)
             : NULL;
    json_t *more = json_pack("{s:s, s:s, s:s}", "verb", "commit", "disk",
                             c->disk, "node", called ? called : node);

    if (file) {
        json_object_set_new(more, "file", json_string(file));
    }
    if (done && !c->cli->own) {
        closing_try(&closing, c->client, c->layers, c->base_node);
        closing_add(&closing, more);
    }
    int code = follow_say(&f, more);

    disk_say_file(c->cli, c->disk, file);
    if (done && !c->cli->json && strcmp(node, c->node)) {
        printf("The disk is now node '%s'; '%s' is out of use.\n", node,
               c->node);
    }
    closing_say(&closing, c->cli);
    return code;
}

/* The daemon says, as QEMU does, that it is no base of itself. */
static int
find_lowest(struct commit *c, struct err *err)
{
    const char *top = c->top ? c->top_node : c->node;

    c->base_node = disk_lowest(c->client, c->node);
    return c->base_node && strcmp(c->base_node, top)
               ? 0
               : err_set(err, -EINVAL,
                         "'%s' has no backing file to commit into",
                         c->top ? c->top : c->disk);
}

static int
find_layers(struct commit *c, struct err *err)
{
    int r = disk_find(c->client, c->disk, &c->node, err);

    if (!r && c->top) {
        r = disk_find_layer(c->client, c->node, c->top, &c->top_node, err);
    }
    if (!r && c->base) {
        r = disk_find_layer(c->client, c->node, c->base, &c->base_node, err);
    } else if (!r) {
        r = find_lowest(c, err);
    }
    if (!r) {
        c->layers = disk_layers(c->client, c->top ? c->top_node : c->node,
                                c->base_node);
        json_array_remove(c->layers, json_array_size(c->layers) - 1);
    }
    return r;
}

static int
commit(struct commit *c, struct err *err)
{
    char *went_on = cli_went_on(c->cli, c->client);

    c->id = went_on ? went_on : disk_job_id("commit", c->disk, c->job_id);
    if (find_layers(c, err)) {
        return cli_error(c->cli, err);
    }
    if (c->cli->dry_run) {
        return dry_run(c, err);
    }
    return !went_on && start(c, err) ? cli_error(c->cli, err) : follow(c);
}

static int
run(struct commit *c)
{
    auto_err err = ERR_INIT;

    if (cli_connect(c->cli, c->disk, c->format, &c->client, &err)) {
        return cli_error(c->cli, &err);
    }
    int code = commit(c, &err);

    json_decref(c->layers);
    free(c->node);
    free(c->top_node);
    free(c->base_node);
    free(c->id);
    cli_disconnect(c->cli, c->client);
    return code;
}

int
verb_commit(struct cli *cli)
{
    struct commit c = {.cli = cli};
    const char *speed = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &c.format, NULL, false},
        {0, "top", &c.top, NULL, false},
        {0, "base", &c.base, NULL, false},
        {0, "then", &c.then, NULL, false},
        {0, "speed", &speed, NULL, false},
        {0, "job-id", &c.job_id, NULL, false},
        {0, "manual", NULL, &c.manual, false},
        {'d', "detach", NULL, &c.detach, false},
        {0, "wait", NULL, &c.wait, false},
        {0}};
    int r = cli_parse(cli, options, &c.disk, 1, "a disk is");

    if (!r && speed && !cli_parse_size(speed, &c.speed)) {
        r = cli_usage(cli, "'%s' is no rate", speed);
    }
    r = r ? r : cli_check_then(cli, c.then);
    r = r ? r : cli_check_job_id(cli, c.job_id);
    if (!r && c.then && c.manual) {
        r = cli_usage(cli, "either --then or --manual");
    }
    if (!r && c.detach && c.wait) {
        r = cli_usage(cli, "either --detach or --wait");
    }
    r = r ? r : cli_check_own(cli, c.format, c.detach || c.manual);
    return r ? r : run(&c);
}
