// SPDX-License-Identifier: BSD-3-Clause
/*
 * The request path.
 *
 * A read asks each layer where its bytes are (`map`) and goes down the chain
 * in a loop until a layer has them, so that neither the stack nor a lock grows
 * with the chain's depth.  A plain cluster is then read from the layer's file
 * without the driver; only what is encoded goes through it.
 *
 * A write holds its range (shared, unless the caller holds it or a read-modify-
 * write needs it alone), fires the taps around it, and leaves everything else
 * to the driver.
 *
 * The driver's contract is checked here, on both sides of each call.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "block/chain_index.h"
#include "block/graph_internal.h"
#include "block/limits.h"

enum {
    BOUNCE_MAX = 1 << 20, /* bytes of one bounce buffer */
    TAIL_PAGE = 4096,     /* of the page cache */
    ZERO_CHUNK = 1 << 16,
    ZERO_IOVS = 16,
};

/* What a fallback for `zero` writes; never changed. */
static unsigned char zeroes[ZERO_CHUNK] __attribute__((aligned(4096)));

/* Reading. */

/* A protocol that wants alignment reads whole blocks into a buffer. */
static int
read_bounced(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    uint32_t align = node->limits.min_align;

    while (sg.len) {
        uint64_t start = align_down(off, align);
        uint64_t len = min_u64(sg.len, BOUNCE_MAX - (off - start));
        uint64_t end = align_up(off + len, align);
        auto_free unsigned char *buf = try_alloc_aligned(4096, end - start);
        struct iovec iov = {buf, end - start};

        if (!buf) {
            return -ENOMEM;
        }
        int r = node->drv->read(node, start, sg_one(&iov), flags);

        if (r) {
            return r;
        }
        sg_copy_from(sg_slice(sg, 0, len), buf + (off - start));
        sg = sg_slice(sg, len, sg.len - len);
        off += len;
    }
    return 0;
}

static bool
is_suitable(struct node *node, uint64_t off, struct sg sg)
{
    uint32_t align = node->limits.min_align;

    return align == 1 || (is_aligned(off, align) && sg_is_aligned(sg, align));
}

static int
read_protocol(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    return is_suitable(node, off, sg) ? node->drv->read(node, off, sg, flags)
                                      : read_bounced(node, off, sg, flags);
}

/* Reads what a look-up found; @off is the layer's own. */
static int
read_extent(struct node *node, uint64_t off, const struct extent *ext,
            struct sg sg, unsigned flags)
{
    switch (ext->kind) {
    case EXTENT_DATA:
        return node_read(node->file->child, ext->host_off, sg, flags);
    case EXTENT_ENCODED:
        return node->drv->read(node, off, sg, flags);
    case EXTENT_UNALLOCATED:
    case EXTENT_ZERO:
        break;
    }
    sg_zero(sg);
    return 0;
}

/*
 * Reads the beginning of a range from this layer, if it has it: *ret_len says
 * how much the answer covers, *ret_below that it lies in a layer below.
 */
static int
read_layer(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           uint64_t *ret_len, bool *ret_below)
{
    struct extent ext;

    *ret_below = false;
    if (!node->drv->map) {
        *ret_len = sg.len;
        return read_protocol(node, off, sg, flags);
    }
    /* Until the read is over, the cluster it found must not be reused. */
    unsigned token = grace_enter(&node->lookups);
    int r = node->drv->map(node, off, sg.len, &ext);

    if (!r) {
        assert(ext.len && ext.len <= sg.len);
        *ret_len = ext.len;
        *ret_below = ext.kind == EXTENT_UNALLOCATED && node->backing;
        if (!*ret_below) {
            r = read_extent(node, off, &ext, sg_slice(sg, 0, ext.len), flags);
        }
    }
    grace_leave(&node->lookups, token);
    return r;
}

