// SPDX-License-Identifier: BSD-3-Clause
/*
 * The block core in a simulated world: claims, edits of the graph under
 * requests, parking, alignment, chains, copy-on-read.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/edit.h"
#include "block/resize.h"
#include "drivers/drivers.h"
#include "run/file.h"
#include "run/sim/sim.h"
#include "tap.h"

/* A protocol that parks, or takes a second, as a test wants it. */
static bool parking;
static uint64_t delay_ns;
static unsigned tries;

static int
slow_open(struct node *node, json_t *options, struct err *err)
{
    node->size = 1 << 20;
    return 0;
}

static int
slow_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    tries++;
    if (parking) {
        return -ERESTART;
    }
    coro_sleep(delay_ns);
    sg_zero(sg);
    return 0;
}

static int
slow_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           struct range_hold *hold)
{
    coro_sleep(delay_ns);
    return 0;
}

static const struct driver slow = {.name = "slow",
                                   .is_protocol = true,
                                   .open = slow_open,
                                   .read = slow_read,
                                   .write = slow_write};

/* `file`, counted. */
static unsigned reads;
static struct driver counted = {.name = "counted"};

static int
counted_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    reads++;
    return driver_file.read(node, off, sg, flags);
}

static const struct driver *const drivers[] = {
    &slow,       &counted,      &driver_file, &driver_raw, &driver_copy_on_read,
    &driver_mem, &driver_qcow2, NULL};

struct world {
    struct graph *graph;
    void (*fn)(struct graph *graph);
    struct loop *loop;
};

static void
world_main(void *arg)
{
    struct world *w = arg;
    struct graph_options o = {.drivers = drivers};

    w->graph = graph_new(w->loop, &o);
    w->fn(w->graph);
    graph_free(w->graph);
}

static void
in_world(void (*fn)(struct graph *graph))
{
    struct sim_disk *disk = sim_disk_new();
    struct sim *sim = sim_new(disk, &(struct sim_options){.seed = 7});
    struct world w = {.fn = fn, .loop = sim_loop(sim)};

    CHECK(loop_run_main(w.loop, world_main, &w));
    sim_free(sim);
    sim_disk_free(disk);
}

static struct node *
add(struct graph *graph, const char *options)
{
    json_t *o = json_loads(options, 0, NULL);
    struct node *node = NULL;
    auto_err err = ERR_INIT;

    if (node_add(graph, o, &node, &err)) {
        printf("# %s: %s\n", options, err.msg);
    }
    CHECK(node != NULL);
    json_decref(o);
    return node;
}

static void
create(struct graph *graph, const char *name, const char *backing)
{
    json_t *file = json_pack("{s:s, s:i}", "filename", name, "size", 0);
    json_t *o = json_pack("{s:{s:s, s:s}, s:i, s:i}", "file", "driver", "file",
                          "filename", name, "size", 1 << 16, "cluster-size",
                          4096);

    if (backing) {
        json_object_set_new(o, "backing-file", json_string(backing));
        json_object_set_new(o, "backing-fmt", json_string("qcow2"));
    }
    CHECK_INT(driver_file.create(graph, file, NULL), 0);
    CHECK_INT(driver_qcow2.create(graph, o, NULL), 0);
    json_decref(file);
    json_decref(o);
}

#define QCOW2(name, file)                                                      \
    "{\"driver\":\"qcow2\",\"node-name\":\"" name                              \
    "\",\"file\":{\"driver\":\"file\",\"filename\":\"" file "\"}}"

/* Claims. */

static void
claims(struct graph *graph)
{
    struct node *node = add(graph, "{\"driver\":\"mem\",\"node-name\":\"m\"}");
    struct root *a, *b = NULL;
    auto_err err = ERR_INIT;

    CHECK_INT(root_new(node, CLAIM_STABLE, "export 'a'", &a, &err), 0);
    CHECK_INT(root_new(node, CLAIM_WRITE, "job 'j'", &b, &err), -EBUSY);
    CHECK(err.msg && strstr(err.msg, "export 'a'"));
    err_clear(&err);
    CHECK_INT(node_del(graph, "m", &err), -EBUSY);
    CHECK_STR(err.msg, "Node m is in use");
    err_clear(&err);
    root_free(a);
    CHECK_INT(root_new(node, CLAIM_WRITE, "job 'j'", &b, &err), 0);
    CHECK_INT(root_new(node, CLAIM_WRITE, "export 'a'", &a, &err), 0);
    root_free(a);
    root_free(b);
    CHECK_INT(node_del(graph, "m", &err), 0);
    CHECK_INT(node_del(graph, "m", &err), -ENOENT);
    err_clear(&err);
}

