// SPDX-License-Identifier: BSD-3-Clause
/*
 * See close.h; and close: closes a node by hand.
 *
 * Who uses a node is in the daemon's graph, where users (exports), jobs and
 * nodes are one list and who holds what is another.  That says where a disk
 * went and what a dry run tells; whether a node may go says blockdev-del alone.
 */
#include "cli/close.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/disk.h"

/* Who uses it. */

static json_t *
object_of(const json_t *graph, json_int_t id)
{
    json_t *o;
    size_t i;

    json_array_foreach(json_object_get(graph, "nodes"), i, o)
    {
        if (qmp_number(o, "id") == id) {
            return o;
        }
    }
    return NULL;
}

static bool
is_node(const json_t *object, const char *name)
{
    return !strcmp(qmp_text(object, "type"), "block-driver") &&
           !strcmp(qmp_text(object, "name"), name);
}

static bool
is_one_of(const json_t *object, const json_t *names)
{
    json_t *name;
    size_t i;

    json_array_foreach(names, i, name)
    {
        if (is_node(object, json_string_value(name))) {
            return true;
        }
    }
    return false;
}

/* Objects of the graph that use a node, but for some nodes; the caller's. */
static json_t *
users_of(const json_t *graph, const char *node, const json_t *but)
{
    json_t *users = json_array(), *edge;
    size_t i;

    json_array_foreach(json_object_get(graph, "edges"), i, edge)
    {
        json_t *parent = object_of(graph, qmp_number(edge, "parent"));

        if (is_node(object_of(graph, qmp_number(edge, "child")), node) &&
            !is_one_of(parent, but)) {
            json_array_append(users, parent);
        }
    }
    return users;
}

static int
ask_graph(struct qmp_client *client, json_t **ret, struct err *err)
{
    return qmp_client_call(client, "x-debug-query-block-graph", NULL, ret, err);
}

bool
node_is_used(struct qmp_client *client, const char *node, const json_t *but)
{
    json_t *graph = NULL;

    ask_graph(client, &graph, NULL);
    json_t *users = users_of(graph, node, but);
    bool is = json_array_size(users) > 0;

    json_decref(users);
    json_decref(graph);
    return is;
}

/* "export 'e', node 'x'"; the caller's, NULL: nobody does, or is known to. */
static char *
who_uses(struct qmp_client *client, const char *node)
{
    json_t *graph = NULL, *user;
    char *words = NULL;
    size_t i;

    ask_graph(client, &graph, NULL);
    json_t *users = users_of(graph, node, NULL);

    json_array_foreach(users, i, user)
    {
        const char *type = qmp_text(user, "type");
        char *more =
            xasprintf("%s%s%s '%s'", words ? words : "", words ? ", " : "",
                      !strcmp(type, "block-driver") ? "node"
                      : !strcmp(type, "block-job")  ? "job"
                                                    : "export",
                      qmp_text(user, "name"));

        free(words);
        words = more;
    }
    json_decref(users);
    json_decref(graph);
    return words;
}

/* What a job has left. */

static int
close_node(struct qmp_client *client, const char *node, struct err *err)
{
    int r = qmp_client_call(client, "blockdev-del",
                            json_pack("{s:s}", "node-name", node), NULL, err);
    auto_free char *who = r ? who_uses(client, node) : NULL;

    if (who) {
        err_hint(err, "it is used by %s", who);
    }
    return r;
}

static void
try_one(struct closing *c, struct qmp_client *client, const char *node)
{
    auto_err err = ERR_INIT;

    if (!close_node(client, node, &err)) {
        json_array_append_new(c->closed, json_string(node));
        return;
    }
    json_t *info = NULL;

    /* Somebody else may have been faster. */
    if (!disk_info(client, node, &info, NULL)) {
        json_array_append_new(c->open,
                              json_pack("{s:s, s:s, s:s*}", "node", node,
                                        "message", err.msg, "hint", err.hint));
    }
    json_decref(info);
}

void
closing_try(struct closing *c, struct qmp_client *client, const json_t *nodes,
            const char *survivor)
{
    json_t *node;
    size_t i;

    if (!survivor || !node_is_used(client, survivor, nodes)) {
        return;
    }
    c->closed = json_array();
    c->open = json_array();
    json_array_foreach(nodes, i, node)
    {
        if (json_string_value(node)[0] != '#') {
            try_one(c, client, json_string_value(node));
        }
    }
}

void
closing_add(const struct closing *c, json_t *object)
{
    if (c->closed) {
        json_object_set(object, "closed", c->closed);
        json_object_set(object, "still-open", c->open);
    }
}

void
closing_say(struct closing *c, const struct cli *cli)
{
    json_t *o;
    size_t i;

    if (!cli->json) {
        json_array_foreach(c->closed, i, o)
        {
            printf("'%s' is closed.\n", json_string_value(o));
        }
        json_array_foreach(c->open, i, o)
        {
            const char *hint = qmp_text(o, "hint");

            printf("'%s' is still open: %s%s%s.\n", qmp_text(o, "node"),
                   qmp_text(o, "message"), *hint ? "; " : "", hint);
        }
    }
    json_decref(c->closed);
    json_decref(c->open);
    *c = (struct closing){0};
}

/* The verb. */

/* The daemon would be asked last, so this has its own words. */
static int
check(struct qmp_client *client, const char *node, struct err *err)
{
    auto_free char *who = who_uses(client, node);

    return who ? err_set(err, -EBUSY, "Node '%s' is in use by %s", node, who)
               : 0;
}

static int
run(struct cli *cli, struct qmp_client *client, const char *name,
    struct err *err)
{
    auto_free char *node = NULL;
    int r = disk_find_node(client, name, &node, err);

    if (r == -ENOENT && (node = disk_node(client, name, NULL))) {
        err_clear(err); /* an export: the refusal says so */
        r = 0;
    }
    r = r              ? r
        : cli->dry_run ? check(client, node, err)
                       : close_node(client, node, err);
    if (r) {
        return cli_error(cli, err);
    }
    if (cli->json) {
        json_t *closed = json_pack("[s]", node);

        cli_print_json(json_pack("{s:s, s:s, s:b, s:o}", "type", "result",
                                 "verb", "close", "dry-run", (int)cli->dry_run,
                                 "closed", closed));
    } else {
        printf(cli->dry_run ? "Would close '%s'.\n" : "'%s' is closed.\n",
               node);
    }
    return EXIT_OK;
}

int
verb_close(struct cli *cli)
{
    const struct cli_option options[] = {{0}};
    const char *name;
    struct qmp_client *client;
    auto_err err = ERR_INIT;
    int code = cli_parse(cli, options, &name, 1, "a node is");

    if (code) {
        return code;
    }
    if (qmp_client_open(cli->socket, &client, &err)) {
        return cli_error(cli, &err);
    }
    code = run(cli, client, name, &err);
    qmp_client_close(client);
    return code;
}
