// SPDX-License-Identifier: BSD-3-Clause
/*
 * The graph's structure: nodes, edges, claims and references.
 *
 * Invariants: an edge and a root hold one reference to the node they point at;
 * a node has no driver state before its open succeeded; a claim is checked
 * against all parents before an edge or a root comes into being.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "block/chain_index.h"
#include "block/dirty_log.h"
#include "block/graph_internal.h"
#include "block/limits.h"

struct graph *
graph_new(struct loop *loop, const struct graph_options *options)
{
    struct graph *graph = xzalloc(sizeof(*graph));

    graph->loop = loop;
    journals_init(&graph->journals, loop, options->state_dir);
    graph_set_folder(graph, options->folder);
    graph->drivers = options->drivers;
    graph->quiet = options->quiet;
    graph->backing_paths =
        options->backing_paths ? xstrdup(options->backing_paths) : NULL;
    graph->chain_index_bytes = options->chain_index_bytes
                                   ? options->chain_index_bytes
                                   : CHAIN_INDEX_BYTES;
    list_init(&graph->nodes);
    list_init(&graph->throttle_groups);
    waitq_init(&graph->parked);
    return graph;
}

/* Whether anything could be lost if @node's requests failed. */
static bool
is_written(const struct node *node)
{
    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (claim_writes(edge_claim(e))) {
            return true;
        }
    }
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (claim_writes(root->claim)) {
            return true;
        }
    }
    return false;
}

void
graph_end(struct graph *graph, bool all)
{
    graph->ending = true;
    list_for_each(it, &graph->nodes)
    {
        struct node *node = container_of(it, struct node, link);

        if (node->drv && node->drv->let_go && !node->inactive && (all || !is_written(node))) {
            node->drv->let_go(node, true);
        }
    }
    graph_unpark(graph);
}

void
chain_let_go(struct node *top)
{
    for (struct node *n = top; n; n = n->backing ? n->backing->child : NULL) {
        for (struct node *f = n; f; f = f->file ? f->file->child : NULL) {
            if (f->drv->let_go && !f->inactive) {
                f->drv->let_go(f, false);
            }
        }
    }
    if (top) {
        graph_unpark(top->graph); /* a guest's requests go on at once */
    }
}

/* Does anybody but jobs, and what lies on @path above it, write to @node? */
static bool
is_written_by_others(const struct node *node, const struct edge *path)
{
    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e != path && claim_writes(edge_claim(e))) {
            return true;
        }
    }
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (!root->pinned && claim_writes(root->claim)) {
            return true;
        }
    }
    return false;
}

void
target_cut_off(struct node *target, uint64_t ns)
{
    const struct edge *path = NULL;

    for (struct node *n = target; n && !is_written_by_others(n, path);
         n = path ? path->child : NULL) {
        if (n->drv->cut_off && !n->inactive) {
            n->drv->cut_off(n, ns);
        }
        path = n->file;
    }
}

void
graph_add_done(struct graph *graph, const char *job, const struct node *file)
{
    graph->done = graph->done ? graph->done : json_array();
    json_array_append_new(
        graph->done,
        json_pack("{s:s, s:I, s:I}", "job", job, "ino",
                  (json_int_t)file->file_id.ino, "born",
                  (json_int_t)file->file_born));
}

bool
graph_is_done(const struct graph *graph, const char *job,
              const struct node *file)
{
    json_t *one;
    size_t i;

    json_array_foreach(graph->done, i, one)
    {
        if (!strcmp(json_string_value(json_object_get(one, "job")), job) &&
            json_integer_value(json_object_get(one, "ino")) ==
                (json_int_t)file->file_id.ino &&
            json_integer_value(json_object_get(one, "born")) ==
                (json_int_t)file->file_born) {
            return true;
        }
    }
    return false;
}

void
graph_free(struct graph *graph)
{
    json_decref(take_ptr(graph->done));
    bool closed = graph_close(graph);

    assert(closed);
    throttle_groups_free(graph);
    journals_fini(&graph->journals);
    free(graph->folder);
    free(graph->backing_paths);
    free(graph);
}

bool
graph_close(struct graph *graph)
{
    bool again = true;

    while (again) {
        again = false;
        list_for_each(it, &graph->nodes)
        {
            struct node *node = container_of(it, struct node, link);

            if (node->named) {
                node->named = false;
                node_unref(node);
                again = true;
                break; /* closing may have removed any number of nodes */
            }
        }
    }
    return list_empty(&graph->nodes);
}

