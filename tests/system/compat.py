# SPDX-License-Identifier: BSD-3-Clause
"""The command line and the errors, compared with qemu-storage-daemon.

compat.py SLUICED
"""
import os
import re
import sys

from harness import QSD, Daemon, Process, QmpError, connect, main, need, run

PEER_ATTEMPTS = 3
LOST = ("JSON parse error", "Expecting capabilities negotiation")

SLUICED = os.path.abspath(sys.argv[1])

need("qemu-storage-daemon", "qemu-img", "qemu-io", "nbdkit")

# Invocations that end by themselves, with an error.  What follows the
# program's name must be the same, and so must the exit code.
BAD_COMMAND_LINES = [
    ["foo"],
    ["--nosuch"],
    ["--blockdev"],
    ["--blockdev", "foo"],
    ["--blockdev", "driver=file,node-name=x,filename=nope"],
    ["--blockdev=driver=file,node-name=x,filename=nope"],
    ["--blockdev", "file,node-name=x,filename=disk.raw,bogus=1"],
    ["--blockdev", "file,filename=disk.raw"],
    ["--blockdev", "file,node-name=1x,filename=disk.raw"],
    ["--blockdev", "raw,node-name=x,file=nope"],
    ["--blockdev", "null-co,node-name=x,size=1M"],
    ["--blockdev", '{"driver": "null-co", "node-name": 1}'],
    ["--export", "foo"],
    ["--export", "nbd,id=e,node-name=zz"],
    ["--blockdev", "null-co,node-name=n", "--export",
     "nbd,id=e,node-name=n"],
    ["--nbd-server", "addr.type=unix,addr.path=/nonexist/y"],
    ["--nbd-server", "addr.type=unix,addr.path=n.sock",
     "--nbd-server", "addr.type=unix,addr.path=m.sock"],
    ["--monitor", "zz"],
    ["--chardev", "foo"],
    ["--chardev", "socket,id=c,path=/nonexist/p,server=on,wait=off"],
    ["--chardev", "stdio,id=c", "--chardev", "stdio,id=d"],
    ["--chardev", "socket,id=c,path=c.sock,server=on,wait=off",
     "--monitor", "c", "--monitor", "c"],
    ["--object", "foo,id=1"],
    ["--object", "iothread"],
    ["--object", "iothread,id=i", "--object", "iothread,id=i"],
    ["--object", "throttle-group,id=t,limits.iops-total=-1"],
    ["--object", "throttle-group,id=t,limits.foo=1"],
    ["--object", "throttle-group,id=t,limits=1"],
    ["--pidfile", "/nonexist/x"],
]

# Invocations that must start in both, and end at SIGTERM with code 0.
GOOD_COMMAND_LINES = [
    ["--blockdev", "driver=file,node-name=f,filename=disk.raw",
     "--blockdev", "raw,node-name=r,file=f",
     "--nbd-server", "addr.type=unix,addr.path=n.sock",
     "--export", "nbd,id=e,node-name=r,name=disk,writable=on"],
    ["--blockdev", "qcow2,node-name=q,file.driver=file,"
     "file.filename=disk.qcow2,discard=unmap",
     "--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=0",
     "--export", "type=nbd,id=e,node-name=q"],
    ["--blockdev", '{"driver": "qcow2", "node-name": "q", "file": '
     '{"driver": "file", "filename": "disk.qcow2"}, "backing": null}'],
    ["--object", "iothread,id=t", "--blockdev",
     "null-co,node-name=n,size=1048576,read-zeroes=on",
     "--nbd-server", "addr.type=unix,addr.path=n.sock,max-connections=5",
     "--export", "nbd,id=e,node-name=n,iothread=t"],
]

GOOD_COMMAND_LINES += [
    ["--object", "throttle-group,id=t,limits.iops-total=100,"
     "limits.iops-total-max=200,x-bps-total=1000000",
     "--blockdev", "null-co,node-name=n,size=1048576",
     "--blockdev", "throttle,node-name=th,throttle-group=t,file=n",
     "--blockdev", "throttle,node-name=t2,throttle-group=t,"
     "file.driver=null-co,file.size=512"],
]

# In order, in one session each; name, arguments.
MIB = 1 << 20
N = {"driver": "null-co", "size": MIB}


def qcow2(name, filename, **more):
    return ("blockdev-add", {"driver": "qcow2", "node-name": name, "file": {
        "driver": "file", "filename": filename}, **more})


