// SPDX-License-Identifier: BSD-3-Clause
/*
 * See deletion.h.  The id of a record is the job's, '/' and a number; a job's
 * own id has no '/'.
 */
#include "journal/deletion.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"
#include "journal/note.h"

static void
set_path(json_t *note, const char *key, const struct journal *j,
         const char *path)
{
    auto_free char *name = journal_name(j, path);

    json_object_set_new(note, key, json_string(name));
}

static void
set_file(json_t *note, const struct journal *j,
         const struct switch_intent *what)
{
    json_t *folders = json_array();

    for (size_t i = 0; i < what->n_folders; i++) {
        json_array_append_new(folders, json_string(what->folders[i]));
    }
    json_object_update_new(
        note, json_pack("{s:s, s:I, s:I, s:b, s:o}", "format",
                        what->source.format, "ino",
                        (json_int_t)what->source.ino, "born",
                        (json_int_t)what->source.born, "exclusive",
                        what->exclusive, "dependents-in", folders));
    set_path(note, "file", j, what->source.path);
}

int
deletion_record(struct journal *j, const struct deletion *d)
{
    json_t *note = json_pack("{s:s, s:b, s:I, s:I}", "job", d->job, "is-last",
                             d->number + 1 == d->total, "heir-ino",
                             (json_int_t)d->heir_ino, "heir-born",
                             (json_int_t)d->heir_born);

    if (d->what) {
        set_file(note, j, d->what);
    }
    if (d->survivor) {
        set_path(note, "survivor", j, d->survivor);
    }
    auto_free char *dump = json_dumps(note, JSON_COMPACT);
    auto_free char *id = xasprintf("%s/%u", d->job, d->number);

    json_decref(note);
    return dump ? note_add(j, JOURNAL_DELETION, id, dump) : -EILSEQ;
}

static void
resolve_path(json_t *note, const char *key, const struct journal *j)
{
    const char *name = note_text(note, key);
    auto_free char *path = name ? journal_path(j, name) : NULL;

    if (path) {
        json_object_set_new(note, key, json_string(path));
    }
}

json_t *
deletions_of(struct journals *journals, const char *image)
{
    struct journal *j;

    if (journal_open(journals, image, &j)) {
        return json_array();
    }
    json_t *list = notes_in(j, JOURNAL_DELETION), *note;
    bool has_last = false, all_say_whose = true;
    size_t k;

    json_array_foreach(list, k, note)
    {
        resolve_path(note, "file", j);
        resolve_path(note, "survivor", j);
        all_say_whose &= note_text(note, "job") != NULL;
        has_last = json_is_true(json_object_get(note, "is-last"));
    }
    journal_close(j);
    if (!has_last || !all_say_whose) {
        json_array_clear(list);
    }
    return list;
}

void
deletions_end(struct journal *j, json_t *list)
{
    json_t *first = json_array_get(list, 0), *one;
    const char *job = note_text(first, "job");
    const char *survivor = note_text(first, "survivor");
    struct journal *other;
    size_t k;

    if (survivor && strcmp(survivor, journal_image(j)) &&
        !journal_open(journal_owner(j), survivor, &other)) {
        journal_close(other);
        if (!journal_share(journal_owner(j), survivor, &other)) {
            note_add(other, JOURNAL_JOB_ENDED, job, "");
            journal_leave(other);
        }
    }
    note_add(j, JOURNAL_JOB_ENDED, job, "");
    json_array_foreach(list, k, one)
    {
        note_add(j, JOURNAL_JOB_ENDED, note_text(one, "id"), "");
    }
}
