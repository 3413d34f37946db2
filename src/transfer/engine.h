// SPDX-License-Identifier: BSD-3-Clause
/*
 * The one engine: next missing range -> copy -> account -> epoch.
 *
 * One pass over the disk copies what the recipe says is missing.  Where the
 * guest writes to the source meanwhile, what it writes is tracked (track.h)
 * and copied again until nothing is missing; then the job is ready.
 *
 * A recipe says what is missing and between which nodes; everything else is
 * here: pieces of 1 MiB in parallel, the rate limit, pause and cancel, error
 * policies, the governor, epochs, progress, and the order (what a guest reads
 * goes first).
 */
#ifndef SLUICE_TRANSFER_ENGINE_H
#define SLUICE_TRANSFER_ENGINE_H

#include "base/bytes.h"
#include "block/copy.h"
#include "transfer/governor.h"
#include "transfer/release.h"
#include "transfer/track.h"
#include "transfer/transfer.h"

struct transfer;

/* A part of what is missing. */
struct missing {
    uint64_t off, len;
    bool zero; /* the source reads zero there */
};

/*
 * The first missing part at or behind @off, within @limit bytes; *ret->len 0
 * where nothing is missing there, then *ret->off says how far that goes.
 * Yields.
 */
typedef int transfer_next(struct transfer *t, uint64_t off, uint64_t limit,
                          struct missing *ret);

struct transfer_recipe {
    struct job_driver driver; /* its `run` ends in transfer_run */
    transfer_next *next;
    /* Before the target's first write, once it is known to have room; or NULL. */
    int (*begin)(struct transfer *t, struct err *err);
};

enum { HOT_MAX = 16 };

enum { TRANSFER_GRANULARITY = 4096 }; /* bytes of a dirty block, by default */

struct transfer {
    struct job job;
    const struct transfer_recipe *recipe;
    struct copy copy;
    struct copy_buffers buffers;
    bool no_clone; /* the file system was asked and cannot share blocks */
    struct node *base; /* stream */
    struct node *overlay; /* commit below the disk: what is above its top */
    char *owner;          /* "job 'x'", as others are told */
    /* What it is, for the next daemon; of the disk; where it was written. */
    char *note;
    struct node *device;
    struct journal *journal;
    struct journal **of_layers; /* that it writes to, below the disk */
    unsigned n_of_layers;
    struct journal *deletions; /* where it says what it deletes at its end */
    unsigned n_deletions;
    bool goes_on;          /* as one that an earlier daemon began */
    struct dirty_log *log; /* the source's, where this keeps it up */
    uint64_t cleared_ns;   /* when that was done last */
    uint64_t clear_ns;     /* and how long that lasts */
    struct node *frozen;  /* from here down, edges stay where they are */
    bool holds_overlays;  /* and those from above to the source */
    struct node **writable; /* read-only again in the end */
    unsigned n_writable;
    struct node *held[2]; /* source and target, whatever leaves the graph */
    /*
     * The target lies below the source, which hides what is written to it: so
     * it needs no mark, and what is missing is what the layers above it hold.
     */
    bool shadowed;
    char *backing_file;
    struct root *root; /* the claim on the target */
    struct root *source_root; /* and on the source, where it has none */
    struct root *below_root;  /* and on what the target reads through to */
    struct root **between;    /* and on the layers that leave the chain */
    unsigned n_between;
    struct node *guest; /* what the guest uses */
    struct node *replaces; /* what the target is to replace; NULL: nothing */
    struct node *left;     /* the image that a switch leaves */
    bool tracked; /* the guest writes to the source */
    bool sinks;   /* and what it does not hold goes to the target */
    bool hybrid;  /* the pass may be broken off: the job is ready at once */
    struct track track;
    struct release release;
    uint64_t passed; /* what lies before was handed to workers */
    uint64_t closing; /* where the epoch ends that is being closed */
    uint32_t granularity; /* of dirty blocks, bytes */
    bool ending; /* the pivot is under way */
    uint64_t drain_ns; /* how long it may hold the guest's requests */
    bool measuring;
    bool unmarked; /* or about to be: the target passes for the disk */
    struct timer cut_off; /* cancelled: of what its target does not answer */
    struct comutex mark_lock; /* of the target's mark, and of the intent */
    struct intent *intent;    /* of the switch, while it is under way */
    bool delete_source, exclusive, keep_name;
    char **folders; /* where dependants are looked for, beside its own */
    size_t n_folders;
    uint64_t window; /* where the search for dirty blocks goes on */
    enum copy_mode copy_mode;
    enum sync_mode sync;
    enum finish finish;
    bool wait_for_verb, target_is_zero;
    enum on_error on_source_error, on_target_error;
    uint64_t max_in_flight, piece;
    /* See narrow_room(): bytes in flight now, until when; bounds of a piece. */
    uint64_t room, room_ns, room_until_ns, most_piece, least_piece;
    uint64_t seen_late;
    unsigned room_is_tried;

