// SPDX-License-Identifier: BSD-3-Clause
/* The entry: finds the verb, prepares what it needs, runs it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "block/node.h"
#include "cli/cli.h"
#include "drivers/drivers.h"
#include "journal/journal.h"
#include "run/process.h"
#include "run/real.h"
#include "transfer/job.h"

const struct verb cli_verbs[] = {
    {"create",
     "create PATH SIZE -f FORMAT [-o NAME=VALUE,...] [-b BACKING -F FORMAT] "
     "[--dry-run]",
     "make an empty image", verb_create, true},
    {"clone",
     "clone TEMPLATE PATH -F FORMAT [-f FORMAT] [--size SIZE] [--dry-run]",
     "make a disk on top of a template", verb_clone, true},
    {"info", "info PATH -f FORMAT", "describe an image and its chain", verb_info,
     true},
    {"check", "check PATH -f FORMAT [--repair leaks|all] [--dry-run]",
     "check an image's consistency", verb_check, true, 1},
    {"status", "status PATH", "show what is under way on an image, or was cut off",
     verb_status, true},
    {"map", "map PATH -f FORMAT", "show which layer holds which range",
     verb_map, true},
    {"compare", "compare PATH PATH -f FORMAT [-F FORMAT]",
     "compare what two images read as", verb_compare, true},
    {"convert",
     "convert PATH PATH -f FORMAT -O FORMAT [-o NAME=VALUE,...] [--dry-run]",
     "copy a disk into a new image", verb_convert, true},
    {"serve",
     "serve PATH -f FORMAT [--nbd unix:PATH|HOST:PORT] [--control PATH] "
     "[--name NAME] [--read-only] [--dry-run]",
     "serve a disk over NBD, in the foreground", verb_serve, false},
    {"stream",
     "stream DISK | PATH -f FORMAT [--base LAYER] [--speed RATE] "
     "[--job-id ID] [--detach] [--dry-run]",
     "fill a disk from its backing files and drop them", verb_stream, false},
    {"copy",
     "copy DISK TARGET [--mode pre-copy|post-copy|hybrid|mirror] "
     "[--then switch|stay] [-f FORMAT] [--reuse] [--speed RATE] [--job-id ID] "
     "[--manual] [--delete-source] [--dependents-in DIR]... [--exclusive] "
     "[--upgrade] [--detach|--wait] [--dry-run]",
     "move a daemon's disk to another image while it is used", verb_copy,
     false},
    {"mirror",
     "mirror DISK TARGET [--then switch|stay] [-f FORMAT] [--reuse] "
     "[--speed RATE] [--job-id ID] [--upgrade] [--detach|--wait] [--dry-run]",
     "keep a copy of a daemon's disk in step with it", verb_mirror, false},
    {"commit",
     "commit DISK | PATH -f FORMAT [--top LAYER] [--base LAYER] "
     "[--then switch|stay] [--speed RATE] [--job-id ID] [--manual] "
     "[--detach|--wait] [--dry-run]",
     "move layers of a disk into one below them", verb_commit, false},
    {"merge",
     "merge DISK | PATH -f FORMAT [--snapshot LAYER] "
     "[--into snapshot|overlay|auto] [--delete] [--keep-name] "
     "[--dependents-in DIR]... [--exclusive] [--upgrade] [--max-extra SIZE] "
     "[--speed RATE] [--job-id ID] [--detach] [--dry-run]",
     "make a disk and its snapshot one image, in place", verb_merge, false},
    {"snapshot", "snapshot DISK FILE | DISK=FILE... [-f FORMAT] [--dry-run]",
     "put new overlays on a daemon's disks, all at one instant", verb_snapshot,
     false},
    {"close", "close NODE [--dry-run]", "close a node of a daemon's that nobody uses",
     verb_close, false},
    {"job",
     "job list|show|wait|pause|resume|complete|stop|cancel|finalize|dismiss "
     "[ID] [--dry-run]",
     "look after the jobs of a daemon", verb_job, false},
    {"events", "events", "print a daemon's events as they come", verb_events,
     false},
    {0},
};

static void
print_help(FILE *f)
{
    fputs("Usage: sluice [--json] [--socket PATH] VERB ...\n\nVerbs:\n", f);
    for (const struct verb *v = cli_verbs; v->name; v++) {
        fprintf(f, "  %-9s %s\n", v->name, v->summary);
    }
    fputs("\n'sluice VERB --help' says how a verb is called.  A verb that "
          "changes something takes\n--dry-run.  A daemon is found by --socket, "
          "else $SLUICE_SOCKET, else its usual place.\n",
          f);
}

struct local_call {
    struct cli *cli;
    const struct verb *verb;
    int code;
};

static void
local_main(void *arg)
{
    struct local_call *call = arg;
    auto_free char *state = journals_default_state_dir();
    struct graph_options o = {.drivers = all_drivers, .state_dir = state};

    call->cli->graph = graph_new(call->cli->loop, &o);
    call->cli->jobs = jobs_new(call->cli->loop, NULL, NULL);
    call->code = call->verb->run(call->cli);
    jobs_free(call->cli->jobs);
    graph_free(call->cli->graph);
}

static int
run_local(struct cli *cli, const struct verb *verb)
{
    struct real_loop_options o = {0};
    struct local_call call = {cli, verb, EXIT_FAILED};
    auto_err err = ERR_INIT;

    if (real_loop_new(&o, &cli->loop, &err)) {
        return cli_error(cli, &err);
    }
    loop_run_main(cli->loop, local_main, &call);
    loop_free(cli->loop);
    return call.code;
}

/* Options before or behind the verb that every verb takes. */
static bool
take_common(struct cli *cli, int *i, int argc, char **argv)
{
    const char *a = argv[*i];

    if (!strcmp(a, "--json")) {
        cli->json = true;
    } else if (!strcmp(a, "--dry-run") || !strcmp(a, "-n")) {
        cli->dry_run = true;
    } else if (!strcmp(a, "--socket") && *i + 1 < argc) {
        cli->socket = argv[++*i];
    } else {
        return false;
    }
    return true;
}

