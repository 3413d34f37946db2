// SPDX-License-Identifier: BSD-3-Clause
/*
 * file and host_device: regular files and block devices.
 *
 * Locks.  Files are locked as QEMU locks them (its block/file-posix.c), so that
 * no two programs write one image: byte 100 + p is share-locked for each
 * permission p that we use, byte 200 + p for each that we do not want anybody
 * else to use; then we test that nobody holds the opposite.  An image uses
 * "consistent read", and "write" and "resize" where it is writable, and never
 * shares "write" and "resize".  The locks belong to the open file, so two nodes
 * of one process exclude each other, too.
 *
 * Rule 9: after a failed fsync the kernel may have dropped what was written, so
 * a second one that succeeds proves nothing.  The node has failed for good.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"
#include "journal/unfinished.h"
#include "run/file.h"

enum {
    LOCK_USED = 100,   /* QEMU: RAW_LOCK_PERM_BASE */
    LOCK_UNSHARED = 200, /* RAW_LOCK_SHARED_BASE */
    PERM_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_RESIZE = 1 << 3,
    PERM_BITS = 4,
    LOCK_SPAN = LOCK_UNSHARED - LOCK_USED + PERM_BITS,
    LOCK_TRIES = 10,
};

#define LOCK_WAIT_NS (30 * NS_PER_MS)

struct file_state {
    struct file *f;      /* for I/O */
    struct file *locked; /* holds the locks: the one that was opened first */
    bool was_writable;   /* f is open for writing */
    bool locks;          /* wanted */
    bool shares;         /* force-share: others may write */
    /*
     * The extent of data that was found last.  SEEK_HOLE costs time by the
     * page on tmpfs, and whoever walks a file asks for it in pieces.  Data
     * that was punched since then reads zero, so an old answer is only slow.
     */
    uint64_t data_start, data_end;
};

static struct file *
file_of(struct node *node)
{
    return ((struct file_state *)node->state)->f;
}

static int
lock_bytes(struct file *f, unsigned base, unsigned perms,
           enum file_lock_mode mode, unsigned *ret_perm)
{
    for (unsigned p = 0; p < PERM_BITS; p++) {
        int r = perms & 1u << p ? file_lock(f, base + p, 1, mode) : 0;

        if (r) {
            *ret_perm = p;
            return r;
        }
    }
    return 0;
}

/* -EAGAIN: *ret_perm is what could not be had; *ret_shared: shared with. */
static int
try_lock(struct file *f, bool write, unsigned *ret_perm, bool *ret_shared)
{
    unsigned used = PERM_READ | (write ? PERM_WRITE | PERM_RESIZE : 0);
    unsigned unshared = PERM_WRITE | PERM_RESIZE;
    int r = lock_bytes(f, LOCK_USED, used, FILE_LOCK_SHARED, ret_perm);

    *ret_shared = false;
    if (!r) {
        r = lock_bytes(f, LOCK_UNSHARED, unshared, FILE_LOCK_SHARED, ret_perm);
    }
    if (!r) {
        r = lock_bytes(f, LOCK_UNSHARED, used, FILE_LOCK_TEST, ret_perm);
    }
    if (!r) {
        r = lock_bytes(f, LOCK_USED, unshared, FILE_LOCK_TEST, ret_perm);
        *ret_shared = true;
    }
    return r;
}

/*
 * As try_lock().  A killed process's locks outlive it for a moment, until the
 * kernel has torn down its io_uring; a restart at once must not fail for that.
 */
static int
take_locks(struct file *f, bool write, void (*unlock)(struct file *f),
           unsigned *ret_perm, bool *ret_shared)
{
    unsigned tries = 0;
    int r;

    while ((r = try_lock(f, write, ret_perm, ret_shared)) == -EAGAIN) {
        unlock(f);
        if (tries++ == LOCK_TRIES) {
            break;
        }
        coro_sleep(LOCK_WAIT_NS);
    }
    return r;
}

static void
unlock_all(struct file *f)
{
    file_lock(f, LOCK_USED, LOCK_SPAN, FILE_UNLOCK);
}

