// SPDX-License-Identifier: BSD-3-Clause
/* Numbers and switches of the command line: see number.h. */
#include "control/number.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

int
number_parse_bool(const char *text, bool *ret)
{
    static const char *const on[] = {"on", "yes", "true", "y"};
    static const char *const off[] = {"off", "no", "false", "n"};

    for (size_t i = 0; i < ARRAY_LEN(on); i++) {
        if (!strcmp(text, on[i]) || !strcmp(text, off[i])) {
            *ret = !strcmp(text, on[i]);
            return 0;
        }
    }
    return -EINVAL;
}

int
number_parse_int(const char *text, int64_t *ret)
{
    char *end;

    errno = 0;
    long long value = strtoll(text, &end, 0);
    if (errno) {
        return -errno;
    }
    if (end == text || *end) {
        return -EINVAL;
    }
    *ret = value;
    return 0;
}

/* The power of two that a suffix stands for, -1 where it is none. */
static int
suffix_shift(char c)
{
    const char *suffixes = "BKMGTPE";
    const char *at = c ? strchr(suffixes, toupper((unsigned char)c)) : NULL;

    return at ? (int)(at - suffixes) * 10 : -1;
}

/*
 * Adds the digits behind the point, scaled, without floating point: a double
 * would round sizes above 2^53.
 */
static int
add_fraction(const char **p, int shift, uint64_t *value)
{
    const char *digits = *p;
    size_t n = strspn(digits, "0123456789");
    uint64_t part = 0;

    /* From the last digit to the first: part = (digit * 2^shift + part) / 10;
     * at most 10 * 2^60 fits, and digits beyond the 20th weigh nothing. */
    for (size_t i = n < 20 ? n : 20; i-- > 0;) {
        part = (((uint64_t)(digits[i] - '0') << shift) + part) / 10;
    }
    *p += n;
    return add_ok(*value, part, value) ? 0 : -ERANGE;
}

int
number_parse_size(const char *text, int64_t *ret)
{
    const char *p = text;
    bool hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X');
    char *end;

    if (!isdigit((unsigned char)*p)) {
        return -EINVAL;
    }
    errno = 0;
    uint64_t value = strtoull(p, &end, hex ? 16 : 10);
    if (errno) {
        return -errno;
    }
    p = end;
    const char *fraction = *p == '.' && !hex ? p + 1 : NULL;
    if (fraction) {
        p = fraction + strspn(fraction, "0123456789");
    }
    int shift = 0;
    if (*p && !hex) {
        shift = suffix_shift(*p++);
    }
    if (*p || shift < 0 || (fraction && (p[-1] == '.' || !shift))) {
        return -EINVAL;
    }
    if (!mul_ok(value, 1ULL << shift, &value) ||
        (fraction && add_fraction(&fraction, shift, &value) < 0) ||
        value > INT64_MAX) {
        return -ERANGE;
    }
    *ret = (int64_t)value;
    return 0;
}
