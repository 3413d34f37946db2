// SPDX-License-Identifier: BSD-3-Clause
/*
 * The older of QEMU's two option syntaxes, which --chardev has kept: a flat
 * list `socket,id=c,path=P,server=on,wait=off`.  `,,` is a comma; a key
 * without a value is a switch that is on, and `nokey` one that is off; the
 * last value for a key counts.  Pure functions.
 */
#ifndef SLUICE_CONTROL_QEMUOPTS_H
#define SLUICE_CONTROL_QEMUOPTS_H

#include <stdbool.h>
#include <stddef.h>

struct err;

#define QEMUOPTS_MAX 32

struct qemuopts {
    struct {
        char *key, *value;
    } opts[QEMUOPTS_MAX];
    size_t n;
};

/*
 * Parses @text; @implied is the key of a first value without one; @known, a
 * list that ends with NULL, are the keys there are.  Returns 0, or -EINVAL
 * with @err set and nothing to free.
 */
int qemuopts_parse(struct qemuopts *o, const char *text, const char *implied,
                   const char *const *known, struct err *err);
void qemuopts_fini(struct qemuopts *o);
/* The value, which is @o's, or NULL. */
const char *qemuopts_get(const struct qemuopts *o, const char *key);
/* A switch; *ret keeps its value where the key is absent. */
int qemuopts_get_bool(const struct qemuopts *o, const char *key, bool *ret,
                      struct err *err);
/* Letters, digits, - . and _, beginning with a letter. */
bool qemuopts_id_wellformed(const char *id);

#endif
