// SPDX-License-Identifier: BSD-3-Clause
/* The "image" lines of a script. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "sim/sweep.h"

enum { SECTOR = 512 };

void
sweep_fill(struct node *node, struct oracle *o, uint64_t sector, uint64_t n,
           uint64_t first_tag)
{
    unsigned char buf[SECTOR];

    for (uint64_t i = 0; i < n; i++) {
        sector_fill(buf, first_tag + i);
        if (node_write_buf(node, (sector + i) * SECTOR, buf, SECTOR)) {
            abort();
        }
        if (o) {
            oracle_init(o, sector + i, first_tag + i);
        }
    }
}

/* A raw deflate stream, as qcow2's. */
static struct encoded
encode(const unsigned char *plain, uint32_t len)
{
    z_stream z = {.next_in = (unsigned char *)(uintptr_t)plain,
                  .avail_in = len,
                  .avail_out = len};
    struct encoded out = {.data = xmalloc(len), .cluster_size = len};

    z.next_out = out.data;
    if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, -12, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK ||
        deflate(&z, Z_FINISH) != Z_STREAM_END) {
        abort();
    }
    out.len = z.total_out;
    deflateEnd(&z);
    return out;
}

/* As sweep_fill(), by whole clusters, which are compressed. */
static void
fill_packed(struct node *node, struct oracle *o, uint64_t sector, uint64_t n,
            uint64_t first_tag)
{
    uint32_t cluster = node->cluster_size, per = cluster / SECTOR;
    auto_free unsigned char *buf = xmalloc(cluster);

    for (uint64_t at = 0; at < n; at += per) {
        for (uint64_t i = 0; i < per; i++) {
            sector_fill(buf + i * SECTOR, first_tag + at + i);
            oracle_init(o, sector + at + i, first_tag + at + i);
        }
        struct encoded data = encode(buf, cluster);

        if (node_write_encoded(node, (sector + at) * SECTOR, &data, 0, NULL)) {
            abort();
        }
        free(data.data);
    }
}

static void
must_create(struct graph *graph, const char *driver, json_t *options)
{
    auto_err err = ERR_INIT;

    if (graph_driver(graph, driver)->create(graph, options, &err)) {
        printf("# creating a %s image: %s\n", driver, err.msg);
        abort();
    }
    json_decref(options);
}

/* KEY=VALUE words become members; a value of digits is a number. */
static json_t *
members(const char *words)
{
    json_t *o = json_object();
    auto_free char *copy = xstrdup(words);
    char *save = NULL;

    for (char *w = strtok_r(copy, " ", &save); w;
         w = strtok_r(NULL, " ", &save)) {
        char *value = strchr(w, '=');

        if (!value) {
            printf("# no KEY=VALUE: %s\n", w);
            abort();
        }
        *value++ = 0;
        json_object_set_new(o, w,
                            value[strspn(value, "0123456789")]
                                ? json_string(value)
                                : json_integer(atoll(value)));
    }
    return o;
}

static void
create(struct graph *graph, const char *format, const char *name,
       const char *words)
{
    json_t *options = members(words);

    if (!strcmp(format, "qcow2")) { /* its file is a node */
        must_create(graph, "file",
                    json_pack("{s:s, s:i}", "filename", name, "size", 0));
        json_object_set_new(
            options, "file",
            json_pack("{s:s, s:s}", "driver", "file", "filename", name));
    } else {
        json_object_set_new(options, "filename", json_string(name));
    }
    must_create(graph, strcmp(format, "raw") ? format : "file", options);
}

enum fill {
    FILL,
    FILL_STALE,  /* an unfinished copy of something else, as a transfer
                  * leaves it */
    FILL_PACKED, /* compressed */
    FILL_ZERO,   /* it says that it is zero, over what is below */
};

static void
fill_zero(struct node *node, struct oracle *o, uint64_t sector, uint64_t n)
{
    if (node_zero(node, sector * SECTOR, n * SECTOR, 0, NULL)) {
        abort();
    }
    for (uint64_t i = 0; i < n; i++) {
        oracle_init(o, sector + i, 0);
    }
}