static void
a_claim_is_refused_with_its_holder(void)
{
    in_world(claims);
}

static void
jobs_hold(struct graph *graph)
{
    struct node *node = add(graph, "{\"driver\":\"mem\",\"node-name\":\"m\"}");
    struct root *job, *other;
    auto_err err = ERR_INIT;

    CHECK_INT(root_new(node, CLAIM_FILL, "job 'j'", &job, &err), 0);
    CHECK_INT(node_check_no_job(node, &err), 0);
    root_pin(job, "stream");
    CHECK_INT(node_check_no_job(node, &err), -EBUSY);
    CHECK_STR(err.msg, "Node 'm' is busy: block device is in use by block "
                       "job: stream (job 'j' uses it)");
    err_clear(&err);
    CHECK_INT(root_new(node, CLAIM_FILL, "job 'k'", &other, &err), -EBUSY);
    CHECK_STR(err.msg, "Node 'm' is busy: block device is in use by block "
                       "job: stream (job 'j' writes to it)");
    err_clear(&err);
    CHECK_INT(node_del(graph, "m", &err), -EBUSY);
    CHECK_STR(err.msg, "Node 'm' is busy: block device is in use by block "
                       "job: stream (job 'j' uses it)");
    err_clear(&err);
    root_set_claim(job, CLAIM_TARGET);
    CHECK_INT(node_del(graph, "m", &err), -EBUSY);
    CHECK_STR(err.msg, "Node m is in use");
    err_clear(&err);
    root_free(job);
    CHECK_INT(node_del(graph, "m", &err), 0);
}

static void
a_refusal_for_a_job_begins_as_qemus(void)
{
    in_world(jobs_hold);
}

/* What a header is to say, and what a path leads to. */

static void
names_of_files(struct graph *graph)
{
    struct loop *loop = graph_loop(graph);
    auto_free char *near = backing_name_for("d/a", "d/b");
    auto_free char *far = backing_name_for("d/a", "e/b");
    uint64_t dev, ino;
    struct file *f;

    CHECK_STR(near, "b");
    CHECK_STR(far, "e/b"); /* nothing is there: as it is */
    CHECK_INT(file_identify(loop, "e/b", &dev, &ino), -ENOENT);
    CHECK_INT(file_open(loop, "e/b", FILE_WRITE | FILE_CREATE, &f), 0);
    CHECK_INT(file_identify(loop, "e/b", &dev, &ino), 0);
    CHECK(dev == f->dev && ino == f->ino);
    file_close(f);
}

static void
a_header_names_a_file_by_its_folder(void)
{
    in_world(names_of_files);
}

/* Two nodes on one file exclude each other. */

static void
two_nodes(struct graph *graph)
{
    json_t *o = json_loads(QCOW2("b", "i"), 0, NULL);
    auto_err err = ERR_INIT;

    create(graph, "i", NULL);
    add(graph, QCOW2("a", "i"));
    CHECK_INT(node_add(graph, o, NULL, &err), -EBUSY);
    CHECK(err.msg && strstr(err.msg, "'i'"));
    json_decref(o);
}

static void
two_nodes_do_not_write_one_file(void)
{
    in_world(two_nodes);
}

