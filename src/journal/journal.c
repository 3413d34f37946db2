// SPDX-License-Identifier: BSD-3-Clause
/* See journal.h for the format. */
#include "journal/journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/mem.h"
#include "journal/place.h"

static const char magic[8] = "SLUICE-J";

/* The file's head, and a record's. */
enum {
    AT_UUID = 8,
    AT_SIZE = AT_UUID + JOURNAL_UUID,
    AT_SUM = AT_SIZE + 4,
    AT_END = AT_SUM + 4, /* of what was added durably, and its sum */
    FIRST = AT_END + 8,  /* the first record */
    HEAD = 12,
    ALIGN = 8,
};

struct journal {
    struct loop *loop;
    struct file *file;
    char *path;
    char *image, *shown; /* its names (place.h) */
    uint32_t size; /* of the file */
    uint32_t end;  /* of the last record; behind it all is 0 here */
    uint32_t torn; /* in the file there may be something up to here */
    uint32_t ends; /* what the ends of all that is under way take, at most */
    unsigned char *bytes;
    unsigned char uuid[JOURNAL_UUID];
    /* Of one that is written: */
    struct journals *journals;
    struct list link;
    struct comutex adding;
    unsigned users;
    bool is_unsure; /* a record that failed may be there all the same */
    bool end_is_unsure; /* the file may say that it is */
};

/* Where it lies, and what it calls others. */

char *
journals_default_state_dir(void)
{
    const char *own = getenv("SLUICE_STATE_DIR");
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");

    if (own) {
        return xstrdup(own);
    }
    if (geteuid() == 0 || (!state && !home)) {
        return xstrdup("/var/lib/sluice");
    }
    return state ? xasprintf("%s/sluice", state)
                 : xasprintf("%s/.local/state/sluice", home);
}

