// SPDX-License-Identifier: BSD-3-Clause
/*
 * The log in shared memory where the sweeps do not reach: who may read it, what
 * makes it void, and what happens when it is full.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"
#include "drivers/meta.h"
#include "drivers/meta_log.h"
#include "run/sim/sim.h"
#include "tap.h"

enum {
    DISK_SIZE = 1 << 20,
    CHUNK = 512,
    STRIDE = 96 * 1024,
    /* Where a header has its autoclear bits. */
    QCOW2_AUTOCLEAR = 88,
    QED_AUTOCLEAR = 32,
};

struct format {
    const char *name;
    unsigned autoclear_at;
    bool big_endian;
};

static const struct format formats[] = {
    {"qcow2", QCOW2_AUTOCLEAR, true},
    {"qed", QED_AUTOCLEAR, false},
};

struct scene {
    const struct format *format;
    struct sim *sim;
    struct graph *graph;
    struct sim_disk *left; /* by a daemon that was killed */
    const char *options;
    bool may_be_there, must_be_there;
};

static void
run_world(struct sim_disk *disk, struct scene *s, void (*fn)(void *))
{
    struct sim_options o = {.seed = 3, .in_order = true};
    struct graph_options g = {.drivers = all_drivers, .quiet = true};

    s->sim = sim_new(disk, &o);
    s->graph = graph_new(sim_loop(s->sim), &g);
    CHECK(loop_run_main(sim_loop(s->sim), fn, s));
    graph_free(s->graph);
    sim_free(s->sim);
}

static struct node *
must_open(struct scene *s, const char *options)
{
    json_t *o = json_pack(
        "{s:s, s:s, s:{s:s, s:s}}", "driver", s->format->name, "node-name",
        "n", "file", "driver", "file", "filename", "image");
    json_t *more = json_loads(options, 0, NULL);
    auto_err err = ERR_INIT;
    struct node *node = NULL;

    json_object_update(o, more);
    if (node_add(s->graph, o, &node, &err)) {
        printf("# %s\n", err.msg);
        abort();
    }
    json_decref(o);
    json_decref(more);
    return node;
}

static void
create(struct scene *s)
{
    json_t *file = json_pack("{s:s, s:I}", "filename", "image", "size",
                             (json_int_t)0);
    json_t *image =
        json_pack("{s:{s:s, s:s}, s:i}", "file", "driver", "file", "filename",
                  "image", "size", DISK_SIZE);

    CHECK_INT(graph_driver(s->graph, "file")->create(s->graph, file, NULL), 0);
    CHECK_INT(
        graph_driver(s->graph, s->format->name)->create(s->graph, image, NULL),
        0);
    json_decref(file);
    json_decref(image);
}

/* Writes that nobody flushes; then the process dies. */
static void
write_and_die(void *arg)
{
    struct scene *s = arg;
    struct sim_crash kill = {.disk = sim_world_disk(s->sim),
                             .kind = SIM_CRASH_PROCESS};
    unsigned char buf[CHUNK];

    create(s);
    struct node *node = must_open(s, "{}");

    memset(buf, 7, CHUNK);
    for (uint64_t off = 0; off < DISK_SIZE; off += STRIDE) {
        CHECK_INT(node_write_buf(node, off, buf, CHUNK), 0);
    }
    s->left = sim_crash_next(&kill);
    node_del(s->graph, "n", NULL);
}

static void
read_it(void *arg)
{
    struct scene *s = arg;
    struct node *node = must_open(s, s->options);
    struct check_report report = {0};
    unsigned char buf[CHUNK];

    for (uint64_t off = 0; off < DISK_SIZE; off += STRIDE) {
        CHECK_INT(node_read_buf(node, off, buf, CHUNK), 0);
        bool is_there = buf[0] == 7 && buf[CHUNK - 1] == 7;

        CHECK(is_there || bytes_are_zero(buf, CHUNK));
        CHECK(is_there ? s->may_be_there : !s->must_be_there);
    }
    CHECK_INT(node->drv->check(node, 0, &report, NULL), 0);
    CHECK_INT(report.corruptions, 0);
    node_del(s->graph, "n", NULL);
}

static void
open_next(struct scene *s, const char *options, bool is_there)
{
    s->options = options;
    s->may_be_there = s->must_be_there = is_there;
    run_world(s->left, s, read_it);
}

