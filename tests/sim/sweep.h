// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over an image format, or over an operation on one: guests that
 * read, write, zero, discard and flush at random in a simulated world, and an
 * oracle that judges
 *
 *   every read of the guest,
 *   that no fsync and no open is awaited while an edit holds the guest up,
 *   every state that a power failure or a kill can leave, at every durable
 *   event: the image opens, its check finds no corruption, every sector reads
 *   as allowed,
 *   every run in which the n-th I/O fails, a link is cut at the n-th message,
 *   something (a cancel) comes at the n-th switch of coroutines.
 *
 * A seed becomes a script (script.h); one that fails is shrunk and printed.
 *
 *   script.c  a run as data           run.c    runs and judges one
 *   images.c  its images              shrink.c makes a failing one small
 *   sweep.c   the sweeps              cases.h  what a test program calls
 *   qemu.c    qemu-img as a judge of a sample
 */
#ifndef SLUICE_TESTS_SIM_SWEEP_H
#define SLUICE_TESTS_SIM_SWEEP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "run/sim/sim.h"
#include "sim/oracle.h"
#include "sim/script.h"

struct sweep;

struct sweep_setup {
    const char *name;
    /* How to make the images: see script.h; made without failures. */
    const char *image;
    /* How to open the disk (JSON); the node's name must be "top". */
    const char *options;
    /* How to open what a crash left, where that differs; else NULL. */
    const char *judge_options;
    /* And where the header names no backing file any more; else NULL. */
    const char *judge_alone;
    /* How to open it once the guests' root has moved; else NULL. */
    const char *judge_moved;
    /*
     * Another image that may be the disk: judged wherever it opens, and where
     * it is refused as unfinished, the one above is; else NULL.
     */
    const char *judge_target;
    /* The image that the disk goes on on after that one; else NULL. */
    const char *judge_next;
    /* From the switch on "top.sluice", while it is there, says so. */
    bool leaves_a_record;
    /* qemu-img does not see its mark, which the journal has. */
    bool target_has_no_mark;
    /* A run without failures ends with the disk on that one. */
    bool ends_on_target;
    uint64_t size; /* of the disk, bytes */
    /* The sectors that guests touch; @span 0: all. */
    uint64_t first, span;
    unsigned guests, ops; /* coroutines, and requests of each */
    uint64_t think_ns;    /* at most, before each; 0: none */
    uint64_t max_states;  /* crash states per event */
    uint64_t max_ns;      /* a run that takes longer hangs; 0: no limit */
    uint64_t cut_ns;      /* how long a cut link stays down */
    uint64_t shm_bytes;   /* of a log in shared memory; 0: no limit */
    const char *slow_file; /* hangs now and then: see sim.h; or NULL */
    const struct driver *const *drivers; /* NULL: all */
    /* Runs beside the guests, in a coroutine of its own; may be NULL. */
    void (*operation)(struct sweep *s);
    /* Called in a coroutine at the switch that a script names. */
    void (*disturb)(struct sweep *s);
    /* Called with what a crash left, open read-write, before it is judged. */
    void (*recover)(struct sweep *s, struct graph *graph, struct node *top);
    /* Starts what the disk needs outside (a server), and stops it. */
    void *(*serve)(struct graph *graph);
    void (*unserve)(void *service);
    bool forgets;  /* a kill takes what was not flushed: no bit for the log */
    bool may_fail; /* requests may fail in every run */
    /* Only as data for other cases: cases_run() leaves it out. */
    bool special;
};

/* Some of the states, one at random in so many; all of them: see `every`. */
struct sample {
    bool every;
    uint64_t wanted, stride;
    uint64_t taken, next; /* @next: the number of a state, from 1 */
    double seconds;       /* that qemu-img took, which are no part of the budget */
};