/* @o NULL: the disk does not read that. */
static void
fill(struct graph *graph, struct oracle *o, enum fill how, const char *format,
     const char *name, const unsigned long long *v)
{
    json_t *options =
        json_pack("{s:s, s:s, s:{s:s, s:s}}", "driver", format, "node-name",
                  "fill", "file", "driver", "file", "filename", name);
    auto_err err = ERR_INIT;
    struct node *node;

    if (node_add(graph, options, &node, &err)) {
        printf("# filling %s: %s\n", name, err.msg);
        abort();
    }
    if (how == FILL_PACKED) {
        fill_packed(node, o, v[0], v[1], v[2]);
    } else if (how == FILL_ZERO) {
        fill_zero(node, o, v[0], v[1]);
    } else {
        sweep_fill(node, o, v[0], v[1], v[2]);
    }
    if (how == FILL_STALE && node->drv->set_incomplete(node, true, &err)) {
        abort();
    }
    json_decref(options);
    node_del(graph, "fill", NULL);
}

/* What somebody wrote and gave up: in free clusters behind the end. */
static void
litter(struct graph *graph, const char *name, uint64_t sectors)
{
    json_t *options = json_pack("{s:s, s:s, s:s}", "driver", "file",
                                "node-name", "litter", "filename", name);
    struct node *node;

    if (node_add(graph, options, &node, NULL)) {
        abort();
    }
    sweep_fill(node, NULL, div_up(node->size, SECTOR), sectors, 0xdead);
    json_decref(options);
    node_del(graph, "litter", NULL);
}

/* As other programs shrink it: what lies behind in its last cluster stays. */
static void
cut(struct graph *graph, const char *format, const char *name,
    uint64_t sectors)
{
    enum { QCOW2_SIZE = 24, QED_SIZE = 48 }; /* where the header has it */
    json_t *options = json_pack("{s:s, s:s, s:s}", "driver", "file",
                                "node-name", "cut", "filename", name);
    bool is_qcow2 = !strcmp(format, "qcow2");
    unsigned char size[8];
    struct node *node;

    if (is_qcow2) {
        st_be64(size, sectors * SECTOR);
    } else {
        st_le64(size, sectors * SECTOR);
    }
    if (node_add(graph, options, &node, NULL) ||
        node_write_buf(node, is_qcow2 ? QCOW2_SIZE : QED_SIZE, size,
                       sizeof(size))) {
        abort();
    }
    json_decref(options);
    node_del(graph, "cut", NULL);
}

static void
obey(struct graph *graph, struct oracle *o, const char *line)
{
    unsigned long long v[3];
    char format[32], name[64];
    int at = 0;

    if (sscanf(line, "create %31s %63s %n", format, name, &at) == 2 && at) {
        create(graph, format, name, line + at);
    } else if (sscanf(line, "fill %31s %63s %llu %llu %llu", format, name,
                      &v[0], &v[1], &v[2]) == 5) {
        fill(graph, o, FILL, format, name, v);
    } else if (sscanf(line, "pack %31s %63s %llu %llu %llu", format, name,
                      &v[0], &v[1], &v[2]) == 5) {
        fill(graph, o, FILL_PACKED, format, name, v);
    } else if (sscanf(line, "zero %31s %63s %llu %llu", format, name, &v[0],
                      &v[1]) == 4) {
        fill(graph, o, FILL_ZERO, format, name, v);
    } else if (sscanf(line, "stale %31s %63s %llu %llu %llu", format, name,
                      &v[0], &v[1], &v[2]) == 5) {
        fill(graph, NULL, FILL_STALE, format, name, v);
    } else if (sscanf(line, "unread %31s %63s %llu %llu %llu", format, name,
                      &v[0], &v[1], &v[2]) == 5) {
        fill(graph, NULL, FILL, format, name, v);
    } else if (sscanf(line, "litter %63s %llu", name, &v[0]) == 2) {
        litter(graph, name, v[0]);
    } else if (sscanf(line, "cut %31s %63s %llu", format, name, &v[0]) == 3) {
        cut(graph, format, name, v[0]);
    } else if (sscanf(line, "hide %llu %llu", &v[0], &v[1]) == 2) {
        for (uint64_t i = 0; i < v[1]; i++) {
            oracle_init(o, v[0] + i, 0);
        }
    } else {
        printf("# not understood: image %s\n", line);
        abort();
    }
}

void
images_make(struct graph *graph, struct oracle *o, const char *lines)
{
    while (*lines) {
        size_t len = strcspn(lines, "\n");
        auto_free char *line = xasprintf("%.*s", (int)len, lines);

        obey(graph, o, line);
        lines += len + (lines[len] == '\n');
    }
}
