// SPDX-License-Identifier: BSD-3-Clause
/*
 * Memory for small, fixed-size objects: these allocators abort when memory is
 * out, so callers need no error path.  A size that an image, a peer or a user
 * chose is checked against a limit first and goes through try_alloc(), which
 * may return NULL.
 */
#ifndef SLUICE_BASE_MEM_H
#define SLUICE_BASE_MEM_H

#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

void *xmalloc(size_t size);
void *xzalloc(size_t size);
void *xrealloc(void *p, size_t size);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
char *xvasprintf(const char *fmt, va_list ap)
    __attribute__((format(printf, 1, 0)));

/* May return NULL: for sizes that come from outside. */
void *try_alloc(size_t size);
void *try_zalloc(size_t size);
/* Aligned to @align (a power of two); free() releases it; may return NULL. */
void *try_alloc_aligned(size_t align, size_t size);

static inline void
auto_free_cleanup(void *p)
{
    free(*(void **)p);
}

/* Scope-bound ownership: `auto_free char *s = xstrdup(...)`. */
#define auto_free __attribute__((cleanup(auto_free_cleanup)))

/* Hands the object over: returns the pointer and clears the variable. */
#define take_ptr(p)                                                            \
    __extension__({                                                            \
        __typeof__(p) take_ptr_ = (p);                                         \
        (p) = NULL;                                                            \
        take_ptr_;                                                             \
    })

#define container_of(ptr, type, member)                                        \
    ((type *)((char *)(ptr)-offsetof(type, member)))

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
