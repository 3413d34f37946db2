// SPDX-License-Identifier: BSD-3-Clause
/*
 * The governor, on a clock of the test's own: a model of a transfer with
 * pieces of a fixed time beside a guest whose latency grows with the pieces in
 * flight.
 */
#include "transfer/governor.h"

#include "base/bytes.h"
#include "run/loop.h"
#include "tap.h"

#define PIECE_BYTES (1 << 20)
#define US 1000ULL

struct world {
    struct governor g;
    struct root_stats guests;
    uint64_t now;
    unsigned in_flight;
    uint64_t piece_end[64]; /* 0: none */
    uint64_t piece_ns;
    unsigned capacity;    /* pieces at once that do not slow each other */
    double per_piece_ns;  /* what one in flight costs a guest's request */
    uint64_t quiet_ns;    /* a request's time alone; 0: no guest */
    bool hidden;          /* what it waits for, nobody here sees */
    bool lingers; /* in every other second a probe is disturbed all the same */
    uint64_t think_ns;    /* between two requests */
    uint64_t left_ns;     /* that the guest's next request has had already */
    uint64_t pieces, busy_steps, steps, max_in_flight;
    bool asks_for_the_past;
};

static void
guest_step(struct world *w, uint64_t ns)
{
    if (w->quiet_ns) {
        uint64_t each =
            w->quiet_ns + (uint64_t)(w->per_piece_ns * w->in_flight);

        if (w->lingers && w->g.measuring && w->now / NS_PER_S % 2) {
            each *= 4;
        }
        /* A request may take many steps. */
        for (w->left_ns += ns; w->left_ns >= each + w->think_ns;
             w->left_ns -= each + w->think_ns) {
            w->guests.requests++;
            w->guests.busy_ns += w->hidden ? w->quiet_ns : each;
        }
        w->guests.in_flight = 1;
    }
}

static void
end_pieces(struct world *w)
{
    for (size_t i = 0; i < 64; i++) {
        if (w->piece_end[i] && w->now >= w->piece_end[i]) {
            w->piece_end[i] = 0;
            w->in_flight--;
            w->pieces++;
            governor_piece_done(&w->g, w->now, w->piece_ns, PIECE_BYTES);
        }
    }
}

static bool
start_piece(struct world *w)
{
    uint64_t again;

    governor_update(&w->g, w->now, &w->guests, w->in_flight);
    if (!governor_allows(&w->g, w->now, w->in_flight, &again)) {
        w->asks_for_the_past |= again <= w->now;
        return false;
    }
    for (size_t i = 0; i < 64; i++) {
        if (!w->piece_end[i]) {
            uint64_t slower = w->in_flight / w->capacity + 1;

            w->piece_end[i] = w->now + w->piece_ns * slower;
            w->in_flight++;
            return true;
        }
    }
    return false;
}

/* Runs for @ns in steps of 100 us. */
static void
run(struct world *w, uint64_t ns)
{
    for (uint64_t end = w->now + ns; w->now < end; w->steps++) {
        end_pieces(w);
        while (start_piece(w)) {
        }
        w->busy_steps += w->in_flight != 0;
        w->max_in_flight = max_u64(w->max_in_flight, w->in_flight);
        guest_step(w, 100 * US);
        w->now += 100 * US;
    }
}

static struct world
world(uint64_t quiet_ns, double per_piece_ns)
{
    struct world w = {.now = NS_PER_S,
                      .piece_ns = 2 * NS_PER_MS,
                      .capacity = 4,
                      .quiet_ns = quiet_ns,
                      .per_piece_ns = per_piece_ns};

    governor_init(&w.g);
    return w;
}

static void
without_a_guest_it_never_pauses(void)
{
    struct world w = world(0, 0);

    run(&w, 5 * NS_PER_S);
    CHECK(w.busy_steps > w.steps * 99 / 100);
    CHECK(w.pieces > 5000); /* more than two in flight on average */
}

static void
more_in_flight_than_helps_is_not_kept(void)
{
    struct world w = world(0, 0);

    run(&w, 5 * NS_PER_S);
    w.max_in_flight = 0;
    run(&w, NS_PER_S);
    CHECK(w.max_in_flight <= 16);
}

static void
a_long_link_is_filled(void)
{
    struct world w = world(0, 0);

    w.piece_ns = 100 * NS_PER_MS;
    w.capacity = 64;
    run(&w, 20 * NS_PER_S);
    CHECK(w.max_in_flight >= 32);
}

