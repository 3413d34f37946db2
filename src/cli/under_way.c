// SPDX-License-Identifier: BSD-3-Clause
/* See under_way.h. */
#include "cli/under_way.h"

#include "block/node.h"
#include "transfer/resume.h"

void
under_way_look(struct under_way *u, struct cli *cli, const char *path)
{
    struct journals *journals = graph_journals(cli->graph);

    u->jobs = resume_list(journals, path);
    u->disk = resume_disk_of(journals, path);
}

void
under_way_fini(struct under_way *u)
{
    json_decref(u->jobs);
    free(u->disk);
}

static const char *
layer(json_t *job, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(job, key), "file"));
}

static void
say_job(json_t *job, const char *path, bool in_use)
{
    const char *base = layer(job, "base"), *target = layer(job, "target");

    printf("%s: job '%s' (%s)", path,
           json_string_value(json_object_get(job, "id")),
           json_string_value(json_object_get(job, "preset")));
    if (base) {
        printf(", down to '%s'", base);
    }
    if (target) {
        printf(", to '%s'", target);
    }
    printf(in_use ? ", is under way\n"
                  : ", was cut off: it goes on when a daemon opens the "
                    "image to write\n");
}

void
under_way_say_jobs(const struct under_way *u, const char *path, bool in_use)
{
    json_t *job;
    size_t i;

    json_array_foreach (u->jobs, i, job) {
        say_job(job, path, in_use);
    }
}

void
under_way_say_disk(const struct under_way *u, const char *path)
{
    if (u->disk) {
        printf("%s: a job of '%s' writes to it, as a layer of that: by itself "
               "it is neither old nor new\n",
               path, u->disk);
    }
}

void
under_way_add(const struct under_way *u, json_t *object)
{
    json_object_set(object, "jobs", u->jobs);
    if (u->disk) {
        json_object_set_new(object, "layer-of", json_string(u->disk));
    }
}
