// SPDX-License-Identifier: BSD-3-Clause
/*
 * status: what is under way on an image, from what lies beside it and in
 * memory, whether a daemon runs or not.  It changes nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/mark.h"
#include "block/node.h"
#include "cli/cli.h"
#include "cli/under_way.h"
#include "drivers/meta_log.h"

struct status {
    const char *path;
    bool in_use;
    bool unfinished; /* raw: the others say so themselves */
    enum log_left left;
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

static int
look(struct cli *cli, struct status *s, struct err *err)
{
    struct node *file;
    int r = open_file(cli, s->path, &file, err);

    if (r) {
        return r;
    }
    s->in_use = file->drv->check_alone(file) == -EBUSY;
    s->left = meta_log_look(file);
    s->unfinished = file_is_unfinished(file);
    return under_way_look(&s->under_way, cli, s->path, err);
}

/* As text. */

static int
say(const struct status *s)
{
    const struct under_way *u = &s->under_way;

    printf("%s: %s\n", s->path,
           s->in_use ? "a program has it open" : "no program has it open");
    under_way_say(u, s->path, s->in_use);
    if (s->left == LOG_LEFT_BEHIND) {
        printf("%s: a daemon that died has left writes in memory: open it with "
               "sluiced, or check it, before the next reboot\n",
               s->path);
    }
    if (s->unfinished) {
        printf("%s: an unfinished copy: the disk is still the image that it "
               "was copied from\n",
               s->path);
    } else if (!under_way_is(u)) {
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

    if (s->unfinished) {
        json_object_set_new(o, "unfinished-copy", json_true());
    }
    under_way_add(&s->under_way, o);
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
    return code;
}
