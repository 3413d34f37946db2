// SPDX-License-Identifier: BSD-3-Clause
/*
 * The one-buffer forms of reading and writing files and streams; names that are
 * links.
 */
#include "run/file.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "run/stream.h"

int
file_read_buf(struct file *file, uint64_t off, void *buf, uint64_t len)
{
    struct iovec iov = {buf, len};

    return file_read(file, off, sg_one(&iov), 0);
}

int
file_write_buf(struct file *file, uint64_t off, const void *buf, uint64_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};

    return file_write(file, off, sg_one(&iov), 0);
}

int
stream_read_full(struct stream *s, void *buf, size_t len)
{
    unsigned char *p = buf;
    size_t done = 0;

    while (done < len) {
        ssize_t n = stream_read(s, p + done, len - done);

        if (n < 0) {
            return (int)n;
        }
        if (n == 0) {
            return done ? -ECONNRESET : -EPIPE;
        }
        done += (size_t)n;
    }
    return 0;
}

int
stream_write_buf(struct stream *s, const void *buf, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};

    return stream_write(s, &iov, 1);
}

void
names_free(char **names, size_t n)
{
    while (n--) {
        free(names[n]);
    }
    free(names);
}

void
file_location_fini(struct file_location *location)
{
    free(take_ptr(location->path));
}

int
file_identify(struct loop *loop, const char *path, uint64_t *ret_dev,
              uint64_t *ret_ino)
{
    struct file_location at;
    int r = file_locate(loop, path, &at);

    if (!r) {
        *ret_dev = at.dev;
        *ret_ino = at.ino;
        file_location_fini(&at);
    }
    return r;
}

int
file_real_path(struct loop *loop, const char *path, char **ret)
{
    struct file_location at;
    int r = file_locate(loop, path, &at);

    if (!r) {
        *ret = at.path;
    }
    return r;
}

char *
file_own_path(struct loop *loop, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    auto_free char *folder =
        slash ? xasprintf("%.*s/.", (int)(slash - path), path) : xstrdup(".");
    auto_free char *real = NULL;

    if (file_real_path(loop, folder, &real)) {
        return xstrdup(path);
    }
    return xasprintf("%s/%s", strcmp(real, "/") ? real : "", name);
}

bool
path_in_same_folder(const char *a, const char *b)
{
    const char *a_end = strrchr(a, '/'), *b_end = strrchr(b, '/');
    size_t n = a_end ? (size_t)(a_end - a) + 1 : 0;

    return n == (b_end ? (size_t)(b_end - b) + 1 : 0) && !memcmp(a, b, n);
}

static int
unlink_durably(struct loop *loop, const char *path)
{
    int r = file_unlink(loop, path);

    return r ? r : folder_sync(loop, path);
}

int
file_delete(struct loop *loop, const char *path)
{
    auto_free char *own = file_own_path(loop, path);
    auto_free char *real = NULL;
    int r = file_real_path(loop, path, &real);

    r = r ? r : unlink_durably(loop, real);
    return r || !strcmp(own, real) ? r : unlink_durably(loop, own);
}
