// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a network: a disk whose backing file is an export of our own
 * NBD server, over links that delay, deliver in parts and are cut, while
 * block-stream copies it in and guests read and write.  Or it is mirrored to
 * such an export, whose server falls silent.  The client is the real driver
 * with libnbd, the server the real one.
 */
#include <string.h>

#include "base/bytes.h"
#include "block/block.h"
#include "drivers/drivers.h"
#include "export/nbd_server.h"
#include "run/stream.h"
#include "sim/cases.h"
#include "transfer/transfer.h"

enum { SIZE = 32 * 1024 };

/* A cut lasts a minute at most, and requests are parked for no longer. */
#define LIMIT (90 * NS_PER_S)

#define FILE_OF(name) "\"file\":{\"driver\":\"file\",\"filename\":\"" name "\"}"
#define TOP(backing)                                                           \
    "{\"driver\":\"qcow2\",\"node-name\":\"top\",\"discard\":\"unmap\","       \
    "\"backing\":" backing "," FILE_OF("top") "}"
#define REMOTE(delay)                                                          \
    "{\"driver\":\"nbd\",\"export\":\"e\",\"reconnect-delay\":" delay ","      \
    "\"open-timeout\":30,"                                                     \
    "\"read-only\":true,\"server\":{\"type\":\"unix\",\"path\":\"s\"}}"

/* The other host: in the same world, with a graph of its own. */
struct service {
    struct graph *graph;
    struct nbd_server *server;
};

static void *
serve_node(struct graph *graph, const char *node_options, bool writable)
{
    struct graph_options o = {.drivers = all_drivers};
    struct address at = {.kind = ADDRESS_UNIX, .path = "s"};
    struct nbd_server_options so = {.address = &at};
    struct nbd_export_options eo = {.name = "e", .writable = writable};
    json_t *options = json_loads(node_options, 0, NULL);
    struct service *sv = xzalloc(sizeof(*sv));
    struct nbd_export *export;
    struct root *root;
    struct node *node;

    sv->graph = graph_new(graph_loop(graph), &o);
    if (nbd_server_start(graph_loop(graph), &so, &sv->server, NULL)) {
        abort();
    }
    /* Where an I/O is to fail it may be here: then there is no export. */
    if (!node_add(sv->graph, options, &node, NULL) &&
        (root_new(node, writable ? CLAIM_WRITE : CLAIM_STABLE, "export 'e'",
                  &root, NULL) ||
         nbd_export_add(sv->server, root, &eo, &export, NULL))) {
        abort();
    }
    json_decref(options);
    return sv;
}

static void *
serve(struct graph *graph)
{
    return serve_node(graph,
                      "{\"driver\":\"qcow2\",\"read-only\":true,"
                      "\"node-name\":\"remote\"," FILE_OF("remote") "}",
                      false);
}

static void *
serve_target(struct graph *graph)
{
    return serve_node(graph,
                      "{\"driver\":\"raw\",\"node-name\":\"remote\","
                      FILE_OF("remote") "}",
                      true);
}

static void
unserve(void *service)
{
    struct service *sv = service;

    nbd_server_stop(sv->server);
    graph_free(sv->graph);
    free(sv);
}

static void
stream(struct sweep *s)
{
    struct jobs *jobs = jobs_new(sim_loop(s->sim), NULL, NULL);
    struct transfer_options o = {.job_id = "j",
                                 .device = s->top,
                                 .piece = 2048,
                                 .max_in_flight = 8192,
                                 .auto_finalize = true};
    auto_err err = ERR_INIT;

    if (stream_start(jobs, &o, &err)) {
        sweep_fail(s, "the stream does not start: %s", err.msg);
        jobs_free(jobs);
        return;
    }
    struct job *job = jobs_find(jobs, "j");

    s->op = jobs;
    while (job->status != JOB_CONCLUDED) {
        waitq_wait(&job->changed);
    }
    s->op = NULL;
    if (job->err.code && !job->cancelled && !s->may_fail) {
        sweep_fail(s, "the stream failed: %s", job->err.msg);
    }
    if (!job->err.code && !job->cancelled && s->top->backing) {
        sweep_fail(s, "the stream ended, but the chain is as it was");
    }
    jobs_free(jobs);
}

