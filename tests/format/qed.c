// SPDX-License-Identifier: BSD-3-Clause
/*
 * QED images against QEMU's tools: what they wrote we read, what we wrote they
 * read, and their check is content.  A raw file beside each image takes the
 * same requests and says what the image must contain.
 *
 * QEMU's own driver loses a part of some unaligned zero writes, so qemu-io
 * writes data only.
 */
#include <errno.h>
#include <sys/stat.h>

#include "drivers/meta.h"
#include "drivers/qed.h"
#include "format/image.h"

struct shape {
    uint64_t cluster, table, size;
    unsigned ops;
};

/*
 * QEMU takes no tables of one cluster (its overflow check refuses them), and
 * none that reach beyond 64 bits, though both are in the specification; those
 * are judged by our own check only.
 */
static const struct shape shapes[] = {
    {4096, 2, 9 * MIB, 400},        /* more than one L2 table */
    {4096, 16, 8 * MIB - 512, 200}, /* ends within a cluster */
    {64 * KIB, 4, 16 * MIB + 1536, 150},
    {1 * MIB, 2, 24 * MIB, 60},
    {4 * MIB, 2, 30 * MIB, 12},
};
static const struct shape our_shapes[] = {
    {4096, 1, 5 * MIB, 400},
    {64 * MIB, 1, 70 * MIB, 6},
    {64 * MIB, 16, 64 * MIB, 3},
};

static uint64_t rng = 1;

static uint64_t
roll(uint64_t n)
{
    rng = rng * 6364136223846793005 + 1442695040888963407;
    return (rng >> 33) % n;
}

static void
check_equal(struct node *a, struct node *b, uint64_t size)
{
    enum { CHUNK = 1 << 20 };
    auto_free unsigned char *x = xmalloc(CHUNK), *y = xmalloc(CHUNK);

    for (uint64_t off = 0; off < size; off += CHUNK) {
        uint64_t n = min_u64(CHUNK, size - off);

        CHECK_INT(node_read_buf(a, off, x, n), 0);
        CHECK_INT(node_read_buf(b, off, y, n), 0);
        if (memcmp(x, y, n)) {
            uint64_t at = 0;

            while (x[at] == y[at]) {
                at++;
            }
            tap_failed_checks++;
            printf("# differs at %llu: %#x, not %#x\n",
                   (unsigned long long)(off + at), x[at], y[at]);
            return;
        }
    }
}

/* One random request to the image and to its model. */
static void
one_request(struct node *image, struct node *model, uint64_t size,
            unsigned char *buf, uint64_t max)
{
    uint64_t off = roll(size), len = 1 + roll(min_u64(size - off, max));
    unsigned flags = roll(2) ? REQ_MAY_UNMAP : 0;

    if (roll(3)) {
        off = align_down(off, 512);
        len = min_u64(align_up(len, 512), size - off);
    }
    switch (roll(20)) {
    case 0:
    case 1:
    case 2:
        CHECK_INT(node_zero(image, off, len, flags, NULL), 0);
        CHECK_INT(node_zero(model, off, len, 0, NULL), 0);
        break;
    case 3:
        CHECK_INT(node_flush(image), 0);
        break;
    default:
        memset(buf, (int)(1 + roll(255)), len);
        CHECK_INT(node_write_buf(image, off, buf, len), 0);
        CHECK_INT(node_write_buf(model, off, buf, len), 0);
    }
}

static void
write_both(struct image_case *c)
{
    const struct shape *s = c->arg;
    struct node *image = must_open(c, "qed", "t.qed", "");
    struct node *model = must_open(c, "raw", "t.raw", "");
    uint64_t max = min_u64(8 * s->cluster, 4 * MIB);
    auto_free unsigned char *buf = xmalloc(max + 512);
    struct check_report report = {0};

    if (!image || !model) {
        return;
    }
    CHECK_INT(image->size, s->size);
    check_equal(image, model, s->size); /* as QEMU left it */
    for (unsigned i = 0; i < s->ops; i++) {
        one_request(image, model, s->size, buf, max);
    }
    check_equal(image, model, s->size);
    CHECK_INT(image->drv->check(image, 0, &report, NULL), 0);
    CHECK_INT(report.corruptions + report.check_errors, 0);
    node_unref(image);
    node_unref(model);
}

