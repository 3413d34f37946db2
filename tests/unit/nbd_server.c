// SPDX-License-Identifier: BSD-3-Clause
/*
 * export/nbd_server with libnbd as its client, over Unix sockets in a
 * temporary folder and a disk in memory (fake_root.h).
 *
 * A case runs in a coroutine of a real loop.  What a client does blocks, so it
 * runs in a worker thread (`client()`), while the loop serves it; between such
 * calls the case looks at the server and the disk.  Nothing sleeps: where a
 * case waits for the server it lets the loop turn until it is so.
 */
#include "export/nbd_server.h"

#include <errno.h>
#include <libnbd.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "fake_root.h"
#include "run/coro.h"
#include "run/real.h"
#include "run/stream.h"
#include "tap.h"
#include "wire/nbd.h"

enum { DISK = 8 * 1024 * 1024 + 1, BIG = 4 * 1024 * 1024 };

struct env {
    struct loop *loop;
    char folder[32], path[64];
    struct nbd_server *server;
    struct root *disk, *ro;           /* behind the exports "disk" and "ro" */
    struct nbd_export *e_disk, *e_ro; /* NULL once removed */
    bool disk_freed;
    struct nbd_handle *nbd, *other; /* a client's, kept between its calls */
    int fd;
    uint8_t *buf;
    int result;
    int64_t cookie;
    void (*fn)(struct env *env);
    void (*work)(struct env *env);
    struct offload_group workers;
};

/* Harness. */

static void
call_work(void *arg)
{
    struct env *env = arg;

    env->work(env);
}

/* Runs @fn as a client, in another thread, until it returns. */
static void
client(struct env *env, void (*fn)(struct env *env))
{
    env->work = fn;
    offload(env->loop, &env->workers, call_work, env);
}

#define WAIT_FOR(cond)                                                         \
    do {                                                                       \
        while (!(cond)) {                                                      \
            coro_relax();                                                      \
        }                                                                      \
    } while (0)

static struct nbd_export *
add(struct env *env, struct root *root, const char *name, bool writable)
{
    struct nbd_export_options options = {
        .name = name, .description = "in memory", .writable = writable};
    struct nbd_export *export = NULL;
    auto_err err = ERR_INIT;

    CHECK_INT(nbd_export_add(env->server, root, &options, &export, &err), 0);
    return export;
}

static void
start(struct env *env, uint32_t max_connections, uint32_t handshake_seconds)
{
    struct address address = {.kind = ADDRESS_UNIX, .path = env->path};
    struct nbd_server_options options = {.address = &address,
                                         .max_connections = max_connections,
                                         .handshake_max_seconds =
                                             handshake_seconds};
    auto_err err = ERR_INIT;

    CHECK_INT(nbd_server_start(env->loop, &options, &env->server, &err), 0);
    CHECK(!strncmp(nbd_server_address(env->server), "unix:/tmp/", 10));
    env->disk = fake_root_new(env->loop, DISK, true);
    env->disk->freed = &env->disk_freed;
    env->ro = fake_root_new(env->loop, 512, false);
    env->e_disk = add(env, env->disk, "disk", true);
    env->e_ro = add(env, env->ro, "ro", false);
}

static void
stop(struct env *env)
{
    nbd_server_stop(take_ptr(env->server));
}

static void
case_main(void *arg)
{
    struct env *env = arg;

    env->fn(env);
    if (env->server) {
        stop(env);
    }
}

static void
run_case(void (*fn)(struct env *env))
{
    struct env env = {.fn = fn, .folder = "/tmp/sluice-nbd-XXXXXX", .fd = -1};
    auto_err err = ERR_INIT;

    if (!mkdtemp(env.folder) ||
        real_loop_new(&(struct real_loop_options){0}, &env.loop, &err)) {
        CHECK(!"a loop and a folder");
        return;
    }
    snprintf(env.path, sizeof(env.path), "%s/s", env.folder);
    offload_group_init(&env.workers, 4);
    env.buf = xzalloc(BIG);
    CHECK(loop_run_main(env.loop, case_main, &env));
    CHECK_INT(env.loop->n_coros, 0);
    nbd_close(env.nbd);
    nbd_close(env.other);
    if (env.fd >= 0) {
        close(env.fd);
    }
    free(env.buf);
    loop_free(env.loop);
    unlink(env.path);
    rmdir(env.folder);
}

#define CASE(name)                                                             \
    static void name##_in(struct env *env);                                    \
    static void name(void)                                                     \
    {                                                                          \
        run_case(name##_in);                                                   \
    }                                                                          \
    static void name##_in(struct env *env)

/* Clients. */

static struct nbd_handle *
new_handle(struct env *env, const char *name)
{
    struct nbd_handle *nbd = nbd_create();

    CHECK(nbd != NULL);
    CHECK_INT(nbd_set_export_name(nbd, name), 0);
    CHECK_INT(nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION), 0);
    /* So that the server's checks are tested, not libnbd's. */
    CHECK_INT(nbd_set_strict_mode(nbd, 0), 0);
    return nbd;
}

