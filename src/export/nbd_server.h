// SPDX-License-Identifier: BSD-3-Clause
/*
 * The NBD server: disks over Unix and TCP sockets.
 *
 * A server has a listener, a table of exports and its connections; a process
 * may have several.  Everything runs in one loop.  The wire is wire/nbd.h's.
 */
#ifndef SLUICE_EXPORT_NBD_SERVER_H
#define SLUICE_EXPORT_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct address;
struct loop;
struct nbd_export;
struct nbd_server;
struct root;
struct stream;

/* QEMU's defaults, for whoever fills the options. */
enum {
    NBD_DEFAULT_MAX_CONNECTIONS = 100,
    NBD_DEFAULT_HANDSHAKE_SECONDS = 10,
};

struct nbd_server_options {
    /* Where to listen; NULL: only what nbd_server_serve() brings. */
    const struct address *address;
    uint32_t max_connections;       /* 0: unlimited */
    uint32_t handshake_max_seconds; /* 0: no limit */
    bool held; /* accept nobody before nbd_server_release() */
};

/*
 * Starts listening.  The options are copied.  Does not yield; errors are those
 * of stream_listen().
 */
int nbd_server_start(struct loop *loop,
                     const struct nbd_server_options *options,
                     struct nbd_server **ret, struct err *err);
/* Lets clients in that came while it was held.  Does not yield. */
void nbd_server_release(struct nbd_server *server);
/* The bound address, "unix:PATH" or "HOST:PORT"; "" where it does not listen.
 * Lives as long as the server. */
const char *nbd_server_address(const struct nbd_server *server);
/* Connections of any state. */
unsigned nbd_server_connections(const struct nbd_server *server);
/* Serves a connected stream, which is taken over.  Does not yield. */
void nbd_server_serve(struct nbd_server *server, struct stream *stream);
/*
 * Stops listening, disconnects all clients, waits for their requests, removes
 * all exports (their handles die) and frees the server.  Requests in flight
 * are answered, if they end and the client takes the answer within
 * NBD_STOP_GRACE_MS; requests that come later fail with ESHUTDOWN.  Yields.
 */
void nbd_server_stop(struct nbd_server *server);

enum { NBD_STOP_GRACE_MS = 2000 };

struct nbd_export_options {
    const char *name;        /* at most 4096 bytes, which are UTF-8 */
    const char *description; /* as the name; NULL: none */
    bool writable;
    /*
     * A client's request failed, for a reason that is the disk's: -errno.
     * Must not yield.  NULL: nobody wants to know.
     */
    void (*on_error)(void *arg, bool is_read, int error);
    void *arg;
};

/*
 * Shows a disk.  The export owns @root from success on; the strings are
 * copied.  -EEXIST where the name is taken, -EINVAL where a string is too
 * long, -EACCES where a writable export is wanted of a root that is not.
 * Does not yield.
 */
int nbd_export_add(struct nbd_server *server, struct root *root,
                   const struct nbd_export_options *options,
                   struct nbd_export **ret, struct err *err);
/* Connections that use it now. */
unsigned nbd_export_clients(const struct nbd_export *export);
/*
 * Hides the export, disconnects its clients as nbd_server_stop() does, waits
 * for their requests and frees it and its root.  Yields.
 */
void nbd_export_remove(struct nbd_export *export);

#endif
