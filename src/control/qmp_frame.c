// SPDX-License-Identifier: BSD-3-Clause
/*
 * The framer: a lexer, which finds the ends of tokens, and above it a parser,
 * which keeps one bit per open object or list and writes the value out again
 * as it goes.
 *
 * Invariants:
 * 1. A mistake in the grammar does not end a value: its brackets do, counted
 *    by kind as QEMU counts them, so that one bad value gives one error and
 *    the next value is found where the client meant it to begin.
 * 2. A mistake in the lexer ends the value at once, and what follows is
 *    skipped up to a control character or a structural one (LEX_RECOVERY).
 * 3. Past a limit the error comes at once, nothing is stored any more, and
 *    the rest of the value is skipped in silence (`discard`).  (QEMU starts
 *    afresh in its middle and answers every stray bracket with an error.)
 */
#include "control/qmp_frame.h"

#include <errno.h>
#include <stdlib.h>

#include "control/qmp_string.h"

enum lex {
    LEX_START,
    LEX_STRING,
    LEX_ESCAPE,
    LEX_KEYWORD,
    LEX_MINUS,
    LEX_ZERO,
    LEX_DIGITS,
    LEX_POINT,
    LEX_FRACTION,
    LEX_E,
    LEX_E_SIGN,
    LEX_EXPONENT,
    LEX_RECOVERY,
};

enum parse {
    PARSE_VALUE,
    PARSE_VALUE_OR_END, /* behind [ */
    PARSE_KEY_OR_END, /* behind { */
    PARSE_KEY, /* behind a comma in an object */
    PARSE_COLON,
    PARSE_NEXT, /* a comma or the end */
};

/* What the lexer does with a byte. */
enum step {
    STEP_TAKE, /* it belongs to the token */
    STEP_SKIP, /* it is white space, or is being recovered from */
    STEP_LAST, /* it ends the token and belongs to it */
    STEP_BEHIND, /* it stands behind the token's end */
    STEP_BAD,
    STEP_AGAIN, /* look at it again, in the start state */
};

void
qmp_frame_init(struct qmp_frame *f)
{
    *f = (struct qmp_frame){.lex = LEX_START, .parse = PARSE_VALUE};
}

void
qmp_frame_fini(struct qmp_frame *f)
{
    strbuf_fini(&f->text);
    strbuf_fini(&f->token);
    strbuf_fini(&f->out);
    free(f->error);
    qmp_frame_init(f);
}

/* Ready for the next value; the lexer's state and token stay. */
static void
reset_value(struct qmp_frame *f)
{
    strbuf_reset(&f->out);
    free(take_ptr(f->error));
    f->bytes = 0;
    f->braces = f->brackets = 0;
    f->objects = 0;
    f->depth = 0;
    f->parse = PARSE_VALUE;
    f->discard = false;
}

static enum qmp_frame_result
report(struct qmp_frame *f, const char *text)
{
    strbuf_reset(&f->text);
    strbuf_add_str(&f->text, text);
    return QMP_FRAME_ERROR;
}

/* --- The parser ---------------------------------------------------------- */

static void
mistake(struct qmp_frame *f, const char *what)
{
    f->error = xasprintf("JSON parse error, %s", what);
}

static bool
in_object(const struct qmp_frame *f)
{
    return f->depth && (f->objects >> (f->depth - 1) & 1);
}

static void
open_level(struct qmp_frame *f, bool object)
{
    uint64_t bit = 1ULL << f->depth++;

    f->objects = object ? f->objects | bit : f->objects & ~bit;
    f->parse = object ? PARSE_KEY_OR_END : PARSE_VALUE_OR_END;
    strbuf_add_char(&f->out, object ? '{' : '[');
}

static void
close_level(struct qmp_frame *f)
{
    strbuf_add_char(&f->out, in_object(f) ? '}' : ']');
    f->depth--;
    f->parse = PARSE_NEXT;
}