static void
connect_to(struct env *env, struct nbd_handle *nbd)
{
    env->result = nbd_connect_unix(nbd, env->path);
}

static void
connect_disk(struct env *env)
{
    env->nbd = new_handle(env, "disk");
    connect_to(env, env->nbd);
    CHECK_INT(env->result, 0);
}

static void
close_client(struct env *env)
{
    nbd_close(take_ptr(env->nbd));
}

static void
raw_connect(struct env *env)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};

    strcpy(sun.sun_path, env->path);
    env->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_INT(connect(env->fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
}

/* Waits for the server to hang up; the number of bytes that came before. */
static size_t
read_to_end(int fd)
{
    char buf[512];
    size_t total = 0;
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        total += (size_t)n;
    }
    return total;
}

/* Cases. */

static void
use_the_disk(struct env *env)
{
    struct nbd_handle *nbd = env->nbd;
    uint8_t *buf = env->buf;

    CHECK_INT(nbd_get_size(nbd), DISK);
    CHECK_INT(nbd_is_read_only(nbd), 0);
    CHECK_INT(nbd_can_flush(nbd), 1);
    CHECK_INT(nbd_can_fua(nbd), 1);
    CHECK_INT(nbd_can_trim(nbd), 1);
    CHECK_INT(nbd_can_zero(nbd), 1);
    CHECK_INT(nbd_can_fast_zero(nbd), 1);
    CHECK_INT(nbd_can_cache(nbd), 1);
    CHECK_INT(nbd_can_multi_conn(nbd), 1);
    CHECK_INT(nbd_can_df(nbd), nbd_get_structured_replies_negotiated(nbd));

    memset(buf, 'x', BIG);
    CHECK_INT(nbd_pwrite(nbd, buf, BIG, 4096, 0), 0);
    CHECK_INT(nbd_pwrite(nbd, "yz", 2, DISK - 2, LIBNBD_CMD_FLAG_FUA), 0);
    CHECK_INT(nbd_zero(nbd, 8192, 8192, LIBNBD_CMD_FLAG_NO_HOLE), 0);
    CHECK_INT(nbd_trim(nbd, 4096, 65536, LIBNBD_CMD_FLAG_FUA), 0);
    CHECK_INT(nbd_flush(nbd, 0), 0);
    CHECK_INT(nbd_cache(nbd, 4096, 0, 0), 0);
    memset(buf, 1, BIG);
    CHECK_INT(nbd_pread(nbd, buf, BIG, 4096, 0), 0);
    CHECK(buf[0] == 'x' && buf[BIG - 1] == 'x');
    CHECK(buf[4096] == 0 && buf[12287] == 0 && buf[12288] == 'x');
    CHECK(buf[61440] == 0 && buf[65535] == 0 && buf[65536] == 'x');
    CHECK_INT(nbd_pread(nbd, buf, 3, DISK - 3, 0), 0);
    CHECK(buf[0] == 0 && buf[1] == 'y' && buf[2] == 'z');
    CHECK_INT(nbd_pread(nbd, buf, 0, 0, 0), 0);
}

static void
check_counters(struct env *env)
{
    CHECK_INT(env->disk->n_fua, 1);
    CHECK_INT(env->disk->n_flushes, 2); /* one of them the trim's FUA */
    CHECK_INT(env->disk->n_populates, 1);
}

CASE(structured_client_reads_and_writes)
{
    start(env, 100, 10);
    client(env, connect_disk);
    CHECK_INT(nbd_get_structured_replies_negotiated(env->nbd), 1);
    CHECK_INT(nbd_export_clients(env->e_disk), 1);
    client(env, use_the_disk);
    check_counters(env);
    client(env, close_client);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
    CHECK_INT(nbd_export_clients(env->e_disk), 0);
}

static void
connect_simple(struct env *env)
{
    env->nbd = new_handle(env, "disk");
    nbd_set_request_structured_replies(env->nbd, false);
    connect_to(env, env->nbd);
    CHECK_INT(env->result, 0);
}

static void
fail_simply(struct env *env)
{
    CHECK_INT(nbd_pread(env->nbd, env->buf, 2, DISK - 1, 0), -1);
    CHECK_INT(nbd_get_errno(), EINVAL);
    CHECK_INT(nbd_pread(env->nbd, env->buf, 1, DISK - 1, 0), 0);
}

CASE(simple_client_reads_and_writes)
{
    start(env, 100, 10);
    client(env, connect_simple);
    client(env, use_the_disk);
    check_counters(env);
    client(env, fail_simply);
}

static void
connect_oldest(struct env *env)
{
    env->nbd = new_handle(env, "disk");
    nbd_set_handshake_flags(env->nbd, 0);
    connect_to(env, env->nbd);
    CHECK_INT(env->result, 0);
}

CASE(newstyle_client_without_flags_works)
{
    start(env, 100, 10);
    client(env, connect_oldest);
    client(env, use_the_disk);
}