COMMANDS = [
    ("blockdev-add", {"driver": "qcow2", "node-name": "a"}),
    ("blockdev-add", {"driver": "file", "filename": "nope",
                      "node-name": "x"}),
    ("blockdev-add", {"driver": "file", "filename": "disk.raw"}),
    ("blockdev-add", {**N, "node-name": "1x"}),
    ("blockdev-add", {**N, "node-name": "x" * 32}),
    ("blockdev-add", {"driver": "qcow2", "file": "nope", "node-name": "x"}),
    ("blockdev-add", {"driver": "foo", "node-name": "x"}),
    ("blockdev-add", {"driver": "file", "filename": 1, "node-name": "x"}),
    ("blockdev-add", {**N, "node-name": "x", "bogus": True}),
    ("blockdev-add", {**N, "node-name": "n"}),
    ("blockdev-add", {**N, "node-name": "n"}),
    ("blockdev-del", {"node-name": "zz"}),
    ("blockdev-del", {}),
    ("blockdev-add", {"driver": "file", "filename": "over.qcow2",
                      "node-name": "of"}),
    ("blockdev-add", {"driver": "qcow2", "file": "of", "node-name": "over",
                      "backing": None}),
    ("blockdev-del", {"node-name": "of"}),
    qcow2("top", "top.qcow2"),
    ("blockdev-snapshot", {"node": "zz", "overlay": "over"}),
    ("blockdev-snapshot", {"node": "n", "overlay": "zz"}),
    ("blockdev-snapshot", {"node": "over", "overlay": "top"}),
    ("blockdev-snapshot", {"node": "n", "overlay": "of"}),
    ("nbd-server-stop", {}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "n"}),
    ("block-export-del", {"id": "none"}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {
        "path": "/nonexist/x"}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {
        "path": "x.sock"}}, "tls-creds": "zz"}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {
        "path": "n.sock"}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {
        "path": "n.sock"}}}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "zz"}),
    ("block-export-add", {"type": "nbd", "id": "1e", "node-name": "n"}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "n",
                          "name": "x" * 5000}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "n",
                          "description": "x" * 5000}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "n",
                          "writable": True}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "n"}),
    ("block-export-add", {"type": "nbd", "id": "e2", "node-name": "n"}),
    ("block-export-add", {"type": "nbd", "id": "e2", "node-name": "n",
                          "name": "q", "bitmaps": ["bm"]}),
    ("block-export-add", {"type": "nbd", "id": "e2", "node-name": "n",
                          "name": "q", "iothread": "nope"}),
    ("blockdev-add", {"driver": "raw", "node-name": "ro", "read-only": True,
                      "file": {"driver": "file", "filename": "disk.raw"}}),
    ("block-export-add", {"type": "nbd", "id": "e3", "node-name": "ro",
                          "writable": True}),
    ("blockdev-del", {"node-name": "n"}),
    ("block-export-add", {"type": "nbd", "id": "t", "node-name": "top",
                          "writable": True}),
    ("blockdev-snapshot", {"node": "top", "overlay": "over"}),
    ("blockdev-snapshot", {"node": "top", "overlay": "over"}),
    ("blockdev-del", {"node-name": "top"}),
    ("block-export-add", {"type": "nbd", "id": "b", "node-name": "top",
                          "name": "b", "writable": True}),
    ("query-block-exports", {}),
    ("block-export-del", {"id": "t", "mode": "soft"}),
    ("block-export-del", {"id": "t"}),
    *[(f"job-{verb}", {"id": "zz"}) for verb in
      ("pause", "resume", "cancel", "complete", "finalize", "dismiss")],
    *[(f"block-job-{verb}", {"device": "zz"}) for verb in
      ("pause", "resume", "cancel", "complete")],
    ("block-job-finalize", {"id": "zz"}),
    ("block-job-dismiss", {"id": "zz"}),
    ("block-job-set-speed", {"device": "zz", "speed": -1}),
    ("block-stream", {"device": "zz"}),
    ("block-stream", {"device": "over"}),
    ("block-stream", {"device": "over", "job-id": "!"}),
    *[("block-stream", {"device": "over", "job-id": "j", **bad}) for bad in (
        {"base": "x", "base-node": "top"},
        {"base": "x", "bottom": "top"},
        {"base-node": "top", "bottom": "top"},
        {"base": "x"},
        {"base-node": "zz"},
        {"base-node": "ro"},
        {"base-node": "over"},
        {"bottom": "zz"},
        {"bottom": "ro"},
        {"speed": -1},
        {"on-error": "foo"},
        {"backing-file": "x"},
        {"base": "zz", "backing-file": "x"},
        {"device": 1},
    )],
    ("query-jobs", {}),
    ("query-block-jobs", {}),
    ("blockdev-create", {"job-id": "!", "options": {
        "driver": "file", "filename": "new.raw", "size": 65536}}),
    ("blockdev-create", {"job-id": "c", "options": {
        "driver": "file", "filename": "/nonexist/new", "size": 65536}}),
    ("@wait", "concluded"),
    ("query-jobs", {}),
    ("job-dismiss", {"id": "c"}),
    ("@wait", "null"),
    ("blockdev-create", {"job-id": "c", "options": {
        "driver": "file", "filename": "new.raw", "size": 65536}}),
    ("@wait", "concluded"),
    ("query-jobs", {}),
    ("query-block-jobs", {}),
    ("job-pause", {"id": "c"}),
    ("block-job-dismiss", {"id": "c"}),
    ("job-dismiss", {"id": "c"}),
    ("@wait", "null"),
    ("blockdev-create", {"job-id": "c", "options": {
        "driver": "qcow2", "file": "zz", "size": 65536}}),
    ("@wait", "concluded"),
    ("query-jobs", {}),
    ("job-dismiss", {"id": "c"}),
    ("@wait", "null"),
    ("blockdev-add", {"driver": "file", "node-name": "new",
                      "filename": "new.raw"}),
    ("blockdev-create", {"job-id": "c", "options": {
        "driver": "qcow2", "file": "new", "size": 1000}}),
    ("@wait", "concluded"),
    ("query-jobs", {}),
    ("job-dismiss", {"id": "c"}),
    ("@wait", "null"),
    ("blockdev-del", {"node-name": "new"}),
    ("blockdev-create", {"job-id": "c", "options": {
        "driver": "null-co", "size": 1}}),
    ("nosuch", {}),
    ("quit", {"bogus": 1}),
    ("nbd-server-stop", {}),
    ("query-block-exports", {}),
]

