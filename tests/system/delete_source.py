#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Leaving the source of a copy: its deletion, who stands against it, and what
a daemon that died in the middle left.

delete_source.py SLUICED SLUICE
"""
import json
import os
import struct
import subprocess
import sys

from harness import (Daemon, Nbd, QmpError, journal, main, nbd_server, need,
                     run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
MIB = 1 << 20
SIZE = 4 * MIB

need("qemu-img", "qemu-io")


def qcow2(name, *options):
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, name, str(SIZE))


def node(name, filename=None, **more):
    return {"driver": "qcow2", "node_name": name.replace("/", "-"), **more,
            "file": {"driver": "file", "filename": filename or name}}


def make():
    qcow2("base")
    qcow2("top", "-b", "base", "-F", "qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", "top")
    qcow2("target")


def daemon():
    return Daemon(SLUICED, *nbd_server())


def start(q, **arguments):
    if not q.cmd("query-named-block-nodes", flat=True):
        q.cmd("blockdev-add", **node("top"))
    q.cmd("blockdev-add", **node("target", backing=None))
    q.cmd("block-export-add", type="nbd", id="e", node_name="top", name="a",
          writable=True)
    q.cmd("block-copy", job_id="j", device="top", target="target",
          delete_source=True, **arguments)


def end(q):
    return q.wait_event("BLOCK_JOB_COMPLETED")["data"].get("error")


def holds_the_data(name="target"):
    run("qemu-img", "check", "-q", "-f", "qcow2", name)
    run("qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 1M", "-c",
        "read -P 0 2M 2M", name)


def files():
    return sorted(os.listdir("."))


def deleted(mode):
    def test():
        make()
        before = files()
        with daemon() as d:
            q = d.qmp()
            start(q, mode=mode)
            if mode == "hybrid":
                q.wait_event("BLOCK_JOB_READY")
                q.cmd("job-complete", id="j")
            assert end(q) is None
            assert "top" not in os.listdir(".") and "base" in os.listdir(".")
            d.stop()
        assert files() == [f for f in before if f != "top"], files()
        holds_the_data()
    return f"{mode} deletes its source, and nothing below it", test


def below_a_filter(preset):
    """The filter stays over the disk, and shows the target by the end."""
    def test():
        make()
        before = files()
        with daemon() as d:
            q = d.qmp()
            q.cmd("object-add", qom_type="throttle-group", id="g")
            q.cmd("blockdev-add", **node("top"))
            q.cmd("blockdev-add", **node("target", backing=None))
            q.cmd("blockdev-add", driver="throttle", node_name="thr",
                  throttle_group="g", file="top")
            q.cmd("block-export-add", type="nbd", id="e", node_name="thr",
                  name="a", writable=True)
            with Nbd("nbd.sock", "a") as nbd:
                q.cmd("block-transfer", job_id="j", preset=preset,
                      device="thr", replaces="top", target="target",
                      delete_source=True)
                if preset == "mirror":
                    q.wait_event("BLOCK_JOB_READY")
                    q.cmd("job-complete", id="j")
                error = end(q)
                assert error is None, error
                graph = {n["node-name"]: n for n
                         in q.cmd("query-named-block-nodes", flat=True)}
                assert graph["thr"]["file"] == "target", graph["thr"]
                assert "target" in files() and "top" not in files(), files()
                # What is written now must be there for the next program.
                nbd.write(0, b"\x08" * 65536)
                nbd.flush()
            d.stop()
        assert files() == [f for f in before if f != "top"], files()
        holds_the_data()
        run("qemu-io", "-f", "qcow2", "-c", "read -P 8 0 64k", "target")
    return f"{preset} below a filter deletes its source, not its target", test


def refused(what, prepare, **arguments):
    """@prepare returns what the message must say."""
    def test():
        make()
        with daemon() as d:
            q = d.qmp()
            texts, undo = prepare(q)
            try:
                start(q, **arguments)
            except QmpError as e:
                for text in texts:
                    assert text in str(e), (text, e)
            else:
                raise AssertionError("it went through")
            undo()
            assert not q.cmd("query-jobs")
            d.stop()
        assert os.path.exists("top")
        assert not [f for f in files() if f.endswith(".sluice")]
        holds_the_data("top")
    return f"{what} keeps the source", test


def nothing():
    pass


def a_clone(q):
    qcow2("clone", "-b", "top", "-F", "qcow2")
    return ["'top' may not be deleted", "backing file of", "clone"], nothing


def a_clone_elsewhere(q):
    os.mkdir("far")
    os.mkfifo("far/pipe")
    qcow2("far/clone", "-b", os.path.abspath("top"), "-F", "qcow2")
    return ["far/", "clone"], nothing


def a_clone_by_another_name(q):
    os.link("top", "alias")
    run("qemu-img", "create", "-q", "-f", "qed", "-b", "alias", "-F", "qcow2",
        "clone", str(SIZE))
    return ["clone"], nothing


def a_clone_in_json(q):
    qcow2("clone", "-b", 'json:{"driver":"qcow2","file":{"driver":"file",'
          '"filename":"%s"}}' % os.path.abspath("top"), "-F", "qcow2")
    return ["clone"], nothing


def a_clone_in_json_by_a_link(q):
    os.symlink("top", "current")
    qcow2("clone", "-u", "-b", 'json:{"driver":"qcow2","file.driver":"file",'
          '"file.filename":"%s"}' % os.path.abspath("current"), "-F", "qcow2")
    return ["clone"], nothing


def an_image_whose_data_it_is(q):
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data",
        "other", str(SIZE))
    os.unlink("data")
    os.symlink("top", "data")
    return ["other"], nothing


def an_image_that_cannot_be_read(q):
    with open("broken", "wb") as f:
        f.write(b"QFI\xfb" + struct.pack(">IQI", 3, 1 << 40, 9) + bytes(100))
    return ["is damaged", "broken"], nothing


def a_hard_link_elsewhere(q):
    os.mkdir("else")
    os.link("top", "else/top")
    return ["1 of its 2 names"], nothing


def another_overlay(q):
    qcow2("other")
    q.cmd("blockdev-add", **node("top"))
    q.cmd("blockdev-add", **node("other", backing="top"))
    return ["backing file of node other"], nothing


def another_program(q):
    # As with share-rw: QEMU lets several programs write to one image.
    p = subprocess.Popen(["qemu-io", "-r", "-U", "-f", "raw", "top"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdout.read(1)

    def stop():
        p.communicate(b"quit\n", timeout=20)
    return ["another program"], stop


def goes(**arguments):
    """Nothing stands against it."""
    with daemon() as d:
        q = d.qmp()
        start(q, **arguments)
        assert not end(q)
        d.stop()
    assert not os.path.exists("top")
    holds_the_data()


def the_same_name_in_another_folder_is_another_file():
    make()
    os.mkdir("far")
    qcow2("far/other", "-u", "-b", "top", "-F", "qcow2")
    goes(dependents_in=["far"])


def a_clone_that_names_it_deep_in_options(q):
    """As deep as a header has room for; QED's name may have 4096 bytes."""
    path = json.dumps({"filename": os.path.abspath("top")}).encode()
    name = b"json:" + b'{"a":' * 650 + path + b"}" * 650
    with open("deep", "wb") as f:
        f.write(struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 1, 1, 1, 0, 0,
                            65536, 1 << 20, 512, len(name)))
        f.write(bytes(512 - f.tell()) + name)
        f.truncate(1 << 17)
    return ["deep"], nothing


