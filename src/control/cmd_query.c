// SPDX-License-Identifier: BSD-3-Clause
/*
 * query-named-block-nodes.
 *
 * A node's `image` has its backing image's nested in it, down the chain.  The
 * images are made once each, from the bottom up, and shared between all nodes
 * above them.  Since a chain's depth is the images' choice, and the nesting of
 * JSON has limits on both sides, CONTROL_NESTING_MAX of them are nested at
 * most.
 */
#include <errno.h>
#include <string.h>

#include "block/mark.h"
#include "control/control_internal.h"
#include "schema_dispatch.h"

struct entry {
    struct node *node;
    json_t *image;    /* NULL until it is made */
    unsigned nesting; /* how many images are in it, itself included */
};

struct entries {
    struct entry *v;
    size_t n;
};

static struct entry *
entry_of(struct entries *all, const struct node *node)
{
    for (size_t i = 0; i < all->n; i++) {
        if (all->v[i].node == node) {
            return &all->v[i];
        }
    }
    return NULL;
}

static struct node *
below(const struct node *node)
{
    return node->backing ? node->backing->child : NULL;
}

static const char *
text_or_empty(const char *s)
{
    return s ? s : "";
}

/* A file's name may be in any encoding; JSON's texts are not. */
static json_t *
text(const char *s)
{
    json_t *v = json_string(s);

    if (!v) {
        auto_free char *ascii = xstrdup(s);

        for (char *p = ascii; *p; p++) {
            *p = *p & 0x80 ? '?' : *p;
        }
        v = json_string(ascii);
    }
    return v;
}

/* The backing file's name, or NULL: the header's, else what is attached. */
static const char *
backing_name(const struct node *node)
{
    if (!node->backing) {
        return NULL;
    }
    return node->header_backing.filename
               ? node->header_backing.filename
               : text_or_empty(below(node)->filename);
}

static void
add_backing_names(struct node *node, json_t *image)
{
    const char *name = backing_name(node);
    auto_free char *full = NULL;

    if (!name) {
        return;
    }
    json_object_set_new(image, "backing-filename", text(name));
    if (node->header_backing.filename &&
        !node_backing_path(node, &full, NULL)) {
        json_object_set_new(image, "full-backing-filename", text(full));
    }
    if (node->header_backing.format) {
        json_object_set_new(image, "backing-filename-format",
                            text(node->header_backing.format));
    }
}

/* Without the backing image.  Yields: a driver may ask the file system. */
static json_t *
image_info(struct node *node)
{
    json_t *image = json_pack(
        "{s:o, s:s, s:I, s:b}", "filename",
        text(text_or_empty(node->filename)), "format", node->drv->name,
        "virtual-size", (json_int_t)node->size, "dirty-flag", 0);

    for (struct node *n = node->file ? node->file->child : NULL; n;
         n = n->file ? n->file->child : NULL) {
        json_t *size, *file = json_object();

        if (n->drv->info && !n->inactive) {
            n->drv->info(n, file);
        }
        size = json_object_get(file, "actual-size");
        if (size) {
            json_object_set(image, "actual-size", size);
        }
        json_decref(file);
    }
    if (node->drv->info && !node->inactive) {
        node->drv->info(node, image);
    }
    if (node_is_unfinished(node)) {
        json_object_set_new(image, "unfinished-copy", json_true());
    }
    add_backing_names(node, image);
    return image;
}

/* Makes the images of the chain from @top that are not there yet. */
static void
make_images(struct entries *all, struct node *top, bool flat)
{
    struct node **chain = NULL;
    unsigned n = 0;

    for (struct node *node = top; node; node = flat ? NULL : below(node)) {
        struct entry *e = entry_of(all, node);

        if (!e || e->image) {
            break;
        }
        chain = xrealloc(chain, (n + 1) * sizeof(struct node *));
        chain[n++] = node;
    }
    while (n--) {
        json_t *image = image_info(chain[n]);
        struct node *under = flat ? NULL : below(chain[n]);
        struct entry *e = entry_of(all, chain[n]);
        struct entry *u = under ? entry_of(all, under) : NULL;

        e->nesting = 1;
        if (u && u->image && u->nesting < CONTROL_NESTING_MAX) {
            json_object_set(image, "backing-image", u->image);
            e->nesting += u->nesting;
        }
        e->image = image;
    }
    free(chain);
}

