# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the running daemon share: a folder, the daemon, a QMP
client, a small NBD client, and TAP.

Nothing here judges by time: readiness is the return of --daemonize, an answer
is a line on a socket.  Sockets have a timeout only so that a hang fails.
"""
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

HANG_S = 60


def run(*argv, ok=(0,)):
    for _ in range(500):
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True,
                           text=True, timeout=HANG_S)
        # A killed process's locks outlive it until the kernel has torn down
        # its io_uring.
        if p.returncode != 1 or '" lock' not in p.stderr:
            break
        time.sleep(0.01)
    if p.returncode not in ok:
        raise AssertionError(f"{' '.join(argv)} ended with {p.returncode}: "
                             f"{p.stdout}{p.stderr}")
    return p


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(HANG_S)
    try:
        s.connect(path)
    except OSError:
        s.close()
        raise
    return s


class Folder:
    def __init__(self, memory=True):
        where = "/dev/shm" if memory and os.path.isdir("/dev/shm") else None
        self.path = tempfile.mkdtemp(prefix="sluice-system-", dir=where)

    def __enter__(self):
        return lambda name: os.path.join(self.path, name)

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


class Daemon:
    """A storage daemon, ours or the peer, with QMP and NBD sockets."""

    def __init__(self, program, at, options=()):
        self.qmp_path, self.nbd_path = at("qmp.sock"), at("nbd.sock")
        self.pidfile, self.pid = at("pid"), None
        for stale in (self.qmp_path, self.nbd_path, self.pidfile):
            if os.path.exists(stale):
                os.unlink(stale)
        self.argv = [program, "--chardev",
                     f"socket,id=c,path={self.qmp_path},server=on,wait=off",
                     "--monitor", "chardev=c", "--nbd-server",
                     f"addr.type=unix,addr.path={self.nbd_path}", *options,
                     "--daemonize", "--pidfile", self.pidfile]

    def __enter__(self):
        run(*self.argv)
        with open(self.pidfile) as f:
            self.pid = int(f.read())
        # Tells when this process is gone, and never means another one.
        self.fd = os.pidfd_open(self.pid)
        return self

    def kill(self):
        try:
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self):
        if not select.select([self.fd], [], [], HANG_S)[0]:
            raise AssertionError("the daemon does not end")

    def __exit__(self, *_):
        self.kill()
        self.wait()
        os.close(self.fd)


class QmpError(Exception):
    def __init__(self, error):
        super().__init__(error["desc"])
        self.kind, self.desc = error["class"], error["desc"]


class Qmp:
    def __init__(self, path):
        self.sock = connect(path)
        self.file = self.sock.makefile("rwb")
        self.events = []
        self.greeting = self.line()
        self.call("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def line(self):
        text = self.file.readline()
        if not text:
            raise ConnectionError("QMP: end of file")
        return json.loads(text)

    def call(self, command, /, **args):
        request = {"execute": command}
        if args:
            request["arguments"] = {k.replace("_", "-"): v
                                    for k, v in args.items()}
        self.file.write(json.dumps(request).encode() + b"\n")
        self.file.flush()
        while True:
            answer = self.line()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"])
            else:
                return answer["return"]

    def event(self, matches):
        """The first event that matches, past or to come; taken out."""
        while True:
            for i, e in enumerate(self.events):
                if matches(e):
                    return self.events.pop(i)
            answer = self.line()
            if "event" in answer:
                self.events.append(answer)

    def close(self):
        try:
            self.file.close()
        except OSError:
            pass
        self.sock.close()


class Nbd:
    """One export with simple replies; send() and reply() may be apart."""
    READ, WRITE, FLUSH = 0, 1, 3

    def __init__(self, path, name):
        self.sock = connect(path)
        magic, opt, _ = struct.unpack(">QQH", self.take(18))
        if (magic, opt) != (0x4e42444d41474943, 0x49484156454F5054):
            raise AssertionError("no NBD greeting")
        export = name.encode()
        self.sock.sendall(struct.pack(">IQII", 3, opt, 1, len(export)) + export)
        self.size, self.flags = struct.unpack(">QH", self.take(10))
        self.sent, self.cookie = {}, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def take(self, n):
        got = bytearray()
        while len(got) < n:
            part = self.sock.recv(n - len(got))
            if not part:
                raise ConnectionError("NBD: end of file")
            got += part
        return bytes(got)

    def send(self, kind, offset=0, length=0, data=b""):
        self.cookie += 1
        self.sent[self.cookie] = length if kind == self.READ else 0
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind,
                                      self.cookie, offset, len(data) or length)
                          + data)
        return self.cookie

    def reply(self):
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        if magic != 0x67446698:
            raise AssertionError(f"NBD: reply with magic {magic:#x}")
        length = self.sent.pop(cookie)
        if error:
            raise AssertionError(f"NBD: error {error}")
        return cookie, self.take(length)

    def read(self, offset, length):
        self.send(self.READ, offset, length)
        return self.reply()[1]

    def write(self, offset, data):
        self.send(self.WRITE, offset, data=data)
        self.reply()

    def flush(self):
        self.send(self.FLUSH)
        self.reply()


def tap(tests):
    """Runs (name, function) pairs; the exit code."""
    failed = 0
    print(f"1..{len(tests)}", flush=True)
    for n, (name, test) in enumerate(tests, 1):
        try:
            test()
            print(f"ok {n} - {name}", flush=True)
        except Exception as e:  # a dead daemon fails one test, not the rest
            failed += 1
            text = f"{type(e).__name__}: {e}".replace("\n", "\n# ")
            print(f"not ok {n} - {name}\n# {text}", flush=True)
    return failed != 0
