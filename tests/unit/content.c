// SPDX-License-Identifier: BSD-3-Clause
/*
 * The bytes of simulated files: copies that share chunks, changed at random,
 * must each be what a plain array is.  A change that reached a copy, too, would
 * make the simulator's judges blind.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "run/sim/content.h"
#include "run/sim/sim.h"
#include "tap.h"

enum { COPIES = 4, MAX = 20000, CHANGES = 4000 };

struct pair {
    struct content content;
    unsigned char plain[MAX];
    size_t len;
};

static void
must_be_equal(const struct pair *p)
{
    auto_free unsigned char *flat = content_flat(&p->content);

    CHECK_INT(p->content.len, p->len);
    CHECK(!memcmp(flat, p->plain, p->len));
}

static void
write_some(struct pair *p, size_t off, size_t len, int value)
{
    memset(p->plain + off, value, len);
    content_write(&p->content, off, p->plain + off, len);
    p->len = max_u64(p->len, off + len);
}

static void
zero_some(struct pair *p, size_t off, size_t len)
{
    if (off < p->len) {
        len = min_u64(len, p->len - off);
        memset(p->plain + off, 0, len);
        content_zero(&p->content, off, len);
    }
}

static void
resize(struct pair *p, size_t len)
{
    if (len < p->len) {
        memset(p->plain + len, 0, p->len - len);
    }
    p->len = len;
    content_resize(&p->content, len);
}

static void
copy(struct pair *to, const struct pair *from)
{
    if (to != from) {
        content_free(&to->content);
        memcpy(to, from, sizeof(*to));
        to->content = content_share(&from->content);
    }
}

static void
copies_are_plain_arrays(void)
{
    struct pair *pairs = xzalloc(COPIES * sizeof(*pairs));
    uint64_t rng = 1;

    for (int i = 0; i < CHANGES; i++) {
        struct pair *p = &pairs[sim_random(&rng) % COPIES];
        size_t off = sim_random(&rng) % (MAX / 2);
        size_t len = sim_random(&rng) % (MAX / 2);

        switch (sim_random(&rng) % 8) {
        case 0:
            copy(p, &pairs[sim_random(&rng) % COPIES]);
            break;
        case 1:
            resize(p, off + len);
            break;
        case 2:
        case 3:
            zero_some(p, off, len);
            break;
        default:
            write_some(p, off, len, 1 + i % 255);
        }
        for (int k = 0; k < COPIES; k++) {
            must_be_equal(&pairs[k]);
        }
    }
    for (int k = 0; k < COPIES; k++) {
        content_free(&pairs[k].content);
    }
    free(pairs);
}

static void
pieces_reach_to_the_end_of_a_sector(void)
{
    struct content c = {0};
    size_t here;

    content_resize(&c, 10000);
    for (size_t off = 0; off < 10000; off++) {
        const unsigned char *p = content_at(&c, off, &here);

        CHECK(here && off + here <= 10000);
        CHECK((off + here) % SIM_SECTOR == 0 || off + here == 10000);
        CHECK(bytes_are_zero(p, here));
    }
    content_free(&c);
}

int
main(void)
{
    tap_run("copies are plain arrays", copies_are_plain_arrays);
    tap_run("pieces reach to the end of a sector",
            pieces_reach_to_the_end_of_a_sector);
    return tap_done();
}
