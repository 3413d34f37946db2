// SPDX-License-Identifier: BSD-3-Clause
/*
 * See deletion.h.  A record is the job's id, '/' and a number, a zero, and a
 * JSON object; a job's own id has no '/'.
 */
#include "journal/deletion.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"

static void
set_path(json_t *note, const char *key, struct loop *loop, const char *image,
         const char *path)
{
    auto_free char *name = journal_name_for(loop, image, path);

    json_object_set_new(note, key, json_string(name));
}

static void
set_file(json_t *note, struct loop *loop, const char *image,
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
    set_path(note, "file", loop, image, what->source.path);
}

int
deletion_record(struct journal *j, const char *image, const struct deletion *d)
{
    struct loop *loop = journal_loop(j);
    json_t *note = json_pack("{s:s, s:b, s:I, s:I}", "job", d->job, "is-last",
                             d->number + 1 == d->total, "heir-ino",
                             (json_int_t)d->heir_ino, "heir-born",
                             (json_int_t)d->heir_born);

    if (d->what) {
        set_file(note, loop, image, d->what);
    }
    if (d->survivor) {
        set_path(note, "survivor", loop, image, d->survivor);
    }
    auto_free char *dump = json_dumps(note, JSON_COMPACT);
    auto_free char *payload =
        xasprintf("%s/%u%c%s", d->job, d->number, 0, dump ? dump : "");
    size_t id = strlen(payload) + 1, len = id + (dump ? strlen(dump) : 0);

    json_decref(note);
    return !dump                     ? -EILSEQ
           : len > JOURNAL_PAYLOAD_MAX ? -ENAMETOOLONG
                                     : journal_add(j, JOURNAL_DELETION, payload,
                                                   (uint32_t)len);
}

/* Of one record; NULL where it says nothing. */
static json_t *
parse(const struct journal_record *record, const char *image)
{
    const char *id = (const char *)record->payload;
    size_t n = strnlen(id, record->len) + 1;
    json_t *note = n < record->len
                       ? json_loadb(id + n, record->len - n, 0, NULL)
                       : NULL;
    static const char *const paths[] = {"file", "survivor"};

    if (!json_is_object(note) ||
        !json_is_string(json_object_get(note, "job")) ||
        json_object_set_new(note, "id", json_string(id))) {
        json_decref(note);
        return NULL;
    }
    for (size_t i = 0; i < 2; i++) {
        json_t *name = json_object_get(note, paths[i]);

        if (json_is_string(name)) {
            auto_free char *path =
                journal_path_to(image, json_string_value(name));

            json_object_set_new(note, paths[i], json_string(path));
        }
    }
    return note;
}

json_t *
deletions_of(struct journals *journals, const char *image)
{
    json_t *list = json_array();
    struct journal_record record;
    struct journal *j;
    uint32_t pos = 0;

    if (journal_open(journals, image, &j)) {
        return list;
    }
    while (journal_next(j, &pos, &record)) {
        json_t *note = record.type == JOURNAL_DELETION ? parse(&record, image)
                                                       : NULL;

        if (note) {
            json_array_append_new(list, note);
        }
    }
    journal_close(j);
    size_t n = json_array_size(list);

    if (n && !json_is_true(json_object_get(json_array_get(list, n - 1),
                                           "is-last"))) {
        json_array_clear(list);
    }
    return list;
}

static void
say_ended(struct journal *j, json_t *id)
{
    const char *s = json_string_value(id);

    journal_add(j, JOURNAL_JOB_ENDED, s, (uint32_t)strlen(s) + 1);
}

void
deletion_end(struct journal *j, const char *image, json_t *note)
{
    const char *survivor =
        json_string_value(json_object_get(note, "survivor"));
    json_t *job = json_object_get(note, "job");
    struct journal *other;

    if (survivor && strcmp(survivor, image) &&
        !journal_open(journal_owner(j), survivor, &other)) {
        journal_close(other);
        if (!journal_share(journal_owner(j), survivor, &other)) {
            say_ended(other, job);
            journal_leave(other);
        }
    }
    say_ended(j, job);
    say_ended(j, json_object_get(note, "id"));
}
