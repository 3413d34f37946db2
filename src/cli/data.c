// SPDX-License-Identifier: BSD-3-Clause
/* Verbs that read whole disks: map, compare, convert. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "block/node.h"
#include "cli/cli.h"
#include "cli/create.h"
#include "run/loop.h"
#include "transfer/transfer.h"

enum { COMPARE_CHUNK = 1 << 20 };

/* map: one line an extent, neighbours of the same kind and layer joined. */

struct map_row {
    uint64_t off, len;
    enum extent_kind kind;
    struct node *layer;
};

static void
print_row(const struct cli *cli, const struct map_row *row, unsigned depth)
{
    static const char *const kinds[] = {"hole", "zero", "data", "compressed"};
    const char *file = row->layer && row->layer->filename
                           ? row->layer->filename
                           : "";

    if (!row->len) {
        return;
    }
    if (cli->json) {
        cli_print_json(json_pack(
            "{s:s, s:I, s:I, s:b, s:b, s:s, s:i, s:s}", "type", "extent",
            "start", (json_int_t)row->off, "length", (json_int_t)row->len,
            "zero",
            row->kind == EXTENT_ZERO || row->kind == EXTENT_UNALLOCATED, "data",
            row->kind == EXTENT_DATA || row->kind == EXTENT_ENCODED, "kind",
            kinds[row->kind], "depth", (int)depth, "filename", file));
    } else {
        printf("%#14llx %#12llx  %-10s %s\n", (unsigned long long)row->off,
               (unsigned long long)row->len, kinds[row->kind], file);
    }
}

static unsigned
depth_of(const struct node *top, const struct node *layer)
{
    unsigned depth = 0;

    while (layer && top != layer) {
        top = top->backing->child;
        depth++;
    }
    return depth;
}

int
verb_map(struct cli *cli)
{
    struct map_row row = {0};
    struct node *node = NULL;
    auto_err err = ERR_INIT;
    int r = cli_open_argument(cli, &node, &err);

    if (r) {
        return r;
    }
    if (!cli->json) {
        printf("%14s %12s  %-10s %s\n", "offset", "length", "kind", "file");
    }
    for (uint64_t off = 0; off < node->size;) {
        struct extent ext;
        struct node *layer = NULL;

        r = chain_status(node, NULL, off, node->size - off, true, &ext, &layer);
        if (r) {
            err_set_errno(&err, r, "Could not read the map of '%s'",
                          node->filename);
            return cli_error(cli, &err);
        }
        if (row.len && row.kind == ext.kind && row.layer == layer) {
            row.len += ext.len;
        } else {
            print_row(cli, &row, depth_of(node, row.layer));
            row = (struct map_row){off, ext.len, ext.kind, layer};
        }
        off += ext.len;
    }
    print_row(cli, &row, depth_of(node, row.layer));
    return EXIT_OK;
}

/* compare; its exit codes are qemu-img's: 0 the same, 1 not, 2 an error. */

enum { COMPARE_SAME = 0, COMPARE_DIFFER = 1, COMPARE_FAILED = 2 };

/* Reads a chunk of a disk; what lies behind its end is zero. */
static int
read_chunk(struct node *node, uint64_t off, unsigned char *buf)
{
    uint64_t here =
        off < node->size ? min_u64(COMPARE_CHUNK, node->size - off) : 0;
    struct iovec iov = {buf, here};

    memset(buf + here, 0, COMPARE_CHUNK - here);
    return here ? node_read(node, off, sg_one(&iov), 0) : 0;
}

static int
report_compare(const struct cli *cli, bool same, uint64_t off)
{
    if (cli->json) {
        json_t *o = json_pack("{s:s, s:b}", "type", "result", "identical",
                              (int)same);

        if (!same) {
            json_object_set_new(o, "first-difference",
                                json_integer((json_int_t)off));
        }
        cli_print_json(o);
    } else if (same) {
        puts("The disks are identical.");
    } else {
        printf("The disks differ at offset %llu.\n", (unsigned long long)off);
    }
    return same ? COMPARE_SAME : COMPARE_DIFFER;
}

