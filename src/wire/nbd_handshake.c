// SPDX-License-Identifier: BSD-3-Clause
/*
 * The handshake: fixed newstyle negotiation and option haggling.
 *
 *   FLAGS --4 bytes--> OPTION --16 bytes--> DATA --length bytes--> OPTION
 *                         \--- EXPORT_NAME, GO ---> END (transmission)
 *                         \--- ABORT, a broken protocol --> END
 *
 * Each state waits for a known number of bytes (`need`), collects them in `in`
 * and then acts once.  A peer chooses only the length of an option's data,
 * which is checked against NBD_OPTION_MAX before anything is allocated, and
 * the lengths inside that data, which a reader with an end checks.
 *
 * An answer is put into `out` as a whole; feeding stops after each option, so
 * `out` never holds more than one option's answers.
 */
#include "wire/nbd.h"

#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

enum {
    FLAGS_SIZE = 4,
    OPTION_SIZE = 16,
    OPTION_REPLY_SIZE = 20,
    OLD_PADDING = 124, /* spec, NBD_FLAG_C_NO_ZEROES */
};

/* Output. */

static uint8_t *
out_grow(struct nbd_out *out, size_t n)
{
    if (out->cap - out->len < n) {
        out->cap = (out->len + n) * 2;
        out->p = xrealloc(out->p, out->cap);
    }
    uint8_t *p = out->p + out->len;

    out->len += n;
    return p;
}

/* An option reply's header and room for its data, which is returned. */
static uint8_t *
reply(struct nbd_handshake *h, uint32_t type, size_t len)
{
    uint8_t *p = out_grow(&h->out, OPTION_REPLY_SIZE + len);

    st_be64(p, NBD_OPTION_REPLY_MAGIC);
    st_be32(p + 8, h->option);
    st_be32(p + 12, type);
    st_be32(p + 16, (uint32_t)len);
    return p + OPTION_REPLY_SIZE;
}

/* An error with its text for people (spec, Option reply types). */
static enum nbd_handshake_result
refuse(struct nbd_handshake *h, uint32_t type, const char *text)
{
    memcpy(reply(h, type, strlen(text)), text, strlen(text));
    return NBD_HANDSHAKE_MORE;
}

static enum nbd_handshake_result
acknowledge(struct nbd_handshake *h)
{
    reply(h, NBD_REP_ACK, 0);
    return NBD_HANDSHAKE_MORE;
}

/* Input: an option's data, read with its end in sight. */

struct reader {
    const uint8_t *p;
    size_t left;
};

static bool
take(struct reader *in, size_t n, const uint8_t **ret)
{
    if (in->left < n) {
        return false;
    }
    *ret = in->p;
    in->p += n;
    in->left -= n;
    return true;
}

static bool
take_u16(struct reader *in, uint16_t *ret)
{
    const uint8_t *p;

    if (!take(in, 2, &p)) {
        return false;
    }
    *ret = ld_be16(p);
    return true;
}

static bool
take_u32(struct reader *in, uint32_t *ret)
{
    const uint8_t *p;

    if (!take(in, 4, &p)) {
        return false;
    }
    *ret = ld_be32(p);
    return true;
}

/* A string of @n bytes, or NULL where it is too long, cut off or has a NUL
 * (spec, Conventions).  The caller frees it. */
static char *
take_string(struct reader *in, size_t n)
{
    const uint8_t *p;

    if (n > NBD_STRING_MAX || !take(in, n, &p) || memchr(p, 0, n)) {
        return NULL;
    }
    return xstrndup((const char *)p, n);
}

static char *
take_counted_string(struct reader *in)
{
    uint32_t n;

    return take_u32(in, &n) ? take_string(in, n) : NULL;
}

/* Entering transmission. */

static uint16_t
session_flags(const struct nbd_handshake *h, const struct nbd_export_info *info)
{
    /* Spec, NBD_FLAG_SEND_DF: only with structured replies. */
    return info->flags | (h->session.structured ? NBD_FLAG_SEND_DF : 0);
}

