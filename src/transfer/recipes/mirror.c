// SPDX-License-Identifier: BSD-3-Clause
/*
 * mirror (S3), and pre-copy (S4), which is a mirror that switches by itself.
 *
 *   source   the disk's top, with all that it reads through
 *   target   another node, as large, that nobody else writes to
 *   missing  what the source reads as, but for what is zero on both sides;
 *            sync top: what its top layer holds; none: nothing
 *   on_write dirty, then forward (track.h)
 *   switch   when told to, or once in step
 *   finish   the target is the disk, or a copy as of that moment
 */
#include <errno.h>

#include "block/dirty_log.h"
#include "block/mark.h"
#include "block/resize.h"
#include "transfer/departure.h"
#include "transfer/engine.h"
#include "block/edit.h"
#include "transfer/pivot.h"
#include "transfer/recipes/recipes.h"

/*
 * A target whose header names a backing file that it was opened without will
 * have it again: what it does not hold is not zero.  It may have it while the
 * mirror runs (blockdev-snapshot), which goes on as it began.
 */
static bool
is_bare(const struct transfer *t)
{
    const struct node *target = node_skip_filters(t->copy.target);

    return t->track.is_bare ||
           (t->sync != SYNC_FULL && !t->shadowed && !target->backing &&
            target->header_backing.filename);
}

/* The first part of [off, off + len), zero in the source, to be made so. */
static int
not_yet_zero(struct transfer *t, uint64_t off, uint64_t len,
             struct missing *ret)
{
    uint64_t end = off + len;

    while (off < end && (!t->target_is_zero || is_bare(t))) {
        struct extent have;
        int r = chain_status(t->copy.target, NULL, off, end - off, true, &have,
                             NULL);

        if (r) {
            return r;
        }
        if (have.kind == EXTENT_DATA || have.kind == EXTENT_ENCODED ||
            (have.kind == EXTENT_UNALLOCATED && is_bare(t))) {
            *ret = (struct missing){off, have.len, true};
            return 0;
        }
        off += have.len;
    }
    *ret = (struct missing){.off = end};
    return 0;
}

/* What lies from here down is not copied; NULL: all is. */
static struct node *
copied_down_to(const struct transfer *t)
{
    const struct edge *backing = t->copy.source->backing;

    if (t->shadowed) {
        return t->copy.target;
    }
    return t->sync == SYNC_TOP && backing ? backing->child : NULL;
}

/* By whole blocks, so that no cluster of a bare target is filled in part. */
static void
widen(const struct transfer *t, struct missing *m)
{
    uint64_t start = align_down(m->off, t->granularity);
    uint64_t end = min_u64(align_up(m->off + m->len, t->granularity),
                           t->copy.target->size);

    if (m->len && is_bare(t)) {
        m->zero &= start == m->off && end == m->off + m->len;
        m->off = start;
        m->len = end - start;
    }
}

static int
find_next(struct transfer *t, uint64_t off, uint64_t limit,
          struct missing *ret)
{
    struct node *source = t->copy.source;
    struct node *base = copied_down_to(t);

    if (off >= source->size) { /* a base that is longer: nobody saw that */
        return not_yet_zero(t, off, limit, ret);
    }
    uint64_t end = min_u64(off + limit, source->size);

    if (t->log) { /* of an earlier daemon's copy the rest is there */
        uint64_t len;

        if (!dirty_log_next(t->log, off, end, &off, &len)) {
            off = end;
        }
        end = min_u64(end, off == end ? end : off + len);
    }
    *ret = (struct missing){.off = end};
    while (off < end && t->sync != SYNC_NONE) {
        struct extent ext;
        struct node *layer;
        int r = chain_status(source, base, off, end - off, true, &ext, &layer);

        if (r) {
            return r;
        }
        if (ext.kind == EXTENT_DATA || ext.kind == EXTENT_ENCODED) {
            *ret = (struct missing){off, ext.len, false};
            return 0;
        }
        if (layer || t->sync == SYNC_FULL) {
            r = not_yet_zero(t, off, ext.len, ret);
            if (r || ret->len) {
                return r;
            }
        }
        off += ext.len;
    }
    *ret = (struct missing){.off = end};
    return 0;
}

int
mirror_next(struct transfer *t, uint64_t off, uint64_t limit,
            struct missing *ret)
{
    int r = find_next(t, off, limit, ret);

    if (!r) {
        widen(t, ret);
    }
    return r;
}

/* From here on it is not the disk. */
int
mark_target(struct transfer *t, struct err *err)
{
    return transfer_mark(t, true, err);
}

enum finish
finish_of(const struct transfer *t)
{
    return t->job.end == JOB_END_STOP       ? FINISH_STAY
           : t->job.end == JOB_END_COMPLETE ? FINISH_SWITCH
                                            : t->finish;
}