/* As read_layer(), for what the chain index found. */
static int
read_place(const struct chain_place *place, uint64_t off, struct sg sg,
           unsigned flags, uint64_t *ret_len)
{
    struct node *layer = place->layer;
    struct extent ext = {
        .kind = place->kind, .len = place->len, .host_off = place->host_off};
    bool below;

    if (place->kind == EXTENT_ENCODED) {
        int got = read_layer(layer, off, sg_slice(sg, 0, place->len), flags,
                             ret_len, &below);

        return !got && below ? -EAGAIN : got; /* given up meanwhile */
    }
    *ret_len = place->len;
    sg = sg_slice(sg, 0, place->len);
    if (place->kind != EXTENT_DATA) {
        sg_zero(sg);
        return 0;
    }
    unsigned token = grace_enter(&layer->lookups);
    int r = read_extent(layer, off, &ext, sg, flags);

    grace_leave(&layer->lookups, token);
    return r;
}

/* Reads the beginning of a range from the first layer that has it. */
static int
read_chain(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           uint64_t *ret_len)
{
    bool below = true, asked = false;
    struct chain_place place;
    int r = 0;

    for (struct node *n = node; below; n = n->backing->child) {
        if (!n->drv->is_protocol || n != node) {
            if (off >= n->size) {
                sg_zero(sg); /* a backing file shorter than its overlay */
                *ret_len = sg.len;
                return 0;
            }
            sg = sg_slice(sg, 0, min_u64(sg.len, n->size - off));
        }
        if (!asked && chain_index_usable(n)) {
            asked = true;
            if (chain_index_find(n, off, sg.len, flags, &place, &r)) {
                return r ? r : read_place(&place, off, sg, flags, ret_len);
            }
        }
        r = read_layer(n, off, sg, flags, ret_len, &below);
        if (r || !below) {
            return r;
        }
        sg = sg_slice(sg, 0, *ret_len);
    }
    return 0;
}

int
node_read(struct node *node, uint64_t off, struct sg sg, unsigned flags)
{
    if (!(flags & (REQ_BACKGROUND | REQ_QUIET))) {
        list_for_each(it, &node->taps)
        {
            struct tap *tap = container_of(it, struct tap, link);

            if (tap->on_read) {
                tap->on_read(tap, off, sg.len);
            }
        }
    }
    while (sg.len) {
        uint64_t len = 0;
        int r = read_chain(node, off, sg, flags, &len);

        if (r == -EAGAIN) {
            continue; /* it moved between the look-up and the read */
        }
        if (r) {
            return r;
        }
        off += len;
        sg = sg_slice(sg, len, sg.len - len);
    }
    return 0;
}

int
node_read_buf(struct node *node, uint64_t off, void *buf, uint64_t len)
{
    struct iovec iov = {buf, len};

    return node_read(node, off, sg_one(&iov), 0);
}

/* Writing: what all changes have in common. */

static int
may_change(struct node *node, uint64_t off, uint64_t len)
{
    uint64_t end;

    if (node->failed) {
        return node->failed;
    }
    if (node->read_only) {
        return -EROFS;
    }
    if (!add_ok(off, len, &end) || end > LIMIT_IMAGE_SIZE ||
        (!node->drv->is_protocol && end > node->size)) {
        return -EINVAL;
    }
    return 0;
}

static struct tap *
tap_before(struct node *node, enum tap_order order)
{
    list_for_each(it, &node->taps)
    {
        struct tap *tap = container_of(it, struct tap, link);

        if (tap->order == order && tap->before) {
            return tap;
        }
    }
    return NULL;
}

/* Each may yield, and the list can be another one then. */
static int
fire_before(struct node *node, enum tap_op op, uint64_t off, uint64_t len)
{
    int r = 0;

    for (int order = TAP_BEFORE; order <= TAP_AFTER && !r; order++) {
        struct tap *tap = tap_before(node, (enum tap_order)order);

        r = tap ? tap->before(tap, op, off, len) : 0;
    }
    return r;
}

static bool
took_part(const struct forward *forwards, const struct tap *tap)
{
    while (forwards && forwards->tap != tap) {
        forwards = forwards->next;
    }
    return forwards != NULL;
}

