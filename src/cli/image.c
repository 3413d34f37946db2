// SPDX-License-Identifier: BSD-3-Clause
/* Verbs on one image: create, clone, info, check. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "block/node.h"
#include "cli/cli.h"
#include "cli/create.h"
#include "cli/under_way.h"

int
verb_create(struct cli *cli)
{
    struct new_image im = {0};
    const char *args[2];
    const struct cli_option options[] = {
        {'f', NULL, &im.format, NULL, true},
        {'o', NULL, &im.options, NULL, false},
        {'b', NULL, &im.backing, NULL, false},
        {'F', NULL, &im.backing_format, NULL, false},
        {0}};
    auto_err err = ERR_INIT;
    int r = cli_parse(cli, options, args, 2, "a path, a size and -f are");

    if (r) {
        return r;
    }
    if (im.backing && !im.backing_format) {
        return cli_usage(cli, "-b needs the backing file's format, -F");
    }
    im.path = args[0];
    if (!cli_parse_size(args[1], &im.size)) {
        return cli_usage(cli, "'%s' is no size", args[1]);
    }
    if (image_create(cli, &im, &err)) {
        return cli_error(cli, &err);
    }
    return image_created(cli, &im, "create");
}

int
verb_clone(struct cli *cli)
{
    struct new_image im = {.format = "qcow2", .fresh = true};
    const char *args[2], *size = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &im.format, NULL, false},
        {'F', NULL, &im.backing_format, NULL, true},
        {'o', NULL, &im.options, NULL, false},
        {0, "size", &size, NULL, false},
        {0}};
    auto_err err = ERR_INIT;
    int r = cli_parse(cli, options, args, 2,
                      "a template, a path and the template's format, -F, are");

    if (r) {
        return r;
    }
    im.path = args[1];
    if (size && !cli_parse_size(size, &im.size)) {
        return cli_usage(cli, "'%s' is no size", size);
    }
    struct node *template =
        cli_open(cli, args[0], im.backing_format, "template", true, &err);

    if (!template) {
        return cli_error(cli, &err);
    }
    im.size = size ? im.size : align_up(template->size, 512);
    auto_free char *backing = backing_name_for(im.path, args[0]);

    im.backing = backing;
    if (image_create(cli, &im, &err)) {
        return cli_error(cli, &err);
    }
    return image_created(cli, &im, "clone");
}

/* info */

static json_t *
describe(struct node *node)
{
    json_t *o = json_pack("{s:s, s:I}", "format", node->drv->name,
                          "virtual-size", (json_int_t)node->size);

    if (node->filename) {
        json_object_set_new(o, "filename", json_string(node->filename));
    }
    if (node->header_backing.filename) {
        json_object_set_new(o, "backing-filename",
                            json_string(node->header_backing.filename));
        json_object_set_new(o, "backing-filename-format",
                            node->header_backing.format
                                ? json_string(node->header_backing.format)
                                : json_null());
    }
    if (node->drv->info) {
        node->drv->info(node, o);
    }
    if (node->incomplete) {
        json_object_set_new(o, "unfinished-copy", json_true());
    }
    if (node->file && node->file->child->drv->info) {
        node->file->child->drv->info(node->file->child, o);
    }
    return o;
}

static void
print_described(const json_t *o, unsigned depth)
{
    static const char *const sizes[] = {"virtual-size", "actual-size",
                                        "cluster-size"};
    const json_t *data = json_object_get(json_object_get(o, "format-specific"),
                                         "data");
    const char *key;
    json_t *v;

    printf("%s%s\n", depth ? "backing file: " : "image: ",
           json_string_value(json_object_get(o, "filename")));
    printf("  format: %s\n", json_string_value(json_object_get(o, "format")));
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        const json_t *n = json_object_get(o, sizes[i]);

        if (n) {
            uint64_t bytes = (uint64_t)json_integer_value(n);
            auto_free char *text = cli_format_size(bytes);

            printf("  %s: %s (%llu bytes)\n", sizes[i], text,
                   (unsigned long long)bytes);
        }
    }
    if (json_object_get(o, "unfinished-copy")) {
        printf("  an unfinished copy: the disk is still the image that it was "
               "copied from\n");
    }
    json_object_foreach((json_t *)(uintptr_t)data, key, v)
    {
        auto_free char *text = json_dumps(v, JSON_ENCODE_ANY);

        printf("  %s: %s\n", key, text);
    }
    if (json_object_get(o, "backing-filename")) {
        printf("  names its backing file: %s\n",
               json_string_value(json_object_get(o, "backing-filename")));
    }
}