static void
two_formats(struct graph *graph)
{
    json_t *o = json_loads("{\"driver\":\"qcow2\",\"node-name\":\"b\","
                           "\"file\":\"f\"}",
                           0, NULL);
    struct root *root;
    auto_err err = ERR_INIT;

    create(graph, "i", NULL);
    struct node *file = add(
        graph, "{\"driver\":\"file\",\"node-name\":\"f\",\"filename\":\"i\"}");
    add(graph, "{\"driver\":\"qcow2\",\"node-name\":\"a\",\"file\":\"f\"}");
    CHECK_INT(node_add(graph, o, NULL, &err), -EBUSY);
    CHECK(err.msg && strstr(err.msg, "'a'"));
    err_clear(&err);
    CHECK_INT(root_new(file, CLAIM_WRITE, "export 'e'", &root, NULL), -EBUSY);
    json_decref(o);
}

static void
a_file_has_one_format_that_writes(void)
{
    in_world(two_formats);
}

/* What is being created is neither opened nor created by others. */

struct creation {
    struct graph *graph;
    const struct driver *drv;
    const char *options;
    bool done;
};

static void
creation_main(void *arg)
{
    struct creation *c = arg;
    json_t *o = json_loads(c->options, 0, NULL);

    CHECK_INT(c->drv->create(c->graph, o, NULL), 0);
    json_decref(o);
    c->done = true;
}

static void
a_format(struct graph *graph)
{
    struct node *node = add(graph, "{\"driver\":\"slow\",\"node-name\":\"s\"}");
    struct creation c = {.graph = graph,
                         .drv = &driver_qcow2,
                         .options = "{\"file\":\"s\",\"size\":65536}"};
    struct root *root;
    auto_err err = ERR_INIT;

    delay_ns = NS_PER_S;
    coro_start(graph_loop(graph), creation_main, &c);
    coro_sleep(NS_PER_S / 2);
    CHECK(!c.done);
    CHECK_INT(root_new(node, CLAIM_STABLE, "export 'e'", &root, &err), -EBUSY);
    CHECK(err.msg && strstr(err.msg, "blockdev-create"));
    err_clear(&err);
    while (!c.done) {
        coro_sleep(NS_PER_S);
    }
    delay_ns = 0;
    CHECK_INT(node_del(graph, "s", NULL), 0);
}

static void
a_file(struct graph *graph)
{
    struct creation c = {.graph = graph,
                         .drv = &driver_file,
                         .options = "{\"filename\":\"f\",\"size\":65536}"};
    struct file *f = NULL;
    unsigned locked = 0;

    CHECK_INT(file_open(graph_loop(graph), "f", FILE_WRITE | FILE_CREATE, &f),
              0);
    coro_start(graph_loop(graph), creation_main, &c);
    while (!c.done) {
        /* As QEMU asks whether anybody writes to it. */
        locked += file_lock(f, 101, 1, FILE_LOCK_TEST) == -EAGAIN;
        coro_sleep(1000);
    }
    CHECK(locked);
    CHECK_INT(file_lock(f, 101, 1, FILE_LOCK_TEST), 0);
    /* Nor is one created that others use. */
    CHECK_INT(file_lock(f, 100, 1, FILE_LOCK_SHARED), 0);
    json_t *o = json_loads(c.options, 0, NULL);

    CHECK_INT(driver_file.create(graph, o, NULL), -EBUSY);
    json_decref(o);
    file_close(f);
}

static void
creating(struct graph *graph)
{
    a_format(graph);
    a_file(graph);
}

static void
what_is_being_created_is_not_for_others(void)
{
    in_world(creating);
}

/* Parking. */

struct reader {
    struct root *root;
    int result;
    bool done;
};

static void
read_main(void *arg)
{
    struct reader *r = arg;
    char buf[512];
    struct iovec iov = {buf, sizeof(buf)};

    r->result = root_read(r->root, 0, sg_one(&iov), 0);
    r->done = true;
}

