# SPDX-License-Identifier: BSD-3-Clause
"""The programs that are measured: each serves one disk over a Unix socket.
A qemu-storage-daemon is measured with each way of doing its file I/O that it
has here ("aio"); a bar is held against the better of them."""
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
    """sluiced or a qemu-storage-daemon: the same command line.  @aio: how it
    reads and writes files, None for its default.  @before: a command that
    runs it, as strace."""

    def __init__(self, name, program, aio=None, before=()):
        self.name, self.program, self.aio = name, program, aio
        self.before = before

    def start(self, folder, disk=None, direct=False, backing=None, more=()):
        """@disk, @backing: (path, format); without @disk: a daemon that serves
        nothing yet.  A backing file that is not given comes from the header,
        with the daemon's default aio.  @more: options of its own."""
        path = f"{folder}/bench.sock"
        argv = [*self.before, self.program, *more,
                "--chardev", f"socket,id=c,path={path}.qmp,server=on,wait=off",
                "--monitor", "chardev=c"]
        options = ",cache.direct=on" if direct else ""
        if backing:
            argv += self.blockdev("base", backing, options + ",read-only=on")
        if disk:
            argv += self.blockdev("disk", disk, options)
            if backing:
                argv[-1] += ",backing=base"
            argv += ["--nbd-server", f"addr.type=unix,addr.path={path}",
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

    def blockdev(self, node, image, options):
        """@options: of the node and of its file."""
        path, fmt = image
        aio = f",aio={self.aio}" if self.aio else ""
        return ["--blockdev", f"driver=file,node-name={node}-file,"
                f"filename={path}{aio}{options}",
                "--blockdev", f"driver={fmt},node-name={node},"
                f"file={node}-file{options}"]


class Nbdkit:
    """The file plugin has no O_DIRECT; @direct are the parameters that come
    closest.  Its reads are served from the page cache all the same, so that
    it is shown in the direct cases and no bar is held against it there."""
    program, before = "nbdkit", ()

    def __init__(self, name, *plugin, direct=()):
        self.name, self.plugin, self.direct = name, plugin, direct

    def start(self, folder, disk=None, direct=False, backing=None):
        path = f"{folder}/bench.sock"
        plugin = [p.format(raw=disk[0] if disk else "") for p in self.plugin]
        server = Server([*self.before, self.program, "-f", "-U", path, *plugin,
                         *(self.direct if direct else ())], path)
        try:
            wait_for(path, server.process)
        except Exception:
            server.__exit__()
            raise
        return server


SLUICE = "sluice"
QSD, QSD_URING, QSD_NATIVE = "qsd", "qsd-uring", "qsd-native"
QSD2, QSD2_URING, QSD2_NATIVE = "qsd2", "qsd2-uring", "qsd2-native"
NBDKIT, CEILING = "nbdkit", "ceiling"

# aio=native is for direct I/O only.
BUFFERED = [QSD, QSD_URING, QSD2, QSD2_URING]
DIRECT = [*BUFFERED, QSD_NATIVE, QSD2_NATIVE]


def storage_daemons(program, default, uring, native):
    return {default: Daemon(default, program),
            uring: Daemon(uring, program, "io_uring"),
            native: Daemon(native, program, "native")}


def serves(daemon, folder):
    """Whether it has this aio, on this kernel."""
    image = f"{folder}/probe.raw"
    with open(image, "wb") as f:
        f.truncate(1 << 20)
    try:
        with daemon.start(folder, (image, "raw"),
                          direct=daemon.aio == "native"):
            return True
    except (RuntimeError, OSError):
        return False
    finally:
        os.unlink(image)


def find(build, folder):
    """The peers that are here, by name; @folder, on a disk, is for a probe."""
    found = {SLUICE: Daemon(SLUICE, f"{build}/sluiced")}
    if shutil.which("qemu-storage-daemon"):
        found.update(storage_daemons("qemu-storage-daemon", QSD, QSD_URING,
                                     QSD_NATIVE))
    if os.environ.get("PEER_QSD"):
        found.update(storage_daemons(os.environ["PEER_QSD"], QSD2, QSD2_URING,
                                     QSD2_NATIVE))
    for name in [QSD_URING, QSD_NATIVE, QSD2_URING, QSD2_NATIVE]:
        if name in found and not serves(found[name], folder):
            print(f"bench: there is no {name} here")
            del found[name]
    if shutil.which("nbdkit"):
        found[NBDKIT] = Nbdkit(NBDKIT, "file", "{raw}",
                               direct=["cache=none", "fadvise=random"])
        found[CEILING] = Nbdkit(CEILING, "null", "1G")
    return found


def version(peer):
    out = subprocess.run([peer.program, "--version"], capture_output=True,
                         text=True).stdout
    return out.splitlines()[0] if out else "?"
