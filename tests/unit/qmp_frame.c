// SPDX-License-Identifier: BSD-3-Clause
/* control/qmp_frame: what comes out for what comes in, however it is cut. */
#include "control/qmp_frame.h"

#include <stdlib.h>

#include "tap.h"

/* Appends "V:text|" and "E:text|" for what @n bytes of @in complete. */
static void
feed(struct qmp_frame *f, const char *in, size_t n, struct strbuf *out)
{
    enum qmp_frame_result r;

    while ((r = qmp_frame_feed(f, &in, &n)) != QMP_FRAME_MORE) {
        strbuf_add_str(out, r == QMP_FRAME_VALUE ? "V:" : "E:");
        strbuf_add_str(out, strbuf_text(&f->text));
        strbuf_add_char(out, '|');
    }
    CHECK_INT(n, 0);
}

/* Feeds @in whole, byte by byte, and cut in two at every place. */
static void
check_bytes(const char *in, size_t n, const char *want)
{
    for (size_t cut = 0; cut <= n + 1; cut++) {
        struct qmp_frame f;
        struct strbuf out = {0};

        qmp_frame_init(&f);
        if (cut == n + 1) {
            for (size_t i = 0; i < n; i++) {
                feed(&f, in + i, 1, &out);
            }
        } else {
            feed(&f, in, cut, &out);
            feed(&f, in + cut, n - cut, &out);
        }
        CHECK_STR(strbuf_text(&out), want);
        strbuf_fini(&out);
        qmp_frame_fini(&f);
    }
}

static void
check(const char *in, const char *want)
{
    check_bytes(in, strlen(in), want);
}

#define BAD(text) "E:JSON parse error, " text "|"

static void
values(void)
{
    check("{\"a\": [1, -2.5e3, true,\tnull, {}, []]}",
          "V:{\"a\":[1,-2.5e3,true,null,{},[]]}|");
    check("{}{}\r\n[]", "V:{}|V:{}|V:[]|");
    check("5 true\n1\"a\"", "V:5|V:true|V:1|V:\"a\"|");
    check("", "");
    check(" \r\n\t", "");
    check("{\"a\":nul", "");
    check("[0,-0,0.5,1e3,10E-2]", "V:[0,-0,0.5,1e3,10E-2]|");
    check("[9223372036854775807,-9223372036854775808]",
          "V:[9223372036854775807,-9223372036854775808]|");
    check("[9223372036854775808]", "V:[9223372036854775808.0]|");
}

static void
strings(void)
{
    check("{'a':'b'}", "V:{\"a\":\"b\"}|");
    check("['x\\'y\"z']", "V:[\"x'y\\\"z\"]|");
    check("[\"it's\", \"\\'\"]", "V:[\"it's\",\"'\"]|");
    check("['{\"', \"}]\", '\\\\']", "V:[\"{\\\"\",\"}]\",\"\\\\\"]|");
    check("[\"\\n\\t\\u0041\\/\\u001f\"]", "V:[\"\\u000a\\u0009A/\\u001f\"]|");
    check("[\"\\u00e9\\ud83d\\ude00\xc3\xa9\xe2\x82\xac\"]",
          "V:[\"\xc3\xa9\xf0\x9f\x98\x80\xc3\xa9\xe2\x82\xac\"]|");
    check("[\"\x7f\"]", "V:[\"\x7f\"]|");
    check("[\"\\x\"]", BAD("invalid escape sequence in string"));
    check("[\"\\u12\"]", BAD("\\u12 is not a valid Unicode character"));
    check("[\"\\ud800\"]", BAD("\\ud800 is not a valid Unicode character"));
    check("[\"\\udc00\"]", BAD("\\udc00 is not a valid Unicode character"));
    check("[\"\\ufffe\"]", BAD("\\ufffe is not a valid Unicode character"));
    check("[\"\\ud800\\u0041\"]",
          BAD("\\ud800 is not a valid Unicode character"));
    check("[\"\\u0000\"]", BAD("\\u0000 is not a valid Unicode character"));
}

