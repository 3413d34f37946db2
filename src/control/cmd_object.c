// SPDX-License-Identifier: BSD-3-Clause
/*
 * Objects: object-add and its option, object-del, and QEMU's tree of objects
 * (qom-list, qom-get, qom-set) as far as somebody needs it:
 *
 *   /objects/ID   what object-add made; ID alone finds it, too
 *
 * A throttle group itself is the graph's (block/throttle.h); what is kept here
 * of an object is what it was made from.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "block/throttle.h"
#include "control/control_internal.h"
#include "schema_dispatch.h"

#define GROUP_TYPE "throttle-group"

/* Limits, by their names in JSON. */

static const char *const kind_names[] = {
    [THROTTLE_BPS_TOTAL] = "bps-total",     [THROTTLE_BPS_READ] = "bps-read",
    [THROTTLE_BPS_WRITE] = "bps-write",     [THROTTLE_IOPS_TOTAL] = "iops-total",
    [THROTTLE_IOPS_READ] = "iops-read",     [THROTTLE_IOPS_WRITE] = "iops-write",
};

enum { FIELDS = THROTTLE_KINDS * 3 + 1 };

/* The @i-th number in the limits, and its name, which the caller frees. */
static int64_t *
field(struct throttle_limits *l, unsigned i, char **ret_name)
{
    static const char *const suffixes[] = {"", "-max", "-max-length"};

    if (i == FIELDS - 1) {
        *ret_name = xstrdup("iops-size");
        return &l->iops_size;
    }
    struct throttle_limit *limit = &l->kind[i / 3];
    int64_t *values[] = {&limit->avg, &limit->max, &limit->length};

    *ret_name = xasprintf("%s%s", kind_names[i / 3], suffixes[i % 3]);
    return values[i % 3];
}

static int
check_field(const char *name, bool is_length, bool is_property, int64_t value,
            struct err *err)
{
    if (is_property && value < 0) {
        return err_set(err, -EINVAL, "Property values cannot be negative");
    }
    if (is_length && (value < 0 || value > UINT_MAX)) {
        return err_set(err, -EINVAL,
                       "%s value must be in the range [0, %u]", name,
                       UINT_MAX);
    }
    return 0;
}

/* Those that @json has, under their names with @prefix, replace others. */
static int
read_limits(json_t *json, const char *prefix, struct throttle_limits *l,
            struct err *err)
{
    int r = 0;

    for (unsigned i = 0; i < FIELDS && !r; i++) {
        auto_free char *name = NULL;
        int64_t *value = field(l, i, &name);
        auto_free char *key = xasprintf("%s%s", prefix, name);
        json_t *given = json_object_get(json, key);

        if (given) {
            *value = json_integer_value(given);
            r = check_field(key, i < FIELDS - 1 && i % 3 == 2, *prefix, *value,
                            err);
        }
    }
    return r;
}

static json_t *
write_limits(struct throttle_limits *l)
{
    json_t *json = json_object();

    for (unsigned i = 0; i < FIELDS; i++) {
        auto_free char *name = NULL;
        const int64_t *value = field(l, i, &name);

        json_object_set_new(json, name, json_integer(*value));
    }
    return json;
}

static int
add_group(struct control *ctl, const char *id, json_t *object, struct err *err)
{
    struct throttle_limits l;

    throttle_limits_init(&l);
    int r = read_limits(object, "x-", &l, err);

    if (!r) {
        r = read_limits(json_object_get(object, "limits"), "", &l, err);
    }
    return r ? r : throttle_group_new(ctl->graph, id, &l, err);
}

/* Adding and removing. */

/* Threads are not for the operator to place here, but naming one works. */
int
control_add_object(struct control *ctl, json_t *object, struct err *err)
{
    const char *id = opt_str(object, "id");
    const char *type = opt_str(object, "qom-type");
    int r = 0;

    if (!control_id_ok(id)) {
        return err_set(err, -EINVAL, "Parameter 'id' expects an identifier");
    }
    if (json_object_get(ctl->objects, id)) {
        return err_set(err, -EEXIST,
                       "attempt to add duplicate property '%s' to object "
                       "(type 'container')",
                       id);
    }
    if (!strcmp(type, GROUP_TYPE)) {
        r = add_group(ctl, id, object, err);
    } else if (strcmp(type, "iothread")) {
        r = err_set(err, -ENOTSUP,
                    "Objects of type '%s' are not supported yet", type);
        err_hint(err, "Only '" GROUP_TYPE "' is, and 'iothread', which has no "
                      "effect");
    }
    if (!r) {
        json_object_set(ctl->objects, id, object);
    }
    return r;
}

int
cmd_object_add(struct control *ctl, const struct args_object_add *args,
               json_t **ret, struct err *err)
{
    return control_add_object(ctl, args->json, err);
}

int
cmd_object_del(struct control *ctl, const struct args_object_del *args,
               json_t **ret, struct err *err)
{
    json_t *object = json_object_get(ctl->objects, args->id);
    struct throttle_group *group = throttle_group_find(ctl->graph, args->id);

    if (!object) {
        return err_set(err, -ENOENT, "object '%s' not found", args->id);
    }
    int r = group ? throttle_group_del(group, err) : 0;

    if (!r) {
        json_object_del(ctl->objects, args->id);
    }
    return r;
}

