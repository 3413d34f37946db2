// SPDX-License-Identifier: BSD-3-Clause
/*
 * The real loop.
 *
 * One epoll descriptor is what the thread sleeps in.  Sockets are registered
 * once, edge-triggered.  One eventfd in it is rung by io_uring for completions
 * and by other threads for posts.  Submissions gather during a turn and go out
 * with one system call at its end; completions are read from the shared ring
 * without any.  What the kernel does not take then waits for the next turn;
 * where it takes nothing more for good, worker threads do all.
 *
 * Work off the loop runs in threads that are started when all are busy and
 * that live until the loop ends.  Where the kernel refuses io_uring, files use
 * that path, too.
 */
#include "run/real.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "run/real_internal.h"

enum {
    RING_ENTRIES = 256,
    BACKGROUND_THREADS = 16,
    /* A third of the weight of a guest's work where both want the CPU: a
     * transfer neither starves a guest nor is starved (design §2). */
    BACKGROUND_NICE = 5,
    EVENTS_MAX = 64,
    LOOKS_MAX = 8,
    HOUR = 3600, /* s */
};

/* What the ring did not take is tried again so soon, if not before. */
#define SUBMIT_AGAIN_NS NS_PER_MS

/* A wait is begun awake for so long, if the last ones were as short. */
#define AWAKE_MIN_NS 4000
#define AWAKE_MAX_NS 32000

struct post {
    struct list link;
    void (*fn)(void *);
    void *arg;
};

/* Clock and random numbers. */

