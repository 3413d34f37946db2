// SPDX-License-Identifier: BSD-3-Clause
/*
 * The simulated disk: per file its contents now, its contents that are
 * durable, and the log of changes between the two; the same for names.
 *
 * Invariant: `now` is `durable` with the log applied in order.  Operations in
 * flight are in neither.
 */
#include "run/sim/disk.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"

enum { FULL_ENUMERATION_MAX = 10, TORN_CHANCE = 3 };

uint64_t
sim_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* Contents. */

/* Applies the part [from, to) of an operation's range. */
static void
apply_part(struct content *c, const struct disk_op *op, uint64_t from,
           uint64_t to)
{
    uint64_t begin = op->off + from, end = op->off + to;

    switch (op->kind) {
    case OP_TRUNCATE:
        content_resize(c, op->off);
        break;
    case OP_PUNCH: /* keeps the size */
        end = min_u64(end, c->len);
        if (begin < end) {
            content_zero(c, begin, end - begin);
        }
        break;
    case OP_WRITE:
        content_write(c, begin, op->data + from, to - from);
        break;
    }
}

static void
apply(struct content *c, const struct disk_op *op)
{
    apply_part(c, op, 0, op->len);
}

/* Some of the sectors that the operation touches. */
static void
apply_torn(struct content *c, const struct disk_op *op, uint64_t *seed)
{
    for (uint64_t at = 0; at < op->len;) {
        uint64_t next = align_down(op->off + at, SIM_SECTOR) + SIM_SECTOR;
        uint64_t to = min_u64(next - op->off, op->len);

        if (sim_random(seed) & 1) {
            apply_part(c, op, at, to);
        }
        at = to;
    }
}

/* Files. */

static struct inode *
inode_new(struct sim_disk *disk)
{
    struct inode *inode = xzalloc(sizeof(*inode));

    inode->id = disk->next_id++;
    list_init(&inode->in_flight);
    list_init(&inode->log);
    list_init(&inode->locks);
    list_push(&disk->inodes, &inode->link);
    return inode;
}

static void
op_free(struct disk_op *op)
{
    list_remove(&op->link);
    free(op->data);
    free(op);
}

static void
ops_free(struct list *ops)
{
    list_for_each_safe (it, ops) {
        op_free(container_of(it, struct disk_op, link));
    }
}

struct disk_op *
inode_begin(struct inode *inode, enum disk_op_kind kind, uint64_t off,
            uint64_t len)
{
    struct disk_op *op = xzalloc(sizeof(*op));

    op->kind = kind;
    op->off = off;
    op->len = len;
    if (kind == OP_WRITE) {
        op->data = xmalloc(len);
    }
    list_push(&inode->in_flight, &op->link);
    return op;
}

void
inode_complete(struct inode *inode, struct disk_op *op)
{
    list_remove(&op->link);
    list_push(&inode->log, &op->link);
    op->logged = true;
    inode->n_logged++;
    apply(&inode->now, op);
}

void
inode_abort(struct disk_op *op)
{
    op_free(op);
}

void
inode_sync_first(struct inode *inode)
{
    struct disk_op *op = list_first(&inode->log, struct disk_op, link);

    apply(&inode->durable, op);
    op_free(op);
    inode->n_logged--;
    inode->n_synced++;
}

/* Names. */

static struct name *
name_find(struct list *names, const char *name)
{
    list_for_each (it, names) {
        struct name *n = container_of(it, struct name, link);

        if (!strcmp(n->name, name)) {
            return n;
        }
    }
    return NULL;
}

static void
name_remove(struct list *names, const char *name)
{
    struct name *n = name_find(names, name);

    if (n) {
        list_remove(&n->link);
        free(n->name);
        free(n);
    }
}

static void
name_set(struct list *names, const char *name, struct inode *inode)
{
    struct name *n = name_find(names, name);

    if (!n) {
        n = xzalloc(sizeof(*n));
        n->name = xstrdup(name);
        list_push(names, &n->link);
    }
    n->inode = inode;
}