static enum nbd_handshake_result
enter(struct nbd_handshake *h, const struct nbd_export_info *info)
{
    struct nbd_session *s = &h->session;

    s->export_cookie = info->cookie;
    s->size = info->size;
    s->flags = session_flags(h, info);
    s->min_block = info->min_block;
    /* Spec, NBD_OPT_SET_META_CONTEXT: what was set for another export than
     * the one that is chosen in the end does not count. */
    s->base_allocation = h->context_export && s->structured &&
                         !strcmp(h->context_export, info->name);
    h->state = NBD_AT_END;
    return NBD_HANDSHAKE_DONE;
}

/* Spec, NBD_OPT_EXPORT_NAME: no error can be sent, so failing is dropping. */
static enum nbd_handshake_result
option_export_name(struct nbd_handshake *h, struct reader *in)
{
    auto_free char *name = take_string(in, in->left);
    struct nbd_export_info info;

    if (!name || !h->exports->find(h->exports, name, &info)) {
        return NBD_HANDSHAKE_DROP;
    }
    size_t pad = h->no_zeroes ? 0 : OLD_PADDING;
    uint8_t *p = out_grow(&h->out, 10 + pad);

    st_be64(p, info.size);
    st_be16(p + 8, session_flags(h, &info));
    memset(p + 10, 0, pad);
    return enter(h, &info);
}

/* Spec, NBD_OPT_INFO and NBD_OPT_GO. */

static void
put_info_string(struct nbd_handshake *h, enum nbd_info type, const char *s)
{
    uint8_t *p = reply(h, NBD_REP_INFO, 2 + strlen(s));

    st_be16(p, (uint16_t)type);
    memcpy(p + 2, s, strlen(s));
}

static void
put_info(struct nbd_handshake *h, uint16_t type,
         const struct nbd_export_info *info)
{
    uint8_t *p;

    switch (type) {
    case NBD_INFO_EXPORT:
        p = reply(h, NBD_REP_INFO, 12);
        st_be16(p, NBD_INFO_EXPORT);
        st_be64(p + 2, info->size);
        st_be16(p + 10, session_flags(h, info));
        break;
    case NBD_INFO_NAME:
        put_info_string(h, NBD_INFO_NAME, info->name);
        break;
    case NBD_INFO_DESCRIPTION:
        if (info->description && *info->description) {
            put_info_string(h, NBD_INFO_DESCRIPTION, info->description);
        }
        break;
    case NBD_INFO_BLOCK_SIZE:
        p = reply(h, NBD_REP_INFO, 14);
        st_be16(p, NBD_INFO_BLOCK_SIZE);
        st_be32(p + 2, info->min_block);
        st_be32(p + 6, info->preferred_block);
        st_be32(p + 10, info->max_block);
        break;
    default: /* a client may ask for what this server does not know */
        break;
    }
}

static enum nbd_handshake_result
option_info(struct nbd_handshake *h, struct reader *in)
{
    auto_free char *name = take_counted_string(in);
    struct nbd_export_info info;
    unsigned asked = 1U << NBD_INFO_EXPORT; /* always answered */
    uint16_t n, type;

    if (!name || !take_u16(in, &n) || in->left != 2U * n) {
        return refuse(h, NBD_REP_ERR_INVALID, "malformed option data");
    }
    while (take_u16(in, &type)) {
        /* Asking twice for the same must not be answered twice: it would let
         * a small option make a large answer. */
        asked |= type <= NBD_INFO_BLOCK_SIZE ? 1U << type : 0;
    }
    if (!h->exports->find(h->exports, name, &info)) {
        return refuse(h, NBD_REP_ERR_UNKNOWN, "no export of this name");
    }
    for (uint16_t i = 0; i <= NBD_INFO_BLOCK_SIZE; i++) {
        if (asked & (1U << i)) {
            put_info(h, i, &info);
        }
    }
    acknowledge(h);
    return h->option == NBD_OPT_GO ? enter(h, &info) : NBD_HANDSHAKE_MORE;
}

/* Spec, NBD_OPT_LIST. */

static void
put_server(void *arg, const struct nbd_export_info *info)
{
    struct nbd_handshake *h = arg;
    const char *about = info->description ? info->description : "";
    size_t n = strlen(info->name);
    uint8_t *p = reply(h, NBD_REP_SERVER, 4 + n + strlen(about));

    st_be32(p, (uint32_t)n);
    memcpy(p + 4, info->name, n);
    memcpy(p + 4 + n, about, strlen(about));
}

