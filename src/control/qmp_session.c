// SPDX-License-Identifier: BSD-3-Clause
/*
 * A session is in one of two states: negotiating, where only qmp_capabilities
 * is known, and negotiated, where all others are.  A request is one value of
 * the framer, or its error message in the place of one, so that answers keep
 * the order of what they answer.
 */
#include "control/qmp_session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/list.h"
#include "base/mem.h"
#include "control/qmp_dispatch.h"
#include "control/qmp_frame.h"
#include "control/qmp_version.h"

struct qmp_request {
    struct list link;
    char *text; /* JSON, or the framer's message */
    bool bad;
};

struct qmp_session {
    struct qmp_frame frame;
    struct list requests;
    size_t queued;
    bool pretty;
    bool negotiated;
};

/* A request's parts; @json owns the others. */
struct parts {
    json_t *json;
    json_t *id; /* may be NULL */
    const char *command;
    json_t *args; /* may be NULL */
};

struct qmp_session *
qmp_session_new(bool pretty)
{
    struct qmp_session *s = xzalloc(sizeof(*s));

    qmp_frame_init(&s->frame);
    list_init(&s->requests);
    s->pretty = pretty;
    return s;
}

void
qmp_request_free(struct qmp_request *request)
{
    if (request) {
        free(request->text);
        free(request);
    }
}

void
qmp_session_free(struct qmp_session *s)
{
    struct qmp_request *request;

    if (!s) {
        return;
    }
    while ((request = qmp_session_next(s))) {
        qmp_request_free(request);
    }
    qmp_frame_fini(&s->frame);
    free(s);
}

char *
qmp_session_format(const struct qmp_session *s, const json_t *value)
{
    size_t flags = JSON_ENSURE_ASCII | (s->pretty ? JSON_INDENT(4) : 0);
    char *text = json_dumps(value, flags);

    /* It fails where memory is out, or a text of ours is no UTF-8. */
    assert(text);
    char *line = xasprintf("%s\r\n", text);
    free(text);
    return line;
}

char *
qmp_session_greeting(const struct qmp_session *s)
{
    json_t *greeting = json_pack("{s:{s:o, s:[]}}", "QMP", "version",
                                 qmp_version(), "capabilities");
    char *text = qmp_session_format(s, greeting);

    json_decref(greeting);
    return text;
}

bool
qmp_session_negotiated(const struct qmp_session *s)
{
    return s->negotiated;
}

size_t
qmp_session_queued(const struct qmp_session *s)
{
    return s->queued;
}

void
qmp_session_feed(struct qmp_session *s, const void *bytes, size_t len)
{
    const char *data = bytes;
    enum qmp_frame_result result;

    while ((result = qmp_frame_feed(&s->frame, &data, &len)) !=
           QMP_FRAME_MORE) {
        struct qmp_request *request = xzalloc(sizeof(*request));

        request->text = xstrdup(strbuf_text(&s->frame.text));
        request->bad = result == QMP_FRAME_ERROR;
        list_push(&s->requests, &request->link);
        s->queued++;
    }
}

struct qmp_request *
qmp_session_next(struct qmp_session *s)
{
    if (list_empty(&s->requests)) {
        return NULL;
    }
    struct qmp_request *request =
        list_first(&s->requests, struct qmp_request, link);

    list_remove(&request->link);
    s->queued--;
    return request;
}

