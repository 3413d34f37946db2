// SPDX-License-Identifier: BSD-3-Clause
/* See departure.h. */
#include "transfer/departure.h"

#include <errno.h>

#include "base/log.h"
#include "block/dependents.h"
#include "journal/intent.h"
#include "transfer/resume.h"

int
departure_check(struct transfer *t, struct err *err)
{
    const struct dependents_search search = {
        .node = t->copy.source,
        .except = t->copy.target,
        .folders = (const char *const *)t->folders,
        .n_folders = t->n_folders,
        .exclusive = t->exclusive,
    };

    return t->delete_source ? dependents_check(&search, err) : 0;
}

static int
prepare(struct transfer *t, bool delete_source, struct err *err)
{
    const struct node *source = node_local_file(t->copy.source);
    const struct node *target = node_local_file(t->copy.target);

    if (!source || !target) {
        return err_set(err, -ENOTSUP, "not both sides are local files");
    }
    const struct switch_intent what = {
        .source = {source->filename, source->file_id.dev,
                   source->file_id.ino},
        .target = {target->filename, target->file_id.dev,
                   target->file_id.ino},
        .target_format = (char *)(uintptr_t)node_image_format(t->copy.target),
        .delete_source = delete_source,
    };

    return intent_prepare(graph_journals(source->graph), &what, &t->intent, err);
}

static bool
can_lie_nowhere(int r)
{
    return r == -ENOTSUP || r == -EROFS || r == -EACCES || r == -EPERM;
}

int
departure_prepare(struct transfer *t, struct err *err)
{
    auto_err inner = ERR_INIT;
    /* A source that is read from after the switch is deleted later. */
    int r = prepare(t, t->delete_source && !t->copy.fill && !t->hybrid,
                    &inner);

    if (can_lie_nowhere(r)) {
        log_info("%s: no record of the switch: %s", t->owner, inner.msg);
        return 0;
    }
    return r ? err_propagate(err, &inner) : 0;
}

int
departure_record(struct transfer *t, struct err *err)
{
    comutex_lock(&t->mark_lock);
    int r = t->intent ? intent_record(t->intent) : 0;

    comutex_unlock(&t->mark_lock);
    return r ? err_set_errno(err, r, "Writing the switch's journal failed")
             : 0;
}

void
departure_withdraw(struct transfer *t)
{
    comutex_lock(&t->mark_lock);
    if (t->intent && intent_withdraw(t->intent)) {
        log_warn("%s: the record of the switch could not be withdrawn",
                 t->owner);
    }
    comutex_unlock(&t->mark_lock);
}

/*
 * Recorded anew where the switch was long ago (post-copy), so that a crash
 * between the record and the end deletes it, too.
 */
static int
delete_source(struct transfer *t, struct err *err)
{
    const struct node *source = node_local_file(t->copy.source);
    const struct switch_intent what = {
        .source = {source->filename, source->file_id.dev,
                   source->file_id.ino}};
    int r = departure_check(t, err);

    if (!r && !t->intent) {
        r = prepare(t, true, err);
        r = r ? r : departure_record(t, err);
    }
    if (!r) {
        r = source_delete(graph_loop(source->graph), &what, err);
    }
    if (r) {
        err_prefix(err, "The disk is on '%s', but its old image was not "
                        "deleted",
                   t->copy.target->name);
    }
    return r;
}

int
departure_end(struct transfer *t, bool moved, struct err *err)
{
    int r = moved && t->delete_source ? delete_source(t, err) : 0;

    if (moved) {
        resume_forget(t, true); /* before the source may be opened again */
    }
    intent_end(take_ptr(t->intent), moved);
    return r;
}
