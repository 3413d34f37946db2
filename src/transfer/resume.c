// SPDX-License-Identifier: BSD-3-Clause
/*
 * See resume.h.  A record is the job's id, a zero, and a JSON object.  Files are
 * known by their inodes: names of nodes are the next daemon's own, and a folder
 * may have been moved.
 */
#include "transfer/resume.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "journal/journal.h"
#include "journal/layer.h"
#include "journal/note.h"
#include "transfer/engine.h"

static const char *const names[] = {
    [PRESET_STREAM] = "stream",
    [PRESET_COMMIT] = "commit",
    [PRESET_MERGE] = "merge",
    [PRESET_MIRROR] = "mirror",
    [PRESET_PRE_COPY] = "pre-copy",
    [PRESET_HYBRID] = "hybrid",
};

static const char *const ways[] = {
    [MERGE_INTO_AUTO] = "auto",
    [MERGE_INTO_SNAPSHOT] = "snapshot",
    [MERGE_INTO_OVERLAY] = "overlay",
};

/* @name's index in @table; -1 where it is not there. */
static int
look_up(const char *const *table, size_t n, const char *name)
{
    for (size_t i = 0; i < n && name; i++) {
        if (table[i] && !strcmp(table[i], name)) {
            return (int)i;
        }
    }
    return -1;
}

/* Describing. */

static void
set_file(json_t *note, const char *key, const struct node *node)
{
    const struct node *file = node ? node_own_file(node) : NULL;

    if (file) {
        json_object_set_new(
            note, key,
            json_pack("{s:s, s:I, s:I}", "file", file->filename, "ino",
                      (json_int_t)node_journal_ino(file),
                      "born",
                      (json_int_t)file->file_born));
    }
}

/* What opens @node again, its file included, whatever else is there. */
static json_t *
options_of(const struct node *node)
{
    json_t *options = json_deep_copy(node->options);

    if (node->file && json_is_string(json_object_get(options, "file"))) {
        json_object_set_new(options, "file", options_of(node->file->child));
    }
    return options;
}

static void
set_target(json_t *note, const struct transfer_options *o)
{
    json_object_update_new(
        note,
        json_pack("{s:o, s:i, s:i, s:i, s:I, s:b}", "target-options",
                  options_of(o->target), "copy-mode", (int)o->copy_mode,
                  "sync", (int)o->sync, "finish", (int)o->finish, "granularity",
                  (json_int_t)o->granularity, "upgrade", o->upgrade));
    set_file(note, "target", o->target);
}

static json_t *
folders(const struct transfer_options *o)
{
    json_t *list = json_array();

    for (size_t i = 0; i < o->n_dependents_in; i++) {
        json_array_append_new(list, json_string(o->dependents_in[i]));
    }
    return list;
}

char *
resume_describe(enum transfer_preset preset, const struct transfer_options *o)
{
    const char *name =
        (size_t)preset < ARRAY_LEN(names) ? names[preset] : NULL;

    if (!name || !node_own_file(o->device) || o->replaces ||
        (o->target && o->sync == SYNC_NONE)) {
        return NULL;
    }
    json_t *note = json_pack(
        "{s:s, s:s, s:I, s:I, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:i, s:i, "
        "s:o}",
        "preset", name, "into", ways[o->into], "speed", (json_int_t)o->speed,
        "max-extra", (json_int_t)o->max_extra, "wait", o->wait_for_verb,
        "release", o->release, "delete", o->delete_source, "exclusive",
        o->exclusive, "keep-name", o->keep_name, "auto-finalize",
        o->auto_finalize, "auto-dismiss", o->auto_dismiss, "on-error", (int)o->on_error, "on-target-error",
        (int)o->on_target_error, "dependents-in", folders(o));

    if (o->backing_file) {
        json_object_set_new(note, "backing-file", json_string(o->backing_file));
    }
    set_file(note, "device", o->device);
    set_file(note, "top", o->top);
    set_file(note, "base", o->base);
    if (o->target) {
        set_target(note, o);
    } else if (preset == PRESET_COMMIT) {
        json_object_set_new(note, "finish", json_integer(o->finish));
        json_object_set_new(note, "copy-mode", json_integer(o->copy_mode));
    }
    bool is_whole = (!o->top || json_object_get(note, "top")) &&
                    (!o->base || json_object_get(note, "base"));
    char *text = is_whole ? json_dumps(note, JSON_COMPACT) : NULL;

    json_decref(note);
    return text;
}

