// SPDX-License-Identifier: BSD-3-Clause
/*
 * The simulated world: virtual time, a scheduler that picks among the ready
 * coroutines at random, and files over a simulated disk (streams: net.c).
 *
 * Time passes only when nothing is ready: it jumps to the next timer.  Where
 * there is no timer either, nothing can ever happen again, and the world says
 * so, as where coroutines run and run while the time stands still: a hang is
 * found, not waited for.
 */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/bytes.h"
#include "run/file.h"
#include "run/sim/world.h"

/* So many switches at one instant are a coroutine that spins. */
enum { STANDSTILL = 200000 };

/* One I/O in STALL_CHANCE takes longer than many others one after the other. */
enum { DELAY_MAX_NS = 100000, STALL_CHANCE = 16, STALL_MAX_NS = 3000000 };

struct sim_lock {
    struct list link; /* of the inode */
    struct sim_file *owner;
    uint64_t off, len;
    bool exclusive;
};

struct sim_file {
    struct file f;
    struct inode *inode;
    bool writable, slow;
};

static struct sim_file *
file_of(struct file *file)
{
    return container_of(file, struct sim_file, f);
}

static uint64_t
world_now(struct loop *loop)
{
    return sim_of(loop)->now;
}

static uint64_t
world_random(struct loop *loop)
{
    return sim_random(&sim_of(loop)->rng);
}

static bool
world_wait(struct loop *loop, uint64_t deadline_ns)
{
    struct sim *sim = sim_of(loop);

    if (loop->n_switches - sim->moved_at > STANDSTILL) {
        return false;
    }
    if (loop->n_ready) {
        return true;
    }
    if (deadline_ns == NEVER ||
        (sim->o.max_ns && deadline_ns > sim->o.max_ns)) {
        return false;
    }
    if (deadline_ns > sim->now) {
        sim->now = deadline_ns;
        sim->moved_at = loop->n_switches;
    }
    return true;
}

static struct list *
world_pick(struct loop *loop, struct list *ready, unsigned n)
{
    struct sim *sim = sim_of(loop);
    struct list *it = ready->next;

    if (sim->o.switch_at && loop->n_switches + 1 == sim->o.switch_at) {
        sim->o.on_switch(sim->o.arg, sim);
    }
    if (!sim->o.in_order) {
        for (uint64_t i = sim_random(&sim->rng) % n; i; i--) {
            it = it->next;
        }
    }
    return it;
}

static void
world_flush(struct loop *loop)
{
    net_pump(sim_of(loop));
}

static void
delay(struct sim *sim)
{
    if (!sim->o.in_order) {
        coro_sleep(sim_random(&sim->rng) % (sim_random(&sim->rng) % STALL_CHANCE
                                                ? DELAY_MAX_NS
                                                : STALL_MAX_NS));
    } else {
        coro_relax();
    }
}

static void
file_delay(struct file *file)
{
    struct sim *sim = sim_of(file->loop);

    if (file_of(file)->slow && !sim->o.in_order &&
        sim_random(&sim->rng) % SIM_HANGS == 0) {
        coro_sleep(SIM_HANG_MIN_NS + sim_random(&sim->rng) %
                                         (SIM_HANG_MAX_NS - SIM_HANG_MIN_NS));
    } else {
        delay(sim);
    }
}

/* The time that what holds others up takes: an fsync's, an open's (no @file). */
static void
long_delay(struct sim *sim, struct file *file)
{
    bool at_first = sim->o.holds_up && sim->o.holds_up(sim->o.arg);

    if (file) {
        file_delay(file);
    } else {
        delay(sim);
    }
    sim->n_held_up += at_first && sim->o.holds_up(sim->o.arg);
}

static void
world_offload(struct loop *loop, void (*fn)(void *), void *arg)
{
    delay(sim_of(loop));
    fn(arg);
}

/* Begins an I/O: 0, or the error that the sweep asked for. */
static int
io_begin(struct sim *sim)
{
    uint64_t n = ++sim->n_io;

    if (sim->o.fail_at && (n == sim->o.fail_at ||
                           (sim->o.fail_all_after && n > sim->o.fail_at))) {
        return -sim->o.fail_errno;
    }
    return 0;
}

static void
durable_event(struct sim *sim)
{
    sim->n_events++;
    if (sim->o.on_event) {
        sim->o.on_event(sim->o.arg, sim);
    }
}

/* Files. */

