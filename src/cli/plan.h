// SPDX-License-Identifier: BSD-3-Clause
/* What a transfer would do, as the daemon's query-*-plan says. */
#ifndef SLUICE_CLI_PLAN_H
#define SLUICE_CLI_PLAN_H

#include <jansson.h>

#include "cli/cli.h"
#include "cli/qmp_client.h"

/*
 * Prints a plan: "Would copy 9.0 MiB @what".  Takes @more, the members of the
 * JSON beside the plan's own.  An exit code: EXIT_NO_SPACE, with the figures,
 * where there is less than it needs.
 */
int plan_say(const struct cli *cli, struct qmp_client *client, json_t *plan,
             const char *what, json_t *more);

#endif
