// SPDX-License-Identifier: BSD-3-Clause
/* job: looks after a daemon's jobs. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/follow.h"
#include "cli/qmp_client.h"

static int
no_such_job(struct cli *cli, const char *id, struct err *err)
{
    if (!err_is_set(err)) {
        err_set(err, -ENOENT, "There is no job '%s'", id);
    }
    return cli_error(cli, err);
}

static int
list_jobs(struct cli *cli, struct qmp_client *c, const char *only,
          struct err *err)
{
    json_t *list = NULL, *job;
    bool found = !only;
    size_t i;

    if (qmp_client_call(c, "query-jobs", NULL, &list, err)) {
        return cli_error(cli, err);
    }
    if (!cli->json && !only) {
        printf("%-20s %-8s %-10s %8s\n", "id", "type", "status", "done");
    }
    json_array_foreach(list, i, job)
    {
        double total = (double)qmp_number(job, "total-progress");
        double done = (double)qmp_number(job, "current-progress");

        if (only && strcmp(qmp_text(job, "id"), only)) {
            continue;
        }
        found = true;
        if (cli->json) {
            json_t *copy = json_deep_copy(job);

            json_object_set_new(copy, "job-type",
                                json_string(qmp_text(job, "type")));
            json_object_set_new(copy, "type", json_string("job"));
            cli_print_json(copy);
        } else {
            printf("%-20s %-8s %-10s %7.1f%% %s\n", qmp_text(job, "id"),
                   qmp_text(job, "type"), qmp_text(job, "status"),
                   total > 0 ? 100 * done / total : 0, qmp_text(job, "error"));
        }
    }
    json_decref(list);
    if (!found) {
        return no_such_job(cli, only, err);
    }
    return EXIT_OK;
}

/* The verb may still be refused: the job's state is the daemon's matter. */
static int
job_dry_run(struct cli *cli, struct qmp_client *c, const char *verb,
            const char *id, struct err *err)
{
    json_t *job = find_job(c, id, err);

    if (!job) {
        return no_such_job(cli, id, err);
    }
    if (cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:s, s:b, s:s}", "type", "result",
                                 "verb", verb, "job", id, "dry-run", 1,
                                 "status", qmp_text(job, "status")));
    } else {
        printf("Would %s job '%s', which is %s.\n", verb, id,
               qmp_text(job, "status"));
    }
    json_decref(job);
    return EXIT_OK;
}

static int
wait_for_job(struct cli *cli, struct qmp_client *c, const char *id,
             enum at_ready at_ready)
{
    struct follow f = {.cli = cli,
                       .client = c,
                       .id = id,
                       .what = "job",
                       .at_ready = at_ready};

    follow_job(&f);
    return follow_say(&f, NULL);
}

/*
 * The daemon would cancel one that is not ready; who says "stop" wants what
 * was copied.
 */
static int
check_ready(struct qmp_client *c, const char *id, struct err *err)
{
    json_t *job = find_job(c, id, err);

    if (!job) {
        return err_is_set(err) ? err->code
                               : err_set(err, -ENOENT, "There is no job '%s'",
                                         id);
    }
    if (strcmp(qmp_text(job, "status"), "ready")) {
        err_set(err, -EINVAL,
                "Job '%s' is %s, not ready: it cannot be stopped with a copy",
                id, qmp_text(job, "status"));
        err_hint(err, "sluice job cancel %s ends it and throws the copy away",
                 id);
    }
    json_decref(job);
    return err->code;
}

/* The command behind a verb; NULL: there is no such verb. */
static char *
command_of(const char *verb)
{
    static const char *const verbs[] = {"pause",    "resume",   "cancel",
                                        "complete", "finalize", "dismiss"};

    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        if (!strcmp(verbs[i], verb)) {
            return xasprintf("job-%s", verb);
        }
    }
    return strcmp(verb, "stop") ? NULL : xstrdup("block-job-cancel");
}

static int
command_job(struct cli *cli, struct qmp_client *c, const char *verb,
            const char *id, struct err *err)
{
    auto_free char *command = command_of(verb);
    bool stop = !strcmp(verb, "stop");

    if (!command) {
        return cli_usage(cli, "there is no 'job %s'", verb);
    }
    int r = stop ? check_ready(c, id, err) : 0;

    if (!r && cli->dry_run) {
        return job_dry_run(cli, c, verb, id, err);
    }
    if (!r) {
        r = qmp_client_call(c, command,
                            json_pack("{s:s}", stop ? "device" : "id", id),
                            NULL, err);
    }
    if (r) {
        return cli_error(cli, err);
    }
    /* The copy is none before the job has ended. */
    return stop ? wait_for_job(cli, c, id, READY_TOLD) : EXIT_OK;
}

static int
job_verb(struct cli *cli, struct qmp_client *c, const char *verb,
         const char *id, struct err *err)
{
    if (!strcmp(verb, "list")) {
        return list_jobs(cli, c, NULL, err);
    }
    if (!id) {
        return cli_usage(cli, "'%s' needs a job's id", verb);
    }
    if (!strcmp(verb, "show")) {
        return list_jobs(cli, c, id, err);
    }
    if (!strcmp(verb, "wait")) {
        return wait_for_job(cli, c, id, READY_WAIT);
    }
    return command_job(cli, c, verb, id, err);
}

int
verb_job(struct cli *cli)
{
    struct qmp_client *c;
    auto_err err = ERR_INIT;

    if (cli->argc < 2 || cli->argc > 3) {
        return cli_usage(cli, "what about the jobs?");
    }
    if (qmp_client_open(cli->socket, &c, &err)) {
        return cli_error(cli, &err);
    }
    int code = job_verb(cli, c, cli->argv[1], cli->argv[2], &err);

    qmp_client_close(c);
    return code;
}