static int
world_read(struct file *file, uint64_t off, struct sg sg, unsigned flags)
{
    struct sim *sim = sim_of(file->loop);
    const struct content *c = &file_of(file)->inode->now;
    int r = io_begin(sim);

    file_delay(file);
    if (r) {
        return r;
    }
    uint64_t done = 0;

    while (done < sg.len && off + done < c->len) {
        size_t here;
        const unsigned char *p = content_at(c, off + done, &here);

        here = min_u64(here, sg.len - done);
        sg_copy_from(sg_slice(sg, done, here), p);
        done += here;
    }
    sg_zero(sg_slice(sg, done, sg.len - done));
    return 0;
}

/* A change of contents, from its issue to its completion. */
static int
change(struct file *file, enum disk_op_kind kind, uint64_t off, uint64_t len,
       struct sg sg)
{
    struct sim *sim = sim_of(file->loop);
    struct inode *inode = file_of(file)->inode;
    int r = io_begin(sim);
    uint64_t end = kind == OP_TRUNCATE ? off : off + len;

    if (!file_of(file)->writable) {
        return -EBADF;
    }
    if (!r && kind != OP_PUNCH && sim->disk->capacity && end > inode->now.len &&
        sim_disk_used(sim->disk) + end - inode->now.len > sim->disk->capacity) {
        r = -ENOSPC;
    }
    if (r) {
        file_delay(file);
        return r;
    }
    struct disk_op *op = inode_begin(inode, kind, off, len);

    if (kind == OP_WRITE) {
        sg_copy_to(sg, op->data);
    }
    durable_event(sim);
    file_delay(file);
    inode_complete(inode, op);
    return 0;
}

static int
world_write(struct file *file, uint64_t off, struct sg sg, unsigned flags)
{
    return sg.len ? change(file, OP_WRITE, off, sg.len, sg) : 0;
}

static int
world_punch(struct file *file, uint64_t off, uint64_t len)
{
    return change(file, OP_PUNCH, off, len, (struct sg){0});
}

static int
world_zero(struct file *file, uint64_t off, uint64_t len, bool may_punch)
{
    struct inode *inode = file_of(file)->inode;
    int r = world_punch(file, off, len);

    if (!r && off + len > inode->now.len) {
        struct iovec iov = {(void *)(uintptr_t) "", 1};

        r = change(file, OP_WRITE, off + len - 1, 1, sg_one(&iov));
    }
    return r;
}

static int
world_truncate(struct file *file, uint64_t size)
{
    return change(file, OP_TRUNCATE, size, 0, (struct sg){0});
}

static int
world_sync(struct file *file)
{
    struct sim *sim = sim_of(file->loop);
    struct inode *inode = file_of(file)->inode;
    uint64_t covered = inode->n_synced + inode->n_logged;
    int r = io_begin(sim);
    bool dropped = ++sim->n_syncs == sim->o.drop_sync_at;

    long_delay(sim, file);
    if (r) {
        return r;
    }
    if (!dropped) {
        /* Another fsync may have made some of it durable meanwhile. */
        while (inode->n_synced < covered) {
            inode_sync_first(inode);
        }
    }
    durable_event(sim);
    return 0;
}

static int
world_size(struct file *file, uint64_t *ret)
{
    *ret = file_of(file)->inode->now.len;
    return 0;
}

static uint64_t
next_sector(uint64_t off, uint64_t end)
{
    return min_u64(align_down(off, SIM_SECTOR) + SIM_SECTOR, end);
}

/* Is there anything from @off to the end of its sector? */
static bool
has_data(const struct content *c, uint64_t off)
{
    size_t here;
    const unsigned char *p = off < c->len ? content_at(c, off, &here) : NULL;

    return p && !bytes_are_zero(p, next_sector(off, off + here) - off);
}

static int
world_extent(struct file *file, uint64_t off, uint64_t len, bool *ret_data,
             uint64_t *ret_len)
{
    const struct content *c = &file_of(file)->inode->now;
    uint64_t begin = off, end = off + len;

    delay(sim_of(file->loop));
    *ret_data = has_data(c, off);
    while (off < end && has_data(c, off) == *ret_data) {
        off = next_sector(off, end);
    }
    *ret_len = off - begin;
    return 0;
}

