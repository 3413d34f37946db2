// SPDX-License-Identifier: BSD-3-Clause
/* See under_way.h. */
#include "cli/under_way.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "block/node.h"
#include "journal/deletion.h"
#include "journal/layer.h"
#include "journal/note.h"
#include "run/file.h"
#include "transfer/resume.h"

#define SUFFIX ".sluice"

/* A file as the records know it: a device by its name alone. */
struct identity {
    uint64_t ino, born;
    bool is_device;
};

struct look {
    struct under_way *u;
    struct loop *loop;
    struct journals *journals;
    const char *path;
    struct identity file;
};

static int
identify(struct loop *loop, const char *path, struct identity *ret)
{
    struct file *f;
    int r = file_open(loop, path, 0, &f);

    if (!r) {
        *ret = (struct identity){f->ino, f->born, f->is_block_device};
        file_close(f);
    }
    return r;
}

static bool
is_same(const struct identity *file, const json_t *what, const char *ino,
        const char *born)
{
    return file->is_device || (note_number(what, ino) == file->ino &&
                               note_number(what, born) == file->born);
}

static bool
is_file(const struct identity *file, const json_t *what)
{
    return !what || is_same(file, what, "ino", "born");
}

static const char *
base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* A switch. */

/* A number of 0 is of a file that had none. */
static bool
is_that_of(const struct identity *file, const struct intent_file *of)
{
    return !of->ino || (of->ino == file->ino && (!of->born || !file->born ||
                                                 of->born == file->born));
}

static int
look_at_switch(struct look *l, struct graph *graph, struct err *err)
{
    struct under_way *u = l->u;
    enum intent_found found;
    int r = intent_find(l->journals, l->path, &found, &u->intent, err);
    bool is_source = found == INTENT_AS_SOURCE;

    if (r || (!is_source && found != INTENT_AS_TARGET)) {
        return r;
    }
    bool ours = is_that_of(&l->file, is_source ? &u->intent.source
                                               : &u->intent.target);
    bool unfinished = false;

    /* One that cannot be opened is not known to be unfinished. */
    switch_ask_target(graph, &u->intent, &unfinished, NULL);
    u->switched = !ours        ? SWITCH_OF_ANOTHER_FILE
                  : unfinished ? SWITCH_UNFINISHED
                               : SWITCH_RECORDED;
    return 0;
}

/* Jobs. */

static void
name_top(json_t *job)
{
    const char *preset = note_text(job, "preset");

    if (preset && (!strcmp(preset, "merge") || !strcmp(preset, "commit")) &&
        !json_object_get(job, "top")) {
        json_object_set(job, "top", json_object_get(job, "device"));
    }
}

static void
look_at_jobs(struct look *l)
{
    json_t *list = resume_list(l->journals, l->path), *job;
    size_t i;

    json_array_foreach(list, i, job)
    {
        bool ours = is_file(&l->file, json_object_get(job, "device"));

        name_top(job);
        json_array_append(ours ? l->u->jobs : l->u->foreign, job);
    }
    json_decref(list);
}

/* The jobs of our file that lie beside @image, another name of it. */
static void
look_at_other_name(struct look *l, const char *image)
{
    json_t *list = resume_list(l->journals, image), *job;
    size_t i;

    json_array_foreach(list, i, job)
    {
        json_t *device = json_object_get(job, "device");

        if (device && is_file(&l->file, device)) {
            name_top(job);
            json_object_set_new(job, "recorded-as",
                                json_string(base_name(image)));
            json_array_append(l->u->jobs, job);
        }
    }
    json_decref(list);
}

/* Journals are found by name: a file that was renamed left its own behind. */
static void
look_at_other_names(struct look *l)
{
    char **names;
    size_t n;

    if (l->file.is_device || folder_list(l->loop, l->path, &names, &n)) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(names[i]);

        if (len > strlen(SUFFIX) &&
            !strcmp(names[i] + len - strlen(SUFFIX), SUFFIX)) {
            auto_free char *image = xstrndup(names[i], len - strlen(SUFFIX));

            if (strcmp(base_name(image), base_name(l->path))) {
                look_at_other_name(l, image);
            }
        }
    }
    names_free(names, n);
}

/* Deletions. */

static bool
is_there(struct look *l, const json_t *deletion)
{
    const char *path = note_text(deletion, "file");
    struct identity file;

    return path && !identify(l->loop, path, &file) && is_file(&file, deletion);
}

/* What counts once this file is the image that goes on without them. */
static void
look_at_deletions(struct look *l)
{
    json_t *list = deletions_of(l->journals, l->path), *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        if (is_same(&l->file, one, "heir-ino", "heir-born") &&
            is_there(l, one)) {
            json_array_append_new(
                l->u->deletions,
                json_pack("{s:s, s:s}", "job", note_text(one, "job"), "file",
                          note_text(one, "file")));
        }
    }
    json_decref(list);
}

