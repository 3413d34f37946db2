// SPDX-License-Identifier: BSD-3-Clause
/*
 * Snapshots: overlays put on top of nodes, of one disk or of several at one
 * instant.
 *
 * A snapshot is prepared first: the overlay is created and opened, the node is
 * flushed.  All that are prepared are then done by one graph_edit(), or none
 * of them: what was opened is closed again, and a file that was made is
 * removed.  The checks are made again right before the swap, since preparing
 * yields and another session may use the time.
 */
#include <errno.h>
#include <string.h>

#include "block/edit.h"
#include "control/control_internal.h"
#include "control/new_image.h"
#include "run/file.h"
#include "schema_dispatch.h"

struct snapshot {
    struct node *node, *overlay; /* referred to */
    bool opened; /* the overlay, for this: closed where it comes to nothing */
    bool created; /* the image, for this: it is as large as the node was */
    char *made;  /* a file that was not there before; else NULL */
};

/* Those of one command, in order: a later one sees the earlier ones' effect. */
struct snapshots {
    struct control *ctl;
    struct snapshot *v;
    unsigned n;
    struct err *err; /* the commit's */
};

/* Checks. */

static int
busy_below(const struct node *node, const struct node *overlay,
           struct err *err)
{
    return err_set(err, -EBUSY,
                   "Node '%s' is busy: node is used as backing hd of '%s'",
                   node->name, overlay->name);
}

/*
 * A job goes on with the node that it began with, and what it puts in its place
 * the header of an overlay would not name; the same under a filter.
 */
static int
check_no_job(struct node *node, struct err *err)
{
    const struct node *image = node_skip_filters(node);
    int r = node_check_no_job(node, err);

    while (!r && node != image) {
        node = node->file->child;
        r = node_check_no_job(node, err);
    }
    return r;
}

/* @n: how many of @all come before this one. */
static int
check_node(const struct snapshots *all, unsigned n, struct node *node,
           struct err *err)
{
    if (node_check_active(node, err)) {
        return -EPERM;
    }
    list_for_each(it, &node->parents)
    {
        const struct edge *edge = container_of(it, struct edge, link);

        if (edge->role == EDGE_BACKING) {
            return busy_below(node, edge->parent, err);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        if (all->v[i].node == node) {
            return busy_below(node, all->v[i].overlay, err);
        }
    }
    return check_no_job(node, err);
}

/*
 * A mirror's target has no reader yet that could see its contents change.  It
 * would have one where somebody who uses @node went on to it.
 */
static int
check_unused(const struct snapshots *all, const struct node *node,
             const struct node *overlay, struct err *err)
{
    auto_free struct holder *holders = NULL;
    size_t n;

    node_holders(overlay, &holders, &n);
    bool of_a_mirror = n == 1 && holders[0].claim == CLAIM_TARGET;
    bool is_target = of_a_mirror && mirror_awaits_backing(all->ctl->jobs,
                                                          holders[0].root);

    if (!list_empty(&overlay->parents) || (n && !is_target)) {
        int r = err_set(err, -EBUSY, "The overlay is already in use");

        if (of_a_mirror) {
            err_hint(err, "a mirror's target gets its backing file while it "
                          "runs where sync is not full, its header names one "
                          "and it was opened with \"backing\": null");
        }
        return r;
    }
    if (is_target &&
        (!list_empty(&node->parents) || !list_empty(&node->roots))) {
        return err_set(err, -EBUSY,
                       "Node '%s' is in use, and the overlay '%s' is an "
                       "unfinished copy",
                       node->name, overlay->name);
    }
    return 0;
}

static int
check_overlay(const struct snapshots *all, unsigned n, const struct node *node,
              const struct node *overlay, struct err *err)
{
    bool taken = overlay->backing != NULL;

    if (node_check_active(overlay, err)) {
        return -EPERM;
    }

    for (unsigned i = 0; i < n; i++) {
        taken |= all->v[i].overlay == overlay;
    }
    if (taken) {
        return err_set(err, -EINVAL, "The overlay already has a backing image");
    }
    int r = check_unused(all, node, overlay, err);

    if (r) {
        return r;
    }
    if (!overlay->drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "The overlay does not support backing images");
    }
    if (overlay->read_only && !node->read_only) {
        return err_set(err, -EACCES, "The overlay is read-only");
    }
    if (node == overlay) {
        return err_set(err, -ELOOP,
                       "Making '%s' a backing child of '%s' would create a "
                       "cycle",
                       node->name, overlay->name);
    }
    return 0;
}