/* True where it was cancelled. */
static bool
mirror_once(struct sweep *s, struct node *target)
{
    struct loop *loop = sim_loop(s->sim);
    struct jobs *jobs = jobs_new(loop, NULL, NULL);
    struct transfer_options o = {.job_id = "j",
                                 .device = s->top,
                                 .target = target,
                                 .piece = 2048,
                                 .max_in_flight = 8192,
                                 .granularity = 512,
                                 .copy_mode = COPY_MODE_FORWARD,
                                 .finish = FINISH_STAY,
                                 .wait_for_verb = true,
                                 .auto_finalize = true};
    auto_err err = ERR_INIT;

    if (transfer_start(jobs, PRESET_MIRROR, &o, &err)) {
        sweep_fail(s, "the mirror does not start: %s", err.msg);
        jobs_free(jobs);
        return false;
    }
    struct job *job = jobs_find(jobs, "j");

    s->op = jobs;
    while (job->status != JOB_CONCLUDED) {
        if (job->status == JOB_READY) {
            job_cancel(job, false, NULL); /* what is there is a copy */
        }
        waitq_wait_until(&job->changed, loop_now(loop) + NS_PER_MS);
    }
    s->op = NULL;
    bool cancelled = job->cancelled;

    if (job->err.code && !cancelled) {
        sweep_fail(s, "the mirror failed: %s", job->err.msg);
    }
    jobs_free(jobs);
    return cancelled;
}

static void
must_read_alike(struct sweep *s, struct node *a, struct node *b)
{
    unsigned char x[512], y[512];

    for (uint64_t off = 0; off < SIZE && !s->failures; off += 512) {
        if (node_read_buf(a, off, x, 512) || node_read_buf(b, off, y, 512) ||
            memcmp(x, y, 512)) {
            sweep_fail(s, "the copy differs in sector %u",
                       (unsigned)(off / 512));
        }
    }
}

/*
 * A mirror that was cancelled, and another one onto the same node: what the
 * server was told for the first must not come behind what it is told then.
 */
static void
mirror(struct sweep *s, const char *target_options)
{
    json_t *options = json_loads(target_options, 0, NULL);
    struct node *target;
    auto_err err = ERR_INIT;

    if (node_add(s->graph, options, &target, &err)) {
        sweep_fail(s, "the target does not open: %s", err.msg);
    } else {
        if (mirror_once(s, target)) {
            while (s->running > 1) {
                coro_sleep(NS_PER_MS);
            }
            if (!mirror_once(s, target)) {
                must_read_alike(s, s->top, target);
            }
        }
        node_del(s->graph, "target", NULL);
    }
    json_decref(options);
}

#define TARGET(delay)                                                          \
    "{\"driver\":\"nbd\",\"node-name\":\"target\",\"export\":\"e\","         \
    "\"reconnect-delay\":" delay ",\"open-timeout\":80,"                       \
    "\"server\":{\"type\":\"unix\",\"path\":\"s\"}}"

static void
mirror_that_waits(struct sweep *s)
{
    mirror(s, TARGET("100"));
}

static void
mirror_that_does_not(struct sweep *s)
{
    mirror(s, TARGET("0"));
}

/* The link breaks for 3 s. */
static void
cut(struct sweep *s)
{
    sim_cut_links(s->sim, 3 * NS_PER_S);
}

/* In a while the job is cancelled; that must not take long. */
static void
cancel_soon(struct sweep *s, uint64_t limit_ns)
{
    struct loop *loop = sim_loop(s->sim);
    struct job *job;
    uint64_t start;

    coro_sleep(sim_random(&s->rng) % (2 * NS_PER_S));
    start = loop_now(loop);
    job = s->op ? jobs_find(s->op, "j") : NULL;
    if (!job || job->status == JOB_CONCLUDED) {
        return;
    }
    job_cancel(job, true, NULL);
    while (s->op) {
        coro_sleep(10 * NS_PER_MS);
    }
    if (loop_now(loop) - start > limit_ns) {
        sweep_fail(s, "a cancel took %llu ms",
                   (unsigned long long)((loop_now(loop) - start) / NS_PER_MS));
    }
}

