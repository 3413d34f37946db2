// SPDX-License-Identifier: BSD-3-Clause
/* Coroutines, timers, waiting and real files, with io_uring and without. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/magic.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "run/file.h"
#include "run/real.h"
#include "run/stream.h"
#include "tap.h"

static struct loop *
new_loop(bool no_io_uring)
{
    struct real_loop_options o = {.no_io_uring = no_io_uring};
    struct loop *loop = NULL;

    CHECK_INT(real_loop_new(&o, &loop, NULL), 0);
    return loop;
}

struct order {
    char text[32];
    int fd;
    struct waitq q;
    struct comutex m;
};

static void
waiter_a(void *arg)
{
    struct order *o = arg;

    waitq_wait(&o->q);
    strcat(o->text, "a");
}

static void
waiter_b(void *arg)
{
    struct order *o = arg;
    uint64_t soon = loop_now(loop_current()) + NS_PER_MS;

    strcat(o->text, waitq_wait_until(&o->q, soon) ? "B" : "b");
}

static void
queue_main(void *arg)
{
    struct order *o = arg;

    coro_start(loop_current(), waiter_a, o);
    coro_start(loop_current(), waiter_b, o);
    coro_sleep(20 * NS_PER_MS);
    CHECK(waitq_wake_one(&o->q));
    CHECK(!waitq_wake_one(&o->q));
    coro_relax();
    strcat(o->text, ".");
}

static void
a_wait_ends_by_a_wake_or_in_time(void)
{
    struct loop *loop = new_loop(false);
    struct order o = {0};

    waitq_init(&o.q);
    CHECK(loop_run_main(loop, queue_main, &o));
    CHECK_STR(o.text, "ba.");
    loop_free(loop);
}

static void
mutex_user(void *arg)
{
    struct order *o = arg;

    comutex_lock(&o->m);
    strcat(o->text, "(");
    coro_sleep(NS_PER_MS / 10);
    strcat(o->text, ")");
    comutex_unlock(&o->m);
}

static void
mutex_main(void *arg)
{
    struct order *o = arg;

    for (int i = 0; i < 5; i++) {
        coro_start(loop_current(), mutex_user, o);
    }
    coro_relax();
    comutex_lock(&o->m);
    comutex_unlock(&o->m);
}

static void
a_mutex_excludes(void)
{
    struct loop *loop = new_loop(false);
    struct order o = {0};

    comutex_init(&o.m);
    CHECK(loop_run_main(loop, mutex_main, &o));
    CHECK_STR(o.text, "()()()()()");
    loop_free(loop);
}

static void
fd_waiter(void *arg)
{
    struct order *o = arg;

    strcat(o->text, fd_wait(loop_current(), o->fd, POLLIN, NEVER) ? "r" : "w");
}

static void
fd_main(void *arg)
{
    struct order *o = arg;
    int fds[2];

    CHECK_INT(pipe(fds), 0);
    o->fd = fds[0];
    fd_wake(loop_current(), o->fd); /* nobody waits */
    coro_start(loop_current(), fd_waiter, o);
    coro_sleep(NS_PER_MS);
    fd_wake(loop_current(), o->fd);
    coro_sleep(NS_PER_MS);
    coro_start(loop_current(), fd_waiter, o);
    CHECK_INT(write(fds[1], "x", 1), 1);
    coro_sleep(20 * NS_PER_MS);
    close(fds[0]);
    close(fds[1]);
}

static void
a_wait_for_a_descriptor_can_be_ended(void)
{
    struct loop *loop = new_loop(false);
    struct order o = {0};

    CHECK(loop_run_main(loop, fd_main, &o));
    CHECK_STR(o.text, "wr");
    loop_free(loop);
}

static char folder[] = "/tmp/sluice-unit-XXXXXX";

