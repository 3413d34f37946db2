// SPDX-License-Identifier: BSD-3-Clause
/*
 * blockdev-reopen: the options of nodes that are open, given anew.
 *
 * As with QEMU, an option that is left out gets its default again, and one
 * that cannot change must be what it was; the backing file of an image that has
 * one must be said.
 *
 * It is one transaction: all is checked first; then the backing files change in
 * one edit of the graph, then what is read-only, one by one, which can fail and
 * is undone backwards, and at last, all at once, what cannot fail.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
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
    struct node *old_backing; /* referred to; once it is on the other one */
};

/* Those of one command. */
struct reopenings {
    struct graph *graph;
    struct reopening *v;
    size_t n;
    uint64_t deadline_ns;
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

/* Of a child that is described again, the option that differs. */
static const char *
find_difference(const char *key, json_t *was, json_t *now)
{
    const char *inner;
    json_t *value;

    json_object_foreach(now, inner, value)
    {
        if (json_is_object(was) &&
            !json_equal(value, json_object_get(was, inner))) {
            return inner;
        }
    }
    return key;
}

static int
check_fixed(const struct node *node, json_t *options, struct err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach(options, key, value)
    {
        json_t *was = json_object_get(node->options, key);

        if (!is_changeable(key) && !is_same_child(node, key, value) &&
            !json_equal(value, was)) {
            return err_set(err, -EINVAL, "Cannot change the option '%s'",
                           find_difference(key, was, value));
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

/* Left out where there is one, it could mean that one, the header's, or none. */
static int
check_backing(const struct node *node, json_t *options, struct err *err)
{
    json_t *def = json_object_get(options, "backing");

    if (def && !node->drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' does not support backing "
                       "files",
                       node->drv->name, node->name);
    }
    return def || !(node->backing || node->header_backing.filename)
               ? 0
               : err_set(err, -EINVAL, "backing is missing for '%s'",
                         node->name);
}

static int
find_backing(struct control *ctl, struct reopening *r, struct err *err)
{
    json_t *def = json_object_get(r->options, "backing");
    struct node *node = NULL;
    int code = 0;

    r->sets_backing = def != NULL;
    if (!def || json_is_null(def)) {
        return 0;
    }
    if (!json_is_string(def)) {
        code = err_set(err, -EINVAL,
                       "Cannot change the option 'backing.driver'");
        err_hint(err, "name a node that is open, or say null");
        return code;
    }
    code = control_find_node(ctl, json_string_value(def), false, &node, err);
    r->backing = code ? NULL : node_ref(node);
    return code;
}

/* A job that reads it, or what lies over it, relies on what that reads as. */
static int
check_no_reader(const struct node *node, struct err *err)
{
    int r = node_check_no_job(node, err);

    list_for_each(it, &node->parents)
    {
        r = r ? r
              : check_no_reader(container_of(it, struct edge, link)->parent,
                                err);
    }
    return r;
}

static struct node *
backing_of(const struct node *node)
{
    return node->backing ? node->backing->child : NULL;
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
        code = check_backing(node, options, err);
    }
    if (!code) {
        code = find_backing(ctl, r, err);
    }
    if (!code && r->sets_backing && backing_of(node) != r->backing) {
        code = check_no_reader(node, err);
    }
    if (!code) {
        code = check_fixed(node, options, err);
    }
    return code ? code : node_check_options(options, err);
}

/* Backing files. */

/* Asked right before the swap: to this it goes back. */
static int
keep_old_backing(void *arg)
{
    struct reopenings *all = arg;

    for (size_t i = 0; i < all->n; i++) {
        struct reopening *r = &all->v[i];
        struct node *old = r->sets_backing ? backing_of(r->node) : NULL;

        r->old_backing = old ? node_ref(old) : NULL;
    }
    return 0;
}

/* All of them in one edit, to what was asked for, or @back. */
static int
put_on(struct reopenings *all, bool back, struct err *err)
{
    struct edit *edits = xzalloc((all->n + 1) * sizeof(*edits));
    struct edit_options options = {.deadline_ns = all->deadline_ns,
                                   .check = back ? NULL : keep_old_backing,
                                   .arg = all};
    unsigned n = 0;

    for (size_t i = 0; i < all->n; i++) {
        const struct reopening *r = &all->v[i];
        struct node *to = back ? r->old_backing : r->backing;

        if (r->sets_backing && backing_of(r->node) != to) {
            edits[n++] = (struct edit){EDIT_BACKING, r->node, to};
        }
    }
    int r = n      ? graph_edit(all->graph, edits, n, &options, NULL, err)
            : back ? 0
                   : keep_old_backing(all);

    free(edits);
    return r;
}

/* All of it. */

static int
reopen(struct reopening *r, bool back, struct err *err)
{
    return node_reopen(r->node,
                       back ? r->was_read_only
                            : opt_bool(r->options, "read-only", false),
                       err);
}

/* What an earlier daemon did goes on where it can be written to now. */
static void
go_on(struct control *ctl, const struct reopenings *all)
{
    for (size_t i = 0; i < all->n; i++) {
        if (all->v[i].was_read_only && !all->v[i].node->read_only) {
            control_resume_node(ctl, all->v[i].node);
        }
    }
}

/* The first @n of them were reopened; the backing files of all are new. */
static void
change_back(struct reopenings *all, size_t n)
{
    auto_err err = ERR_INIT;
    int r = 0;

    while (n && !r) {
        r = reopen(&all->v[--n], true, &err);
    }
    if (!r) {
        r = put_on(all, true, &err);
    }
    if (r) { /* somebody else was faster */
        log_warn("blockdev-reopen failed, and could not be undone: %s",
                 err.msg);
    }
}

static int
change(struct reopenings *all, struct err *err)
{
    size_t done = 0;
    int r = put_on(all, false, err);

    if (r) {
        return r;
    }
    while (done < all->n && !r) {
        r = reopen(&all->v[done], false, err);
        done += !r;
    }
    if (r) {
        change_back(all, done);
        return r;
    }
    for (size_t i = 0; i < all->n; i++) {
        node_set_options(all->v[i].node, all->v[i].options);
    }
    return 0;
}

static void
fini(struct reopenings *all)
{
    for (size_t i = 0; i < all->n; i++) {
        struct node *nodes[] = {all->v[i].node, all->v[i].backing,
                                all->v[i].old_backing};

        for (size_t k = 0; k < ARRAY_LEN(nodes); k++) {
            if (nodes[k]) {
                node_unref(nodes[k]);
            }
        }
    }
    free(all->v);
}

int
cmd_blockdev_reopen(struct control *ctl,
                    const struct args_blockdev_reopen *args, json_t **ret,
                    struct err *err)
{
    size_t n = json_array_size(args->options);
    struct reopenings all = {
        .graph = ctl->graph,
        .v = xzalloc((n + 1) * sizeof(*all.v)),
        .n = n,
        .deadline_ns = loop_now(ctl->loop) + CONTROL_DRAIN_SECONDS * NS_PER_S,
    };
    int r = 0;

    for (size_t i = 0; i < n && !r; i++) {
        r = prepare(ctl, json_array_get(args->options, i), &all.v[i], err);
    }
    if (!r) {
        r = change(&all, err);
    }
    if (!r) {
        go_on(ctl, &all);
    }
    fini(&all);
    return r;
}