static const char *const does_not_matter[] = {"speed", "paused"};

bool
resume_is_same(struct jobs *jobs, enum transfer_preset preset,
               const struct transfer_options *o)
{
    const struct job *job = o->job_id ? jobs_find(jobs, o->job_id) : NULL;

    if (job && err_is_set(&job->err)) {
        return false; /* it is over, and has failed */
    }
    auto_free char *text = job ? resume_describe(preset, o) : NULL;
    const char *theirs = job ? transfer_note(job) : NULL;

    if (!text || !theirs) {
        return false;
    }
    json_t *a = json_loads(text, 0, NULL), *b = json_loads(theirs, 0, NULL);

    if (o->into == MERGE_INTO_AUTO) {
        json_object_del(a, "into");
        json_object_del(b, "into");
    }
    for (size_t i = 0; i < ARRAY_LEN(does_not_matter); i++) {
        json_object_del(a, does_not_matter[i]);
        json_object_del(b, does_not_matter[i]);
    }
    bool same = json_equal(a, b);

    json_decref(a);
    json_decref(b);
    return same;
}

/*
 * Who writes to the layers (rule 5).  A job that sinks goes on only where nobody
 * else wrote to them: each has the number of its session in its header, which
 * another program takes away.  The disk gets a new one as soon as it is opened,
 * before a record can say so: there it is enough that it has any.
 */

static struct node *
below(const struct node *node)
{
    return node->backing ? node_skip_filters(node->backing->child) : NULL;
}

/* Of the layers below @top down to @base: what is there, or was @before. */
static uint64_t
sessions(struct node *top, struct node *base, bool before)
{
    struct node *last = node_skip_filters(base);
    uint64_t sum = 0;

    for (struct node *n = node_skip_filters(top); n && n != last;) {
        n = below(n);
        if (n) {
            sum = 31 * sum + (before || !n->session ? n->last_session
                                                    : n->session);
        }
    }
    return sum & INT64_MAX;
}

/* They stay there when the daemon ends and leaves the job to the next. */
static void
keep_sessions(struct transfer *t, bool keep)
{
    struct node *last = t->shadowed ? node_skip_filters(t->copy.target) : NULL;

    for (struct node *n = last ? node_skip_filters(t->device) : NULL; n;
         n = n == last ? NULL : below(n)) {
        if (n->session) {
            n->keep_session = keep || n->dirty_log;
        }
    }
}

/* The record of a job that runs. */

static int
add_record(struct transfer *t, struct journal *j, enum journal_type type)
{
    if (type != JOURNAL_JOB) {
        return note_add(j, type, t->job.id, "");
    }
    if (!t->shadowed) {
        return note_add(j, type, t->job.id, t->note);
    }
    auto_free char *note = xasprintf(
        "%.*s,\"session\":%s,\"sessions\":%" PRIu64 "}",
        (int)strlen(t->note) - 1, t->note,
        node_skip_filters(t->device)->session ? "true" : "false",
        sessions(t->copy.source, t->copy.target, false));

    return note_add(j, type, t->job.id, note);
}

/* Whoever finds a layer by itself is told whose it is. */
static int
point_from(struct transfer *t, struct node *layer)
{
    const struct node *file = node_own_file(layer);
    struct journal *j;

    if (!file || layer == t->device) {
        return 0;
    }
    int r = journal_share(graph_journals(layer->graph), file->filename, &j);

    if (r) {
        return r;
    }
    t->of_layers = xrealloc(t->of_layers,
                            (t->n_of_layers + 1) * sizeof(*t->of_layers));
    t->of_layers[t->n_of_layers++] = j;
    return layer_record_add(j, t->job.id, t->journal);
}

