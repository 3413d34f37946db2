#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Moving data between the layers of a chain while a guest writes: real files,
and qemu-img as the judge.

commit.py SLUICED SLUICE GUEST
"""
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time

from harness import (DEADLINE, Daemon, QmpError, defer, main, nbd_server, need,
                     run, wait_for)

SLUICED, SLUICE, GUEST = (os.path.abspath(p) for p in sys.argv[1:4])
MIB = 1 << 20
F_OFD_SETLK = 37
SIZE = 24 * MIB
URI = "nbd+unix:///a?socket=nbd.sock"

need("qemu-img", "qemu-io", "mkfs.ext4", "fallocate")


def layer(name, fmt, backing, backing_fmt, off, *options):
    run("qemu-img", "create", "-q", "-f", fmt, *options, "-b", backing, "-F",
        backing_fmt, name, str(SIZE))
    run("qemu-io", "-f", fmt, "-c", f"write -P {off} {off}M 5M", "-c",
        f"write -z {off + 7}M 1M", name)


def make_chain(base_fmt="raw"):
    """base <- one <- two <- top, and a model of what the top reads as."""
    run("qemu-img", "create", "-q", "-f", base_fmt, "base", str(SIZE))
    run("qemu-io", "-f", base_fmt, "-c", "write -P 99 1M 20M", "base")
    layer("one", "qcow2", "base", base_fmt, 2, "-o", "cluster_size=512")
    layer("two", "qed", "one", "qcow2", 6)
    layer("top", "qcow2", "two", "qed", 9, "-o", "cluster_size=2M")
    run("qemu-img", "convert", "-O", "raw", "top", "model")
    with open("ranges", "w") as f:
        f.write(f"0 {SIZE}\n")


def chain(fmt="raw"):
    """Every layer by its name."""
    def node(name, kind, backing):
        return ["--blockdev", json.dumps({
            "driver": kind, "node-name": name, "discard": "unmap",
            "read-only": name != "top",
            "file": {"driver": "file", "filename": name},
            **({"backing": backing} if backing else {})})]
    return [*node("base", fmt, None), *node("one", "qcow2", "base"),
            *node("two", "qed", "one"), *node("top", "qcow2", "two")]


def daemon(fmt="raw"):
    return Daemon(SLUICED, *nbd_server(), *chain(fmt), "--export",
                  "nbd,id=e,node-name=top,name=a,writable=on")


class Guest:
    def __init__(self):
        self.process = subprocess.Popen([GUEST, URI, "model", "ranges", "0"],
                                        stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"working\n"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out


def statuses(qmp):
    return [e["data"]["status"] if e["event"] == "JOB_STATUS_CHANGE"
            else e["event"] for e in qmp.events]


def wait_end(qmp, until):
    while not qmp.events or statuses(qmp)[-1] != until:
        qmp.events.append(qmp.receive())


def a_compressed_base_needs_the_space_anew(command, space, **arguments):
    """What a delta replaces there is written to new clusters: its own are
    too small for it.  A merge gives back the delta's meanwhile."""
    def test():
        with open("raw", "wb") as f:  # to a third, or so
            for _ in range(SIZE // 65536):
                f.write(os.urandom(20000) + bytes(65536 - 20000))
        run("qemu-img", "convert", "-c", "-O", "qcow2", "raw", "base")
        for kind, base in ("compressed", "base"), ("plain", "plain"):
            if kind == "plain":
                run("qemu-img", "convert", "-O", "qcow2", "-S", "0", "raw",
                    base)
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F",
                "qcow2", kind + ".top")
            run("qemu-io", "-f", "qcow2", "-c", "write -P 7 4M 8M",
                kind + ".top")
            size = os.stat(base).st_size
            with Daemon(SLUICED, "--blockdev", "qcow2,node-name=top,"
                        f"file.driver=file,file.filename={kind}.top") as d:
                qmp = d.qmp()
                plan = qmp.cmd(f"query-{command}-plan", device="top",
                               **arguments)
                assert plan["bytes-to-copy"] == 8 * MIB, plan
                want = space if kind == "compressed" else 0
                assert want <= plan["space-needed"] <= want + MIB, (kind, plan)
                qmp.cmd(f"block-{command}", job_id="j", device="top",
                        auto_dismiss=False, **arguments)
                while qmp.cmd("query-jobs")[0]["status"] != "concluded":
                    if qmp.cmd("query-jobs")[0]["status"] == "ready":
                        qmp.cmd("job-complete", id="j")
                    time.sleep(0.005)
                assert "error" not in qmp.cmd("query-jobs")[0]
                d.stop()
            grown = os.stat(base).st_size - size
            if kind == "plain":
                assert grown <= MIB, grown
            else:  # it was no exaggeration
                assert 4 * MIB < grown <= 8 * MIB + MIB, (grown, plan)
            run("qemu-img", "check", "-q", base)
            run("qemu-io", "-f", "qcow2", "-c", "read -P 7 4M 8M", base)
    return f"a {command} into a compressed base says what it needs", test