/* Read-only by its options, or because of who uses it. */
static bool
is_read_only(const struct node *node)
{
    while (node) {
        const struct node *up = NULL;

        if (node->read_only) {
            return true;
        }
        list_for_each(it, &node->parents)
        {
            const struct edge *edge = container_of(it, struct edge, link);

            if (edge->claim == CLAIM_STABLE) {
                return true;
            }
            up = edge->role == EDGE_DATA ? edge->parent : up;
        }
        node = up; /* a file is written to where its format is */
    }
    return false;
}

static json_t *
children(const struct node *node)
{
    json_t *list = json_array();
    const struct edge *edges[] = {node->file, node->backing};
    static const char *const roles[] = {"file", "backing"};

    for (unsigned i = 0; i < ARRAY_LEN(edges); i++) {
        if (edges[i]) {
            json_array_append_new(list,
                                  json_pack("{s:s, s:s}", "child", roles[i],
                                            "node-name",
                                            edges[i]->child->name));
        }
    }
    return list;
}

static json_t *
cache_info(const struct node *node)
{
    json_t *cache = json_object_get(node->options, "cache");

    return json_pack("{s:b, s:b, s:b}", "writeback", 1, "direct",
                     opt_bool(cache, "direct", false), "no-flush",
                     opt_bool(cache, "no-flush", false));
}

static json_t *
node_info(struct entry *e, bool flat)
{
    static const char *const limits[] = {"bps",  "bps_rd",  "bps_wr",
                                         "iops", "iops_rd", "iops_wr",
                                         "write_threshold"};
    struct node *node = e->node;
    const char *zeroes = opt_str(node->options, "detect-zeroes");
    int depth = 0;
    json_t *info = json_pack(
        "{s:o, s:s, s:b, s:s, s:b, s:b, s:s, s:O, s:o, s:o}", "file",
        text(text_or_empty(node->filename)), "node-name", node->name, "ro",
        is_read_only(node), "drv", node->drv->name, "active", !node->inactive, "encrypted",
        0, "detect_zeroes", zeroes ? zeroes : "off", "image", e->image,
        "cache", cache_info(node), "children", children(node));

    for (unsigned i = 0; i < ARRAY_LEN(limits); i++) {
        json_object_set_new(info, limits[i], json_integer(0));
    }
    for (struct node *n = below(node); n && !flat; n = below(n)) {
        depth++;
    }
    json_object_set_new(info, "backing_file_depth", json_integer(depth));
    if (backing_name(node)) {
        json_object_set_new(info, "backing_file", text(backing_name(node)));
    }
    return info;
}

int
cmd_query_named_block_nodes(struct control *ctl,
                            const struct args_query_named_block_nodes *args,
                            json_t **ret, struct err *err)
{
    struct entries all;
    struct node **nodes;

    /* References: making the images yields. */
    graph_hold_all(ctl->graph, &nodes, &all.n);
    all.v = xzalloc((all.n + 1) * sizeof(*all.v));
    for (size_t i = 0; i < all.n; i++) {
        all.v[i].node = nodes[i];
    }
    free(nodes);
    for (size_t i = 0; i < all.n; i++) {
        make_images(&all, all.v[i].node, args->flat);
    }
    *ret = json_array();
    for (size_t i = all.n; i--;) { /* the newest comes first, as in QEMU */
        json_array_append_new(*ret, node_info(&all.v[i], args->flat));
    }
    for (size_t i = 0; i < all.n; i++) {
        json_decref(all.v[i].image);
        node_unref(all.v[i].node);
    }
    free(all.v);
    return 0;
}
