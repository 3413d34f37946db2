#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""block-merge of real files while a guest writes, in little space, with
qemu-img as the judge.

merge.py SLUICED SLUICE GUEST
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from harness import (Daemon, Nbd, QmpError, defer, loop_device, main, mount,
                     nbd_server, need, run)

SLUICED, SLUICE, GUEST = (os.path.abspath(p) for p in sys.argv[1:4])
MIB = 1 << 20
SIZE = 96 * MIB
URI = "nbd+unix:///a?socket=nbd.sock"

need("qemu-img", "qemu-io", "mkfs.ext4")


def create(fmt, name, backing=None, *options):
    link = ["-b", backing[0], "-F", backing[1]] if backing else []
    run("qemu-img", "create", "-q", "-f", fmt, *options, *link, name,
        str(SIZE))


def fill(fmt, name, pattern, start, length):
    run("qemu-io", "-f", fmt, "-c", f"write -P {pattern} {start}M {length}M",
        name)


def make(base="qcow2", top="qcow2", between=False, delta=(16, 48)):
    """base holds 8 to 72 MiB, the top a part of that and more."""
    create(base, "base")
    fill(base, "base", 1, 8, 64)
    below = ("base", base)
    if between:
        create("qcow2", "mid", below, "-o", "cluster_size=4k")
        fill("qcow2", "mid", 2, 30, 20)
        below = ("mid", "qcow2")
    create(top, "top", below)
    fill(top, "top", 3, *delta)
    run("qemu-io", "-f", top, "-c", "write -z 20M 1M", "top")
    run("qemu-img", "convert", "-O", "raw", "-f", top, "top", "model")
    with open("ranges", "w") as f:
        f.write(f"0 {SIZE}\n")


def daemon(top="qcow2", base="qcow2", between=False):
    def node(name, fmt, backing):
        return ["--blockdev", json.dumps({
            "driver": fmt, "node-name": name, "read-only": name != "top",
            "file": {"driver": "file", "filename": name},
            **({"backing": backing} if backing else {})})]
    layers = [*node("base", base, None)]
    if between:
        layers += node("mid", "qcow2", "base")
    layers += node("top", top, "mid" if between else "base")
    return Daemon(SLUICED, *nbd_server(), *layers, "--export",
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


def blocks(*names):
    """Of those that are there: a journal comes and goes."""
    total = 0
    for name in names:
        try:
            total += os.stat(name).st_blocks * 512
        except FileNotFoundError:
            pass
    return total


def judge(name, fmt):
    if fmt == "qcow2":
        run("qemu-img", "check", "-q", "-f", fmt, name)
    elif fmt == "qed":  # what is free in the middle of a file is a leak there
        run("qemu-img", "check", "-q", "-f", fmt, name, ok=(0, 3))
    run("qemu-img", "compare", "-f", fmt, "-F", "raw", name, "model")


def finish(qmp):
    """The job's report; it ends without an error."""
    report = {}
    while True:
        for r in qmp.cmd("query-transfers"):
            report = r
        jobs = qmp.cmd("query-jobs")
        if jobs and jobs[0]["status"] == "concluded":
            assert "error" not in jobs[0], jobs[0]
            qmp.cmd("job-dismiss", id="j")
            return report
        time.sleep(0.01)


def merge(base="qcow2", top="qcow2", between=False, **arguments):
    names = ["base", "top"] + ["mid"] * between
    make(base, top, between)
    with daemon(top, base, between) as d:
        qmp, guest = d.qmp(), Guest()
        if between:
            arguments["snapshot"] = "base"
        qmp.cmd("block-merge", job_id="j", device="top", auto_dismiss=False,
                **arguments)
        report = finish(qmp)
        disk = qmp.cmd("query-block-exports")[0]["node-name"]
        left = [n for n in names if os.path.exists(n)]
        guest.stop()
        d.stop()
    return disk, report, left


def into_the_snapshot(base, top, between=False):
    def test():
        disk, report, _ = merge(base, top, between, into="snapshot")
        assert disk == "base", disk
        # Nobody was held up at the end, and what was moved came off the top.
        assert report["requests-held"] == 0 and report["pause-ns"] == 0, report
        assert report["bytes-released"] >= 46 * MIB, report
        judge("base", base)
        # An ordinary chain is left, whose top holds nothing and reads alike.
        judge("top", top)
        held = json.loads(run("qemu-img", "map", "--output=json", "-f", top,
                              "top")[1])
        assert not [e for e in held if e["depth"] == 0 and e["present"]], held
        assert blocks("top") < 2 * MIB, blocks("top")
    return (f"{top} sinks into {base}" + ", with one between" * between, test)


def into_the_overlay(base, top, between=False):
    def test():
        disk, report, _ = merge(base, top, between, into="overlay")
        assert disk == "top", disk
        judge("top", top)
        assert report["bytes-released"] >= 60 * MIB, report
        assert blocks("base") < 3 * MIB, blocks("base")
        info = json.loads(run("qemu-img", "info", "-f", top, "--output=json",
                              "top")[1])
        assert "backing-filename" not in info, info
    return (f"{base} rises into {top}" + ", with one between" * between, test)


def the_way_with_fewer_bytes_is_taken():
    make(delta=(10, 4))
    with daemon() as d:
        plan = d.qmp().cmd("query-merge-plan", device="top")
        assert plan["into"] == "snapshot" and plan["drops"] == ["top"], plan
        assert plan["bytes-to-copy"] == 4 * MIB, plan
        assert plan["space-needed"] <= 5 * MIB, plan
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 90M", "top")
    with daemon() as d:
        plan = d.qmp().cmd("query-merge-plan", device="top")
        assert plan["into"] == "overlay" and plan["survivor"] == "top", plan


def the_same_as_a_preset(into, survivor):
    """block-transfer has all that block-merge has."""
    def test():
        make(between=True)
        with daemon(between=True) as d:
            qmp, guest = d.qmp(), Guest()
            qmp.cmd("block-transfer", preset="merge", job_id="j",
                    device="top", base_node="base", into=into, delete=True,
                    keep_name=True, max_extra=8 * MIB, auto_dismiss=False)
            finish(qmp)
            disk = qmp.cmd("query-block-exports")[0]["node-name"]
            assert disk == survivor, disk
            left = [n for n in ("base", "mid", "top") if os.path.exists(n)]
            assert left == ["top"], left
            guest.stop()
            d.stop()
        judge("top", "qcow2")
    return f"block-transfer merges into the {into}", test


def what_is_empty_is_deleted():
    disk, _, left = merge(between=True, into="snapshot", delete=True)
    assert disk == "base" and left == ["base"], left
    judge("base", "qcow2")


def the_survivor_keeps_the_name():
    """Whoever starts from the configuration finds the disk."""
    make()
    with daemon() as d:
        qmp = d.qmp()
        guest = Guest()
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                keep_name=True, auto_dismiss=False)
        finish(qmp)
        nodes = {n["node-name"]: n["file"]
                 for n in qmp.cmd("query-named-block-nodes")}
        assert nodes["base"] == "top", nodes
        assert not os.path.exists("base") and os.path.exists("top")
        guest.stop()
        d.stop()
    judge("top", "qcow2")
    with Daemon(SLUICED, "--blockdev", "driver=qcow2,node-name=top,"
                "file.driver=file,file.filename=top") as d:
        d.qmp()
        d.stop()