def full_file_system(space):
    """As the current folder.  The function that is returned takes all but so
    much of it, for "ballast"."""
    here = os.getcwd()
    os.mkdir("fs")
    run("truncate", "-s", "32M", "image")
    run("mkfs.ext4", "-q", "-m", "0", "-b", "4096", "image")
    run("mount", "-o", "loop", "image", "fs")
    defer(run, "umount", os.path.abspath("fs"))
    os.chdir("fs")
    defer(os.chdir, here)

    def fill():
        s = os.statvfs(".")
        with open("ballast", "wb") as f:
            os.posix_fallocate(f.fileno(), 0,
                               s.f_bavail * s.f_frsize - space)
    return fill


def make_tables_holes(name):
    """An image that holds no data: its L2 tables lie where no block is."""
    with open(name, "r+b") as f:
        head = f.read(48)
        bits, entries, l1 = struct.unpack_from(">20xI12xIQ", head)
        f.seek(l1)
        for entry in struct.unpack(f">{entries}Q", f.read(8 * entries)):
            f.seek(entry & 0x00fffffffffffe00)
            f.write(bytes(1 << bits))
    run("fallocate", "--dig-holes", name)


def tables_that_find_no_space_at_the_end_wait_for_it():
    """Zeroes need no clusters, only tables that are there, but as holes; those
    are written by the last flush.  The job pauses there as elsewhere."""
    fill = full_file_system(40 << 10)
    size = 64 * MIB
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", str(size))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 10M 1M", "base")
    for name, below in ("mid", "base"), ("top", "mid"):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "cluster_size=4k", "-b", below, "-F", "qcow2", name)
    for name in "mid", "top":
        run("qemu-io", "-f", "qcow2", "-c", f"write -z 0 {size}", name)
    make_tables_holes("top")
    with Daemon(SLUICED, "--blockdev", "qcow2,node-name=top,file.driver=file,"
                "file.filename=top") as d:
        qmp = d.qmp()
        base, = [n["node-name"] for n in qmp.cmd("query-named-block-nodes")
                 if n["file"] == "base" and n["drv"] == "qcow2"]
        qmp.cmd("block-stream", job_id="j", device="top", base_node=base,
                auto_dismiss=False, speed=1)  # when it began there was space
        fill()
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        for again in True, False:  # first it is told to try in vain
            e = qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]
            assert (e["action"], e["operation"]) == ("stop", "write"), e
            qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
            job, = qmp.cmd("query-block-jobs")
            assert job["io-status"] == "nospace" and job["paused"], job
            assert job["offset"] == job["len"], job  # all but the flush
            if again:
                qmp.cmd("job-resume", id="j")
        os.unlink("ballast")
        qmp.cmd("job-resume", id="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
        assert "error" not in end, end
        d.stop()
    assert names("top", "qcow2") == "base"
    run("qemu-img", "check", "-q", "top")
    run("qemu-io", "-f", "qcow2", "-c", f"read -P 0 0 {size}", "top")


def names(name, fmt):
    return json.loads(run("qemu-img", "info", "-f", fmt, "--output=json",
                          name)[1]).get("backing-filename")


def judge(name, fmt):
    if fmt != "raw":
        run("qemu-img", "check", "-q", "-f", fmt, name)
    run("qemu-img", "compare", "-f", fmt, "-F", "raw", name, "model")


END = ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]


def operate(command, fmt="raw", ready=None, **arguments):
    """Runs it under a guest to its end."""
    make_chain(fmt)
    with daemon(fmt) as d:
        qmp, guest = d.qmp(), Guest()
        qmp.events.clear()
        qmp.cmd(command, job_id="j", **arguments)
        want = ["created", "running"]
        if ready:
            wait_end(qmp, "BLOCK_JOB_READY")
            qmp.cmd(ready, **{"id" if ready == "job-complete" else "device":
                              "j"})
            want += ["ready", "BLOCK_JOB_READY"]
        wait_end(qmp, "null")
        assert statuses(qmp) == want + END, statuses(qmp)
        graph = qmp.cmd("query-named-block-nodes", flat=True)
        guest.stop()
        d.stop()
    return {n["node-name"]: n.get("backing_file") for n in graph}


