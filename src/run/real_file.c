// SPDX-License-Identifier: BSD-3-Clause
/*
 * Real files.
 *
 * How a request is done is probed per file at open, the cheapest that never
 * blocks the loop's thread first:
 *
 *   inline   plain preadv/pwritev, on tmpfs, where nothing can block
 *   nowait   RWF_NOWAIT: done at once where the page cache can, else refused
 *   queue    a guest's buffered writes where that is refused (ext4 always),
 *            and large ones to tmpfs, which take long: a worker does them, in
 *            pieces, beside the loop's thread
 *   ring     io_uring: O_DIRECT, and reads that the cache lacks
 *   offload  a worker thread: where there is no io_uring; and background work
 *            through the page cache, which is copying, in threads of lower
 *            priority, a bit at a time, so that a guest's write to the same
 *            file gets in between; the queue's worker, while it is at work,
 *            writes these bits, too
 *
 * What is refused or done in part by one way goes on with the next.
 */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/bytes.h"
#include "run/real_internal.h"

enum {
    IOV_BATCH = 64,   /* elements per system call */
    FILE_WORKERS = 4, /* worker threads that one file can hold */
    FILE_BACKGROUND = 3, /* with more, copies get slower */
    DIRECT_ALIGN = 4096, /* at most, of what is to be written directly */
    DIRECT_ALIGN_MIN = 512,
    INLINE_WRITE_MAX = 256 << 10,
    INLINE_BUSY_MAX = 32 << 10, /* where the loop's thread has other work */
    SYNC_AT_ONCE_MAX = 16 << 20, /* bytes; see write_back_all() */
    SYNC_STEP_MIN = 2 << 20,
    SYNC_STEPS_MAX = 4096,
    BACKGROUND_CHUNK = 256 << 10, /* bytes of one call of background work */
};

struct real_file {
    struct file f;
    int fd;
    bool plain;        /* inline */
    bool nowait_read;  /* RWF_NOWAIT works for reads */
    bool nowait_write; /* for writes; cleared at the first refusal */
    bool direct;
    struct write_queue *writes;
    struct offload_group workers, background, ahead;
    struct job_chain background_writes; /* the inode's lock takes one at a time */
    /* Bytes written since the last sync began, and where they lie. */
    uint64_t unsynced, unsynced_start, unsynced_end;
    int lost; /* what no sync would say: all fail with it (rule 9) */
    dev_t device;            /* that it lies on, or is */
    struct backend *backend; /* of that device; `writes` holds it */
};

static struct real_file *
file_of(struct file *file)
{
    return container_of(file, struct real_file, f);
}

/* One batch of a request, by whichever way. */
struct batch {
    struct real_file *rf;
    struct iovec iov[IOV_BATCH];
    int n;
    uint64_t off, bytes;
    bool write;
    ssize_t result;
    int lost; /* background: what write_back() said */
};

