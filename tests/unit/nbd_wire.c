// SPDX-License-Identifier: BSD-3-Clause
/*
 * wire/nbd: what the specification says, in literal bytes.  Each conversation
 * is fed whole and byte by byte, which must give the same.
 */
#include "wire/nbd.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "tap.h"

/* Two exports: "a" of 10,000,001 bytes, "ro" read-only with a description. */

static const struct nbd_export_info exports[] = {
    {.cookie = (void *)exports,
     .name = "a",
     .size = 10000001,
     .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH,
     .min_block = 1,
     .preferred_block = 4096,
     .max_block = 32 << 20},
    {.name = "ro",
     .description = "about",
     .size = 512,
     .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY,
     .min_block = 512,
     .preferred_block = 65536,
     .max_block = 32 << 20},
};

static bool
find(struct nbd_export_table *table, const char *name,
     struct nbd_export_info *ret)
{
    for (size_t i = 0; i < ARRAY_LEN(exports); i++) {
        if (!strcmp(exports[i].name, name)) {
            *ret = exports[i];
            return true;
        }
    }
    return false;
}

static void
list(struct nbd_export_table *table,
     void (*fn)(void *arg, const struct nbd_export_info *info), void *arg)
{
    for (size_t i = 0; i < ARRAY_LEN(exports); i++) {
        fn(arg, &exports[i]);
    }
}

static struct nbd_export_table table = {find, list};

/* Byte strings, written as they stand on the wire. */

struct bytes {
    uint8_t p[200000];
    size_t n;
};

static struct bytes in, out, want;

static void
put(struct bytes *b, const void *p, size_t n)
{
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

#define PUT(b, literal) put((b), literal, sizeof(literal) - 1)

static void
put32(struct bytes *b, uint32_t v)
{
    uint8_t p[4];

    st_be32(p, v);
    put(b, p, 4);
}

#define IHAVEOPT "\x49\x48\x41\x56\x45\x4f\x50\x54"
#define REPLY_MAGIC "\x00\x03\xe8\x89\x04\x55\x65\xa9"

static void
put_option(uint32_t option, const void *data, size_t n)
{
    PUT(&in, IHAVEOPT);
    put32(&in, option);
    put32(&in, (uint32_t)n);
    put(&in, data, n);
}

#define OPTION(option, literal) put_option(option, literal, sizeof(literal) - 1)

/* What must come back; @len says how much data follows. */
static void
want_reply(uint32_t option, uint32_t type, uint32_t len)
{
    PUT(&want, REPLY_MAGIC);
    put32(&want, option);
    put32(&want, type);
    put32(&want, len);
}

static struct nbd_handshake h;

/* Feeds `in` in steps of @step; the result, with `out` filled. */
static enum nbd_handshake_result
converse(size_t step)
{
    enum nbd_handshake_result result = NBD_HANDSHAKE_MORE;
    size_t at = 0;

    nbd_handshake_free(&h);
    nbd_handshake_start(&h, &table);
    out.n = 0;
    for (;;) {
        size_t used;

        put(&out, h.out.p, h.out.len);
        h.out.len = 0;
        if (result != NBD_HANDSHAKE_MORE || at == in.n) {
            break;
        }
        result =
            nbd_handshake_feed(&h, in.p + at, min_u64(step, in.n - at), &used);
        CHECK(used <= step);
        at += used;
    }
    in.n = at; /* what is left was not taken */
    return result;
}

/* Begins a conversation with a client that knows fixed newstyle. */
static void
hello(void)
{
    in.n = want.n = 0;
    PUT(&in, "\0\0\0\3");
    PUT(&want, "NBDMAGIC"
               "IHAVEOPT"
               "\0\3");
}

/* The conversation must give `want` and @result, however it is cut. */
static void
check(enum nbd_handshake_result result)
{
    size_t n = in.n;
    const size_t steps[] = {1, 7, n};

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        in.n = n;
        CHECK_INT(converse(steps[i]), result);
        CHECK_INT(out.n, want.n);
        CHECK(out.n == want.n && !memcmp(out.p, want.p, want.n));
    }
}

