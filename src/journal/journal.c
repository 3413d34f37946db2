// SPDX-License-Identifier: BSD-3-Clause
/* See journal.h for the format. */
#include "journal/journal.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/mem.h"

static const char magic[8] = "SLUICE-J";

enum { HEAD = 12, ALIGN = 8 };

struct journal {
    struct loop *loop;
    struct file *file;
    char *path;
    uint32_t end; /* of the last record */
    unsigned char bytes[JOURNAL_SIZE];
    /* Of one that is written: */
    struct journals *journals;
    struct list link;
    struct comutex adding;
    char *image;
    unsigned users;
    bool is_unsure; /* a record that failed may be there all the same */
};

/* Where it lies. */

static char *
path_beside(const char *image)
{
    return xasprintf("%s.sluice", image);
}

/* NULL where there is no such place, or the name is too long for it. */
static char *
path_in_state(const struct journals *js, const char *image)
{
    auto_free char *here = image[0] == '/' ? NULL : getcwd(NULL, 0);
    auto_free char *name =
        xasprintf("%s%s%s", here ? here : "", here ? "/" : "", image);

    for (char *p = name; *p; p++) {
        *p = *p == '/' ? '!' : *p;
    }
    return js->state_dir && strlen(name) + sizeof(".sluice") <= NAME_MAX
               ? xasprintf("%s/%s.sluice", js->state_dir, name)
               : NULL;
}

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

const char *
journal_path_from(const char *image, const char *path)
{
    return path_in_same_folder(image, path) ? path + folder_len(path) : path;
}

char *
journal_path_to(const char *image, const char *name)
{
    return name[0] == '/'
               ? xstrdup(name)
               : xasprintf("%.*s%s", (int)folder_len(image), image, name);
}

char *
journal_name_for(struct loop *loop, const char *image, const char *path)
{
    auto_free char *own_image = file_own_path(loop, image);
    auto_free char *own = file_own_path(loop, path);

    return xstrdup(journal_path_from(own_image, own));
}

struct loop *
journal_loop(const struct journal *j)
{
    return j->loop;
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
    return r->type == JOURNAL_JOB || r->type == JOURNAL_JOB_ENDED ||
           r->type == JOURNAL_LAYER || r->type == JOURNAL_DELETION;
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
journal_new(struct loop *loop, const char *path, struct file *file)
{
    struct journal *j = xzalloc(sizeof(*j));

    j->loop = loop;
    j->path = xstrdup(path);
    j->file = file;
    j->end = sizeof(magic);
    return j;
}

static int
open_at(struct loop *loop, const char *path, struct journal **ret)
{
    struct file *file;
    uint32_t pos = 0;
    struct journal_record record;
    int r = file_open(loop, path, 0, &file);

    if (r) {
        return r;
    }
    struct journal *j = journal_new(loop, path, file);

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

int
journal_open(const struct journals *js, const char *image,
             struct journal **ret)
{
    auto_free char *beside = path_beside(image);
    auto_free char *elsewhere = path_in_state(js, image);
    int r = open_at(js->loop, beside, ret);

    return r == -ENOENT && elsewhere ? open_at(js->loop, elsewhere, ret) : r;
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
    comutex_init(&js->lock);
    list_init(&js->open);
}

void
journals_fini(struct journals *js)
{
    free(js->state_dir);
}

static int
write_whole(struct journal *j, struct file *file, const char *path)
{
    int r = file_write_buf(file, 0, j->bytes, JOURNAL_SIZE);

    r = r ? r : file_sync(file);
    return r ? r : folder_sync(j->loop, path);
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

static int
create_at(const struct journals *js, const char *path, struct file **ret)
{
    return file_open(js->loop, path, FILE_WRITE | FILE_CREATE, ret);
}

static int
create_in_state(const struct journals *js, const char *path,
                struct file **ret)
{
    int r = create_at(js, path, ret);

    if (r == -ENOENT) {
        auto_free char *folder = xstrdup(js->state_dir);
        struct offload_group one;

        offload_group_init(&one, 1);
        offload(js->loop, &one, make_folder, folder);
        r = create_at(js, path, ret);
    }
    return r;
}

static bool
is_device(struct loop *loop, const char *image)
{
    struct file *file;
    bool is = false;

    if (!file_open(loop, image, 0, &file)) {
        is = file->is_block_device;
        file_close(file);
    }
    return is;
}

static bool
can_lie_nowhere(int r)
{
    return r == -EROFS || r == -EACCES || r == -EPERM;
}

/* *ret_path is where it was made. */
static int
create(const struct journals *js, const char *image, char **ret_path,
       struct file **ret)
{
    auto_free char *beside = path_beside(image);
    auto_free char *elsewhere = path_in_state(js, image);
    int r = is_device(js->loop, image) ? -EROFS : create_at(js, beside, ret);

    *ret_path = take_ptr(beside);
    if (can_lie_nowhere(r) && elsewhere) {
        free(*ret_path);
        *ret_path = take_ptr(elsewhere);
        r = create_in_state(js, *ret_path, ret);
    }
    return r;
}

/* Opened to be read before; now to be written. */
static int
reopen(struct journal *j)
{
    file_close(take_ptr(j->file));
    return file_open(j->loop, j->path, FILE_WRITE, &j->file);
}

static int
make(const struct journals *js, const char *image, struct journal **ret)
{
    auto_free char *path = NULL;
    struct file *file = NULL;
    int r = create(js, image, &path, &file);

    if (!r) {
        *ret = journal_new(js->loop, path, file);
    }
    return r;
}

static int
open_or_make(const struct journals *js, const char *image,
             struct journal **ret)
{
    struct journal *j = NULL;
    int r = journal_open(js, image, &j);

    r = !r ? reopen(j) : r == -ENOENT ? make(js, image, &j) : r;
    if (!r && j->end == sizeof(magic)) {
        memcpy(j->bytes, magic, sizeof(magic));
        r = write_whole(j, j->file, j->path);
    }
    if (r && j) {
        journal_close(j);
    }
    *ret = j;
    return r;
}

static struct journal *
find_open(struct journals *js, const char *image)
{
    list_for_each (it, &js->open) {
        struct journal *j = container_of(it, struct journal, link);

        if (!strcmp(j->image, image)) {
            return j;
        }
    }
    return NULL;
}

int
journal_share(struct journals *js, const char *image, struct journal **ret)
{
    comutex_lock(&js->lock);
    struct journal *j = find_open(js, image);
    int r = j ? 0 : open_or_make(js, image, &j);

    if (!r && !j->users++) {
        j->journals = js;
        j->image = xstrdup(image);
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
            journal_remove(j);
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
    struct journal *to = journal_new(j->loop, path, NULL);
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
    free(j->image);
    free(j);
}

int
journal_remove(const struct journal *j)
{
    int r = file_unlink(j->loop, j->path);

    return r == -ENOENT ? 0 : r ? r : folder_sync(j->loop, j->path);
}
