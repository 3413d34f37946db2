// SPDX-License-Identifier: BSD-3-Clause
/* The table of drivers. */
#include "drivers/drivers.h"

#include "block/node.h"

const struct driver *const all_drivers[] = {
    &driver_file,  &driver_host_device, &driver_raw,   &driver_copy_on_read,
    &driver_throttle,
    &driver_qcow2, &driver_qed,         &driver_nbd,   &driver_mem,
    &driver_null,  &driver_fault,       &driver_crash, NULL,
};
