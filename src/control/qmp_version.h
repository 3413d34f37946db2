// SPDX-License-Identifier: BSD-3-Clause
/* What the greeting and query-version say. */
#ifndef SLUICE_CONTROL_QMP_VERSION_H
#define SLUICE_CONTROL_QMP_VERSION_H

#include <jansson.h>

/*
 * The QEMU whose schema ours follows.  Clients derive from it which members
 * they may send, so that it must not be Sluice's own version.
 */
enum {
    QMP_COMPAT_MAJOR = 11,
    QMP_COMPAT_MINOR = 1,
    QMP_COMPAT_MICRO = 3,
};

/* Sluice's own version is the package.  A new reference. */
json_t *qmp_version(void);

#endif
