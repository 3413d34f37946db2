// SPDX-License-Identifier: BSD-3-Clause
/*
 * The daemon makes the image, since it has the files: by blockdev-create, once
 * for the file and once for the format in it, which are jobs that are waited
 * for.  Only the removal of a file has no command in QMP; it is done here.
 */
#include "cli/target.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/disk.h"
#include "cli/follow.h"

enum { CREATE_MS = 1000 };

/* What it is. */

/* The format that a new image gets where nobody says: that of the disk. */
static int
take_format(struct target *t, const char *format, const char *node,
            const char *driver, struct err *err)
{
    static const char *const formats[] = {"raw", "qcow2", "qed"};

    if (!format && (!strcmp(driver, "nbd") || !strcmp(driver, "file") ||
                    !strcmp(driver, "host_device"))) {
        driver = "raw";
    }
    format = format ? format : driver;
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (!strcmp(formats[i], format)) {
            t->format = xstrdup(format);
            return 0;
        }
    }
    err_set(err, -EINVAL, "There are no images of the format '%s' (of '%s')",
            format, node);
    err_hint(err, "say which the copy is to have: -f raw, qcow2 or qed");
    return err->code;
}

static int
take_path(struct target *t, const char *where, struct err *err)
{
    t->path = disk_absolute(where);
    if (t->reuse && access(t->path, F_OK)) {
        err_set(err, -ENOENT, "There is no image '%s' to reuse", t->path);
    } else if (!t->reuse && disk_check_new(t->path, err)) {
        if (err->code == -EEXIST) {
            err_hint(err, "with --reuse the copy goes into that image");
        }
    } else if (strcmp(t->format, "raw") && t->size % 512 && !t->reuse) {
        err_set(err, -EINVAL,
                "The disk has %llu bytes, which no %s image can have",
                (unsigned long long)t->size, t->format);
        err_hint(err, "-f raw makes one of that size");
    }
    return err->code;
}

static int
take_node(struct target *t, const char *where, const char *format,
          struct err *err)
{
    if (format || t->reuse) {
        return err_set(err, -EINVAL, "'%s' is a node: it has its %s", where,
                       format ? "format" : "image");
    }
    t->node = xstrdup(where);
    return 0;
}

/* "disk2" is rather a node that was misspelt than a file to be made. */
static bool
looks_like_path(const char *where)
{
    return strpbrk(where, "/.") != NULL;
}

int
target_init(struct target *t, const char *where, const char *format,
            const json_t *source, struct err *err)
{
    const json_t *cache = json_object_get(source, "cache");
    json_t *node = NULL;
    int r = strchr(where, '/') ? -ENOENT
                               : disk_info(t->client, where, &node, err);

    json_decref(node);
    if (!r) {
        return take_node(t, where, format, err);
    }
    if (r == -ENOENT && !looks_like_path(where)) {
        err_hint(err, "a file of that name would be ./%s", where);
        return r;
    }
    if (r != -ENOENT) {
        return r;
    }
    err_clear(err);
    t->size = (uint64_t)qmp_number(json_object_get(source, "image"),
                                   "virtual-size");
    t->direct = json_is_true(json_object_get(cache, "direct"));
    t->no_flush = json_is_true(json_object_get(cache, "no-flush"));
    r = take_format(t, format, qmp_text(source, "node-name"),
                    qmp_text(source, "drv"), err);
    return r ? r : take_path(t, where, err);
}

void
target_fini(struct target *t)
{
    free(t->path);
    free(t->node);
    free(t->format);
}

/* Making it. */

/* Waits for a job of blockdev-create, and dismisses it. */
static int
wait_created(struct target *t, const char *id, struct err *err)
{
    for (;;) {
        json_t *event = NULL, *job = find_job(t->client, id, err);
        bool ended = !job || !strcmp(qmp_text(job, "status"), "concluded");
        const char *error = qmp_text(job, "error");

        if (!job && !err_is_set(err)) {
            err_set(err, -ECANCELED, "The creation of '%s' was broken off",
                    t->path);
        } else if (*error) {
            err_set(err, qmp_error_code(error), "%s", error);
        }
        json_decref(job);
        if (ended) {
            break;
        }
        qmp_client_event(t->client, CREATE_MS, &event, NULL);
        json_decref(event);
    }
    qmp_client_call(t->client, "job-dismiss", json_pack("{s:s}", "id", id),
                    NULL, NULL);
    return err->code;
}