static bool
is_forwarded(struct node *node, enum tap_op op, uint64_t off, uint64_t len)
{
    list_for_each(it, &node->taps)
    {
        struct tap *tap = container_of(it, struct tap, link);

        if (tap->forwards && tap->forwards(tap, op, off, len)) {
            return true;
        }
    }
    return false;
}

static struct forward *
forward_begin(struct node *node, enum tap_op op, uint64_t off, uint64_t len,
              struct sg *sg)
{
    struct forward *first = NULL;

    list_for_each(it, &node->taps)
    {
        struct tap *tap = container_of(it, struct tap, link);
        struct forward *f =
            tap->begin ? tap->begin(tap, op, off, len, sg) : NULL;

        if (f) {
            f->tap = tap;
            f->next = first;
            first = f;
        }
    }
    return first;
}

/* Ends them all; they are gone then. */
static void
forward_end(struct forward *first, int r)
{
    while (first) {
        struct forward *next = first->next;

        first->tap->end(first, r);
        first = next;
    }
}

/* A change in progress: its hold and its taps. */
struct change {
    struct node *node;
    enum tap_op op;
    uint64_t off, len;
    struct sg sg; /* of a write */
    bool quiet; /* fires no tap */
    bool background; /* a transfer's: also in a layer above, or elsewhere */
    bool below; /* others read through the node */
    struct range_hold own, *hold;
    struct forward *forwards;
    struct tap *diverter; /* takes parts of it elsewhere; NULL: nobody */
    unsigned n_own; /* parts that the node itself took, then */
    unsigned token; /* in node->changes, unless quiet */
};

static void
fire_after(const struct change *c, int r)
{
    list_for_each_safe(it, &c->node->taps)
    {
        struct tap *tap = container_of(it, struct tap, link);

        if (tap->after && tap != c->diverter && !took_part(c->forwards, tap)) {
            tap->after(tap, c->op, c->off, c->len, r);
        }
    }
}

/*
 * A part of it was made here.  It must be heard of before the next one: that
 * can let go of the range.
 */
static void
own_part_made(const struct change *c, uint64_t off, uint64_t len, int r)
{
    struct tap *tap = c->diverter;

    if (tap->after) {
        tap->after(tap, c->op, off, len, r);
    }
}

static struct tap *
find_diverter(const struct change *c)
{
    list_for_each(it, &c->node->taps)
    {
        struct tap *tap = container_of(it, struct tap, link);

        if (tap->divert && !took_part(c->forwards, tap)) {
            return tap;
        }
    }
    return NULL;
}

static struct node *
begin_own_part(struct change *c)
{
    c->n_own++;
    c->diverter->own_begun++;
    c->diverter->own_busy++;
    return c->node;
}

/* A part that found no room elsewhere: there may be some here (rule 9). */
static int
take_back(struct change *c, int r, struct node **to)
{
    if (r != -ENOSPC || c->diverter->is_left) {
        return r;
    }
    *to = begin_own_part(c);
    return 0;
}

/* Who takes the first bytes of what is left of a change. */
static int
next_part(struct change *c, uint64_t off, uint64_t len, struct node **ret,
          uint64_t *ret_len)
{
    struct tap *tap = c->diverter;

    *ret = c->node;
    *ret_len = len;
    int r = tap->divert(tap, off, len, ret, ret_len);

    if (!r && *ret == c->node) {
        begin_own_part(c);
    }
    return r;
}

/*
 * Takes the change's own hold.  Where it is forwarded, alone, and as wide as
 * the driver may ever want: a hold that is let go of to be widened would let
 * an overlapping change pass on one side only.
 */
