// SPDX-License-Identifier: BSD-3-Clause
/*
 * Release: the sources' blocks are given back as their data lands (design §2),
 * so that a transfer needs no room for a second copy.
 *
 *   above  the layers above the target, which it takes in (merge): what they
 *          hold is unallocated, so that the target shows
 *   below  the layers below the target, which it hides (stream): what it hides
 *          of them as a whole
 *
 * What was handed to workers and is not yet given back is the window.  It is
 * closed epoch by epoch: at most half of `max-extra` each, or one of the
 * largest clusters; one is closed while the next is copied.  The order of
 * writes and flushes: docs/design/merge.md.
 */
#ifndef SLUICE_TRANSFER_RELEASE_H
#define SLUICE_TRANSFER_RELEASE_H

#include "block/node.h"

struct transfer;

enum release_side { RELEASE_NOTHING, RELEASE_ABOVE, RELEASE_BELOW };

struct release {
    enum release_side side;
    uint64_t max_extra;    /* bytes; 0: 4 MiB */
    struct node **layers;  /* that give back; the lowest first */
    bool *were_unmap;      /* theirs, then their files', before release_begin() */
    unsigned n_layers;
    uint64_t unit;         /* the largest of their clusters, a dirty block */
    uint64_t upto;         /* what lies before has been given back */
    uint64_t handed_out;   /* bytes, since the last epoch closed */
    uint64_t at_start;     /* bytes that all images took */
    uint64_t seen_at;      /* bytes moved when that was looked at last */
    uint64_t own_seen;     /* tap.own_begun when nothing was held any more */
};

/*
 * Says that the layers from the uppermost one, @top, down to, without, @bottom
 * give back.  Takes references.  Does not yield.
 */
void release_init(struct transfer *t, enum release_side side, struct node *top,
                  struct node *bottom);
/*
 * From here on the layers' files give their blocks back, whatever `discard`
 * says: this was asked for.  Yields.
 */
void release_begin(struct transfer *t);
/*
 * The most data, bytes, that is there twice at a time; UINT64_MAX where what
 * is given back is of no use to the target: another file system.  No yield.
 */
uint64_t release_extra(const struct transfer *t);
/* Bytes of the job's own journals, as far as there are any.  Does not yield. */
uint64_t release_journal_bytes(const struct transfer *t);
/*
 * What a layer gives back of a run that is hidden, or has landed: the clusters
 * of its own that lie in it as a whole.  Does not yield.
 */
void release_whole(const struct node *layer, uint64_t *off, uint64_t *end);
void release_fini(struct release *release);
/*
 * A piece was written: after a part of max-extra, looks at what the images take
 * by now.  Yields.
 */
void release_grown(struct transfer *t);
/* May another piece be handed out?  Else an epoch is to end first; no yield. */
bool release_has_room(const struct transfer *t);
/* Would an epoch that ends at @passed be worth it?  Does not yield. */
bool release_is_due(const struct transfer *t, uint64_t passed);
/* Ends the epoch at or before @passed; an error is the transfer's.  Yields. */
void release_epoch(struct transfer *t, uint64_t passed);
/*
 * Gives back what is left, once all was handed out: 0 when nothing is held any
 * more, -ECANCELED, or the transfer's error.  Yields.
 */
int release_rest(struct transfer *t);
/*
 * Since release_rest(), has nothing come to be held again?  Does not yield.
 */
bool release_is_complete(const struct transfer *t);

#endif
