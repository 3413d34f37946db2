// SPDX-License-Identifier: BSD-3-Clause
/*
 * The intent of a switch: which file is the disk, durably, before the guests
 * are moved (docs/design/intents.md).
 *
 * All functions yield unless they say otherwise.
 */
#ifndef SLUICE_JOURNAL_INTENT_H
#define SLUICE_JOURNAL_INTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "run/loop.h"

/* A file as it was when it was opened. */
struct intent_file {
    char *path;
    uint64_t ino, born; /* when it was made; 0: not known */
    char *format;       /* of the image in it */
};

struct switch_intent {
    struct intent_file source, target;
    /* In what was read: how the source was called, which may be by a link. */
    char *source_name;
    bool delete_source;
    /* What is to be looked for before the source is deleted. */
    bool exclusive;
    char **folders;
    size_t n_folders;
    uint64_t source_session; /* node->session; 0: it has none */
};

/* Frees what the struct holds.  Does not yield. */
void switch_intent_fini(struct switch_intent *intent);

/* A switch under way. */
struct intent;

struct journals;

/*
 * Makes the journal beside the source, and the pointer beside the target, both
 * of which say nothing yet.  @intent is copied.
 */
int intent_prepare(struct journals *journals, const struct switch_intent *intent,
                   struct intent **ret, struct err *err);
/* The target is the disk, unless it is marked: durably. */
int intent_record(struct intent *intent);
/* Is it, by now?  Does not yield. */
bool intent_is_recorded(const struct intent *intent);
/* The source is the disk: durably.  Nothing where nothing was recorded. */
int intent_withdraw(struct intent *intent);
/*
 * Nothing is under way: takes both back, frees.  Where the disk has @moved, no
 * job of the source counts any more either.  NULL does nothing.
 */
void intent_end(struct intent *intent, bool moved);
/* What it says stays, for whoever opens the images next; frees. */
void intent_leave(struct intent *intent);

/* What lies beside an image. */
enum intent_found {
    INTENT_NONE,
    INTENT_VOID,      /* a file that says nothing (any more) */
    INTENT_AS_SOURCE, /* the image's journal: it is to be left */
    INTENT_AS_TARGET, /* it points at one: it is to be the disk */
};

/*
 * Reads the intent beside @image: INTENT_VOID where it was withdrawn or is
 * not complete.  @ret_intent is filled in where there is one.  -errno where it
 * cannot be read.
 */
int intent_find(struct journals *journals, const char *image, enum intent_found *ret,
                struct switch_intent *ret_intent, struct err *err);
/* Takes back what lies beside both images, as intent_end() does. */
void intent_remove(struct journals *journals,
                   const struct switch_intent *intent, bool moved);
/* Takes back what lies beside one image. */
void intent_forget(struct journals *journals, const char *image);

#endif
