// SPDX-License-Identifier: BSD-3-Clause
/*
 * See dependents.h.  Images are opened by their drivers, each alone and without
 * locks, for what their headers name; what has no image's magic is not looked
 * at further.
 */
#include "block/dependents.h"

#include <errno.h>
#include <string.h>

#include "block/graph_internal.h"
#include "run/file.h"

struct search {
    const struct dependents_search *what;
    const struct node *file; /* the image's */
    unsigned looked_at;      /* files, for the message */
};

static const char *
base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static int
refuse(const struct search *s, const char *why, const char *who,
       struct err *err)
{
    int r = err_set(err, -EBUSY, "'%s' may not %s: %s%s", s->file->filename,
                    s->what->stays ? "lose what it holds" : "be deleted", why,
                    who);

    err_hint(err, "looked at %u files in its folder and %zu others; with "
                  "'exclusive' nobody else is looked for",
             s->looked_at, s->what->n_folders);
    return r;
}

/* Here. */

static bool
belongs_to(const struct node *node, const struct node *file)
{
    while (node && node != file) {
        node = node->file ? node->file->child : NULL;
    }
    return node != NULL;
}

static int
check_nodes(const struct search *s, struct err *err)
{
    struct node *node = s->what->node;

    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e->role == EDGE_BACKING && e->parent != s->what->except) {
            return refuse(s, "it is the backing file of node ",
                          e->parent->name, err);
        }
    }
    list_for_each(it, &node->graph->nodes)
    {
        const struct node *n = container_of(it, struct node, link);

        if (n->drv && n->drv->is_protocol && n != s->file &&
            n->file_id.ino == s->file->file_id.ino &&
            n->file_id.dev == s->file->file_id.dev &&
            !belongs_to(n, s->file)) {
            return refuse(s, "it is open a second time, as node ", n->name,
                          err);
        }
    }
    return 0;
}

/* In the folders. */

static const char *
format_of(const unsigned char magic[4])
{
    return !memcmp(magic, "QFI\xfb", 4)  ? "qcow2"
           : !memcmp(magic, "QED\0", 4) ? "qed"
                                        : NULL;
}

static bool
shows(const struct node *node, const struct file *f)
{
    const struct node *file = node ? node_file_below(node) : NULL;

    return file && f->dev == file->file_id.dev && f->ino == file->file_id.ino;
}

/* *ret NULL: no image that could name another, or one that does not count. */
static int
probe(const struct search *s, const char *path, const char **ret)
{
    struct loop *loop = s->what->node->graph->loop;
    unsigned char magic[4];
    struct file *f;
    int r = file_open(loop, path, 0, &f);

    *ret = NULL;
    if (r == -EISDIR || r == -ENOTSUP || r == -ENXIO || r == -ENOENT ||
        r == -ELOOP) {
        /* a folder; a pipe; a socket; it has just gone; links in a circle */
        return 0;
    }
    if (r) {
        return r;
    }
    if (!shows(s->file, f) && !shows(s->what->except, f)) {
        r = file_read_buf(f, 0, magic, sizeof(magic));
        *ret = r ? NULL : format_of(magic);
    }
    file_close(f);
    return r;
}

static bool
is_file(struct loop *loop, const char *path, const struct node *ours)
{
    struct file *f;
    bool same = false;

    if (!file_open(loop, path, 0, &f)) {
        same = shows(ours, f);
        file_close(f);
    }
    return same;
}

/* Does the header of @image lead to our file? */
static bool
names_ours(const struct search *s, struct node *image)
{
    const char *name = image->header_backing.filename;
    auto_free char *path = NULL;

    if (!name) {
        return false;
    }
    if (node_backing_path(image, &path, NULL)) {
        /* Another way to name a file: by its name it could be ours. */
        return strstr(name, base_name(s->file->filename)) != NULL;
    }
    return is_file(image->graph->loop, path, s->file);
}

static int
look_at(struct search *s, const char *path, struct err *err)
{
    struct graph *graph = s->what->node->graph;
    struct node *image;
    const char *format;
    int r = probe(s, path, &format);

    s->looked_at++;
    if (r) {
        return refuse(s, "this file cannot be read, and could need it: ", path,
                      err);
    }
    if (!format) {
        return 0;
    }
    json_t *options =
        json_pack("{s:s, s:b, s:b, s:n, s:{s:s, s:s}}", "driver", format,
                  "read-only", 1, "force-share", 1, "backing", "file",
                  "driver", "file", "filename", path);

    r = options ? node_open(graph, options, &image, NULL) : -EINVAL;
    json_decref(options);
    if (r) {
        return refuse(s, "this image cannot be opened, and could need it: ",
                      path, err);
    }
    bool found = names_ours(s, image);

    node_unref(image);
    return found ? refuse(s, "it is the backing file of ", path, err) : 0;
}

/* @in: a path in the folder. */
static int
look_in(struct search *s, const char *in, struct err *err)
{
    struct loop *loop = s->what->node->graph->loop;
    char **names;
    size_t n;
    int r = folder_list(loop, in, &names, &n);

    if (r) {
        return err_set_errno(err, r, "Cannot look for dependants beside '%s'",
                             in);
    }
    for (size_t i = 0; i < n && !r; i++) {
        r = look_at(s, names[i], err);
    }
    names_free(names, n);
    return r;
}

/* A link's target has neighbours, too, and these can name it. */
static int
look_beside(struct search *s, struct err *err)
{
    struct loop *loop = s->what->node->graph->loop;
    const char *path = s->file->filename;
    auto_free char *own = file_own_path(loop, path);
    auto_free char *real = NULL;
    int r = file_real_path(loop, path, &real);

    if (r && r != -ENOENT) { /* it may have lost its name */
        return err_set_errno(err, r, "Cannot tell where '%s' lies", path);
    }
    r = look_in(s, path, err);
    return r || !real || path_in_same_folder(own, real) ? r
                                                        : look_in(s, real, err);
}

static int
look_everywhere(struct search *s, struct err *err)
{
    int r = s->file->is_device ? 0 : look_beside(s, err);

    for (size_t i = 0; i < s->what->n_folders && !r; i++) {
        auto_free char *in = xasprintf("%s/.", s->what->folders[i]);

        r = look_in(s, in, err);
    }
    return r;
}

int
dependents_check(const struct dependents_search *what, struct err *err)
{
    const struct node *file = what->stays ? node_file_below(what->node)
                              : what->may_be_device
                                  ? node_own_file(what->node)
                                  : node_local_file(what->node);
    struct search s = {what, file, 0};

    if (!file && what->stays) {
        return 0;
    }
    if (!file) {
        return err_set(err, -ENOTSUP,
                       "Node '%s' is no regular file of its own, which could "
                       "be deleted",
                       what->node->name);
    }
    if (what->node->read_only && !what->stays && !what->is_opened_to_look) {
        return err_set(err, -EACCES,
                       "'%s' may not be deleted: node '%s' is read-only",
                       file->filename, what->node->name);
    }
    int r = check_nodes(&s, err);

    if (r || what->exclusive) {
        return r;
    }
    if (file->drv->check_alone &&
        file->drv->check_alone((struct node *)(uintptr_t)file)) {
        return refuse(&s, "another program uses it", "", err);
    }
    return look_everywhere(&s, err);
}