/* Whose layer it is. */

/* The name, in the folder of @near, of the file that @what is; or NULL. */
static char *
find_in_folder(struct look *l, const char *near, const json_t *what)
{
    char **names, *found = NULL;
    size_t n;

    if (!what || folder_list(l->loop, near, &names, &n)) {
        return NULL;
    }
    for (size_t i = 0; i < n && !found; i++) {
        struct identity file;
        struct stat st;

        if (!lstat(names[i], &st) && S_ISREG(st.st_mode) &&
            st.st_ino == note_number(what, "ino") &&
            !identify(l->loop, names[i], &file) && is_file(&file, what)) {
            found = xstrdup(base_name(names[i]));
        }
    }
    names_free(names, n);
    return found;
}

/* The job's own record, beside the disk; NULL: it is not there any more. */
static json_t *
find_note(struct look *l, const char *disk, const char *id)
{
    json_t *list = resume_list(l->journals, disk), *job, *found = NULL;
    size_t i;

    json_array_foreach(list, i, job)
    {
        if (!found && !strcmp(note_text(job, "id"), id)) {
            name_top(job);
            found = json_incref(job);
        }
    }
    json_decref(list);
    return found;
}

static void
add_layer(struct look *l, const char *id, const char *disk)
{
    json_t *note = find_note(l, disk, id);
    const json_t *device = json_object_get(note, "device");
    struct identity file;
    bool gone = identify(l->loop, disk, &file) != 0;
    bool other = !gone && note && !is_file(&file, device);

    if (!gone && !note) {
        return; /* the job is over: a daemon that opens this image sees that */
    }
    json_t *o = json_pack("{s:s, s:s, s:s}", "job", id, "disk", disk, "state",
                          gone    ? "disk-is-gone"
                          : other ? "disk-is-another-file"
                                  : "written");
    auto_free char *now =
        gone || other ? find_in_folder(l, disk, device) : NULL;

    if (now) {
        json_object_set_new(o, "disk-now", json_string(now));
    }
    if (note) {
        json_object_set_new(o, "note", note);
    }
    json_array_append_new(l->u->layer_of, o);
}

static void
look_at_layers(struct look *l)
{
    struct journal_record record;
    struct layer_record layer;
    struct journal *j;
    uint32_t pos = 0;

    if (journal_open(l->journals, l->path, &j)) {
        return;
    }
    while (journal_next(j, &pos, &record)) {
        if (layer_record_read(j, &record, &layer)) {
            add_layer(l, layer.id, layer.disk);
            free(layer.disk);
        }
    }
    journal_close(j);
}

int
under_way_look(struct under_way *u, struct cli *cli, const char *path,
               struct err *err)
{
    struct look l = {u, cli->loop, graph_journals(cli->graph), path, {0}};

    *u = (struct under_way){.jobs = json_array(),
                            .foreign = json_array(),
                            .deletions = json_array(),
                            .layer_of = json_array()};
    if (identify(l.loop, path, &l.file)) {
        return 0;
    }
    look_at_jobs(&l);
    look_at_other_names(&l);
    look_at_deletions(&l);
    look_at_layers(&l);
    return look_at_switch(&l, cli->graph, err);
}

void
under_way_fini(struct under_way *u)
{
    json_decref(u->jobs);
    json_decref(u->foreign);
    json_decref(u->deletions);
    json_decref(u->layer_of);
    switch_intent_fini(&u->intent);
}

bool
under_way_is(const struct under_way *u)
{
    return json_array_size(u->jobs) || json_array_size(u->deletions) ||
           json_array_size(u->layer_of) || u->switched == SWITCH_RECORDED ||
           u->switched == SWITCH_UNFINISHED;
}

/* As text. */

static const char *
layer(const json_t *job, const char *key)
{
    return note_text(json_object_get(job, key), "file");
}

/* "job 'j' (merge) of the layers from 'top' down to 'base'" */
static char *
describe(const json_t *job)
{
    const char *top = layer(job, "top"), *base = layer(job, "base");
    const char *target = layer(job, "target");
    auto_free char *head = xasprintf("job '%s' (%s)", note_text(job, "id"),
                                     note_text(job, "preset"));

    return top && base ? xasprintf("%s of the layers from '%s' down to '%s'",
                                   head, top, base)
           : target    ? xasprintf("%s to '%s'", head, target)
           : base      ? xasprintf("%s down to '%s'", head, base)
                       : xstrdup(head);
}

