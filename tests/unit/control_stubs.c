// SPDX-License-Identifier: BSD-3-Clause
/*
 * Handlers that refuse, for programs that test the control protocol without
 * a daemon behind it.  They are weak: a program that has its own handler for
 * a command is linked with that one.
 */
#include <errno.h>

#include "base/err.h"
#include "schema_dispatch.h"

#define STUB(name)                                                             \
    __attribute__((weak)) int cmd_##name(struct control *ctl,                  \
                                         const struct args_##name *args,       \
                                         json_t **ret, struct err *err)        \
    {                                                                          \
        return err_set(err, -ENOSYS, "stub %s", #name);                        \
    }

QMP_HANDLERS(STUB)
