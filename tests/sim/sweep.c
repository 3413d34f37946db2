// SPDX-License-Identifier: BSD-3-Clause
#include "sim/sweep.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/bytes.h"
#include "base/log.h"
#include "drivers/drivers.h"

enum { SECTOR = 512, DEFAULT_BUDGET_S = 2, FAILURES_MAX = 5 };

void
sweep_fail(struct sweep *s, const char *fmt, ...)
{
    va_list ap;

    if (s->failures++ >= FAILURES_MAX || s->quiet) {
        return;
    }
    printf("# %s seed %llu event %llu: ", s->setup->name,
           (unsigned long long)s->seed,
           (unsigned long long)(s->sim ? sim_n_events(s->sim) : 0));
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

static struct graph *
new_graph(struct sim *sim)
{
    struct graph_options o = {.drivers = all_drivers};

    return graph_new(sim_loop(sim), &o);
}

static int
open_top(struct graph *graph, const char *text, struct node **ret,
         struct err *err)
{
    json_t *options = json_loads(text, 0, NULL);
    int r = node_add(graph, options, ret, err);

    json_decref(options);
    return r;
}

void
sweep_create(struct graph *graph, const char *driver, const char *options)
{
    json_t *o = json_loads(options, 0, NULL);
    auto_err err = ERR_INIT;

    if (!o || graph_driver(graph, driver)->create(graph, o, &err)) {
        printf("# creating %s: %s\n", options, err.msg ? err.msg : "bad JSON");
        abort();
    }
    json_decref(o);
}

void
sweep_fill(struct node *node, struct oracle *o, uint64_t sector, uint64_t n,
           uint64_t first_tag)
{
    unsigned char buf[SECTOR];

    for (uint64_t i = 0; i < n; i++) {
        sector_fill(buf, first_tag + i);
        if (node_write_buf(node, (sector + i) * SECTOR, buf, SECTOR)) {
            abort();
        }
        if (o) {
            oracle_init(o, sector + i, first_tag + i);
        }
    }
}

/* The guest. */

static uint64_t
roll(struct sweep *s, uint64_t n)
{
    return sim_random(&s->rng) % n;
}

static void
guest_write(struct sweep *s, uint64_t sector, uint64_t n)
{
    uint64_t tag = s->next_tag++;
    unsigned char *buf = xmalloc(n * SECTOR);
    struct iovec iov = {buf, n * SECTOR};
    unsigned flags = roll(s, 8) ? 0 : REQ_FUA;

    for (uint64_t i = 0; i < n; i++) {
        sector_fill(buf + i * SECTOR, tag);
    }
    uint64_t id = oracle_begin(s->oracle, sector, n, tag);
    int r = root_write(s->root, sector * SECTOR, sg_one(&iov), flags);

    oracle_end(s->oracle, sector, n, id, r == 0);
    free(buf);
    if (r && !s->may_fail) {
        sweep_fail(s, "a write failed: %s", err_text(r));
    }
}

static void
guest_zero(struct sweep *s, uint64_t sector, uint64_t n)
{
    uint64_t id = oracle_begin(s->oracle, sector, n, 0);
    int r = root_zero(s->root, sector * SECTOR, n * SECTOR,
                      roll(s, 2) ? REQ_MAY_UNMAP : 0);

    oracle_end(s->oracle, sector, n, id, r == 0);
    if (r && !s->may_fail) {
        sweep_fail(s, "a zero request failed: %s", err_text(r));
    }
}

static void
guest_discard(struct sweep *s, uint64_t sector, uint64_t n)
{
    uint64_t id = oracle_begin(s->oracle, sector, n, 0);
    int r = root_discard(s->root, sector * SECTOR, n * SECTOR);

    oracle_end(s->oracle, sector, n, id, false);
    if (r && !s->may_fail) {
        sweep_fail(s, "a discard failed: %s", err_text(r));
    }
}

static void
guest_flush(struct sweep *s)
{
    uint64_t begin = oracle_now(s->oracle);
    int r = root_flush(s->root);

    if (!r) {
        oracle_flushed(s->oracle, begin);
    } else if (!s->may_fail) {
        sweep_fail(s, "a flush failed: %s", err_text(r));
    }
}

static void
guest_read(struct sweep *s, uint64_t sector, uint64_t n)
{
    unsigned char *buf = xmalloc(n * SECTOR);
    struct iovec iov = {buf, n * SECTOR};
    uint64_t begin = oracle_read_begin(s->oracle), tag;
    int r = root_read(s->root, sector * SECTOR, sg_one(&iov), 0);

    if (r && !s->may_fail) {
        sweep_fail(s, "a read failed: %s", err_text(r));
    }
    for (uint64_t i = 0; i < n && !r; i++) {
        if (!sector_tag(buf + i * SECTOR, &tag) ||
            !oracle_allows_read(s->oracle, sector + i, tag, begin)) {
            sweep_fail(s, "sector %llu reads %#llx, allowed: %s",
                       (unsigned long long)(sector + i),
                       (unsigned long long)tag,
                       oracle_explain(s->oracle, sector + i));
        }
    }
    oracle_read_end(s->oracle, begin);
    free(buf);
}

static void
guest(void *arg)
{
    struct sweep *s = arg;
    uint64_t sectors = s->setup->size / SECTOR;

    for (unsigned i = 0; i < s->setup->ops; i++) {
        uint64_t sector = roll(s, sectors);
        uint64_t n = 1 + roll(s, min_u64(sectors - sector, 24));

        switch (roll(s, 10)) {
        case 0:
        case 1:
            guest_read(s, sector, n);
            break;
        case 2:
            guest_zero(s, sector, n);
            break;
        case 3:
            guest_discard(s, sector, n);
            break;
        case 4:
        case 5:
            guest_flush(s);
            break;
        default:
            guest_write(s, sector, n);
        }
    }
    s->running--;
}

static void
operation(void *arg)
{
    struct sweep *s = arg;

    s->setup->operation(s);
    s->running--;
}

/* Judging. */

struct judge {
    struct sweep *s;
    struct sim *sim;
    const char *what;
};

static void
say(void *arg, const char *line)
{
    printf("#   %s\n", line);
}

static void
judge_sectors(struct judge *j, struct node *top)
{
    struct sweep *s = j->s;
    uint64_t sectors = s->setup->size / SECTOR, tag;
    unsigned char *buf = xmalloc(s->setup->size);
    int r = node_read_buf(top, 0, buf, s->setup->size);

    if (r) {
        sweep_fail(s, "after %s the disk cannot be read: %s", j->what,
                   err_text(r));
    }
    for (uint64_t i = 0; i < sectors && !r; i++) {
        if (!sector_tag(buf + i * SECTOR, &tag) ||
            !oracle_allows_crash(s->oracle, i, tag)) {
            sweep_fail(s, "after %s sector %llu reads %#llx, allowed: %s",
                       j->what, (unsigned long long)i, (unsigned long long)tag,
                       oracle_explain(s->oracle, i));
        }
    }
    free(buf);
}

static void
judge_check(struct judge *j, struct node *node)
{
    struct check_report report = {0};
    auto_err err = ERR_INIT;

    if (!node->drv->check) {
        return;
    }
    if (node->drv->check(node, 0, &report, &err)) {
        sweep_fail(j->s, "after %s the check fails: %s", j->what, err.msg);
    } else if (report.corruptions) {
        report.say = j->s->quiet ? NULL : say;
        node->drv->check(node, 0, &report, &err);
        sweep_fail(j->s, "after %s the image is corrupt", j->what);
    }
}

static void
judge_main(void *arg)
{
    struct judge *j = arg;
    struct graph *graph = new_graph(j->sim);
    auto_err err = ERR_INIT;
    struct node *top;

    const struct sweep_setup *setup = j->s->setup;
    const char *options =
        setup->judge_options ? setup->judge_options : setup->options;

    if (open_top(graph, options, &top, &err)) {
        sweep_fail(j->s, "after %s the disk does not open: %s", j->what,
                   err.msg);
    } else {
        judge_check(j, top);
        if (j->s->setup->recover) {
            j->s->setup->recover(graph, top);
        }
        judge_sectors(j, top);
    }
    graph_free(graph);
}

static void
judge_disk(struct sweep *s, struct sim_disk *disk, const char *what)
{
    struct sim_options o = {.seed = 1, .in_order = true};
    struct judge j = {s, sim_new(disk, &o), what};

    if (!loop_run_main(sim_loop(j.sim), judge_main, &j)) {
        sweep_fail(s, "after %s opening the disk hangs", what);
        return; /* its world is lost */
    }
    sim_free(j.sim);
}

static void
on_event(void *arg, struct sim *sim)
{
    struct sweep *s = arg;
    struct sim_crash power = {.disk = sim_world_disk(sim),
                              .kind = SIM_CRASH_POWER,
                              .max_states = s->setup->max_states,
                              .seed = s->seed + sim_n_events(sim)};
    struct sim_crash kill = {.disk = sim_world_disk(sim),
                             .kind = SIM_CRASH_PROCESS};
    struct sim_disk *disk;

    if (!s->crashes || s->failures >= FAILURES_MAX) {
        return;
    }
    while ((disk = sim_crash_next(&power))) {
        s->states++;
        judge_disk(s, disk, "a power failure");
        sim_disk_free(disk);
    }
    disk = sim_crash_next(&kill);
    s->states++;
    judge_disk(s, disk, "a kill");
    sim_disk_free(disk);
}

/* Runs. */

struct prepare {
    struct sweep *s;
    struct sim *sim;
};

static void
prepare_main(void *arg)
{
    struct prepare *p = arg;
    struct graph *graph = new_graph(p->sim);

    p->s->setup->prepare(graph, p->s->oracle, p->s->seed);
    graph_free(graph);
}

static struct sim_disk *
prepare(struct sweep *s)
{
    struct sim_disk *disk = sim_disk_new(), *clean;
    struct sim_options o = {.seed = s->seed, .in_order = true};
    struct prepare p = {s, sim_new(disk, &o)};
    struct sim_crash all = {.disk = disk, .kind = SIM_CRASH_PROCESS};

    if (!loop_run_main(sim_loop(p.sim), prepare_main, &p)) {
        printf("# preparing hangs\n");
        abort();
    }
    sim_free(p.sim);
    clean = sim_crash_next(&all); /* everything durable */
    sim_disk_free(disk);
    return clean;
}

static void
run_main(void *arg)
{
    struct sweep *s = arg;
    auto_err err = ERR_INIT;

    s->graph = new_graph(s->sim);
    if (open_top(s->graph, s->setup->options, &s->top, &err)) {
        if (!s->may_fail) {
            sweep_fail(s, "the disk does not open: %s", err.msg);
        }
    } else if (root_new(s->top, CLAIM_WRITE, "guest", &s->root, &err)) {
        sweep_fail(s, "the guest gets no claim: %s", err.msg);
    } else {
        s->running = s->setup->guests;
        for (unsigned i = 0; i < s->setup->guests; i++) {
            coro_start(sim_loop(s->sim), guest, s);
        }
        if (s->setup->operation) {
            s->running++;
            coro_start(sim_loop(s->sim), operation, s);
        }
        while (s->running) {
            coro_sleep(NS_PER_MS);
        }
        if (!s->may_fail) {
            struct judge j = {s, s->sim, "the run"};

            judge_check(&j, root_node(s->root));
        }
        root_free(s->root);
    }
    graph_free(s->graph);
}

static void
act_main(void *arg)
{
    struct sweep *s = arg;

    s->act(s);
    s->running--;
}

static void
on_switch(void *arg, struct sim *sim)
{
    struct sweep *s = arg;

    if (s->running) { /* else there is nothing to disturb any more */
        s->running++;
        coro_start(sim_loop(sim), act_main, s);
    }
}

/* One world from beginning to end; returns the number of its I/Os. */
static uint64_t
run_once(struct sweep *s, struct sim_options o)
{
    struct sim_disk *disk;
    uint64_t n = 0;

    s->oracle = oracle_new(s->setup->size / SECTOR);
    s->rng = s->seed;
    s->next_tag = 1000000;
    disk = prepare(s);
    o.seed = s->seed;
    o.on_event = on_event;
    o.on_switch = on_switch;
    o.arg = s;
    s->sim = sim_new(disk, &o);
    if (!loop_run_main(sim_loop(s->sim), run_main, s)) {
        sweep_fail(s, "the run hangs");
    } else {
        n = sim_n_io(s->sim);
        s->switches = max_u64(s->switches, sim_n_switches(s->sim));
        sim_free(s->sim);
        s->sim = NULL;
        judge_disk(s, disk, "closing");
        sim_disk_free(disk);
        oracle_free(s->oracle);
    }
    return n;
}

static double
seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double
budget(void)
{
    const char *text = getenv("SIM_BUDGET");

    return text ? atof(text) : DEFAULT_BUDGET_S;
}

unsigned
sweep_crashes(const struct sweep_setup *setup, uint64_t first)
{
    struct sweep s = {.setup = setup, .seed = first, .crashes = true};
    double end = seconds() + budget();

    do {
        run_once(&s, (struct sim_options){0});
        s.seed++;
    } while (seconds() < end && !s.failures);
    printf("# %s: %llu crash states, seeds %llu to %llu\n", setup->name,
           (unsigned long long)s.states, (unsigned long long)first,
           (unsigned long long)s.seed - 1);
    return s.failures;
}

unsigned
sweep_lies(const struct sweep_setup *setup, uint64_t seed, unsigned max)
{
    unsigned noticed = 0;

    for (unsigned n = 1; n <= max; n++) {
        struct sweep s = {
            .setup = setup, .seed = seed, .crashes = true, .quiet = true};

        run_once(&s, (struct sim_options){.drop_sync_at = n});
        noticed += s.failures != 0;
    }
    return noticed;
}

unsigned
sweep_failures(const struct sweep_setup *setup, uint64_t seed)
{
    static const int codes[] = {EIO, ENOSPC};
    struct sweep s = {.setup = setup, .seed = seed};
    uint64_t total = run_once(&s, (struct sim_options){0});
    double end = seconds() + budget();
    uint64_t runs = 0;

    s.may_fail = true;
    /* Where the budget is short, a stride still spans all of them. */
    for (uint64_t n = 1; n <= total && !s.failures; n++) {
        if (seconds() > end) {
            n += total / 50;
        }
        for (size_t c = 0; c < ARRAY_LEN(codes); c++) {
            struct sim_options o = {.fail_at = n, .fail_errno = codes[c]};

            run_once(&s, o);
            runs++;
        }
    }
    printf("# %s: %llu runs with a failing I/O, of %llu I/Os\n", setup->name,
           (unsigned long long)runs, (unsigned long long)total);
    return s.failures;
}

unsigned
sweep_switches(const struct sweep_setup *setup, uint64_t seed,
               void (*act)(struct sweep *s))
{
    struct sweep s = {.setup = setup, .seed = seed, .act = act};
    double end = seconds() + budget();
    uint64_t runs = 0;

    run_once(&s, (struct sim_options){0});
    for (uint64_t n = 1; n <= s.switches && !s.failures; n++) {
        if (seconds() > end) {
            n += s.switches / 50;
        }
        run_once(&s, (struct sim_options){.switch_at = n});
        runs++;
    }
    printf("# %s: %llu runs disturbed at one of %llu switches\n", setup->name,
           (unsigned long long)runs, (unsigned long long)s.switches);
    return s.failures;
}

unsigned
sweep_plain(const struct sweep_setup *setup, uint64_t first, unsigned runs)
{
    struct sweep s = {.setup = setup, .seed = first};

    for (unsigned i = 0; i < runs && !s.failures; i++, s.seed++) {
        run_once(&s, (struct sim_options){0});
    }
    return s.failures;
}
