// SPDX-License-Identifier: BSD-3-Clause
/* The handlers of the commands that describe the protocol itself. */
#include <assert.h>

#include "control/qmp_dispatch.h"
#include "control/qmp_version.h"
#include "schema_dispatch.h"

json_t *
qmp_version(void)
{
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "qemu", "micro",
                     QMP_COMPAT_MICRO, "minor", QMP_COMPAT_MINOR, "major",
                     QMP_COMPAT_MAJOR, "package", "sluice " SLUICE_VERSION);
}

int
cmd_query_version(struct control *ctl, const struct args_query_version *args,
                  json_t **ret, struct err *err)
{
    *ret = qmp_version();
    return 0;
}

int
cmd_query_commands(struct control *ctl, const struct args_query_commands *args,
                   json_t **ret, struct err *err)
{
    *ret = json_array();
    for (size_t i = 0; i < qmp_commands_len; i++) {
        json_array_append_new(*ret,
                              json_pack("{s:s}", "name", qmp_commands[i].name));
    }
    return 0;
}

int
cmd_query_qmp_schema(struct control *ctl,
                     const struct args_query_qmp_schema *args, json_t **ret,
                     struct err *err)
{
    *ret = json_loads(qmp_introspection, 0, NULL);
    assert(*ret);
    return 0;
}