/* An option that must be refused with @type; the text is the server's. */
static void
check_refused(uint32_t option, const void *data, size_t n, uint32_t type)
{
    in.n = 0;
    PUT(&in, "\0\0\0\3");
    OPTION(NBD_OPT_STRUCTURED_REPLY, "");
    put_option(option, data, n);
    CHECK_INT(converse(in.n), NBD_HANDSHAKE_MORE);
    CHECK(out.n > 18 + 20 + 20);
    if (out.n > 18 + 20 + 20) {
        const uint8_t *p = out.p + 18 + 20;

        CHECK(!memcmp(p, REPLY_MAGIC, 8));
        CHECK_INT(ld_be32(p + 8), option);
        CHECK_INT(ld_be32(p + 12), type);
        CHECK_INT(ld_be32(p + 16), out.n - 18 - 20 - 20);
    }
}

#define REFUSED(option, literal, type)                                         \
    check_refused(option, literal, sizeof(literal) - 1, type)

/* Cases: the handshake. */

static void
client_flags_are_checked(void)
{
    hello();
    check(NBD_HANDSHAKE_MORE);
    hello();
    in.p[3] = 7; /* an unknown flag */
    check(NBD_HANDSHAKE_DROP);
    hello();
    in.p[0] = 0x80;
    check(NBD_HANDSHAKE_DROP);
}

static void
export_name_pads_unless_told_not_to(void)
{
    static const uint8_t zeroes[124];

    hello();
    OPTION(NBD_OPT_EXPORT_NAME, "a");
    PUT(&want, "\0\0\0\0\0\x98\x96\x81\0\5");
    check(NBD_HANDSHAKE_DONE);
    CHECK(h.session.export_cookie == (void *)exports);
    CHECK_INT(h.session.size, 10000001);
    CHECK(!h.session.structured);

    hello();
    in.p[3] = 1;
    OPTION(NBD_OPT_EXPORT_NAME, "a");
    PUT(&want, "\0\0\0\0\0\x98\x96\x81\0\5");
    put(&want, zeroes, 124);
    check(NBD_HANDSHAKE_DONE);

    hello(); /* not fixed newstyle: still good for this one option */
    in.p[3] = 0;
    OPTION(NBD_OPT_EXPORT_NAME, "a");
    PUT(&want, "\0\0\0\0\0\x98\x96\x81\0\5");
    put(&want, zeroes, 124);
    check(NBD_HANDSHAKE_DONE);
}

static void
export_name_that_fails_drops(void)
{
    static const char longest[NBD_STRING_MAX + 1];

    hello();
    OPTION(NBD_OPT_EXPORT_NAME, "no such");
    check(NBD_HANDSHAKE_DROP);
    hello();
    OPTION(NBD_OPT_EXPORT_NAME, "a\0");
    check(NBD_HANDSHAKE_DROP);
    hello();
    put_option(NBD_OPT_EXPORT_NAME, longest, sizeof(longest));
    check(NBD_HANDSHAKE_DROP);
    hello(); /* another option without fixed newstyle */
    in.p[3] = 2;
    OPTION(NBD_OPT_LIST, "");
    check(NBD_HANDSHAKE_DROP);
}

static void
bad_magic_and_huge_options_drop(void)
{
    hello();
    PUT(&in, "IHAVEOPS\0\0\0\3\0\0\0\0");
    check(NBD_HANDSHAKE_DROP);
    hello();
    PUT(&in, IHAVEOPT "\0\0\0\3\0\1\0\1"); /* 65537 bytes, none sent yet */
    check(NBD_HANDSHAKE_DROP);
    hello();
    PUT(&in, IHAVEOPT "\0\0\0\3\xff\xff\xff\xff");
    check(NBD_HANDSHAKE_DROP);
}

static void
too_many_options_drop(void)
{
    hello();
    for (int i = 0; i < NBD_OPTIONS_MAX; i++) {
        OPTION(NBD_OPT_STARTTLS, "");
    }
    CHECK_INT(converse(in.n), NBD_HANDSHAKE_MORE);
    OPTION(NBD_OPT_STARTTLS, "");
    CHECK_INT(converse(in.n), NBD_HANDSHAKE_DROP);
}

static void
abort_is_acknowledged(void)
{
    hello();
    OPTION(NBD_OPT_ABORT, "");
    want_reply(2, 1, 0);
    check(NBD_HANDSHAKE_CLOSE);
}

