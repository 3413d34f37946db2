// SPDX-License-Identifier: BSD-3-Clause
/*
 * Opening nodes from options, and the chains that headers name.
 *
 * What the operator wrote is trusted; what a header says is not (design §6,
 * "Safe by default"): a plain local path, inside --backing-paths where that is
 * given, and never a protocol or a json: description.  A chain is opened in a
 * loop, from the top down, because its depth is the images' choice.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/graph_internal.h"
#include "block/limits.h"
#include "run/file.h"

const char *
opt_str(json_t *options, const char *key)
{
    return json_string_value(json_object_get(options, key));
}

bool
opt_bool(json_t *options, const char *key, bool otherwise)
{
    json_t *v = json_object_get(options, key);

    return v ? json_is_true(v) : otherwise;
}

uint64_t
opt_u64(json_t *options, const char *key, uint64_t otherwise)
{
    json_t *v = json_object_get(options, key);

    return v ? (uint64_t)json_integer_value(v) : otherwise;
}

int
graph_check_name(struct graph *graph, const char *name, struct err *err)
{
    bool ok = isalpha((unsigned char)name[0]);

    for (const char *p = name; ok && *p; p++) {
        ok = isalnum((unsigned char)*p) || strchr("-._", *p);
    }
    if (!ok) {
        return err_set(err, -EINVAL, "Invalid node-name: '%s'", name);
    }
    if (graph_name_taken(graph, name)) {
        return err_set(err, -EEXIST, "Duplicate nodes with node-name='%s'",
                       name);
    }
    if (strlen(name) > LIMIT_NODE_NAME) {
        return err_set(err, -EINVAL, "Node name too long");
    }
    return 0;
}

static bool
unmaps(json_t *options)
{
    const char *discard = opt_str(options, "discard");

    return discard && (!strcmp(discard, "unmap") || !strcmp(discard, "on"));
}

int
node_check_options(json_t *options, struct err *err)
{
    const char *zeroes = opt_str(options, "detect-zeroes");

    return zeroes && !strcmp(zeroes, "unmap") && !unmaps(options)
               ? err_set(err, -EINVAL,
                         "setting detect-zeroes to unmap is not allowed "
                         "without setting discard operation to unmap")
               : 0;
}

/* Members that every driver takes; they do not reach the driver. */
static void
take_common_options(struct node *node, json_t *options)
{
    const char *zeroes = opt_str(options, "detect-zeroes");

    node->unmap = unmaps(options);
    node->detect_zeroes = !zeroes || !strcmp(zeroes, "off") ? DETECT_ZEROES_OFF
                          : !strcmp(zeroes, "on")           ? DETECT_ZEROES_ON
                                                  : DETECT_ZEROES_UNMAP;
}

void
node_set_options(struct node *node, json_t *options)
{
    take_common_options(node, options);
    json_decref(node->options);
    node->options = json_deep_copy(options);
}

bool
node_begins_inactive(const json_t *options)
{
    return json_is_false(json_object_get(options, "active"));
}

/* Another program may have it: no lock is taken, and nothing written. */
static int
open_to_look(struct node *node, const struct driver *drv, struct err *err)
{
    json_t *options = json_deep_copy(node->options);

    json_object_set_new(options, "read-only", json_true());
    json_object_set_new(options, "force-share", json_true());
    node->read_only = true;
    int r = drv->open(node, options, err);

    json_decref(options);
    return r;
}

/*
 * One node; @options is the caller's, and is kept by the node.  @is_layer: it
 * is opened as another one's backing file.  @above: the files of the images
 * above it in the chain; may be NULL.
 */
static int
open_one(struct graph *graph, json_t *options, bool is_layer,
         const struct file_set *above, struct node **ret, struct err *err)
{
    const char *driver = opt_str(options, "driver");
    const char *name = opt_str(options, "node-name");

    if (!driver) {
        return err_set(err, -EINVAL, "Parameter 'driver' is missing");
    }
    const struct driver *drv = graph_driver(graph, driver);

    if (!drv || !drv->open) {
        return err_set(err, -EINVAL, "Unknown driver '%s'", driver);
    }
    if (graph->ending) {
        return err_set(err, -ESHUTDOWN, "The daemon is ending");
    }
    if (name && graph_check_name(graph, name, err)) {
        return -EINVAL;
    }
    struct node *node = node_alloc(graph, name);

    node->options = json_incref(options);
    node->is_layer = is_layer;
    node->above = above;
    node->read_only = opt_bool(options, "read-only", false);
    take_common_options(node, options);
    int r = node_check_options(options, err);

    if (!r) {
        node->drv = drv;
        r = node_begins_inactive(options) ? open_to_look(node, drv, err)
                                          : drv->open(node, options, err);
    }
    node->above = NULL;
    if (r) {
        node->drv = NULL; /* a failed open has nothing to close */
        node_unref(node);
        return r;
    }
    if (graph->ending) { /* it took so long that nobody waits any more */
        node_unref(node);
        return err_set(err, -ESHUTDOWN, "The daemon is ending");
    }
    if (node->size > LIMIT_IMAGE_SIZE) {
        r = err_set(err, -EFBIG, "Image '%s' is larger than the limit",
                    node->filename ? node->filename : node->name);
        node_unref(node);
        return r;
    }
    *ret = node;
    return 0;
}