static void
utf8(void)
{
    static const char *const bad[] = {
        "[\"\xc3(\"]",         "[\"a\x80\"]",         "[\"\xed\xa0\x80\"]",
        "[\"\xc0\x80\"]",      "[\"\xe0\x80\xaf\"]",  "[\"\xef\xbf\xbf\"]",
        "[\"\xf4\x90\x80\x80\"]", "[\"\xf0\x9f\"]",   "[\"\xf8\x88\x80\x80\"]",
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        check(bad[i], BAD("invalid UTF-8 sequence in string"));
    }
}

static void
grammar(void)
{
    check("{]", BAD("expecting value"));
    check("{\"a\" 1}[]", BAD("missing : in object pair") "V:[]|");
    check("{\"a\":}[]", BAD("expecting value") "V:[]|");
    check("{\"a\":1,}", BAD("expecting value"));
    check("[1 2]", BAD("expected separator in list"));
    check("[1,]", BAD("expecting value"));
    check("]}", BAD("expecting value") BAD("expecting value"));
    check("5,6\n", "V:5|" BAD("expecting value") "V:6|");
    check("foo\n", BAD("invalid keyword 'foo'"));
    check("{a:1}", BAD("invalid keyword 'a'"));
    check("{5:1}", BAD("key is not a string in object"));
    check("{[]:1}{}", BAD("key is not a string in object") "V:{}|");
    check("{\"a\":1 \"b\":2}", BAD("expected separator in dict"));
    check("{\"a\":1:2}", BAD("expected separator in dict"));
    check("[1}{}", BAD("expected separator in list") "V:{}|");
    check("{\"a\":1]{}", BAD("expected separator in dict") "V:{}|");
    check("{\"a\":truefalse}", BAD("invalid keyword 'truefalse'"));
}

static void
lexical_mistakes(void)
{
    check("{\"a\":01}", BAD("stray '01'") BAD("expecting value"));
    check("{\"a\":-}{}", BAD("stray '-}'") "V:{}|");
    check("{\"a\":1e}", BAD("stray '1e}'"));
    check("{\"a\":.5}", BAD("stray '.'") BAD("expecting value"));
    check("{\"a\":%d}", BAD("stray '%'") BAD("expecting value"));
    check("-\n", BAD("stray '-\n'"));
    check("1.5.5\n{}", "V:1.5|" BAD("stray '.'") "V:{}|");
    check("{\"a\":\"abc\n{}", BAD("stray '\"abc\n'") "V:{}|");
    check("%\tfoo\n{}", BAD("stray '%'") "V:{}|");
    check("[\"x\xfe\"{}", BAD("stray '\"x\xef\xbf\xbd'") "V:{}|");
}

static void
reset_bytes(void)
{
    check("{\"a\":null\xff{}", BAD("stray '\xef\xbf\xbd'") "V:{}|");
    check("[[[[\x01{}", BAD("stray '\x01'") "V:{}|");
    check("\xff\xff[]",
          BAD("stray '\xef\xbf\xbd'") BAD("stray '\xef\xbf\xbd'") "V:[]|");
    check_bytes("\0{}", 3, BAD("stray ''") "V:{}|");
    check("\x01~garbage\xe9{}", BAD("stray '\x01'") "V:{}|");
}

/* @n times @open around nothing, then a further value. */
static void
check_depth(size_t n, const char *want)
{
    struct qmp_frame f;
    struct strbuf in = {0}, out = {0};

    for (size_t i = 0; i < 2 * n; i++) {
        strbuf_add_char(&in, i < n ? '[' : ']');
    }
    strbuf_add_str(&in, "{}");
    qmp_frame_init(&f);
    feed(&f, in.data, in.len, &out);
    if (want) {
        CHECK_STR(strbuf_text(&out), want);
    } else {
        CHECK_INT(out.len, 2 * n + strlen("V:|V:{}|"));
        CHECK(!strncmp(strbuf_text(&out), "V:[[[", 5));
    }
    strbuf_fini(&in);
    strbuf_fini(&out);
    qmp_frame_fini(&f);
}

