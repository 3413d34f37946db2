// SPDX-License-Identifier: BSD-3-Clause
/*
 * Strings as clients write them: in either kind of quotes, with QEMU's
 * escapes, in UTF-8 that need not be valid.  Pure functions.
 */
#ifndef SLUICE_CONTROL_QMP_STRING_H
#define SLUICE_CONTROL_QMP_STRING_H

#include "control/strbuf.h"

/*
 * Appends to @out the string token @tok, which has its quotes, as a plain
 * JSON string: double quotes, and escapes only where JSON needs them.
 * Returns NULL, or a message for the client, which the caller frees; @out has
 * then an incomplete string at its end.
 *
 * Stricter than QEMU in one point: U+0000 is refused, escaped or not, because
 * no name or path can have it.
 */
char *qmp_string_normalize(const char *tok, size_t len, struct strbuf *out);
/*
 * The first @len bytes of @s as valid UTF-8 for an error message: what is no
 * character becomes U+FFFD, and what is long is cut.  The caller frees it.
 */
char *qmp_string_show(const char *s, size_t len);

#endif
