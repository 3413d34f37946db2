// SPDX-License-Identifier: BSD-3-Clause
/*
 * Nodes, edges and the driver table: what drivers and the engine use.
 *
 * A node is an open image or a protocol endpoint.  It lives as long as
 * somebody refers to it: the operator's name (blockdev-add), an edge, a root.
 * Its children are reached only through its edges.
 *
 * Everything runs in the graph's loop.  Unless a function says that it does
 * not yield, it does, and it returns 0 or -errno.
 */
#ifndef SLUICE_BLOCK_NODE_H
#define SLUICE_BLOCK_NODE_H

#include <jansson.h>

#include "base/list.h"
#include "block/block.h"
#include "block/file_set.h"
#include "block/grace.h"
#include "block/range_lock.h"
#include "run/loop.h"

enum edge_role { EDGE_DATA, EDGE_BACKING };

struct edge {
    struct node *parent, *child;
    enum edge_role role;
    enum claim claim;
    const char *frozen; /* who needs that it stays where it is; NULL: nobody */
    struct list link;   /* child->parents */
};

/* The backing file as an image's header states it. */
struct backing_ref {
    char *filename; /* NULL: none */
    char *format;   /* NULL: the header does not say */
};

/* What becomes of a write of nothing but zeroes. */
enum detect_zeroes {
    DETECT_ZEROES_OFF,
    DETECT_ZEROES_ON,    /* it is a zero request */
    DETECT_ZEROES_UNMAP, /* which may deallocate, too */
};

struct node {
    const struct driver *drv;
    void *state; /* the driver's */
    struct edge *file, *backing;
    uint64_t size; /* bytes, as the parent sees it */
    bool read_only, unmap;
    /* Writers for whom it was made writable; see node_borrow(). */
    unsigned borrowers;
    struct comutex reopening;
    enum detect_zeroes detect_zeroes;
    /* Opened as a backing file; while it is one, the chain index caches. */
    bool is_layer;
    bool is_part; /* shows a part of its file child only */
    bool incomplete; /* an unfinished target (design rule 5) */
    bool inactive;   /* handed over: no driver's state (block/activate.c) */
    bool resizing;   /* node_resize() of it, or below it, is under way */
    /* Set for good when what is on disk is no longer known (rule 9). */
    int failed;
    struct block_limits limits;
    uint32_t cluster_size; /* unit of allocation; 1 where there is none */
    /* Bytes of a table that names clusters, 8 for each; 0 where there is none. */
    uint64_t table_size;

    struct range_lock ranges;
    struct grace lookups; /* reads that looked up where data is */
    struct chain_index *index; /* of the layers from here down; made lazily */
    unsigned n_overlays;       /* edges that have it as their backing file */
    /*
     * Roots that use it, and edges of parents that somebody uses.  An overlay
     * that nobody uses needs nothing of its backing file.
     */
    unsigned users;
    unsigned changing;         /* changes under way while others overlay it */
    struct throttle_member *throttle; /* the driver throttle's; else NULL */
    struct list taps;     /* in firing order */
    struct grace changes; /* the requests that change it and fire taps */
    /* Counts changes: all, those of its users, those that are durable. */
    uint64_t write_gen, users_gen, flushed_gen;
    unsigned under_way; /* changes, of which the maps may show a part already */

    struct graph *graph;
    struct list link; /* graph's nodes */
    char *name;       /* unique; "#block..." where it was not given */
    bool named;       /* held by its name: blockdev-add */
    bool visible;     /* open as a whole: graph_find() sees it */
    char *filename;   /* for messages: the file that it shows; may be NULL */
    struct file_id file_id;         /* of that file */
    uint64_t file_born;             /* see struct file */
    bool is_device;                 /* that is a block device */
    /* Protocols: how often a server was lost with writes that were not flushed. */
    uint64_t losses;
    const struct file_set *above;   /* while it is opened: see node_set_file() */
    /*
     * Formats, while it can be written: the number in its header, another one
     * at each opening, that other programs' writes take away; and what was
     * there before.  0: none.  It stays there at the end with @keep_session.
     */
    uint64_t session, last_session;
    bool keep_session;
    bool is_refused; /* it is no disk any more: it gets the last number back */
    /*
     * A kill would take what is acknowledged (rule 10): what it takes to find
     * it again has no room in shared memory.  So each change is flushed first.
     */
    bool is_unlogged;
    struct dirty_log *dirty_log; /* dirty_log.h; or NULL */
    struct backing_ref header_backing;
    unsigned refs;
    struct list parents; /* of struct edge */
    struct list roots;
    json_t *options; /* as they were given */
};