static void
file_main(void *arg)
{
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    auto_free char *other = xasprintf("%s/g", (char *)arg);
    unsigned char buf[10000], back[10000];
    struct file *f = NULL, *second = NULL;
    uint64_t size = 0, len = 0;
    bool data = false;

    CHECK_INT(file_open(loop, path, 0, &f), -ENOENT);
    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
    CHECK_INT(file_open(loop, path, FILE_CREATE | FILE_EXCLUSIVE, &second),
              -EEXIST);
    CHECK_INT(file_open(loop, arg, 0, &second), -EISDIR);
    memset(buf, 7, sizeof(buf));
    CHECK_INT(file_write_buf(f, 5, buf, sizeof(buf)), 0);
    CHECK_INT(file_size(f, &size), 0);
    CHECK_INT(size, sizeof(buf) + 5);
    memset(back, 1, sizeof(back));
    CHECK_INT(file_read_buf(f, 10, back, sizeof(back)), 0);
    CHECK(!memcmp(buf, back, sizeof(buf) - 5));
    CHECK(bytes_are_zero(back + sizeof(buf) - 5, 5));
    struct iovec iov[3] = {{back, 3}, {back + 3, 0}, {back + 3, 100}};
    struct sg sg = {.iov = iov, .len = 103};

    CHECK_INT(file_read(f, 0, sg, FILE_IO_BACKGROUND), 0);
    CHECK(bytes_are_zero(back, 5) && back[5] == 7 && back[102] == 7);
    CHECK_INT(file_sync(f), 0);
    CHECK_INT(file_zero(f, 4096, 8192, true), 0);
    CHECK_INT(file_size(f, &size), 0);
    CHECK_INT(size, 12288);
    CHECK_INT(file_read_buf(f, 4000, back, 8000), 0);
    CHECK(back[95] == 7 && bytes_are_zero(back + 96, 7904));
    CHECK_INT(file_truncate(f, 100), 0);
    CHECK_INT(file_truncate(f, 1 << 20), 0);
    CHECK_INT(file_extent(f, 1 << 19, 1 << 19, &data, &len), 0);
    CHECK(!data);
    CHECK_INT(len, 1 << 19);
    CHECK_INT(file_open(loop, path, FILE_WRITE, &second), 0);
    CHECK_INT(file_lock(f, 100, 1, FILE_LOCK_SHARED), 0);
    CHECK_INT(file_lock(second, 100, 1, FILE_LOCK_TEST), -EAGAIN);
    CHECK_INT(file_lock(second, 100, 1, FILE_LOCK_EXCLUSIVE), -EAGAIN);
    CHECK_INT(file_lock(f, 100, 1, FILE_UNLOCK), 0);
    CHECK_INT(file_lock(second, 100, 1, FILE_LOCK_EXCLUSIVE), 0);
    file_close(second);
    file_close(f);
    CHECK_INT(file_rename(loop, path, other), 0);
    CHECK_INT(folder_sync(loop, other), 0);
    CHECK_INT(file_unlink(loop, path), -ENOENT);
    CHECK_INT(file_unlink(loop, other), 0);
}

static void
names_main(void *arg)
{
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/n", (char *)arg);
    auto_free char *link = xasprintf("%s/l", (char *)arg);
    auto_free char *real = NULL;
    uint64_t dev = 0, ino = 0;
    struct file *f = NULL;

    CHECK_INT(file_identify(loop, path, &dev, &ino), -ENOENT);
    CHECK_INT(file_real_path(loop, path, &real), -ENOENT);
    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
    CHECK_INT(symlink(path, link), 0);
    CHECK_INT(file_identify(loop, link, &dev, &ino), 0);
    CHECK(dev == f->dev && ino == f->ino);
    CHECK_INT(file_identify(loop, arg, &dev, &ino), 0); /* a folder */
    CHECK(ino != f->ino);
    auto_free char *want = realpath(path, NULL);

    CHECK_INT(file_real_path(loop, link, &real), 0);
    CHECK_STR(real, want);
    file_close(f);
    CHECK_INT(file_unlink(loop, path), 0);
    CHECK_INT(file_identify(loop, link, &dev, &ino), -ENOENT);
    CHECK_INT(file_unlink(loop, link), 0);
}

/*
 * O_DIRECT, in a file that ends within a block: its last bytes and what lies
 * before them are written in turns, and the file stays as long as it is.
 */
static void
direct_main(void *arg)
{
    enum { BLOCKS = 4, BLOCK = 4096, SIZE = BLOCKS * BLOCK - 1000 };
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    unsigned char *block = try_alloc_aligned(BLOCK, BLOCK * BLOCKS);
    unsigned char model[BLOCK * BLOCKS] = {0}, back[SIZE];
    struct file *f = NULL, *plain = NULL;
    uint64_t size = 0;

    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &plain), 0);
    CHECK_INT(file_truncate(plain, SIZE), 0);
    int r = file_open(loop, path, FILE_WRITE | FILE_DIRECT, &f);

    if (r) {
        printf("# no O_DIRECT here: %s\n", strerror(-r));
        CHECK_INT(r, -EINVAL);
    }
    for (int i = 1; f && i <= 40; i++) {
        uint64_t off = align_down(SIZE - 1, f->align) -
                       (uint64_t)(i % 3) * f->align;
        uint64_t len = i % 3 ? f->align : SIZE - off;

        memset(block, i, len);
        memset(model + off, i, len);
        CHECK_INT(file_write_buf(f, off, block, len), 0);
        CHECK_INT(file_read_buf(f, 0, block, BLOCK * BLOCKS), 0);
        CHECK(!memcmp(block, model, BLOCK * BLOCKS));
        CHECK_INT(file_read_buf(plain, 0, back, SIZE), 0);
        CHECK(!memcmp(back, model, SIZE));
    }
    CHECK_INT(file_size(plain, &size), 0);
    CHECK_INT(size, SIZE);
    if (f) {
        CHECK_INT(file_zero(f, BLOCK * BLOCKS, BLOCK + 100, true), 0);
        CHECK_INT(file_size(f, &size), 0);
        CHECK_INT(size, BLOCK * BLOCKS + BLOCK + 100);
        file_close(f);
    }
    file_close(plain);
    CHECK_INT(file_unlink(loop, path), 0);
    free(block);
}

