#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk whose source is slow must not hold up another disk, nor QMP.

isolation.py SLUICED: disk b lies over an NBD server that answers reads after
4 s.  Everything done on disk a while a read of b is in flight must be over
before that read is; only the order of completion is judged.
"""
import shutil
import select
import subprocess
import sys

from disk_harness import Daemon, Folder, Nbd, Qmp, run, tap

SLUICED = sys.argv[1]
SIZE = 4 << 20

if not shutil.which("nbdkit"):
    print("1..0 # SKIP nbdkit is missing")
    sys.exit(77)


class Setup:
    def __init__(self, at):
        self.at = at

    def __enter__(self):
        at = self.at
        self.server = subprocess.Popen(
            ["nbdkit", "-f", "-U", at("slow.sock"), "-P", at("slow.pid"),
             "--filter=delay", "memory", str(SIZE), "rdelay=4"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # nbdkit writes its pid file when it is ready; nbdinfo proves it.
        while self.server.poll() is None:
            if subprocess.run(["nbdinfo", "--size", self.uri()],
                              capture_output=True).returncode == 0:
                break
        try:
            run("qemu-img", "create", "-q", "-f", "raw", at("base"), str(SIZE))
            for name in "ac":
                run("qemu-img", "create", "-q", "-f", "qcow2", "-b", at("base"),
                    "-F", "raw", at(name))
            run("qemu-img", "create", "-q", "-f", "qcow2", at("b"), str(SIZE))
            self.daemon = Daemon(SLUICED, at, [
                "--blockdev", f"qcow2,node-name=a,file.driver=file,"
                f"file.filename={at('a')}",
                "--blockdev", "nbd,node-name=slow,server.type=unix,"
                f"server.path={at('slow.sock')}",
                "--blockdev", f"qcow2,node-name=b,file.driver=file,"
                f"file.filename={at('b')},backing=slow",
                "--export", "nbd,id=ea,node-name=a,name=a,writable=on",
                "--export", "nbd,id=eb,node-name=b,name=b,writable=on"])
            self.daemon.__enter__()
        except BaseException:
            self.end_server()
            raise
        return self.daemon

    def uri(self):
        return f"nbd+unix:///?socket={self.at('slow.sock')}"

    def end_server(self):
        self.server.kill()
        self.server.wait()

    def __exit__(self, *_):
        try:
            self.daemon.__exit__()
        finally:
            self.end_server()


def still_waiting(nbd, what):
    if select.select([nbd.sock], [], [], 0)[0]:
        raise AssertionError(f"the read of b was over before {what}")


def beside_a_read(act):
    with Folder() as at, Setup(at) as daemon, Qmp(daemon.qmp_path) as qmp, \
            Nbd(daemon.nbd_path, "a") as a, Nbd(daemon.nbd_path, "b") as b:
        b.send(b.READ, 0, 4096)
        act(at, qmp, a, b)


def guest(at, qmp, a, b):
    for i in range(100):
        data = bytes([i + 1]) * 4096
        a.write(i * 8192, data)
        if a.read(i * 8192, 4096) != data:
            raise AssertionError("a does not hold what was written")
    a.flush()
    still_waiting(b, "the guest of a")
    b.reply()


def commands(at, qmp, a, b):
    for name in ("query-named-block-nodes", "query-jobs", "query-block-jobs",
                 "query-block-exports", "query-version"):
        qmp.call(name)
        still_waiting(b, name)
    qmp.call("blockdev-add", driver="qcow2", node_name="c",
             file={"driver": "file", "filename": at("c")})
    qmp.call("block-export-add", type="nbd", id="ec", node_name="c", name="c")
    still_waiting(b, "a disk was added")
    qmp.call("block-stream", job_id="j", device="a")
    qmp.event(lambda e: e["event"] == "BLOCK_JOB_COMPLETED")
    still_waiting(b, "the stream of a")
    b.reply()


def cancel(at, qmp, a, b):
    qmp.call("block-stream", job_id="j", device="b")
    qmp.call("job-cancel", id="j")
    a.write(0, b"x" * 512)
    qmp.event(lambda e: e["event"] == "JOB_STATUS_CHANGE"
              and e["data"]["status"] == "null")


def quit_daemon(at, qmp, a, b):
    qmp.call("quit")
    while qmp.file.readline():
        pass


sys.exit(tap([(name, lambda act=act: beside_a_read(act)) for name, act in [
    ("reads and writes of a go on beside a slow read of b", guest),
    ("commands on a return beside a slow read of b", commands),
    ("a stream of b can be cancelled", cancel),
    ("quit returns beside a slow read of b", quit_daemon)]]))
