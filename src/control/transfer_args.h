// SPDX-License-Identifier: BSD-3-Clause
/* What the commands that start transfers have in common. */
#ifndef SLUICE_CONTROL_TRANSFER_ARGS_H
#define SLUICE_CONTROL_TRANSFER_ARGS_H

#include "control/control_internal.h"
#include "schema_types.h"
#include "transfer/transfer.h"

/* Each takes an argument into @o; QEMU's texts.  None yields. */
int take_speed(int64_t speed, struct transfer_options *o, struct err *err);
int take_sync(enum qmp_mirror_sync_mode mode, struct transfer_options *o,
              struct err *err);
/* @name may be NULL. */
int take_replaces(struct control *ctl, const char *name,
                  struct transfer_options *o, struct err *err);
/*
 * Checks the name of a filter node, which no job puts in here; NULL is none.
 */
int check_filter_name(struct control *ctl, const char *name, struct err *err);
int take_buf_size(int64_t size, struct transfer_options *o, struct err *err);
enum on_error take_on_error(bool given, enum qmp_blockdev_on_error policy,
                            enum on_error otherwise);
enum copy_mode take_copy_mode(bool given, enum qmp_mirror_copy_mode mode);
enum transfer_preset take_copy_preset(bool given, enum qmp_copy_mode mode);
/* How a block-copy ends. */
struct copy_end {
    bool is_mirror, has_finish, has_auto_complete, auto_complete;
    enum qmp_copy_finish finish;
};
int take_copy_end(const struct copy_end *end, struct transfer_options *o,
                  struct err *err);
enum merge_into take_merge_into(bool given, enum qmp_merge_into into);

/*
 * Does every one of @args, block-transfer's by name, mean something to the
 * preset, and what it says?  Does not yield.
 */
int check_parameters(enum transfer_preset preset, json_t *args,
                     struct err *err);
/* The same of a commit below the disk. */
int check_commit_below(json_t *args, struct err *err);

/*
 * The ends of a merge, @device and perhaps @base, as images; and what is left
 * out.  Does not yield.
 */
int complete_merge(struct transfer_options *o, struct err *err);
/*
 * What says whether the source may be deleted.  The folders' array is the
 * caller's to free, once the transfer has been started.
 */
void take_deletion(bool delete_source, bool exclusive, json_t *dependents_in,
                   struct transfer_options *o);
/* What a query-*-plan answers; takes @drops.  Does not yield. */
json_t *plan_answer(const struct transfer_plan *plan, json_t *drops);
/*
 * Answers as a query-*-plan does.  Takes @drops, the names of the nodes that
 * would leave the chain.  Yields.
 */
int plan_transfer(enum transfer_preset preset,
                  const struct transfer_options *o, json_t *drops,
                  json_t **ret, struct err *err);

#endif