static int
note_export(void *arg, const char *name, const char *description)
{
    struct env *env = arg;

    env->result = env->result * 10 + (!strcmp(name, "disk") ? 1
                                      : !strcmp(name, "ro") ? 2
                                                            : 9);
    CHECK_STR(description, "in memory");
    return 0;
}

static int
note_context(void *arg, const char *name)
{
    struct env *env = arg;

    CHECK_STR(name, "base:allocation");
    env->result++;
    return 0;
}

static void
haggle(struct env *env)
{
    struct nbd_handle *nbd = env->nbd = new_handle(env, "ro");

    nbd_set_opt_mode(nbd, true);
    nbd_set_full_info(nbd, true);
    connect_to(env, nbd);
    CHECK_INT(env->result, 0);
    CHECK_INT(nbd_opt_list(nbd, (nbd_list_callback){.callback = note_export,
                                                    .user_data = env}),
              2);
    CHECK_INT(env->result, 12);
    env->result = 0;
    CHECK_INT(nbd_opt_list_meta_context(
                  nbd, (nbd_context_callback){.callback = note_context,
                                              .user_data = env}),
              1);
    CHECK_INT(env->result, 1);
    CHECK_INT(nbd_opt_info(nbd), 0);
    CHECK_INT(nbd_get_size(nbd), 512);
    CHECK_INT(nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM), 1);
    CHECK_INT(nbd_get_block_size(nbd, LIBNBD_SIZE_PREFERRED), 65536);
    CHECK_INT(nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM), 32 << 20);
    auto_free char *name = nbd_get_canonical_export_name(nbd);
    auto_free char *about = nbd_get_export_description(nbd);

    CHECK_STR(name, "ro");
    CHECK_STR(about, "in memory");
    nbd_set_export_name(nbd, "none");
    CHECK_INT(nbd_opt_go(nbd), -1);
    CHECK_INT(nbd_get_errno(), ENOENT);
    nbd_set_export_name(nbd, "disk");
    CHECK_INT(nbd_opt_go(nbd), 0);
    CHECK_INT(nbd_get_size(nbd), DISK);
    CHECK_INT(nbd_can_meta_context(nbd, "base:allocation"), 1);
}

static void
abort_handshake(struct env *env)
{
    env->other = new_handle(env, "disk");
    nbd_set_opt_mode(env->other, true);
    connect_to(env, env->other);
    CHECK_INT(nbd_opt_abort(env->other), 0);
}

CASE(options_list_inform_and_enter)
{
    start(env, 100, 10);
    client(env, haggle);
    client(env, abort_handshake);
    WAIT_FOR(nbd_server_connections(env->server) == 1);
}

static void
write_read_only(struct env *env)
{
    struct nbd_handle *nbd = env->nbd = new_handle(env, "ro");

    connect_to(env, nbd);
    CHECK_INT(nbd_is_read_only(nbd), 1);
    CHECK_INT(nbd_can_trim(nbd), 0);
    CHECK_INT(nbd_pwrite(nbd, env->buf, 512, 0, 0), -1);
    CHECK_INT(nbd_get_errno(), EPERM);
    CHECK_INT(nbd_trim(nbd, 512, 0, 0), -1);
    CHECK_INT(nbd_get_errno(), EPERM);
    CHECK_INT(nbd_zero(nbd, 512, 0, 0), -1);
    CHECK_INT(nbd_get_errno(), EPERM);
    /* The refused writes' data was passed over. */
    CHECK_INT(nbd_pread(nbd, env->buf, 512, 0, 0), 0);
    CHECK_INT(nbd_flush(nbd, 0), 0);
}

CASE(read_only_export_refuses_writes)
{
    start(env, 100, 10);
    client(env, write_read_only);
    CHECK_INT(nbd_export_clients(env->e_ro), 1);
    CHECK_INT(nbd_export_clients(env->e_disk), 0);
}

static void
break_rules(struct env *env)
{
    struct nbd_handle *nbd = env->nbd;

    CHECK_INT(nbd_pwrite(nbd, env->buf, 2, DISK - 1, 0), -1);
    CHECK_INT(nbd_get_errno(), ENOSPC);
    CHECK_INT(nbd_zero(nbd, 2, DISK - 1, 0), -1);
    CHECK_INT(nbd_get_errno(), ENOSPC);
    CHECK_INT(nbd_trim(nbd, 2, DISK - 1, 0), -1);
    CHECK_INT(nbd_get_errno(), EINVAL);
    CHECK_INT(nbd_zero(nbd, 100, 1, LIBNBD_CMD_FLAG_FAST_ZERO), -1);
    CHECK_INT(nbd_get_errno(), ENOTSUP);
    CHECK_INT(nbd_zero(nbd, 4096, 4096, LIBNBD_CMD_FLAG_FAST_ZERO), 0);
    CHECK_INT(nbd_pread(nbd, env->buf, 1, 0, 1 << 9), -1);
    CHECK_INT(nbd_get_errno(), EINVAL);
    CHECK_INT(nbd_pread(nbd, env->buf, 1, 0, 0), 0);
}

