// SPDX-License-Identifier: BSD-3-Clause
/*
 * QED images with headers and tables that somebody has damaged, and changes of
 * the header: an error that says what is wrong, never a crash, and never a
 * file that the header should not reach.
 */
#include <errno.h>
#include <sys/stat.h>

#include "format/image.h"

/* An image of 4 KiB clusters, two to a table, as bad.qed; good.qed is kept. */
enum {
    CLUSTER = 4096,
    L1 = CLUSTER,
    SIZE = 8 << 20,
    H_CLUSTER_SIZE = 4,
    H_TABLE_SIZE = 8,
    H_HEADER_SIZE = 12,
    H_FEATURES = 16,
    H_AUTOCLEAR = 32,
    H_L1 = 40,
    H_IMAGE_SIZE = 48,
    H_NAME_OFF = 56,
    H_NAME_LEN = 60,
};

static void
make_good(void)
{
    CHECK_SH("rm -f good.qed && qemu-img create -f qed -o "
             "cluster_size=4096,table_size=2 good.qed 8M && qemu-io -f qed "
             "-c 'write -P 1 0 20k' -c 'write -P 2 5M 10k' good.qed");
}

static void
make_bad(void)
{
    CHECK_SH("cp good.qed bad.qed");
}

struct expected {
    const char *text; /* part of the message; NULL: it opens */
    const char *more; /* further options */
    int code;
};

static void
open_expecting(struct image_case *c)
{
    const struct expected *e = c->arg;
    auto_err err = ERR_INIT;
    struct node *node = NULL;
    int r =
        open_image(c, "qed", "bad.qed", e->more ? e->more : "", &node, &err);

    if (!r) {
        node_unref(node);
    }
    if (!e->text) {
        CHECK_STR(err.msg ? err.msg : "", "");
        return;
    }
    if (!err.msg || !strstr(err.msg, e->text)) {
        tap_failed_checks++;
        printf("# \"%s\" does not say \"%s\"\n", err.msg ? err.msg : "",
               e->text);
    } else {
        /* The image is named once. */
        const char *name = strstr(err.msg, "bad.qed");

        CHECK(name && !strstr(name + 1, "bad.qed"));
    }
    if (e->code) {
        CHECK_INT(r, e->code);
    }
}

static void
refused(const char *text)
{
    struct expected e = {.text = text};

    in_loop((struct image_case){.fn = open_expecting, .arg = &e});
}

static void
bad_headers_are_refused(void)
{
    static const struct {
        unsigned at, size;
        uint64_t value;
        const char *text;
    } bad[] = {
        {0, 4, 0x12345678, "not in QED format"},
        {H_CLUSTER_SIZE, 4, 2048, "cluster size 2048"},
        {H_CLUSTER_SIZE, 4, 5000, "cluster size 5000"},
        {H_CLUSTER_SIZE, 4, 1u << 27, "cluster size 134217728"},
        {H_CLUSTER_SIZE, 4, 0, "cluster size 0"},
        {H_TABLE_SIZE, 4, 0, "table size 0"},
        {H_TABLE_SIZE, 4, 3, "table size 3"},
        {H_TABLE_SIZE, 4, 32, "table size 32"},
        {H_HEADER_SIZE, 4, 0, "header's 0 clusters"},
        {H_HEADER_SIZE, 4, 0xffffffff, "header's 4294967295 clusters"},
        {H_FEATURES, 8, 1ULL << 5, "feature bit 5"},
        {H_FEATURES, 8, 1ULL << 63, "feature bit 63"},
        {H_L1, 8, 4097, "L1 table at offset 4097"},
        {H_L1, 8, 0, "L1 table at offset 0"},
        {H_L1, 8, 1ULL << 40, "L1 table at offset"},
        {H_L1, 8, 0xfffffffffffff000, "L1 table at offset"},
        {H_IMAGE_SIZE, 8, 1000, "image size 1000"},
        {H_IMAGE_SIZE, 8, 1ULL << 50, "tables reach"},
        {H_IMAGE_SIZE, 8, 0xfffffffffffffe00, "tables reach"},
    };

    make_good();
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        make_bad();
        if (bad[i].size == 8) {
            poke64("bad.qed", bad[i].at, bad[i].value);
        } else {
            poke32("bad.qed", bad[i].at, (uint32_t)bad[i].value);
        }
        refused(bad[i].text);
    }
}

