// SPDX-License-Identifier: BSD-3-Clause
/* One write per line, so that lines of several threads do not mix. */
#include "base/log.h"

#include <errno.h>
#include <stdio.h>

#include "base/mem.h"

void
log_line(enum log_level level, const char *fmt, ...)
{
    static const char *const names[] = {"error", "warning", "info"};
    int saved = errno;

    va_list ap;
    va_start(ap, fmt);
    auto_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, names[level],
            text);
    errno = saved;
}
