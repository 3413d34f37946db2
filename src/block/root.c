// SPDX-License-Identifier: BSD-3-Clause
/*
 * Root edges: the gate through which every request from outside enters the
 * graph, and where a parked one waits.
 *
 * A request that cannot go on before something outside happens (a source that
 * is lost, a throttle, a full disk) returns -ERESTART: it has been unwound up
 * to here, holds nothing and is not in flight while it waits, so that a drain,
 * a cancel or `quit` never waits for it; then it runs again from the start.
 */
#include <assert.h>
#include <errno.h>

#include "base/bytes.h"
#include "block/graph_internal.h"

enum { POPULATE_PIECE = 1 << 20 };

enum request_op {
    OP_READ,
    OP_WRITE,
    OP_ZERO,
    OP_DISCARD,
    OP_FLUSH,
    OP_STATUS,
    OP_POPULATE,
};

struct request {
    enum request_op op;
    uint64_t off, len;
    struct sg sg;
    unsigned flags;
    struct extent *extent;
};

static struct root *
make_root(struct node *node, enum claim claim, const char *owner)
{
    struct root *root = xzalloc(sizeof(*root));

    root->graph = node->graph;
    root->claim = claim;
    root->owner = xstrdup(owner);
    waitq_init(&root->gate);
    waitq_init(&root->idle);
    grace_init(&root->requests);
    list_init(&root->throttled);
    root_link(root, node_ref(node));
    return root;
}

int
root_new(struct node *node, enum claim claim, const char *owner,
         struct root **ret, struct err *err)
{
    int r = claim_check(node, claim, owner, err);

    if (!r) {
        *ret = make_root(node, claim, owner);
    }
    return r;
}

int
root_new_lasting(struct node *node, enum claim claim, const char *owner,
                 struct root **ret, struct err *err)
{
    int r = node->inactive ? 0 : claim_check(node, claim, owner, err);

    if (!r) {
        *ret = make_root(node, node->inactive ? CLAIM_NONE : claim, owner);
        (*ret)->lasts = true;
        (*ret)->dormant = node->inactive ? claim : CLAIM_NONE;
    }
    return r;
}

void
root_rest(struct root *root)
{
    root->dormant = root->claim;
    root_set_claim(root, CLAIM_NONE);
}

int
root_wake(struct root *root, struct err *err)
{
    int r = claim_check(root->node, root->dormant, root->owner, err);

    if (!r) {
        root_set_claim(root, root->dormant);
        root->dormant = CLAIM_NONE;
    }
    return r;
}

void
root_free(struct root *root)
{
    root->closing = true;
    waitq_wake_all(&root->gate);
    graph_unpark(root->graph); /* those parked here leave */
    throttle_forget_root(root);
    while (root->in_flight || root->waiting) {
        waitq_wait(&root->idle);
    }
    root_unlink(root);
    node_unref(root->node);
    free(root->owner);
    free(root);
}

struct node *
root_node(const struct root *root)
{
    return root->node;
}

struct loop *
root_loop(const struct root *root)
{
    return root->graph->loop;
}

bool
root_writable(const struct root *root)
{
    return root->claim == CLAIM_WRITE || root->dormant == CLAIM_WRITE;
}

uint64_t
root_size(const struct root *root)
{
    return root->node->size;
}

void
root_limits(const struct root *root, struct block_limits *ret)
{
    *ret = root->node->limits;
}

/* Fills the top layer from below, piece by piece. */
static int
populate(struct node *node, uint64_t off, uint64_t len)
{
    bool read_failed;

    for (uint64_t end = off + len; off < end; off += POPULATE_PIECE) {
        int r = node_fill(node, off, min_u64(end - off, POPULATE_PIECE),
                          &read_failed);

        if (r) {
            return r;
        }
    }
    return 0;
}

static int
dispatch(struct node *node, struct request *rq)
{
    switch (rq->op) {
    case OP_READ:
        return node_read(node, rq->off, rq->sg, rq->flags);
    case OP_WRITE:
        return node_write(node, rq->off, rq->sg, rq->flags, NULL);
    case OP_ZERO:
        return node_zero(node, rq->off, rq->len, rq->flags, NULL);
    case OP_DISCARD:
        return node_discard(node, rq->off, rq->len);
    case OP_FLUSH:
        return node_flush(node);
    case OP_STATUS:
        return chain_status(node, NULL, rq->off, rq->len, true, rq->extent,
                            NULL);
    case OP_POPULATE:
        return populate(node, rq->off, rq->len);
    }
    return -EINVAL;
}

