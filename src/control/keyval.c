// SPDX-License-Identifier: BSD-3-Clause
/*
 * Keys are first put into nested objects, whatever their parts look like;
 * objects whose keys are all numbers become lists afterwards, when it is
 * known that they are complete.
 */
#include "control/keyval.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/qmp_frame.h"
#include "control/schema.h"

/* A list's index in decimal: its length, or 0 where there is none. */
static size_t
index_length(const char *s)
{
    return strspn(s, "0123456789");
}

/*
 * The length of the QAPI name that @s begins with (0 for none): letters,
 * digits, - and _, beginning with a letter, behind an optional __RFQDN_.
 */
static size_t
name_length(const char *s)
{
    const char *p = s;

    if (p[0] == '_' && p[1] == '_') {
        p += 2;
        while (isalnum((unsigned char)*p) || *p == '-' || *p == '.') {
            p++;
        }
        if (*p++ != '_') {
            return 0;
        }
    }
    if (!isalpha((unsigned char)*p)) {
        return 0;
    }
    while (isalnum((unsigned char)*p) || *p == '-' || *p == '_') {
        p++;
    }
    return (size_t)(p - s);
}

/* "help" or "?", of @len bytes. */
static bool
is_help(const char *s, size_t len)
{
    return (len == 4 && !memcmp(s, "help", 4)) || (len == 1 && *s == '?');
}

/*
 * Puts @value, or an empty object where it is NULL, at @part of @object; the
 * path up to @part, of @path_len bytes, is for the message.  Returns a
 * borrowed reference to what stands there, or NULL.
 */
static json_t *
put(json_t *object, const char *part, json_t *value, const char *path,
    size_t path_len, struct err *err)
{
    json_t *old = json_object_get(object, part);

    if (old && json_is_string(old) != (value != NULL)) {
        json_decref(value);
        err_set(err, -EINVAL, "Parameters '%.*s.*' used inconsistently",
                (int)path_len, path);
        return NULL;
    }
    if (old && !value) {
        return old;
    }
    value = value ? value : json_object();
    json_object_set_new(object, part, value);
    return value;
}

/* The length of the part of a key at @s, or 0 with the error set. */
static size_t
part_length(const char *key, const char *key_end, const char *s,
            struct err *err)
{
    size_t len = s != key ? index_length(s) : 0;

    if (!len) {
        len = name_length(s);
    }
    if (!len || s + len > key_end || (s + len < key_end && s[len] != '.')) {
        err_set(err, -EINVAL, "Invalid parameter '%.*s'",
                (int)(key_end - key), key);
        return 0;
    }
    if (len > KEYVAL_MAX_FRAGMENT) {
        bool whole = s == key && s + len == key_end;

        err_set(err, -EINVAL, "Parameter%s '%.*s' is too long",
                whole ? "" : " fragment", (int)len, s);
        return 0;
    }
    return len;
}

/* Puts @value, which it consumes, at the path @key. */
static int
put_path(json_t *object, const char *key, size_t key_len, json_t *value,
         struct err *err)
{
    char part[KEYVAL_MAX_FRAGMENT + 1];
    const char *s = key, *key_end = key + key_len;

    for (int depth = 0;; depth++) {
        size_t len = depth < KEYVAL_MAX_DEPTH
                         ? part_length(key, key_end, s, err)
                         : 0;
        if (!len) {
            json_decref(value);
            return depth < KEYVAL_MAX_DEPTH
                       ? -EINVAL
                       : err_set(err, -EINVAL, "Parameter '%.*s' is too deep",
                                 (int)key_len, key);
        }
        memcpy(part, s, len);
        part[len] = '\0';
        s += len;
        bool last = s == key_end;
        object = put(object, part, last ? value : NULL, key,
                     (size_t)(s - key), err);
        if (!object) {
            if (!last) {
                json_decref(value);
            }
            return -EINVAL;
        }
        if (last) {
            return 0;
        }
        s++;
    }
}

/* The value at *p, with `,,` undone; *p then stands behind its comma. */
static json_t *
take_value(const char **p, const char *key, size_t key_len, struct err *err)
{
    auto_free char *value = xmalloc(strlen(*p) + 1);
    size_t n = 0;
    const char *s = *p;

    while (*s && (*s != ',' || s[1] == ',')) {
        s += *s == ',';
        value[n++] = *s++;
    }
    *p = s + (*s == ',');
    json_t *ret = json_stringn(value, n);
    if (!ret) {
        err_set(err, -EINVAL, "Parameter '%.*s' is not valid UTF-8",
                (int)key_len, key);
    }
    return ret;
}

/* Parses one parameter and moves *p behind it. */
static int
parse_one(json_t *object, const char **p, const char *implied,
          struct err *err)
{
    const char *key = *p;
    size_t len = strcspn(key, "=,");
    json_t *value;

