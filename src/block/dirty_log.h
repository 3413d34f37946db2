// SPDX-License-Identifier: BSD-3-Clause
/*
 * Which regions of an image a copy of it may lack, durably (rule 11;
 * docs/design/dirty-log.md): a bitmap in IMAGE.sluice-dirty.
 *
 * A region's bit is durable before a change of it reaches the image.  It is
 * taken away later, once source and target are alike there and both durable.
 * Whoever opens the image next to write keeps the log, copy or not; where
 * another program has written to it meanwhile, every bit is set.
 *
 * All yield and return 0 or -errno, unless they say otherwise.
 */
#ifndef SLUICE_BLOCK_DIRTY_LOG_H
#define SLUICE_BLOCK_DIRTY_LOG_H

#include "block/node.h"

/*
 * The log of @source, for a copy to @target.  What an earlier one says counts
 * if it was of that target and nobody has written to either since; else every
 * bit is set.  -ENOTSUP where that could not be seen (node->session).
 */
int dirty_log_begin(struct node *source, struct node *target, bool goes_on);
/* Removes it.  Nothing where there is none. */
void dirty_log_end(struct node *source);
/* @node has just been opened to be written: what lies beside it is kept on. */
void dirty_log_attach(struct node *node);
/*
 * Nothing is written to @node any more: the log is left to who opens it next,
 * and @node is closed with its session's number.
 */
void dirty_log_leave(struct node *node);
/* Of an image that is deleted. */
void dirty_log_remove(struct loop *loop, const char *image);

/* The first run of regions that are set in [off, end).  Does not yield. */
bool dirty_log_next(const struct dirty_log *log, uint64_t off, uint64_t end,
                    uint64_t *ret_off, uint64_t *ret_len);
/* Is a bit set that could be taken away?  Does not yield. */
bool dirty_log_is_dirty(const struct dirty_log *log);

/*
 * Taking bits away, in this order; nothing else may do so meanwhile.  A region
 * that is written to after dirty_log_watch() keeps its bit.
 *
 *   dirty_log_watch(); what changed the source before is over; for each region
 *   that is alike now dirty_log_is_alike(); both images are flushed;
 *   dirty_log_clear()
 */
void dirty_log_watch(struct dirty_log *log); /* this and the next: no yield */
void dirty_log_is_alike(struct dirty_log *log, uint64_t off, uint64_t len);
void dirty_log_clear(struct dirty_log *log);
/* Bytes of a region.  Does not yield. */
uint32_t dirty_log_region(const struct dirty_log *log);

#endif
