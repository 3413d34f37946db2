// SPDX-License-Identifier: BSD-3-Clause
/*
 * The bytes of a simulated file.  Most files of a crash state are as they were,
 * and where one differs it is in a few places: copies share their chunks, and
 * a chunk is copied when it is changed.  Private to run/sim/.
 */
#ifndef SLUICE_RUN_SIM_CONTENT_H
#define SLUICE_RUN_SIM_CONTENT_H

#include <stddef.h>

struct chunks;

/* All zero: an empty file. */
struct content {
    struct chunks *chunks; /* may be NULL; behind @len they are zero */
    size_t len;
};

/* A copy, which the caller frees, too. */
struct content content_share(const struct content *c);
void content_free(struct content *c);
/* What is added reads zero. */
void content_resize(struct content *c, size_t len);
/* Makes it longer where the data ends behind its end. */
void content_write(struct content *c, size_t off, const void *data, size_t len);
void content_zero(struct content *c, size_t off, size_t len); /* within it */
/*
 * The bytes at @off, which lies within it, and how many of them lie together:
 * at least up to the next multiple of 512, or the end.
 */
const unsigned char *content_at(const struct content *c, size_t off,
                                size_t *ret_len);
/* All of them, for the caller to free. */
unsigned char *content_flat(const struct content *c);

#endif
