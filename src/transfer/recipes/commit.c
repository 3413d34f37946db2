// SPDX-License-Identifier: BSD-3-Clause
/*
 * commit: the layers from a top down to a base sink into the base.
 *
 *   source   the top, with the layers between it and the base
 *   target   the base, which these layers hide wherever it is written
 *   missing  what they hold
 *   on_write active (the top is the disk): dirty, then forward, as a mirror;
 *            else nobody writes to the top
 *   switch   active: when told to, or once in step, to the base, or not at
 *            all (finish: stay); else none is needed, since the layer above
 *            the top reads alike over the top and the base
 *   finish   the layer above the top has the base as its backing file; active:
 *            the layers stay as they were, and nobody uses them
 *
 * Until the end the top reads right over the base at every moment, also after
 * a crash: no mark is needed.  The layers between them do not, from the first
 * write on, which is why nobody else may read them (CLAIM_SINK).
 */
#include <errno.h>
#include <stdlib.h>

#include "block/edit.h"
#include "block/resize.h"
#include "transfer/pivot.h"
#include "transfer/recipes/recipes.h"

static int
active_prepare(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);
    enum finish finish = finish_of(t);
    int r = transfer_pivot(t, finish, err);

    if (!r && finish == FINISH_SWITCH) {
        transfer_keep_writable(t);
    }
    return r;
}

int
sink_drop_layers(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);
    struct node *overlay = t->overlay, *base = t->copy.target;
    struct edit edit = {EDIT_BACKING, overlay, base};
    struct edit_options options = {.alike = true};
    auto_free char *made = NULL;
    const char *name = t->backing_file;
    int r = transfer_make_writable(t, overlay, err);

    if (!r && !name && base->filename) {
        name = made = backing_name_for(overlay->filename, base->filename);
    }
    if (!r) {
        r = overlay->drv->set_backing(overlay, name, node_image_format(base),
                                      err);
    }
    if (!r) {
        transfer_thaw(t);
        /* It reads what it read; below it nothing is written any more. */
        root_set_claim(t->root, CLAIM_FILL);
        r = graph_edit(overlay->graph, &edit, 1, &options, NULL, err);
    }
    return r;
}

#define RECIPE(ends_when_told, end)                                            \
    {                                                                          \
        .driver = {.type = "commit",                                           \
                   .is_block_job = true,                                       \
                   .can_complete = ends_when_told,                             \
                   .run = transfer_run,                                        \
                   .prepare = end,                                             \
                   .clean = transfer_clean,                                    \
                   .remember = transfer_remember,                              \
                   .cancelled = transfer_cancelled},                           \
        .next = mirror_next,                                                   \
    }

static const struct transfer_recipe active = RECIPE(true, active_prepare);
static const struct transfer_recipe below = RECIPE(false, sink_drop_layers);

/* The layer above the top; NULL where the top is the disk. */
static struct node *
find_overlay(const struct transfer_options *o)
{
    struct node *n = o->device;

    while (n != o->top && n->backing->child != o->top) {
        n = n->backing->child;
    }
    return n == o->top ? NULL : n;
}

static int
check(const struct transfer_options *o, struct err *err)
{
    const struct node *overlay;

    if (!chain_contains(o->device, o->top)) {
        return err_set(err, -EINVAL, "'%s' is not in this backing file chain",
                       o->top->name);
    }
    if (o->top == o->base) {
        return err_set(err, -EINVAL, "cannot commit an image into itself");
    }
    if (!o->base || !chain_contains(o->top, o->base)) {
        return err_set(err, -EINVAL, "'%s' is not in this backing file chain",
                       o->base ? o->base->name : "");
    }
    overlay = find_overlay(o);
    if (overlay && !overlay->drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' does not support changing "
                       "its backing file",
                       overlay->drv->name, overlay->name);
    }
    if (!overlay && o->backing_file) {
        return err_set(err, -EINVAL,
                       "'backing-file' specified, but 'top' is the active "
                       "layer");
    }
    return overlay ? check_base_name(o, err) : 0;
}

int
sink_claim(struct transfer *t, const struct transfer_options *o,
             struct err *err)
{
    /* First its own, so that its layers have one user more, or that one. */
    enum claim of_top = t->overlay ? CLAIM_STABLE : CLAIM_READ;
    int r = transfer_claim(t, o->top, of_top, &t->source_root, err);