static void
hold_range(struct change *c)
{
    struct node *node = c->node;
    uint64_t unit = max_u64(node->cluster_size, node->limits.min_align);
    uint64_t start = c->off, end = c->off + c->len;
    enum range_mode mode = RANGE_SHARED;

    if (!c->quiet && is_forwarded(node, c->op, c->off, c->len)) {
        start = align_down(start, unit);
        end = align_up(end, unit);
        mode = RANGE_EXCLUSIVE;
    }
    if (c->op == TAP_OP_DISCARD && !is_aligned(end, unit)) {
        /* It takes the rest of the disk's last cluster along. */
        end = align_up(end, unit);
        mode = RANGE_EXCLUSIVE;
    }
    c->hold = &c->own;
    range_lock_take(&node->ranges, c->hold, start, end, mode);
    if (mode == RANGE_SHARED && !c->quiet &&
        is_forwarded(node, c->op, c->off, c->len)) {
        /* It came to that while this waited. */
        range_lock_widen(&node->ranges, c->hold, align_down(start, unit),
                         align_up(end, unit));
    }
}

static int
change_begin(struct change *c, struct range_hold *hold)
{
    int r = may_change(c->node, c->off, c->len);

    if (r) {
        return r;
    }
    c->hold = hold;
    if (!c->quiet) {
        c->token = grace_enter(&c->node->changes);
    }
    if (!hold) {
        hold_range(c);
    }
    if (!c->quiet) {
        r = fire_before(c->node, c->op, c->off, c->len);
    }
    if (r && !hold) {
        range_lock_release(&c->node->ranges, &c->own);
    }
    if (r && !c->quiet) {
        grace_leave(&c->node->changes, c->token);
    }
    if (!r && !c->quiet && c->hold->mode == RANGE_EXCLUSIVE) {
        c->forwards = forward_begin(c->node, c->op, c->off, c->len, &c->sg);
    }
    c->node->under_way += !r;
    c->diverter = !r && !c->quiet ? find_diverter(c) : NULL;
    c->below = !r && c->node->n_overlays;
    if (c->below) {
        chain_index_change_begin(c->node, c->off, c->len);
    }
    return r;
}

/* Ends the change; durable first where @flags say so. */
static int
change_end(struct change *c, int r, unsigned flags)
{
    c->node->under_way--;
    c->node->write_gen++;
    if (!c->background) {
        c->node->users_gen = c->node->write_gen;
    }
    if (!c->below && c->node->n_overlays) {
        /* It became a layer while this was under way. */
        c->below = true;
        chain_index_change_begin(c->node, c->off, c->len);
    }
    if (c->below) {
        chain_index_change_end(c->node);
    }
    if (!c->quiet) {
        fire_after(c, r);
        if (c->diverter) {
            c->diverter->own_busy -= c->n_own;
        }
        grace_leave(&c->node->changes, c->token);
    }
    /* With the range still held: the next one to it comes after both. */
    forward_end(c->forwards, r);
    if (c->hold == &c->own) {
        range_lock_release(&c->node->ranges, &c->own);
    }
    bool now = flags & REQ_FUA || (c->node->is_unlogged && !c->background);

    return !r && now ? node_flush(c->node) : r;
}

/*
 * Writes whole blocks where the protocol wants alignment.  Only the last block
 * of a node that ends within it is cut there: a disk must not grow because its
 * last bytes were written.  A protocol does that with a page (struct file), so
 * then nobody else writes to that.
 */
static int
write_bounced(struct node *node, uint64_t off, struct sg sg, unsigned flags,
              struct range_hold *hold)
{
    uint32_t align = node->limits.min_align;
    uint64_t stop = off + sg.len, size = node->size;
    bool cut = stop <= size && align_up(stop, align) > size;
    uint32_t unit = cut ? (uint32_t)max_u64(align, TAIL_PAGE) : align;
    int r = 0;

    range_lock_widen(&node->ranges, hold, align_down(off, unit),
                     align_up(stop, unit));
    while (sg.len && !r) {
        uint64_t start = align_down(off, align);
        uint64_t len = min_u64(sg.len, BOUNCE_MAX - (off - start));
        uint64_t end = align_up(off + len, align);
        auto_free unsigned char *buf = try_alloc_aligned(4096, end - start);
        struct iovec iov = {buf, end - start};
        struct iovec head = {buf, align};
        struct iovec tail = {buf ? buf + (end - start) - align : NULL, align};

        if (!buf) {
            return -ENOMEM;
        }
        if (start != off || end - start == align) {
            r = node->drv->read(node, start, sg_one(&head), flags);
        }
        if (!r && end != off + len && end - start > align) {
            r = node->drv->read(node, end - align, sg_one(&tail), flags);
        }
        if (!r) {
            sg_copy_to(sg_slice(sg, 0, len), buf + (off - start));
            iov.iov_len = (cut ? min_u64(end, size) : end) - start;
            r = node->drv->write(node, start, sg_one(&iov), flags, hold);
        }
        sg = sg_slice(sg, len, sg.len - len);
        off += len;
    }
    return r;
}