static int
mirror_prepare(struct job *job, struct err *err)
{
    struct transfer *t = transfer_of(job);

    return transfer_pivot(t, finish_of(t), err);
}

#define RECIPE(name)                                                           \
    {                                                                          \
        .driver = {.type = name,                                               \
                   .is_block_job = true,                                       \
                   .can_complete = true,                                       \
                   .run = transfer_run,                                        \
                   .prepare = mirror_prepare,                                  \
                   .clean = transfer_clean,                                    \
                   .remember = transfer_remember,                              \
                   .cancelled = transfer_cancelled},                           \
        .next = mirror_next, .begin = mark_target,                             \
    }

static const struct transfer_recipe mirror = RECIPE("mirror");
static const struct transfer_recipe copy = RECIPE("copy");

int
check_target_size(const struct transfer_options *o, struct err *err)
{
    struct node *source = o->device, *target = o->target;

    if (target->drv->set_backing && source->size % 512) {
        int r = err_set(err, -EINVAL,
                        "The disk '%s' has %llu bytes, which no %s image can "
                        "have",
                        source->name, (unsigned long long)source->size,
                        target->drv->name);

        err_hint(err, "its size must be a multiple of 512; take a raw target, "
                      "or resize the disk");
        return r;
    }
    if (target->size == source->size ||
        (target->size < source->size && target->drv->truncate)) {
        return 0;
    }
    return err_set(err, -EINVAL,
                   "Source and target image have different sizes: '%s' "
                   "has %llu bytes, '%s' %llu",
                   source->name, (unsigned long long)source->size,
                   target->name, (unsigned long long)target->size);
}

int
match_size(const struct transfer_options *o, struct err *err)
{
    int r = check_target_size(o, err);

    return r || o->target->size >= o->device->size
               ? r
               : node_truncate(o->target, o->device->size, err);
}

/* Is @node @top, or below nothing but filters that show it whole? */
static bool
reads_alike(const struct node *top, const struct node *node)
{
    while (top != node && top->drv->is_filter && top->file &&
           top->size == top->file->child->size) {
        top = top->file->child;
    }
    return top == node;
}

/* Nobody has a look at the target before the guest is on it. */
static bool
ends_by_itself(const struct transfer_options *o)
{
    return o->finish == FINISH_SWITCH && !o->wait_for_verb;
}

/*
 * A copy that switches by itself leaves guests on the target: what it does not
 * copy must be below that.
 */
static int
check_rest_is_below(const struct transfer_options *o, struct err *err)
{
    const struct node *image = node_skip_filters(o->device);
    const struct edge *rest = o->sync == SYNC_TOP ? image->backing : NULL;
    const struct edge *below = o->target->backing;
    const struct node *under = below ? node_skip_filters(below->child) : NULL;

    if (o->sync == SYNC_FULL || !ends_by_itself(o) || (o->sync == SYNC_TOP && !rest) || under == image ||
        (rest && under == node_skip_filters(rest->child))) {
        return 0;
    }
    int r = err_set(err, -EINVAL,
                    "The target '%s' lacks what 'sync': '%s' does not copy, "
                    "and the disk would go on there",
                    o->target->name, o->sync == SYNC_TOP ? "top" : "none");

    err_hint(err, "give the target '%s' as its backing file, or copy it in "
                  "full",
             rest ? rest->child->name : o->device->name);
    return r;
}

static int
check(const struct transfer_options *o, struct err *err)
{
    if (o->target == o->device) {
        return err_set(err, -EINVAL, "Can't mirror node into itself");
    }
    if (chain_contains(o->device, o->target)) {
        return err_set(err, -EINVAL,
                       "Node '%s' is a backing file of '%s': it cannot be its "
                       "mirror",
                       o->target->name, o->device->name);
    }
    if (o->finish == FINISH_SWITCH || o->wait_for_verb) {
        int r = check_no_loop(o->replaces ? o->replaces : o->device, o->target,
                              err);

        if (r) {
            return r;
        }
    }
    /* What is stale in it is what is not copied now. */
    if (node_is_unfinished(o->target) && o->sync != SYNC_FULL && !o->resumed) {
        int r = err_set(err, -EINVAL,
                        "The target '%s' is an unfinished copy, of which "
                        "'sync': '%s' leaves what is stale",
                        o->target->name, o->sync == SYNC_TOP ? "top" : "none");

        err_hint(err, "copy it in full, or into a new image");
        return r;
    }
    if (o->granularity &&
        (o->granularity < 512 || o->granularity > 64 * MIB)) {
        return err_set(err, -EINVAL,
                       "Parameter 'granularity' expects a value in range "
                       "[512B, 64MB]");
    }
    if (o->granularity && !is_pow2(o->granularity)) {
        return err_set(err, -EINVAL,
                       "Parameter 'granularity' expects a power of 2");
    }
    if (o->delete_source && o->finish == FINISH_STAY && !o->wait_for_verb) {
        return err_set(err, -EINVAL,
                       "The disk stays in its file: 'delete-source' needs "
                       "'finish': 'switch'");
    }
    if (o->replaces && !reads_alike(o->device, o->replaces)) {
        return err_set(err, -EINVAL,
                       "Cannot replace '%s' by a node mirrored from '%s', "
                       "because it cannot be guaranteed that doing so would "
                       "not lead to an abrupt change of visible data",
                       o->replaces->name, o->device->name);
    }
    return check_rest_is_below(o, err);
}

