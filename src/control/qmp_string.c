// SPDX-License-Identifier: BSD-3-Clause
/* Strings as clients write them: see qmp_string.h. */
#include "control/qmp_string.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { SHOWN_MAX = 80, ESCAPE_LEN = 6 };

static bool
is_character(int32_t c)
{
    bool surrogate = c >= 0xd800 && c <= 0xdfff;
    bool none = (c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe;

    return c > 0 && c <= 0x10ffff && !surrogate && !none;
}

/*
 * Decodes one character of UTF-8.  Returns -1 where the bytes are none (an
 * overlong form included); *used is then what to skip.
 */
static int32_t
utf8_decode(const unsigned char *s, size_t len, size_t *used)
{
    static const int32_t least[] = {0, 0x80, 0x800, 0x10000};
    int more = s[0] < 0x80   ? 0
               : s[0] < 0xc0 ? -1
               : s[0] < 0xe0 ? 1
               : s[0] < 0xf0 ? 2
               : s[0] < 0xf8 ? 3
                             : -1;
    int32_t c = more <= 0 ? s[0] : s[0] & (0x3f >> more);

    *used = 1;
    for (int i = 0; i < more; i++, (*used)++) {
        if (*used >= len || (s[*used] & 0xc0) != 0x80) {
            return -1;
        }
        c = c << 6 | (s[*used] & 0x3f);
    }
    return more < 0 || c < least[more] || !is_character(c) ? -1 : c;
}

static void
utf8_append(struct strbuf *out, int32_t c)
{
    if (c < 0x80) {
        strbuf_add_char(out, (char)c);
        return;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;

    strbuf_add_char(out, (char)(0xff << (7 - more) | c >> (6 * more)));
    while (more-- > 0) {
        strbuf_add_char(out, (char)(0x80 | (c >> (6 * more) & 0x3f)));
    }
}

/* One character, escaped where JSON needs it. */
static void
append_quoted(struct strbuf *out, int32_t c)
{
    if (c == '"' || c == '\\') {
        strbuf_add_char(out, '\\');
    }
    if (c < 0x20) {
        char text[ESCAPE_LEN + 1];

        snprintf(text, sizeof(text), "\\u%04x", (unsigned)c & 0x1f);
        strbuf_add_str(out, text);
    } else {
        utf8_append(out, c);
    }
}

/* Four hexadecimal digits, or -1. */
static int32_t
hex4(const char *s, const char *end)
{
    int32_t value = 0;

    for (int i = 0; i < 4; i++, s++) {
        if (s >= end || !isxdigit((unsigned char)*s)) {
            return -1;
        }
        int digit = isdigit((unsigned char)*s) ? *s - '0'
                                               : (*s | 0x20) - 'a' + 10;
        value = value << 4 | digit;
    }
    return value;
}

/* Decodes \uXXXX, or a pair of them; *p stands on the first digit. */
static int32_t
unicode_escape(const char **p, const char *end)
{
    int32_t c = hex4(*p, end);

    *p = end - *p < 4 ? end : *p + 4;
    if (c >= 0xd800 && c <= 0xdbff && end - *p >= ESCAPE_LEN &&
        (*p)[0] == '\\' && (*p)[1] == 'u') {
        int32_t low = hex4(*p + 2, end);

        if (low < 0xdc00 || low > 0xdfff) {
            return -1;
        }
        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
        *p += ESCAPE_LEN;
    }
    return is_character(c) ? c : -1;
}

static char *
normalize_escape(const char **p, const char *end, struct strbuf *out)
{
    static const char names[] = "\"'\\/bfnrt", values[] = "\"'\\/\b\f\n\r\t";
    const char *start = *p - 1; /* the backslash */
    char c = *(*p)++;
    const char *at = c ? strchr(names, c) : NULL;

    if (at) {
        append_quoted(out, values[at - names]);
        return NULL;
    }
    if (c != 'u') {
        return xstrdup("invalid escape sequence in string");
    }
    int32_t code = unicode_escape(p, end);
    if (code < 0) {
        auto_free char *shown = qmp_string_show(start, (size_t)(*p - start));
        return xasprintf("%s is not a valid Unicode character", shown);
    }
    append_quoted(out, code);
    return NULL;
}

char *
qmp_string_normalize(const char *tok, size_t len, struct strbuf *out)
{
    const char *p = tok + 1, *end = tok + len - 1;

    strbuf_add_char(out, '"');
    while (p < end) {
        if (*p == '\\' && p + 1 < end) {
            p++;
            char *error = normalize_escape(&p, end, out);
            if (error) {
                return error;
            }
            continue;
        }
        size_t used;
        int32_t c = utf8_decode((const unsigned char *)p, (size_t)(end - p),
                                &used);
        if (c < 0) {
            return xstrdup("invalid UTF-8 sequence in string");
        }
        append_quoted(out, c);
        p += used;
    }
    strbuf_add_char(out, '"');
    return NULL;
}

char *
qmp_string_show(const char *s, size_t len)
{
    struct strbuf out = {0};
    size_t shown = len < SHOWN_MAX ? len : SHOWN_MAX, used;

    for (size_t i = 0; i < shown && s[i]; i += used) {
        int32_t c = utf8_decode((const unsigned char *)s + i, len - i, &used);

        utf8_append(&out, c < 0 ? 0xfffd : c);
    }
    strbuf_add_str(&out, shown < len ? "..." : "");
    return out.data;
}