static int
load(const struct qmp_request *request, struct parts *parts, struct err *err)
{
    json_error_t why;

    if (request->bad) {
        return err_set(err, -EINVAL, "%s", request->text);
    }
    parts->json = json_loads(request->text,
                             JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (!parts->json) {
        bool duplicate = json_error_code(&why) == json_error_duplicate_key;

        return err_set(err, -EINVAL, "JSON parse error, %s",
                       duplicate ? "duplicate key" : why.text);
    }
    if (!json_is_object(parts->json)) {
        return err_set(err, -EINVAL, "QMP input must be a JSON object");
    }
    parts->id = json_object_get(parts->json, "id");
    return 0;
}

static int
take_apart(struct parts *parts, struct err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach (parts->json, key, value) {
        if (!strcmp(key, "execute")) {
            if (!json_is_string(value)) {
                return err_set(err, -EINVAL,
                               "QMP input member '%s' must be a string", key);
            }
            parts->command = json_string_value(value);
        } else if (!strcmp(key, "arguments")) {
            if (!json_is_object(value)) {
                return err_set(err, -EINVAL,
                               "QMP input member '%s' must be an object", key);
            }
            parts->args = value;
        } else if (strcmp(key, "id")) {
            return err_set(err, -EINVAL,
                           "QMP input member '%s' is unexpected", key);
        }
    }
    if (!parts->command) {
        return err_set(err, -EINVAL, "QMP input lacks member 'execute'");
    }
    return 0;
}

/* qmp_capabilities, in either state. */
static int
negotiate(struct qmp_session *s, json_t *args, struct err *err)
{
    const struct qmp_command *self = qmp_command_find("qmp_capabilities");
    json_t *none = json_object();
    int r = schema_check(self->args, args ? args : none, err);

    json_decref(none);
    if (r < 0) {
        return r;
    }
    if (s->negotiated) {
        return err_set_class(err, ERR_COMMAND_NOT_FOUND, -EALREADY,
                             "Capabilities negotiation is already complete, "
                             "command ignored");
    }
    if (json_array_size(json_object_get(args, "enable"))) {
        return err_set(err, -EINVAL, "Capability oob not available");
    }
    s->negotiated = true;
    return 0;
}

static int
run(struct qmp_session *s, struct control *ctl, struct parts *parts,
    json_t **ret, struct err *err)
{
    if (!strcmp(parts->command, "qmp_capabilities")) {
        int r = negotiate(s, parts->args, err);

        *ret = r < 0 ? NULL : json_object();
        return r;
    }
    if (!s->negotiated) {
        return err_set_class(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                             "Expecting capabilities negotiation with "
                             "'qmp_capabilities'");
    }
    return qmp_dispatch(ctl, parts->command, parts->args, ret, err);
}

/* It may quote a file name in any encoding. */
static json_t *
text_of(const char *text)
{
    json_t *string = json_string(text);

    if (!string) {
        auto_free char *ascii = xstrdup(text);

        for (char *p = ascii; *p; p++) {
            *p = *p & 0x80 ? '?' : *p;
        }
        string = json_string(ascii);
    }
    return string;
}

/*
 * With a member of our own, what to do about it: clients "should be able to
 * ignore" keys they do not know (qmp-spec, Compatibility Considerations).
 */
static json_t *
error_object(const struct err *err)
{
    json_t *error = json_pack("{s:s, s:o}", "class", err_class_name(err->class),
                              "desc", text_of(err->msg));

    if (err->hint) {
        json_object_set_new(error, "hint", text_of(err->hint));
    }
    return error;
}

char *
qmp_session_execute(struct qmp_session *s, struct control *ctl,
                    struct qmp_request *request)
{
    auto_err err = ERR_INIT;
    struct parts parts = {0};
    json_t *answer = json_object(), *ret = NULL;
    int r = load(request, &parts, &err);

    if (r == 0) {
        r = take_apart(&parts, &err);
    }
    if (r == 0) {
        r = run(s, ctl, &parts, &ret, &err);
    }
    if (r < 0) {
        json_object_set_new(answer, "error", error_object(&err));
    } else {
        json_object_set_new(answer, "return", ret);
    }
    if (parts.id) {
        json_object_set(answer, "id", parts.id);
    }
    char *text = qmp_session_format(s, answer);

    json_decref(answer);
    json_decref(parts.json);
    qmp_request_free(request);
    return text;
}
