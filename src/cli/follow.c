// SPDX-License-Identifier: BSD-3-Clause
/*
 * Follows a job of the daemon by asking for it, five times a second and after
 * every event.  A job that stays after its end (auto-dismiss false, as every
 * verb here starts it) is dismissed once its report was read; of one that
 * dismisses itself the events tell how it ended.
 */
#include "cli/follow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { FOLLOW_MS = 200 };

json_t *
find_job(struct qmp_client *c, const char *id, struct err *err)
{
    json_t *list = NULL, *found = NULL, *job;
    size_t i;

    if (qmp_client_call(c, "query-jobs", NULL, &list, err)) {
        return NULL;
    }
    json_array_foreach(list, i, job)
    {
        if (!strcmp(qmp_text(job, "id"), id)) {
            found = json_incref(job);
        }
    }
    json_decref(list);
    return found;
}

/* What it moves and has moved; stays as it was where nobody tells. */
static void
read_report(struct follow *f)
{
    json_t *list = NULL, *entry;
    size_t i;

    qmp_client_call(f->client, "query-transfers", NULL, &list, NULL);
    json_array_foreach(list, i, entry)
    {
        if (!strcmp(qmp_text(entry, "id"), f->id)) {
            json_decref(f->report);
            f->report = json_incref(entry);
        }
    }
    json_decref(list);
}

/* @error: the daemon's word on why it ended; empty: it is done. */
static void
ended(struct follow *f, const char *error, bool cancelled, json_int_t bytes)
{
    f->end = *error || cancelled ? FOLLOW_FAILED : FOLLOW_DONE;
    f->bytes = bytes;
    if (cancelled || !strcmp(error, err_text(ECANCELED))) {
        err_set(&f->err, -ECANCELED, "job '%s' was cancelled", f->id);
        if (f->cli->own) {
            err_hint(&f->err, "the images read as before; the same command "
                              "continues it");
        }
    } else if (*error) {
        err_set(&f->err, qmp_error_code(error), "job '%s' failed: %s", f->id,
                error);
        qmp_client_plain(f->client, &f->err);
    }
}

static void
concluded(struct follow *f, const json_t *job)
{
    read_report(f);
    qmp_client_call(f->client, "job-dismiss", json_pack("{s:s}", "id", f->id),
                    NULL, NULL);
    ended(f, qmp_text(job, "error"), false, qmp_number(job, "total-progress"));
}

/* The events' word on how a job ended, for one that dismisses itself. */
struct ending {
    json_t *data; /* of the event that ended it, or NULL */
    bool cancelled;
};

static void
take_event(struct ending *e, const char *id, const json_t *event)
{
    const char *name = qmp_text(event, "event");
    json_t *data = json_object_get(event, "data");
    bool cancelled = !strcmp(name, "BLOCK_JOB_CANCELLED");

    if ((cancelled || !strcmp(name, "BLOCK_JOB_COMPLETED")) &&
        !strcmp(qmp_text(data, "device"), id)) {
        json_decref(e->data);
        e->data = json_incref(data);
        e->cancelled = cancelled;
    }
}

/* The job is not in the list: events that came before that list tell why. */
static void
vanished(struct follow *f, struct ending *e)
{
    json_t *event;

    while (!err_is_set(&f->err) &&
           !qmp_client_event(f->client, 0, &event, NULL) && event) {
        take_event(e, f->id, event);
        json_decref(event);
    }
    if (e->data) {
        ended(f, qmp_text(e->data, "error"), e->cancelled,
              qmp_number(e->data, "len"));
        return;
    }
    if (!err_is_set(&f->err)) {
        err_set(&f->err, -ENOENT, "There is no job '%s' (any more)", f->id);
    }
    f->end = FOLLOW_FAILED;
}

/* One line beside the bar, once for each time that it comes to that. */
static void
note(struct follow *f, struct progress *p, bool is_so, bool *said,
     const char *text)
{
    if (is_so && !*said && !f->cli->json) {
        progress_end(p);
        fprintf(stderr, "Job '%s' is %s\n", f->id, text);
    }
    *said = is_so;
}

