#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A backend that hangs must not hold up another disk, QMP, a cancel or quit.

isolation.py SLUICED: disk b lies over an NBD server that is stopped (SIGSTOP)
while the test acts, so that a read of it is not answered before the test says
so.  What is done meanwhile must come to its end all the same: only the order
is judged, not the time.
"""
import os
import select
import shutil
import signal
import socket
import subprocess
import sys

from disk_harness import Daemon, Folder, HANG_S, Nbd, Qmp, run, tap

SLUICED = sys.argv[1]
SIZE = 4 << 20

if not shutil.which("nbdkit"):
    print("1..0 # SKIP nbdkit is missing")
    sys.exit(77)


class Server:
    """The source of b: an NBD server that can be made to hang."""

    def __init__(self, at):
        self.path = at("slow.sock")
        self.process = subprocess.Popen(
            ["nbdkit", "-f", "-U", self.path, "-P", at("slow.pid"), "memory",
             str(SIZE)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        uri = f"nbd+unix:///?socket={self.path}"
        while self.process.poll() is None:
            if subprocess.run(["nbdinfo", "--size", uri],
                              capture_output=True).returncode == 0:
                break

    def hang(self):
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.process.kill()
        self.process.wait()


class Setup:
    def __init__(self, at):
        self.at = at

    def __enter__(self):
        at = self.at
        self.server = Server(at)
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
                f"server.path={self.server.path}",
                "--blockdev", f"qcow2,node-name=b,file.driver=file,"
                f"file.filename={at('b')},backing=slow",
                "--export", "nbd,id=ea,node-name=a,name=a,writable=on",
                "--export", "nbd,id=eb,node-name=b,name=b,writable=on"])
            self.daemon.__enter__()
        except BaseException:
            self.server.end()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.daemon.__exit__()
        finally:
            self.server.end()


class Case:
    """A read of b hangs; the test acts beside it."""

    def __init__(self, at, setup, qmp, a, b):
        self.at, self.server, self.daemon = at, setup.server, setup.daemon
        self.qmp, self.a, self.b = qmp, a, b

    def still_hangs(self):
        """The server is stopped: an answer would be an invention."""
        if select.select([self.b.sock], [], [], 0)[0]:
            raise AssertionError("the read of b was answered")

    def let_go(self):
        self.still_hangs()
        self.server.go_on()
        self.b.reply()


def beside_a_hanging_read(act):
    with Folder() as at, Setup(at) as setup, \
            Qmp(setup.daemon.qmp_path) as qmp, \
            Nbd(setup.daemon.nbd_path, "a") as a, \
            Nbd(setup.daemon.nbd_path, "b") as b:
        setup.server.hang()
        b.send(b.READ, 0, 4096)
        # b's connection is served in order of arrival: once this cluster's
        # write is acknowledged, the read before it has gone to the server.
        b.send(b.WRITE, SIZE - 65536, data=b"w" * 65536)
        b.reply()
        act(Case(at, setup, qmp, a, b))


def guest(c):
    for i in range(100):
        data = bytes([i + 1]) * 4096
        c.a.write(i * 8192, data)
        if c.a.read(i * 8192, 4096) != data:
            raise AssertionError("a does not hold what was written")
    c.a.flush()
    c.let_go()


def commands(c):
    for name in ("query-named-block-nodes", "query-jobs", "query-block-jobs",
                 "query-block-exports", "query-version"):
        c.qmp.call(name)
    c.qmp.call("blockdev-add", driver="qcow2", node_name="c",
               file={"driver": "file", "filename": c.at("c")})
    c.qmp.call("block-export-add", type="nbd", id="ec", node_name="c", name="c")
    c.qmp.call("block-stream", job_id="j", device="a")
    c.qmp.event(lambda e: e["event"] == "BLOCK_JOB_COMPLETED")
    c.let_go()


def cancel(c):
    # The job's own reads hang, too.
    c.qmp.call("block-stream", job_id="j", device="b")
    c.qmp.event(lambda e: e["event"] == "JOB_STATUS_CHANGE"
                and e["data"]["status"] == "running")
    c.a.write(0, b"x" * 512)
    c.qmp.call("job-cancel", id="j")
    c.qmp.event(lambda e: e["event"] == "JOB_STATUS_CHANGE"
                and e["data"]["status"] == "null")
    if c.qmp.call("query-jobs"):
        raise AssertionError("the job is still there")
    c.let_go()  # the guest's read was none of the job's


def quit_daemon(c):
    # What a was told to hold is there, although b's source hangs.
    c.a.write(4096, b"q" * 4096)
    c.qmp.call("block-stream", job_id="j", device="b")
    c.qmp.call("quit")
    ended(c.daemon)
    p = run("qemu-io", "-f", "qcow2", "-c", "read -P 0x71 4096 4096",
            c.at("a"))
    if "verification failed" in p.stdout:
        raise AssertionError("a lost a write")


def ended(daemon):
    """The process is gone, and has removed its sockets."""
    daemon.wait()
    for path in (daemon.qmp_path, daemon.nbd_path, daemon.pidfile):
        if os.path.exists(path):
            raise AssertionError(f"{path} was left behind")


def while_a_command_hangs(end):
    """blockdev-add of a server that accepts and says nothing, ever."""
    with Folder() as at, Daemon(SLUICED, at) as daemon, \
            socket.socket(socket.AF_UNIX) as mute, \
            Qmp(daemon.qmp_path) as first, Qmp(daemon.qmp_path) as second:
        mute.bind(at("mute.sock"))
        mute.listen()
        mute.settimeout(HANG_S)
        first.file.write(
            b'{"execute":"blockdev-add","arguments":{"driver":"nbd",'
            b'"node-name":"n","open-timeout":3600,"server":{"type":"unix",'
            b'"path":"%s"}}}\n' % at("mute.sock").encode())
        first.file.flush()
        with mute.accept()[0]:
            second.call("query-version")
            end(daemon, second)
            ended(daemon)
        # The command that was given up is answered all the same.
        answer = first.line()
        while "event" in answer:
            answer = first.line()
        if "error" not in answer:
            raise AssertionError(f"blockdev-add: {answer}")


sys.exit(tap([(name, lambda act=act: beside_a_hanging_read(act))
              for name, act in [
    ("reads and writes of a go on beside a hanging read of b", guest),
    ("commands on a return beside a hanging read of b", commands),
    ("a stream of b ends when it is cancelled", cancel),
    ("quit ends the daemon beside a hanging read and stream", quit_daemon)]] +
    [(name, lambda end=end: while_a_command_hangs(end)) for name, end in [
    ("quit ends the daemon while another session's command hangs",
     lambda daemon, qmp: qmp.call("quit")),
    ("SIGTERM ends the daemon while a command hangs",
     lambda daemon, qmp: signal.pidfd_send_signal(daemon.fd,
                                                  signal.SIGTERM))]]))
