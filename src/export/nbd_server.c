// SPDX-License-Identifier: BSD-3-Clause
/*
 * The server: the listener and the table of exports.
 *
 * One coroutine accepts, and pauses while max_connections are open, so that
 * further clients wait in the kernel's queue.  Clients end by themselves
 * (nbd_client.c); stop and remove tell them to and wait for their counts.
 *
 *   1. An export that was removed from the table cannot be found any more, so
 *      its count of clients only falls.
 *   2. A server is freed only when it has no client and no acceptor left; an
 *      export that is being removed never touches its server after yielding.
 */
#include "export/nbd_internal.h"

#include <assert.h>
#include <errno.h>

#include "base/log.h"

/* Exports. */

static struct nbd_export *
find_export(struct nbd_server *server, const char *name)
{
    list_for_each(it, &server->exports)
    {
        struct nbd_export *e = container_of(it, struct nbd_export, link);

        if (!strcmp(e->name, name)) {
            return e;
        }
    }
    return NULL;
}

static void
describe(struct nbd_export *e, struct nbd_export_info *ret)
{
    struct block_limits limits;
    uint64_t size = root_size(e->root);
    uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                     NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    root_limits(e->root, &limits);
    if (e->writable) {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 NBD_FLAG_SEND_FAST_ZERO;
    } else {
        flags |= NBD_FLAG_READ_ONLY;
    }
    /* A flush covers what any connection wrote, since all share one root. */
    if (e->server->max_connections != 1) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }
    /* Spec, Block size constraints: the minimum is at most 64 KiB, the
     * preferred size at least 512, and a client must be able to reach the
     * disk's end.  Smaller requests work all the same. */
    uint32_t min = (uint32_t)min_u64(max_u64(limits.min_align, 1), 64 * KIB);
    uint32_t max = (uint32_t)min_u64(limits.max_request, NBD_DATA_MAX);

    if (!is_aligned(size, min)) {
        min = 1;
    }
    max = (uint32_t)align_down(max ? max : NBD_DATA_MAX, min);
    *ret = (struct nbd_export_info){
        .cookie = e,
        .name = e->name,
        .description = e->description,
        .size = size,
        .flags = flags,
        .min_block = min,
        .preferred_block = (uint32_t)min_u64(
            max_u64(max_u64(4096, limits.preferred), min), max),
        .max_block = max,
    };
}

static bool
table_find(struct nbd_export_table *table, const char *name,
           struct nbd_export_info *ret)
{
    struct nbd_server *server = container_of(table, struct nbd_server, table);
    struct nbd_export *e = find_export(server, name);

    if (!e) {
        return false;
    }
    describe(e, ret);
    return true;
}

static void
table_list(struct nbd_export_table *table,
           void (*fn)(void *arg, const struct nbd_export_info *info), void *arg)
{
    struct nbd_server *server = container_of(table, struct nbd_server, table);

    list_for_each(it, &server->exports)
    {
        struct nbd_export_info info;

        describe(container_of(it, struct nbd_export, link), &info);
        fn(arg, &info);
    }
}

int
nbd_export_add(struct nbd_server *server, struct root *root,
               const struct nbd_export_options *options,
               struct nbd_export **ret, struct err *err)
{
    const char *about = options->description ? options->description : "";

    if (strlen(options->name) > NBD_STRING_MAX ||
        strlen(about) > NBD_STRING_MAX) {
        return err_set(err, -EINVAL,
                       "export name or description of '%.32s...' is longer "
                       "than %d bytes",
                       options->name, NBD_STRING_MAX);
    }
    if (find_export(server, options->name)) {
        return err_set(err, -EEXIST, "NBD server already has export named '%s'",
                       options->name);
    }
    if (options->writable && !root_writable(root)) {
        return err_set(err, -EACCES,
                       "export '%s' cannot be writable: its node is read-only",
                       options->name);
    }
    struct nbd_export *e = xzalloc(sizeof(*e));