static int
driver_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
             struct range_hold *hold)
{
    if (!node->drv->write) {
        return -ENOTSUP;
    }
    return is_suitable(node, off, sg)
               ? node->drv->write(node, off, sg, flags, hold)
               : write_bounced(node, off, sg, flags, hold);
}

static int
write_parts(struct change *c, uint64_t off, struct sg sg, unsigned flags)
{
    int r = 0;

    if (!c->diverter) {
        return driver_write(c->node, off, sg, flags, c->hold);
    }
    while (sg.len && !r) {
        struct node *to;
        uint64_t len;

        r = next_part(c, off, sg.len, &to, &len);
        if (r) {
            break;
        }
        if (to != c->node) {
            r = node_write(to, off, sg_slice(sg, 0, len), flags, NULL);
        }
        r = take_back(c, r, &to);
        if (to == c->node) {
            r = driver_write(to, off, sg_slice(sg, 0, len), flags, c->hold);
            own_part_made(c, off, len, r);
        }
        off += len;
        sg = sg_slice(sg, len, sg.len - len);
    }
    return r;
}

int
node_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
           struct range_hold *hold)
{
    struct change c = {.node = node,
                       .op = TAP_OP_WRITE,
                       .off = off,
                       .len = sg.len,
                       .sg = sg,
                       .quiet = flags & (REQ_BACKGROUND | REQ_QUIET),
                       .background = flags & REQ_BACKGROUND};

    if (node->detect_zeroes && node->drv->zero && sg_is_zero(sg)) {
        if (node->detect_zeroes == DETECT_ZEROES_UNMAP) {
            flags |= REQ_MAY_UNMAP;
        }
        return node_zero(node, off, sg.len, flags, hold);
    }
    int r = change_begin(&c, hold);

    if (r) {
        return r;
    }
    r = write_parts(&c, off, c.sg, flags & ~(unsigned)REQ_FUA);
    return change_end(&c, r, flags);
}

int
node_write_buf(struct node *node, uint64_t off, const void *buf, uint64_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};

    return node_write(node, off, sg_one(&iov), 0, NULL);
}

/* A write of whole clusters whose bytes are not here. */
static struct change
change_of_clusters(struct node *node, uint64_t off, uint64_t len,
                   unsigned flags)
{
    return (struct change){.node = node,
                           .op = TAP_OP_WRITE,
                           .off = off,
                           .len = len,
                           .quiet = flags & (REQ_BACKGROUND | REQ_QUIET),
                           .background = flags & REQ_BACKGROUND};
}

static bool
are_clusters(const struct node *node, uint64_t off, uint64_t len)
{
    return is_aligned(off, node->cluster_size) &&
           (is_aligned(len, node->cluster_size) || off + len == node->size);
}

int
node_clone(struct node *node, uint64_t off, struct node *from,
           uint64_t from_off, uint64_t len, unsigned flags,
           struct range_hold *hold)
{
    struct change c = change_of_clusters(node, off, len, flags);
    int r = node->drv->clone && are_clusters(node, off, len)
                ? change_begin(&c, hold)
                : -ENOTSUP;

    if (r) {
        return r;
    }
    r = node->drv->clone(node, off, from, from_off, len, flags, c.hold);
    return change_end(&c, r, flags);
}

