#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The command's verbs on a disk that a daemon serves: copy, mirror, commit,
snapshot, and how their jobs are ended.  qemu-img is the judge.

cli_copy.py SLUICED SLUICE
"""
import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

from harness import (DEADLINE, Daemon, Nbd, Process, defer, main, mount,
                     nbd_server, need, run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
(OK, FAILED, USAGE, NOT_FOUND, CONFLICT, NO_SPACE, CANCELLED,
 NO_DAEMON) = 0, 1, 2, 4, 6, 7, 9, 10
MIB = 1 << 20
SIZE = 16 * MIB

need("qemu-img", "qemu-io")


class Disk(Daemon):
    """base <- mid <- top, served as export "e"; verb() asks it for things."""

    def __init__(self, size=SIZE):
        make_chain(size)
        super().__init__(
            SLUICED, *nbd_server(),
            "--blockdev", "raw,node-name=base,read-only=on,"
            "file.driver=file,file.filename=base",
            "--blockdev", "qcow2,node-name=mid,read-only=on,backing=base,"
            "file.driver=file,file.filename=mid",
            "--blockdev", "qcow2,node-name=top,backing=mid,discard=unmap,"
            "file.driver=file,file.filename=top",
            "--export", "nbd,id=e,node-name=top,name=a,writable=on")
        self.q = self.qmp()

    def start(self, *args):
        return Process(SLUICE, *args, "--socket", self.socket,
                       stdout=subprocess.PIPE)

    def text(self, *args, code=OK):
        """What it says; an error is on stderr, and only an error is."""
        r = subprocess.run([SLUICE, *args, "--socket", self.socket],
                           stdin=subprocess.DEVNULL, capture_output=True,
                           text=True, timeout=DEADLINE)
        assert r.returncode == code, (args, r)
        assert bool(r.stderr) == bool(code), (args, r)
        assert not (code and r.stdout), (args, r)
        return r.stderr if code else r.stdout

    def verb(self, *args, code=OK):
        """The last of its JSON lines; an error's is the one on stderr."""
        lines = [json.loads(line) for line in
                 self.text(*args, "--json", code=code).splitlines()]
        assert all("type" in line for line in lines), lines
        if code:
            assert lines[-1]["type"] == "error", lines
            assert lines[-1]["exit-code"] == code, lines
        return lines[-1]

    def nodes(self):
        return {n["node-name"] for n in
                self.q.cmd("query-named-block-nodes", flat=True)
                if not n["node-name"].startswith("#")}

    def jobs(self):
        return [j["id"] for j in self.q.cmd("query-jobs")]

    def node_of_export(self):
        return self.q.cmd("query-block-exports")[0]["node-name"]

    def guest_writes(self, offset, byte, length=4096):
        with Nbd("nbd.sock", "a") as nbd:
            nbd.write(offset, byte * length)
            nbd.flush()
        with open("model", "r+b") as f:
            f.seek(offset)
            f.write(byte * length)


def make_chain(size):
    for name in ("base", "model"):
        with open(name, "wb") as f:
            f.truncate(size)
    with open("base", "r+b") as f:
        f.write(b"b" * 3 * MIB)
    for name, under, fmt, what in (
            ("mid", "base", "raw", "write -P 2 2M 3M"),
            ("top", "mid", "qcow2", "write -P 3 4M 2M")):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", under, "-F", fmt,
            name, str(size))
        run("qemu-io", "-f", "qcow2", "-c", what, name)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "top", "model")


def judge(name, fmt, alone=True):
    """It is whole, reads as the model, and needs no other image."""
    if fmt != "raw":
        run("qemu-img", "check", "-q", "-f", fmt, name)
        info = json.loads(run("qemu-img", "info", "-f", fmt, "--output=json",
                              name)[1])
        assert ("backing-filename" not in info) == alone, info
    run("qemu-img", "compare", "-f", fmt, "-F", "raw", name, "model")


def untouched(d, before):
    """A refusal leaves no node, no job and no file."""
    nodes, jobs, files = before
    assert d.nodes() == nodes, d.nodes() ^ nodes
    assert d.jobs() == jobs, d.jobs()
    assert sorted(os.listdir(".")) == files, os.listdir(".")


def state(d):
    return d.nodes(), d.jobs(), sorted(os.listdir("."))


