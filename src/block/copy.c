// SPDX-License-Identifier: BSD-3-Clause
/*
 * See copy.h: read -> hold the target's range -> write what is missing, or
 * hold -> read -> write.
 */
#include "block/copy.h"

#include <assert.h>
#include <errno.h>

#include "block/limits.h"

/* One buffer and where it belongs. */
struct piece {
    const struct copy *copy;
    uint64_t off, len;
    unsigned char *data; /* NULL: zeroes, or cloned from: */
    struct node *clone_from; /* a protocol node; NULL: nothing is */
    uint64_t clone_off;      /* where the piece begins in it */
    struct range_hold hold;
    struct copy_result *result;
};

void
copy_buffers_free(struct copy_buffers *buffers)
{
    while (buffers->n) {
        free(buffers->idle[--buffers->n]);
    }
}

static void *
get_buffer(struct copy_buffers *b, uint64_t len)
{
    if (!b || len > b->size) {
        return try_alloc_aligned(4096, len);
    }
    return b->n ? b->idle[--b->n] : try_alloc_aligned(4096, b->size);
}

static void
put_buffer(struct copy_buffers *b, void *p, uint64_t len)
{
    if (p && b && len <= b->size && b->n < COPY_BUFFERS) {
        b->idle[b->n++] = p;
    } else {
        free(p);
    }
}

/*
 * What was zero when somebody looked may have been written to both sides
 * since; with the target's range held, it is said for certain.
 */
static int
still_zero(struct piece *p, bool *ret)
{
    const struct copy *copy = p->copy;
    uint64_t end = min_u64(p->off + p->len, copy->source->size);
    int r = 0;

    *ret = true;
    for (uint64_t off = p->off; off < end && *ret && !r;) {
        struct extent ext;

        r = chain_status(copy->source, NULL, off, end - off, true, &ext, NULL);
        *ret = ext.kind == EXTENT_ZERO || ext.kind == EXTENT_UNALLOCATED;
        off += r ? 0 : ext.len;
    }
    p->result->read_failed = r != 0;
    return r;
}

static int
read_source(const struct copy *copy, struct piece *p)
{
    struct node *source = copy->source;
    uint64_t here =
        p->off < source->size ? min_u64(p->len, source->size - p->off) : 0;
    struct iovec iov;

    bool zero = copy->known_zero;

    if (zero && copy->lock_first) {
        int r = still_zero(p, &zero);

        if (r) {
            return r;
        }
    }
    if (zero || !here) {
        return 0;
    }
    p->data = get_buffer(copy->buffers, p->len);
    if (!p->data) {
        return -ENOMEM;
    }
    memset(p->data + here, 0, p->len - here);
    iov = (struct iovec){p->data, here};
    int r = node_read(source, p->off, sg_one(&iov), copy->flags);

    p->result->read_failed = r != 0;
    return r;
}

/* [off, off + len) of the target reads as data, if only in part. */
static int
reads_data(struct node *target, uint64_t off, uint64_t len, bool *ret)
{
    uint64_t end = min_u64(off + len, target->size);
    int r = 0;

    *ret = false;
    while (off < end && !*ret && !r) {
        struct extent ext;

        r = chain_status(target, NULL, off, end - off, false, &ext, NULL);
        *ret = !r && (ext.kind == EXTENT_DATA || ext.kind == EXTENT_ENCODED);
        off += r ? 0 : ext.len;
    }
    return r;
}

int
copy_count_rest(struct node *target, uint64_t at, uint64_t off, uint64_t len,
                uint64_t *sum)
{
    struct extent ext;
    bool is_written = false;
    int r = len ? node_status(target, at, 1, false, &ext) : 0;

    if (!r && len && ext.kind != EXTENT_DATA) {
        r = reads_data(target, off, len, &is_written);
    }
    *sum += is_written ? len : 0;
    return r;
}

static int
count_rests(struct piece *p, uint64_t off, uint64_t len)
{
    struct node *target = p->copy->target;
    uint64_t unit = target->cluster_size, end = off + len;
    uint64_t start = align_down(off, unit), *sum = &p->result->copied;
    int r = copy_count_rest(target, off, start, off - start, sum);

    return r ? r
             : copy_count_rest(target, end - 1, end, align_up(end, unit) - end,
                               sum);
}

