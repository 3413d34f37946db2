#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The command's merge, and how it and its kin find images by their files.

cli_merge.py SLUICED SLUICE
"""
import json
import os
import signal
import subprocess
import sys
import time

from harness import (Daemon, Process, journal, loop_device, main, mount, need,
                     run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
OK, FAILED, USAGE, NOT_FOUND, CONFLICT, NO_SPACE, CANCELLED = 0, 1, 2, 4, 6, 7, 9
MIB = 1 << 20

need("qemu-img", "qemu-io")


def make(where=".", size="32M", *options):
    """base <- mid <- top; the model is what they read as."""
    os.makedirs(where, exist_ok=True)
    for i, name in enumerate(("base", "mid", "top")):
        path = os.path.join(where, name)
        link = ["-b", ("base", "mid")[i - 1], "-F", "qcow2"] if i else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *options, *link, path,
            size)
        run("qemu-io", "-f", "qcow2", "-c",
            f"write -P {i + 1} {4 * i}M {(24, 10, 6)[i]}M", path)
    run("qemu-img", "convert", "-O", "raw", path, "model")


def judge(name):
    run("qemu-img", "check", "-q", "-f", "qcow2", name)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", name, "model")


class Disk(Daemon):
    """The chain, of which only the disk has a name of its own."""

    def __init__(self, where=".", cwd=None, path="top"):
        make(where)
        super().__init__(SLUICED, "--blockdev", "qcow2,node-name=disk,"
                         f"file.driver=file,file.filename={path}", folder=cwd)
        self.q = self.qmp()

    def command(self, *args, ok=(0,)):
        return run(SLUICE, *args, "--socket", self.socket, ok=ok)[1]

    def result(self, *args):
        return json.loads(self.command(*args, "--json").splitlines()[-1])


def layers_are_found_by_their_files():
    """Also where the daemon runs elsewhere and has names of its own."""
    os.mkdir("there")
    with Disk("vm", cwd=os.path.abspath("there"), path="../vm/top") as d:
        for disk in ("disk", "vm/top", os.path.abspath("vm/top"), "top",
                     "../vm/top"):
            for lower in ("mid", "vm/mid", os.path.abspath("vm/mid")):
                r = d.result("merge", disk, "--snapshot", lower, "--dry-run",
                             "--into", "overlay")
                assert r["survivor"] == "disk" and len(r["drops"]) == 1, r
        r = d.result("stream", "vm/top", "--base", "vm/base", "--dry-run")
        assert r["bytes"] == 4 * MIB, r
        r = d.result("commit", "vm/top", "--top", "vm/mid", "--base", "base",
                     "--dry-run")
        assert r["bytes"] == 10 * MIB, r
        r = d.result("copy", "vm/top", "./new", "--dry-run")
        assert r["disk"] == "vm/top", r
        r = d.result("snapshot", "vm/top", "./new", "--dry-run")
        assert r["disks"][0]["backing-node"] == "disk", r
        # A file that is here is that one, whatever the daemon's is called.
        open("top", "w").close()
        assert "no disk, node or image file 'top'" in d.command(
            "merge", "top", "--dry-run", ok=(NOT_FOUND,))
        d.command("merge", "disk", "--snapshot", "nope", "--dry-run",
                  ok=(NOT_FOUND,))
        out = d.command("merge", "vm/top", "--snapshot", "vm/mid", "--into",
                        "snapshot")
        assert "Job 'merge-top' is done" in out, out
        d.stop()
    judge("vm/mid")


def one_file_of_two_nodes_is_refused():
    with Disk() as d:
        d.q.cmd("blockdev-add", driver="raw", node_name="other",
                read_only=True, file={"driver": "file", "filename": "model"})
        d.q.cmd("blockdev-add", driver="raw", node_name="another",
                read_only=True, file={"driver": "file", "filename": "model"})
        out = d.command("stream", "./model", "--dry-run", ok=(FAILED,))
        assert "both show './model'" in out, out
        d.stop()


def version_2_needs_upgrade():
    with Disk() as d:
        d.stop()
    run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", "mid")
    with Daemon(SLUICED, "--blockdev", "qcow2,node-name=disk,"
                "file.driver=file,file.filename=top") as d:
        d.qmp()
        at = ["--socket", d.socket]
        out = run(SLUICE, "merge", "disk", *at, ok=(FAILED,))[1]
        assert "--upgrade makes it version 3" in out, out
        run(SLUICE, "merge", "disk", "--into", "snapshot", "--upgrade", *at)
        d.stop()
    judge("mid")


def the_same_merge_with_another_speed_sets_that():
    with Disk() as d:
        merge = ["merge", "disk", "--into", "snapshot"]
        r = d.result(*merge, "--speed", "1M", "--detach")
        assert r["was-under-way"] is False, r
        out = d.command(*merge, "--speed", "2M", "--detach")
        assert "was under way; its speed is now 2.0 MiB/s" in out, out
        assert d.q.cmd("query-block-jobs")[0]["speed"] == 2 * MIB
        r = d.result(*merge, "--detach")  # says nothing of the speed
        assert r["was-under-way"] is True and "speed" not in r, r
        assert d.q.cmd("query-block-jobs")[0]["speed"] == 2 * MIB
        r = d.result(*merge, "--speed", "0")
        assert r["was-under-way"] is True and r["speed"] == 0, r
        d.stop()
    judge("mid")


def a_dry_run_says_what_is_lost():
    """And calls images by their files where their nodes have no name."""
    with Disk() as d:
        for into in "snapshot", "overlay":
            merge = ["merge", "disk", "--snapshot", "base", "--into", into,
                     "--dry-run"]
            r = d.result(*merge)
            assert r["snapshot-lost"] is True and len(r["lost"]) == 2, r
            out = d.command(*merge)
            assert "as they were:\n  mid\n  base\n" in out.replace("./", ""), \
                out
            assert "#block" not in out, out
        d.stop()


def an_error_has_no_names_of_nodes_that_have_none():
    with Disk() as d:
        d.q.cmd("block-stream", job_id="j", device="disk", speed=1)
        out = d.command("commit", "disk", "--top", "mid", ok=(CONFLICT,))
        assert "#block" not in out and "mid" in out, out
        d.stop()


def too_little_space_is_told_in_sizes():
    mount("tmpfs", "small", "-o", "size=60M")
    with Disk("small", path="small/top") as d:
        with open("small/fill", "wb") as f:
            try:
                while True:
                    f.write(bytes(1 << 20))
                    f.flush()
            except OSError:
                pass
        out = d.command("merge", "disk", "--dry-run", ok=(NO_SPACE,))
        assert "needs 4." in out and "MiB more" in out, out
        assert "make room there" in out and "another target" not in out, out
        out = d.command("merge", "disk", ok=(NO_SPACE,))
        assert "MiB more" in out and "0 B left" in out, out
        d.stop()


# Images that no daemon holds.

def offline(verb, survivor, left, *options):
    def test():
        make()
        before = open("model", "rb").read()
        assert len(before) == 32 * MIB
        r = offline_result(verb, "top", *options)
        assert r["file"] == survivor and r["verb"] == verb, r
        assert left_behind() == sorted(left), left_behind()
        judge(survivor)
    return f"{verb} of a path, {' '.join(options)}", test


def left_behind():
    return sorted(n for n in os.listdir(".") if n != "model")


def offline_result(verb, *args, ok=(0,)):
    return json.loads(run(SLUICE, verb, *args, "-f", "qcow2", "--json",
                          ok=ok)[1].splitlines()[-1])


def a_stream_of_a_path_stops_at_a_layer():
    make()
    r = offline_result("stream", "top", "--base", "base")
    assert r["bytes-moved"] == 4 * MIB, r
    info = json.loads(run("qemu-img", "info", "--output=json", "top")[1])
    assert info["backing-filename"] == "base", info
    judge("top")


def a_dry_run_of_a_path_changes_nothing():
    make()
    before = {n: open(n, "rb").read() for n in left_behind()}
    out = run(SLUICE, "merge", "top", "-f", "qcow2", "-n")[1]
    assert "into the overlay 'top'" in out and "  mid\n" in out, out
    run(SLUICE, "commit", "top", "-f", "qcow2", "-n")
    assert before == {n: open(n, "rb").read() for n in left_behind()}


def a_path_and_its_layers_are_called_by_their_files():
    """There are no nodes and is no daemon for who works on a path."""
    make()
    out = run(SLUICE, "merge", "./top", "-f", "qcow2", "-n", "--into",
              "snapshot", "--snapshot", "../" + os.path.basename(os.getcwd()) +
              "/base")[1]
    assert "  leaves        ./top\n  leaves        ./mid\n" in out, out
    assert f"'../{os.path.basename(os.getcwd())}/base'" in out, out
    r = offline_result("merge", "top", "--into", "snapshot", "--dry-run")
    assert (r["drops"], r["survivor"], r["lost"]) == (["top"], "mid",
                                                      ["mid"]), r
    r = offline_result("merge", "top", "--into", "overlay", "--dry-run")
    assert (r["drops"], r["survivor"], r["lost"]) == (["mid"], "top",
                                                      ["mid"]), r
    assert offline_result("commit", "top", "-n")["drops"] == ["top", "mid"]
    assert offline_result("stream", "top", "-n")["drops"] == ["mid", "base"]
    for args in (["merge", "top", "--snapshot", "model"],
                 ["commit", "top", "--top", "model"],
                 ["commit", "top", "--base", "model"],
                 ["stream", "top", "--base", "model"]):
        for dry in [], ["--dry-run"]:
            r = offline_result(*args, *dry, ok=(NOT_FOUND,))
            assert r["message"] == "'top' has no layer 'model'", r
            assert "'mid'" in r["hint"], r
    # Results, and refusals of what would be a daemon.
    r = offline_result("commit", "top", "--then", "stay", "--base", "mid")
    assert r["node"] == "top", r
    device = loop_device("base")
    run("qemu-img", "rebase", "-u", "-b", device, "-F", "qcow2", "mid")
    out = run(SLUICE, "merge", "./mid", "-f", "qcow2", "--into", "snapshot",
              "--keep-name", ok=(FAILED,))[1]
    assert f"'{device}' cannot take the name of './mid'" in out, out
    assert "leave --keep-name out" in out, out


def keep_name_says_whose_name_goes():
    for where in "", "vm/":
        make(where or ".")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top", "-F",
            "qcow2", where + "snap")
        merge = [where + "snap", "--into", "snapshot", "--keep-name"]
        for verb in ["merge", *merge], ["merge", *merge, "--delete",
                                        "--snapshot", where + "mid"]:
            goes = verb[-1] if "--snapshot" in verb else where + "top"
            r = offline_result(*verb, "--dry-run")
            assert r["vanishes"] == goes, r
            out = run(SLUICE, *verb, "-f", "qcow2", "-n")[1]
            assert f"'{goes}' takes the name '{where}snap'; there will be " \
                   f"no '{goes}' any more" in out, out
        r = offline_result("merge", *merge)
        assert r["renamed-from"] == where + "top", r
        assert r["file"] == where + "snap", r
        assert not os.path.exists(where + "top")
        # A daemon's, and without a rename.
        with Daemon(SLUICED, "--blockdev", "qcow2,node-name=disk,"
                    f"file.driver=file,file.filename={where}snap") as d:
            d.qmp()
            out = run(SLUICE, "merge", "disk", "--into", "snapshot",
                      "--keep-name", "--socket", d.socket)[1]
            assert f"'{where}mid' has taken the name '{where}snap' and is " \
                   f"the disk; there is no '{where}mid' any more." in out, out
            d.stop()
        r = offline_result("merge", where + "snap", "--into", "overlay",
                           "--keep-name", "--dry-run")
        assert "vanishes" not in r, r
        r = offline_result("merge", where + "snap", "--into", "overlay",
                           "--keep-name")
        assert "renamed-from" not in r, r


def begin(verb, *options):
    """A slow job of a path, once it has moved something."""
    p = Process(SLUICE, verb, "top", "-f", "qcow2", "--json", *options,
                stdout=subprocess.PIPE)
    while not json.loads(p.process.stdout.readline())["done"]:
        pass
    return p


def wait_until_free(image):
    for _ in range(1000):
        if not json.loads(run(SLUICE, "--json", "status", image)[1])["in-use"]:
            return
        time.sleep(0.01)
    raise AssertionError("it is still open")


def ctrl_c_leaves_an_ordinary_chain():
    make()
    p = begin("merge", "--into", "snapshot", "--speed", "2M")
    p.process.send_signal(signal.SIGINT)
    assert p.wait() == CANCELLED, p.errors()
    assert "the same command continues it" in p.errors(), p.errors()
    assert left_behind() == ["base", "mid", "top"], left_behind()
    judge("top")
    offline_result("merge", "top", "--into", "snapshot")
    judge("mid")


def what_was_killed_goes_on_with_the_same_command():
    """The daemon of its own ends with it."""
    make()
    p = begin("merge", "--into", "snapshot", "--speed", "2M",
              "--job-id", "mine")
    p.kill()
    p.process.wait()
    wait_until_free("top")
    assert "'mine'" in run(SLUICE, "status", "top")[1]
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top", "model")
    q = Process(SLUICE, "merge", "top", "-f", "qcow2", "--into", "snapshot",
                stdout=subprocess.PIPE)
    line = q.process.stdout.readline().decode()
    assert "Job 'mine', which was cut off, goes on" in line, line
    assert q.wait() == OK, q.errors()
    assert left_behind() == ["base", "mid", "top"], left_behind()
    judge("mid")


def birth(path):
    """When it was made, in ns."""
    seconds, ns = run("stat", "-c", "%.9W", path)[1].strip().split(".")
    return int(seconds) * 10**9 + int(ns)


def the_same_command_again_merges_no_more():
    """Killed when the header had changed already, and nothing was deleted."""
    make()
    run(SLUICE, "merge", "top", "-f", "qcow2", "--into", "overlay")
    note = {"job": "merge-top", "is-last": True,
            "heir-ino": os.stat("top").st_ino, "heir-born": birth("top"),
            "file": "mid", "format": "qcow2", "ino": os.stat("mid").st_ino,
            "born": birth("mid"), "exclusive": False, "dependents-in": [],
            "survivor": "top"}
    for _ in range(2):  # the second time there is nothing left to delete
        journal("top", (7, b"merge-top/0\0" + json.dumps(note).encode()))
        out = run(SLUICE, "merge", "top", "-f", "qcow2", "--into",
                  "overlay")[1]
        assert "was finished when 'top' was opened" in out, out
        assert not os.path.exists("mid")
        info = json.loads(run("qemu-img", "info", "--output=json", "top")[1])
        assert info["backing-filename"] == "base", info
    run(SLUICE, "merge", "top", "-f", "qcow2", "--into", "overlay",
        "--snapshot", "base")
    judge("top")


def a_path_that_is_in_use_is_refused():
    with Disk() as d:
        for verb in "merge", "commit", "stream":
            out = run(SLUICE, verb, "top", "-f", "qcow2", ok=(CONFLICT,))[1]
            assert "leave out -f" in out, out
        d.stop()
    judge("top")


def a_dry_run_refuses_what_the_start_would():
    make()
    os.mkdir("far")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
        os.path.abspath("mid"), "-F", "qcow2", "far/other")
    for more in ["--dry-run"], []:
        out = run(SLUICE, "merge", "top", "-f", "qcow2", "--dependents-in",
                  "far", *more, ok=(FAILED, CONFLICT))[1]
        assert "far/other" in out, out
    run(SLUICE, "merge", "top", "-f", "qcow2", "--dependents-in", "far",
        "--exclusive", "--dry-run")


def a_commit_with_no_backing_file_says_so():
    make()
    for dry in [], ["--dry-run"]:
        r = offline_result("commit", "./base", *dry, ok=(FAILED,))
        assert r["message"] == "'./base' has no backing file to commit into", r
        r = offline_result("commit", "top", "--top", "base", *dry,
                           ok=(FAILED,))
        assert r["message"] == "'base' has no backing file to commit into", r


def dependants_are_looked_for():
    make()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2",
        "clone")
    out = run(SLUICE, "merge", "top", "-f", "qcow2", ok=(FAILED, CONFLICT))[1]
    assert "clone" in out, out
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top", "model")


def without_space_it_ends_and_goes_on_later():
    mount("tmpfs", "small", "-o", "size=120M")
    make("small")
    model = os.path.abspath("model")
    os.chdir("small")
    p = begin("stream", "--speed", "2M")
    with open("fill", "wb") as f:
        try:
            while True:
                f.write(bytes(65536))
                f.flush()
        except OSError:
            pass
    assert p.wait() == NO_SPACE, p.errors()
    assert "make room" in p.errors(), p.errors()
    os.unlink("fill")
    out = run(SLUICE, "stream", "top", "-f", "qcow2")[1]
    assert "'stream-top', which was cut off, goes on" in out, out
    assert left_behind() == ["base", "mid", "top"], left_behind()
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top", model)
    os.chdir("..")


def a_path_without_its_format_is_a_daemons():
    make()
    out = run(SLUICE, "merge", "./top", "--socket", "none", ok=(10,))[1]
    assert "-f FORMAT" in out, out


if __name__ == "__main__":
    main([layers_are_found_by_their_files, one_file_of_two_nodes_is_refused,
          version_2_needs_upgrade,
          the_same_merge_with_another_speed_sets_that,
          a_dry_run_says_what_is_lost,
          an_error_has_no_names_of_nodes_that_have_none,
          too_little_space_is_told_in_sizes,
          offline("merge", "mid", ["base", "mid", "top"], "--into",
                  "snapshot"),
          offline("merge", "top", ["top"], "--snapshot", "base", "--into",
                  "overlay", "--delete"),
          offline("merge", "top", ["top"], "--snapshot", "base", "--into",
                  "snapshot", "--delete", "--keep-name"),
          offline("commit", "base", ["base", "mid", "top"]),
          offline("commit", "top", ["base", "mid", "top"], "--then", "stay"),
          offline("commit", "top", ["base", "mid", "top"], "--top", "mid",
                  "--base", "base"),
          a_stream_of_a_path_stops_at_a_layer,
          a_dry_run_of_a_path_changes_nothing,
          a_path_and_its_layers_are_called_by_their_files,
          keep_name_says_whose_name_goes,
          a_commit_with_no_backing_file_says_so,
          ctrl_c_leaves_an_ordinary_chain,
          what_was_killed_goes_on_with_the_same_command,
          the_same_command_again_merges_no_more,
          a_path_that_is_in_use_is_refused, dependants_are_looked_for,
          a_dry_run_refuses_what_the_start_would,
          without_space_it_ends_and_goes_on_later,
          a_path_without_its_format_is_a_daemons])
