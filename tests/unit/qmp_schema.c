// SPDX-License-Identifier: BSD-3-Clause
/* What query-qmp-schema says is whole, and true of the decoders. */
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/qmp_dispatch.h"
#include "schema_types.h"
#include "tap.h"

static json_t *
entities(void)
{
    json_t *ret = NULL;

    CHECK_INT(qmp_dispatch(NULL, "query-qmp-schema", NULL, &ret, NULL), 0);
    return ret;
}

static json_t *
find(json_t *all, const char *name)
{
    size_t i;
    json_t *e;

    json_array_foreach (all, i, e) {
        if (!strcmp(json_string_value(json_object_get(e, "name")), name)) {
            return e;
        }
    }
    return NULL;
}

static const char *
text(json_t *e, const char *key)
{
    const char *s = json_string_value(json_object_get(e, key));

    return s ? s : "";
}

/* Checks that member @key of @e names an entity, of kind @kind if given. */
static void
check_ref(json_t *all, json_t *e, const char *key, const char *kind)
{
    json_t *target = find(all, text(e, key));

    if (!target) {
        printf("# %s.%s: no %s\n", text(e, "name"), key, text(e, key));
    }
    CHECK(target != NULL);
    if (kind) {
        CHECK_STR(text(target, "meta-type"), kind);
    } else {
        CHECK(strcmp(text(target, "meta-type"), "command"));
        CHECK(strcmp(text(target, "meta-type"), "event"));
    }
}

static void
check_entity(json_t *all, json_t *e)
{
    const char *kind = text(e, "meta-type");
    size_t i;
    json_t *m;

    if (!strcmp(kind, "command")) {
        check_ref(all, e, "arg-type", "object");
        check_ref(all, e, "ret-type", NULL);
    } else if (!strcmp(kind, "event")) {
        check_ref(all, e, "arg-type", "object");
    } else if (!strcmp(kind, "array")) {
        check_ref(all, e, "element-type", NULL);
    } else if (!strcmp(kind, "object") || !strcmp(kind, "alternate")) {
        json_array_foreach (json_object_get(e, "members"), i, m) {
            check_ref(all, m, "type", NULL);
        }
        json_array_foreach (json_object_get(e, "variants"), i, m) {
            check_ref(all, m, "type", "object");
        }
    }
}

static void
references_resolve(void)
{
    json_t *all = entities(), *e;
    size_t i;

    CHECK(json_array_size(all) > 100);
    json_array_foreach (all, i, e) {
        CHECK(find(all, text(e, "name")) == e);
        check_entity(all, e);
    }
    json_decref(all);
}

static void
it_fits_its_own_schema(void)
{
    for (size_t i = 0; i < qmp_commands_len; i++) {
        const struct qmp_command *c = &qmp_commands[i];
        auto_err err = ERR_INIT;
        json_t *ret = NULL;

        if (strncmp(c->name, "query-version", 13) &&
            strcmp(c->name, "query-commands") &&
            strcmp(c->name, "query-qmp-schema")) {
            continue;
        }
        CHECK_INT(qmp_dispatch(NULL, c->name, NULL, &ret, &err), 0);
        CHECK(c->ret && schema_check(c->ret, ret, &err) == 0);
        CHECK_STR(err.msg ? err.msg : "fits", "fits");
        json_decref(ret);
    }
}

static void
commands_are_all_there(void)
{
    json_t *all = entities(), *list = NULL, *e;
    size_t i;

    CHECK_INT(qmp_dispatch(NULL, "query-commands", NULL, &list, NULL), 0);
    CHECK_INT(json_array_size(list), qmp_commands_len);
    json_array_foreach (list, i, e) {
        json_t *command = find(all, text(e, "name"));

        CHECK_STR(text(command, "meta-type"), "command");
        CHECK(qmp_command_find(text(e, "name")) != NULL);
    }
    for (i = 0; i < qmp_events_len; i++) {
        CHECK_STR(text(find(all, qmp_events[i]->name), "meta-type"), "event");
    }
    json_decref(list);
    json_decref(all);
}

/* The decoder's members of @type are those that the introspection shows. */
static void
check_same(json_t *all, const struct schema_type *type, json_t *e)
{
    json_t *members = json_object_get(e, "members"), *m;
    size_t i;

    CHECK_INT(json_array_size(members), type->n_members);
    json_array_foreach (members, i, m) {
        CHECK_STR(text(m, "name"), type->members[i].name);
        CHECK(!json_object_get(m, "default") == !type->members[i].optional);
    }
    CHECK_STR(text(e, "tag"), type->tag ? type->tag : "");
}

static void
decoders_and_introspection_agree(void)
{
    json_t *all = entities();

    for (size_t i = 0; i < qmp_commands_len; i++) {
        json_t *command = find(all, qmp_commands[i].name);

        check_same(all, qmp_commands[i].args,
                   find(all, text(command, "arg-type")));
    }
    json_decref(all);
}

/* What libvirt looks for, and what must not show: names of types. */
static void
probes(void)
{
    json_t *all = entities();
    json_t *command = find(all, "block-stream");
    json_t *args = find(all, text(command, "arg-type")), *m;
    bool found = false;
    size_t i;

    json_array_foreach (json_object_get(args, "members"), i, m) {
        if (!strcmp(text(m, "name"), "auto-dismiss")) {
            CHECK_STR(text(m, "type"), "bool");
            CHECK(json_is_null(json_object_get(m, "default")));
            found = true;
        }
    }
    CHECK(found);
    CHECK(!find(all, "BlockdevOptions"));
    CHECK(find(all, "int") != NULL);
    CHECK(!find(all, "uint32"));
    json_decref(all);
}

int
main(void)
{
    tap_run("every reference resolves", references_resolve);
    tap_run("what is returned fits the schema", it_fits_its_own_schema);
    tap_run("all commands and events are there", commands_are_all_there);
    tap_run("decoders and introspection agree",
            decoders_and_introspection_agree);
    tap_run("probes of clients", probes);
    return tap_done();
}