int
node_write_encoded(struct node *node, uint64_t off, const struct encoded *data,
                   unsigned flags, struct range_hold *hold)
{
    uint64_t len = min_u64(node->cluster_size, node->size - off);
    struct change c = change_of_clusters(node, off, len, flags);
    int r = node->drv->write_encoded && are_clusters(node, off, len)
                ? change_begin(&c, hold)
                : -ENOTSUP;

    if (r) {
        return r;
    }
    r = node->drv->write_encoded(node, off, data, flags, c.hold);
    return change_end(&c, r, flags);
}

static int
write_zeroes(struct node *node, uint64_t off, uint64_t len, unsigned flags,
             struct range_hold *hold)
{
    struct iovec iov[ZERO_IOVS];

    for (size_t i = 0; i < ZERO_IOVS; i++) {
        iov[i] = (struct iovec){zeroes, ZERO_CHUNK};
    }
    while (len) {
        struct sg sg = {.iov = iov,
                        .len = min_u64(len, ZERO_CHUNK * ZERO_IOVS)};
        int r = driver_write(node, off, sg, flags, hold);

        if (r) {
            return r;
        }
        off += sg.len;
        len -= sg.len;
    }
    return 0;
}

/* The part of a zero request that consists of whole clusters. */
static int
zero_clusters(struct node *node, uint64_t off, uint64_t len, unsigned flags,
              struct range_hold *hold)
{
    int r = -ENOTSUP;

    if (!len) {
        return 0;
    }
    if (node->drv->zero) {
        r = node->drv->zero(node, off, len, flags, hold);
    }
    if (r == -ENOTSUP && !(flags & REQ_NO_FALLBACK)) {
        r = write_zeroes(node, off, len, flags, hold);
    }
    return r;
}

/* Whole clusters as such, what is left and right of them by writing. */
static int
zero_range(struct node *node, uint64_t off, uint64_t len, unsigned flags,
           struct range_hold *hold)
{
    uint64_t unit = max_u64(node->cluster_size, node->limits.min_align);
    uint64_t end = off + len;
    uint64_t body = align_up(off, unit);
    /* The last cluster is whole where the disk ends in it. */
    uint64_t tail = end == node->size ? end : align_down(end, unit);

    if (!node->unmap) {
        flags &= ~(unsigned)REQ_MAY_UNMAP;
    }
    if (body > tail) {
        return write_zeroes(node, off, len, flags, hold);
    }
    int r = write_zeroes(node, off, body - off, flags, hold);

    if (!r) {
        r = zero_clusters(node, body, tail - body, flags, hold);
    }
    return r ? r : write_zeroes(node, tail, end - tail, flags, hold);
}

/* So much of a range is less than a cluster, or whole clusters. */
static uint64_t
alike_length(const struct node *node, uint64_t off, uint64_t len)
{
    uint64_t unit = max_u64(node->cluster_size, node->limits.min_align);
    uint64_t whole = align_down(len, unit);

    return is_aligned(off, unit) ? (whole ? whole : len)
                                 : min_u64(len, align_up(off, unit) - off);
}

static int
zero_parts(struct change *c, unsigned flags)
{
    uint64_t off = c->off, end = c->off + c->len;
    int r = 0;

    if (!c->diverter) {
        return zero_range(c->node, off, c->len, flags, c->hold);
    }
    while (off < end && !r) {
        struct node *to;
        uint64_t len;

        r = next_part(c, off, end - off, &to, &len);
        if (r) {
            break;
        }
        if (to != c->node) {
            r = node_zero(to, off, len, flags, NULL);
        }
        r = take_back(c, r, &to);
        if (to == c->node) {
            len = alike_length(c->node, off, len);
            r = zero_range(to, off, len, flags, c->hold);
            own_part_made(c, off, len, r);
        }
        off += len;
    }
    return r;
}

int
node_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
          struct range_hold *hold)
{
    struct change c = {.node = node,
                       .op = TAP_OP_ZERO,
                       .off = off,
                       .len = len,
                       .quiet = flags & (REQ_BACKGROUND | REQ_QUIET),
                       .background = flags & REQ_BACKGROUND};
    int r = change_begin(&c, hold);

