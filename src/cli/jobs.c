// SPDX-License-Identifier: BSD-3-Clause
/* Verbs on a daemon's jobs: stream, job, events. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "block/node.h"
#include "cli/cli.h"
#include "cli/qmp_client.h"
#include "drivers/drivers.h"
#include "run/real.h"
#include "transfer/transfer.h"

enum { FOLLOW_MS = 200 };

static volatile sig_atomic_t interrupted;

static void
on_interrupt(int sig)
{
    interrupted = 1;
}

/* Ctrl-C ends our waiting, not the job. */
static void
catch_interrupt(void)
{
    struct sigaction sa = {.sa_handler = on_interrupt};

    sigaction(SIGINT, &sa, NULL);
}

static const char *
member(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

/* One job out of query-jobs; NULL where it is gone. */
static json_t *
find_job(struct qmp_client *c, const char *id, struct err *err)
{
    json_t *list = NULL, *found = NULL, *job;
    size_t i;

    if (qmp_client_call(c, "query-jobs", NULL, &list, err)) {
        return NULL;
    }
    json_array_foreach(list, i, job)
    {
        if (!strcmp(member(job, "id"), id)) {
            found = json_incref(job);
        }
    }
    json_decref(list);
    return found;
}

static int
detach(const struct cli *cli, const char *id)
{
    if (cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:b}", "type", "result", "job",
                                 id, "detached", 1));
    } else {
        printf("Job '%s' goes on in the daemon.\n"
               "  sluice job wait %s    follows it again\n"
               "  sluice job cancel %s  ends it\n",
               id, id, id);
    }
    return EXIT_OK;
}

/* @error: the daemon's word on why it ended; empty: it is done. */
static int
report_end(struct cli *cli, const char *id, const char *error, bool cancelled,
           json_int_t bytes)
{
    auto_err err = ERR_INIT;

    /* The daemon tells only texts; these two are the C library's. */
    if (cancelled || !strcmp(error, err_text(ECANCELED))) {
        err_set(&err, -ECANCELED, "job '%s' was cancelled", id);
        return cli_error(cli, &err);
    }
    if (*error) {
        err_set(&err, strstr(error, err_text(ENOSPC)) ? -ENOSPC : -EIO,
                "job '%s' failed: %s", id, error);
        return cli_error(cli, &err);
    }
    auto_free char *size = cli_format_size((uint64_t)bytes);

    if (cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:I}", "type", "result", "job", id,
                                 "bytes", bytes));
    } else {
        printf("Job '%s' is done (%s).\n", id, size);
    }
    return EXIT_OK;
}

static int
concluded(struct cli *cli, struct qmp_client *c, json_t *job)
{
    const char *id = member(job, "id");

    qmp_client_call(c, "job-dismiss", json_pack("{s:s}", "id", id), NULL, NULL);
    return report_end(
        cli, id, member(job, "error"), false,
        json_integer_value(json_object_get(job, "total-progress")));
}

/* The events' word on how a job ended, for one that dismisses itself. */
struct ending {
    json_t *data; /* of the event that ended it, or NULL */
    bool cancelled;
};

static void
take_event(struct ending *e, const char *id, const json_t *event)
{
    const char *name = member(event, "event");
    json_t *data = json_object_get(event, "data");
    bool cancelled = !strcmp(name, "BLOCK_JOB_CANCELLED");

    if ((cancelled || !strcmp(name, "BLOCK_JOB_COMPLETED")) &&
        !strcmp(member(data, "device"), id)) {
        json_decref(e->data);
        e->data = json_incref(data);
        e->cancelled = cancelled;
    }
}

/* The job is not in the list: events that came before that list tell why. */
static int
vanished(struct cli *cli, struct qmp_client *c, const char *id,
         struct ending *e, struct err *err)
{
    json_t *event;

    while (!err_is_set(err) && !qmp_client_event(c, 0, &event, NULL) && event) {
        take_event(e, id, event);
        json_decref(event);
    }
    if (!e->data) {
        if (!err_is_set(err)) {
            err_set(err, -ENOENT, "There is no job '%s' (any more)", id);
        }
        return cli_error(cli, err);
    }
    return report_end(cli, id, member(e->data, "error"), e->cancelled,
                      json_integer_value(json_object_get(e->data, "len")));
}

static void
say_paused(struct cli *cli, struct progress *p, const json_t *job, bool *said)
{
    if (!*said && !cli->json) {
        progress_end(p);
        fprintf(stderr, "Job '%s' is paused; 'sluice job resume %s' goes on.\n",
                member(job, "id"), member(job, "id"));
    }
    *said = true;
}