def sync(node, overlay):
    return {"type": "blockdev-snapshot-sync", "data": {
        "node-name": node, "snapshot-node-name": overlay,
        "snapshot-file": overlay + ".qcow2"}}


# Objects and limits; what qom-list lists has no order.
LIMITS = [
    {"iops-total": 100, "iops-read": 10},
    {"bps-total": 100, "bps-total-max": 200, "bps-write": 0,
     "bps-write-max": 300},
    {"iops-total": 100, "iops-total-max": 10},
    {"iops-total": 100, "iops-total-max-length": 10},
    {"iops-total-max": 10},
    {"iops-total": 100, "iops-total-max-length": 0},
    {"iops-total": 100, "iops-total-max-length": 1 << 33},
    {"iops-total": 100, "iops-total-max": 1 << 40,
     "iops-total-max-length": 1 << 20},
    {"iops-total": -1},
    {"iops-total": 1 << 60},
    {"iops-size": 4096},
    {"foo": 1},
    {"iops-total": "1"},
    5,
    {"iops-total": 0, "bps-read": 10, "bps-read-max": 20, "bps-write": 1,
     "bps-read-max-length": 3, "iops-write": 7, "iops-size": 512},
    {"bps-write": 0},
    {},
]
GROUP = {"qom-type": "throttle-group"}


def qom(path, name, *value):
    return ("qom-set" if value else "qom-get", dict(zip(
        ("path", "property", "value"), (path, name, *value))))


OBJECTS = [
    ("object-add", {"qom-type": "foo", "id": "t"}),
    ("object-add", {"qom-type": "iothread"}),
    ("object-add", {"qom-type": "iothread", "id": "1"}),
    ("object-add", {"qom-type": "iothread", "id": "io"}),
    ("object-add", {**GROUP, "id": "io"}),
    *[("object-add", {**GROUP, "id": f"t{i}", "limits": limits})
      for i, limits in enumerate(LIMITS)],
    ("object-add", {**GROUP, "id": "x", "x-iops-total": 10,
                    "x-iops-total-max": 20}),
    ("object-add", {**GROUP, "id": "y", "x-iops-total": 10, "x-bps-total": 5,
                    "limits": {"iops-total": 7}}),
    ("object-add", {**GROUP, "id": "z", "x-iops-total": -1}),
    ("object-add", {**GROUP, "id": "g"}),
    *[("qom-list", {"path": path}) for path in (
        "/objects", "/objects/g", "objects/g", "g", "/nope", "nope",
        "/objects/nope", "/objects/g/x")],
    *[qom(path, "limits") for path in (
        "/objects/x", "y", "/objects/t14", "/objects/t16", "/objects/io",
        "/objects/nope", "/objects", "/")],
    *[qom("/objects/y", name) for name in (
        "type", "x-iops-total", "x-foo", "foo")],
    qom("/objects", "y"), qom("/objects", "type"), qom("/", "type"),
    *[qom("/objects/g", "limits", limits) for limits in LIMITS],
    qom("/objects/g", "limits"),
    qom("/objects/g", "x-iops-total", 1), qom("/objects/g", "foo", 1),
    qom("/objects/nope", "limits", {}), qom("/objects/g", "type", "x"),
    ("blockdev-add", {**N, "node-name": "n"}),
    ("blockdev-add", {"driver": "throttle", "node-name": "t", "file": "n"}),
    ("blockdev-add", {"driver": "throttle", "node-name": "t", "file": "n",
                      "throttle-group": "nope"}),
    ("blockdev-add", {"driver": "throttle", "node-name": "t", "file": "n",
                      "throttle-group": "io"}),
    ("blockdev-add", {"driver": "throttle", "node-name": "t",
                      "throttle-group": "x"}),
    ("blockdev-add", {"driver": "throttle", "node-name": "t", "file": "n",
                      "throttle-group": "x"}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {
        "path": "n.sock"}}}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "t",
                          "iothread": "x"}),
    ("object-del", {"id": "x"}),
    ("object-del", {"id": "nope"}),
    ("object-del", {"id": "io"}),
    ("object-del", {"id": "io"}),
    ("blockdev-del", {"node-name": "t"}),
    ("object-del", {"id": "x"}),
    ("qom-list", {"path": "/objects"}),
]

ABORT = {"type": "abort", "data": {}}

# What is done around the live operations, on a disk that is exported.
SYNC = {"node-name": "a", "snapshot-file": "s.qcow2",
        "snapshot-node-name": "s"}
