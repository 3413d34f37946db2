// SPDX-License-Identifier: BSD-3-Clause
/*
 * stream (S1): fill a layer from those below it, then drop them.
 *
 *   source   the node below the device; stable, so it is read without a lock
 *   missing  allocated below, down to the base, and not in the device; and
 *            what lies past the end of a dropped layer shorter than the base
 *   on_write fill: the device's own driver does it, as for any overlay
 *   finish   the header's backing file := the base, then the graph's
 *
 * Progress is the device's allocation: a stream that was cancelled or killed
 * goes on where it was.  The header changes after the last flush, and both
 * chains read alike, so no gate is closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/edit.h"
#include "transfer/recipes/recipes.h"

int
stream_next(struct transfer *t, uint64_t off, uint64_t limit,
            struct missing *ret)
{
    uint64_t end = min_u64(off + limit, t->copy.target->size);

    if (!t->copy.source) {
        off = end; /* nothing below: done at once, as with QEMU */
    }
    while (off < end) {
        struct extent own, below;
        struct node *layer = NULL;
        int r = node_status(t->copy.target, off, end - off, false, &own);

        if (r) {
            return r;
        }
        if (own.kind != EXTENT_UNALLOCATED) {
            off += own.len;
            continue;
        }
        r = chain_status(t->copy.source, t->base, off, own.len, true, &below,
                         &layer);
        if (r) {
            return r;
        }
        bool zero = below.kind == EXTENT_ZERO;

        /* Without a base, what is unallocated reads zero in the end anyway. */
        if (layer && !(zero && !t->base)) {
            *ret = (struct missing){off, below.len, zero};
            return 0;
        }
        off += below.len;
    }
    *ret = (struct missing){.off = end};
    return 0;
}

int
stream_prepare(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);
    struct node *device = t->copy.target;
    struct edit edit = {EDIT_BACKING, device, t->base};
    struct edit_options options = {.alike = true};
    struct edit_report report;
    auto_free char *made = NULL;
    const char *name = t->backing_file;
    int r = node_flush(device);

    if (!device->backing) {
        return r ? err_set_errno(err, r, "Flushing '%s' failed", device->name)
                 : 0;
    }
    if (r) {
        return err_set_errno(err, r, "Flushing '%s' failed", device->name);
    }
    if (t->base && !name && t->base->filename) {
        name = made = backing_name_for(device->filename, t->base->filename);
    }
    r = device->drv->set_backing(device, t->base ? name : NULL,
                                 t->base ? node_image_format(t->base) : NULL,
                                 err);
    if (!r) {
        transfer_thaw(t);
        r = graph_edit(device->graph, &edit, 1, &options, &report, err);
        transfer_report_pause(t, report.pause_ns, report.held);
    }
    return r;
}

static const struct transfer_recipe recipe = {
    .driver = {.type = "stream",
               .is_block_job = true,
               .run = transfer_run,
               .prepare = stream_prepare,
               .clean = transfer_clean,
               .remember = transfer_remember,
               .cancelled = transfer_cancelled},
    .next = stream_next,
};

int
check_base_name(const struct transfer_options *o, struct err *err)
{
    int r = o->backing_file ? 0 : node_check_name(o->base, err);

    if (r) {
        err_hint(err, "block-stream and block-commit write what 'backing-file' "
                      "says");
    }
    return r;
}

static int
check(const struct transfer_options *o, struct err *err)
{
    struct node *device = o->device;

    if (o->base && (o->base == device || !chain_contains(device, o->base))) {
        return err_set(err, -EINVAL,
                       "Node '%s' is not a backing image of '%s'",
                       o->base->name, device->name);
    }
    if (device->backing && !device->drv->set_backing) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' does not support changing "
                       "its backing file",
                       device->drv->name, device->name);
    }
    return o->base ? check_base_name(o, err) : 0;
}

/* They lose what the device hides: nobody else may read them. */
static int
claim_below(struct transfer *t, const struct transfer_options *o,
            struct err *err)
{
    const struct edge *e = o->device->backing;
    int r = 0;