static void
in_folder(bool no_io_uring, const char *in, void (*fn)(void *))
{
    char *dir = xasprintf("%s/sluice-unit-XXXXXX", in);
    struct loop *loop = new_loop(no_io_uring);

    CHECK(mkdtemp(dir) != NULL);
    CHECK(loop_run_main(loop, fn, dir));
    loop_free(loop);
    rmdir(dir);
    free(dir);
}

static void
a_direct_file_that_ends_within_a_block_does_not_grow(void)
{
    in_folder(false, "/tmp", direct_main);
    in_folder(true, "/var/tmp", direct_main);
}

static void
files_work_with_io_uring(void)
{
    in_folder(false, "/tmp", file_main);
}

static void
files_work_with_threads(void)
{
    in_folder(true, "/tmp", file_main);
}

static void
files_work_on_tmpfs(void)
{
    in_folder(false, "/dev/shm", file_main);
}

/* Streams: an echo over a Unix socket, more than a socket buffer. */
enum { ECHO = 3 << 20 };

static void
echo_server(void *arg)
{
    struct listener *l = arg;
    struct stream *s = NULL;
    unsigned char *buf = xmalloc(65536);
    ssize_t n;

    CHECK_INT(listener_accept(l, &s), 0);
    while ((n = stream_read(s, buf, 65536)) > 0) {
        CHECK_INT(stream_write_buf(s, buf, (size_t)n), 0);
    }
    CHECK_INT(n, 0);
    stream_close(s);
    free(buf);
    CHECK_INT(listener_accept(l, &s), -ESHUTDOWN);
    listener_close(l);
}

static void
echo_writer(void *arg)
{
    unsigned char *buf = xmalloc(ECHO);

    for (int i = 0; i < ECHO; i++) {
        buf[i] = (unsigned char)(i * 7 >> 3);
    }
    CHECK_INT(stream_write_buf(arg, buf, ECHO), 0);
    free(buf);
}

static void
stream_main(void *arg)
{
    struct address a = {.kind = ADDRESS_UNIX, .path = arg};
    struct listener *l = NULL;
    struct stream *s = NULL;
    unsigned char *buf = xmalloc(ECHO);
    int bad = 0;

    CHECK_INT(stream_listen(loop_current(), &a, &l, NULL), 0);
    coro_start(loop_current(), echo_server, l);
    CHECK_INT(stream_connect(loop_current(), &a, &s, NULL), 0);
    coro_start(loop_current(), echo_writer, s);
    CHECK_INT(stream_read_full(s, buf, ECHO), 0);
    for (int i = 0; i < ECHO; i++) {
        bad += buf[i] != (unsigned char)(i * 7 >> 3);
    }
    CHECK_INT(bad, 0);
    stream_shutdown(s);
    CHECK_INT(stream_read(s, buf, 1), -ESHUTDOWN);
    coro_sleep(5 * NS_PER_MS);
    stream_close(s);
    listener_shutdown(l);
    coro_sleep(5 * NS_PER_MS);
    free(buf);
}

static void
streams_carry_everything(void)
{
    struct loop *loop = new_loop(false);
    char *dir = xstrdup(folder);

    CHECK(mkdtemp(dir) != NULL);
    char *path = xasprintf("%s/sock", dir);

    CHECK(loop_run_main(loop, stream_main, path));
    CHECK(access(path, F_OK) != 0);
    loop_free(loop);
    rmdir(dir);
    free(path);
    free(dir);
}

