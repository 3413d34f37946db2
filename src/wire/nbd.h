// SPDX-License-Identifier: BSD-3-Clause
/*
 * NBD, the server's side of the wire: bytes in, structures out, and builders
 * for what goes back.  No I/O and no waiting, so that a fuzzer needs neither
 * sockets nor a loop.
 *
 * The authority is the NBD specification (NetworkBlockDevice/nbd,
 * doc/proto.md); comments name its sections as "spec, <section>".  All
 * integers on the wire are big-endian.
 *
 * Use: nbd_handshake_start(), then nbd_handshake_feed() with whatever bytes
 * came, sending `out` after each call, until it says otherwise than MORE.
 * After NBD_HANDSHAKE_DONE each request is nbd_request_size() bytes for
 * nbd_request_parse(), followed by nbd_request_payload() bytes of data.
 */
#ifndef SLUICE_WIRE_NBD_H
#define SLUICE_WIRE_NBD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/nbd_proto.h"

/* Every limit on what a peer chooses. */
enum nbd_limits {
    NBD_STRING_MAX = 4096,      /* spec, Conventions */
    NBD_OPTION_MAX = 64 * 1024, /* an option's data; longer: drop */
    NBD_OPTIONS_MAX = 1024,     /* options a handshake; more: drop */
    NBD_DATA_MAX = 32 << 20,    /* the payload of a read or a write */
    NBD_SKIP_MAX = 64 << 20,    /* a refused write's payload; longer: drop */
};

enum nbd_sizes {
    NBD_GREETING_SIZE = 18,
    NBD_REQUEST_SIZE = 28,
    NBD_EXTENDED_REQUEST_SIZE = 32,
    NBD_SIMPLE_REPLY_SIZE = 16,
    NBD_CHUNK_SIZE = 20, /* a structured reply chunk's header */
    NBD_EXTENDED_CHUNK_SIZE = 32,
    NBD_EXTENT_SIZE_MAX = 16, /* of nbd_put_extent() */
    NBD_ERROR_TEXT_MAX = 96,
    /* The longest header that a builder makes: an error. */
    NBD_HEAD_MAX = NBD_EXTENDED_CHUNK_SIZE + 6 + NBD_ERROR_TEXT_MAX,
};

/* The number that SET_META_CONTEXT gives to base:allocation. */
enum { NBD_CONTEXT_BASE_ALLOCATION = 1 };

/* The number for an errno of either sign; what the spec has no number for is
 * NBD_EIO. */
enum nbd_error nbd_error_from_errno(int err);

/* What a client is told about an export. */
struct nbd_export_info {
    void *cookie; /* the table's own handle; comes back in the session */
    const char *name, *description; /* NULL or "": no description */
    uint64_t size;
    uint16_t flags; /* transmission flags, without SEND_DF */
    uint32_t min_block, preferred_block, max_block;
};

/* Where the handshake looks exports up.  Neither function may yield. */
struct nbd_export_table {
    bool (*find)(struct nbd_export_table *table, const char *name,
                 struct nbd_export_info *ret);
    void (*list)(struct nbd_export_table *table,
                 void (*fn)(void *arg, const struct nbd_export_info *info),
                 void *arg);
};

/* What a handshake has agreed on. */
struct nbd_session {
    void *export_cookie;
    uint64_t size;
    uint16_t flags;
    uint32_t min_block; /* as advertised */
    bool structured;    /* replies come in chunks */
    bool extended;      /* headers are the long ones; implies `structured` */
    bool base_allocation;
};

/* Bytes to send, a growing array. */
struct nbd_out {
    uint8_t *p;
    size_t len, cap;
};

enum nbd_handshake_result {
    NBD_HANDSHAKE_MORE,  /* send `out`, then feed what is left and more */
    NBD_HANDSHAKE_DONE,  /* send `out`; transmission begins: see `session` */
    NBD_HANDSHAKE_CLOSE, /* send `out`, then close */
    NBD_HANDSHAKE_DROP,  /* the peer broke the protocol: close at once */
};

struct nbd_handshake {
    struct nbd_export_table *exports;
    struct nbd_out out; /* the caller sets len to 0 once it was sent */
    struct nbd_session session;

    /* Private from here. */
    enum { NBD_AT_FLAGS, NBD_AT_OPTION, NBD_AT_DATA, NBD_AT_END } state;
    uint8_t *in; /* what has come of the state's `need` bytes */
    size_t have, need, cap;
    uint32_t option;
    unsigned n_options;
    bool fixed, no_zeroes;
    char *context_export; /* whose base:allocation was set; NULL: none */
};

/* Puts the greeting into `out`.  @exports must outlive the handshake. */
void nbd_handshake_start(struct nbd_handshake *h,
                         struct nbd_export_table *exports);
void nbd_handshake_free(struct nbd_handshake *h); /* the contents only */
/*
 * Takes bytes, at most to the end of one option, and says in *ret_used how
 * many; what is left is the next option's or, after DONE, the first request's.
 */
enum nbd_handshake_result nbd_handshake_feed(struct nbd_handshake *h,
                                             const uint8_t *p, size_t n,
                                             size_t *ret_used);

struct nbd_request {
    uint16_t flags, type;
    uint64_t cookie, offset, length;
};

/* Bytes of a request's header. */
size_t nbd_request_size(const struct nbd_session *session);
/* Reads such a header; false where the magic is wrong: drop. */
bool nbd_request_parse(const struct nbd_session *session, const uint8_t *p,
                       struct nbd_request *ret);
/* Bytes of data behind the header; more than NBD_SKIP_MAX: drop. */
uint64_t nbd_request_payload(const struct nbd_session *session,
                             const struct nbd_request *request);
/*
 * Whether the session allows the request: NBD_OK, or the error to answer, with
 * *ret_text (static) for people.  The payload of a refused request still
 * comes.  NBD_CMD_DISC is the caller's, and has no range to check.
 */
enum nbd_error nbd_request_check(const struct nbd_session *session,
                                 const struct nbd_request *request,
                                 const char **ret_text);

/*
 * Builders: each writes an answer's header into @p, at most NBD_HEAD_MAX
 * bytes, in the form that the session agreed on, and returns its size.  Every
 * answer is one header and what follows it from the caller's own memory.
 */

/* Success; nothing follows. */
size_t nbd_put_ok(uint8_t *p, const struct nbd_session *session,
                  const struct nbd_request *request);
/* @text may be NULL; it is cut to NBD_ERROR_TEXT_MAX.  Nothing follows. */
size_t nbd_put_error(uint8_t *p, const struct nbd_session *session,
                     const struct nbd_request *request, enum nbd_error error,
                     const char *text);
/* A read's data: request->length bytes follow. */
size_t nbd_put_data(uint8_t *p, const struct nbd_session *session,
                    const struct nbd_request *request);
/* A read that gives zeroes, at least one; needs `structured`. */
size_t nbd_put_hole(uint8_t *p, const struct nbd_session *session,
                    const struct nbd_request *request);
/* @n, at least 1, extents follow; needs `base_allocation`. */
size_t nbd_put_status(uint8_t *p, const struct nbd_session *session,
                      const struct nbd_request *request, uint32_t context,
                      uint32_t n);
/* One extent of nbd_put_status(). */
size_t nbd_put_extent(uint8_t *p, const struct nbd_session *session,
                      uint64_t len, uint32_t state);

#endif