static void
list_names_every_export(void)
{
    hello();
    OPTION(NBD_OPT_LIST, "");
    want_reply(3, 2, 5);
    PUT(&want, "\0\0\0\1a");
    want_reply(3, 2, 11);
    PUT(&want, "\0\0\0\2roabout");
    want_reply(3, 1, 0);
    check(NBD_HANDSHAKE_MORE);
    REFUSED(NBD_OPT_LIST, "x", 0x80000003);
}

static void
info_answers_what_was_asked(void)
{
    hello();
    OPTION(NBD_OPT_INFO, "\0\0\0\2ro\0\0");
    want_reply(6, 3, 12);
    PUT(&want, "\0\0\0\0\0\0\0\0\2\0\0\3");
    want_reply(6, 1, 0);
    check(NBD_HANDSHAKE_MORE);

    hello(); /* everything, an unknown one, and one twice */
    OPTION(NBD_OPT_INFO, "\0\0\0\2ro\0\5\0\3\0\2\0\1\0\x63\0\3");
    want_reply(6, 3, 12);
    PUT(&want, "\0\0\0\0\0\0\0\0\2\0\0\3");
    want_reply(6, 3, 4);
    PUT(&want, "\0\1ro");
    want_reply(6, 3, 7);
    PUT(&want, "\0\2about");
    want_reply(6, 3, 14);
    PUT(&want, "\0\3\0\0\2\0\0\1\0\0\2\0\0\0");
    want_reply(6, 1, 0);
    check(NBD_HANDSHAKE_MORE);
}

static void
info_refuses_malformed_data(void)
{
    static char long_name[4 + NBD_STRING_MAX + 1 + 2];

    memset(long_name, 'x', sizeof(long_name));
    st_be32(long_name, NBD_STRING_MAX + 1);
    st_be16(long_name + sizeof(long_name) - 2, 0);
    for (uint32_t opt = NBD_OPT_INFO; opt <= NBD_OPT_GO; opt++) {
        REFUSED(opt, "", 0x80000003);
        REFUSED(opt, "\0\0\0", 0x80000003);
        REFUSED(opt, "\0\0\0\1a", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\1", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\1\0", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\1\0\3\0", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\xff\xff\0\3", 0x80000003);
        REFUSED(opt,
                "\xff\xff\xff\xff"
                "a\0\0",
                0x80000003);
        REFUSED(opt, "\0\0\0\2a\0\0\0", 0x80000003); /* a NUL in it */
        REFUSED(opt, "\0\0\0\1b\0\0", 0x80000006);   /* ERR_UNKNOWN */
        REFUSED(opt, "\0\0\0\0\0\0", 0x80000006);    /* no default export */
        check_refused(opt, long_name, sizeof(long_name), 0x80000003);
    }
}

static void
go_enters_transmission(void)
{
    hello();
    OPTION(NBD_OPT_STRUCTURED_REPLY, "");
    want_reply(8, 1, 0);
    OPTION(NBD_OPT_GO, "\0\0\0\1a\0\1\0\3");
    want_reply(7, 3, 12);
    PUT(&want, "\0\0\0\0\0\0\0\x98\x96\x81\0\x85"); /* with SEND_DF */
    want_reply(7, 3, 14);
    PUT(&want, "\0\3\0\0\0\1\0\0\x10\0\2\0\0\0");
    want_reply(7, 1, 0);
    size_t handshake = in.n;

    PUT(&in, "\x25\x60\x95\x13"); /* the first request, not to be taken */
    check(NBD_HANDSHAKE_DONE);
    CHECK_INT(in.n, handshake);
    CHECK(h.session.structured && !h.session.base_allocation);
    CHECK_INT(h.session.flags, 0x85);
}

static void
structured_reply_once_and_without_data(void)
{
    REFUSED(NBD_OPT_STRUCTURED_REPLY, "", 0x80000003); /* the second */
    REFUSED(NBD_OPT_STRUCTURED_REPLY, "x", 0x80000003);
}

static void
extended_headers_take_precedence(void)
{
    hello();
    OPTION(NBD_OPT_EXTENDED_HEADERS, "");
    want_reply(11, 1, 0);
    OPTION(NBD_OPT_EXPORT_NAME, "a");
    PUT(&want, "\0\0\0\0\0\x98\x96\x81\0\x85");
    check(NBD_HANDSHAKE_DONE);
    CHECK(h.session.extended && h.session.structured);
    REFUSED(NBD_OPT_EXTENDED_HEADERS, "x", 0x80000003);

    in.n = 0;
    PUT(&in, "\0\0\0\3");
    OPTION(NBD_OPT_EXTENDED_HEADERS, "");
    OPTION(NBD_OPT_STRUCTURED_REPLY, "");
    CHECK_INT(converse(in.n), NBD_HANDSHAKE_MORE);
    CHECK_INT(ld_be32(out.p + 18 + 20 + 12), 0x8000000a); /* EXT_HEADER_REQD */
}