/* A merge or commit writes to all of them, a stream only where it releases. */
static int
point_from_layers(struct transfer *t)
{
    int r = t->shadowed ? point_from(t, t->copy.target) : 0;

    for (unsigned i = 0; i < t->release.n_layers && !r; i++) {
        r = point_from(t, t->release.layers[i]);
    }
    return r;
}

static void
leave_layers(struct transfer *t, bool ended)
{
    while (t->n_of_layers) {
        struct journal *j = t->of_layers[--t->n_of_layers];

        if (ended && note_add(j, JOURNAL_JOB_ENDED, t->job.id, "")) {
            NODE_SAY(t->device, warn,
                     "%s has ended, but the journal of '%s' does not say so",
                     t->owner, journal_image(j));
        }
        journal_leave(j);
    }
    free(take_ptr(t->of_layers));
}

void
resume_record(struct transfer *t)
{
    if (!t->note || t->journal) {
        return;
    }
    const char *image = node_own_file(t->device)->filename;
    int r = journal_share(graph_journals(t->device->graph), image,
                          &t->journal);

    if (!r) {
        r = point_from_layers(t);
    }
    if (!r) {
        keep_sessions(t, true);
        r = add_record(t, t->journal, JOURNAL_JOB);
    }
    if (r) {
        keep_sessions(t, false);
        leave_layers(t, true);
        journal_leave(take_ptr(t->journal));
        NODE_SAY(t->device, info,
                 "%s: it will not go on by itself after a crash: the journal "
                 "of '%s' cannot be written: %s",
                 t->owner, image, err_text(r));
    }
}

/* What was there when it began again: it need not have run since. */
static struct journal *
open_of_earlier(const struct transfer *t)
{
    struct journal *j = NULL;

    if (t->goes_on && t->note && t->job.jobs) {
        journal_share(graph_journals(t->device->graph),
                      node_own_file(t->device)->filename, &j);
    }
    return j;
}

void
resume_change(struct transfer *t)
{
    json_t *note = t->note ? json_loads(t->note, 0, NULL) : NULL;

    if (!note) {
        return;
    }
    json_object_set_new(note, "speed", json_integer((json_int_t)t->job.speed));
    json_object_set_new(note, "paused", json_boolean(t->job.by_verb));
    free(t->note);
    t->note = json_dumps(note, JSON_COMPACT);
    json_decref(note);
    if (t->journal && add_record(t, t->journal, JOURNAL_JOB)) {
        NODE_SAY(t->device, info,
                 "%s: after a crash its speed, or its pause, will be what it "
                 "was: the journal of '%s' cannot be written",
                 t->owner, journal_image(t->journal));
    }
}

void
resume_record_as_stream(struct transfer *t)
{
    struct transfer_options o = {.device = t->copy.target,
                                 .speed = t->job.speed,
                                 .on_error = t->on_source_error,
                                 .on_target_error = t->on_target_error,
                                 .auto_finalize = t->job.auto_finalize,
                                 .auto_dismiss = t->job.auto_dismiss};
    struct journal *old = t->journal ? take_ptr(t->journal)
                                     : open_of_earlier(t);

    keep_sessions(t, false);
    leave_layers(t, true);
    t->goes_on = false;
    if (t->device) {
        node_unref(t->device);
    }
    free(t->note);
    t->device = node_ref(t->copy.target);
    t->note = resume_describe(PRESET_STREAM, &o);
    resume_record(t);
    /* That one last: what a crash leaves between them is told by the switch. */
    if (old && note_add(old, JOURNAL_JOB_ENDED, t->job.id, "")) {
        NODE_SAY(t->device, warn,
                 "%s has moved, but the journal of '%s' does not say so",
                 t->owner, journal_image(old));
    }
    journal_leave(old);
}