def copies(fmt, mode):
    def test():
        with Disk() as d:
            more = ["-f", fmt] if fmt != "qcow2" else []
            r = d.verb("copy", "e", "new.img", "--mode", mode, *more)
            assert (r["job"], r["node"], r["target"], r["mode"]) == \
                ("copy-e", "copy-e", os.path.abspath("new.img"), mode), r
            assert r["switched"] is True and r["bytes"] == SIZE, r
            assert r["bytes-moved"] == 6 * MIB, r
            assert r["pause-ns"] >= 0 and r["requests-held"] >= 0, r
            assert d.node_of_export() == "copy-e" and not d.jobs()
            d.guest_writes(9 * MIB, b"n")
            d.stop()
        judge("new.img", fmt)
    return f"copy moves a disk to {fmt}, {mode}", test


def a_copy_says_what_it_moved():
    with Disk() as d:
        text = d.text("copy", "top", "./new")
        for word in ("moved 6.0 MiB", "paused for", "requests held",
                     "node 'copy-top' in '", "'top' is out of use"):
            assert word in text, (word, text)
        # Once more, by the export's name, which means the new node.
        text = d.text("copy", "e", "./newer", "--then", "stay")
        assert "The copy is node 'copy-e'" in text, text
        assert d.node_of_export() == "copy-top"
        d.stop()
    judge("new", "qcow2")
    judge("newer", "qcow2")


def a_target_may_be_a_node():
    with Disk() as d:
        run("qemu-img", "create", "-q", "-f", "qed", "t", str(SIZE))
        d.q.cmd("blockdev-add", driver="qed", node_name="target",
                file={"driver": "file", "filename": "t"})
        before = state(d)
        assert "its format" in d.text("copy", "e", "target", "-f", "qed",
                                      code=FAILED)
        assert "its image" in d.text("copy", "e", "target", "--reuse",
                                     code=FAILED)
        untouched(d, before)
        r = d.verb("copy", "e", "target", "--job-id", "j", "--speed", "1G")
        assert r["job"] == "j" and r["node"] == "target", r
        assert "target" not in r, r
        d.stop()
    judge("t", "qed")


def an_image_may_be_reused():
    with Disk() as d:
        assert "--reuse" in d.text("copy", "e", "./mid", code=CONFLICT)
        d.text("copy", "e", "./nope", "--reuse", code=NOT_FOUND)
        run("qemu-img", "create", "-q", "-f", "qcow2", "old", str(SIZE))
        run("qemu-io", "-f", "qcow2", "-c", "write -P 9 10M 2M", "old")
        before = state(d)
        r = d.verb("copy", "e", "./old", "--reuse", "--dry-run")
        assert r["bytes-to-copy"] == 6 * MIB, r
        assert r["bytes-to-zero"] == 2 * MIB, r
        untouched(d, before)
        d.verb("copy", "e", "./old", "--reuse", "--then", "stay")
        d.stop()
    judge("old", "qcow2")


def an_old_image_is_upgraded_when_that_is_said():
    with Disk() as d:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10",
            "old", str(SIZE))
        before = state(d)
        r = d.verb("copy", "e", "./old", "--reuse", code=FAILED)
        assert "--upgrade" in r["hint"], r
        untouched(d, before)  # it is not ours to remove
        d.verb("copy", "e", "./old", "--reuse", "--upgrade")
        d.stop()
    judge("old", "qcow2")
    assert "compat: 1.1" in run("qemu-img", "info", "old")[1]


def dry_runs_say_bytes_and_space():
    with Disk() as d:
        before = state(d)
        for fmt, metadata in (("raw", 0), ("qcow2", 1), ("qed", 1)):
            for mode in ("pre-copy", "mirror") + \
                    (("post-copy", "hybrid") if metadata else ()):
                r = d.verb("copy", "e", "./x", "-f", fmt, "--mode", mode,
                           "--dry-run")
                assert r["dry-run"] and r["bytes"] == 6 * MIB, r
                assert r["bytes-to-copy"] == 6 * MIB, r
                need_at_most = r["space-needed"] - 6 * MIB
                assert bool(need_at_most) == bool(metadata), r
                assert 0 <= need_at_most < MIB, r
                assert r["space-free"] > 0 and r["format"] == fmt, r
                untouched(d, before)
        text = d.text("copy", "e", "./x", "--dry-run")
        for word in ("Would copy 6.0 MiB", "space needed", "space free",
                     "then switch"):
            assert word in text, text
        text = d.text("mirror", "e", "./x", "-n")
        assert "keep it in step" in text, text
        mount("tmpfs", "small", "-o", "size=1M")
        r = d.verb("copy", "e", "small/x", "--dry-run", code=NO_SPACE)
        assert "1.0 MiB left" in r["message"], r
        assert not os.listdir("small")
        r = d.verb("commit", "e", "--dry-run")
        assert r["bytes"] == 5 * MIB - MIB and r["drops"] == ["top", "mid"], r
        assert "Would copy 4.0 MiB of 'e' into its lowest layer" in \
            d.text("commit", "e", "-n")
        d.stop()