/* In the file, by something that is not us. */
static void
change_autoclear(struct scene *s, uint64_t and, uint64_t xor)
{
    unsigned at = s->format->autoclear_at;
    unsigned char field[8];
    size_t len;

    memcpy(field, sim_disk_get(s->left, "image", &len) + at, sizeof(field));
    uint64_t bits = s->format->big_endian ? ld_be64(field) : ld_le64(field);

    CHECK(bits & 1ULL << 62);
    bits = (bits & and) ^ xor;
    if (s->format->big_endian) {
        st_be64(field, bits);
    } else {
        st_le64(field, bits);
    }
    sim_disk_change(s->left, "image", at, field, sizeof(field));
}

static void
for_each_format(void (*fn)(struct scene *))
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        struct sim_disk *disk = sim_disk_new();
        struct scene s = {.format = &formats[i]};

        run_world(disk, &s, write_and_die);
        fn(&s);
        sim_disk_free(s.left);
        sim_disk_free(disk);
    }
}

static void
by_a_writer(struct scene *s)
{
    open_next(s, "{}", true);
    open_next(s, "{\"read-only\":true}", true);
}

static void
by_a_reader(struct scene *s)
{
    open_next(s, "{\"read-only\":true}", true);
    open_next(s, "{}", true);
}

static void
what_was_acknowledged_is_there(void)
{
    for_each_format(by_a_writer);
    for_each_format(by_a_reader);
}

/* It changes nothing, so it takes nothing away from who comes next. */
static void
by_one_who_shares(struct scene *s)
{
    open_next(s, "{\"read-only\":true,\"force-share\":true}", false);
    open_next(s, "{}", true);
}

static void
who_shares_leaves_it_for_the_next(void)
{
    for_each_format(by_one_who_shares);
}

/* As the specifications want it of a program that does not know the bit. */
static void
after_another_program(struct scene *s)
{
    change_autoclear(s, 0, 0);
    open_next(s, "{}", false);
    open_next(s, "{}", false);
}

static void
another_programs_write_makes_it_void(void)
{
    for_each_format(after_another_program);
}

/* Somebody's log, but not the one that is in memory. */
static void
after_a_backup(struct scene *s)
{
    change_autoclear(s, UINT64_MAX, 1ULL << 40);
    open_next(s, "{\"read-only\":true}", false);
    open_next(s, "{}", false);
}

static void
a_backup_put_back_makes_it_void(void)
{
    for_each_format(after_a_backup);
}

/*
 * A copy that was made in the same session, of an image that was all written,
 * put back into the same file after the daemon has died.
 */
static void
copy_then_write_and_die(void *arg)
{
    struct scene *s = arg;
    struct sim_disk *disk = sim_world_disk(s->sim);
    struct sim_crash kill = {.disk = disk, .kind = SIM_CRASH_PROCESS};
    unsigned char buf[CHUNK];
    size_t len;

    create(s);
    struct node *node = must_open(s, "{}");

    memset(buf, 7, CHUNK);
    CHECK_INT(node_write_buf(node, 0, buf, CHUNK), 0);
    CHECK_INT(node_flush(node), 0);
    coro_sleep(META_RENAME_NS);
    const unsigned char *now = sim_disk_get(disk, "image", &len);
    auto_free unsigned char *copy = xmalloc(len);

    memcpy(copy, now, len);
    for (uint64_t off = STRIDE; off < DISK_SIZE; off += STRIDE) {
        CHECK_INT(node_write_buf(node, off, buf, CHUNK), 0);
    }
    s->left = sim_crash_next(&kill);
    sim_disk_change(s->left, "image", 0, copy, len);
    node_del(s->graph, "n", NULL);
}

static void
read_the_copy(void *arg)
{
    struct scene *s = arg;
    struct node *node = must_open(s, "{}");
    struct check_report report = {0};
    unsigned char buf[CHUNK];

    CHECK_INT(node_read_buf(node, 0, buf, CHUNK), 0);
    CHECK_INT(buf[0], 7);
    CHECK_INT(node_read_buf(node, STRIDE, buf, CHUNK), 0);
    CHECK(bytes_are_zero(buf, CHUNK));
    CHECK_INT(node->drv->check(node, 0, &report, NULL), 0);
    CHECK_INT(report.corruptions, 0);
    node_del(s->graph, "n", NULL);
}

