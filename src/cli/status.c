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
#include "cli/under_way.h"
#include "drivers/meta_log.h"
#include "journal/intent.h"

struct status {
    const char *path;
    bool in_use;
    enum log_left left;
    bool switches, foreign; /* there is a record of that; of another file */
    struct switch_intent intent;
    struct under_way under_way;
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

/* A number of 0 is of a file that had none. */
static bool
is_same(const struct intent_file *file, const struct node *node)
{
    return !file->ino ||
           (file->ino == node->file_id.ino &&
            (!file->born || !node->file_born || file->born == node->file_born));
}

static int
look_at_switch(struct status *s, struct journals *journals,
               const struct node *file, struct err *err)
{
    enum intent_found found;
    int r = intent_find(journals, s->path, &found, &s->intent, err);
    bool is_source = found == INTENT_AS_SOURCE;

    s->switches = !r && (is_source || found == INTENT_AS_TARGET);
    s->foreign =
        s->switches &&
        !is_same(is_source ? &s->intent.source : &s->intent.target, file);
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
    under_way_look(&s->under_way, cli, s->path);
    return look_at_switch(s, journals, file, err);
}

/* As text. */

static void
say_switch(const struct status *s)
{
    const struct switch_intent *i = &s->intent;

    if (s->foreign) {
        printf("%s: the record of a switch from '%s' to '%s' is of another "
               "file, which had this name or was copied with its journal\n",
               s->path, i->source.path, i->target.path);
    } else if (s->switches) {
        printf("%s: the disk moves from '%s' to '%s'%s\n", s->path,
               i->source.path, i->target.path,
               s->in_use ? ""
                         : ", which was cut off: opening the latter ends it");
    }
}

static int
say(const struct status *s)
{
    const struct under_way *u = &s->under_way;

    printf("%s: %s\n", s->path,
           s->in_use ? "a program has it open" : "no program has it open");
    under_way_say(u, s->path, s->in_use);
    say_switch(s);
    if (s->left == LOG_LEFT_BEHIND) {
        printf("%s: a daemon that died has left writes in memory: open it with "
               "sluiced, or check it, before the next reboot\n",
               s->path);
    }
    if (!under_way_is(u) && (!s->switches || s->foreign)) {
        printf("%s: nothing is under way\n", s->path);
    }
    return EXIT_OK;
}

static int
say_json(const struct status *s)
{
    json_t *o = json_pack("{s:s, s:b, s:b}", "filename", s->path, "in-use",
                          s->in_use, "writes-in-memory",
                          s->left == LOG_LEFT_BEHIND);

    under_way_add(&s->under_way, o);
    if (s->switches) {
        json_object_set_new(o,
                            s->foreign ? "switch-of-another-file" : "switch",
                            json_pack("{s:s, s:s}", "source",
                                      s->intent.source.path, "target",
                                      s->intent.target.path));
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
    under_way_fini(&s.under_way);
    switch_intent_fini(&s.intent);
    return code;
}