    if (r) {
        return r;
    }
    r = zero_parts(&c, flags & ~(unsigned)REQ_FUA);
    return change_end(&c, r, flags);
}

static int
discard_parts(struct change *c)
{
    struct node *node = c->node;
    uint64_t off = c->off, end = c->off + c->len;
    int r = 0;

    if (!c->diverter) {
        return node->drv->discard(node, off, c->len, c->hold);
    }
    while (off < end && !r) {
        struct node *to;
        uint64_t len;

        r = next_part(c, off, end - off, &to, &len);
        if (r) {
            break;
        }
        if (to != node) {
            r = node_discard(to, off, len);
        } else if (is_aligned(off, node->cluster_size) &&
                   (is_aligned(len, node->cluster_size) ||
                    off + len == node->size)) {
            r = node->drv->discard(node, off, len, c->hold);
            own_part_made(c, off, len, r);
        } /* else less than a cluster: what is there may stay */
        off += len;
    }
    return r;
}

static bool
drops_discards(const struct node *node)
{
    list_for_each(it, &node->taps)
    {
        if (container_of(it, struct tap, link)->drops_discards) {
            return true;
        }
    }
    return false;
}

int
node_discard(struct node *node, uint64_t off, uint64_t len)
{
    struct change c = {
        .node = node, .op = TAP_OP_DISCARD, .off = off, .len = len};
    uint64_t unit = max_u64(node->cluster_size, node->limits.min_align);
    uint64_t end = off + len;
    int r = may_change(node, off, len);

    if (r || !node->unmap || !node->drv->discard || drops_discards(node)) {
        return r;
    }
    off = align_up(off, unit);
    end = end == node->size ? end : align_down(end, unit);
    if (off >= end) {
        return 0;
    }
    c.off = off;
    c.len = end - off;
    r = change_begin(&c, NULL);
    if (r) {
        return r;
    }
    /* The disk may have grown until the range was held. */
    if (end != node->size) {
        c.len = max_u64(align_down(end, unit), off) - off;
    }
    r = c.len ? discard_parts(&c) : 0;
    return change_end(&c, r == -ENOTSUP ? 0 : r, 0);
}

int
node_unallocate(struct node *node, uint64_t off, uint64_t len,
                struct range_hold *hold)
{
    struct change c = {.node = node,
                       .off = off,
                       .len = len,
                       .quiet = true,
                       .background = true};
    int r = node->drv->unallocate ? change_begin(&c, hold) : -ENOTSUP;

    if (r) {
        return r;
    }
    assert(is_aligned(off, node->cluster_size));
    r = node->drv->unallocate(node, off, len, c.hold);
    return change_end(&c, r, 0);
}

static int
flush_layer(struct node *node)
{
    /* Only what completed before counts: later writes have a later number. */
    uint64_t gen = node->write_gen;
    int r = 0;

    if (node->failed) {
        return node->failed;
    }
    /*
     * Whoever asks the maps sees parts of changes that are under way, and what
     * he concludes from that needs them to be durable, too.
     */
    if (node->flushed_gen == gen && !node->under_way) {
        return 0;
    }
    if (node->drv->flush) {
        r = node->drv->flush(node);
    } else if (node->file) {
        r = node_flush(node->file->child);
    }
    if (!r) {
        node->flushed_gen = max_u64(node->flushed_gen, gen);
    }
    return r;
}

/*
 * A layer below may still have what was written before a snapshot put this
 * node on top of it, and rule 2 speaks of every file that holds a part.  What
 * a transfer writes below is also in the layers above it until it is durable.
 */
int
node_flush(struct node *node)
{
    struct forward *forwards =
        list_empty(&node->taps)
            ? NULL
            : forward_begin(node, TAP_OP_FLUSH, 0, node->size, NULL);
    int r = flush_layer(node);

    for (struct node *n = node; !r && n->backing;) {
        n = n->backing->child;
        if (n->users_gen > n->flushed_gen) {
            r = flush_layer(n);
        }
    }
    forward_end(forwards, r);
    return r;
}

