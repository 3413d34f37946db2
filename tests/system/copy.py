#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Copies of a disk while a guest writes to it: real files, every format, and
qemu-img as the judge.

copy.py SLUICED SLUICE GUEST
"""
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

from harness import (Daemon, Nbd, Process, QmpError, main, mount, nbd_server,
                     need, run)

SLUICED, SLUICE, GUEST = (os.path.abspath(p) for p in sys.argv[1:4])
MIB = 1 << 20
SIZE = 24 * MIB
URI = "nbd+unix:///a?socket=nbd.sock"

need("qemu-img", "nbdkit")


def make_disk():
    """A raw base with data, zeroes and holes, an overlay on it, and a model."""
    with open("base", "wb") as f:
        f.truncate(SIZE)
        for off in (0, 5 * MIB, 12 * MIB):
            f.seek(off)
            f.write(os.urandom(3 * MIB))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw",
        "top", str(SIZE))
    run("qemu-img", "convert", "-O", "raw", "base", "model")
    with open("ranges", "w") as f:
        f.write(f"0 {SIZE}\n")


def make_target(fmt):
    run("qemu-img", "create", "-q", "-f", fmt, "target", str(SIZE))
    return {"driver": fmt, "node-name": "target", "discard": "unmap",
            "file": {"driver": "file", "filename": "target"},
            **({} if fmt == "raw" else {"backing": None})}


def add_node(qmp, options):
    qmp.cmd("blockdev-add", **{k.replace("-", "_"): v
                               for k, v in options.items()})


class Guest:
    """Reads, writes and verifies until it is stopped."""

    def __init__(self):
        self.process = subprocess.Popen([GUEST, URI, "model", "ranges", "0"],
                                        stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"working\n"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out


def daemon():
    return Daemon(SLUICED, *nbd_server(), "--blockdev",
                  "qcow2,node-name=top,discard=unmap,file.driver=file,"
                  "file.filename=top",
                  "--export", "nbd,id=e,node-name=top,name=a,writable=on")


def statuses(qmp):
    return [e["data"]["status"] if e["event"] == "JOB_STATUS_CHANGE"
            else e["event"] for e in qmp.events]


def judge(fmt, name="target", leaks=False):
    if fmt != "raw":
        run("qemu-img", "check", "-q", "-f", fmt, name,
            ok=(0, 3) if leaks else (0,))
        info = json.loads(run("qemu-img", "info", "--output=json", name)[1])
        assert "backing-filename" not in info, info
    run("qemu-img", "compare", "-f", fmt, "-F", "raw", name, "model")


READY = ["created", "running", "ready", "BLOCK_JOB_READY"]
END = ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]


def wait_end(qmp, until):
    while not qmp.events or statuses(qmp)[-1] != until:
        qmp.events.append(qmp.receive())


def switch(fmt, command, ready, **arguments):
    """A guest works before, during and after; the disk ends on the target."""
    make_disk()
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        add_node(qmp, make_target(fmt))
        qmp.events.clear()
        qmp.cmd(command, job_id="j", device="top", target="target",
                **arguments)
        if ready:
            wait_end(qmp, "BLOCK_JOB_READY")
            assert statuses(qmp) == READY, statuses(qmp)
            qmp.cmd("job-complete", id="j")
        wait_end(qmp, "null")
        want = (READY if ready else READY[:2]) + END
        assert statuses(qmp) == want, statuses(qmp)
        done = [e for e in qmp.events
                if e["event"] == "BLOCK_JOB_COMPLETED"][0]["data"]
        assert "error" not in done and done["offset"] == done["len"], done
        with Nbd("nbd.sock", "a") as nbd:  # the guest goes on, on the target
            assert nbd.size == SIZE
        qmp.cmd("blockdev-del", node_name="top")
        guest.stop()
        d.stop()
    judge(fmt)


def make_overlay_target():
    """A target over an image of its own, which holds other data in part."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "other", str(SIZE))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 4M", "other")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "other", "-F",
        "qcow2", "target", str(SIZE))


def onto_an_overlay_of_another(command, ready, **arguments):
    """Zeroes are not copied: who writes below the target would be read."""
    def test():
        make_disk()
        make_overlay_target()
        with daemon() as d:
            qmp, guest = d.qmp(), Guest()
            for name in ("other", "target"):
                qmp.cmd("blockdev-add", node_name=name, driver="qcow2",
                        discard="unmap", file={"driver": "file",
                                               "filename": name},
                        **({"backing": "other"} if name == "target" else {}))
            qmp.cmd("blockdev-add", node_name="spare", driver="null-co",
                    size=SIZE)
            qmp.events.clear()
            qmp.cmd(command, job_id="j", device="top", target="target",
                    auto_finalize=False, **arguments)
            wait_end(qmp, "BLOCK_JOB_READY" if ready else "pending")
            for refused in (
                    ("blockdev-mirror", {"job_id": "k", "device": "spare",
                                         "sync": "full", "target": "other"}),
                    ("block-export-add", {"type": "nbd", "id": "w",
                                          "node_name": "other",
                                          "writable": True})):
                try:
                    qmp.cmd(refused[0], **refused[1])
                except QmpError as e:
                    assert "job 'j' needs that nobody writes" in e.desc or \
                        "read-only" in e.desc, e
                else:
                    raise AssertionError(refused)
            if ready:
                qmp.cmd("job-complete", id="j")
                wait_end(qmp, "pending")
            qmp.cmd("job-finalize", id="j")
            wait_end(qmp, "null")
            qmp.cmd("blockdev-del", node_name="top")
            guest.stop()
            d.stop()
        judge("qcow2")
    return f"{command} onto an overlay of another image", test


