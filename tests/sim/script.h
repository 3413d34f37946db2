// SPDX-License-Identifier: BSD-3-Clause
/*
 * A run of the simulator as data: what the images are, what the guests do, and
 * what went wrong.  The sweeps make scripts from seeds; one that fails is
 * shrunk (shrink.h), printed, and can be run again:
 *
 *   sim-qcow2 --script FILE
 *
 * A script is lines of text; what follows a '#' at the start of a line is a
 * comment.
 *
 *   setup NAME               of the program's table: how the disk is opened,
 *                            and the operation beside the guests
 *   seed N                   of the scheduler
 *   calm                     no random delays and no random order
 *   alone                    without the operation
 *   image create FORMAT NAME KEY=VALUE...
 *   image fill FORMAT NAME SECTOR N TAG     tags TAG, TAG+1, ... in N sectors
 *   image pack FORMAT NAME SECTOR N TAG     the same, by compressed clusters
 *   image zero FORMAT NAME SECTOR N         it says that it is zero there
 *   image litter NAME N      N sectors of old data behind the file's end
 *   image stale FORMAT NAME SECTOR N TAG    fills, and marks it unfinished
 *   image unread FORMAT NAME SECTOR N TAG   fills what the disk does not read
 *   image cut FORMAT NAME SECTORS            its header says so many; no more
 *   image hide SECTOR N      the disk reads zero there
 *   step GUEST OP [SECTOR N] OP: read write write-fua zero unmap discard flush
 *   lie N                    the N-th fsync does nothing
 *   fail N ERRNO             the N-th I/O fails
 *   switch N                 the setup's disturbance comes at the N-th switch
 *   cut N                    every link is cut at the N-th message
 *   kill N                   the daemon dies at the N-th durable event
 *   power N FATES SEED       power fails there; per change that no fsync had
 *                            covered: kept, lost, torn (k, l, t)
 */
#ifndef SLUICE_TESTS_SIM_SCRIPT_H
#define SLUICE_TESTS_SIM_SCRIPT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "run/sim/sim.h"

enum step_op {
    STEP_READ,
    STEP_WRITE,
    STEP_WRITE_FUA,
    STEP_ZERO,
    STEP_UNMAP, /* zero, and the blocks may go */
    STEP_DISCARD,
    STEP_FLUSH,
};

struct step {
    unsigned guest;
    enum step_op op;
    uint64_t sector, n;
};

/* The one thing that is done to the run, beside a lie. */
enum trouble {
    TROUBLE_NONE,
    TROUBLE_FAIL,
    TROUBLE_SWITCH,
    TROUBLE_CUT,
    TROUBLE_KILL,
    TROUBLE_POWER,
};

struct script {
    char *setup;
    uint64_t seed, lie;
    bool calm, alone;
    char *image; /* lines without the word "image" */
    struct step *steps;
    unsigned n_steps;
    enum trouble trouble;
    uint64_t at;
    int error; /* TROUBLE_FAIL; positive */
    char fates[SIM_FATES_MAX + 1];
    uint64_t torn;
};

void script_fini(struct script *sc);
struct script script_copy(const struct script *sc);
void script_add(struct script *sc, struct step step);
unsigned script_guests(const struct script *sc);
/* Each line begins with @indent. */
void script_print(const struct script *sc, FILE *f, const char *indent);
/* False, with the line printed, where the text is no script. */
bool script_parse(const char *text, struct script *ret);

#endif
