// SPDX-License-Identifier: BSD-3-Clause
/*
 * Errors of the control path: a class (QMP's), a negative errno, a message
 * that says what was tried, on what and why it failed, and an optional hint
 * that says what to do.  The data path returns 0 or -errno and nothing else.
 *
 * A `struct err` lives on the caller's stack, initialised with ERR_INIT, and
 * is passed last.  Every function that takes one accepts NULL (the message is
 * then dropped).  The first error set wins; setting a set error asserts.
 */
#ifndef SLUICE_BASE_ERR_H
#define SLUICE_BASE_ERR_H

#include <stdbool.h>

/* QMP's error classes (QEMU qapi/error.json, QapiErrorClass). */
enum err_class {
    ERR_GENERIC,
    ERR_COMMAND_NOT_FOUND,
    ERR_DEVICE_NOT_FOUND,
    ERR_DEVICE_NOT_ACTIVE,
};

struct err {
    enum err_class class;
    int code; /* negative errno, 0 while no error is set */
    char *msg;
    char *hint; /* may be NULL */
};

#define ERR_INIT                                                               \
    {                                                                          \
        .code = 0                                                              \
    }

/*
 * Sets the error and returns @code, so that `return err_set(...)` reads well.
 * @code is a negative errno.  The message has no trailing full stop.
 */
int err_set(struct err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int err_set_class(struct err *err, enum err_class class, int code,
                  const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* As err_set(), with ": " and the text of @code appended. */
int err_set_errno(struct err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Adds a sentence that says what to do; replaces an earlier hint. */
void err_hint(struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Puts "text: " in front of the message. */
void err_prefix(struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Moves @from into @to (which may be NULL); returns the code. */
int err_propagate(struct err *to, struct err *from);
/* Frees the texts and makes the struct usable again. */
void err_clear(struct err *err);

static inline bool
err_is_set(const struct err *err)
{
    return err->code != 0;
}

/* "GenericError" and so on. */
const char *err_class_name(enum err_class class);
/* The text of an errno, positive or negative; thread-safe. */
const char *err_text(int code);

#define auto_err __attribute__((cleanup(err_clear))) struct err

#endif
