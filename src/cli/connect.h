// SPDX-License-Identifier: BSD-3-Clause
/*
 * A verb's way to its disk: a daemon that has it, or, for an image file that
 * none has, a daemon of the verb's own, in a child that ends with it.
 */
#ifndef SLUICE_CLI_CONNECT_H
#define SLUICE_CLI_CONNECT_H

#include "cli/cli.h"
#include "cli/qmp_client.h"

/*
 * Without @format: the daemon's.  With it: our own, which has opened the image
 * @disk, for reading only where it is a dry run; cli->own is set.
 */
int cli_connect(struct cli *cli, const char *disk, const char *format,
                struct qmp_client **ret, struct err *err);
/*
 * Where it is our own: files in the place of nodes in the members "drops",
 * "lost" and "survivor", for JSON.
 */
void cli_own_files(const struct cli *cli, struct qmp_client *c, json_t *object);
/* Ends our own, and waits until it has closed the image. */
void cli_disconnect(struct cli *cli, struct qmp_client *c);
/*
 * The job of this verb that was cut off before and goes on as our own daemon
 * has opened the image, which is said; the caller's.  NULL: there is none.
 */
char *cli_went_on(const struct cli *cli, struct qmp_client *c);
/* EXIT_USAGE, and says so, where a daemon that ends with us were left a job. */
int cli_check_own(struct cli *cli, const char *format, bool leaves);

#endif
