// SPDX-License-Identifier: BSD-3-Clause
/* What recipes share. */
#ifndef SLUICE_TRANSFER_RECIPES_H
#define SLUICE_TRANSFER_RECIPES_H

#include "transfer/engine.h"

/* Fill: what @t->copy.target lacks and a layer below, down to the base, has. */
int stream_next(struct transfer *t, uint64_t off, uint64_t limit,
                struct missing *ret);
/* The end of a fill: the base becomes the target's backing file. */
int stream_prepare(struct job *job, struct err *err);
/* Grows the target to the source's size; -EINVAL where that cannot be. */
int match_size(const struct transfer_options *o, struct err *err);

#endif
