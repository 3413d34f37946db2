// SPDX-License-Identifier: BSD-3-Clause
/* stream: fills a disk from its backing files. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/connect.h"
#include "cli/disk.h"
#include "cli/follow.h"

struct stream_args {
    const char *disk, *format, *base, *job_id;
    uint64_t speed;
    bool detach;
};

static int
print_plan(const struct cli *cli, struct qmp_client *c, const char *disk,
           const char *base, json_t *plan)
{
    json_int_t copy = json_integer_value(json_object_get(plan,
                                                         "bytes-to-copy"));
    auto_free char *size = cli_format_size((uint64_t)copy);

    if (cli->json) {
        json_t *o = json_pack("{s:s, s:s, s:b, s:s, s:I}", "type", "result",
                              "verb", "stream", "dry-run", 1, "disk", disk,
                              "bytes", copy);

        json_object_update_missing(o, plan);
        cli_own_files(cli, c, o);
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
    return follow_say(&f, json_pack("{s:s}", "verb", "stream"));
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
stream(struct cli *cli, struct qmp_client *c, const struct stream_args *a,
       struct err *err)
{
    auto_free char *node = NULL, *base = NULL;
    auto_free char *went_on = cli_went_on(cli, c);
    json_t *plan = NULL;
    int r = disk_find(c, a->disk, &node, err);

    if (!r && a->base) {
        r = disk_find_layer(c, node, a->base, &base, err);
    }
    if (r) {
        return cli_error(cli, err);
    }
    if (went_on) {
        return follow(cli, c, went_on, false);
    }
    const char *disk = cli->own ? a->disk : node;
    auto_free char *id = disk_job_id("stream", disk, a->job_id);

    r = follow_start(c, cli->dry_run ? "query-stream-plan" : "block-stream",
                     arguments(cli, a, node, base, id), &plan, err);
    int code = r              ? cli_error(cli, err)
               : cli->dry_run ? print_plan(cli, c, disk, a->base, plan)
                              : follow(cli, c, id, a->detach);

    json_decref(plan);
    return code;
}

static int
run(struct cli *cli, const struct stream_args *a)
{
    struct qmp_client *c;
    auto_err err = ERR_INIT;

    if (cli_connect(cli, a->disk, a->format, &c, &err)) {
        return cli_error(cli, &err);
    }
    int code = stream(cli, c, a, &err);

    cli_disconnect(cli, c);
    return code;
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
    r = cli_check_own(cli, a.format, a.detach);
    return r ? r : run(cli, &a);
}
