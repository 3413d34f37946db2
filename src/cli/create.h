// SPDX-License-Identifier: BSD-3-Clause
/* Making images in this process: what create, clone and convert share. */
#ifndef SLUICE_CLI_CREATE_H
#define SLUICE_CLI_CREATE_H

#include "cli/cli.h"

struct new_image {
    const char *path, *format;
    uint64_t size;
    const char *options; /* "name=value,..." or NULL */
    const char *backing, *backing_format;
    bool fresh; /* refuse to overwrite an existing file */
};

/*
 * Makes the file and the format in it.  With --dry-run nothing is made.
 * Yields; the error names the file.
 */
int image_create(struct cli *cli, const struct new_image *im, struct err *err);
/* The final line, as text or JSON; returns EXIT_OK. */
int image_created(struct cli *cli, const struct new_image *im,
                  const char *what);
/* Removes an image that failed; a block device stays where it is. */
void image_remove(const char *path);
/* Opens an image even where it is marked dirty or corrupt. */
struct node *image_open_for_check(struct cli *cli, const char *path,
                                  const char *format, unsigned fix,
                                  struct err *err);

#endif