static void
parse_string(struct qmp_frame *f)
{
    auto_free char *error =
        qmp_string_normalize(f->token.data, f->token.len, &f->out);

    if (error) {
        mistake(f, error);
    }
}

static void
parse_keyword(struct qmp_frame *f)
{
    const char *word = strbuf_text(&f->token);

    if (!strcmp(word, "true") || !strcmp(word, "false") ||
        !strcmp(word, "null")) {
        strbuf_add_str(&f->out, word);
        return;
    }
    auto_free char *shown = qmp_string_show(word, f->token.len);
    auto_free char *what = xasprintf("invalid keyword '%s'", shown);
    mistake(f, what);
}

/* An integer that no int64_t holds becomes a real, as in QEMU. */
static void
parse_number(struct qmp_frame *f)
{
    const char *text = strbuf_text(&f->token);

    strbuf_add_str(&f->out, text);
    errno = 0;
    if (!strpbrk(text, ".eE") && (strtoll(text, NULL, 10), errno)) {
        strbuf_add_str(&f->out, ".0");
    }
}

/* A token where a value must stand. */
static void
parse_value(struct qmp_frame *f, char first)
{
    f->parse = PARSE_NEXT;
    switch (first) {
    case '{':
    case '[':
        open_level(f, first == '{');
        break;
    case '"':
    case '\'':
        parse_string(f);
        break;
    case '}':
    case ']':
    case ',':
    case ':':
        mistake(f, "expecting value");
        break;
    default:
        if (first >= 'a' && first <= 'z') {
            parse_keyword(f);
        } else {
            parse_number(f);
        }
        break;
    }
}

static void
parse_key(struct qmp_frame *f, char first)
{
    if (first == '"' || first == '\'') {
        parse_string(f);
        f->parse = PARSE_COLON;
    } else if (strchr("}],:", first)) {
        mistake(f, "expecting value");
    } else {
        parse_value(f, first);
        if (!f->error) {
            mistake(f, "key is not a string in object");
        }
    }
}

/* A token behind a complete member or element. */
static void
parse_next(struct qmp_frame *f, char first)
{
    bool object = in_object(f);

    if (first == (object ? '}' : ']')) {
        close_level(f);
    } else if (first == ',') {
        strbuf_add_char(&f->out, ',');
        f->parse = object ? PARSE_KEY : PARSE_VALUE;
    } else {
        mistake(f, object ? "expected separator in dict"
                          : "expected separator in list");
    }
}

static void
parse_token(struct qmp_frame *f, char first)
{
    switch ((enum parse)f->parse) {
    case PARSE_VALUE:
        parse_value(f, first);
        break;
    case PARSE_VALUE_OR_END:
        if (first == ']') {
            close_level(f);
        } else {
            parse_value(f, first);
        }
        break;
    case PARSE_KEY_OR_END:
        if (first == '}') {
            close_level(f);
        } else {
            parse_key(f, first);
        }
        break;
    case PARSE_KEY:
        parse_key(f, first);
        break;
    case PARSE_COLON:
        strbuf_add_char(&f->out, ':');
        f->parse = PARSE_VALUE;
        if (first != ':') {
            mistake(f, "missing : in object pair");
        }
        break;
    case PARSE_NEXT:
        parse_next(f, first);
        break;
    }
}

/* --- Tokens -------------------------------------------------------------- */

static void
count_brackets(struct qmp_frame *f, char c)
{
    f->braces += (c == '{') - (c == '}');
    f->brackets += (c == '[') - (c == ']');
}

static enum qmp_frame_result
limit_exceeded(struct qmp_frame *f, const char *what)
{
    f->discard = true;
    free(take_ptr(f->error));
    strbuf_reset(&f->out);
    return report(f, what);
}

