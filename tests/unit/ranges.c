// SPDX-License-Identifier: BSD-3-Clause
/* base/ranges against a byte-per-byte model. */
#include "base/ranges.h"

#include <stdlib.h>

#include "tap.h"

enum { SPACE = 200, STEPS = 20000 };

static void
check_against(const struct ranges *r, const bool *model)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < SPACE; i++) {
        bytes += model[i];
        CHECK(ranges_contains(r, i, 1) == model[i]);
    }
    CHECK_INT(r->bytes, bytes);
    for (size_t i = 0; i < r->n; i++) {
        CHECK(r->v[i].start < r->v[i].end);
        CHECK(i == 0 || r->v[i - 1].end < r->v[i].start);
    }
}

static void
random_steps_match_the_model(void)
{
    struct ranges r;
    bool model[SPACE] = {false};

    ranges_init(&r);
    srand(1);
    for (int step = 0; step < STEPS && !tap_failed_checks; step++) {
        uint64_t off = (uint64_t)rand() % SPACE;
        uint64_t len = (uint64_t)rand() % (SPACE - off + 1) % 20;
        bool add = rand() % 2;

        if (add) {
            ranges_add(&r, off, len);
        } else {
            ranges_remove(&r, off, len);
        }
        for (uint64_t i = off; i < off + len; i++) {
            model[i] = add;
        }
        check_against(&r, model);
    }
    ranges_fini(&r);
}

static void
next_cuts_the_first_range(void)
{
    struct ranges r;
    struct range got;

    ranges_init(&r);
    CHECK(!ranges_next(&r, 0, &got));
    ranges_add(&r, 10, 10);
    ranges_add(&r, 30, 5);
    CHECK(ranges_next(&r, 15, &got));
    CHECK_INT(got.start, 15);
    CHECK_INT(got.end, 20);
    CHECK(ranges_next(&r, 20, &got));
    CHECK_INT(got.start, 30);
    CHECK(!ranges_next(&r, 35, &got));
    CHECK(ranges_intersects(&r, 0, 11));
    CHECK(!ranges_intersects(&r, 20, 10));
    ranges_fini(&r);
}

int
main(void)
{
    tap_run("random steps match the model", random_steps_match_the_model);
    tap_run("next cuts the first range", next_cuts_the_first_range);
    return tap_done();
}