int
verb_info(struct cli *cli)
{
    unsigned depth = 0;
    auto_err err = ERR_INIT;
    struct node *node = NULL;
    int r = cli_open_argument(cli, &node, &err);

    if (r) {
        return r;
    }
    json_t *chain = json_array();

    for (struct node *n = node; n; n = n->backing ? n->backing->child : NULL) {
        json_array_append_new(chain, describe(n));
    }
    if (cli->json) {
        cli_print_json(json_pack("{s:s, s:o}", "type", "result", "chain",
                                 chain));
        return EXIT_OK;
    }
    for (; depth < json_array_size(chain); depth++) {
        print_described(json_array_get(chain, depth), depth);
    }
    json_decref(chain);
    return EXIT_OK;
}

/* check; its exit codes are qemu-img's. */

enum { CHECK_FAILED = 1, CHECK_CORRUPT = 2, CHECK_LEAKS = 3, CHECK_UNSUPPORTED = 63 };

static void
say_found(void *arg, const char *line)
{
    const struct cli *cli = arg;

    if (!cli->json) {
        puts(line);
    }
}

static int
report_check(struct cli *cli, const struct check_report *r,
             const struct under_way *u)
{
    if (cli->json) {
        json_t *o = json_pack(
            "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "type", "result",
            "corruptions", (json_int_t)r->corruptions, "leaks",
            (json_int_t)r->leaks, "corruptions-fixed",
            (json_int_t)r->fixed_corruptions, "leaks-fixed",
            (json_int_t)r->fixed_leaks, "total-clusters",
            (json_int_t)r->total_clusters, "allocated-clusters",
            (json_int_t)r->allocated_clusters, "compressed-clusters",
            (json_int_t)r->compressed_clusters, "image-end-offset",
            (json_int_t)r->end_offset);

        under_way_add(u, o);
        cli_print_json(o);
    } else {
        if (r->fixed_corruptions || r->fixed_leaks) {
            printf("Repaired: %llu errors, %llu leaked clusters.\n",
                   (unsigned long long)r->fixed_corruptions,
                   (unsigned long long)r->fixed_leaks);
        }
        printf("%s: %llu errors, %llu leaked clusters; %llu of %llu clusters "
               "allocated, %llu of them compressed.\n",
               r->corruptions ? "CORRUPT"
               : r->leaks     ? "Usable, wastes space"
                              : "No errors",
               (unsigned long long)r->corruptions, (unsigned long long)r->leaks,
               (unsigned long long)r->allocated_clusters,
               (unsigned long long)r->total_clusters,
               (unsigned long long)r->compressed_clusters);
    }
    return r->corruptions ? CHECK_CORRUPT : r->leaks ? CHECK_LEAKS : EXIT_OK;
}

/* Nobody writes to it: what a journal speaks of was cut off. */
static void
say_under_way(struct cli *cli, const char *path, const struct under_way *u)
{
    if (!cli->json) {
        under_way_say(u, path, false);
    }
}

static int
check_image(struct cli *cli, const char *path, const char *format, unsigned fix,
            const struct under_way *u)
{
    struct check_report report = {.say = say_found, .arg = cli};
    auto_err err = ERR_INIT;
    struct node *node = image_open_for_check(cli, path, format, fix, &err);

    if (!node) {
        return cli_error_as(cli, &err, CHECK_FAILED);
    }
    say_under_way(cli, path, u);
    if (!node->drv->check) {
        err_set(&err, -ENOTSUP, "Images of format '%s' have nothing to check",
                format);
        return cli_error_as(cli, &err, CHECK_UNSUPPORTED);
    }
    if (node->drv->check(node, fix, &report, &err)) {
        return cli_error_as(cli, &err, CHECK_FAILED);
    }
    return report_check(cli, &report, u);
}

int
verb_check(struct cli *cli)
{
    const char *path, *format = NULL, *repair = NULL;
    const struct cli_option options[] = {
        {'f', NULL, &format, NULL, true},
        {'r', "repair", &repair, NULL, false},
        {0}};
    auto_err err = ERR_INIT;
    struct under_way u;
    unsigned fix = 0;
    int r = cli_parse(cli, options, &path, 1, "a path and its format, -f, are");

    if (r) {
        return r;
    }
    if (repair && strcmp(repair, "leaks") && strcmp(repair, "all")) {
        return cli_usage(cli, "--repair takes 'leaks' or 'all'");
    }
    if (repair && !cli->dry_run) {
        fix = CHECK_FIX_LEAKS | (strcmp(repair, "all") ? 0 : CHECK_FIX_ERRORS);
    }
    r = under_way_look(&u, cli, path, &err)
            ? cli_error(cli, &err)
            : check_image(cli, path, format, fix, &u);
    under_way_fini(&u);
    return r;
}