    e->server = server;
    e->root = root;
    e->name = xstrdup(options->name);
    e->description = xstrdup(about);
    e->writable = options->writable;
    e->on_error = options->on_error;
    e->arg = options->arg;
    waitq_init(&e->gone);
    list_push(&server->exports, &e->link);
    *ret = e;
    return 0;
}

unsigned
nbd_export_clients(const struct nbd_export *e)
{
    return e->n_clients;
}

void
nbd_export_remove(struct nbd_export *e)
{
    list_remove(&e->link);
    list_for_each(it, &e->server->clients)
    {
        struct nbd_client *c = container_of(it, struct nbd_client, link);

        if (c->export == e) {
            nbd_client_stop(c);
        }
    }
    /* First, since requests that are parked at the root's gate return only
     * then; those that have not begun find no root from here on. */
    root_free(take_ptr(e->root));
    while (e->n_clients) {
        waitq_wait(&e->gone);
    }
    free(e->name);
    free(e->description);
    free(e);
}

/* The listener. */

static bool
is_full(const struct nbd_server *server)
{
    return server->max_connections &&
           server->n_clients >= server->max_connections;
}

static void
accept_clients(void *arg)
{
    struct nbd_server *server = arg;
    bool failing = false;

    while (!server->stopping) {
        struct stream *stream;

        if (server->held || is_full(server)) {
            waitq_wait(&server->changed);
            continue;
        }
        int r = listener_accept(server->listener, &stream);

        if (!r) {
            failing = false;
            nbd_client_start(server, stream);
        } else if (!server->stopping) {
            if (!failing) {
                log_warn("NBD server on %s cannot accept a connection: %s; "
                         "trying again",
                         server->listener->bound, err_text(r));
            }
            failing = true;
            waitq_wait_until(&server->changed,
                             loop_now(server->loop) +
                                 NBD_ACCEPT_RETRY_MS * NS_PER_MS);
        }
    }
    server->accepting = false;
    waitq_wake_all(&server->changed);
}

int
nbd_server_start(struct loop *loop, const struct nbd_server_options *options,
                 struct nbd_server **ret, struct err *err)
{
    struct listener *listener = NULL;
    int r = options->address
                ? stream_listen(loop, options->address, &listener, err)
                : 0;

    if (r) {
        return r;
    }
    struct nbd_server *server = xzalloc(sizeof(*server));

    server->loop = loop;
    server->table = (struct nbd_export_table){table_find, table_list};
    server->listener = listener;
    server->max_connections = options->max_connections;
    server->held = options->held;
    server->handshake_max_ns = options->handshake_max_seconds * NS_PER_S;
    list_init(&server->exports);
    list_init(&server->clients);
    waitq_init(&server->changed);
    if (listener) {
        server->accepting = true;
        coro_start(loop, accept_clients, server);
    }
    *ret = server;
    return 0;
}

void
nbd_server_release(struct nbd_server *server)
{
    server->held = false;
    waitq_wake_all(&server->changed);
}

const char *
nbd_server_address(const struct nbd_server *server)
{
    return server->listener ? server->listener->bound : "";
}

unsigned
nbd_server_connections(const struct nbd_server *server)
{
    return server->n_clients;
}

void
nbd_server_serve(struct nbd_server *server, struct stream *stream)
{
    assert(!server->stopping);
    nbd_client_start(server, stream);
}

void
nbd_server_stop(struct nbd_server *server)
{
    server->stopping = true;
    if (server->listener) {
        listener_shutdown(server->listener);
    }
    waitq_wake_all(&server->changed);
    while (server->accepting) {
        waitq_wait(&server->changed);
    }
    /* Before the clients end, so that no new one waits in the queue. */
    if (server->listener) {
        listener_close(take_ptr(server->listener));
    }
    list_for_each(it, &server->clients)
    {
        nbd_client_stop(container_of(it, struct nbd_client, link));
    }
    while (!list_empty(&server->exports)) {
        nbd_export_remove(
            list_first(&server->exports, struct nbd_export, link));
    }
    while (server->n_clients) { /* those that were still negotiating */
        waitq_wait(&server->changed);
    }
    free(server);
}