/* Takes @options. */
static int
create(struct target *t, json_t *options, struct err *err)
{
    auto_free char *id = xasprintf("%s-create", t->job_id);
    json_t *args = json_pack("{s:s, s:o}", "job-id", id, "options", options);

    if (!args) {
        return err_set(err, -EINVAL, "'%s' is not valid UTF-8", t->path);
    }
    int r = qmp_client_call(t->client, "blockdev-create", args, NULL, err);

    return r ? r : wait_created(t, id, err);
}

/* The daemon may have made a file and then failed to enlarge it. */
static void
remove_empty(const char *path)
{
    struct stat st;

    if (!lstat(path, &st) && S_ISREG(st.st_mode) && !st.st_size) {
        unlink(path);
    }
}

static int
make_image(struct target *t, struct err *err)
{
    bool is_raw = !strcmp(t->format, "raw");
    int r = create(t,
                   json_pack("{s:s, s:s, s:I}", "driver", "file", "filename",
                             t->path, "size",
                             is_raw ? (json_int_t)t->size : (json_int_t)0),
                   err);

    if (r) {
        if (r != -EBUSY && r != -EEXIST) {
            remove_empty(t->path);
        }
        return r;
    }
    t->made = true;
    return is_raw ? 0
                  : create(t,
                           json_pack("{s:s, s:I, s:{s:s, s:s}}", "driver",
                                     t->format, "size", (json_int_t)t->size,
                                     "file", "driver", "file", "filename",
                                     t->path),
                           err);
}

static int
open_image(struct target *t, bool read_only, struct err *err)
{
    struct stat st;
    bool is_device = !stat(t->path, &st) && S_ISBLK(st.st_mode);
    json_t *options = json_pack(
        "{s:s, s:s, s:b, s:s, s:{s:b, s:b}, s:{s:s, s:s}}", "driver",
        t->format, "node-name", t->node, "read-only", (int)read_only,
        "discard", "unmap", "cache", "direct", (int)t->direct, "no-flush",
        (int)t->no_flush, "file", "driver",
        is_device ? "host_device" : "file", "filename", t->path);

    if (!options) {
        return err_set(err, -EINVAL, "'%s' is not valid UTF-8", t->path);
    }
    if (strcmp(t->format, "raw")) {
        json_object_set_new(options, "backing", json_null());
    }
    int r = qmp_client_call(t->client, "blockdev-add", options, NULL, err);

    t->opened = !r;
    return r;
}

int
target_open(struct target *t, bool read_only, struct err *err)
{
    int r = 0;

    if (!t->path) {
        return 0;
    }
    t->node = disk_free_name(t->client, t->job_id, err);
    if (!t->node) {
        return err->code;
    }
    if (!t->reuse && !read_only) {
        r = make_image(t, err);
    }
    return r ? r : open_image(t, read_only, err);
}

/* Taking it back. */

static bool
close_node(struct target *t)
{
    if (t->opened) {
        t->opened = qmp_client_call(t->client, "blockdev-del",
                                    json_pack("{s:s}", "node-name", t->node),
                                    NULL, NULL) != 0;
    }
    return !t->opened;
}

void
target_undo(struct target *t)
{
    if (close_node(t) && t->made) {
        auto_free char *journal = xasprintf("%s.sluice", t->path);

        unlink(t->path);
        unlink(journal); /* raw: that says that it is unfinished */
        t->made = false;
    }
}

bool
target_undo_unfinished(struct target *t)
{
    json_t *node = NULL;
    bool marked;

    if (!t->opened || disk_info(t->client, t->node, &node, NULL)) {
        return false;
    }
    marked = json_is_true(json_object_get(json_object_get(node, "image"),
                                          "unfinished-copy"));
    json_decref(node);
    if (marked) {
        target_undo(t);
    }
    return !t->opened;
}
