// SPDX-License-Identifier: BSD-3-Clause
/* merge: a daemon's disk and its snapshot become one image, in place. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/close.h"
#include "cli/connect.h"
#include "cli/disk.h"
#include "cli/follow.h"
#include "cli/plan.h"

struct merge {
    struct cli *cli;
    struct qmp_client *client;
    const char *disk, *format, *snapshot, *into, *job_id;
    json_t *folders; /* --dependents-in */
    uint64_t speed, max_extra;
    bool delete, keep_name, exclusive, upgrade, detach, has_speed;
    bool joined, faster; /* it ran already; and has another speed now */
    char *node, *lower, *id; /* the nodes of disk and snapshot; the job */
    char *lower_file;        /* the snapshot's, as it was at the start */
    json_t *layers;          /* from the one to the other: names */
};

/* What a plan needs, too, to refuse what the start would. */
static json_t *
arguments(const struct merge *m)
{
    json_t *o = json_pack("{s:s}", "device", m->node);

    if (m->snapshot) {
        json_object_set_new(o, "snapshot", json_string(m->lower));
    }
    if (m->into) {
        json_object_set_new(o, "into", json_string(m->into));
    }
    if (m->max_extra) {
        json_object_set_new(o, "max-extra",
                            json_integer((json_int_t)m->max_extra));
    }
    json_object_set_new(o, "keep-name", json_boolean(m->keep_name));
    json_object_set_new(o, "delete", json_boolean(m->delete));
    json_object_set_new(o, "exclusive", json_boolean(m->exclusive));
    json_object_set_new(o, "upgrade", json_boolean(m->upgrade));
    json_object_set_new(o, "dependents-in", disk_absolute_list(m->folders));
    return o;
}

/* Every layer but the disk's own stops being what it was. */
static json_t *
what_is_lost(const struct merge *m, json_t *plan)
{
    json_t *list = json_array(), *name;
    const char *survivor = qmp_text(plan, "survivor");
    size_t i;

    json_array_foreach(json_object_get(plan, "drops"), i, name)
    {
        if (strcmp(json_string_value(name), m->node)) {
            json_array_append(list, name);
        }
    }
    if (strcmp(survivor, m->node)) {
        json_array_append_new(list, json_string(survivor));
    }
    return list;
}

static void
say_what_is_lost(const struct merge *m, json_t *lost)
{
    json_t *name;
    size_t i;

    puts("From the first copy on, nobody can read as they were:");
    json_array_foreach(lost, i, name)
    {
        auto_free char *file =
            qmp_client_file(m->client, json_string_value(name));

        printf("  %s\n", file);
    }
}

static void
say_rename(const struct merge *m)
{
    const json_t *top = json_array_get(m->layers, 0);
    auto_free char *file = disk_file(m->client, json_string_value(top));

    printf("In the end '%s' takes the name '%s'; there will be no '%s' any "
           "more.\n",
           m->lower_file, file, m->lower_file);
}

static void
add_hint(struct err *err)
{
    if (strstr(err->msg, "of version 2")) {
        err_hint(err, "--upgrade makes it version 3");
    } else if (strstr(err->msg, "cannot take the name of")) {
        err_hint(err, "leave --keep-name out, or take --into overlay");
    }
}

static int
dry_run(const struct merge *m, struct err *err)
{
    json_t *plan = NULL;

    if (qmp_client_call(m->client, "query-merge-plan", arguments(m),
                        &plan, err)) {
        add_hint(err);
        return cli_error(m->cli, err);
    }
    const char *stays = qmp_text(plan, "survivor");
    auto_free char *file = qmp_client_file(m->client, stays);
    auto_free char *what =
        xasprintf("into the %s '%s'", qmp_text(plan, "into"), file);
    bool renames = m->keep_name && m->lower && !strcmp(stays, m->lower);
    json_t *lost = what_is_lost(m, plan);
    json_t *more = json_pack("{s:s, s:b, s:O}", "disk", m->disk,
                             "snapshot-lost", 1, "lost", lost);

    if (renames) {
        json_object_set_new(more, "vanishes", json_string(m->lower_file));
    }
    int code = plan_say(m->cli, m->client, plan, what, more);

    if (code == EXIT_OK && !m->cli->json) {
        say_what_is_lost(m, lost);
    }
    if (code == EXIT_OK && !m->cli->json && renames) {
        say_rename(m);
    }
    json_decref(lost);
    json_decref(plan);
    return code;
}