/*
 * The link breaks and stays so for a minute, and the job is cancelled: that
 * must not wait for the link.
 */
static void
cut_and_cancel(struct sweep *s)
{
    sim_cut_links(s->sim, 60 * NS_PER_S);
    cancel_soon(s, 5 * NS_PER_S);
}

/* The same where nobody says that anything is wrong. */
static void
silence_and_cancel(struct sweep *s)
{
    sim_silence_links(s->sim, 60 * NS_PER_S);
    cancel_soon(s, 3 * NS_PER_S);
}

#define COMMON                                                                 \
    .image = "create qcow2 remote cluster-size=512 size=32768\n"               \
             "fill qcow2 remote 5 50 1\n"                                      \
             "create qcow2 top cluster-size=1024 backing-file=remote "         \
             "backing-fmt=qcow2 size=32768\n"                                  \
             "fill qcow2 top 30 3 2001\n",                                     \
    .judge_alone = TOP("null"), .size = SIZE, .serve = serve,                  \
    .unserve = unserve, .operation = stream, .guests = 2, .ops = 10,           \
    .max_states = 8, .max_ns = LIMIT, .cut_ns = 2 * NS_PER_S

#define TO_TARGET                                                              \
    .image = "create file remote size=32768\n"                                 \
             "create qcow2 top cluster-size=1024 size=32768\n"                 \
             "fill qcow2 top 5 50 1\n",                                        \
    .options = TOP("null"), .judge_alone = TOP("null"), .size = SIZE,          \
    .serve = serve_target, .unserve = unserve, .guests = 2, .ops = 10,         \
    .max_states = 8, .max_ns = 2 * LIMIT, .special = true,                     \
    .think_ns = 500 * NS_PER_MS

static const struct sweep_setup setups[] = {
    {.name = "nbd-stream",
     .options = TOP(REMOTE("100")),
     .disturb = cut,
     COMMON},
    {.name = "nbd-cancel",
     .options = TOP(REMOTE("100")),
     .disturb = cut_and_cancel,
     .special = true,
     COMMON},
    {.name = "nbd-impatient", /* requests fail at once, and so does the job */
     .options = TOP(REMOTE("0")),
     .disturb = cut,
     .may_fail = true,
     .special = true,
     COMMON},
    {.name = "nbd-silent-target",
     .operation = mirror_that_does_not,
     .disturb = silence_and_cancel,
     TO_TARGET},
    {.name = "nbd-silent-target-waits",
     .operation = mirror_that_waits,
     .disturb = silence_and_cancel,
     TO_TARGET},
    {.name = "nbd-cut-target",
     .operation = mirror_that_waits,
     .disturb = cut_and_cancel,
     TO_TARGET},
};

static void
a_cut_at_any_message_loses_nothing(void)
{
    cases_one(sweep_cuts, "nbd-stream");
}

static void
a_cut_at_any_message_fails_what_does_not_wait(void)
{
    cases_one(sweep_cuts, "nbd-impatient");
    cases_one(sweep_switches, "nbd-impatient");
}

static void
a_cut_at_any_moment_loses_nothing(void)
{
    cases_one(sweep_switches, "nbd-stream");
}

static void
a_cancel_does_not_wait_for_a_cut_link(void)
{
    cases_one(sweep_switches, "nbd-cancel");
}

static void
a_cancel_does_not_wait_for_a_target(void)
{
    cases_one(sweep_switches, "nbd-silent-target");
    cases_one(sweep_switches, "nbd-silent-target-waits");
    cases_one(sweep_switches, "nbd-cut-target");
}

int
main(int argc, char **argv)
{
    cases_run(argc, argv, setups, ARRAY_LEN(setups), 100);
    tap_run("a cut at any message loses nothing",
            a_cut_at_any_message_loses_nothing);
    tap_run("a cut at any message fails what does not wait",
            a_cut_at_any_message_fails_what_does_not_wait);
    tap_run("a cut at any moment loses nothing",
            a_cut_at_any_moment_loses_nothing);
    tap_run("a cancel does not wait for a cut link",
            a_cancel_does_not_wait_for_a_cut_link);
    tap_run("a cancel does not wait for a target, which can be copied to again",
            a_cancel_does_not_wait_for_a_target);
    return cases_done();
}
