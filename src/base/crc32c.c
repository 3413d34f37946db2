// SPDX-License-Identifier: BSD-3-Clause
/* Bit by bit: records are few and short. */
#include "base/crc32c.h"

#define POLYNOMIAL 0x82f63b78u /* reflected */

uint32_t
crc32c(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint32_t crc = UINT32_MAX;

    while (len--) {
        crc ^= *p++;
        for (unsigned bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        }
    }
    return ~crc;
}
