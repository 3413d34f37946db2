// SPDX-License-Identifier: BSD-3-Clause
/* One run of a script: images, guests, the operation, the judges. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "block/graph_internal.h"
#include "drivers/drivers.h"
#include "sim/qemu.h"
#include "sim/sweep.h"

enum {
    SECTOR = 512,
    SECOND_CRASHES = 8, /* one in so many crashes is followed by another */
    /* About as many as there are, in opening an image and in its recovery. */
    OPENING_EVENTS = 16,
    RECOVERY_EVENTS = 160,
    SPINS_S = 60, /* of CPU time, for what takes a millisecond */
};

/* What runs, for the signal that comes when it spins and never yields. */
static const struct sweep *watched;

static void
on_spin(int signal)
{
    const struct sweep *s = watched;

    printf("# %s spins%s:\n", s->setup->name,
           s->crash ? ", judging what a crash at this event has left" : "");
    script_print(s->script, stdout, "#   ");
    if (s->crash) {
        printf("#   power %llu %s %llu\n",
               (unsigned long long)sim_n_events(s->sim),
               s->crash->fates[0] ? s->crash->fates : "-",
               (unsigned long long)s->crash->torn);
    }
    fflush(stdout);
    _exit(1);
}

static void
watch(const struct sweep *s)
{
    const struct itimerval limit = {.it_value.tv_sec = SPINS_S};

    if (!watched) {
        signal(SIGVTALRM, on_spin);
    }
    watched = s;
    setitimer(ITIMER_VIRTUAL, &limit, NULL);
}

void
sweep_fail(struct sweep *s, const char *fmt, ...)
{
    va_list ap;

    if (s->failures++) {
        return; /* the first one tells all: the rest follows from it */
    }
    va_start(ap, fmt);
    free(s->why);
    s->why = xvasprintf(fmt, ap);
    va_end(ap);
    script_fini(&s->found);
    s->found = script_copy(s->script);
    if (s->crash) {
        s->found.trouble =
            s->crash->kind == SIM_CRASH_POWER ? TROUBLE_POWER : TROUBLE_KILL;
        s->found.at = sim_n_events(s->sim);
        s->found.torn = s->crash->torn;
        memcpy(s->found.fates, s->crash->fates, sizeof(s->found.fates));
    }
}

