// SPDX-License-Identifier: BSD-3-Clause
/*
 * QED, as specified in QEMU's docs/interop/qed_spec.rst (section names are
 * cited where they apply).  Private to src/drivers/qed*.c.
 *
 *   qed.c         open, close            qed_map.c     guest range -> cluster
 *   qed_alloc.c   free clusters          qed_write.c   writes, zeroes, discards
 *   qed_header.c  changes of the header  qed_check.c   consistency
 *   qed_create.c  new images
 *
 * What is written in which order: docs/design/qcow2-ordering.md, "QED".
 */
#ifndef SLUICE_DRIVERS_QED_H
#define SLUICE_DRIVERS_QED_H

#include "base/bytes.h"
#include "base/ranges.h"
#include "block/node.h"
#include "drivers/meta.h"
#include "drivers/meta_log.h"

/* "Header": "QED\0", little-endian as every field. */
#define QED_MAGIC 0x00444551u
enum {
    QED_H_MAGIC = 0,
    QED_H_CLUSTER_SIZE = 4,
    QED_H_TABLE_SIZE = 8,
    QED_H_HEADER_SIZE = 12,
    QED_H_FEATURES = 16,
    QED_H_COMPAT = 24,
    QED_H_AUTOCLEAR = 32,
    QED_H_L1_OFF = 40,
    QED_H_IMAGE_SIZE = 48,
    QED_H_BACKING_OFF = 56,
    QED_H_BACKING_LEN = 60,
    QED_HEADER_LEN = 64,
    QED_SECTOR = 512,
};

/* "Feature bits". */
#define QED_F_BACKING_FILE 0x01ULL
#define QED_F_NEED_CHECK 0x02ULL
#define QED_F_BACKING_FORMAT_NO_PROBE 0x04ULL
/* Ours (design rule 5): an unfinished copy; other programs refuse the bit. */
#define QED_F_UNFINISHED (1ULL << 62)
#define QED_F_KNOWN (0x07ULL | QED_F_UNFINISHED)

/* "Field descriptions": ranges of the header's fields. */
#define QED_CLUSTER_MIN (4 * KIB)
#define QED_CLUSTER_MAX (64 * MIB)
#define QED_TABLE_MAX 16

/* "Data cluster offsets"; the first also stands in L1. */
#define QED_UNALLOCATED 0ULL
#define QED_ZERO 1ULL

struct qed {
    struct node *node;
    struct meta *meta;
    uint64_t cluster_size, table_bytes;
    unsigned cluster_bits, table_bits; /* log2; entries in a table */
    uint64_t header_bytes;             /* the header's clusters */
    uint64_t l1_off;
    uint64_t features;
    uint32_t name_off, name_len; /* the backing file's name; 0: none */
    struct comutex header_lock;  /* read-modify-write of sector 0 */
    struct comutex table_lock;   /* making an L2 table */

    /* qed_alloc.c */
    uint64_t end;       /* from here on the file was never handed out */
    struct ranges free; /* below `end`, durably named by nothing */
    bool logs;          /* the log's bit is set */
    bool punch_freed;   /* the file gives back what is freed */
};

static inline struct qed *
qed_of(struct node *node)
{
    return node->state;
}

static inline struct node *
qed_file(const struct qed *q)
{
    return q->node->file->child;
}

/* For messages. */
static inline const char *
qed_name(const struct node *node)
{
    return node->filename ? node->filename : node->name;
}

static inline uint64_t
qed_in_cluster(const struct qed *q, uint64_t off)
{
    return off & (q->cluster_size - 1);
}

static inline uint32_t
qed_slice_size(const struct qed *q)
{
    return (uint32_t)min_u64(q->cluster_size, 4096);
}

/* Does an unallocated cluster read from a file below, now or when reopened? */
static inline bool
qed_has_backing(const struct qed *q)
{
    return q->node->backing || q->node->header_backing.filename;
}

/* The guest bytes that tables of this shape can map; false: no 64-bit number.
 */
bool qed_reach(uint64_t cluster_size, uint64_t table_clusters, uint64_t *ret);

/* qed_map.c */

/*
 * True where [off, off + len) of the file may be a cluster or an L2 table:
 * aligned, inside the file, neither the header nor L1.
 */
bool qed_place_ok(const struct qed *q, uint64_t off, uint64_t len);
int qed_map(struct node *node, uint64_t off, uint64_t len, struct extent *ret);
/*
 * Replaces the entries of @n guest clusters from @off on, which lie in one
 * slice of their L2 table (as an extent of qed_map() does): QED_UNALLOCATED,
 * QED_ZERO, or the first of @n contiguous clusters.  Makes the table where it
 * is missing.  What the old entries named is freed later.  All or nothing; the
 * range is held exclusively.
 */
int qed_set_entries(struct qed *q, uint64_t off, uint64_t n, uint64_t entry);

/* qed_alloc.c; nothing but qed_cut_tail() yields. */

/* Up to @n clusters in one piece: *ret_n of them from *ret_off on. */
int qed_alloc(struct qed *q, uint64_t n, uint64_t *ret_off, uint64_t *ret_n);
/* Exactly @n. */
int qed_alloc_exact(struct qed *q, uint64_t n, uint64_t *ret_off);
/* Clusters that nothing on disk or in the cache names. */
void qed_give_back(struct qed *q, uint64_t off, uint64_t len);
/* Called by the cache: nothing names the range any more, durably. */
void qed_freed(struct node *node, uint64_t off, uint64_t len);
/* Cuts free clusters off the file's end; everything is committed. */
int qed_cut_tail(struct qed *q);

/* qed_write.c */
int qed_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
              struct range_hold *hold);
int qed_clone(struct node *node, uint64_t off, struct node *from,
              uint64_t from_off, uint64_t len, unsigned flags,
              struct range_hold *hold);
int qed_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
             struct range_hold *hold);
int qed_discard(struct node *node, uint64_t off, uint64_t len,
                struct range_hold *hold);
int qed_unallocate(struct node *node, uint64_t off, uint64_t len,
                   struct range_hold *hold);

/* qed_header.c */

/* Writes fields of sector 0 in one write, durably. */
struct qed_field {
    unsigned at, size; /* 4 or 8 bytes */
    uint64_t value;
};
int qed_write_header(struct qed *q, const struct qed_field *fields,
                     unsigned n);
/* And durable. */
int qed_update_header(struct qed *q, const struct qed_field *fields,
                      unsigned n);
int qed_set_incomplete(struct node *node, bool incomplete, struct err *err);
bool qed_find_names(const unsigned char *head, struct header_names *ret);
int qed_set_backing(struct node *node, const char *filename, const char *format,
                    struct err *err);
int qed_truncate(struct node *node, uint64_t size, struct err *err);

/* qed_create.c, qed_check.c */
int qed_create(struct graph *graph, json_t *options, struct err *err);
int qed_check(struct node *node, unsigned fix, struct check_report *report,
              struct err *err);

#endif
