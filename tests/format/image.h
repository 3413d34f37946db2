// SPDX-License-Identifier: BSD-3-Clause
/*
 * For tests of image formats on real files: a temporary folder, QEMU's tools,
 * and a graph in a real loop.
 */
#ifndef SLUICE_TESTS_FORMAT_IMAGE_H
#define SLUICE_TESTS_FORMAT_IMAGE_H

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "block/node.h"
#include "drivers/drivers.h"
#include "run/real.h"
#include "tap.h"

/* Runs a shell command; its exit status.  What it says goes to "log". */
static inline int sh(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));

static inline int
sh(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    auto_free char *cmd = xvasprintf(fmt, ap);
    auto_free char *line = xasprintf("{ %s; } >>log 2>&1", cmd);

    va_end(ap);
    return system(line);
}

#define CHECK_SH(...)                                                          \
    do {                                                                       \
        if (sh(__VA_ARGS__)) {                                                 \
            tap_failed_checks++;                                               \
            printf("# %s:%d: failed: ", __FILE__, __LINE__);                   \
            printf(__VA_ARGS__);                                               \
            printf("\n");                                                      \
            fflush(stdout);                                                    \
            if (system("tail -n 5 log | sed 's/^/#   /'")) {                   \
            }                                                                  \
        }                                                                      \
    } while (0)

/* A case in the loop: calls @fn in a coroutine, with a graph of its own. */
struct image_case {
    struct graph *graph;
    const char *backing_paths;
    void (*fn)(struct image_case *c);
    void *arg;
};

static void
image_case_main(void *arg)
{
    struct image_case *c = arg;
    struct graph_options o = {.drivers = all_drivers,
                              .backing_paths = c->backing_paths};

    c->graph = graph_new(loop_current(), &o);
    c->fn(c);
    graph_free(c->graph);
}

static inline void
in_loop(struct image_case c)
{
    struct real_loop_options o = {0};
    struct loop *loop;

    if (real_loop_new(&o, &loop, NULL)) {
        abort();
    }
    CHECK(loop_run_main(loop, image_case_main, &c));
    loop_free(loop);
}

/* Opens FILE with a driver; @more are further JSON members, or "". */
static inline int
open_image(struct image_case *c, const char *driver, const char *file,
           const char *more, struct node **ret, struct err *err)
{
    auto_free char *text = xasprintf(
        "{\"driver\":\"%s\",\"discard\":\"unmap\",\"file\":{\"driver\":"
        "\"file\",\"filename\":\"%s\"}%s}",
        driver, file, more);
    json_t *options = json_loads(text, 0, NULL);
    int r = node_open(c->graph, options, ret, err);

    json_decref(options);
    return r;
}

/* As open_image(); NULL, and a failed check, where it does not open. */
static inline struct node *
must_open(struct image_case *c, const char *driver, const char *file,
          const char *more)
{
    auto_err err = ERR_INIT;
    struct node *node = NULL;

    if (open_image(c, driver, file, more, &node, &err)) {
        tap_failed_checks++;
        printf("# opening %s: %s\n", file, err.msg);
    }
    return node;
}

/* Puts bytes into a file, as a vandal does. */
static inline void
poke(const char *file, uint64_t off, const void *bytes, size_t len)
{
    int fd = open(file, O_RDWR);

    if (fd < 0 || pwrite(fd, bytes, len, (off_t)off) != (ssize_t)len) {
        abort();
    }
    close(fd);
}

static inline void
poke64(const char *file, uint64_t off, uint64_t value)
{
    unsigned char bytes[8];

    st_le64(bytes, value);
    poke(file, off, bytes, 8);
}

static inline void
poke32(const char *file, uint64_t off, uint32_t value)
{
    unsigned char bytes[4];

    st_le32(bytes, value);
    poke(file, off, bytes, 4);
}

static inline uint64_t
peek64(const char *file, uint64_t off)
{
    unsigned char bytes[8] = {0};
    int fd = open(file, O_RDONLY);

    if (fd < 0 || pread(fd, bytes, 8, (off_t)off) < 0) {
        abort();
    }
    close(fd);
    return ld_le64(bytes);
}

/*
 * A temporary folder as the working folder, in memory where there is such a
 * place, for an fsync tests nothing here; false without QEMU's tools.
 */
static char image_folder[] = "/dev/shm/sluice-format-XXXXXX";

static inline bool
image_setup(void)
{
    if (access("/dev/shm", W_OK)) {
        memcpy(image_folder, "/var/tmp", 8);
    }
    return mkdtemp(image_folder) && !chdir(image_folder) &&
           !sh("qemu-img --version && qemu-io --version");
}

static inline int
image_done(void)
{
    auto_free char *cmd = xasprintf("rm -rf %s", image_folder);

    return tap_done() | (system(cmd) != 0);
}

#endif
