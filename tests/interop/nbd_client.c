// SPDX-License-Identifier: BSD-3-Clause
/*
 * The NBD client against nbdkit: requests, options that fail, and a server
 * that is killed and started again.
 */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "format/image.h"

static pid_t server;

/* Starts nbdkit and waits until it says that it listens (its pid file). */
static void
start_server_at(const char *where, const char *args)
{
    auto_free char *cmd =
        xasprintf("exec nbdkit -f %s -P s.pid %s >>log 2>&1", where, args);

    unlink("s.pid");
    unlink("s.sock");
    server = fork();
    if (!server) {
        execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(127);
    }
    while (access("s.pid", F_OK)) {
        usleep(1000);
    }
}

static void
start_server(const char *args)
{
    start_server_at("-U s.sock", args);
}

static void
kill_server(void)
{
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
}

static int
open_nbd(struct image_case *c, const char *more, struct node **ret,
         struct err *err)
{
    auto_free char *text = xasprintf(
        "{\"driver\":\"nbd\",\"discard\":\"unmap\",\"server\":{\"type\":"
        "\"unix\",\"path\":\"s.sock\"}%s}",
        more);
    json_t *options = json_loads(text, 0, NULL);
    int r = node_open(c->graph, options, ret, err);

    json_decref(options);
    return r;
}

static struct node *
must_open_nbd(struct image_case *c, const char *more)
{
    auto_err err = ERR_INIT;
    struct node *node = NULL;

    if (open_nbd(c, more, &node, &err)) {
        tap_failed_checks++;
        printf("# %s\n", err.msg);
    }
    return node;
}

/* Large allocations of the driver's kind, counted. */
static unsigned allocated;

int
posix_memalign(void **ret, size_t align, size_t size)
{
    allocated += size >= 1 << 20;
    *ret = memalign(align, size);
    return *ret ? 0 : ENOMEM;
}

static void
read_in_pieces(struct image_case *c)
{
    enum { PIECE = 1 << 20, PIECES = 32 };
    struct node *node = must_open_nbd(c, "");
    auto_free unsigned char *buf = xmalloc(PIECE);
    struct iovec parts[] = {{buf, 4096}, {buf + 4096, PIECE - 4096}};
    struct sg whole = sg_one(&(struct iovec){buf, PIECE});
    struct sg two = {.iov = parts, .len = PIECE};

    for (uint64_t i = 0; node && i < PIECES; i++) {
        CHECK_INT(node_read(node, i * PIECE, whole, REQ_BACKGROUND), 0);
        CHECK_INT(node_read(node, i * PIECE, two, 0), 0);
        CHECK_INT(node_write(node, i * PIECE, two, 0, NULL), 0);
        allocated = i ? allocated : 0;
    }
    CHECK_INT(allocated, 0);
    if (node) {
        node_unref(node);
    }
}

static void
buffers_are_used_again(void)
{
    start_server("memory 64M");
    in_loop((struct image_case){.fn = read_in_pieces});
    kill_server();
}

enum { BIG = 40 << 20 };