/* What only a writer holds. */
static void
unlock_write(struct file *f)
{
    for (unsigned p = 0; p < PERM_BITS; p++) {
        if ((PERM_WRITE | PERM_RESIZE) & 1u << p) {
            file_lock(f, LOCK_USED + p, 1, FILE_UNLOCK);
        }
    }
}

/* As node->read_only says.  @unlock: takes back what this locked. */
static int
lock_image(struct node *node, struct file *f, void (*unlock)(struct file *f),
           struct err *err)
{
    static const char *const names[] = {"consistent read", "write",
                                        "write unchanged", "resize"};
    unsigned p = 0;
    bool with_others = false;
    int r = take_locks(f, !node->read_only, unlock, &p, &with_others);

    if (r == -EAGAIN) {
        const struct node *ours = node_find_same_file(node);

        r = err_set(err, -EBUSY, "Failed to get %s\"%s\" lock on '%s'%s%s%s",
                    with_others ? "shared " : "", names[p], node->filename,
                    ours ? ": node '" : "", ours ? ours->name : "",
                    ours ? "' has it open" : "");
        err_hint(err, "Is another process using the image [%s]?",
                 node->filename);
    } else if (r) {
        r = err_set_errno(err, r, "Failed to lock '%s'", node->filename);
    }
    return r;
}

static bool
wants_locks(json_t *options)
{
    const char *locking = opt_str(options, "locking");

    return (!locking || strcmp(locking, "off")) &&
           !opt_bool(options, "force-share", false);
}

static int
open_file(struct node *node, json_t *options, struct file **ret,
          struct err *err)
{
    bool direct = opt_bool(json_object_get(options, "cache"), "direct", false);
    unsigned flags = (node->read_only ? 0 : FILE_WRITE) |
                     (direct ? FILE_DIRECT : 0);
    struct loop *loop = graph_loop(node->graph);
    int r = file_open(loop, node->filename, flags, ret);

    if ((r == -EACCES || r == -EROFS || r == -EPERM) && !node->read_only &&
        opt_bool(options, "auto-read-only", false)) {
        node->read_only = true;
        r = file_open(loop, node->filename, flags & ~(unsigned)FILE_WRITE, ret);
    }
    if (r == -ENOTSUP) {
        err_set(err, r,
                "Could not open '%s': it is neither a regular file nor a block "
                "device",
                node->filename);
    } else if (r) {
        err_set_errno(err, r, "Could not open '%s'", node->filename);
        if (r == -EINVAL && direct) {
            err_hint(err, "its file system may not support O_DIRECT: leave "
                          "out cache.direct=on");
        }
    }
    return r;
}

static int
file_driver_open(struct node *node, json_t *options, struct err *err)
{
    const char *filename = opt_str(options, "filename");
    struct file *f;

    if (!filename) {
        return err_set(err, -EINVAL, "Parameter 'filename' is missing");
    }
    if (!strncmp(filename, "file:", 5)) {
        filename += 5;
    }
    node->filename = graph_path(node->graph, filename);
    int r = open_file(node, options, &f, err);

    if (r) {
        return r;
    }
    if (node->drv == &driver_host_device && !f->is_block_device) {
        r = err_set(err, -EINVAL, "'%s' is no block device", filename);
    }
    if (!r) {
        r = node_set_file(node, (struct file_id){f->dev, f->ino}, err);
        node->file_born = f->born;
        node->is_device = f->is_block_device;
    }
    if (!r && wants_locks(options)) {
        r = lock_image(node, f, unlock_all, err);
    }
    if (!r) {
        r = file_size(f, &node->size);
        if (r) {
            err_set_errno(err, r, "Could not read the size of '%s'", filename);
        }
    }
    if (r) {
        file_close(f);
        return r;
    }
    struct file_state *st = xzalloc(sizeof(*st));

    st->f = st->locked = f;
    st->was_writable = !node->read_only;
    st->locks = wants_locks(options);
    st->shares = opt_bool(options, "force-share", false);
    node->state = st;
    node->limits.min_align = f->align;
    return 0;
}

static int
file_driver_close(struct node *node)
{
    struct file_state *st = node->state;

    if (st->f != st->locked) {
        file_close(st->f);
    }
    file_close(st->locked);
    free(st);
    return 0;
}

/*
 * The locks are all shared ones, so the file that was opened first takes what
 * a writer needs; requests in flight keep it open.
 */
