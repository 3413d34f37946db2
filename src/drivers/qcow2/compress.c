// SPDX-License-Identifier: BSD-3-Clause
/*
 * Compressed clusters ("Compressed Clusters Descriptor"): reading them, and
 * taking them over from another image as they are.
 *
 * Decompression runs off the loop: 64 KiB take a fraction of a millisecond,
 * which other disks' guests would feel.  The last few clusters are kept, since
 * small reads ask for the same one again and again; a compressed cluster never
 * changes while its entry stays.
 *
 * Several of them share a host cluster, which counts each (alloc.c).  What is
 * written begins on a sector, so that no write touches one that is there.
 */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "drivers/qcow2/qcow2.h"

void
qcow2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_off,
                       uint64_t *ret_len)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t off = entry & ((1ULL << x) - 1);
    uint64_t more = entry >> x & ((1ULL << (62 - x)) - 1);

    *ret_off = off;
    *ret_len = (more + 1) * SECTOR - (off & (SECTOR - 1));
}

struct inflate_call {
    const unsigned char *in;
    unsigned char *out;
    size_t in_len, out_len;
    unsigned compression;
    int result;
};

/* A raw deflate stream, window of 4 KiB; what follows it is not ours. */
static int
inflate_deflate(struct inflate_call *c)
{
    z_stream z = {.next_in = (unsigned char *)(uintptr_t)c->in,
                  .avail_in = (unsigned)c->in_len,
                  .next_out = c->out,
                  .avail_out = (unsigned)c->out_len};

    if (inflateInit2(&z, -12) != Z_OK) {
        return -ENOMEM;
    }
    int r = inflate(&z, Z_FINISH);

    inflateEnd(&z);
    return (r == Z_STREAM_END || r == Z_BUF_ERROR || r == Z_OK) && !z.avail_out
               ? 0
               : -EIO;
}

static int
inflate_zstd(struct inflate_call *c)
{
    ZSTD_inBuffer in = {c->in, c->in_len, 0};
    ZSTD_outBuffer out = {c->out, c->out_len, 0};
    ZSTD_DStream *z = ZSTD_createDStream();

    if (!z) {
        return -ENOMEM;
    }
    while (out.pos < out.size) {
        size_t before_in = in.pos, before_out = out.pos;
        size_t r = ZSTD_decompressStream(z, &out, &in);

        if (ZSTD_isError(r) || (in.pos == before_in && out.pos == before_out)) {
            break;
        }
    }
    ZSTD_freeDStream(z);
    return out.pos == out.size ? 0 : -EIO;
}

static void
inflate_in_worker(void *arg)
{
    struct inflate_call *c = arg;

    c->result = c->compression ? inflate_zstd(c) : inflate_deflate(c);
}

/* What the entry names; the caller frees it. */
static int
read_bytes(struct qcow2 *q, uint64_t entry, unsigned flags,
           struct encoded *ret)
{
    uint64_t off, len;

    qcow2_compressed_range(q, entry, &off, &len);
    auto_free unsigned char *data = try_alloc(len);
    struct iovec iov = {data, len};

    if (!data) {
        return -ENOMEM;
    }
    if (off >= q->node->file->child->size) {
        return -EIO;
    }
    int r = node_read(q->node->file->child, off, sg_one(&iov), flags);

    if (!r) {
        *ret = (struct encoded){take_ptr(data), len, (uint32_t)q->cluster_size,
                                q->compression};
    }
    return r;
}

static int
decompress(struct qcow2 *q, uint64_t entry, unsigned char *out, unsigned flags)
{
    struct encoded in;
    int r = read_bytes(q, entry, flags, &in);

    if (r) {
        return r;
    }
    struct inflate_call call = {.in = in.data,
                                .out = out,
                                .in_len = in.len,
                                .out_len = q->cluster_size,
                                .compression = q->compression};

    offload(graph_loop(q->node->graph), &q->workers, inflate_in_worker, &call);
    free(in.data);
    return call.result;
}

static struct plain_cluster *
find_plain(struct qcow2 *q, uint64_t entry)
{
    for (int i = 0; i < PLAIN_SLOTS; i++) {
        if (q->plain[i].entry == entry) {
            q->plain[i].used = ++q->stamp;
            return &q->plain[i];
        }
    }
    return NULL;
}