    struct coro *dispatcher;
    unsigned workers;       /* pieces in flight */
    struct list active;     /* of struct worker.link */
    uint64_t in_flight;     /* their bytes */
    int error;              /* the first that ends the job */
    bool error_on_read;
    struct waitq worker_done;
    int ignored; /* policy ignore: fails at the end */

    uint64_t epoch_bytes, epoch_start_ns;
    uint64_t flush_ns; /* how long the last one took */
    bool flushing;
    uint64_t budget_ns; /* rate limit: when the next piece may start */
    uint64_t paced_at;  /* and the speed by which that was reckoned */
    struct governor governor;

    struct missing rest; /* what was found and is not yet dispatched */
    struct tap tap;      /* sees the guest's reads */
    uint64_t hot[HOT_MAX];
    unsigned hot_head, hot_n;

    struct transfer_report report;
    uint64_t start_ns;
};

/*
 * Copies until nothing is missing and no worker is left; while the guest
 * forwards, that is a matter of time.  0, -ECANCELED or the job's error.
 */
int transfer_converge(struct transfer *t);
/*
 * What the error policy makes of an error that a part of the transfer met:
 * false where that is to be tried again, maybe after a resume.  Yields.
 */
bool transfer_error_ends(struct transfer *t, int r, bool is_read);
/*
 * True, some time later, where @r says that there is no space, the job is about
 * to end, and its policy is to wait for some.  Yields.
 */
bool transfer_waits_for_space(struct transfer *t, int r);
/*
 * Until no forward is late, or the job is cancelled; where it is paused, until
 * it goes on.  Yields.
 */
void transfer_wait_late(struct transfer *t);
/*
 * Until a worker is done, or something else has changed.  The workers of a job
 * that is paused for an error wait for its resume: so does the job itself, where
 * this is called by it while it runs.  Yields.
 */
void transfer_wait_worker(struct transfer *t);
/*
 * For release.c: is a piece of the range being copied (no yield)?  And a worker
 * for the dirty blocks of a range, at most a piece.
 */
bool transfer_is_active(const struct transfer *t, uint64_t off, uint64_t len);
void transfer_copy_dirty(struct transfer *t, uint64_t off, uint64_t len);
/* Allocates; the recipe fills in the rest and calls transfer_launch(). */
struct transfer *transfer_new(const struct transfer_recipe *recipe,
                              const struct transfer_options *options);
/* Frees one that was never launched.  Yields. */
void transfer_discard(struct transfer *t);
/*
 * Gives back what was claimed, and edges that are to stay: of one that is only
 * planned, and may hold up nobody.
 */
void transfer_unclaim(struct transfer *t);
/*
 * What a recipe asks for before the launch, and what is given back in the end:
 * a claim that stays with its node; edges that stay where they are, from @top
 * down to @bottom (chain_freeze()), until transfer_thaw() or the next freeze,
 * which must hold them, too; a node that can be written.  The last yields.
 */
int transfer_claim(struct transfer *t, struct node *node, enum claim claim,
                   struct root **ret, struct err *err);
/* As transfer_claim(), of one more layer that leaves the chain. */
int transfer_claim_more(struct transfer *t, struct node *node,
                        enum claim claim, struct err *err);
int transfer_freeze(struct transfer *t, struct node *top, struct node *bottom,
                    struct err *err);
void transfer_thaw(struct transfer *t);
int transfer_make_writable(struct transfer *t, struct node *node,
                           struct err *err);
/* These stay so: the disk is there now.  Does not yield. */
void transfer_keep_writable(struct transfer *t);
void transfer_launch(struct transfer *t, struct jobs *jobs,
                     const struct transfer_options *options);
/*
 * Asks @next: what an edit takes out of the chain meanwhile lives until it has
 * answered, where @t has a claim on its source.  Yields.
 */
int transfer_look(struct transfer *t, transfer_next *next, uint64_t off,
                  uint64_t limit, struct missing *ret);
/* plan.c */

/* Sums up what @next finds in a transfer that is not started.  Yields. */
int transfer_measure(struct transfer *t, transfer_next *next,
                     struct transfer_plan *ret, struct err *err);
/*
 * -ENOSPC, with both figures, where the target's file system has less space
 * than what is missing needs.  Looks at the maps only where it could be less.
 * Yields.
 */
int transfer_check_space(struct transfer *t, struct err *err);
/*
 * Both halves of transfer_run(): the pass and what follows, and the end of
 * what runs then.
 */
int transfer_work(struct transfer *t);
void transfer_rest(struct transfer *t);
/*
 * Gates were closed so long, and held so many requests: guests felt each
 * attempt of a switch, so the longest is reported.  Does not yield.
 */
void transfer_report_pause(struct transfer *t, uint64_t pause_ns,
                           uint64_t held);
/* What its record says; NULL where it has none, or the job is no transfer. */
const char *transfer_note(const struct job *job);
/* job_driver.run, .clean and .cancelled of every recipe. */
int transfer_run(struct job *job, struct err *err);
void transfer_clean(struct job *job, bool success);
void transfer_remember(struct job *job);
void transfer_cancelled(struct job *job);

static inline struct transfer *
transfer_of(struct job *job)
{
    return container_of(job, struct transfer, job);
}

#endif
