// SPDX-License-Identifier: BSD-3-Clause
/*
 * Runs a fuzzer's entry over files: the corpus in the directory that is
 * given, each file also cut short at every length, so that a committed crash
 * stays a test without a fuzzing compiler.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FILE_MAX = 65536 };

static int
replay(const char *path)
{
    auto_free uint8_t *data = xmalloc(FILE_MAX);
    FILE *f = fopen(path, "rb");

    if (!f) {
        perror(path);
        return 1;
    }
    size_t size = fread(data, 1, FILE_MAX, f);
    fclose(f);
    for (size_t n = 0; n <= size; n++) {
        LLVMFuzzerTestOneInput(data, n);
    }
    return 0;
}

int
main(int argc, char **argv)
{
    DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
    struct dirent *e;
    int files = 0, failed = 0;

    if (!dir) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 1;
    }
    while ((e = readdir(dir))) {
        if (e->d_name[0] != '.') {
            auto_free char *path = xasprintf("%s/%s", argv[1], e->d_name);

            failed += replay(path);
            files++;
        }
    }
    closedir(dir);
    printf("%d files\n", files);
    return failed || !files;
}
