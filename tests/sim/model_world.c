// SPDX-License-Identifier: BSD-3-Clause
/*
 * The model test's world: images, the chain, guests, and all comparing.
 *
 * An image's file is "fN", its node "nN".  A file is never removed while the
 * world lives: the header of another one may name it.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "drivers/drivers.h"
#include "sim/model.h"

enum { THINK_NS = 2000000, RANGE_MAX = 24, HEADER_V2 = 72, HEADER_V3 = 104 };

void
world_fail(struct world *w, const char *fmt, ...)
{
    va_list ap;

    if (w->failures++) {
        return; /* the first one tells all: the rest follows from it */
    }
    va_start(ap, fmt);
    free(w->why);
    w->why = xvasprintf(fmt, ap);
    va_end(ap);
    world_say(w, "FAILED: %s", w->why);
}

void
world_say(struct world *w, const char *fmt, ...)
{
    va_list ap;

    if (w->verbose) {
        va_start(ap, fmt);
        printf("# %9.3f ms: ", w->sim ? loop_now(sim_loop(w->sim)) / 1e6 : 0);
        vprintf(fmt, ap);
        printf("\n");
        va_end(ap);
    }
}

uint64_t
world_random(struct world *w, uint64_t n)
{
    return sim_random(&w->rng) % n;
}

struct node *
world_head(const struct world *w)
{
    return root_node(w->roots[0]);
}

/* Images. */

unsigned
world_image_of(const struct world *w, const struct node *node)
{
    return (unsigned)atoi(node->filename + 1);
}

/* As QEMU's compat=0.10 has it: the extensions and the name move down. */
static void
make_v2(struct sim_disk *disk, const char *file)
{
    size_t len;
    const unsigned char *now = sim_disk_get(disk, file, &len);
    unsigned char *copy = xmalloc(len);

    memcpy(copy, now, len);
    uint32_t header = ld_be32(copy + 100);
    uint64_t backing = ld_be64(copy + 8);

    memmove(copy + HEADER_V2, copy + header, SECTOR - header);
    memset(copy + SECTOR - (header - HEADER_V2), 0, header - HEADER_V2);
    st_be32(copy + 4, 2);
    if (backing) {
        st_be64(copy + 8, backing - (header - HEADER_V2));
    }
    sim_disk_put(disk, file, copy, len);
    free(copy);
}

static void
must_create(struct world *w, const char *driver, json_t *options)
{
    auto_err err = ERR_INIT;

    if (graph_driver(w->graph, driver)->create(w->graph, options, &err)) {
        printf("# seed %llu: creating a %s image: %s\n",
               (unsigned long long)w->plan->seed, driver, err.msg);
        abort();
    }
    json_decref(options);
}

static const char *
random_format(uint64_t *rng, bool may_be_raw)
{
    uint64_t n = sim_random(rng) % 6;

    return n == 0 ? "qed" : n == 1 && may_be_raw ? "raw" : "qcow2";
}

static json_t *
image_options(uint64_t *rng, const char *kind, uint64_t sectors,
              const struct node *backing, const char *file)
{
    static const char *const backing_formats[] = {"raw", "qcow2", "qed"};
    json_t *o = json_pack("{s:I}", "size", (json_int_t)(sectors * SECTOR));
    uint64_t n = sim_random(rng);

    if (!strcmp(kind, "qed")) {
        json_object_set_new(o, "cluster-size", json_integer(4096 << n % 2));
        json_object_set_new(o, "table-size", json_integer(1 << n / 2 % 2));
        json_object_set_new(o, "filename", json_string(file));
    } else {
        json_object_set_new(o, "cluster-size", json_integer(512 << n % 5));
        json_object_set_new(o, "lazy-refcounts", json_boolean(n / 8 % 4 == 0));
        json_object_set_new(
            o, "file",
            json_pack("{s:s, s:s}", "driver", "file", "filename", file));
    }
    if (backing) {
        json_object_set_new(o, "backing-file", json_string(backing->filename));
        for (size_t i = 0; i < ARRAY_LEN(backing_formats); i++) {
            if (!strcmp(backing_formats[i], backing->drv->name) &&
                (i == 0 || strcmp(kind, "qed"))) {
                json_object_set_new(o, "backing-fmt",
                                    json_string(backing_formats[i]));
            }
        }
    }
    return o;
}

