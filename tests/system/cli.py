# SPDX-License-Identifier: BSD-3-Clause
"""The command, verb by verb: exit codes, errors, JSON against qemu-img's.

cli.py SLUICED SLUICE
"""
import json
import os
import pty
import select
import signal
import subprocess
import sys

from harness import (DEADLINE, Daemon, Process, Qmp, defer, main, mount,
                     need, run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
(OK, FAILED, USAGE, NOT_FOUND, CONFLICT, NO_SPACE, CANCELLED, NO_DAEMON,
 NOT_PERMITTED, CORRUPT) = 0, 1, 2, 4, 6, 7, 9, 10, 11, 12

need("qemu-img", "qemu-io", "nbdinfo")


def sluice(*args, code=OK):
    """Runs it; an error has a message on stderr and nothing else does."""
    r = subprocess.run([SLUICE, *args], stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=DEADLINE)
    assert r.returncode == code, (args, r)
    is_error = bool(code) and (args[0], code) not in RESULTS
    assert bool(r.stderr) == is_error, (args, r)
    if is_error:
        assert not r.stdout, (args, r)
    return r.stderr if is_error else r.stdout


# Exit codes that are a result, not an error.
RESULTS = {("check", 2), ("check", 3), ("compare", 1)}


def result(*args, code=OK):
    """The last of the JSON lines; errors: the one on stderr."""
    lines = [json.loads(line)
             for line in sluice(*args, "--json", code=code).splitlines()]
    assert all("type" in line for line in lines), lines
    if lines[-1]["type"] == "error":
        assert lines[-1]["exit-code"] == code, lines
        assert lines[-1]["class"] and lines[-1]["message"], lines
    return lines[-1]


def qemu_img(*args, ok=(0,)):
    r = subprocess.run(["qemu-img", *args, "--output=json"], timeout=DEADLINE,
                       stdin=subprocess.DEVNULL, capture_output=True)
    assert r.returncode in ok, r
    return json.loads(r.stdout)


def fill(name, *commands, fmt="qcow2"):
    args = [a for c in commands for a in ("-c", c)]
    run("qemu-io", "-f", fmt, *args, name)


def make_chain(size="4M"):
    """base.raw <- mid.qed <- top.qcow2, each with something of its own."""
    run("qemu-img", "create", "-q", "-f", "raw", "base.raw", size)
    fill("base.raw", "write -P 1 0 1M", fmt="raw")
    run("qemu-img", "create", "-q", "-f", "qed", "-b", "base.raw", "-F", "raw",
        "mid.qed")
    fill("mid.qed", "write -P 2 512k 1M", fmt="qed")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid.qed", "-F", "qed",
        "top.qcow2")
    fill("top.qcow2", "write -P 3 1M 64k", "write -z 3M 64k")


def contents(name, fmt="qcow2"):
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", name, "contents")
    with open("contents", "rb") as f:
        return f.read()


def usage_errors_are_2_and_say_how():
    for args in (["create"], ["create", "x", "1M"], ["create", "x", "-f", "raw"],
                 ["create", "x", "1Q", "-f", "raw"],
                 ["create", "x", "1M", "-f", "raw", "y"],
                 ["create", "x", "1M", "-f", "qcow2", "-b", "y"],
                 ["clone", "x", "y"], ["info"], ["info", "x"],
                 ["info", "-f", "raw"], ["info", "x", "-f"],
                 ["info", "x", "-f", "raw", "--bogus"], ["map", "x"],
                 ["compare", "x", "-f", "raw"], ["convert", "x", "y", "-f",
                                                 "raw"],
                 ["serve", "x"], ["stream"],
                 ["stream", "x", "--job-id", "1 2"],
                 ["stream", "x", "--speed", "fast"],
                 ["stream", "x", "-f", "raw", "--detach"], ["job"],
                 ["events", "x"]):
        text = sluice(*args, code=USAGE)
        assert f"sluice {args[0]}" in text, text
        assert result(*args, code=USAGE)["hint"].startswith("sluice ")
    assert "no verb" in sluice("frobnicate", code=USAGE)
    for args in (["stream", ""], ["merge", "x", "--snapshot", ""],
                 ["copy", "", "./y"], ["snapshot", "", "x"]):
        assert "empty" in sluice(*args, code=USAGE)
    sluice("help")
    sluice("help", "frobnicate", code=USAGE)
    for verb in ("create", "clone", "check", "convert", "serve", "stream",
                 "copy", "mirror", "commit", "merge", "snapshot", "close",
                 "job"):
        assert "[--dry-run]" in sluice("help", verb), verb
        assert sluice("help", verb) == sluice(verb, "--help")
    for verb in "info", "map", "compare", "status", "events":
        assert "--dry-run" not in sluice("help", verb), verb
    sluice("check", "x", code=FAILED)  # 2 would mean: corrupt
    sluice("check", "x", "-f", "qcow2", "--repair", "some", code=FAILED)
    assert not os.path.exists("x")
    for args in (["--help"], ["create", "--help"], ["--version"]):
        assert "sluice" in sluice(*args)


