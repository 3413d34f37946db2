// SPDX-License-Identifier: BSD-3-Clause
/*
 * The schema at run time: tables of types, which tools/qapi-gen.py makes from
 * qmp.schema (see schema_types.h in the build directory), and the one walk
 * over a JSON value that checks it against a type.  Nothing here yields.
 *
 * The walk is strict: a member that the type does not have, a missing one, a
 * value of another JSON type, an unknown enumeration value and an integer out
 * of range are errors, with the texts that QEMU gives.  A real is never taken
 * for an integer.
 */
#ifndef SLUICE_CONTROL_SCHEMA_H
#define SLUICE_CONTROL_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum schema_kind {
    SCHEMA_STR,
    SCHEMA_BOOL,
    SCHEMA_INT, /* signed, 64 bits */
    SCHEMA_UINT, /* up to @max */
    SCHEMA_SIZE, /* an unsigned number of bytes */
    SCHEMA_NULL,
    SCHEMA_ANY,
    SCHEMA_ENUM,
    SCHEMA_ARRAY,
    SCHEMA_OBJECT,
    SCHEMA_ALTERNATE,
};

struct schema_member {
    const char *name;
    const struct schema_type *type;
    bool optional;
};

/* What the value @name of the tag adds, or a branch of an alternate. */
struct schema_variant {
    const char *name;
    const struct schema_type *type;
};

struct schema_type {
    const char *name;
    enum schema_kind kind;
    uint64_t max; /* SCHEMA_UINT */
    const char *const *values; /* SCHEMA_ENUM, in the C enum's order */
    size_t n_values;
    const struct schema_type *element; /* SCHEMA_ARRAY */
    const struct schema_member *members; /* SCHEMA_OBJECT, bases included */
    size_t n_members;
    const char *tag; /* the member that selects a variant, or NULL */
    const struct schema_variant *variants; /* also SCHEMA_ALTERNATE */
    size_t n_variants;
};

/*
 * Checks @value, which stays the caller's, against @type.  Returns 0, or
 * -EINVAL with @err set.
 */
int schema_check(const struct schema_type *type, json_t *value,
                 struct err *err);
/*
 * The same for a value whose scalars are all strings, as the command line has
 * them: turns each into what its type says.  Consumes @value, in any case;
 * *ret is the caller's new reference, written on success only.
 */
int schema_convert(const struct schema_type *type, json_t *value, json_t **ret,
                   struct err *err);
/*
 * The index of @text in @type's values, which is the value of the C enum;
 * -1 where it is none of them.
 */
int schema_enum_parse(const struct schema_type *type, const char *text);

#endif
