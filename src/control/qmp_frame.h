// SPDX-License-Identifier: BSD-3-Clause
/*
 * The framer: cuts a client's bytes into JSON values, before a JSON library
 * sees them.  A pure state machine, bytes in, texts out: no sockets, no
 * yielding.
 *
 * It takes what QEMU takes: values need no separator, strings may stand in
 * single quotes.  A value comes out as plain JSON (double quotes, valid
 * UTF-8, no U+0000; integers beyond 64 bits as reals).  What is no JSON comes
 * out as an error with QEMU's text, one for each bad value, and the framer
 * goes on behind it.  A control character or a byte 0xFE or 0xFF drops what
 * came before.
 */
#ifndef SLUICE_CONTROL_QMP_FRAME_H
#define SLUICE_CONTROL_QMP_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#include "control/strbuf.h"

#define QMP_FRAME_MAX_BYTES (1U << 20) /* of one value, as it came in */
#define QMP_FRAME_MAX_DEPTH 64

enum qmp_frame_result {
    QMP_FRAME_MORE, /* all bytes are consumed; nothing is complete */
    QMP_FRAME_VALUE, /* @text has a value */
    QMP_FRAME_ERROR, /* @text has an error message */
};

struct qmp_frame {
    struct strbuf text; /* valid after VALUE and ERROR, until the next call */
    /* The rest is the framer's own. */
    struct strbuf token, out;
    char *error; /* the first mistake in the value at hand */
    uint64_t bytes; /* of the value at hand */
    int64_t braces, brackets; /* open ones */
    uint64_t objects; /* bit n: level n is an object, not a list */
    unsigned depth;
    int lex, parse; /* states */
    char quote;
    bool discard; /* past a limit: skip the rest of the value */
};

void qmp_frame_init(struct qmp_frame *f);
void qmp_frame_fini(struct qmp_frame *f);
/*
 * Consumes bytes up to the end of the next value or mistake; *data and *len
 * advance by what was consumed.  Call again until it returns MORE.
 */
enum qmp_frame_result qmp_frame_feed(struct qmp_frame *f, const char **data,
                                     size_t *len);
/*
 * Says that no more bytes come: completes a number or a keyword, and reports
 * an incomplete value.  Call until it returns MORE.
 */
enum qmp_frame_result qmp_frame_end(struct qmp_frame *f);

#endif
