# SPDX-License-Identifier: BSD-3-Clause
"""What the system tests share: folders, daemons, QMP, NBD, devices, TAP.

What a test starts, mounts or attaches is undone when it ends, also when it
fails or is stopped: main() calls what was given to defer(), the last first.
Processes are ended by their own id.  Readiness is the greeting on a control
socket, which comes once all options were processed; nobody sleeps for a fixed
time, and DEADLINE only makes a hang fail.
"""
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

DEADLINE = 30  # seconds; a hang, not a measure of speed

QSD = shutil.which("qemu-storage-daemon")


cleanup = contextlib.ExitStack()


def defer(fn, *args):
    """Calls it when the running test ends."""
    cleanup.callback(fn, *args)


class QmpError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.cls = error["class"]
        self.desc = error["desc"]


class Qmp:
    """One client; events are kept in self.events."""

    def __init__(self, path, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb")
        self.events = []
        self.greeting = self.receive()
        assert "QMP" in self.greeting, self.greeting
        if negotiate:
            self.cmd("qmp_capabilities")

    def receive(self):
        line = self.file.readline()
        if not line:
            raise EOFError("the control socket was closed")
        return json.loads(line)

    def raw(self, name, arguments=None):
        """The whole answer, whatever it is."""
        request = {"execute": name}
        if arguments is not None:
            request["arguments"] = arguments
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self.receive()
            if "event" not in answer:
                return answer
            self.events.append(answer)

    def cmd(self, name, /, **arguments):
        """Underscores in argument names stand for dashes."""
        args = {k.replace("_", "-"): v for k, v in arguments.items()}
        answer = self.raw(name, args)
        if "error" in answer:
            raise QmpError(answer["error"])
        return answer["return"]

    def wait_event(self, name, **data):
        """The next event of that name with these data; drops those before."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if event["event"] == name and all(
                        event["data"].get(k) == v for k, v in data.items()):
                    return event
            self.events.append(self.receive())

    def close(self):
        self.file.close()
        self.sock.close()


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(DEADLINE)
    try:
        s.connect(path)
    except OSError:
        s.close()
        raise
    return s


class Nbd:
    """One export with simple replies; send() and reply() may be apart."""
    READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6

    def __init__(self, path, name):
        self.sock = connect(path)
        defer(self.sock.close)
        magic, opt, _ = struct.unpack(">QQH", self.take(18))
        assert (magic, opt) == (0x4e42444d41474943, 0x49484156454F5054)
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
        assert magic == 0x67446698, f"NBD: reply with magic {magic:#x}"
        length = self.sent.pop(cookie)
        assert not error, f"NBD: error {error}"
        return cookie, self.take(length)

    def do(self, kind, offset=0, length=0, data=b""):
        self.send(kind, offset, length, data)
        return self.reply()[1]

    def read(self, offset, length):
        return self.do(self.READ, offset, length)

    def write(self, offset, data):
        self.do(self.WRITE, offset, data=data)

    def flush(self):
        self.do(self.FLUSH)


class Process:
    """A program that runs beside the test."""

    def __init__(self, *args, cwd=None, stdout=subprocess.DEVNULL):
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(args, cwd=cwd, stdout=stdout,
                                        stdin=subprocess.DEVNULL,
                                        stderr=self.stderr)
        self.stdout = self.process.stdout
        self.pid = self.process.pid
        self.said = ""
        defer(self.end)

    def errors(self):
        if not self.stderr.closed:
            self.stderr.seek(0)
            self.said = self.stderr.read().decode(errors="replace")
        return self.said

    def kill(self):
        self.process.kill()

    def wait(self):
        return self.process.wait(DEADLINE)

    def stop(self, sig=signal.SIGTERM):
        """Ends it and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert "runtime error" not in self.errors(), self.errors()
        assert "AddressSanitizer" not in self.errors(), self.errors()
        return code

    def end(self):
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.errors()
        self.stderr.close()
        if self.stdout:
            self.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if exc[0]:
            print("# " + self.errors().replace("\n", "\n# "))
        self.end()


class Daemon(Process):
    """A storage daemon in the foreground; qmp() returns when it is ready."""

    def __init__(self, program, *options, folder=None, monitor=True):
        self.folder = folder or os.getcwd()
        self.socket = os.path.join(self.folder, f"qmp-{id(self)}.sock")
        self.clients = []
        args = [program, *options]
        if monitor:
            args += ["--chardev",
                     f"socket,id=mon,path={self.socket},server=on,wait=off",
                     "--monitor", "mon"]
        super().__init__(*args, cwd=self.folder)

    def qmp(self, negotiate=True):
        """Connects; the socket appears when the daemon has bound it."""
        while True:
            try:
                client = Qmp(self.socket, negotiate)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise RuntimeError("the daemon ended: " + self.errors())
                try:
                    self.process.wait(0.01)
                except subprocess.TimeoutExpired:
                    pass
        self.clients.append(client)
        return client

    def close_clients(self):
        for client in self.clients:
            client.close()
        self.clients = []

    def stop(self, sig=signal.SIGTERM):
        self.close_clients()
        return super().stop(sig)

    def end(self):
        self.close_clients()
        super().end()


def run(*args, check=True, cwd=None, ok=(0,)):
    """Runs a tool to its end; returns (code, output with errors)."""
    for _ in range(500):
        r = subprocess.run(args, stdin=subprocess.DEVNULL, cwd=cwd,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           timeout=DEADLINE)
        text = r.stdout.decode(errors="replace")
        # A killed process's locks outlive it until the kernel has torn down
        # its io_uring.
        if not check or r.returncode != 1 or '" lock' not in text:
            break
        time.sleep(0.01)
    if check and r.returncode not in ok:
        raise RuntimeError(f"{args} returned {r.returncode}: {text}")
    return r.returncode, text


def nbd_server(path="nbd.sock"):
    """The daemon's options for an NBD server on a socket."""
    return ["--nbd-server", f"addr.type=unix,addr.path={path}"]


def loop_device(path, *options):
    """A block device that shows the file; detached when the test ends."""
    device = run("losetup", "--find", "--show", *options, path)[1].strip()
    defer(run, "losetup", "--detach", device)
    return device


@contextlib.contextmanager
def temporary_folder(memory=False):
    """A path; in memory where there is such a file system."""
    where = "/dev/shm" if memory and os.path.isdir("/dev/shm") else None
    path = tempfile.mkdtemp(prefix="sluice-test-", dir=where)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def need(*tools):
    """Skips the program where a tool is missing."""
    for tool in tools:
        if not shutil.which(tool):
            print(f"1..0 # SKIP {tool} is not installed")
            sys.exit(0)


def stopped(number, frame):
    raise SystemExit(128 + number)


def run_one(test):
    """True where it passes; what it deferred is done in any case."""
    try:
        with cleanup:
            test()
        return True
    except Exception:
        for line in traceback.format_exc().splitlines():
            print("# " + line)
        return False


def main(tests):
    """Runs functions, or (name, function) pairs, each in a folder of its own;
    TAP on standard output.  Does not return."""
    failed = 0
    signal.signal(signal.SIGTERM, stopped)
    print(f"1..{len(tests)}", flush=True)
    for i, test in enumerate(tests, 1):
        name, test = test if isinstance(test, tuple) else (
            test.__name__.replace("_", " "), test)
        here = os.getcwd()
        with temporary_folder() as folder:
            os.chdir(folder)
            try:
                ok = run_one(test)
            finally:
                os.chdir(here)
        failed += not ok
        print(f"{'ok' if ok else 'not ok'} {i} - {name}", flush=True)
    sys.exit(1 if failed else 0)