static int
check_jobs_on(const struct node *node, enum claim claim, struct err *err)
{
    auto_free struct holder *holders = NULL;
    size_t n;
    int r = 0;

    node_holders(node, &holders, &n);
    for (size_t i = 0; i < n && !r; i++) {
        if (holders[i].pinned && holders[i].claim == claim) {
            r = node_busy(node, holders[i].owner, err, "%s it",
                          claim == CLAIM_READ ? "copies" : "fills");
        }
    }
    return r;
}

/* On it, and on the filters over it: they are one disk. */
static int
check_jobs_from(const struct node *node, enum claim claim, struct err *err)
{
    int r = check_jobs_on(node, claim, err);

    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (!r && e->role == EDGE_DATA && e->parent->drv->is_filter) {
            r = check_jobs_from(e->parent, claim, err);
        }
    }
    return r;
}

int
check_other_jobs(struct node *node, enum claim claim, struct err *err)
{
    int r = check_not_resizing(node, err);

    return r ? r : check_jobs_from(node_skip_filters(node), claim, err);
}

/* Of a job of type `mirror` QEMU knows, and so do its clients, that. */
static int
check_same_size(const struct transfer_options *o, struct err *err)
{
    if (o->target->size == o->device->size) {
        return 0;
    }
    int r = err_set(err, -EINVAL,
                    "Source and target image have different sizes");

    err_hint(err, "'%s' has %llu bytes, '%s' %llu; block-copy makes a target "
                  "that is shorter longer",
             o->device->name, (unsigned long long)o->device->size,
             o->target->name, (unsigned long long)o->target->size);
    return r;
}

int
copy_claim(struct transfer *t, const struct transfer_options *o, bool only_look,
           struct err *err)
{
    int r = transfer_claim(t, o->device, CLAIM_READ, &t->source_root, err);

    return r || (only_look && o->target->read_only)
               ? r
               : transfer_claim(t, o->target, CLAIM_TARGET, &t->root, err);
}

/*
 * What the target reads through to is what the source has there, or zero where
 * that is: as it was when it was looked at.
 */
static int
claim_below_target(struct transfer *t, const struct transfer_options *o,
                   struct err *err)
{
    const struct edge *backing = node_skip_filters(o->target)->backing;

    return backing && !chain_contains(backing->child, o->device)
               ? transfer_claim(t, backing->child, CLAIM_STABLE, &t->below_root,
                                err)
               : 0;
}

/* Both nodes, and the edges over the source; does not yield. */
static int
claim(struct transfer *t, const struct transfer_options *o, bool only_look,
      struct err *err)
{
    int r = copy_claim(t, o, only_look, err);

    r = r ? r : claim_below_target(t, o, err);
    return r || (t->finish != FINISH_SWITCH && !t->wait_for_verb)
               ? r
               : departure_hold_overlays(t, err);
}

/* Can the target be marked?  An upgrade comes later. */
static int
check_mark(const struct transfer_options *o, struct err *err)
{
    struct node *image = node_skip_filters(o->target);

    return image->drv->ensure_mark && !o->upgrade
               ? image->drv->ensure_mark(image, false, err)
               : 0;
}

/* Nothing is changed. */
static int
check_images(struct transfer *t, const struct transfer_options *o,
             struct err *err)
{
    int r = departure_check(t, err);

    r = r ? r : node_check_writable(o->target, err);
    r = r ? r : check_mark(o, err);
    return r ? r : check_target_size(o, err);
}

/* A new target that can be marked, as large as the disk. */
static int
fit_target(const struct transfer_options *o, struct err *err)
{
    struct node *image = node_skip_filters(o->target);
    int r = image->drv->ensure_mark
                ? image->drv->ensure_mark(image, o->upgrade, err)
                : 0;

    return r ? r : match_size(o, err);
}

