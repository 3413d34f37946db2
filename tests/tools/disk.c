// SPDX-License-Identifier: BSD-3-Clause
/*
 * A disk on the command line, for tests that compare with other programs:
 * opens the chain given as blockdev options (JSON), obeys the lines of its
 * standard input and answers each with "ok" or "error: ...".
 *
 *   write OFF LEN BYTE | zero OFF LEN UNMAP | discard OFF LEN | flush
 *   stream DEPTH     down to the image that many below the top; 0: all
 *   read FILE        the whole disk into FILE
 *   check            "ok CORRUPTIONS LEAKS"
 *   convert FILE     into a new raw file, through the engine
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"
#include "run/real.h"
#include "transfer/transfer.h"

struct disk {
    struct graph *graph;
    struct node *top;
    struct root *root;
    struct jobs *jobs;
    const char *options;
    int status;
};

static int
do_write(struct disk *d, uint64_t off, uint64_t len, int byte)
{
    char *buf = xmalloc(len);
    struct iovec iov = {buf, len};

    memset(buf, byte, len);
    int r = root_write(d->root, off, sg_one(&iov), 0);

    free(buf);
    return r;
}

static int
do_read(struct disk *d, const char *path)
{
    enum { CHUNK = 1 << 20 };
    uint64_t size = root_size(d->root);
    char *buf = xmalloc(CHUNK);
    FILE *f = fopen(path, "w");
    int r = f ? 0 : -1;

    for (uint64_t off = 0; off < size && !r; off += CHUNK) {
        struct iovec iov = {buf, min_u64(CHUNK, size - off)};

        r = root_read(d->root, off, sg_one(&iov), 0);
        fwrite(buf, 1, iov.iov_len, f);
    }
    if (f) {
        fclose(f);
    }
    free(buf);
    return r;
}

static int
wait_job(struct disk *d, int r, struct err *err)
{
    struct job *job = r ? NULL : jobs_find(d->jobs, "j");

    if (!job) {
        return r;
    }
    while (job->status != JOB_CONCLUDED) {
        waitq_wait(&job->changed);
    }
    if (job->err.code) {
        r = err_set(err, job->err.code, "%s", job->err.msg);
    }
    job_dismiss(job, NULL);
    return r;
}

static int
do_stream(struct disk *d, unsigned depth, struct err *err)
{
    struct transfer_options o = {
        .job_id = "j", .device = d->top, .auto_finalize = true};
    struct node *n = d->top;

    while (depth-- && n && n->backing) {
        n = o.base = n->backing->child;
    }
    return wait_job(d, stream_start(d->jobs, &o, err), err);
}

static int
do_convert(struct disk *d, const char *path, struct err *err)
{
    json_t *create = json_pack("{s:s, s:I}", "filename", path, "size",
                               (json_int_t)root_size(d->root));
    json_t *open = json_pack("{s:s, s:{s:s, s:s}}", "driver", "raw", "file",
                             "driver", "file", "filename", path);
    struct transfer_options o = {
        .job_id = "j", .device = d->top, .auto_finalize = true};
    int r = driver_file.create(d->graph, create, err);

    if (!r) {
        r = node_open(d->graph, open, &o.target, err);
    }
    /* convert wants that nobody writes to the source. */
    root_free(d->root);
    if (!r) {
        r = wait_job(d, convert_start(d->jobs, &o, err), err);
        node_unref(o.target);
    }
    if (root_new(d->top, CLAIM_WRITE, "guest", &d->root, NULL)) {
        abort();
    }
    json_decref(create);
    json_decref(open);
    return r;
}

static void
obey(struct disk *d, const char *line)
{
    unsigned long long a = 0, b = 0, c = 0;
    char path[1024] = "";
    auto_err err = ERR_INIT;
    struct check_report report = {0};
    int r = -1;

    if (sscanf(line, "write %llu %llu %llu", &a, &b, &c) == 3) {
        r = do_write(d, a, b, (int)c);
    } else if (sscanf(line, "zero %llu %llu %llu", &a, &b, &c) == 3) {
        r = root_zero(d->root, a, b, c ? REQ_MAY_UNMAP : 0);
    } else if (sscanf(line, "discard %llu %llu", &a, &b) == 2) {
        r = root_discard(d->root, a, b);
    } else if (sscanf(line, "stream %llu", &a) == 1) {
        r = do_stream(d, (unsigned)a, &err);
    } else if (sscanf(line, "read %1023s", path) == 1) {
        r = do_read(d, path);
    } else if (sscanf(line, "convert %1023s", path) == 1) {
        r = do_convert(d, path, &err);
    } else if (!strncmp(line, "flush", 5)) {
        r = root_flush(d->root);
    } else if (!strncmp(line, "check", 5) && d->top->drv->check) {
        r = d->top->drv->check(d->top, 0, &report, &err);
        if (!r) {
            printf("ok %llu %llu\n", (unsigned long long)report.corruptions,
                   (unsigned long long)report.leaks);
            return;
        }
    }
    if (r) {
        printf("error: %s\n", err.msg ? err.msg : err_text(r));
    } else {
        printf("ok\n");
    }
}

static void
disk_main(void *arg)
{
    struct disk *d = arg;
    struct graph_options o = {.drivers = all_drivers};
    json_t *options = json_loads(d->options, 0, NULL);
    auto_err err = ERR_INIT;
    char line[2048];

    d->graph = graph_new(loop_current(), &o);
    d->jobs = jobs_new(loop_current(), NULL, NULL);
    d->status = 1;
    if (node_add(d->graph, options, &d->top, &err) ||
        root_new(d->top, d->top->read_only ? CLAIM_READ : CLAIM_WRITE, "guest",
                 &d->root, &err)) {
        printf("error: %s\n", err.msg);
    } else {
        printf("ok\n");
        fflush(stdout);
        while (fgets(line, sizeof(line), stdin)) {
            obey(d, line);
            fflush(stdout);
        }
        root_free(d->root);
        d->status = 0;
    }
    jobs_free(d->jobs);
    graph_free(d->graph);
    json_decref(options);
}

int
main(int argc, char **argv)
{
    struct disk d = {.options = argc > 1 ? argv[1] : "{}"};
    struct real_loop_options o = {.no_io_uring = getenv("NO_IO_URING")};
    struct loop *loop;

    if (real_loop_new(&o, &loop, NULL)) {
        return 1;
    }
    loop_run_main(loop, disk_main, &d);
    loop_free(loop);
    return d.status;
}
