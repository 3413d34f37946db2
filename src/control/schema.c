// SPDX-License-Identifier: BSD-3-Clause
/*
 * The walk over a JSON value along a type.  It recurses once per level of the
 * value; the framer (64 levels) and the keyval parser (64 fragments of a key)
 * bound that depth.
 *
 * Members are visited in the schema's order and unknown ones are looked for
 * last, level by level, so that of several mistakes the same one is reported
 * as by QEMU.  Where QEMU prints a member's bare name instead of its path (an
 * enumeration's value, a range, an alternate), so does this.
 */
#include "control/schema.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/number.h"

/* Where in the value the walk is: a chain of frames on the stack. */
struct path {
    const struct path *up;
    const char *name; /* NULL: an element of a list */
    size_t index;
};

struct walk {
    bool convert;
    struct err *err;
};

static json_t *visit(struct walk *w, const struct schema_type *type, json_t *v,
                     const struct path *path);

/* "a.b[1].c", on the command line "a.b.1.c"; the caller frees it. */
static char *
full_name(const struct walk *w, const struct path *path)
{
    if (!path) {
        return xstrdup("");
    }
    auto_free char *up = full_name(w, path->up);

    if (!path->name) {
        return xasprintf(w->convert ? "%s.%zu" : "%s[%zu]", up, path->index);
    }
    return *up ? xasprintf("%s.%s", up, path->name) : xstrdup(path->name);
}

/* QEMU has no name for a list's element here and prints "null". */
static const char *
bare_name(const struct path *path)
{
    return path && path->name ? path->name : "null";
}

static json_t *
fail_type(struct walk *w, const struct path *path, const char *expected)
{
    auto_free char *name = full_name(w, path);

    err_set(w->err, -EINVAL, "Invalid parameter type for '%s', expected: %s",
            name, expected);
    return NULL;
}

static json_t *
fail_value(struct walk *w, const char *name, const char *expected)
{
    err_set(w->err, -EINVAL, "Parameter '%s' expects %s", name, expected);
    return NULL;
}

/* On the command line every scalar is a string, else the path is wrong. */
static const char *
scalar_text(struct walk *w, json_t *v, const struct path *path)
{
    if (!json_is_string(v)) {
        auto_free char *name = full_name(w, path);

        err_set(w->err, -EINVAL, "Parameters '%s.*' are unexpected", name);
        return NULL;
    }
    return json_string_value(v);
}

static json_t *
visit_str(struct walk *w, json_t *v, const struct path *path)
{
    if (w->convert) {
        return scalar_text(w, v, path) ? json_incref(v) : NULL;
    }
    return json_is_string(v) ? json_incref(v) : fail_type(w, path, "string");
}

static json_t *
visit_bool(struct walk *w, json_t *v, const struct path *path)
{
    if (!w->convert) {
        return json_is_boolean(v) ? json_incref(v)
                                  : fail_type(w, path, "boolean");
    }
    const char *text = scalar_text(w, v, path);
    bool on;

    if (!text) {
        return NULL;
    }
    if (number_parse_bool(text, &on) < 0) {
        auto_free char *name = full_name(w, path);
        return fail_value(w, name, "'on' or 'off'");
    }
    return json_boolean(on);
}

static json_t *
visit_int(struct walk *w, json_t *v, const struct path *path)
{
    if (!w->convert) {
        return json_is_integer(v) ? json_incref(v)
                                  : fail_type(w, path, "integer");
    }
    const char *text = scalar_text(w, v, path);
    int64_t value;

    if (!text) {
        return NULL;
    }
    if (number_parse_int(text, &value) < 0) {
        auto_free char *name = full_name(w, path);
        return fail_value(w, name, "integer");
    }
    return json_integer(value);
}

/*
 * The largest unsigned value is INT64_MAX, since jansson's integers are
 * signed; no offset in a file is larger.
 */
static json_t *
visit_unsigned(struct walk *w, const struct schema_type *type, json_t *v,
               const struct path *path)
{
    json_t *ret;

    if (!w->convert) {
        bool fits = json_is_integer(v) && (json_integer_value(v) >= 0 ||
                                           type->max < UINT64_MAX);
        if (!fits) {
            auto_free char *name = full_name(w, path);
            return fail_value(w, name, "uint64");
        }
        ret = json_incref(v);
    } else {
        const char *text = scalar_text(w, v, path);
        bool size = type->kind == SCHEMA_SIZE;
        int64_t value;

        if (!text) {
            return NULL;
        }
        int r = size ? number_parse_size(text, &value)
                     : number_parse_int(text, &value);
        if (r < 0 || (value < 0 && type->max == UINT64_MAX)) {
            auto_free char *name = full_name(w, path);
            return fail_value(w, name, size ? "size" : "integer");
        }
        ret = json_integer(value);
    }
    json_int_t n = json_integer_value(ret);

    if (n < 0 || (uint64_t)n > type->max) {
        json_decref(ret);
        return fail_value(w, bare_name(path), type->name);
    }
    return ret;
}

int
schema_enum_parse(const struct schema_type *type, const char *text)
{
    for (size_t i = 0; i < type->n_values; i++) {
        if (!strcmp(type->values[i], text)) {
            return (int)i;
        }
    }
    return -1;
}

static json_t *
visit_enum(struct walk *w, const struct schema_type *type, json_t *v,
           const struct path *path)
{
    json_t *ret = visit_str(w, v, path);

    if (ret && schema_enum_parse(type, json_string_value(ret)) < 0) {
        err_set(w->err, -EINVAL, "Parameter '%s' does not accept value '%s'",
                bare_name(path), json_string_value(ret));
        json_decref(ret);
        return NULL;
    }
    return ret;
}