def what_fails_is_taken_away():
    with Disk() as d:
        before = state(d)

        def refused(code, text, *args):
            r = d.verb(*args, code=code)
            assert text in r["message"] + r.get("hint", ""), r
            untouched(d, before)
            return r

        # The daemon refuses after the image was made.
        for mode in ("post-copy", "hybrid"):
            r = refused(FAILED, "cannot name a backing file", "copy", "e",
                        "./x", "-f", "raw", "--mode", mode)
            assert "--mode pre-copy" in r["hint"], r
            refused(FAILED, "cannot name a backing file", "copy", "e",
                    "./x", "-f", "raw", "--mode", mode, "--dry-run")
        refused(USAGE, "no job's id", "copy", "e", "./x", "--job-id", "1")
        refused(NOT_FOUND, "nope", "copy", "nope", "./x")
        refused(NOT_FOUND, "./targt", "copy", "e", "targt")
        for dry in ["--dry-run"], []:
            refused(NOT_FOUND, "No such file", "copy", "e", "no/where", *dry)
            refused(NOT_FOUND, "No such file", "snapshot", "top", "no/x", *dry)
            refused(CONFLICT, "exists", "copy", "e", "./mid", *dry)
            refused(CONFLICT, "node 'top' has it open", "copy", "e", "./top",
                    "--reuse", *dry)
        refused(FAILED, "format 'vmdk'", "copy", "e", "./x", "-f", "vmdk")
        refused(CONFLICT, "exists", "snapshot", "top", "mid")
        refused(NOT_FOUND, "nope", "snapshot", "nope", "x")
        refused(FAILED, "twice", "snapshot", "top=x", "mid=x")
        refused(CONFLICT, "busy", "snapshot", "top=x", "mid=y")
        refused(FAILED, "not supported", "snapshot", "top", "x", "-f", "raw")
        refused(NOT_FOUND, "nope", "commit", "nope")
        refused(NOT_FOUND, "nope", "commit", "e", "--top", "nope")
        for dry in ["--dry-run"], []:
            refused(FAILED, "'base' has no backing file to commit into",
                    "commit", "e", "--top", "base", *dry)
            refused(FAILED, "into itself", "commit", "e", "--top", "base",
                    "--base", "base", *dry)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top", "-F",
            "qcow2", "-u", "clone", str(SIZE))
        before = state(d)
        refused(FAILED, "clone", "copy", "e", "./x", "--delete-source")
        d.stop()


def usage_errors():
    for args in (["copy"], ["copy", "d"], ["copy", "d", "t", "u"],
                 ["copy", "d", "t", "--mode", "magic"],
                 ["copy", "d", "t", "--then", "run"],
                 ["copy", "d", "t", "--mode", "post-copy", "--then", "stay"],
                 ["copy", "d", "t", "--mode", "post-copy", "--manual"],
                 ["copy", "d", "t", "--speed", "fast"],
                 ["copy", "d", "t", "--then", "stay", "--delete-source"],
                 ["copy", "d", "t", "--wait", "--detach"],
                 ["copy", "d", "t", "--dependents-in"],
                 ["mirror", "d"], ["mirror", "d", "t", "--then", "go"],
                 ["commit"], ["commit", "d", "e"],
                 ["commit", "d", "--speed", "x"],
                 ["commit", "d", "--then", "x"],
                 ["commit", "d", "--then", "stay", "--manual"],
                 ["snapshot"], ["snapshot", "d"], ["snapshot", "d", "f", "g"],
                 ["snapshot", "d=f", "g"], ["snapshot", "=f"],
                 ["snapshot", "d="], ["close"], ["close", "x", "y"]):
        code, text = run(SLUICE, *args, "--socket", "none", ok=(USAGE,))
        assert f"hint: sluice {args[0]}" in text, text
    for args in (["copy", "d", "t"], ["mirror", "d", "t"], ["commit", "d"],
                 ["snapshot", "d", "f"], ["close", "x"]):
        run(SLUICE, *args, "--socket", "none", ok=(NO_DAEMON,))