void
graph_set_folder(struct graph *graph, const char *folder)
{
    free(graph->folder);
    graph->folder = folder ? xstrdup(folder) : NULL;
}

char *
graph_path(const struct graph *graph, const char *name)
{
    return name[0] == '/' || !graph->folder
               ? xstrdup(name)
               : xasprintf("%s/%s", graph->folder, name);
}

bool
graph_limits_paths(const struct graph *graph)
{
    return graph->backing_paths != NULL;
}

bool
graph_is_quiet(const struct graph *graph)
{
    return graph->quiet;
}

struct journals *
graph_journals(struct graph *graph)
{
    return &graph->journals;
}

struct loop *
graph_loop(const struct graph *graph)
{
    return graph->loop;
}

const struct driver *
graph_driver(struct graph *graph, const char *name)
{
    for (const struct driver *const *d = graph->drivers; *d; d++) {
        if (!strcmp((*d)->name, name)) {
            return *d;
        }
    }
    return NULL;
}

struct node *
graph_find(struct graph *graph, const char *node_name)
{
    list_for_each(it, &graph->nodes)
    {
        struct node *node = container_of(it, struct node, link);

        if (node->visible && !strcmp(node->name, node_name)) {
            return node;
        }
    }
    return NULL;
}

bool
graph_name_taken(struct graph *graph, const char *name)
{
    list_for_each(it, &graph->nodes)
    {
        if (!strcmp(container_of(it, struct node, link)->name, name)) {
            return true;
        }
    }
    return false;
}

void
graph_hold_all(struct graph *graph, struct node ***ret, size_t *ret_n)
{
    *ret = NULL;
    *ret_n = 0;
    list_for_each(it, &graph->nodes)
    {
        struct node *node = container_of(it, struct node, link);

        if (node->visible) {
            *ret = xrealloc(*ret, (*ret_n + 1) * sizeof(**ret));
            (*ret)[(*ret_n)++] = node_ref(node);
        }
    }
}

void
graph_unpark(struct graph *graph)
{
    graph->park_gen++;
    waitq_wake_all(&graph->parked);
}

void
node_guest_stats(const struct node *node, struct root_stats *ret)
{
    *ret = (struct root_stats){0};
    list_for_each(it, &node->roots)
    {
        struct root *root = container_of(it, struct root, link);

        if (!root->pinned) {
            ret->requests += root->stats.requests;
            ret->busy_ns += root->stats.busy_ns;
            ret->in_flight += root->in_flight;
        }
    }
}

void
node_holders(const struct node *node, struct holder **ret, size_t *ret_n)
{
    *ret = NULL;
    *ret_n = 0;
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        *ret = xrealloc(*ret, (*ret_n + 1) * sizeof(**ret));
        (*ret)[(*ret_n)++] = (struct holder){
            root, root->owner, root->claim, root->pinned};
    }
}

/* The type of the job that is called @owner; NULL where it is no job. */
static const char *
find_job_type(const struct graph *graph, const char *owner)
{
    list_for_each(it, &graph->nodes)
    {
        const struct node *node = container_of(it, struct node, link);

        list_for_each(at, &node->roots)
        {
            const struct root *root = container_of(at, struct root, link);

            if (root->pinned && !strcmp(root->owner, owner)) {
                return root->job_type;
            }
        }
    }
    return NULL;
}

int
node_busy(const struct node *node, const char *owner, struct err *err,
          const char *fmt, ...)
{
    const char *type = find_job_type(node->graph, owner);
    va_list ap;

    va_start(ap, fmt);
    auto_free char *what = xvasprintf(fmt, ap);
    va_end(ap);
    return type ? err_set(err, -EBUSY,
                          "Node '%s' is busy: block device is in use by block "
                          "job: %s (%s %s)",
                          node->name, type, owner, what)
                : err_set(err, -EBUSY, "Node '%s' is busy: %s %s", node->name,
                          owner, what);
}

int
node_check_no_job(const struct node *node, struct err *err)
{
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (root->pinned) {
            return node_busy(node, root->owner, err, "uses it");
        }
    }
    return 0;
}

/* Nodes. */

