// SPDX-License-Identifier: BSD-3-Clause
/*
 * The metadata cache of image formats, and the order in which it reaches the
 * disk (docs/design/qcow2-ordering.md).
 *
 * Tables are cached in slices.  A change stays in memory until a *commit*,
 * which takes a snapshot of everything dirty and writes it in phases:
 *
 *   META_COUNTS  what says that clusters are in use (refcount blocks)
 *   META_LINKS   what names blocks of counts (the refcount table)
 *   META_MAPS    what names clusters of data and tables (L2, L1)
 *
 * Each phase begins with a flush of the file, and one follows the last.  A
 * change of META_MAPS is made after the data it names was written, so that
 * data is durable before its mapping (design rule 3), and a mapping never
 * names a cluster that counts as free.
 *
 * Whoever stops naming a cluster hands it to meta_free_later(): it comes back
 * once that is durable and nobody still reads it.
 *
 * A change waits at most META_STALE_NS for a commit, even where no guest ever
 * flushes.
 *
 * Every change goes through meta_change(), which also writes it to the log of
 * rule 10 (meta_log.h), while there is one.
 *
 * Everything yields unless it says otherwise.
 */
#ifndef SLUICE_DRIVERS_META_H
#define SLUICE_DRIVERS_META_H

#include <stdbool.h>
#include <stdint.h>

#include "run/loop.h"

struct node;
struct meta;

enum meta_phase { META_COUNTS, META_LINKS, META_MAPS, META_PHASES };

/* One aligned piece of a table. */
struct slice;

#define META_STALE_NS (5 * NS_PER_S)
/* The log is renamed that often at most (docs/design/shared-log.md). */
#define META_RENAME_NS (NS_PER_S / 10)

struct meta_options {
    struct node *node;   /* the image: its `lookups` guard freed clusters */
    uint32_t slice_size; /* a power of two, 512 to 4096 */
    uint64_t budget;     /* bytes of slices to keep */
    /* Writes these autoclear bits of the image's header; may yield. */
    int (*rename)(struct node *node, uint64_t autoclear);
    /* A cluster is free now (see meta_free_later()); may yield. */
    void (*freed)(struct node *node, uint64_t off, uint64_t len);
};

struct meta *meta_new(const struct meta_options *options);
/*
 * Commits, waits for what is going on, frees; the result of the commit.  With
 * @discard nothing is written: for an image whose open failed.
 */
int meta_close(struct meta *meta, bool discard);

/*
 * From here on changes outlive this process, those that are not yet committed,
 * too; called while no commit runs.  Returns what the autoclear bits of the image
 * must be, 0 where there is no log.  Does not yield.
 */
uint64_t meta_start_log(struct meta *meta);
/* Does a commit run?  Does not yield. */
bool meta_is_committing(const struct meta *meta);
/* Everything was committed (meta_free_now()).  Does not yield. */
void meta_stop_log(struct meta *meta);

/*
 * The slice that holds file offset @off, pinned until meta_put().  -EIO and so
 * on where it cannot be read; every caller gets the error.  With REQ_LOOKUP in
 * @flags the caller can be let go of (-ERESTART), and with it whoever else has
 * that flag and waits for the same slice; the others read it again.
 */
int meta_get(struct meta *meta, uint64_t off, unsigned flags,
             struct slice **ret);
/* As meta_get(), only where it is cached; NULL else.  Does not yield. */
struct slice *meta_peek(struct meta *meta, uint64_t off);
/* Does not yield. */
void meta_put(struct meta *meta, struct slice *slice);
/* The bytes at file offset @off, up to the slice's end.  Does not yield. */
const unsigned char *slice_at(const struct slice *slice, uint64_t off);

/* Changes bytes inside one slice.  Does not yield. */
void meta_change(struct meta *meta, struct slice *slice, uint64_t off,
                 const void *bytes, uint32_t len, enum meta_phase phase);
/*
 * Forgets cached slices of [off, off + len), dirty or not: a table that is
 * given up, or a cluster that becomes a table.  Nobody may have them pinned.
 * Does not yield.
 */
void meta_forget(struct meta *meta, uint64_t off, uint64_t len);

/* Everything that was changed before the call is durable when it returns 0. */
int meta_commit(struct meta *meta);

/*
 * @freed will be called for the range after the commit that includes all
 * changes made so far, once every look-up that began before is over.  Does not
 * yield.
 */
void meta_free_later(struct meta *meta, uint64_t off, uint64_t len);
/* Commits and waits until all that was freed before has come back. */
int meta_free_now(struct meta *meta);

#endif
