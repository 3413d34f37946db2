// SPDX-License-Identifier: BSD-3-Clause
/* CRC-32C (Castagnoli; RFC 3720, 12.1), as iSCSI and ext4 have it. */
#ifndef SLUICE_BASE_CRC32C_H
#define SLUICE_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(const void *data, size_t len);

#endif
