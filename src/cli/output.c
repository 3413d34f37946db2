// SPDX-License-Identifier: BSD-3-Clause
/*
 * What people and programs see: errors, sizes, progress.  Text may change; the
 * JSON's members are only ever added to.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "block/node.h"
#include "cli/cli.h"

#define BAR_INTERVAL_NS 100000000ULL
#define LINE_INTERVAL_NS 10000000000ULL
#define JSON_INTERVAL_NS 1000000000ULL
#define SAMPLE_SECONDS 0.5

static int
exit_code_of(int code)
{
    switch (-code) {
    case ENOENT:
    case ENODEV:
        return EXIT_NOT_FOUND;
    case EBUSY:
    case EEXIST:
        return EXIT_CONFLICT;
    case ENOSPC:
        return EXIT_NO_SPACE;
    case ECANCELED:
        return EXIT_CANCELLED;
    case ECONNREFUSED:
    case ECONNRESET:
        return EXIT_NO_DAEMON;
    case EACCES:
    case EPERM:
    case EROFS:
        return EXIT_PERMISSION;
    case EUCLEAN:
        return EXIT_CORRUPT;
    default:
        return EXIT_FAILED;
    }
}

void
cli_print_json(json_t *object)
{
    json_dumpf(object, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
    putchar('\n');
    fflush(stdout);
    json_decref(object);
}

int
cli_error_as(const struct cli *cli, struct err *err, int code)
{
    if (cli->json) {
        json_t *o = json_pack("{s:s, s:s, s:s*, s:i}", "type", "error", "class",
                              err_class_name(err->class), "message", err->msg,
                              "exit-code", code);

        if (err->hint) {
            json_object_set_new(o, "hint", json_string(err->hint));
        }
        json_dumpf(o, stderr, JSON_COMPACT | JSON_ENSURE_ASCII);
        fputc('\n', stderr);
        json_decref(o);
    } else {
        fprintf(stderr, "sluice %s: %s\n", cli->verb, err->msg);
        if (err->hint) {
            fprintf(stderr, "hint: %s\n", err->hint);
        }
    }
    err_clear(err);
    return code;
}

int
cli_error(const struct cli *cli, struct err *err)
{
    return cli_error_as(cli, err, exit_code_of(err->code));
}

int
cli_usage(const struct cli *cli, const char *fmt, ...)
{
    auto_err err = ERR_INIT;
    char message[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    err_set(&err, -EINVAL, "%s", message);
    for (const struct verb *v = cli_verbs; v->name; v++) {
        if (!strcmp(v->name, cli->verb)) {
            err_hint(&err, "sluice %s", v->usage);
            return cli_error_as(cli, &err,
                                v->usage_code ? v->usage_code : EXIT_USAGE);
        }
    }
    return cli_error_as(cli, &err, EXIT_USAGE);
}

bool
cli_parse_size(const char *text, uint64_t *ret)
{
    static const char letters[] = "KMGTPE";
    char *end;
    double unit = 1;
    double v = strtod(text, &end);
    const char *letter;

    if (end == text || v < 0 || !isfinite(v)) {
        return false;
    }
    letter = *end ? strchr(letters, *end == 'k' ? 'K' : *end) : NULL;
    if (letter) {
        int power = (int)(letter - letters) + 1;
        bool si = !strcmp(end + 1, "B"); /* kB, MB: powers of 1000 */

        if (!si && strcmp(end + 1, "") && strcmp(end + 1, "iB")) {
            return false;
        }
        unit = pow(si ? 1000 : 1024, power);
    } else if (*end && strcmp(end, "B")) {
        return false;
    }
    v *= unit;
    if (v >= 9.2e18 || v != floor(v)) {
        return false;
    }
    *ret = (uint64_t)v;
    return true;
}

char *
cli_format_size(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB",
                                        "EiB"};
    double v = (double)bytes;
    unsigned i = 0;

    while (v >= 1024 && i + 1 < ARRAY_LEN(units)) {
        v /= 1024;
        i++;
    }
    return xasprintf(i && v < 100 ? "%.1f %s" : "%.0f %s", v, units[i]);
}

uint64_t
cli_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* A rate that follows the last seconds. */
static double
smooth(double rate, uint64_t bytes, double seconds)
{
    double now = (double)bytes / seconds;

    return rate > 0 ? 0.7 * rate + 0.3 * now : now;
}

void
progress_rates(struct progress *p, uint64_t moved, uint64_t dirtied,
               uint64_t at_ns)
{
    double seconds = ((double)at_ns - (double)p->at_ns) / 1e9;

    if (p->has_rates && seconds < SAMPLE_SECONDS) {
        return;
    }
    if (p->has_rates && seconds > 0) {
        p->copy_bps = smooth(p->copy_bps, moved - min_u64(p->moved, moved),
                             seconds);
        p->dirty_bps = smooth(p->dirty_bps,
                              dirtied - min_u64(p->dirtied, dirtied), seconds);
    }
    p->has_rates = true;
    p->moved = moved;
    p->dirtied = dirtied;
    p->at_ns = at_ns;
}

