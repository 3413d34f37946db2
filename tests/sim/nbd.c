// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over a network: a disk whose backing file is an export of our own
 * NBD server, over links that delay, deliver in parts and are cut, while
 * block-stream copies it in and guests read and write.  The client is the real
 * driver with libnbd, the server the real one.
 */
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
serve(struct graph *graph)
{
    struct graph_options o = {.drivers = all_drivers};
    struct address at = {.kind = ADDRESS_UNIX, .path = "s"};
    struct nbd_server_options so = {.address = &at};
    struct nbd_export_options eo = {.name = "e"};
    json_t *options =
        json_loads("{\"driver\":\"qcow2\",\"read-only\":true,\"node-name\":"
                   "\"remote\"," FILE_OF("remote") "}",
                   0, NULL);
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
        (root_new(node, CLAIM_STABLE, "export 'e'", &root, NULL) ||
         nbd_export_add(sv->server, root, &eo, &export, NULL))) {
        abort();
    }
    json_decref(options);
    return sv;
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

/* The link breaks for 3 s. */
static void
cut(struct sweep *s)
{
    sim_cut_links(s->sim, 3 * NS_PER_S);
}

/*
 * The link breaks and stays so for a minute, and the job is cancelled: that
 * must not wait for the link.
 */
static void
cut_and_cancel(struct sweep *s)
{
    struct loop *loop = sim_loop(s->sim);
    struct job *job;
    uint64_t start;

    sim_cut_links(s->sim, 60 * NS_PER_S);
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
    if (loop_now(loop) - start > 5 * NS_PER_S) {
        sweep_fail(s, "a cancel took %llu ms of a cut link",
                   (unsigned long long)((loop_now(loop) - start) / NS_PER_MS));
    }
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
    return cases_done();
}
