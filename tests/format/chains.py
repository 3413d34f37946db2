#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random chains made by qemu-img and qemu-io, used through Sluice, compared
both ways with a byte model.

chains.py DISK_TOOL [SEED [COUNT]]: raw, qcow2 and QED; depth 1 to 8; sizes that
are a multiple of 512 and of nothing else; backing files shorter and longer than
their overlays, in the middle too; compressed and zero clusters; writes, zeroes,
discards, streams.  After each chain qemu-img's check must be clean and its
reading equal to the model.  (QEMU's own QED driver loses part of some unaligned
zero writes, so QED images are made without them; nor can it open what it made
with a table size of 1.)
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

TOOL = sys.argv[1]
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 25


def run(*argv):
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True,
                       text=True)
    if p.returncode:
        raise AssertionError(f"{' '.join(argv)}: {p.stdout}{p.stderr}")
    return p.stdout


class Model:
    """What the disk must read as, a byte each."""

    def __init__(self, below, size):
        self.data = bytearray(size)
        if below is not None:
            n = min(size, len(below.data))
            self.data[:n] = below.data[:n]

    def fill(self, off, length, byte):
        self.data[off:off + length] = bytes([byte]) * length


class Chain:
    def __init__(self, rng, folder):
        self.rng = rng
        self.folder = folder
        self.images = []  # (path, format)
        self.model = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def size(self):
        return self.rng.randrange(1, 4096) * 512

    def add(self, fmt):
        rng, size = self.rng, self.size()
        name = f"l{len(self.images)}.{fmt}"
        cmd = ["qemu-img", "create", "-q", "-f", fmt]
        if fmt == "qcow2":
            cluster = rng.choice([512, 4096, 65536, 2 << 20])
            compression = rng.choice(["zlib", "zstd"])
            bits = rng.choice([1, 8, 16, 64])
            cmd += ["-o", f"cluster_size={cluster},refcount_bits={bits},"
                    f"compression_type={compression}"]
        elif fmt == "qed":
            cluster = rng.choice([4096, 65536])
            cmd += ["-o", f"cluster_size={cluster},"
                    f"table_size={rng.choice([2, 16])}"]
        if self.images:
            back, back_fmt = self.images[-1]
            cmd += ["-b", os.path.basename(back), "-F", back_fmt]
        run(*cmd, self.path(name), str(size))
        below, self.model = self.model, Model(self.model, size)
        self.images.append((self.path(name), fmt))
        self.fill_by_qemu(fmt)

    def fill_by_qemu(self, fmt):
        rng, size = self.rng, len(self.model.data)
        cmds = []
        for _ in range(rng.randrange(0, 7)):
            off = rng.randrange(0, size // 512) * 512
            length = rng.randrange(1, min((size - off) // 512, 300) + 1) * 512
            byte = rng.randrange(1, 256)
            kind = rng.random()
            if kind < 0.15 and fmt == "qcow2":
                cmds += ["-c", f"write -z {off} {length}"]
                byte = 0
            elif kind < 0.35 and fmt == "qcow2" and not cmds:
                # qemu compresses whole clusters that are not allocated yet
                step = 2 << 20
                off = 0
                length = min(step, size)
                cmds += ["-c", f"write -c -P {byte} {off} {length}"]
            else:
                cmds += ["-c", f"write -P {byte} {off} {length}"]
            self.model.fill(off, length, byte)
        if cmds:
            path, fmt = self.images[-1]
            run("qemu-io", "-f", fmt, *cmds, path)

    def compare(self, got, what):
        want = bytes(self.model.data)
        if got != want:
            n = next((i for i in range(min(len(got), len(want)))
                      if got[i] != want[i]), min(len(got), len(want)))
            raise AssertionError(
                f"{what}: byte {n} is {got[n:n + 1].hex()}, not "
                f"{want[n:n + 1].hex()} (sizes {len(got)}, {len(want)})")


class Disk:
    """Our side: tests/tools/disk."""

    def __init__(self, options):
        self.p = subprocess.Popen([TOOL, json.dumps(options)], text=True,
                                  stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        self.expect_ok(self.p.stdout.readline(), "open")

    def expect_ok(self, answer, what):
        if not answer.startswith("ok"):
            raise AssertionError(f"{what}: {answer.strip() or 'it died'}")
        return answer.split()[1:]

    def do(self, line):
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        return self.expect_ok(self.p.stdout.readline(), line)

    def close(self):
        self.p.stdin.close()
        if self.p.wait():
            raise AssertionError("the tool ended badly")

    def end(self):
        self.p.kill()
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close()


def options_for(path, fmt, direct):
    o = {"driver": fmt, "node-name": "top", "discard": "unmap",
         "file": {"driver": "file", "filename": path}}
    if direct:
        o["cache"] = {"direct": True}
    return o


def use(chain, disk):
    rng, size = chain.rng, len(chain.model.data)
    dump = chain.path("dump")
    for _ in range(rng.randrange(3, 25)):
        off = rng.randrange(0, size)
        length = rng.randrange(1, min(size - off, 200000) + 1)
        kind = rng.random()
        if kind < 0.55:
            byte = rng.randrange(1, 256)
            disk.do(f"write {off} {length} {byte}")
            chain.model.fill(off, length, byte)
        elif kind < 0.75:
            disk.do(f"zero {off} {length} {rng.randrange(2)}")
            chain.model.fill(off, length, 0)
        elif kind < 0.85:
            disk.do("flush")
        else:
            disk.do(f"read {dump}")
            with open(dump, "rb") as f:
                chain.compare(f.read(), "read")


def judge(chain, what):
    path, fmt = chain.images[-1]
    raw = chain.path("judge.raw")
    if fmt != "raw":
        out = subprocess.run(["qemu-img", "check", "-f", fmt, path],
                             stdin=subprocess.DEVNULL, capture_output=True,
                             text=True)
        if out.returncode:
            raise AssertionError(f"{what}: {out.stdout}{out.stderr}")
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", path, raw)
    with open(raw, "rb") as f:
        chain.compare(f.read(), what)


def one(seed, folder):
    rng = random.Random(seed)
    chain = Chain(rng, folder)
    depth = rng.randrange(1, 9)
    formats = ["qcow2", "qcow2", "qed"]
    chain.add("raw" if rng.random() < 0.4 else rng.choice(formats))
    for _ in range(1, depth):
        chain.add(rng.choice(formats))
    disk = Disk(options_for(*chain.images[-1], rng.random() < 0.3))
    try:
        use(chain, disk)
        if depth > 1 and rng.random() < 0.7:
            disk.do(f"stream {rng.randrange(0, depth)}")
            use(chain, disk)
        if rng.random() < 0.3:
            disk.do(f"convert {chain.path('converted')}")
            with open(chain.path("converted"), "rb") as f:
                chain.compare(f.read(), "convert")
        if chain.images[-1][1] != "raw":
            corruptions, _ = disk.do("check")
            if corruptions != "0":
                raise AssertionError(f"our check: {corruptions} corruptions")
        disk.close()
    finally:
        disk.end()
    judge(chain, "what qemu-img reads")


def main():
    failed = 0
    print(f"1..{COUNT}")
    for i in range(COUNT):
        # Mostly in memory, since this waits for every flush of the disk.
        where = "/dev/shm" if i % 5 and os.path.isdir("/dev/shm") else None
        folder = tempfile.mkdtemp(prefix="sluice-chain-", dir=where)
        try:
            one(SEED + i, folder)
            print(f"ok {i + 1} - chain with seed {SEED + i}")
        except AssertionError as e:
            failed += 1
            print(f"not ok {i + 1} - chain with seed {SEED + i}")
            print("# " + str(e).replace("\n", "\n# "))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return failed != 0


sys.exit(main())