unsigned
world_make_image(struct world *w, uint64_t *rng, const char *kind,
                 uint64_t sectors, const struct node *backing)
{
    unsigned i = w->n_images++;
    auto_free char *file = xasprintf("f%u", i);

    if (w->n_images > IMAGES_MAX) {
        abort();
    }
    kind = kind ? kind : random_format(rng, !backing);
    w->images[i] = (struct image){.driver = kind};
    world_say(w, "image f%u: %s, %llu sectors, on %s", i, kind,
              (unsigned long long)sectors, backing ? backing->filename : "-");
    if (strcmp(kind, "qed")) {
        must_create(w, "file",
                    json_pack("{s:s, s:I}", "filename", file, "size",
                              strcmp(kind, "raw")
                                  ? (json_int_t)0
                                  : (json_int_t)(sectors * SECTOR)));
    }
    if (strcmp(kind, "raw")) {
        json_t *o = image_options(rng, kind, sectors, backing, file);
        bool lazy = json_is_true(json_object_get(o, "lazy-refcounts"));

        must_create(w, kind, o);
        if (!strcmp(kind, "qcow2") && backing && !lazy &&
            sim_random(rng) % 3 == 0) {
            make_v2(sim_world_disk(w->sim), file);
            world_say(w, "  version 2");
        }
    }
    return i;
}

static json_t *
open_options(const struct world *w, unsigned i, uint64_t *rng)
{
    static const char *const zeroes[] = {"off", "off", "on", "unmap"};
    uint64_t n = sim_random(rng);

    return json_pack("{s:s, s:s, s:s, s:{s:s, s:s}}", "driver",
                     w->images[i].driver, "discard",
                     n % 4 ? "unmap" : "ignore", "detect-zeroes",
                     n % 4 ? zeroes[n / 4 % 4] : "off", "file", "driver",
                     "file", "discard", "unmap");
}

static json_t *
image_def(const struct world *w, unsigned i, uint64_t *rng)
{
    json_t *o = open_options(w, i, rng);
    auto_free char *name = xasprintf("n%u", i), *file = xasprintf("f%u", i);

    json_object_set_new(o, "node-name", json_string(name));
    json_object_set_new(json_object_get(o, "file"), "filename",
                        json_string(file));
    return o;
}

/* Takes @def. */
static struct node *
must_open(struct world *w, json_t *def, const char *what)
{
    auto_err err = ERR_INIT;
    struct node *node;

    if (node_add(w->graph, def, &node, &err)) {
        world_fail(w, "%s does not open: %s", what, err.msg);
        node = NULL;
    }
    json_decref(def);
    return node;
}

struct node *
world_open_image(struct world *w, uint64_t *rng, unsigned i)
{
    json_t *def = image_def(w, i, rng);

    if (strcmp(w->images[i].driver, "raw")) {
        json_object_set_new(def, "backing", json_null());
    }
    struct node *node = must_open(w, def, "a new image");

    w->images[i].named = node != NULL;
    return node;
}

/* The chain. */

static void
fill_layer(struct world *w, uint64_t *rng, struct node *node, uint64_t *model)
{
    uint64_t sectors = node->size / SECTOR;

    for (unsigned i = 0, n = 1 + sim_random(rng) % 5; i < n; i++) {
        uint64_t at = sim_random(rng) % sectors;
        uint64_t len = 1 + sim_random(rng) % min_u64(sectors - at, 40);
        bool zero = sim_random(rng) % 4 == 0;
        int r = 0;

        if (zero) {
            r = node_zero(node, at * SECTOR, len * SECTOR,
                          sim_random(rng) % 2 ? REQ_MAY_UNMAP : 0, NULL);
        }
        for (uint64_t k = at; k < at + len && !r; k++) {
            unsigned char buf[SECTOR];

            model[k] = zero ? 0 : w->next_tag++;
            sector_fill(buf, model[k]);
            r = zero ? 0 : node_write_buf(node, k * SECTOR, buf, SECTOR);
        }
        if (r) {
            world_fail(w, "filling '%s': %s", node->name, err_text(r));
        }
    }
}

