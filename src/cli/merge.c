// SPDX-License-Identifier: BSD-3-Clause
/* merge: a daemon's disk and its snapshot become one image, in place. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/disk.h"
#include "cli/follow.h"
#include "cli/plan.h"

struct merge {
    struct cli *cli;
    struct qmp_client *client;
    const char *disk, *snapshot, *into, *job_id;
    json_t *folders; /* --dependents-in */
    uint64_t speed, max_extra;
    bool delete, keep_name, exclusive, detach;
    char *node, *id;
};

static json_t *
layers(const struct merge *m)
{
    json_t *o = json_pack("{s:s}", "device", m->node);

    if (m->snapshot) {
        json_object_set_new(o, "snapshot", json_string(m->snapshot));
    }
    if (m->into) {
        json_object_set_new(o, "into", json_string(m->into));
    }
    if (m->max_extra) {
        json_object_set_new(o, "max-extra",
                            json_integer((json_int_t)m->max_extra));
    }
    json_object_set_new(o, "keep-name", json_boolean(m->keep_name));
    return o;
}

static int
dry_run(const struct merge *m, struct err *err)
{
    json_t *plan = NULL;

    if (qmp_client_call(m->client, "query-merge-plan", layers(m), &plan,
                        err)) {
        return cli_error(m->cli, err);
    }
    bool sinks = !strcmp(qmp_text(plan, "into"), "snapshot");
    auto_free char *what =
        xasprintf("into the %s '%s'", qmp_text(plan, "into"),
                  qmp_text(plan, "survivor"));
    int code = plan_say(m->cli, plan, what,
                        json_pack("{s:s}", "disk", m->disk));

    if (code == EXIT_OK && !m->cli->json) {
        printf("From the first copy on, %s cannot be read by %s.\n",
               sinks ? "the snapshot as it was" : "the layers below",
               sinks ? "anybody" : "themselves");
    }
    json_decref(plan);
    return code;
}

static int
start(const struct merge *m, struct err *err)
{
    json_t *args = layers(m);

    json_object_set_new(args, "job-id", json_string(m->id));
    json_object_set_new(args, "auto-dismiss", json_false());
    json_object_set_new(args, "delete", json_boolean(m->delete));
    json_object_set_new(args, "exclusive", json_boolean(m->exclusive));
    if (m->folders) {
        json_object_set_new(args, "dependents-in",
                            disk_absolute_list(m->folders));
    }
    if (m->speed) {
        json_object_set_new(args, "speed", json_integer((json_int_t)m->speed));
    }
    return qmp_client_call(m->client, "block-merge", args, NULL, err);
}

static int
follow(const struct merge *m)
{
    struct follow f = {.cli = m->cli,
                       .client = m->client,
                       .id = m->id,
                       .what = "merge",
                       .at_ready = READY_WAIT};

    if (!m->detach) {
        follow_job(&f);
    }
    bool done = f.end == FOLLOW_DONE;
    auto_free char *node = disk_node(m->client, m->disk);
    int code = follow_say(&f, json_pack("{s:s, s:s, s:s}", "verb", "merge",
                                        "disk", m->disk, "node", node));

    if (done && !m->cli->json && strcmp(node, m->node)) {
        printf("The disk is now node '%s'; '%s' is empty and out of use.\n",
               node, m->node);
    }
    return code;
}

static int
run(struct merge *m)
{
    auto_err err = ERR_INIT;

    if (qmp_client_open(m->cli->socket, &m->client, &err)) {
        return cli_error(m->cli, &err);
    }
    m->node = disk_node(m->client, m->disk);
    m->id = m->job_id ? xstrdup(m->job_id) : xasprintf("merge-%s", m->disk);
    int code = m->cli->dry_run  ? dry_run(m, &err)
               : start(m, &err) ? cli_error(m->cli, &err)
                                : follow(m);

    free(m->node);
    free(m->id);
    qmp_client_close(m->client);
    return code;
}

int
verb_merge(struct cli *cli)
{
    struct merge m = {.cli = cli};
    const char *speed = NULL, *extra = NULL;
    const struct cli_option options[] = {
        {0, "snapshot", &m.snapshot, NULL, false},
        {0, "into", &m.into, NULL, false},
        {0, "delete", NULL, &m.delete, false},
        {0, "keep-name", NULL, &m.keep_name, false},
        {0, "dependents-in", NULL, NULL, false, &m.folders},
        {0, "exclusive", NULL, &m.exclusive, false},
        {0, "max-extra", &extra, NULL, false},
        {0, "speed", &speed, NULL, false},
        {0, "job-id", &m.job_id, NULL, false},
        {'d', "detach", NULL, &m.detach, false},
        {0}};

    m.folders = json_array();
    int r = cli_parse(cli, options, &m.disk, 1, "a disk is");

    if (!r && speed && !cli_parse_size(speed, &m.speed)) {
        r = cli_usage(cli, "'%s' is no rate", speed);
    }
    if (!r && extra && !cli_parse_size(extra, &m.max_extra)) {
        r = cli_usage(cli, "'%s' is no size", extra);
    }
    if (!r && m.into && strcmp(m.into, "snapshot") &&
        strcmp(m.into, "overlay") && strcmp(m.into, "auto")) {
        r = cli_usage(cli, "--into is snapshot, overlay or auto, not '%s'",
                      m.into);
    }
    r = r ? r : run(&m);
    json_decref(m.folders);
    return r;
}
