// SPDX-License-Identifier: BSD-3-Clause
/*
 * Zero detection.  A copier asks this of every byte it moves, so it runs at
 * memory speed: most data differs from zero in the first bytes, which are
 * tried first, and the rest is compared with itself shifted by 16, which the
 * C library's vectorised memcmp does best.
 */
#include "base/bytes.h"

bool
bytes_are_zero(const void *p, size_t len)
{
    const unsigned char *b = p;
    size_t head = len < 16 ? len : 16;

    for (size_t i = 0; i < head; i++) {
        if (b[i]) {
            return false;
        }
    }
    return len <= 16 || memcmp(b, b + 16, len - 16) == 0;
}
