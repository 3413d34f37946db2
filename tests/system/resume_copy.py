#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Copies and mirrors that outlive their daemon: the next one goes on, and copies
what its log says has changed; what that cannot know is copied anew.

resume_copy.py SLUICED SLUICE
"""
import json
import os
import sys
import time

from harness import (Daemon, Nbd, Process, main, nbd_server, need, refused, run,
                     wait_for)

SLUICED = os.path.abspath(sys.argv[1])
SLUICE = os.path.abspath(sys.argv[2])
MIB = 1 << 20
SIZE = 64 * MIB
REGION = SIZE // 256
SPEED = 16 * MIB

need("qemu-img", "qemu-io")


def make(fmt="qcow2", target="qcow2"):
    for name in os.listdir("."):
        if not name.endswith(".sock"):
            os.unlink(name)
    run("qemu-img", "create", "-q", "-f", fmt, "top", str(SIZE))
    run("qemu-io", "-f", fmt, "-c", f"write -P 1 0 {SIZE}", "top")
    create_target(target)


def create_target(target):
    run("qemu-img", "create", "-q", "-f", target, "copy", str(SIZE))


def daemon(fmt="qcow2", *more, disk="top"):
    return Daemon(SLUICED, *nbd_server(), "--blockdev",
                  f"driver={fmt},node-name=disk,file.driver=file,"
                  f"file.filename={disk}", "--export",
                  "nbd,id=e,node-name=disk,name=a,writable=on", *more)


def add_target(q, target):
    q.cmd("blockdev-add", driver=target, node_name="copy",
          file={"driver": "file", "filename": "copy"})


def job(q):
    jobs = q.cmd("query-jobs")
    return jobs[0] if jobs else None


def moved(q):
    return q.cmd("query-transfers")[0]["bytes-moved"]


def ready(q):
    wait_for(lambda: job(q)["status"] == "ready")


def judge(fmt, target):
    """The switch is over: both are alike, with what guests wrote."""
    run("qemu-img", "check", "-q", "-f", target, "copy",
        ok=(0, 3) if target != "raw" else (0, 63))
    run("qemu-img", "compare", "-q", "-f", fmt, "-F", target, "top", "copy")
    assert not [n for n in os.listdir(".") if "sluice" in n], os.listdir(".")


def in_step(fmt, target, command="blockdev-mirror"):
    """A mirror in step, whose log has been cleared; then a guest's write."""
    make(fmt, target)
    d = daemon(fmt).__enter__()
    q = d.qmp()
    if command == "drive-mirror":  # whose target has no name
        q.cmd(command, job_id="j", device="disk", target="copy", sync="full",
              mode="existing", format=target)
    else:
        add_target(q, target)
        q.cmd(command, job_id="j", device="disk", target="copy", sync="full")
    ready(q)
    if target != "raw":
        time.sleep(6)  # the log is cleared every 5 s
    with Nbd("nbd.sock", "a") as nbd:
        nbd.write(5 * MIB + 4096, b"n" * 4096)
        nbd.write(40 * MIB, b"m" * 4096)
    return d


def only_what_changed(fmt, target, end, command="blockdev-mirror"):
    def test():
        d = in_step(fmt, target, command)
        end(d)
        d.wait()
        with daemon(fmt) as d:
            q = d.qmp()
            wait_for(lambda: job(q))
            ready(q)
            assert 0 < moved(q) <= 2 * REGION, moved(q)
            q.cmd("job-complete", id="j")
            wait_for(lambda: not job(q))
            d.stop()
        judge(fmt, target)
    test.__name__ = (f"{command}, {fmt} to {target}: only what changed is "
                     f"copied after {end.__name__}")
    return test


def kill(d):
    d.kill()


def quit_(d):
    d.stop()


def all_anew(what, fmt, target, disturb):
    def test():
        kill_it = in_step(fmt, target)
        kill_it.kill()
        kill_it.wait()
        disturb()
        with daemon(fmt) as d:
            q = d.qmp()
            wait_for(lambda: job(q))
            ready(q)
            assert moved(q) >= SIZE, moved(q)
            q.cmd("job-complete", id="j")
            wait_for(lambda: not job(q))
            d.stop()
        judge(fmt, target)
    test.__name__ = what
    return test


def another_program_writes():
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 20M 1M", "top")


def the_target_is_made_anew():
    create_target("qcow2")


