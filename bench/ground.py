# SPDX-License-Identifier: BSD-3-Clause
"""Where the files of the bench lie: file systems, images that are made once,
the load, and what results are compared with."""
import contextlib
import glob
import json
import os
import random
import shutil
import subprocess
import tempfile

MIB = 1 << 20
GIB = 1 << 30

LOOP_SIZE = 24 * GIB  # sparse
REPORTED_ORDER = 9  # free blocks of 2 MiB and more are taken back by a host


def sh(*argv):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def answer(*argv):
    return subprocess.run(argv, check=True, capture_output=True,
                          text=True).stdout.strip()


def memory():
    """Bytes of it, and those that programs can still have."""
    with open("/proc/meminfo", encoding="ascii") as f:
        lines = {line.split(":")[0]: line.split()[1] for line in f}
    return int(lines["MemTotal"]) * 1024, int(lines["MemAvailable"]) * 1024


def free_in_small_blocks():
    """Bytes of free memory in blocks that a host does not take back; each CPU
    keeps some of it in a list of its own."""
    pages = 0
    with open("/proc/buddyinfo", encoding="ascii") as f:
        for line in f:
            blocks = line.split("zone")[1].split()[1:]
            pages += sum(int(n) << order
                         for order, n in enumerate(blocks[:REPORTED_ORDER]))
    with open("/proc/zoneinfo", encoding="ascii") as f:
        pages += sum(int(line.split()[1]) for line in f
                     if line.split()[0] == "count:")
    return pages * os.sysconf("SC_PAGESIZE")


def fs_type(path, field="fstype"):
    return answer("df", f"--output={field}", path).splitlines()[1]


def remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def remove_journals(image):
    """What a daemon has left beside an image, for the next to go on with."""
    for path in glob.glob(glob.escape(image) + ".sluice*"):
        os.unlink(path)


def folder_in(stack, parent):
    """A new folder, removed with @stack."""
    path = tempfile.mkdtemp(prefix="bench-", dir=parent)
    stack.callback(shutil.rmtree, path, True)
    return path


def loop_mounted(stack, kind, parent):
    """A file system in a file on @parent, taken back with @stack.  Its device
    bypasses the page cache of the file system below where that one can."""
    image, at = f"{parent}/{kind}.image", f"{parent}/{kind}"
    with open(image, "wb") as f:
        f.truncate(LOOP_SIZE)
    stack.callback(remove, image)
    sh(f"mkfs.{kind}", "-q", image)
    os.mkdir(at)
    stack.callback(os.rmdir, at)
    attach = ["losetup", "--find", "--show", image]
    try:
        device = answer(*attach, "--direct-io=on")
    except subprocess.CalledProcessError:
        device = answer(*attach)
    stack.callback(subprocess.run, ["losetup", "--detach", device])
    sh("mount", device, at)
    stack.callback(subprocess.run, ["umount", at])
    return at