/* The tree. */

/* What a path leads to. */
struct place {
    const char *type;
    json_t *children; /* of a container: its objects; may be NULL */
    struct throttle_group *group;
};

static int
find_object(struct control *ctl, const char *id, struct place *ret)
{
    json_t *object = json_object_get(ctl->objects, id);

    if (!object) {
        return -ENOENT;
    }
    *ret = (struct place){.type = opt_str(object, "qom-type"),
                          .group = throttle_group_find(ctl->graph, id)};
    return 0;
}

static int
find_place(struct control *ctl, const char *path, struct place *ret,
           struct err *err)
{
    static const char folder[] = "/objects";
    size_t n = sizeof(folder) - 1;
    int r = -ENOENT;

    *ret = (struct place){.type = "container"};
    if (!strcmp(path, "/")) {
        r = 0;
    } else if (!strcmp(path, folder) || !strcmp(path, folder + 1)) {
        ret->children = ctl->objects;
        r = 0;
    } else if (!strncmp(path, folder, n) && path[n] == '/') {
        r = find_object(ctl, path + n + 1, ret);
    } else if (!strncmp(path, folder + 1, n - 1) && path[n - 1] == '/') {
        r = find_object(ctl, path + n, ret);
    } else {
        r = find_object(ctl, path, ret);
    }
    return r ? err_set_class(err, ERR_DEVICE_NOT_FOUND, r,
                             "Device '%s' not found", path)
             : 0;
}

static void
add_property(json_t *list, const char *name, const char *type)
{
    json_array_append_new(list,
                          json_pack("{s:s, s:s}", "name", name, "type", type));
}

int
cmd_qom_list(struct control *ctl, const struct args_qom_list *args,
             json_t **ret, struct err *err)
{
    struct throttle_limits l;
    struct place place;
    const char *key;
    json_t *object;
    int r = find_place(ctl, args->path, &place, err);

    if (r) {
        return r;
    }
    *ret = json_array();
    add_property(*ret, "type", "string");
    if (!strcmp(args->path, "/")) {
        add_property(*ret, "objects", "child<container>");
    }
    json_object_foreach (place.children, key, object) {
        auto_free char *type =
            xasprintf("child<%s>", opt_str(object, "qom-type"));

        add_property(*ret, key, type);
    }
    if (place.group) {
        add_property(*ret, "limits", "ThrottleLimits");
    }
    for (unsigned i = 0; i < FIELDS && place.group; i++) {
        auto_free char *name = NULL;

        field(&l, i, &name);
        auto_free char *key_x = xasprintf("x-%s", name);

        add_property(*ret, key_x, "int");
    }
    return 0;
}

/* The property @name; NULL where there is none of that name. */
static json_t *
get_property(const struct place *place, const char *name)
{
    struct throttle_limits l;

    if (!strcmp(name, "type")) {
        return json_string(place->type);
    }
    if (place->children && json_object_get(place->children, name)) {
        auto_free char *path = xasprintf("/objects/%s", name);

        return json_string(path);
    }
    if (!place->group) {
        return NULL;
    }
    throttle_group_get(place->group, &l);
    json_t *limits = write_limits(&l);

    if (!strcmp(name, "limits")) {
        return limits;
    }
    json_t *value =
        strncmp(name, "x-", 2) ? NULL : json_object_get(limits, name + 2);

    json_incref(value);
    json_decref(limits);
    return value;
}

static int
no_property(const struct place *place, const char *name, struct err *err)
{
    return err_set(err, -ENOENT, "Property '%s.%s' not found", place->type,
                   name);
}

int
cmd_qom_get(struct control *ctl, const struct args_qom_get *args, json_t **ret,
            struct err *err)
{
    struct place place;
    int r = find_place(ctl, args->path, &place, err);

    if (r) {
        return r;
    }
    *ret = get_property(&place, args->property);
    return *ret ? 0 : no_property(&place, args->property, err);
}

static int
set_limits(struct throttle_group *group, json_t *value, struct err *err)
{
    json_t *properties = json_pack("{s:O}", "limits", value);
    struct throttle_limits l;
    int r = schema_check(&schema_type_throttle_group_properties, properties,
                         err);

    throttle_group_get(group, &l);
    if (!r) {
        r = read_limits(value, "", &l, err);
    }
    json_decref(properties);
    return r ? r : throttle_group_set(group, &l, err);
}

int
cmd_qom_set(struct control *ctl, const struct args_qom_set *args, json_t **ret,
            struct err *err)
{
    struct place place;
    int r = find_place(ctl, args->path, &place, err);

    if (r) {
        return r;
    }
    if (place.group && !strcmp(args->property, "limits")) {
        return set_limits(place.group, args->value, err);
    }
    json_t *now = get_property(&place, args->property);

    if (!now) {
        return no_property(&place, args->property, err);
    }
    json_decref(now);
    if (place.group && !strncmp(args->property, "x-", 2)) {
        return err_set(err, -EPERM,
                       "Property cannot be set after initialization");
    }
    return err_set(err, -EPERM, "Property '%s.%s' is not writable", place.type,
                   args->property);
}
