// SPDX-License-Identifier: BSD-3-Clause
/*
 * A node becomes writable, or read-only, under its readers.
 *
 * To write, its file goes first; to read only, last.  The node itself stays
 * what it is, so that whoever refers to it need not know.
 */
#include <errno.h>

#include "block/chain_index.h"
#include "block/dirty_log.h"
#include "block/graph_internal.h"
#include "run/file.h"

static int
call_driver(struct node *node, bool read_only, struct err *err)
{
    return node->drv->reopen ? node->drv->reopen(node, read_only, err) : 0;
}

/* What @parent wants of its file from now on; what it had does not count. */
static int
claim_again(struct edge *edge, enum claim claim, struct err *err)
{
    enum claim old = edge->claim;

    edge->claim = CLAIM_NONE;
    int r = claim_check(edge->child, claim, edge->parent->name, err);

    edge->claim = r ? old : claim;
    return r;
}

/* A node that the operator opened read-only by itself stays so. */
static int
check_file(const struct node *file, struct err *err)
{
    bool ours = !file->named || !file->read_only ||
                json_is_true(json_object_get(file->options, "auto-read-only"));

    return ours ? 0
                : err_set(err, -EACCES, "Node '%s' is read-only", file->name);
}

/* Does another holder of its file stand against it? */
static int
check_claim(struct edge *edge, enum claim claim, struct err *err)
{
    enum claim old = edge->claim;

    edge->claim = CLAIM_NONE;
    int r = claim_check_holders(edge->child, claim, edge->parent->name, err);

    edge->claim = old;
    return r;
}

/* Of a file that has a name here: does the system let us write to it? */
static int
check_access(const struct node *file, struct err *err)
{
    struct file *f;

    if (!file->drv->is_protocol || !file->filename || !file->file_id.ino) {
        return 0;
    }
    if (json_is_true(json_object_get(file->options, "force-share"))) {
        return err_set(err, -EACCES,
                       "'%s' was opened with force-share=on, for reading only",
                       file->filename);
    }
    int r = file_open(file->graph->loop, file->filename, FILE_WRITE, &f);

    if (r) {
        return err_set_errno(err, r, "'%s' cannot be written to",
                             file->filename);
    }
    bool same = f->dev == file->file_id.dev && f->ino == file->file_id.ino;

    file_close(f);
    return same ? 0
                : err_set(err, -ESTALE,
                          "'%s' is no longer the file that was opened: it was "
                          "replaced meanwhile",
                          file->filename);
}

static int
check_one(struct node *node, struct err *err)
{
    struct edge *file = node->file;
    int r = node_check_active(node, err) ? -EPERM : 0;

    if (r || !node->read_only) {
        return r;
    }
    r = file ? check_file(file->child, err) : check_access(node, err);
    if (!r && file) {
        r = check_claim(file, file_claim(node, false), err);
    }
    return r || !node->drv->check_write ? r : node->drv->check_write(node, err);
}

int
node_check_writable(struct node *node, struct err *err)
{
    struct node *held = node_ref(node);
    int r = 0;

    while (held) {
        struct node *file = held->file ? node_ref(held->file->child) : NULL;

        r = r ? r : check_one(held, err);
        node_unref(held);
        held = file;
    }
    return r;
}

static int
to_write(struct node *node, struct err *err)
{
    struct edge *file = node->file;
    bool file_was = file && file->child->read_only;
    int r = file ? check_file(file->child, err) : 0;

    if (!r && file_was) {
        r = node_reopen(file->child, false, err);
    }
    if (r) {
        return r;
    }
    enum claim was = file ? file->claim : CLAIM_NONE;

    r = file ? claim_again(file, file_claim(node, false), err) : 0;
    if (!r) {
        r = call_driver(node, false, err);
    }
    if (r && file) {
        file->claim = was;
    }
    if (r && file_was) {
        node_reopen(file->child, true, NULL);
    }
    if (!r) {
        node->read_only = false;
        chain_index_drop(node);
        dirty_log_attach(node);
    }
    return r;
}

static int
to_read_only(struct node *node, struct err *err)
{
    struct edge *file = node->file;
    int r = claim_check_holders(node, CLAIM_STABLE, "blockdev-reopen", err);

    if (!r) {
        r = node_flush(node);
        if (r) {
            err_set_errno(err, r, "Flushing '%s' failed", node->name);
        }
    }
    if (r) {
        return r;
    }
    dirty_log_leave(node);
    node->read_only = true;
    r = call_driver(node, true, err);
    if (r) {
        node->read_only = false;
        dirty_log_attach(node); /* it has missed nothing that it would know */
        return r;
    }
    if (file) {
        file->claim = file_claim(node, true);
        if (!file->child->named) {
            node_reopen(file->child, true, NULL); /* it may stay writable */
        }
    }
    return 0;
}

static int
reopen_locked(struct node *node, bool read_only, struct err *err)
{
    if (node->read_only == read_only) {
        return 0;
    }
    return read_only ? to_read_only(node, err) : to_write(node, err);
}

/* A job that reads it may keep its log, one that writes to it needs it so. */
static int
check_no_job(const struct node *node, struct err *err)
{
    int r = node_check_no_job(node, err);

    return !r && node->borrowers
               ? err_set(err, -EBUSY, "Node '%s' is busy: a job writes to it",
                         node->name)
               : r;
}

int
node_reopen(struct node *node, bool read_only, struct err *err)
{
    comutex_lock(&node->reopening);
    int r = node_check_active(node, err) ? -EPERM : 0;

    if (!r && read_only && !node->read_only) {
        r = check_no_job(node, err);
    }
    bool becomes_writable = !read_only && node->read_only;

    r = r ? r : reopen_locked(node, read_only, err);
    if (!r && becomes_writable) {
        r = node_recover(node, err); /* until now it was only looked at */
        if (r) {
            reopen_locked(node, true, NULL);
        }
    }
    comutex_unlock(&node->reopening);
    return r;
}

int
node_borrow(struct node *node, bool *ret_borrowed, struct err *err)
{
    comutex_lock(&node->reopening);
    int r = node_check_active(node, err) ? -EPERM : 0;

    *ret_borrowed = !r && (node->read_only || node->borrowers);
    if (*ret_borrowed) {
        r = reopen_locked(node, false, err);
        node->borrowers += !r;
    }
    comutex_unlock(&node->reopening);
    return r;
}

void
node_return(struct node *node)
{
    comutex_lock(&node->reopening);
    if (node->borrowers && --node->borrowers == 0 && !node->inactive) {
        reopen_locked(node, true, NULL);
    }
    comutex_unlock(&node->reopening);
}

void
node_keep_writable(struct node *node)
{
    node->borrowers = 0;
}