/*
 * A tap sees a node's changes (design §4), in a fixed order; the engine's own
 * (REQ_BACKGROUND, REQ_QUIET) fire none.
 */
enum tap_order { TAP_BEFORE, TAP_DIRTY, TAP_FORWARD, TAP_AFTER };

enum tap_op { TAP_OP_WRITE, TAP_OP_ZERO, TAP_OP_DISCARD, TAP_OP_FLUSH };

/* A change that a tap makes on another node, too; embedded in the tap's own. */
struct forward {
    struct tap *tap;
    struct forward *next; /* of the same request */
};

struct tap {
    struct list link;
    enum tap_order order;
    /*
     * Before the write reaches the driver, with its range held; may yield.
     * An error fails the request.  May be NULL; one tap of an order has it.
     */
    int (*before)(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len);
    /*
     * Would begin() take part?  Then the range is held alone, so that changes
     * that overlap come one after the other.  Does not yield; NULL: never.
     */
    bool (*forwards)(struct tap *tap, enum tap_op op, uint64_t off,
                     uint64_t len);
    /*
     * Begins the change elsewhere, beside the node's own; NULL: stays out.  A
     * write's @sg is the guest's memory, which it may change at any time: who
     * takes part puts a copy there that lives until end().  Does not yield.
     */
    struct forward *(*begin)(struct tap *tap, enum tap_op op, uint64_t off,
                             uint64_t len, struct sg *sg);
    /* The node's own is over; waits for the other as far as it wants; yields. */
    void (*end)(struct forward *forward, int result);
    /*
     * Afterwards, whatever became of a change that was not forwarded, and
     * before it is answered; must not yield.  May be NULL.
     */
    void (*after)(struct tap *tap, enum tap_op op, uint64_t off, uint64_t len,
                  int result);
    /*
     * Who takes the first *ret_len bytes of a change in place of the node: *ret
     * is the node as it comes.  With the range held, where begin() stayed out;
     * such a tap's after() then hears of each part that the node itself took.
     * Yields; NULL: the node takes all.
     */
    int (*divert)(struct tap *tap, uint64_t off, uint64_t len,
                  struct node **ret, uint64_t *ret_len);
    uint64_t own_begun; /* parts that the node itself took, in all */
    unsigned own_busy;  /* and those under way */
    /* The disk goes on elsewhere: a part that is diverted stays so. */
    bool is_left;
    /*
     * Discards are hints: they do nothing while this is set.  One that is not
     * forwarded would have the other side fall behind again and again.
     */
    bool drops_discards;
    /* A read is about to be done; must not yield.  May be NULL. */
    void (*on_read)(struct tap *tap, uint64_t off, uint64_t len);
};

void tap_attach(struct node *node, struct tap *tap);
void tap_detach(struct tap *tap);

struct check_report {
    uint64_t corruptions, leaks, check_errors;
    uint64_t fixed_corruptions, fixed_leaks;
    uint64_t total_clusters, allocated_clusters, compressed_clusters;
    uint64_t end_offset;
    /* Says what was found, a line each; may be NULL. */
    void (*say)(void *arg, const char *line);
    void *arg;
};

enum check_fix { CHECK_FIX_LEAKS = 1, CHECK_FIX_ERRORS = 2 };

/* A cluster as a format encodes it. */
struct encoded {
    unsigned char *data; /* who has the struct frees it */
    uint64_t len;
    uint32_t cluster_size;
    unsigned method; /* the format's own number */
};

/*
 * A driver.  A format has `map` and a data child; a protocol has none and
 * implements `read` for every byte.  NULL entries are emulated by block/io.c
 * or refused with -ENOTSUP.
 *
 * Ranges lie inside the node (io.c checks both sides of each call).  `hold` is
 * the caller's hold on the node's range lock; a driver that needs more, widens
 * it (range_lock_widen()) and looks again.
 */