static void
read_both(struct image_case *c)
{
    const struct shape *s = c->arg;
    struct node *image = must_open(c, "qed", "t.qed", ",\"read-only\":true");
    struct node *model = must_open(c, "raw", "t.raw", ",\"read-only\":true");

    if (image && model) {
        check_equal(image, model, s->size);
        node_unref(image);
        node_unref(model);
    }
}

/*
 * Data from QEMU into an image that exists, and into its model.  Where a zero
 * cluster is written in part, QEMU fills the rest from the backing file, so
 * behind our zeroes it writes whole clusters only.
 */
static void
write_by_qemu(const struct shape *s, uint64_t unit)
{
    auto_free char *cmds = xstrdup("");

    for (int i = 0; i < 20; i++) {
        uint64_t off = align_down(roll(s->size), unit);
        uint64_t len = min_u64(unit + align_down(roll(2 * s->cluster), unit),
                               min_u64(s->size - off, 8 * MIB));
        char *more = xasprintf("%s -c 'write -P %d %llu %llu'", cmds,
                               (int)(1 + roll(255)), (unsigned long long)off,
                               (unsigned long long)len);

        free(cmds);
        cmds = more;
    }
    CHECK_SH("qemu-io -f qed %s t.qed", cmds);
    CHECK_SH("qemu-io -f raw %s t.raw", cmds);
}

/* QEMU writes, we write, QEMU checks and writes again, we read. */
static void
go_back_and_forth(const struct shape *s)
{
    struct image_case both = {.fn = write_both, .arg = (void *)(uintptr_t)s};
    struct image_case reader = {.fn = read_both, .arg = (void *)(uintptr_t)s};

    write_by_qemu(s, 512);
    in_loop(both);
    CHECK_SH("qemu-img check -f qed t.qed");
    CHECK_SH("qemu-img compare -f qed -F raw t.qed t.raw");
    write_by_qemu(s, s->cluster);
    in_loop(reader);
}

static void
images_of_qemu_are_read_and_written(void)
{
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        const struct shape *s = &shapes[i];

        CHECK_SH("rm -f t.qed t.raw && qemu-img create -f qed -o "
                 "cluster_size=%llu,table_size=%llu t.qed %llu && "
                 "truncate -s %llu t.raw",
                 (unsigned long long)s->cluster, (unsigned long long)s->table,
                 (unsigned long long)s->size, (unsigned long long)s->size);
        go_back_and_forth(s);
    }
}

/* Overlays: the backing file is shorter than the image. */
static void
make_base(const char *format, const struct shape *s)
{
    uint64_t size = align_down(s->size * 2 / 3, 512);

    CHECK_SH("rm -f base t.raw && qemu-img create -f %s base %llu && "
             "qemu-io -f %s -c 'write -P 99 0 %llu' base && "
             "qemu-img convert -f %s -O raw base t.raw && "
             "truncate -s %llu t.raw",
             format, (unsigned long long)size, format,
             (unsigned long long)align_down(min_u64(size, 6 * MIB), 512),
             format, (unsigned long long)s->size);
}

static void
overlays_of_qemu_are_read_and_written(void)
{
    static const char *const formats[] = {"raw", "qcow2", "qed"};

    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        const struct shape *s = &shapes[i];

        make_base(formats[i], s);
        CHECK_SH("rm -f t.qed && qemu-img create -f qed -b base -F %s -o "
                 "cluster_size=%llu,table_size=%llu t.qed %llu",
                 formats[i], (unsigned long long)s->cluster,
                 (unsigned long long)s->table, (unsigned long long)s->size);
        go_back_and_forth(s);
    }
}

static void
create_it(struct image_case *c)
{
    const struct shape *s = c->arg;
    json_t *o =
        json_pack("{s:s, s:I, s:I, s:I}", "filename", "t.qed", "size",
                  (json_int_t)s->size, "cluster-size", (json_int_t)s->cluster,
                  "table-size", (json_int_t)s->table);
    auto_err err = ERR_INIT;

    if (graph_driver(c->graph, "qed")->create(c->graph, o, &err)) {
        tap_failed_checks++;
        printf("# %s\n", err.msg);
    }
    json_decref(o);
}

static void
images_of_ours_are_good_for_qemu(void)
{
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        const struct shape *s = &shapes[i];

        in_loop(
            (struct image_case){.fn = create_it, .arg = (void *)(uintptr_t)s});
        CHECK_SH("rm -f t.raw && truncate -s %llu t.raw",
                 (unsigned long long)s->size);
        CHECK_SH("qemu-img check -f qed t.qed");
        CHECK_SH("qemu-img compare -f qed -F raw t.qed t.raw");
        go_back_and_forth(s);
    }
}