void
resume_forget(struct transfer *t, bool done)
{
    struct journal *j = t->journal ? take_ptr(t->journal) : open_of_earlier(t);

    if ((j || t->note) && t->copy.target &&
        (done || !t->job.jobs || !jobs_are_ending(t->job.jobs))) {
        keep_sessions(t, false);
    }
    t->goes_on = false;
    leave_layers(t, done || !t->job.jobs || !jobs_are_ending(t->job.jobs));
    if (j && (done || !jobs_are_ending(t->job.jobs))) {
        int r = add_record(t, j, JOURNAL_JOB_ENDED);

        if (r) {
            NODE_SAY(t->device, warn,
                     "%s has ended, but its journal does not say so: %s",
                     t->owner, err_text(r));
        }
    }
    journal_leave(j);
}

void
resume_forget_deletions(struct transfer *t)
{
    for (unsigned i = 0; i < t->n_deletions && t->deletions; i++) {
        auto_free char *id = xasprintf("%s/%u", t->job.id, i);

        note_add(t->deletions, JOURNAL_JOB_ENDED, id, "");
    }
    journal_leave(take_ptr(t->deletions));
}

/* What is left of others. */

json_t *
resume_list(struct journals *journals, const char *image)
{
    return notes_of(journals, image, JOURNAL_JOB);
}

/* Does the journal @uuid of @disk still know the job? */
static bool
is_known(struct journals *js, const char *disk, const char *id,
         const unsigned char *uuid)
{
    struct journal *j;
    bool found = false;
    size_t i;

    if (journal_open(js, disk, &j)) {
        return false;
    }
    json_t *list = notes_in(j, JOURNAL_JOB), *note;

    json_array_foreach (list, i, note) {
        found |= !strcmp(note_text(note, "id"), id);
    }
    found = found && !memcmp(journal_uuid(j), uuid, JOURNAL_UUID);
    json_decref(list);
    journal_close(j);
    return found;
}

/* Where the disk itself is not found, nobody knows. */
static bool
may_be_under_way(struct journals *js, const char *disk, const char *id,
                 const unsigned char *uuid)
{
    struct file *file;

    if (file_open(js->loop, disk, 0, &file)) {
        return true;
    }
    file_close(file);
    return is_known(js, disk, id, uuid);
}

static bool
is_backing_file(const struct node *node)
{
    list_for_each(it, &node->parents)
    {
        if (container_of(it, struct edge, link)->role == EDGE_BACKING) {
            return true;
        }
    }
    return false;
}

/* True: the journal says something else now. */
static bool
check_layer_record(struct node *node, struct journal *j,
                   const struct layer_record *layer)
{
    struct journals *js = graph_journals(node->graph);
    auto_free char *id = xstrdup(layer->id); /* the journal may be written anew */
    unsigned char uuid[JOURNAL_UUID];

    memcpy(uuid, layer->uuid, JOURNAL_UUID);
    bool may_be = may_be_under_way(js, layer->disk, id, uuid);

    if (may_be && !is_backing_file(node)) {
        NODE_SAY(node, warn,
                 "'%s' is a layer of '%s', into which job '%s' was merging: by "
                 "itself it is neither old nor new",
                 node_own_file(node)->filename, layer->disk, id);
    } else if (!may_be) {
        note_add(j, JOURNAL_JOB_ENDED, id, "");
    }
    return !may_be;
}

/* Records of layers; or nothing at all, of a job that had not begun. */
static bool
is_to_be_checked(struct journals *js, const char *image)
{
    struct journal_record record;
    bool says_something = false, is_of_layers = false;
    struct journal *j;
    uint32_t pos = 0;

    if (journal_open(js, image, &j)) {
        return false;
    }
    while (journal_next(j, &pos, &record)) {
        says_something = true;
        is_of_layers |= record.type == JOURNAL_LAYER;
    }
    journal_close(j);
    return is_of_layers || !says_something;
}

void
resume_check_layer(struct node *node)
{
    struct journals *js = graph_journals(node->graph);
    const char *image = node_own_file(node)->filename;
    struct journal_record record;
    struct layer_record layer;
    struct journal *j;
    uint32_t pos = 0;

    if (!is_to_be_checked(js, image) || journal_share(js, image, &j)) {
        return;
    }
    while (journal_next(j, &pos, &record)) {
        if (layer_record_read(j, &record, &layer)) {
            pos = check_layer_record(node, j, &layer) ? 0 : pos;
            free(layer.disk);
        }
    }
    journal_leave(j);
}