def hard_links_that_nobody_names_need_nothing():
    make()
    os.link("top", "second")
    goes()


def images_that_nobody_here_can_open_need_nothing():
    """Unless they name it: what else they are does not matter."""
    make()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on",
        "wide", "4M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "--object",
        "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s",
        "secret", "4M")
    goes()


def a_wide_clone(q):
    qcow2("clone", "-o", "extended_l2=on", "-b", "top", "-F", "qcow2")
    return ["clone"], nothing


def links_in_a_circle_need_nothing():
    make()
    os.symlink("circle", "circle")
    goes()


def a_clone_beside_what_a_link_leads_to(q):
    os.mkdir("pool")
    os.rename("top", "pool/top")
    os.symlink("pool/top", "top")
    qcow2("pool/clone", "-u", "-b", "top", "-F", "qcow2")
    return ["pool/clone"], nothing


def link_source():
    """The disk's name is a link into another folder, by way of another one."""
    make()
    os.mkdir("pool")
    os.rename("top", "pool/image")
    os.symlink("image", "pool/current")
    os.symlink("pool/current", "top")


def what_a_link_leads_to_is_deleted():
    link_source()
    with daemon() as d:
        q = d.qmp()
        start(q)
        assert end(q) is None
        d.stop()
    assert not os.path.lexists("top") and not os.path.lexists("pool/image")
    assert not [f for f in files() if f.endswith(".sluice")]
    holds_the_data()


