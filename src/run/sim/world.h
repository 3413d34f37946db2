// SPDX-License-Identifier: BSD-3-Clause
/* The simulated world, for its parts: private to run/sim/. */
#ifndef SLUICE_RUN_SIM_WORLD_H
#define SLUICE_RUN_SIM_WORLD_H

#include "run/sim/disk.h"
#include "run/sim/sim.h"

struct stream;
struct listener;
struct address;
struct err;

struct sim {
    struct loop loop;
    struct sim_disk *disk;
    struct sim_options o;
    uint64_t now, rng;
    uint64_t moved_at; /* switches when the time last passed */
    uint64_t n_io, n_events, n_syncs, n_held_up;

    /* net.c */
    uint64_t n_messages;
    uint64_t down_until; /* nobody can connect before */
    uint64_t silent_until; /* nothing that is sent arrives before */
    struct list links, listeners, fd_waiters;
};

static inline struct sim *
sim_of(struct loop *loop)
{
    return container_of(loop, struct sim, loop);
}

/* net.c: the loop_ops of streams. */

void net_init(struct sim *sim);
/* Moves what descriptors hold, wakes who waits for one.  Does not yield. */
void net_pump(struct sim *sim);
short net_fd_wait(struct loop *loop, int fd, short events,
                  uint64_t deadline_ns);
void net_fd_wake(struct loop *loop, int fd);
int net_listen(struct loop *loop, const struct address *address,
               struct listener **ret, struct err *err);
int net_connect(struct loop *loop, const struct address *address,
                struct stream **ret, struct err *err);
int net_connect_fd(struct loop *loop, const struct address *address, int *ret,
                   struct err *err);

#endif