/* A listening socket that was passed, and blocks; and what is no socket. */
static void
passed_main(void *arg)
{
    struct loop *loop = loop_current();
    struct address a = {.kind = ADDRESS_FD};
    struct listener *l = NULL;
    struct stream *s = NULL;

    a.fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(!bind(a.fd, &(struct sockaddr){.sa_family = AF_UNIX},
                sizeof(sa_family_t)));
    CHECK(!listen(a.fd, 1));
    CHECK_INT(stream_listen(loop, &a, &l, NULL), 0);
    CHECK(fcntl(a.fd, F_GETFL) & O_NONBLOCK);
    listener_close(l);
    CHECK((a.fd = open("/dev/null", O_RDONLY)) >= 0);
    CHECK_INT(stream_connect(loop, &a, &s, NULL), -EPERM);
    CHECK((a.fd = open("/", O_RDONLY)) >= 0);
    CHECK_INT(stream_listen(loop, &a, &l, NULL), -EPERM);
}

static void
a_passed_descriptor_is_made_fit_or_refused(void)
{
    struct loop *loop = new_loop(false);

    CHECK(loop_run_main(loop, passed_main, NULL));
    loop_free(loop);
}

/* Who made the last call. */
static _Atomic pid_t wrote, allocated;

/* A queued write can be made to wait in its worker. */
static struct {
    unsigned queued, hold_from; /* 0: none is held */
    sem_t go_on;
    bool lazy; /* the worker goes on when nobody else wants its CPU */
} calls;

ssize_t
pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
    wrote = gettid();
    if (calls.lazy) {
        sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    }
    if (calls.hold_from && ++calls.queued >= calls.hold_from) {
        sem_wait(&calls.go_on);
    }
    return syscall(SYS_pwritev2, fd, iov, n, off, 0, 0);
}

/* While a call takes long: how many did at once. */
static atomic_bool takes_long;
static atomic_uint under_way, most_at_once;

ssize_t
pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    unsigned now = ++under_way;

    wrote = gettid();
    if (takes_long) {
        most_at_once = now > most_at_once ? now : most_at_once;
        usleep(2000);
    }
    long r = syscall(SYS_pwritev2, fd, iov, n, off, 0, flags);

    under_way--;
    return r;
}