/* Every layer is stated, so that the operator can name it. */
static json_t *
chain_def(const struct world *w, unsigned top, uint64_t *rng)
{
    json_t *def = NULL;

    for (unsigned i = 0; i <= top; i++) {
        json_t *layer = image_def(w, i, rng);

        if (i < top && sim_random(rng) % 2) {
            json_object_set_new(layer, "read-only", json_true());
        }
        if (def) {
            json_object_set_new(layer, "backing", def);
        }
        def = layer;
    }
    return def;
}

void
world_open_chain(struct world *w)
{
    uint64_t rng = w->plan->seed * 0x9e3779b97f4a7c15 + 11;
    uint64_t model[SECTORS_MAX] = {0};
    unsigned layers = 1 + (unsigned)sim_random(&rng) % LAYERS_MAX;
    struct node *node = NULL;
    uint64_t size = 0;

    layers = min_u64(layers, w->plan->layers);
    for (unsigned i = 0; i < layers && !w->failures; i++) {
        struct node backing = {0};
        auto_free char *below = xasprintf("f%u", i ? i - 1 : 0);

        if (!size || sim_random(&rng) % 3 == 0) {
            size = 32 + sim_random(&rng) % 96;
        }
        if (i) {
            backing.filename = below;
            backing.drv = graph_driver(w->graph, w->images[i - 1].driver);
        }
        world_make_image(w, &rng, i ? NULL : random_format(&rng, true), size,
                         i ? &backing : NULL);
        for (uint64_t k = size; k < SECTORS_MAX; k++) {
            model[k] = 0;
        }
        node = must_open(w, chain_def(w, i, &rng), "a layer");
        if (node) {
            fill_layer(w, &rng, node, model);
            auto_free char *name = xstrdup(node->name);

            if (node_flush(node) || node_del(w->graph, name, NULL)) {
                abort();
            }
        }
    }
    w->sectors = size;
    for (uint64_t k = 0; k < SECTORS_MAX; k++) {
        oracle_init(w->oracle, k, model[k]);
    }
    if (!w->failures) {
        node = must_open(w, chain_def(w, layers - 1, &rng), "the disk");
        w->images[layers - 1].named = true;
    }
    w->n_guests = (unsigned)min_u64(1 + sim_random(&rng) % GUESTS_MAX,
                                    w->plan->guests);
    for (unsigned i = 0; i < GUESTS_MAX && !w->failures; i++) {
        if (root_new(node, CLAIM_WRITE, "guest", &w->roots[i], NULL)) {
            abort();
        }
        w->n_roots++;
    }
}

/* Guests. */

static void
guest_write(struct world *w, struct root *root, uint64_t sector, uint64_t n)
{
    unsigned char buf[RANGE_MAX * SECTOR];
    struct iovec iov = {buf, n * SECTOR};
    uint64_t tag = w->next_tag++;

    for (uint64_t i = 0; i < n; i++) {
        sector_fill(buf + i * SECTOR, tag);
    }
    uint64_t id = oracle_begin(w->oracle, sector, n, tag);
    int r = root_write(root, sector * SECTOR, sg_one(&iov),
                       world_random(w, 8) ? 0 : REQ_FUA);

    oracle_end(w->oracle, sector, n, id, r == 0);
    if (r) {
        world_fail(w, "a write failed: %s", err_text(r));
    }
}