    if (!r) {
        r = transfer_claim(t, o->base, CLAIM_SINK, &t->root, err);
    }
    for (struct node *n = o->top->backing->child; n != o->base && !r;
         n = n->backing->child) {
        r = transfer_claim_more(t, n, CLAIM_SINK, err);
    }
    return r;
}

/* Grown, the base shows nothing new. */
static int
check_size(const struct transfer_options *o, struct err *err)
{
    const struct node *top = o->top, *base = o->base;

    if (base->size < top->size && base->backing &&
        base->backing->child->size > base->size) {
        return err_set(err, -ENOTSUP,
                       "The base '%s' is shorter than the top '%s' and than "
                       "its own backing file",
                       base->name, top->name);
    }
    return 0;
}

/* The base holds all that the top reads as. */
static int
match_base(struct transfer *t, const struct transfer_options *o,
           struct err *err)
{
    int r = transfer_make_writable(t, o->base, err);

    return r || o->base->size >= o->top->size
               ? r
               : node_truncate(o->base, o->top->size, err);
}

/* In this order: what is claimed stays while the rest yields. */
static int
prepare(struct transfer *t, const struct transfer_options *o, bool only_look,
        struct err *err)
{
    int r = sink_claim(t, o, err);

    if (!r) {
        r = transfer_freeze(t, t->overlay ? t->overlay : o->top, o->base, err);
    }
    if (only_look) {
        transfer_unclaim(t);
    }
    r = r ? r : check_size(o, err);
    r = r ? r : node_check_writable(o->base, err);
    return r || only_look ? r : match_base(t, o, err);
}

/* @only_look: for a plan; nothing is changed or kept claimed. */
static int
make(const struct transfer_options *o, bool only_look, struct transfer **ret,
     struct err *err)
{
    int r = check(o, err);

    if (!r) {
        r = check_other_jobs(o->top, CLAIM_READ, err);
    }
    if (!r) {
        r = check_not_resizing(o->base, err);
    }
    if (r) {
        return r;
    }
    struct node *overlay = find_overlay(o);
    struct transfer *t = transfer_new(overlay ? &below : &active, o);

    t->overlay = overlay ? node_ref(overlay) : NULL;
    r = prepare(t, o, only_look, err);
    if (!r && only_look) {
        r = check(o, err); /* it has yielded */
    }
    if (r) {
        transfer_discard(t);
        return r;
    }
    *ret = t;
    return 0;
}

int
commit_start(struct jobs *jobs, const struct transfer_options *o,
             struct err *err)
{
    struct transfer *t;
    int r = job_check_id(jobs, o->job_id, err);

    r = r ? r : make(o, false, &t, err);
    if (r) {
        return r;
    }
    bool is_active = !t->overlay;

    t->copy = (struct copy){
        .source = o->top, .target = o->base, .flags = REQ_BACKGROUND};
    t->shadowed = true;
    t->guest = o->device;
    t->sync = SYNC_TOP;
    t->tracked = is_active;
    t->wait_for_verb = is_active && o->wait_for_verb;
    t->finish = o->finish;
    t->copy_mode = o->copy_mode;
    t->on_target_error = o->on_target_error;
    t->backing_file = o->backing_file ? xstrdup(o->backing_file) : NULL;
    transfer_launch(t, jobs, o);
    return 0;
}

int
sink_measure(const struct transfer_options *o, struct transfer_plan *ret,
             struct err *err)
{
    auto_free struct transfer *t = xzalloc(sizeof(*t));

    t->copy.source = o->top;
    t->copy.target = o->base;
    t->shadowed = true;
    t->sync = SYNC_TOP;
    t->granularity = o->granularity ? o->granularity : TRANSFER_GRANULARITY;
    if (o->release) {
        t->release.max_extra = o->max_extra;
        release_init(t, RELEASE_ABOVE, o->top, o->base);
    }
    int r = transfer_measure(t, mirror_next, ret, err);

    release_fini(&t->release);
    return r;
}

int
commit_plan(const struct transfer_options *o, struct transfer_plan *ret,
            struct err *err)
{
    struct transfer *t;
    int r = make(o, true, &t, err);

    if (r) {
        return r;
    }
    transfer_discard(t);
    return sink_measure(o, ret, err);
}
