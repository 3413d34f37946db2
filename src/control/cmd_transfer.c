// SPDX-License-Identifier: BSD-3-Clause
/*
 * block-transfer, of which every other command that moves data is a preset,
 * and what such commands share.
 */
#include <errno.h>

#include "control/transfer_args.h"
#include "schema_dispatch.h"

int
take_speed(int64_t speed, struct transfer_options *o, struct err *err)
{
    if (speed < 0) {
        return err_set(err, -EINVAL,
                       "Parameter 'speed' expects a non-negative value");
    }
    o->speed = (uint64_t)speed;
    return 0;
}

int
take_replaces(struct control *ctl, const char *name,
              struct transfer_options *o, struct err *err)
{
    o->replaces = name ? graph_find(ctl->graph, name) : NULL;
    return !name || o->replaces
               ? 0
               : err_set(err, -ENOENT,
                         "Failed to find node with node-name='%s'", name);
}

int
check_filter_name(struct control *ctl, const char *name, struct err *err)
{
    return name ? graph_check_name(ctl->graph, name, err) : 0;
}

int
take_buf_size(int64_t size, struct transfer_options *o, struct err *err)
{
    if (size < 0) {
        return err_set(err, -EINVAL, "Invalid parameter 'buf-size'");
    }
    o->max_in_flight = (uint64_t)size;
    return 0;
}

enum copy_mode
take_copy_mode(bool given, enum qmp_mirror_copy_mode mode)
{
    return !given ? COPY_MODE_AUTO
           : mode == QMP_MIRROR_COPY_MODE_BACKGROUND ? COPY_MODE_BACKGROUND
                                                     : COPY_MODE_FORWARD;
}

enum on_error
take_on_error(bool given, enum qmp_blockdev_on_error policy,
              enum on_error otherwise)
{
    return given ? (enum on_error)policy : otherwise; /* both are QEMU's */
}

int
take_sync(enum qmp_mirror_sync_mode mode, struct transfer_options *o,
          struct err *err)
{
    switch (mode) {
    case QMP_MIRROR_SYNC_MODE_FULL:
        o->sync = SYNC_FULL;
        return 0;
    case QMP_MIRROR_SYNC_MODE_TOP:
        o->sync = SYNC_TOP;
        return 0;
    case QMP_MIRROR_SYNC_MODE_NONE:
        o->sync = SYNC_NONE;
        return 0;
    default:
        return err_set(err, -EINVAL, "Sync mode '%s' not supported",
                       mode == QMP_MIRROR_SYNC_MODE_BITMAP ? "bitmap"
                                                           : "incremental");
    }
}

void
take_deletion(bool delete_source, bool exclusive, json_t *dependents_in,
              struct transfer_options *o)
{
    size_t n = json_array_size(dependents_in);
    const char **folders = xzalloc((n + 1) * sizeof(*folders));

    for (size_t i = 0; i < n; i++) {
        folders[i] = json_string_value(json_array_get(dependents_in, i));
    }
    o->delete_source = delete_source;
    o->exclusive = exclusive;
    o->dependents_in = folders;
    o->n_dependents_in = n;
}

json_t *
plan_answer(const struct transfer_plan *plan, json_t *drops)
{
    json_t *o = json_pack("{s:I, s:I, s:I, s:o}", "bytes-to-copy",
                          (json_int_t)plan->bytes_to_copy, "bytes-to-zero",
                          (json_int_t)plan->bytes_to_zero, "space-needed",
                          (json_int_t)plan->space_needed, "drops", drops);

    if (plan->space_free <= INT64_MAX) {
        json_object_set_new(o, "space-free",
                            json_integer((json_int_t)plan->space_free));
    }
    return o;
}

int
plan_transfer(enum transfer_preset preset, const struct transfer_options *o,
              json_t *drops, json_t **ret, struct err *err)
{
    struct transfer_plan plan;
    int r = transfer_plan(preset, o, &plan, err);

    if (r) {
        json_decref(drops);
        return r;
    }
    *ret = plan_answer(&plan, drops);
    return 0;
}

/* block-transfer. */

struct named_node {
    const char *name;
    struct node **ret;
};

static int
find_nodes(struct control *ctl, const struct args_block_transfer *args,
           struct transfer_options *o, struct err *err)
{
    const struct named_node nodes[] = {
        {args->device, &o->device},   {args->target, &o->target},
        {args->top_node, &o->top},    {args->base_node, &o->base},
        {args->replaces, &o->replaces},
    };
    int r = 0;

    for (size_t i = 0; i < ARRAY_LEN(nodes) && !r; i++) {
        r = nodes[i].name ? control_find_node(ctl, nodes[i].name, i < 2,
                                              nodes[i].ret, err)
                          : 0;
    }
    return r;
}

/* The layer that @node is or shows; the recipe refuses what is none. */
static struct node *
layer_of(struct node *top, struct node *node)
{
    struct node *layer = node ? chain_find_layer(top, node) : NULL;

    return layer ? layer : node;
}

static int
complete_commit(struct transfer_options *o, struct err *err)
{
    o->device = node_skip_filters(o->device);
    o->top = o->top ? layer_of(o->device, o->top) : o->device;
    o->base = layer_of(o->top, o->base);
    int r = control_check_root(o->device, err);

    return r || o->base ? r : control_find_lowest(o->top, &o->base, err);
}

