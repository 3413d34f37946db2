# SPDX-License-Identifier: BSD-3-Clause
"""What the system tests share: folders, daemons, QMP, NBD, devices, TAP.

Every test runs in a folder of its own, as the current one.  What it starts,
attaches or mounts is handed to defer() and taken back when the test ends,
however it ends, the last first.  Processes are ended by their own handle.
Readiness is the greeting on a control socket, which comes once all options
were processed; nobody sleeps for a fixed time.
"""
import atexit
import contextlib
import ctypes
import json
import os
import select
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

# What to take back: of the whole program below, of the running test on top.
_stacks = [contextlib.ExitStack()]
atexit.register(_stacks[0].close)


def defer(fn, *args):
    """Calls fn(*args) when the running test (or else the program) ends."""
    _stacks[-1].callback(fn, *args)


def folder(memory=False):
    """A new folder, in memory where that is asked for and can be had."""
    where = "/dev/shm" if memory and os.path.isdir("/dev/shm") else None
    path = tempfile.mkdtemp(prefix="sluice-test-", dir=where)
    defer(shutil.rmtree, path, True)
    return path


class QmpError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.cls = error["class"]
        self.desc = error["desc"]


def refused(q, text, command, /, **arguments):
    """The command must fail, and say @text."""
    try:
        q.cmd(command, **arguments)
    except QmpError as e:
        assert text in e.desc, e.desc
    else:
        raise AssertionError("not refused: " + text)


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(DEADLINE)
    try:
        s.connect(path)
    except OSError:
        s.close()
        raise
    return s


class Qmp:
    """One client. Events wait in self.events; self.history keeps them all."""

    def __init__(self, path, negotiate=True):
        self.sock = connect(path)
        self.file = self.sock.makefile("rb")
        self.events = []
        self.history = []
        self.greeting = self.receive()
        assert "QMP" in self.greeting, self.greeting
        if negotiate:
            self.cmd("qmp_capabilities")

    def receive(self):
        line = self.file.readline()
        if not line:
            raise EOFError("the control socket was closed")
        message = json.loads(line)
        if "event" in message:
            self.history.append(message)
        return message

    def send(self, name, arguments=None):
        request = {"execute": name}
        if arguments is not None:
            request["arguments"] = arguments
        self.sock.sendall(json.dumps(request).encode() + b"\n")

    def answer(self):
        """The whole answer, whatever it is."""
        while True:
            answer = self.receive()
            if "event" in answer:
                self.events.append(answer)
            elif "QMP" not in answer:  # qemu-storage-daemon may greet twice
                return answer

    def raw(self, name, arguments=None):
        """The answer, without the hint of an error, which is self.hint."""
        self.send(name, arguments)
        answer = self.answer()
        self.hint = answer.get("error", {}).pop("hint", None)
        return answer

    def cmd(self, command, /, **arguments):
        """Underscores in argument names stand for dashes."""
        args = {k.replace("_", "-"): v for k, v in arguments.items()}
        answer = self.raw(command, args)
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
            message = self.receive()
            if "event" in message:  # qemu-storage-daemon may greet twice
                self.events.append(message)

    def close(self):
        self.file.close()
        self.sock.close()


class NbdError(Exception):
    def __init__(self, code):
        super().__init__(f"NBD: error {code} ({os.strerror(code)})")
        self.code = code


class Nbd:
    """One export with simple replies; send() and reply() may be apart."""
    READ, WRITE, FLUSH, TRIM, ZERO = 0, 1, 3, 4, 6
    NO_HOLE, FAST_ZERO = 1 << 1, 1 << 4

    def __init__(self, path, name):
        self.sock = connect(path)
        defer(self.sock.close)
        magic, opt, _ = struct.unpack(">QQH", self.take(18))
        if (magic, opt) != (0x4e42444d41474943, 0x49484156454F5054):
            raise AssertionError("no NBD greeting")
        export = name.encode()
        self.sock.sendall(struct.pack(">IQII", 3, opt, 1, len(export)) + export)
        self.size, self.flags = struct.unpack(">QH", self.take(10))
        self.sent, self.cookie = {}, 0

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def take(self, n):
        got = bytearray()
        while len(got) < n:
            part = self.sock.recv(n - len(got))
            if not part:
                raise ConnectionError("NBD: end of file")
            got += part
        return bytes(got)

    def send(self, kind, offset=0, length=0, data=b"", flags=0):
        self.cookie += 1
        self.sent[self.cookie] = length if kind == self.READ else 0
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind,
                                      self.cookie, offset, len(data) or length)
                          + data)
        return self.cookie

    def reply(self):
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        if magic != 0x67446698:
            raise AssertionError(f"NBD: reply with magic {magic:#x}")
        length = self.sent.pop(cookie)
        if error:
            raise NbdError(error)
        return cookie, self.take(length)

    def do(self, *args, **more):
        self.send(*args, **more)
        return self.reply()[1]

    def read(self, offset, length):
        return self.do(self.READ, offset, length)

    def write(self, offset, data):
        self.do(self.WRITE, offset, data=data)

    def flush(self):
        self.do(self.FLUSH)