/* Half of the zeroes are a write of them, which detect-zeroes may find. */
static void
guest_zero(struct world *w, struct root *root, uint64_t sector, uint64_t n)
{
    unsigned char buf[RANGE_MAX * SECTOR] = {0};
    struct iovec iov = {buf, n * SECTOR};
    uint64_t id = oracle_begin(w->oracle, sector, n, 0);
    int r = world_random(w, 2)
                ? root_write(root, sector * SECTOR, sg_one(&iov), 0)
                : root_zero(root, sector * SECTOR, n * SECTOR,
                            world_random(w, 2) ? REQ_MAY_UNMAP : 0);

    oracle_end(w->oracle, sector, n, id, r == 0);
    if (r) {
        world_fail(w, "a zero request failed: %s", err_text(r));
    }
}

static void
guest_discard(struct world *w, struct root *root, uint64_t sector, uint64_t n)
{
    uint64_t id = oracle_begin(w->oracle, sector, n, 0);
    int r = root_discard(root, sector * SECTOR, n * SECTOR);

    oracle_end(w->oracle, sector, n, id, false);
    if (r) {
        world_fail(w, "a discard failed: %s", err_text(r));
    }
}

static void
guest_flush(struct world *w, struct root *root)
{
    uint64_t begin = oracle_now(w->oracle);
    int r = root_flush(root);

    if (r) {
        world_fail(w, "a flush failed: %s", err_text(r));
    } else {
        oracle_flushed(w->oracle, begin);
    }
}

/* Is what was read allowed since @begin?  What a guest saw stays so. */
static void
compare(struct world *w, const unsigned char *buf, uint64_t sector, uint64_t n,
        uint64_t begin, const char *what)
{
    uint64_t tag;

    for (uint64_t i = 0; i < n; i++) {
        bool one = sector_tag(buf + i * SECTOR, &tag);

        if (!one ||
            !oracle_allows_read(w->oracle, sector + i, tag, begin)) {
            world_fail(w, "%s: sector %llu reads %#llx%s, allowed: %s", what,
                       (unsigned long long)(sector + i),
                       (unsigned long long)tag, one ? "" : " and others",
                       oracle_explain(w->oracle, sector + i));
        }
    }
}

static void
guest_read(struct world *w, struct root *root, uint64_t sector, uint64_t n)
{
    unsigned char buf[RANGE_MAX * SECTOR];
    struct iovec iov = {buf, n * SECTOR};
    uint64_t begin = oracle_read_begin(w->oracle);
    int r = root_read(root, sector * SECTOR, sg_one(&iov), 0);

    if (r) {
        world_fail(w, "a read failed: %s", err_text(r));
    } else {
        compare(w, buf, sector, n, begin, "a guest");
    }
    oracle_read_end(w->oracle, begin);
}

static void
guest_request(struct world *w, struct root *root)
{
    uint64_t at = world_random(w, w->sectors);
    uint64_t n = 1 + world_random(w, min_u64(w->sectors - at, RANGE_MAX));

    switch (world_random(w, 10)) {
    case 0:
    case 1:
    case 2:
        guest_read(w, root, at, n);
        break;
    case 3:
        guest_zero(w, root, at, n);
        break;
    case 4:
        guest_discard(w, root, at, n);
        break;
    case 5:
        guest_flush(w, root);
        break;
    default:
        guest_write(w, root, at, n);
        break;
    }
}

struct guest {
    struct world *w;
    struct root *root;
};

static void
guest_main(void *arg)
{
    struct guest *g = arg;
    struct world *w = g->w;

    while (!w->stop) {
        coro_sleep(world_random(w, THINK_NS));
        while (w->holds) {
            waitq_wait(&w->go);
        }
        if (!w->stop) {
            w->in_flight++;
            guest_request(w, g->root);
            w->in_flight--;
            waitq_wake_all(&w->quiet);
        }
    }
    w->n_running--;
    waitq_wake_all(&w->quiet);
    free(g);
}

void
world_start_guests(struct world *w)
{
    for (unsigned i = 0; i < w->n_guests; i++) {
        struct guest *g = xmalloc(sizeof(*g));

        *g = (struct guest){w, w->roots[i]};
        w->n_running++;
        coro_start(sim_loop(w->sim), guest_main, g);
    }
}

