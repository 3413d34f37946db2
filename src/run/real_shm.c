// SPDX-License-Identifier: BSD-3-Clause
/*
 * Shared memory as files on tmpfs: /dev/shm/sluice-UID/BOOT-NAME.
 *
 * What lies there is written into images, so the folder must be this user's
 * alone.  A lock says whether the process that made a region is alive.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "run/real_internal.h"
#include "run/shm.h"

#define BOOT_ID "/proc/sys/kernel/random/boot_id"

struct real_shm {
    struct shm shm;
    int fd;
    uint64_t reserved;
    char *path;
};

/* The boot's id, or "": then regions may be older than the boot. */
static int
boot_id(char *ret, size_t size)
{
    int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret, size - 1);

    if (fd >= 0) {
        close(fd);
    }
    if (n <= 0) {
        return -ENOTSUP;
    }
    ret[n] = 0;
    ret[strcspn(ret, "\n")] = 0;
    return 0;
}

/* -EPERM where the folder could hold what somebody else put there. */
static int
open_folder(char *ret, size_t size)
{
    struct stat st;

    snprintf(ret, size, "/dev/shm/sluice-%u", (unsigned)geteuid());
    if (mkdir(ret, 0700) && errno != EEXIST) {
        return -errno;
    }
    if (lstat(ret, &st)) {
        return -errno;
    }
    return S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
                   !(st.st_mode & 077)
               ? 0
               : -EPERM;
}

static int
path_of(const char *name, char **ret)
{
    char folder[64], boot[64];
    int r = boot_id(boot, sizeof(boot));

    r = r ? r : open_folder(folder, sizeof(folder));
    *ret = r ? NULL : xasprintf("%s/%s-%s", folder, boot, name);
    return r;
}

static int
real_shm_reserve(struct shm *shm, uint64_t len)
{
    struct real_shm *rs = container_of(shm, struct real_shm, shm);

    if (len <= rs->reserved) {
        return 0;
    }
    if (len > shm->size) {
        return -ENOSPC;
    }
    /* Else a full tmpfs would be a SIGBUS. */
    if (fallocate(rs->fd, 0, (off_t)rs->reserved,
                  (off_t)(len - rs->reserved))) {
        return -errno;
    }
    rs->reserved = len;
    return 0;
}

static void
real_shm_close(struct shm *shm, bool remove)
{
    struct real_shm *rs = container_of(shm, struct real_shm, shm);

    if (remove) {
        unlink(rs->path);
    }
    if (shm->base) {
        munmap(shm->base, shm->size);
    }
    close(rs->fd);
    free(rs->path);
    free(rs);
}

static const struct shm_ops real_shm_ops = {real_shm_reserve, real_shm_close};

static int
map(struct real_shm *rs, uint64_t size)
{
    struct stat st;

    if (flock(rs->fd, LOCK_EX | LOCK_NB)) {
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    }
    if (size && ftruncate(rs->fd, (off_t)size)) {
        return -errno;
    }
    if (fstat(rs->fd, &st)) {
        return -errno;
    }
    if (!st.st_size) {
        return -ENOENT;
    }
    rs->shm.size = (uint64_t)st.st_size;
    void *p = mmap(NULL, rs->shm.size, PROT_READ | PROT_WRITE, MAP_SHARED,
                   rs->fd, 0);

    if (p == MAP_FAILED) {
        return -errno;
    }
    rs->shm.base = p;
    return 0;
}

int
real_shm_open(struct loop *loop, const char *name, uint64_t size,
              struct shm **ret)
{
    char *path;
    int r = path_of(name, &path);

    if (r) {
        return r;
    }
    if (size) {
        unlink(path);
    }
    int fd = open(path,
                  O_RDWR | O_CLOEXEC | O_NOFOLLOW |
                      (size ? O_CREAT | O_EXCL : 0),
                  0600);

    if (fd < 0) {
        r = -errno;
        free(path);
        return r;
    }
    struct real_shm *rs = xzalloc(sizeof(*rs));

    *rs = (struct real_shm){
        .shm.ops = &real_shm_ops, .fd = fd, .path = path};
    r = map(rs, size);
    if (r) {
        real_shm_close(&rs->shm, size != 0);
        return r;
    }
    *ret = &rs->shm;
    return 0;
}