static ssize_t
direct_call(struct batch *b, int rwf)
{
    ssize_t r;

    do {
        r = b->write ? pwritev2(b->rf->fd, b->iov, b->n, (off_t)b->off, rwf)
                     : preadv2(b->rf->fd, b->iov, b->n, (off_t)b->off, rwf);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

static void
batch_in_worker(void *arg)
{
    struct batch *b = arg;

    b->result = direct_call(b, 0);
}

/*
 * Begins to send a range to the disk.  An error may be told here alone, the
 * pages being gone: see `lost`.  Where there is no such call, or no memory for
 * it now, all stays dirty and the sync does it.
 */
static int
write_back(int fd, uint64_t off, uint64_t len)
{
    if (!sync_file_range(fd, (off_t)off, (off_t)len, SYNC_FILE_RANGE_WRITE)) {
        return 0;
    }
    switch (errno) {
    case EAGAIN:
    case EINTR:
    case EINVAL:
    case ENOMEM:
    case ENOSYS:
    case EOPNOTSUPP:
    case ESPIPE:
        return 0;
    default:
        return -errno;
    }
}

static struct queued_write
as_queued(const struct batch *b)
{
    return (struct queued_write){.fd = b->rf->fd,
                                 .iov = b->iov,
                                 .n = b->n,
                                 .off = b->off,
                                 .bytes = b->bytes};
}

/* A chunk of background work.  Devices take many writes at once. */
static ssize_t
chunk_call(struct batch *b)
{
    struct queued_write w = as_queued(b);
    bool lent = b->write && !b->rf->f.is_block_device &&
                write_queue_lend(b->rf->writes, &w);

    return lent ? w.result : direct_call(b, 0);
}

/* As batch_in_worker(), with @b's elements cut into chunks. */
static void
batch_in_background(void *arg)
{
    struct batch *b = arg;
    struct sg sg = {.iov = b->iov, .len = b->bytes};
    ssize_t done = 0;

    while (sg.len) {
        struct batch part;

        part.rf = b->rf;
        part.off = b->off + (uint64_t)done;
        part.write = b->write;
        part.n = sg_to_iov(sg_slice(sg, 0, min_u64(sg.len, BACKGROUND_CHUNK)),
                           part.iov, IOV_BATCH, &part.bytes);
        ssize_t r = chunk_call(&part);

        if (r <= 0) {
            done = done ? done : r;
            break;
        }
        done += r;
        sg = sg_slice(sg, (uint64_t)r, sg.len - (uint64_t)r);
    }
    /* A sync would write it back in one breath, and the guest feel that. */
    b->lost = b->write && done > 0 && !b->rf->plain
                  ? write_back(b->rf->fd, b->off, (uint64_t)done)
                  : 0;
    b->result = done;
}

/* In the file's share of its device's share of the workers. */
static void
file_offload(struct real_file *rf, void (*fn)(void *), void *arg)
{
    offload_group_enter(&rf->workers);
    offload(rf->f.loop, &rf->backend->work, fn, arg);
    offload_group_leave(&rf->workers);
}

/* In a thread of lower priority, after those before it in @chain. */
static void
in_background(struct real_file *rf, struct offload_group *file,
              struct offload_group *device, struct job_chain *chain,
              void (*fn)(void *), void *arg)
{
    struct real_loop *rl = real_of(rf->f.loop);

    offload_group_enter(file);
    offload_group_enter(device);
    rl->n_heavy++;
    pool_run(&rl->background, chain, fn, arg);
    rl->n_heavy--;
    offload_group_leave(device);
    offload_group_leave(file);
}

static ssize_t
batch_copied(struct batch *b)
{
    struct real_file *rf = b->rf;

    in_background(rf, &rf->background, &rf->backend->background,
                  b->write ? &rf->background_writes : NULL,
                  batch_in_background, b);
    if (b->lost) {
        rf->lost = b->lost;
        return b->lost;
    }
    return b->result;
}

static ssize_t
batch_queued(struct batch *b)
{
    struct queued_write w = as_queued(b);

    return write_queue_run(b->rf->writes, &w);
}

static ssize_t
batch_slow(struct batch *b, bool background)
{
    struct real_loop *rl = real_of(b->rf->f.loop);

    if (background && !b->rf->direct) {
        return batch_copied(b);
    }
    if (b->write && !b->rf->direct) {
        return batch_queued(b);
    }
    for (struct io_uring_sqe *sqe; (sqe = ring_sqe(rl));) {
        if (b->write) {
            io_uring_prep_writev(sqe, b->rf->fd, b->iov, (unsigned)b->n,
                                 b->off);
        } else {
            io_uring_prep_readv(sqe, b->rf->fd, b->iov, (unsigned)b->n, b->off);
        }
        int r = ring_wait(rl, sqe);

        if (r != -EINTR && r != -EAGAIN && r != RING_BROKEN) {
            return r;
        }
    }
    file_offload(b->rf, batch_in_worker, b);
    return b->result;
}

/* Whether an inline write is better done by a worker. */
static bool
takes_long(const struct real_file *rf, uint64_t bytes)
{
    bool others_wait = rf->writes->busy || rf->f.loop->n_ready;

    return bytes > (others_wait ? INLINE_BUSY_MAX : INLINE_WRITE_MAX);
}

static ssize_t
batch_run(struct batch *b, bool background)
{
    struct real_file *rf = b->rf;

    if (rf->plain && !background) {
        if (b->write && takes_long(rf, b->bytes)) {
            return batch_queued(b);
        }
        return direct_call(b, 0);
    }
    bool *nowait = b->write ? &rf->nowait_write : &rf->nowait_read;

    if (*nowait && !background) {
        ssize_t r = direct_call(b, RWF_NOWAIT);

        if (r > 0 || (r < 0 && r != -EAGAIN && r != -EOPNOTSUPP)) {
            return r;
        }
        if (r == -EOPNOTSUPP) {
            *nowait = false;
        }
    }
    return batch_slow(b, background);
}

static void
count_unsynced(struct real_file *rf, uint64_t off, uint64_t len)
{
    rf->unsynced_start =
        rf->unsynced ? min_u64(rf->unsynced_start, off) : off;
    rf->unsynced_end =
        rf->unsynced ? max_u64(rf->unsynced_end, off + len) : off + len;
    rf->unsynced += len;
}

/* All of a request, by the ways that its file has. */
static int
transfer(struct file *file, uint64_t off, struct sg sg, unsigned flags,
         bool write)
{
    struct batch b; /* its elements are set by each turn: no need to clear them */

    b.rf = file_of(file);
    b.write = write;
    while (sg.len) {
        b.n = sg_to_iov(sg, b.iov, IOV_BATCH, &b.bytes);
        b.off = off;
        ssize_t r = batch_run(&b, flags & FILE_IO_BACKGROUND);

        if (r < 0) {
            return (int)r;
        }
        if (r == 0) {
            if (write) {
                return -EIO;
            }
            sg_zero(sg); /* behind the end of the file */
            return 0;
        }
        if (write) {
            count_unsynced(b.rf, off, (uint64_t)r);
        }
        off += (uint64_t)r;
        sg = sg_slice(sg, (uint64_t)r, sg.len - (uint64_t)r);
    }
    return 0;
}

static int
real_read(struct file *file, uint64_t off, struct sg sg, unsigned flags)
{
    return transfer(file, off, sg, flags, false);
}

/* Calls that io_uring lacks here, or that only a worker may make. */
struct call {
    int fd, mode, result;
    uint64_t off, len, value;
    bool flag;
    const unsigned char *bytes;
};

static int
in_worker(struct real_file *rf, void (*fn)(void *), struct call *call)
{
    call->fd = rf->fd;
    file_offload(rf, fn, call);
    return call->result;
}

/*
 * Writes less than a block through the page cache, and on to the device at
 * once: a page that stayed dirty would later overwrite what is written directly
 * to its other blocks.
 */
static void
call_write_tail(void *arg)
{
    struct call *c = arg;
    char path[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", c->fd);
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        c->result = -errno;
        return;
    }
    for (uint64_t done = 0; !c->result && done < c->len;) {
        ssize_t n = pwrite(fd, c->bytes + done, c->len - done,
                           (off_t)(c->off + done));

        if (n > 0) {
            done += (uint64_t)n;
        } else if (n == 0 || errno != EINTR) {
            c->result = n < 0 ? -errno : -EIO;
        }
    }
    if (!c->result &&
        sync_file_range(fd, (off_t)c->off, (off_t)c->len,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER)) {
        c->result = -errno;
    }
    close(fd);
}

static int
write_tail(struct real_file *rf, uint64_t off, struct sg sg)
{
    auto_free unsigned char *bytes = xmalloc(rf->f.align);
    struct call call = {.off = off, .len = sg.len, .bytes = bytes};

    assert(sg.len < rf->f.align);
    sg_copy_to(sg, bytes);
    return in_worker(rf, call_write_tail, &call);
}

static int
real_write(struct file *file, uint64_t off, struct sg sg, unsigned flags)
{
    uint64_t whole = align_down(sg.len, file->align);
    int r = transfer(file, off, sg_slice(sg, 0, whole), flags, true);

    return r || whole == sg.len
               ? r
               : write_tail(file_of(file), off + whole,
                            sg_slice(sg, whole, sg.len - whole));
}

static void
call_fdatasync(void *arg)
{
    struct call *c = arg;

    c->result = fdatasync(c->fd) ? -errno : 0;
}

static void
call_fallocate(void *arg)
{
    struct call *c = arg;

    c->result = fallocate(c->fd, c->mode, (off_t)c->off, (off_t)c->len)
                    ? -errno
                    : 0;
}

static void
call_truncate(void *arg)
{
    struct call *c = arg;

    c->result = ftruncate(c->fd, (off_t)c->len) ? -errno : 0;
}

static void
call_extent(void *arg)
{
    struct call *c = arg;
    off_t data = lseek(c->fd, (off_t)c->off, SEEK_DATA);

    c->value = c->len;
    c->flag = true;
    if (data < 0) {
        c->flag = errno != ENXIO; /* nothing but a hole up to the end */
        return;
    }
    if ((uint64_t)data > c->off) {
        c->flag = false;
        c->value = min_u64(c->len, (uint64_t)data - c->off);
        return;
    }
    off_t hole = lseek(c->fd, (off_t)c->off, SEEK_HOLE);

    if (hole > data) {
        c->value = min_u64(c->len, (uint64_t)(hole - data));
    }
}

static void
call_write_back(void *arg)
{
    struct call *c = arg;
    uint64_t end = c->off + c->len;
    uint64_t step = max_u64(c->len / SYNC_STEPS_MAX, SYNC_STEP_MIN);

    for (uint64_t off = c->off; off < end && !c->result; off += step) {
        c->result = write_back(c->fd, off, step);
    }
}

/*
 * A sync of much keeps a CPU for milliseconds, where the kernel is not
 * preempted, and whoever was woken there waits.  So what was written is sent to
 * the disk in steps first, in a thread that gives way between them.
 */
static void
write_back_all(struct real_file *rf, uint64_t off, uint64_t len)
{
    struct call call = {.fd = rf->fd, .off = off, .len = len};

    in_background(rf, &rf->ahead, &rf->backend->ahead, NULL, call_write_back,
                  &call);
    if (call.result) {
        rf->lost = call.result;
    }
}

static int
sync_now(struct real_file *rf)
{
    struct real_loop *rl = real_of(rf->f.loop);
    struct call call = {0};
    struct io_uring_sqe *sqe = ring_sqe(rl);
    int r = RING_BROKEN;

    if (sqe) {
        io_uring_prep_fsync(sqe, rf->fd, IORING_FSYNC_DATASYNC);
        r = ring_wait(rl, sqe);
    }
    return r == RING_BROKEN ? in_worker(rf, call_fdatasync, &call) : r;
}

static int
real_sync(struct file *file)
{
    struct real_file *rf = file_of(file);
    int r;

    if (rf->plain) {
        return 0; /* tmpfs has nothing to sync */
    }
    struct real_loop *rl = real_of(file->loop);
    bool much = rf->unsynced >= SYNC_AT_ONCE_MAX && !rf->direct;

    rf->unsynced = 0;
    if (!much) {
        r = sync_now(rf);
    } else {
        write_back_all(rf, rf->unsynced_start,
                       rf->unsynced_end - rf->unsynced_start);
        rl->n_heavy++;
        r = sync_now(rf);
        rl->n_heavy--;
    }
    return r ? r : rf->lost;
}

static int
real_fallocate(struct real_file *rf, int mode, uint64_t off, uint64_t len)
{
    struct real_loop *rl = real_of(rf->f.loop);
    struct call call = {.mode = mode, .off = off, .len = len};
    /* tmpfs would do it in the call, in the loop's thread. */
    struct io_uring_sqe *sqe = rf->plain ? NULL : ring_sqe(rl);
    int r = RING_BROKEN;

    if (sqe) {
        io_uring_prep_fallocate(sqe, rf->fd, mode, (off_t)off, (off_t)len);
        r = ring_wait(rl, sqe);
    }
    if (r == RING_BROKEN) {
        r = in_worker(rf, call_fallocate, &call);
    }
    return r == -EOPNOTSUPP || r == -ENODEV || r == -EINVAL ? -ENOTSUP : r;
}

static int
real_punch(struct file *file, uint64_t off, uint64_t len)
{
    return real_fallocate(file_of(file),
                          FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
}

static int
real_size(struct file *file, uint64_t *ret)
{
    struct real_file *rf = file_of(file);
    struct stat st;

    if (file->is_block_device) {
        return ioctl(rf->fd, BLKGETSIZE64, ret) ? -errno : 0;
    }
    if (fstat(rf->fd, &st)) {
        return -errno;
    }
    *ret = (uint64_t)st.st_size;
    return 0;
}

static int
real_allocated(struct file *file, uint64_t *ret)
{
    struct stat st;

    if (fstat(file_of(file)->fd, &st)) {
        return -errno;
    }
    *ret = (uint64_t)st.st_blocks * 512;
    return 0;
}

static void
call_statvfs(void *arg)
{
    struct call *c = arg;
    struct statvfs st;

    if (fstatvfs(c->fd, &st)) {
        c->result = -errno;
    } else {
        c->value = (uint64_t)st.f_bavail * st.f_frsize;
    }
}

static int
real_free_space(struct file *file, uint64_t *ret)
{
    struct call call = {0};
    int r = file->is_block_device
                ? -ENOTSUP
                : in_worker(file_of(file), call_statvfs, &call);

    *ret = call.value;
    return r;
}

/*
 * Writing zeroes at the range's end moves the end of the file there.
 * ftruncate() could not: it may shrink a file that grew meanwhile.
 */
static int
extend_to(struct file *file, uint64_t end)
{
    uint64_t size = 0;
    int r = real_size(file, &size);

    if (r || size >= end) {
        return r;
    }
    void *zeroes = try_alloc_aligned(DIRECT_ALIGN, file->align);
    uint64_t block = align_down(end - 1, file->align);

    if (!zeroes) {
        return -ENOMEM;
    }
    memset(zeroes, 0, file->align);
    struct iovec iov = {zeroes, end - block};

    r = real_write(file, block, sg_one(&iov), 0);
    free(zeroes);
    return r;
}

static int
real_zero(struct file *file, uint64_t off, uint64_t len, bool may_punch)
{
    struct real_file *rf = file_of(file);
    int r = -ENOTSUP;

    if (!may_punch) {
        r = real_fallocate(rf, FALLOC_FL_ZERO_RANGE, off, len);
    }
    if (r == -ENOTSUP && (may_punch || !file->is_block_device)) {
        r = real_punch(file, off, len);
        if (!r && !file->is_block_device) {
            r = extend_to(file, off + len);
        }
    }
    return r;
}

static int
real_truncate(struct file *file, uint64_t size)
{
    struct call call = {.len = size};

    return in_worker(file_of(file), call_truncate, &call);
}

static int
real_extent(struct file *file, uint64_t off, uint64_t len, bool *ret_data,
            uint64_t *ret_len)
{
    struct call call = {.off = off, .len = len};
    int r = in_worker(file_of(file), call_extent, &call);

    *ret_data = call.flag;
    *ret_len = call.value;
    return r;
}

static void
call_clone(void *arg)
{
    struct call *c = arg;
    struct file_clone_range range = {.src_fd = c->mode,
                                     .src_offset = c->value,
                                     .src_length = c->len,
                                     .dest_offset = c->off};

    c->result = ioctl(c->fd, FICLONERANGE, &range) ? -errno : 0;
}

static int
real_clone(struct file *file, uint64_t off, struct file *from,
           uint64_t from_off, uint64_t len)
{
    struct call call = {.mode = file_of(from)->fd,
                        .value = from_off,
                        .off = off,
                        .len = len};
    int r = in_worker(file_of(file), call_clone, &call);

    switch (r) {
    case -EOPNOTSUPP:
    case -ENOTTY:
    case -EXDEV:
    case -EINVAL: /* not aligned with the file system's blocks */
    case -EPERM:
    case -ETXTBSY:
        return -ENOTSUP;
    default:
        return r;
    }
}

static int
real_lock(struct file *file, uint64_t off, uint64_t len, int mode)
{
    static const short types[] = {
        [FILE_UNLOCK] = F_UNLCK,
        [FILE_LOCK_SHARED] = F_RDLCK,
        [FILE_LOCK_EXCLUSIVE] = F_WRLCK,
        [FILE_LOCK_TEST] = F_WRLCK,
    };
    struct flock fl = {.l_whence = SEEK_SET,
                       .l_start = (off_t)off,
                       .l_len = (off_t)len,
                       .l_type = types[mode]};
    int fd = file_of(file)->fd;

    if (mode == FILE_LOCK_TEST) {
        if (fcntl(fd, F_OFD_GETLK, &fl)) {
            return -errno;
        }
        return fl.l_type == F_UNLCK ? 0 : -EAGAIN;
    }
    if (!fcntl(fd, F_OFD_SETLK, &fl)) {
        return 0;
    }
    return errno == EACCES ? -EAGAIN : -errno;
}

static void
real_close(struct file *file)
{
    struct real_file *rf = file_of(file);

    close(rf->fd);
    write_queue_free(rf->writes);
    free(rf);
}

static const struct file_ops real_file_ops = {
    .read = real_read,
    .write = real_write,
    .sync = real_sync,
    .punch = real_punch,
    .zero = real_zero,
    .truncate = real_truncate,
    .size = real_size,
    .allocated = real_allocated,
    .free_space = real_free_space,
    .extent = real_extent,
    .clone = real_clone,
    .lock = real_lock,
    .close = real_close,
};

/* Opening: in a worker, since every path can lead to a slow server. */

struct open_call {
    const char *path;
    unsigned flags;
    struct real_file *rf;
    int result;
};

static int
open_flags(unsigned flags)
{
    return O_CLOEXEC | O_NOCTTY | O_NONBLOCK |
           (flags & FILE_WRITE ? O_RDWR : O_RDONLY) |
           (flags & FILE_CREATE ? O_CREAT : 0) |
           (flags & FILE_EXCLUSIVE ? O_EXCL : 0) |
           (flags & FILE_TRUNCATE ? O_TRUNC : 0) |
           (flags & FILE_DIRECT ? O_DIRECT : 0);
}

/*
 * What O_DIRECT wants of offsets, lengths and memory: what the kernel says
 * (since 6.1), or the device; else what every device takes.
 */
static uint32_t
direct_align(const struct real_file *rf)
{
    uint64_t align = DIRECT_ALIGN;

    if (rf->f.is_block_device) {
        int sector;

        align = ioctl(rf->fd, BLKSSZGET, &sector) ? align : (uint64_t)sector;
    } else {
#ifdef STATX_DIOALIGN
        struct statx sx;

        if (!statx(rf->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) &&
            (sx.stx_mask & STATX_DIOALIGN) && sx.stx_dio_offset_align) {
            align = max_u64(sx.stx_dio_offset_align, sx.stx_dio_mem_align);
        }
#endif
    }
    /* More than a page, or nonsense, is left to the system to refuse. */
    return is_pow2(align) && align <= DIRECT_ALIGN
               ? (uint32_t)max_u64(align, DIRECT_ALIGN_MIN)
               : DIRECT_ALIGN;
}

/* Of the file, or of the path where that is not open (AT_FDCWD). */
static uint64_t
birth_of(int fd, const char *path)
{
    struct statx st;

    return !statx(fd, path, AT_EMPTY_PATH, STATX_BTIME, &st) &&
                   st.stx_mask & STATX_BTIME
               ? (uint64_t)st.stx_btime.tv_sec * NS_PER_S +
                     st.stx_btime.tv_nsec
               : 0;
}

static int
probe(struct real_file *rf, unsigned flags)
{
    struct stat st;
    struct statfs fs;
    char byte;
    struct iovec iov = {&byte, 1};

    if (fstat(rf->fd, &st) || fstatfs(rf->fd, &fs)) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return S_ISDIR(st.st_mode) ? -EISDIR : -ENOTSUP;
    }
    rf->f.is_block_device = S_ISBLK(st.st_mode);
    rf->device = rf->f.is_block_device ? st.st_rdev : st.st_dev;
    rf->f.dev = rf->f.is_block_device ? 0 : st.st_dev;
    rf->f.ino = rf->f.is_block_device ? st.st_rdev : st.st_ino;
    rf->f.born = rf->f.is_block_device ? device_identity(st.st_rdev)
                                       : birth_of(rf->fd, "");
    rf->f.align = flags & FILE_DIRECT ? direct_align(rf) : 1;
    rf->f.is_remote = fs.f_type == NFS_SUPER_MAGIC;
    rf->direct = flags & FILE_DIRECT;
    if (flags & FILE_DIRECT) {
        return 0;
    }
    rf->plain = fs.f_type == TMPFS_MAGIC && S_ISREG(st.st_mode);
    rf->nowait_read =
        preadv2(rf->fd, &iov, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
    rf->nowait_write = true;
    return 0;
}

/* Not to be opened: for some devices that alone does something. */
static bool
is_neither(const char *path)
{
    struct stat st;

    return !stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode) &&
           !S_ISDIR(st.st_mode);
}

static void
open_in_worker(void *arg)
{
    struct open_call *c = arg;

    if (is_neither(c->path)) {
        c->result = -ENOTSUP;
        return;
    }
    c->rf->fd = open(c->path, open_flags(c->flags), 0644);
    if (c->rf->fd < 0) {
        c->result = -errno;
        return;
    }
    c->result = probe(c->rf, c->flags);
    if (c->result) {
        close(c->rf->fd);
    }
}

int
real_file_open(struct loop *loop, const char *path, unsigned flags,
               struct file **ret)
{
    struct real_file *rf = xzalloc(sizeof(*rf));
    struct open_call call = {.path = path, .flags = flags, .rf = rf};

    rf->f.ops = &real_file_ops;
    rf->f.loop = loop;
    offload_group_init(&rf->workers, FILE_WORKERS);
    offload_group_init(&rf->background, FILE_BACKGROUND);
    offload_group_init(&rf->ahead, 1);
    job_chain_init(&rf->background_writes);
    offload_by_folder(loop, path, open_in_worker, &call);
    if (call.result) {
        free(rf);
        return call.result;
    }
    rf->backend = backend_of_device(real_of(loop), rf->device);
    rf->writes = write_queue_new(real_of(loop), rf->backend);
    *ret = &rf->f;
    return 0;
}

/* Names. */

struct name_call {
    const char *from, *to;
    char **names; /* of a folder */
    size_t n;
    struct file_location at;
    int result;
};

static void
rename_in_worker(void *arg)
{
    struct name_call *c = arg;

    c->result = rename(c->from, c->to) ? -errno : 0;
}

static void
unlink_in_worker(void *arg)
{
    struct name_call *c = arg;

    c->result = unlink(c->from) ? -errno : 0;
}

static void
locate_in_worker(void *arg)
{
    struct name_call *c = arg;
    auto_free char *path = realpath(c->from, NULL);
    struct stat st, own;

    if (!path || stat(path, &st) || lstat(c->from, &own)) {
        c->result = -errno;
        return;
    }
    bool is_device = S_ISBLK(st.st_mode);

    c->at = (struct file_location){
        .path = take_ptr(path),
        .dev = st.st_dev,
        .ino = st.st_ino,
        .born = is_device ? device_identity(st.st_rdev)
                          : birth_of(AT_FDCWD, c->from),
        .n_links = st.st_nlink,
        .is_block_device = is_device,
        .by_link = S_ISLNK(own.st_mode)};
}

/* The folder that holds @path; the caller frees it. */
static char *
folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;

    return !slash ? xstrdup(".") : xstrndup(path, len ? len : 1);
}

static void
sync_folder_in_worker(void *arg)
{
    struct name_call *c = arg;
    auto_free char *folder = folder_of(c->from);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        c->result = -errno;
        return;
    }
    c->result = fsync(fd) ? -errno : 0;
    close(fd);
}

