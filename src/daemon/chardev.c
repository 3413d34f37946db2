// SPDX-License-Identifier: BSD-3-Clause
/*
 * --chardev and --monitor.  A chardev is bound (or connected) when its option
 * is met, and served once all options are known: until then clients wait in
 * the kernel's queue.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "control/control.h"
#include "control/options.h"
#include "daemon/daemon.h"
#include "daemon/stdio_stream.h"
#include "run/stream.h"

static struct chardev *
find_chardev(struct daemon *d, const char *id)
{
    list_for_each(it, &d->chardevs)
    {
        struct chardev *c = container_of(it, struct chardev, link);

        if (!strcmp(c->id, id)) {
            return c;
        }
    }
    return NULL;
}

static bool
stdio_is_taken(struct daemon *d)
{
    list_for_each(it, &d->chardevs)
    {
        if (container_of(it, struct chardev, link)->stdio) {
            return true;
        }
    }
    return false;
}

static int
open_stdio(struct daemon *d, struct chardev *c, struct err *err)
{
    if (stdio_is_taken(d)) {
        return err_set(err, -EBUSY,
                       "cannot use stdio by multiple character devices");
    }
    if (d->options.daemonize) {
        return err_set(err, -EINVAL, "cannot use stdio with -daemonize");
    }
    c->stream = stdio_stream_new(d->loop);
    c->stdio = true;
    return 0;
}

/* A descriptor that was passed says itself whether it listens. */
static bool
fd_listens(int fd)
{
    int listens = 0;
    socklen_t len = sizeof(listens);

    return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) &&
           listens;
}

static int
open_socket(struct daemon *d, struct chardev *c,
            const struct option_chardev *options, struct err *err)
{
    struct address address;
    int r = socket_address_decode(options->addr, &address, err);

    if (r) {
        return r;
    }
    if (!options->server ||
        (address.kind == ADDRESS_FD && !fd_listens(address.fd))) {
        return stream_connect(d->loop, &address, &c->stream, err);
    }
    r = stream_listen(d->loop, &address, &c->listener, err);
    if (!r && options->wait) {
        log_info("waiting for a connection on %s", c->listener->bound);
        r = listener_accept(c->listener, &c->stream);
        if (r) {
            err_set_errno(err, r, "Could not accept a connection");
        }
    }
    return r;
}

static void
chardev_free(struct chardev *c)
{
    if (c->listener) {
        listener_close(c->listener);
    }
    if (c->stream) {
        stream_close(c->stream);
    }
    list_remove(&c->link);
    free(c->id);
    free(c);
}

static struct chardev *
chardev_new(struct daemon *d, const char *id)
{
    struct chardev *c = xzalloc(sizeof(*c));

    c->id = xstrdup(id);
    list_push(&d->chardevs, &c->link);
    return c;
}

int
chardev_add(struct daemon *d, const char *text, struct err *err)
{
    struct option_chardev options;
    int r = option_chardev(text, &options, err);

    if (r) {
        return r;
    }
    if (find_chardev(d, options.id)) {
        r = err_set(err, -EEXIST, "Chardev with id '%s' already exists",
                    options.id);
    } else {
        struct chardev *c = chardev_new(d, options.id);

        r = options.stdio ? open_stdio(d, c, err)
                          : open_socket(d, c, &options, err);
        if (r) {
            chardev_free(c);
        }
    }
    option_chardev_fini(&options);
    return r;
}

static void
add_monitor(struct daemon *d, struct chardev *c, bool pretty)
{
    struct pending_monitor *m = xzalloc(sizeof(*m));

    c->in_use = true;
    m->chardev = c;
    m->pretty = pretty;
    list_push(&d->pending_monitors, &m->link);
}

int
chardev_monitor(struct daemon *d, const char *text, struct err *err)
{
    struct option_monitor options;
    int r = option_monitor(text, &options, err);

    if (r) {
        return r;
    }
    struct chardev *c = find_chardev(d, options.chardev);

    if (!c) {
        r = err_set(err, -ENOENT, "chardev \"%s\" not found", options.chardev);
    } else if (c->in_use) {
        r = err_set(err, -EBUSY, "Device '%s' is in use", options.chardev);
    } else {
        add_monitor(d, c, options.pretty);
    }
    option_monitor_fini(&options);
    return r;
}

void
chardev_default_monitor(struct daemon *d)
{
    auto_free char *path = control_default_socket();
    auto_err err = ERR_INIT;

    if (!list_empty(&d->pending_monitors)) {
        return;
    }
    struct chardev *c = chardev_new(d, "default control socket");
    int r = service_make_folder_of(path, &err);

    if (!r) {
        struct address address = {.kind = ADDRESS_UNIX, .path = path};

        r = stream_listen(d->loop, &address, &c->listener, &err);
    }
    if (r) {
        log_warn("no control socket: %s", err.msg);
        chardev_free(c);
        return;
    }
    add_monitor(d, c, false);
}

void
chardev_serve(struct daemon *d)
{
    list_for_each_safe(it, &d->pending_monitors)
    {
        struct pending_monitor *m =
            container_of(it, struct pending_monitor, link);

        if (m->chardev->stream) {
            control_serve(d->ctl, take_ptr(m->chardev->stream), m->pretty);
        }
        if (m->chardev->listener) {
            control_listen(d->ctl, take_ptr(m->chardev->listener), m->pretty);
        }
        list_remove(it);
        free(m);
    }
}

void
chardev_fini(struct daemon *d)
{
    list_for_each_safe(it, &d->pending_monitors)
    {
        list_remove(it);
        free(container_of(it, struct pending_monitor, link));
    }
    list_for_each_safe(it, &d->chardevs)
    {
        chardev_free(container_of(it, struct chardev, link));
    }
}