void
world_hold(struct world *w)
{
    w->holds++;
    while (w->in_flight) {
        waitq_wait(&w->quiet);
    }
}

void
world_release(struct world *w)
{
    if (!--w->holds) {
        waitq_wake_all(&w->go);
    }
}

/* Comparing. */

void
world_compare(struct world *w, struct node *node, uint64_t sectors,
              uint64_t begin, const char *what)
{
    unsigned char *buf = xmalloc(SECTORS_MAX * SECTOR);
    int r;

    if (node->size != sectors * SECTOR) {
        world_fail(w, "%s: '%s' has %llu bytes, not %llu", what, node->name,
                   (unsigned long long)node->size,
                   (unsigned long long)sectors * SECTOR);
    } else if ((r = node_read_buf(node, 0, buf, node->size))) {
        world_fail(w, "%s: '%s' cannot be read: %s", what, node->name,
                   err_text(r));
    } else {
        compare(w, buf, 0, sectors, begin, what);
    }
    free(buf);
}

static void
say_line(void *arg, const char *line)
{
    world_say(arg, "  check: %s", line);
}

static void
check_image(struct world *w, struct node *node, bool leaks, const char *what)
{
    struct check_report report = {.say = w->verbose ? say_line : NULL,
                                  .arg = w};
    auto_err err = ERR_INIT;

    if (!node->drv->check) {
        return;
    }
    if (node->drv->check(node, 0, &report, &err)) {
        world_fail(w, "%s: the check of '%s' fails: %s", what, node->filename,
                   err.msg);
    } else if (report.corruptions || (leaks && report.leaks)) {
        world_fail(w, "%s: '%s' has %llu corruptions, %llu leaks", what,
                   node->filename, (unsigned long long)report.corruptions,
                   (unsigned long long)report.leaks);
    }
}

static void
close_image(struct world *w, unsigned i)
{
    auto_free char *name = xasprintf("n%u", i);
    auto_err err = ERR_INIT;

    if (node_del(w->graph, name, &err)) {
        world_fail(w, "'%s' cannot be closed: %s", name, err.msg);
    }
    w->images[i].named = false;
}

void
world_compare_file(struct world *w, unsigned i, uint64_t sectors,
                   uint64_t begin)
{
    uint64_t rng = 1;

    close_image(w, i);
    struct node *node = world_open_image(w, &rng, i);

    if (node) {
        struct root *root;
        auto_err err = ERR_INIT;

        if (root_new(node, CLAIM_READ, "judge", &root, &err)) {
            world_fail(w, "a finished copy is refused: %s", err.msg);
        } else {
            root_free(root);
        }
        world_compare(w, node, sectors, begin, "the copy, opened again");
        check_image(w, node, true, "the copy");
        close_image(w, i);
    }
}

void
world_check_unfinished(struct world *w, unsigned i)
{
    uint64_t rng = 1;

    close_image(w, i);
    struct node *node = world_open_image(w, &rng, i);

    if (node) {
        struct root *root;
        int r = root_new(node, CLAIM_READ, "judge", &root, NULL);

        if (!r) {
            root_free(root);
        }
        if (r != (node->incomplete ? -EUCLEAN : 0)) {
            world_fail(w, "an unfinished copy is opened with: %s",
                       err_text(r));
        }
        check_image(w, node, false, "an unfinished copy");
        unsigned char *buf = xmalloc(node->size);

        r = node_read_buf(node, 0, buf, node->size);
        if (!r && !node->incomplete && !w->images[i].old_data &&
            strcmp(node->drv->name, "raw") &&
            !bytes_are_zero(buf, node->size)) {
            world_fail(w, "an unfinished copy has data and no mark");
        }
        free(buf);
        close_image(w, i);
    }
}