def a_name_that_does_not_fit_is_refused():
    make(base="raw")
    with daemon(base="raw") as d:
        qmp = d.qmp()
        try:
            qmp.cmd("block-merge", job_id="m", device="top", into="snapshot",
                    keep_name=True)
            raise AssertionError("a raw image got a qcow2 image's name")
        except QmpError as e:
            assert "opened as qcow2: it is raw" in e.desc, e.desc
        d.stop()
    os.mkdir("sub")
    make()
    os.rename("base", "sub/base")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
        "sub/base", "top")
    with Daemon(SLUICED, "--blockdev", "driver=qcow2,node-name=top,"
                "file.driver=file,file.filename=top") as d:
        qmp = d.qmp()
        try:
            qmp.cmd("block-merge", job_id="m", device="top", into="snapshot",
                    keep_name=True)
            raise AssertionError("a name was taken into another folder")
        except QmpError as e:
            assert "different folders" in e.desc, e.desc
        plan = qmp.cmd("query-merge-plan", device="top", keep_name=True)
        assert plan["into"] == "overlay", plan
        d.stop()


def linked(base=None, top="pool/top"):
    """The disk's name is a link; @base: where that leads, if it is one."""
    make()
    os.mkdir("pool")
    os.rename("top", top)
    os.symlink(top, "top")
    if base:
        os.rename("base", base)
        os.symlink(base, "base")


def links_lead_to_the_survivor(base, top):
    def test():
        linked(base, top)
        with daemon() as d:
            qmp, guest = d.qmp(), Guest()
            qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                    delete=True, keep_name=True, auto_dismiss=False)
            finish(qmp)
            guest.stop()
            d.stop()
        assert os.path.islink("top") and os.readlink("top") == top
        assert not os.path.lexists("base")
        left = [n for n in (base, top) if n and os.path.lexists(n)]
        assert left == [top], left
        assert os.stat(top).st_nlink == 1
        judge("top", "qcow2")
    what = "both names are links" if base else "the disk's name is a link"
    return f"where {what}, the link leads to the survivor", test


def a_link_into_another_folder_is_refused():
    """By their names they lie side by side; the files do not."""
    linked()
    with daemon() as d:
        try:
            d.qmp().cmd("block-merge", job_id="m", device="top",
                        into="snapshot", keep_name=True)
            raise AssertionError("a name was taken into another folder")
        except QmpError as e:
            assert "different folders" in e.desc, e.desc
        d.stop()
    judge("top", "qcow2")


def a_relative_backing_name_stays_in_its_folder():
    """The survivor names what lies below it from the folder of its name."""
    create("qcow2", "bottom")
    make()
    os.mkdir("pool")
    os.rename("bottom", "pool/bottom")
    os.rename("base", "pool/base")
    os.rename("top", "pool/top")
    os.symlink("pool/top", "top")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
        "bottom", "pool/base")
    with Daemon(SLUICED, "--blockdev", json.dumps({
            "driver": "qcow2", "node-name": "top",
            "file": {"driver": "file", "filename": "top"},
            "backing": {"driver": "qcow2", "node-name": "base",
                        "file": {"driver": "file",
                                 "filename": "pool/base"}}})) as d:
        try:
            d.qmp().cmd("block-merge", job_id="m", device="top",
                        snapshot="base", into="snapshot", keep_name=True)
            raise AssertionError("the survivor's backing file is elsewhere")
        except QmpError as e:
            assert "different folders" in e.desc, e.desc
        d.stop()


def what_a_link_leads_to_is_deleted():
    """The file of an empty layer goes with its name, a link."""
    make(between=True)
    os.mkdir("pool")
    for name in ("mid", "top"):
        os.rename(name, f"pool/{name}")
        os.symlink(f"pool/{name}", name)
    with daemon(between=True) as d:
        qmp, guest = d.qmp(), Guest()
        qmp.cmd("block-merge", job_id="j", device="top", snapshot="base",
                into="snapshot", delete=True, auto_dismiss=False)
        finish(qmp)
        guest.stop()
        d.stop()
    left = [n for n in ("mid", "top", "pool/mid", "pool/top")
            if os.path.lexists(n)]
    assert left == [], left
    judge("base", "qcow2")


