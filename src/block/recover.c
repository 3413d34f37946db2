// SPDX-License-Identifier: BSD-3-Clause
/*
 * What an earlier daemon left beside an image that is opened: a switch that
 * was under way is finished or taken back, files that were to be deleted go
 * (docs/design/intents.md).
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "block/dependents.h"
#include "block/dirty_log.h"
#include "block/graph_internal.h"
#include "block/mark.h"
#include "journal/deletion.h"
#include "journal/intent.h"
#include "journal/journal.h"
#include "journal/note.h"
#include "run/file.h"

/* Opens it to be looked at: nobody need be able to write it. */
static int
look_at(struct graph *graph, const struct intent_file *image, struct node **ret,
        struct err *err)
{
    json_t *options = json_pack(
        "{s:s, s:b, s:b, s:n, s:{s:s, s:s}}", "driver", image->format,
        "read-only", 1, "force-share", 1, "backing", "file", "driver", "file",
        "filename", image->path);
    const struct driver *drv = graph_driver(graph, image->format);

    if (drv && !drv->set_backing) {
        json_object_del(options, "backing");
    }
    int r = node_open(graph, options, ret, err);

    json_decref(options);
    return r;
}

int
switch_ask_target(struct graph *graph, const struct switch_intent *i, bool *ret,
           struct err *err)
{
    struct node *target;
    int r = look_at(graph, &i->target, &target, err);

    if (!r) {
        *ret = target->incomplete;
        node_unref(target);
    }
    return r;
}

static bool
is_same(const struct intent_file *a, const struct node *file)
{
    bool born = !a->born || !file->file_born || a->born == file->file_born;

    return born && (!a->ino || a->ino == file->file_id.ino); /* 0: a device */
}

/*
 * Who was not there may have used the old image since, or made a clone of it:
 * what was looked for at the switch is looked for again.
 */
static int
check_source(struct node *disk, const struct switch_intent *i,
             struct err *err)
{
    struct node *source;
    int r = look_at(disk->graph, &i->source, &source, err);

    if (r) {
        return r;
    }
    const struct dependents_of old = {source, disk};
    const struct dependents_search how = {
        .folders = (const char *const *)i->folders,
        .n_folders = i->n_folders,
        .is_opened_to_look = true,
        .exclusive = i->exclusive,
    };

    if (i->source_session && source->last_session != i->source_session) {
        r = err_set(err, -ESTALE, "'%s' was written to since",
                    i->source.path);
    }
    r = r ? r : dependents_check(&old, 1, &how, err);
    node_unref(source);
    return r;
}

static void
remove_journal(struct graph *graph, const char *image)
{
    struct journal *j;

    if (!journal_open(&graph->journals, image, &j)) {
        journal_remove(j);
        journal_close(j);
    }
}

static void
hint_journal(struct err *err, struct graph *graph,
             const struct switch_intent *i)
{
    struct journal *j;

    if (!journal_open(&graph->journals, i->source.path, &j)) {
        err_hint(err, "open '%s', which ends the switch; to go back to the old "
                      "state, remove '%s'",
                 i->target.path, journal_file(j));
        journal_close(j);
    }
}

/* The image is what the disk was moved away from. */
static int
leave_source(struct node *node, const struct node *file,
             const struct switch_intent *i, struct err *err)
{
    auto_err inner = ERR_INIT;
    bool unfinished = false;
    int r;

    if (!is_same(&i->source, file)) {
        NODE_SAY(node, warn,
                 "The journal of '%s' is of another file that had this name; "
                 "it is removed",
                 file->filename);
        remove_journal(node->graph, file->filename);
        return 0;
    }
    r = switch_ask_target(node->graph, i, &unfinished, &inner);
    if (!r && unfinished) {
        NODE_SAY(node, info,
                 "The switch of '%s' to '%s' was cut off; the disk is still "
                 "'%s'",
                 file->filename, i->target.path, file->filename);
        intent_remove(&node->graph->journals, i, false);
        return 0;
    }
    if (node->read_only) {
        NODE_SAY(node, warn,
                 "The disk in '%s' went on as '%s'; this one is old",
                 file->filename, i->target.path);
        return 0;
    }
    node->is_refused = true;
    r = err_set(err, -ESTALE, "The disk in '%s' went on as '%s'%s%s",
                file->filename, i->target.path,
                inner.msg ? ", which cannot be opened: " : "",
                inner.msg ? inner.msg : "");
    hint_journal(err, node->graph, i);
    return r;
}

