// SPDX-License-Identifier: BSD-3-Clause
/*
 * The file, little-endian:
 *
 *   sector 0   "SLUICE-D", CRC-32C of what follows (32 bits), log2 of a
 *              region's bytes (32), the disk's size (64), the numbers that
 *              source and target bear while this counts (64 each)
 *   behind it  one bit a region, the lowest first; padded to a sector
 *
 * A sector is written whole and torn by nothing, and each stands for itself,
 * so that writing needs no order but one: a bit is set durably before the
 * change that needs it.  A file that is not there, or not to be read, means
 * that every bit is set; so whatever fails, removing it is right.
 */
#include "block/dirty_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "base/mem.h"
#include "block/dirty_set.h"
#include "journal/journal.h"
#include "run/file.h"

static const char magic[8] = "SLUICE-D";

enum { SECTOR = 512, BITS = SECTOR * 8, H_SUM = 8, H_SHIFT = 12, H_SIZE = 16,
       H_SOURCE = 24, H_TARGET = 32, H_END = 40 };
#define REGION_MIN (4 * KIB)
#define REGION_MAX (64 * MIB)
#define REGIONS 256 /* of a disk between the two */

struct dirty_log {
    struct node *node;
    struct tap tap;
    struct file *file; /* NULL: it broke, and is removed */
    char *path;
    uint64_t target;       /* its number; 0: none */
    struct dirty_set set;
    struct dirty_set durable;   /* also in the file, on its medium */
    struct dirty_set touched;   /* since dirty_log_watch() */
    struct dirty_set alike;     /* and so cleared, if not touched */
    struct dirty_set unwritten; /* sectors of the file, by what they cover */
    struct comutex writing;
};

static char *
log_path(const char *image)
{
    return xasprintf("%s.sluice-dirty", image);
}

static uint32_t
region_for(uint64_t size)
{
    uint64_t region = REGION_MIN;

    while (region < REGION_MAX && size / region > REGIONS) {
        region *= 2;
    }
    return (uint32_t)region;
}

static uint64_t
sector_span(const struct dirty_log *log)
{
    return (uint64_t)BITS * log->set.granularity;
}

/* The file. */

/* What it cannot say any more must not be believed. */
static void
give_up(struct dirty_log *log, int why)
{
    struct loop *loop = graph_loop(log->node->graph);

    if (!log->file) {
        return;
    }
    file_close(take_ptr(log->file));
    int r = file_unlink(loop, log->path);

    r = r && r != -ENOENT ? r : folder_sync(loop, log->path);
    NODE_SAY(log->node, warn,
             "Writing '%s' failed: %s; after a crash, what copies '%s' begins "
             "anew%s",
             log->path, err_text(why), log->node->filename,
             r ? "; the file cannot be removed: do so before that" : "");
}

static int
write_head(struct dirty_log *log)
{
    unsigned char head[SECTOR] = {0};

    memcpy(head, magic, sizeof(magic));
    st_le32(head + H_SHIFT,
            (uint32_t)__builtin_ctz(log->set.granularity));
    st_le64(head + H_SIZE, log->set.size);
    st_le64(head + H_SOURCE, log->node->session);
    st_le64(head + H_TARGET, log->target);
    st_le32(head + H_SUM, crc32c(head + H_SHIFT, H_END - H_SHIFT));
    return file_write_buf(log->file, 0, head, sizeof(head));
}

/* The sector that covers @off; what it says is added to @shown. */
static int
write_sector(struct dirty_log *log, uint64_t off, struct dirty_set *shown)
{
    unsigned char bits[SECTOR] = {0};
    uint64_t span = sector_span(log), at = align_down(off, span);
    uint64_t end = min_u64(at + span, log->set.size), run, len;
    uint32_t region = log->set.granularity;

    off = at;
    while (dirty_set_next(&log->set, at, end, &run, &len)) {
        for (uint64_t i = (run - off) / region;
             i < div_up(run + len - off, region); i++) {
            bits[i / 8] |= (unsigned char)(1 << i % 8);
        }
        dirty_set_add(shown, run, len);
        at = run + len;
    }
    dirty_set_remove(&log->unwritten, off, end - off);
    return file_write_buf(log->file, SECTOR * (1 + off / span), bits, SECTOR);
}

/*
 * What was taken away meanwhile is no longer durably set: it is in a sector
 * that is unwritten.
 */
static void
note_durable(struct dirty_log *log, const struct dirty_set *shown)
{
    uint64_t at = 0, off, len, run, n;

    while (dirty_set_next(shown, at, shown->size, &off, &len)) {
        at = off + len;
        while (off < at && dirty_set_next(&log->set, off, at, &run, &n)) {
            dirty_set_add(&log->durable, run, n);
            off = run + n;
        }
    }
}

