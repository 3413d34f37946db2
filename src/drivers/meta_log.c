// SPDX-License-Identifier: BSD-3-Clause
/*
 * See meta_log.h.  The region: a head, then slots, each with the place of its
 * slice in the image and its bytes.
 *
 * A process dies between two instructions: so a slot's bytes are there before
 * the granule that holds them is said to be, and what one change writes is one
 * entry, or entries that nothing relies on yet.
 *
 * Where there is no room for one more slice the log is frozen: it holds all
 * that was acknowledged until then, and nothing that comes later, which is
 * flushed before it is acknowledged.  A commit that begins then writes newer
 * tables than the log has, so each of them leaves the log as it is written: a
 * process that dies meanwhile leaves older counts only while no map in the
 * image needs the newer ones.  With nothing dirty the log begins anew.
 */
#include "drivers/meta_log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/node.h"
#include "run/shm.h"

enum {
    GRANULE = 512,
    HEAD_SIZE = 64,
    SLOTS_AT_ONCE = 4, /* memory is reserved for so many */
};

#define MAGIC 0x31474f4c45434c53ULL /* this machine's byte order */

struct head {
    uint64_t magic;
    uint32_t slice_size, n_slots;
    uint32_t used;       /* slots that were ever used */
    uint32_t is_void;    /* what the image holds is not known any more */
    uint64_t autoclear;  /* the image's bits */
    uint64_t before;     /* or these, while they are being written; or 0 */
};

struct slot {
    uint64_t off;
    uint32_t phase;
    uint8_t granules; /* which of its bytes count */
    unsigned char pad[HEAD_SIZE - 13];
    unsigned char data[];
};

struct meta_log {
    struct shm *shm;
    struct head *head;
    uint32_t *free_slots;
    uint32_t n_free, generation;
    bool is_frozen; /* it was full: later changes are not in it */
};

static uint64_t
slots_end(uint32_t slice_size, uint64_t n)
{
    return HEAD_SIZE + n * (sizeof(struct slot) + slice_size);
}

static struct slot *
slot_at(struct head *head, uint32_t i)
{
    return (struct slot *)((unsigned char *)head +
                           slots_end(head->slice_size, i));
}

