// SPDX-License-Identifier: BSD-3-Clause
/* See new_image.h. */
#include "control/new_image.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "control/control_internal.h"
#include "run/file.h"

/*
 * A disk as the header of an image above it names it.  The name is a copy: the
 * disk may get another one while the file system is asked.
 */
struct named_file {
    char *filename;
    const char *format;
};

/*
 * Filters are not in the header: what they stand for is.  A disk without a
 * file, or a part of one, cannot be named.
 */
static int
name_of_disk(const struct node *node, struct named_file *ret, struct err *err)
{
    const struct node *file = node_own_file(node);

    if (!file) {
        int r = err_set(err, -ENOTSUP,
                        "Node '%s' is no plain image file that the header of "
                        "an overlay could name",
                        node->name);

        err_hint(err, "create the overlay and use blockdev-snapshot");
        return r;
    }
    ret->filename = xstrdup(file->filename);
    ret->format = node_image_format(node);
    return 0;
}

bool
is_same_file(struct loop *loop, const char *a, const char *b)
{
    auto_free char *other = xstrdup(b);
    uint64_t dev[2], ino[2];

    return !strcmp(a, b) ||
           (!file_identify(loop, a, &dev[0], &ino[0]) &&
            !file_identify(loop, other, &dev[1], &ino[1]) &&
            dev[0] == dev[1] && ino[0] == ino[1]);
}

static bool
exists(struct loop *loop, const char *path)
{
    uint64_t dev, ino;

    return file_identify(loop, path, &dev, &ino) != -ENOENT;
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

/* Options as blockdev-create's; NULL where the path is no text.  Yields. */
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

/* *ret_has_file: there is a file of that name now, whatever came of it. */
static int
create(struct graph *graph, const struct new_image *image,
       const struct named_file *backing, bool *ret_has_file, struct err *err)
{
    bool is_raw = !strcmp(image->format, "raw");
    const struct driver *drv = graph_driver(graph, image->format);
    json_t *file = json_pack("{s:s, s:I}", "filename", image->path, "size",
                             is_raw ? (json_int_t)image->size : 0);
    json_t *options = image_options(image, backing);
    int r = file && options
                ? graph_driver(graph, "file")->create(graph, file, err)
                : err_set(err, -EINVAL, "'%s' is not valid UTF-8",
                          image->path);

    *ret_has_file = !r;
    if (!r && !is_raw) {
        r = drv->create(graph, options, err);
    }
    json_decref(file);
    json_decref(options);
    return r;
}

int
new_image_create(struct graph *graph, const struct new_image *image,
                 char **ret_made, struct err *err)
{
    struct loop *loop = graph_loop(graph);
    struct named_file backing = {0};
    bool is_new = false, has_file = false;
    int r = check_format(image, graph_driver(graph, image->format), err);

    if (!r && image->backing) {
        r = name_of_disk(image->backing, &backing, err);
    }
    if (!r && backing.filename &&
        is_same_file(loop, image->path, backing.filename)) {
        r = err_set(err, -EINVAL,
                    "Error: Trying to create an image with the same filename "
                    "as the backing file");
    }
    if (!r) {
        is_new = !exists(loop, image->path);
        r = create(graph, image, &backing, &has_file, err);
    }
    *ret_made = is_new && has_file ? xstrdup(image->path) : NULL;
    free(backing.filename);
    return r;
}