/* With `writing` held; nothing of one that broke. */
static int
write_out(struct dirty_log *log, bool durably)
{
    struct dirty_set shown;
    uint64_t off, len;
    int r = 0;

    if (!log->file) {
        return 0;
    }
    dirty_set_init(&shown, log->set.size, log->set.granularity);
    while (!r &&
           dirty_set_next(&log->unwritten, 0, log->set.size, &off, &len)) {
        r = write_sector(log, off, &shown);
    }
    if (!r && durably) {
        r = file_sync(log->file);
    }
    if (!r && durably) {
        note_durable(log, &shown);
    }
    dirty_set_fini(&shown);
    return r;
}

/* What a guest does. */

static bool
is_durable(const struct dirty_log *log, uint64_t off, uint64_t end)
{
    uint64_t at, len;

    return !log->file || (dirty_set_next(&log->durable, off, end, &at, &len) &&
                          at == off && len == end - off);
}

/* Many requests wait for one fsync. */
static void
make_durable(struct dirty_log *log, uint64_t off, uint64_t end)
{
    dirty_set_add(&log->set, off, end - off);
    dirty_set_add(&log->unwritten, off, end - off);
    comutex_lock(&log->writing);
    if (!is_durable(log, off, end)) {
        int r = write_out(log, true);

        if (r) {
            give_up(log, r);
        }
    }
    comutex_unlock(&log->writing);
}

static int
before(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len)
{
    struct dirty_log *log = container_of(tap, struct dirty_log, tap);
    uint64_t end = min_u64(off + len, log->set.size);

    if (op == TAP_OP_FLUSH || off >= end) {
        return 0;
    }
    dirty_set_add(&log->touched, off, end - off);
    if (!is_durable(log, off, end)) {
        make_durable(log, off, end);
    }
    return 0;
}

/* Its life. */

static struct dirty_log *
log_new(struct node *node)
{
    struct dirty_log *log = xzalloc(sizeof(*log));
    uint32_t region = region_for(node->size);

    log->node = node;
    log->path = log_path(node_local_file(node)->filename);
    dirty_set_init(&log->set, node->size, region);
    dirty_set_init(&log->durable, node->size, region);
    dirty_set_init(&log->touched, node->size, region);
    dirty_set_init(&log->alike, node->size, region);
    dirty_set_init(&log->unwritten, node->size, region);
    comutex_init(&log->writing);
    log->tap = (struct tap){.order = TAP_BEFORE, .before = before};
    return log;
}

static void
log_free(struct dirty_log *log)
{
    if (log->file) {
        file_close(log->file);
    }
    dirty_set_fini(&log->set);
    dirty_set_fini(&log->durable);
    dirty_set_fini(&log->touched);
    dirty_set_fini(&log->alike);
    dirty_set_fini(&log->unwritten);
    free(log->path);
    free(log);
}

static void
set_all(struct dirty_log *log)
{
    dirty_set_add(&log->set, 0, log->set.size);
    dirty_set_add(&log->unwritten, 0, log->set.size);
}

/* The images' numbers must be as durable as the log that names them. */
static int
write_whole(struct dirty_log *log, struct node *target)
{
    int r = node_flush(log->node->file->child);

    r = r || !target ? r : node_flush(target->file->child);
    comutex_lock(&log->writing);
    r = r ? r : write_out(log, true);
    /* Not before: the bits may be more than the old head is for. */
    if (!r && log->file) {
        r = write_head(log);
        r = r ? r : file_sync(log->file);
    }
    comutex_unlock(&log->writing);
    return r;
}

static void
put_in_place(struct dirty_log *log)
{
    log->node->dirty_log = log;
    log->node->keep_session = true;
    tap_attach(log->node, &log->tap);
}

static bool
can_have_one(const struct node *node)
{
    return node->session && !node->read_only && node->size &&
           node_local_file(node);
}

static int
create(struct node *source)
{
    struct loop *loop = graph_loop(source->graph);
    struct dirty_log *log = log_new(source);
    int r = file_open(loop, log->path,
                      FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, &log->file);

    if (!r) {
        set_all(log);
        r = write_whole(log, NULL);
        r = r ? r : folder_sync(loop, log->path);
        if (r) {
            file_unlink(loop, log->path);
        }
    }
    if (r) {
        log_free(log);
        return r;
    }
    put_in_place(log);
    return 0;
}

int
dirty_log_begin(struct node *source, struct node *target, bool goes_on)
{
    if (!can_have_one(source) || !target->session) {
        return -ENOTSUP;
    }
    int r = source->dirty_log ? 0 : create(source);

    if (r) {
        return r;
    }
    struct dirty_log *log = source->dirty_log;

    if (!goes_on || log->target != target->last_session ||
        target->write_gen || !log->target) {
        set_all(log);
    }
    log->target = target->session;
    target->keep_session = true;
    r = write_whole(log, target);
    if (r) {
        give_up(log, r);
    }
    return 0;
}

/* Requests may still wait in it. */
static void
take_off(struct dirty_log *log)
{
    tap_detach(&log->tap);
    grace_wait(&log->node->changes);
    log->node->dirty_log = NULL;
}

