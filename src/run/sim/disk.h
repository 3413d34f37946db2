// SPDX-License-Identifier: BSD-3-Clause
/* The simulated disk, as the world sees it: private to run/sim/. */
#ifndef SLUICE_RUN_SIM_DISK_H
#define SLUICE_RUN_SIM_DISK_H

#include "base/list.h"
#include "base/sg.h"
#include "run/sim/content.h"
#include "run/sim/sim.h"

struct coro_pool;
struct file;
struct loop;
struct shm;

enum disk_op_kind { OP_WRITE, OP_PUNCH, OP_TRUNCATE };

/* A change of one file's contents that no fsync has covered yet. */
struct disk_op {
    struct list link; /* of the inode: in flight first, then in the log */
    enum disk_op_kind kind;
    uint64_t off, len; /* OP_TRUNCATE: off is the new size */
    unsigned char *data;
    bool logged; /* completed: applied to the current contents */
};

struct inode {
    struct list link;
    unsigned id, refs; /* refs: open files */
    struct content now, durable;
    unsigned char *flat; /* what sim_disk_get() gave out */
    struct list in_flight, log;
    unsigned n_logged;
    uint64_t n_synced; /* operations that left the log so far */
    struct list locks;
};

enum name_op_kind { NAME_SET, NAME_REMOVE };

/* A change of the names that no folder fsync has covered yet. */
struct name_op {
    struct list link;
    char *name;
    enum name_op_kind kind;
    struct inode *inode; /* NAME_SET */
    char *from;          /* the name it had before, for a rename */
};

struct name {
    struct list link;
    char *name;
    struct inode *inode;
};

struct sim_disk {
    struct list inodes;
    struct list names, durable_names; /* of struct name */
    struct list name_log;
    unsigned next_id;
    uint64_t capacity;
    struct list regions; /* of shared memory: sim/shm.c */
    uint64_t shm_bytes;  /* what one may reserve; 0: no limit */
    struct sim_spares *spares;
};

struct sim_spares {
    struct coro_pool *stacks;
    struct list regions;
};

struct inode *disk_lookup(struct sim_disk *disk, const char *name);
struct inode *disk_create(struct sim_disk *disk, const char *name);
int disk_rename(struct sim_disk *disk, const char *from, const char *to);
int disk_unlink(struct sim_disk *disk, const char *name);
void disk_sync_names(struct sim_disk *disk);

/* In flight: a power crash may already have it, a read does not see it. */
struct disk_op *inode_begin(struct inode *inode, enum disk_op_kind kind,
                            uint64_t off, uint64_t len);
/* Completed: moves it to the log and applies it to the contents. */
void inode_complete(struct inode *inode, struct disk_op *op);
/* Failed: it never was. */
void inode_abort(struct disk_op *op);
/* Makes the log's first operation durable. */
void inode_sync_first(struct inode *inode);

/* The mapped regions that nobody has. */
void spare_regions_free(struct sim_spares *spares);
/* A process that dies leaves its regions; power does not. */
void disk_copy_regions(struct sim_disk *to, const struct sim_disk *from);
void disk_free_regions(struct sim_disk *disk);
int world_shm_open(struct loop *loop, const char *name, uint64_t size,
                   struct shm **ret);

#endif
