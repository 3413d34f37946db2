// SPDX-License-Identifier: BSD-3-Clause
/*
 * See service.h.  The pid file is locked as QEMU locks it, so that a second
 * daemon with the same file fails; a file that was replaced between its open
 * and its lock is opened again.
 */
#include "daemon/service.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"

/* The parent's part; never returns. */
static void
wait_for_child(int fd, pid_t child)
{
    char status = 1;
    ssize_t n;

    do {
        n = read(fd, &status, 1);
    } while (n < 0 && errno == EINTR);
    if (n != 1) {
        waitpid(child, NULL, 0);
        status = 1;
    }
    _exit(status);
}

int
service_daemonize(int *ret_ready_fd, struct err *err)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC)) {
        return err_set_errno(err, -errno, "Could not make a pipe");
    }
    pid_t child = fork();

    if (child < 0) {
        return err_set_errno(err, -errno, "Could not start a process");
    }
    if (child > 0) {
        close(fds[1]);
        wait_for_child(fds[0], child);
    }
    close(fds[0]);
    setsid();
    *ret_ready_fd = fds[1];
    return 0;
}

int
service_detach(int ready_fd, struct err *err)
{
    char status = 0;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0 || chdir("/")) {
        return err_set_errno(err, -errno, "Could not go into the background");
    }
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        dup2(null, fd);
    }
    if (null > STDERR_FILENO) {
        close(null);
    }
    while (write(ready_fd, &status, 1) < 0 && errno == EINTR) {
    }
    close(ready_fd);
    return 0;
}

/* Whether @path still names the file that was locked. */
static bool
same_file(int fd, const char *path)
{
    struct stat a, b;

    return !fstat(fd, &a) && !stat(path, &b) && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

static int
open_and_lock(const char *path, int *ret, struct err *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    for (;;) {
        int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);

        if (fd < 0) {
            return err_set_errno(err, -errno, "Could not create '%s'", path);
        }
        if (fcntl(fd, F_OFD_SETLK, &lock)) {
            int r = -errno;

            close(fd);
            return err_set_errno(err, r, "Could not lock '%s'", path);
        }
        if (same_file(fd, path)) {
            *ret = fd;
            return 0;
        }
        close(fd);
    }
}

int
pidfile_create(struct pidfile *p, const char *path, struct err *err)
{
    int fd;
    int r = open_and_lock(path, &fd, err);

    if (r) {
        return r;
    }
    auto_free char *text = xasprintf("%ld\n", (long)getpid());
    size_t len = strlen(text);

    if (ftruncate(fd, 0) || pwrite(fd, text, len, 0) != (ssize_t)len) {
        r = errno ? -errno : -EIO;
        unlink(path);
        close(fd);
        return err_set_errno(err, r, "Could not write '%s'", path);
    }
    p->fd = fd; /* the lock lasts as long as it is open */
    p->path = realpath(path, NULL);
    return 0;
}

void
pidfile_remove(struct pidfile *p)
{
    if (p->path) {
        unlink(p->path);
        close(p->fd);
        free(take_ptr(p->path));
    }
}

void
service_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    size_t len = path ? strlen(path) : 0;

    if (!len || len >= sizeof(sun.sun_path)) {
        return;
    }
    memcpy(sun.sun_path, path, len);
    if (sun.sun_path[0] == '@') {
        sun.sun_path[0] = '\0';
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        sendto(fd, state, strlen(state), MSG_NOSIGNAL,
               (struct sockaddr *)&sun,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
        close(fd);
    }
}

int
service_make_folder_of(const char *path, struct err *err)
{
    const char *slash = strrchr(path, '/');
    auto_free char *folder =
        slash ? xstrndup(path, (size_t)(slash - path)) : NULL;

    if (folder && mkdir(folder, 0700) && errno != EEXIST) {
        return err_set_errno(err, -errno, "Could not create '%s'", folder);
    }
    return 0;
}