enum { HEADER_PEEK = 4096 };

/* The backing file's, and that of the file with the data. */
struct header_names {
    struct {
        uint64_t off;
        uint32_t len;
    } name[2];
    unsigned n;
};

struct driver {
    const char *name;
    bool is_protocol;
    bool is_filter; /* reads and writes as its data child */

    /* Takes options out of @options (never NULL); sets size and limits. */
    int (*open)(struct node *node, json_t *options, struct err *err);
    /* Writes back what is pending; must free the state whatever happens. */
    int (*close)(struct node *node);
    /* Makes an image file; @options as blockdev-create's. */
    int (*create)(struct graph *graph, json_t *options, struct err *err);

    /* Where the first bytes of [off, off + len) are in this layer. */
    int (*map)(struct node *node, uint64_t off, uint64_t len,
               struct extent *ret);
    /* Protocols: everything.  Formats: EXTENT_ENCODED ranges only. */
    int (*read)(struct node *node, uint64_t off, struct sg sg, unsigned flags);
    int (*write)(struct node *node, uint64_t off, struct sg sg, unsigned flags,
                 struct range_hold *hold);
    /*
     * As `write`, sharing the blocks of a protocol node's range (reflinks);
     * whole clusters.  -ENOTSUP where that cannot be.
     */
    int (*clone)(struct node *node, uint64_t off, struct node *from,
                 uint64_t from_off, uint64_t len, unsigned flags,
                 struct range_hold *hold);
    /*
     * A whole cluster (EXTENT_ENCODED) as it lies in the file, to be written as
     * one of another image without decoding it.  -ENOTSUP where it is none, or
     * cannot be one there.
     */
    int (*read_encoded)(struct node *node, uint64_t off, unsigned flags,
                        struct encoded *ret);
    int (*write_encoded)(struct node *node, uint64_t off,
                         const struct encoded *data, unsigned flags,
                         struct range_hold *hold);
    /* Multiples of the cluster size.  -ENOTSUP: io.c writes zeroes. */
    int (*zero)(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                struct range_hold *hold);
    int (*discard)(struct node *node, uint64_t off, uint64_t len,
                   struct range_hold *hold);
    /* Makes it read through to the backing file; whole clusters. */
    int (*unallocate)(struct node *node, uint64_t off, uint64_t len,
                      struct range_hold *hold);
    /* Everything written before is durable.  NULL: the data child's. */
    int (*flush)(struct node *node);
    /* Data or hole, as the file system knows; slow.  NULL: all is data. */
    int (*status)(struct node *node, uint64_t off, uint64_t len,
                  struct extent *ret);
    int (*truncate)(struct node *node, uint64_t size, struct err *err);
    /*
     * Formats: where a header has the names of files that the image needs; of
     * @head are HEADER_PEEK bytes.  Nothing else in it is looked at, so that one
     * that could not be opened tells it, too.  false: it is of another format.
     */
    bool (*find_names)(const unsigned char *head, struct header_names *ret);
    /* Rewrites the header's backing file, durably; NULL name: none. */
    int (*set_backing)(struct node *node, const char *filename,
                       const char *format, struct err *err);
    /*
     * Marks the image as an unfinished target, so that other programs refuse
     * it (design rule 5), or takes the mark away; durable.  NULL: the format
     * has no such mark.
     */
    int (*set_incomplete)(struct node *node, bool incomplete,
                          struct err *err);
    /*
     * The image is of a version that can be marked, or becomes one where that
     * is allowed; else -ENOTSUP.  NULL: all versions can, or none.
     */
    int (*ensure_mark)(struct node *node, bool may_upgrade, struct err *err);
    /*
     * Becomes writable, or read-only, under its readers; nobody writes, and
     * node->read_only is true.  Its file is writable already, or still is.
     * NULL: nothing is to be done.
     */
    int (*reopen)(struct node *node, bool read_only, struct err *err);
    /*
     * Would `reopen` refuse to make it writable for what is in the image?  Looks
     * only.  NULL: it would not.
     */
    int (*check_write)(struct node *node, struct err *err);
    int (*check)(struct node *node, unsigned fix, struct check_report *report,
                 struct err *err);
    /*
     * Nobody is to wait for the outside any more; does not yield.  At first
     * only background reads and look-ups in flight, which return -ERESTART
     * (a guest's request then begins again, see block/root.c);
     * with @all every request, now and later, and an open under way: they
     * fail.  NULL: nothing here can be waited for in vain, or be ended.
     */
    void (*let_go)(struct node *node, bool all);
    /*
     * Protocols: where a request in flight has lasted for @ns, its connection is
     * broken, and all that it carries ends as where it is lost (node->losses);
     * what comes later waits for the next one while the server is silent.
     * NULL: nothing here can be ended so.  Does not yield.
     */
    void (*cut_off)(struct node *node, uint64_t ns);
    /*
     * Formats: commits, and returns when the file has given back the blocks of
     * all that is not named any more.  NULL: it has at once.  Yields.
     */
    int (*free_now)(struct node *node);
    /*
     * Protocols: -EBUSY where another program, or another opening of it here,
     * has the file in use.  NULL: nobody can tell.
     */
    int (*check_alone)(struct node *node);
    /*
     * Protocols: the bytes that may still be allocated; NULL or -ENOTSUP
     * where all are there from the start.
     */
    int (*free_space)(struct node *node, uint64_t *ret);
    /* Protocols: the bytes that are allocated; NULL: not known. */
    int (*allocated)(struct node *node, uint64_t *ret);
    /* Adds format-specific members to @info. */
    void (*info)(struct node *node, json_t *info);
};

