// SPDX-License-Identifier: BSD-3-Clause
/*
 * status: what is under way on an image, from what lies beside it and in
 * memory, whether a daemon runs or not.  It changes nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/node.h"
#include "cli/cli.h"
#include "drivers/meta_log.h"
#include "journal/intent.h"
#include "transfer/resume.h"

struct status {
    const char *path;
    bool in_use;
    enum log_left left;
    enum intent_found found;
    struct switch_intent intent;
    json_t *jobs;
    char *disk; /* whose layer it is; NULL: nobody's */
};

/* The file alone, whoever writes to it. */
static int
open_file(struct cli *cli, const char *path, struct node **ret,
          struct err *err)
{
    json_t *options =
        json_pack("{s:s, s:s, s:b, s:b, s:s}", "driver", "file", "node-name",
                  "file", "read-only", 1, "force-share", 1, "filename", path);
    int r = options ? node_add(cli->graph, options, ret, err)
                    : err_set(err, -EINVAL, "The path '%s' is not UTF-8", path);

    json_decref(options);
    return r;
}

static int
look(struct cli *cli, struct status *s, struct err *err)
{
    struct journals *journals = graph_journals(cli->graph);
    struct node *file;
    int r = open_file(cli, s->path, &file, err);

    if (r) {
        return r;
    }
    s->in_use = file->drv->check_alone(file) == -EBUSY;
    s->left = meta_log_look(file);
    s->jobs = resume_list(journals, s->path);
    s->disk = resume_disk_of(journals, s->path);
    return intent_find(journals, s->path, &s->found, &s->intent, err);
}

/* As text. */

static const char *
layer(json_t *job, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(job, key), "file"));
}

static void
say_job(const struct status *s, json_t *job)
{
    const char *base = layer(job, "base"), *target = layer(job, "target");

    printf("%s: job '%s' (%s)", s->path,
           json_string_value(json_object_get(job, "id")),
           json_string_value(json_object_get(job, "preset")));
    if (base) {
        printf(", down to '%s'", base);
    }
    if (target) {
        printf(", to '%s'", target);
    }
    printf(s->in_use ? ", is under way\n"
                     : ", was cut off: it goes on when a daemon opens the "
                       "image to write\n");
}

static void
say_switch(const struct status *s)
{
    const struct switch_intent *i = &s->intent;

    if (s->found == INTENT_AS_SOURCE || s->found == INTENT_AS_TARGET) {
        printf("%s: the disk moves from '%s' to '%s'%s\n", s->path,
               i->source.path, i->target.path,
               s->in_use ? ""
                         : ", which was cut off: opening the latter ends it");
    }
}

static int
say(const struct status *s)
{
    json_t *job;
    size_t i;

    printf("%s: %s\n", s->path,
           s->in_use ? "a program has it open" : "no program has it open");
    json_array_foreach (s->jobs, i, job) {
        say_job(s, job);
    }
    say_switch(s);
    if (s->disk) {
        printf("%s: a job of '%s' writes to it, as a layer of that: by itself "
               "it is neither old nor new\n",
               s->path, s->disk);
    }
    if (s->left == LOG_LEFT_BEHIND) {
        printf("%s: a daemon that died has left writes in memory: open it with "
               "sluiced, or check it, before the next reboot\n",
               s->path);
    }
    if (!json_array_size(s->jobs) && !s->disk && s->found != INTENT_AS_SOURCE &&
        s->found != INTENT_AS_TARGET) {
        printf("%s: nothing is under way\n", s->path);
    }
    return EXIT_OK;
}

static int
say_json(const struct status *s)
{
    json_t *o = json_pack("{s:s, s:b, s:b, s:O}", "filename", s->path, "in-use",
                          s->in_use, "writes-in-memory",
                          s->left == LOG_LEFT_BEHIND, "jobs", s->jobs);

    if (s->found == INTENT_AS_SOURCE || s->found == INTENT_AS_TARGET) {
        json_object_set_new(o, "switch",
                            json_pack("{s:s, s:s}", "source",
                                      s->intent.source.path, "target",
                                      s->intent.target.path));
    }
    if (s->disk) {
        json_object_set_new(o, "layer-of", json_string(s->disk));
    }
    cli_print_json(o);
    return EXIT_OK;
}

int
verb_status(struct cli *cli)
{
    struct status s = {0};
    const struct cli_option none[] = {{0}};
    auto_err err = ERR_INIT;
    int code = cli_parse(cli, none, &s.path, 1, "a path is");

    if (code) {
        return code;
    }
    code = look(cli, &s, &err) ? cli_error(cli, &err)
           : cli->json         ? say_json(&s)
                               : say(&s);
    json_decref(s.jobs);
    free(s.disk);
    switch_intent_fini(&s.intent);
    return code;
}