/* What a child takes from its parent unless it says otherwise. */
static void
inherit(json_t *child, const struct node *parent, bool read_only)
{
    json_t *cache = json_object_get(parent->options, "cache");
    json_t *share = json_object_get(parent->options, "force-share");

    if (cache && !json_object_get(child, "cache")) {
        json_object_set(child, "cache", cache);
    }
    if (share && !json_object_get(child, "force-share")) {
        json_object_set(child, "force-share", share);
    }
    if (node_begins_inactive(parent->options) &&
        !json_object_get(child, "active")) {
        json_object_set_new(child, "active", json_false());
    }
    if (!json_object_get(child, "read-only")) {
        json_object_set_new(child, "read-only", json_boolean(read_only));
    }
}

static int
open_child_options(struct node *node, json_t *def, bool is_layer,
                   const struct file_set *above, struct node **ret,
                   struct err *err)
{
    json_t *options = json_deep_copy(def);

    inherit(options, node, is_layer || node->read_only);
    if (node_begins_inactive(options) &&
        !node_begins_inactive(node->options)) {
        const char *name = opt_str(options, "node-name");

        err_set(err, -EINVAL,
                "Inactive '%s' can't be a %s child of active '%s'",
                name ? name : "", is_layer ? "backing" : "file", node->name);
        json_decref(options);
        return -EINVAL;
    }
    int r = open_one(node->graph, options, is_layer, above, ret, err);

    json_decref(options);
    return r;
}

static int
find_by_name(struct graph *graph, const char *name, struct node **ret,
             struct err *err)
{
    struct node *node = graph_find(graph, name);

    if (!node) {
        return err_set(err, -ENOENT,
                       "Cannot find device='%s' nor node-name='%s'", name,
                       name);
    }
    *ret = node_ref(node);
    return 0;
}

static int open_chain(struct node *top, struct err *err);

/* Two formats that write to one file would destroy it. */
enum claim
file_claim(const struct node *node, bool read_only)
{
    if (read_only) {
        return CLAIM_STABLE;
    }
    return node->drv->is_filter ? CLAIM_WRITE : CLAIM_ALONE;
}

/* Of a file that is inactive already, its options; else @def. */
static json_t *
to_look_at(struct graph *graph, json_t *def)
{
    const char *name = json_string_value(def);
    const struct node *node = name ? graph_find(graph, name) : NULL;

    if (!node || !node->inactive) {
        return json_incref(def);
    }
    json_t *options = json_deep_copy(node->options);

    json_object_del(options, "node-name");
    return options;
}

static int
open_file_child(struct node *node, json_t *def, struct node **ret,
                struct err *err)
{
    struct node *child;

    if (json_is_string(def)) {
        return find_by_name(node->graph, json_string_value(def), ret, err);
    }
    int r = open_child_options(node, def, false, node->above, &child, err);

    if (r) {
        return r;
    }
    r = open_chain(child, err); /* a format as a file has one of its own */
    if (r) {
        node_unref(child);
        return r;
    }
    if (!json_object_get(def, "discard")) {
        child->unmap = true; /* the parent decides what is discarded */
    }
    *ret = child;
    return 0;
}

int
node_open_file(struct node *node, json_t *options, struct err *err)
{
    json_t *def = json_object_get(options, "file");
    struct node *child = NULL;
    int r;

    if (!def) {
        return err_set(err, -EINVAL, "Parameter 'file' is missing");
    }
    def = node_begins_inactive(node->options) ? to_look_at(node->graph, def)
                                              : json_incref(def);
    r = open_file_child(node, def, &child, err);
    json_decref(def);
    if (r) {
        return r;
    }
    if (child->read_only && !node->read_only) {
        if (opt_bool(options, "auto-read-only", false)) {
            node->read_only = true;
        } else {
            r = err_set(err, -EACCES, "Node '%s' is read-only", child->name);
        }
    }
    if (!r) {
        r = edge_new(node, child, EDGE_DATA, file_claim(node, node->read_only),
                     &node->file,
                     err);
    }
    if (!r && child->filename && !node->filename) {
        node->filename = xstrdup(child->filename);
    }
    node->file_id = child->file_id;
    node_unref(child);
    return r;
}