static void
forget(struct node *device, const char *id)
{
    struct node *image = node_skip_filters(device);
    struct journal *j;

    image->keep_session = image->dirty_log != NULL;
    if (!journal_share(graph_journals(device->graph),
                       node_own_file(device)->filename, &j)) {
        note_add(j, JOURNAL_JOB_ENDED, id, "");
        journal_leave(j);
    }
}

/* Do both names lead to one device today?  Yields. */
static bool
is_same_device(struct loop *loop, const char *a, const char *b)
{
    auto_free char *real_a = NULL, *real_b = NULL;

    return !strcmp(a, b) ||
           (!file_real_path(loop, a, &real_a) &&
            !file_real_path(loop, b, &real_b) && !strcmp(real_a, real_b));
}

static bool
is_file(const struct node *node, json_t *what)
{
    const struct node *file = node_own_file(node);
    const char *name = json_string_value(json_object_get(what, "file"));
    json_int_t ino = json_integer_value(json_object_get(what, "ino"));
    json_int_t born = json_integer_value(json_object_get(what, "born"));

    if (!file) {
        return false;
    }
    /* A device that has no identity is known by its name. */
    return file->is_device
               ? !ino && (born && file->file_born
                              ? born == (json_int_t)file->file_born
                              : name && is_same_device(graph_loop(node->graph),
                                                       name, file->filename))
               : ino == (json_int_t)file->file_id.ino &&
                     born == (json_int_t)file->file_born;
}

/* The layer from @device on that a note names; *@ret NULL where it names none. */
static int
find_layer(struct node *device, json_t *note, const char *key,
           struct node **ret, struct err *err)
{
    json_t *what = json_object_get(note, key);

    *ret = NULL;
    for (struct node *n = what ? device : NULL; n && !*ret;
         n = n->backing ? n->backing->child : NULL) {
        *ret = is_file(n, what) ? n : NULL;
    }
    return !what || *ret
               ? 0
               : err_set(err, -ENOENT, "'%s' is not below '%s' any more",
                         json_string_value(json_object_get(what, "file")),
                         node_own_file(device)->filename);
}

static bool
flag(json_t *note, const char *key)
{
    return json_is_true(json_object_get(note, key));
}

static enum on_error
policy(json_t *note, const char *key)
{
    uint64_t n = note_number(note, key);

    return n <= ON_ERROR_AUTO ? (enum on_error)n : ON_ERROR_AUTO;
}

/* NULL: drive-mirror's, which nobody has given a name. */
static const char *
target_name(json_t *note)
{
    return note_text(json_object_get(note, "target-options"), "node-name");
}

/* One that is there, or as it was opened before; then *@ret_opened. */
static int
find_target(struct node *device, json_t *note, struct node **ret,
            bool *ret_opened, struct err *err)
{
    json_t *what = json_object_get(note, "target");
    json_t *options = json_object_get(note, "target-options");
    const char *name = target_name(note);

    *ret_opened = false;
    *ret = NULL;
    if (!options) {
        return 0;
    }
    *ret = name ? graph_find(device->graph, name) : NULL;
    if (!*ret) {
        int r = name ? node_add(device->graph, options, ret, err)
                     : node_open(device->graph, options, ret, err);

        if (r) {
            err_prefix(err, "its target");
            return r;
        }
        *ret_opened = true;
    }
    return !what || is_file(*ret, what)
               ? 0
               : err_set(err, -ESTALE, "its target '%s' is another file now",
                         json_string_value(json_object_get(what, "file")));
}

/* What a copy is besides. */
static void
take_target_options(json_t *note, struct transfer_options *o)
{
    uint64_t mode = note_number(note, "copy-mode");
    uint64_t sync = note_number(note, "sync");

    o->copy_mode =
        mode <= COPY_MODE_FORWARD ? (enum copy_mode)mode : COPY_MODE_AUTO;
    o->sync = sync < SYNC_NONE ? (enum sync_mode)sync : SYNC_FULL;
    o->finish = note_number(note, "finish") ? FINISH_STAY : FINISH_SWITCH;
    o->granularity = (uint32_t)note_number(note, "granularity");
    o->upgrade = flag(note, "upgrade");
}