static void
expect_error(struct env *env)
{
    CHECK_INT(nbd_pread(env->nbd, env->buf, 1, 0, 0), -1);
    CHECK_INT(nbd_get_errno(), -env->result);
    CHECK_INT(nbd_flush(env->nbd, 0), -1);
    CHECK_INT(nbd_get_errno(), -env->result);
}

CASE(errors_have_their_numbers)
{
    start(env, 100, 10);
    client(env, connect_disk);
    client(env, break_rules);
    CHECK_INT(env->disk->last_zero_flags, REQ_NO_FALLBACK | REQ_MAY_UNMAP);
    static const int failures[][2] = {{-ENOSPC, -ENOSPC},
                                      {-EIO, -EIO},
                                      {-EDQUOT, -ENOSPC},
                                      {-EROFS, -EPERM},
                                      {-ENOTSUP, -EINVAL}};

    for (size_t i = 0; i < ARRAY_LEN(failures); i++) {
        env->disk->fail = failures[i][0];
        env->result = failures[i][1];
        client(env, expect_error);
    }
}

struct seen {
    uint32_t entries[64];
    size_t n;
    unsigned data, hole;
};

static int
note_extents(void *arg, const char *context, uint64_t off, uint32_t *entries,
             size_t n, int *error)
{
    struct seen *seen = arg;

    CHECK_STR(context, "base:allocation");
    seen->n = n;
    memcpy(seen->entries, entries,
           min_u64(n, ARRAY_LEN(seen->entries)) * sizeof(*entries));
    return 0;
}

static int
note_chunk(void *arg, const void *p, size_t n, uint64_t off, unsigned status,
           int *error)
{
    struct seen *seen = arg;

    seen->data += status == LIBNBD_READ_DATA;
    seen->hole += status == LIBNBD_READ_HOLE;
    return 0;
}

static void
ask_status(struct nbd_handle *nbd, uint64_t len, uint64_t off, uint32_t flags,
           struct seen *seen)
{
    CHECK_INT(nbd_block_status(nbd, len, off,
                               (nbd_extent_callback){.callback = note_extents,
                                                     .user_data = seen},
                               flags),
              0);
}

static void
look_at_status(struct env *env)
{
    struct nbd_handle *nbd = env->nbd;
    struct seen seen = {0};

    CHECK_INT(nbd_pwrite(nbd, "x", 1, 8192, 0), 0);
    CHECK_INT(nbd_pwrite(nbd, "x", 1, 12288, 0), 0);
    CHECK_INT(nbd_zero(nbd, 4096, 16384, LIBNBD_CMD_FLAG_NO_HOLE), 0);
    ask_status(nbd, DISK - 100, 100, 0, &seen);
    CHECK_INT(seen.n, 8);
    CHECK(seen.entries[0] == 8092 && seen.entries[1] == 3);
    CHECK(seen.entries[2] == 8192 && seen.entries[3] == 0);
    CHECK(seen.entries[4] == 4096 && seen.entries[5] == 2);
    CHECK(seen.entries[6] == DISK - 20480 && seen.entries[7] == 3);
    ask_status(nbd, DISK, 0, LIBNBD_CMD_FLAG_REQ_ONE, &seen);
    CHECK_INT(seen.n, 2);
    CHECK(seen.entries[0] == 8192 && seen.entries[1] == 3);
    CHECK_INT(nbd_block_status(nbd, 0, 0,
                               (nbd_extent_callback){.callback = note_extents,
                                                     .user_data = &seen},
                               0),
              -1);
}

static void
read_holes(struct env *env)
{
    struct nbd_handle *nbd = env->nbd;
    nbd_chunk_callback cb = {.callback = note_chunk};
    struct seen seen = {0};

    cb.user_data = &seen;
    CHECK_INT(nbd_pread_structured(nbd, env->buf, 1 << 20, 1 << 20, cb, 0), 0);
    CHECK(seen.hole == 1 && seen.data == 0);
    CHECK_INT(nbd_pread_structured(nbd, env->buf, 1 << 20, 1 << 20, cb,
                                   LIBNBD_CMD_FLAG_DF),
              0);
    CHECK(seen.hole == 1 && seen.data == 1);
    CHECK_INT(nbd_pread_structured(nbd, env->buf, 1 << 20, 0, cb, 0), 0);
    CHECK(seen.hole == 1 && seen.data == 2);
    CHECK_INT(nbd_pread_structured(nbd, env->buf, 4096, 1 << 20, cb, 0), 0);
    CHECK(seen.hole == 1 && seen.data == 3);
}

CASE(block_status_and_holes)
{
    start(env, 100, 10);
    client(env, connect_disk);
    client(env, look_at_status);
    client(env, read_holes);
    CHECK_INT(env->disk->n_reads, 4);
}

