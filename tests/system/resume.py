#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Jobs that outlive their daemon: killed or ended in the midst of one, the next
one goes on with it; qemu-img judges the end.

resume.py SLUICED SLUICE
"""
import hashlib
import json
import os
import sys
import time

from harness import (Daemon, Nbd, QmpError, journal, main, nbd_server, need,
                     run, wait_for)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
MIB = 1 << 20
SPEED = 6 * MIB  # some seconds for a disk

need("qemu-img", "qemu-io")


def make(fmt="qcow2"):
    for name in ("base", "mid", "top", "top.sluice"):
        if os.path.exists(name):
            os.unlink(name)
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "32M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 32M", "base")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2",
        "mid")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 4M 20M", "mid")
    run("qemu-img", "create", "-q", "-f", fmt, "-b", "mid", "-F", "qcow2",
        "top")
    run("qemu-io", "-f", fmt, "-c", "write -P 3 8M 20M", "top")
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", "top", "model")


def daemon(fmt="qcow2", *options):
    return Daemon(SLUICED, "--blockdev", f"driver={fmt},node-name=top,"
                  "file.driver=file,file.filename=top", *options)


def job(q):
    jobs = q.cmd("query-jobs")
    return jobs[0] if jobs else None


def begin(q, command, **arguments):
    q.cmd(command, job_id="j", device="top", speed=SPEED, **arguments)
    wait_for(lambda: job(q)["current-progress"])


def judge(fmt, name="top"):
    run("qemu-img", "check", "-q", "-f", fmt, name, ok=(0, 3))  # leaks
    run("qemu-img", "compare", "-q", "-f", fmt, "-F", "raw", name, "model")


def cut(fmt, command, **arguments):
    """Killed a while after its start."""
    with daemon(fmt) as d:
        begin(d.qmp(), command, **arguments)
        time.sleep(0.3)
        d.kill()
        d.wait()
    run("qemu-img", "compare", "-q", "-f", fmt, "-F", "raw", "top", "model")
    assert os.path.exists("top.sluice")


def finish(q):
    if job(q):
        q.cmd("block-job-set-speed", device="j", speed=0)
        wait_for(lambda: not job(q))


def goes_on(command, fmt, layers, **arguments):
    def test():
        make(fmt)
        cut(fmt, command, **arguments)
        with daemon(fmt) as d:
            q = d.qmp()
            wait_for(lambda: job(q))
            assert job(q)["id"] == "j" and job(q)["type"] == command[6:], job(q)
            assert "goes on" in d.errors(), d.errors()
            finish(q)
            q.cmd("quit")
            assert d.wait() == 0, d.errors()
        assert not os.path.exists("top.sluice")
        survivor = "top" if layers[0] == "top" else layers[0]
        judge("qcow2" if survivor != "top" else fmt, survivor)
        with daemon(fmt) as d:  # nothing is left to go on with
            assert not job(d.qmp())
            d.stop()
            assert "goes on" not in d.errors()
    test.__name__ = (f"{command} of {fmt} into {layers[0]} goes on after a "
                     "kill")
    return test


def goes_on_by_another_name(name, used, then, hard=False):
    """Links, hard links, folders by other paths: one image, one journal."""
    def opened(file, state):
        return Daemon(SLUICED, "--state-dir", state, "--blockdev",
                      "driver=qcow2,node-name=mid,read-only=on,"
                      "file.driver=file,file.filename=mid", "--blockdev",
                      "driver=qcow2,node-name=top,backing=mid,"
                      f"file.driver=file,file.filename={file}")

    def test():
        make()
        os.makedirs("links", exist_ok=True)
        if not os.path.lexists("links/top"):
            os.link("top", "links/top") if hard else os.symlink("../top",
                                                                "links/top")
        os.makedirs("state", exist_ok=True)
        with opened(used, "state") as d:
            begin(d.qmp(), "block-stream")
            d.kill()
            d.wait()
        assert os.path.exists("top.sluice") != hard
        with opened(then, os.path.abspath("state")) as d:
            q = d.qmp()
            wait_for(lambda: job(q))
            finish(q)
            d.stop()
        assert not os.path.exists("top.sluice") and not os.listdir("state")
        judge("qcow2")
    test.__name__ = name
    return test


def a_name_that_leaves_no_room_for_seven_bytes_more():
    long = "n" * 252
    make()
    os.rename("top", long)
    options = (SLUICED, "--state-dir", "state", "--blockdev",
               "driver=qcow2,node-name=top,file.driver=file,"
               f"file.filename={long}")
    with Daemon(*options) as d:
        begin(d.qmp(), "block-stream")
        d.kill()
        d.wait()
    with Daemon(*options) as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        finish(q)
        d.stop()
    assert not os.listdir("state")
    judge("qcow2", long)


def what_is_answered_is_recorded():
    """Killed right then, it goes on; and nothing is left when it has ended."""
    for command, arguments in (("block-merge", {"into": "snapshot"}),
                               ("block-merge", {"into": "overlay"}),
                               ("block-stream", {}),
                               ("block-commit", {"top": "mid"})):
        for _ in range(5):
            make()
            with daemon() as d:
                d.qmp().cmd(command, job_id="j", device="top", speed=1,
                            **arguments)
                d.kill()
                d.wait()
            assert [j["id"] for j in status("top")["jobs"]] == ["j"], command
        with daemon() as d:
            q = d.qmp()
            wait_for(lambda: job(q))
            finish(q)
            d.stop()
        assert not [n for n in os.listdir() if n.endswith(".sluice")]


def a_journal_that_says_nothing_goes():
    """Of a job that had not begun when its daemon was killed."""
    make()
    cut("qcow2", "block-merge", into="snapshot")
    for name in "top", "mid":
        journal(name)
    with daemon() as d:
        assert not job(d.qmp())
        wait_for(lambda: not [n for n in os.listdir()
                              if n.endswith(".sluice")])
        d.stop()


def its_pause_and_its_speed_are_kept():
    make()
    with daemon() as d:
        q = d.qmp()
        q.cmd("block-merge", job_id="j", device="top", into="snapshot",
              speed=1)
        q.cmd("block-job-set-speed", device="j", speed=5 * MIB)
        wait_for(lambda: status("top")["jobs"][0]["speed"] == 5 * MIB)
        q.cmd("job-pause", id="j")
        wait_for(lambda: job(q)["status"] == "paused")
        wait_for(lambda: status("top")["jobs"][0].get("paused"))
        d.kill()
        d.wait()
    for turn in range(2):
        with daemon() as d:
            q = d.qmp()
            wait_for(lambda: job(q))
            assert q.cmd("query-block-jobs")[0]["speed"] == 5 * MIB
            if turn:
                wait_for(lambda: job(q)["status"] == "running")
                finish(q)
                d.stop()
            else:
                assert "there again, paused" in d.errors(), d.errors()
                wait_for(lambda: job(q)["status"] == "paused")
                q.cmd("job-resume", id="j")
                wait_for(lambda: not status("top")["jobs"][0].get("paused"))
                d.kill()
                d.wait()
    judge("qcow2", "mid")


def goes_on_once_it_can_be_written(name, opened, **then):
    """What is only looked at, or another program's, is left alone."""
    def test():
        make()
        cut("qcow2", "block-stream")
        with Daemon(SLUICED) as d:
            q = d.qmp()
            q.cmd("blockdev-add", driver="qcow2", node_name="mid",
                  read_only=True, file={"driver": "file", "filename": "mid"},
                  **{k: v for k, v in opened.items() if k == "active"})
            q.cmd("blockdev-add", driver="qcow2", node_name="top",
                  backing="mid", file={"driver": "file", "filename": "top"},
                  **opened)
            assert not job(q)
            q.cmd(then["command"], **then["arguments"])
            wait_for(lambda: job(q))
            assert "goes on" in d.errors(), d.errors()
            finish(q)
            d.stop()
        assert not os.path.exists("top.sluice")
        judge("qcow2")
    test.__name__ = name
    return test


