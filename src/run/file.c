// SPDX-License-Identifier: BSD-3-Clause
/* The one-buffer forms of reading and writing files and streams. */
#include "run/file.h"

#include <errno.h>

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