static void
parked(struct graph *graph)
{
    struct node *node = add(graph, "{\"driver\":\"slow\",\"node-name\":\"s\"}");
    struct reader r = {0}, lost = {0};
    struct root_stats stats;

    parking = true;
    tries = 0;
    CHECK_INT(root_new(node, CLAIM_READ, "x", &r.root, NULL), 0);
    CHECK_INT(root_new(node, CLAIM_READ, "y", &lost.root, NULL), 0);
    coro_start(graph_loop(graph), read_main, &r);
    coro_start(graph_loop(graph), read_main, &lost);
    coro_sleep(NS_PER_S);
    CHECK(!r.done && tries == 2);
    root_get_stats(r.root, &stats);
    CHECK_INT(stats.in_flight, 0); /* so a drain does not wait for it */
    root_free(lost.root);          /* nor does its root's end */
    coro_sleep(NS_PER_MS);
    CHECK(lost.done);
    CHECK_INT(lost.result, -ESHUTDOWN);
    parking = false;
    graph_unpark(graph);
    coro_sleep(NS_PER_S);
    CHECK(r.done);
    CHECK_INT(r.result, 0);
    root_free(r.root);
}

static void
a_parked_request_is_not_in_flight(void)
{
    in_world(parked);
}

/* Edits. */

static void
snapshot(struct graph *graph)
{
    unsigned char buf[512];
    struct iovec iov = {buf, sizeof(buf)};
    struct root *root;
    struct edit_options o = {.deadline_ns = NEVER};
    auto_err err = ERR_INIT;

    create(graph, "base", NULL);
    create(graph, "over", NULL);
    struct node *base = add(graph, QCOW2("b", "base"));
    struct node *over = add(graph, QCOW2("o", "over"));
    struct edit edits[] = {{EDIT_REPLACE, base, over},
                           {EDIT_BACKING, over, base}};

    CHECK_INT(root_new(base, CLAIM_WRITE, "guest", &root, NULL), 0);
    memset(buf, 1, sizeof(buf));
    CHECK_INT(root_write(root, 0, sg_one(&iov), 0), 0);
    CHECK_INT(graph_edit(graph, edits, 2, &o, NULL, &err), 0);
    CHECK(root_node(root) == over);
    CHECK(base->flushed_gen != base->write_gen);
    CHECK_INT(root_flush(root), 0); /* of what is in the base as well */
    CHECK(base->flushed_gen == base->write_gen);
    memset(buf, 2, sizeof(buf));
    CHECK_INT(root_write(root, 512, sg_one(&iov), 0), 0);
    CHECK_INT(node_read_buf(base, 512, buf, 512), 0);
    CHECK_INT(buf[0], 0); /* the base did not see it */
    CHECK_INT(root_read(root, 0, sg_one(&iov), 0), 0);
    CHECK_INT(buf[0], 1); /* and is seen through the overlay */
    /* A circle is refused, and nothing is changed. */
    struct edit circle = {EDIT_BACKING, base, over};

    CHECK_INT(graph_edit(graph, &circle, 1, &o, NULL, &err), -ELOOP);
    CHECK(!base->backing && over->backing->child == base);
    err_clear(&err);
    root_free(root);
}

static void
a_snapshot_moves_the_guest(void)
{
    in_world(snapshot);
}

static void
edit_late(struct graph *graph)
{
    struct node *s = add(graph, "{\"driver\":\"slow\",\"node-name\":\"s\"}");
    struct node *t = add(graph, "{\"driver\":\"slow\",\"node-name\":\"t\"}");
    struct reader r = {0}, later = {0};
    struct edit edit = {EDIT_REPLACE, s, t};
    struct edit_report report;
    struct edit_options o = {0};
    auto_err err = ERR_INIT;

    delay_ns = 4 * NS_PER_S;
    CHECK_INT(root_new(s, CLAIM_READ, "x", &r.root, NULL), 0);
    later.root = r.root;
    coro_start(graph_loop(graph), read_main, &r);
    coro_sleep(NS_PER_MS);
    /* In flight beyond the deadline: nothing changes, the guest goes on. */
    o.deadline_ns = loop_now(graph_loop(graph)) + NS_PER_S;
    CHECK_INT(graph_edit(graph, &edit, 1, &o, &report, &err), -ETIMEDOUT);
    CHECK(root_node(r.root) == s);
    err_clear(&err);
    /* With time enough it waits, and holds what comes meanwhile. */
    o.deadline_ns = NEVER;
    coro_start(graph_loop(graph), read_main, &later);
    CHECK_INT(graph_edit(graph, &edit, 1, &o, &report, &err), 0);
    CHECK(r.done && root_node(r.root) == t);
    CHECK_INT(report.held, 1);
    CHECK(report.pause_ns > NS_PER_S);
    coro_sleep(5 * NS_PER_S);
    CHECK(later.done);
    delay_ns = 0;
    root_free(r.root);
}