def a_mirror_stays_until_it_is_stopped():
    with Disk() as d:
        text = d.text("mirror", "e", "./m")
        for end in ("complete", "stop", "cancel"):
            assert f"sluice job {end} mirror-e" in text, text
        assert text.count("\n") == 1, text
        d.guest_writes(8 * MIB, b"m")
        r = d.verb("job", "stop", "mirror-e", "--dry-run")
        assert r["dry-run"] and r["status"] == "ready", r
        # It returns when the copy is one, and the job is dismissed.
        r = d.verb("job", "stop", "mirror-e")
        assert not d.jobs(), d.jobs()
        assert r["bytes-forwarded"] == 4096 and r["job"] == "mirror-e", r
        assert d.node_of_export() == "top"
        d.stop()
    judge("m", "qcow2")


def a_stop_says_what_came_of_it_of_jobs_that_dismiss_themselves():
    """And of one that goes on, where the user has waited enough."""
    with Disk() as d:
        d.guest_writes(8 * MIB, b"m")
        run("qemu-img", "create", "-q", "-f", "qcow2", "m", str(SIZE))
        d.q.cmd("blockdev-add", driver="qcow2", node_name="m", backing=None,
                file={"driver": "file", "filename": "m"})
        d.q.cmd("blockdev-mirror", job_id="j", device="top", target="m",
                sync="full", auto_finalize=False)
        d.q.wait_event("BLOCK_JOB_READY")
        p = d.start("job", "stop", "j", "--json")
        d.q.wait_event("JOB_STATUS_CHANGE", id="j", status="pending")
        assert json.loads(p.process.stdout.readline())["type"] == "progress"
        p.process.send_signal(signal.SIGINT)
        out = p.process.stdout.read().decode().splitlines()
        assert p.wait() == OK and json.loads(out[-1])["detached"], out
        assert d.jobs() == ["j"]
        p = d.start("job", "wait", "j", "--json")
        # It looks at the job: only then may that vanish.
        assert json.loads(p.process.stdout.readline())["type"] == "progress"
        d.q.cmd("job-finalize", id="j")
        out = p.process.stdout.read().decode().splitlines()
        assert p.wait() == OK, out
        assert json.loads(out[-1])["type"] == "result", out
        d.q.cmd("blockdev-mirror", job_id="k", device="top", target="m",
                sync="full")
        d.q.wait_event("BLOCK_JOB_READY", device="k")
        out = d.text("job", "stop", "k")
        assert "Job 'k' is done" in out and not d.jobs(), out
        d.stop()
    judge("m", "qcow2")


def a_mirror_switches_when_it_is_told_to():
    with Disk() as d:
        r = d.verb("mirror", "e", "./m", "-f", "raw", "--job-id", "j")
        assert r["ready"] and r["job"] == "j" and not r["switched"], r
        d.text("job", "complete", "j")
        d.text("job", "wait", "j")
        assert d.node_of_export() == "j"
        d.guest_writes(MIB, b"s")
        d.stop()
    judge("m", "raw")


def a_mirror_can_be_told_how_it_ends():
    for then in "stay", "switch":
        with Disk() as d:
            r = d.verb("mirror", "e", "./m", "--then", then)
            assert r["switched"] == (then == "switch"), r
            assert not d.jobs(), d.jobs()
            assert (d.node_of_export() == "top") == (then == "stay")
            before = hashlib.sha256(open("m", "rb").read()).digest()
            with Nbd("nbd.sock", "a") as nbd:  # reaches the one or the other
                nbd.write(9 * MIB, b"later" * 1000)
                nbd.flush()
            after = hashlib.sha256(open("m", "rb").read()).digest()
            assert (before == after) == (then == "stay")
            d.stop()
        if then == "stay":
            judge("m", "qcow2")
        os.unlink("m")


def a_mirror_can_be_waited_for():
    with Disk() as d:
        p = d.start("mirror", "e", "./m", "--wait", "--json")
        d.q.wait_event("BLOCK_JOB_READY")
        d.text("job", "complete", "mirror-e")
        out = p.process.stdout.read().decode().splitlines()
        assert p.wait() == OK, p.errors()
        r = json.loads(out[-1])
        assert r["switched"] and r["job"] == "mirror-e", r
        d.stop()
    judge("m", "qcow2")