def the_disk_goes_on_on_its_base(fmt):
    def test():
        operate("block-commit", fmt, "job-complete", device="top")
        judge("base", fmt)
    return f"commit of the disk into {fmt}", test


def a_commit_ends_as_it_is_told(finish, disk):
    """By itself, as a preset of block-transfer, also in the next daemon."""
    def test():
        make_chain()
        with daemon() as d:
            qmp = d.qmp()
            qmp.events.clear()
            qmp.cmd("block-transfer", preset="commit", job_id="j",
                    device="top", finish=finish, speed=1,
                    copy_mode="background")
            while not qmp.cmd("query-transfers")[0]["bytes-moved"]:
                time.sleep(0.01)
            d.kill()
            d.wait()
        with open("top.sluice", "rb") as record:  # told, not left to Sluice
            assert b'"copy-mode":1' in record.read()
        with daemon() as d:
            qmp = d.qmp()
            assert qmp.cmd("query-block-jobs")[0]["type"] == "commit"
            qmp.cmd("block-job-set-speed", device="j", speed=0)
            qmp.wait_event("JOB_STATUS_CHANGE", status="null")
            assert not [e for e in qmp.history if "ready" in str(e)]
            assert not [e for e in qmp.history if "error" in e["data"]]
            assert qmp.cmd("query-block-exports")[0]["node-name"] == disk
            d.stop()
        judge("base", "raw")
        judge("top", "qcow2")
        assert names("top", "qcow2") == "two"
    return f"a commit with finish: {finish}", test


def a_stop_leaves_the_disk_where_it_is():
    operate("block-commit", ready="block-job-cancel", device="top")
    judge("top", "qcow2")
    assert names("top", "qcow2") == "two"


def a_layer_goes_into_the_one_below():
    operate("block-commit", device="top", top_node="two", base_node="one")
    judge("top", "qcow2")
    assert names("top", "qcow2") == "one"


def layers_go_into_the_base():
    operate("block-transfer", preset="commit", device="top", top_node="two")
    judge("top", "qcow2")
    assert names("top", "qcow2") == "base"


def the_header_names_what_it_is_told():
    os.symlink("base", "alias")
    operate("block-commit", device="top", top="two", backing_file="alias")
    assert names("top", "qcow2") == "alias"
    judge("top", "qcow2")


def a_header_names_a_file_that_is_no_image_as_raw():
    """No program looks for a format "file"; asked for or not."""
    run("qemu-img", "create", "-q", "-f", "raw", "base", str(SIZE))
    for mask in (True, False):
        for name, below, fmt in (("mid", "base", "raw"),
                                 ("top", "mid", "qcow2")):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F",
                fmt, name)
        with Daemon(SLUICED) as d:
            qmp = d.qmp()
            qmp.cmd("blockdev-add", driver="file", node_name="base",
                    filename="base")
            qmp.cmd("blockdev-add", driver="qcow2", node_name="top",
                    file={"driver": "file", "filename": "top"},
                    backing={"driver": "qcow2", "backing": "base",
                             "file": {"driver": "file", "filename": "mid"}})
            qmp.cmd("block-stream", job_id="j", device="top",
                    base_node="base", backing_mask_protocol=mask)
            qmp.wait_event("BLOCK_JOB_COMPLETED")
            d.stop()
        have = json.loads(run("qemu-img", "info", "--output=json", "top")[1])
        assert have["backing-filename"] == "base", have
        assert have["backing-filename-format"] == "raw", have


def a_layer_below_is_streamed():
    operate("block-stream", device="two", base_node="base")
    judge("top", "qcow2")
    assert names("two", "qed") == "base"


def two_streams_at_once():
    """Both run to their ends under a guest, one below the other."""
    make_chain()
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        # However fast they are, both are there: neither ends by itself.
        qmp.cmd("block-stream", job_id="i", device="top", base_node="one",
                auto_finalize=False)
        qmp.cmd("block-stream", job_id="j", device="one", auto_finalize=False)
        assert len(qmp.cmd("query-jobs")) == 2
        for job in "ij":
            wait_for(lambda: {j["id"]: j["status"] for j in
                              qmp.cmd("query-jobs")}[job] == "pending")
            qmp.cmd("job-finalize", id=job)
        while statuses(qmp).count("null") != 2:
            qmp.events.append(qmp.receive())
        assert not [e for e in qmp.events if "error" in e["data"]]
        guest.stop()
        d.stop()
    judge("top", "qcow2")
    assert names("top", "qcow2") == "one" and names("one", "qcow2") is None