static int
become_writable(struct node *node, struct err *err)
{
    struct file_state *st = node->state;
    struct file *f;

    if (st->shares) {
        return err_set(err, -EACCES,
                       "'%s' was opened with force-share=on, for reading only",
                       node->filename);
    }
    node->read_only = false;
    int r = open_file(node, node->options, &f, err);

    if (!r && node->read_only) {
        file_close(f);
        r = err_set(err, -EACCES, "'%s' cannot be written to", node->filename);
    }
    if (!r && (f->dev != st->locked->dev || f->ino != st->locked->ino)) {
        file_close(f);
        r = err_set(err, -ESTALE,
                    "'%s' is no longer the file that was opened: it was "
                    "replaced meanwhile",
                    node->filename);
    }
    if (!r && st->locks) {
        r = lock_image(node, st->locked, unlock_write, err);
        if (r) {
            file_close(f);
        }
    }
    node->read_only = true;
    if (!r) {
        st->f = f;
        st->was_writable = true;
    }
    return r;
}

static int
file_driver_reopen(struct node *node, bool read_only, struct err *err)
{
    struct file_state *st = node->state;

    if (read_only) {
        if (st->locks) {
            unlock_write(st->locked);
        }
        return 0;
    }
    if (!st->was_writable) {
        return become_writable(node, err);
    }
    node->read_only = false;
    int r = st->locks ? lock_image(node, st->locked, unlock_write, err) : 0;

    node->read_only = true;
    return r;
}

/*
 * A short request costs less than to hand it to a background thread: dirty
 * blocks go as a guest's own.
 */
enum { SHORT_IO = 32 << 10 };

static unsigned
io_flags(unsigned flags, uint64_t len)
{
    return flags & REQ_BACKGROUND && len > SHORT_IO ? FILE_IO_BACKGROUND : 0;
}

static int
file_driver_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    return file_read(file_of(node), off, sg, io_flags(flags, sg.len));
}

static void
grown(struct node *node, uint64_t end)
{
    node->size = max_u64(node->size, end);
}

static int
file_driver_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
                  struct range_hold *hold)
{
    int r = file_write(file_of(node), off, sg, io_flags(flags, sg.len));

    if (!r) {
        grown(node, off + sg.len);
    }
    return r;
}

static int
file_driver_clone(struct node *node, uint64_t off, struct node *from,
                  uint64_t from_off, uint64_t len, unsigned flags,
                  struct range_hold *hold)
{
    if (from->drv != node->drv) {
        return -ENOTSUP;
    }
    int r = file_clone(file_of(node), off, file_of(from), from_off, len);

    if (!r) {
        grown(node, off + len);
    }
    return r;
}

static int
file_driver_status(struct node *node, uint64_t off, uint64_t len,
                   struct extent *ret)
{
    struct file_state *st = node->state;
    uint64_t found = st->data_end - off;
    bool data = true;

    if (off < st->data_start || off >= st->data_end) {
        int r = file_extent(st->f, off, max_u64(len, node->size - off), &data,
                            &found);

        if (r) {
            return r;
        }
        if (data) {
            st->data_start = off;
            st->data_end = off + found;
        }
    }
    ret->kind = data ? EXTENT_DATA : EXTENT_ZERO;
    ret->len = min_u64(len, found);
    return 0;
}

/* Blocks were given back, perhaps among the data that was found. */
static void
forget_extent(struct node *node)
{
    struct file_state *st = node->state;

    st->data_start = st->data_end = 0;
}

static int
file_driver_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                 struct range_hold *hold)
{
    int r = file_zero(file_of(node), off, len, flags & REQ_MAY_UNMAP);

    forget_extent(node);
    if (!r) {
        grown(node, off + len);
    }
    return r;
}

static int
file_driver_discard(struct node *node, uint64_t off, uint64_t len,
                    struct range_hold *hold)
{
    int r = file_punch(file_of(node), off, len);

    forget_extent(node);
    return r;
}

static int
file_driver_flush(struct node *node)
{
    int r = file_sync(file_of(node));

    if (r) {
        node->failed = r;
    }
    return r;
}