def a_damaged_journal_is_said():
    """It may have said that the disk has moved: nobody goes on without it."""
    make()
    cut("qcow2", "block-stream")
    with open("top.sluice", "rb") as f:
        good = f.read()
    flipped = bytearray(good)
    flipped[100] ^= 4  # in the only record that it has
    for bad in (bytes(flipped), good[:-1], good[:100], b"", bytes(len(good)),
                good[:40] + b"!" + good[41:-1] + b"!"):
        with open("top.sluice", "wb") as f:
            f.write(bad)
        with Daemon(SLUICED) as d:
            try:
                d.qmp().cmd("blockdev-add", driver="qcow2", node_name="top",
                            file={"driver": "file", "filename": "top"})
            except QmpError as e:
                assert "journal of 'top' is damaged" in str(e), e
            else:
                raise AssertionError(f"opened with {len(bad)} bytes of it")
            d.stop()
        with open("top.sluice", "rb") as f:
            assert f.read() == bad
        out = run(SLUICE, "status", "top", ok=(12,))[1]
        assert "is damaged" in out and "move it away" in out, out


def a_job_under_a_filter_goes_on():
    """The filter's node is the only one with a name."""
    make()
    image = ["--object", "throttle-group,id=g", "--blockdev",
             "driver=throttle,node-name=top,throttle-group=g,"
             "file.driver=qcow2,file.file.driver=file,file.file.filename=top"]
    with Daemon(SLUICED, *image) as d:
        begin(d.qmp(), "block-stream")
        d.kill()
        d.wait()
    with Daemon(SLUICED, *image) as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        assert "goes on" in d.errors(), d.errors()
        assert job(q)["current-progress"] < job(q)["total-progress"], job(q)
        finish(q)
        assert d.stop() == 0
    assert not os.path.exists("top.sluice")
    judge("qcow2")
    info = json.loads(run("qemu-img", "info", "--output=json", "top")[1])
    assert "backing-filename" not in info, info