def create_makes_what_it_says():
    for fmt in ("raw", "qcow2", "qed"):
        r = result("create", "d." + fmt, "3M", "-f", fmt)
        assert (r["type"], r["virtual-size"], r["format"], r["dry-run"]) == \
            ("result", 3 << 20, fmt, False), r
        info = qemu_img("info", "-f", fmt, "d." + fmt)
        assert info["virtual-size"] == 3 << 20, info
        sluice("create", "dry", "3M", "-f", fmt, "--dry-run")
        assert not os.path.exists("dry")
    sluice("create", "o.qcow2", "1M", "-f", "qcow2", "-o",
           "cluster_size=4k,refcount_bits=64,compression_type=zstd,"
           "lazy_refcounts=on", "-b", "d.qed", "-F", "qed")
    info = qemu_img("info", "-f", "qcow2", "o.qcow2")
    data = info["format-specific"]["data"]
    assert info["cluster-size"] == 4096 and info["backing-filename"] == "d.qed"
    assert (data["refcount-bits"], data["compression-type"],
            data["lazy-refcounts"]) == (64, "zstd", True), data
    assert "no option" in sluice("create", "x", "1M", "-f", "qcow2", "-o",
                                 "bogus=1", code=FAILED)
    sluice("create", "/nowhere/x", "1M", "-f", "raw", code=NOT_FOUND)
    sluice("create", "x", "1M", "-f", "vmdk", code=FAILED)
    sluice("create", "x", "1M", "-f", "raw", "-b", "d.raw", "-F", "raw",
           code=FAILED)
    assert not os.path.exists("x")


def clone_makes_an_overlay():
    make_chain()
    r = result("clone", "top.qcow2", "c.qcow2", "-F", "qcow2", "--dry-run")
    assert r["dry-run"] and not os.path.exists("c.qcow2"), r
    r = result("clone", "top.qcow2", "c.qcow2", "-F", "qcow2")
    assert r["backing-filename"] == "top.qcow2", r
    info = qemu_img("info", "-f", "qcow2", "c.qcow2")
    assert info["virtual-size"] == 4 << 20
    assert info["backing-filename-format"] == "qcow2"
    assert contents("c.qcow2") == contents("top.qcow2")
    sluice("clone", "top.qcow2", "c.qcow2", "-F", "qcow2", code=CONFLICT)
    sluice("clone", "nope", "d.qcow2", "-F", "qcow2", code=NOT_FOUND)
    sluice("clone", "top.qcow2", "e.qcow2", "-F", "qcow2", "--size", "8M")
    assert qemu_img("info", "-f", "qcow2", "e.qcow2")["virtual-size"] == 8 << 20


def info_is_qemu_imgs():
    make_chain()
    chain = result("info", "top.qcow2", "-f", "qcow2")["chain"]
    truth = qemu_img("info", "-f", "qcow2", "--backing-chain", "top.qcow2")
    assert len(chain) == len(truth) == 3
    for ours, theirs in zip(chain, truth):
        for key in ("filename", "format", "virtual-size", "actual-size",
                    "cluster-size", "backing-filename",
                    "backing-filename-format"):
            assert ours.get(key) == theirs.get(key), (key, ours, theirs)
    ours = chain[0]["format-specific"]["data"]
    for key, value in truth[0]["format-specific"]["data"].items():
        assert ours[key] == value, (key, ours, value)
    text = sluice("info", "top.qcow2", "-f", "qcow2")
    assert "4.0 MiB" in text and text.count("backing file: ") == 2 + 2, text
    sluice("info", "nope", "-f", "raw", code=NOT_FOUND)
    sluice("info", "top.qcow2", "-f", "qed", code=FAILED)
    sluice("info", "top.qcow2", "-f", "bogus", code=FAILED)


