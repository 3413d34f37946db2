// SPDX-License-Identifier: BSD-3-Clause
/*
 * Arguments on their way to a handler: what is refused, with the texts that
 * qemu-storage-daemon 7.2 gave for the same input, and what arrives.
 */
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/qmp_dispatch.h"
#include "schema_dispatch.h"
#include "tap.h"

static int calls;
static struct args_block_stream seen;

int
cmd_block_stream(struct control *ctl, const struct args_block_stream *args,
                 json_t **ret, struct err *err)
{
    calls++;
    seen = *args;
    seen.device = xstrdup(args->device);
    seen.job_id = args->job_id ? xstrdup(args->job_id) : NULL;
    return 0;
}

int
cmd_blockdev_add(struct control *ctl, const struct args_blockdev_add *args,
                 json_t **ret, struct err *err)
{
    struct qmp_blockdev_options_qcow2 q;

    calls++;
    CHECK_INT(args->driver, QMP_BLOCKDEV_DRIVER_QCOW2);
    CHECK_STR(args->node_name, "n");
    CHECK(args->has_read_only && args->read_only);
    CHECK(!args->has_discard);
    CHECK(json_is_true(json_object_get(args->cache, "direct")));
    decode_qmp_blockdev_options_qcow2(args->json, &q);
    CHECK_STR(json_string_value(q.file), "f");
    CHECK(q.backing && json_is_null(q.backing));
    CHECK(q.has_l2_cache_size);
    CHECK_INT(q.l2_cache_size, 1048576);
    CHECK(!q.data_file);
    return 0;
}

/* Dispatches; @text are the arguments.  The caller frees the message. */
static char *
refusal(const char *command, const char *text)
{
    auto_err err = ERR_INIT;
    json_t *args = json_loads(text, 0, NULL), *ret = NULL;
    int before = calls;

    CHECK(args != NULL);
    int r = qmp_dispatch(NULL, command, args, &ret, &err);
    json_decref(args);
    json_decref(ret);
    if (r == 0) {
        return xstrdup("(no error)");
    }
    CHECK_INT(calls, before);
    CHECK_INT(err.class, ERR_GENERIC);
    return xstrdup(err.msg);
}

struct expect {
    const char *command, *args, *msg;
};

static void
check_all(const struct expect *e, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        auto_free char *msg = refusal(e[i].command, e[i].args);

        CHECK_STR(msg, e[i].msg);
    }
}

static void
scalars(void)
{
    static const struct expect e[] = {
        {"job-pause", "{}", "Parameter 'id' is missing"},
        {"job-pause", "{\"id\":1}",
         "Invalid parameter type for 'id', expected: string"},
        {"job-pause", "{\"id\":null}",
         "Invalid parameter type for 'id', expected: string"},
        {"job-pause", "{\"id\":\"x\",\"y\":1,\"a\":2}",
         "Parameter 'y' is unexpected"},
        {"block-stream", "{\"bogus\":1}", "Parameter 'device' is missing"},
        {"block-stream", "{\"device\":\"a\",\"speed\":\"x\"}",
         "Invalid parameter type for 'speed', expected: integer"},
        {"block-stream", "{\"device\":\"a\",\"speed\":1.5}",
         "Invalid parameter type for 'speed', expected: integer"},
        {"block-stream", "{\"device\":\"a\",\"speed\":1.0}",
         "Invalid parameter type for 'speed', expected: integer"},
        {"block-stream", "{\"device\":\"a\",\"on-error\":\"foo\"}",
         "Parameter 'on-error' does not accept value 'foo'"},
        {"block-stream", "{\"device\":\"a\",\"on-error\":3}",
         "Invalid parameter type for 'on-error', expected: string"},
        {"block-stream", "{\"device\":\"a\",\"auto-finalize\":\"on\"}",
         "Invalid parameter type for 'auto-finalize', expected: boolean"},
        {"query-version", "{\"b\":1,\"a\":2}", "Parameter 'b' is unexpected"},
        {"query-named-block-nodes", "{\"flat\":5}",
         "Invalid parameter type for 'flat', expected: boolean"},
    };

    check_all(e, ARRAY_LEN(e));
}

