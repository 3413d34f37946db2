// SPDX-License-Identifier: BSD-3-Clause
/*
 * The NBD server and the exports.
 *
 * Removing an export waits for its clients' requests, so it runs in a
 * coroutine of its own: the command answers at once, and BLOCK_EXPORT_DELETED
 * says when the identifier is free again.  An export without clients is gone
 * before the answer, as in QEMU.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/control_internal.h"
#include "control/options.h"
#include "run/stream.h"
#include "schema_dispatch.h"

enum { GOODBYE_MS = 20 };

static struct control_export *
find_export(struct control *ctl, const char *id)
{
    list_for_each(it, &ctl->exports)
    {
        struct control_export *e =
            container_of(it, struct control_export, link);

        if (!strcmp(e->id, id)) {
            return e;
        }
    }
    return NULL;
}

/*
 * BLOCK_IO_ERROR: a guest can cause any number of errors, so as in QEMU the
 * first is told at once, and of those of the next second only the last one,
 * when it is over.
 */
static void
tell_last_error(struct timer *timer)
{
    struct control_export *e =
        container_of(timer, struct control_export, error_timer);

    if (e->error) {
        control_event(e->ctl, "BLOCK_IO_ERROR", take_ptr(e->error));
        timer_set(e->ctl->loop, timer,
                  loop_now(e->ctl->loop) + CONTROL_ERROR_SECONDS * NS_PER_S,
                  tell_last_error);
    }
}

static void
io_error(void *arg, bool is_read, int error)
{
    struct control_export *e = arg;
    const char *node = e->root ? root_node(e->root)->name : e->node_name;

    if (e->root && root_node(e->root)->inactive) {
        return; /* it was told so */
    }
    json_decref(e->error);
    /* No device: an export is none.  What failed is also what is reported. */
    e->error = json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:s}", "qom-path", "",
                         "device", "", "node-name", node, "operation",
                         is_read ? "read" : "write", "action", "report",
                         "nospace", error == -ENOSPC, "reason",
                         strerror(-error));
    if (!e->error_timer.heap_index) {
        tell_last_error(&e->error_timer);
    }
}

/* A coroutine. */
static void
remove_export(void *arg)
{
    struct control_export *e = arg;
    struct control *ctl = e->ctl;

    nbd_export_remove(e->nbd);
    list_remove(&e->link);
    if (e->error_timer.heap_index) {
        timer_cancel(&e->error_timer);
        tell_last_error(&e->error_timer);
        timer_cancel(&e->error_timer);
    }
    control_event(ctl, "BLOCK_EXPORT_DELETED", json_pack("{s:s}", "id", e->id));
    waitq_wake_all(&ctl->exports_changed);
    free(e->node_name);
    free(e->id);
    free(e);
}

static void
begin_removal(struct control_export *e)
{
    if (e->shutting_down) {
        return;
    }
    e->shutting_down = true;
    e->node_name = xstrdup(root_node(e->root)->name);
    e->root = NULL; /* dies with the export */
    coro_start(e->ctl->loop, remove_export, e);
}

void
control_stop_nbd(struct control *ctl)
{
    struct nbd_server *nbd = take_ptr(ctl->nbd);

    ctl->nbd_stopping |= nbd != NULL;
    list_for_each(it, &ctl->exports)
    {
        begin_removal(container_of(it, struct control_export, link));
    }
    while (!list_empty(&ctl->exports)) {
        waitq_wait(&ctl->exports_changed);
    }
    if (nbd) {
        nbd_server_stop(nbd);
        ctl->nbd_stopping = false;
        waitq_wake_all(&ctl->exports_changed);
    }
    while (ctl->nbd_stopping) { /* somebody else is at it */
        waitq_wait(&ctl->exports_changed);
    }
}

/* The server. */

static int
parse_fd(const char *text, int *ret, struct err *err)
{
    char *end;
    long fd = strtol(text, &end, 10);

    if (end == text || *end || fd < 0 || fd > 1 << 20) {
        return err_set(err, -EINVAL, "Unable to parse FD number %s", text);
    }
    *ret = (int)fd;
    return 0;
}

int
socket_address_decode(json_t *flat, struct address *ret, struct err *err)
{
    struct qmp_socket_address a;
    int r = 0;

    decode_qmp_socket_address(flat, &a);
    *ret = (struct address){.kind = ADDRESS_UNIX, .fd = -1};
    switch (a.type) {
    case QMP_SOCKET_ADDRESS_TYPE_UNIX:
        ret->path = json_string_value(json_object_get(flat, "path"));
        if (json_is_true(json_object_get(flat, "abstract"))) {
            r = err_set(err, -ENOTSUP,
                        "Abstract UNIX sockets are not supported");
        }
        break;
    case QMP_SOCKET_ADDRESS_TYPE_INET:
        ret->kind = ADDRESS_TCP;
        ret->host = json_string_value(json_object_get(flat, "host"));
        ret->port = json_string_value(json_object_get(flat, "port"));
        break;
    case QMP_SOCKET_ADDRESS_TYPE_FD:
        ret->kind = ADDRESS_FD;
        r = parse_fd(json_string_value(json_object_get(flat, "str")), &ret->fd,
                     err);
        break;
    default:
        r = err_set(err, -ENOTSUP, "vsock sockets are not supported");
        break;
    }
    return r;
}