def joined(extents):
    """(start, end, zero, data) with neighbours alike made one."""
    out = []
    for e in extents:
        if out and out[-1][2:] == [e["zero"], e["data"]] and \
                out[-1][1] == e["start"]:
            out[-1][1] += e["length"]
        else:
            out.append([e["start"], e["start"] + e["length"], e["zero"],
                        e["data"]])
    return out


def map_is_qemu_imgs():
    make_chain()
    lines = [json.loads(line) for line in
             sluice("map", "top.qcow2", "-f", "qcow2", "--json").splitlines()]
    truth = qemu_img("map", "-f", "qcow2", "top.qcow2")
    assert joined(lines) == joined(truth), (lines, truth)
    depths = {e["start"]: e["depth"] for e in truth if e["data"]}
    for e in lines:
        if e["data"]:
            assert depths[e["start"]] == e["depth"], (e, truth)
    names = ["top.qcow2", "mid.qed", "base.raw"]
    assert all(e["filename"] == names[e["depth"]] for e in lines if e["data"])
    assert "mid.qed" in sluice("map", "top.qcow2", "-f", "qcow2")
    sluice("map", "nope", "-f", "raw", code=NOT_FOUND)


def check_keeps_qemu_imgs_codes():
    run("qemu-img", "create", "-q", "-f", "qcow2", "c.qcow2", "4M")
    fill("c.qcow2", "write -P 1 0 1M", "write -c -P 2 2M 64k")

    def same(code, *more, ok):
        ours = result("check", "c.qcow2", "-f", "qcow2", code=code)
        theirs = qemu_img("check", "-f", "qcow2", "c.qcow2", ok=(ok,))
        for key in ("total-clusters", "allocated-clusters",
                    "compressed-clusters", "image-end-offset"):
            assert ours[key] == theirs.get(key, 0), (key, ours, theirs)
        for key in ("corruptions", "leaks"):
            assert ours[key] == theirs.get(key, 0), (key, ours, theirs)

    same(0, ok=0)
    with open("c.qcow2", "r+b") as f:
        f.seek(65536)
        block = int.from_bytes(f.read(8), "big")
        f.seek(block)
        counts = bytearray(f.read(65536))
        good = bytes(counts)
        used = len(good.rstrip(b"\0")) // 2
        counts[2 * used:2 * used + 2] = b"\0\1"  # nobody uses that cluster
        f.seek(block)
        f.write(counts)
        f.truncate((used + 1) * 65536)
    same(3, ok=3)
    sluice("check", "c.qcow2", "-f", "qcow2", "--repair", "leaks", "--dry-run",
           code=3)
    same(3, ok=3)
    r = result("check", "c.qcow2", "-f", "qcow2", "--repair", "leaks")
    assert (r["leaks"], r["leaks-fixed"]) == (0, 1), r
    same(0, ok=0)
    with open("c.qcow2", "r+b") as f:
        f.seek(block + 2 * (used - 1))
        f.write(b"\0\0")  # in use, and said to be free
    same(2, ok=2)
    r = result("check", "c.qcow2", "-f", "qcow2", "--repair", "all")
    assert r["corruptions"] == 0 and r["corruptions-fixed"] > 0, r
    same(0, ok=0)
    run("qemu-img", "create", "-q", "-f", "raw", "r", "1M")
    sluice("check", "r", "-f", "raw", code=63)
    sluice("check", "nope", "-f", "qcow2", code=1)
    sluice("check", "r", "-f", "qcow2", code=1)


