// SPDX-License-Identifier: BSD-3-Clause
/* The drivers that are built in: what a face hands to graph_new(). */
#ifndef SLUICE_DRIVERS_H
#define SLUICE_DRIVERS_H

struct driver;

extern const struct driver driver_file;
extern const struct driver driver_host_device;
extern const struct driver driver_raw;
extern const struct driver driver_copy_on_read;
extern const struct driver driver_qcow2;
extern const struct driver driver_qed;
extern const struct driver driver_throttle;
extern const struct driver driver_nbd;
extern const struct driver driver_mem;
extern const struct driver driver_null;
extern const struct driver driver_fault;
extern const struct driver driver_crash;

/* NULL-terminated. */
extern const struct driver *const all_drivers[];

#endif