int
fallocate(int fd, int mode, off_t off, off_t len)
{
    allocated = gettid();
    return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

static void
do_nothing(void *arg)
{
}

static void
tmpfs_main(void *arg)
{
    enum { LARGE = 1 << 20, MEDIUM = 64 << 10 };
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    auto_free unsigned char *buf = xzalloc(LARGE);
    struct file *f = NULL;

    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
    CHECK_INT(file_write_buf(f, 0, buf, 4096), 0);
    CHECK_INT(wrote, gettid());
    CHECK_INT(file_write_buf(f, 0, buf, LARGE), 0);
    CHECK(wrote != gettid());
    CHECK_INT(file_write_buf(f, 0, buf, MEDIUM), 0);
    CHECK_INT(wrote, gettid());
    coro_start(loop, do_nothing, NULL); /* now something waits for the loop */
    CHECK_INT(file_write_buf(f, 0, buf, MEDIUM), 0);
    CHECK(wrote != gettid());
    CHECK_INT(file_punch(f, 0, LARGE), 0);
    CHECK(allocated && allocated != gettid());
    file_close(f);
    CHECK_INT(file_unlink(loop, path), 0);
}

static void
what_takes_long_on_tmpfs_is_done_by_workers(void)
{
    in_folder(false, "/dev/shm", tmpfs_main);
}

struct queued {
    struct file *f;
    uint64_t off, size;
    unsigned *done;
};

static void
write_queued(void *arg)
{
    struct queued *w = arg;
    auto_free unsigned char *buf = xzalloc(w->size);

    CHECK_INT(file_write_buf(w->f, w->off, buf, w->size), 0);
    ++*w->done;
}

/*
 * Of @n writes of @size bytes at once the @held-th waits in its worker: at
 * least @answered are answered all the same, but none of those behind it.
 */
static void
hold_one(const char *path, uint64_t size, unsigned n, unsigned held,
         unsigned answered)
{
    struct loop *loop = loop_current();
    struct file *f = NULL;
    uint64_t deadline = loop_now(loop) + 10 * NS_PER_S;
    auto_free struct queued *w = xmalloc(n * sizeof(*w));
    unsigned done = 0;

    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
    sem_init(&calls.go_on, 0, 0);
    calls.queued = 0;
    calls.hold_from = held;
    for (unsigned i = 0; i < n; i++) {
        w[i] = (struct queued){f, i * size, size, &done};
        coro_start(loop, write_queued, &w[i]);
    }
    while (done < answered && loop_now(loop) < deadline) {
        coro_sleep(NS_PER_MS);
    }
    /* Where the file system takes them at once, there is nothing to see. */
    CHECK((done >= answered && done < held) || (done == n && !calls.queued));
    for (unsigned i = 0; i < n; i++) {
        sem_post(&calls.go_on);
    }
    while (done < n) {
        coro_sleep(NS_PER_MS);
    }
    calls.hold_from = 0;
    file_close(f);
    CHECK_INT(file_unlink(loop, path), 0);
}

static void
in_pieces_main(void *arg)
{
    auto_free char *path = xasprintf("%s/f", (char *)arg);

    hold_one(path, 64 << 10, 8, 2, 1);
    hold_one(path, 4 << 10, 32, 20, 4);
    hold_one(path, 512 << 10, 8, 6, 5); /* more than one job does */
}

static void
queued_writes_do_not_wait_for_all_others(void)
{
    in_folder(false, "/tmp", in_pieces_main);
}

struct copied {
    struct file *f;
    unsigned char value;
    unsigned *done;
};

static void
write_in_background(void *arg)
{
    struct copied *c = arg;
    unsigned char buf[4096];
    struct iovec iov = {buf, sizeof(buf)};

    memset(buf, c->value, sizeof(buf));
    CHECK_INT(file_write(c->f, c->value * sizeof(buf), sg_one(&iov),
                         FILE_IO_BACKGROUND),
              0);
    ++*c->done;
}

static void
background_main(void *arg)
{
    enum { WRITES = 20 };
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    struct copied c[WRITES];
    struct file *f = NULL;
    unsigned done = 0;

    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
    most_at_once = 0;
    takes_long = true;
    for (unsigned i = 0; i < WRITES; i++) {
        c[i] = (struct copied){f, (unsigned char)i, &done};
        coro_start(loop, write_in_background, &c[i]);
    }
    while (done < WRITES) {
        coro_sleep(NS_PER_MS);
    }
    takes_long = false;
    CHECK_INT(most_at_once, 1);
    for (unsigned i = 0; i < WRITES; i++) {
        unsigned char byte = 0xff;

        CHECK_INT(file_read_buf(f, i * 4096 + 4095, &byte, 1), 0);
        CHECK_INT(byte, i);
    }
    file_close(f);
    CHECK_INT(file_unlink(loop, path), 0);
}

/* What is sent to the disk ahead of a sync, and what comes of it there. */
static struct {
    _Atomic unsigned calls;
    _Atomic uint64_t bytes;
    _Atomic pid_t by;
    int fails; /* errno */
} ahead;

int
sync_file_range(int fd, off_t off, off_t len, unsigned flags)
{
    ahead.calls++;
    ahead.bytes += (uint64_t)len;
    ahead.by = gettid();
    errno = ahead.fails;
    return ahead.fails ? -1
                       : (int)syscall(SYS_sync_file_range, fd, off, len, flags);
}

static void
forget_ahead(int fails)
{
    ahead.calls = 0;
    ahead.bytes = 0;
    ahead.fails = fails;
}

static void
ahead_main(void *arg)
{
    enum { MUCH = 32 << 20, PIECE = 1 << 20 };
    static const int harmless[] = {ENOSYS, ENOMEM};
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    auto_free unsigned char *buf = xzalloc(MUCH);
    struct iovec piece = {buf, PIECE};
    struct file *f = NULL;

    CHECK_INT(file_open(loop_current(), path, FILE_WRITE | FILE_CREATE, &f), 0);
    CHECK_INT(file_write_buf(f, 4096, buf, PIECE), 0);
    forget_ahead(0);
    CHECK_INT(file_sync(f), 0);
    CHECK_INT(ahead.calls, 0); /* little is synced at once */
    CHECK_INT(file_write_buf(f, 0, buf, MUCH), 0);
    CHECK_INT(file_sync(f), 0);
    CHECK(ahead.calls >= 8 && ahead.bytes >= MUCH);
    CHECK(ahead.by && ahead.by != gettid());
    forget_ahead(0);
    CHECK_INT(file_sync(f), 0);
    CHECK_INT(ahead.calls, 0); /* nothing was written */
    CHECK_INT(file_write(f, 0, sg_one(&piece), FILE_IO_BACKGROUND), 0);
    CHECK(ahead.calls && ahead.bytes == PIECE);

    /* What is said there would be said nowhere else. */
    forget_ahead(EIO);
    CHECK_INT(file_write(f, 0, sg_one(&piece), FILE_IO_BACKGROUND), -EIO);
    forget_ahead(0);
    CHECK_INT(file_sync(f), -EIO);
    CHECK_INT(file_sync(f), -EIO);
    file_close(f);

    /* The same ahead of a sync; but what stays dirty is no error. */
    CHECK_INT(file_open(loop_current(), path, FILE_WRITE, &f), 0);
    for (unsigned i = 0; i < ARRAY_LEN(harmless); i++) {
        forget_ahead(harmless[i]);
        CHECK_INT(file_write(f, 0, sg_one(&piece), FILE_IO_BACKGROUND), 0);
        CHECK_INT(file_write_buf(f, 0, buf, MUCH), 0);
        CHECK_INT(file_sync(f), 0);
    }
    forget_ahead(EIO);
    CHECK_INT(file_write_buf(f, 0, buf, MUCH), 0);
    CHECK_INT(file_sync(f), -EIO);
    forget_ahead(0);
    CHECK_INT(file_sync(f), -EIO);
    file_close(f);
    CHECK_INT(file_unlink(loop_current(), path), 0);
}

static void
much_is_sent_to_the_disk_ahead_of_a_sync(void)
{
    struct statfs fs;

    if (!statfs("/tmp", &fs) && fs.f_type == TMPFS_MAGIC) {
        return; /* there is nothing to sync */
    }
    in_folder(false, "/tmp", ahead_main);
}

enum { LENT_SIZE = 512 << 10 }; /* tmpfs, too, gives so much to a worker */

/* A guest's write is in its worker and waits there. */
static void
begin_held_write(struct queued *w)
{
    calls.queued = 0;
    calls.hold_from = 1;
    coro_start(loop_current(), write_queued, w);
    while (!calls.queued) {
        coro_sleep(NS_PER_MS);
    }
}

static void
lent_main(void *arg)
{
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    struct file *f = NULL;
    unsigned done = 0, copied = 0;

    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
    struct queued w = {f, 0, LENT_SIZE, &done};
    struct copied c = {f, 200, &copied};

    sem_init(&calls.go_on, 0, 0);
    begin_held_write(&w);
    pid_t worker = wrote;

    coro_start(loop, write_in_background, &c);
    coro_sleep(20 * NS_PER_MS);
    CHECK_INT(copied, 0);
    CHECK_INT(calls.queued, 1);
    sem_post(&calls.go_on);
    while (!done) {
        coro_sleep(NS_PER_MS);
    }
    CHECK_INT(calls.queued, 2); /* the guest's was answered before */
    CHECK_INT(wrote, worker);
    coro_sleep(5 * NS_PER_MS);
    sem_post(&calls.go_on);
    while (!copied) {
        coro_sleep(NS_PER_MS);
    }
    /* That took long: the next one is not the worker's to wait for. */
    begin_held_write(&w);
    worker = wrote;
    coro_start(loop, write_in_background, &c);
    while (copied < 2) {
        coro_sleep(NS_PER_MS);
    }
    CHECK(wrote != worker);
    CHECK_INT(calls.queued, 1);
    sem_post(&calls.go_on);
    while (done < 2) {
        coro_sleep(NS_PER_MS);
    }
    calls.hold_from = 0;
    file_close(f);
    CHECK_INT(file_unlink(loop, path), 0);
}

static void
the_guests_worker_writes_for_the_background(void)
{
    in_folder(false, "/dev/shm", lent_main);
}

/* The worker finds out that nothing is left after the file was closed. */
static void
closed_main(void *arg)
{
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);

    sem_init(&calls.go_on, 0, 0);
    for (unsigned i = 0; i < 20; i++) {
        struct file *f = NULL;
        unsigned done = 0, copied = 0;

        CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &f), 0);
        struct queued w = {f, 0, LENT_SIZE, &done};
        struct copied c = {f, 200, &copied};

        begin_held_write(&w);
        coro_start(loop, write_in_background, &c);
        coro_sleep(2 * NS_PER_MS);
        sem_post(&calls.go_on);
        sem_post(&calls.go_on);
        while (!done || !copied) {
            coro_relax();
        }
        CHECK_INT(calls.queued, 2);
        file_close(f);
    }
    calls.hold_from = 0;
    CHECK_INT(file_unlink(loop, path), 0);
}