def a_commit_of_a_disk_with_no_backing_file():
    with Disk() as d:
        d.text("copy", "e", "./m")
        for disk in "e", "./m":
            text = d.text("commit", disk, code=FAILED)
            assert f"'{disk}' has no backing file to commit into" in text, text
        d.stop()


def by_hand(mode):
    def test():
        with Disk() as d:
            r = d.verb("copy", "e", "./m", "--mode", mode, "--manual")
            assert r["ready"] and d.node_of_export() == "top", r
            d.text("copy", "e", "./n", "--mode", mode, "--manual",
                   code=CONFLICT)  # its job's name
            assert not os.path.exists("n")
            d.text("job", "complete", "copy-e")
            d.verb("job", "wait", "copy-e")  # the text has notes on stderr
            assert d.node_of_export() == "copy-e"
            d.stop()
        judge("m", "qcow2")
    return f"{mode} --manual switches when it is told to", test


def a_detached_copy_goes_on():
    with Disk() as d:
        r = d.verb("copy", "e", "./m", "-d", "--speed", "1M")
        assert r["detached"] and r["job"] == "copy-e", r
        r = d.verb("job", "stop", "copy-e", code=FAILED)
        assert "not ready" in r["message"] and "cancel" in r["hint"], r
        assert d.jobs() == ["copy-e"]
        d.q.cmd("block-job-set-speed", device="copy-e", speed=0)
        r = d.verb("job", "wait", "copy-e")
        assert r["bytes-moved"] == 6 * MIB and r["pause-ns"] > 0, r
        assert d.node_of_export() == "copy-e" and not d.jobs()
        d.stop()
    judge("m", "qcow2")


def ctrl_c_detaches():
    with Disk() as d:
        p = d.start("copy", "e", "./m", "--speed", "1")
        d.q.wait_event("JOB_STATUS_CHANGE", id="copy-e", status="running")
        p.process.send_signal(signal.SIGINT)
        text = p.process.stdout.read().decode()
        assert p.wait() == OK, p.errors()
        assert "sluice job cancel copy-e" in text, text
        assert d.jobs() == ["copy-e"]
        d.stop()
    judge("top", "qcow2", alone=False)


def cancelled(fmt):
    """An unfinished copy is removed, with what says that it is one."""
    def test():
        with Disk() as d:
            before = state(d)
            p = d.start("copy", "e", "./m", "--speed", "1", "-f", fmt)
            d.q.wait_event("JOB_STATUS_CHANGE", id="copy-e", status="running")
            d.text("job", "cancel", "copy-e")
            assert p.wait() == CANCELLED, p.errors()
            assert "was removed" in p.errors(), p.errors()
            untouched(d, before)
            d.stop()
        judge("top", "qcow2", alone=False)
    return f"a copy to {fmt} that is cancelled", test


def the_source_is_deleted():
    with Disk() as d:
        os.mkdir("far")
        os.mkdir("other")
        r = d.verb("copy", "e", "./m", "--delete-source", "-n")
        assert r["delete-source"] is True, r
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../top", "-F",
            "qcow2", "far/clone", str(SIZE))
        before = state(d)
        ask = ["--delete-source", "--dependents-in", "far", "--dependents-in",
               "other"]
        r = d.verb("copy", "e", "./m", *ask, code=FAILED)
        assert "clone" in r["message"], r
        untouched(d, before)
        os.unlink("far/clone")
        d.verb("copy", "e", "./m", *ask)
        assert not os.path.exists("top") and os.path.exists("mid")
        d.stop()
    judge("m", "qcow2")


def commits_layers_in_the_middle():
    with Disk() as d:
        r = d.verb("commit", "e", "--top", "mid", "--base", "base")
        assert r["verb"] == "commit" and r["bytes-moved"] == 3 * MIB, r
        assert d.node_of_export() == "top" and not d.jobs()
        d.stop()
    info = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json",
                          "top")[1])
    assert info["backing-filename"].endswith("base"), info
    judge("top", "qcow2", alone=False)


def commits_the_disk_itself():
    with Disk() as d:
        r = d.verb("commit", "e")
        assert r["job"] == "commit-e" and r["bytes-moved"] == 4 * MIB, r
        assert r["node"] == "base", r
        assert d.node_of_export() == "base" and not d.jobs()
        d.guest_writes(7 * MIB, b"c")
        d.stop()
    judge("base", "raw")


