// SPDX-License-Identifier: BSD-3-Clause
/*
 * qcow2, as specified in QEMU's docs/interop/qcow2.rst (section names are
 * cited where they apply).  Private to src/drivers/qcow2/.
 *
 *   open.c      header and options            map.c     guest range -> cluster
 *   write.c     writes, zeroes, discards      alloc.c   refcounts, free clusters
 *   compress.c  compressed clusters           header.c  changes of the header
 *   create.c    new images                    check.c   consistency
 */
#ifndef SLUICE_DRIVERS_QCOW2_H
#define SLUICE_DRIVERS_QCOW2_H

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/meta.h"
#include "drivers/meta_log.h"

/* "Header". */
#define QCOW2_MAGIC 0x514649fbu
enum {
    H_MAGIC = 0,
    H_VERSION = 4,
    H_BACKING_OFF = 8,
    H_BACKING_LEN = 16,
    H_CLUSTER_BITS = 20,
    H_SIZE = 24,
    H_CRYPT = 32,
    H_L1_SIZE = 36,
    H_L1_OFF = 40,
    H_REFTABLE_OFF = 48,
    H_REFTABLE_CLUSTERS = 56,
    H_SNAPSHOTS = 60,
    H_SNAPSHOTS_OFF = 64,
    H_INCOMPATIBLE = 72,
    H_COMPATIBLE = 80,
    H_AUTOCLEAR = 88,
    H_REFCOUNT_ORDER = 96,
    H_LENGTH = 100,
    H_COMPRESSION = 104,
    HEADER_V2 = 72,
    HEADER_V3 = 104,
    HEADER_OURS = 112,
    HEADER_BYTES = 4096, /* what create() writes: the longest name fits */
    SECTOR = 512,
};

enum {
    INCOMPAT_DIRTY = 1 << 0,
    INCOMPAT_CORRUPT = 1 << 1,
    INCOMPAT_DATA_FILE = 1 << 2,
    INCOMPAT_COMPRESSION = 1 << 3,
    INCOMPAT_EXTENDED_L2 = 1 << 4,
    COMPAT_LAZY_REFCOUNTS = 1 << 0,
    AUTOCLEAR_BITMAPS = 1 << 0,
};

/*
 * Ours (design rule 5): an unfinished copy, which every program refuses that
 * does not know the bit.  The name is for their messages.
 */
#define INCOMPAT_UNFINISHED_BIT 62
#define INCOMPAT_UNFINISHED (1ULL << INCOMPAT_UNFINISHED_BIT)
#define UNFINISHED_NAME "unfinished copy (finish it with Sluice)"

/* "Feature name table": a type, a bit number, a name. */
enum { FEATURE_ENTRY = 48, FEATURE_NAME = 46, FEATURE_INCOMPATIBLE = 0 };

/* "Header extensions". */
#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_DATA_FILE 0x44415441u
#define EXT_FEATURES 0x6803f857u
#define EXT_BITMAPS 0x23852875u

/* "Cluster mapping": L1 and L2 entries. */
#define ENTRY_COPIED (1ULL << 63)
#define ENTRY_COMPRESSED (1ULL << 62)
#define ENTRY_ZERO 1ULL
#define ENTRY_OFFSET 0x00fffffffffffe00ULL

enum { CLUSTER_BITS_MIN = 9, CLUSTER_BITS_MAX = 21 };

/* Decompressed clusters that are kept. */
enum { PLAIN_SLOTS = 8 };

struct plain_cluster {
    uint64_t entry; /* the L2 entry; 0: unused */
    unsigned char *data;
    uint64_t used; /* stamp */
};

struct qcow2 {
    struct node *node;
    struct meta *meta;
    unsigned version;
    unsigned cluster_bits, l2_bits;
    uint64_t cluster_size;
    uint64_t l1_off;
    uint32_t l1_size;
    uint64_t incompatible, compatible, autoclear;
    unsigned compression; /* 0: deflate, 1: zstd */

    struct comutex header_lock; /* header.c; taken last */

    /* alloc.c */
    unsigned refcount_order, block_bits; /* log2 of counts in a block */
    uint64_t reftable_off;
    uint64_t reftable_entries;
    struct comutex alloc_lock;
    uint64_t hint;   /* no cluster before this index is free */
    uint64_t virgin; /* from this index on, the file was never written */
    /* Within a cluster of compressed ones: where the next may go; 0: nowhere. */
    uint64_t packed;
    bool punch_freed; /* clusters that are given back are punched */

    struct offload_group workers;
    struct plain_cluster plain[PLAIN_SLOTS];
    uint64_t stamp;
};

static inline struct qcow2 *
qcow2_of(struct node *node)
{
    return node->state;
}

static inline uint64_t
in_cluster(const struct qcow2 *q, uint64_t off)
{
    return off & (q->cluster_size - 1);
}