def below_a_mirror(command, **arguments):
    """The mirror's source loses layers while it is copied."""
    make_chain()
    run("qemu-img", "create", "-q", "-f", "qcow2", "copy", str(SIZE))
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        qmp.cmd("blockdev-add", driver="qcow2", node_name="copy", backing=None,
                file={"driver": "file", "filename": "copy"})
        qmp.cmd("blockdev-mirror", job_id="m", device="top", target="copy",
                sync="full")
        qmp.cmd(command, job_id="s", device="top", **arguments)
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert [j["id"] for j in qmp.cmd("query-jobs")] == ["m"]
        if qmp.cmd("query-jobs")[0]["status"] != "ready":
            qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("job-complete", id="m")
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        guest.stop()
        d.stop()
    judge("copy", "qcow2")


def a_stream_below_a_mirror():
    below_a_mirror("block-stream")


def a_commit_below_a_mirror():
    below_a_mirror("block-commit", top_node="two", base_node="base")


def a_mirror_may_lie_on_its_source():
    make_chain()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top", "-F", "qcow2",
        "copy", str(SIZE))
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        qmp.cmd("blockdev-add", driver="qcow2", node_name="copy",
                backing="top", file={"driver": "file", "filename": "copy"})
        qmp.cmd("blockdev-mirror", job_id="m", device="top", target="copy",
                sync="full")
        qmp.wait_event("BLOCK_JOB_READY")
        guest.stop()
        qmp.cmd("block-job-cancel", device="m")
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        d.stop()
    judge("copy", "qcow2")
    assert names("copy", "qcow2") is None


def add_copy(qmp, fmt="qcow2", name="copy"):
    run("qemu-img", "create", "-q", "-f", fmt, name, str(SIZE))
    qmp.cmd("blockdev-add", driver=fmt, node_name=name, backing=None,
            discard="unmap", file={"driver": "file", "filename": name})


def must_refuse(qmp):
    def refused(text, command, **arguments):
        try:
            qmp.cmd(command, **arguments)
        except QmpError as e:
            assert text in str(e), e
            return
        raise AssertionError(f"{command} {arguments} went through")
    return refused


def dirty(image):
    """The bits of its log, which lie behind the head."""
    with open(image + ".sluice-dirty", "rb") as f:
        return f.read()[512:]


def a_layer_is_filled_and_mirrored(first):
    """It is writable for the stream; with that, the mirror keeps a log of it,
    which it goes on with when the stream has ended."""
    def test():
        make_chain()
        with daemon() as d:
            qmp, guest = d.qmp(), Guest()
            add_copy(qmp)
            jobs = {"s": ("block-stream", {"device": "one"}),
                    "m": ("blockdev-mirror", {"device": "one",
                                              "target": "copy",
                                              "sync": "full"})}
            for job in sorted(jobs, key=lambda j: j != first):
                command, arguments = jobs[job]
                qmp.cmd(command, job_id=job, speed=1, **arguments)
                while not all(t["elapsed-ns"] for t  # it has begun
                              in qmp.cmd("query-transfers")):
                    time.sleep(0.01)
            qmp.cmd("block-job-set-speed", device="s", speed=0)
            end = qmp.wait_event("BLOCK_JOB_COMPLETED", device="s")["data"]
            assert "error" not in end, end
            qmp.wait_event("JOB_STATUS_CHANGE", id="s", status="null")
            qmp.cmd("block-job-set-speed", device="m", speed=0)
            qmp.wait_event("BLOCK_JOB_READY", device="m")
            assert os.path.exists("one.sluice-dirty") == (first == "s")
            give_up = time.monotonic() + DEADLINE
            while first == "s" and any(dirty("one")):  # it says "alike" yet
                assert time.monotonic() < give_up
                time.sleep(0.05)
            qmp.cmd("job-complete", id="m")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
            assert "error" not in end, end
            graph = {n["node-name"]: n for n
                     in qmp.cmd("query-named-block-nodes", flat=True)}
            assert graph["two"]["backing_file"] == "copy", graph["two"]
            assert graph["one"]["ro"], graph["one"]
            qmp.cmd("blockdev-del", node_name="one")
            guest.stop()
            d.stop()
        assert names("two", "qed") == "copy" and not names("copy", "qcow2")
        assert names("one", "qcow2") is None
        assert not [n for n in os.listdir() if ".sluice" in n]
        judge("top", "qcow2")
    return f"a layer is filled and mirrored, job {first} first", test


