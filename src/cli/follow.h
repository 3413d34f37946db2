// SPDX-License-Identifier: BSD-3-Clause
/*
 * Following a daemon's job: a bar until it ends, is ready, or the user has
 * seen enough; then what came of it.
 */
#ifndef SLUICE_CLI_FOLLOW_H
#define SLUICE_CLI_FOLLOW_H

#include <jansson.h>

#include "cli/cli.h"
#include "cli/qmp_client.h"

/* What to do about a job that is ready, which waits to be told how to end. */
enum at_ready {
    READY_WAIT,     /* go on following */
    READY_RETURN,   /* leave it to the user */
    READY_COMPLETE, /* complete it, once everything was copied */
    READY_STOP,     /* stop it then, with the copy as it is */
    READY_TOLD,     /* it was told how to end: that is waited for */
};

enum follow_end {
    FOLLOW_DETACHED, /* it goes on; the user was told how to reach it */
    FOLLOW_READY,    /* it goes on, and waits to be told */
    FOLLOW_DONE,
    FOLLOW_FAILED, /* `err` says why: it was cancelled, it is not there ... */
};

struct follow {
    struct cli *cli;
    struct qmp_client *client;
    const char *id, *what; /* the job's id; the bar's and result's word */
    enum at_ready at_ready;
    bool switches; /* the report tells the pause */
    const char *ready; /* at READY: how it can be ended; NULL: by job verbs */

    /* What came of it. */
    enum follow_end end;
    struct err err;
    json_int_t bytes; /* of progress, at the end */
    json_t *report;   /* its entry of query-transfers; NULL: it is none */
};

/* One job out of query-jobs, the caller's; NULL where it is gone. */
json_t *find_job(struct qmp_client *c, const char *id, struct err *err);

/*
 * As qmp_client_call(), of a command that starts a job which is followed then:
 * a Ctrl-C that comes meanwhile is for the following.
 */
int follow_start(struct qmp_client *client, const char *command, json_t *args,
                 json_t **ret, struct err *err);
/* Follows a job, whether it stays after its end or dismisses itself. */
void follow_job(struct follow *f);
/*
 * Says what came of it, as text or JSON with the members of @more (taken; may
 * be NULL), and frees what is in @f.  The exit code.
 */
int follow_say(struct follow *f, json_t *more);

#endif
