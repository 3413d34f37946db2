// SPDX-License-Identifier: BSD-3-Clause
/* A transfer as data, for the `operation` of a sweep. */
#ifndef SLUICE_TESTS_SIM_TRANSFER_H
#define SLUICE_TESTS_SIM_TRANSFER_H

#include "sim/sweep.h"
#include "transfer/transfer.h"

/* Layers by their depth: the disk's own is 0. */
struct sweep_transfer {
    enum transfer_preset preset;
    const char *target; /* how to open it (JSON), NULL: none */
    unsigned device, top, base; /* @base 0: none */
    enum finish finish;
    enum copy_mode mode;
    enum sync_mode sync;
    bool wait_for_verb;
    bool delete_source;
    enum merge_into into;
    bool release, keep_name;
    bool at_any_time; /* the verb comes when it pleases */
    uint64_t speed;   /* so slow that the guests are ahead; 0: no limit */
    /*
     * Called when the target passes for the disk, and the guests are not on it
     * yet, at most @n_in_switch times.  May yield; may be NULL.
     */
    void (*in_switch)(struct sweep *s);
    unsigned n_in_switch;
    bool from_the_first; /* also before the target passes for the disk */
    /* Called when the job is there.  May yield; may be NULL. */
    void (*once_started)(struct sweep *s);
};

/*
 * Runs it as the job "j" of s->op until it is over; s->done where it ended as
 * it was meant to.  It fails the sweep where it fails without a reason.
 */
void sweep_run_transfer(struct sweep *s, const struct sweep_transfer *plan);
/*
 * For `recover`: what was under way when all ended goes on, to its end, and
 * then the journal says nothing any more.
 */
void sweep_resume(struct sweep *s, struct graph *graph, struct node *top);
/* The same; then "target" reads as the disk. */
void sweep_resume_copy(struct sweep *s, struct graph *graph, struct node *top);
/* The layer at @depth below the disk, or NULL. */
struct node *sweep_layer(const struct sweep *s, unsigned depth);

#endif