def a_layer_goes_on_in_another_file(mode, fmt, ready=None):
    """The disk above it follows, and so does its header."""
    def test():
        make_chain()
        with daemon() as d:
            qmp, guest = d.qmp(), Guest()
            add_copy(qmp, fmt)
            qmp.events.clear()
            qmp.cmd("block-copy", job_id="j", device="two", target="copy",
                    mode=mode, finish="switch")
            if ready:
                wait_end(qmp, "BLOCK_JOB_READY")
                qmp.cmd("job-complete", id="j")
            wait_end(qmp, "null")
            assert not [e for e in qmp.events if "error" in e["data"]]
            graph = {n["node-name"]: n for n
                     in qmp.cmd("query-named-block-nodes", flat=True)}
            assert graph["top"]["backing_file"] == "copy", graph["top"]
            assert not graph["top"]["ro"] and "copy" in graph
            qmp.cmd("blockdev-del", node_name="two")
            guest.stop()
            d.stop()
        os.rename("two", "old")
        assert names("top", "qcow2") == "copy" and not names("copy", fmt)
        assert not [n for n in os.listdir() if n.endswith(".sluice")]
        judge("top", "qcow2")
    return f"{mode} of a layer", test


def headers_name_the_image_behind_a_filter(command, **arguments):
    """No program knows a format "throttle"."""
    def test():
        make_chain("qcow2")
        with Daemon(SLUICED) as d:
            qmp = d.qmp()
            qmp.cmd("object-add", qom_type="throttle-group", id="g")

            def add(name, driver, **more):
                qmp.cmd("blockdev-add", node_name=name, driver=driver, **more)

            def throttle(name):
                add("t-" + name, "throttle", throttle_group="g", file=name)

            for name, fmt, backing in (("base", "qcow2", None),
                                       ("one", "qcow2", "base"),
                                       ("two", "qed", "t-one"),
                                       ("top", "qcow2", "two")):
                add(name, fmt, backing=backing,
                    file={"driver": "file", "filename": name})
                if name == "one":
                    throttle(name)

            def names_format(name):
                have = json.loads(run("qemu-img", "info", "-U", "-f", "qcow2",
                                      "--output=json", name)[1])
                return have["backing-filename-format"]

            qmp.cmd(command, job_id="j", device="top", base_node="t-one",
                    **arguments)
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")
            assert "error" not in end["data"], end
            assert names_format("top") == "qcow2"
            throttle("top")
            add_copy(qmp)
            qmp.cmd("block-copy", job_id="j", device="t-top", target="copy",
                    mode="post-copy", speed=1)
            assert names_format("copy") == "qcow2"
            qmp.cmd("block-job-cancel", device="j", force=True)
            qmp.wait_event("BLOCK_JOB_CANCELLED")
            d.stop()
        assert names("top", "qcow2") == "one"
        assert names("copy", "qcow2") == "top"
        judge("copy", "qcow2")
    return f"{command} names the image behind a filter", test


def filtered(kind):
    """The chain, and a filter that shows its top."""
    group = (["--object", "throttle-group,id=g"] if kind == "throttle" else [])
    more = {"throttle-group": "g"} if kind == "throttle" else {}
    return Daemon(SLUICED, *nbd_server(), *group, *chain("qcow2"),
                  "--blockdev", json.dumps({"driver": kind, "node-name": "f",
                                            "file": "top", **more}),
                  "--export", "nbd,id=e,node-name=f,name=a,writable=on")


def under_a_filter(kind, device, command, survivor, **arguments):
    """By the filter's name or the image's; the filter stays over the disk."""
    def test():
        make_chain("qcow2")
        with filtered(kind) as d:
            qmp, guest = d.qmp(), Guest()
            qmp.cmd(command, job_id="j", device=device, **arguments)
            if command == "block-commit":
                qmp.wait_event("BLOCK_JOB_READY")
                qmp.cmd("job-complete", id="j")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert "error" not in end, end
            graph = {n["node-name"]: n for n
                     in qmp.cmd("query-named-block-nodes", flat=True)}
            assert graph["f"]["children"] == [
                {"child": "file", "node-name": survivor}], graph["f"]
            assert graph["f"]["file"] == survivor, graph["f"]
            if survivor != "top":
                qmp.cmd("blockdev-del", node_name="top")
            # What is to name the disk from now on names what it is now.
            add_copy(qmp)
            qmp.cmd("block-copy", job_id="j", device="f", target="copy",
                    mode="post-copy", speed=1)
            assert json.loads(run("qemu-img", "info", "-U", "--output=json",
                                  "copy")[1])["backing-filename"] == survivor
            guest.stop()
            d.stop()
        judge("copy", "qcow2")
    return f"{command} of {device} under a {kind}", test