/* Half of the seeds have a file system that shares blocks. */
static int
world_clone(struct file *file, uint64_t off, struct file *from,
            uint64_t from_off, uint64_t len)
{
    auto_free unsigned char *data = NULL;
    struct iovec iov;
    uint64_t unit = SIM_SECTOR;

    if (!(sim_of(file->loop)->o.seed & 1) || !is_aligned(off, unit) ||
        !is_aligned(from_off, unit) || !is_aligned(len, unit)) {
        return -ENOTSUP;
    }
    data = xmalloc(len);
    iov = (struct iovec){data, len};
    int r = world_read(from, from_off, sg_one(&iov), 0);

    return r ? r : change(file, OP_WRITE, off, len, sg_one(&iov));
}

static int
world_free_space(struct file *file, uint64_t *ret)
{
    const struct sim_disk *disk = sim_of(file->loop)->disk;
    uint64_t used = sim_disk_used(disk);

    *ret = !disk->capacity          ? UINT64_MAX
           : used > disk->capacity  ? 0
                                    : disk->capacity - used;
    return 0;
}

static int
world_lock(struct file *file, uint64_t off, uint64_t len, int mode)
{
    struct sim_file *sf = file_of(file);

    list_for_each_safe (it, &sf->inode->locks) {
        struct sim_lock *l = container_of(it, struct sim_lock, link);
        bool overlap = l->off < off + len && off < l->off + l->len;

        if (overlap && l->owner == sf && mode != FILE_LOCK_TEST) {
            list_remove(it);
            free(l);
        } else if (overlap && l->owner != sf && mode != FILE_UNLOCK &&
                   (l->exclusive || mode != FILE_LOCK_SHARED)) {
            return -EAGAIN;
        }
    }
    if (mode == FILE_LOCK_SHARED || mode == FILE_LOCK_EXCLUSIVE) {
        struct sim_lock *l = xzalloc(sizeof(*l));

        *l = (struct sim_lock){.owner = sf,
                               .off = off,
                               .len = len,
                               .exclusive = mode == FILE_LOCK_EXCLUSIVE};
        list_push(&sf->inode->locks, &l->link);
    }
    return 0;
}

static void
world_close(struct file *file)
{
    struct sim_file *sf = file_of(file);

    list_for_each_safe (it, &sf->inode->locks) {
        struct sim_lock *l = container_of(it, struct sim_lock, link);

        if (l->owner == sf) {
            list_remove(it);
            free(l);
        }
    }
    sf->inode->refs--;
    free(sf);
}

static const struct file_ops world_file_ops = {
    .read = world_read,
    .write = world_write,
    .sync = world_sync,
    .punch = world_punch,
    .zero = world_zero,
    .truncate = world_truncate,
    .size = world_size,
    .allocated = world_size,
    .free_space = world_free_space,
    .extent = world_extent,
    .clone = world_clone,
    .lock = world_lock,
    .close = world_close,
};

static int
world_open(struct loop *loop, const char *path, unsigned flags,
           struct file **ret)
{
    struct sim *sim = sim_of(loop);
    struct inode *inode = disk_lookup(sim->disk, path);
    const char *slash = strrchr(path, '/');
    bool too_long = strlen(slash ? slash + 1 : path) > NAME_MAX;

    long_delay(sim, NULL);
    if (too_long) {
        return -ENAMETOOLONG;
    }
    if (!inode && !(flags & FILE_CREATE)) {
        return -ENOENT;
    }
    if (inode && (flags & FILE_EXCLUSIVE)) {
        return -EEXIST;
    }
    if (!inode) {
        int r = io_begin(sim);

        if (r) {
            return r;
        }
        durable_event(sim);
        inode = disk_create(sim->disk, path);
    }
    struct sim_file *sf = xzalloc(sizeof(*sf));

    sf->f = (struct file){.ops = &world_file_ops,
                          .loop = loop,
                          .dev = 1,
                          .ino = inode->id + 1,
                          .align = flags & FILE_DIRECT ? SIM_SECTOR : 1};
    sf->inode = inode;
    sf->writable = flags & FILE_WRITE;
    sf->slow = sim->o.slow_file && !strcmp(path, sim->o.slow_file);
    inode->refs++;
    *ret = &sf->f;
    return flags & FILE_TRUNCATE ? world_truncate(&sf->f, 0) : 0;
}

static int
world_rename(struct loop *loop, const char *from, const char *to)
{
    struct sim *sim = sim_of(loop);
    int r = io_begin(sim);

    delay(sim);
    if (!r) {
        durable_event(sim);
        r = disk_rename(sim->disk, from, to);
    }
    return r;
}

