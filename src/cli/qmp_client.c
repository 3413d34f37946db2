// SPDX-License-Identifier: BSD-3-Clause
/*
 * The daemon answers every request with one line, and sends events in between,
 * a line each.  A signal ends a wait with -EINTR: Ctrl-C detaches.
 */
#include "cli/qmp_client.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "control/control.h"

enum { BUFFER_MAX = 64 << 20 };

struct qmp_client {
    int fd;
    char *buf;
    size_t len, cap;
    json_t *events; /* that came while an answer was awaited */
    json_t *called; /* what users call nodes, where they know no node */
};

/* Reads until a whole line is there; it stays in the buffer. */
static int
fill_line(struct qmp_client *c, int timeout_ms, struct err *err)
{
    while (!memchr(c->buf, '\n', c->len)) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        int n = poll(&p, 1, timeout_ms);

        if (n <= 0) {
            return n == 0 ? -EAGAIN : err_set(err, -errno, "Interrupted");
        }
        if (c->len + 65536 > c->cap) {
            if (c->cap > BUFFER_MAX) {
                return err_set(err, -EMSGSIZE, "The daemon's answer is too "
                                               "long");
            }
            c->cap = c->cap * 2 + 131072;
            c->buf = xrealloc(c->buf, c->cap);
        }
        ssize_t got = read(c->fd, c->buf + c->len, 65536);

        if (got <= 0) {
            return err_set(err, -ECONNRESET, "The daemon is gone");
        }
        c->len += (size_t)got;
    }
    return 0;
}

static int
next_value(struct qmp_client *c, int timeout_ms, json_t **ret, struct err *err)
{
    int r = fill_line(c, timeout_ms, err);

    if (r) {
        return r;
    }
    size_t n = (size_t)((char *)memchr(c->buf, '\n', c->len) - c->buf) + 1;

    *ret = json_loadb(c->buf, n, 0, NULL);
    memmove(c->buf, c->buf + n, c->len - n);
    c->len -= n;
    return *ret ? 0 : err_set(err, -EPROTO, "The daemon's answer is no JSON");
}

static int
connect_to(const char *path, struct err *err)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(sun.sun_path)) {
        return err_set(err, -EINVAL, "The socket path '%s' is too long", path);
    }
    strcpy(sun.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&sun, sizeof(sun))) {
        int code = -errno;

        close(fd);
        err_set(err, -ECONNREFUSED, "There is no daemon at '%s': %s", path,
                err_text(code));
        err_hint(err, "start sluiced, or name its socket with --socket or "
                      "$SLUICE_SOCKET");
        return -ECONNREFUSED;
    }
    return fd;
}

int
qmp_client_take(int fd, struct qmp_client **ret, struct err *err)
{
    struct qmp_client *c = xzalloc(sizeof(*c));
    json_t *greeting = NULL;

    c->events = json_array();
    c->called = json_object();
    c->cap = 131072;
    c->buf = xmalloc(c->cap);
    c->fd = fd;
    int r = next_value(c, -1, &greeting, err);

    json_decref(greeting);
    if (!r) {
        r = qmp_client_call(c, "qmp_capabilities", NULL, NULL, err);
    }
    if (r) {
        qmp_client_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

int
qmp_client_open(const char *path, struct qmp_client **ret, struct err *err)
{
    const char *env = getenv("SLUICE_SOCKET");
    auto_free char *usual = control_default_socket();
    int fd = connect_to(path ? path : env ? env : usual, err);

    return fd < 0 ? fd : qmp_client_take(fd, ret, err);
}

void
qmp_client_close(struct qmp_client *c)
{
    close(c->fd);
    json_decref(c->events);
    json_decref(c->called);
    free(c->buf);
    free(c);
}

static enum err_class
class_of(const char *name)
{
    for (enum err_class i = ERR_GENERIC; i <= ERR_DEVICE_NOT_ACTIVE; i++) {
        if (name && !strcmp(name, err_class_name(i))) {
            return i;
        }
    }
    return ERR_GENERIC;
}

const char *
qmp_text(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s ? s : "";
}

json_int_t
qmp_number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

int
qmp_error_code(const char *text)
{
    static const int codes[] = {ENOENT, EACCES, EPERM,  EROFS,
                                ENOSPC, EEXIST, ECANCELED};

    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        if (strstr(text, err_text(codes[i]))) {
            return -codes[i];
        }
    }
    if (strstr(text, "not found") || !strncmp(text, "Cannot find", 11)) {
        return -ENOENT;
    }
    if (strstr(text, "its file system has")) {
        return -ENOSPC;
    }
    return strstr(text, "in use") || strstr(text, "is busy") ||
                   strstr(text, "\" lock on '")
               ? -EBUSY
               : -EIO;
}

/* A class says more than a text, where there is one. */
static int
code_of(enum err_class class, const char *text)
{
    return class == ERR_DEVICE_NOT_FOUND || class == ERR_DEVICE_NOT_ACTIVE
               ? -ENOENT
               : qmp_error_code(text);
}

static int
take_answer(json_t *value, json_t **ret, struct err *err)
{
    json_t *e = json_object_get(value, "error");
    const char *text = json_string_value(json_object_get(e, "desc"));

    if (e) {
        enum err_class class =
            class_of(json_string_value(json_object_get(e, "class")));

        int r = err_set_class(err, class, code_of(class, text ? text : ""),
                              "%s", text ? text : "an error without a text");
        const char *hint = json_string_value(json_object_get(e, "hint"));

        if (hint) {
            err_hint(err, "%s", hint);
        }
        return r;
    }
    if (ret) {
        *ret = json_incref(json_object_get(value, "return"));
    }
    return 0;
}

int
qmp_client_call(struct qmp_client *c, const char *command, json_t *args,
                json_t **ret, struct err *err)
{
    json_t *request = json_pack("{s:s}", "execute", command);
    json_t *value;

    if (args) {
        json_object_set_new(request, "arguments", args);
    }
    auto_free char *text = json_dumps(request, JSON_COMPACT);

    json_decref(request);
    if (send(c->fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text)) {
        return err_set(err, -ECONNRESET, "The daemon is gone");
    }
    for (;;) {
        int r = next_value(c, -1, &value, err);

        if (r) {
            return r;
        }
        if (!json_object_get(value, "event")) {
            break;
        }
        json_array_append_new(c->events, value);
    }
    int r = take_answer(value, ret, err);

    json_decref(value);
    if (r) {
        qmp_client_plain(c, err);
    }
    return r;
}

char *
qmp_client_path(struct qmp_client *c, const char *path)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (path[0] == '/') {
        return xstrdup(path);
    }
    if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len)) {
        return NULL;
    }
    auto_free char *link = xasprintf("/proc/%d/cwd", (int)peer.pid);
    auto_free char *folder = realpath(link, NULL);

    return folder ? xasprintf("%s/%s", folder, path) : NULL;
}