static const struct verb *
find_verb(const char *name)
{
    for (const struct verb *v = cli_verbs; v->name; v++) {
        if (!strcmp(v->name, name)) {
            return v;
        }
    }
    return NULL;
}

static int
no_such_verb(const char *name)
{
    fprintf(stderr, "sluice: no verb '%s'\n", name);
    print_help(stderr);
    return EXIT_USAGE;
}

/* Of a verb, or of that @name; of all of them where there is neither. */
static int
say_help(const struct verb *verb, const char *name)
{
    verb = verb || !name ? verb : find_verb(name);
    if (!verb && name) {
        return no_such_verb(name);
    }
    if (!verb) {
        print_help(stdout);
        return EXIT_OK;
    }
    printf("Usage: sluice %s\n%s\n", verb->usage, verb->summary);
    return EXIT_OK;
}

int
main(int argc, char **argv)
{
    struct cli cli = {0};
    char **rest = xmalloc(((size_t)argc + 1) * sizeof(*rest));
    const struct verb *verb = NULL;
    int code;

    process_init();
    for (int i = 1; i < argc; i++) {
        bool help = !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h");

        if (take_common(&cli, &i, argc, argv)) {
            continue;
        }
        if (help || (!verb && !strcmp(argv[i], "help"))) {
            code = say_help(verb, help ? NULL : argv[i + 1]);
            free(rest);
            return code;
        }
        if (!verb && !strcmp(argv[i], "--version")) {
            printf("sluice %s\n", SLUICE_VERSION);
            free(rest);
            return EXIT_OK;
        }
        if (!verb) {
            verb = find_verb(argv[i]);
            if (!verb) {
                free(rest);
                return no_such_verb(argv[i]);
            }
            cli.verb = verb->name;
        }
        rest[cli.argc++] = argv[i];
    }
    rest[cli.argc] = NULL;
    cli.argv = rest;
    if (!verb) {
        print_help(stderr);
        free(rest);
        return EXIT_USAGE;
    }
    code = verb->local ? run_local(&cli, verb) : verb->run(&cli);
    free(rest);
    return code;
}
