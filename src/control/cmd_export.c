// SPDX-License-Identifier: BSD-3-Clause
/* The NBD server and exports. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/control_internal.h"
#include "control/options.h"
#include "run/stream.h"

/* A SocketAddress (flat); the strings stay @flat's. */
static int
address_of(json_t *flat, struct address *ret, struct err *err)
{
    const char *type = opt_str(flat, "type");

    *ret = (struct address){.path = opt_str(flat, "path"),
                            .host = opt_str(flat, "host"),
                            .port = opt_str(flat, "port")};
    if (!strcmp(type, "unix")) {
        ret->kind = ADDRESS_UNIX;
    } else if (!strcmp(type, "inet")) {
        ret->kind = ADDRESS_TCP;
    } else if (!strcmp(type, "fd")) {
        ret->kind = ADDRESS_FD;
        ret->fd = atoi(opt_str(flat, "str"));
    } else {
        return err_set(err, -ENOTSUP, "Addresses of type '%s' are not "
                                      "supported",
                       type);
    }
    return 0;
}

int
cmd_nbd_server_start(struct control *ctl,
                     const struct args_nbd_server_start *args, json_t **ret,
                     struct err *err)
{
    struct address address;
    struct nbd_server_options o = {
        .address = &address,
        .max_connections = args->has_max_connections
                               ? args->max_connections
                               : NBD_DEFAULT_MAX_CONNECTIONS,
        .handshake_max_seconds = args->has_handshake_max_seconds
                                     ? args->handshake_max_seconds
                                     : NBD_DEFAULT_HANDSHAKE_SECONDS};

    if (ctl->nbd) {
        return err_set(err, -EBUSY, "NBD server already running");
    }
    if (args->tls_creds || args->tls_authz) {
        return err_set(err, -ENOTSUP, "TLS is not supported yet");
    }
    json_t *flat = socket_address_flatten(json_incref(args->addr));
    int r = address_of(flat, &address, err);

    if (!r) {
        r = nbd_server_start(ctl->loop, &o, &ctl->nbd, err);
    }
    json_decref(flat);
    return r;
}

int
cmd_nbd_server_stop(struct control *ctl, const struct args_nbd_server_stop *args,
                    json_t **ret, struct err *err)
{
    if (!ctl->nbd) {
        return err_set(err, -ENOENT, "NBD server not running");
    }
    struct nbd_server *server = take_ptr(ctl->nbd);

    while (!list_empty(&ctl->exports)) {
        export_remove(ctl,
                      list_first(&ctl->exports, struct export_entry, link));
    }
    nbd_server_stop(server);
    return 0;
}

static struct export_entry *
find_export(struct control *ctl, const char *id)
{
    list_for_each(it, &ctl->exports)
    {
        struct export_entry *e = container_of(it, struct export_entry, link);

        if (!strcmp(e->id, id)) {
            return e;
        }
    }
    return NULL;
}

static bool
id_is_valid(const char *id)
{
    bool ok = isalpha((unsigned char)id[0]);

    for (const char *p = id; ok && *p; p++) {
        ok = isalnum((unsigned char)*p) || strchr("-._", *p);
    }
    return ok;
}

static int
check_export(struct control *ctl, const struct args_block_export_add *args,
             struct err *err)
{
    if (!id_is_valid(args->id)) {
        return err_set(err, -EINVAL, "Invalid block export id");
    }
    if (find_export(ctl, args->id)) {
        return err_set(err, -EEXIST, "Block export id '%s' is already in use",
                       args->id);
    }
    if (args->type != QMP_BLOCK_EXPORT_TYPE_NBD) {
        return err_set(err, -ENOTSUP,
                       "Exports of type '%s' are not supported yet",
                       qmp_block_export_type_name(args->type));
    }
    return 0;
}

int
cmd_block_export_add(struct control *ctl,
                     const struct args_block_export_add *args, json_t **ret,
                     struct err *err)
{
    struct qmp_block_export_options_nbd nbd;
    auto_free char *owner = xasprintf("export '%s'", args->id);
    int r = check_export(ctl, args, err);
    struct node *node = r ? NULL : graph_find(ctl->graph, args->node_name);

    if (r) {
        return r;
    }
    if (!node) {
        return err_set(err, -ENOENT,
                       "Cannot find device='' nor node-name='%s'",
                       args->node_name);
    }
    decode_qmp_block_export_options_nbd(args->json, &nbd);
    if (!ctl->nbd) {
        return err_set(err, -ENOENT, "NBD server not running");
    }
    if (nbd.bitmaps && json_array_size(nbd.bitmaps)) {
        return err_set(err, -ENOTSUP, "Dirty bitmaps are not supported yet");
    }
    bool writable = args->has_writable && args->writable;
    struct nbd_export_options o = {.name = nbd.name ? nbd.name : node->name,
                                   .description = nbd.description,
                                   .writable = writable};
    struct export_entry *e = xzalloc(sizeof(*e));

    r = root_new(node, writable ? CLAIM_WRITE : CLAIM_READ, owner, &e->root,
                 err);
    if (!r && args->has_writethrough && args->writethrough) {
        root_set_writethrough(e->root);
    }
    if (!r) {
        r = nbd_export_add(ctl->nbd, e->root, &o, &e->nbd, err);
        if (r) {
            root_free(e->root);
        }
    }
    if (r) {
        free(e);
        return r;
    }
    e->id = xstrdup(args->id);
    list_push(&ctl->exports, &e->link);
    return 0;
}

void
export_remove(struct control *ctl, struct export_entry *e)
{
    if (e->removing) {
        /* Another command is at it: wait until it is gone. */
        coro_sleep(NS_PER_MS);
        return;
    }
    e->removing = true;
    nbd_export_remove(e->nbd);
    list_remove(&e->link);
    control_event(ctl, "BLOCK_EXPORT_DELETED",
                  json_pack("{s:s}", "id", e->id));
    free(e->id);
    free(e);
}

int
cmd_block_export_del(struct control *ctl,
                     const struct args_block_export_del *args, json_t **ret,
                     struct err *err)
{
    struct export_entry *e = find_export(ctl, args->id);
    bool hard = args->has_mode &&
                args->mode == QMP_BLOCK_EXPORT_REMOVE_MODE_HARD;

    if (!e) {
        return err_set(err, -ENOENT, "Export '%s' is not found", args->id);
    }
    if (e->removing) {
        return err_set(err, -EBUSY, "Export '%s' is already shutting down",
                       args->id);
    }
    if (!hard && nbd_export_clients(e->nbd)) {
        int r = err_set(err, -EBUSY, "export '%s' still in use", args->id);

        err_hint(err, "Use mode='hard' to force client disconnect");
        return r;
    }
    export_remove(ctl, e);
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
        struct export_entry *e = container_of(it, struct export_entry, link);

        json_array_append_new(
            *ret, json_pack("{s:s, s:s, s:s, s:b}", "id", e->id, "type", "nbd",
                            "node-name", root_node(e->root)->name,
                            "shutting-down", (int)e->removing));
    }
    return 0;
}
