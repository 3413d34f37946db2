// SPDX-License-Identifier: BSD-3-Clause
/*
 * See intent.h.  A path in a record is relative to the record's own folder
 * where both files lie in one, so that a folder can be moved; else as given.
 */
#include "journal/intent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "journal/journal.h"

/* Fixed part: inode and birth of both, the source's session, flags. */
enum {
    FLAG_DELETE = 1,
    FLAG_EXCLUSIVE = 2,
    AT_SOURCE = 0,
    AT_TARGET = 16,
    AT_SESSION = 32,
    AT_FLAGS = 40,
    FIXED = 44,
};

struct intent {
    struct switch_intent what;
    struct journal *journal, *pointer; /* beside source and target */
    bool recorded; /* and not withdrawn */
};

static void
file_fini(struct intent_file *file)
{
    free(file->path);
    free(file->format);
}

void
switch_intent_fini(struct switch_intent *i)
{
    file_fini(&i->source);
    file_fini(&i->target);
    free(i->source_name);
    while (i->n_folders) {
        free(i->folders[--i->n_folders]);
    }
    free(i->folders);
    *i = (struct switch_intent){0};
}

static void
add_folder(struct switch_intent *i, const char *folder)
{
    i->folders = xrealloc(i->folders, (i->n_folders + 1) * sizeof(char *));
    i->folders[i->n_folders++] = xstrdup(folder);
}

static struct switch_intent
copy_of(const struct switch_intent *i)
{
    struct switch_intent copy = *i;

    copy.source_name = NULL;
    copy.source.path = xstrdup(i->source.path);
    copy.source.format = xstrdup(i->source.format);
    copy.target.path = xstrdup(i->target.path);
    copy.target.format = xstrdup(i->target.format);
    copy.folders = NULL;
    copy.n_folders = 0;
    for (size_t k = 0; k < i->n_folders; k++) {
        add_folder(&copy, i->folders[k]);
    }
    return copy;
}

/* Records. */

static uint32_t
put_string(unsigned char *buf, uint32_t at, const char *s)
{
    size_t len = strlen(s) + 1;

    if (at && at + len <= JOURNAL_PAYLOAD_MAX) {
        memcpy(buf + at, s, len);
        return at + (uint32_t)len;
    }
    return 0;
}

static void
put_file(unsigned char *at, const struct intent_file *file)
{
    st_le64(at, file->ino);
    st_le64(at + 8, file->born);
}

/* What is needed to delete the source: 0 where that is too long. */
static uint32_t
put_folders(const struct switch_intent *i, unsigned char *buf, uint32_t at)
{
    for (size_t k = 0; k < i->n_folders; k++) {
        at = put_string(buf, at, i->folders[k]);
    }
    return at;
}

/* 0 where the names are too long. */
static uint32_t
encode(const struct switch_intent *i, const char *target, const char *source,
       unsigned char *buf)
{
    uint32_t flags = i->delete_source ? FLAG_DELETE : 0, at = FIXED;

    put_file(buf + AT_SOURCE, &i->source);
    put_file(buf + AT_TARGET, &i->target);
    st_le64(buf + AT_SESSION, i->source_session);
    flags |= i->exclusive ? FLAG_EXCLUSIVE : 0;
    at = put_string(buf, at, i->source.format);
    at = put_string(buf, at, i->target.format);
    at = put_string(buf, at, target);
    at = put_string(buf, at, source);
    uint32_t end = put_folders(i, buf, at);

    /* Who goes on without them does not delete it. */
    st_le32(buf + AT_FLAGS, end ? flags : flags & ~(uint32_t)FLAG_DELETE);
    return end ? end : at;
}

/* A string of the payload, or NULL; *@at moves on. */
static const char *
get_string(const struct journal_record *r, uint32_t *at)
{
    const char *s = (const char *)r->payload + *at;
    size_t len = *at < r->len ? strnlen(s, r->len - *at) : 0;

    if (*at >= r->len || *at + len >= r->len || !len) {
        return NULL;
    }
    *at += (uint32_t)len + 1;
    return s;
}