/* All of them. */

static void
snapshots_init(struct snapshots *all, struct control *ctl)
{
    *all = (struct snapshots){.ctl = ctl};
}

/* Takes both references and @made. */
static void
snapshots_add(struct snapshots *all, struct snapshot s)
{
    all->v = xrealloc(all->v, (all->n + 1) * sizeof(*all->v));
    all->v[all->n++] = s;
}

/* Closes what was opened in vain, where it came to nothing; yields. */
static void
snapshots_fini(struct snapshots *all, bool done)
{
    for (unsigned i = all->n; i--;) {
        struct snapshot *s = &all->v[i];
        struct graph *graph = all->ctl->graph;
        struct node *overlay = s->overlay;

        node_unref(s->node);
        /* Another session may have removed it, or use it by now. */
        bool ours = !done && s->opened && overlay->named;
        auto_free char *name = xstrdup(overlay->name);

        node_unref(overlay);
        ours = ours && !node_del(graph, name, NULL);
        if (ours && s->made) {
            file_unlink(all->ctl->loop, s->made); /* nobody else knows of it */
        }
        free(s->made);
    }
    free(all->v);
}

/* With nothing in flight: does it all still hold? */
static int
check_again(void *arg)
{
    const struct snapshots *all = arg;
    int r = 0;

    for (unsigned i = 0; i < all->n && !r; i++) {
        const struct snapshot *s = &all->v[i];

        r = check_node(all, i, s->node, all->err);
        if (!r) {
            r = check_overlay(all, i, s->node, s->overlay, all->err);
        }
        if (!r && s->created && s->overlay->size < s->node->size) {
            r = err_set(all->err, -EBUSY,
                        "Node '%s' was resized meanwhile", s->node->name);
        }
    }
    return r;
}

static int
snapshots_commit(struct snapshots *all, struct err *err)
{
    struct edit *edits = xzalloc((all->n * 2 + 1) * sizeof(*edits));
    struct edit_options options = {
        .deadline_ns =
            loop_now(all->ctl->loop) + CONTROL_DRAIN_SECONDS * NS_PER_S,
        .check = check_again,
        .arg = all,
    };

    all->err = err;
    int r = check_again(all);

    for (unsigned i = 0; i < all->n && !r; i++) {
        struct snapshot *s = &all->v[i];

        edits[i * 2] = (struct edit){EDIT_BACKING, s->overlay, s->node};
        edits[i * 2 + 1] = (struct edit){EDIT_REPLACE, s->node, s->overlay};
    }
    if (!r && all->n) {
        r = graph_edit(all->ctl->graph, edits, all->n * 2, &options, NULL,
                       err);
    }
    free(edits);
    return r;
}

/*
 * The old node is flushed beforehand, so that next to nothing is left to be
 * written when the guest's first flush on the overlay reaches both.
 */
static int
flush(struct node *node, struct err *err)
{
    int r = node->read_only ? 0 : node_flush(node);

    return r ? err_set_errno(err, r, "Could not flush node '%s'", node->name)
             : 0;
}

/* blockdev-snapshot. */

static int
prepare_snapshot(struct snapshots *all, json_t *args, struct err *err)
{
    const char *overlay_name = opt_str(args, "overlay");
    struct node *node, *overlay;
    int r = control_find_node(all->ctl, opt_str(args, "node"), true, &node,
                              err);

    if (!r) {
        r = check_node(all, all->n, node, err);
    }
    if (!r) {
        r = control_find_node(all->ctl, overlay_name, true, &overlay, err);
    }
    if (!r) {
        r = check_overlay(all, all->n, node, overlay, err);
    }
    if (r) {
        return r;
    }
    snapshots_add(all, (struct snapshot){.node = node_ref(node),
                                         .overlay = node_ref(overlay)});
    return flush(node, err);
}

/* blockdev-snapshot-sync. */

/* Opens it as @node was opened. */
static int
open_overlay(struct graph *graph, const struct node *node, json_t *args,
             const char *format, struct node **ret, struct err *err)
{
    json_t *cache = json_object_get(node->options, "cache");
    json_t *options = json_pack(
        "{s:s, s:s, s:b, s:s, s:n, s:{s:s, s:s}}", "driver", format,
        "node-name", opt_str(args, "snapshot-node-name"), "read-only",
        node->read_only, "discard", node->unmap ? "unmap" : "ignore",
        "backing", "file", "driver", "file", "filename",
        opt_str(args, "snapshot-file"));

    if (cache) {
        json_object_set(options, "cache", cache);
    }
    int r = node_add(graph, options, ret, err);

    json_decref(options);
    return r;
}