/* Why, where it wants space, and how it goes on. */
static char *
how_to_resume(const struct follow *f)
{
    auto_free char *need =
        cli_format_size((uint64_t)qmp_number(f->report, "space-needed"));
    auto_free char *have =
        cli_format_size((uint64_t)qmp_number(f->report, "space-free"));

    return json_object_get(f->report, "space-needed")
               ? xasprintf("paused: it needs %s of space, and there were %s; "
                           "'sluice job resume %s' goes on.",
                           need, have, f->id)
               : xasprintf("paused; 'sluice job resume %s' goes on.", f->id);
}

/* Nobody could resume it: our own daemon leaves it in the journal. */
static void
own_is_paused(struct follow *f)
{
    auto_free char *need =
        cli_format_size((uint64_t)qmp_number(f->report, "space-needed"));
    auto_free char *have =
        cli_format_size((uint64_t)qmp_number(f->report, "space-free"));

    f->end = FOLLOW_FAILED;
    err_set(&f->err, -ENOSPC,
            "job '%s' needs %s of space, and there were %s", f->id, need, have);
    err_hint(&f->err, "make room; the same command goes on with it");
}

static void
show_progress(struct follow *f, struct progress *p, const json_t *job)
{
    read_report(f);
    if (f->report) {
        progress_rates(p,
                       (uint64_t)(qmp_number(f->report, "bytes-moved") +
                                  qmp_number(f->report, "bytes-cloned")),
                       (uint64_t)qmp_number(f->report, "bytes-dirtied"),
                       (uint64_t)qmp_number(f->report, "elapsed-ns"));
    }
    progress_update(p, (uint64_t)qmp_number(job, "current-progress"),
                    (uint64_t)qmp_number(job, "total-progress"));
}

/* True where the follower's work is done. */
static bool
is_ready(struct follow *f, const json_t *job)
{
    if (f->at_ready == READY_RETURN) {
        f->end = FOLLOW_READY;
        return true;
    }
    bool stops = f->at_ready == READY_STOP;

    if ((f->at_ready != READY_COMPLETE && !stops) ||
        qmp_number(job, "current-progress") <
            qmp_number(job, "total-progress")) {
        return false; /* a hybrid copy is ready before it has copied */
    }
    auto_err err = ERR_INIT;

    if (!qmp_client_call(f->client, stops ? "block-job-cancel" : "job-complete",
                         json_pack("{s:s}", stops ? "device" : "id", f->id),
                         NULL, &err)) {
        f->at_ready = READY_WAIT;
        return false;
    }
    /* Somebody else may have been faster. */
    json_t *again = find_job(f->client, f->id, NULL);
    bool refused = !strcmp(qmp_text(again, "status"), "ready");

    json_decref(again);
    if (refused) {
        f->end = FOLLOW_FAILED;
        err_propagate(&f->err, &err);
    }
    return refused;
}

/* Looks at it once; true where that was the last time. */
static bool
look(struct follow *f, struct progress *p, struct ending *ending,
     bool *said_paused, bool *said_ready)
{
    json_t *job = find_job(f->client, f->id, &f->err);
    const char *status = qmp_text(job, "status");
    bool last = true;

    if (cli_interrupted()) { /* also where that broke the question off */
        err_clear(&f->err);
    } else if (!job) {
        vanished(f, ending);
    } else if (!strcmp(status, "concluded")) {
        concluded(f, job);
    } else {
        show_progress(f, p, job);

        bool paused = !strcmp(status, "paused");
        bool ready = !strcmp(status, "ready");
        auto_free char *how = how_to_resume(f);
        auto_free char *end =
            f->ready ? xstrdup(f->ready)
                     : xasprintf("ready; 'sluice job complete|stop|cancel %s' "
                                 "ends it.",
                                 f->id);

        if (f->cli->own && paused) {
            own_is_paused(f);
            json_decref(job);
            return true;
        }
        note(f, p, paused, said_paused, how);
        note(f, p, ready && f->at_ready == READY_WAIT, said_ready, end);
        last = ready && is_ready(f, job);
    }
    json_decref(job);
    return last;
}

/* A daemon that is ours alone ends with us, and so does its job. */
static void
cancel_own(struct follow *f)
{
    cli_forget_interrupt();
    qmp_client_call(f->client, "job-cancel", json_pack("{s:s}", "id", f->id),
                    NULL, NULL);
}

