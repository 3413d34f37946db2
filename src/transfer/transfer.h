// SPDX-License-Identifier: BSD-3-Clause
/*
 * Transfers: what every operation that moves data is made of (design §2).
 *
 * A verb of the control interface fills in `struct transfer_options` and names
 * a recipe; the recipe turns it into a source, a target, what is missing, what
 * a guest write does, when the guest is switched and how it ends.  The engine
 * (engine.h) does the rest.
 */
#ifndef SLUICE_TRANSFER_H
#define SLUICE_TRANSFER_H

#include "block/node.h"
#include "transfer/job.h"

struct transfer_options {
    const char *job_id;
    struct node *device; /* whose layers are moved */
    struct node *base;   /* stream: the layer to stop at, NULL: none */
    struct node *target; /* convert: where to */
    const char *backing_file; /* the name to write into the header, or NULL */
    uint64_t speed;           /* bytes a second, 0: unlimited */
    enum on_error on_error;
    bool auto_finalize, auto_dismiss;
    uint64_t max_in_flight; /* bytes; 0: the default, 64 MiB */
    uint64_t piece; /* bytes of one copy, a power of two; 0: 1 MiB */
};

/*
 * block-stream (S1): fills @device from the layers below it, down to @base,
 * then makes @base its backing file.  The job owns nothing but its claims.
 */
int stream_start(struct jobs *jobs, const struct transfer_options *options,
                 struct err *err);
/* What a transfer would do, as things are now. */
struct transfer_plan {
    uint64_t bytes_to_copy, bytes_to_zero;
};
/*
 * Checks and measures a block-stream without starting it; only @device and
 * @base count.  Yields.
 */
int stream_plan(const struct transfer_options *options,
                struct transfer_plan *ret, struct err *err);
/*
 * Copies what @device reads as into @target, which is as large and not in use,
 * then flushes it.
 */
int convert_start(struct jobs *jobs, const struct transfer_options *options,
                  struct err *err);

/* What a finished or running transfer reports. */
struct transfer_report {
    uint64_t bytes_moved;   /* written to the target, zeroes excepted */
    uint64_t bytes_cloned;  /* shared with the source's file */
    uint64_t bytes_zeroed;  /* found or known to be zero */
    uint64_t bytes_skipped; /* filled by the guest meanwhile */
    uint64_t pause_ns, held;
    uint64_t rate_bps; /* over the last seconds */
    uint64_t elapsed_ns;
};
/* False where the job is no transfer. */
bool transfer_report(const struct job *job, struct transfer_report *ret);

#endif