static int
follow_to_end(struct cli *cli, struct qmp_client *c, const char *id,
              const char *what, struct ending *ending)
{
    struct progress p = {.cli = cli, .what = what};
    auto_err err = ERR_INIT;
    bool said_paused = false;

    catch_interrupt();
    while (!interrupted) {
        json_t *job = find_job(c, id, &err), *event = NULL;
        const char *status = member(job, "status");

        if (!job) {
            progress_end(&p);
            return vanished(cli, c, id, ending, &err);
        }
        progress_update(
            &p,
            (uint64_t)json_integer_value(
                json_object_get(job, "current-progress")),
            (uint64_t)json_integer_value(
                json_object_get(job, "total-progress")));
        if (!strcmp(status, "concluded")) {
            progress_end(&p);
            int code = concluded(cli, c, job);

            json_decref(job);
            return code;
        }
        if (!strcmp(status, "paused")) {
            say_paused(cli, &p, job, &said_paused);
        } else {
            said_paused = false;
        }
        json_decref(job);
        qmp_client_event(c, FOLLOW_MS, &event, NULL);
        if (event) {
            take_event(ending, id, event);
        }
        json_decref(event);
    }
    progress_end(&p);
    return detach(cli, id);
}

/* Follows a job, whether it stays after its end or dismisses itself. */
static int
follow(struct cli *cli, struct qmp_client *c, const char *id, const char *what)
{
    struct ending ending = {0};
    int code = follow_to_end(cli, c, id, what, &ending);

    json_decref(ending.data);
    return code;
}

/* stream */

struct stream_args {
    const char *disk, *format, *base, *job_id;
    uint64_t speed;
    bool detach;
};

/* An export's id means the node it shows. */
static char *
node_of_disk(struct qmp_client *c, const char *disk)
{
    json_t *list = NULL, *e;
    char *name = NULL;
    size_t i;

    qmp_client_call(c, "query-block-exports", NULL, &list, NULL);
    json_array_foreach(list, i, e)
    {
        if (!name && !strcmp(member(e, "id"), disk)) {
            name = xstrdup(member(e, "node-name"));
        }
    }
    json_decref(list);
    return name ? name : xstrdup(disk);
}

static int
print_plan(const struct cli *cli, const char *disk, const char *base,
           json_t *plan)
{
    json_int_t copy = json_integer_value(json_object_get(plan,
                                                         "bytes-to-copy"));
    auto_free char *size = cli_format_size((uint64_t)copy);

    if (cli->json) {
        json_t *o = json_pack("{s:s, s:s, s:b, s:s, s:I}", "type", "result",
                              "verb", "stream", "dry-run", 1, "disk", disk,
                              "bytes", copy);

        json_object_update_missing(o, plan);
        cli_print_json(o);
    } else if (base) {
        printf("Would copy %s into '%s', then make '%s' its backing file.\n",
               size, disk, base);
    } else {
        printf("Would copy %s into '%s', then drop its backing file.\n", size,
               disk);
    }
    return EXIT_OK;
}

static int
stream_daemon(struct cli *cli, const struct stream_args *a)
{
    struct qmp_client *c;
    auto_err err = ERR_INIT;

    if (qmp_client_open(cli->socket, &c, &err)) {
        return cli_error(cli, &err);
    }
    auto_free char *node = node_of_disk(c, a->disk);
    auto_free char *id =
        a->job_id ? xstrdup(a->job_id) : xasprintf("stream-%s", node);
    json_t *args = json_pack("{s:s}", "device", node);
    json_t *plan = NULL;

    if (a->base) {
        json_object_set_new(args, "base-node", json_string(a->base));
    }
    if (!cli->dry_run) {
        json_object_set_new(args, "job-id", json_string(id));
        json_object_set_new(args, "auto-dismiss", json_false());
    }
    if (a->speed && !cli->dry_run) {
        json_object_set_new(args, "speed", json_integer((json_int_t)a->speed));
    }
    int r = qmp_client_call(c,
                            cli->dry_run ? "query-stream-plan" : "block-stream",
                            args, &plan, &err);
    int code = r              ? cli_error(cli, &err)
               : cli->dry_run ? print_plan(cli, node, a->base, plan)
               : a->detach    ? detach(cli, id)
                              : follow(cli, c, id, "stream");

    json_decref(plan);

    qmp_client_close(c);
    return code;
}

struct local_stream {
    struct cli *cli;
    const struct stream_args *a;
    int code;
};

static int
plan_local(struct cli *cli, const struct transfer_options *o, struct err *err)
{
    struct transfer_plan plan;

    if (stream_plan(o, &plan, err)) {
        return cli_error(cli, err);
    }
    json_t *answer = json_pack("{s:I, s:I}", "bytes-to-copy",
                               (json_int_t)plan.bytes_to_copy, "bytes-to-zero",
                               (json_int_t)plan.bytes_to_zero);
    int code = print_plan(cli, o->device->filename, NULL, answer);

    json_decref(answer);
    return code;
}

static void
local_main(void *arg)
{
    struct local_stream *l = arg;
    struct cli *cli = l->cli;
    struct graph_options o = {.drivers = all_drivers};
    auto_err err = ERR_INIT;

    cli->graph = graph_new(cli->loop, &o);
    cli->jobs = jobs_new(cli->loop, NULL, NULL);
    struct node *top = cli_open(cli, l->a->disk, l->a->format, "disk",
                                cli->dry_run, &err);
    struct transfer_options t = {.job_id = "stream",
                                 .device = top,
                                 .speed = l->a->speed,
                                 .auto_finalize = true};

    if (top && cli->dry_run) {
        l->code = plan_local(cli, &t, &err);
    } else if (!top || stream_start(cli->jobs, &t, &err)) {
        l->code = cli_error(cli, &err);
    } else {
        l->code = cli_follow_local(cli, "stream", "stream");
    }
    jobs_free(cli->jobs);
    graph_free(cli->graph);
}

