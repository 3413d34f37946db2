// SPDX-License-Identifier: BSD-3-Clause
/*
 * Transfers: what every operation that moves data is made of (design §2).
 *
 * A verb of the control interface fills in `struct transfer_options` and names
 * a recipe; the recipe turns it into a source, a target, what is missing, what
 * a guest write does, when the guest is switched and how it ends.  The engine
 * (engine.h) does the rest.
 */
#ifndef SLUICE_TRANSFER_H
#define SLUICE_TRANSFER_H

#include "block/node.h"
#include "transfer/job.h"

/* An operation as its users know it: a recipe and how it ends. */
enum transfer_preset {
    PRESET_STREAM,
    PRESET_PRE_COPY,
    PRESET_POST_COPY,
    PRESET_HYBRID,
    PRESET_MIRROR,
    PRESET_COMMIT,
    PRESET_MERGE,
};

/* What a guest's write does while the guest is on the source (design §2). */
enum copy_mode {
    COPY_MODE_AUTO,       /* dirty, then forward where all was copied once */
    COPY_MODE_BACKGROUND, /* dirty; forward only while it pivots */
    COPY_MODE_FORWARD,    /* forward what was copied, from the start */
};

/* Which part of the source a mirror copies. */
enum sync_mode {
    SYNC_FULL, /* what the disk reads as */
    SYNC_TOP,  /* what its top layer holds */
    SYNC_NONE, /* only what is written from now on */
};

/* What happens to the disk once source and target are alike. */
enum finish {
    FINISH_SWITCH, /* it goes on on the target */
    FINISH_STAY,   /* on the source: the target is a copy as of that time */
};

/* Which image survives a merge. */
enum merge_into {
    MERGE_INTO_AUTO, /* whatever moves fewer bytes */
    MERGE_INTO_SNAPSHOT,
    MERGE_INTO_OVERLAY,
};

struct transfer_options {
    const char *job_id;
    bool start_paused; /* until somebody resumes it */
    bool resumed;      /* started by resume_jobs() */
    const char *note;  /* what its record says (resume.h); NULL: it has none */
    struct node *device; /* whose layers are moved */
    struct node *top;    /* commit: the uppermost layer that is moved */
    struct node *base;   /* stream: the layer to stop at, NULL: none;
                            commit: the layer that takes it all */
    struct node *target; /* convert, mirror: where to */
    struct node *replaces; /* mirror: what the target replaces; NULL: @device */
    const char *backing_file; /* the name to write into the header, or NULL */
    uint64_t speed;           /* bytes a second, 0: unlimited */
    enum on_error on_error;   /* of the source, where they are told apart */
    enum on_error on_target_error; /* mirror only */
    enum copy_mode copy_mode;
    enum sync_mode sync;
    enum finish finish;   /* of a job that completes by itself */
    bool wait_for_verb;   /* becomes ready, and ends when it is told to */
    bool target_is_zero;  /* it reads zero wherever it is not written */
    uint32_t granularity; /* of dirty blocks, bytes; 0: 4 KiB */
    bool upgrade; /* of a target whose version has no mark */
    /* Of a switch: the source's own file is unlinked, if nobody needs it. */
    bool delete_source;
    bool exclusive;                 /* nobody else is looked for */
    const char *const *dependents_in; /* folders that are searched, too */
    size_t n_dependents_in;
    enum merge_into into;
    bool release;       /* the sources give their blocks back as they land */
    uint64_t max_extra; /* bytes, with @release; 0: 4 MiB */
    bool keep_name; /* merge: the survivor takes the file name of @device */
    bool auto_finalize, auto_dismiss;
    uint64_t max_in_flight; /* bytes; 0: the default, 64 MiB */
    uint64_t piece; /* bytes of one copy, a power of two; 0: 1 MiB */
    uint64_t clear_ns; /* how often the log of what changed is; 0: 5 s */
};

/* What a transfer would do, as things are now. */
struct transfer_plan {
    uint64_t bytes_to_copy, bytes_to_zero;
    uint64_t space_needed; /* by the target's file, at most */
    uint64_t space_free;   /* on its file system; UINT64_MAX: not known */
};

/*
 * Starts what a preset stands for, or measures it without starting it; what
 * each needs of @options is said below.  The nodes are borrowed.  Both yield.
 */
int transfer_start(struct jobs *jobs, enum transfer_preset preset,
                   const struct transfer_options *options, struct err *err);
int transfer_plan(enum transfer_preset preset,
                  const struct transfer_options *options,
                  struct transfer_plan *ret, struct err *err);

/*
 * block-stream (S1): fills @device from the layers below it, down to @base,
 * then makes @base its backing file.  The job owns nothing but its claims.
 */