/* Orders what a reader of the memory sees, should this process die here. */
static void
publish(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static char *
name_of_file(const struct node *file)
{
    return xasprintf("%llx-%llx-%llx", (unsigned long long)file->file_id.dev,
                     (unsigned long long)file->file_id.ino,
                     (unsigned long long)file->file_born);
}

/* The region's name; NULL where the image is not one local file. */
static char *
region_name(const struct node *image)
{
    const struct node *file = image->file ? image->file->child : NULL;

    return file && node_local_file(image) == file ? name_of_file(file) : NULL;
}

/* No two logs of one file and boot begin at one moment. */
static uint64_t
new_autoclear(struct loop *loop)
{
    uint64_t mixed = loop_now(loop) * 0x9e3779b97f4a7c15ULL;

    return (1ULL << 62) | (mixed >> 2 & META_LOG_AUTOCLEAR);
}

struct meta_log *
meta_log_new(struct node *image, uint32_t slice_size, uint32_t n_slots)
{
    static bool said;
    auto_free char *name = region_name(image);
    struct shm *shm;

    if (!name) {
        return NULL;
    }
    int r = shm_open_region(graph_loop(image->graph), name,
                            slots_end(slice_size, n_slots), &shm);

    if (!r) {
        r = shm_reserve(shm, slots_end(slice_size,
                                       min_u64(n_slots, SLOTS_AT_ONCE)));
        if (r) {
            shm_close(shm, true);
        }
    }
    if (r) {
        if (!said) {
            log_warn("No shared memory for what is not yet in images (%s): if "
                     "this process is killed, writes that nobody has flushed "
                     "are lost",
                     strerror(-r));
        }
        said = true;
        return NULL;
    }
    struct meta_log *log = xzalloc(sizeof(*log));

    log->shm = shm;
    log->head = (struct head *)shm->base;
    *log->head = (struct head){
        .magic = MAGIC,
        .slice_size = slice_size,
        .n_slots = n_slots,
        .autoclear = new_autoclear(graph_loop(image->graph))};
    log->free_slots = xmalloc(n_slots * sizeof(*log->free_slots));
    log->generation = 1;
    return log;
}

uint64_t
meta_log_autoclear(const struct meta_log *log)
{
    return log ? log->head->autoclear : 0;
}

uint64_t
meta_log_begin_renaming(struct meta_log *log)
{
    const uint64_t turn = META_LOG_AUTOCLEAR & ~META_LOG_SESSION;
    uint64_t was = log->head->autoclear;
    uint64_t next = (was & META_LOG_SESSION) |
                    ((was + (turn & -turn)) & turn);

    log->head->before = was;
    publish();
    log->head->autoclear = next;
    return next;
}

void
meta_log_end_renaming(struct meta_log *log)
{
    log->head->before = 0;
}

void
meta_log_free(struct meta_log *log, bool keep)
{
    if (log) {
        shm_close(log->shm, !keep);
        free(log->free_slots);
        free(log);
    }
}

static void
begin_anew(struct meta_log *log)
{
    log->generation++;
    log->n_free = 0;
    log->head->used = 0;
    log->is_frozen = false;
}

void
meta_log_give_up(struct meta_log *log)
{
    if (!log) {
        return;
    }
    log->head->is_void = true;
    publish();
    begin_anew(log);
}

static int
take_slot(struct meta_log *log, uint32_t *ret)
{
    struct head *head = log->head;

    if (log->n_free) {
        *ret = log->free_slots[--log->n_free];
        return 0;
    }
    if (head->used == head->n_slots) {
        return -ENOSPC;
    }
    if (head->used % SLOTS_AT_ONCE == 0) {
        uint64_t n = min_u64(head->used + SLOTS_AT_ONCE, head->n_slots);
        int r = shm_reserve(log->shm, slots_end(head->slice_size, n));

        if (r) {
            return r;
        }
    }
    slot_at(head, head->used)->granules = 0; /* it may have been used before */
    publish();
    *ret = head->used++;
    return 0;
}

static bool
has_place(const struct meta_log *log, const struct log_place *place)
{
    return place->generation == log->generation;
}

void
meta_log_change(struct meta_log *log, struct log_place *place, uint64_t off,
                unsigned phase, const unsigned char *data, uint32_t at,
                uint32_t len, uint8_t granules)
{
    if (log->head->is_void || log->is_frozen) {
        return;
    }
    if (!has_place(log, place)) {
        if (take_slot(log, &place->slot)) {
            log->is_frozen = true;
            return;
        }
        place->generation = log->generation;
        slot_at(log->head, place->slot)->off = off;
    }
    struct slot *slot = slot_at(log->head, place->slot);
    uint8_t fresh = granules & (uint8_t)~slot->granules;

    slot->phase = phase;
    for (unsigned g = 0; fresh >> g; g++) {
        if (fresh >> g & 1) {
            memcpy(slot->data + g * GRANULE, data + g * GRANULE, GRANULE);
        }
    }
    if (fresh != granules) {
        memcpy(slot->data + at, data + at, len);
    }
    publish();
    slot->granules |= granules;
}

void
meta_log_keep(struct meta_log *log, struct log_place *place, uint8_t granules)
{
    if (!log || !has_place(log, place)) {
        return;
    }
    struct slot *slot = slot_at(log->head, place->slot);

    slot->granules &= granules;
    publish();
    if (!slot->granules) {
        log->free_slots[log->n_free++] = place->slot;
        place->generation = 0;
    }
}

bool
meta_log_is_partial(const struct meta_log *log)
{
    return log && (log->is_frozen || log->head->is_void);
}

void
meta_log_all_clean(struct meta_log *log)
{
    if (meta_log_is_partial(log)) {
        begin_anew(log);
        publish();
        log->head->is_void = false;
    }
}

/* What another process has left. */

static int
by_phase_and_offset(const void *a, const void *b)
{
    const struct slot *x = *(const struct slot *const *)a;
    const struct slot *y = *(const struct slot *const *)b;

    if (x->phase != y->phase) {
        return x->phase < y->phase ? -1 : 1;
    }
    return x->off < y->off ? -1 : x->off > y->off;
}

/* NULL, or why the region is none of ours. */
static const char *
check_region(const struct shm *shm, uint64_t autoclear, bool any_image)
{
    const struct head *h = (const struct head *)shm->base;

    if (shm->size < HEAD_SIZE || h->magic != MAGIC) {
        return "it is of another version";
    }
    if (h->autoclear != autoclear && !(h->before && h->before == autoclear) &&
        !any_image) {
        return "another program has written to it since";
    }
    if (h->slice_size % GRANULE || h->slice_size > 8 * GRANULE ||
        h->used > h->n_slots ||
        slots_end(h->slice_size, h->n_slots) > shm->size) {
        return "it is damaged";
    }
    return h->is_void ? "what it belongs to could not be written" : NULL;
}

static uint32_t
count_slots(const struct shm *shm)
{
    struct head *head = (struct head *)shm->base;
    uint32_t n = 0;

    for (uint32_t i = 0; i < head->used; i++) {
        n += slot_at(head, i)->granules != 0;
    }
    return n;
}

static int
write_slot(struct node *file, const struct slot *slot)
{
    int r = 0;

    for (unsigned g = 0; slot->granules >> g && !r; g++) {
        if (slot->granules >> g & 1) {
            r = node_write_buf(file, slot->off + g * GRANULE,
                               slot->data + g * GRANULE, GRANULE);
        }
    }
    return r;
}

/* In the order of a commit (meta.h), should power fail meanwhile. */
static int
write_slots(struct node *file, struct slot *const *slots, uint32_t n)
{
    int r = node_flush(file);

    for (uint32_t i = 0; i < n && !r; i++) {
        if (i && slots[i]->phase != slots[i - 1]->phase) {
            r = node_flush(file);
        }
        r = r ? r : write_slot(file, slots[i]);
    }
    return r ? r : node_flush(file);
}

static int
replay(struct node *image, struct shm *shm, uint32_t *ret_n, struct err *err)
{
    struct head *head = (struct head *)shm->base;
    struct node *file = image->file->child;
    auto_free struct slot **slots = xmalloc((head->used + 1) * sizeof(*slots));
    bool borrowed;
    uint32_t n = 0;

    for (uint32_t i = 0; i < head->used; i++) {
        if (slot_at(head, i)->granules) {
            slots[n++] = slot_at(head, i);
        }
    }
    *ret_n = n;
    if (!n) {
        return 0;
    }
    qsort(slots, n, sizeof(*slots), by_phase_and_offset);
    int r = node_borrow(file, &borrowed, err);

    if (r) {
        return r;
    }
    r = write_slots(file, slots, n);
    if (borrowed) {
        node_return(file);
    }
    return r ? err_set_errno(err, r, "writing it failed") : 0;
}

enum log_left
meta_log_look(const struct node *file)
{
    auto_free char *name = name_of_file(file);
    struct shm *shm;
    int r = shm_open_region(graph_loop(file->graph), name, 0, &shm);

    if (r) {
        return r == -EBUSY ? LOG_IN_USE : LOG_NONE;
    }
    bool is_empty = check_region(shm, 0, true) || !count_slots(shm);

    shm_close(shm, false);
    return is_empty ? LOG_NONE : LOG_LEFT_BEHIND;
}

/* @r: why there is none. */
static int
no_region(const struct node *image, uint64_t autoclear, int r,
          struct err *err)
{
    const char *file = image->file->child->filename;

    if (r == -EBUSY && !image->read_only) {
        return err_set(err, r, "'%s' is being written by another daemon", file);
    }
    /* It was there, so it must not be taken for nothing. */
    if (autoclear && (r == -EMFILE || r == -ENFILE || r == -ENOMEM)) {
        return err_set_errno(err, r, "Could not look for what a daemon that "
                                     "died left to be written to '%s'", file);
    }
    return 0;
}

int
meta_log_recover(struct node *image, uint64_t autoclear, struct err *err)
{
    auto_free char *name = region_name(image);
    auto_err inner = ERR_INIT;
    struct shm *shm;
    uint32_t n = 0;

    /*
     * Who shares it with a writer sees what is in the file, as always; who is
     * yet to get it opens it anew then.
     */
    if (!name || node_begins_inactive(image->options) ||
        opt_bool(image->file->child->options, "force-share", false)) {
        return 0;
    }
    const char *file = image->file->child->filename;
    int r = shm_open_region(graph_loop(image->graph), name, 0, &shm);

    if (r) {
        return no_region(image, autoclear & META_LOG_AUTOCLEAR, r, err);
    }
    const char *why = check_region(shm, autoclear & META_LOG_AUTOCLEAR, false);

    r = why ? 0 : replay(image, shm, &n, &inner);
    if (why) {
        NODE_SAY(image, warn,
                 "What a daemon that died left to be written to '%s' is not "
                 "used: %s",
                 file, why);
    } else if (r) {
        err_prefix(&inner,
                   "A daemon that died has left writes to '%s' in memory, "
                   "which cannot be brought into it",
                   file);
        err_hint(&inner, "open it to write, as the user that the daemon ran "
                         "as, before the next reboot");
        err_propagate(err, &inner);
    } else if (n) {
        NODE_SAY(image, warn,
                 "A daemon that was using '%s' died; what it had not yet "
                 "written was written (%u tables)",
                 file, n);
    }
    shm_close(shm, !r);
    return r;
}
