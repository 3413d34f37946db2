// SPDX-License-Identifier: BSD-3-Clause
/*
 * Making images.  Options are given as qemu-img takes them (underscores or
 * hyphens) and are handed to the driver as blockdev-create's members.
 */
#include "cli/create.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "block/node.h"

/* Adds one "name=value" with the type that its value shows. */
static int
add_option(json_t *o, char *pair, struct err *err)
{
    char *value = strchr(pair, '=');
    uint64_t n;

    if (!value) {
        return err_set(err, -EINVAL, "Option '%s' has no value", pair);
    }
    *value++ = 0;
    for (char *p = pair; *p; p++) {
        *p = *p == '_' ? '-' : *p;
    }
    if (!strcmp(value, "on") || !strcmp(value, "off")) {
        bool plain = !strcmp(pair, "preallocation");

        json_object_set_new(o, pair,
                            plain ? json_string(value)
                                  : json_boolean(!strcmp(value, "on")));
    } else if (cli_parse_size(value, &n)) {
        json_object_set_new(o, pair, json_integer((json_int_t)n));
    } else {
        json_object_set_new(o, pair, json_string(value));
    }
    return 0;
}

static int
add_options(json_t *o, const char *options, struct err *err)
{
    static const char *const known[] = {
        "cluster-size", "table-size",  "refcount-bits", "compression-type",
        "lazy-refcounts", "version", "preallocation", "extended-l2"};
    auto_free char *copy = options ? xstrdup(options) : NULL;
    char *rest = copy, *pair;
    int r = 0;

    while (!r && rest && (pair = strsep(&rest, ","))) {
        bool ok = false;

        r = add_option(o, pair, err);
        for (size_t i = 0; i < ARRAY_LEN(known); i++) {
            ok |= !strcmp(known[i], pair);
        }
        if (!r && !ok) {
            r = err_set(err, -EINVAL, "There is no option '%s' for images",
                        pair);
        }
    }
    return r;
}

void
image_remove(const char *path)
{
    struct stat st;

    if (!stat(path, &st) && S_ISREG(st.st_mode)) {
        unlink(path);
    }
}

static int
create_file(struct cli *cli, const struct new_image *im, uint64_t size,
            struct err *err)
{
    json_t *o = json_pack("{s:s, s:I}", "filename", im->path, "size",
                          (json_int_t)size);
    int r = graph_driver(cli->graph, "file")->create(cli->graph, o, err);

    json_decref(o);
    return r;
}

static int
create_format(struct cli *cli, const struct driver *drv,
              const struct new_image *im, struct err *err)
{
    json_t *o = json_pack("{s:{s:s, s:s, s:s}, s:I}", "file", "driver", "file",
                          "filename", im->path, "discard", "unmap", "size",
                          (json_int_t)im->size);
    int r = add_options(o, im->options, err);

    if (cli->dry_run) {
        json_decref(o);
        return r;
    }
    if (im->backing) {
        json_object_set_new(o, "backing-file", json_string(im->backing));
        json_object_set_new(o, "backing-fmt", json_string(im->backing_format));
    }
    if (!r) {
        r = create_file(cli, im, 0, err);
    }
    if (!r) {
        r = drv->create(cli->graph, o, err);
        if (r) {
            image_remove(im->path); /* half an image is none */
        }
    }
    json_decref(o);
    return r;
}

int
image_create(struct cli *cli, const struct new_image *im, struct err *err)
{
    const struct driver *drv = graph_driver(cli->graph, im->format);
    bool raw = !strcmp(im->format, "raw");

    if (!drv || (!raw && (drv->is_protocol || !drv->create))) {
        int r = err_set(err, -EINVAL, "Images of format '%s' cannot be made",
                        im->format);

        err_hint(err, "the formats are raw, qcow2 and qed");
        return r;
    }
    if (im->fresh && !access(im->path, F_OK)) {
        int r = err_set(err, -EEXIST, "'%s' exists already", im->path);

        err_hint(err, "remove it first, or take another name");
        return r;
    }
    if (raw && im->backing) {
        int r = err_set(err, -EINVAL, "A raw image cannot name a backing file");

        err_hint(err, "take -f qcow2");
        return r;
    }
    if (raw && im->options) {
        return err_set(err, -EINVAL, "Raw images have no options");
    }
    if (raw) {
        return cli->dry_run ? 0 : create_file(cli, im, im->size, err);
    }
    return create_format(cli, drv, im, err);
}

int
image_created(struct cli *cli, const struct new_image *im, const char *what)
{
    auto_free char *size = cli_format_size(im->size);

    if (cli->json) {
        json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:b}", "type",
                              "result", "verb", what, "filename", im->path,
                              "format", im->format, "virtual-size",
                              (json_int_t)im->size, "dry-run",
                              (int)cli->dry_run);

        if (im->backing) {
            json_object_set_new(o, "backing-filename",
                                json_string(im->backing));
        }
        cli_print_json(o);
    } else {
        printf("%s '%s' (%s, %s)%s%s%s\n",
               cli->dry_run ? "Would make" : "Made", im->path, im->format, size,
               im->backing ? " on top of '" : "",
               im->backing ? im->backing : "", im->backing ? "'" : "");
    }
    return EXIT_OK;
}

struct node *
image_open_for_check(struct cli *cli, const char *path, const char *format,
                     unsigned fix, struct err *err)
{
    json_t *o = json_pack("{s:s, s:s, s:b, s:b, s:n, s:{s:s, s:s}}", "driver",
                          format, "node-name", "image", "read-only", (int)!fix,
                          "for-check", (int)(fix != 0), "backing", "file",
                          "driver", "file", "filename", path);
    struct node *node = NULL;

    if (node_add(cli->graph, o, &node, err)) {
        node = NULL;
    }
    json_decref(o);
    return node;
}
