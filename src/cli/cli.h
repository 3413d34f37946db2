// SPDX-License-Identifier: BSD-3-Clause
/*
 * The command: `sluice VERB ...`.
 *
 * A verb that names a disk of a daemon speaks QMP to it (qmp_client.h); a verb
 * that names a file works on it in this process, with the same graph and the
 * same engine; stream, commit and merge in a child with the control layer
 * (connect.h).
 */
#ifndef SLUICE_CLI_H
#define SLUICE_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/err.h"

struct graph;
struct jobs;
struct node;
struct loop;

/* Exit codes: docs/man/sluice.1, "EXIT STATUS". */
enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_NOT_FOUND = 4,
    EXIT_CONFLICT = 6,
    EXIT_NO_SPACE = 7,
    EXIT_CANCELLED = 9,
    EXIT_NO_DAEMON = 10,
    EXIT_PERMISSION = 11,
    EXIT_CORRUPT = 12,
};

struct cli {
    const char *verb;
    int argc;    /* arguments behind the verb; argv[0] is the verb */
    char **argv;
    bool json, dry_run;
    const char *socket; /* --socket */
    pid_t own; /* of a daemon that is ours alone (connect.h); 0: none */

    struct loop *loop; /* for verbs that work in this process */
    struct graph *graph;
    struct jobs *jobs;
};

struct verb {
    const char *name, *usage, *summary;
    /* An exit code.  Verbs with `local` run in a coroutine, with a graph. */
    int (*run)(struct cli *cli);
    bool local;
    int usage_code; /* exit code for wrong usage; 0: EXIT_USAGE */
};

extern const struct verb cli_verbs[]; /* ends with a NULL name */

/* Prints the error (and its hint), as text or JSON; returns its exit code. */
int cli_error(const struct cli *cli, struct err *err);
/* As cli_error(), with the exit code of the verb's own that is returned. */
int cli_error_as(const struct cli *cli, struct err *err, int code);
/* Says how the verb is called; returns the verb's exit code for that. */
int cli_usage(const struct cli *cli, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* One JSON object on a line of its own; takes @object. */
void cli_print_json(json_t *object);

/* An option of a verb, in a table that ends with an empty one. */
struct cli_option {
    char letter;       /* 0: none */
    const char *name;  /* NULL: none */
    const char **value; /* takes a value; else NULL */
    bool *flag;
    bool needed;
    json_t **values; /* may come again: an array that takes all values */
    bool may_be_empty;
};

/*
 * Takes the verb's arguments apart: exactly @wanted positional ones, and what
 * the table says.  0, or an exit code after it said what is wrong; @needs
 * completes "... needed".
 */
int cli_parse(struct cli *cli, const struct cli_option *options,
              const char **positional, int wanted, const char *needs);
/* As cli_parse(), with any number up to @most; needed options are not asked. */
int cli_parse_up_to(struct cli *cli, const struct cli_option *options,
                    const char **positional, int most, int *ret_n);

/* EXIT_USAGE, and says so, where @then (may be NULL) is no way to end. */
int cli_check_then(struct cli *cli, const char *then);

/* EXIT_USAGE, and says so, where @id (may be NULL) cannot be a job's. */
int cli_check_job_id(struct cli *cli, const char *id);

/*
 * A size: bytes, or with a suffix K, M, G, T (1024), KiB ..., kB, MB ... (SI).
 * False where it is none.
 */
bool cli_parse_size(const char *text, uint64_t *ret);
/* "1.5 GiB"; the caller frees it. */
char *cli_format_size(uint64_t bytes);

/* Opens an image file in this process; NULL with the error printed. */
struct node *cli_open(struct cli *cli, const char *path, const char *format,
                      const char *node_name, bool read_only, struct err *err);

/*
 * For verbs that take one image, "PATH -f FORMAT": parses that and opens it
 * for reading.  0, or an exit code after it said what is wrong.
 */
int cli_open_argument(struct cli *cli, struct node **ret, struct err *err);

/* A progress bar on a terminal, a line every 10 s elsewhere, JSON lines. */
struct progress {
    const struct cli *cli;
    const char *what;
    uint64_t start_ns, last_print_ns;
    uint64_t first; /* bytes that were done at the start */
    bool started, drawn;

    /* Of a transfer: see progress_rates(). */
    bool has_rates;
    uint64_t moved, dirtied, at_ns; /* at the last sample */
    double copy_bps, dirty_bps;
};
void progress_update(struct progress *p, uint64_t done, uint64_t total);
/*
 * What a transfer has copied and what was dirtied since it began, @at_ns ago:
 * the bar then shows how fast both go now, not on average.
 */
void progress_rates(struct progress *p, uint64_t moved, uint64_t dirtied,
                    uint64_t at_ns);
/* Ends the bar's line. */
void progress_end(struct progress *p);
uint64_t cli_now_ns(void);

/* From the first on, Ctrl-C only makes the second true. */
void cli_catch_interrupt(void);
bool cli_interrupted(void);
/* As if it had not come. */
void cli_forget_interrupt(void);
/* Puts Ctrl-C off, for steps that are not to be left half done. */
void cli_hold_interrupt(bool hold);

/* image.c */
int verb_create(struct cli *cli);
int verb_clone(struct cli *cli);
int verb_info(struct cli *cli);
int verb_check(struct cli *cli);
/* data.c */
int verb_map(struct cli *cli);
int verb_compare(struct cli *cli);
int verb_convert(struct cli *cli);
/* Each in a file of its name. */
int verb_stream(struct cli *cli);
int verb_copy(struct cli *cli);
int verb_mirror(struct cli *cli); /* copy.c */
int verb_commit(struct cli *cli);
int verb_merge(struct cli *cli);
int verb_status(struct cli *cli);
int verb_snapshot(struct cli *cli);
int verb_close(struct cli *cli);
int verb_job(struct cli *cli);
int verb_events(struct cli *cli);
int verb_serve(struct cli *cli);

/* For verbs whose disk is a path: waits for the job with a bar. */
int cli_follow_local(struct cli *cli, const char *job_id, const char *what);

#endif
