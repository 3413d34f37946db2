// SPDX-License-Identifier: BSD-3-Clause
/*
 * Fuzzes the server's side of NBD: the input is what a client sends.  The
 * handshake takes it in pieces, then every request is parsed and checked.
 * With SLUICE_FUZZ_MAIN it replays files, so that the corpus is a test.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"
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

#ifdef SLUICE_FUZZ_MAIN
int
main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        static uint8_t data[1 << 20];
        FILE *f = fopen(argv[i], "rb");

        if (!f) {
            perror(argv[i]);
            return 1;
        }
        size_t n = fread(data, 1, sizeof(data), f);

        fclose(f);
        /* An exact copy, so that reading past its end is seen. */
        auto_free uint8_t *copy = xmalloc(n);

        memcpy(copy, data, n);
        LLVMFuzzerTestOneInput(copy, n);
    }
    return 0;
}
#endif
