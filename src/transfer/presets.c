// SPDX-License-Identifier: BSD-3-Clause
/* The recipes by the names of the operations that they are (design §2). */
#include "transfer/resume.h"
#include "transfer/transfer.h"

typedef int start_fn(struct jobs *jobs, const struct transfer_options *options,
                     struct err *err);
typedef int plan_fn(const struct transfer_options *options,
                    struct transfer_plan *ret, struct err *err);

static const struct {
    start_fn *start;
    plan_fn *plan;
} presets[] = {
    [PRESET_STREAM] = {stream_start, stream_plan},
    [PRESET_PRE_COPY] = {copy_start, copy_plan},
    [PRESET_POST_COPY] = {post_copy_start, post_copy_plan},
    [PRESET_HYBRID] = {hybrid_start, hybrid_plan},
    [PRESET_MIRROR] = {mirror_start, mirror_plan},
    [PRESET_COMMIT] = {commit_start, commit_plan},
    [PRESET_MERGE] = {merge_start, merge_plan},
};

/* Who starts or plans yields: the nodes must be there when it goes on. */
static void
hold(const struct transfer_options *o)
{
    struct node *nodes[] = {o->device, o->top, o->base, o->target,
                            o->replaces};

    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        if (nodes[i]) {
            node_ref(nodes[i]);
        }
    }
}

static void
let_go(const struct transfer_options *o)
{
    struct node *nodes[] = {o->device, o->top, o->base, o->target,
                            o->replaces};

    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        if (nodes[i]) {
            node_unref(nodes[i]);
        }
    }
}

static int
check_active(const struct transfer_options *o, struct err *err)
{
    const struct node *nodes[] = {o->device, o->top, o->base, o->target};
    int r = 0;

    for (size_t i = 0; i < ARRAY_LEN(nodes) && !r; i++) {
        r = nodes[i] ? node_check_active(nodes[i], err) : 0;
    }
    return r;
}

/* A disk that hangs does not hold up who commands it for longer. */
#define BEGIN_NS (NS_PER_S / 2)

/* Two of one name do not begin at once. */
static int
start(struct jobs *jobs, enum transfer_preset preset,
      const struct transfer_options *o, struct err *err)
{
    struct job_id id;
    int r = o->job_id ? job_id_take(jobs, o->job_id, &id, err) : 0;

    if (r) {
        return r;
    }
    r = presets[preset].start(jobs, o, err);
    if (o->job_id) {
        job_id_free(&id);
    }
    return r;
}

int
transfer_start(struct jobs *jobs, enum transfer_preset preset,
               const struct transfer_options *options, struct err *err)
{
    auto_free char *note = resume_describe(preset, options);
    struct transfer_options o = *options;

    o.note = note;
    hold(options);
    if (!options->resumed) {
        jobs_wait_resumed(jobs);
    }
    int r = check_active(options, err);

    r = r ? r : start(jobs, preset, &o, err);
    if (!r && o.job_id && !o.resumed) {
        /* Whoever is told that it runs finds it after a crash, too. */
        struct loop *loop = jobs_loop(jobs);

        jobs_wait_begun(jobs, o.job_id, loop_now(loop) + BEGIN_NS);
    }
    let_go(options);
    return r;
}

int
transfer_plan(enum transfer_preset preset,
              const struct transfer_options *options,
              struct transfer_plan *ret, struct err *err)
{
    hold(options);
    int r = check_active(options, err);

    r = r ? r : presets[preset].plan(options, ret, err);

    let_go(options);
    return r;
}