enum { FOLDER_MAX = 1000000 };

static void
list_folder_in_worker(void *arg)
{
    struct name_call *c = arg;
    auto_free char *folder = folder_of(c->from);
    bool in_sight = !strchr(c->from, '/');
    DIR *dir = opendir(folder);
    struct dirent *e = NULL;

    if (!dir) {
        c->result = -errno;
        return;
    }
    while (!c->result && (errno = 0, e = readdir(dir))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) {
            continue;
        }
        if (c->n == FOLDER_MAX) {
            c->result = -E2BIG;
            break;
        }
        c->names = xrealloc(c->names, (c->n + 1) * sizeof(*c->names));
        c->names[c->n++] = in_sight ? xstrdup(e->d_name)
                                    : xasprintf("%s/%s", folder, e->d_name);
    }
    if (!e && errno) {
        c->result = -errno;
    }
    closedir(dir);
}

int
real_list_folder(struct loop *loop, const char *path, char ***ret,
                 size_t *ret_n)
{
    struct name_call call = {.from = path};

    offload_by_folder(loop, path, list_folder_in_worker, &call);
    if (call.result) {
        names_free(call.names, call.n);
        return call.result;
    }
    *ret = call.names;
    *ret_n = call.n;
    return 0;
}

static int
name_call(struct loop *loop, void (*fn)(void *), const char *from,
          const char *to)
{
    struct name_call call = {.from = from, .to = to};

    offload_by_folder(loop, from, fn, &call);
    return call.result;
}

int
real_rename(struct loop *loop, const char *from, const char *to)
{
    return name_call(loop, rename_in_worker, from, to);
}

int
real_unlink(struct loop *loop, const char *path)
{
    return name_call(loop, unlink_in_worker, path, NULL);
}

int
real_locate(struct loop *loop, const char *path, struct file_location *ret)
{
    struct name_call call = {.from = path};

    offload_by_folder(loop, path, locate_in_worker, &call);
    if (!call.result) {
        *ret = call.at;
    }
    return call.result;
}

int
real_sync_folder(struct loop *loop, const char *path)
{
    return name_call(loop, sync_folder_in_worker, path, NULL);
}