static void
shapes_that_qemu_refuses_are_written(void)
{
    for (size_t i = 0; i < ARRAY_LEN(our_shapes); i++) {
        struct image_case c = {.fn = create_it,
                               .arg = (void *)(uintptr_t)&our_shapes[i]};

        in_loop(c);
        CHECK_SH("rm -f t.raw && truncate -s %llu t.raw",
                 (unsigned long long)our_shapes[i].size);
        c.fn = write_both;
        in_loop(c);
        c.fn = read_both;
        in_loop(c);
    }
}

/* What is given up. */

enum { FOUR = 4 * 4096 };

static void
give_up_clusters(struct image_case *c)
{
    struct node *image = must_open(c, "qed", "t.qed", "");
    unsigned char buf[FOUR];
    struct extent ext;

    memset(buf, 7, FOUR);
    CHECK_INT(node_write_buf(image, 8 * 4096, buf, 512), 0);
    CHECK_INT(node_write_buf(image, 0, buf, FOUR), 0);
    CHECK_INT(node_unallocate(image, 0, FOUR, NULL), 0);
    CHECK_INT(meta_free_now(qed_of(image)->meta), 0);
    /* A table in clusters that were full of sevens: it maps nothing else. */
    CHECK_INT(node_write_buf(image, 4 * MIB, buf, 512), 0);
    CHECK_INT(node_status(image, 4 * MIB + 4096, 4096, false, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_UNALLOCATED);
    CHECK_INT(node_read_buf(image, 0, buf, FOUR), 0);
    CHECK(bytes_are_zero(buf, FOUR));
    /* The file did not grow for it. */
    CHECK_INT(image->file->child->size, (1 + 2 + 1 + 2 + 4) * 4096);
    node_unref(image);
}

static void
clusters_that_are_given_up_are_used_again(void)
{
    struct stat st;

    CHECK_SH("rm -f t.qed && qemu-img create -f qed -o "
             "cluster_size=4096,table_size=2 t.qed 8M");
    in_loop((struct image_case){.fn = give_up_clusters});
    /* Header, L1, two L2 tables, two clusters; one was cut off. */
    CHECK_INT(stat("t.qed", &st), 0);
    CHECK_INT(st.st_size, 9 * 4096);
    CHECK_SH("qemu-img check -f qed t.qed");
}

static void
keep_or_not(struct image_case *c)
{
    struct node *image = must_open(c, "qed", "t.qed", "");
    unsigned char buf[FOUR];
    struct extent ext;

    memset(buf, 7, FOUR);
    CHECK_INT(node_write_buf(image, 0, buf, FOUR), 0);
    CHECK_INT(node_zero(image, 0, 4096, 0, NULL), 0);
    CHECK_INT(node_zero(image, 4096, 4096, REQ_MAY_UNMAP, NULL), 0);
    CHECK_INT(node_discard(image, 8192, 4096), 0);
    CHECK_INT(node_status(image, 0, FOUR, false, &ext), 0);
    /* Every entry is kept: a cluster that is given up would leak. */
    CHECK_INT(ext.kind, EXTENT_DATA);
    CHECK_INT(ext.len, FOUR);
    CHECK_INT(node_read_buf(image, 0, buf, FOUR), 0);
    CHECK(bytes_are_zero(buf, 3 * 4096ULL));
    CHECK(buf[3 * 4096] == 7);
    node_unref(image);
}

static void
zeroes_and_discards_keep_what_they_must(void)
{
    CHECK_SH("rm -f t.qed && qemu-img create -f qed -o "
             "cluster_size=4096,table_size=2 t.qed 8M");
    in_loop((struct image_case){.fn = keep_or_not});
    CHECK_SH("qemu-img check -f qed t.qed");
}

int
main(void)
{
    if (!image_setup()) {
        return 77;
    }
    tap_run("images of QEMU are read and written",
            images_of_qemu_are_read_and_written);
    tap_run("overlays of QEMU are read and written",
            overlays_of_qemu_are_read_and_written);
    tap_run("images of ours are good for QEMU",
            images_of_ours_are_good_for_qemu);
    tap_run("shapes that QEMU refuses are written",
            shapes_that_qemu_refuses_are_written);
    tap_run("clusters that are given up are used again",
            clusters_that_are_given_up_are_used_again);
    tap_run("zeroes and discards keep what they must",
            zeroes_and_discards_keep_what_they_must);
    return image_done();
}
