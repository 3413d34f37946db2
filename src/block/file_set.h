// SPDX-License-Identifier: BSD-3-Clause
/*
 * A set of files, by what the system knows them by: two paths to one file are
 * one file.  A chain that is being opened keeps the files of its images in one,
 * so that a loop is found when its first file comes back, at a cost that does
 * not grow with the depth.  Nothing here yields.
 */
#ifndef SLUICE_BLOCK_FILE_SET_H
#define SLUICE_BLOCK_FILE_SET_H

#include <stdbool.h>
#include <stdint.h>

struct file_id {
    uint64_t dev, ino; /* both 0: not known, and like no other file */
};

struct file_set {
    struct file_id *slots; /* open addressing; 0, 0: free */
    uint32_t n, size;      /* size: a power of two, or 0 */
};

/* All zero is an empty set. */
void file_set_fini(struct file_set *set);
void file_set_add(struct file_set *set, struct file_id id);
bool file_set_has(const struct file_set *set, struct file_id id);

#endif