def over_an_unfinished_copy():
    """It would lead the disk to an image that nobody opens."""
    make_disk()
    make_overlay_target()
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("blockdev-add", node_name="other", driver="qcow2",
                file={"driver": "file", "filename": "other"})
        qmp.events.clear()
        qmp.cmd("blockdev-mirror", job_id="j", device="top", target="other",
                sync="full")
        wait_end(qmp, "BLOCK_JOB_READY")
        qmp.cmd("job-cancel", id="j")
        wait_end(qmp, "null")
        qmp.cmd("blockdev-add", node_name="target", driver="qcow2",
                backing="other", file={"driver": "file",
                                       "filename": "target"})
        try:
            qmp.cmd("block-copy", job_id="j", device="top", target="target")
        except QmpError as e:
            assert "'other' is an unfinished copy" in e.desc, e
        else:
            raise AssertionError("it is copied over an unfinished copy")
        d.stop()


def pre_copy(fmt):
    return (f"pre-copy to {fmt}",
            lambda: switch(fmt, "block-copy", False))


def mirror(fmt, mode=None):
    def test():
        more = {"copy_mode": mode} if mode else {}
        switch(fmt, "blockdev-mirror", True, sync="full", **more)
    return f"mirror to {fmt}, {mode or 'by itself'}, and switch", test


def post_copy(fmt):
    return (f"post-copy to {fmt}",
            lambda: switch(fmt, "block-copy", False, mode="post-copy"))


def hybrid(fmt):
    # It is ready from the start, and switches whatever is left.
    return (f"hybrid to {fmt}",
            lambda: switch(fmt, "block-copy", True, mode="hybrid"))


def a_stop_leaves_a_copy_as_of_then():
    make_disk()
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        add_node(qmp, make_target("qcow2"))
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                mode="mirror")
        qmp.wait_event("BLOCK_JOB_READY")
        guest.stop()
        qmp.cmd("block-job-cancel", device="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        with Nbd("nbd.sock", "a") as nbd:  # later than the copy
            nbd.write(0, b"x" * 512)
            nbd.flush()
        d.stop()
    judge("qcow2")


def an_unfinished_copy_is_refused():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("qcow2"))
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                auto_complete=False)
        qmp.wait_event("BLOCK_JOB_READY")
        # Nobody else has it, and by force it stays unfinished.
        try:
            qmp.cmd("block-export-add", type="nbd", id="t",
                    node_name="target")
            raise AssertionError("a target was exported")
        except QmpError as e:
            assert "busy" in str(e) or "unfinished" in str(e), e
        qmp.cmd("job-cancel", id="j")
        qmp.wait_event("BLOCK_JOB_CANCELLED")
        qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        try:
            qmp.cmd("block-export-add", type="nbd", id="t",
                    node_name="target")
            raise AssertionError("an unfinished copy was exported")
        except QmpError as e:
            assert "is an unfinished copy" in str(e), e
        # Another copy onto it starts over and finishes it.
        qmp.cmd("block-copy", job_id="k", device="top", target="target",
                finish="stay")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        qmp.cmd("block-copy", job_id="l", device="top", target="target",
                auto_complete=False)
        qmp.wait_event("BLOCK_JOB_READY", device="l")
        d.process.kill()
        d.process.wait()
    code, text = run("qemu-img", "info", "target", ok=(1,))
    assert code == 1 and "unfinished copy" in text, text
    code, text = run(SLUICE, "convert", "-f", "qcow2", "-O", "raw", "target",
                     "out", check=False)
    assert code and "unfinished copy" in text, (code, text)
    for verb in (["map", "-f", "qcow2"], ["serve", "-f", "qcow2"],
                 ["compare", "-f", "qcow2", "-F", "qcow2", "target"]):
        code, text = run(SLUICE, *verb, "target", check=False)
        assert code and "unfinished copy" in text, (verb, code, text)
    assert "unfinished copy" in run(SLUICE, "info", "-f", "qcow2", "target")[1]
    run("qemu-img", "compare", "top", "model")  # the disk is still the source


def stop(process):
    """Returns when none of its threads runs any more: a signal takes a moment."""
    process.send_signal(signal.SIGSTOP)
    threads = f"/proc/{process.pid}/task"
    while any(open(f"{threads}/{t}/stat").read().rpartition(") ")[2][0] != "T"
              for t in os.listdir(threads)):
        time.sleep(0.001)


def a_target_that_stops_does_not_stop_the_guest():
    make_disk()
    server = Process("nbdkit", "-f", "-U", "slow.sock", "memory", str(SIZE))
    with daemon() as d:
        qmp = d.qmp()
        server.until(lambda: os.stat("slow.sock"), FileNotFoundError)
        qmp.cmd("blockdev-add", driver="nbd", node_name="target",
                server={"type": "unix", "path": "slow.sock"})
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                mode="mirror")
        qmp.wait_event("BLOCK_JOB_READY")
        with Nbd("nbd.sock", "a") as nbd:
            nbd.write(0, b"a" * 4096)  # to both
            stop(server.process)
            for i in range(200):  # the first one waits for it, a while
                nbd.write(i * 8192, b"b" * 4096)
            nbd.flush()
            assert nbd.read(0, 4096) == b"b" * 4096
            report = qmp.cmd("query-transfers")[0]
            assert report["bytes-forwarded"] >= 4096, report
            # It comes back, and the copy comes in step again.
            server.process.send_signal(signal.SIGCONT)
            qmp.cmd("job-complete", id="j")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")
            assert "error" not in end["data"], end
            for i in range(200):  # from the target now
                assert nbd.read(i * 8192, 4096) == b"b" * 4096
        d.stop()
    server.end()