def a_header_under_a_filter_is_rewritten():
    make_chain("qcow2")
    with filtered("throttle") as d:
        qmp = d.qmp()
        for i, (device, image) in enumerate((("f", "f"), ("f", "top"),
                                             ("top", "f"), ("top", "top"))):
            os.symlink("two", f"alias{i}")
            qmp.cmd("change-backing-file", device=device,
                    image_node_name=image, backing_file=f"alias{i}")
            have = json.loads(run("qemu-img", "info", "-U", "--output=json",
                                  "top")[1])
            assert have["backing-filename"] == f"alias{i}", have
        qmp.cmd("change-backing-file", device="top", image_node_name="one",
                backing_file="./base")
        # A snapshot's header would name what the job takes away.
        qmp.cmd("block-commit", job_id="j", device="f")
        must_refuse(qmp)("job 'j' uses it", "blockdev-snapshot-sync",
                         node_name="f", snapshot_file="s",
                         snapshot_node_name="s")
        d.stop()
    assert names("one", "qcow2") == "./base"


def a_filter_in_the_middle_hides_what_is_below():
    make_chain("qcow2")
    with Daemon(SLUICED) as d:
        qmp = d.qmp()
        refused = must_refuse(qmp)

        def add(name, driver, **more):
            qmp.cmd("blockdev-add", node_name=name, driver=driver, **more)

        for name, fmt, backing in (("base", "qcow2", None),
                                   ("one", "qcow2", "base"),
                                   ("two", "qed", "f"), ("top", "qcow2", "two")):
            add(name, fmt, backing=backing,
                file={"driver": "file", "filename": name})
            if name == "one":
                add("f", "copy-on-read", file="one")
        # QEMU takes what is below the filter; here it must be said.
        refused("The filter 'f' stands in the middle", "block-commit",
                job_id="j", device="top")
        refused("'base' is not in this backing file chain", "block-commit",
                job_id="j", device="top", base_node="base")
        refused("not in a chain starting from", "block-stream", job_id="j",
                device="top", bottom="one")
        refused("Need a root block node", "block-commit", job_id="j",
                device="f")
        refused("Need a root block node", "block-merge", job_id="j",
                device="one")
        plan = qmp.cmd("query-stream-plan", device="top", base_node="one")
        assert plan["drops"] == ["two"], plan
        qmp.cmd("block-stream", job_id="j", device="top", base_node="one")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        d.stop()
    assert names("top", "qcow2") == "one"
    judge("top", "qcow2")