static void
a_guest_that_feels_nothing_does_not_slow_it(void)
{
    struct world w = world(50 * US, 0);

    run(&w, 10 * NS_PER_S);
    CHECK(w.busy_steps > w.steps * 9 / 10);
}

/* It keeps half its rate, and the transfer is not starved. */
static void
check_half_is_kept(struct world *w)
{
    run(w, 3 * NS_PER_S);
    w->guests.requests = w->pieces = 0;
    run(w, 10 * NS_PER_S);
    CHECK(w->guests.requests > 10 * NS_PER_S / (50 * US) / 2);
    CHECK(w->pieces > 100);
}

static void
a_guest_that_suffers_keeps_half_its_rate(void)
{
    struct world w = world(50 * US, 500e3);

    check_half_is_kept(&w);
}

/* Its requests wait in its own CPU, or in a socket: in no latency. */
static void
a_guest_that_gets_fewer_requests_through_keeps_half(void)
{
    struct world w = world(50 * US, 500e3);

    w.hidden = true;
    check_half_is_kept(&w);
}

/* What was copied is still being written to the disk. */
static void
a_probe_that_is_disturbed_does_not_say_what_is_quiet(void)
{
    struct world w = world(50 * US, 500e3);

    w.lingers = true;
    check_half_is_kept(&w);
}

static void
a_guest_that_becomes_slower_by_itself_is_known_soon(void)
{
    struct world w = world(50 * US, 0);

    run(&w, 3 * NS_PER_S);
    w.quiet_ns *= 16;
    run(&w, 5 * NS_PER_S);
    w.busy_steps = w.steps = 0;
    run(&w, 5 * NS_PER_S);
    CHECK(w.busy_steps > w.steps * 9 / 10);
}

static void
a_guest_that_asks_for_less_does_not_slow_it(void)
{
    for (uint64_t think = 200 * US; think <= 2 * NS_PER_MS; think *= 10) {
        struct world w = world(50 * US, 0);

        run(&w, 3 * NS_PER_S);
        w.think_ns = think;
        run(&w, 2 * NS_PER_S);
        w.busy_steps = w.steps = 0;
        run(&w, 2 * NS_PER_S);
        CHECK(w.busy_steps > w.steps * 9 / 10);
    }
}

/* A request that takes longer than any window: its root has one in flight. */
static void
a_slow_guest_is_not_an_absent_one(void)
{
    struct world w = world(0, 0);

    w.guests.in_flight = 1;
    for (int i = 0; i < 40; i++) {
        run(&w, 400 * NS_PER_MS);
        w.guests.requests++;
        w.guests.busy_ns += 400 * NS_PER_MS;
    }
    CHECK(!w.asks_for_the_past);
    CHECK(w.pieces > 100);
    CHECK(w.g.quiet_ns >= 200 * NS_PER_MS);
}

static void
it_never_asks_to_be_asked_in_the_past(void)
{
    struct world w = world(300 * NS_PER_MS, 1e6);

    run(&w, 10 * NS_PER_S);
    CHECK(!w.asks_for_the_past);
    w = world(50 * US, 500e3);
    run(&w, 10 * NS_PER_S);
    CHECK(!w.asks_for_the_past);
}

int
main(void)
{
    tap_run("without a guest it never pauses", without_a_guest_it_never_pauses);
    tap_run("more in flight than helps is not kept",
            more_in_flight_than_helps_is_not_kept);
    tap_run("a long link is filled", a_long_link_is_filled);
    tap_run("a guest that feels nothing does not slow it",
            a_guest_that_feels_nothing_does_not_slow_it);
    tap_run("a guest that suffers keeps half its rate",
            a_guest_that_suffers_keeps_half_its_rate);
    tap_run("a guest that gets fewer requests through keeps half of them",
            a_guest_that_gets_fewer_requests_through_keeps_half);
    tap_run("a probe that is disturbed does not say what is quiet",
            a_probe_that_is_disturbed_does_not_say_what_is_quiet);
    tap_run("a guest that becomes slower by itself is known soon",
            a_guest_that_becomes_slower_by_itself_is_known_soon);
    tap_run("a guest that asks for less does not slow it",
            a_guest_that_asks_for_less_does_not_slow_it);
    tap_run("a slow guest is not an absent one",
            a_slow_guest_is_not_an_absent_one);
    tap_run("it never asks to be asked in the past",
            it_never_asks_to_be_asked_in_the_past);
    return tap_done();
}
