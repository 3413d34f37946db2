// SPDX-License-Identifier: BSD-3-Clause
/* Every limit on what an image, a peer or a user may ask for, by name. */
#ifndef SLUICE_BLOCK_LIMITS_H
#define SLUICE_BLOCK_LIMITS_H

#include "base/bytes.h"

#define LIMIT_CHAIN_DEPTH 4096              /* images in one chain */
#define CHAIN_INDEX_BYTES (32 * MIB)         /* of a disk, unless told otherwise */
#define LIMIT_NODE_NAME 31                  /* characters, as QEMU */
#define LIMIT_REQUEST (64 * MIB)            /* one request */
#define LIMIT_COPY (16 * MIB)               /* one piece of a copy */
#define LIMIT_IMAGE_SIZE (1ULL << 62)       /* virtual size */
#define LIMIT_BACKING_NAME 1023             /* qcow2 spec, header */
#define LIMIT_HEADER_EXTENSION (64 * KIB)   /* one qcow2 extension */
#define LIMIT_TABLE_BYTES (32 * MIB)        /* L1 and refcount table, as QEMU */
#define LIMIT_CHECK_CLUSTERS (1ULL << 31)   /* of a QED file: a bit each */

/* What the file systems below give back is whole blocks of theirs. */
#define HOST_BLOCK 4096

#endif