int
cmd_nbd_server_start(struct control *ctl,
                     const struct args_nbd_server_start *args, json_t **ret,
                     struct err *err)
{
    struct address address;

    if (ctl->nbd || ctl->nbd_stopping) {
        return err_set(err, -EEXIST, "NBD server already running");
    }
    if (args->tls_creds) {
        return err_set(err, -ENOENT, "No TLS credentials with id '%s'",
                       args->tls_creds);
    }
    if (args->tls_authz) {
        return err_set(err, -EINVAL, "TLS authorization is not supported yet");
    }
    json_t *flat = socket_address_flatten(args->addr);
    int r = socket_address_decode(flat, &address, err);

    if (!r) {
        r = nbd_server_start(
            ctl->loop,
            &(struct nbd_server_options){
                .address = &address,
                .held = ctl->held,
                .max_connections = args->has_max_connections
                                       ? args->max_connections
                                       : NBD_DEFAULT_MAX_CONNECTIONS,
                .handshake_max_seconds = args->has_handshake_max_seconds
                                             ? args->handshake_max_seconds
                                             : NBD_DEFAULT_HANDSHAKE_SECONDS,
            },
            &ctl->nbd, err);
    }
    json_decref(flat);
    return r;
}

int
cmd_nbd_server_stop(struct control *ctl,
                    const struct args_nbd_server_stop *args, json_t **ret,
                    struct err *err)
{
    if (!ctl->nbd) {
        return err_set(err, -ENOENT, "NBD server not running");
    }
    control_stop_nbd(ctl);
    return 0;
}

/* Exports. */

static int
check_iothread(struct control *ctl, json_t *iothread, struct err *err)
{
    size_t n = json_is_array(iothread) ? json_array_size(iothread) : 1;

    for (size_t i = 0; iothread && i < n; i++) {
        json_t *id = json_is_array(iothread) ? json_array_get(iothread, i)
                                             : iothread;
        const char *text = json_string_value(id);

        json_t *object = json_object_get(ctl->objects, text);

        if (!object || strcmp(opt_str(object, "qom-type"), "iothread")) {
            return err_set(err, -ENOENT, "iothread \"%s\" not found", text);
        }
    }
    return 0;
}

/* What concerns any kind of export, in QEMU's order. */
static int
check_export(struct control *ctl, const struct args_block_export_add *args,
             struct node **ret, struct err *err)
{
    if (!control_id_ok(args->id)) {
        return err_set(err, -EINVAL, "Invalid block export id");
    }
    if (find_export(ctl, args->id)) {
        return err_set(err, -EEXIST, "Block export id '%s' is already in use",
                       args->id);
    }
    int r = control_find_node(ctl, args->node_name, false, ret, err);

    if (r) {
        return r;
    }
    if ((*ret)->inactive && !args->allow_inactive) {
        /* As QEMU does it: who exports it wants it active. */
        node_ref(*ret);
        r = node_set_active(*ret, true, err);
        node_unref(*ret);
        if (!r) { /* that yielded */
            r = control_find_node(ctl, args->node_name, false, ret, err);
        }
        if (r) {
            return r;
        }
    }
    if (args->writable && (*ret)->inactive && (*ret)->read_only) {
        return err_set(err, -EACCES,
                       "Cannot export read-only node as writable");
    }
    if (args->writable && !(*ret)->inactive &&
        claim_check(*ret, CLAIM_WRITE, "export", NULL)) {
        bool busy = !(*ret)->read_only;

        /* Where it may not be had at all, that is what is wrong. */
        r = claim_check(*ret, CLAIM_READ, "export", err);
        if (r) {
            return r;
        }
        r = err_set(err, -EACCES, "Cannot export read-only node as writable");
        if (busy) {
            err_hint(err, "It is used by another node, which needs that "
                          "nobody writes to it");
        }
        return r;
    }
    return check_iothread(ctl, args->iothread, err);
}