static void
unsupported_options_are_refused(void)
{
    REFUSED(NBD_OPT_STARTTLS, "", 0x80000001);
    REFUSED(4, "", 0x80000001); /* PEEK_EXPORT, withdrawn */
    REFUSED(0, "abc", 0x80000001);
    REFUSED(0xffffffff, "abc", 0x80000001);
}

#define BASE "base:allocation"

static void
list_meta_context_matches_queries(void)
{
    static const struct {
        const char *data;
        size_t n;
        bool match;
    } cases[] = {
#define CASE(literal, match) {literal, sizeof(literal) - 1, match}
        CASE("\0\0\0\1a\0\0\0\0", true),
        CASE("\0\0\0\1a\0\0\0\1\0\0\0\5base:", true),
        CASE("\0\0\0\1a\0\0\0\1\0\0\0\x0f" BASE, true),
        CASE("\0\0\0\1a\0\0\0\2\0\0\0\3x-y\0\0\0\x0f" BASE, true),
        CASE("\0\0\0\1a\0\0\0\1\0\0\0\x11qemu:dirty-bitmap", false),
        CASE("\0\0\0\1a\0\0\0\1\0\0\0\6base:x", false),
#undef CASE
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        hello();
        OPTION(NBD_OPT_STRUCTURED_REPLY, "");
        want_reply(8, 1, 0);
        put_option(NBD_OPT_LIST_META_CONTEXT, cases[i].data, cases[i].n);
        if (cases[i].match) {
            want_reply(9, 4, 19);
            PUT(&want, "\0\0\0\0" BASE);
        }
        want_reply(9, 1, 0);
        check(NBD_HANDSHAKE_MORE);
    }
}

static void
set_meta_context_counts_for_its_export(void)
{
    hello();
    OPTION(NBD_OPT_STRUCTURED_REPLY, "");
    want_reply(8, 1, 0);
    OPTION(NBD_OPT_SET_META_CONTEXT, "\0\0\0\1a\0\0\0\1\0\0\0\x0f" BASE);
    want_reply(10, 4, 19);
    PUT(&want, "\0\0\0\1" BASE);
    want_reply(10, 1, 0);
    size_t n = in.n, n_want = want.n;

    OPTION(NBD_OPT_EXPORT_NAME, "a");
    PUT(&want, "\0\0\0\0\0\x98\x96\x81\0\x85");
    check(NBD_HANDSHAKE_DONE);
    CHECK(h.session.base_allocation);

    in.n = n; /* entering another export than the one it was set for */
    want.n = n_want;
    OPTION(NBD_OPT_EXPORT_NAME, "ro");
    PUT(&want, "\0\0\0\0\0\0\2\0\0\x83");
    check(NBD_HANDSHAKE_DONE);
    CHECK(!h.session.base_allocation);

    /* Later settings replace it: nothing, a wildcard, a failing one. */
    static const struct {
        const char *data;
        size_t n;
    } later[] = {{"\0\0\0\1a\0\0\0\0", 9},
                 {"\0\0\0\1a\0\0\0\1\0\0\0\5base:", 18},
                 {"\0\0\0\1b\0\0\0\0", 9},
                 {"junk", 4}};

    for (size_t i = 0; i < ARRAY_LEN(later); i++) {
        in.n = n;
        put_option(NBD_OPT_SET_META_CONTEXT, later[i].data, later[i].n);
        OPTION(NBD_OPT_EXPORT_NAME, "a");
        CHECK_INT(converse(in.n), NBD_HANDSHAKE_DONE);
        CHECK(!h.session.base_allocation);
    }
}