static size_t
folder_len(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* One that lies elsewhere does not move with the image. */
static bool
is_beside(const struct journal *j)
{
    return path_in_same_folder(j->path, j->image);
}

char *
journal_name(const struct journal *j, const char *path)
{
    auto_free char *own = file_own_path(j->loop, path);

    return xstrdup(is_beside(j) && path_in_same_folder(j->image, own)
                       ? own + folder_len(own)
                       : own);
}

char *
journal_path(const struct journal *j, const char *name)
{
    return name[0] == '/' ? xstrdup(name)
                          : xasprintf("%.*s%s", (int)folder_len(j->shown),
                                      j->shown, name);
}

const char *
journal_image(const struct journal *j)
{
    return j->image;
}

const unsigned char *
journal_uuid(const struct journal *j)
{
    return j->uuid;
}

struct journals *
journal_owner(struct journal *j)
{
    return j->journals;
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

/* The length of the payload of the record that the file has there, or 0. */
static uint32_t
record_at(const struct journal *j, uint32_t at)
{
    uint32_t len = at + HEAD <= j->size ? ld_le32(j->bytes + at) : 0;

    return len && len <= JOURNAL_PAYLOAD_MAX &&
                   at + record_size(len) <= j->size &&
                   ld_le32(j->bytes + at + 4) == sum_of(j->bytes + at, len)
               ? len
               : 0;
}

/* Records as they lie there, also what counts no more. */
static bool
next_written(const struct journal *j, uint32_t *pos,
             struct journal_record *ret)
{
    uint32_t at = *pos ? *pos : FIRST;

    if (at >= j->end) {
        return false;
    }
    uint32_t len = ld_le32(j->bytes + at);

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
    return r->type == JOURNAL_JOB || r->type == JOURNAL_JOB_ENDED ||
           r->type == JOURNAL_LAYER || r->type == JOURNAL_DELETION ||
           r->type == JOURNAL_UNFINISHED;
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

/* Opening. */

static struct journal *
journal_new(struct loop *loop, const char *path,
            const struct journal_places *places, uint32_t size)
{
    struct journal *j = xzalloc(sizeof(*j));

    j->loop = loop;
    j->path = xstrdup(path);
    j->image = xstrdup(places->image);
    j->shown = xstrdup(places->shown);
    j->size = size;
    j->end = FIRST;
    j->bytes = xzalloc(size);
    return j;
}

static bool
head_is_whole(const struct journal *j)
{
    return !memcmp(j->bytes, magic, sizeof(magic)) &&
           ld_le32(j->bytes + AT_SIZE) == j->size &&
           ld_le32(j->bytes + AT_SUM) == crc32c(j->bytes, AT_SUM) &&
           ld_le32(j->bytes + AT_END + 4) == crc32c(j->bytes + AT_END, 4);
}

/*
 * What lies behind the last record that is whole is nothing, or one that was
 * being written when all ended, of which any part may be there.  No other
 * record comes after that, and it is no longer than a record: else what is
 * there has been damaged.
 */
static bool
tail_is_plausible(struct journal *j)
{
    uint32_t longest = record_size(JOURNAL_PAYLOAD_MAX), torn = j->size;

    while (torn > j->end && !j->bytes[torn - 1]) {
        torn--;
    }
    j->torn = torn;
    for (uint32_t at = j->end + ALIGN; at < torn; at += ALIGN) {
        if (record_at(j, at)) {
            return false;
        }
    }
    return torn <= j->end + longest;
}

static int
read_whole(struct journal *j)
{
    int r = file_read_buf(j->file, 0, j->bytes, j->size);
    uint32_t len;

    if (r) {
        return r;
    }
    if (!head_is_whole(j)) {
        return -EUCLEAN;
    }
    while ((len = record_at(j, j->end))) {
        j->end += record_size(len);
    }
    if (j->end < ld_le32(j->bytes + AT_END) || !tail_is_plausible(j)) {
        return -EUCLEAN;
    }
    memset(j->bytes + j->end, 0, j->torn - j->end);
    memcpy(j->uuid, j->bytes + AT_UUID, JOURNAL_UUID);
    return 0;
}

static int
open_at(struct loop *loop, const char *path,
        const struct journal_places *places, struct journal **ret)
{
    struct file *file;
    uint64_t size;
    int r = file_open(loop, path, 0, &file);

    if (r) {
        return r;
    }
    r = file_size(file, &size);
    if (!r && (size < JOURNAL_SIZE || size > JOURNAL_SIZE_MAX)) {
        r = -EUCLEAN; /* it has its name only when it is whole */
    }
    if (r) {
        file_close(file);
        return r;
    }
    struct journal *j = journal_new(loop, path, places, (uint32_t)size);

    j->file = file;
    r = read_whole(j);
    if (r) {
        journal_close(take_ptr(j));
    }
    *ret = j;
    return r;
}

static int
open_any(struct loop *loop, const struct journal_places *places,
         struct journal **ret)
{
    int r = -ENOENT;

    for (unsigned i = 0; i < places->n && journal_place_has_none(r); i++) {
        r = open_at(loop, places->paths[i], places, ret);
    }
    return journal_place_has_none(r) ? -ENOENT : r;
}

int
journal_open(const struct journals *js, const char *image,
             struct journal **ret)
{
    struct journal_places places;
    int r = journal_places_find(js, image, &places);

    if (!r) {
        r = open_any(js->loop, &places, ret);
        journal_places_fini(&places);
    }
    return r;
}

const char *
journal_file(const struct journal *j)
{
    return j->path;
}

/* Writing. */

void
journals_init(struct journals *js, struct loop *loop, const char *state_dir)
{
    js->loop = loop;
    js->state_dir = state_dir ? xstrdup(state_dir) : NULL;
    list_init(&js->open);
    list_init(&js->turns);
    waitq_init(&js->turn_ended);
}

void
journals_fini(struct journals *js)
{
    free(js->state_dir);
}

static void
make_folder(void *arg)
{
    char *path = arg;

    for (char *slash = strchr(path + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    mkdir(path, 0700); /* it says what machines there are */
}

/* Not what a link leads to, which somebody may have put there. */
static int
create_new(struct loop *loop, const char *path, struct file **ret)
{
    unsigned flags = FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE;
    int r = file_open(loop, path, flags, ret);

    if (r == -EEXIST) { /* of one that died */
        r = file_unlink(loop, path);
        r = r ? r : file_open(loop, path, flags, ret);
    }
    return r;
}

/*
 * It has its name only when all of it is there: anything less is damage.  The
 * name is not durable yet.
 */
static int
write_whole(struct journal *j)
{
    auto_free char *path = xasprintf("%s.new", j->path);
    struct file *file = NULL;
    int r = create_new(j->loop, path, &file);

    if (r) {
        return r;
    }
    r = file_write_buf(file, 0, j->bytes, j->size);
    r = r ? r : file_sync(file);
    r = r ? r : file_rename(j->loop, path, j->path);
    if (r) {
        file_unlink(j->loop, path);
        file_close(file);
        return r;
    }
    if (j->file) {
        file_close(j->file);
    }
    j->file = file;
    j->torn = 0;
    j->end_is_unsure = false;
    return 0;
}

static void
put_end(struct journal *j, uint32_t end)
{
    st_le32(j->bytes + AT_END, end);
    st_le32(j->bytes + AT_END + 4, crc32c(j->bytes + AT_END, 4));
}

static void
write_head(struct journal *j)
{
    memcpy(j->bytes, magic, sizeof(magic));
    memcpy(j->bytes + AT_UUID, j->uuid, JOURNAL_UUID);
    st_le32(j->bytes + AT_SIZE, j->size);
    st_le32(j->bytes + AT_SUM, crc32c(j->bytes, AT_SUM));
    put_end(j, j->end);
}

static void
new_uuid(struct loop *loop, unsigned char *uuid)
{
    st_le64(uuid, loop_random(loop));
    st_le64(uuid + 8, loop_random(loop));
    /* RFC 9562, section 5.4: version 4 */
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
}

static int
make_at(const struct journals *js, const char *path,
        const struct journal_places *places, struct journal **ret)
{
    struct journal *j = journal_new(js->loop, path, places, JOURNAL_SIZE);

    new_uuid(js->loop, j->uuid);
    write_head(j);
    int r = write_whole(j);

    if (r == -ENOENT && js->state_dir && !is_beside(j)) {
        auto_free char *folder = xstrdup(js->state_dir);
        struct offload_group one;

        offload_group_init(&one, 1);
        offload(js->loop, &one, make_folder, folder);
        r = write_whole(j);
    }
    if (!r) {
        r = folder_sync(js->loop, path);
        if (r) { /* or it would be found before the one that is made elsewhere */
            file_unlink(js->loop, path);
        }
    }
    if (r) {
        journal_close(take_ptr(j));
    }
    *ret = j;
    return r;
}

/*
 * There may be no state folder, and none can be made.  A full file system is
 * what disks are moved away from.
 */
static bool
is_unfit(int r)
{
    return r == -ENOENT || r == -ENOSPC || r == -EDQUOT ||
           journal_place_is_unfit(r);
}

static int
make(const struct journals *js, const struct journal_places *places,
     struct journal **ret)
{
    int r = -EROFS, first = 0;

    for (unsigned i = 0; i < places->n && is_unfit(r); i++) {
        r = make_at(js, places->paths[i], places, ret);
        first = first ? first : r;
    }
    return is_unfit(r) && first ? first : r;
}

static uint32_t
size_of_end(const struct journal_record *record)
{
    return record->type == JOURNAL_WITHDRAWN ||
                   record->type == JOURNAL_JOB_ENDED
               ? 0
           : is_of_a_job(record) ? record_size((uint32_t)name_len(record) + 1)
                                 : record_size(1);
}

static void
sum_up_ends(struct journal *j)
{
    struct journal_record record;
    uint32_t pos = 0;

    j->ends = 0;
    while (journal_next(j, &pos, &record)) {
        j->ends += size_of_end(&record);
    }
}

/* Opened to be read before; now to be written. */
static int
reopen(struct journal *j)
{
    file_close(take_ptr(j->file));
    return file_open(j->loop, j->path, FILE_WRITE, &j->file);
}

static int
open_or_make(const struct journals *js, const struct journal_places *places,
             struct journal **ret)
{
    struct journal *j = NULL;
    int r = open_any(js->loop, places, &j);

    r = !r ? reopen(j) : r == -ENOENT ? make(js, places, &j) : r;
    if (!r) {
        sum_up_ends(j);
    }
    if (r && j) {
        journal_close(take_ptr(j));
    }
    *ret = j;
    return r;
}

/*
 * Who opens, makes or removes the journal of one image is alone with that; those
 * of others may be on a file system that hangs.
 */
struct turn {
    struct list link;
    const struct journal_places *places;
};

static bool
is_one_of(const char *path, const struct journal_places *places)
{
    for (unsigned i = 0; i < places->n; i++) {
        if (!strcmp(path, places->paths[i])) {
            return true;
        }
    }
    return false;
}

static bool
is_taken(const struct journals *js, const struct journal_places *places)
{
    list_for_each (it, &js->turns) {
        const struct turn *turn = container_of(it, struct turn, link);

        for (unsigned i = 0; i < turn->places->n; i++) {
            if (is_one_of(turn->places->paths[i], places)) {
                return true;
            }
        }
    }
    return false;
}

static void
turn_begin(struct journals *js, struct turn *turn,
           const struct journal_places *places)
{
    while (is_taken(js, places)) {
        waitq_wait(&js->turn_ended);
    }
    turn->places = places;
    list_push(&js->turns, &turn->link);
}

static void
turn_end(struct journals *js, struct turn *turn)
{
    list_remove(&turn->link);
    waitq_wake_all(&js->turn_ended);
}

static struct journal *
find_open(struct journals *js, const struct journal_places *places)
{
    list_for_each (it, &js->open) {
        struct journal *j = container_of(it, struct journal, link);

        if (is_one_of(j->path, places)) {
            return j;
        }
    }
    return NULL;
}

static int
share_at(struct journals *js, const struct journal_places *places,
         struct journal **ret)
{
    struct journal *j = find_open(js, places);
    int r = j ? 0 : open_or_make(js, places, &j);

    if (!r && !j->users++) {
        j->journals = js;
        comutex_init(&j->adding);
        list_push(&js->open, &j->link);
    }
    *ret = r ? NULL : j;
    return r;
}

int
journal_share(struct journals *js, const char *image, struct journal **ret)
{
    struct journal_places places;
    struct turn turn;
    int r = journal_places_find(js, image, &places);

    *ret = NULL;
    if (!r) {
        turn_begin(js, &turn, &places);
        r = share_at(js, &places, ret);
        turn_end(js, &turn);
        journal_places_fini(&places);
    }
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
    const struct journal_places its = {.paths = {j->path}, .n = 1};
    struct journals *js = j->journals;
    struct turn turn;

    turn_begin(js, &turn, &its);
    if (!--j->users) {
        list_remove(&j->link);
        if (!journal_next(j, &pos, &record)) {
            journal_remove(j);
        }
    } else {
        j = NULL;
    }
    turn_end(js, &turn);
    if (j) {
        journal_close(j);
    }
}

/* Room. */

/*
 * How long the file must be to take in one more behind @end, so that all that
 * is under way can be ended on a full disk: each job, and the disk can have
 * moved.
 */
static uint32_t
size_with(const struct journal *j, uint32_t end,
          const struct journal_record *record)
{
    uint32_t size = end + record_size(record->len), its = size_of_end(record);

    if (its && record->type != JOURNAL_SWITCH) {
        its += record_size(JOURNAL_PAYLOAD_MAX) + record_size(1);
    }
    return its ? size + its + j->ends : size;
}

/* What counts, to @to. */
static uint32_t
copy_records(const struct journal *j, unsigned char *to)
{
    struct journal_record record;
    uint32_t pos = 0, end = FIRST;

    while (journal_next(j, &pos, &record)) {
        uint32_t n = record_size(record.len);

        memcpy(to + end, j->bytes + pos - n, n);
        end += n;
    }
    return end;
}

/* Into a new file that takes the old one's name, and is longer if need be. */
static int
compact(struct journal *j, const struct journal_record *more)
{
    unsigned char *bytes = xzalloc(JOURNAL_SIZE_MAX), *old = j->bytes;
    uint32_t end = copy_records(j, bytes), size = j->size, was_end = j->end;

    sum_up_ends(j);
    uint32_t need = size_with(j, end, more);

    if (need > JOURNAL_SIZE_MAX) {
        free(bytes);
        return -ENOSPC;
    }
    while (j->size < need) {
        j->size *= 2;
    }
    j->bytes = xrealloc(bytes, j->size);
    j->end = end;
    write_head(j);
    int r = write_whole(j);

    if (r) {
        free(j->bytes);
        j->bytes = old;
        j->size = size;
        j->end = was_end;
        return r;
    }
    free(old);
    return folder_sync(j->loop, j->path);
}

/* What ends here is not to be taken for a record that was never complete. */
static int
write_end(struct journal *j, uint32_t end)
{
    put_end(j, end);
    int r = file_write_buf(j->file, AT_END, j->bytes + AT_END, 8);

    r = r ? r : file_sync(j->file);
    j->end_is_unsure = r;
    return r;
}

/* With what a record that failed may have left behind it. */
static int
append(struct journal *j, const struct journal_record *what)
{
    unsigned char *record = j->bytes + j->end;
    uint32_t end = j->end + record_size(what->len);

    st_le32(record, what->len);
    st_le32(record + 8, what->type);
    memcpy(record + HEAD, what->payload, what->len);
    st_le32(record + 4, sum_of(record, what->len));
    j->torn = (uint32_t)max_u64(j->torn, end);
    int r = file_write_buf(j->file, j->end, record, j->torn - j->end);

    r = r ? r : file_sync(j->file);
    r = r ? r : write_end(j, end);
    j->is_unsure = r;
    if (!r) {
        j->end = j->torn = end;
        j->ends += size_of_end(what);
    } else {
        memset(record, 0, record_size(what->len));
    }
    return r;
}

int
journal_add(struct journal *j, enum journal_type type, const void *payload,
            uint32_t len)
{
    /* A length of 0 would end the journal. */
    const struct journal_record record = {.type = type,
                                          .payload = len ? payload : "",
                                          .len = len ? len : 1};

    if (len > JOURNAL_PAYLOAD_MAX) {
        return -ENOSPC;
    }
    comutex_lock(&j->adding);
    bool fits = size_with(j, j->end, &record) <= j->size;
    int r = fits && !j->end_is_unsure ? 0 : compact(j, &record);

    r = r ? r : append(j, &record);
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
        j->torn = (uint32_t)max_u64(j->torn, j->end);
        j->end = FIRST; /* the file goes as a whole */
        j->ends = 0;
        memset(j->bytes + j->end, 0, j->size - j->end);
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
    free(j->image);
    free(j->shown);
    free(j->bytes);
    free(j);
}

int
journal_remove(const struct journal *j)
{
    auto_free char *new = xasprintf("%s.new", j->path);
    int r = file_unlink(j->loop, new); /* of one that died, if any */

    r = file_unlink(j->loop, j->path);
    return r == -ENOENT ? 0 : r ? r : folder_sync(j->loop, j->path);
}