def must_need_what_it_holds(daemon, other):
    """@other is an overlay of the snapshot, too: it is named."""
    for into in ("snapshot", "overlay"):
        try:
            daemon.qmp().cmd("block-merge", job_id="j", device="top", into=into)
        except QmpError as e:
            assert "may not lose what it holds" in str(e), e
            assert other in str(e), e
        else:
            raise AssertionError("the snapshot has a second overlay")


def an_overlay_beside_what_a_link_leads_to_is_found():
    """Whoever made it named the template where it lies."""
    make()
    os.mkdir("pool")
    os.rename("base", "pool/tpl")
    os.symlink("pool/tpl", "base")
    create("qcow2", "pool/other", ("tpl", "qcow2"))
    with daemon() as d:
        must_need_what_it_holds(d, "pool/other")
        d.stop()
    judge("top", "qcow2")


def what_others_need_is_refused():
    make()
    create("qcow2", "other", ("base", "qcow2"))
    with daemon() as d:
        must_need_what_it_holds(d, "other")
        d.stop()
    judge("top", "qcow2")


def state(qmp):
    """All that a dry run could change: the folder, and who may write."""
    files = {}
    for name in sorted(os.listdir(".")):
        if os.path.isfile(name):
            with open(name, "rb") as f:
                files[name] = (f.read(), os.stat(name).st_mtime_ns)
    return files, [(n["node-name"], n["ro"])
                   for n in qmp.cmd("query-named-block-nodes")]


def answer(qmp, command, **arguments):
    """What it says, or what it refuses."""
    try:
        return qmp.cmd(command, device="top", **arguments)
    except QmpError as e:
        return e.desc


def other_over(name, folder=""):
    os.makedirs(folder or ".", exist_ok=True)
    create("qcow2", os.path.join(folder, "other"),
           (os.path.abspath(name), "qcow2"))


def of_version_2(name):
    run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", name)


# What is in the way, for whom, and how it is called.
REFUSED = [
    (lambda: other_over("base"), {}, "may not lose what it holds"),
    (lambda: other_over("base", "far"), {"dependents_in": ["far"]},
     "may not lose what it holds"),
    (lambda: of_version_2("base"), {}, "is of version 2"),
    (lambda: os.rename("base", "file"), {}, "is read-only"),
    (lambda: run("qemu-img", "snapshot", "-c", "s", "base"), {},
     "has internal snapshots"),
    (lambda: run("qemu-img", "bitmap", "--add", "base", "b"), {},
     "has persistent dirty bitmaps"),
    (lambda: other_over("top"), {"delete": True, "into": "snapshot"},
     "'top' may not be deleted"),
    (lambda: other_over("top"), {"keep_name": True, "into": "snapshot"},
     "'top' may not be deleted"),
    (lambda: os.link("base", "pool"), {"delete": True, "release": False},
     "'delete' needs 'release'"),
]
ALLOWED = [
    (lambda: other_over("base"), {"exclusive": True}),
    (lambda: other_over("base", "far"), {}),
    (lambda: of_version_2("base"), {"upgrade": True}),
    (lambda: other_over("top"), {"delete": True, "into": "auto"}),
    (lambda: other_over("top"), {"delete": True, "into": "snapshot",
                                 "exclusive": True}),
    (lambda: None, {"delete": True, "keep_name": True, "into": "snapshot"}),
    (lambda: None, {"release": False}),
]


def chain_of(name):
    """As daemon(); where the base has another name, its file is a node that
    nobody may write to."""
    if os.path.exists("base"):
        return daemon()
    return Daemon(SLUICED, "--blockdev", "driver=file,node-name=f,"
                  f"filename={name},read-only=on", "--blockdev",
                  "driver=qcow2,node-name=base,file=f,read-only=on",
                  "--blockdev", "driver=qcow2,node-name=top,backing=base,"
                  "file.driver=file,file.filename=top")


def many_layers_with_long_names_go():
    """What says that they go does not fit where a journal begins with."""
    names = [f"{i:03}" + "n" * 200 for i in range(90)]
    create("qcow2", names[0])
    for below, name in zip(names, names[1:]):
        create("qcow2", name, (below, "qcow2"))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 64k", names[-1])
    with Daemon(SLUICED, "--blockdev", "driver=qcow2,node-name=top,"
                f"file.driver=file,file.filename={names[-1]}") as d:
        qmp = d.qmp()
        base, = [n["node-name"] for n in
                 qmp.cmd("query-named-block-nodes", flat=True)
                 if n["drv"] == "qcow2" and n["file"].endswith(names[0])]
        qmp.cmd("block-merge", job_id="j", device="top", snapshot=base,
                into="snapshot", delete=True, auto_dismiss=False)
        finish(qmp)
        assert "journal" not in d.errors(), d.errors()
        d.stop()
    assert os.listdir(".") == [names[0]], os.listdir(".")
    run("qemu-io", "-f", "qcow2", "-c", "read -P 9 1M 64k", names[0])


