# SPDX-License-Identifier: BSD-3-Clause
"""What the system tests share: temporary folders, daemons, QMP, TAP.

Every process that is started is ended by its own id, also when a test fails.
Readiness comes from the pid file (--pidfile is written once all is ready, so
an inotify-free wait for it is a wait for the process, bounded by DEADLINE)
and from the greeting on a control socket, never from sleeping a fixed time.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

DEADLINE = 30  # seconds; a hang, not a measure of speed

QSD = shutil.which("qemu-storage-daemon")


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

    def cmd(self, name, **arguments):
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


class Daemon:
    """A storage daemon in the foreground, ready when this returns."""

    def __init__(self, program, *options, folder=None, monitor=True):
        self.folder = folder or os.getcwd()
        self.socket = os.path.join(self.folder, f"qmp-{id(self)}.sock")
        args = [program, *options]
        if monitor:
            args += ["--chardev",
                     f"socket,id=mon,path={self.socket},server=on,wait=off",
                     "--monitor", "mon"]
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(args, cwd=self.folder,
                                        stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL,
                                        stderr=self.stderr)
        self.clients = []
        self.pid = self.process.pid

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

    def errors(self):
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def wait(self):
        return self.process.wait(DEADLINE)

    def stop(self, sig=signal.SIGTERM):
        """Ends it and returns its exit code."""
        for client in self.clients:
            client.close()
        self.clients = []
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if exc[0] and sys.exc_info()[0]:
            print("# " + self.errors().replace("\n", "\n# "))
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.stderr.close()


def run(*args, check=True, cwd=None):
    """Runs a tool to its end; returns (code, output with errors)."""
    r = subprocess.run(args, stdin=subprocess.DEVNULL, cwd=cwd,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       timeout=DEADLINE)
    text = r.stdout.decode(errors="replace")
    if check and r.returncode:
        raise RuntimeError(f"{args} returned {r.returncode}: {text}")
    return r.returncode, text


def need(*tools):
    """Skips the program where a tool is missing."""
    for tool in tools:
        if not shutil.which(tool):
            print(f"1..0 # SKIP {tool} is not installed")
            sys.exit(0)


def main(tests):
    """Runs each test in a folder of its own; TAP on standard output."""
    failed = 0
    print(f"1..{len(tests)}")
    for i, test in enumerate(tests, 1):
        folder = tempfile.mkdtemp(prefix="sluice-test-")
        name = test.__name__.replace("_", " ")
        here = os.getcwd()
        os.chdir(folder)
        try:
            test()
            print(f"ok {i} - {name}", flush=True)
        except Exception:
            failed += 1
            for line in traceback.format_exc().splitlines():
                print("# " + line)
            print(f"not ok {i} - {name}", flush=True)
        finally:
            os.chdir(here)
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if failed else 0)