def compare_keeps_qemu_imgs_codes():
    make_chain()
    run("qemu-img", "convert", "-f", "qcow2", "-O", "qed", "top.qcow2", "same")
    r = result("compare", "top.qcow2", "same", "-f", "qcow2", "-F", "qed")
    assert r["identical"] is True, r
    fill("same", "write -P 9 2500000 1", fmt="qed")
    r = result("compare", "top.qcow2", "same", "-f", "qcow2", "-F", "qed",
               code=1)
    assert r["first-difference"] == 2500000 and not r["identical"], r
    assert "2500000" in sluice("compare", "top.qcow2", "same", "-f", "qcow2",
                               "-F", "qed", code=1)
    sluice("compare", "top.qcow2", "nope", "-f", "qcow2", code=2)
    assert result("compare", "nope", "nope", "-f", "raw", code=2)["message"]


def convert_copies_everything():
    make_chain()
    want = contents("top.qcow2")
    for fmt in ("raw", "qcow2", "qed"):
        sluice("convert", "top.qcow2", "dry", "-f", "qcow2", "-O", fmt, "-n")
        assert not os.path.exists("dry")
        r = result("convert", "top.qcow2", "out." + fmt, "-f", "qcow2", "-O",
                   fmt)
        assert r["bytes-moved"] == 1536 << 10, r
        assert contents("out." + fmt, fmt) == want
        sluice("convert", "top.qcow2", "out." + fmt, "-f", "qcow2", "-O", fmt,
               code=CONFLICT)
    assert os.stat("out.raw").st_blocks * 512 < 2 << 20, "holes were written"
    sluice("convert", "nope", "x", "-f", "raw", "-O", "raw", code=NOT_FOUND)
    mount("tmpfs", "small", "-o", "size=1M")
    r = result("convert", "top.qcow2", "small/x", "-f", "qcow2", "-O", "raw",
               code=NO_SPACE)
    assert "file system has" in r["message"], r


def a_bar_is_drawn_on_a_terminal_only():
    run("qemu-img", "create", "-q", "-f", "raw", "big", "256M")
    with open("big", "r+b") as f:
        for _ in range(64):
            f.write(os.urandom(1 << 20))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "big", "-F", "raw",
        "top")
    argv = [SLUICE, "stream", "top", "-f", "qcow2", "--speed", "100M"]
    ours, theirs = pty.openpty()
    defer(os.close, ours)
    p = Process(*argv, stdout=subprocess.PIPE)  # stderr: a file
    out = p.process.stdout.read()
    assert p.wait() == 0 and b"moved" in out, out
    assert "\r" not in p.errors() and "[" not in p.errors(), p.errors()
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "big", "-F", "raw",
        "top")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "big", "-F", "raw",
        "top")
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while True:
            assert select.select([ours], [], [], DEADLINE)[0]
            seen += os.read(ours, 4096)
    except OSError:  # the terminal's end
        pass
    assert p.wait(DEADLINE) == 0
    assert b"\r" in seen and b"[==" in seen and b"%" in seen, seen


def files_that_may_not_be_touched():
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "nope", "-F", "raw",
        "-u", "top", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "held", "1M")
    with Daemon(SLUICED, "--blockdev",
                "qcow2,node-name=h,file.driver=file,file.filename=held",
                "--nbd-server", "addr.type=unix,addr.path=h.sock", "--export",
                "nbd,id=e,node-name=h,writable=on") as d:
        d.qmp()
        sluice("info", "held", "-f", "qcow2", code=CONFLICT)
        sluice("stream", "held", "-f", "qcow2", code=CONFLICT)
        sluice("convert", "held", "x", "-f", "qcow2", "-O", "raw",
               code=CONFLICT)
        sluice("create", "held", "1M", "-f", "raw", code=CONFLICT)
    sluice("info", "top", "-f", "qcow2", code=NOT_FOUND)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "nbd://x/y", "-F",
        "raw", "-u", "far", "1M")
    sluice("info", "far", "-f", "qcow2", code=NOT_PERMITTED)
    with open("held", "r+b") as f:
        f.seek(40)
        f.write(b"\xff" * 8)  # where L1 is
    sluice("info", "held", "-f", "qcow2", code=CORRUPT)


def without_a_daemon():
    for args in (["stream", "disk"], ["job", "list"], ["events"]):
        text = sluice(*args, "--socket", "nope.sock", code=NO_DAEMON)
        assert "nope.sock" in text and "hint: " in text, text
    os.environ["SLUICE_SOCKET"] = os.path.abspath("env.sock")
    try:
        assert "env.sock" in sluice("job", "list", code=NO_DAEMON)
    finally:
        del os.environ["SLUICE_SOCKET"]


