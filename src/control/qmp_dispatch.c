// SPDX-License-Identifier: BSD-3-Clause
/* Finding and running commands, and making events: see qmp_dispatch.h. */
#include "control/qmp_dispatch.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"

const struct qmp_command *
qmp_command_find(const char *name)
{
    for (size_t i = 0; i < qmp_commands_len; i++) {
        if (!strcmp(qmp_commands[i].name, name)) {
            return &qmp_commands[i];
        }
    }
    return NULL;
}

int
qmp_dispatch(struct control *ctl, const char *name, json_t *args,
             json_t **ret, struct err *err)
{
    const struct qmp_command *command = qmp_command_find(name);
    json_t *result = NULL;

    if (!command || !command->call) {
        return err_set_class(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                             "The command %s has not been found", name);
    }
    /* A handler may yield, and @args may go meanwhile: hold it. */
    args = args ? json_incref(args) : json_object();
    int r = schema_check(command->args, args, err);
    if (r == 0) {
        r = command->call(ctl, args, &result, err);
    }
    json_decref(args);
    if (r < 0) {
        json_decref(result);
        return r;
    }
    *ret = result ? result : json_object();
    return 0;
}

static const struct schema_type *
event_find(const char *name)
{
    for (size_t i = 0; i < qmp_events_len; i++) {
        if (!strcmp(qmp_events[i]->name, name)) {
            return qmp_events[i];
        }
    }
    return NULL;
}

json_t *
qmp_event(const char *name, json_t *data, uint64_t now_ns)
{
    const struct schema_type *type = event_find(name);

    assert(type && data && schema_check(type, data, NULL) == 0);
    return json_pack("{s:{s:I, s:I}, s:s, s:o}", "timestamp", "seconds",
                     (json_int_t)(now_ns / 1000000000), "microseconds",
                     (json_int_t)(now_ns % 1000000000 / 1000), "event", name,
                     "data", data);
}
