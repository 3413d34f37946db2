// SPDX-License-Identifier: BSD-3-Clause
/*
 * Fuzzes the server's side of NBD: the input is what a client sends.  The
 * handshake takes it in pieces, then every request is parsed and checked.
 *   clang -fsanitize=fuzzer,address -D_GNU_SOURCE -Isrc \
 *     tests/fuzz/nbd_wire.c src/wire/nbd_*.c src/base/bytes.c src/base/mem.c
 */
#include <assert.h>

#include "base/bytes.h"
#include "wire/nbd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct nbd_export_info the_export = {
    .name = "",
    .description = "fuzzed",
    .size = 1 << 20,
    .flags = NBD_FLAG_HAS_FLAGS,
    .min_block = 1,
    .preferred_block = 4096,
    .max_block = NBD_DATA_MAX,
};

static bool
find(struct nbd_export_table *table, const char *name,
     struct nbd_export_info *ret)
{
    *ret = the_export;
    return !*name;
}

static void
list(struct nbd_export_table *table,
     void (*fn)(void *arg, const struct nbd_export_info *info), void *arg)
{
    fn(arg, &the_export);
}

static void
transmit(const struct nbd_session *session, const uint8_t *p, size_t n)
{
    struct nbd_request request;
    const char *text;

    while (n >= nbd_request_size(session) &&
           nbd_request_parse(session, p, &request)) {
        uint64_t payload = nbd_request_payload(session, &request);
        enum nbd_error error = nbd_request_check(session, &request, &text);
        uint8_t head[NBD_HEAD_MAX];

        if (request.type == NBD_CMD_DISC) {
            return;
        }
        /* What passes lies within the export. */
        if (!error) {
            assert(request.offset + request.length <= session->size);
        } else {
            assert(nbd_put_error(head, session, &request, error, text) <=
                   sizeof(head));
        }
        p += nbd_request_size(session);
        n -= nbd_request_size(session);
        if (payload > n) {
            return;
        }
        p += payload;
        n -= payload;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nbd_export_table table = {find, list};
    enum nbd_handshake_result result = NBD_HANDSHAKE_MORE;
    struct nbd_handshake h;
    /* The first byte says how the rest is cut. */
    size_t step = size && data[0] ? data[0] : SIZE_MAX, at = size ? 1 : 0;

    nbd_handshake_start(&h, &table);
    while (result == NBD_HANDSHAKE_MORE && at < size) {
        size_t used;

        h.out.len = 0;
        result =
            nbd_handshake_feed(&h, data + at, min_u64(step, size - at), &used);
        assert(used <= size - at);
        assert(used || result != NBD_HANDSHAKE_MORE);
        at += used;
    }
    if (result == NBD_HANDSHAKE_DONE) {
        transmit(&h.session, data + at, size - at);
    }
    nbd_handshake_free(&h);
    return 0;
}
