// SPDX-License-Identifier: BSD-3-Clause
/*
 * What parents of the graph use: the graph, and root edges into it.
 *
 * A root edge is how an export, a transfer or a command holds a node.  It has
 * the gate: a graph transaction closes the gates of the roots that reach what
 * it changes, waits for their requests in flight, swaps, and opens them again.
 * A root follows its disk: after a pivot it points at another node.
 *
 * Every function runs in the graph's loop.  Those that say so yield; they may
 * be called by any number of coroutines at once.
 */
#ifndef SLUICE_BLOCK_BLOCK_H
#define SLUICE_BLOCK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/sg.h"

struct grace;
struct loop;
struct graph;
struct node;
struct root;

/* Flags of requests. */
enum req_flags {
    /* Durable before the request returns (write, zero). */
    REQ_FUA = 1 << 0,
    /* Zero: the blocks may be given back. */
    REQ_MAY_UNMAP = 1 << 1,
    /* Zero: -ENOTSUP where it would have to write zeroes out. */
    REQ_NO_FALLBACK = 1 << 2,
    /* Background work of a transfer: goes behind, fires no tap. */
    REQ_BACKGROUND = 1 << 3,
    /* A part of another request, which fires the taps: fires none. */
    REQ_QUIET = 1 << 4,
    /*
     * A read of metadata to find out where something is, which holds nothing:
     * whoever waits for it, a driver may let go of it as of background work
     * (-ERESTART).
     */
    REQ_LOOKUP = 1 << 5,
};

/* Where the bytes of a range are. */
enum extent_kind {
    EXTENT_UNALLOCATED, /* in no layer: the backing file's, or zero */
    EXTENT_ZERO,        /* allocated, reads zero */
    EXTENT_DATA,        /* allocated; for a format with a host offset */
    EXTENT_ENCODED,     /* allocated, only the driver can read it (compressed) */
};

struct extent {
    enum extent_kind kind;
    uint64_t len;      /* at least 1, unless the range was empty */
    uint64_t host_off; /* EXTENT_DATA of a format: offset in its file child */
};

/* What a parent lets others do with a node, and does itself (design §4). */
enum claim {
    CLAIM_NONE,   /* says nothing */
    CLAIM_READ,   /* reads; others may write */
    CLAIM_STABLE, /* reads; nobody may write */
    CLAIM_FILL,   /* writes what it reads as already: nobody sees that */
    CLAIM_WRITE,  /* reads and writes; others may, too */
    CLAIM_ALONE,  /* reads and writes; nobody else may write */
    CLAIM_TARGET, /* as alone; all that may have an unfinished image */
    CLAIM_SINK,   /* writes what the one layer above hides; no other reads */
};

/*
 * Makes a root edge.  @owner names the holder in refusals ("export 'e'", "job
 * 'j'") and is copied.  -EBUSY where another claim stands against it, -EACCES
 * where it wants to write a read-only node, -EUCLEAN where the node is, or
 * reads through, an unfinished copy (design rule 5).
 */
int root_new(struct node *node, enum claim claim, const char *owner,
             struct root **ret, struct err *err);
/*
 * As root_new(), also of a node that is inactive, or becomes so: requests fail
 * with -EPERM as long as it is.
 */
int root_new_lasting(struct node *node, enum claim claim, const char *owner,
                     struct root **ret, struct err *err);
/* Waits for the root's requests in flight, then frees it.  Yields. */
void root_free(struct root *root);
/*
 * It stays with its node in a pivot: a job's hold, not a disk's.  @job_type is
 * what refusals call the job; borrowed.  No yield.
 */
void root_pin(struct root *root, const char *job_type);

/*
 * A transfer's claim becomes another, unchecked: for the callback of a graph
 * edit, which checks.  Does not yield.
 */
void root_set_claim(struct root *root, enum claim claim);

/*
 * For a job whose requests go to the node itself: who enters it sees to it
 * that what an edit takes out of the chain lives until he leaves.
 */
struct grace *root_grace(struct root *root);

/* From now on every change through it is durable when it returns.  No yield. */
void root_set_writethrough(struct root *root);

/* What the governor and statistics look at; does not yield. */
struct root_stats {
    uint64_t requests; /* that ended */
    uint64_t busy_ns;  /* sum of their times in the graph */
    unsigned in_flight;
};
void root_get_stats(const struct root *root, struct root_stats *ret);

struct node *root_node(const struct root *root);
struct loop *root_loop(const struct root *root);
bool root_writable(const struct root *root);

/*
 * The disk's size in bytes, as the guest sees it.  It need not be a multiple
 * of anything.
 */
uint64_t root_size(const struct root *root);

/* Sizes that suit the disk: a power of two each, in bytes. */
struct block_limits {
    uint32_t min_align;   /* smaller requests are done by read-modify-write */
    uint32_t preferred;   /* cluster or page size */
    uint64_t max_request; /* larger requests are refused with -EINVAL */
};
void root_limits(const struct root *root, struct block_limits *ret);

/*
 * Requests.  All yield and return 0 or -errno; -EINVAL where the range does
 * not lie within the disk.  The memory belongs to the caller, who must not
 * free it before the request has returned; a guest may change it meanwhile.
 */
int root_read(struct root *root, uint64_t off, struct sg sg, unsigned flags);
int root_write(struct root *root, uint64_t off, struct sg sg, unsigned flags);
int root_zero(struct root *root, uint64_t off, uint64_t len, unsigned flags);
/* A hint: may do nothing; the range then reads as before or zero. */
int root_discard(struct root *root, uint64_t off, uint64_t len);
/* Everything acknowledged before is durable when it returns 0. */
int root_flush(struct root *root);
/*
 * The first extent of [off, off + len) as the guest sees it, through the whole
 * chain: EXTENT_DATA, EXTENT_ZERO or EXTENT_UNALLOCATED (in no layer, reads
 * zero).  Asks the file system for holes, so it can be slow: not for reads.
 */
int root_status(struct root *root, uint64_t off, uint64_t len,
                struct extent *ret);
/*
 * Brings [off, off + len) into the top layer where it lies below it: a hint,
 * and what CACHE of NBD means.
 */
int root_populate(struct root *root, uint64_t off, uint64_t len);

#endif