def raw_by_itself():
    """Its header has no place for a mark: its journal says what it is."""
    _, text = run(SLUICE, "status", "copy")
    assert "an unfinished copy" in text and "nothing is" not in text, text
    _, text = run(SLUICE, "info", "copy", "-f", "raw", "--json")
    assert json.loads(text)["chain"][0]["unfinished-copy"], text
    os.symlink("copy", "link")
    for name in "copy", "link":
        with Daemon(SLUICED, *nbd_server("other.sock"), "--blockdev",
                    "driver=raw,node-name=c,file.driver=file,"
                    f"file.filename={name}") as d:
            refused(d.qmp(), "is an unfinished copy", "block-export-add",
                    type="nbd", id="e", node_name="c", writable=True)
            d.stop()
    os.unlink("link")
    _, text = run(SLUICE, "compare", "copy", "top", "-f", "raw", "-F", "qcow2",
                  ok=(2,))
    assert "is an unfinished copy" in text and "copy.sluice" in text, text


def cut_in_the_pass(fmt, target, command, **arguments):
    def test():
        make(fmt, target)
        with daemon(fmt) as d:
            q = d.qmp()
            add_target(q, target)
            q.cmd(command, job_id="j", device="disk", target="copy",
                  speed=SPEED, **arguments)
            time.sleep(0.5)
            with Nbd("nbd.sock", "a") as nbd:
                nbd.write(MIB, b"x" * 65536)
                nbd.write(60 * MIB, b"y" * 65536)
            d.kill()
            d.wait()
        with daemon(fmt) as d:
            q = d.qmp()
            wait_for(lambda: "goes on" in d.errors())
            if job(q):
                q.cmd("block-job-set-speed", device="j", speed=0)
            if command == "blockdev-mirror" or \
                    arguments.get("mode") == "hybrid":
                ready(q)
                q.cmd("job-complete", id="j")
            wait_for(lambda: not job(q))
            with Nbd("nbd.sock", "a") as nbd:
                assert nbd.read(60 * MIB, 65536) == b"y" * 65536
            d.stop()
        judge(fmt, target)
        info = run("qemu-img", "info", "copy")[1]
        assert "backing file" not in info, info
    mode = arguments.get("mode", "")
    test.__name__ = (f"{command} {mode} of {fmt} to {target} goes on after a "
                     "kill in its midst")
    return test


def refuses_the_old_name():
    """What the disk still reads through to is not written under it."""
    p = Process(SLUICED, "--blockdev", "driver=qcow2,node-name=disk,"
                "file.driver=file,file.filename=top")
    assert p.wait() == 1
    assert "went on as" in p.errors() and "copy" in p.errors(), p.errors()
    _, text = run(SLUICE, "status", "top")
    assert "moves from" in text, text


def the_rest_goes_on_where_the_disk_is(mode, end):
    def test():
        make()
        with daemon() as d:
            q = d.qmp()
            q.cmd("blockdev-add", driver="qcow2", node_name="copy",
                  backing=None, file={"driver": "file", "filename": "copy"})
            q.cmd("block-copy", job_id="j", device="disk", target="copy",
                  mode=mode, speed=SPEED, delete_source=True)
            time.sleep(0.3)
            if mode == "hybrid":
                q.cmd("job-complete", id="j")
                wait_for(lambda: q.cmd("query-block-exports")[0]["node-name"]
                         == "copy")
            with Nbd("nbd.sock", "a") as nbd:
                nbd.write(60 * MIB, b"y" * 65536)
            end(d)
            d.wait()
        refuses_the_old_name()
        with daemon(disk="copy") as d:
            q = d.qmp()
            wait_for(lambda: job(q) or "goes on" in d.errors())
            d.kill()
            d.wait()
        refuses_the_old_name()
        with daemon(disk="copy") as d:
            q = d.qmp()
            wait_for(lambda: job(q) or "goes on" in d.errors())
            if job(q):
                q.cmd("block-job-set-speed", device="j", speed=0)
            wait_for(lambda: not job(q))
            with Nbd("nbd.sock", "a") as nbd:
                assert nbd.read(60 * MIB, 65536) == b"y" * 65536
                assert nbd.read(59 * MIB, 65536) == b"\1" * 65536
            d.stop()
        assert "backing file" not in run("qemu-img", "info", "copy")[1]
        assert not os.path.exists("top")
        left = [n for n in os.listdir(".") if "sluice" in n]
        assert not left, left
    test.__name__ = (f"the rest of a {mode} goes on where the disk is after "
                     f"{end.__name__}")
    return test


