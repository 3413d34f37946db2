// SPDX-License-Identifier: BSD-3-Clause
/* See journal.h for the format. */
#include "journal/journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/mem.h"

static const char magic[8] = "SLUICE-J";

enum { HEAD = 12, ALIGN = 8 };

struct journal {
    struct loop *loop;
    struct file *file;
    uint32_t end; /* of the last record */
    unsigned char bytes[JOURNAL_SIZE];
    /* Of one that is written: */
    struct journals *journals;
    struct list link;
    struct comutex adding;
    char *path;
    unsigned users;
    bool is_unsure; /* a record that failed may be there all the same */
};

char *
journal_path(const char *image)
{
    return xasprintf("%s.sluice", image);
}

static uint32_t
record_size(uint32_t payload)
{
    return (uint32_t)align_up(HEAD + payload, ALIGN);
}

/* What the sum covers: the type and the payload. */
static uint32_t
sum_of(const unsigned char *record, uint32_t len)
{
    return crc32c(record + 8, 4 + len);
}

/* Records as they lie there, also what counts no more. */
static bool
next_written(const struct journal *j, uint32_t *pos,
             struct journal_record *ret)
{
    uint32_t at = *pos ? *pos : sizeof(magic);

    if (at + HEAD > JOURNAL_SIZE) {
        return false;
    }
    uint32_t len = ld_le32(j->bytes + at);

    if (!len || len > JOURNAL_PAYLOAD_MAX ||
        at + record_size(len) > JOURNAL_SIZE ||
        ld_le32(j->bytes + at + 4) != sum_of(j->bytes + at, len)) {
        return false;
    }
    *ret = (struct journal_record){
        .type = (enum journal_type)ld_le32(j->bytes + at + 8),
        .payload = j->bytes + at + HEAD,
        .len = len};
    *pos = at + record_size(len);
    return true;
}

static bool
is_of_a_job(const struct journal_record *r)
{
    return r->type == JOURNAL_JOB || r->type == JOURNAL_JOB_ENDED;
}

/* The length of the string that a payload begins with. */
static size_t
name_len(const struct journal_record *r)
{
    return strnlen((const char *)r->payload, r->len);
}

/* Does the later record @b end what @a says? */
static bool
ends(const struct journal_record *b, const struct journal_record *a)
{
    if (is_of_a_job(a) != is_of_a_job(b)) {
        return false;
    }
    return !is_of_a_job(a) || (name_len(a) == name_len(b) &&
                               !memcmp(a->payload, b->payload, name_len(a)));
}

/* @pos: behind it. */
static bool
counts(const struct journal *j, uint32_t pos, const struct journal_record *r)
{
    struct journal_record later;

    if (r->type == JOURNAL_WITHDRAWN || r->type == JOURNAL_JOB_ENDED) {
        return false;
    }
    while (next_written(j, &pos, &later)) {
        if (ends(&later, r)) {
            return false;
        }
    }
    return true;
}

bool
journal_next(const struct journal *j, uint32_t *pos,
             struct journal_record *ret)
{
    while (next_written(j, pos, ret)) {
        if (counts(j, *pos, ret)) {
            return true;
        }
    }
    return false;
}

bool
journal_word(const struct journal *j, struct journal_record *ret)
{
    uint32_t pos = 0;

    while (journal_next(j, &pos, ret)) {
        if (!is_of_a_job(ret)) {
            return true;
        }
    }
    return false;
}

static struct journal *
journal_new(struct loop *loop, struct file *file)
{
    struct journal *j = xzalloc(sizeof(*j));

    j->loop = loop;
    j->file = file;
    j->end = sizeof(magic);
    return j;
}

int
journal_open(struct loop *loop, const char *path, struct journal **ret)
{
    struct file *file;
    uint32_t pos = 0;
    struct journal_record record;
    int r = file_open(loop, path, 0, &file);

    if (r) {
        return r;
    }
    struct journal *j = journal_new(loop, file);

    r = file_read_buf(file, 0, j->bytes, JOURNAL_SIZE);
    if (!r && memcmp(j->bytes, magic, sizeof(magic))) {
        /* One that was being made when all ended is nothing yet. */
        r = bytes_are_zero(j->bytes, JOURNAL_SIZE) ? 0 : -EUCLEAN;
    }
    if (r) {
        journal_close(j);
        return r;
    }
    while (next_written(j, &pos, &record)) {
        j->end = pos;
    }
    *ret = j;
    return 0;
}

/* Writing. */

void
journals_init(struct journals *js, struct loop *loop)
{
    js->loop = loop;
    comutex_init(&js->lock);
    list_init(&js->open);
}

static int
write_whole(struct journal *j, struct file *file, const char *path)
{
    int r = file_write_buf(file, 0, j->bytes, JOURNAL_SIZE);

    r = r ? r : file_sync(file);
    return r ? r : folder_sync(j->loop, path);
}