void
dirty_log_end(struct node *source)
{
    struct dirty_log *log = source->dirty_log;

    if (!log) {
        return;
    }
    take_off(log);
    source->keep_session = false;
    if (log->file) {
        file_unlink(graph_loop(source->graph), log->path);
    }
    log_free(log);
}

void
dirty_log_leave(struct node *node)
{
    struct dirty_log *log = node->dirty_log;

    if (!log) {
        return;
    }
    take_off(log);
    int r = write_out(log, true);

    if (r) {
        give_up(log, r);
    }
    log_free(log);
}

void
dirty_log_remove(struct loop *loop, const char *image)
{
    auto_free char *path = log_path(image);

    file_unlink(loop, path);
}

/* What an earlier daemon left. */

static int
read_bits(struct dirty_log *log)
{
    uint64_t n = div_up(log->set.size, log->set.granularity);
    auto_free unsigned char *bits = xzalloc(align_up(div_up(n, 8), SECTOR));
    int r = file_read_buf(log->file, SECTOR, bits,
                          align_up(div_up(n, 8), SECTOR));

    for (uint64_t i = 0; i < n && !r; i++) {
        if (bits[i / 8] >> i % 8 & 1) {
            dirty_set_add(&log->set, i * log->set.granularity, 1);
        }
    }
    return r;
}

/* Does what the file says count?  -errno where it cannot be read. */
static int
read_head(struct dirty_log *log)
{
    unsigned char head[SECTOR];
    int r = file_read_buf(log->file, 0, head, sizeof(head));

    if (r) {
        return r;
    }
    bool counts =
        !memcmp(head, magic, sizeof(magic)) &&
        ld_le32(head + H_SUM) == crc32c(head + H_SHIFT, H_END - H_SHIFT) &&
        ld_le32(head + H_SHIFT) ==
            (uint32_t)__builtin_ctz(log->set.granularity) &&
        ld_le64(head + H_SIZE) == log->set.size &&
        ld_le64(head + H_SOURCE) == log->node->last_session &&
        log->node->last_session;

    log->target = counts ? ld_le64(head + H_TARGET) : 0;
    return counts ? 0 : -ESTALE;
}

/* A log without a job that would need it. */
static bool
is_left_over(const struct node *node, const char *image)
{
    struct journal *j;
    int r = journal_open(graph_journals(node->graph), image, &j);

    if (!r) {
        journal_close(j);
    }
    return r == -ENOENT;
}

void
dirty_log_attach(struct node *node)
{
    struct loop *loop = graph_loop(node->graph);

    if (!can_have_one(node) || node->dirty_log) {
        return;
    }
    const char *image = node_local_file(node)->filename;
    struct dirty_log *log = log_new(node);
    int r = file_open(loop, log->path, FILE_WRITE, &log->file);

    if (!r && is_left_over(node, image)) {
        r = -ENOENT;
        file_unlink(loop, log->path);
    }
    if (r) {
        log_free(log); /* one that cannot be read is of another session */
        return;
    }
    r = read_head(log);
    r = r ? r : read_bits(log);
    if (r == -ESTALE) {
        NODE_SAY(node, info,
                 "'%s' does not tell what was written to '%s' since: all of "
                 "it counts as changed", log->path, image);
    }
    if (r) {
        set_all(log);
    } else {
        dirty_set_add(&log->unwritten, 0, log->set.size); /* made durable */
    }
    put_in_place(log);
    r = write_whole(log, NULL);
    if (r) {
        give_up(log, r);
    }
}

/* What the copy asks, and tells. */

bool
dirty_log_next(const struct dirty_log *log, uint64_t off, uint64_t end,
               uint64_t *ret_off, uint64_t *ret_len)
{
    return dirty_set_next(&log->set, off, end, ret_off, ret_len);
}

bool
dirty_log_is_dirty(const struct dirty_log *log)
{
    return log->file && log->set.n_dirty;
}

uint32_t
dirty_log_region(const struct dirty_log *log)
{
    return log->set.granularity;
}

void
dirty_log_watch(struct dirty_log *log)
{
    dirty_set_remove(&log->touched, 0, log->set.size);
    dirty_set_remove(&log->alike, 0, log->set.size);
}

void
dirty_log_is_alike(struct dirty_log *log, uint64_t off, uint64_t len)
{
    dirty_set_add(&log->alike, off, len);
}

void
dirty_log_clear(struct dirty_log *log)
{
    uint32_t region = log->set.granularity;
    uint64_t at = 0, off, len;

    while (dirty_set_next(&log->alike, at, log->set.size, &off, &len)) {
        for (at = off; at < off + len; at += region) {
            if (!dirty_set_any(&log->touched, at, 1)) {
                dirty_set_remove(&log->set, at, region);
                dirty_set_remove(&log->durable, at, region);
                dirty_set_add(&log->unwritten, at, 1);
            }
        }
    }
    comutex_lock(&log->writing);
    int r = write_out(log, false);

    if (r) {
        give_up(log, r);
    }
    comutex_unlock(&log->writing);
}