AROUND = [
    qcow2("a", "top.qcow2"),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {
        "path": "n.sock"}}}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "a",
                          "writable": True}),
    *[("blockdev-snapshot-sync", bad) for bad in (
        {"snapshot-file": "s.qcow2"},
        {"device": "a", "snapshot-file": "s.qcow2"},
        {"node-name": "zz", "snapshot-file": "s.qcow2"},
        {"node-name": "a", "snapshot-file": "s.qcow2"},
        {"node-name": "a", "snapshot-node-name": "s"},
        {**SYNC, "snapshot-node-name": "a"},
        {**SYNC, "snapshot-node-name": "1"},
        {**SYNC, "format": "foo"},
        {**SYNC, "format": "raw"},
        {**SYNC, "mode": "foo"},
        {**SYNC, "snapshot-file": "/nonexist/s"},
        {**SYNC, "snapshot-file": "top.qcow2"},
        {**SYNC, "snapshot-file": "nope", "mode": "existing"},
    )],
    ("blockdev-snapshot-sync", SYNC),
    ("query-block-exports", {}),
    ("blockdev-snapshot-sync", {**SYNC, "snapshot-node-name": "t",
                                "snapshot-file": "t.qcow2"}),
    ("blockdev-snapshot-sync", {"node-name": "s", "snapshot-node-name": "t",
                                "snapshot-file": "over.qcow2",
                                "mode": "existing"}),
    ("blockdev-add", {"driver": "raw", "node-name": "r", "file": {
        "driver": "file", "filename": "disk.raw"}}),
    *[("change-backing-file", dict(zip(
        ("device", "image-node-name", "backing-file"), args))) for args in (
        ("zz", "s", "x"), ("a", "s", "x"), ("s", "zz", "x"),
        ("r", "r", "x"), ("s", "r", "x"), ("r", "s", "x"),
        ("s", "s", "./top.qcow2"), ("s", "a", "./disk.qcow2"))],
    *[("transaction", args) for args in (
        {}, {"actions": []}, {"actions": [ABORT]},
        {"actions": [{"type": "abort"}]},
        {"actions": [{"type": "foo", "data": {}}]},
        {"actions": [ABORT], "properties": {"completion-mode": "foo"}},
        {"actions": [sync("zz", "x"), ABORT]},
        {"actions": [sync("s", "x"), ABORT]},
        {"actions": [sync("s", "x"), sync("s", "y")]},
        {"actions": [sync("s", "x")],
         "properties": {"completion-mode": "grouped"}},
        {"actions": [sync("s", "x"), {"type": "blockdev-snapshot", "data": {
            "node": "x", "overlay": "r"}}]},
        {"actions": [sync("s", "x"), sync("x", "y")],
         "properties": {"completion-mode": "individual"}},
        {"actions": [sync("s", "z")]})],
    ("query-block-exports", {}),
    *[("block_resize", args) for args in (
        {"size": MIB},
        {"device": "r", "size": MIB},
        {"node-name": "zz", "size": MIB},
        {"node-name": "r", "size": -1},
        {"node-name": "r", "size": 1.5},
        {"node-name": "r", "size": 2 * MIB},
        {"node-name": "r", "size": MIB + 5},
        {"node-name": "r", "size": 512})],
    qcow2("o", "more.qcow2"),
    ("block_resize", {"node-name": "o", "size": 2 * MIB}),
    ("block_resize", {"node-name": "o", "size": 2 * MIB + 5}),
    ("blockdev-del", {"node-name": "s"}),
    ("blockdev-del", {"node-name": "t"}),
    ("query-block-exports", {}),
]


def prepare():
    run("qemu-img", "create", "-q", "-f", "raw", "disk.raw", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "over.qcow2", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "more.qcow2", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F",
        "qcow2", "top.qcow2")


def in_folder(name, fn, *args):
    """Sockets and locks of the two programs must not meet."""
    os.mkdir(name)
    os.chdir(name)
    try:
        prepare()
        return fn(*args)
    finally:
        os.chdir("..")


def peers(name, fn, *args):
    """What the peer does.  It can greet its first client twice and lose what
    came in between, or drop the connection: then it is asked again."""
    for attempt in range(PEER_ATTEMPTS):
        try:
            answer = in_folder(f"{name}.{attempt}", fn, QSD, *args)
            assert not any(lost in str(answer) for lost in LOST), answer
            return answer
        except (AssertionError, EOFError, OSError, QmpError) as e:
            print(f"# attempt {attempt} with the peer: {e!r}")
    raise RuntimeError("the peer did not do it")


def fail_with(program, args):
    code, text = run(program, *args, check=False)
    # The parser of options names the program in full, all others do not.
    text = text.replace(program, "PROGRAM")
    return code, text.replace(os.path.basename(program), "PROGRAM")


def bad_command_lines_fail_alike():
    different = []
    for i, args in enumerate(BAD_COMMAND_LINES):
        theirs = peers(f"q{i}", fail_with, args)
        ours = in_folder(f"s{i}", fail_with, SLUICED, args)
        if theirs != ours:
            different.append((args, theirs, ours))
    for d in different:
        print("#", d)
    assert not different


def start_and_stop(program, args):
    with Daemon(program, *args, "--pidfile", "pid") as d:
        d.qmp().cmd("query-version")
        assert open("pid").read() == f"{d.pid}\n"
        assert d.stop() == 0, d.errors()
    assert not os.path.exists("pid")


def good_command_lines_work_in_both():
    for i, args in enumerate(GOOD_COMMAND_LINES):
        peers(f"q{i}", start_and_stop, args)
        in_folder(f"s{i}", start_and_stop, SLUICED, args)


def told(events):
    """What happened to jobs that began. QEMU makes a job before it refuses
    one, and says so: created, then null; and commands that it refuses make a
    ready one stand by for a moment."""
    steps = [(e["event"], e["data"].get("status"), e["data"].get("id"))
             for e in events]
    drop = {n for i, step in enumerate(steps) for n in (i, i + 1)
            for blip in (("created", "null"), ("standby", "ready"))
            if step[1] == blip[0]
            and steps[i + 1:i + 2] == [(step[0], blip[1], step[2])]}
    return [step for n, step in enumerate(steps) if n not in drop]