def a_commit_by_hand_waits():
    with Disk() as d:
        text = d.text("commit", "e", "--base", "mid", "--manual")
        assert "sluice job complete commit-e" in text, text
        d.guest_writes(7 * MIB, b"c")
        d.text("job", "complete", "commit-e")
        d.text("job", "wait", "commit-e")
        assert d.node_of_export() == "mid"
        d.stop()
    judge("mid", "qcow2", alone=False)


def a_commit_ends_as_it_was_told():
    with Disk() as d:
        r = d.verb("commit", "e", "--base", "mid", "--then", "stay")
        assert r["node"] == "top" and d.node_of_export() == "top", r
        assert not d.jobs()
        d.text("commit", "e", "--base", "mid", "--then", "switch", "--detach")
        give_up = time.monotonic() + 20
        while d.node_of_export() != "mid" and time.monotonic() < give_up:
            time.sleep(0.02)
        assert d.node_of_export() == "mid"
        d.stop()
    judge("mid", "qcow2", alone=False)


def a_commit_says_where_the_disk_is():
    with Disk() as d:
        text = d.text("commit", "e", "--base", "mid")
        assert "The disk is now node 'mid'; 'top' is out of use" in text, text
        d.stop()


def there_and_back_again():
    """What a disk left is closed, so that it can go back there."""
    with Disk() as d:
        r = d.verb("copy", "e", "./new.qcow2")
        assert r["closed"] == ["top"] and r["still-open"] == [], r
        text = d.text("copy", "e", "./top", "--reuse")
        assert "'copy-e' is closed.\n" in text, text
        d.guest_writes(7 * MIB, b"t")
        r = d.verb("mirror", "e", "./new.qcow2", "--reuse", "--then", "switch")
        assert r["closed"] == ["copy-e-2"], r
        d.guest_writes(8 * MIB, b"b")
        # A mirror that somebody else ends.
        p = d.start("mirror", "e", "./top", "--reuse", "--wait", "--json",
                    "--job-id", "m")
        d.q.wait_event("BLOCK_JOB_READY", device="m")
        d.text("job", "complete", "m")
        out = p.process.stdout.read().decode().splitlines()
        assert p.wait() == OK, p.errors()
        assert json.loads(out[-1])["closed"] == ["mirror-e"], out
        # What it read through is not the command's to close.
        assert d.nodes() == {"m", "mid", "base"}, d.nodes()
        d.stop()
    judge("top", "qcow2")


def closes_nothing_that_is_used():
    with Disk() as d:
        for then in (["--then", "stay"], ["--detach"]):
            r = d.verb("copy", "e", f"./{then[0]}", *then, "--job-id",
                       then[0].strip("-"))
            assert "closed" not in r and "top" in d.nodes(), r
        d.verb("job", "wait", "detach")
        # A disk with no export is not moved from where it is.
        text = d.text("copy", "top", "./alone")
        assert "closed" not in text and "top" in d.nodes(), text
        for was, job, *more in ("detach", "j0"), ("j0", "j1", "--json"):
            p = d.start("copy", "e", f"./{job}", "--speed", "1", "--job-id",
                        job, *more)
            d.q.wait_event("JOB_STATUS_CHANGE", id=job, status="running")
            # Somebody takes it before the command comes to that.
            p.process.send_signal(signal.SIGSTOP)
            d.q.cmd("block-job-set-speed", device=job, speed=0)
            d.q.wait_event("JOB_STATUS_CHANGE", id=job, status="concluded")
            d.q.cmd("block-export-add", type="nbd", id="f" + job, name="f" +
                    job, node_name=was)
            p.process.send_signal(signal.SIGCONT)
            out = p.process.stdout.read().decode()
            assert p.wait() == OK, p.errors()
            assert was in d.nodes()
            if more:
                r = json.loads(out.splitlines()[-1])
                assert r["closed"] == [] and r["switched"], r
                left = r["still-open"][0]
                assert left["node"] == was, left
                assert f"Node {was} is in use" in left["message"], left
            else:
                assert f"'{was}' is still open: Node {was} is in use; it is " \
                       f"used by export 'f{job}'.\n" in out, out
        d.stop()
    judge("j1", "qcow2")


def a_disk_under_a_filter_is_left_too():
    with Disk() as d:
        d.q.cmd("block-export-del", id="e")
        d.q.wait_event("BLOCK_EXPORT_DELETED")
        d.q.cmd("blockdev-add", driver="copy-on-read", node_name="cor",
                file="top")
        d.q.cmd("block-export-add", type="nbd", id="e", node_name="cor",
                name="a", writable=True)
        r = d.verb("copy", "top", "./m")
        assert r["switched"] and r["closed"] == ["top"], r
        d.guest_writes(7 * MIB, b"f")
        d.stop()
    judge("m", "qcow2")


