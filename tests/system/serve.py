# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon is for: nodes, exports, snapshots, streams, and its end.

serve.py SLUICED
"""
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys

from harness import DEADLINE, Daemon, Qmp, QmpError, main, need, run

SLUICED = os.path.abspath(sys.argv[1])

need("qemu-img", "qemu-io", "nbdinfo")

URI = "nbd+unix:///{}?socket=" + "nbd.sock"


def image(name, backing=None, size="4M"):
    args = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if backing:
        args += ["-b", backing, "-F", "qcow2"]
    run(*args, name, *([] if backing else [size]))


def io(export, *commands):
    """qemu-io over NBD; a pattern that does not match is an error."""
    args = [a for c in commands for a in ("-c", c)]
    code, text = run("qemu-io", "-f", "raw", *args, URI.format(export))
    assert "failed" not in text, text


def add(q, name, filename, **more):
    q.cmd("blockdev-add", driver="qcow2", node_name=name,
          file={"driver": "file", "filename": filename}, **more)


def start_server(q):
    q.cmd("nbd-server-start", addr={"type": "unix",
                                    "data": {"path": "nbd.sock"}})


def export(q, name, writable=True):
    q.cmd("block-export-add", type="nbd", id="e-" + name, node_name=name,
          writable=writable)


def nodes(q, **args):
    return {n["node-name"]: n
            for n in q.cmd("query-named-block-nodes", **args)}


def refused(fn, text):
    try:
        fn()
    except QmpError as e:
        assert text in e.desc, e.desc
    else:
        raise AssertionError("not refused: " + text)


def an_image_is_served_and_kept():
    image("a.qcow2")
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        start_server(q)
        export(q, "a")
        info = json.loads(run("nbdinfo", "--json", URI.format("a"))[1])
        assert info["exports"][0]["export-size"] == 4 << 20, info
        assert info["exports"][0]["is_read_only"] is False, info
        io("a", "write -P 7 1M 64k", "flush", "read -P 7 1M 64k",
           "read -P 0 0 64k")
        q.cmd("block-export-del", id="e-a")
        q.wait_event("BLOCK_EXPORT_DELETED", id="e-a")
        assert q.cmd("query-block-exports") == []
        q.cmd("blockdev-del", node_name="a")
        assert q.cmd("query-named-block-nodes") == []
        assert d.stop() == 0
    run("qemu-img", "check", "-q", "a.qcow2")
    text = run("qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 64k",
               "a.qcow2")[1]
    assert "failed" not in text


def a_snapshot_takes_the_writes():
    image("base.qcow2")
    image("over.qcow2")
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add(q, "base", "base.qcow2")
        add(q, "over", "over.qcow2", backing=None)
        start_server(q)
        export(q, "base")
        io("base", "write -P 1 0 1M")
        q.cmd("blockdev-snapshot", node="base", overlay="over")
        assert q.cmd("query-block-exports")[0]["node-name"] == "over"
        io("base", "read -P 1 0 1M", "write -P 2 512k 1M", "flush",
           "read -P 1 0 512k", "read -P 2 512k 1M")
        n = nodes(q)
        assert n["over"]["backing_file"].endswith("base.qcow2")
        assert n["over"]["backing_file_depth"] == 1
        assert n["base"]["ro"] and not n["over"]["ro"]
        assert n["over"]["image"]["backing-image"]["format"] == "qcow2"
        assert "backing-image" not in nodes(q, flat=True)["over"]["image"]
        refused(lambda: q.cmd("blockdev-del", node_name="base"),
                "node is used as backing hd of 'over'")
        assert d.stop() == 0
    # Each file holds what was written while it was on top.
    for name, commands in (("base.qcow2", ["read -P 1 0 1M"]),
                           ("over.qcow2", ["read -P 0 0 512k",
                                           "read -P 2 512k 1M"])):
        run("qemu-img", "check", "-q", name)
        for c in commands:
            text = run("qemu-io", "-f", "qcow2", "-c", c, name)[1]
            assert "failed" not in text, (name, c, text)


def a_chain_is_streamed_and_its_events_are_qemus():
    image("base.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 2M", "base.qcow2")
    image("top.qcow2", "base.qcow2")
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add(q, "top", "top.qcow2")
        start_server(q)
        export(q, "top")
        q.cmd("block-stream", device="top", job_id="j", auto_finalize=False,
              auto_dismiss=False)
        q.wait_event("BLOCK_JOB_PENDING", id="j")
        job, = q.cmd("query-block-jobs")
        assert job["status"] == "pending" and job["type"] == "stream", job
        refused(lambda: q.cmd("job-dismiss", id="j"),
                "Job 'j' in state 'pending' cannot accept command verb "
                "'dismiss'")
        q.cmd("job-finalize", id="j")
        done = q.wait_event("BLOCK_JOB_COMPLETED", device="j")
        assert done["data"]["len"] == done["data"]["offset"] == 4 << 20, done
        q.wait_event("JOB_STATUS_CHANGE", id="j", status="concluded")
        q.cmd("job-dismiss", id="j")
        q.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        assert "backing_file" not in nodes(q)["top"]
        io("top", "read -P 5 0 2M", "read -P 0 2M 2M")
        assert d.stop() == 0
    info = json.loads(run("qemu-img", "info", "--output=json",
                          "top.qcow2")[1])
    assert "backing-filename" not in info, info


def an_image_is_created_by_a_job():
    with Daemon(SLUICED) as d:
        q = d.qmp()

        def create(**options):
            q.cmd("blockdev-create", job_id="c", options=options)
            trace = []
            while not trace or trace[-1] != "concluded":
                e = q.wait_event("JOB_STATUS_CHANGE", id="c")
                trace.append(e["data"]["status"])
            job, = q.cmd("query-jobs")
            q.cmd("job-dismiss", id="c")
            return trace, job

        trace, job = create(driver="file", filename="f", size=0)
        assert trace == ["created", "running", "waiting", "pending",
                         "concluded"], trace
        assert "error" not in job
        q.cmd("blockdev-add", driver="file", node_name="f", filename="f")
        trace, job = create(driver="qcow2", file="f", size=1 << 20)
        assert "error" not in job, job
        q.cmd("blockdev-add", driver="qcow2", node_name="q", file="f")
        assert nodes(q)["q"]["image"]["virtual-size"] == 1 << 20
        # Not under an image that is open.
        trace, job = create(driver="qcow2", file="f", size=1 << 20)
        assert trace[-2] == "aborting" and "busy" in job["error"], job
        assert d.stop() == 0
    run("qemu-img", "check", "-q", "f")


def an_export_in_use_goes_only_by_force():
    image("a.qcow2")
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        start_server(q)
        export(q, "a")
        guest = subprocess.Popen(
            ["qemu-io", "-f", "raw", URI.format("a")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            guest.stdin.write(b"read 0 512\n")
            guest.stdin.flush()
            while b"ops" not in guest.stdout.readline():
                pass
            refused(lambda: q.cmd("block-export-del", id="e-a"),
                    "export 'e-a' still in use")
            q.cmd("block-export-del", id="e-a", mode="hard")
            q.wait_event("BLOCK_EXPORT_DELETED", id="e-a")
        finally:
            guest.kill()
            guest.wait()
            guest.stdin.close()
            guest.stdout.close()
        q.cmd("blockdev-del", node_name="a")


def garbage_harms_nobody_else():
    image("a.qcow2")
    rng = random.Random(1)
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        start_server(q)
        export(q, "a")
        for path in [d.socket, "nbd.sock"] * 20:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(DEADLINE)
                s.connect(path)
                try:
                    s.sendall(rng.randbytes(rng.randrange(1, 100000)))
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        # Somebody who asks for much and reads nothing is thrown out.
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(DEADLINE)
            s.connect(d.socket)
            ask = b'{"execute": "query-qmp-schema"}\n' * 100
            s.sendall(b'{"execute": "qmp_capabilities"}\n')
            try:
                for _ in range(1000):
                    s.sendall(ask)
                raise AssertionError("it may ask for ever")
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass
        io("a", "write -P 3 0 64k", "read -P 3 0 64k")
        assert q.cmd("query-version")["package"].startswith("sluice")
        assert d.stop() == 0


def commands_of_other_monitors_do_not_wait():
    with Daemon(SLUICED) as d, socket.socket(socket.AF_UNIX) as silent:
        q, other = d.qmp(), d.qmp()
        # A server that takes the connection and never says a word.
        silent.bind("silent.sock")
        silent.listen()
        q.sock.sendall(json.dumps({"execute": "blockdev-add", "arguments": {
            "driver": "nbd", "node-name": "n", "server": {
                "type": "unix", "path": "silent.sock"}}}).encode())
        conn = silent.accept()[0]
        assert other.cmd("query-named-block-nodes") == []
        # Half open, it is not to be found, but its name is taken.
        start_server(other)
        refused(lambda: export(other, "n"), "Cannot find device=''")
        refused(lambda: other.cmd("blockdev-add", driver="null-co",
                                  node_name="n"), "Duplicate nodes")
        silent.close()
        conn.close()
        assert "error" in q.receive()
        other.cmd("blockdev-add", driver="null-co", node_name="n")
        # An event goes to both.
        export(other, "n")
        other.cmd("block-export-del", id="e-n")
        assert q.wait_event("BLOCK_EXPORT_DELETED")["data"]["id"] == "e-n"
        assert d.stop() == 0


def it_ends_cleanly(how):
    image("a.qcow2")
    with Daemon(SLUICED, "--pidfile", "pid", "--blockdev",
                "qcow2,node-name=a,file.driver=file,file.filename=a.qcow2",
                "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
                "--export", "nbd,id=e,node-name=a,writable=on") as d:
        q = d.qmp()
        assert open("pid").read() == f"{d.pid}\n"
        io("a", "write -P 9 0 64k")
        how(d, q)
        q.wait_event("BLOCK_EXPORT_DELETED", id="e")
        assert d.wait() == 0, d.errors()
    for name in ("pid", "nbd.sock", d.socket):
        assert not os.path.exists(name), name
    run("qemu-img", "check", "-q", "a.qcow2")
    text = run("qemu-io", "-f", "qcow2", "-c", "read -P 9 0 64k",
               "a.qcow2")[1]
    assert "failed" not in text


def quit_ends_it_cleanly():
    it_ends_cleanly(lambda d, q: q.cmd("quit"))


def a_signal_ends_it_cleanly():
    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        it_ends_cleanly(lambda d, q: d.process.send_signal(sig))
        os.unlink("a.qcow2")


def it_goes_into_the_background():
    image("a.qcow2")
    run(SLUICED, "--daemonize", "--pidfile", "pid", "--blockdev",
        "qcow2,node-name=a,file.driver=file,file.filename=a.qcow2",
        "--chardev", "socket,id=m,path=m.sock,server=on,wait=off",
        "--monitor", "m")
    pid = int(open("pid").read())
    try:
        q = Qmp("m.sock")  # it listens: the command has returned
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        # Its journal, and its next opening, are where the image is.
        nodes = {n["node-name"]: n for n in q.cmd("query-named-block-nodes")}
        assert nodes["a"]["file"] == os.path.abspath("a.qcow2"), nodes
        code, text = run(SLUICED, "--pidfile", "pid", check=False)
        assert code == 1 and "Could not lock 'pid'" in text, text
        q.cmd("quit")
        try:
            while True:
                q.receive()
        except (EOFError, ConnectionResetError):
            pass
        pid_fd = os.pidfd_open(pid)
        assert select.select([pid_fd], [], [], DEADLINE)[0]
        os.close(pid_fd)
    except ProcessLookupError:
        pass
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    assert not os.path.exists("pid") and not os.path.exists("m.sock")
    code, text = run(SLUICED, "--daemonize", "--blockdev", "foo", check=False)
    assert code == 1 and "does not accept value 'foo'" in text, text


def the_service_manager_is_told():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind("notify")
        s.settimeout(DEADLINE)
        os.environ["NOTIFY_SOCKET"] = os.path.abspath("notify")
        try:
            with Daemon(SLUICED) as d:
                assert s.recv(100) == b"READY=1"
                assert d.stop() == 0
                assert s.recv(100) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


def stdio_is_a_monitor():
    p = subprocess.run(
        [SLUICED, "--chardev", "stdio,id=m", "--monitor", "m"],
        input=b'{"execute":"qmp_capabilities"}{"execute":"quit"}',
        stdout=subprocess.PIPE, timeout=DEADLINE)
    answers = [json.loads(line) for line in p.stdout.splitlines()]
    assert p.returncode == 0 and len(answers) == 3, (p.returncode, answers)


def headers_point_where_they_may():
    os.mkdir("in")
    os.mkdir("out")
    image("out/base.qcow2")
    image("in/base.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F",
        "qcow2", "in/good.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../out/base.qcow2",
        "-F", "qcow2", "in/bad.qcow2")

    def opens(name, *options):
        with Daemon(SLUICED, *options) as d:
            try:
                add(d.qmp(), "n", name)
                return True
            except QmpError:
                return False

    assert opens("in/good.qcow2") and opens("in/bad.qcow2")
    assert opens("in/good.qcow2", "--backing-paths", "in")
    assert not opens("in/bad.qcow2", "--backing-paths", "in")
    assert not opens("in/good.qcow2", "--untrusted")
    assert opens("in/base.qcow2", "--untrusted")


if __name__ == "__main__":
    main([an_image_is_served_and_kept, a_snapshot_takes_the_writes,
          a_chain_is_streamed_and_its_events_are_qemus,
          an_image_is_created_by_a_job, an_export_in_use_goes_only_by_force,
          garbage_harms_nobody_else, commands_of_other_monitors_do_not_wait,
          quit_ends_it_cleanly, a_signal_ends_it_cleanly,
          it_goes_into_the_background, the_service_manager_is_told,
          stdio_is_a_monitor, headers_point_where_they_may])