static int
complete_stream(struct transfer_options *o)
{
    o->device = node_skip_filters(o->device);
    o->base = layer_of(o->device, o->base);
    return 0;
}

/* What a preset cannot do without; filters over a disk are skipped. */
static int
complete_nodes(enum transfer_preset preset, struct transfer_options *o,
               struct err *err)
{
    bool in_chain = preset == PRESET_STREAM || preset == PRESET_COMMIT ||
                    preset == PRESET_MERGE;

    if (!in_chain && !o->target) {
        return err_set(err, -EINVAL, "Parameter 'target' is missing");
    }
    return preset == PRESET_MERGE    ? complete_merge(o, err)
           : preset == PRESET_COMMIT ? complete_commit(o, err)
           : preset == PRESET_STREAM ? complete_stream(o)
                                     : 0;
}

/* A stream and a merge have one policy, as block-stream and block-merge. */
static void
take_policies(const struct args_block_transfer *args,
              enum transfer_preset preset, struct transfer_options *o)
{
    bool is_one = preset == PRESET_STREAM || preset == PRESET_MERGE;

    o->on_error =
        take_on_error(args->has_on_source_error, args->on_source_error,
                      is_one ? ON_ERROR_AUTO : ON_ERROR_REPORT);
    o->on_target_error =
        is_one ? o->on_error
               : take_on_error(args->has_on_target_error,
                               args->on_target_error, ON_ERROR_AUTO);
}

static int
take_transfer(struct control *ctl, const struct args_block_transfer *args,
              enum transfer_preset preset, struct transfer_options *o,
              struct err *err)
{
    int r = check_parameters(preset, args->json, err);

    if (!r) {
        r = find_nodes(ctl, args, o, err);
    }
    if (!r) {
        r = complete_nodes(preset, o, err);
    }
    if (!r && preset == PRESET_COMMIT && o->top != o->device) {
        r = check_commit_below(args->json, err);
    }
    if (!r && args->has_sync) {
        r = take_sync(args->sync, o, err);
    }
    if (!r) {
        r = take_speed(args->speed, o, err);
    }
    return r ? r : take_buf_size(args->buf_size, o, err);
}

int
cmd_block_transfer(struct control *ctl,
                   const struct args_block_transfer *args, json_t **ret,
                   struct err *err)
{
    /* Both enumerations have one order. */
    enum transfer_preset preset = args->preset == QMP_TRANSFER_PRESET_COPY
                                      ? PRESET_PRE_COPY
                                      : (enum transfer_preset)args->preset;
    bool is_merge = preset == PRESET_MERGE;
    struct transfer_options o = {
        .job_id = args->job_id,
        .backing_file = args->backing_file,
        .copy_mode = take_copy_mode(args->has_copy_mode, args->copy_mode),
        .finish = args->has_finish && args->finish == QMP_COPY_FINISH_STAY
                      ? FINISH_STAY
                      : FINISH_SWITCH,
        .wait_for_verb = preset == PRESET_MIRROR ||
                         (args->has_auto_complete && !args->auto_complete),
        .granularity = args->granularity,
        .target_is_zero = args->target_is_zero,
        .upgrade = args->upgrade,
        .into = take_merge_into(args->has_into, args->into),
        .release = args->has_release ? args->release : is_merge,
        .max_extra = args->max_extra,
        .keep_name = args->keep_name,
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = take_transfer(ctl, args, preset, &o, err);

    take_policies(args, preset, &o);
    take_deletion(is_merge ? args->delete : args->delete_source,
                  args->exclusive, args->dependents_in, &o);
    r = r ? r : transfer_start(ctl->jobs, preset, &o, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}

int
cmd_query_transfers(struct control *ctl,
                    const struct args_query_transfers *args, json_t **ret,
                    struct err *err)
{
    jobs_wait_resumed(ctl->jobs);
    *ret = json_array();
    list_for_each(it, jobs_list(ctl->jobs))
    {
        const struct job *job = container_of(it, struct job, link);
        struct transfer_report r;

        if (!transfer_report(job, &r)) {
            continue;
        }
        json_t *report = json_pack(
            "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
            "s:I, s:I}", "id",
            job->id, "type", job->driver->type, "bytes-moved",
            (json_int_t)r.bytes_moved, "bytes-cloned",
            (json_int_t)r.bytes_cloned, "bytes-zeroed",
            (json_int_t)r.bytes_zeroed, "bytes-dirtied",
            (json_int_t)r.bytes_dirtied, "bytes-forwarded",
            (json_int_t)r.bytes_forwarded, "bytes-sunk",
            (json_int_t)r.bytes_sunk, "bytes-released",
            (json_int_t)r.bytes_released, "peak-extra",
            (json_int_t)r.peak_extra, "pause-ns", (json_int_t)r.pause_ns,
            "requests-held", (json_int_t)r.held, "rate-bps",
            (json_int_t)r.rate_bps, "elapsed-ns", (json_int_t)r.elapsed_ns);

        if (job->io_status == JOB_IO_NOSPACE) {
            json_object_set_new(report, "space-needed",
                                json_integer((json_int_t)r.space_needed));
            json_object_set_new(report, "space-free",
                                json_integer((json_int_t)r.space_free));
        }
        json_array_append_new(*ret, report);
    }
    return 0;
}
