// SPDX-License-Identifier: BSD-3-Clause
/* Where the control socket is: the daemon listens there, the command looks. */
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "control/control.h"

char *
control_default_socket(void)
{
    const char *folder = getenv("XDG_RUNTIME_DIR");

    if (geteuid() == 0 || !folder) {
        return xstrdup("/run/sluice/control.sock");
    }
    return xasprintf("%s/sluice/control.sock", folder);
}