/* Backing files. */

int
node_set_file(struct node *node, struct file_id id, struct err *err)
{
    if (node->above && file_set_has(node->above, id)) {
        return err_set(err, -ELOOP,
                       "'%s' is above itself in the chain: the chain of "
                       "backing files is a loop",
                       node->filename);
    }
    node->file_id = id;
    return 0;
}

/* Whose file, and by what name. */

bool
node_is_part(const struct node *node)
{
    while (node->file && !node->is_part) {
        node = node->file->child;
    }
    return node->is_part;
}

int
node_check_name(const struct node *node, struct err *err)
{
    return node_is_part(node)
               ? err_set(err, -ENOTSUP,
                         "Node '%s' is a part of '%s', and no header of an "
                         "image can name that",
                         node->name,
                         node->filename ? node->filename
                                        : node->file->child->name)
               : 0;
}

const struct node *
node_file_below(const struct node *node)
{
    while (node->file) {
        node = node->file->child;
    }
    return node->filename && node->file_id.ino ? node : NULL;
}

const struct node *
node_own_file(const struct node *node)
{
    return node_is_part(node) ? NULL : node_file_below(node);
}

const struct node *
node_local_file(const struct node *node)
{
    const struct node *file = node_own_file(node);

    return file && !file->is_device ? file : NULL;
}

uint64_t
node_journal_ino(const struct node *file)
{
    return file->is_device ? 0 : file->file_id.ino;
}

const char *
node_image_format(const struct node *node)
{
    /* A filter is in no header: what it stands for is. */
    while (node->drv->is_filter && node->file &&
           strcmp(node->drv->name, "raw")) {
        node = node->file->child;
    }
    return node->drv->is_protocol ? "raw" : node->drv->name;
}

/* The caller frees it; NULL where @path leads nowhere.  Yields. */
static char *
real_path(const char *path)
{
    char *real = NULL;

    return file_real_path(loop_current(), path, &real) ? NULL : real;
}

char *
backing_name_for(const char *path, const char *backing)
{
    const char *ps = strrchr(path, '/'), *bs = strrchr(backing, '/');
    size_t pn = ps ? (size_t)(ps - path) : 0;
    size_t bn = bs ? (size_t)(bs - backing) : 0;

    if (!ps == !bs && pn == bn && !strncmp(path, backing, pn)) {
        return xstrdup(bs ? bs + 1 : backing);
    }
    char *copy = xstrdup(backing); /* its node may be renamed meanwhile */
    char *real = real_path(copy);

    if (real) {
        free(copy);
    }
    return real ? real : copy;
}

/* Is @path below one of the folders of the colon-separated @list? */
static bool
path_is_allowed(const char *path, const char *list)
{
    auto_free char *real = real_path(path);
    auto_free char *folders = xstrdup(list);
    char *rest = folders;
    char *folder;

    while (real && (folder = strsep(&rest, ":"))) {
        auto_free char *base = real_path(folder);
        size_t n = base ? strlen(base) : 0;

        if (n && !strncmp(real, base, n) &&
            (real[n] == '/' || base[n - 1] == '/')) {
            return true;
        }
    }
    return false;
}

char *
backing_path_from(const char *image, const char *name)
{
    const char *slash = image ? strrchr(image, '/') : NULL;

    if (!strncmp(name, "file:", 5)) {
        name += 5;
    }
    if (name[0] == '/' || !slash) {
        return xstrdup(name);
    }
    return xasprintf("%.*s/%s", (int)(slash - image), image, name);
}

bool
backing_is_path(const char *name)
{
    const char *colon = strchr(name, ':');
    const char *slash = strchr(name, '/');

    return !colon || (slash && colon > slash) || !strncmp(name, "file:", 5);
}