def a_guest_that_reads_all_over_takes_no_space():
    """What is copied early for it could be given back only when all before it
    was: so nothing is."""
    make()
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("block-merge", job_id="j", device="top", into="overlay",
                speed=4 * MIB, auto_dismiss=False)
        with Nbd("nbd.sock", "a") as nbd:
            for i in range(SIZE // MIB - 1, 0, -1):
                nbd.read(i * MIB, 4096)
                time.sleep(0.02)
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        report = finish(qmp)
        d.stop()
    judge("top", "qcow2")
    assert report["peak-extra"] <= 5 * MIB, report


def the_layers_between_do_not_lose_their_backing_file():
    """With keep-name it has another name, so they must go, too."""
    make(between=True)
    with daemon(between=True) as d:
        for command, more in (("query-merge-plan", {}),
                              ("block-merge", {"job_id": "j"})):
            try:
                d.qmp().cmd(command, device="top", snapshot="base",
                            into="snapshot", keep_name=True, **more)
            except QmpError as e:
                assert "needs 'delete'" in e.desc, e.desc
            else:
                raise AssertionError("'mid' names what is no more")
        d.stop()


def a_plan_refuses_what_the_merge_would():
    """In the same words; and neither changes anything."""
    for hinder, arguments, text in REFUSED:
        make()
        hinder()
        with chain_of("file") as d:
            qmp = d.qmp()
            before = state(qmp)
            plan = answer(qmp, "query-merge-plan", **arguments)
            assert text in plan, (plan, text)
            assert state(qmp) == before, arguments
            merged = answer(qmp, "block-merge", job_id="j", **arguments)
            assert merged == plan, (merged, plan)
            d.stop()
        for name in os.listdir("."):
            shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


def a_plan_changes_nothing():
    for prepare, arguments in ALLOWED:
        make()
        prepare()
        with daemon() as d:
            qmp = d.qmp()
            before = state(qmp)
            plan = answer(qmp, "query-merge-plan", **arguments)
            assert plan["drops"], (plan, arguments)
            assert state(qmp) == before, arguments
            assert answer(qmp, "block-merge", job_id="j", **arguments) == {}
            d.stop()
        for name in os.listdir("."):
            shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


def plans_of_stream_and_commit_refuse_as_well():
    make()
    other_over("base", "far")
    with daemon() as d:
        qmp = d.qmp()
        before = state(qmp)
        for what in ("stream", "commit"):
            more = {"release": True, "dependents_in": ["far"]}
            plan = answer(qmp, f"query-{what}-plan", **more)
            assert "far/other" in plan, plan
            assert answer(qmp, f"block-{what}", job_id="j", **more) == plan
            plan = answer(qmp, f"query-{what}-plan", release=True)
            assert plan["space-needed"] < 6 * MIB, plan
        assert state(qmp) == before
        d.stop()
    of_version_2("base")
    with daemon() as d:
        for what in ("stream", "commit"):
            plan = answer(d.qmp(), f"query-{what}-plan", release=True)
            assert "is of version 2" in plan, plan
        d.stop()
    os.rename("base", "file")
    with chain_of("file") as d:
        plan = answer(d.qmp(), "query-commit-plan")
        assert "is read-only" in plan, plan
        assert answer(d.qmp(), "block-commit", job_id="j") == plan
        d.stop()


def compressed(method):
    """Compressed clusters move as they are: the survivor stays small."""
    def test():
        options = ["-o", f"compression_type={method}"]
        rng = random.Random(5)
        with open("raw", "wb") as f:
            for _ in range(SIZE // 65536):  # to a third, or so
                f.write(rng.randbytes(20000) + bytes(65536 - 20000))
        run("qemu-img", "convert", "-c", "-O", "qcow2", *options, "raw",
            "base")
        with open("raw", "wb") as f:
            for _ in range(SIZE // 65536):
                f.write(rng.randbytes(20000) + bytes(65536 - 20000))
        run("qemu-img", "convert", "-c", "-O", "qcow2", *options, "-B", "base",
            "-F", "qcow2", "raw", "top")
        os.rename("raw", "model")
        before = blocks("base", "top")
        with daemon() as d:
            qmp = d.qmp()
            qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                    auto_dismiss=False)
            report = finish(qmp)
            d.stop()
        # A third of what it stands for: nothing is unpacked.
        assert 28 * MIB < report["bytes-moved"] < 34 * MIB, report
        assert blocks("base", "top") < before + 2 * MIB, before
        judge("base", "qcow2")
        packed = [e for e in json.loads(run("qemu-img", "map", "--output=json",
                                            "base")[1]) if e["data"]]
        assert all(e.get("compressed", True) for e in packed), packed[:3]
    return f"compressed clusters ({method}) stay so", test


def without_release_others_are_asked_for_as_well():
    make()
    create("qcow2", "other", ("base", "qcow2"))
    run("qemu-img", "convert", "-O", "raw", "other", "others")
    with daemon() as d:
        try:
            d.qmp().cmd("block-merge", job_id="j", device="top",
                        into="snapshot", release=False)
        except QmpError as e:
            assert "other" in str(e), e
        else:
            raise AssertionError("the other overlay would read the delta")
        d.stop()
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "other", "others")


def small_clusters_over_large_ones_are_reckoned():
    """Each 4 KiB of the delta takes 64 KiB in the snapshot: the plan says so,
    and it is enough."""
    create("qcow2", "root", None)
    fill("qcow2", "root", 5, 0, 90)
    create("qcow2", "base", ("root", "qcow2"))
    create("qcow2", "top", ("base", "qcow2"), "-o", "cluster_size=4k")
    writes = []
    for i in range(0, 1400, 2):
        writes += ["-c", f"write -P 7 {i * 64}k 4k"]
    run("qemu-io", "-f", "qcow2", *writes, "top")
    run("qemu-img", "convert", "-O", "raw", "top", "model")
    before, peak = blocks("base", "top"), 0
    with Daemon(SLUICED, "--blockdev", "driver=qcow2,node-name=top,"
                "file.driver=file,file.filename=top") as d:
        qmp = d.qmp()
        base = [n["node-name"] for n in qmp.cmd("query-named-block-nodes")
                if n["file"] == "base" and n["drv"] == "qcow2"][0]
        plan = qmp.cmd("query-merge-plan", device="top", snapshot=base,
                       into="snapshot")
        qmp.cmd("block-merge", job_id="j", device="top", snapshot=base,
                into="snapshot", auto_dismiss=False)
        while qmp.cmd("query-jobs")[0]["status"] == "running":
            peak = max(peak, blocks("base", "top", "top.sluice",
                                    "base.sluice"))
        report = finish(qmp)
        d.stop()
    # With the rest of each cluster of the snapshot.
    assert report["bytes-moved"] == 700 * 65536, report
    assert report["peak-extra"] >= peak - before - 2 * MIB, (report, peak,
                                                             before)
    peak = max(peak, blocks("base", "top"))
    assert peak - before > 20 * MIB, peak - before
    assert peak - before <= plan["space-needed"], (peak - before, plan)
    judge("base", "qcow2")


def large_clusters_below_small_ones_are_given_back():
    """The overlay's clusters lie anywhere in its file: that is no reason to
    keep a cluster of the snapshot."""
    create("qcow2", "base", None, "-o", "cluster_size=2M")
    fill("qcow2", "base", 1, 8, 64)
    create("qcow2", "top", ("base", "qcow2"))
    for i in range(8, 72, 2):
        run("qemu-io", "-f", "qcow2", "-c",
            f"write -P 3 {i * 1024 + 320 * (i % 5)}k 64k", "top")
    run("qemu-img", "convert", "-O", "raw", "top", "model")
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("block-merge", job_id="j", device="top", into="overlay",
                auto_dismiss=False)
        report = finish(qmp)
        d.stop()
    assert report["bytes-released"] >= 64 * MIB, report
    assert blocks("base") < 9 * MIB, blocks("base")  # its tables
    judge("top", "qcow2")


def sparse_over_large_clusters(top_cluster="64k", base_cluster="1M"):
    """The base is whole; of each 128 KiB the top holds the first half."""
    create("qcow2", "base", None, "-o", f"cluster_size={base_cluster}")
    fill("qcow2", "base", 1, 8, 64)
    create("qcow2", "top", ("base", "qcow2"), "-o",
           f"cluster_size={top_cluster}")
    writes = []
    for i in range(8 * 8, 72 * 8):
        writes += ["-c", f"write -P 3 {i * 128}k 64k"]
    run("qemu-io", "-f", "qcow2", *writes, "top")


def scattered_small_clusters():
    """Each 4 KiB of the base takes 64 KiB in the top; behind them the top hides
    a lot of the base, which is given back only when an epoch ends."""
    create("qcow2", "root")
    fill("qcow2", "root", 6, 0, 20)
    create("qcow2", "base", ("root", "qcow2"), "-o", "cluster_size=4k")
    writes = []
    for i in range(0, 320, 2):
        writes += ["-c", f"write -P 5 {i * 64}k 4k"]
    run("qemu-io", "-f", "qcow2", *writes, "base")
    fill("qcow2", "base", 1, 40, 40)
    create("qcow2", "top", ("base", "qcow2"))
    fill("qcow2", "top", 3, 40, 40)


def what_a_layer_gives_back_is_reckoned(make_chain, most):
    """The plan is as low as that, and the merge gets by with it."""
    def test():
        small_file_system(make_it=make_chain)
        before = peak = blocks("base", "top")
        with daemon() as d:
            qmp = d.qmp()
            plan = qmp.cmd("query-merge-plan", device="top", into="overlay")
            assert plan["space-needed"] <= most, plan
            leave(plan["space-needed"])
            qmp.cmd("block-merge", job_id="j", device="top", into="overlay",
                    auto_dismiss=False, speed=60 * MIB)
            while qmp.cmd("query-jobs")[0]["status"] == "running":
                peak = max(peak, blocks("base", "top", "top.sluice",
                                        "base.sluice"))
                time.sleep(0.001)
            report = finish(qmp)
            assert peak - before <= plan["space-needed"], (peak, before, plan)
            assert report["peak-extra"] >= peak - before - MIB // 2, (
                report, peak, before)
            assert not [e for e in qmp.history
                        if e["event"] == "BLOCK_JOB_ERROR"], qmp.history
            d.stop()
        run("qemu-img", "check", "-q", "top")
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top",
            "../model")
    return (f"{make_chain.__name__.replace('_', ' ')}: what is given back is "
            f"reckoned", test)


