// SPDX-License-Identifier: BSD-3-Clause
/*
 * Files and folders, as the seam shows them.
 *
 * Every function here yields unless it says otherwise, returns 0 or -errno and
 * never transfers less than it was asked: a read past the end of the file
 * gives zeroes, a short write is continued.  Offsets and lengths are bytes.
 *
 * With FILE_DIRECT offset, length and memory are multiples of `align`.  Only a
 * write that ends where the file does may end anywhere (and then the rest of
 * its page must have no other writer); it is slow.
 */
#ifndef SLUICE_RUN_FILE_H
#define SLUICE_RUN_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/sg.h"
#include "run/loop.h"

enum file_open_flags {
    FILE_WRITE = 1 << 0,     /* else read-only */
    FILE_CREATE = 1 << 1,    /* create where it does not exist (mode 0644) */
    FILE_EXCLUSIVE = 1 << 2, /* with FILE_CREATE: fail where it exists */
    FILE_TRUNCATE = 1 << 3,
    FILE_DIRECT = 1 << 4, /* O_DIRECT */
};

enum file_io_flags {
    /* Background work: never block the loop's thread on a page cache miss. */
    FILE_IO_BACKGROUND = 1 << 0,
};

struct file_ops {
    int (*read)(struct file *file, uint64_t off, struct sg sg, unsigned flags);
    int (*write)(struct file *file, uint64_t off, struct sg sg, unsigned flags);
    int (*sync)(struct file *file);
    int (*punch)(struct file *file, uint64_t off, uint64_t len);
    int (*zero)(struct file *file, uint64_t off, uint64_t len, bool may_punch);
    int (*truncate)(struct file *file, uint64_t size);
    int (*size)(struct file *file, uint64_t *ret);
    int (*allocated)(struct file *file, uint64_t *ret);
    int (*free_space)(struct file *file, uint64_t *ret);
    int (*extent)(struct file *file, uint64_t off, uint64_t len, bool *ret_data,
                  uint64_t *ret_len);
    int (*clone)(struct file *file, uint64_t off, struct file *from,
                 uint64_t from_off, uint64_t len);
    int (*lock)(struct file *file, uint64_t off, uint64_t len, int mode);
    void (*close)(struct file *file);
};

struct file {
    const struct file_ops *ops;
    struct loop *loop;
    uint64_t dev, ino;       /* identity, for claims */
    /*
     * When it was made, ns; of a block device a number that is the same after a
     * boot and by any name, and no other device's; 0: not known.
     */
    uint64_t born;
    uint32_t align;          /* of offset, length and memory; 1 if buffered */
    bool is_block_device;
    bool is_remote; /* on a file system where the cache may be stale */
};

/*
 * Opens a file.  -ENOENT, -EACCES and so on as open(2); -ENOTSUP where the
 * file is neither regular nor a block device; -EINVAL where O_DIRECT is not
 * supported.  The path is used as it is, relative to the working folder.
 */
static inline int
file_open(struct loop *loop, const char *path, unsigned flags,
          struct file **ret)
{
    return loop->ops->file_open(loop, path, flags, ret);
}

/* Closes and frees; drops the locks.  Does not sync. */
static inline void
file_close(struct file *file)
{
    file->ops->close(file);
}

static inline int
file_read(struct file *file, uint64_t off, struct sg sg, unsigned flags)
{
    return file->ops->read(file, off, sg, flags);
}

static inline int
file_write(struct file *file, uint64_t off, struct sg sg, unsigned flags)
{
    return file->ops->write(file, off, sg, flags);
}

/* One contiguous buffer. */
int file_read_buf(struct file *file, uint64_t off, void *buf, uint64_t len);
int file_write_buf(struct file *file, uint64_t off, const void *buf,
                   uint64_t len);

/* fdatasync(2): contents and size.  A failure means: written data is lost. */
static inline int
file_sync(struct file *file)
{
    return file->ops->sync(file);
}

/* Deallocates; reads zero afterwards.  -ENOTSUP where impossible. */
static inline int
file_punch(struct file *file, uint64_t off, uint64_t len)
{
    return file->ops->punch(file, off, len);
}

/*
 * Makes the range read zero without sending zeroes: -ENOTSUP where the file
 * system cannot.  @may_punch allows to give the blocks back.
 */
static inline int
file_zero(struct file *file, uint64_t off, uint64_t len, bool may_punch)
{
    return file->ops->zero(file, off, len, may_punch);
}