static void
look_at_aligned_status(struct env *env)
{
    struct seen seen = {0};

    nbd_close(take_ptr(env->nbd));
    env->nbd = new_handle(env, "coarse");
    connect_to(env, env->nbd);
    CHECK_INT(nbd_get_block_size(env->nbd, LIBNBD_SIZE_MINIMUM), 65536);
    CHECK_INT(nbd_pwrite(env->nbd, "x", 1, 4096, 0), 0);
    ask_status(env->nbd, 1 << 20, 0, 0, &seen);
    CHECK_INT(seen.n, 4);
    CHECK(seen.entries[0] == 65536 && seen.entries[1] == 0);
    CHECK(seen.entries[2] == (1 << 20) - 65536 && seen.entries[3] == 3);
}

CASE(status_keeps_to_the_minimum_block)
{
    start(env, 100, 10);
    struct root *coarse = fake_root_new(env->loop, 1 << 20, true);

    coarse->min_align = 65536;
    add(env, coarse, "coarse", true);
    client(env, look_at_aligned_status);
}

static void
write_by_one_read_by_other(struct env *env)
{
    env->other = new_handle(env, "disk");
    connect_to(env, env->other);
    CHECK_INT(env->result, 0);
    CHECK_INT(nbd_pwrite(env->nbd, "shared", 6, 1000, 0), 0);
    CHECK_INT(nbd_flush(env->other, 0), 0);
    CHECK_INT(nbd_pread(env->other, env->buf, 6, 1000, 0), 0);
    CHECK(!memcmp(env->buf, "shared", 6));
}

CASE(two_connections_share_an_export)
{
    start(env, 100, 10);
    client(env, connect_disk);
    client(env, write_by_one_read_by_other);
    CHECK_INT(nbd_export_clients(env->e_disk), 2);
}

static void
pipeline(struct env *env)
{
    enum { N = 2000 };
    struct nbd_handle *nbd = env->nbd;

    for (size_t i = 0; i < N; i++) {
        memset(env->buf + i * 512, (int)(i % 251), 512);
        CHECK(nbd_aio_pwrite(nbd, env->buf + i * 512, 512, i * 512,
                             NBD_NULL_COMPLETION, 0) > 0);
    }
    while (nbd_aio_in_flight(nbd) > 0) {
        CHECK(nbd_poll(nbd, -1) >= 0);
    }
    memset(env->buf, 255, N * 512);
    for (size_t i = 0; i < N; i++) {
        CHECK(nbd_aio_pread(nbd, env->buf + i * 512, 512, i * 512,
                            NBD_NULL_COMPLETION, 0) > 0);
    }
    while (nbd_aio_in_flight(nbd) > 0) {
        CHECK(nbd_poll(nbd, -1) >= 0);
    }
    for (size_t i = 0; i < N; i++) {
        CHECK(env->buf[i * 512] == i % 251);
    }
    for (size_t i = 0; i < 64; i++) { /* more bytes than may be in flight */
        CHECK(nbd_aio_pread(nbd, env->buf, BIG, 0, NBD_NULL_COMPLETION, 0) > 0);
    }
    while (nbd_aio_in_flight(nbd) > 0) {
        CHECK(nbd_poll(nbd, -1) >= 0);
    }
}

CASE(many_requests_in_flight)
{
    start(env, 100, 10);
    client(env, connect_disk);
    client(env, pipeline);
}

static void
send_and_vanish(struct env *env)
{
    for (int i = 0; i < 20; i++) {
        CHECK(nbd_aio_pread(env->nbd, env->buf, 4096, 0, NBD_NULL_COMPLETION,
                            0) > 0);
        CHECK(nbd_aio_pwrite(env->nbd, env->buf, 4096, 0, NBD_NULL_COMPLETION,
                             0) > 0);
    }
    while (nbd_aio_peek_command_completed(env->nbd) == 0 &&
           (nbd_aio_get_direction(env->nbd) & LIBNBD_AIO_DIRECTION_WRITE)) {
        nbd_poll(env->nbd, -1);
    }
    nbd_close(take_ptr(env->nbd));
}

CASE(client_that_vanishes_leaves_nothing)
{
    start(env, 100, 10);
    client(env, connect_disk);
    env->disk->hold = true;
    client(env, send_and_vanish);
    WAIT_FOR(env->disk->n_held == 40);
    CHECK_INT(nbd_export_clients(env->e_disk), 1);
    fake_root_release(env->disk);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
    CHECK_INT(env->disk->n_reads, 20);
}

static void
expect_dead(struct env *env)
{
    CHECK_INT(nbd_pread(env->nbd, env->buf, 1, 0, 0), -1);
    CHECK(nbd_aio_is_dead(env->nbd) == 1 || nbd_aio_is_closed(env->nbd) == 1);
}

CASE(stop_disconnects_idle_clients)
{
    start(env, 100, 10);
    client(env, connect_disk);
    stop(env);
    CHECK(env->disk_freed);
    CHECK(access(env->path, F_OK) != 0);
    client(env, expect_dead);
}