def stream_and_commit_release_as_a_merge_does():
    """Within what is allowed, and only where nobody else needs the layers."""
    for command in ("block-stream", "block-commit"):
        make()
        os.makedirs("far", exist_ok=True)
        create("qcow2", "far/other", (os.path.abspath("base"), "qcow2"))
        arguments = {"release": True, "max_extra": 2 * MIB,
                     "dependents_in": ["far"]}
        with daemon() as d:
            qmp = d.qmp()
            try:
                qmp.cmd(command, job_id="j", device="top", **arguments)
            except QmpError as e:
                assert "far/other" in str(e), e
            else:
                raise AssertionError("the other overlay loses its backing")
            os.unlink("far/other")
            guest = Guest()
            qmp.cmd(command, job_id="j", device="top", auto_dismiss=False,
                    **arguments)
            report = finish(qmp)
            guest.stop()
            d.stop()
        assert report["bytes-released"] >= 46 * MIB, report
        survivor, other = ("top", "base") if command == "block-stream" else \
            ("base", "top")
        judge(survivor, "qcow2")
        assert blocks(other) < 3 * MIB, blocks(other)
        for name in ("base", "top"):
            os.unlink(name)


def other_disks_of_a_template_are_found():
    """Where they lie beside the disk, not beside the template, and whatever
    the template lies on."""
    for command, arguments in (
            ("block-merge", {"into": "snapshot"}),
            ("block-merge", {"into": "overlay", "delete": True}),
            ("block-stream", {"release": True}),
            ("block-commit", {"release": True})):
        for on_device in False, True:
            make()
            os.makedirs("disks", exist_ok=True)
            os.rename("top", "disks/top")
            if on_device:
                os.truncate("base", SIZE + 8 * MIB)
                base = loop_device("base")
            else:
                os.makedirs("templates", exist_ok=True)
                os.rename("base", "templates/base")
                base = os.path.abspath("templates/base")
            for name in "disks/top", "disks/other":
                if name == "disks/other":
                    create("qcow2", name, (base, "qcow2"))
                run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base,
                    "-F", "qcow2", name)
            with Daemon(SLUICED, "--blockdev", "driver=qcow2,node-name=top,"
                        "file.driver=file,file.filename=disks/top") as d:
                try:
                    d.qmp().cmd(command, job_id="j", device="top", **arguments)
                except QmpError as e:
                    assert "disks/other" in str(e), e
                else:
                    raise AssertionError(f"{command} takes it from the other")
                d.stop()
            run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "disks/top",
                "model")