static void
an_edit_waits_for_requests_but_not_for_ever(void)
{
    in_world(edit_late);
}

/* A layer that has become the head caches as one. */

enum { TABLES = 20, TABLE_SPAN = 32 << 10 }; /* of clusters of 512 bytes */

static unsigned
reads_of_all_tables(struct node *node)
{
    unsigned before = reads;
    char byte;

    for (uint64_t i = 0; i < TABLES; i++) {
        CHECK_INT(node_read_buf(node, i * TABLE_SPAN, &byte, 1), 0);
        CHECK_INT(byte, 7);
    }
    return reads - before;
}

static void
new_head(struct graph *graph)
{
    json_t *file = json_pack("{s:s, s:i}", "filename", "base", "size", 0);
    json_t *o = json_pack("{s:{s:s, s:s}, s:i, s:i}", "file", "driver", "file",
                          "filename", "base", "size", TABLES * TABLE_SPAN,
                          "cluster-size", 512);
    struct root *root;

    counted = driver_file;
    counted.name = "counted";
    counted.read = counted_read;
    CHECK_INT(driver_file.create(graph, file, NULL), 0);
    CHECK_INT(driver_qcow2.create(graph, o, NULL), 0);
    json_decref(file);
    json_decref(o);
    create(graph, "over", NULL);
    add(graph, "{\"driver\":\"qcow2\",\"node-name\":\"o\",\"file\":{\"driver\":"
               "\"file\",\"filename\":\"over\"},\"backing\":{\"driver\":"
               "\"qcow2\",\"node-name\":\"b\",\"read-only\":false,\"file\":{"
               "\"driver\":\"counted\",\"filename\":\"base\"}}}");
    struct node *base = graph_find(graph, "b");

    CHECK(base->is_layer && !base->read_only);
    CHECK_INT(root_new(base, CLAIM_READ, "x", &root, NULL), 0);
    CHECK_INT(node_del(graph, "o", NULL), 0);
    for (uint64_t i = 0; i < TABLES; i++) {
        CHECK_INT(node_write_buf(base, i * TABLE_SPAN, "\7", 1), 0);
    }
    CHECK_INT(node_flush(base), 0);
    reads_of_all_tables(base);
    CHECK_INT(reads_of_all_tables(base), TABLES); /* of data, no tables */
    root_free(root);
}

static void
a_layer_that_became_the_head_caches_as_one(void)
{
    in_world(new_head);
}

/* Alignment: a file that wants blocks of 512 serves single bytes. */

static void
unaligned(struct graph *graph)
{
    json_t *file = json_pack("{s:s, s:i}", "filename", "f", "size", 8192);
    unsigned char model[8192] = {0}, got[8192], buf[3000];

    CHECK_INT(driver_file.create(graph, file, NULL), 0);
    json_decref(file);
    struct node *node =
        add(graph, "{\"driver\":\"raw\",\"node-name\":\"r\",\"cache\":{\"direct"
                   "\":true},\"file\":{\"driver\":\"file\",\"filename\":\"f\"}}");

    CHECK_INT(node->file->child->limits.min_align, 512);
    srand(3);
    for (int i = 0; i < 200; i++) {
        uint64_t off = (uint64_t)rand() % 8000;
        uint64_t len = 1 + (uint64_t)rand() % min_u64(8192 - off, 2999);

        memset(buf, i + 1, len);
        memset(model + off, i + 1, len);
        CHECK_INT(node_write_buf(node, off, buf, len), 0);
        off = (uint64_t)rand() % 8000;
        len = 1 + (uint64_t)rand() % (8192 - off);
        CHECK_INT(node_read_buf(node, off, got, len), 0);
        CHECK(!memcmp(got, model + off, len));
    }
}

static void
unaligned_requests_are_done_in_blocks(void)
{
    in_world(unaligned);
}

/* A disk that ends within a block stays as long as it is. */

