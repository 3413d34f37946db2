// SPDX-License-Identifier: BSD-3-Clause
/* A daemon's disks, by what users call them. */
#ifndef SLUICE_CLI_DISK_H
#define SLUICE_CLI_DISK_H

#include "cli/cli.h"
#include "cli/qmp_client.h"

/*
 * The node that @disk means, the caller's: an export's id means the node it
 * shows, then comes a node's name, then the file of an image that is open.
 * -ENOENT where it is none of these, -EINVAL where it is the file of several.
 */
int disk_find(struct qmp_client *c, const char *disk, char **ret,
              struct err *err);
/* The same where no export is meant: a node's name, or its file. */
int disk_find_node(struct qmp_client *c, const char *node, char **ret,
                   struct err *err);
/* The same of a layer in the chain of the node @top; it is no export's id. */
int disk_find_layer(struct qmp_client *c, const char *top, const char *layer,
                    char **ret, struct err *err);
/* The node that an export of that id shows, the caller's; else @was. */
char *disk_node(struct qmp_client *c, const char *disk, const char *was);
/* The image right below, and the lowest; the caller's, NULL: there is none. */
char *disk_below(struct qmp_client *c, const char *node);
char *disk_lowest(struct qmp_client *c, const char *node);
/*
 * The names of the images from @top down to @bottom, which is the last; all of
 * them where it is not below (NULL: it is nowhere).  The caller's.
 */
json_t *disk_layers(struct qmp_client *c, const char *top, const char *bottom);
/* Is @layer (may be NULL) in the chain below @top? */
bool disk_is_below(struct qmp_client *c, const char *top, const char *layer);
/* The file of a node, the caller's; NULL where there is none. */
char *disk_file(struct qmp_client *c, const char *node);
/*
 * The disk that was in the file @disk is in @file by now (NULL: the same):
 * says so, of a daemon of our own, whose nodes are gone with it.
 */
void disk_say_file(const struct cli *cli, const char *disk, const char *file);
/*
 * What query-named-block-nodes says of a node, the caller's; -ENOENT where
 * there is none.
 */
int disk_info(struct qmp_client *c, const char *node, json_t **ret,
              struct err *err);
/*
 * A node name that is not taken: @wish, shortened where QEMU's limit asks for
 * it, or with a number.  The caller's; NULL with @err set.
 */
char *disk_free_name(struct qmp_client *c, const char *wish, struct err *err);
/*
 * What a verb calls its job: @given, or the verb and the disk, with a '-' for
 * all that a job's id cannot have.  The caller's.
 */
char *disk_job_id(const char *verb, const char *disk, const char *given);
/*
 * Can an image be made at @path, which disk_absolute() has made?  -EEXIST where
 * something is there, or why its folder cannot take it.  Whether the daemon may
 * write there only the daemon knows.
 */
int disk_check_new(const char *path, struct err *err);
/* The path as the daemon, which runs elsewhere, finds it; the caller's. */
char *disk_absolute(const char *path);
/* The same of an array of strings (borrowed). */
json_t *disk_absolute_list(json_t *paths);

#endif
