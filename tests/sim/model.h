// SPDX-License-Identifier: BSD-3-Clause
/*
 * The model test of the live operations: a world per seed, with a random chain
 * of random formats, guests that work on it all the time, and a random
 * sequence of operations, some of them two at once, which are paused, slowed,
 * cancelled and completed at random moments.  Every byte is compared
 *
 *   with each read of a guest,
 *   after each step, with the guests held still: the whole disk,
 *   after an operation that leaves a copy: the copy, also opened again,
 *   at the end: what a kill and a power failure would leave, and the closed
 *   images, opened as the disk's head; they also check clean.
 *
 * No I/O fails here: that is the sweeps' business.
 *
 *   model.c        the loop over seeds, the counts, shrinking
 *   model_world.c  the chain, the guests, comparing
 *   model_ops.c    the table of operations, and what is done to them
 */
#ifndef SLUICE_TESTS_SIM_MODEL_H
#define SLUICE_TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "run/sim/sim.h"
#include "sim/oracle.h"
#include "transfer/transfer.h"

enum {
    SECTOR = 512,
    SECTORS_MAX = 192, /* of a disk, also when it has grown */
    GUESTS_MAX = 3,
    STEPS_MAX = 8,
    LAYERS_MAX = 4,
    OPS_AT_ONCE = 2,
    IMAGES_MAX = 64, /* that a world makes */
};

enum outcome { COMPLETED, CANCELLED, REFUSED, OUTCOMES };

/* What of a seed's world is run: all of it, or what shrinking left. */
struct plan {
    uint64_t seed;
    uint32_t steps;  /* bit 2n and 2n + 1: the operations of step n */
    unsigned guests; /* at most */
    unsigned layers; /* at most */
};

/* An image that the world made; its node has the name "nN", its file "fN". */
struct image {
    const char *driver; /* NULL: none */
    bool named;         /* held by blockdev-add until world_tidy() */
    bool old_data;      /* of something else */
};

struct world {
    const struct plan *plan;
    bool verbose;
    uint64_t rng; /* of what happens while it runs */
    struct sim *sim;
    struct sim_spares *spares;
    struct graph *graph;
    struct jobs *jobs;
    struct root *roots[GUESTS_MAX];
    unsigned n_roots, n_guests, n_running, n_ops;
    struct op *ops; /* of this step: OPS_AT_ONCE */
    struct oracle *oracle;
    uint64_t sectors; /* of the disk */
    uint64_t next_tag;
    bool stop;
    bool has_released; /* a merge began: clusters were given up */
    unsigned holds, in_flight; /* of guests */
    struct waitq quiet, go;
    struct image images[IMAGES_MAX];
    unsigned n_images;
    json_t *head; /* how the disk is opened again at the end */
    unsigned failures;
    char *why; /* the first of them */
};

/* model_world.c */

void world_fail(struct world *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void world_say(struct world *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
uint64_t world_random(struct world *w, uint64_t n); /* below @n */
struct node *world_head(const struct world *w);
unsigned world_image_of(const struct world *w, const struct node *node);
/*
 * A new image of a random kind, empty; @backing: what its header names, or
 * NULL.  @kind: "qcow2", "qed", "raw", or NULL for any that fits.
 */
unsigned world_make_image(struct world *w, uint64_t *rng, const char *kind,
                          uint64_t sectors, const struct node *backing);
/* Opens image @i by itself, as the control interface would for a target. */
struct node *world_open_image(struct world *w, uint64_t *rng, unsigned i);
/* Makes the chain and opens it, as guests see it. */
void world_open_chain(struct world *w);
void world_start_guests(struct world *w);
/* No request of a guest is in flight after the first, until the second. */
void world_hold(struct world *w);
void world_release(struct world *w);
/*
 * Does @node read as the disk, which had @sectors, did at some time since
 * @begin, which oracle_read_begin() gave?
 */
void world_compare(struct world *w, struct node *node, uint64_t sectors,
                   uint64_t begin, const char *what);
/* The same of image @i, closed and opened again by itself. */
void world_compare_file(struct world *w, unsigned i, uint64_t sectors,
                        uint64_t begin);
/* Must image @i be refused as unfinished, or untouched? */
void world_check_unfinished(struct world *w, unsigned i);
/* After a step: compares the whole disk, closes what is not used any more. */
void world_settle(struct world *w);
/* What a crash at the end leaves; sets w->head.  No guest is left. */
void world_judge(struct world *w);
/* The closed disk, opened again as w->head says, in a world of its own. */
void world_judge_closed(struct world *w, struct sim_disk *disk);

/* model_ops.c */

unsigned ops_kinds(void);
const char *ops_name(unsigned kind);
/* Which outcomes an operation of that kind can have, as bits. */
unsigned ops_outcomes(unsigned kind);
/* For jobs_new(), with the world. */
void ops_on_event(void *arg, const struct job_event *ev);
/* One step of one operation or two; counts[kind][outcome] grow. */
void ops_step(struct world *w, unsigned step, uint64_t (*counts)[OUTCOMES]);

#endif