static void
short_last_block(struct graph *graph)
{
    enum { SIZE = 5000 };
    json_t *file = json_pack("{s:s, s:i}", "filename", "f", "size", SIZE);
    unsigned char model[SIZE] = {0}, got[SIZE], buf[SIZE];

    CHECK_INT(driver_file.create(graph, file, NULL), 0);
    json_decref(file);
    struct node *node =
        add(graph, "{\"driver\":\"raw\",\"node-name\":\"r\",\"cache\":{\"direct"
                   "\":true},\"file\":{\"driver\":\"file\",\"filename\":\"f\"}}");

    for (uint64_t i = 1; i <= 100; i++) {
        uint64_t off = SIZE - i * 41 % 1500 - 1, len = SIZE - off;

        len = i % 3 ? len : min_u64(len, 100);
        memset(buf, (int)i, len);
        memset(model + off, (int)i, len);
        CHECK_INT(node_write_buf(node, off, buf, len), 0);
        CHECK_INT(node->file->child->size, SIZE);
        CHECK_INT(node_read_buf(node, 0, got, SIZE), 0);
        CHECK(!memcmp(got, model, SIZE));
    }
}

static void
a_disk_that_ends_within_a_block_does_not_grow(void)
{
    in_world(short_last_block);
}

/* copy-on-read. */