def an_old_version_is_refused_unless_it_may_become_new():
    make()
    run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", "base")
    with daemon() as d:
        try:
            d.qmp().cmd("block-merge", job_id="j", device="top",
                        into="snapshot")
        except QmpError as e:
            assert "version 2" in str(e), e
        else:
            raise AssertionError("nobody could say who wrote to it")
        d.qmp().cmd("block-merge", job_id="j", device="top", into="snapshot",
                    upgrade=True, auto_dismiss=False)
        finish(d.qmp())
        d.stop()
    judge("base", "qcow2")


def a_cut_merge_goes_on():
    """kill -9 in the middle, and a cancel: a chain that any program reads."""
    make()
    for turn in range(6):
        with daemon() as d:
            qmp = d.qmp()
            qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                    speed=30 * MIB)
            time.sleep(random.uniform(0.02, 0.2))
            if turn % 2:
                qmp.cmd("job-cancel", id="j")
                qmp.wait_event("BLOCK_JOB_CANCELLED")
                d.stop()
            else:
                d.kill()
        run("qemu-img", "check", "-q", "-r", "leaks", "top")
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top", "model")
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                auto_dismiss=False)
        finish(qmp)
        d.stop()
    judge("base", "qcow2")


def small_file_system(delta=(40, 48), base="qcow2", make_it=None):
    here = os.getcwd()
    os.mkdir("fs")
    run("truncate", "-s", "256M", "image")
    run("mkfs.ext4", "-q", "-m", "0", "image")
    run("mount", "-o", "loop", "image", "fs")
    defer(run, "umount", os.path.abspath("fs"))
    os.chdir("fs")
    defer(os.chdir, here)
    if make_it:
        make_it()
        run("qemu-img", "convert", "-O", "raw", "top", "../model")
    else:
        make(base, delta=delta)
        shutil.move("model", "../model")


def free_bytes():
    s = os.statvfs(".")
    return s.f_bavail * s.f_frsize


def leave(space, name="ballast"):
    """Room for so much, and for what the file system rounds up."""
    with open(name, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, free_bytes() - space - 4096)


def judge_sunk(fmt="qcow2"):
    if fmt != "raw":
        run("qemu-img", "check", "-q", "base")
    run("qemu-img", "compare", "-f", fmt, "-F", "raw", "base", "../model")


def in_exactly_the_promised_space():
    """What the plan says is enough, and is what the issue promises; with less
    the job does not begin, and says both figures."""
    small_file_system()
    before = blocks("base", "top")
    peak = 0
    with daemon() as d:
        qmp = d.qmp()
        plan = qmp.cmd("query-merge-plan", device="top", into="snapshot")
        metadata = 1 * MIB  # of 48 MiB in clusters of 64 KiB
        assert plan["space-needed"] <= 4 * MIB + 2 * 65536 + metadata, plan
        leave(plan["space-needed"] - 65536)
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                auto_dismiss=False)
        e = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "needs" in e["data"]["error"], e
        qmp.cmd("job-dismiss", id="j")
        os.unlink("ballast")
        leave(plan["space-needed"])
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                auto_dismiss=False, speed=60 * MIB)
        while qmp.cmd("query-jobs")[0]["status"] == "running":
            peak = max(peak, blocks("base", "top", "top.sluice",
                                    "base.sluice"))
            time.sleep(0.002)
        report = finish(qmp)
        d.stop()
    assert peak - before <= plan["space-needed"], (before, peak, plan)
    # The snapshot has these clusters already: it is the journals, above all.
    assert report["peak-extra"] >= peak - before > 0, (report, peak, before)
    judge_sunk()


def scattered():
    """A table of the snapshot for each piece, on a disk that is nearly empty."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "200G")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
        "qcow2", "top")
    run("qemu-io", "-f", "qcow2", *(
        w for i in range(400) for w in ("-c", f"write -P 5 {i * 512}M 64k")),
        "top")


def over_data(write, size=f"{64 * MIB}", snapshot="2M", top="64k"):
    """Of a snapshot that holds nothing, over a raw image that does."""
    def make_them():
        run("qemu-img", "create", "-q", "-f", "raw", "raw", "64M")
        run("qemu-io", "-f", "raw", "-c", "write -P 1 0 64M", "raw")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "raw", "-F",
            "raw", "-o", f"cluster_size={snapshot}", "base")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
            "qcow2", "-o", f"cluster_size={top}", "top", size)
        run("qemu-io", "-f", "qcow2", "-c", write, "top")
    return make_them


def small_clusters():
    """Eight of them in a block of the file system."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "64M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
        "qcow2", "-o", "cluster_size=512", "top")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 48M", "top")


