#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""One disk's trouble is no other's (design §4).

isolation.py SLUICED: disk b lies over an NBD server that is stopped while a
read of b waits for it; disk d over a qcow2 image there, of which nothing but
its header was read by then.  The guests of disk a, the control socket, a
cancel and quit must go on; that the read of b is still without an answer shows
that they did so meanwhile, without a look at a clock.  The same beside a command
that asks for a path in a folder whose file system does not answer, and for a
mirror that is cancelled while the server of its target is stopped.
"""
import os
import select
import signal
import socket
import subprocess
import sys

from harness import (DEADLINE, Daemon, HangingMount, Nbd, Process, connect,
                     main, nbd_server, need, run, wait_for)

SLUICED = os.path.abspath(sys.argv[1])
SIZE = 4 << 20

need("nbdkit", "nbdinfo", "qemu-img", "qemu-io", "qemu-nbd")


def start_source():
    os.mkdir("served")
    run("qemu-img", "create", "-q", "-f", "raw", "served/raw", str(SIZE))
    run("qemu-img", "create", "-q", "-f", "qcow2", "served/qcow2", str(SIZE))
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 0x64 0 {SIZE}",
        "served/qcow2")
    server = Process("nbdkit", "-f", "-U", "slow.sock", "file", "dir=served")
    while subprocess.run(["nbdinfo", "--size",
                          "nbd+unix:///raw?socket=slow.sock"],
                         capture_output=True).returncode:
        assert server.process.poll() is None, server.errors()
    return server


def start_daemon():
    run("qemu-img", "create", "-q", "-f", "raw", "base", str(SIZE))
    for name in "ac":
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
            "raw", name)
    for name in "bd":
        run("qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE))
    return Daemon(
        SLUICED, *nbd_server(),
        "--blockdev", "qcow2,node-name=a,file.driver=file,file.filename=a",
        "--blockdev", "nbd,node-name=slow,export=raw,server.type=unix,"
        "server.path=slow.sock",
        "--blockdev", "qcow2,node-name=far,read-only=on,file.driver=nbd,"
        "file.export=qcow2,file.server.type=unix,file.server.path=slow.sock",
        "--blockdev", "qcow2,node-name=b,file.driver=file,file.filename=b,"
        "backing=slow",
        "--blockdev", "qcow2,node-name=d,file.driver=file,file.filename=d,"
        "backing=far",
        "--export", "nbd,id=ea,node-name=a,name=a,writable=on",
        "--export", "nbd,id=eb,node-name=b,name=b,writable=on",
        "--export", "nbd,id=ed,node-name=d,name=d,writable=on")


class Case:
    """A read of b hangs; a test acts beside it."""

    def __init__(self):
        self.server = start_source()
        self.daemon = start_daemon()
        self.qmp = self.daemon.qmp()
        self.a, self.b = Nbd("nbd.sock", "a"), Nbd("nbd.sock", "b")
        self.server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.server.process.pid, os.WSTOPPED)
        self.b.send(Nbd.READ, 0, 4096)
        # b's connection is served in order of arrival: once this cluster's
        # write is acknowledged, the read before it has gone to the server.
        self.b.send(Nbd.WRITE, SIZE - 65536, data=b"w" * 65536)
        self.b.reply()

    def go_on(self):
        self.server.process.send_signal(signal.SIGCONT)

    def let_go(self):
        """The server is stopped: an answer would be an invention."""
        assert not select.select([self.b.sock], [], [], 0)[0], \
            "the read of b was answered"
        self.go_on()
        self.b.reply()


def beside_a_hanging_read(act):
    case = Case()
    try:
        act(case)
    finally:
        case.go_on()  # a stopped process cannot be ended politely


def guest(c):
    for i in range(100):
        data = bytes([i + 1]) * 4096
        c.a.write(i * 8192, data)
        assert c.a.read(i * 8192, 4096) == data
    c.a.flush()
    c.let_go()


def commands(c):
    for name in ("query-named-block-nodes", "query-jobs", "query-block-jobs",
                 "query-block-exports", "query-version"):
        c.qmp.cmd(name)
    c.qmp.cmd("blockdev-add", driver="qcow2", node_name="c",
              file={"driver": "file", "filename": "c"})
    c.qmp.cmd("block-export-add", type="nbd", id="ec", node_name="c", name="c")
    c.qmp.cmd("block-stream", job_id="j", device="a")
    c.qmp.wait_event("BLOCK_JOB_COMPLETED")
    c.let_go()


def stream(c, device):
    c.qmp.cmd("block-stream", job_id="j", device=device)
    c.qmp.wait_event("JOB_STATUS_CHANGE", status="running")
    c.a.write(0, b"x" * 512)


def cancel_it(c):
    c.qmp.cmd("job-cancel", id="j")
    c.qmp.wait_event("JOB_STATUS_CHANGE", status="null")
    assert not c.qmp.cmd("query-jobs"), "the job is still there"


def cancel(c):
    # The job's own reads hang, too.
    stream(c, "b")
    cancel_it(c)
    c.let_go()  # the guest's read was none of the job's


def cancel_before_metadata(c):
    stream(c, "d")
    cancel_it(c)
    c.let_go()


def read_of_d(c):
    """A guest's read of d that has come to the server."""
    d = Nbd("nbd.sock", "d")
    d.send(Nbd.READ, SIZE // 2, 4096)
    d.send(Nbd.WRITE, 0, data=b"w" * 65536)
    d.reply()
    return d


def answered(c, d):
    assert not select.select([d.sock], [], [], 0)[0], "d was answered"
    c.let_go()
    assert d.reply()[1] == b"d" * 4096


def cancel_behind_a_guest(c):
    # The job waits for what the guest's read began.
    d = read_of_d(c)
    stream(c, "d")
    cancel_it(c)
    answered(c, d)


def cancel_before_a_guest(c):
    # The guest's read waits for what the job began.
    stream(c, "d")
    d = read_of_d(c)
    cancel_it(c)
    answered(c, d)


def quit_daemon(c):
    # What a was told to hold is there, although b's source hangs.
    c.a.write(4096, b"q" * 4096)
    c.qmp.cmd("block-stream", job_id="j", device="b")
    c.qmp.cmd("quit")
    ended(c.daemon)
    text = run("qemu-io", "-f", "qcow2", "-c", "read -P 0x71 4096 4096", "a")[1]
    assert "verification failed" not in text, text


def ended(daemon):
    """The process is gone, and has removed its sockets."""
    daemon.process.wait(DEADLINE)
    for path in (daemon.socket, "nbd.sock"):
        assert not os.path.exists(path), f"{path} was left behind"


def while_a_command_hangs(end):
    """blockdev-add of a server that accepts and says nothing, ever."""
    daemon = Daemon(SLUICED, *nbd_server())
    first, second = daemon.qmp(), daemon.qmp()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind("mute.sock")
        mute.listen()
        mute.settimeout(DEADLINE)
        first.sock.sendall(
            b'{"execute":"blockdev-add","arguments":{"driver":"nbd",'
            b'"node-name":"n","open-timeout":3600,"server":{"type":"unix",'
            b'"path":"mute.sock"}}}\n')
        with mute.accept()[0]:
            second.cmd("query-version")
            end(daemon, second)
            ended(daemon)
        # The command that was given up is answered all the same.
        answer = first.receive()
        while "event" in answer:
            answer = first.receive()
        assert "error" in answer, answer


def disks_a_and_b():
    return Daemon(SLUICED, *nbd_server(), *[
        o for n in "ab" for o in (
            "--blockdev", f"qcow2,node-name={n},file.driver=file,"
            f"file.filename={n}")])


def a_mirror_to_a_server_is_cut(disk="b", other=None):
    """Job j of @disk, of a daemon that is gone, whose target's server is, too;
    and job i of the @other disk, which is mirrored to a file."""
    for name in ("a", "b", "t"):
        run("qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE))
    server = far_server()
    daemon = disks_a_and_b()
    qmp = daemon.qmp()
    qmp.cmd("blockdev-add", driver="nbd", node_name="far", open_timeout=3600,
            server={"type": "unix", "path": os.path.abspath("far.sock")})
    qmp.cmd("blockdev-mirror", job_id="j", device=disk, target="far",
            sync="full")
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    if other:
        mirror_to_t(qmp, other)
    daemon.kill()
    daemon.wait()
    server.end()
    if os.path.exists("far.sock"):
        os.unlink("far.sock")


def mirror_to_t(qmp, disk):
    qmp.cmd("blockdev-add", driver="qcow2", node_name="t",
            file={"driver": "file", "filename": "t"})
    qmp.cmd("blockdev-mirror", job_id="i", device=disk, target="t",
            sync="full")
    qmp.wait_event("BLOCK_JOB_READY", device="i")


def far_server():
    server = Process("nbdkit", "-f", "-U", "far.sock", "memory", str(SIZE))
    server.until(lambda: os.stat("far.sock"), FileNotFoundError)
    return server


def who_asks_sees_a_job_that_is_resumed():
    """A manager that connects at once must not take it for one that ended."""
    a_mirror_to_a_server_is_cut()
    daemon = disks_a_and_b()
    qmp = daemon.qmp()
    qmp.send("query-block-jobs", {})
    server = far_server()
    jobs = qmp.answer()["return"]
    assert [j["device"] for j in jobs] == ["j"], jobs
    daemon.stop()
    server.end()


def while_a_job_is_resumed(act, *disks):
    """The target of a job of b, which an earlier daemon began, is on a server
    that accepts and says nothing, ever."""
    a_mirror_to_a_server_is_cut(*disks)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind("far.sock")
        mute.listen()
        mute.settimeout(DEADLINE)
        daemon = disks_a_and_b()
        with mute.accept()[0]:
            act(daemon, daemon.qmp())
            ended(daemon)


def another_job_starts(end):
    def act(daemon, qmp):
        mirror_to_t(qmp, "a")
        end(daemon, qmp)
    return act


def another_is_resumed(daemon, qmp):
    assert [j["id"] for j in qmp.cmd("query-jobs")] == ["i"]
    qmp.cmd("quit")


def beside_a_hanging_path(where, command, **arguments):
    """A command asks for a file in a folder that does not answer."""
    os.mkdir("sub")
    for name in ("a", "sub/c"):
        run("qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE))
    daemon = Daemon(
        SLUICED, *nbd_server(),
        *[o for n in ("a", "sub/c") for o in (
            "--blockdev", f"qcow2,node-name={n[-1]},file.driver=file,"
            f"file.filename={n}",
            "--export", f"nbd,id={n[-1]},node-name={n[-1]},writable=on")])
    first, second = daemon.qmp(), daemon.qmp()
    guests = [Nbd("nbd.sock", n) for n in "ac"]
    mount = HangingMount(where)
    first.send(command, arguments)
    mount.wait()
    second.cmd("query-named-block-nodes", flat=True)
    for i in range(50):
        for nbd in guests:  # the files that are open can be read and written
            data = bytes([i + 1]) * 4096
            nbd.write(i * 8192, data)
            assert nbd.read(i * 8192, 4096) == data
            nbd.flush()
    assert not select.select([first.sock], [], [], 0)[0], "it was answered"
    mount.release()
    first.answer()
    assert daemon.stop() == 0


NBDKIT = ["nbdkit", "-f", "-U", "far.sock"]
# One whose flush lasts as long as there is a file "stuck".
STUCK_FLUSH = [
    *NBDKIT, "eval", f"get_size=echo {SIZE}", "can_write=exit 0", "can_flush=exit 0",
    "pread=dd if=far.raw iflag=skip_bytes,count_bytes skip=$4 count=$3",
    "pwrite=dd of=far.raw oflag=seek_bytes conv=notrunc seek=$4",
    "flush=touch flushing; while test -e stuck; do sleep 0.01; done"]


class Mirrored:
    """Disk m, full of data, with a guest; and a server for its mirror."""

    def __init__(self, *server, **options):
        run("qemu-img", "create", "-q", "-f", "qcow2", "m", str(SIZE))
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 0x6d 0 {SIZE}", "m")
        run("qemu-img", "create", "-q", "-f", "raw", "far.raw", str(SIZE))
        self.server = Process(*server)
        self.server.until(lambda: connect("far.sock").close(),
                          FileNotFoundError, ConnectionRefusedError)
        self.daemon = Daemon(
            SLUICED, *nbd_server(), "--blockdev",
            "qcow2,node-name=m,file.driver=file,file.filename=m",
            "--export", "nbd,id=em,node-name=m,name=m,writable=on")
        self.qmp = self.daemon.qmp()
        self.qmp.cmd("blockdev-add", driver="nbd", node_name="far",
                     server={"type": "unix",
                             "path": os.path.abspath("far.sock")}, **options)
        self.guest = Nbd("nbd.sock", "m")

    def mirror(self, **more):
        self.qmp.cmd("blockdev-mirror", job_id="j", device="m", target="far",
                     sync="full", **more)

    def ready(self, **more):
        self.mirror(**more)
        self.qmp.wait_event("BLOCK_JOB_READY", device="j")

    def stop(self):
        os.kill(self.server.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.server.pid, os.WSTOPPED)

    def go_on(self):
        os.kill(self.server.pid, signal.SIGCONT)

    def stop_while_it_flushes(self):
        """On its way to the switch."""
        open("stuck", "w").close()
        self.ready()
        self.qmp.cmd("job-complete", id="j")
        self.qmp.wait_event("JOB_STATUS_CHANGE", status="pending")
        wait_for(lambda: os.path.exists("flushing"))
        self.stop()
        os.unlink("stuck")

    def write(self, pattern):
        """To many places, some of which the server may still be told of."""
        for i in range(8):
            self.guest.write(i * 65536, bytes([pattern]) * 4096)

    def cancel(self, command="job-cancel", **arguments):
        self.qmp.cmd(command, **(arguments or {"id": "j"}))
        self.ended()

    def ended(self):
        """The job ends, and its guest goes on, although the server does not
        answer."""
        self.qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
        self.qmp.wait_event("JOB_STATUS_CHANGE", status="null")
        self.write(0x63)
        self.guest.flush()

    def again(self):
        """The server goes on: the target can be copied to."""
        self.go_on()
        self.ready()
        self.write(0x72)
        self.qmp.cmd("block-job-cancel", device="j")
        done = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
        assert "error" not in done["data"], done
        self.guest.flush()
        assert self.daemon.stop() == 0
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "m", "far.raw")


NBDKIT_FILE = [*NBDKIT, "file", "far.raw"]
QEMU_NBD = ["qemu-nbd", "-t", "-f", "raw", "-k",
            "/proc/self/cwd/far.sock", "far.raw"]


def silent_target(act, *server, **options):
    case = Mirrored(*(server or NBDKIT_FILE), **options)
    try:
        act(case)
        case.again()
    finally:
        case.go_on()  # a stopped process cannot be ended politely


def while_it_copies(c):
    c.stop()
    c.mirror()
    c.qmp.wait_event("JOB_STATUS_CHANGE", status="running")
    c.write(0x77)
    c.cancel()


def with_forwards(c):
    c.ready(copy_mode="write-blocking")
    c.stop()
    c.write(0x77)  # the first of them is on its way
    c.cancel(command="block-job-cancel", device="j", force=True)


def while_told_to_switch(c):
    c.ready(copy_mode="write-blocking")
    c.stop()
    c.write(0x77)
    c.qmp.cmd("job-complete", id="j")
    c.guest.flush()
    c.cancel()


def before_a_copy_of_then(c):
    """Told to end as a copy, which waits for the target; then by force."""
    c.ready(copy_mode="write-blocking")
    c.stop()
    c.write(0x77)
    c.qmp.cmd("block-job-cancel", device="j")
    c.cancel(command="block-job-cancel", device="j", force=True)


def while_it_flushes(c):
    c.stop_while_it_flushes()
    c.cancel()


def while_guests_flush(c):
    c.stop_while_it_flushes()
    c.write(0x77)
    c.guest.send(Nbd.FLUSH)
    c.qmp.cmd("job-cancel", id="j")
    c.guest.reply()
    c.ended()


def with_a_reader(c):
    """What reads the node beside the job waits, as it did, and goes on."""
    c.qmp.cmd("block-export-add", type="nbd", id="ef", node_name="far",
              name="far")
    c.ready(copy_mode="write-blocking")
    reader = Nbd("nbd.sock", "far")
    c.stop()
    c.write(0x77)
    reader.send(Nbd.READ, SIZE - 4096, 4096)
    c.cancel()
    assert not select.select([reader.sock], [], [], 0)[0], "it was answered"
    c.go_on()
    assert reader.reply()[1] == b"\x6d" * 4096
    reader.close()
    c.qmp.cmd("block-export-del", id="ef")


HANGING_PATHS = [
    ("a snapshot's new file", "hung", "blockdev-snapshot-sync",
     {"node-name": "c", "snapshot-file": "hung/s", "snapshot-node-name": "s"}),
    ("the file below a snapshot", "sub", "blockdev-snapshot-sync",
     {"node-name": "c", "snapshot-file": "s", "snapshot-node-name": "s"}),
    ("a mirror's new file", "hung", "drive-mirror",
     {"job-id": "j", "device": "c", "sync": "full", "target": "hung/t"}),
]

if __name__ == "__main__":
    main([(name, lambda act=act: beside_a_hanging_read(act))
          for name, act in [
              ("reads and writes of a go on beside a hanging read of b", guest),
              ("commands on a return beside a hanging read of b", commands),
              ("a stream of b ends when it is cancelled", cancel),
              ("a stream ends before its source's metadata was read",
               cancel_before_metadata),
              ("a stream ends that waits for what a guest's read began",
               cancel_behind_a_guest),
              ("a guest goes on where the stream was that began its look-up",
               cancel_before_a_guest),
              ("quit ends the daemon beside a hanging read and stream",
               quit_daemon)]] +
         [(name, lambda end=end: while_a_command_hangs(end))
          for name, end in [
              ("quit ends the daemon while another session's command hangs",
               lambda daemon, qmp: qmp.cmd("quit")),
              ("SIGTERM ends the daemon while a command hangs",
               lambda daemon, qmp: daemon.process.terminate())]] +
         [("who asks sees a job that is about to be resumed",
           who_asks_sees_a_job_that_is_resumed)] +
         [(name, lambda act=act, disks=disks:
           while_a_job_is_resumed(act, *disks))
          for name, act, *disks in [
              ("a job of a starts, and quit ends the daemon, while one of b "
               "is resumed",
               another_job_starts(lambda daemon, qmp: qmp.cmd("quit"))),
              ("SIGTERM ends the daemon while a job is resumed",
               another_job_starts(
                   lambda daemon, qmp: daemon.process.terminate())),
              ("the job of b is resumed while the one of a hangs",
               another_is_resumed, "a", "b"),
              ("the job of a is resumed while the one of b hangs",
               another_is_resumed, "b", "a")]] +
         [(f"a cancelled mirror ends although its target is silent: {what}",
           lambda how=how, server=server, options=options:
           silent_target(how, *server, **options))
          for what, how, server, options in [
              ("while it copies", while_it_copies, [], {}),
              ("while it copies, and reconnects", while_it_copies, [],
               {"reconnect_delay": 100}),
              ("while it copies to qemu-nbd", while_it_copies, QEMU_NBD, {}),
              ("with writes forwarded", with_forwards, [], {}),
              ("with writes forwarded to qemu-nbd", with_forwards, QEMU_NBD,
               {}),
              ("while it is told to switch", while_told_to_switch, [], {}),
              ("before it ends as a copy", before_a_copy_of_then, [], {}),
              ("with a flush in flight", while_it_flushes, STUCK_FLUSH, {}),
              ("with a flush in flight, and reconnects", while_it_flushes,
               STUCK_FLUSH, {"reconnect_delay": 100}),
              ("with guests' flushes in flight", while_guests_flush,
               STUCK_FLUSH, {}),
              ("with a reader of the target", with_a_reader, [], {})]] +
         [(f"others go on while {what} is looked for in a folder that hangs",
           lambda how=how, more=more: beside_a_hanging_path(*how, **more))
          for what, *how, more in HANGING_PATHS])