def a_daemon_that_ends_leaves_its_jobs_to_the_next():
    make()
    with daemon() as d:
        begin(d.qmp(), "block-stream")
        assert d.stop() == 0
    with daemon() as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        finish(q)
        d.stop()
    judge("qcow2")
    assert "backing file" not in run("qemu-img", "info", "top")[1]


def asked_it_is_there_but_paused():
    make()
    cut("qcow2", "block-stream")
    with daemon("qcow2", "--resume", "ask") as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        time.sleep(0.3)
        assert job(q)["status"] == "paused", job(q)
        assert job(q)["current-progress"] == 0, job(q)
        q.cmd("job-resume", id="j")
        finish(q)
        d.stop()
    judge("qcow2")


def never_means_that_it_stays_as_it_is():
    make()
    cut("qcow2", "block-stream")
    for _ in range(2):
        with daemon("qcow2", "--resume", "never") as d:
            assert not job(d.qmp())
            d.stop()
    assert os.path.exists("top.sluice")
    run("qemu-img", "compare", "-q", "-F", "raw", "top", "model")


def a_job_that_was_cancelled_does_not_come_back():
    make()
    with daemon() as d:
        q = d.qmp()
        begin(q, "block-merge")
        q.cmd("job-cancel", id="j")
        wait_for(lambda: not job(q))
        d.kill()
        d.wait()
    assert not os.path.exists("top.sluice")
    with daemon() as d:
        assert not job(d.qmp())
        d.stop()


def one_that_is_cancelled_before_it_runs_again_is_over():
    """It was asked for, seen and refused: the next daemon must not run it."""
    make()
    cut("qcow2", "block-merge")
    with daemon("qcow2", "--resume", "ask") as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        q.cmd("job-cancel", id="j")
        wait_for(lambda: not job(q))
        d.stop()
    assert not os.path.exists("top.sluice")
    with daemon() as d:
        assert not job(d.qmp())
        d.stop()
    judge("qcow2")


def a_new_file_with_the_old_inode_is_another_one():
    """Inode numbers come back; the moment when a file was made does not."""
    for _ in range(20):
        make()
        cut("qcow2", "block-stream")
        old = os.stat("top").st_ino
        os.unlink("top")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid", "-F",
            "qcow2", "top")
        if os.stat("top").st_ino == old:
            break
        os.unlink("top.sluice")
    else:
        print("# this file system gives no inode number a second time")
        return
    with daemon() as d:
        q = d.qmp()
        wait_for(lambda: "another file" in d.errors())
        assert not job(q)
        d.stop()