def serve(*options):
    """sluice serve in the background: (process, what it says)."""
    p = Process(SLUICE, "serve", *options, "--json", stdout=subprocess.PIPE)
    return p, json.loads(p.process.stdout.readline())


def serve_serves_until_a_signal():
    make_chain()
    before = contents("top.qcow2")
    r = result("serve", "top.qcow2", "-f", "qcow2", "--dry-run")
    assert r["dry-run"], r
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        p, said = serve("top.qcow2", "-f", "qcow2")
        info = json.loads(run("nbdinfo", "--json", said["uri"])[1])
        assert info["exports"][0]["export-size"] == 4 << 20, info
        text = run("qemu-io", "-f", "raw", "-c", "read -P 3 1M 64k", "-c",
                   "write -P 8 2M 64k", "-c", "write -P 0 2M 64k",
                   said["uri"])[1]
        assert "failed" not in text, text
        assert p.stop(sig) == 0
        assert not os.path.exists(said["control"])
        assert not os.path.exists(os.path.dirname(said["control"]))
    p, said = serve("top.qcow2", "-f", "qcow2", "--read-only", "--nbd",
                    "unix:n.sock", "--control", "c.sock", "--name", "x")
    assert said["control"] == "c.sock" and "/x?" in said["uri"], said
    assert run("nbdinfo", "--is", "readonly", said["uri"])[0] == 0
    sluice("serve", "top.qcow2", "-f", "qcow2", code=CONFLICT)
    run("qemu-img", "create", "-q", "-f", "raw", "another", "1M")
    sluice("serve", "another", "-f", "raw", "--control", "c.sock", code=FAILED)
    assert p.stop() == 0
    assert contents("top.qcow2") == before
    sluice("serve", "nope", "-f", "raw", code=NOT_FOUND)
    sluice("serve", "top.qcow2", "-f", "qcow2", "--nbd", "bogus", code=FAILED)


def missing_bytes(top):
    """What a stream must copy, as qemu-img sees it."""
    return sum(e["length"] for e in qemu_img("map", "-f", "qcow2", top)
               if e["depth"] and e["data"])


def stream_of_a_path():
    make_chain()
    before, bytes_missing = contents("top.qcow2"), missing_bytes("top.qcow2")
    with open("top.qcow2", "rb") as f:
        raw = f.read()
    r = result("stream", "top.qcow2", "-f", "qcow2", "--dry-run")
    assert (r["bytes"], r["dry-run"]) == (bytes_missing, True), r
    with open("top.qcow2", "rb") as f:
        assert f.read() == raw, "a dry run has changed the image"
    r = result("stream", "top.qcow2", "-f", "qcow2")
    assert r["bytes-moved"] == bytes_missing, r
    assert "backing-filename" not in qemu_img("info", "-f", "qcow2",
                                              "top.qcow2")
    assert contents("top.qcow2") == before
    sluice("stream", "nope", "-f", "qcow2", code=NOT_FOUND)