class Process:
    """A program in the background; ended with the test at the latest."""

    def __init__(self, *argv, cwd=None, stdin=subprocess.DEVNULL,
                 stdout=subprocess.DEVNULL):
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(argv, cwd=cwd, stdin=stdin,
                                        stdout=stdout, stderr=self.stderr)
        self.pid = self.process.pid
        defer(self.end)

    def errors(self):
        if self.stderr.closed:
            return ""
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def wait(self):
        return self.process.wait(DEADLINE)

    def kill(self):
        self.process.kill()

    def stop(self, sig=signal.SIGTERM):
        """Ends it and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            raise
        assert "runtime error" not in self.errors(), self.errors()
        return code

    def end(self):
        """Whatever state it is in; harmless a second time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                self.process.wait()
        for f in (self.process.stdin, self.process.stdout, self.stderr):
            if f:
                f.close()

    def until(self, attempt, *errors):
        """Retries attempt() while it raises one of these and we run."""
        give_up = time.monotonic() + DEADLINE
        while True:
            try:
                return attempt()
            except errors:
                if self.process.poll() is not None:
                    raise RuntimeError("it ended: " + self.errors())
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.005)


class Daemon(Process):
    """A storage daemon in the foreground; qmp() says that it is ready."""

    def __init__(self, program, *options, folder=None, monitor=True):
        self.folder = folder or os.getcwd()
        self.socket = os.path.join(self.folder, f"qmp-{id(self)}.sock")
        args = [program, *options]
        if monitor:
            args += ["--chardev",
                     f"socket,id=mon,path={self.socket},server=on,wait=off",
                     "--monitor", "mon"]
        super().__init__(*args, cwd=self.folder)
        self.clients = []

    def qmp(self, negotiate=True):
        """Connects; the socket appears when the daemon has bound it."""
        client = self.until(lambda: Qmp(self.socket, negotiate),
                            FileNotFoundError, ConnectionRefusedError)
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

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if exc[0]:
            print("# " + self.errors().replace("\n", "\n# "))
        self.end()


def wait_for(condition):
    """Asks until it is so, for half a minute."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def run(*argv, check=True, ok=(0,), cwd=None):
    """Runs a tool to its end; returns (code, output with errors)."""
    for _ in range(500):
        r = subprocess.run(argv, stdin=subprocess.DEVNULL, cwd=cwd,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           timeout=DEADLINE)
        text = r.stdout.decode(errors="replace")
        # A killed process's locks outlive it until the kernel has torn down
        # its io_uring.
        if not check or r.returncode != 1 or '" lock' not in text:
            break
        time.sleep(0.01)
    if check and r.returncode not in ok:
        raise RuntimeError(f"{argv} returned {r.returncode}: {text}")
    return r.returncode, text


def nbd_server(path="nbd.sock"):
    """The daemon's options for an NBD server on a socket."""
    return ["--nbd-server", f"addr.type=unix,addr.path={path}"]


def loop_device(path, *options):
    """A block device over a file, detached with the test."""
    device = run("losetup", "--find", "--show", *options, path)[1].strip()
    defer(run, "losetup", "--detach", device)
    return device


def mount(kind, where, *options):
    """A file system from nowhere (tmpfs), unmounted with the test."""
    os.makedirs(where, exist_ok=True)
    run("mount", "-t", kind, *options, kind, where)
    defer(run, "umount", os.path.abspath(where))


class HangingMount:
    """A file system that answers nothing: who looks into it waits, until
    release()."""

    def __init__(self, where):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.where = os.path.abspath(where).encode()
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        defer(self.release)
        os.makedirs(where, exist_ok=True)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0"
        if self.libc.mount(b"hanging", self.where, b"fuse", 0,
                           options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        # It is asked for nothing before it has answered FUSE_INIT.
        unique = struct.unpack_from("<Q", os.read(self.fd, 1 << 16), 8)[0]
        answer = struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 4096, 1,
                             0, 0, 0, *[0] * 7)
        os.write(self.fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) +
                 answer)

    def wait(self):
        """Returns when somebody waits in there."""
        if not select.select([self.fd], [], [], DEADLINE)[0]:
            raise AssertionError("nobody looked into the mount")
        os.read(self.fd, 1 << 16)

    def release(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.libc.umount2(self.where, 2)  # MNT_DETACH


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


JOURNAL_UUID = b"of the test file"


def journal(name, *records):
    """Beside an image, as src/journal/journal.h has it: (type, payload)s."""
    data = b"SLUICE-J" + JOURNAL_UUID + struct.pack("<I", 16384)
    data += struct.pack("<I", crc32c(data))
    body = b""
    for kind, payload in records:
        head = struct.pack("<I", kind) + payload
        record = struct.pack("<II", len(payload), crc32c(head)) + head
        body += record + bytes(-len(record) % 8)
    end = struct.pack("<I", len(data) + 8 + len(body))
    data += end + struct.pack("<I", crc32c(end)) + body
    with open(f"{name}.sluice", "wb") as f:
        f.write(data + bytes(16384 - len(data)))


def need(*tools):
    """Skips the program where a tool is missing."""
    for tool in tools:
        if not shutil.which(tool):
            print(f"1..0 # SKIP {tool} is not installed")
            sys.exit(0)


def _one(test, memory):
    """Runs a test and takes back what it left; raises what it raised."""
    here = os.getcwd()
    with contextlib.ExitStack() as stack:
        _stacks.append(stack)
        stack.callback(_stacks.pop)
        os.chdir(folder(memory))
        stack.callback(os.chdir, here)
        test()


def main(tests, memory=False):
    """Runs functions, or (name, function) pairs; TAP on standard output."""
    failed = 0
    # A test runner's timeout is a failure like any other: clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"1..{len(tests)}", flush=True)
    for i, test in enumerate(tests, 1):
        name, fn = (test if isinstance(test, tuple)
                    else (test.__name__.replace("_", " "), test))
        try:
            _one(fn, memory)
            print(f"ok {i} - {name}", flush=True)
        except Exception:
            failed += 1
            for line in traceback.format_exc().splitlines():
                print("# " + line, flush=True)
            print(f"not ok {i} - {name}", flush=True)
    sys.exit(1 if failed else 0)
