// SPDX-License-Identifier: BSD-3-Clause
/* See note.h. */
#include "journal/note.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"

int
note_add(struct journal *j, enum journal_type type, const char *id,
         const char *object)
{
    size_t n = strlen(id) + 1, len = n + strlen(object);
    auto_free char *payload = xmalloc(len + 1);

    memcpy(payload, id, n);
    memcpy(payload + n, object, len - n);
    return len > JOURNAL_PAYLOAD_MAX
               ? -ENAMETOOLONG
               : journal_add(j, type, payload, (uint32_t)len);
}

/* Of one record; NULL where it says nothing. */
static json_t *
parse(const struct journal_record *record)
{
    const char *id = (const char *)record->payload;
    size_t n = strnlen(id, record->len) + 1;
    json_t *note = n < record->len
                       ? json_loadb(id + n, record->len - n, 0, NULL)
                       : NULL;

    /* An id that is no UTF-8 is none of ours. */
    if (!json_is_object(note) ||
        json_object_set_new(note, "id", json_string(id))) {
        json_decref(take_ptr(note));
    }
    return note;
}

json_t *
notes_in(const struct journal *j, enum journal_type type)
{
    json_t *list = json_array();
    struct journal_record record;
    uint32_t pos = 0;

    while (journal_next(j, &pos, &record)) {
        json_t *note = record.type == type ? parse(&record) : NULL;

        if (note) {
            json_array_append_new(list, note);
        }
    }
    return list;
}

json_t *
notes_of(struct journals *journals, const char *image, enum journal_type type)
{
    struct journal *j;

    if (journal_open(journals, image, &j)) {
        return json_array();
    }
    json_t *list = notes_in(j, type);

    journal_close(j);
    return list;
}

const char *
note_text(const json_t *note, const char *key)
{
    return json_string_value(json_object_get(note, key));
}

uint64_t
note_number(const json_t *note, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(note, key));
}
