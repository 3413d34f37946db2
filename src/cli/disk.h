// SPDX-License-Identifier: BSD-3-Clause
/* A daemon's disks, by what users call them. */
#ifndef SLUICE_CLI_DISK_H
#define SLUICE_CLI_DISK_H

#include "cli/qmp_client.h"

/*
 * The node that @disk means, the caller's: an export's id means the node it
 * shows; everything else is a node's name.
 */
char *disk_node(struct qmp_client *c, const char *disk);
/* Does an export show @node? */
bool disk_is_exported(struct qmp_client *c, const char *node);
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
/* The path as the daemon, which runs elsewhere, finds it; the caller's. */
char *disk_absolute(const char *path);
/* The same of an array of strings (borrowed). */
json_t *disk_absolute_list(json_t *paths);

#endif