def stream_and_jobs_of_a_daemon():
    make_chain()
    before, bytes_missing = contents("top.qcow2"), missing_bytes("top.qcow2")
    p, said = serve("top.qcow2", "-f", "qcow2")
    at = ["--socket", said["control"]]
    events = Process(SLUICE, "events", "--json", *at, stdout=subprocess.PIPE)
    for how in ([], ["--json"]):
        r = sluice("stream", "disk", "--dry-run", *how, *at)
        assert how or "1.4 MiB" in r, r
    r = json.loads(r)
    assert (r["bytes"], r["dry-run"]) == (bytes_missing, True), r
    assert len(r["drops"]) == 2, r
    assert sluice("job", "list", "--json", *at) == ""
    for args in (["stream", "nope"], ["stream", "nope", "--dry-run"],
                 ["stream", "disk", "--base", "nope", "--dry-run"],
                 ["job", "show", "nope"], ["job", "cancel", "nope"],
                 ["job", "cancel", "nope", "--dry-run"],
                 ["job", "wait", "nope"]):
        assert "nope" in sluice(*args, *at, code=NOT_FOUND) or \
            "not found" in sluice(*args, *at, code=NOT_FOUND)
    sluice("job", "frob", "x", *at, code=USAGE)
    run(SLUICE, "create", "e", "1M", "-f", "raw", "-o", "x=1", ok=(FAILED,))
    run(SLUICE, "create", "e", "1M", "-f", "qcow2", "-o", "x=1", "--dry-run",
        ok=(FAILED,))
    sluice("job", "cancel", *at, code=USAGE)

    r = result("stream", "disk", "--detach", "--speed", "1", *at)
    assert r["detached"] and r["job"] == "stream-disk", r
    sluice("stream", "disk", "--detach", *at, code=CONFLICT)
    sluice("job", "pause", "stream-disk", *at)
    r = result("job", "list", *at)
    while r["status"] == "running":  # it pauses where it can
        r = result("job", "list", *at)
    assert (r["id"], r["job-type"], r["status"]) == ("stream-disk", "stream",
                                                     "paused"), r
    assert "paused" in sluice("job", "show", "stream-disk", *at)
    sluice("job", "resume", "stream-disk", *at)
    sluice("job", "resume", "stream-disk", *at, code=FAILED)
    r = result("job", "cancel", "stream-disk", "--dry-run", *at)
    assert r["dry-run"] and r["job"] == "stream-disk", r
    follower = Process(SLUICE, "job", "wait", "stream-disk", *at)
    sluice("job", "cancel", "stream-disk", *at)
    assert follower.wait() == CANCELLED, follower.errors()

    r = result("stream", "disk", *at)
    assert r["type"] == "result" and r["job"] == "stream-disk", r
    assert p.stop() == 0
    seen = []
    for line in events.process.stdout:
        event = json.loads(line)
        assert event["type"] == "event" and event["timestamp"], event
        seen.append(event["event"])
    assert events.wait() == NO_DAEMON, events.errors()
    assert {"JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED",
            "BLOCK_JOB_CANCELLED"} <= set(seen), seen
    assert contents("top.qcow2") == before


def ctrl_c_detaches():
    make_chain()
    p, said = serve("top.qcow2", "-f", "qcow2")
    at = ["--socket", said["control"]]
    follower = Process(SLUICE, "stream", "disk", "--speed", "1", *at,
                       stdout=subprocess.PIPE)
    # It is there as soon as the job is.
    p.until(lambda: run(SLUICE, "job", "show", "stream-disk", *at),
            RuntimeError)
    follower.process.send_signal(signal.SIGINT)
    text = follower.process.stdout.read().decode()
    assert follower.wait() == OK, (follower.wait(), text)
    assert "sluice job cancel stream-disk" in text, text
    assert result("job", "show", "stream-disk", *at)["status"] == "running"
    assert p.stop() == 0


def job_wait_tells_the_end_of_a_job_that_dismisses_itself():
    make_chain()
    p, said = serve("top.qcow2", "-f", "qcow2")
    qmp = Qmp(said["control"])
    for act, code in ((lambda: qmp.cmd("job-cancel", id="j"), CANCELLED),
                      (lambda: qmp.cmd("block-job-set-speed", device="j",
                                       speed=0), OK)):
        qmp.cmd("block-stream", device="disk", job_id="j", speed=65536)
        follower = Process(SLUICE, "job", "wait", "j", "--json", "--socket",
                           said["control"], stdout=subprocess.PIPE)
        assert follower.process.stdout.readline()  # it has seen the job
        act()
        last = follower.process.stdout.read().decode().splitlines()
        assert follower.wait() == code, (follower.errors(), last)
    assert json.loads(last[-1])["type"] == "result", last
    assert p.stop() == 0


if __name__ == "__main__":
    main([usage_errors_are_2_and_say_how, create_makes_what_it_says,
          clone_makes_an_overlay, info_is_qemu_imgs, map_is_qemu_imgs,
          check_keeps_qemu_imgs_codes, compare_keeps_qemu_imgs_codes,
          convert_copies_everything, a_bar_is_drawn_on_a_terminal_only,
          files_that_may_not_be_touched, without_a_daemon,
          serve_serves_until_a_signal, stream_of_a_path,
          stream_and_jobs_of_a_daemon, ctrl_c_detaches,
          job_wait_tells_the_end_of_a_job_that_dismisses_itself])
