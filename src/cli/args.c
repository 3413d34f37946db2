// SPDX-License-Identifier: BSD-3-Clause
/*
 * Arguments of a verb: a table says what its options are and where they go,
 * and everything else is a positional argument.
 */
#include <ctype.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/cli.h"

enum { OPTIONS_MAX = 16 };

static bool
is_last(const struct cli_option *o)
{
    return !o->value && !o->values && !o->flag;
}

static void
prepare(const struct cli_option *options, char *shorts, struct option *longs)
{
    *shorts++ = '-'; /* positional arguments come as option 1 */
    *shorts++ = ':'; /* no messages of getopt's own */
    for (size_t n = 0; !is_last(&options[n]); n++) {
        bool takes = !options[n].flag;

        if (options[n].letter) {
            *shorts++ = options[n].letter;
            if (takes) {
                *shorts++ = ':';
            }
        }
        if (options[n].name) {
            *longs++ = (struct option){options[n].name,
                                       takes ? required_argument : no_argument,
                                       NULL, 0x100 + (int)n};
        }
    }
    *shorts = 0;
    *longs = (struct option){0};
}

/* The option that getopt found, by letter or by the long name's number. */
static const struct cli_option *
found(const struct cli_option *options, int c)
{
    if (c >= 0x100) {
        return &options[c - 0x100];
    }
    for (; !is_last(options); options++) {
        if (options->letter == c) {
            return options;
        }
    }
    return NULL;
}

/* False where an array cannot take it: JSON's texts are UTF-8. */
static bool
take_value(const struct cli_option *o, const char *value)
{
    if (o->flag) {
        *o->flag = true;
    } else if (o->value) {
        *o->value = value;
    } else {
        return !json_array_append_new(*o->values, json_string(value));
    }
    return true;
}

int
cli_parse_up_to(struct cli *cli, const struct cli_option *options,
                const char **positional, int most, int *ret_n)
{
    char shorts[2 * OPTIONS_MAX + 3];
    struct option longs[OPTIONS_MAX + 1];
    int c, n = 0;

    prepare(options, shorts, longs);
    optind = 0; /* start afresh */
    while ((c = getopt_long(cli->argc, cli->argv, shorts, longs, NULL)) != -1) {
        const struct cli_option *o = found(options, c);

        if (c == 1 && !*optarg) {
            return cli_usage(cli, "a name is empty");
        } else if (c == 1 && n < most) {
            positional[n++] = optarg;
        } else if (c == 1) {
            return cli_usage(cli, "'%s' is one argument too many", optarg);
        } else if (!o) {
            return cli_usage(cli, c == ':' ? "the option '%s' needs a value"
                                           : "there is no option '%s'",
                             cli->argv[optind - 1]);
        } else if (!o->flag && !*optarg && !o->may_be_empty) {
            return cli_usage(cli, "the value of an option is empty");
        } else if (!take_value(o, optarg)) {
            return cli_usage(cli, "'%s' is not valid UTF-8", optarg);
        }
    }
    for (; optind < cli->argc; optind++) { /* behind "--" */
        if (n == most) {
            return cli_usage(cli, "'%s' is one argument too many",
                             cli->argv[optind]);
        }
        positional[n++] = cli->argv[optind];
    }
    *ret_n = n;
    return 0;
}

int
cli_parse(struct cli *cli, const struct cli_option *options,
          const char **positional, int wanted, const char *needs)
{
    int n, r = cli_parse_up_to(cli, options, positional, wanted, &n);

    if (r) {
        return r;
    }
    bool complete = n == wanted;

    for (size_t i = 0; !is_last(&options[i]); i++) {
        complete &= !options[i].needed || *options[i].value;
    }
    return complete ? 0 : cli_usage(cli, "%s needed", needs);
}

int
cli_check_then(struct cli *cli, const char *then)
{
    return then && strcmp(then, "switch") && strcmp(then, "stay")
               ? cli_usage(cli, "'%s' is neither 'switch' nor 'stay'", then)
               : 0;
}

int
cli_check_job_id(struct cli *cli, const char *id)
{
    bool ok = !id || isalpha((unsigned char)*id);

    for (const char *p = id; p && ok && *p; p++) {
        ok = isalnum((unsigned char)*p) || strchr("-._", *p);
    }
    return ok ? 0
              : cli_usage(cli,
                          "'%s' is no job's id: a letter, then letters, "
                          "digits, '-', '.' and '_'",
                          id);
}
