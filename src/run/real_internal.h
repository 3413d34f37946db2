// SPDX-License-Identifier: BSD-3-Clause
/* Shared by real*.c only. */
#ifndef SLUICE_RUN_REAL_INTERNAL_H
#define SLUICE_RUN_REAL_INTERNAL_H

#include <limits.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>

#include "run/file.h"
#include "run/real.h"
#include "run/stream.h"

/*
 * Jobs that would wait for each other, one at a time: whoever has done one does
 * the next, without a way through the loop.  The loop's lock covers it.
 */
struct job_chain {
    struct list waiting; /* of struct job.link */
    bool busy;
};

/* Work off the loop; @over runs in the loop's context once @fn has returned. */
struct job {
    struct list link;
    void (*fn)(void *);
    void (*over)(void *);
    void *arg;
    struct job_chain *chain; /* NULL: none */
    atomic_bool reported;    /* see job_report() */
};

/*
 * Worker threads, started when all are busy, alive until the loop ends.  The
 * loop's lock covers them.
 */
struct pool {
    struct real_loop *rl;
    struct list jobs; /* of struct job.link */
    pthread_cond_t work;
    pthread_t threads[64];
    unsigned n_threads, n_idle, n_queued, max;
    int nice; /* of its threads, so that a guest's work goes first */
};

struct real_loop {
    struct loop loop;
    int epoll_fd, event_fd;
    bool have_ring; /* and it takes requests */
    bool ring_open;
    struct io_uring ring;
    struct list unsubmitted; /* of struct completion, as in the ring */
    struct list fd_waiters; /* in fd_wait() */
    struct list queues;     /* of write_queue.link: to start at the turn's end */
    uint64_t awake_ns;      /* how long the next wait looks before it sleeps */
    /*
     * Copies and syncs under way, which keep a CPU busy for long: the loop
     * sleeps then while it waits.  One that looks and yields would be put
     * behind them, and a kernel that is not preempted lets it wait there.
     */
    unsigned n_heavy;
    struct look *look;      /* where it looks first; NULL: only in epoll */
    unsigned n_looks;       /* that found something, since epoll was asked */

    pthread_mutex_t lock; /* covers the pools, posts, ending, write queues */
    struct pool pool, background;
    struct list posts;
    struct list done; /* of struct job.link, whose `over` is to be called */
    bool ending;

    atomic_bool posted; /* something is in `posts` or `done` */
    struct list backends; /* of struct backend.link */
};

/* What can hang as a whole, and its share of the workers; see the file. */
struct backend {
    struct list link;
    char *name; /* a folder or an address; NULL: by device */
    dev_t dev;
    unsigned refs;
    struct offload_group work, background, ahead;
    unsigned write_slots; /* that are free */
};

uint64_t real_now(struct loop *loop);

struct backend *backend_of_device(struct real_loop *rl, dev_t dev);
void backend_put(struct backend *b);
/* offload() in the share of the folder that @path lies in.  Yields. */
void offload_by_folder(struct loop *loop, const char *path, void (*fn)(void *),
                       void *arg);
/* The same for a peer's address. */
void offload_by_name(struct loop *loop, const char *name, void (*fn)(void *),
                     void *arg);

/* What an epoll event calls, in the loop's context. */
struct watch {
    void (*fn)(struct watch *watch, unsigned events);
};

/*
 * Who waits for what one system call can fetch.  A loop that waits awake calls
 * @fn: true where that was there, and whoever waits was woken.
 */
struct look {
    bool (*fn)(struct look *look);
};

static inline struct real_loop *
real_of(struct loop *loop)
{
    return container_of(loop, struct real_loop, loop);
}

/*
 * A submission entry, to be filled and then given to ring_wait() before the
 * next yield; NULL where there is no ring (any more).  Yields where it is full.
 */
struct io_uring_sqe *ring_sqe(struct real_loop *rl);
/*
 * Yields until the entry completes and returns its result.  RING_BROKEN: the
 * ring did not take it, nothing was done, and a worker must do it.
 */
#define RING_BROKEN INT_MIN
int ring_wait(struct real_loop *rl, struct io_uring_sqe *sqe);

/* Hands @job to a worker; it must live until `over` is called. */
void pool_start_job(struct pool *pool, struct job *job);
/* As offload(), without a group, and in a chain unless that is NULL.  Yields. */
void pool_run(struct pool *pool, struct job_chain *chain, void (*fn)(void *),
              void *arg);
/*
 * From the `fn` of another job, before its end: has @job's `over` called, at
 * least once after each call.  @job itself is never given to a pool.
 */
void job_report(struct real_loop *rl, struct job *job);
void job_chain_init(struct job_chain *chain);

/*
 * Writes of one file that the loop's thread must not do itself.  One worker
 * does them, one after the other (the file system lets only one at a time
 * write to a file anyway): a hand-over and a bell for many instead of for each.
 * It begins at the turn's end, or as soon as there is something worth it, and
 * takes what waits in pieces: each is answered while the next is written, so
 * that neither the worker nor the loop waits for the other.
 */
struct write_queue {
    struct list link; /* of the loop, while it waits for the turn's end */
    /* Of struct queued_write; under the loop's lock while the job runs. */
    struct list waiting, written;
    uint64_t waiting_bytes;
    struct list last;     /* what the job wrote last, once it is over */
    uint64_t taken_bytes; /* by the job that runs */
    struct job job, part;
    struct real_loop *rl;
    struct backend *backend;
    bool busy, abandoned;

    /* Of a thread in the background, which waits for it; under the lock. */
    struct queued_write *lent;
    pthread_cond_t lent_done;
    bool takes_lent;
    uint64_t lend_after_ns;
};

struct queued_write {
    struct list link;
    int fd;
    const struct iovec *iov;
    int n;
    uint64_t off, bytes;
    ssize_t result;
    struct coro *co;
    bool done;
};

/* Takes over the reference to @backend. */
struct write_queue *write_queue_new(struct real_loop *rl,
                                    struct backend *backend);
/* Nothing is in it; its worker may still be about to find that out. */
void write_queue_free(struct write_queue *q);
/* Writes once, as pwritev(2), or gives -errno.  Yields. */
ssize_t write_queue_run(struct write_queue *q, struct queued_write *w);
/*
 * For a thread in the background, one at a time: where the worker is at work,
 * it writes @w after its piece, as write_queue_run() would, and no guest's
 * write waits while threads fight for the inode's lock.  False: it is not, and
 * the thread writes itself.
 */
bool write_queue_lend(struct write_queue *q, struct queued_write *w);
/* For the loop: starts what gathered. */
void write_queues_start(struct real_loop *rl);

int real_file_open(struct loop *loop, const char *path, unsigned flags,
                   struct file **ret);
int real_rename(struct loop *loop, const char *from, const char *to);
int real_unlink(struct loop *loop, const char *path);
/*
 * Of the block device with that number: the same after a boot, and by whatever
 * name; 0 where nothing is known of it by which to tell it.
 */
uint64_t device_identity(uint64_t rdev);
int real_locate(struct loop *loop, const char *path, struct file_location *ret);
int real_sync_folder(struct loop *loop, const char *path);
int real_list_folder(struct loop *loop, const char *path, char ***ret,
                     size_t *ret_n);
int real_shm_open(struct loop *loop, const char *name, uint64_t size,
                  struct shm **ret);
int real_listen(struct loop *loop, const struct address *address,
                struct listener **ret, struct err *err);
int real_connect(struct loop *loop, const struct address *address,
                 struct stream **ret, struct err *err);

#endif