static struct graph *
new_graph(const struct sweep *s, struct sim *sim)
{
    const struct sweep_setup *setup = s->setup;
    struct graph_options o = {.drivers = setup->drivers ? setup->drivers
                                                        : all_drivers,
                              .quiet = !s->verbose};

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

/* The guest. */

static void
guest_write(struct sweep *s, uint64_t sector, uint64_t n, unsigned flags)
{
    uint64_t tag = s->next_tag++;
    unsigned char *buf = xmalloc(n * SECTOR);
    struct iovec iov = {buf, n * SECTOR};

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
guest_zero(struct sweep *s, uint64_t sector, uint64_t n, unsigned flags)
{
    uint64_t id = oracle_begin(s->oracle, sector, n, 0);
    int r = root_zero(s->root, sector * SECTOR, n * SECTOR, flags);

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

struct guest {
    struct sweep *s;
    unsigned id;
};

void
sweep_step(struct sweep *s, const struct step *st)
{
    switch (st->op) {
    case STEP_READ:
        guest_read(s, st->sector, st->n);
        break;
    case STEP_WRITE:
    case STEP_WRITE_FUA:
        guest_write(s, st->sector, st->n,
                    st->op == STEP_WRITE_FUA ? REQ_FUA : 0);
        break;
    case STEP_ZERO:
    case STEP_UNMAP:
        guest_zero(s, st->sector, st->n,
                   st->op == STEP_UNMAP ? REQ_MAY_UNMAP : 0);
        break;
    case STEP_DISCARD:
        guest_discard(s, st->sector, st->n);
        break;
    case STEP_FLUSH:
        guest_flush(s);
        break;
    }
}

static void
guest(void *arg)
{
    struct guest *g = arg;
    struct sweep *s = g->s;

    for (unsigned i = 0; i < s->script->n_steps; i++) {
        if (s->script->steps[i].guest == g->id) {
            if (s->setup->think_ns && !s->script->calm) {
                coro_sleep(sim_random(&s->rng) % s->setup->think_ns);
            }
            sweep_step(s, &s->script->steps[i]);
        }
    }
    free(g);
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
    uint64_t crash_at; /* an event of the recovery; 0: none */
};

static void
say(void *arg, const char *line)
{
    struct sweep *s = arg;

    if (s->verbose) {
        printf("#   %s\n", line);
    }
}

/*
 * A kill takes nothing that was acknowledged (rule 10), and neither does closing
 * the disk; but what a failed fsync has lost, no memory knows.
 */
static bool
allows(const struct sweep *s, uint64_t sector, uint64_t tag)
{
    bool killed = s->crash && s->crash->kind == SIM_CRASH_PROCESS &&
                  !s->power && !s->setup->forgets;
    bool all = (killed || !s->crash) && s->script->trouble != TROUBLE_FAIL;

    return all ? oracle_allows_read(s->oracle, sector, tag, UINT64_MAX)
               : oracle_allows_crash(s->oracle, sector, tag);
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
            !allows(s, i, tag)) {
            sweep_fail(s, "after %s sector %llu of '%s' reads %#llx, allowed: "
                          "%s",
                       j->what, (unsigned long long)i,
                       top->filename ? top->filename : top->name,
                       (unsigned long long)tag, oracle_explain(s->oracle, i));
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
        report.say = say;
        report.arg = j->s;
        node->drv->check(node, 0, &report, &err);
        sweep_fail(j->s, "after %s the image is corrupt", j->what);
    }
}

/* Opens a disk that a guest could have; -EUCLEAN where it is unfinished. */
static int
open_for_guest(struct graph *graph, const char *text, struct node **ret,
               struct err *err)
{
    struct root *root;
    int r = open_top(graph, text, ret, err);

    if (!r) {
        r = root_new(*ret, CLAIM_READ, "judge", &root, err);
        if (r) {
            node_del(graph, "top", NULL);
        } else {
            root_free(root);
        }
    }
    return r;
}

/* An image that nothing was copied into yet takes no part. */
static bool
is_blank(struct sweep *s, struct node *node)
{
    unsigned char *buf = xmalloc(s->setup->size);
    bool blank = node->size == s->setup->size &&
                 !node_read_buf(node, 0, buf, node->size) &&
                 bytes_are_zero(buf, node->size);

    free(buf);
    return blank;
}

/*
 * Who opens the image that the disk was in, to write to it, gets the disk, or
 * is told where it went.  That is said first: the target's opening ends it.
 */
static int
judge_source(struct judge *j, struct graph *graph)
{
    struct sweep *s = j->s;
    struct node *top;
    auto_err err = ERR_INIT;
    int r = open_top(graph, s->setup->options, &top, &err);

    if (!r && !s->moved) {
        judge_sectors(j, top);
    }
    if (!r) {
        node_del(graph, "top", NULL);
    } else if (r == -ENOENT && s->again) {
        /* The recovery has deleted it: the target must be the disk. */
    } else if (r != -ESTALE && !s->moved) {
        sweep_fail(s, "after %s the source does not open: %s", j->what,
                   err.msg);
    }
    if (!r && s->recorded) {
        sweep_fail(s, "after %s the source does not say that the disk went on",
                   j->what);
    }
    return r;
}

/* The disk, with the operator's options for what the header says now. */
static int
open_judged(struct judge *j, struct graph *graph, struct node **ret,
            struct err *err)
{
    const struct sweep_setup *setup = j->s->setup;
    const char *options =
        setup->judge_options ? setup->judge_options : setup->options;

    bool can_move = setup->judge_moved || setup->judge_target;
    int source = can_move ? judge_source(j, graph) : 0;

    bool went_on = source == -ENOENT && j->s->again;

    if (setup->judge_moved && (j->s->moved || source == -ESTALE || went_on)) {
        return open_top(graph, setup->judge_moved, ret, err);
    }
    if (setup->judge_next) {
        int got = open_for_guest(graph, setup->judge_next, ret, NULL);

        if (!got && (j->s->done || !is_blank(j->s, *ret))) {
            return 0;
        }
        node_del(graph, "top", NULL);
    }
    if (setup->judge_target) {
        int got = open_for_guest(graph, setup->judge_target, ret, NULL);

        if (source == -ESTALE && got) {
            return err_set(err, got, "the source says that the disk is the "
                                     "target, which does not open");
        }

        if (!got && !j->s->done && is_blank(j->s, *ret)) {
            node_del(graph, "top", NULL);
            got = -EUCLEAN;
        }
        if (got != -EUCLEAN) {
            return got; /* the disk is there, or nowhere */
        }
        if (j->s->done && setup->ends_on_target) {
            return err_set(err, -EUCLEAN, "the target is marked unfinished");
        }
    }
    if (!setup->judge_alone) {
        return open_top(graph, options, ret, err);
    }
    int r = open_top(graph, setup->judge_alone, ret, err);

    if (!r && (*ret)->header_backing.filename) {
        node_del(graph, "top", NULL);
        r = open_top(graph, options, ret, err);
    }
    return r;
}

static void
judge_main(void *arg)
{
    struct judge *j = arg;
    const struct sweep_setup *setup = j->s->setup;
    struct graph *graph = new_graph(j->s, j->sim);
    void *service = setup->serve ? setup->serve(graph) : NULL;
    auto_err err = ERR_INIT;
    struct node *top;

    if (open_judged(j, graph, &top, &err)) {
        sweep_fail(j->s, "after %s the disk does not open: %s", j->what,
                   err.msg);
    } else {
        judge_check(j, top);
        if (setup->recover) {
            setup->recover(j->s, graph, top);
        }
        judge_sectors(j, top);
    }
    node_del(graph, "top", NULL);
    if (service) {
        setup->unserve(service);
    }
    graph_free(graph);
}

static void judge_disk(struct sweep *s, struct sim_disk *disk,
                       const char *what, uint64_t crash_at);

static void
crash_again(struct judge *j, enum sim_crash_kind kind, const char *what)
{
    struct sweep *s = j->s;
    struct sim_crash crash = {.disk = sim_world_disk(j->sim),
                              .kind = kind,
                              .max_states = 2,
                              .seed = j->crash_at};
    bool recorded = s->recorded;
    struct sim_disk *disk;

    s->again = true;
    s->power = kind == SIM_CRASH_POWER;
    while (!s->failures && (disk = sim_crash_next(&crash))) {
        /* What was under way may have been finished by then. */
        s->recorded = recorded && sim_disk_has(disk, "top.sluice");
        s->second_states++;
        judge_disk(s, disk, what, 0);
        sim_disk_free(disk);
    }
    s->again = s->power = false;
    s->recorded = recorded;
}

/* The one that opens what a crash has left crashes, too. */
static void
on_recovery(void *arg, struct sim *sim)
{
    struct judge *j = arg;

    if (sim_n_events(sim) == j->crash_at) {
        crash_again(j, SIM_CRASH_PROCESS, "a crash and, at its recovery, a kill");
        crash_again(j, SIM_CRASH_POWER,
                    "a crash and, at its recovery, a power failure");
    }
}

static void
judge_disk(struct sweep *s, struct sim_disk *disk, const char *what,
           uint64_t crash_at)
{
    struct judge j = {.s = s, .what = what, .crash_at = crash_at};
    struct sim_options o = {.seed = 1,
                            .spares = s->spares,
                            .in_order = true,
                            .max_ns = s->setup->max_ns,
                            .on_event = crash_at ? on_recovery : NULL,
                            .arg = &j};

    watch(s);
    j.sim = sim_new(disk, &o);
    if (!loop_run_main(sim_loop(j.sim), judge_main, &j)) {
        sweep_fail(s, "after %s opening the disk hangs", what);
        return; /* its world is lost */
    }
    sim_free(j.sim);
}

/* Seldom, for it takes several times as long; a script always does. */
static uint64_t
second_crash(const struct sweep *s, const struct sim_crash *crash)
{
    uint64_t rng = sim_n_events(s->sim) * 977 + s->seed;

    for (const char *f = crash->fates; *f; f++) {
        rng = rng * 31 + (uint64_t)*f;
    }
    uint64_t n = sim_random(&rng);

    return n % SECOND_CRASHES && s->crashes
               ? 0
               : 1 + (n >> 32) % (s->setup->recover ? RECOVERY_EVENTS
                                                    : OPENING_EVENTS);
}

/* Is the n-th state one of the sample? */
static bool
sample_has(struct sample *sample, uint64_t n)
{
    uint64_t rng = n;

    if (sample->every) {
        sample->taken++;
        return true;
    }
    if (sample->taken == sample->wanted || n < sample->next) {
        return false;
    }
    sample->taken++;
    sample->next = sample->taken * sample->stride + 1 +
                   sim_random(&rng) % sample->stride;
    return true;
}

static void
judge_crash(struct sweep *s, struct sim_crash *crash, const char *what)
{
    struct sim_disk *disk;

    while (!s->failures && (disk = sim_crash_next(crash))) {
        s->crash = crash;
        s->states++;
        if (sample_has(&s->sample, s->states)) {
            double begin = sweep_seconds();

            qemu_judge(s, disk, what);
            s->sample.seconds += sweep_seconds() - begin;
        }
        judge_disk(s, disk, what, second_crash(s, crash));
        sim_disk_free(disk);
        s->crash = NULL;
    }
}

static void
say_fate(void *arg, unsigned i, const char *text)
{
    const struct sim_crash *crash = arg;
    char fate = i < strlen(crash->fates) ? crash->fates[i] : SIM_LOST;

    printf("#   %s %s\n",
           fate == SIM_KEPT   ? "kept"
           : fate == SIM_TORN ? "torn"
                              : "lost",
           text);
}

static void
on_event(void *arg, struct sim *sim)
{
    struct sweep *s = arg;
    const struct script *sc = s->script;
    struct sim_crash power = {
        .disk = sim_world_disk(sim),
        .kind = SIM_CRASH_POWER,
        .max_states = s->max_states ? s->max_states : s->setup->max_states,
        .seed = s->seed + sim_n_events(sim)};
    struct sim_crash kill = {.disk = sim_world_disk(sim),
                             .kind = SIM_CRASH_PROCESS};
    bool here = sim_n_events(sim) == sc->at && !s->crashes;

    if (s->root) {
        s->moved = root_node(s->root) != s->top;
    }
    s->recorded = s->setup->leaves_a_record && s->moved &&
                  sim_disk_has(sim_world_disk(sim), "top.sluice");

    if (here && sc->trouble == TROUBLE_POWER) {
        power.replay = true;
        power.torn = sc->torn;
        memcpy(power.fates, sc->fates, sizeof(power.fates));
        if (s->verbose) {
            printf("# at event %llu the power fails:\n",
                   (unsigned long long)sc->at);
            sim_disk_describe(power.disk, say_fate, &power);
        }
    }
    if (s->crashes || (here && sc->trouble == TROUBLE_POWER)) {
        judge_crash(s, &power, "a power failure");
    }
    if (s->crashes || (here && sc->trouble == TROUBLE_KILL)) {
        judge_crash(s, &kill, "a kill");
    }
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
    struct graph_options o = {.drivers = all_drivers, .quiet = true};
    struct graph *graph = graph_new(sim_loop(p->sim), &o);

    images_make(graph, p->s->oracle, p->s->script->image);
    graph_free(graph);
}

static struct sim_disk *
prepare(struct sweep *s)
{
    struct sim_disk *disk = sim_disk_new(), *clean;
    struct sim_options o = {
        .seed = s->seed, .spares = s->spares, .in_order = true};
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

/* Where seconds pass, most switches would be of those who look. */
uint64_t
sweep_poll_ns(const struct sweep *s)
{
    return s->setup->slow_file ? 50 * NS_PER_MS : NS_PER_MS;
}

static void
run_guests(struct sweep *s)
{
    struct loop *loop = sim_loop(s->sim);

    s->running = script_guests(s->script);
    for (unsigned i = 0, n = s->running; i < n; i++) {
        struct guest *g = xzalloc(sizeof(*g));

        *g = (struct guest){s, i};
        coro_start(loop, guest, g);
    }
    if (s->setup->operation && !s->script->alone) {
        s->running++;
        coro_start(loop, operation, s);
    }
    while (s->running) {
        coro_sleep(sweep_poll_ns(s));
    }
    if (!s->may_fail) {
        struct judge j = {s, s->sim, "the run"};

        judge_check(&j, root_node(s->root));
    }
}

static void
run_main(void *arg)
{
    struct sweep *s = arg;
    const struct sweep_setup *setup = s->setup;
    auto_err err = ERR_INIT;

    s->graph = new_graph(s, s->sim);
    s->service = setup->serve ? setup->serve(s->graph) : NULL;
    if (open_top(s->graph, setup->options, &s->top, &err)) {
        if (!s->may_fail) {
            sweep_fail(s, "the disk does not open: %s", err.msg);
        }
    } else if (root_new(s->top, CLAIM_WRITE, "guest", &s->root, &err)) {
        sweep_fail(s, "the guest gets no claim: %s", err.msg);
    } else {
        run_guests(s);
        s->moved = root_node(s->root) != s->top;
        root_free(take_ptr(s->root));
    }
    if (s->service) {
        node_del(s->graph, "top", NULL);
        setup->unserve(s->service);
    }
    graph_free(s->graph);
}

static void
disturb_main(void *arg)
{
    struct sweep *s = arg;

    s->setup->disturb(s);
    s->running--;
}

static void
on_switch(void *arg, struct sim *sim)
{
    struct sweep *s = arg;

    if (s->running &&
        s->setup->disturb) { /* else there is nothing to disturb */
        s->running++;
        coro_start(sim_loop(sim), disturb_main, s);
    }
}

/*
 * The guest's gate is closed, and nothing is in flight that an edit still
 * waits for: it has only to swap.
 */
static bool
guest_is_held_up(void *arg)
{
    const struct sweep *s = arg;

    return s->root && s->root->gates && !s->root->in_flight;
}

static struct sim_options
world_options(struct sweep *s)
{
    const struct script *sc = s->script;
    struct sim_options o = {.seed = s->seed,
                            .spares = s->spares,
                            .in_order = sc->calm,
                            .drop_sync_at = sc->lie,
                            .max_ns = s->setup->max_ns,
                            .shm_bytes = s->setup->shm_bytes,
                            .slow_file = s->setup->slow_file,
                            .on_event = on_event,
                            .on_switch = on_switch,
                            .holds_up = guest_is_held_up,
                            .arg = s};

    if (sc->trouble == TROUBLE_FAIL) {
        o.fail_at = sc->at;
        o.fail_errno = sc->error;
    }
    if (sc->trouble == TROUBLE_SWITCH) {
        o.switch_at = sc->at;
    }
    if (sc->trouble == TROUBLE_CUT) {
        o.cut_at = sc->at;
        o.cut_ns = s->setup->cut_ns;
    }
    return o;
}

void
sweep_run(struct sweep *s, const struct script *sc)
{
    struct sim_disk *disk;

    s->script = sc;
    s->seed = s->rng = sc->seed;
    s->next_tag = 1000000;
    s->done = false;
    s->moved = false;
    s->failures = 0;
    s->running = 0;
    s->may_fail = s->setup->may_fail || sc->trouble == TROUBLE_FAIL;
    if (!s->spares) {
        s->spares = sim_spares_new();
    }
    s->oracle = oracle_new(s->setup->size / SECTOR);
    disk = prepare(s);
    struct sim_options o = world_options(s);

    watch(s);
    s->sim = sim_new(disk, &o);
    if (!loop_run_main(sim_loop(s->sim), run_main, s)) {
        sweep_fail(s, "the run hangs");
        return; /* its world is lost */
    }
    s->n_io = sim_n_io(s->sim);
    s->n_switches = sim_n_switches(s->sim);
    s->n_messages = sim_n_messages(s->sim);
    if (sim_n_held_up(s->sim)) {
        sweep_fail(s, "%llu fsyncs or opens were awaited while the gates were "
                      "closed",
                   (unsigned long long)sim_n_held_up(s->sim));
    }
    sim_free(s->sim);
    s->sim = NULL;
    judge_disk(s, disk, "closing", 0);
    sim_disk_free(disk);
    oracle_free(s->oracle);
}

void
sweep_fini(struct sweep *s)
{
    script_fini(&s->found);
    free(s->why);
    if (s->spares) {
        sim_spares_free(s->spares);
    }
}