static int
check_backing_policy(struct node *node, const char *path, struct err *err)
{
    const char *name = node->header_backing.filename;

    if (!backing_is_path(name)) {
        int r = err_set(err, -EPERM,
                        "The header of '%s' names the backing file '%s', "
                        "which is no plain local path",
                        node->filename ? node->filename : node->name, name);

        err_hint(err, "state the backing node yourself with the option "
                      "'backing', or null for none");
        return r;
    }
    if (node->graph->backing_paths &&
        !path_is_allowed(path, node->graph->backing_paths)) {
        int r = err_set(err, -EPERM,
                        "The header of '%s' names the backing file '%s', "
                        "which lies outside --backing-paths",
                        node->filename ? node->filename : node->name, path);

        err_hint(err, "allow its folder, or state the backing node yourself");
        return r;
    }
    return 0;
}

int
node_backing_path(struct node *node, char **ret, struct err *err)
{
    char *path =
        backing_path_from(node->filename, node->header_backing.filename);
    int r = check_backing_policy(node, path, err);

    if (r) {
        free(path);
        return r;
    }
    *ret = path;
    return 0;
}

/* A header may state an image format, not how to reach something. */
static bool
is_image_format(struct graph *graph, const char *name)
{
    const struct driver *drv = graph_driver(graph, name);

    return drv && !drv->is_protocol &&
           (!drv->is_filter || !strcmp(name, "raw"));
}

/* Options for the backing file that @node's header names, and its path. */
static int
header_backing_options(struct node *node, json_t **ret, char **ret_path,
                       struct err *err)
{
    auto_free char *path = NULL;
    const char *format = node->header_backing.format;
    const char *self = node->filename ? node->filename : node->name;
    int r = node_backing_path(node, &path, err);

    if (r) {
        return r;
    }
    if (!format || !*format) {
        r = err_set(err, -EINVAL,
                    "The header of '%s' names the backing file '%s' but not "
                    "its format",
                    self, path);
        err_hint(err, "state it with 'qemu-img rebase -u -f %s -b BACKING -F "
                      "FORMAT IMAGE', or give the option 'backing'",
                 node->drv->name);
        return r;
    }
    if (!is_image_format(node->graph, format)) {
        r = err_set(err, -EINVAL,
                    "The header of '%s' names the backing file '%s' with the "
                    "format '%s', which is no image format known here",
                    self, path, format);
        err_hint(err, "the formats are raw, qcow2 and qed; state it with "
                      "'qemu-img rebase -u', or give the option 'backing'");
        return r;
    }
    *ret_path = take_ptr(path);
    *ret = json_pack("{s:s, s:b, s:{s:s, s:s}}", "driver", format, "read-only",
                     1, "file", "driver", "file", "filename", *ret_path);
    return 0;
}

static int
attach_backing(struct node *node, struct node *backing, struct err *err)
{
    if (chain_contains(backing, node)) {
        return err_set(err, -ELOOP, "Node '%s' would be its own backing file",
                       node->name);
    }
    return edge_new(node, backing, EDGE_BACKING, CLAIM_STABLE, &node->backing,
                    err);
}

/*
 * Opens a backing file.  The error names the file that failed, and once the
 * image that refers to it, however deep in the chain both are.
 */
static int
open_backing(struct node *node, json_t *def, const struct file_set *above,
             struct node **ret, struct err *err)
{
    const char *self = node->filename ? node->filename : node->name;
    auto_err inner = ERR_INIT;
    json_t *made = NULL;
    char *path = NULL;
    int r = def ? 0 : header_backing_options(node, &made, &path, err);

    if (r) {
        return r;
    }
    r = open_child_options(node, def ? def : made, true, above, ret, &inner);
    json_decref(made);
    if (!r) {
        free(path);
        return 0;
    }
    /* An image that names itself is named once. */
    if (path && strcmp(path, self)) {
        err_prefix(&inner, "Could not open the backing file of '%s'", self);
    }
    free(path);
    if (r == -ELOOP && !inner.hint) {
        err_hint(&inner, "give one of its images another backing file, or "
                         "none, with 'qemu-img rebase -u'");
    }
    return err_propagate(err, &inner);
}

/*
 * Opens the node below @node, if there is one: *ret is NULL where there is
 * none, or where an existing node was referred to, whose chain is open.
 */
static int
open_next(struct node *node, const struct file_set *above, struct node **ret,
          struct err *err)
{
    json_t *def = json_object_get(node->options, "backing");
    struct node *backing;
    int r;

    *ret = NULL;
    if ((def && json_is_null(def)) ||
        (!def && !node->header_backing.filename)) {
        return 0;
    }
    if (json_is_string(def)) {
        r = find_by_name(node->graph, json_string_value(def), &backing, err);
    } else {
        r = open_backing(node, def, above, &backing, err);
    }
    if (r) {
        return r;
    }
    r = attach_backing(node, backing, err);
    if (!r && !json_is_string(def)) {
        *ret = backing;
    }
    node_unref(backing);
    return r;
}