/* A disk that no daemon holds: the same engine, in this process. */
static int
stream_local(struct cli *cli, const struct stream_args *a)
{
    struct real_loop_options o = {0};
    struct local_stream l = {cli, a, EXIT_FAILED};
    auto_err err = ERR_INIT;

    if (real_loop_new(&o, &cli->loop, &err)) {
        return cli_error(cli, &err);
    }
    loop_run_main(cli->loop, local_main, &l);
    loop_free(cli->loop);
    return l.code;
}

int
verb_stream(struct cli *cli)
{
    struct stream_args a = {0};
    const char *speed = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &a.format, NULL, false},
        {0, "base", &a.base, NULL, false},
        {0, "speed", &speed, NULL, false},
        {0, "job-id", &a.job_id, NULL, false},
        {'d', "detach", NULL, &a.detach, false},
        {0}};
    int r = cli_parse(cli, options, &a.disk, 1, "a disk is");

    if (r) {
        return r;
    }
    if (speed && !cli_parse_size(speed, &a.speed)) {
        return cli_usage(cli, "'%s' is no rate", speed);
    }
    if (!a.format && strchr(a.disk, '/')) {
        return cli_usage(cli, "an image file needs its format, -f");
    }
    if (a.format && a.base) {
        return cli_usage(cli, "--base names a node: it needs a daemon's disk");
    }
    return a.format ? stream_local(cli, &a) : stream_daemon(cli, &a);
}

/* job */

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
        double total =
            (double)json_integer_value(json_object_get(job, "total-progress"));
        double done = (double)json_integer_value(
            json_object_get(job, "current-progress"));

        if (only && strcmp(member(job, "id"), only)) {
            continue;
        }
        found = true;
        if (cli->json) {
            json_t *copy = json_deep_copy(job);

            json_object_set_new(copy, "job-type",
                                json_string(member(job, "type")));
            json_object_set_new(copy, "type", json_string("job"));
            cli_print_json(copy);
        } else {
            printf("%-20s %-8s %-10s %7.1f%% %s\n", member(job, "id"),
                   member(job, "type"), member(job, "status"),
                   total > 0 ? 100 * done / total : 0, member(job, "error"));
        }
    }
    json_decref(list);
    if (!found) {
        err_set(err, -ENOENT, "There is no job '%s'", only);
        return cli_error(cli, err);
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
        if (!err_is_set(err)) {
            err_set(err, -ENOENT, "There is no job '%s'", id);
        }
        return cli_error(cli, err);
    }
    if (cli->json) {
        cli_print_json(json_pack("{s:s, s:s, s:s, s:b, s:s}", "type", "result",
                                 "verb", verb, "job", id, "dry-run", 1,
                                 "status", member(job, "status")));
    } else {
        printf("Would %s job '%s', which is %s.\n", verb, id,
               member(job, "status"));
    }
    json_decref(job);
    return EXIT_OK;
}

static int
job_verb(struct cli *cli, struct qmp_client *c, const char *verb,
         const char *id, struct err *err)
{
    static const char *const verbs[] = {"pause",    "resume",   "cancel",
                                        "complete", "finalize", "dismiss"};

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
        return follow(cli, c, id, "job");
    }
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        if (!strcmp(verbs[i], verb)) {
            auto_free char *command = xasprintf("job-%s", verb);

            if (cli->dry_run) {
                return job_dry_run(cli, c, verb, id, err);
            }
            return qmp_client_call(c, command, json_pack("{s:s}", "id", id),
                                   NULL, err)
                       ? cli_error(cli, err)
                       : EXIT_OK;
        }
    }
    return cli_usage(cli, "there is no 'job %s'", verb);
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

/* events */

int
verb_events(struct cli *cli)
{
    struct qmp_client *c;
    auto_err err = ERR_INIT;

    if (cli->argc != 1) {
        return cli_usage(cli, "it takes no arguments");
    }
    if (qmp_client_open(cli->socket, &c, &err)) {
        return cli_error(cli, &err);
    }
    catch_interrupt();
    while (!interrupted) {
        json_t *event = NULL;

        if (qmp_client_event(c, -1, &event, &err)) {
            break;
        }
        if (cli->json) {
            json_object_set_new(event, "type", json_string("event"));
            cli_print_json(event);
            continue;
        }
        json_t *t = json_object_get(event, "timestamp");
        auto_free char *data =
            json_dumps(json_object_get(event, "data"), JSON_ENCODE_ANY);

        printf("%lld.%06lld %s %s\n",
               (long long)json_integer_value(json_object_get(t, "seconds")),
               (long long)json_integer_value(json_object_get(t,
                                                             "microseconds")),
               member(event, "event"), data ? data : "");
        fflush(stdout);
        json_decref(event);
    }
    qmp_client_close(c);
    if (interrupted) {
        return EXIT_OK;
    }
    return cli_error(cli, &err);
}
