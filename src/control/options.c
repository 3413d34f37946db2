// SPDX-License-Identifier: BSD-3-Clause
/* The daemon's structured options: see options.h. */
#include "control/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/keyval.h"
#include "control/number.h"
#include "control/qemuopts.h"
#include "schema_types.h"

int
option_blockdev(const char *text, json_t **args, struct err *err)
{
    return keyval_decode(text, "driver", &schema_type_blockdev_options, args,
                         err);
}

int
option_export(const char *text, json_t **args, struct err *err)
{
    return keyval_decode(text, "type", &schema_type_block_export_options,
                         args, err);
}

int
option_object(const char *text, json_t **object, struct err *err)
{
    return keyval_decode(text, "qom-type", &schema_type_object_options,
                         object, err);
}

json_t *
socket_address_flatten(json_t *legacy)
{
    json_t *flat = json_object();

    json_object_set(flat, "type", json_object_get(legacy, "type"));
    json_object_update(flat, json_object_get(legacy, "data"));
    return flat;
}

json_t *
socket_address_to_legacy(json_t *flat)
{
    json_t *legacy = json_object(), *data = json_copy(flat);

    json_object_set(legacy, "type", json_object_get(flat, "type"));
    json_object_del(data, "type");
    json_object_set_new(legacy, "data", data);
    return legacy;
}

int
option_nbd_server(const char *text, json_t **args, struct err *err)
{
    json_t *options;
    int r = keyval_decode(text, NULL, &schema_type_nbd_server_options,
                          &options, err);

    if (r < 0) {
        return r;
    }
    json_t *addr = json_object_get(options, "addr");
    json_object_set_new(options, "addr", socket_address_to_legacy(addr));
    *args = options;
    return 0;
}

int
option_monitor(const char *text, struct option_monitor *ret, struct err *err)
{
    struct qmp_monitor_options m;
    json_t *json;
    int r = keyval_decode(text, "chardev", &schema_type_monitor_options,
                          &json, err);

    if (r < 0) {
        return r;
    }
    decode_qmp_monitor_options(json, &m);
    if (m.has_mode && m.mode == QMP_MONITOR_MODE_READLINE) {
        r = err_set(err, -EINVAL, "Only control monitors are supported");
    } else {
        *ret = (struct option_monitor){
            .chardev = xstrdup(m.chardev),
            .id = m.id ? xstrdup(m.id) : NULL,
            .pretty = m.pretty,
        };
    }
    json_decref(json);
    return r;
}

void
option_monitor_fini(struct option_monitor *m)
{
    free(m->chardev);
    free(m->id);
    *m = (struct option_monitor){0};
}

/* Copies the text @key of @o, where it is given, into @addr. */
static int
copy_text(json_t *addr, const char *key, const char *as,
          const struct qemuopts *o, struct err *err)
{
    const char *value = qemuopts_get(o, key);

    if (value && json_object_set_new(addr, as, json_string(value)) < 0) {
        return err_set(err, -EINVAL, "Parameter '%s' is not valid UTF-8",
                       key);
    }
    return 0;
}

static int
copy_bool(json_t *addr, const char *key, const struct qemuopts *o,
          struct err *err)
{
    bool value;

    if (!qemuopts_get(o, key)) {
        return 0;
    }
    int r = qemuopts_get_bool(o, key, &value, err);
    if (r == 0) {
        json_object_set_new(addr, key, json_boolean(value));
    }
    return r;
}

static int
inet_address(json_t *addr, const struct qemuopts *o, struct err *err)
{
    if (!qemuopts_get(o, "port")) {
        return err_set(err, -EINVAL, "chardev: socket: no port given");
    }
    int r = copy_text(addr, "port", "port", o, err);

    r = r < 0 ? r : copy_bool(addr, "ipv4", o, err);
    return r < 0 ? r : copy_bool(addr, "ipv6", o, err);
}

static int
unix_address(json_t *addr, const struct qemuopts *o, struct err *err)
{
    int r = copy_bool(addr, "abstract", o, err);

    return r < 0 ? r : copy_bool(addr, "tight", o, err);
}

static int
socket_options(const struct qemuopts *o, struct option_chardev *ret,
               struct err *err)
{
    const char *path = qemuopts_get(o, "path"), *host = qemuopts_get(o, "host");
    const char *fd = qemuopts_get(o, "fd");
    const char *key = path ? "path" : host ? "host" : "fd";
    const char *type = path ? "unix" : host ? "inet" : "fd";
    bool given = qemuopts_get(o, "wait") != NULL;
    int r;

    if (!!path + !!host + !!fd != 1) {
        return err_set(err, -EINVAL,
                       "None or one of 'path', 'fd' or 'host' option "
                       "required.");
    }
    ret->addr = json_pack("{s:s}", "type", type);
    r = copy_text(ret->addr, key, fd ? "str" : key, o, err);
    if (r == 0 && host) {
        r = inet_address(ret->addr, o, err);
    } else if (r == 0 && path) {
        r = unix_address(ret->addr, o, err);
    }
    r = r < 0 ? r : qemuopts_get_bool(o, "server", &ret->server, err);
    ret->wait = ret->server;
    r = r < 0 ? r : qemuopts_get_bool(o, "wait", &ret->wait, err);
    if (r == 0 && given && !ret->server) {
        r = err_set(err, -EINVAL, "'wait' option is incompatible with socket "
                                  "in client connect mode");
    }
    return r;
}

int
option_chardev(const char *text, struct option_chardev *ret, struct err *err)
{
    static const char *const known[] = {
        "backend", "id",   "path",     "host",  "port", "fd",     "server",
        "wait",    "ipv4", "abstract", "tight", "ipv6", "signal", NULL};
    struct qemuopts o;
    struct option_chardev c = {0};
    int r = qemuopts_parse(&o, text, "backend", known, err);

    if (r < 0) {
        return r;
    }
    const char *id = qemuopts_get(&o, "id");
    const char *backend = qemuopts_get(&o, "backend");

    if (!id) {
        r = err_set(err, -EINVAL, "chardev: no id specified");
    } else if (!backend) {
        r = err_set(err, -EINVAL, "chardev: \"%s\" missing backend", id);
    } else if (!strcmp(backend, "socket")) {
        r = socket_options(&o, &c, err);
    } else if (!strcmp(backend, "stdio")) {
        c.stdio = true;
    } else {
        r = err_set(err, -EINVAL, "'%s' is not a valid char driver name",
                    backend);
    }
    if (r == 0) {
        c.id = xstrdup(id);
        *ret = c;
    } else {
        option_chardev_fini(&c);
    }
    qemuopts_fini(&o);
    return r;
}

void
option_chardev_fini(struct option_chardev *c)
{
    free(c->id);
    json_decref(c->addr);
    *c = (struct option_chardev){0};
}