static void
say_job(const json_t *job, const char *path, bool in_use)
{
    const char *as = note_text(job, "recorded-as");
    auto_free char *what = describe(job);

    printf("%s: %s%s%s%s ", path, what, as ? ", recorded under its name '" : "",
           as ? as : "", as ? "'," : "");
    if (in_use) {
        puts("is under way");
    } else if (as) {
        printf("was cut off: it goes on when a daemon opens the image to "
               "write, once '%s" SUFFIX "' is renamed to '%s" SUFFIX "'\n",
               as, base_name(path));
    } else {
        puts("was cut off: it goes on when a daemon opens the image to write");
    }
}

static void
say_foreign(const json_t *job, const char *path)
{
    auto_free char *what = describe(job);

    printf("%s: the record of %s is of another file, which had this name or "
           "was copied with its journal: it does not go on here\n",
           path, what);
}

static void
say_deletion(const json_t *deletion, const char *path, bool in_use)
{
    printf("%s: job '%s' has merged all; still to be deleted is '%s'%s\n",
           path, note_text(deletion, "job"), note_text(deletion, "file"),
           in_use ? "" : ", when a daemon opens the image to write");
}

static void
say_lost_disk(const json_t *l, const char *path)
{
    const char *disk = note_text(l, "disk"), *now = note_text(l, "disk-now");
    bool gone = !strcmp(note_text(l, "state"), "disk-is-gone");

    printf("%s: job '%s' wrote to it, as a layer of '%s', which is %s: ", path,
           note_text(l, "job"), disk,
           gone ? "not there any more" : "another file by now, or a copy");
    if (now) {
        printf("that disk is named '%s' now, and the job goes on with it once "
               "'%s" SUFFIX "' is renamed to '%s" SUFFIX "'\n",
               now, base_name(disk), now);
    } else {
        puts("the job does not go on by itself, and alone this image may be "
             "neither old nor new");
    }
}

static void
say_layer(const json_t *l, const char *path)
{
    if (strcmp(note_text(l, "state"), "written")) {
        say_lost_disk(l, path);
        return;
    }
    auto_free char *what = describe(json_object_get(l, "note"));

    printf("%s: a job of '%s' writes to it, as a layer of that: by itself it "
           "is neither old nor new (%s)\n",
           path, note_text(l, "disk"), what);
}

static void
say_switch(const struct under_way *u, const char *path, bool in_use)
{
    const char *source = u->intent.source.path;
    const char *target = u->intent.target.path;

    switch (u->switched) {
    case SWITCH_NONE:
        break;
    case SWITCH_OF_ANOTHER_FILE:
        printf("%s: the record of a switch from '%s' to '%s' is of another "
               "file, which had this name or was copied with its journal\n",
               path, source, target);
        break;
    case SWITCH_UNFINISHED:
        printf("%s: the disk was to move from '%s' to '%s', which is not "
               "finished: it is still the former\n",
               path, source, target);
        break;
    case SWITCH_RECORDED:
        printf("%s: the disk moves from '%s' to '%s'%s\n", path, source, target,
               in_use ? ""
                      : ", which was cut off: opening the latter to write ends "
                        "it");
        break;
    }
}

void
under_way_say(const struct under_way *u, const char *path, bool in_use)
{
    json_t *one;
    size_t i;

    json_array_foreach(u->jobs, i, one)
    {
        say_job(one, path, in_use);
    }
    json_array_foreach(u->foreign, i, one)
    {
        say_foreign(one, path);
    }
    json_array_foreach(u->deletions, i, one)
    {
        say_deletion(one, path, in_use);
    }
    json_array_foreach(u->layer_of, i, one)
    {
        say_layer(one, path);
    }
    say_switch(u, path, in_use);
}

void
under_way_add(const struct under_way *u, json_t *object)
{
    const json_t *first = json_array_get(u->layer_of, 0);

    json_object_set(object, "jobs", u->jobs);
    json_object_set(object, "deletions", u->deletions);
    if (json_array_size(u->foreign)) {
        json_object_set(object, "jobs-of-another-file", u->foreign);
    }
    if (first) {
        json_object_set(object, "layer-of", json_object_get(first, "disk"));
        json_object_set(object, "layer-jobs", u->layer_of);
    }
    if (u->switched != SWITCH_NONE) {
        json_object_set_new(
            object,
            u->switched == SWITCH_OF_ANOTHER_FILE ? "switch-of-another-file"
                                                  : "switch",
            json_pack("{s:s, s:s, s:b}", "source", u->intent.source.path,
                      "target", u->intent.target.path, "target-unfinished",
                      u->switched == SWITCH_UNFINISHED));
    }
}