    if (len && key[len] != '=' && is_help(key, len)) {
        return err_set(err, -EINVAL, "Help is not available for this option");
    }
    if (len && key[len] != '=' && implied) {
        /* An implied value has no `,,`: QEMU ends it at the first comma. */
        *p = key + len + (key[len] == ',');
        value = json_stringn(key, len);
        if (!value) {
            return err_set(err, -EINVAL, "Parameter '%s' is not valid UTF-8",
                           implied);
        }
        return put_path(object, implied, strlen(implied), value, err);
    }
    if (key[len] != '=') {
        return len && name_length(key)
                   ? err_set(err, -EINVAL,
                             "Expected '=' after parameter '%.*s'", (int)len,
                             key)
                   : err_set(err, -EINVAL, "Invalid parameter '%.*s'",
                             (int)len, key);
    }
    *p = key + len + 1;
    value = take_value(p, key, len, err);
    return value ? put_path(object, key, len, value, err) : -EINVAL;
}

static json_t *listify(json_t *object, const char *path, struct err *err);

/* Turns what stands below @object into lists; false with the error set. */
static bool
listify_members(json_t *object, const char *path, struct err *err)
{
    const char *key;
    json_t *member;

    json_object_foreach (object, key, member) {
        auto_free char *below =
            *path ? xasprintf("%s.%s", path, key) : xstrdup(key);
        json_t *list =
            json_is_object(member) ? listify(member, below, err) : member;

        if (!list) {
            return false;
        }
        if (list != member) {
            json_object_set_new(object, key, list);
        }
    }
    return true;
}

/*
 * Returns @object itself, or the list that it stands for (a new reference),
 * or NULL with the error set.
 */
static json_t *
listify(json_t *object, const char *path, struct err *err)
{
    size_t n = json_object_size(object), indices = 0;
    const char *key;
    json_t *member;

    if (!listify_members(object, path, err)) {
        return NULL;
    }
    json_object_foreach (object, key, member) {
        indices += index_length(key) > 0;
    }
    if (!indices) {
        return object;
    }
    if (indices < n) {
        err_set(err, -EINVAL, "Parameters '%s.*' used inconsistently", path);
        return NULL;
    }
    /* With n different indices below n, none is missing. */
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *found = NULL;

        json_object_foreach (object, key, member) {
            found = strtoull(key, NULL, 10) == i ? member : found;
        }
        if (!found) {
            err_set(err, -EINVAL, "Parameter '%s.%zu' missing", path, i);
            json_decref(list);
            return NULL;
        }
        json_array_append(list, found);
    }
    return list;
}

int
keyval_parse(const char *text, const char *implied, json_t **ret,
             struct err *err)
{
    json_t *object = json_object();
    const char *p = text;
    int r = 0;

    while (r == 0 && *p) {
        r = parse_one(object, &p, implied, err);
        implied = NULL;
    }
    if (r == 0 && !listify(object, "", err)) {
        r = -EINVAL;
    }
    if (r < 0) {
        json_decref(object);
        return r;
    }
    *ret = object;
    return 0;
}

/* One JSON value, in what the control socket takes. */
static int
parse_json(const char *text, json_t **ret, struct err *err)
{
    struct qmp_frame frame;
    size_t len = strlen(text);
    json_error_t why;
    int r = 0;

    *ret = NULL;
    qmp_frame_init(&frame);
    enum qmp_frame_result result = qmp_frame_feed(&frame, &text, &len);
    if (result == QMP_FRAME_MORE) {
        result = qmp_frame_end(&frame);
    }
    if (result == QMP_FRAME_VALUE) {
        *ret = json_loads(strbuf_text(&frame.text), JSON_REJECT_DUPLICATES,
                          &why);
        bool duplicate = !*ret && json_error_code(&why) ==
                                      json_error_duplicate_key;
        if (!*ret) {
            r = err_set(err, -EINVAL, "JSON parse error, %s",
                        duplicate ? "duplicate key" : why.text);
        } else if (text[strspn(text, " \t\r\n")]) {
            r = err_set(err, -EINVAL, "Expecting at most one JSON value");
        }
    } else {
        r = err_set(err, -EINVAL, "%s", strbuf_text(&frame.text));
    }
    qmp_frame_fini(&frame);
    if (r < 0) {
        json_decref(take_ptr(*ret));
    }
    return r;
}

int
keyval_decode(const char *text, const char *implied,
              const struct schema_type *type, json_t **ret, struct err *err)
{
    json_t *value;
    int r = *text == '{' ? parse_json(text, &value, err)
                         : keyval_parse(text, implied, &value, err);

    if (r < 0) {
        return r;
    }
    if (*text != '{') {
        return schema_convert(type, value, ret, err);
    }
    r = schema_check(type, value, err);
    if (r < 0) {
        json_decref(value);
        return r;
    }
    *ret = value;
    return 0;
}