static int
find_for_sync(struct control *ctl, json_t *args, struct node **ret,
              struct err *err)
{
    const char *overlay = opt_str(args, "snapshot-node-name");
    int r = control_find_named(ctl, opt_str(args, "device"),
                               opt_str(args, "node-name"), ret, err);

    if (r) {
        return r;
    }
    if (!overlay) {
        return err_set(err, -EINVAL, "New overlay node-name missing");
    }
    if (graph_find(ctl->graph, overlay)) {
        return err_set(err, -EEXIST, "New overlay node-name already in use");
    }
    return 0;
}

static int
prepare_sync(struct snapshots *all, json_t *args, struct err *err)
{
    struct graph *graph = all->ctl->graph;
    const char *format = opt_str(args, "format");
    const char *mode = opt_str(args, "mode");
    struct snapshot s = {.opened = true};
    int r = find_for_sync(all->ctl, args, &s.node, err);

    format = format ? format : "qcow2";
    if (!r) {
        r = check_node(all, all->n, s.node, err);
    }
    if (r) {
        return r;
    }
    node_ref(s.node);
    r = flush(s.node, err);
    if (!r && !(mode && !strcmp(mode, "existing"))) {
        const struct new_image image = {format,
                                        opt_str(args, "snapshot-file"),
                                        s.node->size, s.node};

        r = new_image_create(graph, &image, &s.made, err);
        s.created = true;
    }
    if (!r) {
        r = open_overlay(graph, s.node, args, format, &s.overlay, err);
    }
    if (r) {
        if (s.made) {
            file_unlink(all->ctl->loop, s.made); /* half an image is none */
        }
        free(s.made);
        node_unref(s.node);
        return r;
    }
    node_ref(s.overlay);
    r = check_overlay(all, all->n, s.node, s.overlay, err);
    snapshots_add(all, s);
    return r;
}

/* The commands. */

typedef int prepare_fn(struct snapshots *all, json_t *args, struct err *err);

static int
one_snapshot(struct control *ctl, prepare_fn *prepare, json_t *args,
             struct err *err)
{
    struct snapshots all;

    snapshots_init(&all, ctl);
    int r = prepare(&all, args, err);

    if (!r) {
        r = snapshots_commit(&all, err);
    }
    snapshots_fini(&all, !r);
    return r;
}

int
cmd_blockdev_snapshot(struct control *ctl,
                      const struct args_blockdev_snapshot *args, json_t **ret,
                      struct err *err)
{
    return one_snapshot(ctl, prepare_snapshot, args->json, err);
}

int
cmd_blockdev_snapshot_sync(struct control *ctl,
                           const struct args_blockdev_snapshot_sync *args,
                           json_t **ret, struct err *err)
{
    return one_snapshot(ctl, prepare_sync, args->json, err);
}

/* transaction. */

static int
prepare_action(struct snapshots *all, json_t *action, const char *mode,
               struct err *err)
{
    const char *type = opt_str(action, "type");
    json_t *data = json_object_get(action, "data");

    if (!strcmp(type, "abort")) {
        return err_set(err, -ECANCELED,
                       "Transaction aborted using Abort action");
    }
    if (mode && strcmp(mode, "individual")) {
        return err_set(err, -ENOTSUP,
                       "Action '%s' does not support Transaction property "
                       "completion-mode = %s",
                       type, mode);
    }
    return !strcmp(type, "blockdev-snapshot") ? prepare_snapshot(all, data, err)
                                              : prepare_sync(all, data, err);
}

int
cmd_transaction(struct control *ctl, const struct args_transaction *args,
                json_t **ret, struct err *err)
{
    struct snapshots all;
    size_t i;
    json_t *action;
    int r = 0;

    snapshots_init(&all, ctl);
    json_array_foreach (args->actions, i, action) {
        r = r ? r
              : prepare_action(&all, action,
                               opt_str(args->properties, "completion-mode"),
                               err);
    }
    if (!r) {
        r = snapshots_commit(&all, err);
    }
    snapshots_fini(&all, !r);
    return r;
}
