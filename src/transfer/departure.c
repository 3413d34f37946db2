// SPDX-License-Identifier: BSD-3-Clause
/* See departure.h. */
#include "transfer/departure.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/dependents.h"
#include "journal/intent.h"
#include "journal/journal.h"
#include "transfer/resume.h"

/*
 * The image that is left.  A filter over it may show the target by the end, so
 * it is remembered at the start.
 */
static struct node *
left_image(struct transfer *t)
{
    if (!t->left) {
        t->left = node_ref(node_skip_filters(t->copy.source));
    }
    return t->left;
}

int
departure_check(struct transfer *t, struct err *err)
{
    const struct dependents_of left = {
        left_image(t),
        /* With all copied, it needs nothing of what its header may name. */
        t->sync == SYNC_FULL ? t->copy.target : NULL};
    const struct dependents_search how = {
        .folders = (const char *const *)t->folders,
        .n_folders = t->n_folders,
        .exclusive = t->exclusive,
    };

    return t->delete_source ? dependents_check(&left, 1, &how, err) : 0;
}

/* What the target takes the place of. */
static struct node *
replaced(const struct transfer *t)
{
    return t->replaces ? t->replaces : t->copy.source;
}

/*
 * The images over @node that name a backing file in their headers, also with
 * filters between; the caller lets go of each and frees the array.
 */
static void
find_overlays(struct node *node, const struct node *except,
              struct node ***ret, size_t *ret_n)
{
    auto_free struct node **shown = xzalloc(sizeof(*shown));
    size_t n_shown = 1;

    *ret = NULL;
    *ret_n = 0;
    shown[0] = node;
    for (size_t i = 0; i < n_shown; i++) {
        list_for_each(it, &shown[i]->parents)
        {
            const struct edge *e = container_of(it, struct edge, link);

            if (e->role == EDGE_BACKING && e->parent != except &&
                e->parent->header_backing.filename) {
                *ret = xrealloc(*ret, (*ret_n + 1) * sizeof(**ret));
                (*ret)[(*ret_n)++] = node_ref(e->parent);
            } else if (e->role == EDGE_DATA && e->parent->drv->is_filter) {
                shown = xrealloc(shown, (n_shown + 1) * sizeof(*shown));
                shown[n_shown++] = e->parent;
            }
        }
    }
}

/* For each of them but the target; the first error ends it. */
static int
for_each_overlay(struct transfer *t, struct node *of,
                 int (*fn)(struct transfer *t, struct node *overlay,
                           struct err *err),
                 struct err *err)
{
    struct node **overlays;
    size_t n;
    int r = 0;

    find_overlays(of, t->copy.target, &overlays, &n);
    for (size_t i = 0; i < n; i++) {
        r = r ? r : fn(t, overlays[i], err);
        node_unref(overlays[i]);
    }
    free(overlays);
    return r;
}

static int
check_overlay(struct transfer *t, struct node *overlay, struct err *err)
{
    int r = 0;

    if (!t->copy.target->filename || node_is_part(t->copy.target) ||
        !overlay->drv->set_backing) {
        r = err_set(err, -ENOTSUP,
                    "Node '%s' names '%s' as its backing file, and cannot "
                    "name '%s'",
                    overlay->name, t->copy.source->name, t->copy.target->name);
        err_hint(err, "take a target that is a file; or let the target "
                      "stay a copy (finish: stay; block-job-cancel of a "
                      "mirror)");
    }
    return r;
}

int
departure_hold_overlays(struct transfer *t, struct err *err)
{
    t->holds_overlays = true;
    list_for_each(it, &replaced(t)->parents)
    {
        struct edge *e = container_of(it, struct edge, link);

        if (e->role != EDGE_BACKING || e->parent == t->copy.target) {
            continue;
        }
        if (e->frozen && e->frozen != t->owner) {
            int r = err_set(err, -EBUSY,
                            "Node '%s' is busy: %s needs that its backing "
                            "file stays '%s'",
                            e->parent->name, e->frozen, e->child->name);

            err_hint(err, "%s cannot take its place before that ends",
                     t->owner);
            departure_free_overlays(t);
            return r;
        }
        e->frozen = t->owner;
    }
    return t->finish == FINISH_SWITCH && !t->wait_for_verb
               ? for_each_overlay(t, replaced(t), check_overlay, err)
               : 0;
}

void
departure_free_overlays(struct transfer *t)
{
    if (!t->holds_overlays) {
        return; /* what else is frozen over the source is another matter */
    }
    t->holds_overlays = false;
    list_for_each(it, &replaced(t)->parents)
    {
        struct edge *e = container_of(it, struct edge, link);

        if (e->frozen == t->owner && e->parent != t->copy.target) {
            e->frozen = NULL;
        }
    }
}

/* What it sinks from stays as it is, and names it already. */
static bool
is_sunk(const struct transfer *t, const struct node *overlay)
{
    return t->shadowed && chain_contains(t->copy.source, overlay);
}

static int
make_writable(struct transfer *t, struct node *overlay, struct err *err)
{
    int r = check_overlay(t, overlay, err);

    return r ? r : transfer_make_writable(t, overlay, err);
}

static int
check_writable(struct transfer *t, struct node *overlay, struct err *err)
{
    int r = check_overlay(t, overlay, err);

    return r ? r : node_check_writable(overlay, err);
}

