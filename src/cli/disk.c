// SPDX-License-Identifier: BSD-3-Clause
/* Looks up nodes and exports in what a daemon tells of them. */
#include "cli/disk.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

enum { NAME_MAX_BYTES = 31 }; /* of a node, in QEMU */

char *
disk_node(struct qmp_client *c, const char *disk, const char *was)
{
    json_t *list = NULL, *e;
    char *name = NULL;
    size_t i;

    qmp_client_call(c, "query-block-exports", NULL, &list, NULL);
    json_array_foreach(list, i, e)
    {
        if (!name && !strcmp(qmp_text(e, "id"), disk)) {
            name = xstrdup(qmp_text(e, "node-name"));
        }
    }
    json_decref(list);
    return name || !was ? name : xstrdup(was);
}

static int
list_nodes(struct qmp_client *c, json_t **ret, struct err *err)
{
    return qmp_client_call(c, "query-named-block-nodes",
                           json_pack("{s:b}", "flat", 1), ret, err);
}

/* Borrowed from @nodes; NULL where there is none. */
static json_t *
find_node(json_t *nodes, const char *name)
{
    json_t *node;
    size_t i;

    json_array_foreach(nodes, i, node)
    {
        if (!strcmp(qmp_text(node, "node-name"), name)) {
            return node;
        }
    }
    return NULL;
}

/* Not what lies below it, or a filter over it. */
static bool
is_image(const json_t *node)
{
    const char *driver = qmp_text(node, "drv");

    return !strcmp(driver, "raw") || !strcmp(driver, "qcow2") ||
           !strcmp(driver, "qed");
}

/*
 * Does it show the file @name?  One that is there is compared as a file; else
 * it is how the daemon names it, or the last part of that.
 */
static bool
shows(struct qmp_client *c, const json_t *node, const char *name)
{
    const char *file = qmp_text(node, "file");
    const char *slash = strrchr(file, '/');
    auto_free char *path = is_image(node) ? qmp_client_path(c, file) : NULL;
    struct stat ours, theirs;

    if (!*file || !is_image(node)) {
        return false;
    }
    if (path && !stat(name, &ours)) {
        return !stat(path, &theirs) && ours.st_dev == theirs.st_dev &&
               ours.st_ino == theirs.st_ino;
    }
    return !strcmp(file, name) ||
           (!strchr(name, '/') && slash && !strcmp(slash + 1, name));
}

/* By its name, or by its file; borrowed from @nodes. */
static int
find_any(struct qmp_client *c, json_t *nodes, const char *name, json_t **ret,
         struct err *err)
{
    json_t *node;
    size_t i;

    *ret = find_node(nodes, name);
    if (*ret) {
        return 0;
    }
    json_array_foreach(nodes, i, node)
    {
        if (!shows(c, node, name)) {
            continue;
        }
        if (*ret) {
            return err_set(err, -EINVAL,
                           "The nodes '%s' and '%s' both show '%s': name one "
                           "of them",
                           qmp_text(*ret, "node-name"),
                           qmp_text(node, "node-name"), name);
        }
        *ret = node;
    }
    return *ret ? 0
                : err_set_class(err, ERR_DEVICE_NOT_FOUND, -ENOENT,
                                "The daemon has no disk, node or image file "
                                "'%s'",
                                name);
}

int
disk_find(struct qmp_client *c, const char *disk, char **ret, struct err *err)
{
    *ret = disk_node(c, disk, NULL);
    return *ret ? 0 : disk_find_node(c, disk, ret, err);
}

int
disk_find_node(struct qmp_client *c, const char *node, char **ret,
               struct err *err)
{
    json_t *nodes = NULL, *found;
    int r = list_nodes(c, &nodes, err);

    r = r ? r : find_any(c, nodes, node, &found, err);
    if (!r) {
        *ret = xstrdup(qmp_text(found, "node-name"));
    }
    json_decref(nodes);
    return r;
}

/* The node below in that role, borrowed from @nodes; or NULL. */
static json_t *
child(json_t *nodes, const json_t *node, const char *role)
{
    json_t *edge;
    size_t i;

    json_array_foreach(json_object_get(node, "children"), i, edge)
    {
        if (!strcmp(qmp_text(edge, "child"), role)) {
            return find_node(nodes, qmp_text(edge, "node-name"));
        }
    }
    return NULL;
}

/* From @top down, with filters; a filter's "file" is the image below it. */
static json_t *
chain_of(json_t *nodes, const char *top)
{
    json_t *chain = json_array();

    for (json_t *n = find_node(nodes, top), *below; n; n = below) {
        json_array_append(chain, n);
        below = child(nodes, n, "backing");
        if (!below && !is_image(n)) {
            below = child(nodes, n, "file");
        }
    }
    return chain;
}

/* The n-th image of the chain, or the last; the caller's, or NULL. */
static char *
nth_of_chain(struct qmp_client *c, const char *top, size_t n)
{
    json_t *nodes = NULL, *chain, *node;
    char *name = NULL;
    size_t i, k = 0;

    list_nodes(c, &nodes, NULL);
    chain = chain_of(nodes, top);
    json_array_foreach(chain, i, node)
    {
        if (is_image(node) && k++ && k - 1 <= n) {
            free(name);
            name = xstrdup(qmp_text(node, "node-name"));
        }
    }
    json_decref(chain);
    json_decref(nodes);
    return name;
}

char *
disk_below(struct qmp_client *c, const char *node)
{
    return nth_of_chain(c, node, 1);
}