def what_a_link_leads_to_is_deleted_by_the_next_daemon():
    link_source()
    leave_switch(True)
    with daemon() as d:
        d.qmp().cmd("blockdev-add", **node("target"))
        d.stop()
    assert not os.path.lexists("top") and not os.path.lexists("pool/image")
    assert files() == ["base", "pool", "target"], files()


def what_is_exclusive_asks_nobody():
    make()
    a_clone(None)
    with daemon() as d:
        q = d.qmp()
        start(q, exclusive=True)
        assert end(q) is None
        d.stop()
    assert not os.path.exists("top")
    holds_the_data()


def a_clone_made_meanwhile_keeps_the_source():
    make()
    with daemon() as d:
        q = d.qmp()
        start(q, auto_complete=False)
        q.wait_event("BLOCK_JOB_READY")
        os.mkdir("else")
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "top",
            "-F", "qcow2", "clone", str(SIZE))
        q.cmd("job-complete", id="j")
        error = end(q)
        assert "not deleted" in error and "clone" in error, error
        d.stop()
    assert os.path.exists("top")
    assert not [f for f in files() if f.endswith(".sluice")]
    holds_the_data()


# What a daemon that died left: the format as docs/design/intents.md has it.

def leave_switch(delete, *more, session=0, folders=()):
    source, target = os.stat("top"), os.stat("target")
    what = struct.pack("<QQQQQI", source.st_ino, 0, target.st_ino, 0, session,
                       int(delete))
    near = [f if not os.path.islink("top") else os.path.abspath(f)
            for f in ("target", "top")]
    names = "".join(f + "\0" for f in near)
    names += "".join(f + "\0" for f in folders)
    real = os.path.realpath("top") if os.path.islink("top") else "top"
    journal(real, (1, what + b"qcow2\0qcow2\0" + names.encode()), *more)
    journal("target", (3, b"of the test file" + real.encode() + b"\0"))


def a_clone_made_before_the_next_daemon_keeps_the_source():
    """Whoever ends a switch looks again, where it was looked at first."""
    for where in ("", "far/"):
        make()
        if where:
            os.mkdir("far")
        qcow2(where + "clone", "-b", os.path.abspath("top"), "-F", "qcow2")
        leave_switch(True, folders=["far"] if where else [])
        with daemon() as d:
            d.qmp().cmd("blockdev-add", **node("target"))
            assert "is not deleted" in d.errors(), d.errors()
            assert "clone" in d.errors(), d.errors()
            d.stop()
        assert os.path.exists("top")
        assert not [f for f in files() if f.endswith(".sluice")]
        for name in ("top", "target", "base", where + "clone"):
            os.unlink(name)


def a_source_that_was_written_since_stays():
    """By a program that knows no journal: the number in its header is gone."""
    make()
    leave_switch(True, session=1 << 62 | 12345)
    with daemon() as d:
        d.qmp().cmd("blockdev-add", **node("target"))
        assert "was written to since" in d.errors(), d.errors()
        d.stop()
    assert os.path.exists("top")