static void
meta_context_refuses_malformed_data(void)
{
    for (uint32_t opt = NBD_OPT_LIST_META_CONTEXT;
         opt <= NBD_OPT_SET_META_CONTEXT; opt++) {
        REFUSED(opt, "", 0x80000003);
        REFUSED(opt, "\0\0\0\1a", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\0\0\1", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\0\0\1\0\0\0\5base", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\0\0\1\0\0\0\5base:x", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\xff\xff\xff\xff", 0x80000003);
        REFUSED(opt, "\0\0\0\1a\0\0\0\1\xff\xff\xff\xff", 0x80000003);
        REFUSED(opt, "\0\0\0\1b\0\0\0\0", 0x80000006);

        in.n = 0; /* without structured replies */
        PUT(&in, "\0\0\0\3");
        OPTION(opt, "\0\0\0\1a\0\0\0\0");
        CHECK_INT(converse(in.n), NBD_HANDSHAKE_MORE);
        CHECK_INT(ld_be32(out.p + 18 + 12), 0x80000003);
    }
}

/* Cases: transmission. */

static const struct nbd_session simple = {.size = 10000001};
static const struct nbd_session structured = {
    .size = 10000001, .structured = true, .base_allocation = true};
static const struct nbd_session extended = {.size = 10000001,
                                            .structured = true,
                                            .extended = true,
                                            .base_allocation = true};

static void
request_header_is_parsed(void)
{
    static const uint8_t header[] = "\x25\x60\x95\x13\0\1\0\6"
                                    "\1\2\3\4\5\6\7\x8\0\0\0\1\0\0\0\2"
                                    "\xff\0\0\1";
    struct nbd_request r;
    uint8_t bad[NBD_REQUEST_SIZE];

    CHECK_INT(nbd_request_size(&simple), 28);
    CHECK(nbd_request_parse(&structured, header, &r));
    CHECK_INT(r.flags, 1);
    CHECK_INT(r.type, 6);
    CHECK(r.cookie == 0x0102030405060708);
    CHECK_INT(r.offset, 0x100000002);
    CHECK_INT(r.length, 0xff000001);
    CHECK_INT(nbd_request_payload(&simple, &r), 0);
    r.type = NBD_CMD_WRITE;
    CHECK_INT(nbd_request_payload(&simple, &r), 0xff000001);
    memcpy(bad, header, sizeof(bad));
    bad[0] = 0x26;
    CHECK(!nbd_request_parse(&simple, bad, &r));
}

static void
extended_header_is_parsed(void)
{
    static const uint8_t header[] = "\x21\xe4\x1c\x71\0\x20\0\1"
                                    "\1\2\3\4\5\6\7\x8\0\0\0\1\0\0\0\2"
                                    "\0\0\0\3\0\0\0\4";
    static const uint8_t compact[32] = "\x25\x60\x95\x13";
    struct nbd_request r;

    CHECK_INT(nbd_request_size(&extended), 32);
    CHECK(nbd_request_parse(&extended, header, &r));
    CHECK_INT(r.flags, 0x20);
    CHECK_INT(r.type, 1);
    CHECK_INT(r.offset, 0x100000002);
    CHECK_INT(r.length, 0x300000004);
    CHECK_INT(nbd_request_payload(&extended, &r), 0x300000004);
    r.flags = 0;
    CHECK_INT(nbd_request_payload(&extended, &r), 0);
    CHECK(!nbd_request_parse(&extended, compact, &r));
    CHECK(!nbd_request_parse(&simple, header, &r));
}

static void
extended_payload_flag_is_a_writes(void)
{
    struct nbd_request r = {.type = NBD_CMD_WRITE, .length = 1};
    const char *text;

    CHECK_INT(nbd_request_check(&extended, &r, &text), 22);
    r.flags = NBD_CMD_FLAG_PAYLOAD_LEN;
    CHECK_INT(nbd_request_check(&extended, &r, &text), 0);
    for (uint16_t type = 0; type < 10; type++) {
        r.type = type;
        CHECK_INT(nbd_request_check(&extended, &r, &text),
                  type == NBD_CMD_WRITE ? 0 : 22);
    }
    r = (struct nbd_request){.type = NBD_CMD_TRIM, .length = 1ULL << 32};
    CHECK_INT(nbd_request_check(&extended, &r, &text), 22);
    struct nbd_session huge = {.size = 1ULL << 40, .extended = true};

    CHECK_INT(nbd_request_check(&huge, &r, &text), 0);
}

struct request_case {
    uint16_t type, flags;
    uint64_t offset;
    uint32_t length;
    int error; /* on a writable export with everything negotiated */
};

