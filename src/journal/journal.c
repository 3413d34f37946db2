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

bool
journal_next(const struct journal *j, uint32_t *pos,
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
journal_create(struct loop *loop, const char *path, struct journal **ret)
{
    struct file *file;
    int r = file_open(loop, path, FILE_WRITE | FILE_CREATE, &file);

    if (r) {
        return r;
    }
    struct journal *j = journal_new(loop, file);

    memcpy(j->bytes, magic, sizeof(magic));
    /* What an older one says goes with the first write, or not at all. */
    r = file_write_buf(file, 0, j->bytes, JOURNAL_SIZE);
    if (!r) {
        r = file_sync(file);
    }
    if (!r) {
        r = folder_sync(loop, path);
    }
    if (r) {
        journal_close(j);
        return r;
    }
    *ret = j;
    return 0;
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
    while (journal_next(j, &pos, &record)) {
        j->end = pos;
    }
    *ret = j;
    return 0;
}

int
journal_add(struct journal *j, enum journal_type type, const void *payload,
            uint32_t len)
{
    static const unsigned char nothing[1];
    unsigned char *record = j->bytes + j->end;
    uint32_t size;

    if (!len) { /* a length of 0 would end the journal */
        payload = nothing;
        len = sizeof(nothing);
    }
    size = record_size(len);
    if (len > JOURNAL_PAYLOAD_MAX || j->end + size > JOURNAL_SIZE) {
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
    if (!r) {
        j->end += size;
    }
    return r;
}

void
journal_close(struct journal *j)
{
    file_close(j->file);
    free(j);
}

int
journal_remove(struct loop *loop, const char *path)
{
    int r = file_unlink(loop, path);

    return r == -ENOENT ? 0 : r ? r : folder_sync(loop, path);
}
