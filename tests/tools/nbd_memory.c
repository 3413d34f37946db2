// SPDX-License-Identifier: BSD-3-Clause
/* An NBD server over memory: nbd-memory SOCKET [MIB], until SIGINT. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "export/nbd_server.h"
#include "fake_root.h"
#include "run/coro.h"
#include "run/real.h"
#include "run/stream.h"

struct args {
    struct loop *loop;
    const char *path;
    uint64_t size;
};

static volatile sig_atomic_t interrupted;

static void
on_signal(int sig)
{
    interrupted = 1;
}

static void
serve(void *arg)
{
    struct args *a = arg;
    struct address address = {.kind = ADDRESS_UNIX, .path = a->path};
    struct nbd_server_options options = {.address = &address,
                                         .max_connections = 100,
                                         .handshake_max_seconds = 10};
    struct nbd_export_options rw = {.name = "", .writable = true};
    struct nbd_export_options ro = {.name = "ro", .description = "read-only"};
    struct nbd_server *server;
    struct nbd_export *export;
    auto_err err = ERR_INIT;

    if (nbd_server_start(a->loop, &options, &server, &err) ||
        nbd_export_add(server, fake_root_new(a->loop, a->size, true), &rw,
                       &export, &err) ||
        nbd_export_add(server, fake_root_new(a->loop, a->size, false), &ro,
                       &export, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        exit(1);
    }
    printf("%s\n", nbd_server_address(server));
    fflush(stdout);
    while (!interrupted) {
        coro_sleep(100 * NS_PER_MS);
    }
    nbd_server_stop(server);
}

int
main(int argc, char **argv)
{
    struct args a = {.size = 64 * MIB};
    auto_err err = ERR_INIT;

    if (argc < 2) {
        fprintf(stderr, "usage: nbd-memory SOCKET [MIB]\n");
        return 2;
    }
    a.path = argv[1];
    if (argc > 2) {
        a.size = strtoull(argv[2], NULL, 10) * MIB;
    }
    if (real_loop_new(&(struct real_loop_options){0}, &a.loop, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    loop_run_main(a.loop, serve, &a);
    loop_free(a.loop);
    return 0;
}