static int
put_zeroes(struct piece *p, uint64_t off, uint64_t len)
{
    int r = count_rests(p, off, len);

    p->result->zeroed += len;
    return r ? r
             : node_zero(p->copy->target, off, len,
                         p->copy->flags | REQ_MAY_UNMAP, &p->hold);
}

static int
put_data(struct piece *p, uint64_t off, uint64_t len)
{
    struct iovec iov = {p->data + (off - p->off), len};
    int r = count_rests(p, off, len);

    p->result->copied += len;
    return r ? r
             : node_write(p->copy->target, off, sg_one(&iov), p->copy->flags,
                          &p->hold);
}

static int
put_clone(struct piece *p, uint64_t off, uint64_t len)
{
    int r = node_clone(p->copy->target, off, p->clone_from,
                       p->clone_off + (off - p->off), len, p->copy->flags,
                       &p->hold);

    p->result->cloned += r ? 0 : len;
    return r;
}

/* Writes a missing part, cut into runs of clusters that are zero or not. */
static int
put_part(struct piece *p, uint64_t off, uint64_t len)
{
    uint64_t unit = max_u64(p->copy->target->cluster_size, 4096);
    uint64_t end = off + len;

    if (p->clone_from) {
        return put_clone(p, off, len);
    }
    if (!p->data) {
        return put_zeroes(p, off, len);
    }
    while (off < end) {
        uint64_t at = off;
        bool zero = false;

        do {
            uint64_t next = min_u64(align_down(at, unit) + unit, end);
            bool is_zero = bytes_are_zero(p->data + (at - p->off), next - at);

            if (at == off) {
                zero = is_zero;
            } else if (is_zero != zero) {
                break;
            }
            at = next;
        } while (at < end);
        int r = zero ? put_zeroes(p, off, at - off) : put_data(p, off, at - off);

        if (r) {
            return r;
        }
        off = at;
    }
    return 0;
}

/* Only what the target still lacks: a guest may have been faster. */
static int
put_missing(struct piece *p)
{
    struct node *target = p->copy->target;
    uint64_t off = p->off, end = p->off + p->len;

    while (off < end) {
        struct extent ext;
        int r = node_status(target, off, end - off, false, &ext);

        if (!r && ext.kind == EXTENT_UNALLOCATED) {
            r = put_part(p, off, ext.len);
        } else if (!r) {
            p->result->skipped += ext.len;
        }
        if (r) {
            return r;
        }
        off += ext.len;
    }
    return 0;
}

static void
hold_target(struct piece *p)
{
    struct node *target = p->copy->target;
    uint64_t unit = target->cluster_size;

    range_lock_take(&target->ranges, &p->hold, align_down(p->off, unit),
                    align_up(p->off + p->len, unit), RANGE_EXCLUSIVE);
}

static int
put_held(struct piece *p)
{
    return p->copy->fill ? put_missing(p) : put_part(p, p->off, p->len);
}

static int
put_locked(struct piece *p)
{
    if (p->hold.held) {
        return put_held(p);
    }
    hold_target(p);
    int r = put_held(p);

    range_lock_release(&p->copy->target->ranges, &p->hold);
    return r;
}

/*
 * Where the piece is one extent of plain data in one file, the target may
 * share its blocks.  -ENOTSUP where it cannot: what was done until then stays,
 * the copy skips it.
 */
static int
try_clone(struct piece *p)
{
    const struct copy *copy = p->copy;
    struct node *layer;
    struct extent ext;

    if (!copy->no_clone || *copy->no_clone || copy->known_zero ||
        !copy->target->drv->clone ||
        p->off + p->len > copy->source->size) {
        return -ENOTSUP;
    }
    int r = chain_status(copy->source, NULL, p->off, p->len, false, &ext,
                         &layer);

    p->result->read_failed = r != 0;
    if (r || ext.kind != EXTENT_DATA || ext.len < p->len || !layer->file ||
        !layer->file->child->drv->clone) {
        return r ? r : -ENOTSUP;
    }
    p->clone_from = layer->file->child;
    p->clone_off = ext.host_off;
    unsigned token = grace_enter(&layer->lookups);

    r = put_locked(p);
    grace_leave(&layer->lookups, token);
    /* A piece that ends within a cluster says nothing of the others. */
    *copy->no_clone = r == -ENOTSUP &&
                      is_aligned(p->len, copy->target->cluster_size);
    p->clone_from = NULL;
    return r;
}

