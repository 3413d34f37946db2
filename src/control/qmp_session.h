// SPDX-License-Identifier: BSD-3-Clause
/*
 * One client of the control protocol, without its socket.  The owner sends
 * qmp_session_greeting(), feeds what it reads, takes requests one by one, and
 * sends what qmp_session_execute() returns, in that order:
 *
 *     qmp_session_feed(s, bytes, n);
 *     while ((request = qmp_session_next(s))) {
 *         text = qmp_session_execute(s, ctl, request);
 *         ... send, free(text) ...
 *     }
 *
 * Events go to a session once qmp_session_negotiated() says so, through
 * qmp_session_format().  All texts are ASCII, end with CRLF and belong to the
 * caller.
 */
#ifndef SLUICE_CONTROL_QMP_SESSION_H
#define SLUICE_CONTROL_QMP_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct control;
struct qmp_request;
struct qmp_session;

/* Above this many waiting requests the owner should stop reading. */
#define QMP_SESSION_MAX_QUEUED 8

/* @pretty: answers are indented, over several lines. */
struct qmp_session *qmp_session_new(bool pretty);
/* Drops waiting requests; NULL is harmless. */
void qmp_session_free(struct qmp_session *s);

char *qmp_session_greeting(const struct qmp_session *s);
/* Takes any bytes and queues what they complete. */
void qmp_session_feed(struct qmp_session *s, const void *bytes, size_t len);
size_t qmp_session_queued(const struct qmp_session *s);
/* The oldest waiting request, now the caller's; NULL where there is none. */
struct qmp_request *qmp_session_next(struct qmp_session *s);
/*
 * Runs @request and consumes it.  May yield (a handler may); the session must
 * live until it returns, and the next request waits until then.
 */
char *qmp_session_execute(struct qmp_session *s, struct control *ctl,
                          struct qmp_request *request);
/* Frees a request that is not to be run; NULL is harmless. */
void qmp_request_free(struct qmp_request *request);

/* Whether the client is past qmp_capabilities, and gets events. */
bool qmp_session_negotiated(const struct qmp_session *s);
/* The text of @value, which stays the caller's, as this session has it. */
char *qmp_session_format(const struct qmp_session *s, const json_t *value);

#endif