static const struct request_case request_cases[] = {
    /* type, flags, offset, length, error; the size is 10,000,001 */
    {0, 0, 0, 10000001, 0},
    {0, 0, 10000001, 0, 0},
    {0, 0, 10000000, 2, 22}, /* EINVAL past the end */
    {0, 0, 10000002, 0, 22},
    {0, 0, UINT64_MAX, 2, 22}, /* the sum wraps */
    {0, 1, 0, 1, 0},           /* FUA is valid with every command */
    {0, 2, 0, 1, 22},          /* NO_HOLE is not a read's */
    {0, 4, 0, 1, 0},           /* DF */
    {0, 8, 0, 1, 22},          /* REQ_ONE */
    {0, 16, 0, 1, 22},         /* FAST_ZERO */
    {0, 32, 0, 1, 22},         /* PAYLOAD_LEN: no extended headers */
    {0, 0x8000, 0, 1, 22},
    {1, 0, 0, 10000001, 0},
    {1, 1, 10000000, 1, 0},
    {1, 0, 10000000, 2, 28}, /* ENOSPC past the end */
    {1, 0, UINT64_MAX, 1, 28},
    {1, 2, 0, 1, 22},
    {1, 4, 0, 1, 22},
    {1, 16, 0, 1, 22},
    {1, 32, 0, 1, 22},
    {3, 0, 0, 0, 0},
    {3, 1, 0, 0, 0},
    {3, 2, 0, 0, 22},
    {3, 0, 1, 0, 22}, /* reserved fields */
    {3, 0, 0, 1, 22},
    {4, 0, 0, 10000001, 0},
    {4, 1, 0, 1, 0},
    {4, 2, 0, 1, 22},
    {4, 0, 10000001, 1, 22}, /* EINVAL for a trim past the end */
    {5, 0, 0, 10000001, 0},
    {5, 1, 0, 1, 0},
    {5, 4, 0, 1, 22},
    {5, 0, 10000001, 1, 22},
    {6, 0, 0, 10000001, 0},
    {6, 1 | 2 | 16, 0, 1, 0},
    {6, 4, 0, 1, 22},
    {6, 8, 0, 1, 22},
    {6, 0, 10000001, 1, 28},
    {7, 0, 0, 10000001, 0},
    {7, 8, 0, 1, 0},
    {7, 1, 0, 1, 0},
    {7, 4, 0, 1, 22},
    {7, 0, 0, 0, 22},
    {7, 0, 10000001, 1, 22},
    {8, 0, 0, 0, 22}, /* RESIZE, an extension */
    {0xffff, 0, 0, 0, 22},
    {9, 0xffff, 0, 0, 22},
};

static void
requests_are_checked(void)
{
    struct nbd_session s = {
        .size = 10000001, .structured = true, .base_allocation = true};
    const char *text;

    for (size_t i = 0; i < ARRAY_LEN(request_cases); i++) {
        const struct request_case *c = &request_cases[i];
        struct nbd_request r = {.type = c->type,
                                .flags = c->flags,
                                .offset = c->offset,
                                .length = c->length};

        int error = (int)nbd_request_check(&s, &r, &text);

        CHECK_INT(error, c->error);
        CHECK((text != NULL) == (c->error != 0));
        if (error != c->error) {
            printf("# request case %zu\n", i);
        }
    }
}

static void
read_only_refuses_what_writes(void)
{
    struct nbd_session s = {.size = 512, .flags = NBD_FLAG_READ_ONLY};
    static const int errors[] = {0, 1, 0, 0, 1, 0, 1, 22};
    const char *text;

    for (uint16_t type = 0; type < ARRAY_LEN(errors); type++) {
        struct nbd_request r = {.type = type};

        CHECK_INT(nbd_request_check(&s, &r, &text), errors[type]);
    }
}

static void
what_was_not_negotiated_is_refused(void)
{
    struct nbd_session s = {.size = 512};
    struct nbd_request df = {.flags = NBD_CMD_FLAG_DF};
    struct nbd_request status = {.type = NBD_CMD_BLOCK_STATUS, .length = 1};
    const char *text;

    CHECK_INT(nbd_request_check(&s, &df, &text), 22);
    CHECK_INT(nbd_request_check(&s, &status, &text), 22);
    s.structured = true;
    CHECK_INT(nbd_request_check(&s, &df, &text), 0);
    CHECK_INT(nbd_request_check(&s, &status, &text), 22);
}