def what_cannot_go_on_is_said_and_forgotten():
    make()
    with daemon() as d:
        q = d.qmp()
        base = [n for n in q.cmd("query-named-block-nodes")
                if n.get("file") == "base" and n["drv"] == "qcow2"]
        begin(q, "block-stream", base_node=base[0]["node-name"])
        d.kill()
        d.wait()
    run("qemu-img", "rebase", "-f", "qcow2", "-b", "", "mid")
    with daemon() as d:
        q = d.qmp()
        wait_for(lambda: "base" in d.errors())
        assert not job(q)
        assert "is not below 'top' any more" in d.errors(), d.errors()
        d.stop()
    assert not os.path.exists("top.sluice")


def another_file_of_that_name_is_left_alone():
    make()
    cut("qcow2", "block-stream")
    os.rename("top", "old")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2",
        "top")
    with daemon() as d:
        q = d.qmp()
        wait_for(lambda: "another file" in d.errors())
        assert not job(q)
        d.stop()
    assert not os.path.exists("top.sluice")
    assert '"depth": 0' not in run("qemu-img", "map", "--output=json", "top")[1]


def another_programs_write_ends_a(command, written, **arguments):
    """What it had sunk is there; what that one wrote is not overwritten."""
    def test():
        make()
        cut("qcow2", command, **arguments)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 9 9M 1M", written)
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "top", "model")
        with daemon() as d:
            q = d.qmp()
            wait_for(lambda: "another program" in d.errors())
            assert not job(q)
            d.stop()
        assert not os.path.exists("top.sluice")
        judge("qcow2")
        run("qemu-io", "-f", "qcow2", "-c", "read -P 9 9M 1M", written)
        if written == "top" and command == "block-merge":  # it can begin anew
            with daemon() as d:
                q = d.qmp()
                q.cmd(command, job_id="j", device="top", **arguments)
                finish(q)
                d.stop()
            judge("qcow2", "mid")
    test.__name__ = f"another program's write to {written} ends a {command}"
    return test


def by_hand(*options):
    """The chain as the daemon's options say it, whatever headers name."""
    blockdev = None
    for name in ("base", "mid", "top"):
        blockdev = {"driver": "qcow2", "node-name": name, "backing": blockdev,
                    "read-only": name != "top",
                    "file": {"driver": "file", "filename": name}}
    return Daemon(SLUICED, *options, "--blockdev", json.dumps(blockdev))


def digests(*names):
    sums = []
    for name in names:
        with open(name, "rb") as f:
            sums.append(hashlib.sha256(f.read()).digest())
    return sums


def no_journal_has_layers_written(limit, command, layers, **arguments):
    """Where paths are limited: who may put a file beside an image must not
    have others written.  Without the limit it goes on as ever."""
    def test():
        make()
        cut("qcow2", command, **arguments)
        with by_hand("--resume", "never") as d:  # what was in memory only
            d.qmp()
            d.stop()
        before = digests("base", "mid")
        with by_hand(*limit) as d:
            q = d.qmp()
            wait_for(lambda: "stays as it is" in d.errors() or job(q))
            assert "stays as it is" in d.errors(), d.errors()
            assert not job(q)
            d.stop()
        assert digests("base", "mid") == before, "a layer was written to"
        assert os.path.exists("top.sluice")
        with daemon() as d:
            q = d.qmp()
            wait_for(lambda: job(q) or "continues it" in d.errors())
            assert job(q), d.errors()
            finish(q)
            d.stop()
        assert not os.path.exists("top.sluice")
        for name in layers:
            judge("qcow2", name)
    test.__name__ = " ".join([f"with {limit[0]} a {command} of",
                              *arguments.values(), "does not go on"])
    return test


def what_fills_the_disk_alone_goes_on_where_paths_are_limited():
    make()
    cut("qcow2", "block-stream")
    with by_hand("--untrusted") as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        finish(q)
        d.stop()
    judge("qcow2")


def those_that_were_ours_do_not():
    """Killed before it went on, and left alone by one in between."""
    make()
    cut("qcow2", "block-merge", into="snapshot")
    for mode, end in ("ask", "kill"), ("ask", "stop"), ("never", "stop"), \
            ("never", "kill"), ("auto", "stop"), ("auto", "kill"):
        with daemon("qcow2", "--resume", mode) as d:
            q = d.qmp()
            if mode != "never":
                wait_for(lambda: job(q))
            if end == "kill":
                d.kill()
                d.wait()
            else:
                d.stop()
    with daemon() as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        finish(q)
        d.stop()
        assert "another program" not in d.errors(), d.errors()
    judge("qcow2", "mid")