char *
disk_lowest(struct qmp_client *c, const char *node)
{
    return nth_of_chain(c, node, SIZE_MAX);
}

json_t *
disk_layers(struct qmp_client *c, const char *top, const char *bottom)
{
    json_t *nodes = NULL, *chain, *node, *names = json_array();
    bool over = false;
    size_t i;

    list_nodes(c, &nodes, NULL);
    chain = chain_of(nodes, top);
    json_array_foreach(chain, i, node)
    {
        const char *name = qmp_text(node, "node-name");

        if (is_image(node) && !over) {
            json_array_append_new(names, json_string(name));
        }
        over |= bottom && !strcmp(name, bottom);
    }
    json_decref(chain);
    json_decref(nodes);
    return names;
}

bool
disk_is_below(struct qmp_client *c, const char *top, const char *layer)
{
    json_t *nodes = NULL, *chain;

    list_nodes(c, &nodes, NULL);
    chain = chain_of(nodes, top);
    bool is = layer && find_node(chain, layer);

    json_decref(chain);
    json_decref(nodes);
    return is;
}

char *
disk_file(struct qmp_client *c, const char *node)
{
    json_t *info = NULL;
    char *file = NULL;

    if (node && !disk_info(c, node, &info, NULL)) {
        file = xstrdup(qmp_text(info, "file"));
    }
    json_decref(info);
    return file;
}

void
disk_say_file(const struct cli *cli, const char *disk, const char *file)
{
    if (cli->own && !cli->json && file && strcmp(file, disk)) {
        printf("The disk is in '%s' now; '%s' is out of use.\n", file, disk);
    }
}

static void
hint_layers(json_t *chain, struct err *err)
{
    char *files = xstrdup("");
    json_t *node;
    size_t i;

    json_array_foreach(chain, i, node)
    {
        char *more = xasprintf("%s%s'%s'", files, *files ? ", " : "",
                               qmp_text(node, "file"));

        free(files);
        files = more;
    }
    err_hint(err, "it has %s", files);
    free(files);
}

int
disk_find_layer(struct qmp_client *c, const char *top, const char *layer,
                char **ret, struct err *err)
{
    json_t *nodes = NULL, *chain, *found;
    int r = list_nodes(c, &nodes, err);

    if (r) {
        return r;
    }
    found = find_node(nodes, layer); /* wherever it is: the daemon says more */
    chain = chain_of(nodes, top);
    r = found ? 0 : find_any(c, chain, layer, &found, err);
    if (r == -ENOENT && qmp_client_called(c, top)) {
        err_clear(err);
        err_set(err, r, "'%s' has no layer '%s'", qmp_client_called(c, top),
                layer);
        hint_layers(chain, err);
    } else if (!r && qmp_client_called(c, top)) {
        qmp_client_call_node(c, qmp_text(found, "node-name"), layer);
    }
    if (!r) {
        *ret = xstrdup(qmp_text(found, "node-name"));
    }
    json_decref(chain);
    json_decref(nodes);
    return r;
}

int
disk_info(struct qmp_client *c, const char *node, json_t **ret,
          struct err *err)
{
    json_t *nodes = NULL;
    int r = list_nodes(c, &nodes, err);

    if (!r) {
        json_t *found = find_node(nodes, node);

        r = found ? 0 : err_set(err, -ENOENT, "There is no node '%s'", node);
        *ret = json_incref(found);
    }
    json_decref(nodes);
    return r;
}

char *
disk_free_name(struct qmp_client *c, const char *wish, struct err *err)
{
    json_t *nodes = NULL;
    char *name = xasprintf("%.*s", NAME_MAX_BYTES, wish);

    if (list_nodes(c, &nodes, err)) {
        free(name);
        return NULL;
    }
    for (unsigned i = 2; find_node(nodes, name); i++) {
        auto_free char *number = xasprintf("-%u", i);
        int room = NAME_MAX_BYTES - (int)strlen(number);

        free(name);
        name = xasprintf("%.*s%s", room, wish, number);
    }
    json_decref(nodes);
    return name;
}

char *
disk_job_id(const char *verb, const char *disk, const char *given)
{
    const char *slash = strrchr(disk, '/');
    char *id = given ? xstrdup(given)
                     : xasprintf("%s-%s", verb, slash ? slash + 1 : disk);

    for (char *p = id; *p && !given; p++) {
        *p = isalnum((unsigned char)*p) || strchr("-._", *p) ? *p : '-';
    }
    return id;
}

char *
disk_absolute(const char *path)
{
    auto_free char *here = *path == '/' ? NULL : getcwd(NULL, 0);

    while (!strncmp(path, "./", 2)) {
        path += 2;
    }

    return here ? xasprintf("%s/%s", here, path) : xstrdup(path);
}

int
disk_check_new(const char *path, struct err *err)
{
    const char *slash = strrchr(path, '/');
    auto_free char *folder =
        slash ? xstrndup(path, slash - path + 1) : xstrdup(".");
    struct stat st;

    if (!lstat(path, &st)) {
        return err_set(err, -EEXIST, "'%s' exists", path);
    }
    if (errno == ENOENT && !stat(folder, &st) &&
        (!access(folder, W_OK) || errno != EROFS)) {
        return 0;
    }
    return err_set_errno(err, -errno, "Could not create '%s'", path);
}

json_t *
disk_absolute_list(json_t *paths)
{
    json_t *list = json_array(), *path;
    size_t i;

    json_array_foreach(paths, i, path)
    {
        auto_free char *full = disk_absolute(json_string_value(path));

        json_array_append_new(list, json_string(full));
    }
    return list;
}