static void
sizes_have_a_limit(void)
{
    struct nbd_session s = {.size = 1ULL << 40, .structured = true};
    struct nbd_request r = {.length = 32 << 20};
    const char *text;

    CHECK_INT(nbd_request_check(&s, &r, &text), 0);
    r.length++;
    CHECK_INT(nbd_request_check(&s, &r, &text), 22);
    r.flags = NBD_CMD_FLAG_DF;
    CHECK_INT(nbd_request_check(&s, &r, &text), 75); /* EOVERFLOW */
    r.flags = 0;
    r.type = NBD_CMD_WRITE;
    CHECK_INT(nbd_request_check(&s, &r, &text), 22);
    r.type = NBD_CMD_WRITE_ZEROES; /* no payload, no limit */
    r.length = UINT32_MAX;
    CHECK_INT(nbd_request_check(&s, &r, &text), 0);
}

#define EXPECT(n, literal)                                                     \
    do {                                                                       \
        size_t expect_n = (n);                                                 \
        CHECK_INT(expect_n, sizeof(literal) - 1);                              \
        CHECK(!memcmp(p, literal, sizeof(literal) - 1));                       \
    } while (0)
#define COOKIE "\x11\x22\x33\x44\x55\x66\x77\x88"

static const struct nbd_request read_512 = {
    .cookie = 0x1122334455667788, .offset = 0x100000200, .length = 512};
static const struct nbd_request read_0 = {.cookie = 0x1122334455667788};
static const struct nbd_request flush = {.type = NBD_CMD_FLUSH,
                                         .cookie = 0x1122334455667788};

static void
simple_replies_are_built(void)
{
    uint8_t p[NBD_HEAD_MAX];

    EXPECT(nbd_put_ok(p, &simple, &flush), "\x67\x44\x66\x98\0\0\0\0" COOKIE);
    EXPECT(nbd_put_data(p, &simple, &read_512),
           "\x67\x44\x66\x98\0\0\0\0" COOKIE);
    EXPECT(nbd_put_data(p, &simple, &read_0),
           "\x67\x44\x66\x98\0\0\0\0" COOKIE);
    EXPECT(nbd_put_error(p, &simple, &read_512, NBD_ESHUTDOWN, "text"),
           "\x67\x44\x66\x98\0\0\0\x6c" COOKIE);
}

static void
structured_replies_are_built(void)
{
    uint8_t p[NBD_HEAD_MAX];
    const struct nbd_session *s = &structured;

    EXPECT(nbd_put_ok(p, s, &flush), "\x67\x44\x66\x98\0\0\0\0" COOKIE);
    EXPECT(nbd_put_data(p, s, &read_0),
           "\x66\x8e\x33\xef\0\1\0\0" COOKIE "\0\0\0\0");
    EXPECT(nbd_put_data(p, s, &read_512),
           "\x66\x8e\x33\xef\0\1\0\1" COOKIE "\0\0\2\x8\0\0\0\1\0\0\2\0");
    EXPECT(nbd_put_hole(p, s, &read_512), "\x66\x8e\x33\xef\0\1\0\2" COOKIE
                                          "\0\0\0\x0c\0\0\0\1\0\0\2\0\0\0\2\0");
    EXPECT(nbd_put_error(p, s, &flush, NBD_EINVAL, NULL),
           "\x66\x8e\x33\xef\0\1\x80\1" COOKIE "\0\0\0\6\0\0\0\x16\0\0");
    EXPECT(nbd_put_error(p, s, &flush, NBD_ENOSPC, "full"),
           "\x66\x8e\x33\xef\0\1\x80\1" COOKIE "\0\0\0\x0a\0\0\0\x1c\0\4full");
    EXPECT(nbd_put_status(p, s, &read_512, 1, 2),
           "\x66\x8e\x33\xef\0\1\0\5" COOKIE "\0\0\0\x14\0\0\0\1");
    EXPECT(nbd_put_extent(p, s, 4096, 3), "\0\0\x10\0\0\0\0\3");
}

