// SPDX-License-Identifier: BSD-3-Clause
/* events: a daemon's events as they come. */
#include <stdlib.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/qmp_client.h"

static void
print_event(const struct cli *cli, json_t *event)
{
    if (cli->json) {
        json_object_set_new(event, "type", json_string("event"));
        cli_print_json(json_incref(event));
        return;
    }
    const json_t *t = json_object_get(event, "timestamp");
    auto_free char *data =
        json_dumps(json_object_get(event, "data"), JSON_ENCODE_ANY);

    printf("%lld.%06lld %s %s\n", (long long)qmp_number(t, "seconds"),
           (long long)qmp_number(t, "microseconds"), qmp_text(event, "event"),
           data ? data : "");
    fflush(stdout);
}

int
verb_events(struct cli *cli)
{
    struct qmp_client *c;
    auto_err err = ERR_INIT;

    if (cli->argc != 1) {
        return cli_usage(cli, "it takes no arguments");
    }
    if (qmp_client_open(cli->socket, &c, &err)) {
        return cli_error(cli, &err);
    }
    cli_catch_interrupt();
    while (!cli_interrupted()) {
        json_t *event = NULL;

        if (qmp_client_event(c, -1, &event, &err)) {
            break;
        }
        print_event(cli, event);
        json_decref(event);
    }
    qmp_client_close(c);
    return cli_interrupted() ? EXIT_OK : cli_error(cli, &err);
}