def a_request_that_takes_long_at_the_switch():
    """Longer than gates may be closed: the switch comes when it is over."""
    server = Process("nbdkit", "-f", "-U", "slow.sock", "memory", str(SIZE))
    server.until(lambda: os.stat("slow.sock"), FileNotFoundError)
    with Daemon(SLUICED, *nbd_server(), "--blockdev",
                "nbd,node-name=top,server.type=unix,server.path=slow.sock",
                "--export", "nbd,id=e,node-name=top,name=a,writable=on") as d:
        qmp = d.qmp()
        target = make_target("qcow2")
        add_node(qmp, target)
        with Nbd("nbd.sock", "a") as nbd:
            nbd.write(0, b"a" * 4096)
            nbd.flush()
            qmp.cmd("blockdev-mirror", job_id="j", device="top",
                    target="target", sync="full")
            qmp.wait_event("BLOCK_JOB_READY")
            stop(server.process)
            nbd.send(Nbd.READ, 0, 4096)
            time.sleep(0.3)  # so that it is on its way to the server
            qmp.cmd("job-complete", id="j")
            time.sleep(6)  # the longest that gates are closed is 5 s
            assert qmp.cmd("query-jobs")[0]["status"] != "concluded"
            server.process.send_signal(signal.SIGCONT)
            assert nbd.reply()[1] == b"a" * 4096
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert "error" not in end, end
            assert qmp.cmd("query-block-exports")[0]["node-name"] == "target"
            assert nbd.read(0, 4096) == b"a" * 4096
        d.stop()
    server.end()


def discards_that_never_end():
    """Each that the target misses would put the switch off."""
    make_disk()
    stop = threading.Event()

    def trim():
        with Nbd("nbd.sock", "a") as nbd:
            for _ in range(16):
                nbd.send(Nbd.TRIM, 0, 65536)
            while not stop.is_set():
                nbd.reply()
                nbd.send(Nbd.TRIM, 0, 65536)
            while nbd.sent:
                nbd.reply()
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("object-add", qom_type="throttle-group", id="g")
        target = make_target("qcow2")
        target["file"] = {"driver": "throttle", "throttle-group": "g",
                          "file": target["file"]}
        add_node(qmp, target)
        qmp.cmd("blockdev-mirror", job_id="j", device="top", target="target",
                sync="full")
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("qom-set", path="/objects/g", property="limits",
                value={"iops-total": 50})  # each try takes a while
        thread = threading.Thread(target=trim)
        thread.start()
        try:
            time.sleep(0.2)
            qmp.cmd("job-complete", id="j")
            for _ in range(100):
                if qmp.cmd("query-block-exports")[0]["node-name"] == "target":
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("it does not switch")
        finally:
            stop.set()
            thread.join()
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        d.stop()
    run("qemu-img", "check", "-q", "-f", "qcow2", "target")


def a_server_that_loses_what_it_did_not_flush():
    """It comes back without what it had in its memory only: that is copied
    once more, before the copy passes for the disk."""
    make_disk()
    run("truncate", "-s", str(SIZE), "far")

    def server():  # with a cache that is gone with its power
        return Daemon(SLUICED, *nbd_server("far.sock"), "--blockdev",
                      "driver=crash,node-name=far,file.driver=file,"
                      "file.filename=far", "--export",
                      "nbd,id=f,node-name=far,name=f,writable=on",
                      folder=os.getcwd())
    far = server()
    far.qmp()
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("blockdev-add", driver="nbd", node_name="target", export="f",
                reconnect_delay=60, server={"type": "unix", "path": "far.sock"})
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                auto_complete=False)
        qmp.wait_event("BLOCK_JOB_READY")
        with Nbd("nbd.sock", "a") as nbd:
            for i in range(64):
                nbd.write(i * 65536, bytes([i + 1]) * 4096)
        far.kill()
        far.wait()
        far = server()
        far.qmp()
        qmp.cmd("job-complete", id="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        with Nbd("nbd.sock", "a") as nbd:
            for i in range(64):
                assert nbd.read(i * 65536, 4096) == bytes([i + 1]) * 4096, i
        d.stop()
    far.stop()
    # What the disk held at the switch, and nothing else.
    with open("far", "rb") as f, open("model", "rb") as model:
        for i in range(SIZE // 4096):
            a, b = f.read(4096), model.read(4096)
            block = i * 4096 // 65536
            want = bytes([block + 1]) * 4096 \
                if i * 4096 % 65536 == 0 and block < 64 else b
            assert a == want, i


def blocks_larger_than_a_piece_are_copied():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("raw"))
        qmp.cmd("blockdev-mirror", job_id="j", device="top", target="target",
                sync="full", granularity=4 * MIB, copy_mode="background")
        qmp.wait_event("BLOCK_JOB_READY")
        with Nbd("nbd.sock", "a") as nbd:
            nbd.write(9 * MIB, b"g" * 4096)
        qmp.cmd("job-complete", id="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        d.stop()
    with open("model", "r+b") as f:
        f.seek(9 * MIB)
        f.write(b"g" * 4096)
    judge("raw")


def a_target_without_its_backing_file_gets_whole_clusters():
    """As libvirt has it: the backing file comes back when all is copied.  What
    the top says is zero, and what is written in part, must hide it then."""
    make_disk()
    run("qemu-io", "-f", "qcow2", "-c", "write -z 5M 1M", "-c",
        "write -P 8 12M 64k", "top")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=256k",
        "-b", "base", "-F", "raw", "target", str(SIZE))
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("blockdev-add", driver="qcow2", node_name="target",
                backing=None, file={"driver": "file", "filename": "target"})
        qmp.cmd("blockdev-mirror", job_id="j", device="top", target="target",
                sync="top")
        qmp.wait_event("BLOCK_JOB_READY")
        with Nbd("nbd.sock", "a") as nbd:
            for off in (13 * MIB + 4096, 100 * 4096, 5 * MIB + 512):
                nbd.write(off, b"p" * 4096)
            nbd.flush()
        qmp.cmd("block-job-cancel", device="j")
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        d.stop()
    run("qemu-img", "check", "-q", "target")
    run("qemu-img", "compare", "target", "top")


def a_filter_hides_no_unfinished_copy():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("object-add", qom_type="throttle-group", id="g")
        qmp.cmd("blockdev-add", driver="throttle", node_name="slow",
                throttle_group="g", file={k: v for k, v
                                          in make_target("qcow2").items()
                                          if k != "node-name"})
        qmp.cmd("block-copy", job_id="j", device="top", target="slow",
                mode="mirror")
        qmp.wait_event("BLOCK_JOB_READY")
        code, text = run("qemu-img", "info", "-U", "target", check=False)
        assert code and "unfinished copy" in text, (code, text)
        qmp.cmd("job-cancel", id="j")
        qmp.wait_event("BLOCK_JOB_CANCELLED")
        try:
            qmp.cmd("block-export-add", type="nbd", id="x", node_name="slow")
        except QmpError as e:
            assert "unfinished copy" in str(e), e
        else:
            raise AssertionError("an unfinished copy passes for a disk")
        d.stop()


def post_copy_onto_a_marked_image():
    """The mark of a copy that was cancelled goes before the disk comes."""
    make_disk()
    os.rename("top", "full")
    run("qemu-img", "create", "-q", "-f", "qcow2", "top", str(SIZE))
    run("truncate", "-s", "0", "model")
    run("truncate", "-s", str(SIZE), "model")
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("qcow2"))
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                mode="mirror")
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("job-cancel", id="j")
        qmp.wait_event("BLOCK_JOB_CANCELLED")
        assert run("qemu-img", "info", "-U", "target", check=False)[0]
        qmp.cmd("block-copy", job_id="k", device="top", target="target",
                mode="post-copy")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        d.stop()
    judge("qcow2")


