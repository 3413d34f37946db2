// SPDX-License-Identifier: BSD-3-Clause
/*
 * Where a copy of a daemon's disk goes: one of its nodes, or an image file,
 * which is made and opened in the daemon.
 */
#ifndef SLUICE_CLI_TARGET_H
#define SLUICE_CLI_TARGET_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct qmp_client;

struct target {
    struct qmp_client *client;
    const char *job_id; /* after which the node is called */
    bool reuse;         /* the image is there */

    char *path;   /* NULL: it is a node of the daemon's */
    char *node;   /* NULL until it is open, where it is a path */
    char *format; /* NULL: the node's own */
    uint64_t size;
    bool direct, no_flush; /* opened as the source is */
    bool made, opened;     /* by us, to be taken away again */
};

/*
 * Finds out what @where means, for a copy of what @source says
 * (disk_info()).  @format may be NULL: the source's.  Nothing is made.
 */
int target_init(struct target *t, const char *where, const char *format,
                const json_t *source, struct err *err);
void target_fini(struct target *t);
/*
 * Makes the image, where it is to be made, and opens it.  @read_only: only to
 * look at it; nothing is made then.
 */
int target_open(struct target *t, bool read_only, struct err *err);
/* Closes what was opened and removes what was made. */
void target_undo(struct target *t);
/*
 * As target_undo(), where the image is marked as an unfinished copy, which is
 * of no use; whatever else it is stays.  False where it stays.
 */
bool target_undo_unfinished(struct target *t);

#endif