static uint64_t
clock_ns(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t
real_now(struct loop *loop)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t
real_wall_now(struct loop *loop)
{
    return clock_ns(CLOCK_REALTIME);
}

static uint64_t
real_random(struct loop *loop)
{
    uint64_t v = 0;

    while (getrandom(&v, sizeof(v), 0) != sizeof(v)) {
    }
    return v;
}

/* Posts from other threads. */

static void
ring_bell(struct real_loop *rl)
{
    uint64_t one = 1;

    while (write(rl->event_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* A bell that rings already is enough: the flag falls before lists are taken. */
static void
announce(struct real_loop *rl)
{
    if (!atomic_exchange(&rl->posted, true)) {
        ring_bell(rl);
    }
}

void
real_loop_post(struct loop *loop, void (*fn)(void *), void *arg)
{
    struct real_loop *rl = real_of(loop);
    struct post *post = xmalloc(sizeof(*post));

    *post = (struct post){.fn = fn, .arg = arg};
    pthread_mutex_lock(&rl->lock);
    list_push(&rl->posts, &post->link);
    pthread_mutex_unlock(&rl->lock);
    announce(rl);
}

static void
run_posts(struct real_loop *rl)
{
    struct list posts, done;

    if (!atomic_exchange(&rl->posted, false)) {
        return;
    }
    list_init(&posts);
    list_init(&done);
    pthread_mutex_lock(&rl->lock);
    list_splice(&posts, &rl->posts);
    list_splice(&done, &rl->done);
    pthread_mutex_unlock(&rl->lock);
    list_for_each_safe(it, &done)
    {
        struct job *job = container_of(it, struct job, link);

        list_remove(it);
        atomic_store(&job->reported, false); /* `over` sees all until now */
        job->over(job);
    }
    list_for_each_safe(it, &posts)
    {
        struct post *post = container_of(it, struct post, link);

        list_remove(it);
        post->fn(post->arg);
        free(post);
    }
}

/* Work off the loop. */

void
job_chain_init(struct job_chain *chain)
{
    list_init(&chain->waiting);
    chain->busy = false;
}

void
job_report(struct real_loop *rl, struct job *job)
{
    assert(!job->fn);
    if (!atomic_exchange(&job->reported, true)) {
        pthread_mutex_lock(&rl->lock);
        list_push(&rl->done, &job->link);
        pthread_mutex_unlock(&rl->lock);
        announce(rl);
    }
}

/* Says that it is done; what its chain has next, or NULL.  @job may vanish. */
static struct job *
job_done(struct real_loop *rl, struct job *job)
{
    struct job_chain *chain = job->chain;
    struct job *next = NULL;

    pthread_mutex_lock(&rl->lock);
    list_push(&rl->done, &job->link);
    if (chain) {
        chain->busy = !list_empty(&chain->waiting);
    }
    if (chain && chain->busy) {
        next = list_first(&chain->waiting, struct job, link);
        list_remove(&next->link);
    }
    pthread_mutex_unlock(&rl->lock);
    announce(rl);
    return next;
}

static void *
worker(void *arg)
{
    struct pool *pool = arg;
    struct real_loop *rl = pool->rl;

    if (pool->nice) {
        setpriority(PRIO_PROCESS, (id_t)gettid(), pool->nice);
    }
    pthread_mutex_lock(&rl->lock);
    for (;;) {
        while (list_empty(&pool->jobs) && !rl->ending) {
            pool->n_idle++;
            pthread_cond_wait(&pool->work, &rl->lock);
            pool->n_idle--;
        }
        if (list_empty(&pool->jobs)) {
            break;
        }
        struct job *job = list_first(&pool->jobs, struct job, link);

        list_remove(&job->link);
        pool->n_queued--;
        pthread_mutex_unlock(&rl->lock);
        while (job) {
            job->fn(job->arg);
            job = job_done(rl, job);
        }
        pthread_mutex_lock(&rl->lock);
    }
    pthread_mutex_unlock(&rl->lock);
    return NULL;
}

static void
pool_init(struct pool *pool, struct real_loop *rl, unsigned max, int nice)
{
    *pool = (struct pool){.rl = rl, .max = max, .nice = nice};
    assert(max <= ARRAY_LEN(pool->threads));
    list_init(&pool->jobs);
    pthread_cond_init(&pool->work, NULL);
}

/* The loop is `ending`. */
static void
pool_fini(struct pool *pool)
{
    for (unsigned i = 0; i < pool->n_threads; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pthread_cond_destroy(&pool->work);
}

void
pool_start_job(struct pool *pool, struct job *job)
{
    struct real_loop *rl = pool->rl;

    pthread_mutex_lock(&rl->lock);
    if (job->chain && job->chain->busy) {
        list_push(&job->chain->waiting, &job->link);
        pthread_mutex_unlock(&rl->lock);
        return;
    }
    if (job->chain) {
        job->chain->busy = true;
    }
    list_push(&pool->jobs, &job->link);
    /* One that sleeps may have been woken for an earlier job already. */
    if (++pool->n_queued > pool->n_idle && pool->n_threads < pool->max &&
        !pthread_create(&pool->threads[pool->n_threads], NULL, worker, pool)) {
        pool->n_threads++;
    }
    assert(pool->n_threads);
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&rl->lock);
}

struct offloaded {
    struct job job;
    struct coro *co;
    bool done;
};

static void
offload_over(void *arg)
{
    struct offloaded *o = container_of(arg, struct offloaded, job);

    o->done = true;
    coro_wake(o->co);
}

void
pool_run(struct pool *pool, struct job_chain *chain, void (*fn)(void *),
         void *arg)
{
    struct offloaded o = {.job = {.fn = fn,
                                  .arg = arg,
                                  .over = offload_over,
                                  .chain = chain},
                          .co = coro_self()};

    pool_start_job(pool, &o.job);
    while (!o.done) {
        coro_yield();
    }
}

static void
real_offload(struct loop *loop, void (*fn)(void *), void *arg)
{
    pool_run(&real_of(loop)->pool, NULL, fn, arg);
}

/* io_uring. */

struct completion {
    struct list link; /* real_loop.unsubmitted, until the kernel has it */
    struct coro *co;
    int result;
    bool done;
};

static void
complete(struct completion *c, int result)
{
    c->result = result;
    c->done = true;
    coro_wake(c->co);
}

/* What waits in it goes to workers, as does all that comes later. */
static void
ring_broke(struct real_loop *rl, int error)
{
    log_warn("io_uring fails (%s): files use worker threads", err_text(error));
    rl->have_ring = false;
    list_for_each_safe(it, &rl->unsubmitted)
    {
        list_remove(it);
        complete(container_of(it, struct completion, link), RING_BROKEN);
    }
}

/*
 * Gives the kernel what gathered.  What it does not take now, for want of
 * memory or of room for completions, stays for the next turn.
 */
static void
ring_submit(struct real_loop *rl)
{
    while (!list_empty(&rl->unsubmitted)) {
        int n = io_uring_submit(&rl->ring);

        if (n == 0 || n == -EAGAIN || n == -EBUSY || n == -EINTR) {
            break;
        }
        if (n < 0) {
            ring_broke(rl, n);
            break;
        }
        while (n-- && !list_empty(&rl->unsubmitted)) {
            list_remove(rl->unsubmitted.next);
        }
    }
}

struct io_uring_sqe *
ring_sqe(struct real_loop *rl)
{
    struct io_uring_sqe *sqe = NULL;

    while (rl->have_ring && !(sqe = io_uring_get_sqe(&rl->ring))) {
        ring_submit(rl);
        if (!list_empty(&rl->unsubmitted)) {
            coro_sleep(SUBMIT_AGAIN_NS);
        }
    }
    return sqe;
}

int
ring_wait(struct real_loop *rl, struct io_uring_sqe *sqe)
{
    struct completion c = {.co = coro_self()};

    io_uring_sqe_set_data(sqe, &c);
    list_push(&rl->unsubmitted, &c.link);
    while (!c.done) {
        coro_yield();
    }
    return c.result;
}

static void
reap(struct real_loop *rl)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&rl->ring, head, cqe)
    {
        complete(io_uring_cqe_get_data(cqe), cqe->res);
        n++;
    }
    io_uring_cq_advance(&rl->ring, n);
}

static void
real_flush(struct loop *loop)
{
    struct real_loop *rl = real_of(loop);

    write_queues_start(rl);
    ring_submit(rl);
}

/* Waiting. */

static int
look_for_events(struct real_loop *rl, struct epoll_event *events)
{
    rl->n_looks = 0;
    return epoll_wait(rl->epoll_fd, events, EVENTS_MAX, 0);
}

/* valgrind lacks the call with a timeout in ns: ms will do there. */
static int
sleep_until(struct real_loop *rl, struct epoll_event *events,
            uint64_t deadline_ns)
{
    uint64_t now = real_now(&rl->loop);
    uint64_t ns = deadline_ns > now ? deadline_ns - now : 0;
    const struct timespec timeout = {.tv_sec = (time_t)(ns / NS_PER_S),
                                     .tv_nsec = (long)(ns % NS_PER_S)};
    bool for_ever = deadline_ns == NEVER;
    int n = (int)syscall(SYS_epoll_pwait2, rl->epoll_fd, events, EVENTS_MAX,
                         for_ever ? NULL : &timeout, NULL, 0);

    if (n < 0 && errno == ENOSYS) {
        uint64_t ms = div_up(min_u64(ns, HOUR * NS_PER_S), NS_PER_MS);

        n = epoll_wait(rl->epoll_fd, events, EVENTS_MAX,
                       for_ever ? -1 : (int)ms);
    }
    return n;
}

/* One connection must not keep the loop from all others. */
static bool
look(struct real_loop *rl)
{
    if (!rl->look || rl->n_looks == LOOKS_MAX || !rl->look->fn(rl->look)) {
        return false;
    }
    rl->n_looks++;
    return true;
}

/*
 * Looks for events until @end_ns without going to sleep: to be woken costs more
 * than a short wait.  Who was woken on this CPU goes first.  The connection
 * that is waited for is asked itself: where it has something, one system call
 * less stands between it and its answer.
 */
static int
wait_awake(struct real_loop *rl, struct epoll_event *events, uint64_t end_ns)
{
    int n;

    do {
        sched_yield();
        if (look(rl)) {
            return 0;
        }
        n = look_for_events(rl, events);
    } while (!n && real_now(&rl->loop) < end_ns);
    return n;
}

/*
 * How long to look next time: longer where a sleep was so short that it could
 * have been awake, less and less after long ones.
 */
static void
learn(struct real_loop *rl, uint64_t waited_ns)
{
    if (waited_ns > AWAKE_MAX_NS) {
        rl->awake_ns /= 2;
    } else if (waited_ns > rl->awake_ns) {
        rl->awake_ns =
            max_u64(min_u64(rl->awake_ns * 2, AWAKE_MAX_NS), AWAKE_MIN_NS);
    }
}

static int
wait_for_events(struct real_loop *rl, struct epoll_event *events,
                uint64_t deadline_ns)
{
    uint64_t begin = real_now(&rl->loop);
    int n = 0;

    if (rl->awake_ns && !rl->n_heavy) {
        n = wait_awake(rl, events, min_u64(deadline_ns, begin + rl->awake_ns));
    }
    if (n || rl->loop.n_ready) {
        return n;
    }
    n = sleep_until(rl, events, deadline_ns);
    learn(rl, real_now(&rl->loop) - begin);
    return n;
}

static bool
real_wait(struct loop *loop, uint64_t deadline_ns)
{
    struct real_loop *rl = real_of(loop);
    struct epoll_event events[EVENTS_MAX];
    int n;

    if (rl->ring_open) {
        reap(rl);
    }
    if (deadline_ns && !list_empty(&rl->unsubmitted)) {
        deadline_ns = min_u64(deadline_ns, real_now(loop) + SUBMIT_AGAIN_NS);
    }
    n = deadline_ns && !loop->n_ready
            ? wait_for_events(rl, events, deadline_ns)
            : look_for_events(rl, events);
    for (int i = 0; i < n; i++) {
        struct watch *watch = events[i].data.ptr;

        if (watch) {
            watch->fn(watch, events[i].events);
        } else {
            uint64_t count;

            while (read(rl->event_fd, &count, sizeof(count)) < 0 &&
                   errno == EINTR) {
            }
        }
    }
    if (rl->ring_open) {
        reap(rl);
    }
    run_posts(rl);
    return true;
}

static struct list *
real_pick(struct loop *loop, struct list *ready, unsigned n)
{
    return ready->next;
}

struct fd_waiter {
    struct watch watch;
    struct list link; /* of the loop */
    int fd;
    struct waitq wait;
    unsigned events;
};

static void
fd_ready(struct watch *watch, unsigned events)
{
    struct fd_waiter *w = container_of(watch, struct fd_waiter, watch);

    w->events = events;
    waitq_wake_all(&w->wait);
}

static short
real_fd_wait(struct loop *loop, int fd, short events, uint64_t deadline_ns)
{
    struct real_loop *rl = real_of(loop);
    struct fd_waiter w = {.watch.fn = fd_ready, .fd = fd};
    /* poll(2)'s and epoll's bits have the same values. */
    struct epoll_event ev = {.events = (unsigned)events | EPOLLONESHOT,
                             .data.ptr = &w.watch};

    waitq_init(&w.wait);
    if (epoll_ctl(rl->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
        return POLLERR;
    }
    list_push(&rl->fd_waiters, &w.link);
    waitq_wait_until(&w.wait, deadline_ns);
    list_remove(&w.link);
    epoll_ctl(rl->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    return (short)w.events;
}

static void
real_fd_wake(struct loop *loop, int fd)
{
    list_for_each(it, &real_of(loop)->fd_waiters)
    {
        struct fd_waiter *w = container_of(it, struct fd_waiter, link);

        if (w->fd == fd) {
            waitq_wake_all(&w->wait);
        }
    }
}

/* Birth and death. */

static void
real_destroy(struct loop *loop)
{
    struct real_loop *rl = real_of(loop);

    pthread_mutex_lock(&rl->lock);
    rl->ending = true;
    pthread_cond_broadcast(&rl->pool.work);
    pthread_cond_broadcast(&rl->background.work);
    pthread_mutex_unlock(&rl->lock);
    pool_fini(&rl->pool);
    pool_fini(&rl->background);
    run_posts(rl);
    if (rl->ring_open) {
        io_uring_queue_exit(&rl->ring);
    }
    close(rl->event_fd);
    close(rl->epoll_fd);
    pthread_mutex_destroy(&rl->lock);
    loop_fini(loop);
    free(rl);
}

static const struct loop_ops real_ops = {
    .now = real_now,
    .wall_now = real_wall_now,
    .random = real_random,
    .wait = real_wait,
    .pick = real_pick,
    .flush = real_flush,
    .destroy = real_destroy,
    .offload = real_offload,
    .file_open = real_file_open,
    .rename = real_rename,
    .unlink = real_unlink,
    .locate = real_locate,
    .sync_folder = real_sync_folder,
    .list_folder = real_list_folder,
    .shm_open = real_shm_open,
    .fd_wait = real_fd_wait,
    .fd_wake = real_fd_wake,
    .listen = real_listen,
    .connect = real_connect,
};

int
real_loop_new(const struct real_loop_options *options, struct loop **ret,
              struct err *err)
{
    struct real_loop *rl = xzalloc(sizeof(*rl));
    struct epoll_event ev = {.events = EPOLLIN};

    loop_init(&rl->loop, &real_ops);
    pthread_mutex_init(&rl->lock, NULL);
    list_init(&rl->fd_waiters);
    list_init(&rl->queues);
    list_init(&rl->unsubmitted);
    list_init(&rl->posts);
    list_init(&rl->done);
    pool_init(&rl->pool, rl, ARRAY_LEN(rl->pool.threads), 0);
    pool_init(&rl->background, rl, BACKGROUND_THREADS, BACKGROUND_NICE);
    list_init(&rl->backends);
    rl->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    rl->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (rl->epoll_fd < 0 || rl->event_fd < 0 ||
        epoll_ctl(rl->epoll_fd, EPOLL_CTL_ADD, rl->event_fd, &ev)) {
        int code = -errno;

        real_destroy(&rl->loop);
        return err_set_errno(err, code, "Could not make an event loop");
    }
    if (!options->no_io_uring) {
        int r = io_uring_queue_init(RING_ENTRIES, &rl->ring, 0);

        if (!r) {
            rl->have_ring = rl->ring_open = true;
            io_uring_register_eventfd(&rl->ring, rl->event_fd);
        } else {
            log_info("io_uring is not available (%s): files use worker threads",
                     err_text(r));
        }
    }
    *ret = &rl->loop;
    return 0;
}
