// SPDX-License-Identifier: BSD-3-Clause
/*
 * See dependents.h.  Of the images that lie there only the headers are read, and
 * of these only what they name: nobody need be able to open them.
 */
#include "block/dependents.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/graph_internal.h"
#include "run/file.h"

struct target {
    struct dependents_of of;
    const struct node *file;
    uint64_t n_links, n_names; /* names that it has, and that were found */
};

struct search {
    const struct dependents_search *what;
    struct graph *graph;
    struct target *targets;
    size_t n_targets;
    unsigned looked_at; /* files, for the message */
};

static const char *
base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static int
refuse(const struct search *s, const struct target *t, const char *why,
       const char *who, struct err *err)
{
    int r = err_set(err, -EBUSY, "'%s' may not %s: %s%s", t->file->filename,
                    s->what->stays ? "lose what it holds" : "be deleted", why,
                    who);

    err_hint(err, "looked at %u files, in its folder, those of the images over "
                  "it, and %zu others; with 'exclusive' nobody else is looked "
                  "for",
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
check_nodes(const struct search *s, const struct target *t, struct err *err)
{
    list_for_each(it, &t->of.node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e->role == EDGE_BACKING && e->parent != t->of.except) {
            return refuse(s, t, "it is the backing file of node ",
                          e->parent->name, err);
        }
    }
    list_for_each(it, &s->graph->nodes)
    {
        const struct node *n = container_of(it, struct node, link);

        if (n->drv && n->drv->is_protocol && n != t->file &&
            n->file_id.ino == t->file->file_id.ino &&
            n->file_id.dev == t->file->file_id.dev &&
            !belongs_to(n, t->file)) {
            return refuse(s, t, "it is open a second time, as node ", n->name,
                          err);
        }
    }
    return 0;
}

/* In the folders. */

static bool
shows(const struct node *node, const struct file *f)
{
    const struct node *file = node ? node_file_below(node) : NULL;

    return file && f->dev == file->file_id.dev && f->ino == file->file_id.ino;
}

static struct target *
find_target(const struct search *s, const struct file *f)
{
    for (size_t i = 0; i < s->n_targets; i++) {
        if (shows(s->targets[i].file, f)) {
            return &s->targets[i];
        }
    }
    return NULL;
}

/* @path leads to it: is it a name of its own, or a link? */
static void
count_name(const struct search *s, struct target *t, const char *path)
{
    auto_free char *own = file_own_path(s->graph->loop, path);
    struct file_location at;

    if (!file_locate(s->graph->loop, path, &at)) {
        t->n_links = at.n_links;
        t->n_names += !strcmp(own, at.path);
        file_location_fini(&at);
    }
}

/* What the header of an image names, none where it is no image. */
static int
find_names(const struct search *s, struct file *f, struct header_names *ret)
{
    auto_free unsigned char *head = xzalloc(HEADER_PEEK);
    bool is_image = false;
    int r = file_read_buf(f, 0, head, HEADER_PEEK);

    *ret = (struct header_names){0};
    for (const struct driver *const *d = s->graph->drivers;
         *d && !r && !is_image; d++) {
        is_image = (*d)->find_names && (*d)->find_names(head, ret);
    }
    return r;
}

/* To be freed.  -EUCLEAN where it can be no name. */
static int
read_name(struct file *f, uint64_t off, uint32_t len, char **ret)
{
    enum { NAME_LIMIT = 4096 }; /* of QED; of qcow2 it is 1023 */
    uint64_t size;
    int r = file_size(f, &size);

    if (!r && (!off || len > NAME_LIMIT || off > size || len > size - off)) {
        r = -EUCLEAN;
    }
    if (r) {
        return r;
    }
    *ret = xzalloc(len + 1);
    r = file_read_buf(f, off, *ret, len);
    if (r) {
        free(take_ptr(*ret));
    }
    return r;
}

/* Where the path leads, if that is one of ours. */
static struct target *
find_by_path(const struct search *s, const char *path)
{
    struct target *t = NULL;
    struct file *f;

    if (!file_open(s->graph->loop, path, 0, &f)) {
        t = find_target(s, f);
        file_close(f);
    }
    return t;
}

/*
 * With "file:" or in options QEMU takes a name as it is, from the folder that it
 * runs in; we take it from the image's.  It may be either.
 */
static struct target *
find_by_both(const struct search *s, const char *image, const char *name)
{
    auto_free char *path = backing_path_from(image, name);
    struct target *t = find_by_path(s, path);

    return t || !strcmp(path, name) ? t : find_by_path(s, name);
}

/* "json:" and options: any text in them may be a file's name. */
static struct target *
find_in_options(const struct search *s, const char *image, json_t *value)
{
    struct target *t = NULL;
    const char *key;
    json_t *inner;

    if (json_is_string(value)) {
        return find_by_both(s, image, json_string_value(value));
    }
    json_object_foreach(value, key, inner)
    {
        t = t ? t : find_in_options(s, image, inner);
    }
    return t;
}

/* The one whose name it could be, where it is of a kind that is not known. */
static struct target *
find_by_text(const struct search *s, const char *name)
{
    for (size_t i = 0; i < s->n_targets; i++) {
        if (strstr(name, base_name(s->targets[i].file->filename))) {
            return &s->targets[i];
        }
    }
    return NULL;
}

/* Which of ours is the file @name of the image @path?  NULL: none. */
static struct target *
find_named(const struct search *s, const char *path, const char *name)
{
    if (backing_is_path(name) && strncmp(name, "file:", 5)) {
        auto_free char *backing = backing_path_from(path, name);

        return find_by_path(s, backing);
    }
    json_t *options = strncmp(name, "json:", 5)
                          ? NULL
                          : json_loads(name + 5, JSON_REJECT_DUPLICATES, NULL);
    struct target *t = options ? find_in_options(s, path, options)
                               : find_by_both(s, path, strchr(name, ':') + 1);

    json_decref(options);
    return t ? t : find_by_text(s, name);
}

static int
look_into(struct search *s, struct file *f, const char *path, struct err *err)
{
    struct target *ours = find_target(s, f), *t;
    struct header_names names;
    int r = find_names(s, f, &names);

    if (ours) {
        count_name(s, ours, path);
    }
    for (unsigned i = 0; i < names.n && !r; i++) {
        auto_free char *name = NULL;

        r = read_name(f, names.name[i].off, names.name[i].len, &name);
        t = r ? NULL : find_named(s, path, name);
        if (t && !shows(t->of.except, f) && !shows(t->file, f)) {
            return refuse(s, t, "it is the backing file of ", path, err);
        }
    }
    /* Of what is open it is known what it stands on. */
    return r && !ours ? refuse(s, &s->targets[0],
                               "the header of this image is damaged, and "
                               "could name it: ",
                               path, err)
                      : 0;
}

static int
look_at(struct search *s, const char *path, struct err *err)
{
    struct file *f;
    int r = file_open(s->graph->loop, path, 0, &f);

    s->looked_at++;
    if (r == -EISDIR || r == -ENOTSUP || r == -ENXIO || r == -ENOENT ||
        r == -ELOOP) {
        /* a folder; a pipe; a socket; it has just gone; links in a circle */
        return 0;
    }
    if (r) {
        return refuse(s, &s->targets[0],
                      "this file cannot be read, and could need it: ", path,
                      err);
    }
    r = look_into(s, f, path, err);
    file_close(f);
    return r;
}

static int
look_in(struct search *s, const char *folder, struct err *err)
{
    auto_free char *in = xasprintf("%s/.", folder);
    char **names;
    size_t n;
    int r = folder_list(s->graph->loop, in, &names, &n);

    if (r) {
        return err_set_errno(err, r, "Cannot look for dependants in '%s'",
                             folder);
    }
    for (size_t i = 0; i < n && !r; i++) {
        r = look_at(s, names[i], err);
    }
    names_free(names, n);
    return r;
}

/*
 * Which folders.  An overlay names an image by a path of any kind, so any
 * folder may hold one.  It is looked where people put them: beside the image,
 * beside the images that stand on it here, and what they say.
 */

/* A list of strings. */
struct texts {
    char **of;
    size_t n;
};

static void
texts_add(struct texts *list, char *text)
{
    for (size_t i = 0; i < list->n; i++) {
        if (!strcmp(list->of[i], text)) {
            free(text);
            return;
        }
    }
    list->of = xrealloc(list->of, (list->n + 1) * sizeof(char *));
    list->of[list->n++] = text;
}

/* The files of all images that stand on the nodes, and of these; no yield. */
static void
add_files(const struct search *s, struct texts *files)
{
    auto_free const struct node **nodes = NULL;
    size_t n = 0;

    for (size_t i = 0; i < s->n_targets; i++) {
        nodes = xrealloc(nodes, (n + 2) * sizeof(*nodes));
        nodes[n++] = s->targets[i].of.node;
        if (s->targets[i].of.except) {
            nodes[n++] = s->targets[i].of.except;
        }
    }
    for (size_t i = 0; i < n; i++) {
        const struct node *file = node_file_below(nodes[i]);

        if (file && !file->is_device && file->filename) {
            texts_add(files, xstrdup(file->filename));
        }
        list_for_each(it, &nodes[i]->parents)
        {
            const struct edge *e = container_of(it, struct edge, link);
            bool is_there = !e->parent;

            for (size_t k = 0; k < n && !is_there; k++) {
                is_there = nodes[k] == e->parent;
            }
            if (!is_there) {
                nodes = xrealloc(nodes, (n + 1) * sizeof(*nodes));
                nodes[n++] = e->parent;
            }
        }
    }
}

static char *
folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return xasprintf("%.*s", slash ? (int)(slash - path) : 1,
                     slash ? path : ".");
}