def write_random(path, size):
    block = bytearray(random.Random(7).randbytes(MIB))
    with open(path, "wb") as f:
        for i in range(size // MIB):
            block[:8] = i.to_bytes(8, "big")
            f.write(block)


class Ground:
    """@disk: a folder on a disk, @memory: one on tmpfs.  "ext4" is the disk's
    own file system if it is one, else one in a file on it; "xfs" and "btrfs"
    are in a file on it too, made when they are asked for."""

    def __init__(self, stack, build, disk, memory, quick, seconds):
        self.stack, self.build = stack, build
        self.quick, self.seconds = quick, seconds
        self.disk, self.made = folder_in(stack, disk), set()
        self.warm, self.warm_pieces = folder_in(stack, memory), 0
        self.folders = {"run": folder_in(stack, None),
                        "tmpfs": folder_in(stack, memory)}
        if fs_type(memory) != "tmpfs":
            raise RuntimeError(f"{memory} is not on tmpfs")
        self.folders["ext4"] = self.disk if fs_type(disk) == "ext4" \
            else self.mounted("ext4")

    def mounted(self, kind):
        if os.geteuid() != 0 or not shutil.which(f"mkfs.{kind}"):
            raise RuntimeError(f"{self.disk} is not on {kind}; to make one in "
                               f"a file, be root and have mkfs.{kind}")
        return loop_mounted(self.stack, kind, self.disk)

    def path(self, fs, name):
        if fs not in self.folders:
            self.folders[fs] = self.mounted(fs)
        return os.path.join(self.folders[fs], name)

    def where(self, fs):
        """The file system, and what it lies on."""
        at = self.folders.get(fs, self.disk)
        source = fs_type(at, "source")
        if source.startswith("/dev/loop"):
            source = f"a file on {fs_type(self.disk)}"
        return f"{fs_type(at)} ({source})"

    def once(self, fs, name, make):
        path = self.path(fs, name)
        if path not in self.made:
            remove(path)
            make(path)
            os.sync()
            self.made.add(path)
        return path

    def drop(self, path):
        self.made.discard(path)
        remove(path)

    def raw(self, fs, size=GIB):
        return self.once(fs, f"raw{size // MIB}",
                         lambda p: write_random(p, size))

    def full(self, fs, fmt, size=GIB):
        """An image in which everything is allocated."""
        if fmt == "raw":
            return self.raw(fs, size)

        def make(path):
            sh("qemu-img", "convert", "-f", "raw", "-O", fmt,
               self.raw(fs, size), path)
        return self.once(fs, f"full{size // MIB}.{fmt}", make)

    def overlay(self, fs, fmt, backing, backing_fmt, name="overlay"):
        path = self.path(fs, f"{name}.{fmt}")
        remove(path)
        sh("qemu-img", "create", "-q", "-f", fmt, "-b", backing, "-F",
           backing_fmt, path)
        return path

    def warm_memory(self, size):
        """Fresh memory of a virtual machine costs ten times more on first
        touch than later: the host has to find it, and takes back whatever
        lies free in large blocks for two seconds (free page reporting).  So
        fill the small blocks, write two MiB for each that is lacking, and give
        back every other: what is free between them is never large enough to
        be taken, and whoever asks for a page gets it from there first, page
        cache and tmpfs alike.  Lists of single CPUs can hold an eighth of all
        memory, which others do not get."""
        total, _ = memory()
        have = free_in_small_blocks()
        if self.warm_pieces and have >= size + total // 16:
            return
        lacks = max(size + total // 8 - have, 0)
        if self.warm_pieces * MIB + lacks > total // 6:
            # Images that stay lie in the holes by now.
            self.remove_warm("held")
            self.warm_pieces, have = 0, free_in_small_blocks()
            lacks = max(size + total // 8 - have, 0)
        room = max(memory()[1] - have - total // 16, 0) // 2
        lacks = min(lacks, room, total // 6)
        for i in range(have // MIB):
            self.write_warm(f"given-{i}")
        for self.warm_pieces in range(self.warm_pieces + 1,
                                      self.warm_pieces + 1 + lacks // MIB):
            self.write_warm(f"given{self.warm_pieces}")
            self.write_warm(f"held{self.warm_pieces}")
        self.remove_warm("given")

    def write_warm(self, name):
        with open(f"{self.warm}/{name}", "wb") as f:
            f.write(bytes(MIB))

    def remove_warm(self, start):
        for name in os.listdir(self.warm):
            if name.startswith(start):
                os.unlink(f"{self.warm}/{name}")

    def settle(self, fs, *paths):
        """What is written back, of an earlier run, is over; @paths are in the
        page cache (a run with cache.direct=on puts them out of it)."""
        if fs == "tmpfs":
            return
        os.sync()
        buffer = bytearray(MIB)
        for path in paths:
            with open(path, "rb", buffering=0) as f:
                while f.readinto(buffer):
                    pass

    def load_command(self, server, options):
        argv = [f"{self.build}/bench/load", "--socket", server.socket,
                "--pid", str(server.pid)]
        for key, value in options.items():
            argv += [f"--{key}", str(value)]
        return argv

    def load(self, server, **options):
        options.setdefault("seconds", self.seconds)
        return json.loads(answer(*self.load_command(server, options)))

    @contextlib.contextmanager
    def guest(self, server, until_end=False, **options):
        """A load beside what is measured; its figures are in the dictionary
        afterwards.  @until_end: it stops where the block ends."""
        figures = {}
        if until_end:
            options["seconds"] = 3600
        process = subprocess.Popen(self.load_command(server, options),
                                   stdout=subprocess.PIPE, text=True)
        try:
            yield figures
        except BaseException:
            process.kill()
            raise
        finally:
            if until_end:
                process.terminate()
            out, _ = process.communicate()
            if not process.returncode:
                figures.update(json.loads(out))
        if process.returncode:
            raise RuntimeError("the load failed")


def backing_of(path, fmt):
    info = json.loads(answer("qemu-img", "info", "--output=json", "-f", fmt,
                             path))
    return info.get("backing-filename")


def must_be_alike(fmt, path, source, source_fmt, start=0):
    """From byte @start on; with one, no image may have a backing file: QEMU
    does not see it through the node that cuts off the start."""

    def image(path, fmt):
        if not start:
            return f"driver={fmt},file.driver=file,file.filename={path}"
        return f"driver=raw,offset={start},file.driver={fmt}," \
            f"file.file.driver=file,file.file.filename={path}"

    done = subprocess.run(["qemu-img", "compare", "-q", "--image-opts",
                           image(path, fmt), image(source, source_fmt)])
    if done.returncode:
        raise RuntimeError(f"{path} is not what {source} is")
