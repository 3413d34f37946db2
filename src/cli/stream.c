// SPDX-License-Identifier: BSD-3-Clause
/*
 * stream: fills a disk from its backing files; a daemon's, or an image file in
 * this process.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "block/node.h"
#include "cli/cli.h"
#include "cli/disk.h"
#include "cli/follow.h"
#include "drivers/drivers.h"
#include "journal/journal.h"
#include "run/real.h"
#include "transfer/transfer.h"

struct stream_args {
    const char *disk, *format, *base, *job_id;
    uint64_t speed;
    bool detach;
};

static int
print_plan(const struct cli *cli, const char *disk, const char *base,
           json_t *plan)
{
    json_int_t copy = json_integer_value(json_object_get(plan,
                                                         "bytes-to-copy"));
    auto_free char *size = cli_format_size((uint64_t)copy);

    if (cli->json) {
        json_t *o = json_pack("{s:s, s:s, s:b, s:s, s:I}", "type", "result",
                              "verb", "stream", "dry-run", 1, "disk", disk,
                              "bytes", copy);

        json_object_update_missing(o, plan);
        cli_print_json(o);
    } else if (base) {
        printf("Would copy %s into '%s', then make '%s' its backing file.\n",
               size, disk, base);
    } else {
        printf("Would copy %s into '%s', then drop its backing file.\n", size,
               disk);
    }
    return EXIT_OK;
}

static int
follow(struct cli *cli, struct qmp_client *c, const char *id, bool detach)
{
    struct follow f = {.cli = cli, .client = c, .id = id, .what = "stream"};

    if (!detach) {
        follow_job(&f);
    }
    return follow_say(&f, NULL);
}

static json_t *
arguments(const struct cli *cli, const struct stream_args *a, const char *node,
          const char *base, const char *id)
{
    json_t *args = json_pack("{s:s}", "device", node);

    if (base) {
        json_object_set_new(args, "base-node", json_string(base));
    }
    if (!cli->dry_run) {
        json_object_set_new(args, "job-id", json_string(id));
        json_object_set_new(args, "auto-dismiss", json_false());
    }
    if (a->speed && !cli->dry_run) {
        json_object_set_new(args, "speed", json_integer((json_int_t)a->speed));
    }
    return args;
}

static int
stream_connected(struct cli *cli, struct qmp_client *c,
                 const struct stream_args *a, struct err *err)
{
    auto_free char *node = NULL, *base = NULL;
    json_t *plan = NULL;
    int r = disk_find(c, a->disk, &node, err);

    if (!r && a->base) {
        r = disk_find_layer(c, node, a->base, &base, err);
    }
    if (r) {
        return cli_error(cli, err);
    }
    auto_free char *id = disk_job_id("stream", node, a->job_id);

    r = qmp_client_call(c, cli->dry_run ? "query-stream-plan" : "block-stream",
                        arguments(cli, a, node, base, id), &plan, err);
    int code = r              ? cli_error(cli, err)
               : cli->dry_run ? print_plan(cli, node, a->base, plan)
                              : follow(cli, c, id, a->detach);

    json_decref(plan);
    return code;
}

static int
stream_daemon(struct cli *cli, const struct stream_args *a)
{
    struct qmp_client *c;
    auto_err err = ERR_INIT;

    if (qmp_client_open(cli->socket, &c, &err)) {
        return cli_error(cli, &err);
    }
    int code = stream_connected(cli, c, a, &err);

    qmp_client_close(c);
    return code;
}

struct local_stream {
    struct cli *cli;
    const struct stream_args *a;
    int code;
};

static int
plan_local(struct cli *cli, const struct transfer_options *o, struct err *err)
{
    struct transfer_plan plan;

    if (stream_plan(o, &plan, err)) {
        return cli_error(cli, err);
    }
    json_t *answer = json_pack("{s:I, s:I}", "bytes-to-copy",
                               (json_int_t)plan.bytes_to_copy, "bytes-to-zero",
                               (json_int_t)plan.bytes_to_zero);
    int code = print_plan(cli, o->device->filename, NULL, answer);

    json_decref(answer);
    return code;
}

static void
local_main(void *arg)
{
    struct local_stream *l = arg;
    struct cli *cli = l->cli;
    auto_free char *state = journals_default_state_dir();
    struct graph_options o = {.drivers = all_drivers, .state_dir = state};
    auto_err err = ERR_INIT;

    cli->graph = graph_new(cli->loop, &o);
    cli->jobs = jobs_new(cli->loop, NULL, NULL);
    struct node *top = cli_open(cli, l->a->disk, l->a->format, "disk",
                                cli->dry_run, &err);
    struct transfer_options t = {.job_id = "stream",
                                 .device = top,
                                 .speed = l->a->speed,
                                 .auto_finalize = true};

    if (top && cli->dry_run) {
        l->code = plan_local(cli, &t, &err);
    } else if (!top || stream_start(cli->jobs, &t, &err)) {
        l->code = cli_error(cli, &err);
    } else {
        l->code = cli_follow_local(cli, "stream", "stream");
    }
    jobs_free(cli->jobs);
    graph_free(cli->graph);
}

/* A disk that no daemon holds: the same engine, in this process. */
static int
stream_local(struct cli *cli, const struct stream_args *a)
{
    struct real_loop_options o = {0};
    struct local_stream l = {cli, a, EXIT_FAILED};
    auto_err err = ERR_INIT;

    if (real_loop_new(&o, &cli->loop, &err)) {
        return cli_error(cli, &err);
    }
    loop_run_main(cli->loop, local_main, &l);
    loop_free(cli->loop);
    return l.code;
}

int
verb_stream(struct cli *cli)
{
    struct stream_args a = {0};
    const char *speed = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &a.format, NULL, false},
        {0, "base", &a.base, NULL, false},
        {0, "speed", &speed, NULL, false},
        {0, "job-id", &a.job_id, NULL, false},
        {'d', "detach", NULL, &a.detach, false},
        {0}};
    int r = cli_parse(cli, options, &a.disk, 1, "a disk is");

    if (r) {
        return r;
    }
    if (speed && !cli_parse_size(speed, &a.speed)) {
        return cli_usage(cli, "'%s' is no rate", speed);
    }
    r = cli_check_job_id(cli, a.job_id);
    if (r) {
        return r;
    }
    if (a.format && a.base) {
        return cli_usage(cli, "--base names a node: it needs a daemon's disk");
    }
    return a.format ? stream_local(cli, &a) : stream_daemon(cli, &a);
}