static int
compare_nodes(struct cli *cli, struct node *a, struct node *b, struct err *err)
{
    auto_free unsigned char *x = xmalloc(COMPARE_CHUNK);
    auto_free unsigned char *y = xmalloc(COMPARE_CHUNK);
    uint64_t size = max_u64(a->size, b->size);
    struct progress p = {.cli = cli, .what = "compare"};

    for (uint64_t off = 0; off < size; off += COMPARE_CHUNK) {
        int r = read_chunk(a, off, x);

        if (!r) {
            r = read_chunk(b, off, y);
        }
        if (r) {
            progress_end(&p);
            err_set_errno(err, r, "Reading at offset %llu failed",
                          (unsigned long long)off);
            return cli_error_as(cli, err, COMPARE_FAILED);
        }
        for (uint64_t i = 0; memcmp(x, y, COMPARE_CHUNK) && i < COMPARE_CHUNK;
             i++) {
            if (x[i] != y[i]) {
                progress_end(&p);
                return report_compare(cli, false, off + i);
            }
        }
        progress_update(&p, off, size);
    }
    progress_end(&p);
    return report_compare(cli, true, 0);
}

int
verb_compare(struct cli *cli)
{
    const char *paths[2], *f1 = NULL, *f2 = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &f1, NULL, true}, {'F', NULL, &f2, NULL, false}, {0}};
    auto_err err = ERR_INIT;
    int r = cli_parse(cli, options, paths, 2,
                      "two paths and their format, -f (and -F for the second), "
                      "are");

    if (r) {
        return r;
    }
    struct node *a = cli_open(cli, paths[0], f1, "a", true, &err);
    struct node *b =
        a ? cli_open(cli, paths[1], f2 ? f2 : f1, "b", true, &err) : NULL;

    if (!b) {
        return cli_error_as(cli, &err, COMPARE_FAILED);
    }
    return compare_nodes(cli, a, b, &err);
}

/* convert, and what in-process jobs share. */

int
cli_follow_local(struct cli *cli, const char *job_id, const char *what)
{
    struct job *job = jobs_find(cli->jobs, job_id);
    struct progress p = {.cli = cli, .what = what};
    struct transfer_report report;
    auto_err err = ERR_INIT;

    while (job->status != JOB_CONCLUDED) {
        progress_update(&p, job->current, job->total);
        waitq_wait_until(&job->changed,
                         loop_now(cli->loop) + 100 * NS_PER_MS);
    }
    progress_end(&p);
    if (job->err.code) {
        err_set(&err, job->err.code, "%s", job->err.msg);
        return cli_error(cli, &err);
    }
    transfer_report(job, &report);
    auto_free char *moved = cli_format_size(report.bytes_moved);
    auto_free char *rate = cli_format_size(report.rate_bps);

    if (cli->json) {
        cli_print_json(json_pack(
            "{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "type", "result", "verb", what,
            "bytes-moved", (json_int_t)report.bytes_moved, "bytes-zeroed",
            (json_int_t)report.bytes_zeroed, "bytes-cloned",
            (json_int_t)report.bytes_cloned, "elapsed-ns",
            (json_int_t)report.elapsed_ns, "rate",
            (json_int_t)report.rate_bps));
    } else {
        printf("Moved %s in %.1f s (%s/s).\n", moved,
               (double)report.elapsed_ns / 1e9, rate);
        if (report.bytes_cloned) {
            auto_free char *shared = cli_format_size(report.bytes_cloned);

            printf("Shared %s of blocks with the source, copying nothing.\n",
                   shared);
        }
    }
    return EXIT_OK;
}

static int
run_convert(struct cli *cli, const struct new_image *im, struct node *source,
            struct err *err)
{
    struct transfer_options o = {
        .job_id = "convert", .device = source, .auto_finalize = true};

    if (image_create(cli, im, err)) {
        return cli_error(cli, err);
    }
    if (cli->dry_run) {
        return image_created(cli, im, "convert");
    }
    o.target = cli_open(cli, im->path, im->format, "target", false, err);
    int code = !o.target || convert_start(cli->jobs, &o, err)
                   ? cli_error(cli, err)
                   : cli_follow_local(cli, "convert", "convert");

    if (code) {
        image_remove(im->path); /* a part of a disk looks like a disk */
    }
    return code;
}

int
verb_convert(struct cli *cli)
{
    struct new_image im = {.fresh = true};
    const char *paths[2], *format = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &format, NULL, true},
        {'O', NULL, &im.format, NULL, true},
        {'o', NULL, &im.options, NULL, false},
        {0}};
    auto_err err = ERR_INIT;
    int r = cli_parse(cli, options, paths, 2, "two paths, -f and -O are");

    if (r) {
        return r;
    }
    im.path = paths[1];
    struct node *source = cli_open(cli, paths[0], format, "source", true, &err);

    if (!source) {
        return cli_error(cli, &err);
    }
    /* As qemu-img: no format but raw knows bytes. */
    im.size = strcmp(im.format, "raw") ? align_up(source->size, 512)
                                       : source->size;
    return run_convert(cli, &im, source, &err);
}