def converse(program, commands):
    answers = []
    with Daemon(program) as d:
        q = d.qmp()
        for name, args in commands:
            if name == "@wait":
                q.wait_event("JOB_STATUS_CHANGE", status=args)
            else:
                answer = q.raw(name, args)
                if name == "qom-list" and "return" in answer:
                    answer["return"].sort(key=lambda p: p["name"])
                answers.append((name, str(args)[:100], answer))
        answers.append(told(q.history))
    return answers


def compare(commands):
    theirs = peers("q", converse, commands)
    ours = in_folder("s", converse, SLUICED, commands)
    different = [(a, b) for a, b in zip(theirs, ours) if a != b]
    for a, b in different:
        print("# qemu  ", str(a)[:300])
        print("# sluice", str(b)[:300])
    assert not different and len(theirs) == len(ours)


# Edges of a graph, by names; exports have none in QEMU, and what parents
# let others do is coarser here.
def draw(program):
    with Daemon(program) as d:
        q = d.qmp()
        q.cmd("blockdev-add", **qcow2("a", "top.qcow2")[1])
        q.cmd("nbd-server-start", addr={"type": "unix", "data": {
            "path": "n.sock"}})
        q.cmd("block-export-add", type="nbd", id="e", node_name="a",
              writable=True)
        graph = q.cmd("x-debug-query-block-graph")
        drivers = {n["node-name"]: n["drv"] + n["image"]["filename"]
                   for n in q.cmd("query-named-block-nodes")}
    names = {n["id"]: drivers.get(n["name"], n["type"])
             for n in graph["nodes"]}
    return sorted((names[e["parent"]], e["name"], names[e["child"]],
                   sorted(e["perm"]), "write" in e["shared-perm"])
                  for e in graph["edges"] if e["name"] != "backing")


def the_graph_is_qemus():
    theirs, ours = peers("q", draw), in_folder("s", draw, SLUICED)
    assert theirs == ours, (theirs, ours)


def errors_are_qemus():
    compare(COMMANDS)


def objects_are_qemus():
    compare(OBJECTS)


def errors_around_live_operations_are_qemus():
    compare(AROUND)


# Jobs from their start to their end: every event, field by field.

CHAIN = [
    ("blockdev-add", {"driver": "qcow2", "node-name": n, "file": {
        "driver": "file", "filename": n + ".qcow2"},
        "backing": b, "read-only": n != "top"})
    for n, b in (("disk", None), ("mid", "disk"), ("top", "mid"))]
COPY = [
    ("blockdev-add", {"driver": "qcow2", "node-name": "copy", "file": {
        "driver": "file", "filename": "over.qcow2"}})]
MIRROR = ("blockdev-mirror", {"job-id": "j", "device": "top", "target": "copy",
                              "sync": "full"})
# Its filter shows the disk; QEMU skips it.
THROTTLED = [
    ("object-add", {"qom-type": "throttle-group", "id": "g"}),
    ("blockdev-add", {"driver": "throttle", "node-name": "th",
                      "throttle-group": "g", "file": "top"})]
STAYS = {"auto-finalize": False, "auto-dismiss": False}



def wide():
    """Images that take a job with a limit for ever."""
    for name, backing, size in (("wide", None, 8), ("wtop", "wide", 4),
                                ("wtop2", "wtop", 4), ("wcopy", None, 0)):
        below = ["-b", f"{backing}.qcow2", "-F", "qcow2"] if backing else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *below,
            f"{name}.qcow2", "8M")
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {size}M",
            f"{name}.qcow2")


WIDE = [
    ("blockdev-add", {"driver": "qcow2", "node-name": n, "backing": b,
                      "file": {"driver": "file", "filename": n + ".qcow2"}})
    for n, b in (("wide", None), ("wtop", "wide"), ("wtop2", "wtop"),
                 ("wcopy", None))]
SLOW = [
    ("blockdev-mirror", {"device": "wtop2", "target": "wcopy", "sync": "full"},
     ["@ready", ("job-cancel", {"id": "j"}), "@null"]),
    ("block-stream", {"device": "wtop"}, ["@null"]),
    ("block-commit", {"device": "wtop2", "top-node": "wtop"}, ["@null"]),
    ("block-commit", {"device": "wtop2"},
     ["@ready", ("block-job-cancel", {"device": "j"}), "@null"])]


def failing(plugin):
    """An NBD server that fails as long as the file "bad" is there."""
    def start():
        open("bad", "w").close()
        run("qemu-img", "create", "-q", "-f", "qcow2", "over.qcow2", "64k")
        run("qemu-img", "create", "-q", "-f", "qcow2", "more.qcow2", "64k")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "more.qcow2")
        server = Process("nbdkit", "-f", "-U", "e.sock", "--filter=error",
                         plugin, "64k", "error=EIO", "error-file=bad",
                         "error-pread-rate=100%", "error-pwrite-rate=100%")
        server.until(lambda: connect("e.sock").close(), FileNotFoundError,
                     ConnectionRefusedError)
    return start


def heal():
    os.unlink("bad")


SERVER = {"driver": "nbd", "node-name": "n", "server": {
    "type": "unix", "path": "e.sock"}}
OVER_SERVER = [
    ("blockdev-add", {**SERVER, "read-only": True}),
    ("blockdev-add", {"driver": "qcow2", "node-name": "over", "backing": "n",
                      "file": {"driver": "file", "filename": "over.qcow2"}})]
TO_SERVER = [("blockdev-add", SERVER), qcow2("small", "more.qcow2")]
POLICIES = [
    ("report", ["@null"]),
    ("stop", ["@paused", ("query-block-jobs", {}), ("job-cancel", {
        "id": "j"}), "@null"]),
    ("stop", ["@paused", ("query-block-jobs", {}), heal, ("job-resume", {
        "id": "j"}), "@null"]),
    ("ignore", ["@null"])]