/* Closes what no guest uses any more, from above downwards. */
static void
tidy(struct world *w)
{
    for (unsigned i = w->n_images; i--;) {
        auto_free char *name = xasprintf("n%u", i);
        struct node *node = graph_find(w->graph, name);

        if (w->images[i].named && node &&
            !chain_contains(world_head(w), node) &&
            list_empty(&node->parents)) {
            close_image(w, i);
            i = w->n_images; /* what was below it may go now */
        }
    }
    for (unsigned i = 0; i < w->n_images; i++) {
        auto_free char *name = xasprintf("n%u", i);
        struct node *node = graph_find(w->graph, name);

        if (node && !chain_contains(world_head(w), node)) {
            world_fail(w, "'%s' is still used", name);
        }
    }
}

void
world_settle(struct world *w)
{
    world_hold(w);
    guest_flush(w, w->roots[0]);
    unsigned char *buf = xmalloc(SECTORS_MAX * SECTOR);
    struct iovec iov = {buf, w->sectors * SECTOR};
    uint64_t tag, begin = oracle_now(w->oracle);

    for (unsigned i = 0; i < w->n_roots; i++) {
        if (root_node(w->roots[i]) != world_head(w)) {
            world_fail(w, "guests are on different nodes");
        }
    }
    if (root_size(w->roots[0]) != iov.iov_len) {
        world_fail(w, "the disk has %llu bytes, not %llu",
                   (unsigned long long)root_size(w->roots[0]),
                   (unsigned long long)iov.iov_len);
    } else if (root_read(w->roots[0], 0, sg_one(&iov), 0)) {
        world_fail(w, "the disk cannot be read");
    } else {
        compare(w, buf, 0, w->sectors, begin, "the disk");
        for (uint64_t i = 0; i < w->sectors; i++) {
            if (sector_tag(buf + i * SECTOR, &tag)) {
                oracle_init(w->oracle, i, tag);
            }
        }
    }
    free(buf);
    tidy(w);
    for (struct node *n = world_head(w); n;
         n = n->backing ? n->backing->child : NULL) {
        check_image(w, n, false, "while it runs");
    }
    world_release(w);
}

/* The end. */

/*
 * As an operator opens the head by itself.  QED does not record the format of
 * its backing file, so that is stated where the header names one.
 */
static json_t *
head_def(const struct world *w, struct node *head)
{
    json_t *def = NULL, *at = NULL;

    for (struct node *n = head; n;) {
        json_t *layer =
            json_pack("{s:s, s:{s:s, s:s}}", "driver", n->drv->name, "file",
                      "driver", "file", "filename", n->filename);

        if (at) {
            json_object_set_new(at, "backing", layer);
        } else {
            def = layer;
        }
        at = layer;
        if (!n->header_backing.filename || !n->backing) {
            break;
        }
        if (strcmp(n->drv->name, "qed") || n->header_backing.format) {
            break; /* the rest is in the headers */
        }
        n = n->backing->child;
    }
    json_object_set_new(def, "node-name", json_string("head"));
    return def;
}

/* The headers say what the graph is. */
static void
check_headers(struct world *w)
{
    for (struct node *n = world_head(w); n;
         n = n->backing ? n->backing->child : NULL) {
        const char *below =
            n->backing ? n->backing->child->filename : NULL;
        const char *name = n->header_backing.filename;

        if (strcmp(n->drv->name, "raw") &&
            (!name != !below || (name && strcmp(name, below)))) {
            world_fail(w, "the header of '%s' names '%s', below is '%s'",
                       n->filename, name ? name : "nothing",
                       below ? below : "nothing");
        }
    }
}

struct judge {
    struct world *w;
    struct sim *sim;
    json_t *def;
    const char *what;
    const struct sim_crash *crash; /* NULL: none */
};

/* A kill takes nothing that was acknowledged (rule 10). */
static bool
allows(struct judge *j, uint64_t sector, uint64_t tag)
{
    struct oracle *oracle = j->w->oracle;

    return j->crash && j->crash->kind == SIM_CRASH_PROCESS
               ? oracle_allows_read(oracle, sector, tag, UINT64_MAX)
               : oracle_allows_crash(oracle, sector, tag);
}

