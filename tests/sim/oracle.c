// SPDX-License-Identifier: BSD-3-Clause
#include "sim/oracle.h"

#include <stdio.h>

#include "base/bytes.h"
#include "base/mem.h"

enum { SECTOR = 512, READS_MAX = 64 };

struct value {
    uint64_t tag, id;
    uint64_t issued, completed; /* 0: not yet */
    bool sure, durable;
};

struct cell {
    struct value *v;
    unsigned n;
};

struct oracle {
    struct cell *cells;
    uint64_t sectors, clock, ids;
    uint64_t reads[READS_MAX]; /* begins of the reads in flight; 0: none */
};

struct oracle *
oracle_new(uint64_t sectors)
{
    struct oracle *o = xzalloc(sizeof(*o));

    o->cells = xzalloc(sectors * sizeof(*o->cells));
    o->sectors = sectors;
    o->clock = 1;
    for (uint64_t i = 0; i < sectors; i++) {
        oracle_init(o, i, 0);
    }
    return o;
}

void
oracle_free(struct oracle *o)
{
    for (uint64_t i = 0; i < o->sectors; i++) {
        free(o->cells[i].v);
    }
    free(o->cells);
    free(o);
}

static void
add(struct cell *c, struct value v)
{
    c->v = xrealloc(c->v, (c->n + 1) * sizeof(*c->v));
    c->v[c->n++] = v;
}

void
oracle_init(struct oracle *o, uint64_t sector, uint64_t tag)
{
    o->cells[sector].n = 0;
    add(&o->cells[sector], (struct value){.tag = tag,
                                          .issued = 1,
                                          .completed = 1,
                                          .sure = true,
                                          .durable = true});
}

uint64_t
oracle_now(struct oracle *o)
{
    return ++o->clock;
}

uint64_t
oracle_read_begin(struct oracle *o)
{
    int i = 0;

    while (o->reads[i]) {
        i++;
    }
    return o->reads[i] = ++o->clock;
}

void
oracle_read_end(struct oracle *o, uint64_t begin)
{
    int i = 0;

    while (o->reads[i] != begin) {
        i++;
    }
    o->reads[i] = 0;
}

uint64_t
oracle_begin(struct oracle *o, uint64_t sector, uint64_t n, uint64_t tag)
{
    struct value v = {.tag = tag, .id = ++o->ids, .issued = ++o->clock};

    for (uint64_t i = 0; i < n; i++) {
        add(&o->cells[sector + i], v);
    }
    return v.id;
}

void
oracle_end(struct oracle *o, uint64_t sector, uint64_t n, uint64_t id,
           bool sure)
{
    uint64_t now = ++o->clock;

    for (uint64_t i = sector; i < sector + n; i++) {
        for (unsigned k = 0; k < o->cells[i].n; k++) {
            struct value *v = &o->cells[i].v[k];

            if (v->id == id && !v->completed) {
                v->completed = now;
                v->sure = sure;
            }
        }
    }
}

/* Is value @k ruled out by another one that completed before @begin? */
static bool
ruled_out(const struct cell *c, unsigned k, uint64_t begin, bool crash)
{
    const struct value *v = &c->v[k];

    for (unsigned i = 0; i < c->n; i++) {
        const struct value *w = &c->v[i];

        if (w->sure && w->completed && w->completed < begin && v->completed &&
            w->issued > v->completed && (!crash || w->durable)) {
            return true;
        }
    }
    return false;
}

void
oracle_flushed(struct oracle *o, uint64_t begin)
{
    uint64_t oldest = UINT64_MAX;

    for (int i = 0; i < READS_MAX; i++) {
        if (o->reads[i]) {
            oldest = min_u64(oldest, o->reads[i]);
        }
    }
    for (uint64_t i = 0; i < o->sectors; i++) {
        struct cell *c = &o->cells[i];
        unsigned kept = 0;

        for (unsigned k = 0; k < c->n; k++) {
            struct value *v = &c->v[k];

            v->durable |= v->completed && v->completed < begin;
        }
        for (unsigned k = 0; k < c->n; k++) {
            /* What is ruled out rules out only what it rules out as well. */
            if (!ruled_out(c, k, oldest, true)) {
                c->v[kept++] = c->v[k];
            }
        }
        c->n = kept;
    }
}

static bool
allows(struct oracle *o, uint64_t sector, uint64_t tag, uint64_t begin,
       bool crash)
{
    struct cell *c = &o->cells[sector];

    for (unsigned k = 0; k < c->n; k++) {
        if (c->v[k].tag == tag && !ruled_out(c, k, begin, crash)) {
            return true;
        }
    }
    return false;
}

bool
oracle_allows_read(struct oracle *o, uint64_t sector, uint64_t tag,
                   uint64_t begin)
{
    return allows(o, sector, tag, begin, false);
}

bool
oracle_allows_crash(struct oracle *o, uint64_t sector, uint64_t tag)
{
    return allows(o, sector, tag, UINT64_MAX, true);
}

const char *
oracle_explain(struct oracle *o, uint64_t sector)
{
    static char text[512];
    struct cell *c = &o->cells[sector];
    size_t at = 0;

    text[0] = 0;
    for (unsigned k = 0; k < c->n && at < sizeof(text) - 64; k++) {
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%#llx%s",
                               k ? ", " : "", (unsigned long long)c->v[k].tag,
                               c->v[k].durable     ? " (flushed)"
                               : c->v[k].completed ? ""
                                                   : " (in flight)");
    }
    return text;
}

void
sector_fill(unsigned char *sector, uint64_t tag)
{
    for (int i = 0; i < SECTOR; i += 8) {
        st_be64(sector + i, tag);
    }
}

bool
sector_tag(const unsigned char *sector, uint64_t *ret)
{
    *ret = ld_be64(sector);
    return memcmp(sector, sector + 8, SECTOR - 8) == 0;
}