static void
keep_plain(struct qcow2 *q, uint64_t entry, unsigned char *data)
{
    struct plain_cluster *oldest = &q->plain[0];

    for (int i = 1; i < PLAIN_SLOTS; i++) {
        if (q->plain[i].used < oldest->used) {
            oldest = &q->plain[i];
        }
    }
    free(oldest->data);
    *oldest = (struct plain_cluster){entry, data, ++q->stamp};
}

void
qcow2_forget_plain(struct qcow2 *q, uint64_t off, uint64_t len)
{
    for (int i = 0; i < PLAIN_SLOTS; i++) {
        struct plain_cluster *plain = &q->plain[i];
        uint64_t at = 0, n = 0;

        if (plain->entry) {
            qcow2_compressed_range(q, plain->entry, &at, &n);
        }
        if (at < off + len && off < at + n) {
            free(plain->data);
            *plain = (struct plain_cluster){0};
        }
    }
}

void
qcow2_compress_fini(struct qcow2 *q)
{
    for (int i = 0; i < PLAIN_SLOTS; i++) {
        free(q->plain[i].data);
    }
}

/* The range lies within one cluster: map() never joins compressed ones. */
int
qcow2_read_compressed(struct node *node, uint64_t off, struct sg sg,
                      unsigned flags)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t entry;
    unsigned n;
    int r = qcow2_lookup(q, off, &entry, 1, &n);

    if (r) {
        return r;
    }
    if (entry_kind(q, entry) != C_COMPRESSED) {
        return -EAGAIN; /* rewritten since it was mapped: io.c maps again */
    }
    struct plain_cluster *kept = find_plain(q, entry);

    if (kept) {
        sg_copy_from(sg, kept->data + in_cluster(q, off));
        return 0;
    }
    unsigned char *out = try_alloc(q->cluster_size);

    if (!out) {
        return -ENOMEM;
    }
    r = decompress(q, entry, out, flags);
    if (r) {
        free(out);
        return r;
    }
    sg_copy_from(sg, out + in_cluster(q, off));
    keep_plain(q, entry, out);
    return 0;
}

/* Taking over. */

int
qcow2_read_encoded(struct node *node, uint64_t off, unsigned flags,
                   struct encoded *ret)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t entry;
    unsigned n;
    int r = qcow2_lookup(q, off, &entry, 1, &n);

    if (!r && entry_kind(q, entry) != C_COMPRESSED) {
        r = -ENOTSUP;
    }
    return r ? r : read_bytes(q, entry, flags, ret);
}

/* The entry for @len bytes at @off, which lie on sectors; 0: there is none. */
static uint64_t
entry_of(const struct qcow2 *q, uint64_t off, uint64_t len)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t more = len / SECTOR - 1;

    return off >> x || more >> (62 - x)
               ? 0
               : ENTRY_COMPRESSED | more << x | off;
}

static int
write_packed(struct qcow2 *q, uint64_t off, uint64_t host,
             const struct encoded *data, uint64_t len, unsigned flags)
{
    static const unsigned char zeroes[SECTOR];
    struct iovec iov[2] = {{data->data, data->len},
                           {(void *)(uintptr_t)zeroes, len - data->len}};
    struct sg sg = {.iov = iov, .len = len};
    uint64_t entry = entry_of(q, host, len);
    int r = entry ? node_write(q->node->file->child, host, sg, flags, NULL)
                  : -ENOTSUP;

    return r ? r : qcow2_set_entry(q, off, entry);
}

int
qcow2_write_encoded(struct node *node, uint64_t off,
                    const struct encoded *data, unsigned flags,
                    struct range_hold *hold)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t len = align_up(data->len, SECTOR), host;

    if (data->method != q->compression ||
        data->cluster_size != q->cluster_size || !len ||
        len > q->cluster_size) {
        return -ENOTSUP;
    }
    range_lock_widen(&node->ranges, hold, off, off + q->cluster_size);
    int r = qcow2_alloc_packed(q, len, &host);

    if (r) {
        return r;
    }
    r = write_packed(q, off, host, data, len, flags);
    if (r) { /* where this fails too, they leak */
        uint64_t first = align_down(host, q->cluster_size);

        qcow2_unalloc(q, first,
                      div_up(host + len - first, q->cluster_size));
    }
    return r;
}