static int
start(const struct merge *m, struct err *err)
{
    json_t *args = arguments(m);

    json_object_set_new(args, "job-id", json_string(m->id));
    json_object_set_new(args, "auto-dismiss", json_false());
    if (m->speed) {
        json_object_set_new(args, "speed", json_integer((json_int_t)m->speed));
    }
    int r = follow_start(m->client, "block-merge", args, NULL, err);

    if (r) {
        add_hint(err);
    }
    return r;
}

/* The limit that our job has already; false: there is no such job yet. */
static bool
find_speed(const struct merge *m, uint64_t *ret)
{
    json_t *list = NULL, *job;
    bool found = false;
    size_t i;

    qmp_client_call(m->client, "query-block-jobs", NULL, &list, NULL);
    json_array_foreach(list, i, job)
    {
        if (!strcmp(qmp_text(job, "device"), m->id)) {
            found = true;
            *ret = (uint64_t)qmp_number(job, "speed");
        }
    }
    json_decref(list);
    return found;
}

/*
 * The same merge once more is taken for the one that runs, whatever its speed:
 * that is set here.
 */
static int
start_or_join(struct merge *m, struct err *err)
{
    uint64_t speed = 0;

    m->joined = find_speed(m, &speed);
    int r = start(m, err);

    m->faster = !r && m->joined && m->has_speed && speed != m->speed;
    if (m->faster) {
        r = qmp_client_call(m->client, "block-job-set-speed",
                            json_pack("{s:s, s:I}", "device", m->id, "speed",
                                      (json_int_t)m->speed),
                            NULL, err);
    }
    if (!r && m->joined && !m->cli->json) {
        auto_free char *rate = cli_format_size(m->speed);

        printf("Job '%s' was under way%s%s%s.\n", m->id,
               m->faster ? "; its speed is now " : "",
               !m->faster  ? ""
               : !m->speed ? "not limited"
                           : rate,
               m->faster && m->speed ? "/s" : "");
        fflush(stdout);
    }
    return r;
}

/* Into the snapshot: that is still below the disk. */
static const char *
survivor(const struct merge *m)
{
    return disk_is_below(m->client, m->node, m->lower) ? m->lower : m->node;
}

static void
close_layers(const struct merge *m, struct closing *closing)
{
    const char *stays = survivor(m);
    bool is_upper = strcmp(stays, m->lower ? m->lower : "");
    json_t *left = json_copy(m->layers);

    json_array_remove(left, is_upper ? 0 : json_array_size(left) - 1);
    closing_try(closing, m->client, left, stays);
    json_decref(left);
}

/* The survivor had another name; NULL: it has it still. */
static const char *
renamed_from(const struct merge *m, const char *file)
{
    bool is = file && m->lower_file && !strcmp(survivor(m), m->lower) &&
              strcmp(file, m->lower_file);

    return is ? m->lower_file : NULL;
}