struct node *
node_alloc(struct graph *graph, const char *name)
{
    struct node *node = xzalloc(sizeof(*node));

    node->graph = graph;
    node->name = name ? xstrdup(name)
                      : xasprintf("#block%03u", graph->next_name++);
    node->refs = 1;
    node->cluster_size = 1;
    node->limits = (struct block_limits){1, 4096, LIMIT_REQUEST};
    range_lock_init(&node->ranges);
    grace_init(&node->lookups);
    grace_init(&node->changes);
    comutex_init(&node->reopening);
    list_init(&node->taps);
    list_init(&node->parents);
    list_init(&node->roots);
    list_push(&graph->nodes, &node->link);
    return node;
}

void
node_dealloc(struct node *node)
{
    list_remove(&node->link);
    json_decref(node->options);
    free(node->header_backing.filename);
    free(node->header_backing.format);
    free(node->filename);
    free(node->name);
    free(node);
}

struct node *
node_ref(struct node *node)
{
    node->refs++;
    return node;
}

/* Closes a node nobody refers to; returns the backing node it let go of. */
static struct node *
node_close(struct node *node)
{
    struct node *backing = NULL;

    node->visible = false; /* closing yields: nobody may find it */
    chain_index_drop(node);
    dirty_log_leave(node);
    if (node->drv && node->drv->close && !node->inactive) {
        node->drv->close(node);
    }
    if (node->backing) {
        backing = node->backing->child;
        edge_unlink(node->backing);
        free(node->backing);
    }
    if (node->file) {
        edge_free(node->file);
    }
    node_dealloc(node);
    return backing;
}

/* A chain is closed in a loop: its depth is the image's choice. */
void
node_unref(struct node *node)
{
    while (node && --node->refs == 0) {
        node = node_close(node);
    }
}

bool
chain_contains(const struct node *top, const struct node *node)
{
    while (top && top != node) {
        top = top->backing ? top->backing->child : NULL;
    }
    return top != NULL;
}

struct node *
chain_bottom(struct node *top)
{
    while (top->backing) {
        top = top->backing->child;
    }
    return top;
}

/* One that maps (raw) is an image of its own. */
static bool
passes_on(const struct node *node)
{
    return node->drv->is_filter && !node->drv->map && node->file;
}

struct node *
node_skip_filters(struct node *node)
{
    while (passes_on(node)) {
        node = node->file->child;
    }
    return node;
}

struct node *
chain_find_layer(struct node *top, struct node *node)
{
    const struct node *image = node_skip_filters(node);

    top = node_skip_filters(top);
    while (top && node_skip_filters(top) != image) {
        top = top->backing ? top->backing->child : NULL;
    }
    return top;
}

/* Filters nest as the operator has put them: their depth is no image's choice. */
bool
node_is_root(const struct node *image)
{
    list_for_each(it, &image->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e->role == EDGE_BACKING || !passes_on(e->parent) ||
            !node_is_root(e->parent)) {
            return false;
        }
    }
    return true;
}

void
node_show_file(struct node *node, const char *filename, struct file_id id)
{
    char *copy = filename ? xstrdup(filename) : NULL;

    free(node->filename);
    node->filename = copy;
    node->file_id = id;
    list_for_each(it, &node->parents)
    {
        const struct edge *e = container_of(it, struct edge, link);

        if (e->role == EDGE_DATA) {
            node_show_file(e->parent, filename, id);
        }
    }
}

const struct node *
node_find_same_file(const struct node *node)
{
    const struct node *found = NULL;

    list_for_each(it, &node->graph->nodes)
    {
        const struct node *n = container_of(it, struct node, link);

        if (n != node && n->file_id.ino == node->file_id.ino &&
            n->file_id.dev == node->file_id.dev && (!found || n->named)) {
            found = n;
        }
    }
    return found;
}

/* Claims and edges. */

bool
claim_writes(enum claim c)
{
    return c == CLAIM_WRITE || c == CLAIM_ALONE || c == CLAIM_TARGET ||
           c == CLAIM_SINK;
}

static bool
claim_excludes(enum claim c)
{
    return c == CLAIM_STABLE || c == CLAIM_ALONE || c == CLAIM_TARGET;
}

/* Who fills relies on what lies there until it holds the range itself. */
static bool
fill_clashes(enum claim other)
{
    return other == CLAIM_FILL || other == CLAIM_ALONE ||
           other == CLAIM_TARGET;
}

