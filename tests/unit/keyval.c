// SPDX-License-Identifier: BSD-3-Clause
/*
 * Options of the command line.  The error texts are those that
 * qemu-storage-daemon 7.2 gave for the same arguments.
 */
#include "control/keyval.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "control/number.h"
#include "control/options.h"
#include "schema_types.h"
#include "tap.h"

typedef int option_fn(const char *, json_t **, struct err *);

/* The result as compact JSON with sorted keys, or the error's message. */
static char *
outcome(int r, json_t *json, struct err *err)
{
    if (r < 0) {
        CHECK_INT(r, -EINVAL);
        return xstrdup(err->msg);
    }
    char *text = json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(json);
    return text;
}

static void
check_parse(const char *in, const char *want)
{
    auto_err err = ERR_INIT;
    json_t *json = NULL;
    int r = keyval_parse(in, "driver", &json, &err);
    auto_free char *got = outcome(r, json, &err);

    CHECK_STR(got, want);
}

static void
check_option(option_fn *fn, const char *in, const char *want)
{
    auto_err err = ERR_INIT;
    json_t *json = NULL;
    int r = fn(in, &json, &err);
    auto_free char *got = outcome(r, json, &err);

    CHECK_STR(got, want);
}

static void
syntax(void)
{
    check_parse("", "{}");
    check_parse("raw", "{\"driver\":\"raw\"}");
    check_parse("raw,a=1,b=", "{\"a\":\"1\",\"b\":\"\",\"driver\":\"raw\"}");
    check_parse("a=x,,y,b=,,", "{\"a\":\"x,y\",\"b\":\",\"}");
    check_parse("a=b=c,", "{\"a\":\"b=c\"}");
    check_parse("a=1,a=2", "{\"a\":\"2\"}");
    check_parse("a.b.c=1,a.b.d=2,a.e=3",
                "{\"a\":{\"b\":{\"c\":\"1\",\"d\":\"2\"},\"e\":\"3\"}}");
    check_parse("l.1=y,l.0=x", "{\"l\":[\"x\",\"y\"]}");
    check_parse("l.0.a=1,l.1.b.0=2",
                "{\"l\":[{\"a\":\"1\"},{\"b\":[\"2\"]}]}");
    check_parse("__org.x_y=1", "{\"__org.x_y\":\"1\"}");
    check_parse("x_y-z9=1", "{\"x_y-z9\":\"1\"}");
}

static void
syntax_errors(void)
{
    check_parse("null-co,a", "Expected '=' after parameter 'a'");
    check_parse(",", "Invalid parameter ''");
    check_parse("null-co,=1", "Invalid parameter ''");
    check_parse("null-co,0=a", "Invalid parameter '0'");
    check_parse("null-co,a.=1", "Invalid parameter 'a.'");
    check_parse("null-co,.a=1", "Invalid parameter '.a'");
    check_parse("null-co,a..b=1", "Invalid parameter 'a..b'");
    check_parse("null-co,-a=1", "Invalid parameter '-a'");
    check_parse("null-co,5x=1", "Invalid parameter '5x'");
    check_parse("null-co,x y=1", "Invalid parameter 'x y'");
    check_parse("a=1,a.b=2", "Parameters 'a.*' used inconsistently");
    check_parse("a.b=1,a=2", "Parameters 'a.*' used inconsistently");
    check_parse("a.0=1,a.b=1", "Parameters 'a.*' used inconsistently");
    check_parse("a.0=1,a.2=1", "Parameter 'a.1' missing");
    check_parse("a.b.99999999999=1", "Parameter 'a.b.0' missing");
    check_parse("help", "Help is not available for this option");
    check_parse("raw,?", "Help is not available for this option");
    check_parse("a=\xff", "Parameter 'a' is not valid UTF-8");
}