static int
world_unlink(struct loop *loop, const char *path)
{
    struct sim *sim = sim_of(loop);
    int r = io_begin(sim);

    delay(sim);
    if (!r) {
        durable_event(sim);
        r = disk_unlink(sim->disk, path);
    }
    return r;
}

/* There are no folders here, and no links. */
static int
world_locate(struct loop *loop, const char *path, struct file_location *ret)
{
    struct sim *sim = sim_of(loop);
    auto_free char *copy = xstrdup(path); /* its node may be renamed meanwhile */
    int r = io_begin(sim);

    delay(sim);
    const struct inode *inode = disk_lookup(sim->disk, copy);

    if (!r && !inode) {
        r = -ENOENT;
    }
    if (!r) { /* as of one that is open */
        *ret = (struct file_location){.path = take_ptr(copy),
                                      .dev = 1,
                                      .ino = inode->id + 1,
                                      .n_links = 1};
    }
    return r;
}

static int
world_sync_folder(struct loop *loop, const char *path)
{
    struct sim *sim = sim_of(loop);
    int r = io_begin(sim);

    long_delay(sim, NULL);
    if (!r) {
        disk_sync_names(sim->disk);
        durable_event(sim);
    }
    return r;
}

static int
world_list_folder(struct loop *loop, const char *path, char ***ret,
                  size_t *ret_n)
{
    struct sim *sim = sim_of(loop);
    int r = io_begin(sim);

    delay(sim);
    *ret = NULL;
    *ret_n = 0;
    list_for_each(it, &sim->disk->names)
    {
        *ret = xrealloc(*ret, (*ret_n + 1) * sizeof(**ret));
        (*ret)[(*ret_n)++] = xstrdup(container_of(it, struct name, link)->name);
    }
    if (r) {
        names_free(*ret, *ret_n);
    }
    return r;
}

static void
world_destroy(struct loop *loop)
{
    struct sim *sim = sim_of(loop);

    if (sim->o.spares) {
        coro_pool_move(sim->o.spares->stacks, loop->pool);
    }
    loop_fini(loop);
    free(sim);
}

static const struct loop_ops world_ops = {
    .now = world_now,
    .wall_now = world_now,
    .random = world_random,
    .wait = world_wait,
    .pick = world_pick,
    .flush = world_flush,
    .destroy = world_destroy,
    .offload = world_offload,
    .file_open = world_open,
    .rename = world_rename,
    .unlink = world_unlink,
    .locate = world_locate,
    .sync_folder = world_sync_folder,
    .list_folder = world_list_folder,
    .shm_open = world_shm_open,
    .fd_wait = net_fd_wait,
    .fd_wake = net_fd_wake,
    .listen = net_listen,
    .connect = net_connect,
    .connect_fd = net_connect_fd,
};

struct sim_spares *
sim_spares_new(void)
{
    struct sim_spares *spares = xzalloc(sizeof(*spares));

    spares->stacks = coro_pool_new();
    list_init(&spares->regions);
    return spares;
}

void
sim_spares_free(struct sim_spares *spares)
{
    coro_pool_free(spares->stacks);
    spare_regions_free(spares);
    free(spares);
}

struct sim *
sim_new(struct sim_disk *disk, const struct sim_options *options)
{
    struct sim *sim = xzalloc(sizeof(*sim));

    loop_init(&sim->loop, &world_ops);
    sim->disk = disk;
    disk->shm_bytes = options->shm_bytes;
    sim->o = *options;
    if (options->spares) {
        coro_pool_move(sim->loop.pool, options->spares->stacks);
        disk->spares = options->spares;
    }
    sim->rng = options->seed;
    sim->now = 1;
    net_init(sim);
    return sim;
}

void
sim_free(struct sim *sim)
{
    loop_free(&sim->loop);
}

struct loop *
sim_loop(struct sim *sim)
{
    return &sim->loop;
}

struct sim_disk *
sim_world_disk(struct sim *sim)
{
    return sim->disk;
}

uint64_t
sim_n_io(const struct sim *sim)
{
    return sim->n_io;
}

uint64_t
sim_n_events(const struct sim *sim)
{
    return sim->n_events;
}

uint64_t
sim_n_syncs(const struct sim *sim)
{
    return sim->n_syncs;
}

uint64_t
sim_n_messages(const struct sim *sim)
{
    return sim->n_messages;
}

uint64_t
sim_n_switches(const struct sim *sim)
{
    return sim->loop.n_switches;
}

uint64_t
sim_n_held_up(const struct sim *sim)
{
    return sim->n_held_up;
}
