// SPDX-License-Identifier: BSD-3-Clause
/*
 * What a disk may read as: per 512-byte sector, the set of values that are
 * allowed.  A value is a 64-bit tag that fills the sector; 0 is zeroes.
 *
 * A write is allowed from its issue on.  It rules out another one when it
 * began after that one had completed; for a crash it does so only once a flush
 * that began after its completion has returned.
 */
#ifndef SLUICE_TESTS_SIM_ORACLE_H
#define SLUICE_TESTS_SIM_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

struct oracle;

struct oracle *oracle_new(uint64_t sectors);
void oracle_free(struct oracle *o);
/* What the disk holds before anything happens: durable. */
void oracle_init(struct oracle *o, uint64_t sector, uint64_t tag);

/* A write of @tag; the number goes to oracle_end(). */
uint64_t oracle_begin(struct oracle *o, uint64_t sector, uint64_t n,
                      uint64_t tag);
/*
 * It has returned.  @sure: all of it happened; else (it failed, or it was a
 * discard) what was there before stays allowed.
 */
void oracle_end(struct oracle *o, uint64_t sector, uint64_t n, uint64_t id,
                bool sure);
uint64_t oracle_now(struct oracle *o); /* for a flush: its begin */
/* A read begins; what it may see is remembered until it ends. */
uint64_t oracle_read_begin(struct oracle *o);
void oracle_read_end(struct oracle *o, uint64_t begin);
/* A flush that began at @begin has returned 0. */
void oracle_flushed(struct oracle *o, uint64_t begin);

/* May a read that began at @begin and ended now see this? */
bool oracle_allows_read(struct oracle *o, uint64_t sector, uint64_t tag,
                        uint64_t begin);
/* May a crash now leave this? */
bool oracle_allows_crash(struct oracle *o, uint64_t sector, uint64_t tag);
/* The set, for messages; a static buffer. */
const char *oracle_explain(struct oracle *o, uint64_t sector);

void sector_fill(unsigned char *sector, uint64_t tag);
/* False where the sector is not filled with one value. */
bool sector_tag(const unsigned char *sector, uint64_t *ret);

#endif