    for (; e && e->child != o->base && !r; e = e->child->backing) {
        r = transfer_claim_more(t, e->child, CLAIM_SINK, err);
    }
    return r;
}

static struct node *
last_dropped(const struct transfer_options *o)
{
    struct node *n = o->device;

    while (n->backing && n->backing->child != o->base) {
        n = n->backing->child;
    }
    return n;
}

/* What is claimed stays where nothing that it depends on has changed. */
static int
claim(struct transfer *t, const struct transfer_options *o, bool only_look,
      struct err *err)
{
    /* What is opened to be read, to look at it, would be opened to write. */
    bool is_read = only_look && o->device->read_only;
    int r = transfer_claim(t, o->device, is_read ? CLAIM_READ : CLAIM_FILL,
                           &t->root, err);

    if (!r && o->release) {
        r = claim_below(t, o, err);
    }
    return r ? r : transfer_freeze(t, o->device, o->base, err);
}

static struct layers
layers_of(const struct transfer_options *o)
{
    bool all = o->release && o->device->backing;

    return (struct layers){.top = o->device,
                           .last = all ? last_dropped(o) : o->device};
}

/* Nothing is changed. */
static int
check_images(const struct transfer_options *o, struct err *err)
{
    struct layers layers = layers_of(o);

    return layers.last == o->device ? node_check_writable(o->device, err)
                                    : check_layers(&layers, o, err);
}

static int
open_images(struct transfer *t, const struct transfer_options *o,
            struct err *err)
{
    struct layers layers = layers_of(o);

    return layers.last == o->device ? transfer_make_writable(t, o->device, err)
                                    : open_layers(t, &layers, o, err);
}

static void
set_up(struct transfer *t, const struct transfer_options *o)
{
    struct edge *backing = o->device->backing;

    t->copy = (struct copy){.source = backing ? backing->child : NULL,
                            .target = o->device,
                            .fill = true,
                            .flags = REQ_BACKGROUND};
    t->backing_file = o->backing_file ? xstrdup(o->backing_file) : NULL;
    if (o->release && backing) {
        release_init(t, RELEASE_BELOW, backing->child, o->base);
    }
}

int
stream_make(const struct transfer_recipe *as, const struct transfer_options *o,
            bool only_look, struct transfer **ret, struct err *err)
{
    int r = check(o, err);

    if (!r) {
        r = check_other_jobs(o->device, CLAIM_FILL, err);
    }
    if (r) {
        return r;
    }
    struct transfer *t = transfer_new(as, o);

    t->base = o->base ? node_ref(o->base) : NULL;
    r = claim(t, o, only_look, err);
    if (only_look) {
        transfer_unclaim(t);
    }
    r = r ? r : check_images(o, err);
    if (!r) {
        r = only_look ? check(o, err) : open_images(t, o, err);
    }
    if (r) {
        transfer_discard(t);
        return r;
    }
    set_up(t, o);
    *ret = t;
    return 0;
}

int
stream_start(struct jobs *jobs, const struct transfer_options *o,
             struct err *err)
{
    struct transfer *t;
    int r = job_check_id(jobs, o->job_id, err);

    r = r ? r : stream_make(&recipe, o, false, &t, err);
    if (!r) {
        transfer_launch(t, jobs, o);
    }
    return r;
}

int
stream_measure(const struct transfer_recipe *as,
               const struct transfer_options *o, struct transfer_plan *ret,
               struct err *err)
{
    struct transfer *t;
    int r = stream_make(as, o, true, &t, err);

    if (r) {
        return r;
    }
    /* The chain may change while this looks at it. */
    t->held[0] = t->copy.source ? node_ref(t->copy.source) : NULL;
    r = transfer_measure(t, as->next, ret, err);
    transfer_discard(t);
    return r;
}

int
stream_plan(const struct transfer_options *o, struct transfer_plan *ret,
            struct err *err)
{
    return stream_measure(&recipe, o, ret, err);
}