TRACES = [
    [("block-commit", {"job-id": "j", "device": "top"}), "@ready",
     ("job-complete", {"id": "j"}), "@null"],
    [("block-commit", {"job-id": "j", "device": "top"}), "@ready",
     ("block-job-cancel", {"device": "j"}), "@null"],
    [("block-commit", {"job-id": "j", "device": "top"}), "@ready",
     ("block-job-cancel", {"device": "j", "force": True}), "@null"],
    [("block-commit", {"job-id": "j", "device": "top", **STAYS}), "@ready",
     ("job-pause", {"id": "j"}), "@standby", ("job-resume", {"id": "j"}),
     "@ready", ("job-complete", {"id": "j"}), "@pending",
     ("job-finalize", {"id": "j"}), "@concluded",
     ("job-dismiss", {"id": "j"}), "@null"],
    [("block-commit", {"job-id": "j", "device": "top", "top-node": "mid"}),
     "@null"],
    [("block-commit", {"job-id": "j", "device": "top", "top-node": "mid",
                       **STAYS}), "@pending", ("job-finalize", {"id": "j"}),
     "@concluded", ("job-dismiss", {"id": "j"}), "@null"],
    [("block-stream", {"job-id": "j", "device": "mid"}), "@null"],
    [*COPY, MIRROR, "@ready", ("job-complete", {"id": "j"}), "@null"],
    [*COPY, MIRROR, "@ready", ("block-job-cancel", {"device": "j"}), "@null"],
    [*COPY, MIRROR, "@ready", ("job-cancel", {"id": "j"}), "@null"],
    [*COPY, MIRROR, "@ready",
     ("block-job-cancel", {"device": "j", "force": True}), "@null"],
    [*COPY, (MIRROR[0], {**MIRROR[1], **STAYS}), "@ready",
     ("job-pause", {"id": "j"}), "@standby", ("job-resume", {"id": "j"}),
     "@ready", ("job-complete", {"id": "j"}), "@pending",
     ("job-finalize", {"id": "j"}), "@concluded",
     ("job-dismiss", {"id": "j"}), "@null"],
    [*COPY, (MIRROR[0], {**MIRROR[1], "copy-mode": "write-blocking"}),
     "@ready", ("job-complete", {"id": "j"}), "@null"],
    *[[("drive-mirror", {"job-id": "j", "device": "top", "sync": sync,
                         "target": "new.qcow2"}), "@ready",
       (end, {{"job-complete": "id"}.get(end, "device"): "j"}), "@null"]
      for sync in ("full", "top")
      for end in ("job-complete", "block-job-cancel")],
    *[[*THROTTLED, ("block-commit", {"job-id": "j", "device": "th", **top}),
       "@ready", ("job-complete", {"id": "j"}), "@null"]
      for top in ({}, {"top-node": "top"}, {"top-node": "th"})],
    *[[*THROTTLED, ("block-stream", {"job-id": "j", "device": d}), "@null"]
      for d in ("th", "top")],
    [*THROTTLED, ("block-commit", {"job-id": "j", "device": "th",
                                   "top-node": "mid"}), "@null"],
    # What is asked of a paused job is done when it goes on.
    [*COPY, MIRROR, "@ready", ("job-pause", {"id": "j"}), "@standby",
     ("job-complete", {"id": "j"}), ("job-resume", {"id": "j"}), "@null"],
    [("block-commit", {"job-id": "j", "device": "top"}), "@ready",
     ("block-job-pause", {"device": "j"}), "@standby",
     ("block-job-complete", {"device": "j"}),
     ("block-job-resume", {"device": "j"}), "@null"],
    # Of a job that is far from its end; one that was made to be.
    *[[wide, *WIDE, (name, {"job-id": "j", "speed": 1, **args}), "@running",
       *then] for name, args, end in SLOW for then in (
           [("query-block-jobs", {}), ("job-cancel", {"id": "j"}), "@null"],
           [("block-job-cancel", {"device": "j"}), "@null"],
           [("job-pause", {"id": "j"}), "@paused", ("query-block-jobs", {}),
            ("block-job-cancel", {"device": "j", "force": True}), "@null"],
           [("block-job-pause", {"device": "j"}), "@paused",
            ("block-job-resume", {"device": "j"}), "@running",
            ("block-job-set-speed", {"device": "j", "speed": 0}), *end])],
    # A source that cannot be read, a target that cannot be written, and what
    # the job was told to do about that.
    *[[failing("pattern"), *OVER_SERVER, ("block-stream", {
        "job-id": "j", "device": "over", "on-error": policy}), *then]
      for policy, then in POLICIES],
    *[[failing("memory"), *TO_SERVER, ("blockdev-mirror", {
        "job-id": "j", "device": "small", "target": "n", "sync": "full",
        "on-target-error": policy}), *then]
      for policy, then in [*POLICIES[:2], ("stop", [
          "@paused", ("query-block-jobs", {}), heal, ("job-resume", {
              "id": "j"}), "@ready", ("job-complete", {"id": "j"}), "@null"])]],
    # Not in every qemu-storage-daemon; it changes no event.
    [*COPY, (MIRROR[0], {**MIRROR[1], "copy-mode": "background"}), "@ready",
     ("block-job-change", {"id": "j", "type": "mirror",
                           "copy-mode": "write-blocking"}),
     ("job-complete", {"id": "j"}), "@null"],
]