static void
send_one(struct env *env)
{
    env->cookie =
        nbd_aio_pread(env->nbd, env->buf, 4096, 0, NBD_NULL_COMPLETION, 0);
    CHECK(env->cookie > 0);
}

static void
expect_shutdown_error(struct env *env)
{
    CHECK_INT(nbd_flush(env->nbd, 0), -1);
    CHECK_INT(nbd_get_errno(), ESHUTDOWN);
}

static void
expect_the_one(struct env *env)
{
    while (nbd_aio_command_completed(env->nbd, (uint64_t)env->cookie) == 0) {
        CHECK(nbd_poll(env->nbd, -1) >= 0);
    }
}

static void
stop_in_background(void *arg)
{
    stop(arg);
}

CASE(stop_answers_what_is_in_flight)
{
    start(env, 100, 10);
    client(env, connect_disk);
    env->disk->hold = true;
    client(env, send_one);
    WAIT_FOR(env->disk->n_held == 1);
    coro_start(env->loop, stop_in_background, env);
    WAIT_FOR(!env->server);
    client(env, expect_shutdown_error);
    CHECK(!env->disk_freed);
    fake_root_release(env->disk);
    client(env, expect_the_one);
    WAIT_FOR(env->disk_freed);
    WAIT_FOR(env->loop->n_coros == 1);
}

static void
expect_shut_down(struct env *env)
{
    int r;

    while ((r = nbd_aio_command_completed(env->nbd, (uint64_t)env->cookie)) ==
           0) {
        CHECK(nbd_poll(env->nbd, -1) >= 0);
    }
    CHECK_INT(r, -1);
    CHECK_INT(nbd_get_errno(), ESHUTDOWN);
}

/* What waits for something outside returns only when the root is freed. */
CASE(stop_does_not_wait_for_parked_requests)
{
    start(env, 100, 10);
    client(env, connect_disk);
    env->disk->park = true;
    client(env, send_one);
    WAIT_FOR(env->disk->n_held == 1);
    stop(env);
    client(env, expect_shut_down);
}

CASE(remove_disconnects_its_clients_only)
{
    start(env, 100, 10);
    client(env, connect_disk);
    client(env, write_by_one_read_by_other);
    client(env, close_client);
    client(env, write_read_only); /* env->nbd is on "ro" now */
    nbd_export_remove(take_ptr(env->e_disk));
    CHECK(env->disk_freed);
    CHECK_INT(nbd_server_connections(env->server), 1);
    CHECK_INT(nbd_export_clients(env->e_ro), 1);
    /* The name is free again. */
    env->disk = fake_root_new(env->loop, 4096, true);
    env->e_disk = add(env, env->disk, "disk", true);
}

CASE(bad_exports_are_refused)
{
    auto_free char *long_name = xzalloc(4098);
    struct nbd_export_options options = {.name = "disk"};
    struct nbd_export *export = NULL;
    auto_err taken = ERR_INIT, unwritable = ERR_INIT, too_long = ERR_INIT;

    start(env, 100, 10);
    struct root *root = fake_root_new(env->loop, 512, false);

    CHECK_INT(nbd_export_add(env->server, root, &options, &export, &taken),
              -EEXIST);
    CHECK_STR(taken.msg, "NBD server already has export named 'disk'");
    options = (struct nbd_export_options){.name = "new", .writable = true};
    CHECK_INT(nbd_export_add(env->server, root, &options, &export, &unwritable),
              -EACCES);
    memset(long_name, 'x', 4097);
    options = (struct nbd_export_options){.name = long_name};
    CHECK_INT(nbd_export_add(env->server, root, &options, &export, &too_long),
              -EINVAL);
    root_free(root);
}

static void
connect_second(struct env *env)
{
    env->other = new_handle(env, "disk");
    CHECK_INT(nbd_aio_connect_unix(env->other, env->path), 0);
}

static void
finish_second(struct env *env)
{
    while (nbd_aio_is_connecting(env->other) > 0) {
        CHECK(nbd_poll(env->other, -1) >= 0);
    }
    CHECK_INT(nbd_aio_is_ready(env->other), 1);
    CHECK_INT(nbd_can_multi_conn(env->other), 0);
}

CASE(full_server_lets_clients_wait)
{
    start(env, 1, 10);
    client(env, connect_disk);
    client(env, connect_second);
    for (int i = 0; i < 100; i++) {
        coro_relax();
    }
    CHECK_INT(nbd_server_connections(env->server), 1);
    client(env, close_client);
    client(env, finish_second);
    CHECK_INT(nbd_server_connections(env->server), 1);
}

static void
wait_for_hang_up(struct env *env)
{
    CHECK_INT(read_to_end(env->fd), 18); /* the greeting */
}

CASE(half_open_handshake_times_out)
{
    start(env, 100, 1);
    client(env, raw_connect);
    client(env, wait_for_hang_up);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
}

/* Enters transmission on "disk" by EXPORT_NAME, with simple replies. */
#define RAW_HELLO "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\4disk"
enum { RAW_GREETING = 18 + 10 };