static void
say_end(const struct merge *m, const char *node, const char *was,
        const char *file)
{
    if (was) {
        printf("'%s' has taken the name '%s' and is the disk; there is no '%s' "
               "any more.\n",
               was, file, was);
    }
    if (strcmp(node, m->node)) {
        printf("The disk is now node '%s'; '%s' is empty and out of use.\n",
               node, m->node);
    }
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
    struct closing closing = {0};
    auto_free char *node = disk_node(m->client, m->disk, m->node);
    const char *called = qmp_client_called(m->client, node);
    auto_free char *file = done ? disk_file(m->client, survivor(m)) : NULL;
    json_t *more = json_pack("{s:s, s:s, s:s, s:b}", "verb", "merge", "disk",
                             m->disk, "node", called ? called : node,
                             "was-under-way", (int)m->joined);

    if (file) {
        json_object_set_new(more, "file", json_string(file));
    }
    const char *was = renamed_from(m, file);

    if (was) {
        json_object_set_new(more, "renamed-from", json_string(was));
    }
    if (m->faster) {
        json_object_set_new(more, "speed", json_integer((json_int_t)m->speed));
    }
    if (done && !m->cli->own) {
        close_layers(m, &closing);
        closing_add(&closing, more);
    }
    int code = follow_say(&f, more);

    disk_say_file(m->cli, m->disk, file);
    if (done && !m->cli->json) {
        say_end(m, node, was, file);
    }
    closing_say(&closing, m->cli);
    return code;
}

static int
find_layers(struct merge *m, struct err *err)
{
    int r = disk_find(m->client, m->disk, &m->node, err);

    if (!r && m->snapshot) {
        r = disk_find_layer(m->client, m->node, m->snapshot, &m->lower, err);
    } else if (!r) {
        m->lower = disk_below(m->client, m->node);
    }
    if (!r) {
        m->layers = disk_layers(m->client, m->node, m->lower);
        m->lower_file = disk_file(m->client, m->lower);
    }
    return r;
}

/* What the last one of this command was killed at. */
static int
say_done_earlier(const struct merge *m, const struct err *err)
{
    if (m->cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:s, s:b}", "type", "result",
                                 "verb", "merge", "disk", m->disk,
                                 "done-earlier", 1));
    } else {
        printf("%s.\n", err->msg);
    }
    return EXIT_OK;
}

static int
merge(struct merge *m, struct err *err)
{
    char *went_on = cli_went_on(m->cli, m->client);

    m->id = went_on ? went_on : disk_job_id("merge", m->disk, m->job_id);
    if (find_layers(m, err)) {
        return cli_error(m->cli, err);
    }
    if (m->cli->dry_run) {
        return dry_run(m, err);
    }
    if (!went_on && start_or_join(m, err)) {
        return strstr(err->msg, "was finished when") ? say_done_earlier(m, err)
                                                     : cli_error(m->cli, err);
    }
    return follow(m);
}

static int
run(struct merge *m)
{
    auto_err err = ERR_INIT;

    if (cli_connect(m->cli, m->disk, m->format, &m->client, &err)) {
        return cli_error(m->cli, &err);
    }
    int code = merge(m, &err);

    json_decref(m->layers);
    free(m->node);
    free(m->lower);
    free(m->lower_file);
    free(m->id);
    cli_disconnect(m->cli, m->client);
    return code;
}

int
verb_merge(struct cli *cli)
{
    struct merge m = {.cli = cli};
    const char *speed = NULL, *extra = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &m.format, NULL, false},
        {0, "snapshot", &m.snapshot, NULL, false},
        {0, "into", &m.into, NULL, false},
        {0, "delete", NULL, &m.delete, false},
        {0, "keep-name", NULL, &m.keep_name, false},
        {0, "dependents-in", NULL, NULL, false, &m.folders},
        {0, "exclusive", NULL, &m.exclusive, false},
        {0, "upgrade", NULL, &m.upgrade, false},
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
    m.has_speed = speed != NULL;
    if (!r && extra && !cli_parse_size(extra, &m.max_extra)) {
        r = cli_usage(cli, "'%s' is no size", extra);
    }
    if (!r && m.into && strcmp(m.into, "snapshot") &&
        strcmp(m.into, "overlay") && strcmp(m.into, "auto")) {
        r = cli_usage(cli, "--into is snapshot, overlay or auto, not '%s'",
                      m.into);
    }
    r = r ? r : cli_check_job_id(cli, m.job_id);
    r = r ? r : cli_check_own(cli, m.format, m.detach);
    r = r ? r : run(&m);
    json_decref(m.folders);
    return r;
}