def closes_what_a_user_has_no_use_for():
    with Disk() as d:
        before = state(d)
        for dry in ["--dry-run"], []:
            for name in "top", "e", "./top":
                r = d.verb("close", name, *dry, code=CONFLICT)
                assert "export 'e'" in r["message"] + r.get("hint", ""), r
            r = d.verb("close", "mid", *dry, code=CONFLICT)
            assert "'top'" in r["message"], r
            d.text("close", "nope", *dry, code=NOT_FOUND)
        untouched(d, before)
        d.text("copy", "e", "./m")
        r = d.verb("close", "mid", "-n")
        assert r["dry-run"] and r["closed"] == ["mid"] and \
            "mid" in d.nodes(), r
        assert d.text("close", "./mid", "-n") == "Would close 'mid'.\n"
        assert d.text("close", "./mid") == "'mid' is closed.\n"
        r = d.verb("close", "base")
        assert r["closed"] == ["base"] and not r["dry-run"], r
        assert d.nodes() == {"copy-e"}, d.nodes()
        d.stop()


def snapshot_and_commit_once_more():
    """The overlay that is left would stand in the way of every next one."""
    with Disk() as d:
        for i, end in enumerate((["commit", "e", "--base", "top"],
                                 ["merge", "e", "--into", "snapshot"]) * 2):
            r = d.verb("snapshot", "e", f"s{i}")
            assert r["disks"][0]["node"] == "overlay-e", r
            d.guest_writes((7 + i) * MIB, b"s")
            r = d.verb(*end)
            assert r["closed"] == ["overlay-e"] and r["node"] == "top", r
            os.unlink(f"s{i}")
        d.verb("snapshot", "e", "s")
        r = d.verb("commit", "e", "--base", "top", "--then", "stay")
        assert "closed" not in r and r["node"] == "overlay-e", r
        # Layers below the disk, the other way, and several at once.
        r = d.verb("commit", "e", "--top", "top", "--base", "mid")
        assert r["closed"] == ["top"], r
        os.unlink("top")  # which names the next one as its backing file
        r = d.verb("merge", "e", "--snapshot", "mid", "--into", "overlay")
        assert r["closed"] == ["mid"] and r["node"] == "overlay-e", r
        d.verb("snapshot", "e", "s2")
        r = d.verb("commit", "e")
        assert r["closed"] == ["overlay-e-2", "overlay-e"], r
        assert d.nodes() == {"base"}, d.nodes()
        os.unlink("mid")
        os.unlink("s")
        d.text("copy", "e", "./m", "--delete-source")
        assert not os.path.exists("base") and d.nodes() == {"copy-e"}
        d.stop()
    judge("m", "raw")


def a_stopped_commit_closes_nothing():
    with Disk() as d:
        p = d.start("commit", "e", "--base", "mid", "--manual", "--wait",
                    "--json")
        d.q.wait_event("BLOCK_JOB_READY")
        d.q.cmd("block-job-cancel", device="commit-e")
        out = p.process.stdout.read().decode().splitlines()
        assert p.wait() == OK, p.errors()
        r = json.loads(out[-1])
        assert "closed" not in r and r["node"] == "top", r
        d.stop()


def snapshots():
    with Disk() as d:
        before = state(d)
        r = d.verb("snapshot", "e", "s1", "--dry-run")
        assert r["dry-run"] and r["disks"][0]["node"] == "overlay-e", r
        assert "Would put" in d.text("snapshot", "e", "s1", "-n")
        untouched(d, before)
        r = d.verb("snapshot", "e", "s1")
        assert r["disks"] == [{"disk": "e", "node": "overlay-e",
                               "backing-node": "top",
                               "file": os.path.abspath("s1")}], r
        text = d.text("snapshot", "e", "s2", "-f", "qed")
        assert "'overlay-e-2'" in text and "'overlay-e'" in text, text
        assert d.node_of_export() == "overlay-e-2"
        assert run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw",
                   "top", "model")[0] == 0
        d.guest_writes(3 * MIB, b"s")
        d.stop()
    judge("s2", "qed", alone=False)