static int
check_nbd_export(struct control *ctl, json_t *json, struct err *err)
{
    const char *name = json_string_value(json_object_get(json, "name"));
    const char *about = json_string_value(json_object_get(json, "description"));
    json_t *bitmaps = json_object_get(json, "bitmaps");

    if (!ctl->nbd) {
        return err_set(err, -ENOENT, "NBD server not running");
    }
    if (name && strlen(name) > CONTROL_STRING_MAX) {
        return err_set(err, -EINVAL, "export name '%s' too long", name);
    }
    if (about && strlen(about) > CONTROL_STRING_MAX) {
        return err_set(err, -EINVAL, "description '%s' too long", about);
    }
    if (json_array_size(bitmaps)) {
        json_t *first = json_array_get(bitmaps, 0);
        json_t *text = json_is_string(first) ? first
                                             : json_object_get(first, "name");

        return err_set(err, -ENOENT, "Bitmap '%s' is not found",
                       json_string_value(text));
    }
    if (json_is_true(json_object_get(json, "allocation-depth"))) {
        return err_set(err, -ENOTSUP, "allocation-depth is not supported yet");
    }
    return 0;
}

static int
add_nbd_export(struct control *ctl, const struct args_block_export_add *args,
               struct node *node, struct err *err)
{
    const char *name = json_string_value(json_object_get(args->json, "name"));
    auto_free char *owner = xasprintf("export '%s'", args->id);
    struct root *root;
    struct nbd_export *nbd;
    int r = check_nbd_export(ctl, args->json, err);

    if (!r) {
        enum claim claim = args->writable ? CLAIM_WRITE : CLAIM_READ;

        r = args->allow_inactive
                ? root_new_lasting(node, claim, owner, &root, err)
                : root_new(node, claim, owner, &root, err);
    }
    if (r) {
        return r;
    }
    if (args->writethrough) {
        root_set_writethrough(root);
    }
    struct control_export *e = xzalloc(sizeof(*e));

    r = nbd_export_add(
        ctl->nbd, root,
        &(struct nbd_export_options){
            .name = name ? name : args->node_name,
            .description = json_string_value(
                json_object_get(args->json, "description")),
            .writable = args->writable,
            .on_error = io_error,
            .arg = e,
        },
        &nbd, err);
    if (r) {
        free(e);
        root_free(root);
        return r;
    }
    e->ctl = ctl;
    e->id = xstrdup(args->id);
    e->root = root;
    e->nbd = nbd;
    list_push_front(&ctl->exports, &e->link); /* as QEMU lists them */
    return 0;
}

int
cmd_block_export_add(struct control *ctl,
                     const struct args_block_export_add *args, json_t **ret,
                     struct err *err)
{
    struct node *node;
    int r = check_export(ctl, args, &node, err);

    return r ? r : add_nbd_export(ctl, args, node, err);
}

/*
 * A client that has just gone, as far as who asks can tell, may not have been
 * heard of yet: its socket is as ready as the monitor's.  NULL: there is no
 * such export any more.  Yields.
 */
static struct control_export *
wait_for_goodbyes(struct control *ctl, const char *id)
{
    struct control_export *e = find_export(ctl, id);

    for (int ms = 0; e && !e->shutting_down && nbd_export_clients(e->nbd) &&
                     ms < GOODBYE_MS;
         ms++) {
        coro_sleep(NS_PER_MS);
        e = find_export(ctl, id);
    }
    return e;
}

int
cmd_block_export_del(struct control *ctl,
                     const struct args_block_export_del *args, json_t **ret,
                     struct err *err)
{
    bool hard = args->has_mode &&
                args->mode == QMP_BLOCK_EXPORT_REMOVE_MODE_HARD;
    struct control_export *e = hard ? find_export(ctl, args->id)
                                    : wait_for_goodbyes(ctl, args->id);

    if (!e) {
        return err_set(err, -ENOENT, "Export '%s' is not found", args->id);
    }
    if (e->shutting_down) {
        return err_set(err, -EALREADY, "Export '%s' is already shutting down",
                       args->id);
    }
    bool used = nbd_export_clients(e->nbd) > 0;

    if (used && !hard) {
        int r = err_set(err, -EBUSY, "export '%s' still in use", args->id);

        err_hint(err, "Use mode='hard' to force client disconnect");
        return r;
    }
    begin_removal(e);
    while (!used && find_export(ctl, args->id)) {
        waitq_wait(&ctl->exports_changed);
    }
    return 0;
}

int
cmd_query_block_exports(struct control *ctl,
                        const struct args_query_block_exports *args,
                        json_t **ret, struct err *err)
{
    *ret = json_array();
    list_for_each(it, &ctl->exports)
    {
        struct control_export *e =
            container_of(it, struct control_export, link);

        json_array_append_new(
            *ret, json_pack("{s:s, s:s, s:s, s:b}", "id", e->id, "type", "nbd",
                            "node-name",
                            e->root ? root_node(e->root)->name : e->node_name,
                            "shutting-down", e->shutting_down));
    }
    return 0;
}