static struct transfer *
new_transfer(const struct transfer_recipe *recipe,
             const struct transfer_options *o)
{
    struct transfer *t = transfer_new(recipe, o);

    t->copy = (struct copy){.source = o->device,
                            .target = o->target,
                            .flags = REQ_BACKGROUND};
    t->sync = o->sync;
    t->guest = o->device;
    t->tracked = true;
    t->replaces = o->replaces ? node_ref(o->replaces) : NULL;
    t->on_target_error = o->on_target_error;
    t->copy_mode = o->copy_mode;
    t->finish = o->finish;
    t->wait_for_verb = o->wait_for_verb;
    t->target_is_zero = o->target_is_zero;
    t->track.is_bare = is_bare(t);
    if (t->track.is_bare) {
        t->granularity = (uint32_t)max_u64(t->granularity,
                                           o->target->cluster_size);
    }
    return t;
}

static int
check_options(const struct transfer_recipe *recipe,
              const struct transfer_options *o, struct err *err)
{
    int r = check(o, err);

    if (!r) {
        r = check_other_jobs(o->device, CLAIM_READ, err);
    }
    if (!r) {
        r = check_not_resizing(o->target, err);
    }
    return !r && recipe == &mirror ? check_same_size(o, err) : r;
}

int
mirror_make(const struct transfer_recipe *recipe,
            const struct transfer_options *o, bool only_look,
            struct transfer **ret, struct err *err)
{
    int r = check_options(recipe, o, err);

    if (r) {
        return r;
    }
    struct transfer *t = new_transfer(recipe, o);

    r = claim(t, o, only_look, err);
    if (only_look) {
        transfer_unclaim(t);
    }
    r = r ? r : check_images(t, o, err);
    if (!r && ends_by_itself(o) && o->sync != SYNC_FULL && !o->resumed) {
        r = check_empty(o->target, err); /* or the disk would show that, too */
    }
    if (!r) {
        r = only_look ? check(o, err) : fit_target(o, err);
    }
    if (r) {
        transfer_discard(t);
        return r;
    }
    *ret = t;
    return 0;
}

static int
start(struct jobs *jobs, const struct transfer_recipe *recipe,
      const struct transfer_options *o, struct err *err)
{
    struct transfer *t;
    int r = job_check_id(jobs, o->job_id, err);

    r = r ? r : mirror_make(recipe, o, false, &t, err);
    if (!r) {
        transfer_launch(t, jobs, o);
    }
    return r;
}

int
mirror_start(struct jobs *jobs, const struct transfer_options *o,
             struct err *err)
{
    return start(jobs, &mirror, o, err);
}

int
copy_start(struct jobs *jobs, const struct transfer_options *o,
           struct err *err)
{
    return start(jobs, &copy, o, err);
}

bool
mirror_awaits_backing(struct jobs *jobs, const struct root *root)
{
    list_for_each(it, jobs_list(jobs))
    {
        struct job *job = container_of(it, struct job, link);

        if ((job->driver == &mirror.driver || job->driver == &copy.driver) &&
            transfer_of(job)->root == root) {
            return transfer_of(job)->track.is_bare;
        }
    }
    return false;
}

int
mirror_measure(const struct transfer_recipe *recipe,
               const struct transfer_options *o, struct transfer_plan *ret,
               struct err *err)
{
    struct transfer *t;
    int r = mirror_make(recipe, o, true, &t, err);

    if (r) {
        return r;
    }
    r = transfer_measure(t, mirror_next, ret, err);
    transfer_discard(t);
    return r;
}

int
mirror_plan(const struct transfer_options *o, struct transfer_plan *ret,
            struct err *err)
{
    return mirror_measure(&mirror, o, ret, err);
}

int
copy_plan(const struct transfer_options *o, struct transfer_plan *ret,
          struct err *err)
{
    return mirror_measure(&copy, o, ret, err);
}

int
mirror_set_copy_mode(struct job *job, enum copy_mode mode, struct err *err)
{
    int r = job_check_change(job, err);

    if (!r && job->driver != &mirror.driver && job->driver != &copy.driver) {
        r = err_set(err, -EINVAL, "Job type does not support change");
    }
    if (r) {
        return r;
    }
    struct transfer *t = transfer_of(job);

    t->copy_mode = mode;
    t->track.forwarding = mode == COPY_MODE_FORWARD || t->ending;
    return 0;
}

bool
mirror_is_synced(const struct job *job, bool *ret)
{
    const struct transfer *t = container_of(job, struct transfer, job);

    if (job->driver != &mirror.driver) {
        return false;
    }
    *ret = job->ready && t->track.attached && t->track.forwarding &&
           !t->workers && !t->track.late && !t->track.missing.n_dirty;
    return true;
}
