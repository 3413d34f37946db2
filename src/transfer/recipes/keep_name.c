// SPDX-License-Identifier: BSD-3-Clause
/* See keep_name.h. */
#include "transfer/recipes/keep_name.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run/file.h"

/* What the names of both are, and the files that these lead to. */
struct names {
    char *from, *to, *real_from, *real_to;
};

static void
names_fini(struct names *n)
{
    free(n->from);
    free(n->to);
    free(n->real_from);
    free(n->real_to);
}

static int
names_find(struct names *n, const struct node *from, const struct node *to,
           struct err *err)
{
    struct loop *loop = graph_loop(from->graph);
    /* What is asked for yields, and a node may change its name meanwhile. */
    auto_free char *from_name = xstrdup(from->filename);
    auto_free char *to_name = xstrdup(to->filename);
    int r;

    *n = (struct names){.from = file_own_path(loop, from_name)};
    n->to = file_own_path(loop, to_name);
    r = file_real_path(loop, n->from, &n->real_from);
    r = r ? r : file_real_path(loop, n->to, &n->real_to);
    return r ? err_set_errno(err, r, "Cannot tell where '%s' and '%s' lie",
                             n->from, n->to)
             : 0;
}

/* Its header counts from the folder of the name by which it is opened. */
static bool
needs_its_folder(const struct node *base)
{
    const char *name = base->header_backing.filename;

    return name && name[0] != '/';
}

static int
check_folders(const struct node *from, const struct node *to, bool needs,
              struct err *err)
{
    struct names n;
    int r = names_find(&n, from, to, err);

    if (!r && (!path_in_same_folder(n.real_from, n.real_to) ||
               (needs && !path_in_same_folder(n.from, n.to)))) {
        r = err_set(err, -EXDEV, "'%s' cannot take the name of '%s': they are "
                                 "in different folders",
                    n.from, n.to);
    }
    names_fini(&n);
    return r;
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
    } else {
        r = check_folders(from, to, needs_its_folder(base), err);
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

/* The link of the disk leads to the survivor then. */
static int
rename_file(struct loop *loop, const struct names *n, struct err *err)
{
    int r = file_rename(loop, n->real_from, n->real_to);

    r = r ? r : folder_sync(loop, n->real_to);
    return r ? err_set_errno(err, r, "Could not rename '%s' to '%s'",
                             n->real_from, n->real_to)
             : 0;
}

/* That of the survivor leads nowhere. */
static int
remove_link(struct loop *loop, const struct names *n, struct err *err)
{
    if (!strcmp(n->from, n->real_from)) {
        return 0;
    }
    int r = file_unlink(loop, n->from);

    r = r ? r : folder_sync(loop, n->from);
    return r ? err_set_errno(err, r, "Could not remove the link '%s'", n->from)
             : 0;
}

int
keep_name(struct node *top, struct node *base, struct err *err)
{
    const struct node *from = node_local_file(base);
    const struct node *to = node_local_file(top);
    struct loop *loop = graph_loop(base->graph);
    auto_free char *name = xstrdup(to->filename);
    struct names n = {0};
    int r = check_file(from, err);

    r = r ? r : check_file(to, err);
    r = r ? r : names_find(&n, from, to, err);
    r = r ? r : rename_file(loop, &n, err);
    if (!r) {
        while (base->file) {
            base = base->file->child;
        }
        json_object_set_new(base->options, "filename", json_string(name));
        node_show_file(base, name, base->file_id);
        r = remove_link(loop, &n, err);
    }
    names_fini(&n);
    return r;
}
