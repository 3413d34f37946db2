// SPDX-License-Identifier: BSD-3-Clause
/* block-merge: layers of a chain become one image, in place. */
#include <errno.h>
#include <stdlib.h>

#include "control/transfer_args.h"
#include "schema_dispatch.h"

/* Is an image in use right above @node? */
static bool
is_layer(const struct node *node)
{
    list_for_each(it, &node->parents)
    {
        if (container_of(it, struct edge, link)->role == EDGE_BACKING) {
            return true;
        }
    }
    return false;
}

int
complete_merge(struct transfer_options *o, struct err *err)
{
    o->device = node_skip_filters(o->device);
    if (o->base) {
        struct node *layer = chain_find_layer(o->device, o->base);

        o->base = layer ? layer : o->base;
    } else {
        o->base = o->device->backing ? o->device->backing->child : o->device;
    }
    return is_layer(o->device) ? 0 : control_check_root(o->device, err);
}

static int
find_layers(struct control *ctl, const char *device, const char *snapshot,
            struct transfer_options *o, struct err *err)
{
    int r = control_find_node(ctl, device, true, &o->device, err);

    if (!r && snapshot) {
        r = control_find_node(ctl, snapshot, false, &o->base, err);
    }
    return r ? r : complete_merge(o, err);
}

enum merge_into
take_merge_into(bool given, enum qmp_merge_into into)
{
    static const enum merge_into ways[] = {
        [QMP_MERGE_INTO_AUTO] = MERGE_INTO_AUTO,
        [QMP_MERGE_INTO_SNAPSHOT] = MERGE_INTO_SNAPSHOT,
        [QMP_MERGE_INTO_OVERLAY] = MERGE_INTO_OVERLAY,
    };

    return given ? ways[into] : MERGE_INTO_AUTO;
}

/* The same once more, where "the backing file" is another one by now. */
static int
check_not_done(const struct transfer_options *o, struct err *err)
{
    const struct node *file = node_own_file(o->device);

    if (!o->job_id || !file || !graph_is_done(o->device->graph, o->job_id, file)) {
        return 0;
    }
    return err_set(err, -EALREADY,
                   "Job '%s' was cut off at its end and was finished when '%s' "
                   "was opened; to merge further, name the snapshot or another "
                   "job",
                   o->job_id, file->filename);
}

int
cmd_block_merge(struct control *ctl, const struct args_block_merge *args,
                json_t **ret, struct err *err)
{
    struct transfer_options o = {
        .job_id = args->job_id,
        .into = take_merge_into(args->has_into, args->into),
        .release = !args->has_release || args->release,
        .max_extra = args->max_extra,
        .upgrade = args->upgrade,
        .keep_name = args->keep_name,
        .on_error = take_on_error(args->has_on_error, args->on_error,
                                  ON_ERROR_AUTO),
        .on_target_error = take_on_error(args->has_on_error, args->on_error,
                                         ON_ERROR_AUTO),
        .auto_finalize = !args->has_auto_finalize || args->auto_finalize,
        .auto_dismiss = !args->has_auto_dismiss || args->auto_dismiss,
    };
    int r = find_layers(ctl, args->device, args->snapshot, &o, err);

    if (!r && !args->snapshot) {
        r = check_not_done(&o, err);
    }
    if (!r) {
        r = take_speed(args->speed, &o, err);
    }
    take_deletion(args->delete, args->exclusive, args->dependents_in, &o);
    r = r ? r : transfer_start(ctl->jobs, PRESET_MERGE, &o, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}

/* The base is in the chain. */
static json_t *
merge_answer(const struct transfer_options *o, enum merge_into into,
             const struct transfer_plan *plan)
{
    bool sinks = into == MERGE_INTO_SNAPSHOT;
    const struct node *survivor = sinks ? o->base : o->device;
    json_t *drops = json_array();

    for (const struct node *n = o->device;; n = n->backing->child) {
        if (n != survivor) {
            json_array_append_new(drops, json_string(n->name));
        }
        if (n == o->base) {
            break;
        }
    }
    json_t *answer = plan_answer(plan, drops);

    json_object_set_new(answer, "into",
                        json_string(sinks ? "snapshot" : "overlay"));
    json_object_set_new(answer, "survivor", json_string(survivor->name));
    return answer;
}

static int
plan_merge(const struct transfer_options *o, json_t **ret, struct err *err)
{
    struct transfer_plan plan;
    enum merge_into into;

    /* The chain may change while it is looked at. */
    node_ref(o->device);
    node_ref(o->base);
    int r = merge_choose(o, &into, &plan, err);

    if (!r && !chain_contains(o->device, o->base)) {
        r = err_set(err, -EBUSY,
                    "The chain of node '%s' has changed meanwhile",
                    o->device->name);
    }
    if (!r) {
        *ret = merge_answer(o, into, &plan);
    }
    node_unref(o->base);
    node_unref(o->device);
    return r;
}

int
cmd_query_merge_plan(struct control *ctl,
                     const struct args_query_merge_plan *args, json_t **ret,
                     struct err *err)
{
    struct transfer_options o = {
        .into = take_merge_into(args->has_into, args->into),
        .release = !args->has_release || args->release,
        .max_extra = args->max_extra,
        .upgrade = args->upgrade,
        .keep_name = args->keep_name,
    };
    int r = find_layers(ctl, args->device, args->snapshot, &o, err);

    if (r) {
        return r;
    }
    take_deletion(args->delete, args->exclusive, args->dependents_in, &o);
    r = plan_merge(&o, ret, err);
    free((void *)(uintptr_t)o.dependents_in);
    return r;
}