bool
claims_clash(enum claim a, enum claim b)
{
    if (a == CLAIM_SINK || b == CLAIM_SINK) {
        return a != CLAIM_NONE && b != CLAIM_NONE;
    }
    return (claim_writes(a) && claim_excludes(b)) ||
           (claim_writes(b) && claim_excludes(a)) ||
           (a == CLAIM_FILL && fill_clashes(b)) ||
           (b == CLAIM_FILL && fill_clashes(a));
}

enum claim
edge_claim(const struct edge *edge)
{
    return edge->role == EDGE_BACKING && !edge->parent->users ? CLAIM_NONE
                                                              : edge->claim;
}

/* A target is no disk yet: what it reads through is nobody's concern. */
static bool
claim_uses(enum claim c)
{
    return c != CLAIM_NONE && c != CLAIM_TARGET;
}

/* Filters nest by their options; backing files by what images say. */
static void
use(struct node *node)
{
    while (node && node->users++ == 0) {
        if (node->file) {
            use(node->file->child);
        }
        node = node->backing ? node->backing->child : NULL;
    }
}

static void
unuse(struct node *node)
{
    while (node && --node->users == 0) {
        if (node->file) {
            unuse(node->file->child);
        }
        node = node->backing ? node->backing->child : NULL;
    }
}

void
root_link(struct root *root, struct node *node)
{
    root->node = node;
    list_push(&node->roots, &root->link);
    if (claim_uses(root->claim)) {
        use(node);
    }
}

void
root_unlink(struct root *root)
{
    list_remove(&root->link);
    if (claim_uses(root->claim)) {
        unuse(root->node);
    }
}

void
root_set_claim(struct root *root, enum claim claim)
{
    struct node *node = root->node;

    root_unlink(root);
    root->claim = claim;
    root_link(root, node);
}

/* What @node shows of itself, or reads through to; NULL: nothing. */
static const struct node *
below(const struct node *node)
{
    return node->backing                         ? node->backing->child
           : node->drv->is_filter && node->file ? node->file->child
                                                : NULL;
}

/* The first unfinished copy from @top down; NULL where there is none. */
static const struct node *
find_unfinished(const struct node *top)
{
    while (top && !top->incomplete) {
        top = below(top);
    }
    return top;
}

static void
hint_unfinished(const struct node *node, struct err *err)
{
    if (node->drv->set_incomplete) {
        err_hint(err, "the disk is still the image that it was copied from; "
                      "copy again onto this one, or delete it");
    } else { /* others may have written it, and could not take the mark away */
        err_hint(err, "the disk is still the image that it was copied from; "
                      "copy again onto this one, or delete it; where another "
                      "program has written all of it since, move its journal "
                      "away ('%s.sluice', or in the state folder)",
                 node->filename);
    }
}

static const char *
what_a_holder_does(enum claim held)
{
    switch (held) {
    case CLAIM_NONE:
    case CLAIM_READ:
        return "reads";
    case CLAIM_STABLE:
        return "needs that nobody writes to";
    case CLAIM_FILL:
    case CLAIM_WRITE:
    case CLAIM_ALONE:
    case CLAIM_TARGET:
    case CLAIM_SINK:
        break;
    }
    return "writes to";
}

static int
claim_refused(struct node *node, enum claim held, const char *owner,
              const char *holder, struct err *err)
{
    int r = node_busy(node, holder, err, "%s it", what_a_holder_does(held));

    err_hint(err, "%s cannot have it before that ends", owner);
    return r;
}

/* Does anybody hold @node in a way that @claim cannot be beside? */
int
claim_check_holders(struct node *node, enum claim claim, const char *owner,
                    struct err *err)
{
    unsigned overlays = 0;

    list_for_each(it, &node->parents)
    {
        struct edge *e = container_of(it, struct edge, link);
        enum claim held = edge_claim(e);

        if (claim == CLAIM_SINK && e->role == EDGE_BACKING &&
            held != CLAIM_NONE && !overlays++) {
            continue;
        }
        if (claims_clash(claim, held)) {
            auto_free char *holder =
                xasprintf("node '%s', as its %s,", e->parent->name,
                          e->role == EDGE_DATA ? "file" : "backing file");

            return claim_refused(node, held, owner, holder, err);
        }
    }
    list_for_each(it, &node->roots)
    {
        struct root *root = container_of(it, struct root, link);

        if (claims_clash(claim, root->claim)) {
            return claim_refused(node, root->claim, owner, root->owner, err);
        }
    }
    return 0;
}

