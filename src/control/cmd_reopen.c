// SPDX-License-Identifier: BSD-3-Clause
/*
 * blockdev-reopen: the options of nodes that are open, given anew.
 *
 * As with QEMU, an option that is left out gets its default again, and one
 * that cannot change must be what it was.  All nodes are checked first; then
 * they change one by one, and those that did change back where one fails.
 */
#include <errno.h>
#include <string.h>

#include "block/edit.h"
#include "control/control_internal.h"
#include "schema_dispatch.h"

/* What can change; everything else must be as it was. */
static const char *const changeable[] = {
    "read-only", "discard", "detect-zeroes", "backing", "node-name",
    "auto-read-only",
};

struct reopening {
    struct node *node, *backing; /* referred to; what it is to be on */
    bool sets_backing;
    json_t *options;
    bool was_read_only;
    struct node *old_backing; /* referred to */
};

static bool
is_changeable(const char *key)
{
    for (size_t i = 0; i < ARRAY_LEN(changeable); i++) {
        if (!strcmp(changeable[i], key)) {
            return true;
        }
    }
    return false;
}

/* A child may be named that was described when it was opened. */
static bool
is_same_child(const struct node *node, const char *key, json_t *value)
{
    return !strcmp(key, "file") && json_is_string(value) && node->file &&
           !strcmp(json_string_value(value), node->file->child->name);
}

static int
check_fixed(const struct node *node, json_t *options, struct err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach(options, key, value)
    {
        if (!is_changeable(key) && !is_same_child(node, key, value) &&
            !json_equal(value, json_object_get(node->options, key))) {
            return err_set(err, -EINVAL, "Cannot change the option '%s'", key);
        }
    }
    json_object_foreach(node->options, key, value)
    {
        if (!is_changeable(key) && !json_object_get(options, key)) {
            return err_set(err, -EINVAL,
                           "Cannot change the option '%s': it must be given "
                           "as it was",
                           key);
        }
    }
    return 0;
}

/* Where it is left out, the header's, as when it was opened. */
static int
find_backing(struct control *ctl, struct reopening *r, struct err *err)
{
    json_t *def = json_object_get(r->options, "backing");
    struct node *node;

    if (!def) {
        return 0;
    }
    r->sets_backing = true;
    if (json_is_null(def)) {
        return 0;
    }
    if (!json_is_string(def)) {
        return err_set(err, -EINVAL,
                       "Cannot change the option 'backing.driver': name a node "
                       "or say null");
    }
    int code = control_find_node(ctl, json_string_value(def), false, &node,
                                 err);

    if (!code) {
        r->backing = node_ref(node);
    }
    return code;
}

static int
prepare(struct control *ctl, json_t *options, struct reopening *r,
        struct err *err)
{
    const char *name = opt_str(options, "node-name");

    r->options = options;
    if (!name) {
        return err_set(err, -EINVAL, "node-name not specified");
    }
    struct node *node = graph_find(ctl->graph, name);

    if (!node) {
        return err_set(err, -ENOENT, "Failed to find node with node-name='%s'",
                       name);
    }
    r->node = node_ref(node);
    r->was_read_only = node->read_only;
    int code = node_check_active(node, err);

    if (!code) {
        code = check_fixed(node, options, err);
    }

    if (!code) {
        code = find_backing(ctl, r, err);
    }
    if (!code && r->sets_backing && !node->drv->set_backing) {
        code = err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' does not support backing "
                       "files",
                       node->drv->name, name);
    }
    return code;
}

static int
put_on(struct node *node, struct node *backing, uint64_t deadline,
       struct err *err)
{
    struct edit edit = {EDIT_BACKING, node, backing};
    struct edit_options options = {.deadline_ns = deadline};

    return (node->backing ? node->backing->child : NULL) == backing
               ? 0
               : graph_edit(node->graph, &edit, 1, &options, NULL, err);
}

/* What cannot fail comes last. */
static int
change(struct reopening *r, uint64_t deadline, struct err *err)
{
    struct node *node = r->node;
    int code = 0;

    if (node->backing) {
        r->old_backing = node_ref(node->backing->child);
    }
    if (r->sets_backing) {
        code = put_on(node, r->backing, deadline, err);
    }
    if (!code) {
        code = node_reopen(node, opt_bool(r->options, "read-only", false),
                           err);
    }
    if (!code) {
        code = node_set_options(node, r->options, err);
    }
    return code;
}

static void
change_back(struct reopening *r, uint64_t deadline)
{
    node_reopen(r->node, r->was_read_only, NULL);
    if (r->sets_backing) {
        put_on(r->node, r->old_backing, deadline, NULL);
    }
}

static void
fini(struct reopening *r)
{
    struct node *nodes[] = {r->node, r->backing, r->old_backing};

    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        if (nodes[i]) {
            node_unref(nodes[i]);
        }
    }
}

int
cmd_blockdev_reopen(struct control *ctl,
                    const struct args_blockdev_reopen *args, json_t **ret,
                    struct err *err)
{
    size_t n = json_array_size(args->options), done = 0;
    struct reopening *all = xzalloc((n + 1) * sizeof(*all));
    uint64_t deadline =
        loop_now(ctl->loop) + CONTROL_DRAIN_SECONDS * NS_PER_S;
    int r = 0;

    for (size_t i = 0; i < n && !r; i++) {
        r = prepare(ctl, json_array_get(args->options, i), &all[i], err);
    }
    while (!r && done < n) {
        r = change(&all[done++], deadline, err);
    }
    while (r && done) {
        change_back(&all[--done], deadline);
    }
    for (size_t i = 0; i < n; i++) {
        fini(&all[i]);
    }
    free(all);
    return r;
}
