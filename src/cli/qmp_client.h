// SPDX-License-Identifier: BSD-3-Clause
/* A blocking QMP client, for the verbs that speak to a daemon. */
#ifndef SLUICE_CLI_QMP_CLIENT_H
#define SLUICE_CLI_QMP_CLIENT_H

#include <jansson.h>

#include "base/err.h"

struct qmp_client;

/*
 * Connects (@path, else $SLUICE_SOCKET, else the usual place) and negotiates.
 * -ECONNREFUSED, with a hint, where there is no daemon.
 */
int qmp_client_open(const char *path, struct qmp_client **ret, struct err *err);
/* The same over a socket that is connected, which is taken over. */
int qmp_client_take(int fd, struct qmp_client **ret, struct err *err);
void qmp_client_close(struct qmp_client *c);
/*
 * Runs a command; takes @args (NULL: none).  *ret (may be NULL) is the
 * caller's.  An error of the daemon keeps its class and text.  Events that come
 * meanwhile are kept for qmp_client_event().
 */
int qmp_client_call(struct qmp_client *c, const char *command, json_t *args,
                    json_t **ret, struct err *err);
/*
 * The next event, the caller's; *ret is NULL where none came in @timeout_ms
 * (negative: waits without end).  -ECONNRESET where the daemon is gone.
 */
int qmp_client_event(struct qmp_client *c, int timeout_ms, json_t **ret,
                     struct err *err);

/*
 * A path of the daemon's, as it is found here: absolute.  The caller's; NULL
 * where it is relative, and nobody tells which folder the daemon is in.
 */
char *qmp_client_path(struct qmp_client *c, const char *path);

/*
 * Where a user names files, and never a node: from now on @text stands for that
 * node, in messages, too.
 */
void qmp_client_call_node(struct qmp_client *c, const char *node,
                          const char *text);
/* That text, until the next such call; NULL: users know it as a node. */
const char *qmp_client_called(struct qmp_client *c, const char *node);
/*
 * What users know a node by: what it is called, its name, or the file of one
 * that has none of their own ("#block012").  The caller's.
 */
char *qmp_client_file(struct qmp_client *c, const char *node);
/* Puts files in the place of such names in a message, and sizes for bytes. */
void qmp_client_plain(struct qmp_client *c, struct err *err);

/* A member of an object; "" and 0 where it is not there. */
const char *qmp_text(const json_t *object, const char *key);
json_int_t qmp_number(const json_t *object, const char *key);
/* The errno that fits a message of the daemon's: QMP tells only texts. */
int qmp_error_code(const char *text);

#endif