static void
print_json(const struct progress *p, uint64_t done, uint64_t total,
           uint64_t rate)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I}", "type", "progress",
                          "what", p->what, "done", (json_int_t)done, "total",
                          (json_int_t)total, "rate", (json_int_t)rate);

    if (p->has_rates) {
        json_object_set_new(o, "copy-rate",
                            json_integer((json_int_t)p->copy_bps));
        json_object_set_new(o, "dirty-rate",
                            json_integer((json_int_t)p->dirty_bps));
    }
    if (rate) {
        json_object_set_new(
            o, "seconds-left",
            json_integer((json_int_t)((total - done) / rate)));
    }
    cli_print_json(o);
}

static void
print_text(struct progress *p, uint64_t done, uint64_t total, uint64_t rate,
           bool bar)
{
    enum { WIDTH = 30 };
    auto_free char *d = cli_format_size(done);
    auto_free char *t = cli_format_size(total);
    auto_free char *r =
        cli_format_size(p->copy_bps > 0 ? (uint64_t)p->copy_bps : rate);
    double part = total ? (double)done / (double)total : 1;
    char cells[WIDTH + 1];

    memset(cells, ' ', WIDTH);
    memset(cells, '=', (size_t)(part * WIDTH));
    cells[WIDTH] = 0;
    if (bar) {
        fprintf(stderr, "\r\033[K%s [%s] %5.1f%%  %s of %s  %s/s", p->what,
                cells, part * 100, d, t, r);
    } else {
        fprintf(stderr, "%s: %.1f%%, %s of %s, %s/s", p->what, part * 100, d, t,
                r);
    }
    if (p->dirty_bps >= 1) {
        auto_free char *dirty = cli_format_size((uint64_t)p->dirty_bps);

        fprintf(stderr, "  the guest dirties %s/s", dirty);
    }
    if (rate && done < total) {
        fprintf(stderr, "  %llu s left",
                (unsigned long long)((total - done) / rate));
    }
    if (!bar) {
        fputc('\n', stderr);
    }
    p->drawn = bar;
    fflush(stderr);
}

void
progress_update(struct progress *p, uint64_t done, uint64_t total)
{
    uint64_t now = cli_now_ns();
    bool tty = isatty(STDERR_FILENO);
    uint64_t interval = p->cli->json ? JSON_INTERVAL_NS
                        : tty        ? BAR_INTERVAL_NS
                                     : LINE_INTERVAL_NS;

    done = min_u64(done, total);
    if (!p->started) {
        p->started = true;
        p->start_ns = p->last_print_ns = now;
        p->first = done;
    }
    if (now - p->last_print_ns < interval) {
        return;
    }
    p->last_print_ns = now;
    double seconds = (double)(now - p->start_ns) / 1e9;
    uint64_t rate = (uint64_t)((double)(done - min_u64(p->first, done)) / seconds);

    if (p->cli->json) {
        print_json(p, done, total, rate);
    } else {
        print_text(p, done, total, rate, tty);
    }
}

void
progress_end(struct progress *p)
{
    if (p->drawn) {
        fputs("\r\033[K", stderr);
        p->drawn = false;
    }
}

struct node *
cli_open(struct cli *cli, const char *path, const char *format,
         const char *node_name, bool read_only, struct err *err)
{
    json_t *options = json_pack(
        "{s:s, s:s, s:b, s:s, s:{s:s, s:s}}", "driver", format, "node-name",
        node_name, "read-only", (int)read_only, "discard", "unmap", "file",
        "driver", "file", "filename", path);
    struct node *node = NULL;

    if (!options) {
        err_set(err, -EINVAL, "The path '%s' is not UTF-8", path);
        return NULL;
    }
    if (node_add(cli->graph, options, &node, err)) {
        node = NULL;
    } else if (node->incomplete && strcmp(cli->verb, "info") &&
               claim_check(node, CLAIM_READ, "sluice", err)) {
        node_del(cli->graph, node_name, NULL);
        node = NULL;
    }
    json_decref(options);
    return node;
}

int
cli_open_argument(struct cli *cli, struct node **ret, struct err *err)
{
    const char *path, *format = NULL;
    const struct cli_option options[] = {{'f', NULL, &format, NULL, true}, {0}};
    int r = cli_parse(cli, options, &path, 1, "a path and its format, -f, are");

    if (r) {
        return r;
    }
    *ret = cli_open(cli, path, format, "image", true, err);
    return *ret ? 0 : cli_error(cli, err);
}