/* A link's target has neighbours, too, and these can name it. */
static int
add_folders_of(struct search *s, const char *path, struct texts *folders,
               struct err *err)
{
    struct loop *loop = s->graph->loop;
    auto_free char *own = file_own_path(loop, path);
    auto_free char *real = NULL;
    int r = file_real_path(loop, path, &real);

    if (r && r != -ENOENT) { /* it may have lost its name */
        return err_set_errno(err, r, "Cannot tell where '%s' lies", path);
    }
    texts_add(folders, folder_of(own));
    if (real) {
        texts_add(folders, folder_of(real));
    }
    return 0;
}

static int
add_stated_folder(struct search *s, const char *folder, struct texts *folders,
                  struct err *err)
{
    char *real;
    int r = file_real_path(s->graph->loop, folder, &real);

    if (r) {
        return err_set_errno(err, r, "Cannot look for dependants in '%s'",
                             folder);
    }
    texts_add(folders, real);
    return 0;
}

/* A name that was not found may be what an image elsewhere calls it by. */
static int
check_names(const struct search *s, struct err *err)
{
    for (size_t i = 0; i < s->n_targets; i++) {
        const struct target *t = &s->targets[i];
        auto_free char *names =
            xasprintf("%llu of its %llu names (hard links)",
                      (unsigned long long)(t->n_links - t->n_names),
                      (unsigned long long)t->n_links);

        if (t->n_links > t->n_names) {
            return refuse(s, t, "an image elsewhere could name it by ", names,
                          err);
        }
    }
    return 0;
}