def the_same_merge_again_is_no_error():
    make()
    with daemon() as d:
        q = d.qmp()
        begin(q, "block-merge")
        q.cmd("block-merge", job_id="j", device="top")
        assert len(q.cmd("query-jobs")) == 1
        try:
            q.cmd("block-merge", job_id="j", device="top", into="overlay",
                  release=False)
            raise AssertionError("another merge of that name was taken")
        except QmpError as e:
            assert "already in use" in e.desc, e.desc
        finish(q)
        d.stop()


def one_that_is_added_later_goes_on_then():
    make()
    cut("qcow2", "block-stream")
    with Daemon(SLUICED) as d:
        q = d.qmp()
        q.cmd("blockdev-add", driver="qcow2", node_name="disk", read_only=True,
              file={"driver": "file", "filename": "top"})
        assert not job(q)  # it is only looked at
        q.cmd("blockdev-del", node_name="disk")
        q.cmd("blockdev-add", driver="qcow2", node_name="disk",
              file={"driver": "file", "filename": "top"})
        assert job(q)["id"] == "j"
        finish(q)
        d.stop()
    judge("qcow2")


def status(image):
    return json.loads(run(SLUICE, "--json", "status", image)[1])


def a_layer_says_whose_it_is():
    """By itself it is neither old nor new while a merge writes to it."""
    make()
    cut("qcow2", "block-merge", into="snapshot")
    s = status("mid")
    assert s["layer-of"] == "top" and not s["jobs"], s
    assert "as a layer of that" in run(SLUICE, "status", "mid")[1]
    with Daemon(SLUICED, "--blockdev", "qcow2,node-name=mid,file.driver=file,"
                "file.filename=mid", "--resume", "auto") as d:
        d.qmp()
        wait_for(lambda: "is a layer of 'top'" in d.errors())
        d.stop()
    with daemon() as d:  # it could have been written to
        q = d.qmp()
        wait_for(lambda: "written to by another" in d.errors())
        assert not job(q)
        q.cmd("block-merge", job_id="j", device="top", into="snapshot")
        finish(q)
        d.stop()
    assert not os.path.exists("mid.sluice")
    judge("qcow2", "mid")


def check(image, *options):
    return run(SLUICE, *options, "check", image, "-f", "qcow2", ok=(0, 3))


def check_says_what_was_cut_off(command, layer, **arguments):
    """As status does, with the exit code of what it finds in the image."""
    def test():
        make()
        clean = json.loads(check("top", "--json")[1])
        assert clean["jobs"] == [] and "layer-of" not in clean, clean
        cut("qcow2", command, **arguments)
        for name in ("base", "mid", "top"):
            check(name)  # which brings in what was in memory only
        for name in ("top", layer):
            s = status(name)
            code, out = check(name, "--json")
            found = json.loads(out)
            assert code == (3 if found["leaks"] else 0), (code, found)
            assert found["jobs"] == s["jobs"], (found, s)
            assert found.get("layer-of") == s.get("layer-of"), (found, s)
            said = run(SLUICE, "status", name)[1].splitlines()[1:]
            out = check(name)[1].splitlines()
            assert said and all(line in out for line in said), (said, out)
        assert [j["id"] for j in status("top")["jobs"]] == ["j"]
    test.__name__ = f"check says that a {command} was cut off"
    return test


