// SPDX-License-Identifier: BSD-3-Clause
/* control/qmp_session: what a client gets for what it sends. */
#include "control/qmp_session.h"

#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/qmp_dispatch.h"
#include "control/strbuf.h"
#include "schema_dispatch.h"
#include "tap.h"

int
cmd_query_jobs(struct control *ctl, const struct args_query_jobs *args,
               json_t **ret, struct err *err)
{
    *ret = json_array();
    return 0;
}

int
cmd_job_pause(struct control *ctl, const struct args_job_pause *args,
              json_t **ret, struct err *err)
{
    return err_set_class(err, ERR_DEVICE_NOT_ACTIVE, -1, "no '%s'", args->id);
}

/* Sends @in and checks the answers, which are joined. */
static void
check(struct qmp_session *s, const char *in, const char *want)
{
    struct strbuf out = {0};
    struct qmp_request *request;

    qmp_session_feed(s, in, strlen(in));
    while ((request = qmp_session_next(s))) {
        auto_free char *text = qmp_session_execute(s, NULL, request);

        strbuf_add_str(&out, text);
    }
    CHECK_STR(strbuf_text(&out), want);
    strbuf_fini(&out);
}

#define ERROR(class, desc)                                                     \
    "{\"error\": {\"class\": \"" class "\", \"desc\": \"" desc "\"}}\r\n"
#define GENERIC(desc) ERROR("GenericError", desc)
#define EXPECTING                                                              \
    ERROR("CommandNotFound", "Expecting capabilities negotiation with "        \
                             "'qmp_capabilities'")
#define COMPLETE                                                               \
    ERROR("CommandNotFound", "Capabilities negotiation is already complete, "  \
                             "command ignored")
#define OK "{\"return\": {}}\r\n"
#define NO_JOBS "{\"return\": []}\r\n"

static struct qmp_session *
negotiated(void)
{
    struct qmp_session *s = qmp_session_new(false);

    check(s, "{'execute':'qmp_capabilities'}", OK);
    return s;
}

static void
greeting(void)
{
    struct qmp_session *s = qmp_session_new(false);
    auto_free char *text = qmp_session_greeting(s);
    json_t *json = json_loads(text, 0, NULL);
    json_t *qmp = json_object_get(json, "QMP");
    json_t *qemu = json_object_get(json_object_get(qmp, "version"), "qemu");

    CHECK(json_is_integer(json_object_get(qemu, "major")));
    CHECK(json_is_array(json_object_get(qmp, "capabilities")));
    CHECK_STR(text + strlen(text) - 2, "\r\n");
    CHECK_INT(strchr(text, '\n') - text, strlen(text) - 1);
    json_decref(json);
    qmp_session_free(s);
}

static void
negotiation(void)
{
    struct qmp_session *s = qmp_session_new(false);

    CHECK(!qmp_session_negotiated(s));
    check(s, "{'execute':'query-jobs'}", EXPECTING);
    check(s, "{'execute':'foo'}", EXPECTING);
    check(s, "{'execute':'qmp_capabilities','arguments':{'x':1}}",
          GENERIC("Parameter 'x' is unexpected"));
    check(s, "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}",
          GENERIC("Capability oob not available"));
    check(s, "{'execute':'qmp_capabilities','arguments':{'enable':['foo']}}",
          GENERIC("Parameter 'null' does not accept value 'foo'"));
    CHECK(!qmp_session_negotiated(s));
    check(s, "{'execute':'qmp_capabilities','arguments':{'enable':[]}}", OK);
    CHECK(qmp_session_negotiated(s));
    check(s, "{'execute':'qmp_capabilities'}", COMPLETE);
    check(s, "{'execute':'query-jobs'}", NO_JOBS);
    qmp_session_free(s);
}

