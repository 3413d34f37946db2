// SPDX-License-Identifier: BSD-3-Clause
/* Dry runs: the plan as text, or as JSON with all of its members. */
#include "cli/plan.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "cli/connect.h"

static void
say_text(struct qmp_client *client, const json_t *plan, const char *what,
         bool space_is_known)
{
    auto_free char *copy =
        cli_format_size((uint64_t)qmp_number(plan, "bytes-to-copy"));
    auto_free char *zero =
        cli_format_size((uint64_t)qmp_number(plan, "bytes-to-zero"));
    auto_free char *need =
        cli_format_size((uint64_t)qmp_number(plan, "space-needed"));
    auto_free char *have =
        cli_format_size((uint64_t)qmp_number(plan, "space-free"));
    json_t *drops = json_object_get(plan, "drops"), *name;
    size_t i;

    printf("Would copy %s %s.\n", copy, what);
    if (qmp_number(plan, "bytes-to-zero")) {
        printf("  made zero     %s\n", zero);
    }
    printf("  space needed  %s at most\n", need);
    if (space_is_known) {
        printf("  space free    %s\n", have);
    }
    json_array_foreach(drops, i, name)
    {
        auto_free char *file =
            qmp_client_file(client, json_string_value(name));

        printf("  leaves        %s\n", file);
    }
}

static int
no_space(const struct cli *cli, uint64_t need, uint64_t have)
{
    auto_free char *n = cli_format_size(need);
    auto_free char *h = cli_format_size(have);
    auto_free char *more = cli_format_size(need - have);
    bool may_move = !strcmp(cli->verb, "copy") || !strcmp(cli->verb, "mirror");
    auto_err err = ERR_INIT;

    err_set(&err, -ENOSPC,
            "It needs %s of space at most, and the file system has %s left: "
            "%s more",
            n, h, more);
    err_hint(&err, "nothing was done; make room%s",
             may_move ? ", or take another target" : " there");
    return cli_error(cli, &err);
}

int
plan_say(const struct cli *cli, struct qmp_client *client, json_t *plan,
         const char *what, json_t *more)
{
    json_int_t need = qmp_number(plan, "space-needed");
    json_int_t have = qmp_number(plan, "space-free");
    bool known = json_object_get(plan, "space-free") != NULL;

    if (known && need > have) {
        json_decref(more);
        return no_space(cli, (uint64_t)need, (uint64_t)have);
    }
    if (cli->json) {
        json_t *o = json_pack("{s:s, s:s, s:b, s:I}", "type", "result", "verb",
                              cli->verb, "dry-run", 1, "bytes",
                              qmp_number(plan, "bytes-to-copy"));

        json_object_update_missing(o, more);
        json_object_update_missing(o, plan);
        cli_own_files(cli, client, o);
        cli_print_json(o);
    } else {
        say_text(client, plan, what, known);
    }
    json_decref(more);
    return EXIT_OK;
}