static enum nbd_handshake_result
option_list(struct nbd_handshake *h, struct reader *in)
{
    if (in->left) {
        return refuse(h, NBD_REP_ERR_INVALID, "LIST takes no data");
    }
    h->exports->list(h->exports, put_server, h);
    return acknowledge(h);
}

/* Spec, NBD_OPT_STRUCTURED_REPLY. */
static enum nbd_handshake_result
option_structured(struct nbd_handshake *h, struct reader *in)
{
    if (in->left) {
        return refuse(h, NBD_REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
    }
    if (h->session.extended) {
        return refuse(h, NBD_REP_ERR_EXT_HEADER_REQD,
                      "extended headers are already negotiated");
    }
    if (h->session.structured) {
        return refuse(h, NBD_REP_ERR_INVALID,
                      "structured replies are already negotiated");
    }
    h->session.structured = true;
    return acknowledge(h);
}

/* Spec, NBD_OPT_EXTENDED_HEADERS: they take precedence over structured
 * replies, and bring chunks with them. */
static enum nbd_handshake_result
option_extended(struct nbd_handshake *h, struct reader *in)
{
    if (in->left) {
        return refuse(h, NBD_REP_ERR_INVALID, "EXTENDED_HEADERS takes no data");
    }
    if (h->session.extended) {
        return refuse(h, NBD_REP_ERR_INVALID,
                      "extended headers are already negotiated");
    }
    h->session.extended = h->session.structured = true;
    return acknowledge(h);
}

/* Spec, NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */

static const char base_allocation[] = "base:allocation";

/*
 * Whether one of the @n queries that follow selects base:allocation, in
 * *ret; false where the data is malformed.  "base:" alone asks for the list
 * of a namespace and selects nothing; unknown names are passed over.
 */
static bool
read_queries(struct reader *in, uint32_t n, bool list, bool *ret)
{
    *ret = list && n == 0;
    for (; n; n--) {
        auto_free char *query = take_counted_string(in);

        /* Each query takes at least four bytes, so a huge count of them ends
         * here soon. */
        if (!query) {
            return false;
        }
        if (!strcmp(query, base_allocation) ||
            (list && !strcmp(query, "base:"))) {
            *ret = true;
        }
    }
    return in->left == 0;
}

static enum nbd_handshake_result
option_meta_context(struct nbd_handshake *h, struct reader *in)
{
    bool list = h->option == NBD_OPT_LIST_META_CONTEXT, selected;
    struct nbd_export_info info;
    uint32_t n;

    if (!list) {
        /* A failing SET clears what was set before, as well. */
        free(take_ptr(h->context_export));
    }
    auto_free char *name = take_counted_string(in);

    if (!h->session.structured) {
        return refuse(h, NBD_REP_ERR_INVALID,
                      "structured replies must be negotiated first");
    }
    if (!name || !take_u32(in, &n) || !read_queries(in, n, list, &selected)) {
        return refuse(h, NBD_REP_ERR_INVALID, "malformed option data");
    }
    if (!h->exports->find(h->exports, name, &info)) {
        return refuse(h, NBD_REP_ERR_UNKNOWN, "no export of this name");
    }
    if (selected) {
        size_t len = sizeof(base_allocation) - 1;
        uint8_t *p = reply(h, NBD_REP_META_CONTEXT, 4 + len);

        st_be32(p, list ? 0 : NBD_CONTEXT_BASE_ALLOCATION);
        memcpy(p + 4, base_allocation, len);
    }
    if (!list && selected) {
        h->context_export = take_ptr(name);
    }
    return acknowledge(h);
}

/* The states. */

static enum nbd_handshake_result
act_on_option(struct nbd_handshake *h)
{
    struct reader in = {h->in, h->need};

    switch (h->option) {
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(h, &in);
    case NBD_OPT_ABORT:
        acknowledge(h);
        return NBD_HANDSHAKE_CLOSE;
    case NBD_OPT_LIST:
        return option_list(h, &in);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_info(h, &in);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_structured(h, &in);
    case NBD_OPT_EXTENDED_HEADERS:
        return option_extended(h, &in);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta_context(h, &in);
    case NBD_OPT_STARTTLS: /* spec, NOTLS mode */
        return refuse(h, NBD_REP_ERR_UNSUP, "TLS is not configured");
    default:
        return refuse(h, NBD_REP_ERR_UNSUP, "unknown option");
    }
}

static void
expect(struct nbd_handshake *h, int state, size_t need)
{
    h->state = state;
    h->have = 0;
    h->need = need;
    if (h->cap < need) {
        h->cap = need;
        h->in = xrealloc(h->in, need);
    }
}

/* Spec, Client flags: an unknown one ends the session. */
static enum nbd_handshake_result
act_on_flags(struct nbd_handshake *h)
{
    uint32_t flags = ld_be32(h->in);

    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return NBD_HANDSHAKE_DROP;
    }
    h->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    h->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    expect(h, NBD_AT_OPTION, OPTION_SIZE);
    return NBD_HANDSHAKE_MORE;
}

