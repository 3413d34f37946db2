// SPDX-License-Identifier: BSD-3-Clause
/* See mark.h. */
#include "block/mark.h"

#include <errno.h>

#include "block/graph_internal.h"
#include "journal/journal.h"
#include "journal/unfinished.h"

static int
set_in_journal(struct node *image, bool incomplete, struct err *err)
{
    const struct node *file = node_own_file(image);
    struct journals *journals = &image->graph->journals;

    if (!file) {
        return incomplete ? -ENOTSUP : 0;
    }
    int r = incomplete
                ? unfinished_record(journals, file->filename,
                                    node_journal_ino(file), file->file_born)
                : unfinished_end(journals, file->filename);

    if (incomplete && (r == -ENOENT || journal_place_is_unfit(r))) {
        return -ENOTSUP;
    }
    return r ? err_set_errno(err, r, "Cannot write the journal of '%s'",
                             file->filename)
             : 0;
}

int
node_set_incomplete(struct node *image, bool incomplete, struct err *err)
{
    /* Where taking it away fails, nobody knows whether it is there. */
    image->incomplete = false;
    int r = image->drv->set_incomplete
                ? image->drv->set_incomplete(image, incomplete, err)
                : set_in_journal(image, incomplete, err);

    image->incomplete = incomplete && !r;
    return r;
}

bool
file_is_unfinished(const struct node *file)
{
    return unfinished_find(&file->graph->journals, file->filename,
                           node_journal_ino(file), file->file_born);
}

/* Does a transfer say just now whether it is complete? */
static bool
is_target(const struct node *image)
{
    list_for_each(it, &image->roots)
    {
        if (container_of(it, struct root, link)->claim == CLAIM_TARGET) {
            return true;
        }
    }
    return false;
}

void
node_find_mark(struct node *image, bool has_journal)
{
    const struct node *file = node_own_file(image);
    bool has_field = image->drv->set_incomplete != NULL;
    bool found = has_journal && !has_field && file_is_unfinished(file);

    if (is_target(image)) {
        return;
    }
    if (!has_field) {
        image->incomplete = found;
    }
    if (has_journal && !found && !image->read_only) { /* what is said is of another image */
        unfinished_end(&image->graph->journals, file->filename);
    }
}

bool
node_is_unfinished(struct node *node)
{
    return node_skip_filters(node)->incomplete;
}
