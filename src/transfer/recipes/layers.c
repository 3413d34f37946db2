// SPDX-License-Identifier: BSD-3-Clause
/*
 * What is asked of the layers that a job writes to, takes from and deletes,
 * before it changes anything: a start and a plan ask the same.
 *
 * Every question may yield, and who plans holds nothing of the chain: so the
 * layers are held here.
 */
#include <stdlib.h>

#include "block/dependents.h"
#include "transfer/recipes/recipes.h"

/* The layers, the uppermost first. */
struct set {
    struct node **node;
    size_t n;
};

static void
set_init(struct set *s, const struct layers *l)
{
    *s = (struct set){0};
    for (struct node *n = l->top; n; n = n->backing ? n->backing->child : NULL) {
        s->node = xrealloc(s->node, (s->n + 1) * sizeof(*s->node));
        s->node[s->n++] = node_ref(n);
        if (n == l->last) {
            break;
        }
    }
}

static void
set_fini(struct set *s)
{
    for (size_t i = 0; i < s->n; i++) {
        node_unref(s->node[i]);
    }
    free(s->node);
}

/* Each below the uppermost loses data that the one above it hides or holds. */
static int
check_losses(const struct set *s, const struct transfer_options *o,
             struct err *err)
{
    auto_free struct dependents_of *of = xmalloc(s->n * sizeof(*of));
    const struct dependents_search how = {
        .folders = o->dependents_in,
        .n_folders = o->n_dependents_in,
        .stays = true,
        .exclusive = o->exclusive,
    };

    for (size_t i = 1; i < s->n; i++) {
        of[i - 1] = (struct dependents_of){s->node[i], s->node[i - 1]};
    }
    return dependents_check(of, s->n - 1, &how, err);
}

int
check_dependents(const struct layers *l, const struct transfer_options *o,
                 struct err *err)
{
    struct set s;

    set_init(&s, l);
    int r = check_losses(&s, o, err);

    set_fini(&s);
    return r;
}

/* All go but the one that takes it all; with its name, the uppermost goes. */
static int
check_deletions(const struct set *s, const struct layers *l,
                const struct transfer_options *o, struct err *err)
{
    auto_free struct dependents_of *of = xmalloc(s->n * sizeof(*of));
    const struct dependents_search how = {
        .folders = o->dependents_in,
        .n_folders = o->n_dependents_in,
        .is_opened_to_look = true, /* it can be written by then */
        .may_be_device = true,
        .exclusive = o->exclusive,
    };
    size_t first = l->sinks ? 0 : 1, end = l->sinks ? s->n - 1 : s->n, n = 0;

    for (size_t i = first; i < end; i++) {
        if (o->delete_source || (o->keep_name && l->sinks && !i)) {
            of[n++] = (struct dependents_of){
                s->node[i], i ? s->node[i - 1] : l->overlay};
        }
    }
    return dependents_check(of, n, &how, err);
}

/* Of a version whose header can say who wrote to it; an upgrade comes later. */
static int
check_version(struct node *node, const struct transfer_options *o,
              struct err *err)
{
    return node->drv->ensure_mark && !o->upgrade
               ? node->drv->ensure_mark(node, false, err)
               : 0;
}

int
check_layers(const struct layers *l, const struct transfer_options *o,
             struct err *err)
{
    struct set s;

    set_init(&s, l);
    int r = check_losses(&s, o, err);

    r = r ? r : check_deletions(&s, l, o, err);
    for (size_t i = 0; i < s.n && !r; i++) {
        r = node_check_writable(s.node[i], err);
        r = r ? r : check_version(s.node[i], o, err);
    }
    set_fini(&s);
    return r;
}

int
open_layers(struct transfer *t, const struct layers *l,
            const struct transfer_options *o, struct err *err)
{
    struct set s;
    int r = 0;

    set_init(&s, l);
    for (size_t i = 0; i < s.n && !r; i++) {
        r = transfer_make_writable(t, s.node[i], err);
    }
    for (size_t i = 0; i < s.n && !r; i++) {
        const struct driver *drv = s.node[i]->drv;

        r = drv->ensure_mark ? drv->ensure_mark(s.node[i], o->upgrade, err) : 0;
    }
    set_fini(&s);
    return r;
}