def in_what_the_plan_says(what, make_them, most, left):
    """That much is left, the merge ends in it, and moves what was said."""
    def test():
        small_file_system(make_it=make_them)
        with Daemon(SLUICED, "--blockdev", "qcow2,node-name=top,"
                    "file.driver=file,file.filename=top") as d:
            qmp = d.qmp()
            plan = qmp.cmd("query-merge-plan", device="top", into="snapshot")
            assert plan["space-needed"] <= most, plan
            leave(plan["space-needed"])
            qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                    auto_dismiss=False)
            while not any(e["event"] in ("BLOCK_JOB_ERROR",
                                         "BLOCK_JOB_COMPLETED")
                          for e in qmp.events):
                qmp.events.append(qmp.receive())
            report = finish(qmp)
            d.stop()
        assert report["bytes-moved"] <= plan["bytes-to-copy"], (report, plan)
        assert report["peak-extra"] <= plan["space-needed"], (report, plan)
        assert blocks("top") <= left, blocks("top")  # its tables
        run("qemu-img", "check", "-q", "base")
        if what != "tables":
            run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "base",
                "../model")
    return f"in what the plan says: {what}", test


def no_room_for_the_last_pieces():
    """All is handed out, and what waits is the job itself: it says so."""
    here = os.getcwd()
    for delta, left in ((2, 256), (1, 64)):
        mount("tmpfs", f"fs{delta}", "-o", "size=80m")
        os.chdir(f"fs{delta}")
        defer(os.chdir, here)
        run("qemu-img", "create", "-q", "-f", "qcow2", "base", "64M")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
            "qcow2", "top")
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 2 0 {delta}M", "top")
        with Daemon(SLUICED, "--blockdev", "qcow2,node-name=top,"
                    "file.driver=file,file.filename=top") as d:
            qmp = d.qmp()
            qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                    auto_dismiss=False, speed=1)
            qmp.cmd("job-pause", id="j")
            wait_status(qmp, "paused")
            time.sleep(0.2)  # what is under way is written
            leave(left << 10)
            qmp.cmd("block-job-set-speed", device="j", speed=0)
            qmp.cmd("job-resume", id="j")
            qmp.wait_event("BLOCK_JOB_ERROR")
            wait_status(qmp, "paused")
            assert is_said_to_lack_space(qmp), qmp.cmd("query-transfers")
            os.unlink("ballast")
            qmp.cmd("job-resume", id="j")
            finish(qmp)
            d.stop()
        run("qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 2 0 {delta}M",
            "base")
        os.chdir(here)


def wait_status(qmp, status):
    give_up = time.monotonic() + 10
    while qmp.cmd("query-jobs")[0]["status"] != status:
        assert time.monotonic() < give_up, qmp.cmd("query-jobs")
        time.sleep(0.005)


