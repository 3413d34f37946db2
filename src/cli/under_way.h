// SPDX-License-Identifier: BSD-3-Clause
/* What the journal of an image says of jobs: what status and check share. */
#ifndef SLUICE_CLI_UNDER_WAY_H
#define SLUICE_CLI_UNDER_WAY_H

#include "cli/cli.h"

struct under_way {
    json_t *jobs; /* as resume_list() has them */
    char *disk;   /* whose layer it is; NULL: nobody's */
};

/* Reads it; changes nothing.  Yields. */
void under_way_look(struct under_way *u, struct cli *cli, const char *path);
void under_way_fini(struct under_way *u);
/* As text; @in_use: somebody works on it, else it was cut off. */
void under_way_say_jobs(const struct under_way *u, const char *path,
                        bool in_use);
void under_way_say_disk(const struct under_way *u, const char *path);
/* Adds the members "jobs" and, of a layer, "layer-of". */
void under_way_add(const struct under_way *u, json_t *object);

#endif