/* The graph. */

struct graph_options {
    const struct driver *const *drivers; /* NULL-terminated */
    uint64_t chain_index_bytes; /* of each disk; 0: CHAIN_INDEX_BYTES */
    /* Where headers may point: NULL any plain local path; "" nowhere. */
    const char *backing_paths;
    /* For journals that cannot lie beside their images; NULL: there are none. */
    const char *state_dir;
    /*
     * The folder that relative names of files are in, where the process is to
     * leave it; NULL: names are used as they are.
     */
    const char *folder;
    bool quiet; /* no lines in the log about what was found beside an image */
};

struct graph *graph_new(struct loop *loop, const struct graph_options *options);
/* Drops all named nodes, closes everything.  Yields. */
void graph_free(struct graph *graph);
/*
 * For an end that waits for nobody outside: no node is opened any more, and
 * what may never answer fails at once (drivers' let_go), first where nobody
 * writes to it, with @all everywhere.  Does not yield.
 */
void graph_end(struct graph *graph, bool all);
/*
 * The first half of graph_free().  False where something that cannot be ended
 * still holds a node: then the graph must not be freed.  Yields.
 */
bool graph_close(struct graph *graph);
struct loop *graph_loop(const struct graph *graph);
/* Of the images that are open here (journal/journal.h). */
struct journals *graph_journals(struct graph *graph);
/* The process has left its folder: from now on it is @folder. */
void graph_set_folder(struct graph *graph, const char *folder);
/* @name as it means the same wherever the process goes; the caller frees it. */
char *graph_path(const struct graph *graph, const char *name);
/* Are the paths limited that others than the operator may name? */
bool graph_limits_paths(const struct graph *graph);
bool graph_is_quiet(const struct graph *graph);
/* A line in the log about what was found beside an image (base/log.h). */
#define NODE_SAY(node, level, ...)                                             \
    do {                                                                       \
        if (!graph_is_quiet((node)->graph)) {                                  \
            log_##level(__VA_ARGS__);                                          \
        }                                                                      \
    } while (0)
const struct driver *graph_driver(struct graph *graph, const char *name);
/* NULL where there is none. */
struct node *graph_find(struct graph *graph, const char *node_name);
/* Could a new node have that name?  QEMU's rule and texts.  Does not yield. */
int graph_check_name(struct graph *graph, const char *name, struct err *err);
/* A reference to every node, in an array that the caller frees.  No yield. */
void graph_hold_all(struct graph *graph, struct node ***ret, size_t *ret_n);
/*
 * What the guests of @node did so far: the sum over all roots that are not
 * pinned and lead to it directly.  Does not yield.
 */
