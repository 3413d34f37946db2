// SPDX-License-Identifier: BSD-3-Clause
/*
 * The test programs' harness: TAP on standard output.  A test program calls
 * tap_run() for each case and returns tap_done().  A failing check says where
 * and what, and ends the case's count, not the program.
 */
#ifndef SLUICE_TESTS_TAP_H
#define SLUICE_TESTS_TAP_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int tap_cases, tap_failed_checks;

#define CHECK(cond)                                                            \
    do {                                                                       \
        if (!(cond)) {                                                         \
            tap_failed_checks++;                                               \
            printf("# %s:%d: failed: %s\n", __FILE__, __LINE__, #cond);        \
        }                                                                      \
    } while (0)

#define CHECK_INT(got, want)                                                   \
    do {                                                                       \
        long long tap_got = (long long)(got), tap_want = (long long)(want);    \
        if (tap_got != tap_want) {                                             \
            tap_failed_checks++;                                               \
            printf("# %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__,      \
                   #got, tap_got, tap_want);                                   \
        }                                                                      \
    } while (0)

#define CHECK_STR(got, want)                                                   \
    do {                                                                       \
        const char *tap_got = (got), *tap_want = (want);                       \
        if (!tap_got || strcmp(tap_got, tap_want)) {                           \
            tap_failed_checks++;                                               \
            printf("# %s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__,  \
                   #got, tap_got ? tap_got : "(null)", tap_want);              \
        }                                                                      \
    } while (0)

/* Runs one case, named by what fails when it fails. */
static inline void
tap_run(const char *name, void (*fn)(void))
{
    int before = tap_failed_checks;

    fn();
    printf("%s %d - %s\n", tap_failed_checks == before ? "ok" : "not ok",
           ++tap_cases, name);
    fflush(stdout);
}

static inline int
tap_done(void)
{
    printf("1..%d\n", tap_cases);
    return tap_failed_checks != 0;
}

#endif