/*
 * 0, or -ESTALE where it is another file.  The name in the record counts only
 * where it leads to the file that was looked at.
 */
static int
check_source_is_at(struct loop *loop, const struct switch_intent *i,
                   const char *path)
{
    uint64_t dev = 0, ino = 0;
    struct file *f;
    int r = file_open(loop, path, 0, &f);

    if (!r && path != i->source.path &&
        !file_identify(loop, i->source.path, &dev, &ino)) {
        r = f->dev == dev && f->ino == ino ? 0 : -ESTALE;
        if (r) {
            file_close(f);
        }
    }
    if (!r) {
        bool same = f->ino == i->source.ino &&
                    (!i->source.born || f->born == i->source.born);

        file_close(f);
        r = same ? 0 : -ESTALE;
    }
    return r;
}

int
source_delete(struct loop *loop, const struct switch_intent *i,
              struct err *err)
{
    const char *path = i->source_name;
    int r = path ? check_source_is_at(loop, i, path) : -ENOENT;

    if (r) { /* the link has gone, or the folder was moved */
        path = i->source.path;
        r = check_source_is_at(loop, i, path);
    }
    if (r == -ENOENT) {
        return 0;
    }
    if (r == -ESTALE) {
        return err_set(err, r, "'%s' is another file by now: it is left alone",
                       i->source.path);
    }
    r = r ? r : file_delete(loop, path);
    dirty_log_remove(loop, i->source.path);
    return r ? err_set_errno(err, r, "Could not delete '%s'", i->source.path)
             : 0;
}

/* Who may put a journal beside an image must not have others gone. */
static int
check_may_delete(const struct node *node, struct err *err)
{
    return graph_limits_paths(node->graph)
               ? err_set(err, -EPERM, "with --untrusted or --backing-paths "
                                      "nothing is deleted")
               : 0;
}

/* Is @ino the file that the image names as its backing file? */
static bool
stands_on(struct node *node, uint64_t ino)
{
    auto_free char *path = NULL;
    struct file *f;

    if (!node->header_backing.filename ||
        node_backing_path(node, &path, NULL) ||
        file_open(node->graph->loop, path, 0, &f)) {
        return false;
    }
    bool same = f->ino == ino;

    file_close(f);
    return same;
}

static bool
has_job(struct node *node, const struct node *file)
{
    json_t *list = notes_of(&node->graph->journals, file->filename,
                            JOURNAL_JOB);
    bool has = json_array_size(list) != 0;

    json_decref(list);
    return has;
}

/* The image is the disk: what was left to do is done. */
static void
arrive_at_target(struct node *node, const struct node *file,
                 const struct switch_intent *i)
{
    struct loop *loop = node->graph->loop;
    auto_err err = ERR_INIT;

    if (node->read_only || node->incomplete || !is_same(&i->target, file)) {
        return;
    }
    bool stands = i->source.ino && stands_on(node, i->source.ino);

    if (stands && has_job(node, file)) {
        return; /* its rest is still to be copied: then */
    }
    bool deletes = i->delete_source && !stands;
    int r = deletes ? check_may_delete(node, &err) : 0;

    if (!r && deletes) {
        r = check_source(node, i, &err);
    }
    if (!r && deletes) {
        r = source_delete(loop, i, &err);
    } else if (r == -ENOENT) {
        r = 0; /* that was done */
    }
    if (r) {
        NODE_SAY(node, warn, "The old image '%s' is not deleted: %s",
                 i->source.path, err.msg);
    }
    NODE_SAY(node, info,
             "The switch of '%s' to '%s' was cut off; it is finished%s",
             i->source.path, file->filename,
             deletes && !r ? ", and the old image is deleted" : "");
    intent_remove(&node->graph->journals, i, true);
}

/* Deletions. */

/* Of the switch's intent what deletes the source. */
static struct switch_intent
intent_of(json_t *deletion)
{
    json_t *folders = json_object_get(deletion, "dependents-in"), *folder;
    const char *path = note_text(deletion, "file");
    const char *format = note_text(deletion, "format");
    struct switch_intent i = {
        .source = {xstrdup(path), note_number(deletion, "ino"),
                   note_number(deletion, "born"),
                   xstrdup(format ? format : "raw")},
        .exclusive = json_is_true(json_object_get(deletion, "exclusive")),
        .folders = xzalloc((json_array_size(folders) + 1) * sizeof(char *))};
    size_t k;

    json_array_foreach(folders, k, folder)
    {
        if (json_is_string(folder)) {
            i.folders[i.n_folders++] = xstrdup(json_string_value(folder));
        }
    }
    return i;
}