void node_guest_stats(const struct node *node, struct root_stats *ret);
/* A root edge as others see it. */
struct holder {
    const struct root *root;
    const char *owner; /* the root's: valid until something yields */
    enum claim claim;
    bool pinned; /* a job's */
};
/* The roots of @node, in an array that the caller frees.  Does not yield. */
void node_holders(const struct node *node, struct holder **ret, size_t *ret_n);
/*
 * -EBUSY: @owner does with @node what @fmt says ("reads it").  Where @owner is
 * a job, QEMU's text comes first.  Does not yield.
 */
int node_busy(const struct node *node, const char *owner, struct err *err,
              const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* -EBUSY where a job holds @node, with its name.  Does not yield. */
int node_check_no_job(const struct node *node, struct err *err);
/* Requests that were parked (-ERESTART) try again; does not yield. */
void graph_unpark(struct graph *graph);

/* Opening (block/open.c). */

/*
 * Opens a node from blockdev-add's options (borrowed) and its whole chain; the
 * caller owns the reference.  Iterates down the chain, so its depth is no
 * matter; a loop, or more than LIMIT_CHAIN_DEPTH images, is an error.
 */
int node_open(struct graph *graph, const json_t *options, struct node **ret,
              struct err *err);
/* As node_open(), and the node is held by its name until node_del(). */
int node_add(struct graph *graph, const json_t *options, struct node **ret,
             struct err *err);
/* -EBUSY where it is in use, -ENOENT where it is no named node. */
int node_del(struct graph *graph, const char *name, struct err *err);

/*
 * A node by name (json string) or by definition (object); the caller owns the
 * reference.
 */
int node_open_ref(struct graph *graph, const json_t *def, struct node **ret,
                  struct err *err);

/*
 * The path that the reference @name in the header of the file @image means,
 * relative to that file's folder; the caller frees it.  Is it a path at all, or
 * another way to name a file?  Neither yields.
 */
char *backing_path_from(const char *image, const char *name);
bool backing_is_path(const char *name);
/*
 * The path that node->header_backing.filename means, relative to the image's
 * folder; the caller frees it.  -EPERM where a header may not point there: a
 * driver must not look at such a file.  Yields.
 */
int node_backing_path(struct node *node, char **ret, struct err *err);
/* The inode by which journals know a file; a device has none: 0.  No yield. */
uint64_t node_journal_ino(const struct node *file);
/*
 * For drivers of files, while they open: the node shows this file.  -ELOOP
 * where it is the file of an image above it in the chain that is being opened;
 * to be asked before the file is locked, which fails if that image is written.
 * Does not yield.
 */
int node_set_file(struct node *node, struct file_id id, struct err *err);
/*
 * Another node that shows the same file, by the name that it was given if there is
 * one; NULL: none does.  Does not yield.
 */
const struct node *node_find_same_file(const struct node *node);
/* For drivers: opens or refers to the child in options[key] (required). */
int node_open_file(struct node *node, json_t *options, struct err *err);

/*
 * Background reads of the chain from @top down that wait for the outside
 * return -ERESTART: for whoever was told to stop.  Does not yield.
 */
void chain_let_go(struct node *top);
/*
 * Requests to @target's files that have lasted for @ns end (drivers' cut_off),
 * for whoever was told to stop; where a guest, or anybody but jobs, writes to
 * one of them, too, they do not.  Does not yield.
 */
void target_cut_off(struct node *target, uint64_t ns);
/* Is @node in the chain from @top down?  Does not yield. */
bool chain_contains(const struct node *top, const struct node *node);
/* The last layer of the chain from @top down.  Does not yield. */
struct node *chain_bottom(struct node *top);
/*
 * The image that @node shows through filters that only pass requests on, as
 * QEMU's bdrv_skip_filters(); raw is an image.  Does not yield.
 */
struct node *node_skip_filters(struct node *node);
/*
 * The layer of the chain from @top's image down that is @node, or shows the same
 * image through filters; NULL where none does.  Does not yield.
 */
struct node *chain_find_layer(struct node *top, struct node *node);
/* Is nothing above @image but filters that show it?  Does not yield. */
bool node_is_root(const struct node *image);
/* The format under which a header names the disk that @node shows. */
const char *node_image_format(const struct node *node);
/*
 * @backing as the header of the image @path should name it: by its last part
 * where both lie in one folder, else absolutely.  The caller frees it.  Yields.
 */
char *backing_name_for(const char *path, const char *backing);

/*
 * @node is in that file from now on, and what lies over it shows that; @filename
 * may be NULL, and is copied.  Does not yield.
 */
void node_show_file(struct node *node, const char *filename,
                    struct file_id id);

struct node *node_ref(struct node *node); /* does not yield */
void node_unref(struct node *node);       /* the last one closes */

/* Puts @child below @parent; takes a reference.  Does not yield. */
int edge_new(struct node *parent, struct node *child, enum edge_role role,
             enum claim claim, struct edge **ret, struct err *err);
void edge_free(struct edge *edge); /* yields where it closes the child */
/*
 * From @top down to, without the one below it, @bottom (NULL: to the end), no
 * edge may be edited before the thaw: for a job that reckons with them.
 * -EBUSY, with the holder named, where one is frozen already.  @owner is
 * borrowed.  No yield.
 */
int chain_freeze(struct node *top, struct node *bottom, const char *owner,
                 struct err *err);
/* Takes back what @owner froze from @top down. */
void chain_thaw(struct node *top, const char *owner);
/* What an edge claims as things are: nothing where nobody uses its parent. */
enum claim edge_claim(const struct edge *edge);
/* 0, or -EBUSY with the holder named, where @claim on @node is refused. */
int claim_check(struct node *node, enum claim claim, const char *owner,
                struct err *err);

/*
 * Makes @node writable, or read-only, and the files below it that were opened
 * for it, while others go on to read (block/reopen.c).  -EBUSY where a claim
 * or another program stands against it.
 */
int node_reopen(struct node *node, bool read_only, struct err *err);
/*
 * Would node_reopen() make it writable, as far as that can be told without
 * doing it?  Yields.
 */
int node_check_writable(struct node *node, struct err *err);
/*
 * As node_reopen(), for as long as somebody needs it: the last node_return()
 * makes read-only what the first node_borrow() made writable; where a guest
 * writes to it by then, it stays writable.  A node that was writable before has
 * nothing to return (*ret_borrowed is false).  They yield.
 */
int node_borrow(struct node *node, bool *ret_borrowed, struct err *err);
void node_return(struct node *node);
/* What was borrowed is writable for good; does not yield. */
void node_keep_writable(struct node *node);

/* `active: false`: opened without locks, to be looked at.  Does not yield. */
bool node_begins_inactive(const json_t *options);
/*
 * Hands the node's file over to another program, or takes it back, with what is
 * below it and used by nobody else.  -EBUSY where it is in use.  Yields.
 */
int node_set_active(struct node *node, bool active, struct err *err);
/* -EPERM where it is handed over.  Does not yield. */
int node_check_active(const struct node *node, struct err *err);
/*
 * The node of the regular file that @node is, or NULL: a part of a file is no
 * file of its own.  Does not yield.
 */
const struct node *node_local_file(const struct node *node);
/* As node_local_file(), of a block device, too. */
const struct node *node_own_file(const struct node *node);
/* As node_own_file(), also where @node is only a part of it. */
const struct node *node_file_below(const struct node *node);
/* Is it only a part of its file: a raw node with an offset or a size? */
bool node_is_part(const struct node *node);
/* -ENOTSUP: no header of an image can name it, since it is a part of a file. */
int node_check_name(const struct node *node, struct err *err);
struct switch_intent;
/*
 * A job of an earlier daemon on @file was at its end, and what was left of it is
 * done: so the same command again is not to begin another one.  Neither yields.
 */
void graph_add_done(struct graph *graph, const char *job,
                    const struct node *file);
bool graph_is_done(const struct graph *graph, const char *job,
                   const struct node *file);
/*
 * Is the target of a switch marked as unfinished, so that the disk is still the
 * source?  -errno where it cannot be opened.  Yields.
 */
int switch_ask_target(struct graph *graph, const struct switch_intent *intent,
                      bool *ret_unfinished, struct err *err);
/*
 * The image does not read through any more to the disk that an earlier daemon
 * moved to it, or no job is to copy the rest: what that switch left to do is done.
 * Yields.
 */
void node_end_switch(struct node *image);
/*
 * Deletes the source of a switch, durably, where its name still means the file
 * that was opened; a link goes with the file that it leads to.  Yields.
 */
int source_delete(struct loop *loop, const struct switch_intent *intent,
                  struct err *err);

/*
 * `discard` and `detect-zeroes` of @options, which have been checked, hold from
 * now on; the others are kept as what the node was opened with.  Neither
 * yields.
 */
int node_check_options(json_t *options, struct err *err);
void node_set_options(struct node *node, json_t *options);

/* Members of options, for drivers; each removes what it returns. */
const char *opt_str(json_t *options, const char *key);
bool opt_bool(json_t *options, const char *key, bool otherwise);
/* An absent member gives @otherwise. */
uint64_t opt_u64(json_t *options, const char *key, uint64_t otherwise);

/* Requests (block/io.c), as root_*() without a gate. */

int node_read(struct node *node, uint64_t off, struct sg sg, unsigned flags);
int node_read_buf(struct node *node, uint64_t off, void *buf, uint64_t len);
/*
 * @hold: the caller's exclusive hold that covers the range, or NULL to take
 * one.
 */
int node_write(struct node *node, uint64_t off, struct sg sg, unsigned flags,
               struct range_hold *hold);
int node_write_buf(struct node *node, uint64_t off, const void *buf,
                   uint64_t len);
/* Whole clusters; @from is a protocol node. */
int node_clone(struct node *node, uint64_t off, struct node *from,
               uint64_t from_off, uint64_t len, unsigned flags,
               struct range_hold *hold);
/* The cluster at @off. */
int node_write_encoded(struct node *node, uint64_t off,
                       const struct encoded *data, unsigned flags,
                       struct range_hold *hold);
int node_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
              struct range_hold *hold);
