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
 * After NBD_HANDSHAKE_DONE each request is NBD_REQUEST_SIZE bytes for
 * nbd_request_parse(), followed by nbd_request_payload() bytes of data.
 */
#ifndef SLUICE_WIRE_NBD_H
#define SLUICE_WIRE_NBD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_MAGIC 0x4e42444d41474943ULL        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054ULL /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ULL
#define NBD_REQUEST_MAGIC 0x25609513U
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698U
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efU

/* Every limit on what a peer chooses. */
enum nbd_limits {
    NBD_STRING_MAX = 4096,       /* spec, Conventions */
    NBD_OPTION_MAX = 64 * 1024,  /* an option's data; longer: drop */
    NBD_OPTIONS_MAX = 1024,      /* options a handshake; more: drop */
    NBD_DATA_MAX = 32 << 20,     /* the payload of a read or a write */
    NBD_SKIP_MAX = 64 << 20,     /* a refused write's payload; longer: drop */
};

enum nbd_sizes {
    NBD_GREETING_SIZE = 18,
    NBD_REQUEST_SIZE = 28,
    NBD_SIMPLE_REPLY_SIZE = 16,
    NBD_CHUNK_SIZE = 20,       /* a structured reply chunk's header */
    NBD_OFFSET_DATA_SIZE = 28, /* with the offset, without the data */
    NBD_OFFSET_HOLE_SIZE = 32,
    NBD_STATUS_SIZE = 24, /* with the context's number, without extents */
    NBD_STATUS_EXTENT_SIZE = 8,
    NBD_ERROR_TEXT_MAX = 96,
    NBD_ERROR_SIZE_MAX = NBD_CHUNK_SIZE + 6 + NBD_ERROR_TEXT_MAX,
};

/* Handshake flags, and the client's of the same meaning. */
enum { NBD_FLAG_FIXED_NEWSTYLE = 1 << 0, NBD_FLAG_NO_ZEROES = 1 << 1 };

enum nbd_transmission_flags {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ERR(n) (0x80000000U | (n))
#define NBD_REP_ACK 1U
#define NBD_REP_SERVER 2U
#define NBD_REP_INFO 3U
#define NBD_REP_META_CONTEXT 4U
#define NBD_REP_ERR_UNSUP NBD_REP_ERR(1)
#define NBD_REP_ERR_POLICY NBD_REP_ERR(2)
#define NBD_REP_ERR_INVALID NBD_REP_ERR(3)
#define NBD_REP_ERR_UNKNOWN NBD_REP_ERR(6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERR(7)

enum nbd_info {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flags {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum { NBD_REPLY_FLAG_DONE = 1 << 0 };

enum nbd_reply_type {
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_OFFSET_HOLE = 2,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_ERROR = (1 << 15) + 1,
};

enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 };

/* The number that SET_META_CONTEXT gives to base:allocation. */
enum { NBD_CONTEXT_BASE_ALLOCATION = 1 };

/* Spec, Error values: fixed numbers, whatever errno they are here. */
enum nbd_error {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

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
    bool structured, base_allocation;
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
    uint64_t cookie, offset;
    uint32_t length;
};

/* Reads NBD_REQUEST_SIZE bytes; false where the magic is wrong: drop. */
bool nbd_request_parse(const uint8_t *p, struct nbd_request *ret);
/* Bytes of data behind the request; more than NBD_SKIP_MAX: drop. */
uint32_t nbd_request_payload(const struct nbd_request *request);
/*
 * Whether the session allows the request: NBD_OK, or the error to answer, with
 * *ret_text (static) for people.  The payload of a refused write still comes.
 */
enum nbd_error nbd_request_check(const struct nbd_session *session,
                                 const struct nbd_request *request,
                                 const char **ret_text);

/*
 * Builders: each writes one header into @p, of the size named in nbd_sizes,
 * and returns that size.  Data follows from the caller's own memory.
 */
size_t nbd_put_simple(uint8_t *p, uint64_t cookie, enum nbd_error error);
size_t nbd_put_chunk(uint8_t *p, uint64_t cookie, uint16_t flags,
                     enum nbd_reply_type type, uint32_t payload);
size_t nbd_put_none(uint8_t *p, uint64_t cookie);
/* @len, at least 1, bytes of data follow; the reply's last chunk. */
size_t nbd_put_offset_data(uint8_t *p, uint64_t cookie, uint64_t offset,
                           uint32_t len);
size_t nbd_put_offset_hole(uint8_t *p, uint64_t cookie, uint64_t offset,
                           uint32_t len);
/* @text may be NULL; cut to NBD_ERROR_TEXT_MAX. */
size_t nbd_put_error(uint8_t *p, uint64_t cookie, enum nbd_error error,
                     const char *text);
/* @n, at least 1, extents of NBD_STATUS_EXTENT_SIZE bytes follow. */
size_t nbd_put_status(uint8_t *p, uint64_t cookie, uint32_t context,
                      uint32_t n);
size_t nbd_put_status_extent(uint8_t *p, uint32_t len, uint32_t state);

#endif