static void
limits_of_keys(void)
{
    struct {
        size_t len;
        bool fits;
    } part[] = {{KEYVAL_MAX_FRAGMENT, true}, {KEYVAL_MAX_FRAGMENT + 1, false}};
    char key[400];

    for (size_t i = 0; i < ARRAY_LEN(part); i++) {
        auto_err err = ERR_INIT;
        json_t *json = NULL;

        memset(key, 'a', part[i].len);
        strcpy(key + part[i].len, "=1");
        CHECK((keyval_parse(key, NULL, &json, &err) == 0) == part[i].fits);
        json_decref(json);
    }
    for (size_t depth = KEYVAL_MAX_DEPTH; depth < KEYVAL_MAX_DEPTH + 2;
         depth++) {
        auto_err err = ERR_INIT;
        json_t *json = NULL;

        for (size_t i = 0; i < depth; i++) {
            memcpy(key + 2 * i, "a.", 2);
        }
        strcpy(key + 2 * depth - 1, "=1");
        CHECK((keyval_parse(key, NULL, &json, &err) == 0) ==
              (depth == KEYVAL_MAX_DEPTH));
        json_decref(json);
    }
}

static void
blockdev(void)
{
    option_fn *fn = option_blockdev;

    check_option(fn, "null-co,node-name=a,size=0x10,read-only=yes",
                 "{\"driver\":\"null-co\",\"node-name\":\"a\","
                 "\"read-only\":true,\"size\":16}");
    check_option(fn,
                 "driver=qcow2,node-name=a,file.driver=file,"
                 "file.filename=x,,y,cache.direct=on,backing=b",
                 "{\"backing\":\"b\",\"cache\":{\"direct\":true},"
                 "\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
                 "\"filename\":\"x,y\"},\"node-name\":\"a\"}");
    check_option(fn, "{'driver':'null-co', 'size':5}",
                 "{\"driver\":\"null-co\",\"size\":5}");
    check_option(fn, "", "Parameter 'driver' is missing");
    check_option(fn, "foo", "Parameter 'driver' does not accept value 'foo'");
    check_option(fn, "[1]", "Parameter 'driver' does not accept value '[1]'");
    check_option(fn, "null-co,size=1M", "Parameter 'size' expects integer");
    check_option(fn, "null-co,size=", "Parameter 'size' expects integer");
    check_option(fn, "null-co,read-only=maybe",
                 "Parameter 'read-only' expects 'on' or 'off'");
    check_option(fn, "qcow2,file=a,cache.direct=maybe",
                 "Parameter 'cache.direct' expects 'on' or 'off'");
    check_option(fn, "qcow2,file=a,cache=1",
                 "Invalid parameter type for 'cache', expected: object");
    check_option(fn, "qcow2,file=a,bogus.x=1",
                 "Parameter 'bogus' is unexpected");
    check_option(fn, "qcow2,file.filename=a",
                 "Parameter 'file.driver' is missing");
    check_option(fn, "null-co,node-name.0=a",
                 "Parameters 'node-name.*' are unexpected");
    check_option(fn, "nbd,server.type=unix,server.path=/x,"
                     "reconnect-delay=5000000000",
                 "Parameter 'reconnect-delay' expects uint32_t");
    check_option(fn, "nbd,server.type=unix,server.path=/x,"
                     "reconnect-delay=1k",
                 "Parameter 'reconnect-delay' expects integer");
    check_option(fn, "{\"driver\":\"null-co\"",
                 "JSON parse error, premature EOI");
    check_option(fn, "{\"driver\":\"null-co\"}{}",
                 "Expecting at most one JSON value");
    check_option(fn, "{\"driver\":\"null-co\",\"size\":\"1\"}",
                 "Invalid parameter type for 'size', expected: integer");
}