def several_snapshots_are_one():
    with Disk() as d:
        run("qemu-img", "create", "-q", "-f", "qcow2", "other", "1M")
        d.q.cmd("blockdev-add", driver="qcow2", node_name="other",
                file={"driver": "file", "filename": "other"})
        os.mkdir("dir")  # one cannot be: none is
        before = state(d)
        d.verb("snapshot", "e=s1", "other=no/where", code=NOT_FOUND)
        untouched(d, before)
        r = d.verb("snapshot", "e=s1", "other=dir/s2")
        assert [x["node"] for x in r["disks"]] == ["overlay-e",
                                                   "overlay-other"], r
        d.stop()
    judge("s1", "qcow2", alone=False)
    run("qemu-img", "check", "-q", "-f", "qcow2", "dir/s2")


def a_full_disk_pauses_the_job():
    mount("tmpfs", "small", "-o", "size=8M")
    with Disk() as d:
        p = d.start("copy", "e", "small/m", "--speed", "2M")
        # Before it begins it would not start.
        p.until(lambda: 1 // d.q.cmd("query-transfers")[0]["bytes-moved"],
                ZeroDivisionError, IndexError)
        with open("small/filler", "wb") as f:
            try:
                while True:
                    f.write(bytes(65536))
                    f.flush()
            except OSError:
                pass
        d.q.cmd("block-job-set-speed", device="copy-e", speed=0)
        d.q.wait_event("JOB_STATUS_CHANGE", id="copy-e", status="paused")
        p.until(lambda: p.errors().index("paused: it needs"), ValueError)
        os.unlink("small/filler")
        d.text("job", "resume", "copy-e")
        assert p.wait() == OK, p.errors()
        d.stop()
    judge("small/m", "qcow2")


def a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    defer(os.close, ours)
    with Disk() as d:
        p = subprocess.Popen([SLUICE, "copy", "e", "./m", "--speed", "4M",
                              "--socket", d.socket], stderr=theirs,
                             stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL)
        os.close(theirs)
        seen = b""
        try:
            while True:
                assert select.select([ours], [], [], DEADLINE)[0]
                seen += os.read(ours, 4096)
        except OSError:  # the terminal's end
            pass
        assert p.wait(DEADLINE) == OK
        for word in (b"\r", b"copy [", b"%", b"s left"):
            assert word in seen, (word, seen)
        d.stop()
    judge("m", "qcow2")


def progress_tells_rates():
    with Disk() as d:
        p = d.start("copy", "e", "./m", "--speed", "2M", "--json")
        line = json.loads(p.process.stdout.readline())
        assert line["type"] == "progress" and line["what"] == "copy", line
        for key in ("done", "total", "rate", "copy-rate", "dirty-rate"):
            assert line[key] >= 0, line
        d.q.cmd("block-job-set-speed", device="copy-e", speed=0)
        assert p.wait() == OK, p.errors()
        d.stop()
    judge("m", "qcow2")


if __name__ == "__main__":
    main([copies("qcow2", "pre-copy"), copies("qed", "pre-copy"),
          copies("raw", "pre-copy"), copies("qcow2", "post-copy"),
          copies("qcow2", "hybrid"), copies("qed", "hybrid"),
          a_copy_says_what_it_moved, a_target_may_be_a_node,
          an_image_may_be_reused,
          an_old_image_is_upgraded_when_that_is_said, dry_runs_say_bytes_and_space,
          what_fails_is_taken_away, usage_errors,
          a_mirror_stays_until_it_is_stopped,
          a_stop_says_what_came_of_it_of_jobs_that_dismiss_themselves,
          a_mirror_switches_when_it_is_told_to, a_mirror_can_be_waited_for,
          a_mirror_can_be_told_how_it_ends,
          by_hand("pre-copy"), by_hand("hybrid"), a_detached_copy_goes_on,
          ctrl_c_detaches, cancelled("qcow2"), cancelled("raw"),
          the_source_is_deleted, commits_layers_in_the_middle,
          commits_the_disk_itself, a_commit_of_a_disk_with_no_backing_file,
          a_commit_by_hand_waits,
          a_commit_ends_as_it_was_told, a_commit_says_where_the_disk_is,
          there_and_back_again, closes_nothing_that_is_used,
          a_disk_under_a_filter_is_left_too,
          closes_what_a_user_has_no_use_for, snapshot_and_commit_once_more,
          a_stopped_commit_closes_nothing, snapshots,
          several_snapshots_are_one, a_full_disk_pauses_the_job,
          a_terminal_gets_a_bar, progress_tells_rates])