static int
check_sessions(const struct transfer_options *o, json_t *note, struct err *err)
{
    struct node *disk = node_skip_filters(o->device);
    uint64_t were = note_number(note, "sessions"); /* 0: nobody knows */
    bool same = !were ||
                were == sessions(o->top ? o->top : disk, o->base, true);

    if ((!flag(note, "session") || disk->last_session) && same) {
        return 0;
    }
    int r = err_set(err, -ESTALE,
                    "'%s' or a layer below it was written to by another "
                    "program since",
                    node_own_file(o->device)->filename);

    err_hint(err, "if they are still what they were, the same command "
                  "continues it");
    return r;
}

/* The numbers are about to change, and were right. */
static int
forget_sessions(struct node *device, json_t *note)
{
    struct journal *j;
    json_t *copy = json_copy(note);
    int r = journal_share(graph_journals(device->graph),
                          node_own_file(device)->filename, &j);

    json_object_del(copy, "id");
    json_object_set_new(copy, "sessions", json_integer(0));
    auto_free char *dump = json_dumps(copy, JSON_COMPACT);

    json_decref(copy);
    if (!r) {
        r = note_add(j, JOURNAL_JOB, note_text(note, "id"), dump);
        journal_leave(j);
    }
    return r;
}

/* And are new now. */
static void
remember_sessions(struct jobs *jobs, struct node *device, const char *id)
{
    struct journal *j;

    if (journal_share(graph_journals(device->graph),
                      node_own_file(device)->filename, &j)) {
        return;
    }
    struct job *job = jobs_find(jobs, id);
    struct transfer *t = job ? transfer_of(job) : NULL;

    /* Else it is over, or has said so itself. */
    if (t && t->note && t->copy.target && !t->journal) {
        keep_sessions(t, true);
        add_record(t, j, JOURNAL_JOB);
    }
    journal_leave(j);
}

static int
start_with_target(struct jobs *jobs, enum transfer_preset preset,
                  struct transfer_options *o, json_t *note, struct err *err)
{
    bool opened;
    int r = find_target(o->device, note, &o->target, &opened, err);

    take_target_options(note, o);
    r = r ? r : transfer_start(jobs, preset, o, err);
    if (opened && !target_name(note)) {
        node_unref(o->target); /* the job has it now, or nobody */
    } else if (opened && r) {
        node_del(o->device->graph, target_name(note), NULL);
    }
    return r;
}

static int
start(struct jobs *jobs, struct node *device, json_t *note, bool paused,
      struct err *err)
{
    int preset = look_up(names, ARRAY_LEN(names), note_text(note, "preset"));
    int into = look_up(ways, ARRAY_LEN(ways), note_text(note, "into"));
    json_t *list = json_object_get(note, "dependents-in");
    size_t n = json_array_size(list);
    auto_free const char **dependents = xmalloc((n + 1) * sizeof(char *));

    for (size_t i = 0; i < n; i++) {
        dependents[i] = json_string_value(json_array_get(list, i));
        dependents[i] = dependents[i] ? dependents[i] : "";
    }
    struct transfer_options o = {
        .job_id = note_text(note, "id"),
        .device = device,
        .backing_file = note_text(note, "backing-file"),
        .into = into < 0 ? MERGE_INTO_AUTO : (enum merge_into)into,
        .speed = note_number(note, "speed"),
        .wait_for_verb = flag(note, "wait"),
        .max_extra = note_number(note, "max-extra"),
        .release = flag(note, "release"),
        .delete_source = flag(note, "delete"),
        .exclusive = flag(note, "exclusive"),
        .keep_name = flag(note, "keep-name"),
        .auto_finalize = flag(note, "auto-finalize"),
        .auto_dismiss = flag(note, "auto-dismiss"),
        .on_error = policy(note, "on-error"),
        .on_target_error = policy(note, "on-target-error"),
        .dependents_in = dependents,
        .n_dependents_in = n,
        .start_paused = paused || flag(note, "paused"),
        .resumed = true,
    };