static void
exports_and_servers(void)
{
    check_option(option_export, "nbd,id=a,node-name=n,bitmaps.0=x,writable=on",
                 "{\"bitmaps\":[\"x\"],\"id\":\"a\",\"node-name\":\"n\","
                 "\"type\":\"nbd\",\"writable\":true}");
    check_option(option_export, "nbd,id=a", "Parameter 'node-name' is missing");
    check_option(option_export, "nbd,id=a,node-name=n,bitmaps=x",
                 "Invalid parameter type for 'bitmaps', expected: array");
    check_option(option_export, "nbd,id=a,node-name=n,bitmaps.0.node=x",
                 "Parameter 'bitmaps.0.name' is missing");
    check_option(option_export, "nbd,id=a,node-name=n,bitmap=x",
                 "Parameter 'bitmap' is unexpected");
    check_option(option_nbd_server,
                 "addr.type=inet,addr.host=h,addr.port=1,addr.ipv4=off,"
                 "max-connections=2",
                 "{\"addr\":{\"data\":{\"host\":\"h\",\"ipv4\":false,"
                 "\"port\":\"1\"},\"type\":\"inet\"},\"max-connections\":2}");
    check_option(option_nbd_server, "unix",
                 "Expected '=' after parameter 'unix'");
    check_option(option_nbd_server, "addr=x",
                 "Invalid parameter type for 'addr', expected: object");
    check_option(option_nbd_server, "addr.type=unix",
                 "Parameter 'addr.path' is missing");
    check_option(option_object, "secret,id=s,data=x,format=base64",
                 "{\"data\":\"x\",\"format\":\"base64\",\"id\":\"s\","
                 "\"qom-type\":\"secret\"}");
    check_option(option_object, "id=a", "Parameter 'qom-type' is missing");
    check_option(option_object, "iothread", "Parameter 'id' is missing");
}

static void
addresses(void)
{
    json_t *legacy = json_loads("{\"type\":\"unix\",\"data\":{\"path\":\"p\"}}",
                                0, NULL);
    json_t *flat = socket_address_flatten(legacy);
    json_t *again = socket_address_to_legacy(flat);
    auto_free char *text = json_dumps(flat, JSON_COMPACT);

    CHECK_STR(text, "{\"type\":\"unix\",\"path\":\"p\"}");
    CHECK(json_equal(legacy, again));
    json_decref(legacy);
    json_decref(flat);
    json_decref(again);
}

static void
monitors(void)
{
    struct option_monitor m;
    auto_err err = ERR_INIT;

    CHECK_INT(option_monitor("c,mode=control,pretty=on", &m, &err), 0);
    CHECK_STR(m.chardev, "c");
    CHECK(m.pretty && !m.id);
    option_monitor_fini(&m);
    CHECK_INT(option_monitor("{'chardev':'c'}", &m, &err), 0);
    CHECK(!m.pretty);
    option_monitor_fini(&m);
    CHECK(option_monitor("c,mode=foo", &m, &err) < 0);
    CHECK_STR(err.msg, "Parameter 'mode' does not accept value 'foo'");
    err_clear(&err);
    CHECK(option_monitor("", &m, &err) < 0);
    CHECK_STR(err.msg, "Parameter 'chardev' is missing");
}

static void
check_chardev(const char *in, const char *want)
{
    struct option_chardev c = {0};
    auto_err err = ERR_INIT;
    auto_free char *got = NULL;

    if (option_chardev(in, &c, &err) < 0) {
        got = xstrdup(err.msg);
    } else {
        auto_free char *addr =
            c.addr ? json_dumps(c.addr, JSON_COMPACT) : xstrdup("stdio");

        got = xasprintf("%s %s%s%s", c.id, addr, c.server ? " server" : "",
                        c.wait ? " wait" : "");
        option_chardev_fini(&c);
    }
    CHECK_STR(got, want);
}

