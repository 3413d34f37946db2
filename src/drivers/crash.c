// SPDX-License-Identifier: BSD-3-Clause
/*
 * crash: a filter, for tests, with a volatile write cache that loses power.
 *
 * Writes stay in memory until a flush hands them to the node below, in order.
 * At the `crash-at`-th event (a write, zero, truncate or flush, from 1; 0:
 * never) a random half of them, chosen by `seed`, gets there and the rest is
 * forgotten; then the process exits (`then`: "exit", status CRASH_STATUS) or
 * every request fails with EIO ("fail").  What is not flushed when the node is
 * closed is forgotten as well, so that a close that does not flush shows.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"

enum { PENDING_MAX = 256 << 20, CRASH_STATUS = 99 };

struct pending {
    struct list link; /* in the order of the writes */
    uint64_t off, len;
    unsigned char data[];
};

struct crash {
    struct list pending;
    uint64_t bytes, events, at, seed;
    bool exits, dead;
};

static int
crash_open(struct node *node, json_t *options, struct err *err)
{
    const char *then = opt_str(options, "then");
    int r = node_open_file(node, options, err);

    if (r) {
        return r;
    }
    struct crash *c = xzalloc(sizeof(*c));

    list_init(&c->pending);
    c->at = opt_u64(options, "crash-at", 0);
    c->seed = opt_u64(options, "seed", 1);
    c->exits = !then || !strcmp(then, "exit");
    node->state = c;
    node->size = node->file->child->size;
    node->limits = node->file->child->limits;
    node->limits.min_align = 1; /* the child sees to its own alignment */
    return 0;
}

static void
forget(struct crash *c, struct pending *p)
{
    c->bytes -= p->len;
    list_remove(&p->link);
    free(p);
}

static void
forget_all(struct crash *c)
{
    list_for_each_safe (it, &c->pending) {
        forget(c, container_of(it, struct pending, link));
    }
}

static int
crash_close(struct node *node)
{
    forget_all(node->state);
    free(node->state);
    return 0;
}

/* Hands down what is pending when it is called; one that fails is lost. */
static int
write_out(struct node *node, bool half)
{
    struct crash *c = node->state;
    struct list now;
    int r = 0;

    list_init(&now);
    list_splice(&now, &c->pending);
    list_for_each_safe (it, &now) {
        struct pending *p = container_of(it, struct pending, link);

        c->seed = c->seed * 6364136223846793005 + 1442695040888963407;
        if (!r && !(half && c->seed >> 63)) {
            r = node_write_buf(node->file->child, p->off, p->data, p->len);
        }
        forget(c, p);
    }
    return r;
}

/* One more event: 0, or -EIO where there is no power any more. */
static int
event(struct node *node)
{
    struct crash *c = node->state;

    if (!c->dead && c->at && ++c->events == c->at) {
        c->dead = true;
        write_out(node, true);
        if (c->exits) {
            _exit(CRASH_STATUS);
        }
    }
    return c->dead ? -EIO : 0;
}

static int
crash_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    struct crash *c = node->state;
    int r = c->dead ? -EIO : node_read(node->file->child, off, sg, flags);

    list_for_each (it, &c->pending) {
        struct pending *p = container_of(it, struct pending, link);
        uint64_t start = max_u64(off, p->off);
        uint64_t end = min_u64(off + sg.len, p->off + p->len);

        if (start < end) {
            sg_copy_from(sg_slice(sg, start - off, end - start),
                         p->data + (start - p->off));
        }
    }
    return r;
}

/* @sg without memory: zeroes. */
static int
keep(struct node *node, uint64_t off, uint64_t len, const struct sg *sg)
{
    struct crash *c = node->state;
    int r = event(node);

    if (r || c->bytes + len > PENDING_MAX) {
        return r ? r : -ENOMEM;
    }
    struct pending *p = xzalloc(sizeof(*p) + len);

    p->off = off;
    p->len = len;
    if (sg) {
        sg_copy_to(*sg, p->data);
    }
    c->bytes += len;
    list_push(&c->pending, &p->link);
    node->size = max_u64(node->size, off + len);
    return 0;
}

static int
crash_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
            struct range_hold *hold)
{
    return keep(node, off, sg.len, &sg);
}

static int
crash_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
           struct range_hold *hold)
{
    return keep(node, off, len, NULL);
}

static int
crash_flush(struct node *node)
{
    int r = event(node);

    r = r ? r : write_out(node, false);
    return r ? r : node_flush(node->file->child);
}

static int
crash_truncate(struct node *node, uint64_t size, struct err *err)
{
    int r = event(node);

    if (!r) {
        r = write_out(node, false);
    }
    if (r) {
        return err_set_errno(err, r, "Could not truncate '%s'", node->name);
    }
    r = node_truncate(node->file->child, size, err);
    node->size = node->file->child->size;
    return r;
}

const struct driver driver_crash = {
    .name = "crash",
    .is_protocol = true,
    .open = crash_open,
    .close = crash_close,
    .read = crash_read,
    .write = crash_write,
    .zero = crash_zero,
    .flush = crash_flush,
    .truncate = crash_truncate,
};