static void
nested(void)
{
    static const struct expect e[] = {
        {"blockdev-add", "{}", "Parameter 'driver' is missing"},
        {"blockdev-add", "{\"driver\":\"foo\"}",
         "Parameter 'driver' does not accept value 'foo'"},
        {"blockdev-add", "{\"driver\":5}",
         "Invalid parameter type for 'driver', expected: string"},
        {"blockdev-add", "{\"driver\":\"file\"}",
         "Parameter 'filename' is missing"},
        {"blockdev-add", "{\"driver\":\"file\",\"filename\":\"x\",\"z\":3}",
         "Parameter 'z' is unexpected"},
        {"blockdev-add", "{\"driver\":\"qcow2\",\"file\":5}",
         "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"blockdev-add", "{\"driver\":\"qcow2\",\"file\":null}",
         "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"blockdev-add", "{\"driver\":\"qcow2\",\"file\":{}}",
         "Parameter 'file.driver' is missing"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\"}}",
         "Parameter 'file.filename' is missing"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
         "\"filename\":\"x\",\"z\":1}}",
         "Parameter 'file.z' is unexpected"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":\"a\",\"backing\":5}",
         "Invalid parameter type for 'backing', expected: BlockdevRefOrNull"},
        {"blockdev-add", "{\"driver\":\"qcow2\",\"file\":\"a\",\"cache\":5}",
         "Invalid parameter type for 'cache', expected: object"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":\"a\",\"cache\":{\"direct\":5}}",
         "Invalid parameter type for 'cache.direct', expected: boolean"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":\"a\",\"cache\":{\"dirct\":true}}",
         "Parameter 'cache.dirct' is unexpected"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":\"a\",\"overlap-check\":5}",
         "Invalid parameter type for 'overlap-check', expected: "
         "Qcow2OverlapChecks"},
        {"blockdev-add",
         "{\"driver\":\"qcow2\",\"file\":\"a\",\"overlap-check\":"
         "{\"template\":\"x\"}}",
         "Parameter 'template' does not accept value 'x'"},
        {"nbd-server-start", "{\"addr\":{\"type\":\"unix\"}}",
         "Parameter 'addr.data' is missing"},
        {"nbd-server-start", "{\"addr\":{\"type\":\"unix\",\"data\":{}}}",
         "Parameter 'addr.data.path' is missing"},
        {"nbd-server-start",
         "{\"addr\":{\"type\":\"unix\",\"data\":{\"path\":\"x\",\"z\":1}}}",
         "Parameter 'addr.data.z' is unexpected"},
        {"block-export-add",
         "{\"type\":\"nbd\",\"id\":\"a\",\"node-name\":\"a\",\"bitmaps\":5}",
         "Invalid parameter type for 'bitmaps', expected: array"},
        {"block-export-add",
         "{\"type\":\"nbd\",\"id\":\"a\",\"node-name\":\"a\","
         "\"bitmaps\":[\"x\",{\"node\":\"y\"}]}",
         "Parameter 'bitmaps[1].name' is missing"},
        {"block-export-add",
         "{\"type\":\"nbd\",\"id\":\"a\",\"node-name\":\"a\","
         "\"bitmaps\":[5]}",
         "Invalid parameter type for 'null', expected: "
         "BlockDirtyBitmapOrStr"},
        {"blockdev-create",
         "{\"job-id\":\"a\",\"options\":{\"driver\":\"file\","
         "\"filename\":\"x\"}}",
         "Parameter 'options.size' is missing"},
        {"blockdev-create", "{\"job-id\":\"a\",\"options\":[]}",
         "Invalid parameter type for 'options', expected: object"},
    };

    check_all(e, ARRAY_LEN(e));
}

#define SERVER "\"addr\":{\"type\":\"unix\",\"data\":{\"path\":\"/x\"}}"
#define CREATE(size)                                                           \
    "{\"job-id\":\"a\",\"options\":{\"driver\":\"file\",\"filename\":\"x\","   \
    "\"size\":" size "}}"

static void
ranges(void)
{
    static const struct expect e[] = {
        {"nbd-server-start", "{" SERVER ",\"max-connections\":-1}",
         "Parameter 'max-connections' expects uint32_t"},
        {"nbd-server-start", "{" SERVER ",\"max-connections\":4294967296}",
         "Parameter 'max-connections' expects uint32_t"},
        {"nbd-server-start", "{" SERVER ",\"max-connections\":4294967295}",
         "stub nbd_server_start"},
        {"nbd-server-start", "{" SERVER ",\"max-connections\":1.5}",
         "Parameter 'max-connections' expects uint64"},
        {"blockdev-create", CREATE("1.0"),
         "Parameter 'options.size' expects uint64"},
        {"blockdev-create", CREATE("18446744073709551616.0"),
         "Parameter 'options.size' expects uint64"},
        {"blockdev-create", CREATE("-1"),
         "Parameter 'options.size' expects uint64"},
        {"blockdev-create", CREATE("9223372036854775807"),
         "stub blockdev_create"},
    };

    check_all(e, ARRAY_LEN(e));
}

static void
arguments_arrive(void)
{
    json_t *ret = NULL, *args = json_loads(
        "{\"device\":\"d\",\"speed\":-5,\"on-error\":\"enospc\","
        "\"auto-dismiss\":false}", 0, NULL);

    CHECK_INT(qmp_dispatch(NULL, "block-stream", args, &ret, NULL), 0);
    CHECK_INT(json_object_size(ret), 0);
    CHECK_STR(seen.device, "d");
    CHECK(!seen.job_id);
    CHECK(seen.has_speed);
    CHECK_INT(seen.speed, -5);
    CHECK(seen.has_on_error);
    CHECK_INT(seen.on_error, QMP_BLOCKDEV_ON_ERROR_ENOSPC);
    CHECK(seen.has_auto_dismiss && !seen.auto_dismiss);
    CHECK(!seen.has_auto_finalize);
    free((char *)seen.device);
    json_decref(ret);
    json_decref(args);
}

static void
variants_arrive(void)
{
    int before = calls;
    auto_free char *msg = refusal(
        "blockdev-add",
        "{\"driver\":\"qcow2\",\"node-name\":\"n\",\"read-only\":true,"
        "\"cache\":{\"direct\":true},\"file\":\"f\",\"backing\":null,"
        "\"l2-cache-size\":1048576}");

    CHECK_STR(msg, "(no error)");
    CHECK_INT(calls, before + 1);
}

static void
unknown_commands(void)
{
    auto_err err = ERR_INIT;
    json_t *ret;

    CHECK(qmp_dispatch(NULL, "foo", NULL, &ret, &err) < 0);
    CHECK_STR(err.msg, "The command foo has not been found");
    CHECK_INT(err.class, ERR_COMMAND_NOT_FOUND);
}

static void
enum_names(void)
{
    CHECK_STR(qmp_job_status_name(QMP_JOB_STATUS_STANDBY), "standby");
    CHECK_STR(qmp_blockdev_driver_name(QMP_BLOCKDEV_DRIVER_COPY_ON_READ),
              "copy-on-read");
    CHECK_INT(schema_enum_parse(&schema_type_job_status, "null"),
              QMP_JOB_STATUS_NULL);
    CHECK_INT(schema_enum_parse(&schema_type_job_status, "nul"), -1);
}

int
main(void)
{
    tap_run("scalars", scalars);
    tap_run("nested values", nested);
    tap_run("ranges", ranges);
    tap_run("arguments arrive", arguments_arrive);
    tap_run("variants arrive", variants_arrive);
    tap_run("unknown commands", unknown_commands);
    tap_run("names of enumerations", enum_names);
    return tap_done();
}