static void
cut_off_images_are_refused(void)
{
    static const struct {
        unsigned len;
        const char *text;
    } cut[] = {
        {0, "not in QED format"},    {63, "not in QED format"},
        {64, "header's 1 clusters"}, {4095, "header's 1 clusters"},
        {4096, "L1 table"},          {12287, "L1 table"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cut); i++) {
        CHECK_SH("head -c %u good.qed >bad.qed", cut[i].len);
        refused(cut[i].text);
    }
}

static void
bad_backing_names_are_refused(void)
{
    static const struct {
        uint32_t off, len;
        const char *text;
    } bad[] = {
        {64, 0, "is empty"},
        {64, 1024, "longer than 1023"},
        {4090, 10, "outside the header"},
        {0xffffffff, 0xffffffff, "outside the header"},
        {2000, 10, "contains a NUL"},
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        make_bad();
        poke64("bad.qed", H_FEATURES, 1);
        poke32("bad.qed", H_NAME_OFF, bad[i].off);
        poke32("bad.qed", H_NAME_LEN, bad[i].len);
        refused(bad[i].text);
    }
}

/* Tables. */

struct table_case {
    int read_at_0;        /* of the first cluster */
    uint64_t corruptions; /* at least */
    bool repair;
};

static void
use_bad_tables(struct image_case *c)
{
    const struct table_case *t = c->arg;
    struct node *node = must_open(c, "qed", "bad.qed", ",\"for-check\":true");
    struct check_report report = {0};
    unsigned char buf[CLUSTER];

    if (!node) {
        return;
    }
    CHECK_INT(node_read_buf(node, 0, buf, CLUSTER), t->read_at_0);
    CHECK_INT(node->drv->check(node, 0, &report, NULL), 0);
    CHECK(report.corruptions >= t->corruptions);
    CHECK(t->corruptions || !report.corruptions);
    report = (struct check_report){0};
    CHECK_INT(node->drv->check(node, CHECK_FIX_ERRORS | CHECK_FIX_LEAKS,
                               &report, NULL),
              0);
    CHECK_INT(report.corruptions, 0);
    CHECK(report.fixed_corruptions >= t->corruptions);
    CHECK_INT(node_read_buf(node, 0, buf, CLUSTER), 0);
    CHECK_INT(node_write_buf(node, 3 << 20, buf, CLUSTER), 0);
    node_unref(node);
}

static void
bad_tables_are_reported_and_repaired(void)
{
    uint64_t l2 = peek64("good.qed", L1), other = peek64("good.qed", L1 + 8);
    uint64_t data = peek64("good.qed", l2);
    const struct {
        uint64_t at, value;
        int read_at_0;
    } bad[] = {
        {L1, 4097, -EIO},               /* not aligned */
        {L1, 1ULL << 40, -EIO},         /* outside */
        {L1, 0xfffffffffffff000, -EIO}, /* wraps */
        {L1, 2, -EIO},                  /* tables know no zero entry */
        {L1, L1, -EIO},                 /* a loop: L1 as its own L2 */
        {L1, CLUSTER * 2, -EIO},        /* within L1 */
        {L1 + 8, l2, 0},                /* one table twice */
        {L1, data, 0},                  /* tables that overlap data */
        {l2, l2, 0},                    /* an L2 table as data */
        {l2, L1, -EIO},                 /* L1 as data */
        {l2, 512, -EIO},                /* not aligned */
        {l2, 1ULL << 62, -EIO},         /* outside */
        {l2, 0xfffffffffffff000, -EIO}, /* wraps */
        {l2 + 8, data, 0},              /* a cluster twice */
        {other, data, 0},               /* from two tables */
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct table_case t = {.read_at_0 = bad[i].read_at_0, .corruptions = 1};
        int before = tap_failed_checks;

        make_bad();
        poke64("bad.qed", bad[i].at, bad[i].value);
        /* An L2 table made of sevens reads as it likes before the repair. */
        if (bad[i].value == data && bad[i].at == L1) {
            t.read_at_0 = -EIO;
        }
        in_loop((struct image_case){.fn = use_bad_tables, .arg = &t});
        CHECK_SH("qemu-img check -f qed bad.qed || test $? = 3");
        if (tap_failed_checks != before) {
            printf("# with %#llx at %#llx\n", (unsigned long long)bad[i].value,
                   (unsigned long long)bad[i].at);
        }
    }
}