def status_needs_no_daemon_and_changes_nothing():
    make()
    assert run(SLUICE, "status", "top")[1].endswith("nothing is under way\n")
    with daemon("qcow2", *nbd_server(), "--export",
                "nbd,id=e,node-name=top,name=a,writable=on") as d:
        begin(d.qmp(), "block-stream", base="base")
        with Nbd("nbd.sock", "a") as nbd:
            nbd.write(31 * MIB, b"n" * 65536)
        s = status("top")
        assert s["in-use"] and not s["writes-in-memory"], s
        assert [j["id"] for j in s["jobs"]] == ["j"], s
        d.kill()
        d.wait()
    for _ in range(2):
        wait_for(lambda: not status("top")["in-use"])
        s = status("top")
        assert s["writes-in-memory"] and s["jobs"][0]["preset"] == "stream", s
        assert s["jobs"][0]["base"]["file"] == "base", s
        assert "was cut off" in run(SLUICE, "status", "top")[1]
    # Whoever opens the image brings in what was only in memory, and says so.
    out = run(SLUICE, "check", "top", "-f", "qcow2", ok=(0, 3))[1]  # leaks
    assert "A daemon that was using 'top' died" in out, out
    s = status("top")
    assert not s["writes-in-memory"] and s["jobs"], s
    with daemon() as d:
        q = d.qmp()
        wait_for(lambda: job(q))
        finish(q)
        d.stop()
    assert status("top")["jobs"] == []
    assert run(SLUICE, "status", "none", ok=(4,))[0] == 4


if __name__ == "__main__":
    main([(f.__name__.replace("_", " "), f) for f in (
        goes_on("block-stream", "qcow2", ["top"]),
        goes_on("block-stream", "qed", ["top"]),
        goes_on("block-merge", "qcow2", ["mid"], into="snapshot"),
        goes_on("block-merge", "qed", ["mid"], into="snapshot"),
        goes_on("block-merge", "qcow2", ["top"], into="overlay"),
        goes_on("block-commit", "qcow2", ["top"], top="mid"),
        goes_on_by_another_name("the job of a link goes on with the image",
                                "links/top", "top"),
        goes_on_by_another_name("the job of an image goes on with a link",
                                os.path.join(".", "top"), "links/top"),
        goes_on_by_another_name("the job of a hard link goes on with another",
                                "links/top", "top", hard=True),
        a_journal_that_says_nothing_goes,
        what_is_answered_is_recorded, its_pause_and_its_speed_are_kept,
        goes_on_once_it_can_be_written(
            "a job goes on when its disk is made active", {"active": False},
            command="blockdev-set-active",
            arguments={"node_name": "top", "active": True}),
        goes_on_once_it_can_be_written(
            "a job goes on when all disks are made active", {"active": False},
            command="blockdev-set-active", arguments={"active": True}),
        goes_on_once_it_can_be_written(
            "a job goes on when its disk is reopened to be written",
            {"read_only": True}, command="blockdev-reopen",
            arguments={"options": [{
                "driver": "qcow2", "node-name": "top", "backing": "mid",
                "file": {"driver": "file", "filename": "top"}}]}),
        a_name_that_leaves_no_room_for_seven_bytes_more, a_damaged_journal_is_said,
        a_job_under_a_filter_goes_on,
        a_daemon_that_ends_leaves_its_jobs_to_the_next,
        asked_it_is_there_but_paused, never_means_that_it_stays_as_it_is,
        a_job_that_was_cancelled_does_not_come_back,
        one_that_is_cancelled_before_it_runs_again_is_over,
        a_new_file_with_the_old_inode_is_another_one,
        what_cannot_go_on_is_said_and_forgotten,
        another_file_of_that_name_is_left_alone,
        the_same_merge_again_is_no_error,
        one_that_is_added_later_goes_on_then,
        another_programs_write_ends_a("block-merge", "mid", into="snapshot"),
        another_programs_write_ends_a("block-merge", "top", into="snapshot"),
        another_programs_write_ends_a("block-commit", "base"),
        another_programs_write_ends_a("block-commit", "top"),
        those_that_were_ours_do_not,
        no_journal_has_layers_written(["--untrusted"], "block-merge",
                                      ["mid"], into="snapshot"),
        no_journal_has_layers_written(["--untrusted"], "block-merge",
                                      ["top"], into="overlay"),
        no_journal_has_layers_written(["--untrusted"], "block-commit",
                                      ["top"], top="mid"),
        no_journal_has_layers_written(["--backing-paths", "."], "block-merge",
                                      ["mid"], into="snapshot"),
        what_fills_the_disk_alone_goes_on_where_paths_are_limited,
        a_layer_says_whose_it_is,
        check_says_what_was_cut_off("block-merge", "mid", into="snapshot"),
        check_says_what_was_cut_off("block-commit", "base"),
        check_says_what_was_cut_off("block-stream", "top"),
        status_needs_no_daemon_and_changes_nothing)])