static void
copy_on_read(struct graph *graph)
{
    unsigned char buf[4096];
    struct extent ext;

    create(graph, "base", NULL);
    create(graph, "over", "base");
    struct node *base = add(graph, QCOW2("b", "base"));

    memset(buf, 5, sizeof(buf));
    CHECK_INT(node_write_buf(base, 8192, buf, 4096), 0);
    CHECK_INT(node_del(graph, "b", NULL), 0);
    /* The file of the filter is a format with a chain of its own. */
    struct node *cor =
        add(graph, "{\"driver\":\"copy-on-read\",\"node-name\":\"c\","
                   "\"file\":{\"driver\":\"qcow2\",\"file\":{\"driver\":"
                   "\"file\",\"filename\":\"over\"}}}");
    struct node *over = cor->file->child;

    CHECK_INT(node_status(over, 8192, 4096, false, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_UNALLOCATED);
    CHECK_INT(node_read_buf(cor, 9000, buf, 100), 0);
    CHECK(buf[0] == 5 && buf[99] == 5);
    CHECK_INT(node_status(over, 8192, 4096, false, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_DATA);
    CHECK_INT(node_status(over, 0, 4096, false, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_UNALLOCATED);
}

static void
copy_on_read_brings_up_what_is_read(void)
{
    in_world(copy_on_read);
}

static int
to_nobody(struct tap *tap, uint64_t off, uint64_t len, struct node **ret,
          uint64_t *ret_len)
{
    return 0;
}

/* As while a merge sinks what guests write. */
static void
diverted(struct graph *graph)
{
    struct tap tap = {.order = TAP_FORWARD, .divert = to_nobody};
    struct extent ext;
    struct root *root;
    unsigned char buf[4096];

    create(graph, "base", NULL);
    create(graph, "over", "base");
    struct node *base = add(graph, QCOW2("b", "base"));

    memset(buf, 5, sizeof(buf));
    CHECK_INT(node_write_buf(base, 0, buf, 4096), 0);
    CHECK_INT(node_del(graph, "b", NULL), 0);
    struct node *over = add(graph, QCOW2("o", "over"));
    struct node *cor = add(graph, "{\"driver\":\"copy-on-read\","
                                  "\"node-name\":\"c\",\"file\":\"o\"}");

    CHECK_INT(root_new(over, CLAIM_WRITE, "export 'e'", &root, NULL), 0);
    tap_attach(over, &tap);
    CHECK_INT(root_populate(root, 0, 4096), 0);
    CHECK_INT(node_read_buf(cor, 0, buf, 4096), 0);
    CHECK(buf[0] == 5 && buf[4095] == 5);
    CHECK_INT(node_status(over, 0, 4096, false, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_UNALLOCATED);
    tap_detach(&tap);
    CHECK_INT(root_populate(root, 0, 4096), 0);
    CHECK_INT(node_status(over, 0, 4096, false, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_DATA);
    root_free(root);
}

static void
nothing_is_brought_up_while_writes_go_below(void)
{
    in_world(diverted);
}

/* Writers all over a disk that shrinks to its half and grows again. */
struct writers {
    struct root *root;
    unsigned running, late;
    uint64_t rng;
};

static void
writer_main(void *arg)
{
    struct writers *w = arg;
    unsigned char buf[4096] = {7};
    struct iovec iov = {buf, sizeof(buf)};

    for (int i = 0; i < 500; i++) {
        uint64_t off = sim_random(&w->rng) % 256 * 4096;
        int r = root_write(w->root, off, sg_one(&iov), 0);

        CHECK(!r || r == -EINVAL);
        w->late += r == -EINVAL;
    }
    w->running--;
}

static void
shrinking(struct graph *graph)
{
    struct writers w = {.running = 16};
    json_t *o = json_pack("{s:s, s:i}", "filename", "f", "size", 1 << 20);

    CHECK_INT(driver_file.create(graph, o, NULL), 0);
    json_decref(o);
    struct node *node =
        add(graph, "{\"driver\":\"raw\",\"node-name\":\"r\",\"file\":"
                   "{\"driver\":\"file\",\"filename\":\"f\"}}");

    CHECK_INT(root_new(node, CLAIM_WRITE, "x", &w.root, NULL), 0);
    for (unsigned i = 0; i < 16; i++) {
        coro_start(graph_loop(graph), writer_main, &w);
    }
    for (int i = 0; i < 5; i++) {
        coro_sleep(NS_PER_MS);
        CHECK_INT(node_resize(node, 1 << 19, NEVER, NULL), 0);
        CHECK_INT(node->size, 1 << 19);
        CHECK_INT(node->file->child->size, 1 << 19);
        coro_sleep(NS_PER_MS);
        CHECK_INT(node->file->child->size, 1 << 19);
        CHECK(w.running && root_size(w.root) == 1 << 19);
        CHECK_INT(node_resize(node, 1 << 20, NEVER, NULL), 0);
    }
    while (w.running) {
        coro_sleep(NS_PER_MS);
    }
    CHECK(w.late);
    /* Not where somebody needs that nobody writes. */
    struct root *stable;

    root_free(w.root);
    CHECK_INT(root_new(node, CLAIM_STABLE, "y", &stable, NULL), 0);
    CHECK_INT(node_resize(node, 1 << 19, NEVER, NULL), -EBUSY);
    root_free(stable);
}

static void
a_disk_shrinks_under_its_guests_writes(void)
{
    in_world(shrinking);
}

int
main(void)
{
    tap_run("a claim is refused with its holder",
            a_claim_is_refused_with_its_holder);
    tap_run("a refusal for a job begins as QEMU's",
            a_refusal_for_a_job_begins_as_qemus);
    tap_run("a header names a file by its folder",
            a_header_names_a_file_by_its_folder);
    tap_run("two nodes do not write one file", two_nodes_do_not_write_one_file);
    tap_run("a file has one format that writes",
            a_file_has_one_format_that_writes);
    tap_run("what is being created is not for others",
            what_is_being_created_is_not_for_others);
    tap_run("a parked request is not in flight",
            a_parked_request_is_not_in_flight);
    tap_run("a snapshot moves the guest", a_snapshot_moves_the_guest);
    tap_run("an edit waits for requests, but not for ever",
            an_edit_waits_for_requests_but_not_for_ever);
    tap_run("a layer that became the head caches as one",
            a_layer_that_became_the_head_caches_as_one);
    tap_run("unaligned requests are done in blocks",
            unaligned_requests_are_done_in_blocks);
    tap_run("a disk that ends within a block does not grow",
            a_disk_that_ends_within_a_block_does_not_grow);
    tap_run("copy-on-read brings up what is read",
            copy_on_read_brings_up_what_is_read);
    tap_run("nothing is brought up while writes go below",
            nothing_is_brought_up_while_writes_go_below);
    tap_run("a disk shrinks under its guest's writes",
            a_disk_shrinks_under_its_guests_writes);
    return tap_done();
}