/* Ctrl-C breaks off what waits; answers of our own daemon must all be read. */
static void
wait_for_event(struct follow *f, struct ending *ending)
{
    json_t *event = NULL;

    if (f->cli->own) {
        cli_hold_interrupt(false);
    }
    qmp_client_event(f->client, FOLLOW_MS, &event, NULL);
    if (f->cli->own) {
        cli_hold_interrupt(true);
    }
    if (event) {
        take_event(ending, f->id, event);
    }
    json_decref(event);
    if (f->cli->own && cli_interrupted()) {
        cancel_own(f);
    }
}

int
follow_start(struct qmp_client *client, const char *command, json_t *args,
             json_t **ret, struct err *err)
{
    cli_hold_interrupt(true);
    int r = qmp_client_call(client, command, args, ret, err);

    cli_catch_interrupt();
    cli_hold_interrupt(false);
    return r;
}

void
follow_job(struct follow *f)
{
    struct progress p = {.cli = f->cli, .what = f->what};
    struct ending ending = {0};
    bool said_paused = false, said_ready = false;

    cli_catch_interrupt();
    cli_hold_interrupt(f->cli->own);
    f->end = FOLLOW_DETACHED;
    while (!cli_interrupted() &&
           !look(f, &p, &ending, &said_paused, &said_ready)) {
        wait_for_event(f, &ending);
    }
    progress_end(&p);
    cli_hold_interrupt(false);
    json_decref(ending.data);
}

/* What came of it. */

static void
say_going_on(const struct follow *f)
{
    if (f->end == FOLLOW_READY) {
        printf("Job '%s' is %s\n", f->id, f->ready ? f->ready : "ready.");
        return;
    }
    printf("Job '%s' goes on in the daemon.\n"
           "  sluice job wait %s    follows it again\n"
           "  sluice job cancel %s  ends it\n",
           f->id, f->id, f->id);
}

static void
say_done(const struct follow *f)
{
    const json_t *r = f->report;
    auto_free char *size = cli_format_size((uint64_t)f->bytes);
    auto_free char *moved =
        cli_format_size((uint64_t)qmp_number(r, "bytes-moved"));
    auto_free char *shared =
        cli_format_size((uint64_t)qmp_number(r, "bytes-cloned"));

    if (!r) {
        printf("Job '%s' is done (%s).\n", f->id, size);
        return;
    }
    printf("Job '%s' is done (%s): moved %s in %.1f s", f->id, size, moved,
           (double)qmp_number(r, "elapsed-ns") / 1e9);
    if (qmp_number(r, "bytes-cloned")) {
        printf(", shared %s of blocks", shared);
    }
    if (qmp_number(r, "bytes-released")) {
        auto_free char *back =
            cli_format_size((uint64_t)qmp_number(r, "bytes-released"));
        auto_free char *peak =
            cli_format_size((uint64_t)qmp_number(r, "peak-extra"));

        printf(", gave back %s, took at most %s more on the way", back, peak);
    }
    if (f->switches || qmp_number(r, "pause-ns")) {
        printf("; the guest paused for %.3f ms, %lld requests held",
               (double)qmp_number(r, "pause-ns") / 1e6,
               (long long)qmp_number(r, "requests-held"));
    }
    puts(".");
}

static json_t *
result_object(const struct follow *f, json_t *more)
{
    json_t *o = json_pack("{s:s, s:s}", "type", "result", "job", f->id);

    if (f->end == FOLLOW_DETACHED) {
        json_object_set_new(o, "detached", json_true());
    } else if (f->end == FOLLOW_READY) {
        json_object_set_new(o, "ready", json_true());
    } else {
        json_object_set_new(o, "bytes", json_integer(f->bytes));
    }
    json_object_update_missing(o, more);
    if (f->end != FOLLOW_DETACHED && f->report) {
        json_object_set(o, "rate", json_object_get(f->report, "rate-bps"));
        json_object_del(f->report, "id");
        json_object_del(f->report, "type");
        json_object_update_missing(o, f->report);
    }
    return o;
}

int
follow_say(struct follow *f, json_t *more)
{
    int code = EXIT_OK;

    if (f->end == FOLLOW_FAILED) {
        code = cli_error(f->cli, &f->err);
    } else if (f->cli->json) {
        cli_print_json(result_object(f, more));
    } else if (f->end == FOLLOW_DONE) {
        say_done(f);
    } else {
        say_going_on(f);
    }
    json_decref(more);
    json_decref(f->report);
    f->report = NULL;
    return code;
}
