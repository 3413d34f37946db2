// SPDX-License-Identifier: BSD-3-Clause
/*
 * A growing byte string, always terminated by a NUL.  Whoever appends bounds
 * its length: memory for it is taken with xrealloc().
 */
#ifndef SLUICE_CONTROL_STRBUF_H
#define SLUICE_CONTROL_STRBUF_H

#include <stddef.h>
#include <string.h>

#include "base/mem.h"

struct strbuf {
    char *data; /* NULL while nothing was ever appended */
    size_t len, cap;
};

static inline void
strbuf_add(struct strbuf *b, const void *bytes, size_t n)
{
    if (b->cap - b->len <= n) {
        b->cap = (b->len + n + 1) * 2;
        b->data = xrealloc(b->data, b->cap);
    }
    memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = '\0';
}

static inline void
strbuf_add_char(struct strbuf *b, char c)
{
    strbuf_add(b, &c, 1);
}

static inline void
strbuf_add_str(struct strbuf *b, const char *s)
{
    strbuf_add(b, s, strlen(s));
}

/* Keeps the memory for the next text. */
static inline void
strbuf_reset(struct strbuf *b)
{
    b->len = 0;
    if (b->data) {
        b->data[0] = '\0';
    }
}

static inline const char *
strbuf_text(const struct strbuf *b)
{
    return b->data ? b->data : "";
}

static inline void
strbuf_fini(struct strbuf *b)
{
    free(b->data);
    *b = (struct strbuf){0};
}

#endif