int
node_truncate(struct node *node, uint64_t size, struct err *err)
{
    if (node->read_only) {
        return err_set(err, -EROFS, "Node '%s' is read-only", node->name);
    }
    if (size > LIMIT_IMAGE_SIZE) {
        return err_set(err, -EFBIG,
                       "Size %llu of node '%s' is above the limit of %llu",
                       (unsigned long long)size, node->name,
                       (unsigned long long)LIMIT_IMAGE_SIZE);
    }
    if (!node->drv->truncate) {
        return err_set(err, -ENOTSUP,
                       "Driver '%s' of node '%s' cannot change its size",
                       node->drv->name, node->name);
    }
    int r = node->drv->truncate(node, size, err);

    chain_index_drop(node);
    node->write_gen++;
    return r;
}

/* Where data is. */

int
node_status(struct node *node, uint64_t off, uint64_t len, bool seek,
            struct extent *ret)
{
    int r = 0;

    if (node->drv->map) {
        r = node->drv->map(node, off, len, ret);
        if (!r && seek && ret->kind == EXTENT_DATA && node->drv->is_filter) {
            struct extent below;

            r = node_status(node->file->child, ret->host_off, ret->len, true,
                            &below);
            ret->len = r ? ret->len : below.len;
            ret->kind = r ? ret->kind : below.kind;
        }
    } else if (seek && node->drv->status) {
        r = node->drv->status(node, off, len, ret);
    } else {
        *ret = (struct extent){.kind = EXTENT_DATA, .len = len};
    }
    assert(r || (ret->len && ret->len <= len));
    return r;
}

int
node_free_space(struct node *node, uint64_t *ret)
{
    while (node->file) {
        node = node->file->child;
    }
    return node->drv->free_space ? node->drv->free_space(node, ret) : -ENOTSUP;
}

int
node_allocated(struct node *node, uint64_t *ret)
{
    while (node->file) {
        node = node->file->child;
    }
    return node->drv->allocated ? node->drv->allocated(node, ret) : -ENOTSUP;
}

/*
 * What the index knows of the layers from @node down to, without, @base: a
 * place at or below @base counts as in none.
 */
static int
status_of_place(struct node *node, struct node *base, uint64_t off, bool seek,
                const struct chain_place *place, struct extent *ret,
                struct node **ret_layer)
{
    struct node *layer = place->layer;

    *ret = (struct extent){
        .kind = place->kind, .len = place->len, .host_off = place->host_off};
    if (layer && base && chain_contains(base, layer)) {
        layer = NULL;
    }
    if (!layer) {
        ret->kind = EXTENT_UNALLOCATED;
    }
    *ret_layer = layer;
    if (layer && seek && place->kind == EXTENT_DATA &&
        layer->drv->is_filter) {
        return node_status(layer, off, place->len, true, ret);
    }
    return 0;
}

int
chain_status(struct node *top, struct node *base, uint64_t off, uint64_t len,
             bool seek, struct extent *ret, struct node **ret_layer)
{
    struct node *layer = NULL;
    bool asked = false;
    int r = 0;

    *ret = (struct extent){.kind = EXTENT_UNALLOCATED, .len = len};
    for (struct node *n = top; n && n != base && len;
         n = n->backing ? n->backing->child : NULL) {
        struct chain_place place;

        if (off >= n->size) {
            *ret = (struct extent){.kind = EXTENT_ZERO, .len = len};
            layer = n;
            break;
        }
        len = min_u64(len, n->size - off);
        if (!asked && chain_index_usable(n)) {
            asked = true;
            if (chain_index_find(n, off, len, REQ_BACKGROUND, &place, &r)) {
                r = r ? r
                      : status_of_place(n, base, off, seek, &place, ret,
                                        &layer);
                break;
            }
        }
        r = node_status(n, off, len, seek, ret);
        if (r) {
            return r;
        }
        len = ret->len;
        if (ret->kind != EXTENT_UNALLOCATED) {
            layer = n;
            break;
        }
    }
    if (ret_layer) {
        *ret_layer = layer;
    }
    return r;
}