static void
raw_send(struct env *env, const void *p, size_t n)
{
    CHECK_INT(send(env->fd, p, n, MSG_NOSIGNAL), (ssize_t)n);
}

static void
send_bad_magic(struct env *env)
{
    static const uint8_t request[28] = {0x25, 0x60, 0x95, 0x14};

    raw_connect(env);
    raw_send(env, RAW_HELLO, sizeof(RAW_HELLO) - 1);
    raw_send(env, request, sizeof(request));
    CHECK_INT(read_to_end(env->fd), RAW_GREETING);
}

CASE(bad_magic_drops_the_connection)
{
    start(env, 100, 10);
    client(env, send_bad_magic);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
}

/* A read, then a write of 4096 bytes of which only some come, then the end. */
static void
send_half_a_write(struct env *env)
{
    uint8_t request[28 + 28 + 100] = {0};

    st_be32(request, NBD_REQUEST_MAGIC);
    st_be32(request + 24, 16);
    st_be32(request + 28, NBD_REQUEST_MAGIC);
    st_be16(request + 28 + 6, NBD_CMD_WRITE);
    st_be32(request + 28 + 24, 4096);
    memset(request + 56, 'x', 100);
    raw_connect(env);
    raw_send(env, RAW_HELLO, sizeof(RAW_HELLO) - 1);
    raw_send(env, request, sizeof(request));
    shutdown(env->fd, SHUT_WR);
    CHECK_INT(read_to_end(env->fd), RAW_GREETING + 16 + 16);
}

CASE(write_that_is_cut_off_is_not_done)
{
    start(env, 100, 10);
    client(env, send_half_a_write);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
    CHECK_INT(env->disk->data[0], 0);
}