/* @first is the first byte of the complete token. */
static enum qmp_frame_result
end_of_token(struct qmp_frame *f, char first)
{
    enum qmp_frame_result result = QMP_FRAME_MORE;

    count_brackets(f, first);
    if (!f->discard) {
        if (f->braces + f->brackets > QMP_FRAME_MAX_DEPTH) {
            result =
                limit_exceeded(f, "JSON nesting depth limit exceeded");
        } else if (!f->error) {
            parse_token(f, first);
        }
    }
    strbuf_reset(&f->token);
    if (f->braces >= 0 && f->brackets >= 0 && (f->braces || f->brackets)) {
        return result;
    }
    if (!f->discard) {
        struct strbuf spare = f->text;

        if (f->error) {
            result = report(f, f->error);
        } else {
            result = QMP_FRAME_VALUE;
            f->text = f->out;
            f->out = spare;
        }
    }
    reset_value(f);
    return result;
}

static enum qmp_frame_result
bad_token(struct qmp_frame *f)
{
    auto_free char *shown =
        qmp_string_show(strbuf_text(&f->token), f->token.len);
    auto_free char *what =
        xasprintf("JSON parse error, stray '%s'", shown);

    strbuf_reset(&f->token);
    reset_value(f);
    f->lex = LEX_RECOVERY;
    return report(f, what);
}

/* --- The lexer ----------------------------------------------------------- */

