// SPDX-License-Identifier: BSD-3-Clause
/*
 * Coroutines on mapped stacks.
 *
 * ucontext starts a stack once; after that, sigsetjmp/siglongjmp switch (no
 * system call, no signal mask).  A pooled coroutine that ended keeps its stack
 * and its saved context: it jumps back into the trampoline's loop with a new
 * function, so makecontext() runs once per stack, not once per coroutine.
 *
 * Switches go only from the loop into a coroutine and back, never from one
 * coroutine into another, so there is one saved loop context per pool.
 *
 * This file is built with -U_FORTIFY_SOURCE: the fortified longjmp refuses to
 * jump between stacks.
 */
#include "run/coro.h"

#include <assert.h>
#include <setjmp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"

#if defined(__SANITIZE_ADDRESS__)
#define CORO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CORO_ASAN 1
#endif
#endif
#ifdef CORO_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

enum {
#ifdef CORO_ASAN
    STACK_SIZE = 1024 * 1024, /* redzones make frames several times larger */
#else
    STACK_SIZE = 256 * 1024,
#endif
    POOL_MAX = 256, /* idle stacks kept for reuse */
};

struct fiber {
    struct coro co;
    struct list idle; /* in the pool's list while unused */
    struct coro_pool *pool;
    void (*fn)(void *);
    void *arg;
    void *map; /* guard page, then the stack */
    size_t map_size;
    sigjmp_buf env;
    bool started, ended;
    void *asan_fake;
};

struct coro_pool {
    struct list idle;
    unsigned n_idle;
    sigjmp_buf env; /* the loop's own context */
    void *asan_fake;
    const void *asan_bottom;
    size_t asan_size;
};

static _Thread_local struct fiber *running;

struct coro *
coro_self(void)
{
    return running ? &running->co : NULL;
}

struct coro_pool *
coro_pool_new(void)
{
    struct coro_pool *pool = xzalloc(sizeof(*pool));

    list_init(&pool->idle);
    return pool;
}

static void
fiber_free(struct fiber *f)
{
    munmap(f->map, f->map_size);
    free(f);
}

void
coro_pool_free(struct coro_pool *pool)
{
    list_for_each_safe(it, &pool->idle)
    {
        fiber_free(container_of(it, struct fiber, idle));
    }
    free(pool);
}

void
coro_pool_move(struct coro_pool *to, struct coro_pool *from)
{
    list_splice(&to->idle, &from->idle);
    to->n_idle += from->n_idle;
    from->n_idle = 0;
}

static void
enter_stack(struct fiber *f)
{
#ifdef CORO_ASAN
    __sanitizer_finish_switch_fiber(f->asan_fake, &f->pool->asan_bottom,
                                    &f->pool->asan_size);
#endif
    (void)f;
}

/* Back to the loop; returns when the loop resumes this coroutine. */
static void
leave_stack(struct fiber *f)
{
#ifdef CORO_ASAN
    __sanitizer_start_switch_fiber(&f->asan_fake, f->pool->asan_bottom,
                                   f->pool->asan_size);
#endif
    if (!sigsetjmp(f->env, 0)) {
        siglongjmp(f->pool->env, 1);
    }
    enter_stack(f);
}

static void
trampoline(unsigned hi, unsigned lo)
{
    struct fiber *f = (struct fiber *)(((uintptr_t)hi << 32) | lo);

    enter_stack(f);
    for (;;) {
        f->fn(f->arg);
        f->ended = true;
        leave_stack(f);
    }
}

struct coro *
coro_new(struct coro_pool *pool, struct loop *loop, void (*fn)(void *),
         void *arg)
{
    struct fiber *f;

    if (!list_empty(&pool->idle)) {
        f = list_first(&pool->idle, struct fiber, idle);
        list_remove(&f->idle);
        pool->n_idle--;
    } else {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);

        f = xzalloc(sizeof(*f));
        list_init(&f->idle);
        list_init(&f->co.link);
        f->map_size = STACK_SIZE + page;
        f->map =
            mmap(NULL, f->map_size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
        if (f->map == MAP_FAILED || mprotect(f->map, page, PROT_NONE)) {
            abort(); /* as any small allocation: out of memory ends us */
        }
    }
    f->pool = pool;
    f->co.loop = loop;
    f->co.ready = false;
    f->fn = fn;
    f->arg = arg;
    f->ended = false;
    return &f->co;
}

static void
start_stack(struct fiber *f)
{
    ucontext_t uc;
    uintptr_t p = (uintptr_t)f;

    if (getcontext(&uc)) {
        abort();
    }
    uc.uc_link = NULL;
    uc.uc_stack.ss_sp = (char *)f->map + (f->map_size - STACK_SIZE);
    uc.uc_stack.ss_size = STACK_SIZE;
    f->started = true;
    makecontext(&uc, (void (*)(void))trampoline, 2, (unsigned)(p >> 32),
                (unsigned)p);
    setcontext(&uc);
    abort();
}

bool
coro_resume(struct coro_pool *pool, struct coro *co)
{
    struct fiber *f = container_of(co, struct fiber, co);
    struct fiber *outer = running;

    running = f;
#ifdef CORO_ASAN
    __sanitizer_start_switch_fiber(&pool->asan_fake,
                                   (char *)f->map +
                                       (f->map_size - STACK_SIZE),
                                   STACK_SIZE);
#endif
    if (!sigsetjmp(pool->env, 0)) {
        if (f->started) {
            siglongjmp(f->env, 1);
        }
        start_stack(f);
    }
#ifdef CORO_ASAN
    __sanitizer_finish_switch_fiber(pool->asan_fake, NULL, NULL);
#endif
    running = outer;
    if (!f->ended) {
        return false;
    }
    assert(!co->ready); /* woken while it ran, it would run once more */
    if (pool->n_idle < POOL_MAX) {
        /* Last in, first out: the warmest stack is used next. */
        list_push_front(&pool->idle, &f->idle);
        pool->n_idle++;
    } else {
        fiber_free(f);
    }
    return true;
}

void
coro_yield(void)
{
    assert(running);
    leave_stack(running);
}