static void
use_all_requests(struct image_case *c)
{
    struct node *node = must_open_nbd(c, "");
    auto_free unsigned char *x = xmalloc(BIG), *y = xmalloc(BIG);
    struct extent ext;

    if (!node) {
        return;
    }
    CHECK_INT(node->size, 64 << 20);
    for (int i = 0; i < BIG; i++) {
        x[i] = (unsigned char)(i * 7 + i / 4096);
    }
    /* More than one request, and more than the socket takes at once. */
    CHECK_INT(node_write_buf(node, 12345, x, BIG), 0);
    CHECK_INT(node_read_buf(node, 12345, y, BIG), 0);
    CHECK(!memcmp(x, y, BIG));
    CHECK_INT(node_flush(node), 0);
    CHECK_INT(node_zero(node, 1 << 20, 1 << 20, REQ_MAY_UNMAP, NULL), 0);
    CHECK_INT(node_discard(node, 4 << 20, 1 << 20), 0);
    CHECK_INT(node_read_buf(node, 1 << 20, y, 1 << 20), 0);
    CHECK(bytes_are_zero(y, 1 << 20));
    CHECK_INT(node_status(node, 60 << 20, 1 << 20, true, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_ZERO);
    CHECK_INT(node_status(node, 2 << 20, 4096, true, &ext), 0);
    CHECK_INT(ext.kind, EXTENT_DATA);
    CHECK_INT(ext.len, 4096);
    CHECK(node_write_buf(node, (64 << 20) - 1, x, 2) != 0);
    node_unref(node);
}

static void
requests_reach_the_server(void)
{
    start_server("memory 64M");
    in_loop((struct image_case){.fn = use_all_requests});
    kill_server();
}

static void
fail_to_open(struct image_case *c)
{
    struct node *node = NULL;
    auto_err err = ERR_INIT;

    CHECK(open_nbd(c, "", &node, &err) != 0);
    CHECK(err.msg && strstr(err.msg, c->arg));
}

static void
a_server_that_is_not_there_is_reported(void)
{
    static char socket[] = "s.sock", ro[] = "read-only";

    unlink("s.sock");
    in_loop((struct image_case){.fn = fail_to_open, .arg = socket});
    start_server("-r memory 1M");
    in_loop((struct image_case){.fn = fail_to_open, .arg = ro});
    kill_server();
}

/* By name, so that it is resolved; an export by name, too. */
static void
use_tcp(struct image_case *c)
{
    json_t *options = json_pack("{s:s, s:s, s:{s:s, s:s, s:s}}", "driver",
                                "nbd", "export", "e", "server", "type", "inet",
                                "host", "localhost", "port", c->arg);
    struct node *node = NULL;
    auto_err err = ERR_INIT;
    char text[4] = "";

    CHECK_INT(node_open(c->graph, options, &node, &err), 0);
    CHECK_STR(err.msg ? err.msg : "", "");
    if (node) {
        CHECK_INT(node_write_buf(node, 100, "abc", 3), 0);
        CHECK_INT(node_read_buf(node, 100, text, 3), 0);
        CHECK_STR(text, "abc");
        node_unref(node);
    }
    json_decref(options);
}

static void
a_server_is_reached_by_tcp(void)
{
    auto_free char *port = xasprintf("%d", 20000 + (int)(getpid() % 20000));
    auto_free char *where = xasprintf("-e e -p %s", port);

    start_server_at(where, "memory 1M");
    in_loop((struct image_case){.fn = use_tcp, .arg = port});
    kill_server();
}

/* Losing the server. */

struct worker {
    struct root *root;
    unsigned done, failed;
    bool stop, ended;
};

static void
work(void *arg)
{
    struct worker *w = arg;
    unsigned char buf[4096];
    struct iovec iov = {buf, sizeof(buf)};

    for (unsigned i = 0; !w->stop; i++) {
        uint64_t off = i % 256 * sizeof(buf);

        memset(buf, (int)(i % 255 + 1), sizeof(buf));
        if (root_write(w->root, off, sg_one(&iov), 0)) {
            w->failed++;
            coro_sleep(NS_PER_MS);
        } else {
            CHECK_INT(root_read(w->root, off, sg_one(&iov), 0), 0);
            CHECK_INT(buf[17], i % 255 + 1);
        }
        w->done++;
    }
    w->ended = true;
}

static void
wait_for(struct worker *w, unsigned more)
{
    unsigned want = w->done + more;

    while (w->done < want) {
        coro_sleep(NS_PER_MS);
    }
}

static void
lose_server(struct image_case *c)
{
    struct node *node = must_open_nbd(c, c->arg);
    struct worker w = {0};

    if (!node) {
        return;
    }
    CHECK_INT(root_new(node, CLAIM_WRITE, "test", &w.root, NULL), 0);
    coro_start(loop_current(), work, &w);
    for (int i = 0; i < 3; i++) {
        wait_for(&w, 50);
        kill_server();
        coro_sleep(20 * NS_PER_MS);
        start_server("file disk");
        wait_for(&w, 50);
    }
    CHECK_INT(w.failed, 0); /* they were parked */
    w.stop = true;
    while (!w.ended) {
        coro_sleep(NS_PER_MS);
    }
    root_free(w.root);
    node_unref(node);
}

static void
requests_wait_for_a_lost_server(void)
{
    static char more[] = ",\"reconnect-delay\":60";

    CHECK_SH("truncate -s 4M disk");
    start_server("file disk");
    in_loop((struct image_case){.fn = lose_server, .arg = more});
    kill_server();
}

static void
fail_then_recover(struct image_case *c)
{
    struct node *node = must_open_nbd(c, c->arg);
    struct root *root;
    unsigned char byte = 1;
    struct iovec iov = {&byte, 1};
    int r;

    CHECK_INT(root_new(node, CLAIM_WRITE, "test", &root, NULL), 0);
    CHECK_INT(root_write(root, 0, sg_one(&iov), 0), 0);
    kill_server();
    unlink("s.sock");
    CHECK_INT(root_write(root, 0, sg_one(&iov), 0), -EIO);
    CHECK_INT(root_read(root, 0, sg_one(&iov), 0), -EIO);
    start_server("file disk");
    /* Each request lets it try again; one of the next ones succeeds. */
    while ((r = root_read(root, 0, sg_one(&iov), 0)) == -EIO) {
        coro_sleep(NS_PER_MS);
    }
    CHECK_INT(r, 0);
    CHECK_INT(byte, 1);
    root_free(root);
    node_unref(node);
}

static void
requests_fail_without_a_delay_and_after_it(void)
{
    static char none[] = "", one[] = ",\"reconnect-delay\":1";

    CHECK_SH("truncate -s 4M disk");
    start_server("file disk");
    in_loop((struct image_case){.fn = fail_then_recover, .arg = none});
    in_loop((struct image_case){.fn = fail_then_recover, .arg = one});
    kill_server();
}

/* Closing while the server is away ends at once. */
static void
close_while_lost(struct image_case *c)
{
    struct node *node = must_open_nbd(c, ",\"reconnect-delay\":60");

    kill_server();
    coro_sleep(20 * NS_PER_MS);
    node_unref(node);
}

static void
a_lost_server_does_not_delay_closing(void)
{
    start_server("memory 1M");
    in_loop((struct image_case){.fn = close_while_lost});
}

int
main(void)
{
    if (!image_setup() || sh("nbdkit --version")) {
        return 77;
    }
    tap_run("requests reach the server", requests_reach_the_server);
    tap_run("buffers are used again", buffers_are_used_again);
    tap_run("a server that is not there is reported",
            a_server_that_is_not_there_is_reported);
    tap_run("a server is reached by TCP", a_server_is_reached_by_tcp);
    tap_run("requests wait for a lost server", requests_wait_for_a_lost_server);
    tap_run("requests fail without a delay, and after it",
            requests_fail_without_a_delay_and_after_it);
    tap_run("a lost server does not delay closing",
            a_lost_server_does_not_delay_closing);
    return image_done();
}