def a_hybrid_is_cancelled_after_its_switch():
    """Without force, too: it stops, and leaves an overlay."""
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("qcow2"))
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                mode="hybrid", speed=MIB)
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.cmd("job-complete", id="j")
        while qmp.cmd("query-block-exports")[0]["node-name"] != "target":
            time.sleep(0.01)
        qmp.cmd("block-job-cancel", device="j")
        qmp.wait_event("BLOCK_JOB_CANCELLED")
        d.stop()
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "target", "model")


def decided_hybrid(qmp):
    """A hybrid copy that is told to switch and cannot yet: the pass is broken
    off after its first piece, and a write is on its way to a target that takes
    no more.  Returns what lets it go on."""
    qmp.cmd("object-add", qom_type="throttle-group", id="g")
    target = make_target("qcow2")
    target["file"] = {"driver": "throttle", "throttle-group": "g",
                      "file": target["file"]}
    add_node(qmp, target)
    qmp.cmd("block-copy", job_id="j", device="top", target="target",
            mode="hybrid", copy_mode="write-blocking", speed=1)
    qmp.wait_event("BLOCK_JOB_READY")
    while qmp.cmd("query-transfers")[0]["bytes-moved"] < MIB:
        time.sleep(0.01)

    def limit(n):
        qmp.cmd("qom-set", path="/objects/g", property="limits", value={
            "iops-total": n, "iops-size": n})

    limit(1)  # an hour for every 4 KiB
    with Nbd("nbd.sock", "a") as nbd, open("model", "r+b") as model:
        for off in (0, 65536):  # the second one goes on without the target
            nbd.write(off, b"h" * 4096)
            model.seek(off)
            model.write(b"h" * 4096)
        nbd.flush()
    qmp.cmd("job-complete", id="j")  # whatever its speed still has it wait
    assert qmp.cmd("query-block-exports")[0]["node-name"] == "top"
    return lambda: limit(0)


def a_hybrid_that_is_to_switch_is_no_copy_any_more():
    """What the pass did not reach is missing on the target."""
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        go_on = decided_hybrid(qmp)
        try:
            qmp.cmd("block-job-cancel", device="j")
        except QmpError as e:
            assert "'j' is about to switch" in str(e), e
        else:
            raise AssertionError("a copy with most of it missing")
        go_on()
        while qmp.cmd("query-block-exports")[0]["node-name"] != "target":
            time.sleep(0.01)
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        assert qmp.cmd("query-block-exports")[0]["node-name"] == "target"
        d.stop()
    judge("qcow2")


def a_hybrid_that_is_to_switch_is_cancelled_by_force():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        go_on = decided_hybrid(qmp)
        qmp.cmd("block-job-cancel", device="j", force=True)
        go_on()
        qmp.wait_event("BLOCK_JOB_CANCELLED")
        qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        assert qmp.cmd("query-block-exports")[0]["node-name"] == "top"
        d.stop()
    code, text = run("qemu-img", "info", "target", check=False)
    assert code == 1 and "unfinished copy" in text, (code, text)
    run("qemu-img", "check", "-q", "-f", "qcow2", "top")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top", "model")


def with_filter(qmp):
    """The guest's disk is what the filter "thr" shows."""
    qmp.cmd("object-add", qom_type="throttle-group", id="g")
    qmp.cmd("blockdev-add", driver="throttle", node_name="thr",
            throttle_group="g", file="fmt")
    qmp.cmd("block-export-add", type="nbd", id="e", node_name="thr", name="a",
            writable=True)


def filtered_daemon():
    return Daemon(SLUICED, *nbd_server(), "--blockdev",
                  "qcow2,node-name=fmt,discard=unmap,file.driver=file,"
                  "file.filename=top")