static uint8_t *
put_extended(uint8_t *p, uint16_t type, uint64_t off, uint64_t len)
{
    st_be32(p, NBD_EXTENDED_REQUEST_MAGIC);
    st_be16(p + 4, type == NBD_CMD_WRITE ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    st_be16(p + 6, type);
    st_be64(p + 16, off);
    st_be64(p + 24, len);
    return p + 32;
}

static void
read_exactly(int fd, uint8_t *p, size_t n)
{
    CHECK_INT(recv(fd, p, n, MSG_WAITALL), (ssize_t)n);
}

/* The installed libnbd knows no extended headers, so by hand. */
static void
speak_extended(struct env *env)
{
    static const uint8_t hello[] = "\0\0\0\3"
                                   "IHAVEOPT\0\0\0\x0b\0\0\0\0"
                                   "IHAVEOPT\0\0\0\x0a\0\0\0\x1f"
                                   "\0\0\0\4disk\0\0\0\1"
                                   "\0\0\0\x0f"
                                   "base:allocation"
                                   "IHAVEOPT\0\0\0\1\0\0\0\4disk";
    uint8_t p[200] = {0}, *end = put_extended(p, NBD_CMD_WRITE, 4096, 8);

    memcpy(end, "extended", 8);
    raw_connect(env);
    raw_send(env, hello, sizeof(hello) - 1);
    /* The greeting, an ACK, the context, an ACK, the export. */
    read_exactly(env->fd, p + 50, 18 + 20 + (20 + 19) + 20 + 10);
    raw_send(env, p, 32 + 8);
    read_exactly(env->fd, p, 32);
    CHECK(ld_be32(p) == NBD_EXTENDED_REPLY_MAGIC && ld_be64(p + 16) == 4096);
    CHECK(ld_be16(p + 6) == NBD_REPLY_TYPE_NONE && ld_be64(p + 24) == 0);

    memset(p, 0, sizeof(p));
    put_extended(p, NBD_CMD_READ, 4098, 4);
    raw_send(env, p, 32);
    read_exactly(env->fd, p, 32 + 8 + 4);
    CHECK(ld_be64(p + 24) == 12 && !memcmp(p + 40, "tend", 4));

    memset(p, 0, sizeof(p));
    put_extended(p, NBD_CMD_BLOCK_STATUS, 0, DISK);
    raw_send(env, p, 32);
    read_exactly(env->fd, p, 32 + 8 + 3 * 16);
    CHECK(ld_be16(p + 6) == NBD_REPLY_TYPE_BLOCK_STATUS_EXT);
    CHECK(ld_be32(p + 36) == 3 && ld_be64(p + 24) == 8 + 3 * 16);
    CHECK(ld_be64(p + 40) == 4096 && ld_be64(p + 48) == 3);
    CHECK(ld_be64(p + 56) == 4096 && ld_be64(p + 64) == 0);
    CHECK(ld_be64(p + 72) == DISK - 8192 && ld_be64(p + 80) == 3);

    memset(p, 0, sizeof(p));
    put_extended(p, NBD_CMD_TRIM, 0, 1ULL << 40);
    raw_send(env, p, 32);
    read_exactly(env->fd, p, 32 + 4);
    CHECK(ld_be16(p + 6) == NBD_REPLY_TYPE_ERROR && ld_be32(p + 32) == 22);
}

CASE(extended_headers_are_spoken)
{
    start(env, 100, 10);
    client(env, speak_extended);
}

/* Everything at once, hello to disconnect, and the end right behind it. */
static void
send_all_at_once(struct env *env)
{
    uint8_t all[sizeof(RAW_HELLO) - 1 + 3 * 28 + 8] = RAW_HELLO;
    uint8_t *p = all + sizeof(RAW_HELLO) - 1;

    st_be32(p, NBD_REQUEST_MAGIC);
    st_be16(p + 6, NBD_CMD_WRITE);
    st_be32(p + 24, 8);
    memcpy(p + 28, "at once!", 8);
    p += 28 + 8;
    st_be32(p, NBD_REQUEST_MAGIC);
    st_be16(p + 6, NBD_CMD_FLUSH);
    st_be32(p + 28, NBD_REQUEST_MAGIC);
    st_be16(p + 28 + 6, NBD_CMD_DISC);
    raw_connect(env);
    raw_send(env, all, sizeof(all));
    shutdown(env->fd, SHUT_WR);
    CHECK_INT(read_to_end(env->fd), RAW_GREETING + 2 * 16);
}

CASE(disconnect_handles_what_came_before)
{
    start(env, 100, 10);
    client(env, send_all_at_once);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
    CHECK(!memcmp(env->disk->data, "at once!", 8));
    CHECK_INT(env->disk->n_flushes, 1);
}

/*
 * A request and the hang-up in one event of the loop, while the server waits
 * for more: the end must be seen though the request is shorter than the
 * buffer.  All in the loop's thread, so that nothing comes between.
 */
CASE(last_request_and_end_come_together)
{
    uint8_t request[28] = {0};

    start(env, 100, 10);
    raw_connect(env);
    raw_send(env, RAW_HELLO, sizeof(RAW_HELLO) - 1);
    WAIT_FOR(nbd_export_clients(env->e_disk) == 1);
    for (int i = 0; i < 10; i++) {
        coro_relax();
    }
    st_be32(request, NBD_REQUEST_MAGIC);
    st_be16(request + 6, NBD_CMD_FLUSH);
    raw_send(env, request, sizeof(request));
    shutdown(env->fd, SHUT_WR);
    WAIT_FOR(nbd_server_connections(env->server) == 0);
    CHECK_INT(env->disk->n_flushes, 1);
}

static void
connect_pair(struct env *env)
{
    env->nbd = new_handle(env, "disk");
    CHECK_INT(nbd_connect_socket(env->nbd, env->fd), 0);
    env->fd = -1;
}

CASE(connected_stream_is_served)
{
    int fds[2];
    struct stream *stream;
    auto_err err = ERR_INIT;

    start(env, 100, 10);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    env->fd = fds[1];
    struct address address = {.kind = ADDRESS_FD, .fd = fds[0]};

    CHECK_INT(stream_connect(env->loop, &address, &stream, &err), 0);
    nbd_server_serve(env->server, stream);
    client(env, connect_pair);
    client(env, use_the_disk);
}

int
main(void)
{
    tap_run("a structured client reads and writes",
            structured_client_reads_and_writes);
    tap_run("a simple client reads and writes", simple_client_reads_and_writes);
    tap_run("a newstyle client without flags works",
            newstyle_client_without_flags_works);
    tap_run("options list, inform and enter", options_list_inform_and_enter);
    tap_run("a read-only export refuses writes",
            read_only_export_refuses_writes);
    tap_run("errors have their numbers", errors_have_their_numbers);
    tap_run("block status and holes", block_status_and_holes);
    tap_run("status keeps to the minimum block",
            status_keeps_to_the_minimum_block);
    tap_run("two connections share an export", two_connections_share_an_export);
    tap_run("many requests in flight", many_requests_in_flight);
    tap_run("a client that vanishes leaves nothing",
            client_that_vanishes_leaves_nothing);
    tap_run("stop disconnects idle clients", stop_disconnects_idle_clients);
    tap_run("stop answers what is in flight", stop_answers_what_is_in_flight);
    tap_run("stop does not wait for parked requests",
            stop_does_not_wait_for_parked_requests);
    tap_run("remove disconnects its clients only",
            remove_disconnects_its_clients_only);
    tap_run("bad exports are refused", bad_exports_are_refused);
    tap_run("a full server lets clients wait", full_server_lets_clients_wait);
    tap_run("a half-open handshake times out", half_open_handshake_times_out);
    tap_run("bad magic drops the connection", bad_magic_drops_the_connection);
    tap_run("a write that is cut off is not done",
            write_that_is_cut_off_is_not_done);
    tap_run("extended headers are spoken", extended_headers_are_spoken);
    tap_run("disconnect handles what came before",
            disconnect_handles_what_came_before);
    tap_run("the last request and the end come together",
            last_request_and_end_come_together);
    tap_run("a connected stream is served", connected_stream_is_served);
    return tap_done();
}
