// SPDX-License-Identifier: BSD-3-Clause
/* Allocators that abort when memory is out, and their fallible siblings. */
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

static void *
check(void *p)
{
    if (!p) {
        fputs("sluice: out of memory\n", stderr);
        abort();
    }
    return p;
}

void *
xmalloc(size_t size)
{
    return check(malloc(size ? size : 1));
}

void *
xzalloc(size_t size)
{
    return check(calloc(1, size ? size : 1));
}

void *
xrealloc(void *p, size_t size)
{
    return check(realloc(p, size ? size : 1));
}

char *
xstrdup(const char *s)
{
    return check(strdup(s));
}

char *
xstrndup(const char *s, size_t n)
{
    return check(strndup(s, n));
}

char *
xvasprintf(const char *fmt, va_list ap)
{
    char *s = NULL;

    if (vasprintf(&s, fmt, ap) < 0) {
        s = NULL;
    }
    return check(s);
}

char *
xasprintf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *s = xvasprintf(fmt, ap);
    va_end(ap);
    return s;
}

void *
try_alloc(size_t size)
{
    return malloc(size ? size : 1);
}

void *
try_zalloc(size_t size)
{
    return calloc(1, size ? size : 1);
}

void *
try_alloc_aligned(size_t align, size_t size)
{
    void *p = NULL;

    return posix_memalign(&p, align, size ? size : 1) ? NULL : p;
}
