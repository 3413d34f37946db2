// SPDX-License-Identifier: BSD-3-Clause
/* The flat option syntax: see qemuopts.h. */
#include "control/qemuopts.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/number.h"

void
qemuopts_fini(struct qemuopts *o)
{
    for (size_t i = 0; i < o->n; i++) {
        free(o->opts[i].key);
        free(o->opts[i].value);
    }
    *o = (struct qemuopts){0};
}

static bool
is_known(const char *const *known, const char *key)
{
    for (; *known; known++) {
        if (!strcmp(*known, key)) {
            return true;
        }
    }
    return false;
}

/* A value up to its comma, with `,,` undone; *p then stands behind it. */
static char *
take_value(const char **p)
{
    const char *s = *p;
    char *value = xmalloc(strlen(s) + 1);
    size_t n = 0;

    while (*s && (*s != ',' || s[1] == ',')) {
        s += *s == ',';
        value[n++] = *s++;
    }
    value[n] = '\0';
    *p = s + (*s == ',');
    return value;
}

/* Consumes @key and @value. */
static int
set(struct qemuopts *o, char *key, char *value, const char *const *known,
    struct err *err)
{
    int r = 0;

    if (!is_known(known, key)) {
        r = err_set(err, -EINVAL, "Invalid parameter '%s'", key);
    } else if (!strcmp(key, "id") && !qemuopts_id_wellformed(value)) {
        r = err_set(err, -EINVAL, "Parameter 'id' expects an identifier");
        err_hint(err, "Identifiers consist of letters, digits, '-', '.', "
                      "'_', starting with a letter.");
    } else if (o->n == QEMUOPTS_MAX) {
        r = err_set(err, -E2BIG, "Too many parameters");
    }
    if (r < 0) {
        free(key);
        free(value);
        return r;
    }
    o->opts[o->n].key = key;
    o->opts[o->n++].value = value;
    return 0;
}

static int
parse_one(struct qemuopts *o, const char **p, const char *implied,
          const char *const *known, struct err *err)
{
    size_t len = strcspn(*p, "=,");
    char *key;

    if ((*p)[len] == '=') {
        key = xstrndup(*p, len);
        *p += len + 1;
        return set(o, key, take_value(p), known, err);
    }
    if (implied) {
        return set(o, xstrdup(implied), take_value(p), known, err);
    }
    key = xstrndup(*p, len);
    *p += len + ((*p)[len] == ',');
    if (!is_known(known, key) && !strncmp(key, "no", 2)) {
        char *positive = xstrdup(key + 2);

        free(key);
        return set(o, positive, xstrdup("off"), known, err);
    }
    return set(o, key, xstrdup("on"), known, err);
}

int
qemuopts_parse(struct qemuopts *o, const char *text, const char *implied,
               const char *const *known, struct err *err)
{
    int r = 0;

    *o = (struct qemuopts){0};
    while (r == 0 && *text) {
        r = parse_one(o, &text, implied, known, err);
        implied = NULL;
    }
    if (r < 0) {
        qemuopts_fini(o);
    }
    return r;
}

const char *
qemuopts_get(const struct qemuopts *o, const char *key)
{
    for (size_t i = o->n; i-- > 0;) {
        if (!strcmp(o->opts[i].key, key)) {
            return o->opts[i].value;
        }
    }
    return NULL;
}

int
qemuopts_get_bool(const struct qemuopts *o, const char *key, bool *ret,
                  struct err *err)
{
    const char *value = qemuopts_get(o, key);

    if (value && number_parse_bool(value, ret) < 0) {
        return err_set(err, -EINVAL, "Parameter '%s' expects 'on' or 'off'",
                       key);
    }
    return 0;
}

bool
qemuopts_id_wellformed(const char *id)
{
    if (!isalpha((unsigned char)*id)) {
        return false;
    }
    for (; *id; id++) {
        if (!isalnum((unsigned char)*id) && !strchr("-._", *id)) {
            return false;
        }
    }
    return true;
}