COMMIT = {"job-id": "j", "device": "top"}
MIRRORS = {"job-id": "j", "device": "top", "target": "copy", "sync": "full"}
REFUSED = [
    *CHAIN, *COPY,
    *[("block-commit", bad) for bad in (
        {}, {"device": "zz"}, {"job-id": "j", "device": "zz"},
        {"device": "top"},
        {**COMMIT, "job-id": "1"},
        {**COMMIT, "speed": -1},
        {**COMMIT, "top-node": "zz"}, {**COMMIT, "base-node": "zz"},
        {**COMMIT, "top-node": "copy"}, {**COMMIT, "base-node": "copy"},
        {**COMMIT, "top": "zz"}, {**COMMIT, "base": "zz"},
        {**COMMIT, "top": "zz", "top-node": "mid"},
        {**COMMIT, "base": "zz", "base-node": "mid"},
        {**COMMIT, "base-node": "top"},
        {**COMMIT, "top-node": "disk", "base-node": "mid"},
        {**COMMIT, "top-node": "disk"},
        {**COMMIT, "top-node": "disk", "base-node": "disk"},
        {**COMMIT, "backing-file": "x"},
        {**COMMIT, "device": "disk"},
        {**COMMIT, "on-error": "foo"},
    )],
    *[("blockdev-mirror", bad) for bad in (
        {}, {"job-id": "j", "device": "top", "target": "copy"},
        {**MIRRORS, "device": "zz"}, {**MIRRORS, "target": "zz"},
        {**MIRRORS, "target": "top"}, {**MIRRORS, "job-id": "1"},
        {**MIRRORS, "speed": -1}, {**MIRRORS, "granularity": 1000},
        {**MIRRORS, "granularity": 128 << 20}, {**MIRRORS, "buf-size": -1},
        {**MIRRORS, "replaces": "zz"}, {**MIRRORS, "replaces": "copy"},
        {**MIRRORS, "sync": "foo"}, {**MIRRORS, "copy-mode": "foo"},
    )],
    *[(name, {**args, "filter-node-name": bad})
      for name, args in (("block-commit", COMMIT),
                         ("block-commit", {**COMMIT, "top-node": "mid"}),
                         ("block-stream", COMMIT),
                         ("blockdev-mirror", MIRRORS))
      for bad in ("1x", "", "mid", "x" * 32)],
    *[("blockdev-reopen", bad) for bad in (
        {}, {"options": [{}]},
        {"options": [{"driver": "qcow2"}]},
        {"options": [{"driver": "qcow2", "file": "x"}]},
        {"options": [{"driver": "qcow2", "node-name": "zz", "file": "x"}]},
        {"options": [{"driver": "foo", "node-name": "copy", "file": "x"}]},
    )],
    *[("blockdev-reopen", {"options": [{
        "driver": "qcow2", "node-name": node, **bad, "file": {
            "driver": "file", "filename": f"{node}.qcow2",
            **bad.get("file", {})}}]}) for node, bad in (
        ("top", {}), ("mid", {"read-only": True}),
        ("top", {"backing": "zz"}), ("top", {"backing": "top"}),
        ("disk", {"backing": "top"}),
        ("top", {"backing": {"driver": "null-co"}}),
        ("top", {"backing": "mid", "file": {"filename": "x"}}),
        ("top", {"backing": "mid", "file": {"locking": "off"}}),
        ("top", {"backing": "mid", "detect-zeroes": "unmap"}),
        ("top", {"backing": None}), ("top", {}), ("top", {"backing": "mid"}),
        ("disk", {"read-only": True}))],
    qcow2("spare", "more.qcow2"),
    ("blockdev-mirror", MIRRORS), ("@wait", "ready"),
    *[("blockdev-del", {"node-name": n}) for n in ("copy", "top", "mid")],
    ("blockdev-mirror", {**MIRRORS, "job-id": "k", "device": "spare"}),
    *[("blockdev-snapshot", {"node": n, "overlay": "spare"})
      for n in ("top", "copy", "mid")],
    ("blockdev-snapshot-sync", {"node-name": "top", "snapshot-file": "x",
                                "snapshot-node-name": "x"}),
    ("job-finalize", {"id": "j"}), ("job-dismiss", {"id": "j"}),
    ("block-job-set-speed", {"device": "j", "speed": -1}),
    ("job-complete", {"id": "zz"}), ("block-job-complete", {"device": "zz"}),
    ("job-complete", {"id": "j"}), ("@wait", "null"),
    ("block-stream", {"job-id": "j", "device": "top",
                      "auto-finalize": False}), ("@wait", "pending"),
    *[("block-stream", {"job-id": "k", "device": n}) for n in ("top", "mid")],
    ("blockdev-del", {"node-name": "top"}),
    ("blockdev-snapshot", {"node": "top", "overlay": "spare"}),
]