static void
extended_replies_are_built(void)
{
    uint8_t p[NBD_HEAD_MAX];
    char text[NBD_ERROR_TEXT_MAX + 2] = {0};
    const struct nbd_session *s = &extended;

#define EXT "\x6e\x8a\x27\x8c\0\1"
#define OFFSET "\0\0\0\1\0\0\2\0"
    EXPECT(nbd_put_ok(p, s, &flush),
           EXT "\0\0" COOKIE "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    EXPECT(nbd_put_data(p, s, &read_512),
           EXT "\0\1" COOKIE OFFSET "\0\0\0\0\0\0\2\x8" OFFSET);
    EXPECT(nbd_put_hole(p, s, &read_512),
           EXT "\0\2" COOKIE OFFSET "\0\0\0\0\0\0\0\x0c" OFFSET "\0\0\2\0");
    EXPECT(nbd_put_error(p, s, &read_512, NBD_ENOSPC, "full"),
           EXT "\x80\1" COOKIE OFFSET "\0\0\0\0\0\0\0\x0a\0\0\0\x1c\0\4full");
    EXPECT(nbd_put_status(p, s, &read_512, 1, 2),
           EXT "\0\6" COOKIE OFFSET "\0\0\0\0\0\0\0\x28\0\0\0\1\0\0\0\2");
    EXPECT(nbd_put_extent(p, s, 0x500000000, 3),
           "\0\0\0\5\0\0\0\0\0\0\0\0\0\0\0\3");
    memset(text, 'x', sizeof(text) - 1);
    CHECK_INT(nbd_put_error(p, s, &flush, NBD_EIO, text), NBD_HEAD_MAX);
}

static void
errnos_have_their_numbers(void)
{
    static const int pairs[][2] = {
        {0, 0},           {EPERM, 1},   {EACCES, 1},     {EROFS, 1},
        {EIO, 5},         {ENOMEM, 12}, {EINVAL, 22},    {ENOSPC, 28},
        {EDQUOT, 28},     {EFBIG, 28},  {EOVERFLOW, 75}, {ENOTSUP, 95},
        {ESHUTDOWN, 108}, {ENOENT, 5},  {ETIMEDOUT, 5},
    };

    for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
        CHECK_INT(nbd_error_from_errno(pairs[i][0]), pairs[i][1]);
        CHECK_INT(nbd_error_from_errno(-pairs[i][0]), pairs[i][1]);
    }
}

int
main(void)
{
    tap_run("client flags are checked", client_flags_are_checked);
    tap_run("EXPORT_NAME pads unless told not to",
            export_name_pads_unless_told_not_to);
    tap_run("EXPORT_NAME that fails drops", export_name_that_fails_drops);
    tap_run("bad magic and huge options drop", bad_magic_and_huge_options_drop);
    tap_run("too many options drop", too_many_options_drop);
    tap_run("ABORT is acknowledged", abort_is_acknowledged);
    tap_run("LIST names every export", list_names_every_export);
    tap_run("INFO answers what was asked", info_answers_what_was_asked);
    tap_run("INFO and GO refuse malformed data", info_refuses_malformed_data);
    tap_run("GO enters transmission", go_enters_transmission);
    tap_run("STRUCTURED_REPLY comes once and without data",
            structured_reply_once_and_without_data);
    tap_run("EXTENDED_HEADERS take precedence",
            extended_headers_take_precedence);
    tap_run("unsupported options are refused", unsupported_options_are_refused);
    tap_run("LIST_META_CONTEXT matches queries",
            list_meta_context_matches_queries);
    tap_run("SET_META_CONTEXT counts for its export",
            set_meta_context_counts_for_its_export);
    tap_run("meta contexts refuse malformed data",
            meta_context_refuses_malformed_data);
    tap_run("a request header is parsed", request_header_is_parsed);
    tap_run("requests are checked", requests_are_checked);
    tap_run("a read-only export refuses what writes",
            read_only_refuses_what_writes);
    tap_run("what was not negotiated is refused",
            what_was_not_negotiated_is_refused);
    tap_run("sizes have a limit", sizes_have_a_limit);
    tap_run("an extended header is parsed", extended_header_is_parsed);
    tap_run("the payload flag is a write's", extended_payload_flag_is_a_writes);
    tap_run("simple replies are built", simple_replies_are_built);
    tap_run("structured replies are built", structured_replies_are_built);
    tap_run("extended replies are built", extended_replies_are_built);
    tap_run("errnos have their numbers", errnos_have_their_numbers);
    nbd_handshake_free(&h);
    return tap_done();
}