static void
name_apply(struct list *names, const struct name_op *op)
{
    if (op->from) {
        name_remove(names, op->from);
    }
    if (op->kind == NAME_SET) {
        name_set(names, op->name, op->inode);
    } else {
        name_remove(names, op->name);
    }
}

static void
name_log(struct sim_disk *disk, enum name_op_kind kind, const char *name,
         struct inode *inode, const char *from)
{
    struct name_op *op = xzalloc(sizeof(*op));

    op->kind = kind;
    op->name = xstrdup(name);
    op->inode = inode;
    op->from = from ? xstrdup(from) : NULL;
    list_push(&disk->name_log, &op->link);
    name_apply(&disk->names, op);
}

static void
name_op_free(struct name_op *op)
{
    list_remove(&op->link);
    free(op->name);
    free(op->from);
    free(op);
}

struct inode *
disk_lookup(struct sim_disk *disk, const char *name)
{
    struct name *n = name_find(&disk->names, name);

    return n ? n->inode : NULL;
}

struct inode *
disk_create(struct sim_disk *disk, const char *name)
{
    struct inode *inode = inode_new(disk);

    name_log(disk, NAME_SET, name, inode, NULL);
    return inode;
}

int
disk_rename(struct sim_disk *disk, const char *from, const char *to)
{
    struct inode *inode = disk_lookup(disk, from);

    if (!inode) {
        return -ENOENT;
    }
    name_log(disk, NAME_SET, to, inode, from);
    return 0;
}

int
disk_unlink(struct sim_disk *disk, const char *name)
{
    if (!disk_lookup(disk, name)) {
        return -ENOENT;
    }
    name_log(disk, NAME_REMOVE, name, NULL, NULL);
    return 0;
}

void
disk_sync_names(struct sim_disk *disk)
{
    list_for_each_safe (it, &disk->name_log) {
        struct name_op *op = container_of(it, struct name_op, link);

        name_apply(&disk->durable_names, op);
        name_op_free(op);
    }
}

/* The disk as a whole. */

struct sim_disk *
sim_disk_new(void)
{
    struct sim_disk *disk = xzalloc(sizeof(*disk));

    list_init(&disk->inodes);
    list_init(&disk->names);
    list_init(&disk->durable_names);
    list_init(&disk->name_log);
    list_init(&disk->regions);
    return disk;
}

static void
names_free(struct list *names)
{
    while (!list_empty(names)) {
        name_remove(names, list_first(names, struct name, link)->name);
    }
}

void
sim_disk_free(struct sim_disk *disk)
{
    disk_sync_names(disk);
    disk_free_regions(disk);
    names_free(&disk->names);
    names_free(&disk->durable_names);
    list_for_each_safe (it, &disk->inodes) {
        struct inode *inode = container_of(it, struct inode, link);

        ops_free(&inode->in_flight);
        ops_free(&inode->log);
        content_free(&inode->now);
        content_free(&inode->durable);
        free(inode->flat);
        list_remove(&inode->link);
        free(inode);
    }
    free(disk);
}

void
sim_disk_put(struct sim_disk *disk, const char *name, const void *data,
             size_t len)
{
    struct inode *inode = inode_new(disk);

    content_write(&inode->now, 0, data, len);
    inode->durable = content_share(&inode->now);
    name_set(&disk->names, name, inode);
    name_set(&disk->durable_names, name, inode);
}

const unsigned char *
sim_disk_get(struct sim_disk *disk, const char *name, size_t *ret_len)
{
    struct inode *inode = disk_lookup(disk, name);

    if (!inode) {
        return NULL;
    }
    free(inode->flat);
    inode->flat = content_flat(&inode->now);
    *ret_len = inode->now.len;
    return inode->flat;
}

void
sim_disk_change(struct sim_disk *disk, const char *name, size_t off,
                const void *data, size_t len)
{
    struct inode *inode = disk_lookup(disk, name);

    content_write(&inode->now, off, data, len);
    content_write(&inode->durable, off, data, len);
}

void
sim_disk_names(struct sim_disk *disk,
               void (*each)(void *arg, const char *name), void *arg)
{
    list_for_each (it, &disk->names) {
        each(arg, container_of(it, struct name, link)->name);
    }
}