/* Random damage: whatever happens, it ends, and without a crash. */
static void
survive(struct image_case *c)
{
    struct node *node = NULL;
    struct check_report report = {0};
    unsigned char buf[CLUSTER] = {0};

    if (open_image(c, "qed", "bad.qed", ",\"backing\":null", &node, NULL)) {
        return;
    }
    for (uint64_t off = 0; off + CLUSTER <= min_u64(node->size, SIZE);
         off += SIZE / 16) {
        node_read_buf(node, off, buf, CLUSTER);
        node_write_buf(node, off + 512, buf, 1024);
        node_unallocate(node, off, CLUSTER, NULL);
    }
    node->drv->check(node, CHECK_FIX_ERRORS | CHECK_FIX_LEAKS, &report, NULL);
    node_unref(node);
}

static void
random_damage_is_survived(void)
{
    uint64_t rng = 7;

    for (int i = 0; i < 200; i++) {
        unsigned char bytes[8];

        make_bad();
        for (int n = 0; n < 1 + i % 4; n++) {
            rng = rng * 6364136223846793005 + 1442695040888963407;
            uint64_t where = (rng >> 33) % 5;
            uint64_t at = where == 0 ? (rng >> 40) % 64
                          : where == 1
                              ? L1 + (rng >> 40) % 32
                              : (3 + where) * CLUSTER + (rng >> 40) % 64;

            st_le64(bytes, (rng >> 20) << ((rng >> 10) % 40));
            poke("bad.qed", at, bytes, 1 + (rng >> 50) % 8);
        }
        in_loop((struct image_case){.fn = survive});
    }
}

/* Feature bits. */

static void
autoclear_bits_are_cleared(void)
{
    struct expected e = {0};

    make_bad();
    poke64("bad.qed", H_AUTOCLEAR, 0xf0);
    e.more = ",\"read-only\":true";
    in_loop((struct image_case){.fn = open_expecting, .arg = &e});
    CHECK_INT(peek64("bad.qed", H_AUTOCLEAR), 0xf0);
    e.more = NULL;
    in_loop((struct image_case){.fn = open_expecting, .arg = &e});
    CHECK_INT(peek64("bad.qed", H_AUTOCLEAR), 0);
}

static void
an_unchecked_image_is_checked(void)
{
    struct table_case t = {.read_at_0 = -EIO, .corruptions = 1};
    struct expected e = {0};

    make_bad();
    poke64("bad.qed", H_FEATURES, 2);
    in_loop((struct image_case){.fn = open_expecting, .arg = &e});
    CHECK_INT(peek64("bad.qed", H_FEATURES), 0);
    /* Damaged: refused for writing until it is repaired. */
    poke64("bad.qed", H_FEATURES, 2);
    poke64("bad.qed", peek64("bad.qed", L1), 512);
    refused("not closed properly");
    e.more = ",\"read-only\":true";
    in_loop((struct image_case){.fn = open_expecting, .arg = &e});
    CHECK_INT(peek64("bad.qed", H_FEATURES), 2);
    in_loop((struct image_case){.fn = use_bad_tables, .arg = &t});
    CHECK_INT(peek64("bad.qed", H_FEATURES), 0);
    e.more = NULL;
    in_loop((struct image_case){.fn = open_expecting, .arg = &e});
}

/* Backing files. */

static void
expect_backing(const char *paths, const char *text)
{
    struct expected e = {.text = text};

    in_loop((struct image_case){
        .fn = open_expecting, .arg = &e, .backing_paths = paths});
}

