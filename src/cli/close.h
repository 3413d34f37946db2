// SPDX-License-Identifier: BSD-3-Clause
/*
 * Closing nodes of a daemon that fell out of use.  Only the daemon knows who
 * uses one, so it is asked to close it, and what it refuses stays open.
 */
#ifndef SLUICE_CLI_CLOSE_H
#define SLUICE_CLI_CLOSE_H

#include <jansson.h>
#include <stdbool.h>

#include "cli/cli.h"
#include "cli/qmp_client.h"

struct closing {
    json_t *closed; /* names; NULL where nothing was tried */
    json_t *open;   /* {"node", "message"}: what the daemon said to it */
};

/*
 * Closes each of @nodes, names that are borrowed, the uppermost first, where a
 * disk has left them for @survivor: that is used by something else than they.
 * Where it is not (nobody was moved, or back again), nothing is tried.  Nodes
 * without a name of their own go with those that have one.
 */
void closing_try(struct closing *c, struct qmp_client *client,
                 const json_t *nodes, const char *survivor);
/* Adds the members "closed" and "still-open", where it was tried. */
void closing_add(const struct closing *c, json_t *object);
/* A line for each, but in JSON; frees what is in @c. */
void closing_say(struct closing *c, const struct cli *cli);

/*
 * Is the node used by something else than @but, an array of nodes' names
 * (NULL: none)?  False, too, where the daemon does not tell.
 */
bool node_is_used(struct qmp_client *client, const char *node,
                  const json_t *but);

#endif