FILTERED = [
    *CHAIN, *THROTTLED,
    *[("change-backing-file", {"device": "th", "image-node-name": n,
                               "backing-file": f"./{below}.qcow2"})
      for n, below in (("top", "mid"), ("mid", "disk"), ("disk", "x"))],
    *[("block-commit", {"job-id": "j", "device": "th", **bad}) for bad in (
        {"base-node": "th"}, {"base-node": "top"}, {"base-node": "zz"},
        {"top-node": "top", "base-node": "top"},
        {"top-node": "top", "base-node": "th"},
        {"top-node": "th", "backing-file": "x"},
        {"top-node": "top", "backing-file": "x"},
        {"top-node": "disk"}, {"base": "top.qcow2"}, {"top": "zz"})],
    *[("block-stream", {"job-id": "j", "device": d, **bad})
      for d in ("th", "top") for bad in (
          {"base-node": "th"}, {"base-node": "top"}, {"base": "top.qcow2"},
          {"bottom": "th"}, {"base-node": "zz"}, {"bottom": "zz"})],
    ("block-stream", {"job-id": "j", "device": "th", "base-node": "disk",
                      "auto-finalize": False}), ("@wait", "pending"),
    ("block-stream", {"job-id": "k", "device": "top"}),
    ("job-finalize", {"id": "j"}), ("@wait", "null"),
]


def prepare_chain():
    for name, backing, off in (("mid", "disk", 64), ("top", "mid", 128)):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
            f"{backing}.qcow2", "-F", "qcow2", f"{name}.qcow2", "1M")
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {off}k 64k",
            f"{name}.qcow2")


def comparable(event):
    """QEMU's `len` counts bits of its bitmap, too; our errors say more."""
    if event["event"] == "BLOCK_JOB_CANCELLED":
        del event["len"], event["offset"]
    if "len" in event:
        event["len"] = "all" if event["offset"] == event["len"] else "not all"
        del event["offset"]
    if "error" in event:
        event["error"] = event["error"].split(": ")[-1]
    return event


def events_of(program, commands):
    """The events, and the answers of queries."""
    answers = []
    os.unlink("top.qcow2")
    prepare_chain()
    with Daemon(program) as d:
        q = d.qmp()
        known = [c["name"] for c in q.cmd("query-commands")]
        for step in [*CHAIN, *commands]:
            if callable(step):
                step()
            elif isinstance(step, str):
                q.wait_event("JOB_STATUS_CHANGE", status=step[1:])
            elif program != QSD or step[0] in known:
                answer = q.raw(*step)
                assert "return" in answer, (step, answer)
                answers += answer["return"] or []
        q.cmd("query-jobs")  # what is still to come comes before the answer
        events = [{"event": e["event"], **e["data"]} for e in q.history]
    assert events[-1]["status"] == "null", events
    for a in answers:  # what depends on the moment
        del a["len"], a["offset"], a["busy"]
    return [comparable(e) for e in events] + answers


def event_traces_are_qemus():
    different = 0
    for i, commands in enumerate(TRACES):
        theirs = peers(f"q{i}", events_of, commands)
        ours = in_folder(f"s{i}", events_of, SLUICED, commands)
        for a, b in zip(theirs, ours):
            if "actively-synced" not in a:  # younger than some peers
                b.pop("actively-synced", None)
        if theirs != ours:
            different += 1
            print("#", commands)
            print("# qemu  ", theirs)
            print("# sluice", ours)
    assert not different


def size_error(program):
    """A mirror onto an image of another size: QEMU's job fails at once, ours
    does not begin."""
    errors = []
    with Daemon(program) as d:
        q = d.qmp()
        q.raw(*qcow2("a", "disk.qcow2"))
        for size in ("512k", "2M"):
            run("qemu-img", "create", "-q", "-f", "raw", size, size)
            node = "t" + size
            q.raw("blockdev-add", {"driver": "raw", "node-name": node, "file": {
                "driver": "file", "filename": size}})
            answer = q.raw("blockdev-mirror", {
                "job-id": "j", "device": "a", "target": node, "sync": "full"})
            if "error" in answer:
                errors.append(answer["error"]["desc"])
            else:
                end = q.wait_event("BLOCK_JOB_COMPLETED")["data"]
                q.wait_event("JOB_STATUS_CHANGE", status="null")
                errors.append(end["error"])
            assert os.path.getsize(size) == int(size[:-1]) << (
                10 if size[-1] == "k" else 20)
    return errors


def a_mirror_grows_no_target():
    theirs = peers("q", size_error)
    ours = in_folder("s", size_error, SLUICED)
    assert theirs == ours, (theirs, ours)


def without_holder(step):
    """Ours says which job it is, behind QEMU's text."""
    if isinstance(step, tuple) and "error" in step[2]:
        error = step[2]["error"]
        error["desc"] = re.sub(r"(by block job: \w+) \(job '.*\)$", r"\1",
                               error["desc"])
    return step


def errors_about_a_chain(commands):
    def both(program):
        os.unlink("top.qcow2")
        prepare_chain()
        return [without_holder(s) for s in converse(program, commands)]

    theirs, ours = peers("q", both), in_folder("s", both, SLUICED)
    different = [(a, b) for a, b in zip(theirs, ours) if a != b]
    for a, b in different:
        print("# qemu  ", str(a)[:300])
        print("# sluice", str(b)[:300])
    assert not different and len(theirs) == len(ours)


def errors_of_copies_are_qemus():
    errors_about_a_chain(REFUSED)


def errors_of_a_filtered_disk_are_qemus():
    errors_about_a_chain(FILTERED)


if __name__ == "__main__":
    main([bad_command_lines_fail_alike, good_command_lines_work_in_both,
          errors_are_qemus, objects_are_qemus, errors_around_live_operations_are_qemus,
          the_graph_is_qemus, event_traces_are_qemus,
          errors_of_copies_are_qemus, errors_of_a_filtered_disk_are_qemus,
          a_mirror_grows_no_target])