def what_a_header_cannot_name_takes_no_layers_place():
    make_chain()
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        refused = must_refuse(qmp)
        qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=SIZE)
        refused("cannot name 'n'", "block-copy", job_id="j", device="two",
                target="n")
        # As a copy it is welcome; that it is to be more is said later.
        qmp.cmd("blockdev-mirror", job_id="j", device="two", target="n",
                sync="full")
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("job-complete", id="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "cannot name 'n'" in end["data"]["error"], end
        qmp.cmd("blockdev-mirror", job_id="j", device="two", target="n",
                sync="full")
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("block-job-cancel", device="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        guest.stop()
        d.stop()
    judge("top", "qcow2")
    assert names("top", "qcow2") == "two"


COPIES = {"pre-copy", "post-copy", "hybrid", "mirror"}
TRACKED = COPIES - {"post-copy"}
MERGES = {"stream", "merge"}
# A value, and what it means something to.
PARAMETERS = {
    "target": ("top", COPIES),
    "base-node": ("base", MERGES | {"commit"}),
    "top-node": ("top", {"commit"}),
    "into": ("auto", {"merge"}),
    "release": (True, MERGES),
    "max-extra": (8 * MIB, MERGES),
    "delete": (True, {"merge"}),
    "keep-name": (True, {"merge"}),
    "backing-file": ("x", {"stream", "commit"}),
    "replaces": ("top", {"pre-copy", "mirror"}),
    "sync": ("full", {"pre-copy", "mirror"}),
    "copy-mode": ("background", TRACKED | {"commit"}),
    "finish": ("switch", COPIES - {"mirror"} | {"commit"}),
    "auto-complete": (False, COPIES | {"commit"}),
    "delete-source": (True, COPIES),
    "dependents-in": (["."], COPIES | MERGES),
    "exclusive": (True, COPIES | MERGES),
    "upgrade": (True, TRACKED | MERGES),
    "granularity": (4096, TRACKED),
    "target-is-zero": (True, TRACKED),
    "on-target-error": ("stop", COPIES | {"commit"}),
    "on-source-error": ("stop", COPIES | MERGES | {"commit"}),
    "buf-size": (MIB, COPIES | MERGES | {"commit"}),
    "auto-finalize": (False, COPIES | MERGES | {"commit"}),
}


def what_means_nothing_to_a_preset_is_refused():
    make_chain()
    with daemon() as d:
        qmp = d.qmp()
        refused = must_refuse(qmp)

        def transfer(preset, **more):
            return {"preset": preset, "job_id": "1", "device": "top",
                    **({"target": "top"} if preset in COPIES else {}), **more}

        for name, (value, presets) in PARAMETERS.items():
            for preset in COPIES | MERGES | {"commit"}:
                arguments = transfer(preset, **{name.replace("-", "_"): value})
                try:
                    qmp.cmd("block-transfer", **arguments)
                except QmpError as e:
                    text = f"Parameter '{name}' means nothing to a {preset}"
                    assert (text in str(e)) == (preset not in presets), e
                else:
                    raise AssertionError("a job called 1")
        for text, arguments in (
                ("'finish' cannot be 'stay'",
                 transfer("post-copy", finish="stay")),
                ("'finish' cannot be 'stay'",
                 transfer("hybrid", finish="stay")),
                ("cannot be true", transfer("mirror", auto_complete=True)),
                ("cannot be true", transfer("hybrid", auto_complete=True)),
                ("cannot be false",
                 transfer("post-copy", auto_complete=False)),
                ("'exclusive' needs 'delete-source'",
                 transfer("pre-copy", exclusive=True)),
                ("'max-extra' needs 'release'",
                 transfer("stream", max_extra=MIB)),
                ("'max-extra' needs 'release'",
                 {**transfer("merge", max_extra=MIB, release=False),
                  "job_id": "j"}),
                ("streaming the entire chain",
                 transfer("stream", backing_file="x")),
                ("Parameter 'finish' means nothing to a commit below",
                 transfer("commit", top_node="two", finish="stay"))):
            refused(text, "block-transfer", **arguments)
        # And so do the presets.
        for text, arguments in (
                ("'granularity' means nothing to a post-copy",
                 {"mode": "post-copy", "granularity": 4096}),
                ("cannot be true", {"mode": "mirror", "auto_complete": True}),
                ("'delete-source' needs 'finish'",
                 {"finish": "stay", "delete_source": True})):
            qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=SIZE)
            refused(text, "block-copy", job_id="j", device="top", target="n",
                    **arguments)
            qmp.cmd("blockdev-del", node_name="n")
        assert not qmp.cmd("query-jobs")
        d.stop()


def who_needs_the_chain_as_it_is_is_named():
    """Refused when the second one starts, not when it ends.

    No guest: its writes fill the top, and a stream of that would be over."""
    make_chain()
    with daemon() as d:
        qmp = d.qmp()
        refused = must_refuse(qmp)
        add_copy(qmp)

        def copies(device, *modes):
            return [("block-copy", {"device": device, "target": "copy",
                                    "mode": m}) for m in modes]

        def stop(job):
            qmp.cmd("block-job-cancel", device=job, force=True)
            qmp.wait_event("BLOCK_JOB_CANCELLED")

        whole = copies("top", "hybrid", "post-copy")
        for first, seconds in (
                (("block-stream", {"device": "top"}),
                 whole + copies("two", "pre-copy", "mirror", "hybrid",
                                "post-copy") +
                 [("blockdev-mirror", {"device": "two", "target": "copy",
                                       "sync": "full"})]),
                (("block-stream", {"device": "one"}), whole),
                (("block-commit", {"device": "top", "top_node": "two",
                                   "base_node": "one"}),
                 whole + copies("two", "pre-copy"))):
            qmp.cmd(first[0], job_id="first", speed=MIB, **first[1])
            for command, arguments in seconds:
                refused("job 'first'", command, job_id="k", **arguments)
            stop("first")
        seconds = [("block-stream", {"device": "top"}),
                   ("block-commit", {"device": "top", "top_node": "two",
                                     "base_node": "one"})]
        for first, others in (
                (copies("top", "hybrid")[0],
                 seconds + [("block-stream", {"device": "one"})]),
                (copies("two", "pre-copy")[0], seconds),
                (("blockdev-mirror", {"device": "two", "target": "copy",
                                      "sync": "full"}), seconds)):
            qmp.cmd(first[0], job_id="first", speed=MIB, **first[1])
            for command, arguments in others:
                refused("job 'first'", command, job_id="k", **arguments)
            stop("first")
        # And nothing of that is left.
        qmp.cmd("block-stream", job_id="k", device="top")
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        d.stop()
    judge("top", "qcow2")


def what_stands_in_the_way_is_named():
    make_chain()
    with daemon() as d:
        qmp = d.qmp()
        refused = must_refuse(qmp)

        # The layers between are neither the old content nor the new.
        qmp.cmd("block-export-add", type="nbd", id="r", node_name="one",
                name="r")
        refused("export 'r'", "block-commit", job_id="j", device="top")
        qmp.cmd("block-export-del", id="r")
        qmp.cmd("block-commit", job_id="j", device="top", speed=MIB)
        refused("job 'j'", "block-export-add", type="nbd", id="r",
                node_name="one", name="r")
        refused("job 'j'", "block-stream", job_id="k", device="top")
        refused("job 'j'", "block-commit", job_id="k", device="top",
                top_node="two", base_node="one")
        refused("in use", "blockdev-del", node_name="top")
        qmp.cmd("job-cancel", id="j")
        qmp.wait_event("BLOCK_JOB_CANCELLED")
        # Then the layers are as they were, and read-only again.
        refused("read-only", "block-export-add", type="nbd", id="r",
                node_name="base", name="r", writable=True)
        qmp.cmd("block-export-add", type="nbd", id="r", node_name="one",
                name="r")
        d.stop()
    judge("top", "qcow2")


def a_base_that_others_read_is_refused():
    make_chain()
    with daemon() as d, open("base", "rb") as reader:
        qmp = d.qmp()
        # QEMU's lock of an image that nobody else may write to.
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0)
        fcntl.fcntl(reader, F_OFD_SETLK, lock)
        try:
            qmp.cmd("block-commit", job_id="j", device="top")
        except QmpError as e:
            assert 'Failed to get "write" lock' in str(e), e
        else:
            raise AssertionError("another program reads the base")
        reader.close()
        # What was locked on the way is free again.
        qmp.cmd("block-commit", job_id="j", device="top")
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("job-complete", id="j")
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        d.stop()
    judge("base", "raw")