static enum nbd_handshake_result
act_on_option_header(struct nbd_handshake *h)
{
    uint32_t len = ld_be32(h->in + 12);

    if (ld_be64(h->in) != NBD_OPTION_MAGIC || len > NBD_OPTION_MAX ||
        ++h->n_options > NBD_OPTIONS_MAX) {
        return NBD_HANDSHAKE_DROP;
    }
    h->option = ld_be32(h->in + 8);
    /* Spec, NBD_OPT_EXPORT_NAME: without fixed newstyle it is the only one,
     * and the client understands no refusal. */
    if (!h->fixed && h->option != NBD_OPT_EXPORT_NAME) {
        return NBD_HANDSHAKE_DROP;
    }
    expect(h, NBD_AT_DATA, len);
    return NBD_HANDSHAKE_MORE;
}

static enum nbd_handshake_result
act(struct nbd_handshake *h)
{
    enum nbd_handshake_result result;

    switch (h->state) {
    case NBD_AT_FLAGS:
        return act_on_flags(h);
    case NBD_AT_OPTION:
        return act_on_option_header(h);
    case NBD_AT_DATA:
        result = act_on_option(h);
        if (result == NBD_HANDSHAKE_MORE) {
            expect(h, NBD_AT_OPTION, OPTION_SIZE);
        }
        return result;
    case NBD_AT_END:
        break;
    }
    return NBD_HANDSHAKE_DROP;
}

void
nbd_handshake_start(struct nbd_handshake *h, struct nbd_export_table *exports)
{
    *h = (struct nbd_handshake){.exports = exports};
    uint8_t *p = out_grow(&h->out, NBD_GREETING_SIZE);

    st_be64(p, NBD_MAGIC);
    st_be64(p + 8, NBD_OPTION_MAGIC);
    st_be16(p + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    expect(h, NBD_AT_FLAGS, FLAGS_SIZE);
}

void
nbd_handshake_free(struct nbd_handshake *h)
{
    free(h->in);
    free(h->out.p);
    free(h->context_export);
    *h = (struct nbd_handshake){.state = NBD_AT_END};
}

enum nbd_handshake_result
nbd_handshake_feed(struct nbd_handshake *h, const uint8_t *p, size_t n,
                   size_t *ret_used)
{
    enum nbd_handshake_result result = NBD_HANDSHAKE_MORE;

    *ret_used = 0;
    while (h->state != NBD_AT_END) {
        bool option_ends = h->state == NBD_AT_DATA;
        size_t here = min_u64(h->need - h->have, n - *ret_used);

        if (here) {
            memcpy(h->in + h->have, p + *ret_used, here);
        }
        h->have += here;
        *ret_used += here;
        if (h->have < h->need) {
            return NBD_HANDSHAKE_MORE;
        }
        result = act(h);
        if (result != NBD_HANDSHAKE_MORE) {
            h->state = NBD_AT_END;
            return result;
        }
        if (option_ends) {
            return result;
        }
    }
    return NBD_HANDSHAKE_DROP;
}
