// SPDX-License-Identifier: BSD-3-Clause
/*
 * qemu-img as the judge of a sample (rule 5): a crash state is written to real
 * files, all of whose images must check without corruption, and what is the
 * disk by then must read as the oracle allows after a crash.  A target that is
 * not the disk yet must be refused, or read so, too.
 */
#ifndef SLUICE_TESTS_SIM_QEMU_H
#define SLUICE_TESTS_SIM_QEMU_H

#include "sim/sweep.h"

/* Is there one, and can it open what this setup makes? */
bool qemu_can_judge(const struct sweep_setup *setup);
/* Fails the sweep, and says so in s->judged_by_qemu, where it is not content. */
void qemu_judge(struct sweep *s, struct sim_disk *disk, const char *what);

#endif