if __name__ == "__main__":
    main([the_disk_goes_on_on_its_base("raw"),
          the_disk_goes_on_on_its_base("qcow2"),
          the_disk_goes_on_on_its_base("qed"),
          a_commit_ends_as_it_is_told("switch", "base"),
          a_commit_ends_as_it_is_told("stay", "top"),
          what_means_nothing_to_a_preset_is_refused,
          a_stop_leaves_the_disk_where_it_is,
          a_layer_goes_into_the_one_below, layers_go_into_the_base,
          tables_that_find_no_space_at_the_end_wait_for_it,
          a_compressed_base_needs_the_space_anew("commit", 8 * MIB),
          a_compressed_base_needs_the_space_anew("merge", 4 * MIB,
                                                 into="snapshot"),
          the_header_names_what_it_is_told,
          a_header_names_a_file_that_is_no_image_as_raw, a_layer_below_is_streamed,
          two_streams_at_once, a_commit_below_a_mirror,
          a_stream_below_a_mirror, a_mirror_may_lie_on_its_source,
          a_layer_is_filled_and_mirrored("s"),
          a_layer_is_filled_and_mirrored("m"),
          a_layer_goes_on_in_another_file("pre-copy", "qcow2"),
          a_layer_goes_on_in_another_file("mirror", "qed", "job-complete"),
          a_layer_goes_on_in_another_file("post-copy", "qed"),
          a_layer_goes_on_in_another_file("hybrid", "qcow2", "job-complete"),
          headers_name_the_image_behind_a_filter("block-stream"),
          headers_name_the_image_behind_a_filter("block-commit",
                                                 top_node="two"),
          *[under_a_filter(kind, device, *more[:2], **more[2])
            for kind, device in (("throttle", "f"), ("copy-on-read", "top"))
            for more in (("block-commit", "base", {}),
                         ("block-stream", "top", {}),
                         ("block-stream", "top", {"base_node": "one"}))],
          under_a_filter("throttle", "f", "block-merge", "two",
                         into="snapshot"),
          under_a_filter("throttle", "f", "block-merge", "top",
                         into="overlay", snapshot="one"),
          a_header_under_a_filter_is_rewritten,
          a_filter_in_the_middle_hides_what_is_below,
          what_a_header_cannot_name_takes_no_layers_place,
          who_needs_the_chain_as_it_is_is_named,
          what_stands_in_the_way_is_named,
          a_base_that_others_read_is_refused])