int
departure_check_overlays(struct transfer *t, struct err *err)
{
    return for_each_overlay(t, replaced(t), check_writable, err);
}

int
departure_prepare_overlays(struct transfer *t, struct err *err)
{
    return for_each_overlay(t, replaced(t), make_writable, err);
}

static int
name_target(struct transfer *t, struct node *overlay, struct err *err)
{
    const struct node *target = t->copy.target;
    auto_free char *name = NULL;
    bool borrowed;
    int r = is_sunk(t, overlay) ? 0 : check_overlay(t, overlay, err);

    if (r || is_sunk(t, overlay)) {
        return r;
    }
    name = backing_name_for(overlay->filename, target->filename);
    if (!strcmp(name, overlay->header_backing.filename)) {
        return 0;
    }
    r = node_borrow(overlay, &borrowed, err);
    if (!r) {
        r = overlay->drv->set_backing(overlay, name,
                                      node_image_format(target), err);
        if (borrowed) {
            node_return(overlay);
        }
    }
    return r;
}

int
departure_name_target(struct transfer *t, struct err *err)
{
    int r = for_each_overlay(t, t->copy.target, name_target, err);

    if (r) {
        err_prefix(err, "'%s' is in the place of '%s', but what lies over it "
                        "does not name it",
                   t->copy.target->name, t->copy.source->name);
    }
    return r;
}

bool
departure_is_of_a_layer(const struct transfer *t)
{
    list_for_each(it, &replaced(t)->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e->parent != t->copy.target && edge_claim(e) == CLAIM_STABLE) {
            return true;
        }
    }
    return false;
}

/* The strings are the nodes'. */
static struct intent_file
intent_file(const struct node *file, const struct node *image)
{
    return (struct intent_file){
        file->filename, node_journal_ino(file), file->file_born,
        (char *)(uintptr_t)node_image_format(image)};
}

static int
prepare(struct transfer *t, bool delete_source, struct err *err)
{
    const struct node *source = node_own_file(left_image(t));
    const struct node *target = node_own_file(t->copy.target);

    if (!source || !target) {
        return err_set(err, -ENOTSUP,
                       "not both sides are local files or devices");
    }
    const struct switch_intent what = {
        .source = intent_file(source, t->left),
        .target = intent_file(target, t->copy.target),
        .delete_source = delete_source,
        .exclusive = t->exclusive,
        .folders = t->folders,
        .n_folders = t->n_folders,
        .source_session = t->left->session,
    };

    return intent_prepare(graph_journals(source->graph), &what, &t->intent, err);
}

static bool
can_lie_nowhere(int r)
{
    return r == -ENOTSUP || journal_place_is_unfit(r);
}

int
departure_prepare(struct transfer *t, struct err *err)
{
    auto_err inner = ERR_INIT;
    int r = prepare(t, t->delete_source, &inner);

    if (can_lie_nowhere(r)) {
        log_info("%s: no record of the switch: %s", t->owner, inner.msg);
        return 0;
    }
    return r ? err_propagate(err, &inner) : 0;
}

int
departure_record(struct transfer *t, struct err *err)
{
    comutex_lock(&t->mark_lock);
    int r = t->intent && !departure_is_of_a_layer(t)
                ? intent_record(t->intent)
                : 0;

    comutex_unlock(&t->mark_lock);
    return r ? err_set_errno(err, r, "Writing the switch's journal failed")
             : 0;
}

bool
departure_withdraw(struct transfer *t)
{
    comutex_lock(&t->mark_lock);
    int r = t->intent ? intent_withdraw(t->intent) : 0;

    comutex_unlock(&t->mark_lock);
    if (r) {
        log_warn("%s: the record of the switch could not be withdrawn",
                 t->owner);
    }
    return !r;
}

/* A switch of which nothing could be recorded is tried once more. */
static int
delete_source(struct transfer *t, struct err *err)
{
    const struct node *source = node_local_file(left_image(t));
    const struct switch_intent what = {.source = intent_file(source, t->left)};
    int r = departure_check(t, err);

    if (!r && !t->intent) {
        r = prepare(t, true, err);
        r = r ? r : departure_record(t, err);
    }
    if (!r) {
        r = source_delete(graph_loop(source->graph), &what, err);
    }
    if (r) {
        err_prefix(err, "The disk is on '%s', but its old image was not "
                        "deleted",
                   t->copy.target->name);
    }
    return r;
}

int
departure_end(struct transfer *t, bool moved, struct err *err)
{
    int r = moved ? departure_name_target(t, err) : 0;

    if (!r && moved && t->delete_source) {
        r = delete_source(t, err);
    }

    if (moved) {
        resume_forget(t, true); /* before the source may be opened again */
    }
    intent_end(take_ptr(t->intent), moved);
    return r;
}

void
departure_arrive(struct transfer *t)
{
    auto_err err = ERR_INIT;

    if (departure_name_target(t, &err)) {
        log_warn("%s: %s", t->owner, err.msg);
    }
    if (t->intent && !intent_is_recorded(t->intent)) {
        intent_end(take_ptr(t->intent), false);
    }
}

void
departure_leave(struct transfer *t)
{
    if (t->intent && t->copy.fill) {
        t->left->keep_session = true; /* who deletes it looks for that */
        intent_leave(take_ptr(t->intent));
    }
}