static int
open_chain(struct node *top, struct err *err)
{
    struct file_set files = {0};
    unsigned depth = 1;
    int r = 0;

    for (struct node *node = top, *next; node; node = next) {
        file_set_add(&files, node->file_id);
        r = open_next(node, &files, &next, err);
        if (r) {
            break;
        }
        if (++depth > LIMIT_CHAIN_DEPTH) {
            r = err_set(err, -ELOOP,
                        "The chain of '%s' has more than %d images",
                        top->filename ? top->filename : top->name,
                        LIMIT_CHAIN_DEPTH);
            break;
        }
    }
    file_set_fini(&files);
    return r;
}

/*
 * Shows a node and what was opened along with it to graph_find(): not before
 * its whole chain is there, since a reader would see zeroes in its place.
 */
static void
publish(struct node *top)
{
    for (struct node *n = top; n; n = n->backing ? n->backing->child : NULL) {
        for (struct node *f = n; f; f = f->file ? f->file->child : NULL) {
            f->visible = true;
        }
    }
}

int
node_open(struct graph *graph, const json_t *options, struct node **ret,
          struct err *err)
{
    json_t *copy = json_deep_copy(options);
    struct node *node = NULL;
    int r = open_one(graph, copy, false, NULL, &node, err);

    json_decref(copy);
    if (r) {
        return r;
    }
    r = open_chain(node, err);
    if (!r) {
        r = node_begins_inactive(node->options)
                ? chain_begin_inactive(node, err)
                : node_recover(node, err);
    }
    if (r) {
        node_unref(node);
        return r;
    }
    publish(node);
    *ret = node;
    return 0;
}

int
node_open_ref(struct graph *graph, const json_t *def, struct node **ret,
              struct err *err)
{
    if (!def) {
        return err_set(err, -EINVAL, "Parameter 'file' is missing");
    }
    return json_is_string(def)
               ? find_by_name(graph, json_string_value(def), ret, err)
               : node_open(graph, def, ret, err);
}

int
node_add(struct graph *graph, const json_t *options, struct node **ret,
         struct err *err)
{
    struct node *node;

    if (!json_object_get(options, "node-name")) {
        return err_set(err, -EINVAL,
                       "'node-name' must be specified for the root node");
    }
    int r = node_open(graph, options, &node, err);

    if (r) {
        return r;
    }
    node->named = true;
    if (ret) {
        *ret = node;
    }
    return 0;
}

/*
 * Who holds it as a disk, or as the target of a copy; NULL: nobody, but for
 * jobs that read or fill it.
 */
static const struct root *
find_user(const struct node *node)
{
    list_for_each(it, &node->roots)
    {
        const struct root *root = container_of(it, struct root, link);

        if (!root->pinned || root->claim == CLAIM_TARGET) {
            return root;
        }
    }
    return NULL;
}

/* Who uses a node, in the order and with the texts of QEMU. */
static int
check_unused(struct node *node, struct err *err)
{
    const struct root *user = find_user(node);

    if (user) {
        err_set(err, -EBUSY, "Node %s is in use", node->name);
        err_hint(err, "it is held by %s", user->owner);
        return -EBUSY;
    }
    if (node_check_no_job(node, err)) {
        return -EBUSY;
    }
    list_for_each(it, &node->parents)
    {
        struct edge *edge = container_of(it, struct edge, link);

        if (edge->role == EDGE_BACKING) {
            return err_set(err, -EBUSY,
                           "Node '%s' is busy: node is used as backing hd of "
                           "'%s'",
                           node->name, edge->parent->name);
        }
    }
    if (!node->named) {
        return err_set(err, -EBUSY, "Node %s is not owned by the monitor",
                       node->name);
    }
    if (node->refs > 1) {
        err_set(err, -EBUSY, "Block device %s is in use", node->name);
        if (!list_empty(&node->parents)) {
            err_hint(err, "it is held by node '%s'",
                     list_first(&node->parents, struct edge, link)
                         ->parent->name);
        }
        return -EBUSY;
    }
    return 0;
}

int
node_del(struct graph *graph, const char *name, struct err *err)
{
    struct node *node = graph_find(graph, name);

    if (!node) {
        return err_set(err, -ENOENT, "Failed to find node with node-name='%s'",
                       name);
    }
    int r = check_unused(node, err);

    if (r) {
        return r;
    }
    node->named = false;
    node_unref(node);
    return 0;
}
