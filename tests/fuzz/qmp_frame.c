// SPDX-License-Identifier: BSD-3-Clause
/*
 * The framer under any bytes: what it calls a value must be one for jansson,
 * and how the bytes are cut must not matter.  Built with -fsanitize=fuzzer it
 * is a fuzzer; with replay.c it runs the committed corpus.
 */
#include "control/qmp_frame.h"

#include <jansson.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
must(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void
check_value(const struct strbuf *text)
{
    json_error_t why;
    json_t *json = json_loads(text->data, JSON_DECODE_ANY, &why);

    /* A real beyond a double's range is JSON, but not for jansson. */
    must(json || json_error_code(&why) == json_error_numeric_overflow);
    json_decref(json);
}

/* Feeds @step bytes at a time and collects what comes out. */
static void
collect(const char *data, size_t size, size_t step, struct strbuf *out)
{
    struct qmp_frame f;
    enum qmp_frame_result r;

    qmp_frame_init(&f);
    for (size_t at = 0; at < size; at += step) {
        const char *p = data + at;
        size_t n = size - at < step ? size - at : step;

        while ((r = qmp_frame_feed(&f, &p, &n)) != QMP_FRAME_MORE) {
            if (r == QMP_FRAME_VALUE) {
                check_value(&f.text);
            }
            strbuf_add_char(out, r == QMP_FRAME_VALUE ? 'V' : 'E');
            strbuf_add_str(out, strbuf_text(&f.text));
        }
        must(n == 0);
    }
    if (qmp_frame_end(&f) == QMP_FRAME_VALUE) {
        check_value(&f.text);
    }
    qmp_frame_fini(&f);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct strbuf whole = {0}, bytes = {0};

    collect((const char *)data, size, size ? size : 1, &whole);
    collect((const char *)data, size, 1, &bytes);
    must(whole.len == bytes.len &&
         !strcmp(strbuf_text(&whole), strbuf_text(&bytes)));
    strbuf_fini(&whole);
    strbuf_fini(&bytes);
    return 0;
}