static void
a_header_reaches_only_what_it_may(void)
{
    auto_free char *cwd = getcwd(NULL, 0);

    CHECK_SH("rm -f base.* && qemu-img create -f raw base.raw 4M && "
             "qemu-img create -f qcow2 base.qcow2 4M && "
             "qemu-img create -f qed base.qed 4M");
    CHECK_SH("qemu-img create -f qed -b base.qcow2 -F qcow2 bad.qed");
    expect_backing(NULL, NULL);
    expect_backing(cwd, NULL);
    expect_backing("", "outside --backing-paths");
    expect_backing("/usr", "outside --backing-paths");
    CHECK_SH("qemu-img create -f qed -b base.qed -F qed bad.qed");
    expect_backing(NULL, NULL);
    CHECK_SH("qemu-img create -f qed -b base.raw -F raw bad.qed");
    expect_backing(NULL, NULL);
    /* A raw file that is not stated to be one is not taken for one. */
    poke64("bad.qed", H_FEATURES, 1);
    expect_backing(NULL, "neither qcow2 nor QED");
    CHECK_SH("rm base.raw");
    expect_backing(NULL, "base.raw");
}

static void
rename_backing(struct image_case *c)
{
    struct node *node = must_open(c, "qed", "bad.qed", ",\"backing\":null");
    char longest[1025];
    auto_err err = ERR_INIT;

    memset(longest, 'x', sizeof(longest));
    longest[1024] = 0;
    CHECK_INT(node->drv->set_backing(node, longest, "raw", &err), -EINVAL);
    err_clear(&err);
    CHECK_INT(node->drv->set_backing(node, "base.vmdk", "vmdk", &err), -EINVAL);
    longest[1023] = 0;
    for (int i = 0; i < 3; i++) {
        longest[0] = (char)('a' + i);
        CHECK_INT(node->drv->set_backing(node, longest, "qcow2", NULL), 0);
        CHECK_STR(node->header_backing.filename, longest);
    }
    CHECK_INT(node->drv->set_backing(node, c->arg, "raw", NULL), 0);
    node_unref(node);
}

static void
drop_backing(struct image_case *c)
{
    struct node *node = must_open(c, "qed", "bad.qed", "");

    CHECK_STR(node->header_backing.filename, "base.raw");
    CHECK_STR(node->header_backing.format, "raw");
    CHECK(node->backing);
    CHECK_INT(node->drv->set_backing(node, NULL, NULL, NULL), 0);
    node_unref(node);
}

static void
the_backing_file_can_be_changed(void)
{
    static char name[] = "base.raw";

    CHECK_SH("rm -f base.raw && qemu-img create -f raw base.raw 4M && "
             "qemu-img create -f qed -b base.qcow2 -F qcow2 bad.qed");
    in_loop((struct image_case){.fn = rename_backing, .arg = name});
    CHECK_SH("qemu-img info -f qed bad.qed | grep -q 'backing file: base.raw'");
    CHECK_SH("qemu-img info bad.qed | grep -q 'backing file format: raw'");
    in_loop((struct image_case){.fn = drop_backing});
    CHECK_SH("! qemu-img info -f qed bad.qed | grep 'backing file'");
    CHECK_SH("qemu-img check -f qed bad.qed");
}

static void
grow(struct image_case *c)
{
    struct node *node = must_open(c, "qed", "bad.qed", "");
    unsigned char buf[8192];
    auto_err err = ERR_INIT;

    CHECK_INT(node->size, 6 * 512);
    memset(buf, 5, 512);
    CHECK_INT(node_write_buf(node, 0, buf, 512), 0);
    CHECK_INT(node_truncate(node, 8000, &err), -EINVAL);
    err_clear(&err);
    CHECK_INT(node_truncate(node, 1ULL << 50, &err), -EINVAL);
    CHECK_INT(node_truncate(node, 8192, NULL), 0);
    CHECK_INT(node_read_buf(node, 0, buf, 8192), 0);
    CHECK(buf[0] == 5 && buf[511] == 5 && buf[512] == 9 && buf[3071] == 9);
    CHECK(bytes_are_zero(buf + 3072, 8192 - 3072));
    node_unref(node);
}

/* What a larger backing file has there must not appear. */
static void
a_disk_that_grows_reads_zero_there(void)
{
    CHECK_SH("rm -f base.raw && qemu-img create -f raw base.raw 8k && "
             "qemu-io -f raw -c 'write -P 9 0 8k' base.raw && "
             "qemu-img create -f qed -b base.raw -F raw -o "
             "cluster_size=4096,table_size=2 bad.qed 3072");
    in_loop((struct image_case){.fn = grow});
    CHECK_SH("qemu-img check -f qed bad.qed");
    CHECK_SH("qemu-io -f qed -c 'read -P 0 3k 5k' bad.qed | "
             "tee -a log | grep -qv 'failed'");
}