static int
look_everywhere(struct search *s, struct err *err)
{
    struct texts files = {0}, folders = {0};
    int r = 0;

    add_files(s, &files);
    for (size_t i = 0; i < files.n && !r; i++) {
        r = add_folders_of(s, files.of[i], &folders, err);
    }
    for (size_t i = 0; i < s->what->n_folders && !r; i++) {
        r = add_stated_folder(s, s->what->folders[i], &folders, err);
    }
    for (size_t i = 0; i < folders.n && !r; i++) {
        r = look_in(s, folders.of[i], err);
    }
    names_free(files.of, files.n);
    names_free(folders.of, folders.n);
    return r ? r : check_names(s, err);
}

/* One image after the other, and then all of them at once. */

static int
check_here(const struct search *s, const struct target *t, struct err *err)
{
    const struct node *file = t->file;

    if (t->of.node->read_only && !s->what->stays && !s->what->is_opened_to_look) {
        return err_set(err, -EACCES,
                       "'%s' may not be deleted: node '%s' is read-only",
                       file->filename, t->of.node->name);
    }
    return check_nodes(s, t, err);
}

static int
check_alone(const struct search *s, const struct target *t, struct err *err)
{
    struct node *file = (struct node *)(uintptr_t)t->file;

    return file->drv->check_alone && file->drv->check_alone(file)
               ? refuse(s, t, "another program uses it", "", err)
               : 0;
}

static int
check(struct search *s, struct err *err)
{
    int r = 0;

    for (size_t i = 0; i < s->n_targets && !r; i++) {
        r = check_here(s, &s->targets[i], err);
    }
    if (r || s->what->exclusive) {
        return r;
    }
    for (size_t i = 0; i < s->n_targets && !r; i++) {
        r = check_alone(s, &s->targets[i], err);
    }
    return r ? r : look_everywhere(s, err);
}

/* One that stays and has no file has nobody outside who could miss it. */
static int
add_target(struct search *s, const struct dependents_of *of, struct err *err)
{
    const struct dependents_search *what = s->what;
    const struct node *file = what->stays           ? node_file_below(of->node)
                              : what->may_be_device ? node_own_file(of->node)
                                                    : node_local_file(of->node);

    if (!file && !what->stays) {
        return err_set(err, -ENOTSUP,
                       "Node '%s' is no regular file of its own, which could "
                       "be deleted",
                       of->node->name);
    }
    if (file) {
        s->targets[s->n_targets++] = (struct target){.of = *of, .file = file};
    }
    return 0;
}

int
dependents_check(const struct dependents_of *of, size_t n,
                 const struct dependents_search *how, struct err *err)
{
    auto_free struct target *targets = xzalloc((n + 1) * sizeof(*targets));
    struct search s = {.what = how, .targets = targets};
    int r = 0;

    for (size_t i = 0; i < n && !r; i++) {
        r = add_target(&s, &of[i], err);
    }
    if (!r && s.n_targets) {
        s.graph = of->node->graph;
        r = check(&s, err);
    }
    return r;
}
