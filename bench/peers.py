# SPDX-License-Identifier: BSD-3-Clause
"""The programs that are measured: each serves one disk over a Unix socket."""
import json
import os
import shutil
import socket
import subprocess
import time


def wait_for(path, process, seconds=30):
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended at once")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.args[0]} made no {path}")
        time.sleep(0.005)


class Qmp:
    """A QMP session; events that come meanwhile are kept."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for attempt in range(100):
            try:
                self.socket.connect(path)
                break
            except ConnectionRefusedError:  # bound, and not yet listening
                time.sleep(0.01)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.events = []
        self("qmp_capabilities")

    def send(self, command, arguments):
        self.socket.sendall(json.dumps(
            {"execute": command, "arguments": arguments}).encode())

    def answer(self):
        while True:
            line = self.lines.readline()
            if not line:
                raise RuntimeError("the control connection was closed")
            message = json.loads(line)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(message["error"]["desc"])
            else:
                return message["return"]

    def __call__(self, command, **arguments):
        self.send(command, {k.replace("_", "-"): v
                            for k, v in arguments.items()}
                  if command != "qmp_capabilities" else arguments)
        return self.answer()

    def wait_event(self, name):
        while True:
            for e in self.events:
                if e["event"] == name:
                    self.events.remove(e)
                    return e
            message = json.loads(self.lines.readline())
            if "event" in message:
                self.events.append(message)


class Server:
    """A process that is ended with its `with` block."""

    def __init__(self, argv, socket_path, env=None):
        for path in (socket_path, socket_path + ".qmp"):
            if os.path.exists(path):
                os.unlink(path)
        self.socket = socket_path
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, env=env)
        self.pid = self.process.pid
        self.qmp = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self):
        return time.clock_gettime((~self.pid << 3) | 2)

    def private_bytes(self):
        total = 0
        with open(f"/proc/{self.pid}/smaps_rollup") as f:
            for line in f:
                if line.startswith(("Private_Clean", "Private_Dirty")):
                    total += int(line.split()[1]) * 1024
        return total


class Daemon:
    """sluiced or a qemu-storage-daemon: the same command line."""

    def __init__(self, name, program):
        self.name, self.program = name, program

    def start(self, folder, disk=None, direct=False):
        """@disk: (path, format); None: a daemon without disks."""
        path = f"{folder}/bench.sock"
        argv = [self.program,
                "--chardev", f"socket,id=c,path={path}.qmp,server=on,wait=off",
                "--monitor", "chardev=c"]
        if disk:
            image, fmt = disk
            cache = ",cache.direct=on" if direct else ""
            argv += ["--blockdev", f"driver=file,node-name=file,"
                     f"filename={image}{cache}",
                     "--blockdev", f"driver={fmt},node-name=disk,file=file"
                     + cache,
                     "--nbd-server", f"addr.type=unix,addr.path={path}",
                     "--export", "type=nbd,id=e,node-name=disk,name=,"
                     "writable=on"]
        server = Server(argv, path)
        try:
            wait_for(path + ".qmp", server.process, 120)
            server.qmp = Qmp(path + ".qmp")
        except Exception:
            server.__exit__()
            raise
        return server


class Nbdkit:
    def __init__(self, name, *plugin):
        self.name, self.plugin = name, plugin

    def start(self, folder, disk=None, direct=False):
        path = f"{folder}/bench.sock"
        plugin = [p.format(raw=disk[0] if disk else "") for p in self.plugin]
        server = Server(["nbdkit", "-f", "-U", path, *plugin], path)
        try:
            wait_for(path, server.process)
        except Exception:
            server.__exit__()
            raise
        return server


SLUICE, QSD, QSD2 = "sluice", "qsd", "qsd2"
NBDKIT, CEILING = "nbdkit", "ceiling"


def find(build):
    """The peers that are here, by name."""
    found = {SLUICE: Daemon(SLUICE, f"{build}/sluiced")}
    if shutil.which("qemu-storage-daemon"):
        found[QSD] = Daemon(QSD, "qemu-storage-daemon")
    if os.environ.get("PEER_QSD"):
        found[QSD2] = Daemon(QSD2, os.environ["PEER_QSD"])
    if shutil.which("nbdkit"):
        found[NBDKIT] = Nbdkit(NBDKIT, "file", "{raw}")
        found[CEILING] = Nbdkit(CEILING, "null", "1G")
    return found


def version(daemon):
    out = subprocess.run([daemon.program, "--version"], capture_output=True,
                         text=True).stdout
    return out.splitlines()[0] if out else "?"