static void
a_copy_of_the_same_session_makes_it_void(void)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        struct sim_disk *disk = sim_disk_new();
        struct scene s = {.format = &formats[i]};

        run_world(disk, &s, copy_then_write_and_die);
        run_world(s.left, &s, read_the_copy);
        sim_disk_free(s.left);
        sim_disk_free(disk);
    }
}

/* The log by itself: four slices, and a fifth. */

enum { SLICE = 4096, SLOTS = 4, FREE = 512 * 1024 };

static void
fill(struct meta_log *log, struct log_place *places, unsigned first,
     unsigned n, unsigned char value)
{
    unsigned char data[SLICE];

    memset(data, value, SLICE);
    for (unsigned i = first; i < first + n; i++) {
        meta_log_change(log, &places[i], FREE + i * SLICE, META_MAPS, data, 0,
                        CHUNK, 1);
    }
}

/* What a killed daemon's log brings into the file at slice @i. */
static bool
brings(struct node *node, uint64_t autoclear, unsigned i, unsigned char value)
{
    unsigned char buf[CHUNK];

    CHECK_INT(meta_log_recover(node, autoclear, NULL), 0);
    CHECK_INT(node_read_buf(node->file->child, FREE + i * SLICE, buf, CHUNK), 0);
    return buf[0] == value && buf[CHUNK - 1] == value;
}

static void
fill_it_up(void *arg)
{
    struct scene *s = arg;
    struct log_place places[SLOTS + 1] = {{0}};

    create(s);
    struct node *node = must_open(s, "{}");

    CHECK_INT(node_truncate(node->file->child, FREE + 8 * SLICE, NULL), 0);
    node_del(s->graph, "n", NULL);
    node = must_open(s, "{\"read-only\":true}");
    struct meta_log *log = meta_log_new(node, SLICE, SLOTS);
    uint64_t id = meta_log_autoclear(log);

    /* As long as there is room, all of it counts. */
    fill(log, places, 0, SLOTS, 1);
    meta_log_free(log, true);
    CHECK(brings(node, id, 0, 1));
    log = meta_log_new(node, SLICE, SLOTS);
    id = meta_log_autoclear(log);
    memset(places, 0, sizeof(places));
    /* Then it is what it was when it became full. */
    fill(log, places, 0, SLOTS + 1, 2);
    fill(log, places, 0, 1, 9);
    CHECK(meta_log_is_partial(log));
    meta_log_free(log, true);
    CHECK(brings(node, id, 0, 2) && brings(node, id, SLOTS - 1, 2) &&
          brings(node, id, SLOTS, 0));
    /* One that was given up is none. */
    log = meta_log_new(node, SLICE, SLOTS);
    id = meta_log_autoclear(log);
    memset(places, 0, sizeof(places));
    fill(log, places, 0, SLOTS, 7);
    meta_log_give_up(log);
    fill(log, places, 0, SLOTS, 8);
    meta_log_free(log, true);
    CHECK(brings(node, id, 0, 2));
    /* Once the image has all, it begins anew. */
    log = meta_log_new(node, SLICE, SLOTS);
    id = meta_log_autoclear(log);
    memset(places, 0, sizeof(places));
    fill(log, places, 0, SLOTS + 1, 3);
    meta_log_all_clean(log);
    fill(log, places, 0, SLOTS, 4);
    meta_log_keep(log, &places[1], 0);
    fill(log, places, SLOTS, 1, 5);
    meta_log_free(log, true);
    CHECK(brings(node, id, 0, 4) && brings(node, id, 1, 2) &&
          brings(node, id, 3, 4) && brings(node, id, SLOTS, 5));
    node_del(s->graph, "n", NULL);
}

static void
a_full_log_keeps_what_it_has(void)
{
    struct sim_disk *disk = sim_disk_new();
    struct scene s = {.format = &formats[0]};

    run_world(disk, &s, fill_it_up);
    sim_disk_free(disk);
}

int
main(void)
{
    tap_run("what was acknowledged is there", what_was_acknowledged_is_there);
    tap_run("who shares leaves it for the next",
            who_shares_leaves_it_for_the_next);
    tap_run("another program's write makes it void",
            another_programs_write_makes_it_void);
    tap_run("a backup put back makes it void", a_backup_put_back_makes_it_void);
    tap_run("a copy of the same session makes it void",
            a_copy_of_the_same_session_makes_it_void);
    tap_run("a full log keeps what it has, until all is in the image",
            a_full_log_keeps_what_it_has);
    return tap_done();
}