static void
a_file_can_be_closed_once_the_background_is_answered(void)
{
    cpu_set_t all, one;

    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_getaffinity(0, sizeof(all), &all);
    sched_setaffinity(0, sizeof(one), &one);
    calls.lazy = true;
    in_folder(false, "/dev/shm", closed_main);
    calls.lazy = false;
    sched_setaffinity(0, sizeof(all), &all);
}

static void
background_writes_follow_each_other(void)
{
    in_folder(false, "/dev/shm", background_main);
    in_folder(false, "/tmp", background_main);
}

/*
 * The ring's answers, as a test wants them: so many times @answer instead of a
 * submission, or one entry at a time.
 */
static struct {
    int answer;
    unsigned times, asked;
    bool one_by_one;
} ring;

int
io_uring_submit(struct io_uring *r)
{
    unsigned tail = r->sq.sqe_tail;

    ring.asked++;
    if (ring.times) {
        ring.times--;
        return ring.answer;
    }
    if (ring.one_by_one && tail - *r->sq.khead > 1) {
        r->sq.sqe_tail = *r->sq.khead + 1;
    }
    int n = io_uring_submit_and_wait(r, 0);

    r->sq.sqe_tail = tail;
    return n;
}

enum { SYNCS = 300 }; /* more than the ring has room for */

