// SPDX-License-Identifier: BSD-3-Clause
/*
 * The table of commands and the way from a command's name and arguments to
 * its handler.  The tables are made by tools/qapi-gen.py; the handlers
 * (cmd_*, declared in schema_dispatch.h) are linked in by the program.
 */
#ifndef SLUICE_CONTROL_QMP_DISPATCH_H
#define SLUICE_CONTROL_QMP_DISPATCH_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "control/schema.h"

struct control;
struct err;

struct qmp_command {
    const char *name;
    const struct schema_type *args;
    const struct schema_type *ret; /* NULL: it returns {} */
    /* Decodes and runs; NULL for qmp_capabilities, which is a session's. */
    int (*call)(struct control *ctl, json_t *args, json_t **ret,
                struct err *err);
};

extern const struct qmp_command qmp_commands[];
extern const size_t qmp_commands_len;
/* The events' data; a type's name is the event's. */
extern const struct schema_type *const qmp_events[];
extern const size_t qmp_events_len;
/* What query-qmp-schema returns, as JSON text. */
extern const char qmp_introspection[];

/* NULL where there is none of that name. */
const struct qmp_command *qmp_command_find(const char *name);

/*
 * Runs a command.  @args is the caller's; NULL stands for no arguments.  All
 * of them are checked before the handler is called.  On success *ret is the
 * caller's new reference, never NULL.  Returns 0, or -errno with @err set
 * (ERR_COMMAND_NOT_FOUND where there is no such command).  May yield, where
 * the handler does; must then run in a coroutine.
 */
int qmp_dispatch(struct control *ctl, const char *name, json_t *args,
                 json_t **ret, struct err *err);

/*
 * An event, ready for qmp_session_format().  @data is consumed; it must fit
 * the schema, which is asserted.  @now_ns is the time since 1970.
 */
json_t *qmp_event(const char *name, json_t *data, uint64_t now_ns);

#endif
