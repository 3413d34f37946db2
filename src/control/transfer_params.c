// SPDX-License-Identifier: BSD-3-Clause
/*
 * Which parameters of block-transfer mean something to which preset.  What
 * would be ignored is refused, since who gave it reckons with it.
 */
#include <errno.h>
#include <string.h>

#include "control/transfer_args.h"

#define P(preset) (1u << PRESET_##preset)
#define COPIES (P(PRE_COPY) | P(POST_COPY) | P(HYBRID) | P(MIRROR))
#define TRACKED (P(PRE_COPY) | P(HYBRID) | P(MIRROR))
#define MERGES (P(STREAM) | P(MERGE))

/* Whatever is not named here every preset takes. */
static const struct {
    const char *name;
    unsigned presets;
} parameters[] = {
    {"target", COPIES},
    {"base-node", P(STREAM) | P(COMMIT) | P(MERGE)},
    {"top-node", P(COMMIT)},
    {"into", P(MERGE)},
    {"release", MERGES},
    {"max-extra", MERGES},
    {"delete", P(MERGE)},
    {"keep-name", P(MERGE)},
    {"backing-file", P(STREAM) | P(COMMIT)},
    {"replaces", P(PRE_COPY) | P(MIRROR)},
    {"sync", P(PRE_COPY) | P(MIRROR)},
    {"copy-mode", TRACKED | P(COMMIT)},
    {"finish", P(PRE_COPY) | P(POST_COPY) | P(HYBRID) | P(COMMIT)},
    {"auto-complete", COPIES | P(COMMIT)},
    {"delete-source", COPIES},
    {"dependents-in", COPIES | MERGES},
    {"exclusive", COPIES | MERGES},
    {"upgrade", TRACKED | MERGES},
    {"granularity", TRACKED},
    {"target-is-zero", TRACKED},
    {"on-target-error", COPIES | P(COMMIT)}, /* else one policy is for both */
};

static bool
is_false(json_t *args, const char *name)
{
    return json_is_false(json_object_get(args, name));
}

static bool
is_true(json_t *args, const char *name)
{
    return json_is_true(json_object_get(args, name));
}

/* How such a transfer ends is no matter of choice, or not of that one. */
static int
check_end(enum transfer_preset preset, json_t *args, struct err *err)
{
    const char *finish = opt_str(args, "finish");
    bool is_post_copy = preset == PRESET_POST_COPY;
    bool waits = preset == PRESET_MIRROR || preset == PRESET_HYBRID;

    if (finish && !strcmp(finish, "stay") &&
        (is_post_copy || preset == PRESET_HYBRID)) {
        return err_set(err, -EINVAL,
                       "Post-copy and hybrid end with the disk on the target: "
                       "'finish' cannot be 'stay'");
    }
    if (is_post_copy && is_false(args, "auto-complete")) {
        return err_set(err, -EINVAL,
                       "A post-copy has switched when it begins, and ends by "
                       "itself: 'auto-complete' cannot be false");
    }
    if (waits && is_true(args, "auto-complete")) {
        return err_set(err, -EINVAL,
                       "A %s does not end by itself: 'auto-complete' cannot "
                       "be true",
                       preset == PRESET_HYBRID ? "hybrid" : "mirror");
    }
    return 0;
}

int
check_commit_below(json_t *args, struct err *err)
{
    static const char *const of_disks[] = {"finish", "auto-complete",
                                           "copy-mode"};

    for (size_t i = 0; i < ARRAY_LEN(of_disks); i++) {
        if (json_object_get(args, of_disks[i])) {
            return err_set(err, -EINVAL,
                           "Parameter '%s' means nothing to a commit below "
                           "the disk: nobody writes there, and it ends by "
                           "itself, without these layers",
                           of_disks[i]);
        }
    }
    return 0;
}

/* What only says how something else is to be done, which nobody asked for. */
static int
check_needs(enum transfer_preset preset, json_t *args, struct err *err)
{
    const char *need = COPIES >> preset & 1 ? "delete-source" : "release";
    /* A merge releases unless it is told not to; then it checks by itself. */
    bool has_it = is_true(args, need) || preset == PRESET_MERGE;
    const char *found = NULL;

    if (is_true(args, "exclusive")) {
        found = "exclusive";
    } else if (json_array_size(json_object_get(args, "dependents-in"))) {
        found = "dependents-in";
    } else if (json_object_get(args, "max-extra")) {
        found = "max-extra";
    }
    return !found || has_it
               ? 0
               : err_set(err, -EINVAL, "'%s' needs '%s'", found, need);
}

int
check_parameters(enum transfer_preset preset, json_t *args, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(parameters); i++) {
        if (!(parameters[i].presets >> preset & 1) &&
            json_object_get(args, parameters[i].name)) {
            return err_set(err, -EINVAL,
                           "Parameter '%s' means nothing to a %s",
                           parameters[i].name,
                           qmp_transfer_preset_name(
                               (enum qmp_transfer_preset)preset));
        }
    }
    if (preset == PRESET_STREAM && json_object_get(args, "backing-file") &&
        !json_object_get(args, "base-node")) {
        return err_set(err, -EINVAL,
                       "backing file specified, but streaming the entire "
                       "chain");
    }
    int r = check_end(preset, args, err);

    return r ? r : check_needs(preset, args, err);
}
