// SPDX-License-Identifier: BSD-3-Clause
/*
 * Structured options of the command line, in QEMU's syntax:
 *
 *     driver=qcow2,node-name=a,file.driver=file,file.filename=x,,y,l.0=z
 *
 * Keys are paths with dots, numbers in them are indices of lists, `,,` is a
 * comma in a value, and a later value for a key replaces the earlier one.
 * Pure functions, with QEMU's error texts.
 */
#ifndef SLUICE_CONTROL_KEYVAL_H
#define SLUICE_CONTROL_KEYVAL_H

#include <jansson.h>

struct err;
struct schema_type;

#define KEYVAL_MAX_FRAGMENT 127 /* bytes of one part of a path */
#define KEYVAL_MAX_DEPTH 64 /* parts of a path */

/*
 * Parses @text into an object whose scalars are all strings, for
 * schema_convert().  @implied, which may be NULL, is the key of a first
 * parameter without one.  Returns 0 and the caller's new reference in *ret,
 * or -EINVAL with @err set.
 */
int keyval_parse(const char *text, const char *implied, json_t **ret,
                 struct err *err);
/*
 * The whole way from an option's text to checked arguments of @type: keyval
 * syntax, or a JSON object where @text begins with a brace.  As
 * keyval_parse().
 */
int keyval_decode(const char *text, const char *implied,
                  const struct schema_type *type, json_t **ret,
                  struct err *err);

#endif
