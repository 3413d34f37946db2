// SPDX-License-Identifier: BSD-3-Clause
/* See qemu.h. */
#include "sim/qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"

extern char **environ;

enum { SECTOR = 512, NAME_MAX_LEN = 64, EXIT_CORRUPT = 2 };

#define OUTPUT ".raw" /* no image has such a name */
#define MESSAGES ".messages"

/* The folder of one state. */
struct place {
    char path[64];
    int fd;
    struct sim_disk *disk; /* what is in it */
};

/* How a disk is opened: by which driver, from which file. */
struct head {
    char driver[NAME_MAX_LEN], file[NAME_MAX_LEN];
};

/* The exit status of the program, or -errno where it did not run. */
static int
run(const struct place *p, const char *const *argv)
{
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addfchdir_np(&actions, p->fd);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, MESSAGES,
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    int r = -posix_spawnp(&pid, argv[0], &actions, NULL,
                          (char *const *)(uintptr_t)argv, environ);

    posix_spawn_file_actions_destroy(&actions);
    while (!r && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return r                   ? r
           : WIFEXITED(status) ? WEXITSTATUS(status)
                               : -EINTR;
}

/* All of a file in the folder, for the caller to free; NULL: it is not there. */
static unsigned char *
read_all(const struct place *p, const char *name, size_t max, size_t *ret_len)
{
    int fd = openat(p->fd, name, O_RDONLY);
    unsigned char *buf = fd < 0 ? NULL : xzalloc(max + 1);
    ssize_t n = 0;

    *ret_len = 0;
    while (buf && *ret_len < max &&
           (n = read(fd, buf + *ret_len, max - *ret_len)) > 0) {
        *ret_len += (size_t)n;
    }
    if (fd >= 0) {
        close(fd);
    }
    return buf;
}

/* What qemu-img said, one line of it. */
static char *
messages(const struct place *p)
{
    size_t len;
    unsigned char *text = read_all(p, MESSAGES, 500, &len);

    for (size_t i = 0; i < len; i++) {
        text[i] = text[i] == '\n' ? ' ' : text[i];
    }
    return text ? (char *)text : xstrdup("");
}

static void
complain(struct sweep *s, const struct place *p, const char *what,
         const char *file, const char *problem)
{
    auto_free char *text = messages(p);

    s->judged_by_qemu = true;
    sweep_fail(s, "after %s qemu-img says that '%s' %s: %s", what, file,
               problem, text);
}

/* The folder. */

static void
put_file(void *arg, const char *name)
{
    const struct place *p = arg;
    size_t len, done = 0;
    const unsigned char *data = sim_disk_get(p->disk, name, &len);
    int fd = openat(p->fd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t n = 0;

    while (fd >= 0 && done < len && n >= 0) {
        n = write(fd, data + done, len - done);
        done += n > 0 ? (size_t)n : 0;
    }
    if (fd < 0 || n < 0 || close(fd)) {
        perror(p->path);
        abort();
    }
}

static void
remove_file(void *arg, const char *name)
{
    const struct place *p = arg;

    unlinkat(p->fd, name, 0);
}

static void
place_make(struct place *p, struct sim_disk *disk)
{
    *p = (struct place){.path = "/dev/shm/sluice-sim-XXXXXX", .disk = disk};
    if (!mkdtemp(p->path)) {
        strcpy(p->path, "/tmp/sluice-sim-XXXXXX");
        if (!mkdtemp(p->path)) {
            perror(p->path);
            abort();
        }
    }
    p->fd = open(p->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    sim_disk_names(disk, put_file, p);
}

static void
place_remove(struct place *p)
{
    sim_disk_names(p->disk, remove_file, p);
    remove_file(p, OUTPUT);
    remove_file(p, MESSAGES);
    close(p->fd);
    rmdir(p->path);
}

/* Judging. */

struct judge {
    struct sweep *s;
    const char *what;
    struct place place;
};

/* The format of an image, by its first bytes; NULL: none that has a check. */
static const char *
format_of(struct sim_disk *disk, const char *name)
{
    size_t len;
    const unsigned char *data = sim_disk_get(disk, name, &len);

    return len < 4                      ? NULL
           : !memcmp(data, "QFI\xfb", 4) ? "qcow2"
           : !memcmp(data, "QED\0", 4)   ? "qed"
                                         : NULL;
}

/* Of an image that is refused nothing is known. */
static void
check_file(void *arg, const char *name)
{
    struct judge *j = arg;
    const char *format = format_of(j->place.disk, name);
    const char *argv[] = {"qemu-img", "check", "-f", format, name, NULL};

    if (format && run(&j->place, argv) == EXIT_CORRUPT) {
        complain(j->s, &j->place, j->what, name, "is corrupt");
    }
}

static struct head
head_of(const char *options)
{
    struct head h = {"", ""};
    json_t *o = json_loads(options, 0, NULL);
    const char *driver, *file;

    if (!json_unpack(o, "{s:s, s:{s:s}}", "driver", &driver, "file",
                     "filename", &file)) {
        snprintf(h.driver, sizeof(h.driver), "%s", driver);
        snprintf(h.file, sizeof(h.file), "%s", file);
    }
    json_decref(o);
    return h;
}

/* What the image reads as, for the caller to free; NULL: it is refused. */
static unsigned char *
read_head(struct judge *j, const struct head *h, size_t *ret_len)
{
    const char *argv[] = {"qemu-img", "convert", "-f",   h->driver, "-O",
                          "raw",      h->file,   OUTPUT, NULL};

    return run(&j->place, argv) ? NULL
                                : read_all(&j->place, OUTPUT,
                                           j->s->setup->size, ret_len);
}

static void
judge_contents(struct judge *j, const struct head *h,
               const unsigned char *data, size_t len)
{
    struct sweep *s = j->s;
    uint64_t tag = 0;

    if (len < s->setup->size) {
        complain(s, &j->place, j->what, h->file, "is too short");
    }
    for (uint64_t i = 0; (i + 1) * SECTOR <= len; i++) {
        if (!sector_tag(data + i * SECTOR, &tag) ||
            !oracle_allows_crash(s->oracle, i, tag)) {
            s->judged_by_qemu = true;
            sweep_fail(s, "after %s qemu-img reads sector %llu of '%s' as "
                          "%#llx, allowed: %s",
                       j->what, (unsigned long long)i, h->file,
                       (unsigned long long)tag, oracle_explain(s->oracle, i));
        }
    }
}

/* This one is the disk. */
static void
judge_disk(struct judge *j, const char *options)
{
    struct head h = head_of(options);
    size_t len = 0;
    auto_free unsigned char *data = read_head(j, &h, &len);

    if (data) {
        judge_contents(j, &h, data, len);
    } else {
        complain(j->s, &j->place, j->what, h.file, "cannot be read");
    }
}

/* This one is not yet: refused, or untouched, or the disk as well. */
static void
judge_target(struct judge *j, const char *options)
{
    struct head h = head_of(options);
    size_t len = 0;
    auto_free unsigned char *data = read_head(j, &h, &len);

    if (data && !bytes_are_zero(data, len)) {
        judge_contents(j, &h, data, len);
    }
}

void
qemu_judge(struct sweep *s, struct sim_disk *disk, const char *what)
{
    const struct sweep_setup *setup = s->setup;
    struct judge j = {.s = s, .what = what};
    const char *moved =
        setup->judge_moved ? setup->judge_moved : setup->judge_target;

    place_make(&j.place, disk);
    sim_disk_names(disk, check_file, &j);
    if (moved && s->moved) {
        judge_disk(&j, moved);
    } else {
        judge_disk(&j, setup->judge_options ? setup->judge_options
                                            : setup->options);
        if (setup->judge_target && !setup->target_has_no_mark) {
            judge_target(&j, setup->judge_target);
        }
    }
    place_remove(&j.place);
}

static bool
is_there(void)
{
    static const char *const argv[] = {"qemu-img", "--version", NULL};
    static int is; /* -1, 1: known */
    struct sim_disk *disk = is ? NULL : sim_disk_new();
    struct place p;

    if (!is) {
        place_make(&p, disk);
        is = run(&p, argv) ? -1 : 1;
        place_remove(&p);
        sim_disk_free(disk);
    }
    return is > 0;
}

bool
qemu_can_judge(const struct sweep_setup *setup)
{
    /* It knows no QED image with tables of one cluster, and no other host. */
    return is_there() && !strstr(setup->image, "table-size=1") &&
           !setup->serve && !setup->judge_next;
}
