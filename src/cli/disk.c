// SPDX-License-Identifier: BSD-3-Clause
/* Looks up nodes and exports in what a daemon tells of them. */
#include "cli/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum { NAME_MAX_BYTES = 31 }; /* of a node, in QEMU */

char *
disk_node(struct qmp_client *c, const char *disk)
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
    return name ? name : xstrdup(disk);
}

bool
disk_is_exported(struct qmp_client *c, const char *node)
{
    json_t *list = NULL, *e;
    bool found = false;
    size_t i;

    qmp_client_call(c, "query-block-exports", NULL, &list, NULL);
    json_array_foreach(list, i, e)
    {
        found |= !strcmp(qmp_text(e, "node-name"), node);
    }
    json_decref(list);
    return found;
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
disk_absolute(const char *path)
{
    auto_free char *here = *path == '/' ? NULL : getcwd(NULL, 0);

    while (!strncmp(path, "./", 2)) {
        path += 2;
    }

    return here ? xasprintf("%s/%s", here, path) : xstrdup(path);
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