bool
sim_disk_has(struct sim_disk *disk, const char *name)
{
    return disk_lookup(disk, name) != NULL;
}

void
sim_disk_set_capacity(struct sim_disk *disk, uint64_t bytes)
{
    disk->capacity = bytes;
}

uint64_t
sim_disk_used(const struct sim_disk *disk)
{
    uint64_t sum = 0;

    list_for_each (it, &disk->names) {
        sum += container_of(it, struct name, link)->inode->now.len;
    }
    return sum;
}

unsigned
sim_disk_pending(const struct sim_disk *disk)
{
    unsigned n = 0;

    list_for_each (it, &disk->inodes) {
        struct inode *inode = container_of(it, struct inode, link);

        n += inode->n_logged;
        list_for_each (op, &inode->in_flight) {
            n++;
        }
    }
    list_for_each (it, &disk->name_log) {
        n++;
    }
    return n;
}

/*
 * Crash states.  The pending operations of all files and the names, in a fixed
 * order, are numbered; a state says for each whether it survived.
 */

struct chosen {
    enum { CHOOSE_MASK, CHOOSE_RANDOM, CHOOSE_FATES } how;
    uint64_t mask; /* CHOOSE_MASK: bit i is operation i */
    unsigned n;
    uint64_t seed, torn;
    unsigned next; /* number of the next operation asked about */
    char *fates;   /* what was chosen; CHOOSE_FATES: what is to be */
};

/* Which of the structured states the index-th one is. */
static bool
structured(uint64_t index, unsigned i, unsigned n)
{
    if (index == 0) {
        return false;
    }
    if (index == 1) {
        return true;
    }
    index -= 2;
    if (index < n) {
        return i == index;
    }
    index -= n;
    if (index < n) {
        return i != index;
    }
    return i <= index - n; /* prefixes */
}

static enum sim_fate
choose_one(struct chosen *c, uint64_t index, unsigned i)
{
    if (c->how == CHOOSE_FATES) {
        return i < strlen(c->fates) ? (enum sim_fate)c->fates[i] : SIM_LOST;
    }
    if (c->how == CHOOSE_MASK) {
        bool kept = c->n <= FULL_ENUMERATION_MAX ? c->mask >> i & 1
                                                 : structured(index, i, c->n);

        return kept ? SIM_KEPT : SIM_LOST;
    }
    uint64_t r = sim_random(&c->seed);

    return r % TORN_CHANCE == 0 ? SIM_TORN : r >> 32 & 1 ? SIM_KEPT : SIM_LOST;
}

static enum sim_fate
choose(struct chosen *c, uint64_t index)
{
    unsigned i = c->next++;
    enum sim_fate fate = choose_one(c, index, i);

    if (c->how != CHOOSE_FATES && i < SIM_FATES_MAX) {
        c->fates[i] = (char)fate;
        c->fates[i + 1] = 0;
    }
    return fate;
}

static void
crash_inode(struct inode *to, struct inode *from, struct chosen *c,
            uint64_t index, bool process)
{
    struct list *lists[] = {&from->log, &from->in_flight};

    to->durable = content_share(&from->durable);
    for (size_t l = 0; l < ARRAY_LEN(lists); l++) {
        list_for_each (it, lists[l]) {
            struct disk_op *op = container_of(it, struct disk_op, link);
            enum sim_fate fate = process ? SIM_KEPT : choose(c, index);

            if (fate == SIM_KEPT) {
                apply(&to->durable, op);
            } else if (fate == SIM_TORN) {
                apply_torn(&to->durable, op, &c->torn);
            }
        }
    }
    to->now = content_share(&to->durable);
}

static struct inode *
twin(struct sim_disk *disk, const struct inode *of)
{
    list_for_each (it, &disk->inodes) {
        struct inode *inode = container_of(it, struct inode, link);

        if (inode->id == of->id) {
            return inode;
        }
    }
    return NULL;
}