/* Opened to be read before; now to be written, or made. */
static int
open_or_make(struct loop *loop, const char *path, struct journal **ret)
{
    struct journal *j;
    struct file *file;
    int r = journal_open(loop, path, &j);

    if (r && r != -ENOENT) {
        return r;
    }
    bool is_new = r;

    r = file_open(loop, path, FILE_WRITE | FILE_CREATE, &file);
    if (is_new) {
        j = journal_new(loop, NULL);
        memcpy(j->bytes, magic, sizeof(magic));
    }
    if (j->file) {
        file_close(j->file);
    }
    j->file = r ? NULL : file;
    if (!r && (is_new || j->end == sizeof(magic))) {
        memcpy(j->bytes, magic, sizeof(magic));
        r = write_whole(j, file, path);
    }
    if (r) {
        journal_close(j);
        return r;
    }
    *ret = j;
    return 0;
}

static struct journal *
find_open(struct journals *js, const char *path)
{
    list_for_each (it, &js->open) {
        struct journal *j = container_of(it, struct journal, link);

        if (!strcmp(j->path, path)) {
            return j;
        }
    }
    return NULL;
}

int
journal_share(struct journals *js, const char *image, struct journal **ret)
{
    auto_free char *path = journal_path(image);

    comutex_lock(&js->lock);
    struct journal *j = find_open(js, path);
    int r = j ? 0 : open_or_make(js->loop, path, &j);

    if (!r && !j->users++) {
        j->journals = js;
        j->path = take_ptr(path);
        comutex_init(&j->adding);
        list_push(&js->open, &j->link);
    }
    comutex_unlock(&js->lock);
    *ret = r ? NULL : j;
    return r;
}

void
journal_leave(struct journal *j)
{
    struct journal_record record;
    uint32_t pos = 0;

    if (!j) {
        return;
    }
    struct journals *js = j->journals;

    comutex_lock(&js->lock);
    if (!--j->users) {
        list_remove(&j->link);
        if (!journal_next(j, &pos, &record)) {
            journal_remove(j->loop, j->path);
        }
        journal_close(j);
    }
    comutex_unlock(&js->lock);
}

/* Into a new file, which takes the old one's name. */
static int
compact(struct journal *j)
{
    auto_free char *path = xasprintf("%s.new", j->path);
    struct journal *to = journal_new(j->loop, NULL);
    struct journal_record record;
    uint32_t pos = 0;

    memcpy(to->bytes, magic, sizeof(magic));
    while (journal_next(j, &pos, &record)) {
        uint32_t size = record_size(record.len);

        memcpy(to->bytes + to->end, j->bytes + pos - size, size);
        to->end += size;
    }
    int r = file_open(j->loop, path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE,
                      &to->file);

    if (!r) {
        r = write_whole(to, to->file, path);
        r = r ? r : file_rename(j->loop, path, j->path);
        if (r) {
            file_unlink(j->loop, path);
        }
    }
    if (!r) {
        struct file *old = j->file;

        j->file = to->file;
        to->file = old;
        j->end = to->end;
        memcpy(j->bytes, to->bytes, JOURNAL_SIZE);
        r = folder_sync(j->loop, j->path);
    }
    journal_close(to);
    return r;
}

static int
append(struct journal *j, enum journal_type type, const void *payload,
       uint32_t len)
{
    unsigned char *record = j->bytes + j->end;
    uint32_t size = record_size(len);

    if (j->end + size > JOURNAL_SIZE) {
        return -ENOSPC;
    }
    memset(record, 0, size);
    st_le32(record, len);
    st_le32(record + 8, type);
    memcpy(record + HEAD, payload, len);
    st_le32(record + 4, sum_of(record, len));
    int r = file_write_buf(j->file, j->end, record, size);

    if (!r) {
        r = file_sync(j->file);
    }
    j->is_unsure = r;
    if (!r) {
        j->end += size;
    } else {
        memset(record, 0, size);
    }
    return r;
}

int
journal_add(struct journal *j, enum journal_type type, const void *payload,
            uint32_t len)
{
    if (!len) { /* a length of 0 would end the journal */
        payload = "";
        len = 1;
    }
    if (len > JOURNAL_PAYLOAD_MAX) {
        return -ENOSPC;
    }
    comutex_lock(&j->adding);
    int r = j->end + record_size(len) > JOURNAL_SIZE ? compact(j) : 0;

    r = r ? r : append(j, type, payload, len);
    comutex_unlock(&j->adding);
    return r;
}

static bool
is_alone(struct journal *j)
{
    struct journal_record record;
    uint32_t pos = 0;

    while (journal_next(j, &pos, &record)) {
        if (is_of_a_job(&record)) {
            return false;
        }
    }
    return j->users == 1;
}

void
journal_clear(struct journal *j)
{
    if (j->users == 1) {
        j->end = sizeof(magic); /* the file goes as a whole */
        memset(j->bytes + j->end, 0, JOURNAL_SIZE - j->end);
    }
}

void
journal_withdraw(struct journal *j)
{
    struct journal_record record;

    if (!journal_word(j, &record) && !j->is_unsure) {
        return;
    }
    if (is_alone(j)) {
        journal_clear(j);
    } else {
        journal_add(j, JOURNAL_WITHDRAWN, NULL, 0);
    }
}

void
journal_close(struct journal *j)
{
    if (j->file) {
        file_close(j->file);
    }
    free(j->path);
    free(j);
}

int
journal_remove(struct loop *loop, const char *path)
{
    int r = file_unlink(loop, path);

    return r == -ENOENT ? 0 : r ? r : folder_sync(loop, path);
}
