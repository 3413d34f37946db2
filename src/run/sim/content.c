// SPDX-License-Identifier: BSD-3-Clause
/*
 * See content.h.  An array of chunks, which is shared as a whole until somebody
 * changes something, and then chunk by chunk; a chunk that is not there is
 * zero.
 */
#include "run/sim/content.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

enum { CHUNK = 4096 };

struct chunk {
    unsigned n_sharers;
    unsigned char data[CHUNK];
};

struct chunks {
    unsigned n_sharers;
    size_t n;
    struct chunk *at[];
};

static const unsigned char zeroes[CHUNK];

static void
chunk_drop(struct chunk *chunk)
{
    if (chunk && !--chunk->n_sharers) {
        free(chunk);
    }
}

struct content
content_share(const struct content *c)
{
    if (c->chunks) {
        c->chunks->n_sharers++;
    }
    return *c;
}

void
content_free(struct content *c)
{
    struct chunks *chunks = take_ptr(c->chunks);

    if (chunks && !--chunks->n_sharers) {
        for (size_t i = 0; i < chunks->n; i++) {
            chunk_drop(chunks->at[i]);
        }
        free(chunks);
    }
    c->len = 0;
}

/* An array that nobody shares, with at least @n places. */
static void
own_chunks(struct content *c, size_t n)
{
    size_t had = c->chunks ? c->chunks->n : 0;

    if (had && had >= n && c->chunks->n_sharers == 1) {
        return;
    }
    size_t room = n > had ? 2 * n : had;
    struct chunks *copy =
        xzalloc(sizeof(*copy) + room * sizeof(struct chunk *));
    struct content old = *c;

    *copy = (struct chunks){.n_sharers = 1, .n = room};
    for (size_t i = 0; i < had; i++) {
        copy->at[i] = old.chunks->at[i];
        if (copy->at[i]) {
            copy->at[i]->n_sharers++;
        }
    }
    c->chunks = copy;
    content_free(&old);
}

/* The chunk, in an array that is ours, to be changed. */
static unsigned char *
own_chunk(struct content *c, size_t i)
{
    struct chunk *chunk = c->chunks->at[i];

    if (chunk && chunk->n_sharers == 1) {
        return chunk->data;
    }
    struct chunk *copy = xmalloc(sizeof(*copy));

    copy->n_sharers = 1;
    memcpy(copy->data, chunk ? chunk->data : zeroes, CHUNK);
    chunk_drop(chunk);
    c->chunks->at[i] = copy;
    return copy->data;
}

void
content_zero(struct content *c, size_t off, size_t len)
{
    size_t end = off + len;

    own_chunks(c, div_up(end, CHUNK));
    while (off < end) {
        size_t i = off / CHUNK, here = min_u64(CHUNK - off % CHUNK, end - off);

        if (here == CHUNK) {
            chunk_drop(take_ptr(c->chunks->at[i]));
        } else if (c->chunks->at[i]) {
            memset(own_chunk(c, i) + off % CHUNK, 0, here);
        }
        off += here;
    }
}

void
content_resize(struct content *c, size_t len)
{
    if (len < c->len) {
        content_zero(c, len, c->len - len);
    }
    c->len = len;
}

void
content_write(struct content *c, size_t off, const void *data, size_t len)
{
    const unsigned char *from = data;
    size_t end = off + len;

    own_chunks(c, div_up(end, CHUNK));
    while (off < end) {
        size_t here = min_u64(CHUNK - off % CHUNK, end - off);

        memcpy(own_chunk(c, off / CHUNK) + off % CHUNK, from, here);
        from += here;
        off += here;
    }
    c->len = max_u64(c->len, end);
}

const unsigned char *
content_at(const struct content *c, size_t off, size_t *ret_len)
{
    size_t i = off / CHUNK;
    const struct chunk *chunk =
        c->chunks && i < c->chunks->n ? c->chunks->at[i] : NULL;

    *ret_len = min_u64(CHUNK - off % CHUNK, c->len - off);
    return (chunk ? chunk->data : zeroes) + off % CHUNK;
}

unsigned char *
content_flat(const struct content *c)
{
    unsigned char *flat = xmalloc(c->len + 1);
    size_t here;

    for (size_t off = 0; off < c->len; off += here) {
        const unsigned char *p = content_at(c, off, &here);

        memcpy(flat + off, p, here);
    }
    return flat;
}