struct syncs {
    struct file *f;
    unsigned left;
    struct waitq over;
};

static void
sync_once(void *arg)
{
    struct syncs *s = arg;

    CHECK_INT(file_sync(s->f), 0);
    s->left--;
    waitq_wake_all(&s->over);
}

static void
ring_main(void *arg)
{
    struct loop *loop = loop_current();
    auto_free char *path = xasprintf("%s/f", (char *)arg);
    struct syncs s = {.left = SYNCS};

    waitq_init(&s.over);
    CHECK_INT(file_open(loop, path, FILE_WRITE | FILE_CREATE, &s.f), 0);
    for (unsigned i = 0; i < SYNCS; i++) {
        coro_start(loop, sync_once, &s);
    }
    while (s.left) {
        waitq_wait(&s.over);
    }
    file_close(s.f);
    CHECK_INT(file_unlink(loop, path), 0);
    file_main(arg);
}

static void
names_lead_to_files(void)
{
    in_folder(false, "/tmp", names_main);
}

static void
what_the_ring_does_not_take_is_done_all_the_same(void)
{
    static const int answers[] = {-EAGAIN, -EBUSY, -EINTR, 0, -EINVAL};

    for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
        ring.answer = answers[i];
        ring.times = 4;
        in_folder(false, "/tmp", ring_main);
    }
    /* One that is broken is asked once. */
    CHECK_INT(ring.times, ring.asked ? 3 : 4);
    ring.times = 0;
    ring.one_by_one = true;
    in_folder(false, "/tmp", ring_main);
    ring.one_by_one = false;
    if (!ring.asked) {
        printf("# no io_uring here\n");
    }
}

/*
 * Connections to a socket whose queue is full hang in their workers until its
 * owner goes; everything else must find a worker meanwhile.
 */
enum { HANGING = 20 };

struct hanging {
    const char *path;
    int left;
    struct waitq over;
};

static void
connect_in_vain(void *arg)
{
    struct hanging *h = arg;
    struct address a = {.kind = ADDRESS_UNIX, .path = h->path};
    struct stream *s = NULL;

    CHECK(stream_connect(loop_current(), &a, &s, NULL) < 0);
    h->left--;
    waitq_wake_all(&h->over);
}

/* A listening socket that takes no further connection. */
static int
full_socket(const char *path, int *ret_client)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    *ret_client = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(sun.sun_path, path, sizeof(sun.sun_path) - 1);
    CHECK(!bind(fd, (struct sockaddr *)&sun, sizeof(sun)));
    CHECK(!listen(fd, 0));
    CHECK(!connect(*ret_client, (struct sockaddr *)&sun, sizeof(sun)));
    return fd;
}

static void
hang_main(void *arg)
{
    struct loop *loop = loop_current();
    char *path = xasprintf("%s/full", (const char *)arg);
    char *other = xasprintf("%s/file", (const char *)arg);
    struct hanging h = {.path = path, .left = HANGING};
    struct file *f = NULL;
    int client, fd = full_socket(path, &client);

    waitq_init(&h.over);
    for (int i = 0; i < HANGING; i++) {
        coro_start(loop, connect_in_vain, &h);
    }
    coro_relax();
    CHECK_INT(file_open(loop, other, FILE_WRITE | FILE_CREATE, &f), 0);
    CHECK_INT(file_truncate(f, 4096), 0);
    file_close(f);
    CHECK_INT(file_unlink(loop, other), 0);
    CHECK_INT(h.left, HANGING);
    close(fd);
    close(client);
    while (h.left) {
        waitq_wait(&h.over);
    }
    unlink(path);
    free(other);
    free(path);
}

static void
what_hangs_takes_its_own_share_of_the_workers(void)
{
    char dir[] = "/tmp/sluice-unit-XXXXXX";
    struct loop *loop = new_loop(true);

    CHECK(mkdtemp(dir) != NULL);
    CHECK(loop_run_main(loop, hang_main, dir));
    loop_free(loop);
    rmdir(dir);
}

/* A peer that sends the next byte as soon as it was received. */
static struct {
    int fd, peer;
} eager;

ssize_t
recv(int fd, void *buf, size_t len, int flags)
{
    bool is_eager = eager.fd && fd == eager.fd;
    ssize_t n = syscall(SYS_recvfrom, fd, buf, is_eager ? 1 : len, flags, NULL,
                        NULL);

    if (is_eager && n == 1) {
        CHECK_INT(write(eager.peer, "x", 1), 1);
    }
    return n;
}

