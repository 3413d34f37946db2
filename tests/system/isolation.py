#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk whose source is slow must not hold up another disk, nor QMP.

isolation.py SLUICED: disk b lies over an NBD server that answers reads after
4 s.  Everything done on disk a while a read of b is in flight must be over
before that read is; only the order of completion is judged.
"""
import os
import select
import sys

from harness import Daemon, Nbd, Process, main, need, run

SLUICED = os.path.abspath(sys.argv[1])
SIZE = 4 << 20

need("nbdkit", "nbdinfo", "qemu-img")


def slow_source(delay):
    """An NBD server that answers reads after so many seconds."""
    server = Process("nbdkit", "-f", "-U", "slow.sock", "--filter=delay",
                     "memory", str(SIZE), f"rdelay={delay}")
    server.until(lambda: run("nbdinfo", "--size",
                             "nbd+unix:///?socket=slow.sock"), RuntimeError)


def start(delay=4):
    """A daemon with the disks a and b, b over the slow source."""
    slow_source(delay)
    run("qemu-img", "create", "-q", "-f", "raw", "base", str(SIZE))
    for name in "ac":
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
            "raw", name)
    run("qemu-img", "create", "-q", "-f", "qcow2", "b", str(SIZE))
    return Daemon(
        SLUICED,
        "--blockdev", "qcow2,node-name=a,file.driver=file,file.filename=a",
        "--blockdev",
        "nbd,node-name=slow,server.type=unix,server.path=slow.sock",
        "--blockdev", "qcow2,node-name=b,file.driver=file,file.filename=b,"
        "backing=slow",
        "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
        "--export", "nbd,id=ea,node-name=a,name=a,writable=on",
        "--export", "nbd,id=eb,node-name=b,name=b,writable=on")


def still_waiting(nbd, what):
    if select.select([nbd.sock], [], [], 0)[0]:
        raise AssertionError(f"the read of b was over before {what}")


def beside_a_read(act):
    with start() as daemon:
        qmp = daemon.qmp()
        a, b = Nbd("nbd.sock", "a"), Nbd("nbd.sock", "b")
        b.send(b.READ, 0, 4096)
        act(qmp, a, b)


def guest(qmp, a, b):
    for i in range(100):
        data = bytes([i + 1]) * 4096
        a.write(i * 8192, data)
        if a.read(i * 8192, 4096) != data:
            raise AssertionError("a does not hold what was written")
    a.flush()
    still_waiting(b, "the guest of a")
    b.reply()


def commands(qmp, a, b):
    for name in ("query-named-block-nodes", "query-jobs", "query-block-jobs",
                 "query-block-exports", "query-version"):
        qmp.cmd(name)
        still_waiting(b, name)
    qmp.cmd("blockdev-add", driver="qcow2", node_name="c",
            file={"driver": "file", "filename": "c"})
    qmp.cmd("block-export-add", type="nbd", id="ec", node_name="c", name="c")
    still_waiting(b, "a disk was added")
    qmp.cmd("block-stream", job_id="j", device="a")
    qmp.wait_event("BLOCK_JOB_COMPLETED")
    still_waiting(b, "the stream of a")
    b.reply()


def cancel(qmp, a, b):
    qmp.cmd("block-stream", job_id="j", device="b")
    qmp.cmd("job-cancel", id="j")
    a.write(0, b"x" * 512)
    qmp.wait_event("JOB_STATUS_CHANGE", status="null")


def quit_daemon(qmp, a, b):
    qmp.cmd("quit")
    while qmp.file.readline():
        pass


if __name__ == "__main__":
    main([(name, lambda act=act: beside_a_read(act)) for name, act in [
        ("reads and writes of a go on beside a slow read of b", guest),
        ("commands on a return beside a slow read of b", commands),
        ("a stream of b can be cancelled", cancel),
        ("quit returns beside a slow read of b", quit_daemon)]], memory=True)
