// SPDX-License-Identifier: BSD-3-Clause
/*
 * The sweeps over an image format, or over an operation on one: a guest that
 * reads, writes, zeroes, discards and flushes at random in a simulated world,
 * and an oracle that judges
 *
 *   every read of the guest,
 *   every state that a power failure or a kill can leave, at every durable
 *   event: the image opens, its check finds no corruption, every sector reads
 *   as allowed,
 *   every run in which the n-th I/O fails.
 *
 * All of it is decided by a seed, which a failure prints.
 */
#ifndef SLUICE_TESTS_SIM_SWEEP_H
#define SLUICE_TESTS_SIM_SWEEP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "run/sim/sim.h"
#include "sim/oracle.h"

struct sweep;

struct sweep_setup {
    const char *name;
    /* How to open the disk (JSON); the node's name must be "top". */
    const char *options;
    /* How to open what a crash left, where that differs; else NULL. */
    const char *judge_options;
    uint64_t size; /* of the disk, bytes */
    /* Makes the images, in a world without failures; describes them in @o. */
    void (*prepare)(struct graph *graph, struct oracle *o, uint64_t seed);
    /* Runs beside the guest, in a coroutine of its own; may be NULL. */
    void (*operation)(struct sweep *s);
    /* Called with what a crash left, open read-write, before it is judged. */
    void (*recover)(struct graph *graph, struct node *top);
    unsigned guests, ops; /* coroutines, and requests of each */
    uint64_t max_states;  /* crash states per event */
};

struct sweep {
    const struct sweep_setup *setup;
    struct sim *sim;
    struct graph *graph;
    struct node *top;
    struct root *root;
    struct oracle *oracle;
    uint64_t seed, rng, next_tag;
    unsigned running;
    bool quiet;        /* failures are wanted: do not print them */
    bool may_fail;     /* an I/O of this run fails: requests may, too */
    bool crashes;      /* judge the crash states */
    uint64_t states;   /* judged so far */
    uint64_t switches; /* the most that a run had */
    unsigned failures; /* what was found wrong */
    void *op;          /* the operation's own */
    void (*act)(struct sweep *s);
};

/*
 * Runs the sweep for seeds from @first on until the share of SIM_BUDGET (in
 * seconds, from the environment; default 2) is used, at least one.  Returns
 * the failures; prints states and seeds as TAP comments.
 */
unsigned sweep_crashes(const struct sweep_setup *setup, uint64_t first);
/*
 * The n-th fsync lies, for n up to @max: the number of these that the judges
 * notice.  A sweep that notices none is worth nothing.
 */
unsigned sweep_lies(const struct sweep_setup *setup, uint64_t seed,
                    unsigned max);
/* The n-th I/O fails, for every n, with EIO and with ENOSPC. */
unsigned sweep_failures(const struct sweep_setup *setup, uint64_t seed);
/* @act is called in a coroutine at the n-th switch of coroutines, for every n. */
unsigned sweep_switches(const struct sweep_setup *setup, uint64_t seed,
                        void (*act)(struct sweep *s));
/* One run without failures and crashes: reads are judged. */
unsigned sweep_plain(const struct sweep_setup *setup, uint64_t first,
                     unsigned runs);

/* For prepare(): writes tags 1 to n into a node from sector @sector on. */
void sweep_fill(struct node *node, struct oracle *o, uint64_t sector,
                uint64_t n, uint64_t first_tag);
/* Counts a failure and prints it with the seed. */
void sweep_fail(struct sweep *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Creates an image: driver_X.create() with JSON options. */
void sweep_create(struct graph *graph, const char *driver, const char *options);

#endif