static int
create(struct image_case *c, const char *options)
{
    json_t *o = json_loads(options, 0, NULL);
    auto_err err = ERR_INIT;
    int r = graph_driver(c->graph, "qed")->create(c->graph, o, &err);

    CHECK((r != 0) == (err.msg != NULL));
    json_decref(o);
    return r;
}

#define FILE_DEF "\"file\":{\"driver\":\"file\",\"filename\":\"bad.qed\"}"

static void
create_images(struct image_case *c)
{
    json_t *file = json_pack("{s:s, s:s, s:s}", "driver", "file", "filename",
                             "bad.qed", "node-name", "f0");
    json_t *info = json_object();
    struct node *node;

    CHECK_INT(create(c, "{\"size\":512}"), -EINVAL);
    CHECK_INT(create(c, "{" FILE_DEF "}"), -EINVAL);
    CHECK_INT(create(c, "{" FILE_DEF ",\"size\":513}"), -EINVAL);
    CHECK_INT(create(c, "{" FILE_DEF ",\"size\":0,\"cluster-size\":512}"),
              -EINVAL);
    CHECK_INT(create(c, "{" FILE_DEF ",\"size\":0,\"table-size\":17}"),
              -EINVAL);
    CHECK_INT(create(c, "{" FILE_DEF ",\"size\":0,\"backing-fmt\":\"raw\"}"),
              -EINVAL);
    CHECK_INT(create(c, "{\"file\":\"f0\",\"size\":0}"), -ENOENT);
    CHECK_INT(create(c, "{" FILE_DEF ",\"size\":4194304}"), 0);
    CHECK_INT(node_add(c->graph, file, NULL, NULL), 0);
    CHECK_INT(create(c, "{\"file\":\"f0\",\"size\":1048576,\"cluster-size\":"
                        "16384,\"backing-file\":\"base.raw\","
                        "\"backing-fmt\":\"raw\"}"),
              0);
    CHECK_INT(node_del(c->graph, "f0", NULL), 0);
    node = must_open(c, "qed", "bad.qed", "");
    node->drv->info(node, info);
    CHECK_INT(json_integer_value(json_object_get(info, "cluster-size")), 16384);
    CHECK(json_is_false(json_object_get(info, "dirty-flag")));
    node_unref(node);
    json_decref(info);
    json_decref(file);
}

static void
a_new_image_is_as_asked_for(void)
{
    CHECK_SH("rm -f base.raw && truncate -s 1M base.raw");
    in_loop((struct image_case){.fn = create_images});
    CHECK_SH("qemu-img check -f qed bad.qed");
    CHECK_SH("qemu-img info -f qed bad.qed | grep -q 'virtual size: 1 MiB'");
    CHECK_SH("qemu-img info -f qed bad.qed | grep -q 'cluster_size: 16384'");
    CHECK_SH("qemu-img info bad.qed | grep -q 'backing file format: raw'");
}

int
main(void)
{
    if (!image_setup()) {
        return 77;
    }
    tap_run("bad headers are refused", bad_headers_are_refused);
    tap_run("cut off images are refused", cut_off_images_are_refused);
    tap_run("bad backing names are refused", bad_backing_names_are_refused);
    tap_run("bad tables are reported and repaired",
            bad_tables_are_reported_and_repaired);
    tap_run("random damage is survived", random_damage_is_survived);
    tap_run("autoclear bits are cleared", autoclear_bits_are_cleared);
    tap_run("an unchecked image is checked", an_unchecked_image_is_checked);
    tap_run("a header reaches only what it may",
            a_header_reaches_only_what_it_may);
    tap_run("the backing file can be changed", the_backing_file_can_be_changed);
    tap_run("a disk that grows reads zero there",
            a_disk_that_grows_reads_zero_there);
    tap_run("a new image is as asked for", a_new_image_is_as_asked_for);
    return image_done();
}
