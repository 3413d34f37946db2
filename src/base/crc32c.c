// SPDX-License-Identifier: BSD-3-Clause
/* Four bits at a time: records are few and short. */
#include "base/crc32c.h"

/* What four bits at the end become; the polynomial is reflected. */
static const uint32_t by_nibble[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
    0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
    0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t
crc32c(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint32_t crc = UINT32_MAX;

    while (len--) {
        crc ^= *p++;
        crc = crc >> 4 ^ by_nibble[crc & 15];
        crc = crc >> 4 ^ by_nibble[crc & 15];
    }
    return ~crc;
}
