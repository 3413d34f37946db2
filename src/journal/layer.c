// SPDX-License-Identifier: BSD-3-Clause
/* See layer.h.  The id, a zero, the UUID, the path as journal_name() has it. */
#include "journal/layer.h"

#include <errno.h>
#include <string.h>

#include "base/mem.h"

int
layer_record_add(struct journal *j, const char *id, const struct journal *disk)
{
    auto_free char *name = journal_name(j, journal_image(disk));
    size_t n = strlen(id) + 1, len = n + JOURNAL_UUID + strlen(name) + 1;
    auto_free char *payload = xmalloc(len);

    memcpy(payload, id, n);
    memcpy(payload + n, journal_uuid(disk), JOURNAL_UUID);
    memcpy(payload + n + JOURNAL_UUID, name, strlen(name) + 1);
    return len > JOURNAL_PAYLOAD_MAX
               ? -ENAMETOOLONG
               : journal_add(j, JOURNAL_LAYER, payload, (uint32_t)len);
}

bool
layer_record_read(const struct journal *j, const struct journal_record *record,
                  struct layer_record *ret)
{
    const char *id = (const char *)record->payload;
    size_t n = strnlen(id, record->len) + 1, at = n + JOURNAL_UUID;

    if (record->type != JOURNAL_LAYER || at >= record->len) {
        return false;
    }
    auto_free char *name = xasprintf("%.*s", (int)(record->len - at), id + at);

    *ret = (struct layer_record){id, record->payload + n,
                                 journal_path(j, name)};
    return true;
}
