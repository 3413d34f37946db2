// SPDX-License-Identifier: BSD-3-Clause
/*
 * The daemon's structured options, decoded.  Each function takes an option's
 * argument and returns 0, or -EINVAL with @err set; the caller puts
 * "sluiced: --option ARGUMENT: " in front of the message.  Nothing yields and
 * nothing is done yet: what a json_t has goes to qmp_dispatch().
 */
#ifndef SLUICE_CONTROL_OPTIONS_H
#define SLUICE_CONTROL_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>

struct address;
struct err;

/* Arguments for blockdev-add; a new reference. */
int option_blockdev(const char *text, json_t **args, struct err *err);
/* Arguments for block-export-add; a new reference. */
int option_export(const char *text, json_t **args, struct err *err);
/* Arguments for nbd-server-start, the address in its form; new reference. */
int option_nbd_server(const char *text, json_t **args, struct err *err);
/* A checked ObjectOptions, for decode_qmp_object_options(); new reference. */
int option_object(const char *text, json_t **object, struct err *err);

/* --monitor [chardev=]ID[,mode=control][,pretty=on] */
struct option_monitor {
    char *chardev;
    char *id; /* may be NULL */
    bool pretty;
};

int option_monitor(const char *text, struct option_monitor *ret,
                   struct err *err);
void option_monitor_fini(struct option_monitor *m);

/* --chardev stdio,id=ID or socket,id=ID with one of path, host and fd */
struct option_chardev {
    char *id;
    bool stdio;
    json_t *addr; /* a SocketAddress (its flat form); NULL for stdio */
    bool server; /* listen, instead of connecting */
    bool wait; /* a server: wait for the first client before going on */
};

int option_chardev(const char *text, struct option_chardev *ret,
                   struct err *err);
void option_chardev_fini(struct option_chardev *c);

/*
 * The two forms of a socket address, {type, data: {...}} and {type, ...}: a
 * new reference each; @addr, which stays the caller's, has been checked.
 */
json_t *socket_address_flatten(json_t *legacy);
json_t *socket_address_to_legacy(json_t *flat);
/* A checked SocketAddress; the texts stay @flat's.  -ENOTSUP for some. */
int socket_address_decode(json_t *flat, struct address *ret, struct err *err);

#endif