static int
copy_part(struct piece *p, uint64_t off, uint64_t len)
{
    const struct copy *copy = p->copy;

    if (!len) {
        return 0;
    }
    p->off = off;
    p->len = len;
    int r = try_clone(p);

    if (r == -ENOTSUP) {
        r = read_source(copy, p);
        if (!r) {
            r = put_locked(p);
        }
        put_buffer(copy->buffers, take_ptr(p->data), p->len);
    }
    return r;
}

/* Compressed clusters that go over as they are. */

bool
copy_keeps_encoded(const struct copy *copy, uint64_t off,
                   const struct extent *ext, const struct node *layer)
{
    const struct node *target = copy->target;

    return ext->kind == EXTENT_ENCODED && layer != target &&
           layer->drv == target->drv && target->drv->write_encoded &&
           layer->cluster_size == target->cluster_size &&
           is_aligned(off, target->cluster_size) &&
           (ext->len == target->cluster_size ||
            (off + ext->len == target->size && layer->size == target->size));
}

static int
put_encoded(struct piece *p, const struct encoded *data)
{
    struct extent ext = {.kind = EXTENT_UNALLOCATED};
    int r = p->copy->fill ? node_status(p->copy->target, p->off, p->len, false,
                                        &ext)
                          : 0;

    if (r || ext.kind != EXTENT_UNALLOCATED) {
        p->result->skipped += r ? 0 : p->len;
        return r;
    }
    r = node_write_encoded(p->copy->target, p->off, data, p->copy->flags,
                           &p->hold);
    p->result->copied += r ? 0 : data->len;
    return r;
}

/* One cluster; -ENOTSUP where it is compressed no more, or cannot stay so. */
static int
copy_encoded(struct piece *p, uint64_t off, uint64_t len, struct node *layer)
{
    bool was_held = p->hold.held;
    struct encoded data;
    unsigned token = grace_enter(&layer->lookups);
    int r = layer->drv->read_encoded(layer, off, p->copy->flags, &data);

    grace_leave(&layer->lookups, token);
    if (r) {
        p->result->read_failed = r != -ENOTSUP;
        return r;
    }
    p->off = off;
    p->len = len;
    if (!was_held) {
        hold_target(p);
    }
    r = put_encoded(p, &data);
    if (!was_held) {
        range_lock_release(&p->copy->target->ranges, &p->hold);
    }
    free(data.data);
    return r;
}

/* The piece, with what lies between such clusters in parts. */
static int
copy_mixed(struct piece *p)
{
    const struct copy *copy = p->copy;
    uint64_t off = p->off, end = p->off + p->len, part = off;
    uint64_t readable = min_u64(end, copy->source->size);
    int r = 0;

    while (off < readable && !r) {
        struct node *layer;
        struct extent ext;

        r = chain_status(copy->source, NULL, off, readable - off, false, &ext,
                         &layer);
        p->result->read_failed = r != 0;
        if (!r && copy_keeps_encoded(copy, off, &ext, layer)) {
            r = copy_part(p, part, off - part);
            part = off;
            r = r ? r : copy_encoded(p, off, ext.len, layer);
            part += r ? 0 : ext.len;
            r = r == -ENOTSUP ? 0 : r;
        }
        off += ext.len;
    }
    return r ? r : copy_part(p, part, end - part);
}

int
copy_range(const struct copy *copy, uint64_t off, uint64_t len,
           struct copy_result *ret)
{
    struct node *target = copy->target;
    struct piece p = {.copy = copy, .off = off, .result = ret};

    *ret = (struct copy_result){0};
    assert(len <= LIMIT_COPY && off <= target->size);
    p.len = min_u64(len, target->size - off);
    if (!p.len) {
        return 0;
    }
    if (copy->lock_first) {
        hold_target(&p);
    }
    int r = copy->keep_encoded && !copy->known_zero ? copy_mixed(&p)
                                                    : copy_part(&p, off, p.len);

    if (p.hold.held) {
        range_lock_release(&target->ranges, &p.hold);
    }
    return r;
}