static void
chardevs(void)
{
    check_chardev("stdio,id=c", "c stdio");
    check_chardev("socket,id=c,path=/a,,b,server=on,wait=off",
                  "c {\"type\":\"unix\",\"path\":\"/a,b\"} server");
    check_chardev("socket,id=c,path=/x,server,nowait",
                  "c {\"type\":\"unix\",\"path\":\"/x\"} server");
    check_chardev("socket,id=c,path=/x,path=/y",
                  "c {\"type\":\"unix\",\"path\":\"/y\"}");
    check_chardev("socket,id=c,host=h,port=1,server=on,ipv6=off",
                  "c {\"type\":\"inet\",\"host\":\"h\",\"port\":\"1\","
                  "\"ipv6\":false} server wait");
    check_chardev("socket,fd=3,id=c", "c {\"type\":\"fd\",\"str\":\"3\"}");
    check_chardev("backend=stdio,id=c", "c stdio");
    check_chardev("socket", "chardev: no id specified");
    check_chardev("", "chardev: no id specified");
    check_chardev("id=c", "chardev: \"c\" missing backend");
    check_chardev("foo,id=c", "'foo' is not a valid char driver name");
    check_chardev("socket,id=1x,path=/x",
                  "Parameter 'id' expects an identifier");
    check_chardev("socket,id=c,path=/x,bogus=1", "Invalid parameter 'bogus'");
    check_chardev("socket,id=c,=x", "Invalid parameter ''");
    check_chardev("socket,id=c,path=/x,server=maybe",
                  "Parameter 'server' expects 'on' or 'off'");
    check_chardev("socket,id=c,path=/x,server=on,wait=",
                  "Parameter 'wait' expects 'on' or 'off'");
    check_chardev("socket,id=c,path=/x,wait=off",
                  "'wait' option is incompatible with socket in client "
                  "connect mode");
    check_chardev("socket,id=c,host=a", "chardev: socket: no port given");
    check_chardev("socket,id=c,path=/x,host=h",
                  "None or one of 'path', 'fd' or 'host' option required.");
}

static void
sizes(void)
{
    static const struct {
        const char *text;
        int64_t want; /* negative: an error */
    } s[] = {
        {"0", 0},          {"512", 512},        {"1k", 1024},
        {"1K", 1024},      {"64M", 64 << 20},   {"1.5k", 1536},
        {"0.5G", 1 << 29}, {"0x10", 16},        {"7E", 7LL << 60},
        {"1B", 1},         {"8E", -ERANGE},     {"16E", -ERANGE},
        {"", -EINVAL},     {"K", -EINVAL},      {"-1", -EINVAL},
        {" 1", -EINVAL},   {"1Q", -EINVAL},     {"1KB", -EINVAL},
        {"1.5", -EINVAL},  {"1.", -EINVAL},     {"0x", -EINVAL},
        {"0x1K", -EINVAL}, {"1.5.5k", -EINVAL},
        {"99999999999999999999", -ERANGE},
        {"9223372036854775807", INT64_MAX},
        {"9223372036854775808", -ERANGE},
        {"0.1k", 102},     {"7.9999999999999999999999E", INT64_MAX},
    };

    for (size_t i = 0; i < ARRAY_LEN(s); i++) {
        int64_t got = -1;
        int r = number_parse_size(s[i].text, &got);

        CHECK_INT(r < 0 ? r : got, s[i].want);
    }
}

static void
typed_sizes(void)
{
    const struct schema_type *type = &schema_type_blockdev_create_options;
    auto_err err = ERR_INIT;
    json_t *json = NULL;

    CHECK_INT(keyval_decode("file,filename=x,size=1.5k", "driver", type, &json,
                            &err), 0);
    CHECK_INT(json_integer_value(json_object_get(json, "size")), 1536);
    json_decref(json);
    CHECK(keyval_decode("file,filename=x,size=1Q", "driver", type, &json,
                        &err) < 0);
    CHECK_STR(err.msg, "Parameter 'size' expects size");
}

int
main(void)
{
    tap_run("keyval syntax", syntax);
    tap_run("keyval errors", syntax_errors);
    tap_run("limits of keys", limits_of_keys);
    tap_run("--blockdev", blockdev);
    tap_run("--export, --nbd-server and --object", exports_and_servers);
    tap_run("forms of addresses", addresses);
    tap_run("--monitor", monitors);
    tap_run("--chardev", chardevs);
    tap_run("sizes", sizes);
    tap_run("sizes by type", typed_sizes);
    return tap_done();
}
