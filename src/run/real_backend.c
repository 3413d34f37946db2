// SPDX-License-Identifier: BSD-3-Clause
/*
 * Backends: what can hang as a whole.  For an open file it is the device that
 * its file system lies on; for a name, which says nothing about its device
 * before it was looked up, the folder; for a connection, the peer's address.
 * Each has a share of the workers, so that one that hangs leaves the others
 * theirs.
 */
#include <string.h>

#include "run/real_internal.h"

enum {
    BACKEND_NAMES = 2,      /* opens and so on in one folder */
    BACKEND_FILES = 16,     /* requests of all files of a device */
    BACKEND_WRITES = 16,    /* files of a device with queued writes */
    BACKEND_BACKGROUND = 8, /* background requests of a device */
    BACKEND_AHEAD = 2,      /* files of a device before a sync */
};

static struct backend *
backend_get(struct real_loop *rl, const char *name, dev_t dev)
{
    list_for_each (it, &rl->backends) {
        struct backend *b = container_of(it, struct backend, link);

        if (name ? b->name && !strcmp(b->name, name)
                 : !b->name && b->dev == dev) {
            b->refs++;
            return b;
        }
    }
    struct backend *b = xzalloc(sizeof(*b));

    b->name = name ? xstrdup(name) : NULL;
    b->dev = dev;
    b->refs = 1;
    offload_group_init(&b->work, name ? BACKEND_NAMES : BACKEND_FILES);
    offload_group_init(&b->background, BACKEND_BACKGROUND);
    offload_group_init(&b->ahead, BACKEND_AHEAD);
    b->write_slots = BACKEND_WRITES;
    list_push(&rl->backends, &b->link);
    return b;
}

struct backend *
backend_of_device(struct real_loop *rl, dev_t dev)
{
    return backend_get(rl, NULL, dev);
}

void
backend_put(struct backend *b)
{
    if (--b->refs == 0) {
        list_remove(&b->link);
        free(b->name);
        free(b);
    }
}

void
offload_by_name(struct loop *loop, const char *name, void (*fn)(void *),
                void *arg)
{
    struct backend *b = backend_get(real_of(loop), name, 0);

    offload(loop, &b->work, fn, arg);
    backend_put(b);
}

void
offload_by_folder(struct loop *loop, const char *path, void (*fn)(void *),
                  void *arg)
{
    const char *slash = strrchr(path, '/');
    auto_free char *folder =
        slash ? xstrndup(path, (size_t)(slash - path)) : xstrdup(".");

    offload_by_name(loop, folder, fn, arg);
}
