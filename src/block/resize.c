// SPDX-License-Identifier: BSD-3-Clause
/*
 * A disk grows beside its guest's requests: a driver makes its new size known
 * last, so that nobody reaches what is not there yet.
 *
 * Two cases need the guest to stand still, so they close the gates of all
 * roots above, as a graph edit does:
 *   - it shrinks: a write in flight past the new end would make the file
 *     longer again;
 *   - its backing file reaches past the old end, where the guest would see it
 *     until zeroes are in its place.
 */
#include "block/resize.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/quiesce.h"

/* A window of a fixed size does not follow its file. */
static bool
is_window(const struct node *node)
{
    return json_object_get(node->options, "size") != NULL;
}

/* May @node, which is the changed one or above it, get another size? */
static int
check(const struct quiesce *q, unsigned i, uint64_t size, struct err *err)
{
    struct node *node = q->nodes[i];
    uint64_t old = q->nodes[0]->size;
    int r = claim_check(node, CLAIM_WRITE, "block_resize", err);

    if (!r) {
        r = node_check_no_job(node, err);
    }
    if (!r && i && size < old &&
        (is_window(node) || node->size < old - size)) {
        r = err_set(err, -EBUSY,
                    "Node '%s' needs more of node '%s' than would be left",
                    node->name, q->nodes[0]->name);
    }
    return r;
}

static int
check_all(const struct quiesce *q, uint64_t size, struct err *err)
{
    int r = 0;

    for (unsigned i = 0; i < q->n_nodes && !r; i++) {
        r = check(q, i, size, err);
    }
    return r;
}

/* The filters above follow; does not yield. */
static void
set_sizes(const struct quiesce *q, uint64_t old)
{
    uint64_t size = q->nodes[0]->size;

    for (unsigned i = 1; i < q->n_nodes; i++) {
        if (!is_window(q->nodes[i])) {
            q->nodes[i]->size = q->nodes[i]->size - old + size;
        }
    }
}

/* Until where the backing file would show through. */
static uint64_t
backing_end(const struct node *node)
{
    return node->backing ? node->backing->child->size : 0;
}

static int
resize(const struct quiesce *q, uint64_t size, struct err *err)
{
    struct node *node = q->nodes[0];
    uint64_t old = node->size, shown = min_u64(size, backing_end(node));
    int r = check_all(q, size, err);

    if (!r) {
        r = node_truncate(node, size, err);
    }
    if (!r && shown > old) {
        r = node_zero(node, old, shown - old, REQ_BACKGROUND, NULL);
        if (r) {
            err_set_errno(err, r, "Could not zero what was added to node '%s'",
                          node->name);
        }
    }
    set_sizes(q, old); /* whatever became of it */
    return r;
}

int
node_drop_tail(struct node *node, uint64_t size, struct range_hold *hold)
{
    uint64_t old = node->size;
    uint64_t end = min_u64(align_up(size, node->cluster_size), old);
    int r = 0;

    if (size < end) {
        r = node_zero(node, size, end - size, REQ_BACKGROUND, hold);
    }
    if (!r && end < old) {
        r = node_unallocate(node, end, old - end, hold);
    }
    return r;
}

int
node_zero_tail(struct node *node, uint64_t size, struct range_hold *hold)
{
    uint64_t end = min_u64(align_up(node->size, node->cluster_size), size);
    uint64_t len = end - node->size;
    struct extent ext;

    if (!len) {
        return 0;
    }
    int r = node->drv->map(node, node->size, len, &ext);

    if (r || ext.kind == EXTENT_UNALLOCATED || ext.kind == EXTENT_ZERO) {
        return r;
    }
    auto_free void *zeroes = try_alloc_aligned(4096, len);
    struct iovec iov = {zeroes, len};

    if (!zeroes) {
        return -ENOMEM;
    }
    memset(zeroes, 0, len);
    /* Not by node_write(): nobody else may see the node longer before. */
    r = node->drv->write(node, node->size, sg_one(&iov), REQ_BACKGROUND, hold);
    node->write_gen++;
    return r ? r : node_flush(node);
}

int
check_not_resizing(const struct node *node, struct err *err)
{
    return node->resizing
               ? err_set(err, -EBUSY, "Node '%s' is busy: it is being resized",
                         node->name)
               : 0;
}

/* A job or an edit that came meanwhile would go by the old size. */
static int
begin(const struct quiesce *q, struct err *err)
{
    int r = 0;

    for (unsigned i = 0; i < q->n_nodes && !r; i++) {
        r = check_not_resizing(q->nodes[i], err);
    }
    for (unsigned i = 0; i < q->n_nodes && !r; i++) {
        q->nodes[i]->resizing = true;
    }
    return r;
}

static void
end(const struct quiesce *q)
{
    for (unsigned i = 0; i < q->n_nodes; i++) {
        q->nodes[i]->resizing = false;
    }
}

int
node_resize(struct node *node, uint64_t size, uint64_t deadline_ns,
            struct err *err)
{
    struct quiesce q;
    int r;

    node = node_skip_filters(node); /* raw has a size of its own to change */
    if (node->drv->set_backing && size % 512) {
        return err_set(err, -EINVAL, "The new size must be a multiple of 512");
    }
    quiesce_init(&q);
    quiesce_add(&q, node);
    r = begin(&q, err);
    if (r) {
        quiesce_fini(&q);
        return r;
    }
    r = check_all(&q, size, err);
    if (!r && (size < node->size ||
               min_u64(size, backing_end(node)) > node->size)) {
        r = quiesce_close(&q, deadline_ns, err);
    }
    if (!r) {
        r = resize(&q, size, err);
    }
    end(&q);
    quiesce_open(&q);
    quiesce_fini(&q);
    return r;
}