int node_discard(struct node *node, uint64_t off, uint64_t len);
int node_unallocate(struct node *node, uint64_t off, uint64_t len,
                    struct range_hold *hold);
int node_flush(struct node *node);
int node_truncate(struct node *node, uint64_t size, struct err *err);
/*
 * For the driver of an image that shrinks to @size: what lies behind is
 * unallocated, the rest of the last cluster is zero, so that nothing comes to
 * light where it grows again.  @hold is on all of it.  Yields.
 */
int node_drop_tail(struct node *node, uint64_t size, struct range_hold *hold);
/*
 * For the driver of an image that is about to grow to @size: the rest of its
 * last cluster is zero, durably, before anybody sees it: other programs leave
 * there what they like.  @hold is on it.  Yields.
 */
int node_zero_tail(struct node *node, uint64_t size, struct range_hold *hold);
/*
 * Brings what the layer lacks of [off, off + len), at most LIMIT_COPY, into it
 * from below, where it can be written; a hint.  After an error
 * *ret_read_failed says whether it came from below.
 */
int node_fill(struct node *node, uint64_t off, uint64_t len,
              bool *ret_read_failed);
/*
 * The first extent of [off, off + len) in this layer alone; @seek also asks
 * the file system for holes, which can be slow.
 */
int node_status(struct node *node, uint64_t off, uint64_t len, bool seek,
                struct extent *ret);
/* Of the file that @node is in: see driver.free_space. */
int node_free_space(struct node *node, uint64_t *ret);
/* And the bytes that it occupies there; -ENOTSUP where that is not known. */
int node_allocated(struct node *node, uint64_t *ret);
/*
 * The first extent as it reads from @top down to, without, @base (NULL: all
 * layers), and the layer that holds it (NULL where none does: then it is
 * EXTENT_UNALLOCATED).  What lies past the end of a layer shorter than the one
 * above it is EXTENT_ZERO of that layer.
 */
int chain_status(struct node *top, struct node *base, uint64_t off,
                 uint64_t len, bool seek, struct extent *ret,
                 struct node **ret_layer);

#endif
