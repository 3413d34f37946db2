// SPDX-License-Identifier: BSD-3-Clause
/*
 * fault: a filter, for tests, whose requests fail as the operator says (as
 * QEMU's blkdebug with `inject-error`).  It stands for the file of an image or
 * for a whole disk; everything that no rule fails goes to the node below.
 *
 * A rule applies to one kind of request, where it touches [offset, offset +
 * length); it lets `skip` of them pass, then fails `count` (0: all).  The first
 * rule that applies decides.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"

enum { RULES_MAX = 64, ERRNO_MAX = 4095 };

static const char *const iotypes[] = {"read", "write", "write-zeroes",
                                      "discard", "flush"};
enum iotype { IO_READ, IO_WRITE, IO_ZERO, IO_DISCARD, IO_FLUSH, IO_TYPES };

struct rule {
    enum iotype type;
    uint64_t start, end, skip, count;
    int error;
};

struct fault {
    size_t n;
    struct rule rules[RULES_MAX];
};

static int
read_rule(json_t *o, struct rule *rule, struct err *err)
{
    const char *type = opt_str(o, "iotype");
    uint64_t len = opt_u64(o, "length", 0), code = opt_u64(o, "error", EIO);
    size_t i = 0;

    rule->start = opt_u64(o, "offset", 0);
    if (!len || !add_ok(rule->start, len, &rule->end)) {
        rule->end = UINT64_MAX;
    }
    rule->skip = opt_u64(o, "skip", 0);
    rule->count = opt_u64(o, "count", 0);
    while (type && i < IO_TYPES && strcmp(iotypes[i], type)) {
        i++;
    }
    if (!type || i == IO_TYPES || !code || code > ERRNO_MAX) {
        return err_set(err, -EINVAL,
                       "A rule of 'inject-error' needs an 'iotype' (read, "
                       "write, write-zeroes, discard, flush), and an 'error' "
                       "from 1 to %d",
                       ERRNO_MAX);
    }
    rule->type = (enum iotype)i;
    rule->error = -(int)code;
    return 0;
}

static int
fault_open(struct node *node, json_t *options, struct err *err)
{
    json_t *rules = json_object_get(options, "inject-error");
    struct fault *f = xzalloc(sizeof(*f));
    int r = 0;

    if (json_array_size(rules) > RULES_MAX) {
        r = err_set(err, -EINVAL, "At most %d rules", RULES_MAX);
    }
    for (size_t i = 0; !r && i < json_array_size(rules); i++) {
        r = read_rule(json_array_get(rules, i), &f->rules[f->n++], err);
    }
    if (!r) {
        r = node_open_file(node, options, err);
    }
    if (r) {
        free(f);
        return r;
    }
    node->state = f;
    node->size = node->file->child->size;
    node->limits = node->file->child->limits;
    node->limits.min_align = 1; /* the child sees to its own alignment */
    return 0;
}

static int
fault_close(struct node *node)
{
    free(node->state);
    return 0;
}

/* 0, or the error that the request is to fail with. */
static int
judge(struct node *node, enum iotype type, uint64_t off, uint64_t len)
{
    struct fault *f = node->state;

    for (size_t i = 0; i < f->n; i++) {
        struct rule *rule = &f->rules[i];

        if (rule->type != type ||
            (type != IO_FLUSH &&
             (off >= rule->end || rule->start >= off + len))) {
            continue;
        }
        if (rule->skip) {
            rule->skip--;
        } else if (rule->count != UINT64_MAX) {
            if (rule->count && --rule->count == 0) {
                rule->count = UINT64_MAX; /* spent */
            }
            return rule->error;
        }
    }
    return 0;
}

static int
fault_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    int r = judge(node, IO_READ, off, sg.len);

    return r ? r : node_read(node->file->child, off, sg, flags);
}

/* A write may have made the file longer. */
static int
changed(struct node *node, int r)
{
    node->size = node->file->child->size;
    return r;
}

static int
fault_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
            struct range_hold *hold)
{
    int r = judge(node, IO_WRITE, off, sg.len);

    return r ? r
             : changed(node,
                       node_write(node->file->child, off, sg, flags, NULL));
}

static int
fault_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
           struct range_hold *hold)
{
    int r = judge(node, IO_ZERO, off, len);

    return r ? r
             : changed(node,
                       node_zero(node->file->child, off, len, flags, NULL));
}

static int
fault_discard(struct node *node, uint64_t off, uint64_t len,
              struct range_hold *hold)
{
    int r = judge(node, IO_DISCARD, off, len);

    return r ? r : node_discard(node->file->child, off, len);
}

static int
fault_flush(struct node *node)
{
    int r = judge(node, IO_FLUSH, 0, 0);

    return r ? r : node_flush(node->file->child);
}

static int
fault_status(struct node *node, uint64_t off, uint64_t len, struct extent *ret)
{
    return node_status(node->file->child, off, len, true, ret);
}

static int
fault_truncate(struct node *node, uint64_t size, struct err *err)
{
    return changed(node, node_truncate(node->file->child, size, err));
}

const struct driver driver_fault = {
    .name = "fault",
    .is_protocol = true,
    .open = fault_open,
    .close = fault_close,
    .read = fault_read,
    .write = fault_write,
    .zero = fault_zero,
    .discard = fault_discard,
    .flush = fault_flush,
    .status = fault_status,
    .truncate = fault_truncate,
};
