// SPDX-License-Identifier: BSD-3-Clause
/*
 * The NBD client: private to src/drivers/nbd*.c.
 *
 *   nbd.c       the driver: options and requests
 *   nbd_link.c  the connection: connecting, its pump, connecting again
 */
#ifndef SLUICE_DRIVERS_NBD_CLIENT_H
#define SLUICE_DRIVERS_NBD_CLIENT_H

#include <libnbd.h>

#include "block/node.h"

/* Where the server is, and what is wanted of it. */
struct nbd_options {
    char *path; /* a Unix socket; else */
    char *host, *port;
    char *export;
    uint64_t reconnect_delay_ns, open_timeout_ns;
};

/* What the server says about the export. */
struct nbd_export {
    uint64_t size;
    bool read_only;
    bool can_flush, can_trim, can_zero, can_fast_zero, can_status;
    uint32_t min_align, preferred;
    uint64_t max_request;
};

enum { NBD_BUFFERS = 16 }; /* that are kept */

struct nbd_link {
    struct node *node;
    struct nbd_options o;
    struct nbd_export export;

    struct nbd_handle *h; /* NULL: not connected */
    /*
     * A duplicate of the handle's socket, to wait for: libnbd closes its own
     * inside any call that finds the connection broken.  -1: none.
     */
    int fd;
    bool closing, pumping;
    bool abandoned;      /* for good: every request fails */
    bool cut_off;        /* broken from here; there is no other one yet */
    struct list calls;   /* in flight, that can be let go of (nbd.c) */
    struct list held;    /* and those that cannot */
    unsigned char *idle[NBD_BUFFERS]; /* of large requests (nbd.c) */
    unsigned n_idle;
    uint64_t written, flushed; /* changes that were made, that are durable */
    bool wanted;         /* a request came while there was no connection */
    uint64_t lost_ns;    /* when it was lost */
    uint64_t up_ns;      /* when it was made */
    bool progress;       /* a request has succeeded on it */
    bool flapping;       /* it broke at once: pause before the next attempt */
    struct timer expiry; /* parked requests give up */
    struct waitq kick;   /* the pump, between two attempts */
    struct waitq ended;
};

/* Connects for the first time and starts the pump. */
int nbd_link_start(struct nbd_link *link, struct err *err);
/* Says goodbye to the server, ends the pump. */
void nbd_link_stop(struct nbd_link *link);
/*
 * 0 where there is a connection; else -ERESTART while requests are to wait for
 * one (they are parked at their root), -EIO when that has taken too long.
 * Does not yield.
 */
int nbd_link_check(struct nbd_link *link);
/* Breaks the connection, or the attempt, for good.  Does not yield. */
void nbd_link_abandon(struct nbd_link *link);
/*
 * Ends the connection, since the server does not answer.  What comes then waits
 * (-ERESTART) until there is another one, or the server says no.  No yield.
 */
void nbd_link_cut_off(struct nbd_link *link);
/* Those in flight were lost; the handle is gone (nbd.c).  Does not yield. */
void nbd_calls_fail(struct nbd_link *link);
/* A request was put into link->h: sees that it is sent.  Does not yield. */
void nbd_link_pump(struct nbd_link *link);

#endif