def a_target_that_reads_through_keeps_the_source():
    """Not all was copied: the target needs its backing file."""
    make()
    qcow2("over", "-b", "top", "-F", "qcow2")
    with daemon() as d:
        q = d.qmp()
        q.cmd("blockdev-add", **node("top"))
        q.cmd("blockdev-add", **node("over", backing="top"))
        for sync in ("none", "top"):
            try:
                q.cmd("block-transfer", job_id="j", preset="pre-copy",
                      device="top", target="over", sync=sync,
                      delete_source=True)
            except QmpError as e:
                assert "backing file of node over" in str(e), e
            else:
                raise AssertionError("the disk would lose its backing file")
        d.stop()
    assert os.path.exists("top")


def the_old_image_is_refused_and_says_where_the_disk_is():
    make()
    leave_switch(True)
    with daemon() as d:
        q = d.qmp()
        try:
            q.cmd("blockdev-add", **node("top"))
        except QmpError as e:
            assert "The disk in 'top' went on as 'target'" in str(e), e
        else:
            raise AssertionError("two images of one disk")
        q.cmd("blockdev-add", **node("top", read_only=True, backing=None))
        try:  # it may be looked at, but not more
            q.cmd("blockdev-reopen", options=[{
                "driver": "qcow2", "node-name": "top", "backing": None,
                "file": {"driver": "file", "filename": "top"}}])
        except QmpError as e:
            assert "The disk in 'top' went on as 'target'" in str(e), e
        else:
            raise AssertionError("two images of one disk")
        q.cmd("blockdev-del", node_name="top")
        q.cmd("blockdev-add", **node("target"))  # which ends the switch
        d.stop()
    assert files() == ["base", "target"], files()


def is_old(where):
    with daemon() as d:
        try:
            d.qmp().cmd("blockdev-add", **node("top", where, backing=None))
        except QmpError as e:
            assert "went on as" in str(e), e
            return True
        finally:
            d.stop()
    return False


def the_old_image_is_refused_by_any_of_its_names():
    make()
    os.mkdir("links")
    os.symlink("../top", "links/soft")
    os.symlink("links/soft", "far")
    leave_switch(False)
    for name in ("top", "./top", "links/soft", "links/../top", "far",
                 os.path.abspath("top")):
        assert is_old(name), name
    os.unlink("top.sluice")
    assert not is_old("far")


def status_and_check_tell_it_and_repair_ends_it():
    make()
    leave_switch(True)
    for name in "top", "target":
        for argv in ("status", name), ("check", name, "-f", "qcow2"):
            out = run(SLUICE, *argv)[1]
            assert "moves from 'top' to 'target', which was cut off" in out, out
    assert {"top", "top.sluice", "target.sluice"} < set(files())
    out = run(SLUICE, "check", "target", "-f", "qcow2", "-r", "all")[1]
    assert "it is finished, and the old image is deleted" in out, out
    assert files() == ["base", "target"], files()
    make()  # a target that is marked is not the disk
    leave_switch(True)
    with daemon() as d:
        q = d.qmp()
        os.rename("top.sluice", "away")
        q.cmd("blockdev-add", **node("top"))
        q.cmd("blockdev-add", **node("target", backing=None))
        q.cmd("block-copy", job_id="j", device="top", target="target",
              auto_complete=False)
        q.wait_event("BLOCK_JOB_READY")
        d.kill()
        d.wait()
    leave_switch(True)
    out = run(SLUICE, "status", "top")[1]
    assert "not finished: it is still the former" in out, out


def who_puts_a_journal_beside_an_image_has_nothing_deleted():
    """Neither with --untrusted, nor what is not the file that it says."""
    for options in (["--untrusted"], []):
        make()
        qcow2("victim")
        source, target = os.stat("victim"), os.stat("target")
        what = struct.pack("<QQQQQI", source.st_ino, 0, target.st_ino, 0, 0, 1)
        journal("top", (1, what + b"qcow2\0qcow2\0target\0victim\0"))
        journal("target", (3, b"of the test file" + b"top\0"))
        with Daemon(SLUICED, *options) as d:
            d.qmp().cmd("blockdev-add", **node("target"))
            assert "is not deleted" in d.errors(), d.errors()
            d.stop()
        assert os.path.exists("victim") and os.path.exists("top")


