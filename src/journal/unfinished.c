// SPDX-License-Identifier: BSD-3-Clause
/* See unfinished.h.  One record; no job's id has a '/'. */
#include "journal/unfinished.h"

#include <errno.h>

#include "base/mem.h"
#include "journal/journal.h"
#include "journal/note.h"

static const char id[] = "target/";

static bool
is_said_in(const struct journal *j, uint64_t ino, uint64_t born)
{
    json_t *list = notes_in(j, JOURNAL_UNFINISHED), *note;
    bool found = false;
    size_t i;

    json_array_foreach(list, i, note)
    {
        found |= note_number(note, "ino") == ino &&
                 note_number(note, "born") == born;
    }
    json_decref(list);
    return found;
}

int
unfinished_record(struct journals *journals, const char *image, uint64_t ino,
                  uint64_t born)
{
    auto_free char *note =
        xasprintf("{\"ino\":%lld,\"born\":%lld}", (long long)ino,
                  (long long)born);
    struct journal *j;
    int r = journal_share(journals, image, &j);

    if (r) {
        return r;
    }
    /* Also where it is said: an end that failed may be there all the same. */
    r = note_add(j, JOURNAL_UNFINISHED, id, note);
    journal_leave(j);
    return r;
}

int
unfinished_end(struct journals *journals, const char *image)
{
    struct journal *j;
    int r = journal_open(journals, image, &j);

    if (r) {
        return r == -ENOENT ? 0 : r;
    }
    json_t *list = notes_in(j, JOURNAL_UNFINISHED);
    bool is_said = json_array_size(list) != 0;

    json_decref(list);
    journal_close(j);
    if (!is_said) {
        return 0;
    }
    r = journal_share(journals, image, &j);
    if (!r) {
        r = note_add(j, JOURNAL_JOB_ENDED, id, "");
        journal_leave(j);
    }
    return r;
}

bool
unfinished_find(struct journals *journals, const char *image, uint64_t ino,
                uint64_t born)
{
    struct journal *j;

    if (journal_open(journals, image, &j)) {
        return false;
    }
    bool found = is_said_in(j, ino, born);

    journal_close(j);
    return found;
}
