// SPDX-License-Identifier: BSD-3-Clause
/* See keep_name.h. */
#include "transfer/recipes/keep_name.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run/file.h"

static size_t
folder_len(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) + 1 : 0;
}

static bool
same_folder(const char *a, const char *b)
{
    size_t n = folder_len(a);

    return n == folder_len(b) && !memcmp(a, b, n);
}

int
keep_name_check(const struct node *top, const struct node *base,
                struct err *err)
{
    const struct node *from = node_local_file(base);
    const struct node *to = node_local_file(top);
    const char *was = node_image_format(top), *is = node_image_format(base);
    int r = 0;

    if (!from || !to) {
        r = err_set(err, -ENOTSUP, "'%s' cannot take the name of '%s': not "
                                   "both are local files",
                    base->name, top->name);
    } else if (strcmp(was, is)) {
        r = err_set(err, -ENOTSUP, "'%s' cannot take the name of '%s', which is "
                                   "opened as %s: it is %s",
                    from->filename, to->filename, was, is);
    } else if (from->file_id.dev != to->file_id.dev) {
        r = err_set(err, -EXDEV, "'%s' cannot take the name of '%s': they are "
                                 "on different file systems",
                    from->filename, to->filename);
    } else if (!same_folder(from->filename, to->filename)) {
        r = err_set(err, -EXDEV, "'%s' cannot take the name of '%s': they are "
                                 "in different folders",
                    from->filename, to->filename);
    }
    if (r) {
        err_hint(err, "leave 'keep-name' out, or merge into the overlay");
    }
    return r;
}

/* Is it still the file that is open? */
static int
check_file(const struct node *file, struct err *err)
{
    struct file *f;
    int r = file_open(graph_loop(file->graph), file->filename, 0, &f);

    if (r) {
        return err_set_errno(err, r, "Could not open '%s'", file->filename);
    }
    bool same = f->dev == file->file_id.dev && f->ino == file->file_id.ino;

    file_close(f);
    return same ? 0
                : err_set(err, -ESTALE,
                          "'%s' is another file by now: it is left alone",
                          file->filename);
}

int
keep_name(struct node *top, struct node *base, struct err *err)
{
    const struct node *from = node_local_file(base);
    const struct node *to = node_local_file(top);
    struct loop *loop = graph_loop(base->graph);
    auto_free char *name = xstrdup(to->filename);
    int r = check_file(from, err);

    r = r ? r : check_file(to, err);
    if (r) {
        return r;
    }
    r = file_rename(loop, from->filename, name);
    r = r ? r : folder_sync(loop, name);
    if (r) {
        return err_set_errno(err, r, "Could not rename '%s' to '%s'",
                             from->filename, name);
    }
    while (base->file) {
        base = base->file->child;
    }
    json_object_set_new(base->options, "filename", json_string(name));
    node_show_file(base, name, base->file_id);
    return 0;
}