static bool
is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool
is_space(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static enum step
go(struct qmp_frame *f, enum lex to)
{
    f->lex = to;
    return STEP_TAKE;
}

static enum step
lex_start(struct qmp_frame *f, unsigned char c)
{
    if (is_space(c)) {
        return STEP_SKIP;
    }
    if (c && strchr("{}[],:", c)) {
        return STEP_LAST;
    }
    if (c == '"' || c == '\'') {
        f->quote = (char)c;
        return go(f, LEX_STRING);
    }
    if (c >= 'a' && c <= 'z') {
        return go(f, LEX_KEYWORD);
    }
    if (is_digit(c)) {
        return go(f, c == '0' ? LEX_ZERO : LEX_DIGITS);
    }
    return c == '-' ? go(f, LEX_MINUS) : STEP_BAD;
}

static enum step
lex_string(struct qmp_frame *f, unsigned char c)
{
    if (c < 0x20 || c >= 0xfe) {
        return STEP_BAD;
    }
    if (f->lex == LEX_ESCAPE) {
        return go(f, LEX_STRING);
    }
    if (c == '\\') {
        return go(f, LEX_ESCAPE);
    }
    return c == (unsigned char)f->quote ? STEP_LAST : STEP_TAKE;
}

static enum step
lex_number(struct qmp_frame *f, unsigned char c)
{
    bool digit = is_digit(c), e = c == 'e' || c == 'E';

    switch ((enum lex)f->lex) {
    case LEX_MINUS:
        return digit ? go(f, c == '0' ? LEX_ZERO : LEX_DIGITS) : STEP_BAD;
    case LEX_ZERO:
    case LEX_DIGITS:
        if (digit) {
            return f->lex == LEX_ZERO ? STEP_BAD : STEP_TAKE;
        }
        return c == '.' ? go(f, LEX_POINT) : e ? go(f, LEX_E) : STEP_BEHIND;
    case LEX_POINT:
        return digit ? go(f, LEX_FRACTION) : STEP_BAD;
    case LEX_FRACTION:
        return digit ? STEP_TAKE : e ? go(f, LEX_E) : STEP_BEHIND;
    case LEX_E:
        if (c == '+' || c == '-') {
            return go(f, LEX_E_SIGN);
        }
        return digit ? go(f, LEX_EXPONENT) : STEP_BAD;
    case LEX_E_SIGN:
        return digit ? go(f, LEX_EXPONENT) : STEP_BAD;
    default:
        return digit ? STEP_TAKE : STEP_BEHIND;
    }
}

static enum step
lex_byte(struct qmp_frame *f, unsigned char c)
{
    switch ((enum lex)f->lex) {
    case LEX_START:
        return lex_start(f, c);
    case LEX_STRING:
    case LEX_ESCAPE:
        return lex_string(f, c);
    case LEX_KEYWORD:
        return c >= 'a' && c <= 'z' ? STEP_TAKE : STEP_BEHIND;
    case LEX_RECOVERY:
        /* QEMU skips a tab, too, though it is a control character. */
        if (c == '\t') {
            return STEP_SKIP;
        }
        return c < 0x20 || c >= 0xfe || strchr("{}[],:", c) ? STEP_AGAIN
                                                            : STEP_SKIP;
    default:
        return lex_number(f, c);
    }
}

/* Counts a byte of the value at hand; false where it is one too many. */
static bool
count_byte(struct qmp_frame *f, enum step step)
{
    bool between = f->lex == LEX_RECOVERY ||
                   (step == STEP_SKIP && !f->braces && !f->brackets);

    f->bytes += !between;
    return f->discard || f->bytes <= QMP_FRAME_MAX_BYTES;
}

/*
 * The first byte of the token at hand: while tokens are not stored, only the
 * structural ones matter, and they are single bytes.
 */
static char
token_first(const struct qmp_frame *f, char c)
{
    return f->token.len ? f->token.data[0]
           : f->lex == LEX_START ? c
                                 : '0';
}

/* Takes one byte; *consumed says whether it was used up. */
static enum qmp_frame_result
feed_byte(struct qmp_frame *f, char c, bool *consumed)
{
    enum step step = lex_byte(f, (unsigned char)c);
    enum qmp_frame_result limit = QMP_FRAME_MORE;
    char first;

    *consumed = step != STEP_BEHIND && step != STEP_AGAIN;
    if (*consumed && !count_byte(f, step)) {
        limit = limit_exceeded(f, "JSON token size limit exceeded");
        strbuf_reset(&f->token);
    }
    switch (step) {
    case STEP_TAKE:
        if (!f->discard) {
            strbuf_add_char(&f->token, c);
        }
        break;
    case STEP_AGAIN:
        f->lex = LEX_START;
        break;
    case STEP_BAD:
        strbuf_add_char(&f->token, c);
        return bad_token(f);
    case STEP_LAST:
        if (!f->discard) {
            strbuf_add_char(&f->token, c);
        }
        __attribute__((fallthrough));
    case STEP_BEHIND:
        first = token_first(f, c);
        f->lex = LEX_START;
        if (limit != QMP_FRAME_MORE) {
            end_of_token(f, first);
            return limit;
        }
        return end_of_token(f, first);
    case STEP_SKIP:
        break;
    }
    return limit;
}

enum qmp_frame_result
qmp_frame_feed(struct qmp_frame *f, const char **data, size_t *len)
{
    while (*len) {
        bool consumed;
        enum qmp_frame_result result = feed_byte(f, **data, &consumed);

        *data += consumed;
        *len -= consumed;
        if (result != QMP_FRAME_MORE) {
            return result;
        }
    }
    return QMP_FRAME_MORE;
}

enum qmp_frame_result
qmp_frame_end(struct qmp_frame *f)
{
    bool consumed, started;
    enum qmp_frame_result result = QMP_FRAME_MORE;

    /* A line feed ends numbers and keywords, and is wrong within the rest. */
    if (f->lex != LEX_START && f->lex != LEX_RECOVERY) {
        if (f->lex == LEX_STRING || f->lex == LEX_ESCAPE) {
            f->lex = LEX_START;
            strbuf_reset(&f->token);
            f->braces++; /* something is open */
        } else {
            result = feed_byte(f, '\n', &consumed);
        }
    }
    f->lex = LEX_START;
    if (result != QMP_FRAME_MORE) {
        return result;
    }
    started = f->braces > 0 || f->brackets > 0;
    reset_value(f);
    return started ? report(f, "JSON parse error, premature EOI")
                   : QMP_FRAME_MORE;
}