static void
depth_limit(void)
{
    check_depth(QMP_FRAME_MAX_DEPTH, NULL);
    check_depth(QMP_FRAME_MAX_DEPTH + 1,
                "E:JSON nesting depth limit exceeded|V:{}|");
    check_depth(100000, "E:JSON nesting depth limit exceeded|V:{}|");
}

/* A value of @total bytes, which begins with @begin and ends with @end. */
static void
check_size(const char *begin, const char *end, size_t total, bool fits)
{
    struct qmp_frame f;
    struct strbuf in = {0}, out = {0};

    strbuf_add_str(&in, begin);
    while (in.len < total - strlen(end)) {
        strbuf_add_char(&in, *begin == '5' ? '5' : ' ');
    }
    strbuf_add_str(&in, end);
    strbuf_add_str(&in, "\n{}");
    qmp_frame_init(&f);
    feed(&f, in.data, in.len, &out);
    if (fits) {
        CHECK(!strncmp(strbuf_text(&out), "V:", 2));
        CHECK_STR(strbuf_text(&out) + out.len - 5, "V:{}|");
    } else {
        CHECK_STR(strbuf_text(&out),
                  "E:JSON token size limit exceeded|V:{}|");
    }
    strbuf_fini(&in);
    strbuf_fini(&out);
    qmp_frame_fini(&f);
}

static void
size_limit(void)
{
    static const char *const shape[][2] = {
        {"\"", "\""}, {"[\"", "\"]"}, {"[1,", "2,{'a':[]}]"}, {"5", "5"}};

    for (size_t i = 0; i < ARRAY_LEN(shape); i++) {
        const char *b = shape[i][0], *e = shape[i][1];

        check_size(b, e, QMP_FRAME_MAX_BYTES, true);
        check_size(b, e, QMP_FRAME_MAX_BYTES + 1, false);
        check_size(b, e, QMP_FRAME_MAX_BYTES + 2, false);
        check_size(b, e, 3 * QMP_FRAME_MAX_BYTES, false);
    }
}

static void
check_end(const char *in, enum qmp_frame_result want, const char *text)
{
    struct qmp_frame f;
    size_t n = strlen(in);

    qmp_frame_init(&f);
    CHECK_INT(qmp_frame_feed(&f, &in, &n), QMP_FRAME_MORE);
    CHECK_INT(qmp_frame_end(&f), want);
    if (text) {
        CHECK_STR(strbuf_text(&f.text), text);
    }
    CHECK_INT(qmp_frame_end(&f), QMP_FRAME_MORE);
    qmp_frame_fini(&f);
}

static void
end_of_input(void)
{
    check_end("", QMP_FRAME_MORE, NULL);
    check_end("  ", QMP_FRAME_MORE, NULL);
    check_end("12", QMP_FRAME_VALUE, "12");
    check_end("null", QMP_FRAME_VALUE, "null");
    check_end("nul", QMP_FRAME_ERROR,
              "JSON parse error, invalid keyword 'nul'");
    check_end("{", QMP_FRAME_ERROR, "JSON parse error, premature EOI");
    check_end("{\"a\":1", QMP_FRAME_ERROR, "JSON parse error, premature EOI");
    check_end("\"ab", QMP_FRAME_ERROR, "JSON parse error, premature EOI");
    check_end("[\"ab\\", QMP_FRAME_ERROR, "JSON parse error, premature EOI");
}

int
main(void)
{
    tap_run("values come out as plain JSON", values);
    tap_run("strings in either quotes", strings);
    tap_run("what is no UTF-8 is refused", utf8);
    tap_run("mistakes in the grammar end with their value", grammar);
    tap_run("mistakes in tokens end at once", lexical_mistakes);
    tap_run("control characters and 0xFF reset", reset_bytes);
    tap_run("depth is limited", depth_limit);
    tap_run("size is limited", size_limit);
    tap_run("the end of the input", end_of_input);
    return tap_done();
}
