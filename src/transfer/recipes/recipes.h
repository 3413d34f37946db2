// SPDX-License-Identifier: BSD-3-Clause
/* What recipes share. */
#ifndef SLUICE_TRANSFER_RECIPES_H
#define SLUICE_TRANSFER_RECIPES_H

#include "transfer/engine.h"

/* Fill: what @t->copy.target lacks and a layer below, down to the base, has. */
int stream_next(struct transfer *t, uint64_t off, uint64_t limit,
                struct missing *ret);
/* The end of a fill: the base becomes the target's backing file. */
int stream_prepare(struct job *job, struct err *err);
/* Mirror: what the source reads as and the target not yet. */
int mirror_next(struct transfer *t, uint64_t off, uint64_t limit,
                struct missing *ret);
/* And its `begin`: an unfinished target is marked as one. */
int mark_target(struct transfer *t, struct err *err);
/* How it ends: as the verb says that ended it, else as its @finish. */
enum finish finish_of(const struct transfer *t);
/*
 * Claims what is copied, and where to; a target that a plan has opened to be
 * read, to look at it, would be opened to write.  Does not yield.
 */
int copy_claim(struct transfer *t, const struct transfer_options *o,
               bool only_look, struct err *err);
/*
 * Checks the options of a mirror, claims both nodes; the job is not launched.
 * @only_look: as of stream_make().
 */
int mirror_make(const struct transfer_recipe *recipe,
                const struct transfer_options *o, bool only_look,
                struct transfer **ret, struct err *err);
/* What mirror_make() was asked to look at.  Yields. */
int mirror_measure(const struct transfer_recipe *recipe,
                   const struct transfer_options *o, struct transfer_plan *ret,
                   struct err *err);
/*
 * stream.c: will a header be able to name the base that stays (-ENOTSUP: a part
 * of a file)?  Does not yield.
 */
int check_base_name(const struct transfer_options *o, struct err *err);
/*
 * Sinking (commit, merge).  Claims the top, the base, and the layers between
 * so that nobody else reads what is neither the old content nor the new.  Does
 * not yield.
 */
int sink_claim(struct transfer *t, const struct transfer_options *o,
               struct err *err);
/*
 * merge_delete.c: what a merge that is over is to delete and to rename, durably
 * beside @heir, which goes on without it; then that.
 */
void merge_record_deletions(struct transfer *t, struct node *heir);
int merge_delete_layers(struct transfer *t, struct err *err);

/*
 * The layers from the one below @top down to @base are as long as @top from
 * here on, and @top reads as before, whatever crashes.  Yields.
 */
int merge_match_sizes(struct node *top, struct node *base, struct err *err);
/* What sinks from o->top down to o->base.  Yields. */
int sink_measure(const struct transfer_options *o, struct transfer_plan *ret,
                 struct err *err);
/* The base is durable; now the layer above the top is to name it. */
int sink_drop_layers(struct job *job, struct err *err);
/*
 * layers.c: from @top down to, with, @last.  What they hold comes together in
 * the last one, or else in the uppermost; @overlay lies over that, or is NULL.
 */
struct layers {
    struct node *top, *last;
    const struct node *overlay;
    bool sinks;
};

/* dependents_check() of every layer but the uppermost: each loses data. */
int check_dependents(const struct layers *layers,
                     const struct transfer_options *o, struct err *err);
/*
 * May they change, and go, as a job with `release` wants it: does anybody else
 * need one, can they be written, and say who wrote to them?  Nothing is changed.
 * Yields.
 */
int check_layers(const struct layers *layers, const struct transfer_options *o,
                 struct err *err);
/* Then they can be written, and are of such a version.  Yields. */
int open_layers(struct transfer *t, const struct layers *layers,
                const struct transfer_options *o, struct err *err);
/*
 * Stream: checks the options, claims the device; the job is not launched.  With
 * `release` the layers below are claimed, too, and give back what is hidden.
 * @only_look: for a plan; all is checked, and nothing changed or kept claimed.
 */
int stream_make(const struct transfer_recipe *recipe,
                const struct transfer_options *o, bool only_look,
                struct transfer **ret, struct err *err);
/* What stream_make() was asked to look at.  Yields. */
int stream_measure(const struct transfer_recipe *recipe,
                   const struct transfer_options *o, struct transfer_plan *ret,
                   struct err *err);
/*
 * Post-copy: checks a target that is to get the source as its backing file,
 * all but that it is empty.
 */
int check_overlay_target(const struct transfer_options *o, struct err *err);
int check_empty(struct node *target, struct err *err);
/* The end of post-copy: of the fill, and of the source where that is wanted. */
int post_copy_prepare(struct job *job, struct err *err);
/* The target's header names the source as its backing file, durably. */
int name_source(struct transfer *t, struct err *err);
/*
 * The source becomes the target's backing file and the guests' disk is the
 * target, in one graph transaction.  @deadline_ns and @ready are graph_edit()'s.
 */
int put_on_top(struct transfer *t, uint64_t deadline_ns,
               int (*ready)(void *arg), void *arg, struct err *err);
/*
 * -EBUSY where another job holds @node with that claim, or where it is being
 * resized.  Does not yield.
 *   CLAIM_READ   it copies the disk from there: once one of them has moved the
 *                disk, the other would copy what no guest writes to any more
 *   CLAIM_FILL   it fills it: the first to end drops the layers below, which
 *                the other still reads
 */
int check_other_jobs(struct node *node, enum claim claim, struct err *err);
/* Grows the target to the source's size; -EINVAL where that cannot be. */
int check_target_size(const struct transfer_options *o, struct err *err);
int match_size(const struct transfer_options *o, struct err *err);

#endif
