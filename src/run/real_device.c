// SPDX-License-Identifier: BSD-3-Clause
/*
 * Which block device it is, whatever it is named and numbered today: what the
 * kernel says of it in /sys (Documentation/ABI, sysfs-block and the drivers' own),
 * as a number.
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/mem.h"
#include "run/real_internal.h"

enum { TEXT_MAX = 4096 };

#define LOOP_FILE "loop/backing_file"

/* The first line of a file; false where there is none, or it is empty. */
static bool
read_line(const char *folder, const char *name, char *ret)
{
    auto_free char *path = xasprintf("%s/%s", folder, name);
    FILE *f = fopen(path, "re");

    if (!f) {
        return false;
    }
    bool found = fgets(ret, TEXT_MAX, f) != NULL;

    fclose(f);
    if (found) {
        ret[strcspn(ret, "\n")] = 0;
    }
    return found && *ret;
}

/* FNV-1a. */
static uint64_t
add_to_hash(uint64_t hash, const char *text)
{
    do {
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3ULL;
    } while (*text++);
    return hash;
}

/* A loop device is the file that it shows, not another one of that name. */
static uint64_t
add_inode(uint64_t hash, const char *file)
{
    struct stat st;
    auto_free char *text =
        stat(file, &st) ? NULL
                        : xasprintf("%llu", (unsigned long long)st.st_ino);

    return text ? add_to_hash(hash, text) : hash;
}

uint64_t
device_identity(uint64_t rdev)
{
    static const char *const names[] = {"dm/uuid", LOOP_FILE, "wwid",
                                        "device/wwid", "serial",
                                        "device/serial", "md/uuid"};
    auto_free char *folder = xasprintf("/sys/dev/block/%u:%u",
                                       major((dev_t)rdev), minor((dev_t)rdev));
    auto_free char *whole = xasprintf("%s/..", folder);
    auto_free char *text = xmalloc(TEXT_MAX);
    bool is_part = read_line(folder, "partition", text);
    uint64_t hash = 0xcbf29ce484222325ULL;

    hash = is_part ? add_to_hash(hash, text) : hash;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (read_line(is_part ? whole : folder, names[i], text)) {
            hash = add_to_hash(add_to_hash(hash, names[i]), text);
            hash = strcmp(names[i], LOOP_FILE) ? hash : add_inode(hash, text);
            return hash ? hash : 1;
        }
    }
    return 0;
}