static inline int
file_truncate(struct file *file, uint64_t size)
{
    return file->ops->truncate(file, size);
}

static inline int
file_size(struct file *file, uint64_t *ret)
{
    return file->ops->size(file, ret);
}

/* Bytes that the file occupies on its file system. */
static inline int
file_allocated(struct file *file, uint64_t *ret)
{
    return file->ops->allocated(file, ret);
}

/*
 * Bytes that its file system would still give to this program; -ENOTSUP where
 * the file has all its space (a block device).
 */
static inline int
file_free_space(struct file *file, uint64_t *ret)
{
    return file->ops->free_space(file, ret);
}

/*
 * Whether [off, ...) is data or a hole, and for how long (cut to @len, at
 * least 1 byte).  Can be slow (SEEK_DATA): never on a guest's path.
 */
static inline int
file_extent(struct file *file, uint64_t off, uint64_t len, bool *ret_data,
            uint64_t *ret_len)
{
    return file->ops->extent(file, off, len, ret_data, ret_len);
}

/*
 * Makes the range share the blocks of @from's (FICLONERANGE): copies nothing.
 * -ENOTSUP where the file system cannot, or not for this range.
 */
static inline int
file_clone(struct file *file, uint64_t off, struct file *from,
           uint64_t from_off, uint64_t len)
{
    return file->ops->clone(file, off, from, from_off, len);
}

/*
 * Byte-range locks of the open file description (fcntl(2), F_OFD_SETLK), as
 * QEMU uses them.  -EAGAIN where somebody else holds the range.
 */
enum file_lock_mode {
    FILE_UNLOCK,
    FILE_LOCK_SHARED,
    FILE_LOCK_EXCLUSIVE,
    FILE_LOCK_TEST, /* could it be had exclusively?  Takes nothing */
};

static inline int
file_lock(struct file *file, uint64_t off, uint64_t len,
          enum file_lock_mode mode)
{
    return file->ops->lock(file, off, len, mode);
}

/* Atomic; durable only after folder_sync(). */
static inline int
file_rename(struct loop *loop, const char *from, const char *to)
{
    return loop->ops->rename(loop, from, to);
}

static inline int
file_unlink(struct loop *loop, const char *path)
{
    return loop->ops->unlink(loop, path);
}

/* Where a path leads, without opening that. */
struct file_location {
    char *path;        /* as realpath(3) */
    uint64_t dev, ino; /* of a file, or folder, as stat(2) numbers them */
    uint64_t born;     /* as of one that is open */
    uint64_t n_links;
    bool is_block_device;
    bool by_link; /* the path that was given is itself a link */
};

/* -ENOENT where it leads nowhere.  file_location_fini() for what it gives. */
static inline int
file_locate(struct loop *loop, const char *path, struct file_location *ret)
{
    return loop->ops->locate(loop, path, ret);
}

/* Does not yield. */
void file_location_fini(struct file_location *location);

/* Of that the numbers alone, and the path alone, which the caller frees. */
int file_identify(struct loop *loop, const char *path, uint64_t *ret_dev,
                  uint64_t *ret_ino);
int file_real_path(struct loop *loop, const char *path, char **ret);

/* Makes the names in the folder that holds @path durable. */
static inline int
folder_sync(struct loop *loop, const char *path)
{
    return loop->ops->sync_folder(loop, path);
}

/*
 * @path with its folder as realpath(3) has it, and the name in it as it is,
 * also where that is a link: other than file_real_path()'s only then.  The
 * caller frees it; a folder that leads nowhere stays as it is.
 */
char *file_own_path(struct loop *loop, const char *path);
/* Is the text before the last '/' the same?  Does not yield. */
bool path_in_same_folder(const char *a, const char *b);
/*
 * Deletes the file that @path leads to, and where @path is a link that, too:
 * it would lead nowhere.  In this order, each durably.
 */
int file_delete(struct loop *loop, const char *path);

/*
 * The paths of all that lies in the folder that holds @path, in no order, but
 * "." and "..".  The caller frees them with names_free(); -E2BIG where there
 * are more than a million.
 */
static inline int
folder_list(struct loop *loop, const char *path, char ***ret, size_t *ret_n)
{
    return loop->ops->list_folder(loop, path, ret, ret_n);
}

/* Does not yield. */
void names_free(char **names, size_t n);

#endif