int stream_start(struct jobs *jobs, const struct transfer_options *options,
                 struct err *err);
/*
 * Checks and measures a block-stream without starting it; only @device and
 * @base count.  Yields.
 */
int stream_plan(const struct transfer_options *options,
                struct transfer_plan *ret, struct err *err);
/*
 * Copies what @device reads as into @target, which is as large and not in use,
 * then flushes it.
 */
int convert_start(struct jobs *jobs, const struct transfer_options *options,
                  struct err *err);

/*
 * Mirror (S3) and pre-copy (S4): brings @target in step with what @device
 * reads as, keeps it there while the guest writes to @device, and ends as
 * @finish says, or as the verb that ends it.  @target is as large as @device,
 * and nobody else writes to it.  Yields.
 */
int mirror_start(struct jobs *jobs, const struct transfer_options *options,
                 struct err *err);
/* What mirror_start() would do; checks as it does.  Yields. */
int mirror_plan(const struct transfer_options *options,
                struct transfer_plan *ret, struct err *err);
/* The same as a job of type `copy`; @target may be shorter: it grows. */
int copy_start(struct jobs *jobs, const struct transfer_options *options,
               struct err *err);
int copy_plan(const struct transfer_options *options,
              struct transfer_plan *ret, struct err *err);
/*
 * Post-copy (S2): the disk goes on on @target at once, an empty image that
 * gets @device as its backing file, and is filled from it; then it names no
 * backing file.  Yields until the switch is over.
 */
int post_copy_start(struct jobs *jobs, const struct transfer_options *options,
                    struct err *err);
int post_copy_plan(const struct transfer_options *options,
                   struct transfer_plan *ret, struct err *err);
/*
 * Hybrid (S8 on one host): pre-copy that is ready at once; job-complete
 * switches whatever is left, which is then streamed.
 */
int hybrid_start(struct jobs *jobs, const struct transfer_options *options,
                 struct err *err);
int hybrid_plan(const struct transfer_options *options,
                struct transfer_plan *ret, struct err *err);
/*
 * block-commit: the layers of @device from @top down to, without, @base sink
 * into @base.  Where @top is @device, the job ends with the disk on @base, or
 * where it is, as a mirror; else by itself.  Yields.
 */
int commit_start(struct jobs *jobs, const struct transfer_options *options,
                 struct err *err);
int commit_plan(const struct transfer_options *options,
                struct transfer_plan *ret, struct err *err);
/*
 * block-merge (S5): @device, the layers between and @base become one image,
 * while the guest writes; the others are empty in the end.  Yields.
 */
int merge_start(struct jobs *jobs, const struct transfer_options *options,
                struct err *err);
/* Which way it goes, and what that takes; checks.  Yields. */
int merge_choose(const struct transfer_options *options, enum merge_into *ret,
                 struct transfer_plan *ret_plan, struct err *err);
int merge_plan(const struct transfer_options *options,
               struct transfer_plan *ret, struct err *err);
/*
 * -EPERM where the job's state does not allow it (QEMU's text), -EINVAL where
 * the job is no mirror.  Does not yield.
 */
int mirror_set_copy_mode(struct job *job, enum copy_mode mode,
                         struct err *err);
/*
 * False where the job is none of type `mirror`; else *ret: are both sides
 * alike, and does every write go to both?  Does not yield.
 */
bool mirror_is_synced(const struct job *job, bool *ret);

/*
 * Is @root a mirror's claim on its target, to which it copies such that a
 * backing file may be attached below?  Then the target's header names one, and
 * what it does not hold yet is not zero to the mirror.  Does not yield.
 */
bool mirror_awaits_backing(struct jobs *jobs, const struct root *root);

/* What a finished or running transfer reports. */
struct transfer_report {
    uint64_t bytes_moved;   /* written to the target, zeroes excepted */
    uint64_t bytes_cloned;  /* shared with the source's file */
    uint64_t bytes_zeroed;  /* found or known to be zero */
    uint64_t bytes_skipped; /* filled by the guest meanwhile */
    uint64_t bytes_dirtied; /* by the guest, where they are missing again */
    uint64_t bytes_forwarded; /* by the guest, to both sides */
    uint64_t bytes_sunk;      /* by the guest, to a merge's target alone */
    uint64_t bytes_released;  /* unallocated in, or punched from, the sources */
    uint64_t peak_extra; /* bytes that all files took more than at the start */
    uint64_t pause_ns, held; /* of the switch: longest, all */
    uint64_t space_needed, space_free; /* when it last ran out of space */
    uint64_t rate_bps; /* over the last seconds */
    uint64_t elapsed_ns;
};
/* False where the job is no transfer. */
bool transfer_report(const struct job *job, struct transfer_report *ret);

#endif