def an_unfinished_raw_target_can_be_one_again():
    """By a file node and a format over it, as libvirt has them; and then it is
    a disk as any other.  Or an image is made anew over it."""
    for name in os.listdir("."):
        if not name.endswith(".sock"):
            os.unlink(name)
    in_step("qcow2", "raw").kill()
    with Daemon(SLUICED, *nbd_server("other.sock")) as d:
        q = d.qmp()
        for node in ("top", "copy"):
            q.cmd("blockdev-add", driver="file", node_name=node + "-file",
                  filename=node)
        q.cmd("blockdev-add", driver="raw", node_name="copy", file="copy-file")
        refused(q, "is an unfinished copy", "block-export-add", type="nbd",
                id="e", node_name="copy", writable=True)
        q.cmd("blockdev-add", driver="qcow2", node_name="again",
              file="top-file")
        wait_for(lambda: "goes on" in d.errors() or
                 "cannot go on" in d.errors())
        if not job(q):
            q.cmd("blockdev-mirror", job_id="j", device="again", target="copy",
                  sync="full")
        ready(q)
        q.cmd("block-job-cancel", device="j")  # a copy as of now
        wait_for(lambda: not job(q))
        q.cmd("block-export-add", type="nbd", id="e", node_name="copy",
              writable=True)
        d.stop()
    judge("qcow2", "raw")
    for fmt in "qcow2", "raw":
        os.unlink("top")
        os.unlink("copy")
        in_step("qcow2", "raw").kill()
        run(SLUICE, "status", "copy")
        with Daemon(SLUICED, *nbd_server("other.sock")) as d:
            q = d.qmp()
            q.cmd("blockdev-create", job_id="c", options={
                "driver": "file", "filename": "copy", "size": MIB})
            wait_for(lambda: q.cmd("query-jobs")[0]["status"] == "concluded")
            assert "error" not in q.cmd("query-jobs")[0], q.cmd("query-jobs")
            q.cmd("job-dismiss", id="c")
            q.cmd("blockdev-add", driver="file", node_name="f",
                  filename="copy")
            if fmt == "qcow2":
                q.cmd("blockdev-create", job_id="c", options={
                    "driver": "qcow2", "file": "f", "size": MIB})
                wait_for(lambda: q.cmd("query-jobs")[0]["status"] ==
                         "concluded")
                assert "error" not in q.cmd("query-jobs")[0]
            q.cmd("blockdev-add", driver=fmt, node_name="copy", file="f")
            q.cmd("block-export-add", type="nbd", id="e", node_name="copy",
                  writable=True)
            d.stop()
        assert not os.path.exists("copy.sluice")


def a_mirror_of_what_is_still_filled():
    """Of the rest of a switch the record goes, not that of the next one."""
    make()
    create_target("qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "last", str(SIZE))
    with daemon() as d:
        q = d.qmp()
        for name in "copy", "last":
            q.cmd("blockdev-add", driver="qcow2", node_name=name, backing=None,
                  file={"driver": "file", "filename": name})
        q.cmd("block-copy", job_id="j", device="disk", target="copy",
              mode="post-copy", speed=SPEED)
        q.cmd("block-copy", job_id="k", device="copy", target="last",
              auto_finalize=False)
        q.wait_event("JOB_STATUS_CHANGE", id="k", status="pending")
        q.cmd("block-job-set-speed", device="j", speed=0)
        q.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        q.cmd("job-finalize", id="k")
        q.wait_event("JOB_STATUS_CHANGE", id="k", status="null")
        assert q.cmd("query-block-exports")[0]["node-name"] == "last"
        d.kill()
        d.wait()
    assert not [n for n in os.listdir(".") if n.endswith(".sluice")]
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", "top",
        "last")


def what_was_cancelled_leaves_no_log():
    make()
    with daemon() as d:
        q = d.qmp()
        add_target(q, "qcow2")
        q.cmd("blockdev-mirror", job_id="j", device="disk", target="copy",
              sync="full")
        ready(q)
        assert os.path.exists("top.sluice-dirty")
        q.cmd("job-cancel", id="j")
        wait_for(lambda: not job(q))
        assert not [n for n in os.listdir(".") if "sluice" in n]
        d.stop()


if __name__ == "__main__":
    main([(f.__name__.replace("_", " "), f) for f in (
        only_what_changed("qcow2", "qcow2", kill),
        only_what_changed("qed", "qcow2", quit_),
        only_what_changed("qcow2", "qed", kill, "drive-mirror"),
        all_anew("another program's write is copied, too", "qcow2", "qcow2",
                 another_program_writes),
        all_anew("a target that was made anew gets all", "qcow2", "qcow2",
                 the_target_is_made_anew),
        all_anew("a raw target gets all: nobody knows who wrote to it",
                 "qcow2", "raw", raw_by_itself),
        cut_in_the_pass("qcow2", "qed", "blockdev-mirror", sync="full"),
        cut_in_the_pass("raw", "qcow2", "block-copy"),
        cut_in_the_pass("qcow2", "qcow2", "block-copy", mode="hybrid"),
        *(the_rest_goes_on_where_the_disk_is(mode, end)
          for mode in ("post-copy", "hybrid") for end in (kill, quit_)),
        an_unfinished_raw_target_can_be_one_again,
        a_mirror_of_what_is_still_filled,
        what_was_cancelled_leaves_no_log)])