def a_journal_is_not_written_through_a_link():
    make()
    with open("victim", "w") as f:
        f.write("mine")
    os.symlink("victim", "top.sluice.new")
    with daemon() as d:
        q = d.qmp()
        start(q)
        assert end(q) is None
        d.stop()
    with open("victim") as f:
        assert f.read() == "mine"
    assert files() == ["base", "target", "victim"], files()


def a_switch_that_was_withdrawn_leaves_the_disk():
    make()
    leave_switch(True, (2, b"\0"))
    with daemon() as d:
        d.qmp().cmd("blockdev-add", **node("top"))
        d.stop()
    assert "top.sluice" not in files() and "top" in files()


def a_marked_target_leaves_the_disk():
    make()
    with daemon() as d:
        q = d.qmp()
        q.cmd("blockdev-add", **node("top"))
        q.cmd("blockdev-add", **node("target", backing=None))
        q.cmd("block-copy", job_id="j", device="top", target="target",
              auto_complete=False)
        q.wait_event("BLOCK_JOB_READY")
        assert {"top.sluice", "target.sluice"} < set(files())
        d.kill()
    leave_switch(False)  # recorded, but the mark is there
    with daemon() as d:
        d.qmp().cmd("blockdev-add", **node("top"))
        d.stop()
    assert not [f for f in files() if f.endswith(".sluice")]
    holds_the_data("top")


def another_file_of_that_name_is_not_deleted():
    make()
    leave_switch(True)
    os.rename("top", "moved")
    qcow2("top")  # somebody made a new one
    with daemon() as d:
        q = d.qmp()
        q.cmd("blockdev-add", **node("target"))
        d.stop()
    assert "top" in files() and "moved" in files()


if __name__ == "__main__":
    main([deleted("pre-copy"), deleted("post-copy"), deleted("hybrid"),
          below_a_filter("pre-copy"), below_a_filter("mirror"),
          refused("a clone", a_clone),
          refused("a clone in another folder", a_clone_elsewhere,
                  dependents_in=["far"]),
          refused("a clone by another name", a_clone_by_another_name),
          refused("a clone that names it in JSON", a_clone_in_json),
          refused("a clone that names a link in JSON",
                  a_clone_in_json_by_a_link),
          refused("an image whose data it is", an_image_whose_data_it_is),
          refused("an image that cannot be read",
                  an_image_that_cannot_be_read),
          refused("a clone beside what a link leads to",
                  a_clone_beside_what_a_link_leads_to),
          links_in_a_circle_need_nothing,
          what_a_link_leads_to_is_deleted,
          what_a_link_leads_to_is_deleted_by_the_next_daemon,
          refused("a hard link elsewhere", a_hard_link_elsewhere),
          refused("a clone that cannot be opened here", a_wide_clone),
          refused("a clone that names it deep in options",
                  a_clone_that_names_it_deep_in_options),
          the_same_name_in_another_folder_is_another_file,
          hard_links_that_nobody_names_need_nothing,
          images_that_nobody_here_can_open_need_nothing,
          refused("another overlay here", another_overlay),
          refused("another program", another_program),
          what_is_exclusive_asks_nobody,
          a_clone_made_meanwhile_keeps_the_source,
          the_old_image_is_refused_and_says_where_the_disk_is,
          the_old_image_is_refused_by_any_of_its_names,
          who_puts_a_journal_beside_an_image_has_nothing_deleted,
          a_journal_is_not_written_through_a_link,
          status_and_check_tell_it_and_repair_ends_it,
          a_clone_made_before_the_next_daemon_keeps_the_source,
          a_source_that_was_written_since_stays,
          a_target_that_reads_through_keeps_the_source,
          a_switch_that_was_withdrawn_leaves_the_disk,
          a_marked_target_leaves_the_disk,
          another_file_of_that_name_is_not_deleted])
