// SPDX-License-Identifier: BSD-3-Clause
/* See place.h. */
#include "journal/place.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

static void
add(struct journal_places *p, char *path)
{
    if (path) {
        p->paths[p->n++] = path;
    }
}

static char *
path_beside(const struct journal_places *p)
{
    return xasprintf("%s.sluice", p->image);
}

/* NULL where there is no state folder. */
static char *
path_in_state(const struct journals *js, const char *image)
{
    auto_free char *here = image[0] == '/' ? NULL : getcwd(NULL, 0);
    auto_free char *path =
        xasprintf("%s%s%s", here ? here : "", here ? "/" : "", image);
    auto_free char *name = xmalloc(2 * strlen(path) + 1);
    char *to = name;

    for (const char *c = path; *c; c++) {
        *to++ = *c == '/' ? '!' : *c;
        if (*c == '!') {
            *to++ = '!';
        }
    }
    *to = 0;
    return js->state_dir ? xasprintf("%s/%s.sluice", js->state_dir, name)
                         : NULL;
}

static char *
path_by_inode(const struct journals *js, const struct file_location *at)
{
    return js->state_dir && at->path
               ? xasprintf("%s/inode-%llx-%llx.sluice", js->state_dir,
                           (unsigned long long)at->ino,
                           (unsigned long long)at->born)
               : NULL;
}

static char *
path_by_device(const struct journals *js, const struct file_location *at)
{
    return js->state_dir ? xasprintf("%s/device-%llx.sluice", js->state_dir,
                                     (unsigned long long)at->born)
                         : NULL;
}

static void
list_places(const struct journals *js, const struct file_location *at,
            struct journal_places *p)
{
    if (at->is_block_device) {
        add(p, at->born ? path_by_device(js, at) : path_in_state(js, p->image));
        return;
    }
    if (at->n_links > 1) {
        add(p, path_by_inode(js, at));
    }
    add(p, path_beside(p));
    add(p, path_in_state(js, p->image));
    if (at->n_links <= 1) { /* it may have had more */
        add(p, path_by_inode(js, at));
    }
}

int
journal_places_find(const struct journals *js, const char *image,
                    struct journal_places *ret)
{
    auto_free char *copy = xstrdup(image); /* its node may be renamed meanwhile */
    struct file_location at;
    int r = file_locate(js->loop, copy, &at);

    if (r && r != -ENOENT && r != -ENOTDIR && r != -ELOOP) {
        return r;
    }
    if (r) {
        at = (struct file_location){0};
    }
    *ret = (struct journal_places){
        .image = at.path && !at.is_block_device
                     ? xstrdup(at.path)
                     : file_own_path(js->loop, copy)};
    ret->shown = xstrdup(at.by_link ? ret->image : copy);
    list_places(js, &at, ret);
    file_location_fini(&at);
    return 0;
}

void
journal_places_fini(struct journal_places *p)
{
    while (p->n) {
        free(p->paths[--p->n]);
    }
    free(take_ptr(p->image));
    free(take_ptr(p->shown));
}

bool
journal_place_has_none(int r)
{
    return r == -ENOENT || r == -ENOTDIR || r == -ENAMETOOLONG;
}

bool
journal_place_is_unfit(int r)
{
    return r == -EROFS || r == -EACCES || r == -EPERM || r == -ENAMETOOLONG;
}