static json_t *
visit_array(struct walk *w, const struct schema_type *type, json_t *v,
            const struct path *path)
{
    if (!json_is_array(v)) {
        return fail_type(w, path, "array");
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        struct path at = {.up = path, .index = i};
        json_t *item =
            visit(w, type->element, json_array_get(v, i), &at);

        if (!item) {
            return NULL;
        }
        if (w->convert) {
            json_array_set_new(v, i, item);
        } else {
            json_decref(item);
        }
    }
    return json_incref(v);
}

static bool
visit_members(struct walk *w, const struct schema_type *type, json_t *v,
              const struct path *path)
{
    for (size_t i = 0; i < type->n_members; i++) {
        const struct schema_member *m = &type->members[i];
        struct path at = {.up = path, .name = m->name};
        json_t *member = json_object_get(v, m->name);

        if (!member) {
            if (m->optional) {
                continue;
            }
            auto_free char *name = full_name(w, &at);
            err_set(w->err, -EINVAL, "Parameter '%s' is missing", name);
            return false;
        }
        member = visit(w, m->type, member, &at);
        if (!member) {
            return false;
        }
        if (w->convert) {
            json_object_set_new(v, m->name, member);
        } else {
            json_decref(member);
        }
    }
    return true;
}

static bool
has_member(const struct schema_type *type, const char *name)
{
    for (size_t i = 0; type && i < type->n_members; i++) {
        if (!strcmp(type->members[i].name, name)) {
            return true;
        }
    }
    return false;
}

static const struct schema_type *
selected_variant(const struct schema_type *type, json_t *v)
{
    const char *tag =
        type->tag ? json_string_value(json_object_get(v, type->tag)) : NULL;

    for (size_t i = 0; tag && i < type->n_variants; i++) {
        if (!strcmp(type->variants[i].name, tag)) {
            return type->variants[i].type;
        }
    }
    return NULL;
}

static json_t *
visit_object(struct walk *w, const struct schema_type *type, json_t *v,
             const struct path *path)
{
    if (!json_is_object(v)) {
        return fail_type(w, path, "object");
    }
    if (!visit_members(w, type, v, path)) {
        return NULL;
    }
    const struct schema_type *variant = selected_variant(type, v);
    const char *key;
    json_t *member;

    if (variant && !visit_members(w, variant, v, path)) {
        return NULL;
    }
    json_object_foreach (v, key, member) {
        if (!has_member(type, key) && !has_member(variant, key)) {
            struct path at = {.up = path, .name = key};
            auto_free char *name = full_name(w, &at);

            err_set(w->err, -EINVAL, "Parameter '%s' is unexpected", name);
            return NULL;
        }
    }
    return json_incref(v);
}

static bool
branch_takes(const struct schema_type *branch, json_t *v)
{
    switch (branch->kind) {
    case SCHEMA_STR:
    case SCHEMA_ENUM:
        return json_is_string(v);
    case SCHEMA_OBJECT:
        return json_is_object(v);
    case SCHEMA_ARRAY:
        return json_is_array(v);
    case SCHEMA_NULL:
        return json_is_null(v);
    case SCHEMA_BOOL:
        return json_is_boolean(v);
    case SCHEMA_INT:
    case SCHEMA_UINT:
    case SCHEMA_SIZE:
        return json_is_integer(v);
    case SCHEMA_ANY:
    case SCHEMA_ALTERNATE:
        break;
    }
    return false;
}

static json_t *
visit_alternate(struct walk *w, const struct schema_type *type, json_t *v,
                const struct path *path)
{
    for (size_t i = 0; i < type->n_variants; i++) {
        if (branch_takes(type->variants[i].type, v)) {
            return visit(w, type->variants[i].type, v, path);
        }
    }
    err_set(w->err, -EINVAL, "Invalid parameter type for '%s', expected: %s",
            bare_name(path), type->name);
    return NULL;
}

/* Returns a new reference to what @v became, or NULL with the error set. */
static json_t *
visit(struct walk *w, const struct schema_type *type, json_t *v,
      const struct path *path)
{
    switch (type->kind) {
    case SCHEMA_STR:
        return visit_str(w, v, path);
    case SCHEMA_BOOL:
        return visit_bool(w, v, path);
    case SCHEMA_INT:
        return visit_int(w, v, path);
    case SCHEMA_UINT:
    case SCHEMA_SIZE:
        return visit_unsigned(w, type, v, path);
    case SCHEMA_NULL:
        return json_is_null(v) ? json_incref(v) : fail_type(w, path, "null");
    case SCHEMA_ENUM:
        return visit_enum(w, type, v, path);
    case SCHEMA_ARRAY:
        return visit_array(w, type, v, path);
    case SCHEMA_OBJECT:
        return visit_object(w, type, v, path);
    case SCHEMA_ALTERNATE:
        return visit_alternate(w, type, v, path);
    case SCHEMA_ANY:
        break;
    }
    return json_incref(v);
}

int
schema_check(const struct schema_type *type, json_t *value, struct err *err)
{
    struct walk w = {.err = err};
    json_t *checked = visit(&w, type, value, NULL);

    json_decref(checked);
    return checked ? 0 : -EINVAL;
}

int
schema_convert(const struct schema_type *type, json_t *value, json_t **ret,
               struct err *err)
{
    struct walk w = {.convert = true, .err = err};
    json_t *converted = visit(&w, type, value, NULL);

    json_decref(value);
    if (!converted) {
        return -EINVAL;
    }
    *ret = converted;
    return 0;
}