def is_said_to_lack_space(qmp):
    """It is reckoned while the job pauses already."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        report = qmp.cmd("query-transfers")[0]
        if report["space-needed"] > report["space-free"]:
            return True
        time.sleep(0.01)
    return False


def take_all_space(qmp):
    """Until the job notices; what it gives back is taken, too."""
    names = []
    while not any(e["event"] == "BLOCK_JOB_ERROR" for e in qmp.events):
        if free_bytes() > 4096:
            names.append(f"ballast.{len(names)}")
            leave(0, names[-1])
        assert len(names) < 1000 and qmp.cmd("query-jobs"), names
        time.sleep(0.002)
    return names


def the_rest_of_the_space_goes_away():
    """The job pauses and says so, the guest goes on; with space it ends."""
    small_file_system(delta=(68, 28))
    with daemon() as d:
        qmp = d.qmp()
        leave(8 * MIB)
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                auto_dismiss=False, speed=8 * MIB)
        while not qmp.cmd("query-jobs")[0]["current-progress"]:
            time.sleep(0.01)
        names = take_all_space(qmp)
        e = qmp.wait_event("BLOCK_JOB_ERROR")
        assert e["data"]["action"] == "stop", e
        job = qmp.cmd("query-block-jobs")[0]
        assert job["io-status"] == "nospace" and job["paused"], job
        wait_status(qmp, "paused")
        assert is_said_to_lack_space(qmp), qmp.cmd("query-transfers")
        with Nbd("nbd.sock", "a") as nbd:  # where the disk holds it already
            nbd.write(10 * MIB, nbd.read(10 * MIB, 4096))
            nbd.flush()
        for name in names + ["ballast"]:
            os.unlink(name)
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        qmp.cmd("job-resume", id="j")
        finish(qmp)
        d.stop()
    judge_sunk()


def a_guests_zeroes_need_no_space():
    """Zeroes go into a raw snapshot as blocks of the file system where nobody
    above holds anything.  Where it has none left they are the disk's own, and
    sink later."""
    small_file_system((68, 28), "raw")
    with daemon(base="raw") as d:
        qmp = d.qmp()
        leave(8 * MIB)
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                auto_dismiss=False, speed=8 * MIB)
        while not qmp.cmd("query-jobs")[0]["current-progress"]:
            time.sleep(0.01)
        names = take_all_space(qmp)
        assert qmp.cmd("query-block-jobs")[0]["io-status"] == "nospace"
        with open("../model", "r+b") as model, Nbd("nbd.sock", "a") as nbd:
            for off, length in ((0, 4 * MIB), (4 * MIB + 65536, 65536),
                                (10 * MIB, 2 * MIB)):  # holes, and data
                for flags in 0, Nbd.NO_HOLE:
                    nbd.do(Nbd.ZERO, off, length, flags=flags)
                    assert nbd.read(off, length) == bytes(length), off
                model.seek(off)
                model.write(bytes(length))
            nbd.flush()
            model.flush()
            for off in range(0, 64 * MIB, MIB):  # what the merge does not move
                model.seek(off)
                assert nbd.read(off, MIB) == model.read(MIB), off
        for name in names + ["ballast"]:
            os.unlink(name)
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        qmp.cmd("job-resume", id="j")
        finish(qmp)
        assert qmp.cmd("query-block-exports")[0]["node-name"] == "base"
        d.stop()
    judge_sunk("raw")


def a_job_that_waits_for_space_is_there_again():
    """Killed while it waits: the next daemon has as little space, and waits
    as well, rather than give up what the job was to go on with."""
    small_file_system(delta=(68, 28))
    with daemon() as d:
        qmp = d.qmp()
        leave(8 * MIB)
        qmp.cmd("block-merge", job_id="j", device="top", into="snapshot",
                auto_dismiss=False, speed=8 * MIB)
        while not qmp.cmd("query-jobs")[0]["current-progress"]:
            time.sleep(0.01)
        names = take_all_space(qmp)
        d.kill()
        d.wait()
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top", "../model")
    for turn in range(2):
        with daemon() as d:
            qmp = d.qmp()
            give_up = time.monotonic() + 10
            job = {}
            while not job.get("paused") and time.monotonic() < give_up:
                jobs = qmp.cmd("query-block-jobs")
                job = jobs[0] if jobs else {}
                time.sleep(0.01)
            assert job and job["paused"], (job, d.errors())
            assert job["io-status"] == "nospace", (job, d.errors())
            assert is_said_to_lack_space(qmp), qmp.cmd("query-transfers")
            if not turn:
                d.kill()
                d.wait()
                continue
            for name in names + ["ballast"]:
                os.unlink(name)
            qmp.cmd("block-job-set-speed", device="j", speed=0)
            qmp.cmd("block-job-resume", device="j")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
            assert "error" not in end["data"], end
            d.stop()
            assert "goes on" in d.errors(), d.errors()
    judge_sunk()
    assert not os.path.exists("top.sluice")


def the_command_merges():
    make()
    with daemon() as d:
        d.qmp()
        control = ["--socket", d.socket]
        out = run(SLUICE, "merge", "e", "--dry-run", *control)[1]
        assert "Would copy 16.0 MiB into the overlay 'top'" in out, out
        needs = [json.loads(run(SLUICE, "merge", "e", "--dry-run", "--json",
                                "--max-extra", extra, *control)[1])
                 ["space-needed"] for extra in ("4M", "10M")]
        # What is on its way, and a step of it.
        assert 6 * MIB <= needs[1] - needs[0] < 7 * MIB, needs
        out = run(SLUICE, "merge", "e", "--into", "snapshot", "--delete",
                  *control)[1]
        assert "The disk is now node 'base'" in out, out
        d.stop()
    assert not os.path.exists("top")
    judge("base", "qcow2")


if __name__ == "__main__":
    main([into_the_snapshot("qcow2", "qcow2"),
          into_the_snapshot("raw", "qcow2"), into_the_snapshot("qed", "qed"),
          into_the_snapshot("qcow2", "qcow2", True),
          into_the_overlay("qcow2", "qcow2"), into_the_overlay("raw", "qcow2"),
          into_the_overlay("qed", "qed"),
          into_the_overlay("qcow2", "qcow2", True),
          the_same_as_a_preset("snapshot", "base"),
          the_same_as_a_preset("overlay", "top"),
          the_way_with_fewer_bytes_is_taken, what_is_empty_is_deleted,
          the_survivor_keeps_the_name, a_name_that_does_not_fit_is_refused,
          links_lead_to_the_survivor(None, "disk.1"),
          links_lead_to_the_survivor("pool/tpl", "pool/top"),
          a_link_into_another_folder_is_refused,
          a_relative_backing_name_stays_in_its_folder,
          what_a_link_leads_to_is_deleted,
          an_overlay_beside_what_a_link_leads_to_is_found,
          what_others_need_is_refused,
          without_release_others_are_asked_for_as_well,
          a_plan_refuses_what_the_merge_would, a_plan_changes_nothing,
          plans_of_stream_and_commit_refuse_as_well,
          compressed("zlib"), compressed("zstd"),
          small_clusters_over_large_ones_are_reckoned,
          large_clusters_below_small_ones_are_given_back,
          what_a_layer_gives_back_is_reckoned(sparse_over_large_clusters,
                                              8 * MIB),
          what_a_layer_gives_back_is_reckoned(scattered_small_clusters,
                                              12 * MIB),
          stream_and_commit_release_as_a_merge_does,
          other_disks_of_a_template_are_found,
        the_layers_between_do_not_lose_their_backing_file,
        a_guest_that_reads_all_over_takes_no_space,
        many_layers_with_long_names_go,
        an_old_version_is_refused_unless_it_may_become_new,
          a_cut_merge_goes_on,
          in_exactly_the_promised_space, the_rest_of_the_space_goes_away,
          no_room_for_the_last_pieces,
          in_what_the_plan_says("tables", scattered, 32 * MIB,
                                26 * MIB),
          in_what_the_plan_says("zeroes into large clusters",
                                over_data("write -z 0 48M"), 12 * MIB, MIB),
          in_what_the_plan_says("data into large clusters",
                                over_data("write -P 3 0 48M"), 64 * MIB, MIB),
          in_what_the_plan_says("a snapshot that is cut within a cluster",
                                over_data("write -P 3 0 2M",
                                          str(48 * MIB + 512)), 24 * MIB, MIB),
          in_what_the_plan_says("clusters of 512 bytes", small_clusters,
                                24 * MIB, 8 * MIB),
          a_guests_zeroes_need_no_space,
          a_job_that_waits_for_space_is_there_again,
          the_command_merges], memory=True)
