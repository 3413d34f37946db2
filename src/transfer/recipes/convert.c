// SPDX-License-Identifier: BSD-3-Clause
/*
 * convert: copy what a disk reads as into a new image; nobody writes to
 * either.
 *
 *   missing  what some layer of the source holds and is not zero; the target
 *            is fresh and reads zero
 *   finish   nothing: the engine's last flush makes it durable
 */
#include <errno.h>

#include "transfer/engine.h"

static int
convert_next(struct transfer *t, uint64_t off, uint64_t limit,
             struct missing *ret)
{
    uint64_t end = min_u64(off + limit, t->copy.target->size);

    while (off < end) {
        struct extent ext;
        int r = chain_status(t->copy.source, NULL, off, end - off, true, &ext,
                             NULL);

        if (r) {
            return r;
        }
        if (ext.kind == EXTENT_DATA || ext.kind == EXTENT_ENCODED) {
            *ret = (struct missing){off, ext.len, false};
            return 0;
        }
        off += ext.len;
    }
    *ret = (struct missing){.off = end};
    return 0;
}

static const struct transfer_recipe recipe = {
    .driver = {.type = "convert",
               .run = transfer_run,
               .clean = transfer_clean,
               .remember = transfer_remember,
               .cancelled = transfer_cancelled},
    .next = convert_next,
};

int
convert_start(struct jobs *jobs, const struct transfer_options *o,
              struct err *err)
{
    int r = job_check_id(jobs, o->job_id, err);

    if (!r && o->target->size < o->device->size) {
        r = err_set(err, -EINVAL,
                    "The target has %llu bytes, the source %llu",
                    (unsigned long long)o->target->size,
                    (unsigned long long)o->device->size);
    }
    if (r) {
        return r;
    }
    struct transfer *t = transfer_new(&recipe, o);

    r = transfer_claim(t, o->device, CLAIM_STABLE, &t->source_root, err);
    if (!r) {
        r = transfer_claim(t, o->target, CLAIM_WRITE, &t->root, err);
    }
    if (r) {
        transfer_discard(t);
        return r;
    }
    t->copy = (struct copy){.source = o->device,
                            .target = o->target,
                            .flags = REQ_BACKGROUND};
    transfer_launch(t, jobs, o);
    return 0;
}