static bool
decode(const struct journal *j, const struct journal_record *r,
       const char *source, struct switch_intent *ret)
{
    const unsigned char *p = r->payload;
    uint32_t at = FIXED;
    const char *format = r->len > FIXED ? get_string(r, &at) : NULL;
    const char *target_format = format ? get_string(r, &at) : NULL;
    const char *target = target_format ? get_string(r, &at) : NULL;
    const char *source_name = target ? get_string(r, &at) : NULL;

    if (!source_name) {
        return false;
    }
    *ret = (struct switch_intent){
        .source = {xstrdup(source), ld_le64(p + AT_SOURCE),
                   ld_le64(p + AT_SOURCE + 8), xstrdup(format)},
        .target = {journal_path(j, target), ld_le64(p + AT_TARGET),
                   ld_le64(p + AT_TARGET + 8), xstrdup(target_format)},
        .source_name = journal_path(j, source_name),
        .delete_source = ld_le32(p + AT_FLAGS) & FLAG_DELETE,
        .exclusive = ld_le32(p + AT_FLAGS) & FLAG_EXCLUSIVE,
        .source_session = ld_le64(p + AT_SESSION)};
    for (const char *s = get_string(r, &at); s; s = get_string(r, &at)) {
        add_folder(ret, s);
    }
    return true;
}

/* Making one. */

/* The source; false where it is no pointer. */
static bool
read_pointer(const struct journal *j, struct journal_record *record,
             char **ret_source)
{
    uint32_t at = JOURNAL_UUID;
    bool is_one = journal_word(j, record) && record->type == JOURNAL_POINTER;
    const char *source = is_one ? get_string(record, &at) : NULL;

    *ret_source = source ? journal_path(j, source) : NULL;
    return source != NULL;
}

/*
 * The image is the target of a switch whose rest is still copied, and is to be
 * left itself: what it was moved from is an old layer, as any other.
 */
static int
end_earlier(struct journals *journals, const struct journal *j)
{
    struct journal_record record;
    auto_free char *source = NULL;
    struct journal *other;
    bool is_it = read_pointer(j, &record, &source) &&
                 !journal_open(journals, source, &other);

    if (is_it) {
        is_it = !memcmp(journal_uuid(other), record.payload, JOURNAL_UUID);
        journal_close(other);
    }
    int r = is_it ? journal_share(journals, source, &other) : 0;

    if (is_it && !r) {
        if (journal_word(other, &record) && record.type == JOURNAL_SWITCH) {
            r = journal_add(other, JOURNAL_WITHDRAWN, NULL, 0);
        }
        journal_leave(other);
    }
    return r;
}

/* What is left of another switch must not come back. */
static int
end_words(struct journal *j)
{
    struct journal_record record;

    return journal_word(j, &record) ? journal_add(j, JOURNAL_WITHDRAWN, NULL, 0)
                                    : 0;
}

/* A pointer: the journal's UUID, and the image beside which that lies. */
static int
make_pointer(struct intent *i, struct journals *journals)
{
    auto_free unsigned char *payload = xmalloc(JOURNAL_PAYLOAD_MAX);
    int r = journal_share(journals, i->what.target.path, &i->pointer);

    r = r ? r : end_words(i->pointer);
    if (r) {
        return r;
    }
    auto_free char *source = journal_name(i->pointer, journal_image(i->journal));
    uint32_t len = put_string(payload, JOURNAL_UUID, source);

    memcpy(payload, journal_uuid(i->journal), JOURNAL_UUID);
    return len ? journal_add(i->pointer, JOURNAL_POINTER, payload, len)
               : -ENAMETOOLONG;
}

int
intent_prepare(struct journals *journals, const struct switch_intent *what,
               struct intent **ret, struct err *err)
{
    struct intent *i = xzalloc(sizeof(*i));

    i->what = copy_of(what);
    int r = journal_share(journals, what->source.path, &i->journal);

    r = r ? r : end_earlier(journals, i->journal);
    r = r ? r : end_words(i->journal);
    r = r ? r : make_pointer(i, journals);
    if (r) {
        intent_end(i, false);
        err_set_errno(err, r, "Cannot make the journal of '%s'",
                      what->source.path);
        if (r == -ENOSPC || r == -EDQUOT) {
            err_hint(err, "it takes %d KiB beside the image, or in the state "
                          "folder (--state-dir)",
                     JOURNAL_SIZE / 1024);
        }
        return r;
    }
    *ret = i;
    return 0;
}

