// SPDX-License-Identifier: BSD-3-Clause
/* Control-path errors: see err.h for the contract. */
#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static int
set(struct err *err, enum err_class class, int code, char *msg)
{
    assert(code < 0);
    if (!err) {
        free(msg);
        return code;
    }
    assert(!err->code);
    err->class = class;
    err->code = code;
    err->msg = msg;
    err->hint = NULL;
    return code;
}

int
err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *msg = xvasprintf(fmt, ap);
    va_end(ap);
    return set(err, ERR_GENERIC, code, msg);
}

int
err_set_class(struct err *err, enum err_class class, int code, const char *fmt,
              ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *msg = xvasprintf(fmt, ap);
    va_end(ap);
    return set(err, class, code, msg);
}

int
err_set_errno(struct err *err, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    auto_free char *what = xvasprintf(fmt, ap);
    va_end(ap);
    return set(err, ERR_GENERIC, code,
               xasprintf("%s: %s", what, err_text(code)));
}

void
err_hint(struct err *err, const char *fmt, ...)
{
    if (!err) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    free(err->hint);
    err->hint = xvasprintf(fmt, ap);
    va_end(ap);
}

void
err_prefix(struct err *err, const char *fmt, ...)
{
    if (!err) {
        return;
    }
    assert(err->code);
    va_list ap;
    va_start(ap, fmt);
    auto_free char *what = xvasprintf(fmt, ap);
    va_end(ap);
    char *msg = xasprintf("%s: %s", what, err->msg);
    free(err->msg);
    err->msg = msg;
}

int
err_propagate(struct err *to, struct err *from)
{
    int code = from->code;

    if (!to) {
        err_clear(from);
        return code;
    }
    assert(!to->code);
    *to = *from;
    *from = (struct err)ERR_INIT;
    return code;
}

void
err_clear(struct err *err)
{
    free(err->msg);
    free(err->hint);
    *err = (struct err)ERR_INIT;
}

const char *
err_class_name(enum err_class class)
{
    switch (class) {
    case ERR_COMMAND_NOT_FOUND:
        return "CommandNotFound";
    case ERR_DEVICE_NOT_FOUND:
        return "DeviceNotFound";
    case ERR_DEVICE_NOT_ACTIVE:
        return "DeviceNotActive";
    case ERR_GENERIC:
        break;
    }
    return "GenericError";
}

const char *
err_text(int code)
{
    const char *text = strerrordesc_np(code < 0 ? -code : code);

    return text ? text : "Unknown error";
}