def a_mirror_replaces_what_is_below_its_filter(mode=None):
    more = {"copy_mode": mode} if mode else {}

    def test():
        make_disk()
        with filtered_daemon() as d:
            qmp = d.qmp()
            with_filter(qmp)
            guest = Guest()
            add_node(qmp, make_target("qcow2"))
            qmp.cmd("blockdev-mirror", job_id="j", device="thr",
                    target="target", replaces="fmt", sync="full", **more)
            qmp.wait_event("BLOCK_JOB_READY")
            qmp.cmd("job-complete", id="j")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert "error" not in end, end
            graph = {n["node-name"]: n for n
                     in qmp.cmd("query-named-block-nodes", flat=True)}
            assert graph["thr"]["children"] == [
                {"child": "file", "node-name": "target"}], graph["thr"]
            assert qmp.cmd("query-block-exports")[0]["node-name"] == "thr"
            qmp.cmd("blockdev-del", node_name="fmt")
            guest.stop()  # it went on, on the target
            d.stop()
        assert os.path.exists("top")
        judge("qcow2")
    return f"a mirror replaces what is below its filter, {mode}", test


def a_disk_and_a_filter_over_it_are_copied_once():
    make_disk()
    with filtered_daemon() as d:
        qmp = d.qmp()
        with_filter(qmp)
        guest = Guest()
        add_node(qmp, make_target("qcow2"))
        run("qemu-img", "create", "-q", "-f", "qcow2", "other", str(SIZE))
        qmp.cmd("blockdev-add", driver="qcow2", node_name="other",
                file={"driver": "file", "filename": "other"})
        for first, second in (("thr", "fmt"), ("fmt", "thr")):
            qmp.cmd("blockdev-mirror", job_id="j", device=first,
                    target="target", sync="full", speed=1)
            for device in (second, first):
                for command, more in (
                        ("blockdev-mirror", {"sync": "full"}),
                        ("block-copy", {"mode": "hybrid"}),
                        ("block-copy", {"mode": "post-copy"}),
                        ("block-copy", {})):
                    try:
                        qmp.cmd(command, job_id="k", device=device,
                                target="other", **more)
                    except QmpError as e:
                        assert "busy" in str(e) and "'j'" in str(e), e
                    else:
                        raise AssertionError(f"{command} of {device} beside "
                                             f"one of {first}")
            assert [j["id"] for j in qmp.cmd("query-jobs")] == ["j"]
            qmp.cmd("block-job-cancel", device="j", force=True)
            qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        # The one that may begin goes to its end.
        qmp.cmd("block-copy", job_id="j", device="thr", target="target")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        guest.stop()
        d.stop()
    judge("qcow2")


def drive_mirror(sync):
    def test():
        make_disk()
        with daemon() as d:
            qmp, guest = d.qmp(), Guest()
            qmp.cmd("drive-mirror", job_id="j", device="top", sync=sync,
                    target="target", node_name="copy")
            qmp.wait_event("BLOCK_JOB_READY")
            qmp.cmd("job-complete", id="j")
            qmp.wait_event("BLOCK_JOB_COMPLETED")
            try:
                qmp.cmd("drive-mirror", job_id="j", device="copy", sync=sync,
                        target="target", node_name="again")
            except QmpError as e:
                assert "mirror node into itself" in str(e), e
            else:
                raise AssertionError("onto itself")
            try:
                qmp.cmd("drive-mirror", job_id="j", device="copy", sync="full",
                        target="more", node_name="more", granularity=1)
            except QmpError:
                assert not os.path.exists("more")
            else:
                raise AssertionError("a granularity of 1")
            guest.stop()
            d.stop()
        info = json.loads(run("qemu-img", "info", "--output=json",
                              "target")[1])
        below = {"full": None, "top": "base", "none": "top"}[sync]
        assert info.get("backing-filename") == below, info
        run("qemu-img", "check", "-q", "target")
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "target",
            "model")
    return f"drive-mirror of {sync}", test


def a_target_without_a_name_goes_with_its_last_user():
    """Nobody would think of removing it."""
    make_disk()

    def open_here(qmp, name):
        return any(n["file"] == name for n
                   in qmp.cmd("query-named-block-nodes", flat=True))

    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        for job in "ij":
            # Onto the same file: the first one has let go of it.
            qmp.cmd("drive-mirror", job_id=job, device="top", sync="full",
                    target="target", mode="absolute-paths")
            assert open_here(qmp, "target")
            qmp.wait_event("BLOCK_JOB_READY")
            if job == "i":
                qmp.cmd("block-job-cancel", device=job, force=True)
            else:
                qmp.cmd("job-complete", id=job)
            qmp.wait_event("JOB_STATUS_CHANGE", status="null")
            assert open_here(qmp, "target") == (job == "j")
        qmp.cmd("blockdev-del", node_name="top")
        guest.stop()
        qmp.cmd("block-export-del", id="e", mode="hard")
        qmp.wait_event("BLOCK_EXPORT_DELETED")
        assert not qmp.cmd("query-named-block-nodes", flat=True)
        d.stop()
    judge("qcow2")