/* What begins to be used where @node does: the layers that nobody uses yet. */
static int
check_below(struct node *node, const char *owner, struct err *err)
{
    int r = 0;

    while (!r && !node->users && (node->backing || node->file)) {
        if (node->file) {
            r = check_below(node->file->child, owner, err);
        }
        if (!node->backing) {
            break;
        }
        node = node->backing->child;
        r = r ? r : claim_check_holders(node, CLAIM_STABLE, owner, err);
    }
    return r;
}

int
claim_check(struct node *node, enum claim claim, const char *owner,
            struct err *err)
{
    const struct node *unfinished =
        claim_uses(claim) ? find_unfinished(node) : NULL;

    if (claim != CLAIM_NONE && node_check_active(node, err)) {
        return -EPERM;
    }
    if (claim_writes(claim) && claim != CLAIM_SINK && node->read_only) {
        return err_set(err, -EACCES, "Block node is read-only");
    }
    if (unfinished) {
        int r = err_set(err, -EUCLEAN, "Image '%s' is an unfinished copy",
                        unfinished->filename ? unfinished->filename
                                             : unfinished->name);

        hint_unfinished(unfinished, err);
        return r;
    }
    int r = claim_check_holders(node, claim, owner, err);

    return r || !claim_uses(claim) ? r : check_below(node, owner, err);
}

void
edge_link(struct edge *edge)
{
    list_push(&edge->child->parents, &edge->link);
    if (edge->parent->users) {
        use(edge->child);
    }
    if (edge->role == EDGE_BACKING) {
        edge->child->n_overlays++;
        chain_index_drop(edge->parent);
    }
}

void
edge_unlink(struct edge *edge)
{
    if (edge->role == EDGE_BACKING) {
        edge->child->n_overlays--;
        chain_index_drop(edge->child); /* and with it all that is above */
    }
    if (edge->parent->users) {
        unuse(edge->child);
    }
    list_remove(&edge->link);
}

/* A backing file that nobody reads through may be anybody's. */
static int
check_edge(struct node *parent, struct node *child, enum edge_role role,
           enum claim claim, struct err *err)
{
    if (!node_begins_inactive(parent->options) &&
        node_check_active(child, err)) {
        return -EPERM;
    }
    if (role == EDGE_BACKING && !parent->users) {
        return 0;
    }
    int r = claim_check_holders(child, claim, parent->name, err);

    if (!r && role == EDGE_DATA && claim_writes(claim) && child->read_only) {
        r = err_set(err, -EACCES, "Block node is read-only");
    }
    return r || !parent->users ? r : check_below(child, parent->name, err);
}

int
edge_new(struct node *parent, struct node *child, enum edge_role role,
         enum claim claim, struct edge **ret, struct err *err)
{
    int r = check_edge(parent, child, role, claim, err);

    if (r) {
        return r;
    }
    struct edge *edge = xzalloc(sizeof(*edge));

    *edge = (struct edge){.parent = parent,
                          .child = node_ref(child),
                          .role = role,
                          .claim = claim};
    edge_link(edge);
    *ret = edge;
    return 0;
}

int
chain_freeze(struct node *top, struct node *bottom, const char *owner,
             struct err *err)
{
    for (struct node *n = top; n != bottom && n->backing;
         n = n->backing->child) {
        const char *frozen = n->backing->frozen;

        if (frozen && frozen != owner) {
            chain_thaw(top, owner);
            int r = node_busy(n, frozen, err,
                              "needs that its backing file stays '%s'",
                              n->backing->child->name);

            err_hint(err, "%s cannot have it before that ends", owner);
            return r;
        }
        n->backing->frozen = owner;
    }
    return 0;
}

void
chain_thaw(struct node *top, const char *owner)
{
    for (struct edge *e = top->backing; e && e->frozen == owner;
         e = e->child->backing) {
        e->frozen = NULL;
    }
}

void
edge_free(struct edge *edge)
{
    struct node *child = edge->child;

    edge_unlink(edge);
    free(edge);
    node_unref(child);
}

void
tap_attach(struct node *node, struct tap *tap)
{
    struct list *at = node->taps.next;

    while (at != &node->taps &&
           container_of(at, struct tap, link)->order <= tap->order) {
        at = at->next;
    }
    list_push(at, &tap->link);
}

void
tap_detach(struct tap *tap)
{
    list_remove(&tap->link);
}