int
intent_record(struct intent *i)
{
    auto_free unsigned char *payload = xmalloc(JOURNAL_PAYLOAD_MAX);
    auto_free char *target = journal_name(i->journal, i->what.target.path);
    auto_free char *source = journal_name(i->journal, i->what.source.path);
    uint32_t len = encode(&i->what, target, source, payload);
    int r = len ? journal_add(i->journal, JOURNAL_SWITCH, payload, len)
                : -ENAMETOOLONG;

    i->recorded |= len != 0; /* one that failed may be there all the same */
    return r;
}

bool
intent_is_recorded(const struct intent *i)
{
    return i->recorded;
}

int
intent_withdraw(struct intent *i)
{
    int r = i->recorded ? journal_add(i->journal, JOURNAL_WITHDRAWN, NULL, 0)
                        : 0;

    i->recorded &= r != 0;
    return r;
}

/* @ours: what another switch says there by now is not taken back; 0: all is. */
static void
leave(struct journal *j, bool all, enum journal_type ours)
{
    struct journal_record word;

    if (!j) {
        return;
    }
    if (!ours || !journal_word(j, &word) || word.type == ours) {
        if (all) {
            journal_clear(j);
        }
        journal_withdraw(j);
    }
    journal_leave(j);
}

static void
intent_free(struct intent *i)
{
    switch_intent_fini(&i->what);
    free(i);
}

void
intent_end(struct intent *i, bool moved)
{
    if (!i) {
        return;
    }
    /* A pointer to nothing says nothing, and goes when the target is opened. */
    leave(i->journal, moved, JOURNAL_SWITCH);
    leave(i->pointer, false, JOURNAL_POINTER);
    intent_free(i);
}

void
intent_leave(struct intent *i)
{
    journal_leave(i->journal);
    journal_leave(i->pointer);
    intent_free(i);
}

static void
take_back(struct journals *journals, const char *image, bool all,
          enum journal_type ours)
{
    struct journal *j;

    if (journal_open(journals, image, &j)) {
        return; /* and none is made */
    }
    journal_close(j);
    if (!journal_share(journals, image, &j)) {
        leave(j, all, ours);
    }
}

void
intent_forget(struct journals *journals, const char *image)
{
    take_back(journals, image, false, 0);
}

void
intent_remove(struct journals *journals, const struct switch_intent *what,
              bool moved)
{
    take_back(journals, what->source.path, moved, JOURNAL_SWITCH);
    take_back(journals, what->target.path, false, JOURNAL_POINTER);
}

/* Finding one. */

static bool
read_switch(const struct journal *j, const char *source,
            struct switch_intent *ret)
{
    struct journal_record record;

    return journal_word(j, &record) && record.type == JOURNAL_SWITCH &&
           decode(j, &record, source, ret);
}

static int
open_of(const struct journals *js, const char *image, struct journal **ret,
        struct err *err)
{
    int r = journal_open(js, image, ret);

    *ret = r ? NULL : *ret;
    if (!r || r == -ENOENT) {
        return 0;
    }
    if (r == -EUCLEAN) {
        err_set(err, r, "The journal of '%s' is damaged, or none of Sluice's",
                image);
    } else {
        err_set_errno(err, r, "Cannot read the journal of '%s'", image);
    }
    err_hint(err, "'%s.sluice', or the file of that image in the state folder, "
                  "says what was under way when it was last used, and whether "
                  "the disk has moved to another file since; to go on without "
                  "it, move it away",
             image);
    return r;
}

static enum intent_found
find_as_target(const struct journals *js, const struct journal_record *pointer,
               const char *source, struct switch_intent *ret)
{
    struct journal *j;
    enum intent_found found = INTENT_VOID;

    if (!open_of(js, source, &j, NULL) && j) {
        bool is_it = !memcmp(journal_uuid(j), pointer->payload, JOURNAL_UUID);

        found = is_it && read_switch(j, source, ret) ? INTENT_AS_TARGET
                                                     : INTENT_VOID;
        journal_close(j);
    }
    return found;
}

int
intent_find(struct journals *js, const char *image, enum intent_found *ret,
            struct switch_intent *ret_intent, struct err *err)
{
    struct journal_record pointer;
    auto_free char *source = NULL;
    struct journal *j;
    int r = open_of(js, image, &j, err);

    *ret = INTENT_NONE;
    if (r || !j) {
        return r;
    }
    *ret = read_pointer(j, &pointer, &source)
               ? find_as_target(js, &pointer, source, ret_intent)
           : read_switch(j, image, ret_intent) ? INTENT_AS_SOURCE
                                               : INTENT_VOID;
    journal_close(j);
    return 0;
}