/* How often epoll was asked without waiting. */
static unsigned looked;

int
epoll_wait(int fd, struct epoll_event *events, int n, int ms)
{
    looked += ms == 0;
    return (int)syscall(SYS_epoll_pwait, fd, events, n, ms, NULL, 0);
}

enum { WARM = 20, EAGER = 200 };

struct pair {
    struct stream *s;
    int fd, peer;
    bool *quiet_was_read;
};

static struct pair
new_pair(void)
{
    struct address a = {.kind = ADDRESS_FD};
    struct pair p = {0};
    int fds[2];

    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
    a.fd = p.fd = fds[0];
    p.peer = fds[1];
    CHECK_INT(stream_connect(loop_current(), &a, &p.s, NULL), 0);
    return p;
}

static void
read_quiet(void *arg)
{
    struct pair *p = arg;
    char byte;

    CHECK_INT(stream_read(p->s, &byte, 1), 1);
    *p->quiet_was_read = true;
}

static void
eager_main(void *arg)
{
    struct loop *loop = loop_current();
    bool quiet_was_read = false;
    struct pair busy = new_pair(), quiet = new_pair();
    uint64_t deadline = loop_now(loop) + 10 * NS_PER_S;
    char two[2];

    quiet.quiet_was_read = &quiet_was_read;
    coro_start(loop, read_quiet, &quiet);
    for (int i = 0; i < WARM; i++) { /* short waits, which the loop learns */
        CHECK_INT(write(busy.peer, "x", 1), 1);
        CHECK_INT(stream_read(busy.s, two, 2), 1);
    }
    eager.fd = busy.fd;
    eager.peer = busy.peer;
    looked = 0;
    CHECK_INT(write(busy.peer, "x", 1), 1);
    for (int i = 0; i < EAGER; i++) {
        CHECK_INT(stream_read(busy.s, two, 2), 1);
    }
    CHECK(looked <= EAGER / 2); /* most did not ask epoll */
    CHECK_INT(write(quiet.peer, "y", 1), 1);
    while (!quiet_was_read && loop_now(loop) < deadline) {
        CHECK_INT(stream_read(busy.s, two, 2), 1);
    }
    CHECK(quiet_was_read);
    eager.fd = 0;
    CHECK_INT(stream_read(busy.s, two, 2), 1);
    close(busy.peer);
    CHECK_INT(stream_read(busy.s, two, 2), 0);
    stream_close(busy.s);
    stream_close(quiet.s);
    close(quiet.peer);
}

static void
who_waits_awake_looks_at_every_stream(void)
{
    struct loop *loop = new_loop(false);

    CHECK(loop_run_main(loop, eager_main, NULL));
    loop_free(loop);
}

int
main(void)
{
    tap_run("a wait ends by a wake or in time",
            a_wait_ends_by_a_wake_or_in_time);
    tap_run("a wait for a descriptor can be ended",
            a_wait_for_a_descriptor_can_be_ended);
    tap_run("a mutex excludes", a_mutex_excludes);
    tap_run("files work with io_uring", files_work_with_io_uring);
    tap_run("files work with threads", files_work_with_threads);
    tap_run("files work on tmpfs", files_work_on_tmpfs);
    tap_run("names lead to files", names_lead_to_files);
    tap_run("a direct file that ends within a block does not grow",
            a_direct_file_that_ends_within_a_block_does_not_grow);
    tap_run("what takes long on tmpfs is done by workers",
            what_takes_long_on_tmpfs_is_done_by_workers);
    tap_run("queued writes do not wait for all others",
            queued_writes_do_not_wait_for_all_others);
    tap_run("background writes of a file follow each other",
            background_writes_follow_each_other);
    tap_run("the guest's worker writes for the background",
            the_guests_worker_writes_for_the_background);
    tap_run("a file can be closed once the background is answered",
            a_file_can_be_closed_once_the_background_is_answered);
    tap_run("much is sent to the disk ahead of a sync",
            much_is_sent_to_the_disk_ahead_of_a_sync);
    tap_run("what the ring does not take is done all the same",
            what_the_ring_does_not_take_is_done_all_the_same);
    tap_run("streams carry everything", streams_carry_everything);
    tap_run("who waits awake looks at every stream",
            who_waits_awake_looks_at_every_stream);
    tap_run("a passed descriptor is made fit or refused",
            a_passed_descriptor_is_made_fit_or_refused);
    tap_run("what hangs takes its own share of the workers",
            what_hangs_takes_its_own_share_of_the_workers);
    return tap_done();
}
