// SPDX-License-Identifier: BSD-3-Clause
/*
 * Numbers and switches as the command line writes them.  Each function takes
 * the whole text or fails with -EINVAL or -ERANGE; *ret is written on success
 * only.
 */
#ifndef SLUICE_CONTROL_NUMBER_H
#define SLUICE_CONTROL_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/* on, yes, true, y or off, no, false, n. */
int number_parse_bool(const char *text, bool *ret);
/* Decimal, 0x... or octal 0...; no suffix. */
int number_parse_int(const char *text, int64_t *ret);
/*
 * Bytes: decimal (with a fraction, where a suffix follows) or 0x...; a suffix
 * B, K, M, G, T, P or E of either case multiplies by a power of 1024.
 */
int number_parse_size(const char *text, int64_t *ret);

#endif