static void
requests(void)
{
    struct qmp_session *s = negotiated();

    check(s, "[]", GENERIC("QMP input must be a JSON object"));
    check(s, "5\n", GENERIC("QMP input must be a JSON object"));
    check(s, "{}", GENERIC("QMP input lacks member 'execute'"));
    check(s, "{'execute':5}",
          GENERIC("QMP input member 'execute' must be a string"));
    check(s, "{'execute':'query-jobs','foo':1}",
          GENERIC("QMP input member 'foo' is unexpected"));
    check(s, "{'execute':'query-jobs','arguments':5}",
          GENERIC("QMP input member 'arguments' must be an object"));
    check(s, "{'exec-oob':'query-jobs'}",
          GENERIC("QMP input member 'exec-oob' is unexpected"));
    check(s, "{'execute':'query-jobs','execute':'foo'}",
          GENERIC("JSON parse error, duplicate key"));
    check(s, "{'execute':'foo'}",
          ERROR("CommandNotFound", "The command foo has not been found"));
    check(s, "{]", GENERIC("JSON parse error, expecting value"));
    check(s, "{'execute':'job-pause','arguments':{'id':'j'}}",
          ERROR("DeviceNotActive", "no 'j'"));
    check(s, "{'execute':'job-resume','arguments':{'id':'j'}}",
          GENERIC("stub job_resume"));
    qmp_session_free(s);
}

static void
ids(void)
{
    struct qmp_session *s = negotiated();

    check(s, "{'execute':'query-jobs','id':1}",
          "{\"return\": [], \"id\": 1}\r\n");
    check(s, "{'id':{'a':[1,2.5,'\xc3\xa9']},'execute':'query-jobs'}",
          "{\"return\": [], \"id\": {\"a\": [1, 2.5, \"\\u00E9\"]}}\r\n");
    check(s, "{'id':null,'execute':'query-jobs'}",
          "{\"return\": [], \"id\": null}\r\n");
    check(s, "{'id':'x','execute':5}",
          "{\"error\": {\"class\": \"GenericError\", \"desc\": \"QMP input "
          "member 'execute' must be a string\"}, \"id\": \"x\"}\r\n");
    qmp_session_free(s);
}

static void
order(void)
{
    struct qmp_session *s = negotiated();

    check(s, "{'execute':'query-jobs','id':1}{]{'execute':'query-jobs','id':2",
          "{\"return\": [], \"id\": 1}\r\n"
          GENERIC("JSON parse error, expecting value"));
    check(s, "}", "{\"return\": [], \"id\": 2}\r\n");
    qmp_session_feed(s, "1 2 3 ", 6);
    CHECK_INT(qmp_session_queued(s), 3);
    qmp_request_free(qmp_session_next(s));
    CHECK_INT(qmp_session_queued(s), 2);
    qmp_session_free(s);
}

static void
pretty(void)
{
    struct qmp_session *s = qmp_session_new(true);

    check(s, "{'execute':'qmp_capabilities'}", "{\n    \"return\": {}\n}\r\n");
    qmp_session_free(s);
}

static void
events(void)
{
    struct qmp_session *s = negotiated();
    json_t *data = json_pack("{s:s, s:s}", "id", "j\xc3\xa9", "status",
                             "running");
    json_t *event = qmp_event("JOB_STATUS_CHANGE", data, 1700000000123456789);
    auto_free char *text = qmp_session_format(s, event);

    CHECK_STR(text,
              "{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": "
              "123456}, \"event\": \"JOB_STATUS_CHANGE\", \"data\": {\"id\": "
              "\"j\\u00E9\", \"status\": \"running\"}}\r\n");
    json_decref(event);
    qmp_session_free(s);
}

int
main(void)
{
    tap_run("the greeting", greeting);
    tap_run("negotiation", negotiation);
    tap_run("requests", requests);
    tap_run("ids come back", ids);
    tap_run("answers keep the order", order);
    tap_run("pretty answers", pretty);
    tap_run("events", events);
    return tap_done();
}