def a_shorter_target_grows_for_a_copy():
    make_disk()
    run("qemu-img", "create", "-q", "-f", "qcow2", "target", str(SIZE // 2))
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        qmp.cmd("blockdev-add", driver="qcow2", node_name="target",
                backing=None, file={"driver": "file", "filename": "target"})
        try:
            qmp.cmd("blockdev-mirror", job_id="j", device="top",
                    target="target", sync="full")
        except QmpError as e:
            assert e.desc == ("Source and target image have different "
                              "sizes"), e
        else:
            raise AssertionError("QEMU's mirror grows no target")
        qmp.cmd("block-copy", job_id="j", device="top", target="target")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        guest.stop()
        d.stop()
    judge("qcow2")


def what_was_written_is_sent_and_not_more():
    """4 KiB of a write, not 64 KiB around it; and both ways to send it, in
    turns."""
    make_disk()
    rng = random.Random(4)
    with daemon() as d, open("model", "r+b", buffering=0) as model:
        qmp = d.qmp()
        nbd = Nbd("nbd.sock", "a")

        def write(off):
            data = rng.randbytes(4096)
            nbd.write(off, data)
            model.seek(off)
            model.write(data)

        def report():
            return qmp.cmd("query-transfers")[0]

        def change(mode):
            qmp.cmd("block-job-change", id="j", type="mirror", copy_mode=mode)

        add_node(qmp, make_target("qcow2"))
        qmp.cmd("blockdev-mirror", job_id="j", device="top", target="target",
                sync="full", copy_mode="background")
        qmp.wait_event("BLOCK_JOB_READY")
        # Where there is data already: nothing else becomes allocated.
        blocks = [off + i * 4096 for off in (0, 5 * MIB, 12 * MIB)
                  for i in rng.sample(range(3 * MIB // 4096), 200)]
        rng.shuffle(blocks)
        for off in blocks:
            write(off)
        least = 9 * MIB + 4096 * len(blocks)

        def sent():
            return t["bytes-moved"] + t["bytes-cloned"]

        while (t := report()) and sent() < least:
            time.sleep(0.01)
        assert sent() <= 1.02 * least, t
        assert not t["bytes-forwarded"], t
        change("write-blocking")
        write(0)
        assert report()["bytes-forwarded"] == t["bytes-forwarded"] + 4096
        change("background")
        write(0)
        after = report()
        assert after["bytes-forwarded"] == t["bytes-forwarded"] + 4096, after
        assert after["bytes-dirtied"] > t["bytes-dirtied"], (t, after)
        qmp.cmd("job-complete", id="j")
        qmp.wait_event("BLOCK_JOB_COMPLETED")
        nbd.close()
        d.stop()
    judge("qcow2")


def a_mirror_says_whether_it_is_in_step_and_changes_while_it_may():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("qcow2"))

        def mirror(job, **more):
            qmp.cmd("blockdev-mirror", job_id=job, device="top",
                    target="target", sync="full", **more)

        def is_synced():
            return qmp.cmd("query-block-jobs")[0]["actively-synced"]

        def change(job, mode="write-blocking", kind="mirror"):
            qmp.cmd("block-job-change", id=job, type=kind, copy_mode=mode)

        def cannot_change(text, *args):
            try:
                change(*args)
            except QmpError as e:
                assert text in str(e), e
            else:
                raise AssertionError("not refused: " + text)

        mirror("j", copy_mode="background", speed=1)
        assert not is_synced()
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        qmp.wait_event("BLOCK_JOB_READY")
        assert not is_synced()  # a write would be on one side for a while
        change("j")
        assert is_synced()
        change("j", "background")
        assert not is_synced()
        qmp.cmd("job-pause", id="j")
        qmp.wait_event("JOB_STATUS_CHANGE", status="standby")
        change("j")
        cannot_change("DeviceNotActive: Block job 'zz' not found", "zz")
        cannot_change("'j' is 'mirror' job, not 'commit'", "j", "background",
                      "commit")
        qmp.cmd("block-job-cancel", device="j", force=True)
        qmp.wait_event("JOB_STATUS_CHANGE", status="null")
        mirror("k", auto_finalize=False)
        qmp.wait_event("BLOCK_JOB_READY")
        assert is_synced()
        qmp.cmd("job-complete", id="k")
        qmp.wait_event("BLOCK_JOB_PENDING")
        cannot_change("Job 'k' in state 'pending' cannot accept command verb "
                      "'change'", "k")
        qmp.cmd("job-cancel", id="k")
        qmp.wait_event("JOB_STATUS_CHANGE", status="null")
        qmp.cmd("block-stream", job_id="s", device="top", speed=1)
        assert "actively-synced" not in qmp.cmd("query-block-jobs")[0]
        cannot_change("Job type does not support change", "s")
        d.stop()


def a_target_of_version_2_becomes_3_where_that_is_allowed():
    make_disk()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10",
        "-b", "base", "-F", "raw", "target", str(SIZE))
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        qmp.cmd("blockdev-add", driver="qcow2", node_name="target",
                backing=None, file={"driver": "file", "filename": "target"})
        try:
            qmp.cmd("block-copy", job_id="j", device="top", target="target")
        except QmpError as e:
            assert "version 2" in str(e), e
        else:
            raise AssertionError("a target that cannot be marked")
        assert "0.10" in run("qemu-img", "info", "-U", "target")[1]
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                upgrade=True, auto_complete=False)
        qmp.wait_event("BLOCK_JOB_READY")
        code, text = run("qemu-img", "info", "-U", "target", check=False)
        assert code and "unfinished copy" in text, text
        qmp.cmd("job-complete", id="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        guest.stop()
        d.stop()
    info = json.loads(run("qemu-img", "info", "--output=json", "target")[1])
    assert info["format-specific"]["data"]["compat"] == "1.1", info
    assert "backing-filename" not in info, info
    run("qemu-img", "check", "-q", "target")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "target", "model")


def small_target(mib):
    """A target on a file system of its own."""
    mount("tmpfs", "small", "-o", f"size={mib}M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "small/target", str(SIZE))
    return {"driver": "qcow2", "node_name": "target", "backing": None,
            "file": {"driver": "file", "filename": "small/target"}}


def a_copy_that_cannot_end_does_not_begin():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        qmp.cmd("blockdev-add", **small_target(6))
        plan = qmp.cmd("query-copy-plan", device="top", target="target")
        assert plan["bytes-to-copy"] == 9 * MIB, plan
        assert 9 * MIB <= plan["space-needed"] < 10 * MIB, plan
        assert 5 * MIB < plan["space-free"] <= 6 * MIB, plan
        qmp.cmd("block-copy", job_id="j", device="top", target="target")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "needs" in end["error"] and "left" in end["error"], end
        try:
            qmp.cmd("block-copy", job_id="j", device="top", target="target",
                    mode="post-copy")
        except QmpError as e:
            assert "needs" in str(e), e
        else:
            raise AssertionError("the disk went where it has no room")
        d.stop()
    info = run("qemu-img", "info", "small/target")[1]
    assert "backing" not in info, info


def a_full_target_pauses_the_copy_and_not_the_guest():
    make_disk()
    with daemon() as d:
        qmp, guest = d.qmp(), Guest()
        qmp.cmd("blockdev-add", **small_target(64))
        qmp.cmd("block-copy", job_id="j", device="top", target="target",
                speed=MIB)
        run("dd", "if=/dev/zero", "of=small/other", "bs=1M", check=False)
        qmp.cmd("block-job-set-speed", device="j", speed=0)
        error = qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        assert error["action"] == "stop" and error["operation"] == "write"
        while not (t := qmp.cmd("query-transfers")[0]).get("space-needed"):
            time.sleep(0.01)
        assert t["space-needed"] > t["space-free"], t
        with Nbd("nbd.sock", "a") as nbd:
            nbd.read(0, 4096)
        os.unlink("small/other")
        qmp.cmd("block-job-resume", device="j")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
        assert "error" not in end, end
        guest.stop()
        d.stop()
    # What could not even be given back, for want of space, is no harm.
    judge("qcow2", "small/target", leaks=True)


def off_a_full_file_system(mode):
    """What disks are moved away from: nothing has room beside the source."""
    def test():
        make_disk()
        mount("tmpfs", "full", "-o", "size=64m")
        run("mv", "base", "top", "full")
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base", "-F",
            "raw", "full/top")
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 9 0 {SIZE}", "full/top")
        run("qemu-img", "convert", "-O", "raw", "full/top", "model")
        run("dd", "if=/dev/zero", "of=full/other", "bs=4k", check=False)
        assert os.statvfs("full").f_bavail == 0
        with Daemon(SLUICED, *nbd_server(), "--state-dir", "state",
                    "--blockdev", "qcow2,node-name=top,file.driver=file,"
                    "file.filename=full/top", "--export",
                    "nbd,id=e,node-name=top,name=a,writable=on") as d:
            qmp, guest = d.qmp(), Guest()
            add_node(qmp, make_target("qcow2"))
            qmp.cmd("block-copy", job_id="j", device="top", target="target",
                    mode=mode, delete_source=True)
            if mode == "hybrid":
                qmp.cmd("job-complete", id="j")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert "error" not in end, end
            guest.stop()
            d.stop()
        assert not os.path.exists("full/top") and not os.listdir("state")
        judge("qcow2")
    return f"{mode} off a file system that is full", test


def a_slow_target_gets_in_step(**mode):
    """It takes 3 MB/s, a piece a third of a second: nothing would be forwarded in
    time behind one, and the guest, which nobody slows down, writes far more."""
    def test():
        make_disk()
        with open("ranges", "w") as f:
            f.write(f"0 {6 * MIB}\n")
        with daemon() as d:
            qmp, guest = d.qmp(), Guest()
            run("qemu-img", "create", "-q", "-f", "qcow2", "target", str(SIZE))
            qmp.cmd("object-add", qom_type="throttle-group", id="g",
                    limits={"bps-write": 3000000})
            qmp.cmd("blockdev-add", driver="qcow2", node_name="image",
                    file={"driver": "file", "filename": "target"})
            qmp.cmd("blockdev-add", driver="throttle", node_name="target",
                    throttle_group="g", file="image")
            qmp.cmd("blockdev-mirror", job_id="j", device="top",
                    target="target", sync="full", **mode)
            qmp.wait_event("BLOCK_JOB_READY")
            t = qmp.cmd("query-transfers")[0]
            assert t["bytes-forwarded"], t
            qmp.cmd("qom-set", path="g",
                    property="limits", value={"bps-write": 0})
            qmp.cmd("job-complete", id="j")
            end = qmp.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert "error" not in end, end
            guest.stop()
            d.stop()
        judge("qcow2")
    return f"a slow target gets in step {mode.get('copy_mode', '')}", test


def what_cannot_be_is_refused():
    make_disk()
    run("qemu-img", "create", "-q", "-f", "raw", "small", str(SIZE // 2))
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("raw"))

        def refused(text, command, **arguments):
            try:
                qmp.cmd(command, job_id="j", **arguments)
            except QmpError as e:
                assert text in str(e), e
                return
            raise AssertionError(f"{command} {arguments} went through")

        refused("cannot name a backing file", "block-copy", device="top",
                target="target", mode="post-copy")
        assert "or pre-copy" in qmp.hint, qmp.hint
        refused("mirror node into itself", "block-copy", device="top",
                target="top")
        refused("'finish' cannot be 'stay'", "block-copy", device="top",
                target="target", mode="post-copy", finish="stay")
        refused("Sync mode 'bitmap' not supported", "blockdev-mirror",
                device="top", target="target", sync="bitmap")
        refused("granularity", "blockdev-mirror", device="top",
                target="target", sync="full", granularity=1000)
        for sync in "top", "none":
            refused(f"lacks what 'sync': '{sync}' does not copy",
                    "block-transfer", preset="copy", device="top",
                    target="target", sync=sync)
        with open("odd", "wb") as f:
            f.truncate(MIB + 777)
        run("qemu-img", "create", "-q", "-f", "qcow2", "even", "512")
        for name, driver in ("odd", "raw"), ("even", "qcow2"):
            qmp.cmd("blockdev-add", driver=driver, node_name=name,
                    file={"driver": "file", "filename": name})
        for mode in "pre-copy", "post-copy", "hybrid", "mirror":
            refused("which no qcow2 image can have", "block-copy",
                    device="odd", target="even", mode=mode)
        d.stop()
    info = json.loads(run("qemu-img", "info", "--output=json", "even")[1])
    assert info["virtual-size"] == 512, info


def folder_state():
    state = {}
    for name in sorted(os.listdir(".")):
        if os.path.isfile(name):
            with open(name, "rb") as f:
                state[name] = (f.read(), os.stat(name).st_mtime_ns)
    return state


def said(qmp, command, **arguments):
    try:
        return qmp.cmd(command, device="top", target="target", **arguments)
    except QmpError as e:
        return e.desc


def in_the_way_of_a_copy():
    """How the disk and its target are, what is asked for, what is said."""
    def over_top():
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top", "-F",
            "qcow2", "other", str(SIZE))
        return make_target("qcow2")

    def of_version_2():
        node = make_target("qcow2")
        run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", "target")
        return node

    def longer():
        node = make_target("qcow2")
        run("qemu-img", "resize", "-q", "-f", "qcow2", "target", str(2 * SIZE))
        return node

    for mode in ("pre-copy", "post-copy", "hybrid"):
        yield over_top, {"mode": mode, "delete_source": True}, "be deleted"
    yield of_version_2, {}, "is of version 2"
    for mode in ("pre-copy", "post-copy", "hybrid", "mirror"):
        yield longer, {"mode": mode}, "different sizes"
    yield (lambda: make_target("raw")), {"mode": "post-copy"}, "cannot name"
    yield (lambda: make_target("raw")), {"granularity": 5}, "granularity"
    yield (lambda: make_target("raw")), {"mode": "mirror",
                                         "auto_complete": True}, "by itself"


def a_plan_refuses_what_the_copy_would():
    """In the same words; and neither changes anything."""
    for target, arguments, text in in_the_way_of_a_copy():
        make_disk()
        node = target()
        with daemon() as d:
            qmp = d.qmp()
            add_node(qmp, node)
            before = folder_state()
            plan = said(qmp, "query-copy-plan", **arguments)
            assert text in plan, (plan, text)
            assert folder_state() == before, arguments
            copied = said(qmp, "block-copy", job_id="j", **arguments)
            assert copied == plan, (copied, plan)
            d.stop()
        for name in os.listdir("."):
            os.unlink(name)


def a_plan_changes_nothing():
    for mode in ("pre-copy", "post-copy", "hybrid", "mirror"):
        make_disk()
        with daemon() as d:
            qmp = d.qmp()
            add_node(qmp, make_target("qcow2"))
            more = {} if mode == "mirror" else {"delete_source": True}
            before = folder_state()
            for _ in range(2):
                plan = said(qmp, "query-copy-plan", mode=mode, **more)
                assert plan["bytes-to-copy"] == 9 * MIB, (mode, plan)
            new = qmp.cmd("query-copy-plan", device="top", format="qcow2",
                          mode=mode, **more)
            assert new["bytes-to-copy"] == 9 * MIB, (mode, new)
            assert folder_state() == before
            assert said(qmp, "block-copy", job_id="j", mode=mode, **more) == {}
            d.stop()
        for name in os.listdir("."):
            os.unlink(name)


def the_preset_that_says_only_copy():
    make_disk()
    with daemon() as d:
        qmp = d.qmp()
        add_node(qmp, make_target("qcow2"))
        guest = Guest()
        qmp.cmd("block-transfer", job_id="j", preset="copy", device="top",
                target="target")
        end = qmp.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        assert qmp.cmd("query-block-exports")[0]["node-name"] == "target"
        guest.stop()
        d.stop()
    judge("qcow2")


if __name__ == "__main__":
    main([pre_copy("qcow2"), pre_copy("qed"), pre_copy("raw"),
          mirror("qcow2"), mirror("raw", "background"),
          mirror("qed", "write-blocking"),
          post_copy("qcow2"), post_copy("qed"), hybrid("qcow2"), hybrid("qed"),
          onto_an_overlay_of_another("block-copy", False),
          onto_an_overlay_of_another("blockdev-mirror", True, sync="full"),
          over_an_unfinished_copy,
          a_stop_leaves_a_copy_as_of_then, an_unfinished_copy_is_refused,
          a_target_that_stops_does_not_stop_the_guest,
          a_request_that_takes_long_at_the_switch, discards_that_never_end,
        a_server_that_loses_what_it_did_not_flush,
          blocks_larger_than_a_piece_are_copied,
          a_target_without_its_backing_file_gets_whole_clusters,
          a_filter_hides_no_unfinished_copy, post_copy_onto_a_marked_image,
          a_hybrid_is_cancelled_after_its_switch,
          a_hybrid_that_is_to_switch_is_no_copy_any_more,
          a_hybrid_that_is_to_switch_is_cancelled_by_force,
          a_mirror_replaces_what_is_below_its_filter(),
          a_mirror_replaces_what_is_below_its_filter("write-blocking"),
          a_disk_and_a_filter_over_it_are_copied_once,
          drive_mirror("full"), drive_mirror("top"), drive_mirror("none"),
          a_target_without_a_name_goes_with_its_last_user,
          a_shorter_target_grows_for_a_copy,
          what_was_written_is_sent_and_not_more,
          a_mirror_says_whether_it_is_in_step_and_changes_while_it_may,
          a_target_of_version_2_becomes_3_where_that_is_allowed,
          a_copy_that_cannot_end_does_not_begin,
          a_full_target_pauses_the_copy_and_not_the_guest,
          a_slow_target_gets_in_step(),
          a_slow_target_gets_in_step(copy_mode="write-blocking"),
          *(off_a_full_file_system(mode)
            for mode in ("pre-copy", "post-copy", "hybrid")),
          a_plan_refuses_what_the_copy_would, a_plan_changes_nothing,
          what_cannot_be_is_refused, the_preset_that_says_only_copy])