static struct sim_disk *
crash_state(struct sim_disk *from, struct chosen *c, uint64_t index,
            bool process)
{
    struct sim_disk *to = sim_disk_new();

    list_for_each (it, &from->inodes) {
        struct inode *old = container_of(it, struct inode, link);
        struct inode *inode = inode_new(to);

        inode->id = old->id;
        crash_inode(inode, old, c, index, process);
    }
    to->next_id = from->next_id;
    to->capacity = from->capacity;
    to->spares = from->spares;
    list_for_each (it, &from->durable_names) {
        struct name *n = container_of(it, struct name, link);

        name_set(&to->durable_names, n->name, twin(to, n->inode));
    }
    list_for_each (it, &from->name_log) {
        struct name_op op = *container_of(it, struct name_op, link);

        if (process || choose(c, index) != SIM_LOST) {
            op.inode = op.inode ? twin(to, op.inode) : NULL;
            name_apply(&to->durable_names, &op);
        }
    }
    list_for_each (it, &to->durable_names) {
        struct name *n = container_of(it, struct name, link);

        name_set(&to->names, n->name, n->inode);
    }
    if (process) {
        disk_copy_regions(to, from);
    }
    return to;
}

struct sim_disk *
sim_crash_next(struct sim_crash *crash)
{
    struct chosen c = {.n = sim_disk_pending(crash->disk),
                       .fates = crash->fates};
    uint64_t index = crash->index++;
    uint64_t fixed = c.n <= FULL_ENUMERATION_MAX ? 1ULL << c.n : 2 + 3 * c.n;

    if (crash->kind == SIM_CRASH_PROCESS) {
        return index ? NULL : crash_state(crash->disk, &c, 0, true);
    }
    if (crash->replay) {
        c.how = CHOOSE_FATES;
        c.torn = crash->torn;
        return index ? NULL : crash_state(crash->disk, &c, 0, false);
    }
    if (index >= crash->max_states || (c.n == 0 && index)) {
        return NULL;
    }
    /* With fewer states allowed than there are, pick among the fixed ones. */
    c.seed = crash->seed + index * 0x2545f4914f6cdd1d;
    if (fixed > crash->max_states && index > 1) {
        uint64_t r = sim_random(&c.seed);

        c.how = r & 1 ? CHOOSE_RANDOM : CHOOSE_MASK;
        index = sim_random(&c.seed) % fixed;
    } else if (index >= fixed) {
        c.how = CHOOSE_RANDOM;
    }
    /* State 0 loses all and state 1 keeps all, whichever way they count. */
    c.mask = index == 1                                ? UINT64_MAX
             : c.n < 64 && index == (1ULL << c.n) - 1 ? 1
                                                       : index;
    c.torn = crash->torn = ~c.seed;
    crash->fates[0] = 0;
    return crash_state(crash->disk, &c, index, false);
}

/* The name that the file has now. */
static const char *
name_of(struct sim_disk *disk, const struct inode *inode)
{
    list_for_each (it, &disk->names) {
        struct name *n = container_of(it, struct name, link);

        if (n->inode == inode) {
            return n->name;
        }
    }
    return "(no name)";
}

void
sim_disk_describe(struct sim_disk *disk,
                  void (*say)(void *arg, unsigned i, const char *text),
                  void *arg)
{
    static const char *const kinds[] = {"write", "punch", "truncate"};
    unsigned n = 0;
    char text[256];

    list_for_each (it, &disk->inodes) {
        struct inode *inode = container_of(it, struct inode, link);
        struct list *lists[] = {&inode->log, &inode->in_flight};

        for (size_t l = 0; l < ARRAY_LEN(lists); l++) {
            list_for_each (op_it, lists[l]) {
                struct disk_op *op = container_of(op_it, struct disk_op, link);

                snprintf(text, sizeof(text), "%s: %s %llu+%llu%s",
                         name_of(disk, inode), kinds[op->kind],
                         (unsigned long long)op->off,
                         (unsigned long long)op->len,
                         op->logged ? "" : " (in flight)");
                say(arg, n++, text);
            }
        }
    }
    list_for_each (it, &disk->name_log) {
        struct name_op *op = container_of(it, struct name_op, link);

        snprintf(text, sizeof(text), "%s of the name %s",
                 op->kind == NAME_REMOVE ? "removal"
                 : op->from              ? "rename"
                                         : "creation",
                 op->name);
        say(arg, n++, text);
    }
}
