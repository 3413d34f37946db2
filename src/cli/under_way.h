// SPDX-License-Identifier: BSD-3-Clause
/*
 * What the journal of an image says of jobs, of files that are to be deleted
 * and of whose layer it is: what status and check share.
 *
 * A record counts only where it is of this very file: a copied folder has its
 * journals copied, too, and a name may be another file's by now.
 */
#ifndef SLUICE_CLI_UNDER_WAY_H
#define SLUICE_CLI_UNDER_WAY_H

#include "cli/cli.h"
#include "journal/intent.h"

/* Of a switch to another file there may be a record. */
enum switched {
    SWITCH_NONE,
    SWITCH_OF_ANOTHER_FILE, /* that had this name, or was copied */
    SWITCH_UNFINISHED,      /* the disk is the source: the target is marked */
    SWITCH_RECORDED,        /* the disk is the target */
};

struct under_way {
    /*
     * As resume_list() has them, with "top" also where that is the image
     * itself.  One that lies beside another name of the file has that as
     * "recorded-as".
     */
    json_t *jobs;
    json_t *foreign; /* the same, of another file */
    json_t *deletions; /* {"job", "file"}: what is still there */
    /* {"job", "disk", "state"}, maybe "disk-now" and "note", the job's own. */
    json_t *layer_of;
    enum switched switched;
    struct switch_intent intent; /* of the switch */
};

/*
 * Reads it; changes nothing.  Yields; -errno where a journal cannot be read, and
 * even then under_way_fini() for it.
 */
int under_way_look(struct under_way *u, struct cli *cli, const char *path,
                   struct err *err);
void under_way_fini(struct under_way *u);
/* Is anything? */
bool under_way_is(const struct under_way *u);
/* As text; @in_use: somebody works on it, else it was cut off. */
void under_way_say(const struct under_way *u, const char *path, bool in_use);
/* Adds the members "jobs", "deletions" and, where there are any, others. */
void under_way_add(const struct under_way *u, json_t *object);

#endif
