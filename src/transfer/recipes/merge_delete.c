// SPDX-License-Identifier: BSD-3-Clause
/*
 * The end of a merge: files that are empty go, and the survivor may take the
 * disk's name.
 *
 * They are in no chain by then; the uppermost first, so that none dangles.  That
 * they are to go is recorded before, beside the image that goes on without
 * them, so that who opens that next finishes it (src/block/recover.c): by then
 * the job's own record may be gone with the disk's old file.
 */
#include <errno.h>

#include "base/log.h"
#include "block/dependents.h"
#include "journal/deletion.h"
#include "transfer/recipes/keep_name.h"
#include "transfer/recipes/recipes.h"

enum { WIPED = 64 << 10 };

/* Records. */

static bool
takes_name(const struct transfer *t, const struct node *layer)
{
    return t->keep_name && layer == t->copy.source;
}

/* A device's header is wiped, or it stays as it is. */
static bool
is_deleted(const struct transfer *t, const struct node *layer)
{
    return t->delete_source && !takes_name(t, layer) && node_local_file(layer);
}

static int
record_one(struct transfer *t, struct deletion *d, const struct node *layer)
{
    const struct node *file = layer ? node_local_file(layer) : NULL;
    struct switch_intent what = {.exclusive = t->exclusive,
                                 .folders = t->folders,
                                 .n_folders = t->n_folders};

    if (file) {
        what.source = (struct intent_file){
            file->filename, file->file_id.ino, file->file_born,
            (char *)(uintptr_t)node_image_format(layer)};
    }
    d->what = file ? &what : NULL;
    d->number = t->n_deletions++;
    return deletion_record(t->deletions, d);
}

static int
record_all(struct transfer *t, struct node *heir)
{
    const struct node *file = node_own_file(heir);
    const struct node *survivor = node_own_file(t->copy.target);
    struct deletion d = {.job = t->job.id,
                         .heir_ino = file->file_id.ino,
                         .heir_born = file->file_born,
                         .survivor = survivor ? survivor->filename : NULL};
    const struct release *rel = &t->release;

    d.total = t->keep_name;
    for (unsigned i = 0; i < rel->n_layers; i++) {
        d.total += is_deleted(t, rel->layers[i]);
    }
    int r = t->keep_name ? record_one(t, &d, NULL) : 0;

    for (unsigned i = rel->n_layers; i-- && !r;) {
        r = is_deleted(t, rel->layers[i])
                ? record_one(t, &d, rel->layers[i])
                : 0;
    }
    return r;
}

void
merge_record_deletions(struct transfer *t, struct node *heir)
{
    /* With its name goes the place of its journal. */
    const struct node *named =
        node_own_file(t->keep_name ? t->copy.source : heir);

    if (!t->note || !named || !node_own_file(heir) ||
        (!t->delete_source && !t->keep_name)) {
        return;
    }
    int r = journal_share(graph_journals(heir->graph), named->filename,
                          &t->deletions);

    r = r ? r : record_all(t, heir);
    if (r) {
        NODE_SAY(heir, info,
                 "%s: what it deletes is not finished after a crash: the "
                 "journal of '%s' cannot be written: %s",
                 t->owner, named->filename, err_text(r));
    }
}

/* What is done. */

/* Of a block device goes what makes it an image. */
static int
wipe_header(struct node *layer, struct err *err)
{
    struct node *device = layer->file->child;
    uint64_t len = min_u64(device->size, WIPED);
    auto_free unsigned char *zeroes = xzalloc(WIPED);
    int r = node_write_buf(device, 0, zeroes, len);

    r = r ? r : node_flush(device);
    return r ? err_set_errno(err, r, "Wiping the header of '%s' failed",
                             device->filename)
             : 0;
}

static int
delete_file(struct transfer *t, const struct node *file, struct err *err)
{
    const struct switch_intent what = {
        .source = {file->filename, file->file_id.ino, file->file_born, NULL}};

    return source_delete(jobs_loop(t->job.jobs), &what, err);
}

static int
delete_layer(struct transfer *t, struct node *layer, struct err *err)
{
    const struct node *file = node_local_file(layer);

    return file ? delete_file(t, file, err) : wipe_header(layer, err);
}

/* Once more, for a clone may have been made meanwhile. */
static int
check_dependents_again(struct transfer *t, struct err *err)
{
    const struct release *rel = &t->release;
    auto_free struct dependents_of *of = xmalloc((rel->n_layers + 1) *
                                                 sizeof(*of));
    const struct dependents_search how = {
        .folders = (const char *const *)t->folders,
        .n_folders = t->n_folders,
        .may_be_device = true,
        .exclusive = t->exclusive,
    };
    size_t n = 0;

    for (unsigned i = rel->n_layers; i--;) {
        if (!takes_name(t, rel->layers[i])) {
            of[n++] = (struct dependents_of){
                rel->layers[i],
                i + 1 < rel->n_layers ? rel->layers[i + 1] : NULL};
        }
    }
    return dependents_check(of, n, &how, err);
}

int
merge_delete_layers(struct transfer *t, struct err *err)
{
    struct release *rel = &t->release;
    int r = 0;

    if (t->keep_name) {
        r = keep_name(t->copy.source, t->copy.target, err);
    }
    if (!r && t->delete_source) {
        r = check_dependents_again(t, err);
    }
    for (unsigned i = rel->n_layers; i-- && t->delete_source && !r;) {
        if (takes_name(t, rel->layers[i])) {
            continue; /* its file has gone with its name */
        }
        r = delete_layer(t, rel->layers[i], err);
    }
    if (r) {
        err_prefix(err, "The layers are merged, but not all that are empty "
                        "were deleted");
    }
    return r;
}