static bool
changes(enum request_op op)
{
    return op == OP_WRITE || op == OP_ZERO || op == OP_DISCARD;
}

static int
check_request(struct root *root, const struct request *rq)
{
    if (root->node->inactive) {
        return -EPERM;
    }
    if (rq->off > root->node->size || rq->len > root->node->size - rq->off) {
        return -EINVAL;
    }
    return changes(rq->op) && root->claim != CLAIM_WRITE ? -EPERM : 0;
}

/*
 * Waits outside the graph: not in flight, but the root stays alive.  False
 * where the root is being freed.
 */
static bool
wait_outside(struct root *root, struct waitq *q)
{
    if (!root->closing) {
        root->waiting++;
        waitq_wait(q);
        root->waiting--;
    }
    if (root->closing) {
        waitq_wake_all(&root->idle);
    }
    return !root->closing;
}

/* One run through the gate. */
static int
enter_and_run(struct root *root, struct request *rq)
{
    if (root->gates) {
        root->held++;
    }
    while (root->gates || root->closing) {
        if (!wait_outside(root, &root->gate)) {
            return -ESHUTDOWN;
        }
    }
    int r = check_request(root, rq);

    if (r) {
        return r;
    }
    unsigned token = grace_enter(&root->requests);
    uint64_t start = loop_now(root->graph->loop);

    root->in_flight++;
    r = dispatch(root->node, rq);
    if (!r && root->writethrough && changes(rq->op)) {
        r = node_flush(root->node);
    }
    root->stats.requests++;
    root->stats.busy_ns += loop_now(root->graph->loop) - start;
    grace_leave(&root->requests, token);
    if (--root->in_flight == 0 && !waitq_idle(&root->idle)) {
        waitq_wake_all(&root->idle);
    }
    return r;
}

/* Parked and run again for as long as that takes. */
static int
run_or_park(struct root *root, struct request *rq)
{
    for (;;) {
        struct graph *graph = root->graph;
        uint64_t gen = graph->park_gen;
        int r = enter_and_run(root, rq);

        if (r != -ERESTART) {
            return r;
        }
        if (graph->park_gen == gen && !wait_outside(root, &graph->parked)) {
            return -ESHUTDOWN;
        }
    }
}

static int
run(struct root *root, struct request *rq)
{
    struct throttle_pass pass;

    if (rq->op != OP_READ && !changes(rq->op)) {
        return run_or_park(root, rq);
    }
    if (!throttle_enter(root, &pass, changes(rq->op), rq->len)) {
        return -ESHUTDOWN;
    }
    int r = run_or_park(root, rq);

    throttle_exit(&pass);
    return r;
}

int
root_read(struct root *root, uint64_t off, struct sg sg, unsigned flags)
{
    return run(root, &(struct request){.op = OP_READ,
                                       .off = off,
                                       .len = sg.len,
                                       .sg = sg,
                                       .flags = flags});
}

int
root_write(struct root *root, uint64_t off, struct sg sg, unsigned flags)
{
    return run(root, &(struct request){.op = OP_WRITE,
                                       .off = off,
                                       .len = sg.len,
                                       .sg = sg,
                                       .flags = flags});
}

int
root_zero(struct root *root, uint64_t off, uint64_t len, unsigned flags)
{
    return run(root, &(struct request){
                         .op = OP_ZERO, .off = off, .len = len, .flags = flags});
}

int
root_discard(struct root *root, uint64_t off, uint64_t len)
{
    return run(root,
               &(struct request){.op = OP_DISCARD, .off = off, .len = len});
}

int
root_flush(struct root *root)
{
    return run(root, &(struct request){.op = OP_FLUSH});
}

int
root_status(struct root *root, uint64_t off, uint64_t len, struct extent *ret)
{
    return run(root, &(struct request){
                         .op = OP_STATUS, .off = off, .len = len, .extent = ret});
}

int
root_populate(struct root *root, uint64_t off, uint64_t len)
{
    /* A read-only export asks for nothing that it may not have. */
    if (!root_writable(root)) {
        return 0;
    }
    return run(root,
               &(struct request){.op = OP_POPULATE, .off = off, .len = len});
}

struct grace *
root_grace(struct root *root)
{
    return &root->requests;
}

void
root_pin(struct root *root, const char *job_type)
{
    root->pinned = true;
    root->job_type = job_type;
}

void
root_get_stats(const struct root *root, struct root_stats *ret)
{
    *ret = root->stats;
    ret->in_flight = root->in_flight;
}

void
root_set_writethrough(struct root *root)
{
    root->writethrough = true;
}