static int
file_driver_truncate(struct node *node, uint64_t size, struct err *err)
{
    struct file *f = file_of(node);

    if (f->is_block_device) {
        if (size <= node->size) {
            return 0;
        }
        return err_set(err, -ENOTSUP, "Cannot grow the block device '%s'",
                       node->filename);
    }
    int r = file_truncate(f, size);

    forget_extent(node);
    if (r) {
        return err_set_errno(err, r, "Could not resize '%s'", node->filename);
    }
    node->size = size;
    return 0;
}

static int
file_driver_allocated(struct node *node, uint64_t *ret)
{
    return file_allocated(file_of(node), ret);
}

static void
file_driver_info(struct node *node, json_t *info)
{
    uint64_t bytes;

    if (!file_driver_allocated(node, &bytes)) {
        json_object_set_new(info, "actual-size", json_integer((int64_t)bytes));
    }
}

static int
file_driver_check_alone(struct node *node)
{
    struct file_state *st = node->state;
    int r = file_lock(st->locked, LOCK_USED, PERM_BITS, FILE_LOCK_TEST);

    if (!r) {
        r = file_lock(st->locked, LOCK_UNSHARED, PERM_BITS, FILE_LOCK_TEST);
    }
    return r == -EAGAIN ? -EBUSY : r;
}

static int
file_driver_free_space(struct node *node, uint64_t *ret)
{
    return file_free_space(file_of(node), ret);
}

static int
set_new_size(struct file *f, const char *filename, uint64_t size)
{
    int r = file_truncate(f, 0);

    if (!r) {
        r = file_truncate(f, size);
    }
    /* What a guest flushes later is lost if the file's name is. */
    return r ? r : folder_sync(f->loop, filename);
}

/* A device has the size that it has. */
static int
check_device_size(struct file *f, uint64_t size)
{
    uint64_t have;
    int r = file_size(f, &have);

    return r ? r : size > have ? -ENOSPC : 0;
}

/* A file that others use, be it to read, is none to be made anew. */
static int
lock_new(struct file *f)
{
    unsigned perm;
    bool with_others;
    int r = take_locks(f, true, unlock_all, &perm, &with_others);

    return r ? r : file_lock(f, LOCK_USED, PERM_BITS, FILE_LOCK_TEST);
}

/* blockdev-create: filename, size. */
static int
file_driver_create(struct graph *graph, json_t *options, struct err *err)
{
    const char *filename = opt_str(options, "filename");
    uint64_t size = opt_u64(options, "size", 0);
    struct file *f;
    int r = file_open(graph_loop(graph), filename,
                      FILE_WRITE | FILE_CREATE, &f);

    if (r) {
        return err_set_errno(err, r, "Could not create '%s'", filename);
    }
    /* Not FILE_TRUNCATE: an image that is in use must stay whole. */
    r = lock_new(f);
    if (!r) {
        r = f->is_block_device ? check_device_size(f, size)
                               : set_new_size(f, filename, size);
    }
    if (r == -EAGAIN) {
        r = err_set(err, -EBUSY, "'%s' exists and is in use", filename);
    } else if (r) {
        err_set_errno(err, r, "Could not create '%s'", filename);
    } else { /* the inode is the same, and what is in it is not */
        r = unfinished_end(graph_journals(graph), filename);
        r = r ? err_set_errno(err, r, "Could not end the journal of '%s'",
                              filename)
              : 0;
    }
    file_close(f);
    return r;
}

#define FILE_DRIVER_OPS                                                        \
    .is_protocol = true, .open = file_driver_open,                             \
    .close = file_driver_close, .reopen = file_driver_reopen,                  \
    .read = file_driver_read,                                                  \
    .write = file_driver_write, .zero = file_driver_zero,                      \
    .clone = file_driver_clone, .allocated = file_driver_allocated,            \
    .discard = file_driver_discard, .flush = file_driver_flush,                \
    .status = file_driver_status, .truncate = file_driver_truncate,            \
    .check_alone = file_driver_check_alone,                                    \
    .free_space = file_driver_free_space, .info = file_driver_info

const struct driver driver_file = {
    .name = "file",
    .create = file_driver_create,
    FILE_DRIVER_OPS,
};

const struct driver driver_host_device = {
    .name = "host_device",
    FILE_DRIVER_OPS,
};