    if (preset < 0) {
        return err_set(err, -ENOTSUP, "it is of a kind that is not known here");
    }
    int r = find_layer(device, note, "base", &o.base, err);

    r = r ? r : find_layer(device, note, "top", &o.top, err);
    if (!r && json_object_get(note, "sessions")) {
        r = check_sessions(&o, note, err);
        if (!r && forget_sessions(device, note)) {
            r = err_set(err, -EIO, "its journal cannot be written");
        }
    }
    return r ? r
             : start_with_target(jobs, (enum transfer_preset)preset, &o, note,
                                 err);
}

/* Who may put a journal beside an image must not have others written. */
static bool
writes_to_others(struct graph *graph, json_t *note)
{
    const char *target = target_name(note);

    if (json_object_get(note, "target-options")) {
        return !target || !graph_find(graph, target);
    }
    return look_up(names, ARRAY_LEN(names), note_text(note, "preset")) !=
               PRESET_STREAM ||
           flag(note, "release") || flag(note, "delete");
}

static void
resume(struct jobs *jobs, struct node *device, json_t *note, bool paused)
{
    const char *id = note_text(note, "id");
    const char *file = node_own_file(device)->filename;
    auto_err err = ERR_INIT;
    int r;

    if (graph_limits_paths(device->graph) &&
        writes_to_others(device->graph, note)) {
        NODE_SAY(device, warn,
                 "Job '%s' (%s), which was under way on '%s', stays as it is: "
                 "with --untrusted or --backing-paths a journal cannot have "
                 "another image written; the same command continues it",
                 id, note_text(note, "preset"), file);
        return;
    }
    if (!is_file(device, json_object_get(note, "device"))) {
        NODE_SAY(device, warn,
                 "Job '%s' was of another file that was named '%s'; it is "
                 "forgotten",
                 id, file);
        forget(device, id);
    } else if ((r = start(jobs, device, note, paused, &err))) {
        if (r == -ENOENT) { /* its layers are not there any more */
            graph_add_done(device->graph, id, node_own_file(device));
        }
        NODE_SAY(device, warn,
                 "Job '%s' (%s), which was under way on '%s', cannot go on: "
                 "%s%s%s",
                 id, note_text(note, "preset"), file, err.msg,
                 err.hint ? "; " : "", err.hint ? err.hint : "");
        forget(device, id);
    } else {
        NODE_SAY(device, info, "Job '%s' (%s), which was under way on '%s', %s",
                 id, note_text(note, "preset"), file,
                 paused || flag(note, "paused") ? "is there again, paused"
                                                : "goes on");
        if (json_object_get(note, "sessions")) {
            remember_sessions(jobs, device, id);
        }
    }
}

/* A node that is looked at: a list that was read may be of yesterday when
 * another has started what is in it. */
struct look {
    struct list link;
    const struct node *node;
};

static bool
is_looked_at(struct jobs *jobs, const struct node *node)
{
    list_for_each(it, jobs_looked_at(jobs))
    {
        if (container_of(it, struct look, link)->node == node) {
            return true;
        }
    }
    return false;
}

void
resume_jobs(struct jobs *jobs, struct node *node, enum resume_mode mode)
{
    const struct node *file = node_own_file(node);
    struct look look = {.node = node};

    if (!file || node->drv->is_protocol || mode == RESUME_NEVER ||
        is_looked_at(jobs, node)) {
        return;
    }
    list_push(jobs_looked_at(jobs), &look.link);
    json_t *list = resume_list(graph_journals(node->graph), file->filename);
    json_t *note;
    size_t i;

    node_ref(node);
    resume_check_layer(node);
    json_array_foreach (list, i, note) {
        if (!jobs_find(jobs, note_text(note, "id"))) {
            resume(jobs, node, note, mode == RESUME_ASK);
        }
    }
    list_remove(&look.link);
    node_unref(node);
    json_decref(list);
}