/* Names that the daemon has given. */
static size_t
own_name_len(const char *text)
{
    size_t n = strlen("#block");

    if (strncmp(text, "#block", n)) {
        return 0;
    }
    return n + strspn(text + n, "0123456789");
}

void
qmp_client_call_node(struct qmp_client *c, const char *node, const char *text)
{
    json_object_set_new(c->called, node, json_string(text));
}

const char *
qmp_client_called(struct qmp_client *c, const char *node)
{
    return json_string_value(json_object_get(c->called, node));
}

/* The length of such a node's name, where the text begins with one. */
static size_t
called_len(struct qmp_client *c, const char *text)
{
    const char *name;
    json_t *value;

    json_object_foreach(c->called, name, value)
    {
        size_t n = strlen(name);

        if (!strncmp(text, name, n) && !isalnum((unsigned char)text[n])) {
            return n;
        }
    }
    return 0;
}

char *
qmp_client_file(struct qmp_client *c, const char *name)
{
    const char *called = qmp_client_called(c, name);
    json_t *list = NULL, *node;
    char *file = called ? xstrdup(called) : NULL;
    size_t i;

    if (!file && own_name_len(name)) {
        qmp_client_call(c, "query-named-block-nodes",
                        json_pack("{s:b}", "flat", 1), &list, NULL);
    }
    json_array_foreach(list, i, node)
    {
        if (!file && !strcmp(qmp_text(node, "node-name"), name) &&
            *qmp_text(node, "file")) {
            file = xstrdup(qmp_text(node, "file"));
        }
    }
    json_decref(list);
    return file ? file : xstrdup(name);
}

/* How long the number of bytes is that begins here; 0: none does. */
static size_t
bytes_len(const char *text, uint64_t *ret)
{
    size_t n = strspn(text, "0123456789");
    bool is = n && n <= 18 &&
              (!strncmp(text + n, " bytes", 6) ||
               !strncmp(text + n, " left", 5));

    *ret = is ? strtoull(text, NULL, 10) : 0;
    return !is ? 0 : text[n + 1] == 'b' ? n + 6 : n;
}

/* What stands for the first @len bytes; they themselves where it is NULL. */
static char *
plain_word(struct qmp_client *c, const char *text, bool is_about_space,
           size_t *len)
{
    uint64_t bytes;

    *len = called_len(c, text);
    *len = *len ? *len : own_name_len(text);
    if (*len) {
        auto_free char *name = xstrndup(text, *len);

        return qmp_client_file(c, name);
    }
    *len = is_about_space ? bytes_len(text, &bytes) : 0;
    if (*len) {
        return cli_format_size(bytes);
    }
    *len = strspn(text, "0123456789");
    *len += !*len;
    return NULL;
}

void
qmp_client_plain(struct qmp_client *c, struct err *err)
{
    char *plain = NULL;
    size_t n = 0, len;

    if (!err || !err->msg) {
        return;
    }
    FILE *f = open_memstream(&plain, &n);
    /* Elsewhere it may be the single bytes that matter. */
    bool is_about_space = strstr(err->msg, "file system has") != NULL;

    for (const char *p = err->msg; *p; p += len) {
        auto_free char *word = plain_word(c, p, is_about_space, &len);

        fprintf(f, "%.*s", word ? INT_MAX : (int)len, word ? word : p);
    }
    fclose(f);
    free(err->msg);
    err->msg = plain;
}

int
qmp_client_event(struct qmp_client *c, int timeout_ms, json_t **ret,
                 struct err *err)
{
    *ret = NULL;
    if (json_array_size(c->events)) {
        *ret = json_incref(json_array_get(c->events, 0));
        json_array_remove(c->events, 0);
        return 0;
    }
    int r = next_value(c, timeout_ms, ret, err);

    return r == -EAGAIN ? 0 : r;
}