static void
finish_deletion(struct node *node, json_t *deletion)
{
    struct switch_intent i = intent_of(deletion);
    auto_err err = ERR_INIT;
    int r = check_source(node, &i, &err);

    if (!r) {
        r = source_delete(node->graph->loop, &i, &err);
    }
    if (!r) {
        NODE_SAY(node, info,
                 "Job '%s' was cut off when it deleted what it had merged: "
                 "'%s' is deleted",
                 note_text(deletion, "job"), i.source.path);
    } else if (r != -ENOENT) {
        NODE_SAY(node, warn,
                 "Job '%s' was cut off when it deleted what it had merged; "
                 "'%s' is not deleted: %s",
                 note_text(deletion, "job"), i.source.path, err.msg);
    }
    if (!r || r == -ENOENT) {
        remove_journal(node->graph, i.source.path);
    }
    switch_intent_fini(&i);
}

static void
finish_deletions(struct node *node, const struct node *file)
{
    struct journals *journals = graph_journals(node->graph);
    json_t *list = deletions_of(journals, file->filename), *one;
    bool now = json_array_size(list) != 0;
    auto_err err = ERR_INIT;
    struct journal *j;
    size_t k;

    json_array_foreach(list, k, one)
    {
        now = now && note_number(one, "heir-ino") == file->file_id.ino &&
              note_number(one, "heir-born") == file->file_born &&
              /* else the job is not at its end */
              !(note_text(one, "file") &&
                stands_on(node, note_number(one, "ino")));
    }
    if (now && check_may_delete(node, &err)) {
        NODE_SAY(node, warn,
                 "Job '%s' was cut off when it deleted what it had merged; %s",
                 note_text(json_array_get(list, 0), "job"), err.msg);
        now = false;
    }
    if (now && !journal_share(journals, file->filename, &j)) {
        json_array_foreach(list, k, one)
        {
            if (note_text(one, "file")) {
                finish_deletion(node, one);
            }
        }
        graph_add_done(node->graph, note_text(json_array_get(list, 0), "job"),
                       file);
        deletions_end(j, list);
        journal_leave(j);
    }
    json_decref(list);
}

/* Whoever goes on with a job sees by the session that only Sluice wrote. */
static void
keep_session(struct node *node, const struct node *file)
{
    struct journal_record record;
    struct journal *j;
    uint32_t pos = 0;

    if (!node->session ||
        journal_open(&node->graph->journals, file->filename, &j)) {
        return;
    }
    while (journal_next(j, &pos, &record)) {
        node->keep_session |= record.type == JOURNAL_JOB;
    }
    journal_close(j);
}

void
node_end_switch(struct node *node)
{
    const struct node *file = node_own_file(node);
    struct switch_intent intent = {0};
    enum intent_found found;

    if (file && !intent_find(&node->graph->journals, file->filename, &found,
                             &intent, NULL) &&
        found == INTENT_AS_TARGET) {
        arrive_at_target(node, file, &intent);
    }
    switch_intent_fini(&intent);
}

/* What is below filters by its own name was opened, and looked at, before. */
int
node_recover(struct node *top, struct err *err)
{
    struct node *node = node_skip_filters(top);
    const struct node *file = node_own_file(node);
    struct switch_intent intent = {0};
    enum intent_found found;
    int r;

    if (node->drv->is_protocol || !file || (node != top && node->visible)) {
        return 0;
    }
    r = intent_find(&node->graph->journals, file->filename, &found, &intent, err);
    if (!r) {
        node_find_mark(node, found != INTENT_NONE);
    }
    if (!r && found == INTENT_AS_SOURCE) {
        r = leave_source(node, file, &intent, err);
    } else if (!r && found == INTENT_AS_TARGET) {
        arrive_at_target(node, file, &intent);
    } else if (!r && found == INTENT_VOID && !node->read_only) {
        intent_forget(&node->graph->journals, file->filename);
    }
    switch_intent_fini(&intent);
    /* Most images have no journal, and a chain has many that are only read. */
    if (!r && found != INTENT_NONE && !node->read_only) {
        if (!node->incomplete) {
            finish_deletions(node, file);
        }
        keep_session(node, file);
    }
    if (!r) {
        dirty_log_attach(node);
    }
    return r;
}
