// SPDX-License-Identifier: BSD-3-Clause
/* See new_image.h. */
#include "control/new_image.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "control/control_internal.h"

/* A disk as the header of an image above it names it. */
struct named_file {
    const char *filename, *format;
};

/*
 * Filters are not in the header: what they stand for is.  A disk without a
 * file, or a part of one, cannot be named.
 */
static int
name_of_disk(const struct node *node, struct named_file *ret, struct err *err)
{
    const struct node *file;
    bool window = false;

    for (file = node; file->file; file = file->file->child) {
        window |= !strcmp(file->drv->name, "raw") &&
                  (json_object_get(file->options, "offset") ||
                   json_object_get(file->options, "size"));
    }
    if (window || !file->filename ||
        (strcmp(file->drv->name, "file") &&
         strcmp(file->drv->name, "host_device"))) {
        int r = err_set(err, -ENOTSUP,
                        "Node '%s' is no plain image file that the header of "
                        "an overlay could name",
                        node->name);

        err_hint(err, "create the overlay and use blockdev-snapshot");
        return r;
    }
    ret->filename = file->filename;
    ret->format = node_image_format(node);
    return 0;
}

bool
is_same_file(const char *a, const char *b)
{
    struct stat sa, sb;

    return !strcmp(a, b) || (!stat(a, &sa) && !stat(b, &sb) &&
                             sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino);
}

static int
check_format(const struct new_image *image, const struct driver *drv,
             struct err *err)
{
    if (!drv) {
        return err_set(err, -EINVAL, "Unknown file format '%s'",
                       image->format);
    }
    if (!drv->create && strcmp(image->format, "raw")) {
        return err_set(err, -ENOTSUP,
                       "Format driver '%s' does not support image creation",
                       image->format);
    }
    if (image->backing && !drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "Backing file not supported for file format '%s'",
                       image->format);
    }
    return 0;
}

/* Options as blockdev-create's; NULL where the path is no text. */
static json_t *
image_options(const struct new_image *image, const struct named_file *backing)
{
    json_t *o = json_pack("{s:{s:s, s:s, s:s}, s:I}", "file", "driver", "file",
                          "filename", image->path, "discard", "unmap", "size",
                          (json_int_t)align_up(image->size, 512));

    if (o && backing->filename) {
        auto_free char *name =
            backing_name_for(image->path, backing->filename);

        json_object_set_new(o, "backing-file", json_string(name));
        json_object_set_new(o, "backing-fmt", json_string(backing->format));
    }
    return o;
}

int
new_image_create(struct graph *graph, const struct new_image *image,
                 char **ret_made, struct err *err)
{
    const struct driver *drv = graph_driver(graph, image->format);
    bool is_raw = !strcmp(image->format, "raw");
    struct named_file backing = {0};
    int r = check_format(image, drv, err);

    if (!r && image->backing) {
        r = name_of_disk(image->backing, &backing, err);
    }
    if (!r && backing.filename && is_same_file(image->path,
                                               backing.filename)) {
        r = err_set(err, -EINVAL,
                    "Error: Trying to create an image with the same filename "
                    "as the backing file");
    }
    if (r) {
        return r;
    }
    json_t *file = json_pack("{s:s, s:I}", "filename", image->path, "size",
                             is_raw ? (json_int_t)image->size : 0);
    json_t *options = image_options(image, &backing);
    bool fresh = access(image->path, F_OK) != 0;

    r = file && options
            ? 0
            : err_set(err, -EINVAL, "'%s' is not valid UTF-8", image->path);
    if (!r) {
        r = graph_driver(graph, "file")->create(graph, file, err);
    }
    if (!r) {
        r = is_raw ? 0 : drv->create(graph, options, err);
        *ret_made = fresh ? xstrdup(image->path) : NULL;
    }
    json_decref(file);
    json_decref(options);
    return r;
}