/* map.c */

enum cluster_kind { C_UNALLOCATED, C_ZERO, C_DATA, C_COMPRESSED };

enum cluster_kind entry_kind(const struct qcow2 *q, uint64_t entry);
/* Can a write go to where the entry points, as it is? */
bool entry_in_place(const struct qcow2 *q, uint64_t entry);
/*
 * The L2 entries for the guest clusters from @off on, at most @max, as far as
 * they lie in one slice; *ret_n is at least 1.  Entries of a table that does
 * not exist are 0.
 */
int qcow2_lookup(struct qcow2 *q, uint64_t off, uint64_t *entries, unsigned max,
                 unsigned *ret_n);
/*
 * Replaces the L2 entry of one guest cluster; allocates the table.  What the
 * old entry named is freed later.  The cluster's range is held exclusively.
 */
int qcow2_set_entry(struct qcow2 *q, uint64_t off, uint64_t entry);
int qcow2_map(struct node *node, uint64_t off, uint64_t len,
              struct extent *ret);

/* alloc.c */

/*
 * Takes up to @n clusters in one piece: *ret_n of them from file offset
 * *ret_off on.  *ret_zero: they read zero and need no padding.
 */
int qcow2_alloc(struct qcow2 *q, uint64_t n, uint64_t *ret_off, uint64_t *ret_n,
                bool *ret_zero);
/* Exactly @n in one piece. */
int qcow2_alloc_exact(struct qcow2 *q, uint64_t n, uint64_t *ret_off);
/*
 * @len bytes, on a sector, for a compressed cluster: behind the last one where
 * there is room.  To be given back as the clusters that it reaches into.
 */
int qcow2_alloc_packed(struct qcow2 *q, uint64_t len, uint64_t *ret_off);
/* Gives back clusters that nothing on disk or in the cache names. */
int qcow2_unalloc(struct qcow2 *q, uint64_t off, uint64_t n);
/* Called by the cache: nothing names the range any more, durably. */
void qcow2_freed(struct node *node, uint64_t off, uint64_t len);
/* The count of one cluster (by index); 0 where no block covers it. */
int qcow2_refcount(struct qcow2 *q, uint64_t index, uint64_t *ret);
/* Changes a count as check.c's repair needs it. */
int qcow2_set_refcount(struct qcow2 *q, uint64_t index, uint64_t count);
void qcow2_compressed_range(const struct qcow2 *q, uint64_t entry,
                            uint64_t *ret_off, uint64_t *ret_len);

/* compress.c */
int qcow2_read_compressed(struct node *node, uint64_t off, struct sg sg,
                          unsigned flags);
int qcow2_read_encoded(struct node *node, uint64_t off, unsigned flags,
                       struct encoded *ret);
int qcow2_write_encoded(struct node *node, uint64_t off,
                        const struct encoded *data, unsigned flags,
                        struct range_hold *hold);
/* Nothing names the range any more: it may hold something else soon. */
void qcow2_forget_plain(struct qcow2 *q, uint64_t off, uint64_t len);
void qcow2_compress_fini(struct qcow2 *q);

/* write.c */
int qcow2_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
                struct range_hold *hold);
int qcow2_clone(struct node *node, uint64_t off, struct node *from,
                uint64_t from_off, uint64_t len, unsigned flags,
                struct range_hold *hold);
int qcow2_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
               struct range_hold *hold);
int qcow2_discard(struct node *node, uint64_t off, uint64_t len,
                  struct range_hold *hold);
int qcow2_unallocate(struct node *node, uint64_t off, uint64_t len,
                     struct range_hold *hold);

/* open.c */

/* An image that was of version 2 has a log from now on (rule 10). */
int qcow2_begin_log(struct node *node, struct err *err);

/* header.c */

/* Writes header fields of sector 0 at once; "update" also durably. */
struct header_field {
    unsigned at, size; /* 4 or 8 bytes */
    uint64_t value;
};
int qcow2_write_header(struct qcow2 *q, const struct header_field *fields,
                       unsigned n);
int qcow2_update_header(struct qcow2 *q, const struct header_field *fields,
                        unsigned n);
int qcow2_ensure_mark(struct node *node, bool may_upgrade, struct err *err);
int qcow2_set_incomplete(struct node *node, bool incomplete, struct err *err);
/* An entry of the feature name table for our bit. */
void qcow2_put_feature_name(unsigned char *entry);
bool qcow2_find_names(const unsigned char *head, struct header_names *ret);
int qcow2_set_backing(struct node *node, const char *filename,
                      const char *format, struct err *err);
int qcow2_truncate(struct node *node, uint64_t size, struct err *err);

/* create.c, check.c */
int qcow2_create(struct graph *graph, json_t *options, struct err *err);
int qcow2_check(struct node *node, unsigned fix, struct check_report *report,
                struct err *err);

#endif