struct sweep {
    const struct sweep_setup *setup;
    const struct script *script;
    struct sim *sim;
    struct sim_spares *spares; /* its worlds follow each other by the thousand */
    struct graph *graph;
    struct node *top;
    struct root *root;
    struct oracle *oracle;
    uint64_t seed, rng, next_tag;
    unsigned running;
    bool verbose;        /* says what a replay does */
    bool quiet;          /* failures are wanted: nothing is shrunk or printed */
    bool may_fail;       /* an I/O of this run fails: requests may, too */
    bool crashes;        /* judge all crash states, not only the script's */
    uint64_t max_states; /* overrides the setup's; 0: does not */
    uint64_t states, second_states; /* judged so far */
    struct sample sample;           /* of these states, for qemu-img */
    bool judged_by_qemu;            /* it was not content: nothing is shrunk */
    uint64_t resumed; /* jobs that went on after a crash */
    uint64_t released; /* bytes, by the transfer of this run that is over */
    uint64_t n_io, n_switches, n_messages; /* of the last run */
    unsigned failures;                     /* of the last run */
    char *why;                             /* the first of them */
    struct script found;                   /* with what made it fail */
    const struct sim_crash *crash;         /* being judged */
    bool again, power; /* a second one, at its recovery; and that of power */
    void *service;
    void *op; /* the operation's own */
    bool moved;   /* the root is on another node than "top" */
    bool recorded; /* and the journal of that lies beside "top" */
    bool done;    /* the operation has ended as it was meant to */
};

/* Runs a script: sets @failures and so on.  After a hang its world is lost. */
void sweep_run(struct sweep *s, const struct script *sc);
void sweep_fini(struct sweep *s);
/* Counts a failure; the first one is kept. */
void sweep_fail(struct sweep *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* How often a state that is waited for is looked at. */
uint64_t sweep_poll_ns(const struct sweep *s);

/* A guest's request, judged as all of them are; for `operation`.  Yields. */
void sweep_step(struct sweep *s, const struct step *step);

/* For `disturb`: the job "j" of s->op, its jobs, where it is there. */
void sweep_cancel_job(struct sweep *s);
void sweep_pause_job(struct sweep *s); /* for a millisecond */

/* The script that a seed stands for. */
struct script sweep_script(const struct sweep_setup *setup, uint64_t seed);

/* Where there are many setups, each of their sweeps has less of SIM_BUDGET. */
void sweep_share_budget(size_t n_setups);
/* SIM_STATES: as many are judged, however short the time; 0: no matter. */
uint64_t sweep_states_wanted(void);

/* Of the clock on the wall. */
double sweep_seconds(void);
/* SIM_QEMU: so many of them, about, by qemu-img, too. */
uint64_t sweep_sample_wanted(void);

/* What all sweeps of this program have judged so far. */
struct sweep_totals {
    uint64_t states, second_states, by_qemu;
};
struct sweep_totals sweep_totals(void);

/*
 * Runs the sweep for seeds from @first on until the share of SIM_BUDGET (in
 * seconds, from the environment; default 2) is used and the share of SIM_STATES
 * is judged, at least one.  This and the others return the failures, and print
 * counts and a shrunk script as TAP comments.
 */
unsigned sweep_crashes(const struct sweep_setup *setup, uint64_t first);
/*
 * The n-th fsync lies, for n up to @max: the number of these that the judges
 * notice.  A sweep that notices none is worth nothing.
 */
unsigned sweep_lies(const struct sweep_setup *setup, uint64_t seed,
                    unsigned max);
/* The n-th I/O fails, for every n, with EIO and with ENOSPC. */
unsigned sweep_failures(const struct sweep_setup *setup, uint64_t first);
/* A random I/O fails, and a crash comes at any event after that or before. */
unsigned sweep_failures_and_crashes(const struct sweep_setup *setup,
                                    uint64_t first);
/* setup->disturb comes at the n-th switch of coroutines, for every n. */
unsigned sweep_switches(const struct sweep_setup *setup, uint64_t first);
/* All links are cut at the n-th message, for every n. */
unsigned sweep_cuts(const struct sweep_setup *setup, uint64_t first);
/* At most @runs without failures and crashes: reads are judged. */
unsigned sweep_plain(const struct sweep_setup *setup, uint64_t first,
                     unsigned runs);
/* One run of the script in a file; prints what becomes of it. */
unsigned sweep_replay(const struct sweep_setup *setups, size_t n,
                      const char *path);

/* shrink.c: the smallest script found that still fails as s->found does. */
struct script sweep_shrink(struct sweep *s);

/*
 * For `operation`: the disk grows and its new end is written while its old end
 * is discarded or zeroed, again and again.  Yields.
 */
void sweep_grow(struct sweep *s);

/* images.c */
void images_make(struct graph *graph, struct oracle *o, const char *lines);
/* Writes @n tags into a node from sector @sector on. */
void sweep_fill(struct node *node, struct oracle *o, uint64_t sector,
                uint64_t n, uint64_t first_tag);

#endif
