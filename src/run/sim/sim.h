// SPDX-License-Identifier: BSD-3-Clause
/*
 * The simulator: the other side of the seam.
 *
 * A *disk* holds names and files, and outlives worlds.  A *world* is a loop in
 * virtual time with a seeded scheduler over one disk: everything above the
 * seam runs in it unchanged, in one thread, and the same seed gives the same
 * run.  Each I/O takes a random virtual time, so that requests overlap and
 * complete in any order.  Links between its streams delay, deliver in parts,
 * and can be cut (net.c).
 *
 * What a crash leaves (sim_disk_crash()):
 *   process  every I/O that was issued is kept, memory is gone;
 *   power    of what no fsync covered, any subset survives, the last ones torn
 *            at 512-byte boundaries; names that no folder fsync covered too.
 * fsync covers what had *completed* before it was issued.
 */
#ifndef SLUICE_RUN_SIM_H
#define SLUICE_RUN_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "run/loop.h"

struct sim_disk;
struct sim_spares;
struct sim;

enum { SIM_SECTOR = 512 };

/* Disks. */

struct sim_disk *sim_disk_new(void);
void sim_disk_free(struct sim_disk *disk);
/* Creates or replaces a durable file with these contents. */
void sim_disk_put(struct sim_disk *disk, const char *name, const void *data,
                  size_t len);
/*
 * The file's current contents, NULL where there is no such file; valid until
 * they are asked for again.
 */
const unsigned char *sim_disk_get(struct sim_disk *disk, const char *name,
                                  size_t *ret_len);
/* Calls @each for every file that there is now. */
void sim_disk_names(struct sim_disk *disk,
                    void (*each)(void *arg, const char *name), void *arg);
bool sim_disk_has(struct sim_disk *disk, const char *name);
/* Changes a file, durably, as another program would between two worlds. */
void sim_disk_change(struct sim_disk *disk, const char *name, size_t off,
                     const void *data, size_t len);
/* No file may be larger than this in all; 0: no limit. */
void sim_disk_set_capacity(struct sim_disk *disk, uint64_t bytes);
/* Sum of the sizes of all files. */
uint64_t sim_disk_used(const struct sim_disk *disk);

/* What survives a crash. */
enum sim_crash_kind { SIM_CRASH_PROCESS, SIM_CRASH_POWER };

/*
 * Enumerates the states that a crash at this moment can leave.  @next gets a
 * fresh disk each time, NULL when all are done; the caller frees it.  Up to
 * @max_states power states: all subsets where they fit, else none, all, each
 * alone, each one missing, every prefix, and random ones with torn writes.
 */
/* What became of a change that no fsync had covered. */
enum sim_fate { SIM_LOST = 'l', SIM_KEPT = 'k', SIM_TORN = 't' };

enum { SIM_FATES_MAX = 255 };

/*
 * @fates tells what the last state was: a letter for each pending change, in a
 * fixed order (those behind SIM_FATES_MAX are left out), and @torn the seed
 * that tore.  With @replay, these two ask for that one state.
 */
struct sim_crash {
    struct sim_disk *disk;
    enum sim_crash_kind kind;
    uint64_t max_states, index, seed;
    bool replay;
    uint64_t torn;
    char fates[SIM_FATES_MAX + 1];
};
struct sim_disk *sim_crash_next(struct sim_crash *crash);
/* Writes and names that a power failure now could lose. */
unsigned sim_disk_pending(const struct sim_disk *disk);
/* Describes each of them, in the order of sim_crash's fates. */
void sim_disk_describe(struct sim_disk *disk,
                       void (*say)(void *arg, unsigned i, const char *text),
                       void *arg);

/* Worlds. */

/*
 * What worlds and disks leave to those that come after them: stacks, and memory
 * for shared regions, which the kernel would else map and unmap for each.  They
 * outlive every disk that one of their worlds ran on, and what it left.
 */
struct sim_spares *sim_spares_new(void);
void sim_spares_free(struct sim_spares *spares);

enum { SIM_NEVER = 0, SIM_HANGS = 8 };

#define SIM_HANG_MIN_NS (300 * NS_PER_MS)
#define SIM_HANG_MAX_NS (900 * NS_PER_MS)

struct sim_options {
    uint64_t seed;
    struct sim_spares *spares; /* NULL: everything is mapped anew */
    bool in_order; /* no shuffling, no random delays: for unit tests */
    /* The n-th I/O (from 1) fails with this errno (positive); 0: none does. */
    uint64_t fail_at;
    int fail_errno;
    bool fail_all_after; /* and every later one, too */
    /* All links are cut at the n-th message, which is lost; see below. */
    uint64_t cut_at, cut_ns;
    /*
     * The file of this name hangs now and then: one I/O in SIM_HANGS takes a
     * random time of SIM_HANG_MIN_NS to SIM_HANG_MAX_NS; NULL: none does.
     */
    const char *slow_file;
    /* What a region of shared memory may reserve, bytes; 0: all of it. */
    uint64_t shm_bytes;
    /* When the world ends: a run that is not over by then hangs; 0: never. */
    uint64_t max_ns;
    /* Planted bug: the n-th fsync says it is done and does nothing. */
    uint64_t drop_sync_at;
    /* Called before each durable event takes effect, and after each fsync. */
    void (*on_event)(void *arg, struct sim *sim);
    /* Called in the loop's context before the n-th switch (from 1). */
    uint64_t switch_at;
    void (*on_switch)(void *arg, struct sim *sim);
    /*
     * Asked when an fsync, of a file or a folder, or an open begins, and again
     * when it ends: is somebody kept waiting who must not be?  Where both
     * answers are yes, it is counted.
     */
    bool (*holds_up)(void *arg);
    void *arg;
};

struct sim *sim_new(struct sim_disk *disk, const struct sim_options *options);
/* Frees the world; the disk stays.  No file may be open any more. */
void sim_free(struct sim *sim);
struct loop *sim_loop(struct sim *sim);
struct sim_disk *sim_world_disk(struct sim *sim);
/*
 * Cuts all links: what is on the way is lost, both ends break, and nobody can
 * connect for @down_ns.
 */
void sim_cut_links(struct sim *sim, uint64_t down_ns);
/* For @ns nothing that is sent arrives; it comes then, a link before another. */
void sim_silence_links(struct sim *sim, uint64_t ns);
/*
 * Counters: I/Os begun, durable events, fsyncs, messages, switches, and what
 * held somebody up.
 */
uint64_t sim_n_io(const struct sim *sim);
uint64_t sim_n_events(const struct sim *sim);
uint64_t sim_n_syncs(const struct sim *sim);
uint64_t sim_n_messages(const struct sim *sim);
uint64_t sim_n_switches(const struct sim *sim);
uint64_t sim_n_held_up(const struct sim *sim);

/* The generator that all of the simulator's choices come from (splitmix64). */
uint64_t sim_random(uint64_t *state);

#endif