static void
judge_sectors(struct judge *j, struct node *node)
{
    struct world *w = j->w;
    unsigned char *buf = xmalloc(SECTORS_MAX * SECTOR);
    uint64_t tag;
    int r = node->size == w->sectors * SECTOR
                ? node_read_buf(node, 0, buf, node->size)
                : -EINVAL;

    if (r) {
        world_fail(w, "%s: the disk of %llu bytes cannot be read: %s", j->what,
                   (unsigned long long)node->size, err_text(r));
    }
    for (uint64_t i = 0; i < w->sectors && !r; i++) {
        if (!sector_tag(buf + i * SECTOR, &tag) ||
            !allows(j, i, tag)) {
            world_fail(w, "%s: sector %llu reads %#llx, allowed: %s", j->what,
                       (unsigned long long)i, (unsigned long long)tag,
                       oracle_explain(w->oracle, i));
        }
    }
    free(buf);
}

static void
judge_main(void *arg)
{
    struct judge *j = arg;
    struct graph_options o = {.drivers = all_drivers, .quiet = true};
    struct graph *graph = graph_new(sim_loop(j->sim), &o);
    auto_err err = ERR_INIT;
    struct node *head;

    if (node_add(graph, j->def, &head, &err)) {
        world_fail(j->w, "%s: the disk does not open: %s", j->what, err.msg);
    } else {
        judge_sectors(j, head);
        for (struct node *n = head; n;
             n = n->backing ? n->backing->child : NULL) {
            /* QED has no list of what a merge that was cut freed. */
            bool no_leaks = !j->crash &&
                            (n->drv != &driver_qed || !j->w->has_released);

            check_image(j->w, n, no_leaks, j->what);
        }
        node_del(graph, "head", NULL);
    }
    graph_free(graph);
}

static void
judge_disk(struct world *w, struct sim_disk *disk, json_t *def,
           const char *what, const struct sim_crash *crash)
{
    struct sim_options o = {
        .seed = 1, .spares = w->spares, .in_order = true};
    struct judge j = {w, sim_new(disk, &o), def, what, crash};

    if (!loop_run_main(sim_loop(j.sim), judge_main, &j)) {
        world_fail(w, "%s: opening the disk hangs", what);
        return; /* its world is lost */
    }
    sim_free(j.sim);
}

/* Version 2 has no bit for the log, so a kill may take what nobody flushed. */
static bool
has_log(const struct world *w, struct node *node)
{
    size_t len;
    const unsigned char *image =
        sim_disk_get(sim_world_disk(w->sim), node->filename, &len);

    return node->drv != &driver_qcow2 || ld_be32(image + 4) > 2;
}

/* Acknowledged, and never flushed. */
static void
last_words(struct world *w)
{
    for (unsigned i = 0; i < 4 && has_log(w, world_head(w)); i++) {
        guest_write(w, w->roots[0],
                    world_random(w, (unsigned)w->sectors - 3), 3);
    }
}

void
world_judge(struct world *w)
{
    struct sim_disk *disk = sim_world_disk(w->sim), *left;
    struct sim_crash kill = {.disk = disk, .kind = SIM_CRASH_PROCESS};
    struct sim_crash power = {.disk = disk,
                              .kind = SIM_CRASH_POWER,
                              .max_states = 2,
                              .seed = w->plan->seed};

    check_headers(w);
    w->head = head_def(w, world_head(w));
    if (w->plan->seed % 3) {
        return; /* crashes take as long as all the rest */
    }
    last_words(w);
    while (!w->failures && (left = sim_crash_next(&kill))) {
        judge_disk(w, left, w->head, "after a kill", &kill);
        sim_disk_free(left);
    }
    while (!w->failures && (left = sim_crash_next(&power))) {
        judge_disk(w, left, w->head, "after a power failure", &power);
        sim_disk_free(left);
    }
}

void
world_judge_closed(struct world *w, struct sim_disk *disk)
{
    judge_disk(w, disk, w->head, "closed", NULL);
}
